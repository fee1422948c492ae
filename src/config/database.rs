//! Where the database is: a `postgresql://` URL or a `key=value` string.
//!
//! The driver's parser does the work. Values that it would weaken silently, or put where they would
//! be printed, are rejected here. One parameter is our own and is removed before: `pgbouncer=true`,
//! which other tools use as well to announce a pooler.

use postgres::config::{ChannelBinding, Host, SslMode, SslNegotiation};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A database to connect to. Its `Debug` and `Display` show no password.
#[derive(Clone)]
pub struct Database {
    config: postgres::Config,
    pooler: Option<bool>,
}

impl Database {
    /// Returns the driver's settings.
    pub fn config(&self) -> &postgres::Config {
        &self.config
    }

    /// Returns whether a pooler stands in front of it, according to `pgbouncer=`; `None` without
    /// that parameter.
    pub fn pooler(&self) -> Option<bool> {
        self.pooler
    }

    /// Returns one configuration for each host, in the order given. The pool tries the hosts
    /// itself, since the driver would spend the whole time limit on a host that accepts and then
    /// stays silent.
    pub(crate) fn each_host(&self) -> Vec<postgres::Config> {
        let (hosts, addrs, ports) = (
            self.config.get_hosts(),
            self.config.get_hostaddrs(),
            self.config.get_ports(),
        );
        let count = hosts.len().max(addrs.len());
        (0..count)
            .map(|i| {
                let mut one = self.without_hosts();
                match hosts.get(i) {
                    Some(Host::Tcp(name)) => one.host(name),
                    #[cfg(unix)]
                    Some(Host::Unix(path)) => one.host_path(path),
                    // The wire needs a host name, and an address is one.
                    None => one.host(&addrs[i].to_string()),
                };
                if let Some(addr) = addrs.get(i) {
                    one.hostaddr(*addr);
                }
                one.port(*ports.get(i).or(ports.first()).unwrap_or(&5432));
                one
            })
            .collect()
    }

    fn without_hosts(&self) -> postgres::Config {
        let from = &self.config;
        let mut one = postgres::Config::new();
        if let Some(user) = from.get_user() {
            one.user(user);
        }
        if let Some(password) = from.get_password() {
            one.password(password);
        }
        if let Some(dbname) = from.get_dbname() {
            one.dbname(dbname);
        }
        if let Some(options) = from.get_options() {
            one.options(options);
        }
        if let Some(name) = from.get_application_name() {
            one.application_name(name);
        }
        if let Some(timeout) = from.get_connect_timeout() {
            one.connect_timeout(*timeout);
        }
        // Keepalives detect a peer that is gone while we wait for it, tcp_user_timeout one that is
        // gone while we send. Without both, one of these waits would never end.
        one.tcp_user_timeout(
            from.get_tcp_user_timeout()
                .copied()
                .unwrap_or(Duration::from_secs(60)),
        );
        one.keepalives(from.get_keepalives());
        let unset = Duration::from_secs(2 * 60 * 60);
        let idle = from.get_keepalives_idle();
        one.keepalives_idle(if idle == unset {
            Duration::from_secs(30)
        } else {
            idle
        });
        one.keepalives_interval(
            from.get_keepalives_interval()
                .unwrap_or(Duration::from_secs(10)),
        );
        one.keepalives_retries(from.get_keepalives_retries().unwrap_or(3));
        one.target_session_attrs(from.get_target_session_attrs());
        one.load_balance_hosts(from.get_load_balance_hosts());
        one
    }
}

/// Parses a URL or a `key=value` string. The error says what is wrong, but never quotes the text.
impl FromStr for Database {
    type Err = String;

    fn from_str(text: &str) -> Result<Database, String> {
        let text = text.trim();
        if text.is_empty() {
            return Err("is set but empty; takes a postgresql:// URL or a key=value string".into());
        }
        let url = text
            .strip_prefix("postgresql://")
            .or_else(|| text.strip_prefix("postgres://"));
        if let Some(rest) = url {
            // The driver takes the host from the text after the first @, wherever that @ stands.
            let before_host = rest.split('@').next().unwrap_or_default();
            if rest.contains('@') && before_host.contains(['/', '?']) {
                return Err("has a / or ? before its @, or an @ behind its host; write them as %2F, %3F and %40".into());
            }
            if rest.matches('@').count() > 1 {
                return Err(
                    "holds more than one @; write an @ of the user or the password as %40".into(),
                );
            }
        } else if text.contains("://") {
            return Err("takes a URL that begins with postgresql://, or a key=value string".into());
        } else if !text.contains('=') {
            return Err("is neither a postgresql:// URL nor a key=value string".into());
        }
        let is_encoded = |part: &str| {
            let digits = part.get(..2).unwrap_or_default();
            digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit())
        };
        if url.is_some() && !text.split('%').skip(1).all(is_encoded) {
            return Err(
                "has a % without two hexadecimal digits behind it; write a % as %25".into(),
            );
        }
        let (pooler, text) = take_pooler(text, url.is_some())?;
        let config: postgres::Config = text
            .parse()
            .map_err(|e| explain(&e, &text, url.is_some()))?;
        Database::checked(config, pooler)
    }
}

/// For settings that a program has in the driver's form.
impl TryFrom<postgres::Config> for Database {
    type Error = String;

    fn try_from(config: postgres::Config) -> Result<Database, String> {
        Database::checked(config, None)
    }
}

impl Database {
    fn checked(config: postgres::Config, pooler: Option<bool>) -> Result<Database, String> {
        let refused = match () {
            () if config.get_ssl_mode() == SslMode::Require => Some("sslmode=require"),
            () if config.get_ssl_negotiation() == SslNegotiation::Direct => {
                Some("sslnegotiation=direct")
            }
            () if config.get_channel_binding() == ChannelBinding::Require => {
                Some("channel_binding=require")
            }
            () => None,
        };
        if let Some(what) = refused {
            return Err(format!(
                "asks for {what}, but TLS is not built in; takes sslmode=disable or prefer"
            ));
        }
        let (hosts, addrs) = (config.get_hosts().len(), config.get_hostaddrs().len());
        if hosts.max(addrs) == 0 {
            return Err("names no host".into());
        }
        if hosts > 0 && addrs > 0 && hosts != addrs {
            return Err(format!(
                "names {hosts} hosts but {addrs} addresses (hostaddr)"
            ));
        }
        let ports = config.get_ports().len();
        if ports > 1 && ports != hosts.max(addrs) {
            return Err(format!(
                "names {} hosts but {ports} ports",
                hosts.max(addrs)
            ));
        }
        let names = [
            config.get_user(),
            config.get_dbname(),
            config.get_application_name(),
        ];
        let is_odd = |bytes: &[u8]| bytes.iter().any(u8::is_ascii_control);
        if names
            .into_iter()
            .flatten()
            .any(|name| is_odd(name.as_bytes()))
            || config
                .get_password()
                .is_some_and(|password| password.contains(&0))
        {
            return Err("has a control character in a name".into());
        }
        let empty = |h: &Host| matches!(h, Host::Tcp(name) if name.is_empty());
        if config.get_hosts().iter().any(empty) {
            return Err("names an empty host".into());
        }
        Ok(Database { config, pooler })
    }
}

/// Removes `pgbouncer=..` from the parameters.
fn take_pooler(text: &str, url: bool) -> Result<(Option<bool>, String), String> {
    let (before, parameters) = match text.split_once('?') {
        Some((before, parameters)) if url => (before, parameters),
        _ if url => (text, ""),
        _ => ("", text),
    };
    let mut quoted = false;
    let ends = |c: char| {
        quoted ^= !url && c == '\'';
        !quoted && (if url { c == '&' } else { c.is_whitespace() })
    };
    let (mut pooler, mut others) = (None, Vec::new());
    for parameter in parameters.split(ends) {
        match parameter.strip_prefix("pgbouncer=") {
            None => others.push(parameter),
            Some(switch) => {
                let switch = switch.trim_matches('\'').to_ascii_lowercase();
                pooler = Some(match switch.as_str() {
                    "true" | "on" | "1" => true,
                    "false" | "off" | "0" => false,
                    _ => return Err("has a bad value for pgbouncer: takes true or false".into()),
                });
            }
        }
    }
    if pooler.is_none() {
        return Ok((None, text.to_owned()));
    }
    let others = others.join(if url { "&" } else { " " });
    let text = match (url, others.is_empty()) {
        (true, false) => format!("{before}?{others}"),
        (true, true) => before.to_owned(),
        (false, _) => others,
    };
    Ok((pooler, text))
}

/// Returns the parser's error without any word that could be part of a password.
fn explain(error: &postgres::Error, text: &str, url: bool) -> String {
    let cause = std::error::Error::source(error)
        .map(ToString::to_string)
        .unwrap_or_default();
    let quoted = cause.split('`').nth(1).unwrap_or_default();
    let plain = !quoted.is_empty()
        && quoted.len() <= 40
        && quoted.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    if cause.starts_with("invalid value for option") {
        return match quoted {
            "sslmode" => {
                "has an sslmode that is not supported: takes disable or prefer (TLS is not built in)"
                    .into()
            }
            _ => format!("has a bad value for {quoted}"),
        };
    }
    if cause.starts_with("unknown option") {
        // In a key=value string, a blank in an unquoted password makes a part of the password look
        // like a name.
        let name = if url || !text.contains("password") {
            quoted
        } else {
            ""
        };
        return match (plain, name) {
            (true, name) if !name.is_empty() => format!("has an unknown parameter: {name}"),
            _ => {
                "has an unknown parameter (a value with blanks must stand in single quotes)".into()
            }
        };
    }
    "cannot be parsed; takes a postgresql:// URL or a key=value string".into()
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("postgresql://")?;
        if let Some(user) = self.config.get_user() {
            f.write_str(user)?;
            if self.config.get_password().is_some() {
                f.write_str(":***")?;
            }
            f.write_str("@")?;
        }
        for (i, one) in self.each_host().iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let port = one.get_ports().first().copied().unwrap_or(5432);
            match one.get_hosts().first() {
                Some(Host::Tcp(name)) if name.contains(':') => write!(f, "{comma}[{name}]:{port}")?,
                Some(Host::Tcp(name)) => write!(f, "{comma}{name}:{port}")?,
                #[cfg(unix)]
                Some(Host::Unix(path)) => write!(f, "{comma}{}:{port}", path.display())?,
                None => {}
            }
        }
        match self.config.get_dbname() {
            Some(dbname) => write!(f, "/{dbname}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        text.parse::<Database>().unwrap().to_string()
    }

    #[test]
    fn both_forms_are_read_and_shown_without_the_password() {
        assert_eq!(
            shown("postgresql://ada:s3cret@db.example:6432/app"),
            "postgresql://ada:***@db.example:6432/app"
        );
        assert_eq!(
            shown("host=a,b port=1,2 user=ada password=s3cret dbname=app"),
            "postgresql://ada:***@a:1,b:2/app"
        );
        assert_eq!(shown("postgres://[::1]/x"), "postgresql://[::1]:5432/x");
        assert_eq!(shown("host=/run/pg user=u"), "postgresql://u@/run/pg:5432");
        let debug = format!(
            "{:?}",
            "postgresql://u:s3cret@h/d".parse::<Database>().unwrap()
        );
        assert!(!debug.contains("s3cret"), "{debug}");
    }

    #[test]
    fn what_would_be_weakened_or_leaked_is_refused_by_name_and_without_values() {
        for (text, says) in [
            ("", "empty"),
            ("mysql://u:s3cret@h/d", "postgresql://"),
            ("justaword", "neither"),
            ("postgresql://u:s3@cret@h/d", "%40"),
            (
                "postgresql://u:s3cret@h/d?sslmode=require",
                "sslmode=require",
            ),
            ("postgresql://u:s3cret@h/d?sslmode=verify-full", "sslmode"),
            (
                "postgresql://u:s3cret@h/d?sslnegotiation=direct&sslmode=prefer",
                "sslnegotiation=direct",
            ),
            (
                "postgresql://u:s3cret@h/d?channel_binding=require",
                "channel_binding=require",
            ),
            ("postgresql://u:s3cret@h/d?sslrootcert=x", "sslrootcert"),
            ("host=h colour=red", "colour"),
            ("host=h password=s3 cret", "cannot be parsed"),
            ("host=h password=s3 cret=1", "unknown parameter (a value"),
            ("user=u", "no host"),
            ("host=a,b,c port=1,2", "3 hosts but 2 ports"),
            ("host=h port=many", "bad value for port"),
            (
                "host=h connect_timeout=soon",
                "bad value for connect_timeout",
            ),
        ] {
            let said = text.parse::<Database>().unwrap_err();
            assert!(said.contains(says), "{text}: {said}");
            assert!(
                !said.contains("s3") && !said.contains("cret"),
                "{text}: {said}"
            );
        }
    }

    #[test]
    fn a_pooler_is_named_by_a_parameter_that_the_driver_does_not_know() {
        for (text, pooler, left) in [
            ("postgresql://u@h/d?pgbouncer=true", Some(true), "d"),
            (
                "postgresql://u@h/d?application_name=a&pgbouncer=false&sslmode=disable",
                Some(false),
                "d",
            ),
            (
                "postgresql://u@h/d?pgbouncer=1&sslmode=disable",
                Some(true),
                "d",
            ),
            ("host=h dbname=d pgbouncer=on user=u", Some(true), "d"),
            // In quotes it is part of another value.
            (
                "host=h dbname='d pgbouncer=true x' user=u",
                None,
                "d pgbouncer=true x",
            ),
            ("postgresql://u@h/d", None, "d"),
        ] {
            let db: Database = text.parse().unwrap();
            assert_eq!(db.pooler(), pooler, "{text}");
            assert_eq!(db.config().get_dbname(), Some(left), "{text}");
        }
        let said = "postgresql://u@h/d?pgbouncer=maybe".parse::<Database>();
        assert!(said.unwrap_err().contains("bad value for pgbouncer"));
    }

    #[test]
    fn each_host_has_its_own_port_and_all_else_in_common() {
        let db: Database = "host=a,b port=1,2 user=u password=p dbname=d options='-c x=1'"
            .parse()
            .unwrap();
        let each = db.each_host();
        assert_eq!(each.len(), 2);
        assert_eq!(
            (each[1].get_hosts().len(), each[1].get_ports()),
            (1, &[2u16][..])
        );
        assert_eq!(each[1].get_password(), Some(&b"p"[..]));
        assert_eq!(each[1].get_options(), Some("-c x=1"));
        let one: Database = "hostaddr=127.0.0.1 user=u".parse().unwrap();
        assert!(
            matches!(&one.each_host()[0].get_hosts()[0], Host::Tcp(name) if name == "127.0.0.1")
        );
    }
}
