//! One of the servers that a database may be on, and which of them a session may be on.

use postgres::config::{Host, TargetSessionAttrs};
use std::fmt;
use std::net::IpAddr;

/// One server, by its name and its port.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ServerHost {
    pub host: Host,
    /// Its address, if that is given and not looked up.
    pub address: Option<IpAddr>,
    pub port: u16,
}

impl ServerHost {
    /// Returns the name that the server's certificate is to have.
    pub fn host_name(&self) -> &str {
        match &self.host {
            Host::Tcp(name) => name,
            // There is no certificate on a Unix socket.
            #[cfg(unix)]
            Host::Unix(_) => "localhost",
        }
    }
}

#[cfg(feature = "server")]
impl ServerHost {
    /// Returns whether it is this machine, as far as its name or address shows.
    pub fn is_on_this_machine(&self) -> bool {
        match (&self.address, &self.host) {
            (Some(address), _) => address.is_loopback(),
            (None, Host::Tcp(name)) => {
                let address = name.parse::<IpAddr>();
                name == "localhost" || address.is_ok_and(|address| address.is_loopback())
            }
            #[cfg(unix)]
            (None, Host::Unix(_)) => true,
        }
    }
}

impl fmt::Display for ServerHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Tcp(name) if name.contains(':') => write!(f, "[{name}]")?,
            Host::Tcp(name) => f.write_str(name)?,
            #[cfg(unix)]
            Host::Unix(directory) => write!(f, "{}", directory.display())?,
        }
        match self.port {
            0 => Ok(()),
            port => write!(f, ":{port}"),
        }
    }
}

/// Returns the hosts of a list such as `db2,db3:5433,[::1]:5434,/run/postgresql`. One without a
/// port has the port 0.
pub(crate) fn hosts(list: &str) -> Result<Vec<ServerHost>, String> {
    if list.contains("://") {
        return Err("a URL is not taken here, only hosts".into());
    }
    let mut all: Vec<ServerHost> = Vec::new();
    for text in list.split(',').map(str::trim) {
        let (name, port) = match text.strip_prefix('[') {
            Some(rest) => match rest.split_once(']') {
                Some((name, "")) => (name, None),
                Some((name, port)) => (name, Some(port.strip_prefix(':').unwrap_or_default())),
                None => (text, Some("")),
            },
            None => match text.rsplit_once(':') {
                // An IPv6 address without brackets.
                Some((before, _)) if before.contains(':') => (text, None),
                Some((name, port)) => (name, Some(port)),
                None => (text, None),
            },
        };
        let port = match port.map(str::parse::<u16>) {
            None => 0,
            Some(Ok(port)) if port > 0 => port,
            Some(_) => {
                return Err(format!(
                    "{text:?} has a port that is not a number from 1 to 65535"
                ));
            }
        };
        let is_odd = |c: char| c.is_whitespace() || c.is_control() || "@?&=[]".contains(c);
        if name.is_empty() || name.contains(is_odd) {
            return Err(format!("{text:?} is not a host"));
        }
        let host = match name.starts_with('/') {
            #[cfg(unix)]
            true => Host::Unix(name.into()),
            _ => Host::Tcp(name.to_owned()),
        };
        let one = ServerHost {
            host,
            address: None,
            port,
        };
        if all.contains(&one) {
            return Err(format!("{one} is there twice"));
        }
        all.push(one);
    }
    Ok(all)
}

/// Which servers a session may be opened to (`target_session_attrs`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SessionAttrs {
    #[default]
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

impl SessionAttrs {
    const ALL: [(&'static str, SessionAttrs); 6] = [
        ("any", SessionAttrs::Any),
        ("read-write", SessionAttrs::ReadWrite),
        ("read-only", SessionAttrs::ReadOnly),
        ("primary", SessionAttrs::Primary),
        ("standby", SessionAttrs::Standby),
        ("prefer-standby", SessionAttrs::PreferStandby),
    ];

    pub(super) fn parse(text: &str) -> Option<SessionAttrs> {
        let found = SessionAttrs::ALL.iter().find(|(name, _)| *name == text);
        found.map(|(_, attrs)| *attrs)
    }

    pub fn as_str(self) -> &'static str {
        let found = SessionAttrs::ALL.iter().find(|(_, attrs)| *attrs == self);
        found.map_or("", |(name, _)| name)
    }

    /// Returns whether a session on such a server is wanted.
    pub fn fits(self, standby: bool, read_only: bool) -> bool {
        match self {
            SessionAttrs::Any => true,
            SessionAttrs::ReadWrite => !read_only,
            SessionAttrs::ReadOnly => read_only,
            SessionAttrs::Primary => !standby,
            SessionAttrs::Standby | SessionAttrs::PreferStandby => standby,
        }
    }
}

impl From<TargetSessionAttrs> for SessionAttrs {
    fn from(attrs: TargetSessionAttrs) -> SessionAttrs {
        match attrs {
            TargetSessionAttrs::ReadWrite => SessionAttrs::ReadWrite,
            TargetSessionAttrs::ReadOnly => SessionAttrs::ReadOnly,
            _ => SessionAttrs::Any,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::hosts;

    #[test]
    fn a_list_of_hosts_is_read_as_people_write_it() {
        for (list, shown) in [
            ("db2", "db2"),
            ("db2, db3:5433", "db2,db3:5433"),
            ("[::1]:5434,::1,[fe80::1]", "[::1]:5434,[::1],[fe80::1]"),
            ("127.0.0.1:1", "127.0.0.1:1"),
            #[cfg(unix)]
            ("/run/postgresql:5433", "/run/postgresql:5433"),
        ] {
            let read = hosts(list).unwrap_or_else(|why| panic!("{list}: {why}"));
            let read: Vec<_> = read.iter().map(ToString::to_string).collect();
            assert_eq!(read.join(","), shown);
        }
    }

    #[test]
    fn what_is_no_list_of_hosts_is_refused_with_the_part_that_is_wrong() {
        for (list, why) in [
            ("", "not a host"),
            ("a,,b", "not a host"),
            ("a:", "port"),
            ("a:0", "port"),
            ("a:70000", "port"),
            ("a:b", "port"),
            ("[::1", "port"),
            ("[::1]5432", "port"),
            ("postgresql://a@b/c", "a URL"),
            ("user@host", "not a host"),
            ("a b", "not a host"),
            ("a,a", "twice"),
        ] {
            let error = hosts(list).map(|_| ()).unwrap_err();
            assert!(error.contains(why), "{list}: {error}");
        }
    }
}
