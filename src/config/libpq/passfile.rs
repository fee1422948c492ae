//! The password file, `~/.pgpass`: which of its lines is for a server (manual, section 34.16).

use super::keywords::{PORT, SOCKET_DIRECTORY};
use std::fs::Metadata;

/// Returns the password of the first line that matches. It may be empty.
///
/// `host` is the name, the socket directory, or the address if there is no name. As in libpq, the
/// default socket directory and an empty host are looked up as `localhost`, an empty port as 5432,
/// and there is no password for an empty database or user.
pub fn find(text: &str, host: &str, port: &str, dbname: &str, user: &str) -> Option<String> {
    if dbname.is_empty() || user.is_empty() {
        return None;
    }
    let host = match host {
        "" | SOCKET_DIRECTORY => "localhost",
        other => other,
    };
    let port = if port.is_empty() { PORT } else { port };
    text.split('\n')
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.trim_end_matches('\r'))
        .find_map(|line| {
            [host, port, dbname, user]
                .into_iter()
                .try_fold(line, behind_field)
        })
        .map(unescaped)
}

/// Returns what stands behind the first field, if that field is `wanted` or `*`.
fn behind_field<'a>(line: &'a str, wanted: &str) -> Option<&'a str> {
    if let Some(rest) = line.strip_prefix("*:") {
        return Some(rest);
    }
    let (mut line, mut wanted) = (line.chars(), wanted.chars());
    loop {
        let (found, escaped) = match line.next()? {
            '\\' => (line.next()?, true),
            plain => (plain, false),
        };
        match wanted.next() {
            None => return (found == ':' && !escaped).then_some(line.as_str()),
            // An IPv6 address may stand with its colons unescaped, since libpq takes it so.
            Some(wanted) if wanted == found => {}
            Some(_) => return None,
        }
    }
}

/// Returns the last field without its escapes. It ends at a colon; what follows may be a comment.
fn unescaped(field: &str) -> String {
    let (mut password, mut chars) = (String::new(), field.chars());
    while let Some(c) = chars.next().filter(|c| *c != ':') {
        password.push(match c {
            '\\' => chars.next().unwrap_or('\\'),
            plain => plain,
        });
    }
    password
}

/// Checks that a password file is a regular file that only its owner can access. libpq ignores
/// other files with a warning.
///
/// # Errors
///
/// With what is wrong, to be written behind the file's name.
pub fn is_private(metadata: &Metadata) -> Result<(), &'static str> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        if !metadata.is_file() {
            return Err("is not a regular file");
        }
        if metadata.permissions().mode() & 0o077 != 0 {
            return Err("is accessible to its group or to others; change its mode to 0600");
        }
    }
    // On Windows the directory is protected, and libpq checks nothing either.
    let _ = metadata;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_matches_has_the_password() {
        let text = "# db.example:5432:app:ada:commented\n\
            \n\
            db.example:5432:app:ada:one\r\n\
            db.example:5432:app:*:two\n\
            db.example:*:*:ada:three\n\
            *:6432:other:bob:four\n\
            localhost:5432:app:ada:local\n\
            /run/pg:5432:app:ada:socket\n\
            ::1:5432:app:ada:six\n\
            fe80\\:\\:1:5432:app:ada:seven\n\
            a\\\\b:5432:d\\:b:u\\x:p\\:a\\\\s\\s\n\
            end:5432:app:ada:pass:a comment\n\
            back:5432:app:ada:pass\\\n\
            cr:5432:app:ada:pass\r\r\n\
            empty:5432:app:ada:\n\
            short:5432:app:ada\n\
            star*:5432:app:ada:star\n\
            \\*:5432:app:ada:escaped star\n\
            last:5432:app:ada: no newline ";
        for (host, port, dbname, user, password) in [
            ("db.example", "5432", "app", "ada", Some("one")),
            ("db.example", "", "app", "ada", Some("one")),
            ("db.example", "5432", "app", "bob", Some("two")),
            ("db.example", "1", "app", "ada", Some("three")),
            ("DB.example", "5432", "app", "ada", None),
            ("any", "6432", "other", "bob", Some("four")),
            ("", "5432", "app", "ada", Some("local")),
            ("/var/run/postgresql", "5432", "app", "ada", Some("local")),
            ("/var/run/postgresql/", "5432", "app", "ada", None),
            ("/run/pg", "5432", "app", "ada", Some("socket")),
            ("::1", "5432", "app", "ada", Some("six")),
            ("fe80::1", "5432", "app", "ada", Some("seven")),
            ("a\\b", "5432", "d:b", "ux", Some("p:a\\ss")),
            ("end", "5432", "app", "ada", Some("pass")),
            ("back", "5432", "app", "ada", Some("pass\\")),
            ("cr", "5432", "app", "ada", Some("pass")),
            ("empty", "5432", "app", "ada", Some("")),
            ("short", "5432", "app", "ada", None),
            ("star*", "5432", "app", "ada", Some("star")),
            ("starry", "5432", "app", "ada", None),
            ("*", "5432", "app", "ada", Some("escaped star")),
            ("last", "5432", "app", "ada", Some(" no newline ")),
            ("db.example", "5432", "", "ada", None),
            ("db.example", "5432", "app", "", None),
            // A comment is no field, and a host may not be a beginning of one.
            ("# db.example", "5432", "app", "ada", None),
            ("db", "5432", "app", "ada", None),
        ] {
            let found = find(text, host, port, dbname, user);
            assert_eq!(found.as_deref(), password, "{host} {port} {dbname} {user}");
        }
        assert_eq!(find("", "h", "1", "d", "u"), None);
        assert_eq!(find("*:*:*:*:p", "h", "1", "d", "u").as_deref(), Some("p"));
    }

    #[cfg(unix)]
    #[test]
    fn a_file_is_private_if_only_its_owner_can_access_it() {
        use std::os::unix::fs::PermissionsExt;
        let path = std::env::temp_dir().join(format!("pgpass-{}", std::process::id()));
        std::fs::write(&path, "").unwrap();
        for (mode, private) in [
            (0o600, true),
            (0o400, true),
            (0o640, false),
            (0o602, false),
            (0o610, false),
        ] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let said = is_private(&path.metadata().unwrap());
            assert_eq!(said.is_ok(), private, "{mode:o}: {said:?}");
        }
        std::fs::remove_file(&path).unwrap();
        let said = is_private(&std::env::temp_dir().metadata().unwrap());
        assert_eq!(said, Err("is not a regular file"));
    }
}
