//! The file of services, `pg_service.conf`: named sets of parameters (manual, section 34.17).

use super::keywords::{self, is_blank, is_plain};

/// Returns the parameters of a service, `None` if the file does not have it.
///
/// The first section of the name counts, and in it the first value of a parameter. Values have
/// neither quotes nor escapes, and as in libpq no blank may stand before the `=`.
///
/// # Errors
///
/// If a line of that section cannot be used. The text has the number of the line and no value.
pub fn find(text: &str, service: &str) -> Result<Option<Vec<(String, String)>>, String> {
    let mut lines = text
        .split('\n')
        .map(|line| line.trim_matches(is_blank))
        .enumerate()
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let begins = |line: &str| {
        line.strip_prefix('[')
            .and_then(|line| line.strip_prefix(service))
            .is_some_and(|rest| rest.starts_with(']'))
    };
    if !lines.any(|(_, line)| begins(line)) {
        return Ok(None);
    }
    let mut pairs: Vec<(String, String)> = Vec::new();
    for (index, line) in lines.take_while(|(_, line)| !line.starts_with('[')) {
        let (name, value) = pair(line).map_err(|what| format!("line {} {what}", index + 1))?;
        if !pairs.iter().any(|(earlier, _)| earlier == name) {
            pairs.push((name.into(), value.into()));
        }
    }
    Ok(Some(pairs))
}

fn pair(line: &str) -> Result<(&'static str, &str), String> {
    // libpq asks a directory server here.
    if line.starts_with("ldap") {
        return Err("asks an LDAP server, which is not supported".into());
    }
    let (name, value) = line.split_once('=').ok_or("is not key=value")?;
    match keywords::find(name) {
        Some(keyword) if matches!(keyword.name, "service" | "servicefile") => {
            Err("names another service, which a service cannot".into())
        }
        Some(keyword) => Ok((keyword.name, value)),
        None if name.ends_with(is_blank) => Err("has a blank before its =".into()),
        None if is_plain(name) => Err(format!("has an unknown parameter: {name}")),
        None => Err("has an unknown parameter".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# comment\n\
        host=before-any-section\n\
        [mydb]\n\
        host=somehost\n\
        \tport=5433  \r\n\
        #user=commented\n\
        user=ada\n\
        user=second\n\
        \n\
        [quotes]\n\
        password='a b' = c#d\n\
        dbname= x\n\
        options=-c a=b\n\
        application_name=\n\
        keepalives_retries=3\n\
        keepalives_count=4\n\
        [mydb]\n\
        dbname=a second section of the name\n\
        [mydb2] trailing text\n\
        host=two\n\
        [bad]\n\
        anything at all\n\
        [empty]\n\
        []\n\
        host=nameless\n";

    #[test]
    fn a_service_is_the_first_section_of_its_name() {
        let of = |service| find(FILE, service).unwrap();
        let pairs = |pairs: &[(&str, &str)]| {
            let owned = pairs.iter().map(|(k, v)| (k.to_string(), v.to_string()));
            Some(owned.collect::<Vec<_>>())
        };
        for (service, expected) in [
            (
                "mydb",
                pairs(&[("host", "somehost"), ("port", "5433"), ("user", "ada")]),
            ),
            (
                "quotes",
                pairs(&[
                    ("password", "'a b' = c#d"),
                    ("dbname", " x"),
                    ("options", "-c a=b"),
                    ("application_name", ""),
                    ("keepalives_count", "3"),
                ]),
            ),
            ("mydb2", pairs(&[("host", "two")])),
            ("empty", pairs(&[])),
            ("", pairs(&[("host", "nameless")])),
            ("MYDB", None),
            ("my", None),
            ("absent", None),
        ] {
            assert_eq!(of(service), expected, "{service}");
        }
        assert_eq!(find("", "x"), Ok(None));
    }

    #[test]
    fn a_line_that_cannot_be_used_is_named_by_its_number() {
        for (lines, says) in [
            ("s3cret", "line 3 is not key=value"),
            ("colour=s3cret", "line 3 has an unknown parameter: colour"),
            ("s3cret=1", "line 3 has an unknown parameter"),
            (
                "requiressl=1",
                "line 3 has an unknown parameter: requiressl",
            ),
            ("host =s3cret", "line 3 has a blank before its ="),
            ("=s3cret", "line 3 has an unknown parameter"),
            ("Host=s3cret", "line 3 has an unknown parameter"),
            ("service=s3cret", "line 3 names another service"),
            ("servicefile=s3cret", "line 3 names another service"),
            ("ldap://s3cret/x?y?one", "line 3 asks an LDAP server"),
            ("host=a\n\nport", "line 5 is not key=value"),
        ] {
            let said = find(&format!("# one\n[s]\n{lines}\n"), "s").unwrap_err();
            assert!(said.contains(says), "{lines}: {said}");
            assert!(!said.contains("s3") && !said.contains("cret"), "{said}");
        }
        // Other sections are not looked at.
        assert!(find("[a]\nnonsense\n[s]\nhost=h\n[b]\nnonsense", "s").is_ok());
    }
}
