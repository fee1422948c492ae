//! The table of connection parameters: names, environment variables, accepted values, and whether
//! a parameter has an effect here.
//!
//! Time limits keep libpq's units: `connect_timeout` and the keepalives are seconds, but
//! `tcp_user_timeout` is milliseconds, where the driver's own parser reads seconds.

/// The directory of the server's socket if no host is given, as Debian builds libpq. The
/// project's own builds use `/tmp`.
pub const SOCKET_DIRECTORY: &str = "/var/run/postgresql";

/// The port if none is given.
pub const PORT: &str = "5432";

/// One connection parameter.
#[derive(Debug)]
pub struct Keyword {
    /// Its name in a URL or a `key=value` string.
    pub name: &'static str,
    /// The environment variable that counts if neither the text nor the service sets it.
    pub variable: Option<&'static str>,
    /// What becomes of it.
    pub treatment: Treatment,
    takes: Takes,
}

/// What becomes of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// It has the effect that it has in libpq.
    Taken,
    /// Accepted without effect: nothing that was asked for gets lost.
    Ignored,
    /// Refused unless empty, with what to do instead.
    Refused(&'static str),
}

/// The values that a parameter takes.
#[derive(Clone, Copy, Debug)]
enum Takes {
    Anything,
    /// Names that are printed in logs.
    Name,
    /// A 32-bit integer.
    Integer,
    /// Ports, separated by commas; an empty entry is the default port.
    Ports,
    Words(&'static [&'static str]),
    /// Words in upper or lower case.
    AnyCase(&'static [&'static str]),
}

use Takes::{AnyCase, Anything, Integer, Name, Ports, Words};
use Treatment::{Ignored, Refused, Taken};

const TLS_VERSIONS: Takes = AnyCase(&["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3", ""]);
const OFF_ON: Takes = Words(&["0", "1"]);
const NO_OAUTH: Treatment = Refused("log in with a password or a client certificate");
const NO_SCRAM_KEYS: Treatment = Refused("give the password");

/// Every parameter that is known, with those of PostgreSQL 18.
pub static KEYWORDS: &[Keyword] = &[
    of("service", Some("PGSERVICE"), Taken, Anything),
    of("servicefile", Some("PGSERVICEFILE"), Taken, Anything),
    of("host", Some("PGHOST"), Taken, Anything),
    of("hostaddr", Some("PGHOSTADDR"), Taken, Anything),
    of("port", Some("PGPORT"), Taken, Ports),
    of("dbname", Some("PGDATABASE"), Taken, Name),
    of("user", Some("PGUSER"), Taken, Name),
    of("password", Some("PGPASSWORD"), Taken, Anything),
    of("passfile", Some("PGPASSFILE"), Taken, Anything),
    of(
        "channel_binding",
        Some("PGCHANNELBINDING"),
        Taken,
        Words(&["disable", "prefer", "require"]),
    ),
    of("connect_timeout", Some("PGCONNECT_TIMEOUT"), Taken, Integer),
    of("options", Some("PGOPTIONS"), Taken, Anything),
    of("application_name", Some("PGAPPNAME"), Taken, Name),
    of("fallback_application_name", None, Taken, Name),
    of("keepalives", None, Taken, Integer),
    of("keepalives_idle", None, Taken, Integer),
    of("keepalives_interval", None, Taken, Integer),
    of("keepalives_count", None, Taken, Integer),
    of("tcp_user_timeout", None, Taken, Integer),
    of(
        "sslmode",
        Some("PGSSLMODE"),
        Taken,
        Words(&[
            "disable",
            "allow",
            "prefer",
            "require",
            "verify-ca",
            "verify-full",
        ]),
    ),
    of(
        "sslnegotiation",
        Some("PGSSLNEGOTIATION"),
        Taken,
        Words(&["postgres", "direct"]),
    ),
    of("sslcert", Some("PGSSLCERT"), Taken, Anything),
    of("sslkey", Some("PGSSLKEY"), Taken, Anything),
    of("sslrootcert", Some("PGSSLROOTCERT"), Taken, Anything),
    of("sslcrl", Some("PGSSLCRL"), Taken, Anything),
    of("sslsni", Some("PGSSLSNI"), Taken, OFF_ON),
    // `require` is left out: nothing tells us whether the server asked for the certificate.
    of(
        "sslcertmode",
        Some("PGSSLCERTMODE"),
        Taken,
        Words(&["allow", "disable"]),
    ),
    of(
        "ssl_min_protocol_version",
        Some("PGSSLMINPROTOCOLVERSION"),
        Taken,
        TLS_VERSIONS,
    ),
    of(
        "ssl_max_protocol_version",
        Some("PGSSLMAXPROTOCOLVERSION"),
        Taken,
        TLS_VERSIONS,
    ),
    of(
        "target_session_attrs",
        Some("PGTARGETSESSIONATTRS"),
        Taken,
        Words(&[
            "any",
            "read-write",
            "read-only",
            "primary",
            "standby",
            "prefer-standby",
        ]),
    ),
    of(
        "load_balance_hosts",
        Some("PGLOADBALANCEHOSTS"),
        Taken,
        Words(&["disable", "random"]),
    ),
    // Our own, not libpq's: whether a pooler stands in front of the server.
    of(
        "pgbouncer",
        None,
        Taken,
        AnyCase(&["true", "false", "on", "off", "1", "0"]),
    ),
    // Our sessions speak UTF-8 always; another encoding would not be honoured.
    of(
        "client_encoding",
        Some("PGCLIENTENCODING"),
        Ignored,
        AnyCase(&["UTF8", "UTF-8", "auto", ""]),
    ),
    // Compression may be offered and never be used; that is what libpq does with a modern OpenSSL.
    of("sslcompression", Some("PGSSLCOMPRESSION"), Ignored, OFF_ON),
    // There is no GSSAPI here: `prefer` then means without, and `require` cannot be met.
    of(
        "gssencmode",
        Some("PGGSSENCMODE"),
        Ignored,
        Words(&["disable", "prefer"]),
    ),
    // These only say how GSSAPI works where the server asks for it, which fails here in any case.
    of("krbsrvname", Some("PGKRBSRVNAME"), Ignored, Anything),
    of("gsslib", Some("PGGSSLIB"), Ignored, Anything),
    of("gssdelegation", Some("PGGSSDELEGATION"), Ignored, OFF_ON),
    // The driver speaks 3.0, which lies in these ranges.
    of(
        "min_protocol_version",
        Some("PGMINPROTOCOLVERSION"),
        Ignored,
        Words(&["3.0", ""]),
    ),
    of(
        "max_protocol_version",
        Some("PGMAXPROTOCOLVERSION"),
        Ignored,
        Words(&["3.0", "3.2", "latest", ""]),
    ),
    of(
        "sslcrldir",
        Some("PGSSLCRLDIR"),
        Refused("put the lists into one file and name it with sslcrl"),
        Anything,
    ),
    of(
        "sslpassword",
        None,
        Refused("use a key file without a passphrase that only its owner can read"),
        Anything,
    ),
    of(
        "sslkeylogfile",
        None,
        Refused("it would write the keys of every session to a file"),
        Anything,
    ),
    of(
        "requirepeer",
        Some("PGREQUIREPEER"),
        Refused("use a socket directory that only the server's user can write to"),
        Anything,
    ),
    of(
        "require_auth",
        Some("PGREQUIREAUTH"),
        Refused("use channel_binding=require, which accepts SCRAM over TLS only"),
        Anything,
    ),
    of(
        "replication",
        None,
        Refused("a pool keeps ordinary sessions"),
        Anything,
    ),
    of("scram_client_key", None, NO_SCRAM_KEYS, Anything),
    of("scram_server_key", None, NO_SCRAM_KEYS, Anything),
    of("oauth_issuer", None, NO_OAUTH, Anything),
    of("oauth_client_id", None, NO_OAUTH, Anything),
    of("oauth_client_secret", None, NO_OAUTH, Anything),
    of("oauth_scope", None, NO_OAUTH, Anything),
];

const fn of(
    name: &'static str,
    variable: Option<&'static str>,
    treatment: Treatment,
    takes: Takes,
) -> Keyword {
    Keyword {
        name,
        variable,
        treatment,
        takes,
    }
}

/// Returns the parameter of this name, which may be the driver's name for it.
pub fn find(name: &str) -> Option<&'static Keyword> {
    let name = match name {
        "keepalives_retries" => "keepalives_count",
        other => other,
    };
    KEYWORDS.iter().find(|keyword| keyword.name == name)
}

/// Returns whether a name that is not in the table looks like one, and can be printed.
pub fn is_plain(name: &str) -> bool {
    (1..=40).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

/// What C calls a space, in the "C" locale.
pub fn is_blank(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\x0b'
}

impl Keyword {
    /// Returns the value as it is kept: integers and ports lose the blanks that libpq allows
    /// around them.
    ///
    /// # Errors
    ///
    /// If the value is not accepted, or the parameter is not; the text does not hold the value.
    pub fn accept(&self, value: &str) -> Result<String, String> {
        let name = self.name;
        if let Refused(instead) = self.treatment
            && !value.is_empty()
        {
            return Err(format!(
                "asks for {name}, which is not supported: {instead}"
            ));
        }
        if value.contains('\0') {
            return Err(format!("has a NUL character in {name}"));
        }
        let bad = || format!("has a bad value for {name}");
        match self.takes {
            Anything => {}
            Name if !value.contains(|c: char| c.is_ascii_control()) => {}
            Name => return Err("has a control character in a name".into()),
            Integer => {
                let digits = value.trim_matches(is_blank);
                return digits
                    .parse()
                    .map(|_: i32| digits.into())
                    .map_err(|_| bad());
            }
            Ports => {
                let trimmed = value.split(',').map(|port| port.trim_matches(is_blank));
                let ports: Vec<&str> = trimmed.collect();
                let is_port =
                    |port: &&str| port.is_empty() || port.parse().is_ok_and(|n: u16| n > 0);
                return ports
                    .iter()
                    .all(is_port)
                    .then(|| ports.join(","))
                    .ok_or_else(bad);
            }
            Words(words) if words.contains(&value) => {}
            AnyCase(words) if words.iter().any(|word| word.eq_ignore_ascii_case(value)) => {}
            Words(words) | AnyCase(words) => {
                return Err(format!("{}: takes {}", bad(), listed(words)));
            }
        }
        Ok(value.into())
    }
}

/// Writes `a, b or c`.
fn listed(words: &[&str]) -> String {
    let words: Vec<&str> = words.iter().copied().filter(|w| !w.is_empty()).collect();
    match words.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} or {last}", others.join(", ")),
        _ => words.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_and_variables_are_unique_and_look_like_names() {
        let names: BTreeSet<_> = KEYWORDS.iter().map(|k| k.name).collect();
        assert_eq!(names.len(), KEYWORDS.len());
        assert!(names.iter().all(|name| is_plain(name)));
        let variables: Vec<_> = KEYWORDS.iter().filter_map(|k| k.variable).collect();
        assert!(variables.iter().all(|v| v.starts_with("PG")));
        assert_eq!(
            variables.iter().collect::<BTreeSet<_>>().len(),
            variables.len()
        );
    }

    #[test]
    fn every_documented_variable_is_known() {
        let known = |name| KEYWORDS.iter().any(|k| k.variable == Some(name));
        for name in
            "PGHOST PGHOSTADDR PGPORT PGDATABASE PGUSER PGPASSWORD PGPASSFILE PGREQUIREAUTH \
             PGCHANNELBINDING PGSERVICE PGSERVICEFILE PGOPTIONS PGAPPNAME PGSSLMODE \
             PGSSLNEGOTIATION PGSSLCOMPRESSION PGSSLCERT PGSSLKEY PGSSLCERTMODE PGSSLROOTCERT \
             PGSSLCRL PGSSLCRLDIR PGSSLSNI PGREQUIREPEER PGSSLMINPROTOCOLVERSION \
             PGSSLMAXPROTOCOLVERSION PGGSSENCMODE PGKRBSRVNAME PGGSSLIB PGGSSDELEGATION \
             PGCONNECT_TIMEOUT PGCLIENTENCODING PGTARGETSESSIONATTRS PGLOADBALANCEHOSTS"
                .split_whitespace()
        {
            assert!(known(name), "{name}");
        }
        // Defaults of sessions, not of connections.
        assert!(
            !["PGTZ", "PGDATESTYLE", "PGGEQO", "PGDATA", "PGSYSCONFDIR"]
                .map(known)
                .contains(&true)
        );
    }

    #[test]
    fn values_are_accepted_as_libpq_accepts_them() {
        for (name, value, kept) in [
            ("port", "5432", "5432"),
            ("port", " 1 ,2", "1,2"),
            ("port", ",1,", ",1,"),
            ("port", "", ""),
            ("connect_timeout", " 10\t", "10"),
            ("connect_timeout", "-1", "-1"),
            ("tcp_user_timeout", "30000", "30000"),
            ("keepalives_retries", "3", "3"),
            ("sslmode", "verify-full", "verify-full"),
            ("ssl_min_protocol_version", "tlsv1.3", "tlsv1.3"),
            ("ssl_min_protocol_version", "", ""),
            ("sslcertmode", "disable", "disable"),
            ("client_encoding", "utf-8", "utf-8"),
            ("client_encoding", "auto", "auto"),
            ("gssencmode", "prefer", "prefer"),
            ("sslcompression", "1", "1"),
            ("krbsrvname", "x", "x"),
            ("pgbouncer", "TRUE", "TRUE"),
            ("password", "a\nb", "a\nb"),
            ("requirepeer", "", ""),
        ] {
            let keyword = find(name).unwrap();
            assert_eq!(keyword.accept(value).as_deref(), Ok(kept), "{name}");
        }
    }

    #[test]
    fn other_values_are_refused_by_name_and_not_printed() {
        for (name, value, says) in [
            ("port", "s3cret", "has a bad value for port"),
            ("port", "0", "port"),
            ("port", "65536", "port"),
            ("port", "1 2", "port"),
            ("connect_timeout", "s3cret", "bad value for connect_timeout"),
            ("connect_timeout", "", "connect_timeout"),
            ("keepalives", "99999999999", "keepalives"),
            (
                "sslmode",
                "s3cret",
                "disable, allow, prefer, require, verify-ca or verify-full",
            ),
            ("sslmode", "Require", "sslmode"),
            ("sslmode", "", "sslmode"),
            ("sslcertmode", "require", "allow or disable"),
            ("gssencmode", "require", "takes disable or prefer"),
            ("client_encoding", "LATIN1", "UTF8, UTF-8 or auto"),
            ("pgbouncer", "s3cret", "bad value for pgbouncer"),
            ("pgbouncer", "", "pgbouncer"),
            ("min_protocol_version", "3.2", "takes 3.0"),
            ("sslcrldir", "s3cret", "name it with sslcrl"),
            ("sslpassword", "s3cret", "without a passphrase"),
            ("requirepeer", "s3cret", "socket directory"),
            ("require_auth", "s3cret", "channel_binding"),
            ("replication", "s3cret", "ordinary sessions"),
            ("scram_client_key", "s3cret", "password"),
            ("user", "s3\x1bcret", "control character"),
            ("password", "s3\0cret", "NUL"),
        ] {
            let said = find(name).unwrap().accept(value).unwrap_err();
            assert!(said.contains(says), "{name}={value}: {said}");
            assert!(!said.contains("s3") && !said.contains("cret"), "{said}");
        }
    }

    #[test]
    fn only_plain_names_are_printed() {
        for name in ["colour", "a", "with_score"] {
            assert!(is_plain(name), "{name}");
        }
        for name in ["", "Colour", "s3cret", "a b", "a-b", "ü", &"a".repeat(41)] {
            assert!(!is_plain(name), "{name}");
        }
    }
}
