//! The text of `DATABASE_URL`: a `postgresql://` URL or a `key=value` string, as pairs.
//!
//! Follows the manual, section 34.1.1, and where that is silent, libpq's code. Stricter than libpq
//! where an `@` could belong to a password: that is refused, since a guess could send a part of
//! the password to a name server. An error never quotes the text.

use super::keywords::{self, is_blank, is_plain};

const BARE_AT: &str =
    "has a / or ? before its @, or an @ behind its host; write them as %2F, %3F and %40";
const BAD_PERCENT: &str = "has a % without two hexadecimal digits behind it; write a % as %25";
const BLANKS: &str = "a value with blanks must stand in single quotes";

/// Returns the parameters in the order of the text, by libpq's names. Of two of the same name the
/// later one counts.
///
/// What a URL leaves empty is left out, so that the environment can fill it in; an empty value of
/// a `key=value` string is an empty value.
///
/// # Errors
///
/// If the text cannot be parsed or has a parameter that is not known. The values are not checked
/// here (see [`Keyword::accept`](keywords::Keyword::accept)).
pub fn parse(text: &str) -> Result<Vec<(String, String)>, String> {
    let trimmed = text.trim_matches(is_blank);
    if trimmed.is_empty() {
        return Err("is set but empty; takes a postgresql:// URL or a key=value string".into());
    }
    let url = trimmed
        .strip_prefix("postgresql://")
        .or_else(|| trimmed.strip_prefix("postgres://"));
    if let Some(rest) = url {
        return from_url(rest);
    }
    match trimmed.split_once('=') {
        // Behind the first = it is a part of a value.
        Some((before, _)) if !before.contains("://") => from_pairs(text),
        None if !trimmed.contains("://") => {
            Err("is neither a postgresql:// URL nor a key=value string".into())
        }
        _ => Err("takes a URL that begins with postgresql://, or a key=value string".into()),
    }
}

/// Parses what stands behind the scheme.
fn from_url(rest: &str) -> Result<Vec<(String, String)>, String> {
    let (credentials, rest) = match rest.split_once('@') {
        Some((before, _)) if before.contains(['/', '?']) => return Err(BARE_AT.into()),
        Some((_, behind)) if behind.contains('@') => {
            return Err(
                "holds more than one @; write an @ of the user or the password as %40".into(),
            );
        }
        Some((before, behind)) => (Some(before), behind),
        None => (None, rest),
    };
    let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let (hosts, dbname) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, password) = credentials
        .map(|both| both.split_once(':').unwrap_or((both, "")))
        .unwrap_or_default();
    let (hosts, ports) = hosts_and_ports(hosts)?;

    let mut pairs = Vec::new();
    for (name, value) in [
        ("user", user),
        ("password", password),
        ("host", &hosts),
        ("port", &ports),
        ("dbname", dbname),
    ] {
        if !value.is_empty() {
            pairs.push((name.to_owned(), decoded(value)?));
        }
    }
    // `u:pass?word` is a password whose @host is missing, and `password=a&b=c` one with a bare &.
    let is_port = |c: char| c.is_ascii_digit() || c == ',';
    let no_secret =
        has_no_secret(parameters) && (credentials.is_some() || ports.chars().all(is_port));
    let mut left = parameters;
    while !left.is_empty() {
        let parameter;
        (parameter, left) = left.split_once('&').unwrap_or((left, ""));
        let (name, value) = parameter
            .split_once('=')
            .ok_or("has a parameter without =")?;
        if value.contains('=') {
            return Err(
                "has a parameter with more than one =; write those of its value as %3D".into(),
            );
        }
        pairs.push(match (decoded(name)?, decoded(value)?) {
            // The name that JDBC knows.
            (name, value) if name == "ssl" && value == "true" => {
                ("sslmode".into(), "require".into())
            }
            (name, value) => known(&name, value, no_secret)?,
        });
    }
    Ok(pairs)
}

/// Splits `a:1,[::1],c:3` into the list of the hosts and that of the ports, which is empty if no
/// host has a port.
fn hosts_and_ports(text: &str) -> Result<(String, String), String> {
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    let mut left = Some(text);
    while let Some(text) = left {
        let (host, behind) = match text.strip_prefix('[') {
            None => text.split_at(text.find([':', ',']).unwrap_or(text.len())),
            Some(address) => {
                let (host, behind) = address.split_once(']').ok_or("has a [ without its ]")?;
                if host.is_empty() {
                    return Err("has no address between its [ and ]".into());
                }
                if !behind.is_empty() && !behind.starts_with([':', ',']) {
                    return Err("has something other than a port behind a ]".into());
                }
                (host, behind)
            }
        };
        let (port, others) = match behind.split_once(',') {
            Some((port, others)) => (port, Some(others)),
            None => (behind, None),
        };
        hosts.push(host);
        ports.push(port.strip_prefix(':').unwrap_or(port));
        left = others;
    }
    // Of several hosts, libpq keeps the list of ports even if all are empty: each has the default
    // port then, and PGPORT does not count.
    if ports == [""] {
        ports.clear();
    }
    Ok((hosts.join(","), ports.join(",")))
}

/// Decodes `%2F` and the like. A `+` stays what it is.
fn decoded(text: &str) -> Result<String, String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let byte = part
            .get(..2)
            // from_str_radix takes a sign as well.
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
            .ok_or(BAD_PERCENT)?;
        if byte == 0 {
            return Err("has a %00, which no value can hold".into());
        }
        bytes.push(byte);
        bytes.extend(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).map_err(|_| "has percent-encoded bytes that are not UTF-8".into())
}

/// Parses a `key=value` string.
fn from_pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    // A blank in a password without quotes makes a part of the password look like a name.
    let no_secret = has_no_secret(text);
    let mut pairs = Vec::new();
    let mut left = text.trim_start_matches(is_blank);
    while !left.is_empty() {
        let end = left.find(|c| c == '=' || is_blank(c)).unwrap_or(left.len());
        let (name, behind) = left.split_at(end);
        let behind = behind
            .trim_start_matches(is_blank)
            .strip_prefix('=')
            .ok_or_else(|| format!("cannot be parsed: a word has no = behind it ({BLANKS})"))?;
        let value;
        (value, left) = first_value(behind.trim_start_matches(is_blank))?;
        left = left.trim_start_matches(is_blank);
        pairs.push(known(name, value, no_secret)?);
    }
    Ok(pairs)
}

/// Reads a value, in quotes or up to a blank, and returns what stands behind it.
fn first_value(text: &str) -> Result<(String, &str), String> {
    let unquoted = text.strip_prefix('\'');
    let is_quoted = unquoted.is_some();
    let mut chars = unquoted.unwrap_or(text).chars();
    let mut value = String::new();
    loop {
        match chars.next() {
            None if is_quoted => {
                return Err("cannot be parsed: a single quote is not closed".into());
            }
            None => return Ok((value, "")),
            Some('\\') => value.extend(chars.next()),
            Some('\'') if is_quoted => return Ok((value, chars.as_str())),
            Some(c) if !is_quoted && is_blank(c) => return Ok((value, chars.as_str())),
            Some(c) => value.push(c),
        }
    }
}

/// Returns whether no parameter is a password or the like, of which a name could be a part.
fn has_no_secret(parameters: &str) -> bool {
    !["password", "secret", "scram_"]
        .iter()
        .any(|name| parameters.contains(name))
}

/// Returns the pair by libpq's name for it, or an error, which has the name if `no_secret`.
fn known(name: &str, value: String, no_secret: bool) -> Result<(String, String), String> {
    // The name of sslmode before PostgreSQL 8.0.
    if name == "requiressl" {
        let mode = if value.starts_with('1') {
            "require"
        } else {
            "prefer"
        };
        return Ok(("sslmode".into(), mode.into()));
    }
    match keywords::find(name) {
        Some(keyword) => Ok((keyword.name.into(), value)),
        None if no_secret && is_plain(name) => Err(format!("has an unknown parameter: {name}")),
        None => Err(format!("has an unknown parameter ({BLANKS})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes pairs as `name=<value>`.
    fn shown(text: &str) -> String {
        let pairs = parse(text).unwrap_or_else(|said| panic!("{text}: {said}"));
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(name, value)| format!("{name}=<{value}>"))
            .collect();
        pairs.join(" ")
    }

    #[test]
    fn urls_are_read_as_libpq_reads_them() {
        for (rest, expected) in [
            ("", ""),
            ("/", ""),
            ("?", ""),
            ("/?", ""),
            ("h", "host=<h>"),
            ("h:5433", "host=<h> port=<5433>"),
            ("h:", "host=<h>"),
            ("h:/d", "host=<h> dbname=<d>"),
            (":5433", "port=<5433>"),
            ("/d", "dbname=<d>"),
            ("h/d/e", "host=<h> dbname=<d/e>"),
            ("u@", "user=<u>"),
            ("@h", "host=<h>"),
            ("u:@h", "user=<u> host=<h>"),
            (":p@h", "password=<p> host=<h>"),
            ("u:p:q@h", "user=<u> password=<p:q> host=<h>"),
            ("u,v:p[,]@h", "user=<u,v> password=<p[,]> host=<h>"),
            ("u@/d", "user=<u> dbname=<d>"),
            (
                "u:p@h:1/d?connect_timeout=10",
                "user=<u> password=<p> host=<h> port=<1> dbname=<d> connect_timeout=<10>",
            ),
            // Several hosts.
            ("a:1,b:2,c", "host=<a,b,c> port=<1,2,>"),
            ("a,b:2", "host=<a,b> port=<,2>"),
            ("a,b", "host=<a,b> port=<,>"),
            (",", "host=<,> port=<,>"),
            (":1,:2", "host=<,> port=<1,2>"),
            (
                "u@a,b/d?target_session_attrs=any",
                "user=<u> host=<a,b> port=<,> dbname=<d> target_session_attrs=<any>",
            ),
            ("a%2Cb", "host=<a,b>"),
            // IPv6.
            ("[::1]", "host=<::1>"),
            ("[::1]:1/d", "host=<::1> port=<1> dbname=<d>"),
            ("[::1]:", "host=<::1>"),
            ("[::1]?user=u", "host=<::1> user=<u>"),
            (
                "[::1],[2001:db8::1234]:2",
                "host=<::1,2001:db8::1234> port=<,2>",
            ),
            ("u@[::1]/", "user=<u> host=<::1>"),
            ("[200z:db8::1234]/", "host=<200z:db8::1234>"),
            ("[fe80::1%25eth0]", "host=<fe80::1%eth0>"),
            // Percent-encoding everywhere.
            ("%2Fvar%2Frun/d", "host=</var/run> dbname=<d>"),
            (
                "u%40x:p%3a%2F%3f%40%25@h",
                "user=<u@x> password=<p:/?@%> host=<h>",
            ),
            (
                "%68ost:%31/%64?u%73er=%75",
                "host=<host> port=<1> dbname=<d> user=<u>",
            ),
            ("h/d%3Fx", "host=<h> dbname=<d?x>"),
            ("u%C3%BC@h", "user=<uü> host=<h>"),
            ("ü:ß@h", "user=<ü> password=<ß> host=<h>"),
            (
                "a+b@h/c+d?options=e+f",
                "user=<a+b> host=<h> dbname=<c+d> options=<e+f>",
            ),
            // Parameters.
            ("?host=/run/x", "host=</run/x>"),
            ("h?host=/run/x&port=2", "host=<h> host=</run/x> port=<2>"),
            ("h?user=a&user=b&", "host=<h> user=<a> user=<b>"),
            ("h?user=", "host=<h> user=<>"),
            ("h?options=a?b/c", "host=<h> options=<a?b/c>"),
            ("h?options=-c%20x%3D1", "host=<h> options=<-c x=1>"),
            ("h?ssl=true", "host=<h> sslmode=<require>"),
            (
                "h?requiressl=1&requiressl=0",
                "host=<h> sslmode=<require> sslmode=<prefer>",
            ),
            ("h?keepalives_retries=3", "host=<h> keepalives_count=<3>"),
            ("h?pgbouncer=true", "host=<h> pgbouncer=<true>"),
            (
                "example.com?hostaddr=63.1.2.4",
                "host=<example.com> hostaddr=<63.1.2.4>",
            ),
            (
                "other@localhost/otherdb?connect_timeout=10&application_name=myapp",
                "user=<other> host=<localhost> dbname=<otherdb> connect_timeout=<10> application_name=<myapp>",
            ),
        ] {
            assert_eq!(shown(&format!("postgresql://{rest}")), expected, "{rest}");
            assert_eq!(shown(&format!(" postgres://{rest}\n")), expected, "{rest}");
        }
    }

    #[test]
    fn key_value_strings_are_read_as_libpq_reads_them() {
        for (text, expected) in [
            ("host=h", "host=<h>"),
            (" host = h\tport\n=\r\n1 ", "host=<h> port=<1>"),
            ("host=a host=b", "host=<a> host=<b>"),
            ("user=''", "user=<>"),
            ("user=", "user=<>"),
            // The blank behind a = is skipped, as documented.
            ("user= port=1", "user=<port=1>"),
            ("password='a b'", "password=<a b>"),
            ("password='a\\'b\\\\c\\d'", "password=<a'b\\cd>"),
            ("password=a\\ b\\'c", "password=<a b'c>"),
            ("password=a'b'c", "password=<a'b'c>"),
            ("password=a\\ ", "password=<a >"),
            ("password=a\\", "password=<a>"),
            ("user='a'dbname='b'", "user=<a> dbname=<b>"),
            ("password=a=b", "password=<a=b>"),
            ("password=a://b@c%zz", "password=<a://b@c%zz>"),
            ("password=ü\u{a0}ß", "password=<ü\u{a0}ß>"),
            ("options='-c a=1 -c b=2'", "options=<-c a=1 -c b=2>"),
            ("host=a,b port=1,2", "host=<a,b> port=<1,2>"),
            ("requiressl=1", "sslmode=<require>"),
            ("dbname='d pgbouncer=true x'", "dbname=<d pgbouncer=true x>"),
            (
                "host=localhost port=5432 dbname=mydb connect_timeout=10",
                "host=<localhost> port=<5432> dbname=<mydb> connect_timeout=<10>",
            ),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused_without_any_part_of_them() {
        for (text, says) in [
            ("", "is set but empty"),
            (" \n", "is set but empty"),
            ("mysql://u:s3cret@h/d", "begins with postgresql://"),
            ("mysql://u:s3cret@h/d?user=a", "begins with postgresql://"),
            ("postgre://", "begins with postgresql://"),
            ("Postgresql://h", "begins with postgresql://"),
            ("jdbc:postgresql://h/d?user=a", "begins with postgresql://"),
            ("justaword", "is neither a postgresql:// URL nor"),
            ("postgresql://u:s3@cret@h/d", "more than one @"),
            ("postgresql://u@h/d?password=s3@cret", "more than one @"),
            ("postgresql://u:s3/cret@h/d", "a / or ? before its @"),
            ("postgresql://u:s3?cret@h/d", "a / or ? before its @"),
            ("postgresql://h/d?password=s3@cret", "a / or ? before its @"),
            ("postgresql://h/d?user=s3@cret", "a / or ? before its @"),
            ("postgresql://u:s3%cret@h", "a % without two"),
            ("postgresql://%", "write a % as %25"),
            ("postgresql://%1", "write a % as %25"),
            ("postgresql://%zz", "write a % as %25"),
            ("postgresql://%+1", "write a % as %25"),
            ("postgresql://%1ü", "write a % as %25"),
            ("postgresql://%ü", "write a % as %25"),
            ("postgresql://h?dbname=%XXs3cret", "write a % as %25"),
            ("postgresql://a%00b", "%00"),
            ("postgresql://u:s3%FFcret@h", "not UTF-8"),
            ("postgresql://[::1", "[ without its ]"),
            ("postgresql://[::1/d?options=]", "[ without its ]"),
            ("postgresql://[]", "no address between"),
            ("postgresql://[::1]z", "behind a ]"),
            ("postgresql://h?cret", "parameter without ="),
            ("postgresql://h?user=u&&user=v", "parameter without ="),
            ("postgresql://h?&", "parameter without ="),
            ("postgresql://h?user=s3=cret", "more than one ="),
            (
                "postgresql://h?colour=s3cret",
                "has an unknown parameter: colour",
            ),
            (
                "postgresql://u:s3cret@h?uzer=",
                "has an unknown parameter: uzer",
            ),
            ("postgresql://h?u%7aer=x", "has an unknown parameter: uzer"),
            ("postgresql://h?Colour=s3cret", "unknown parameter ("),
            ("postgresql://h?s3=cret", "unknown parameter ("),
            ("postgresql://h?=x", "unknown parameter ("),
            ("postgresql://h?ssl=false", "unknown parameter: ssl"),
            ("postgresql://h?password=s3&cret=1", "unknown parameter ("),
            ("postgresql://u:s3?cret=1", "unknown parameter ("),
            ("host=h colour=red", "has an unknown parameter: colour"),
            ("host=h password=s3 cret", "cannot be parsed"),
            (
                "host=h password=s3 cret=1",
                "unknown parameter (a value with blanks",
            ),
            (
                "host=h oauth_client_secret=s3 cret=1",
                "unknown parameter (",
            ),
            ("host=h cret=1 password=s3", "unknown parameter ("),
            ("password='s3cret", "a single quote is not closed"),
            ("password='s3cret\\'", "a single quote is not closed"),
            ("password='s3cret\\", "a single quote is not closed"),
            ("=x", "unknown parameter ("),
            ("HOST=h", "unknown parameter ("),
            ("ssl=true", "unknown parameter: ssl"),
        ] {
            let said = parse(text).unwrap_err();
            assert!(said.contains(says), "{text}: {said}");
            assert!(
                !said.contains("s3") && !said.contains("cret"),
                "{text}: {said}"
            );
        }
    }
}
