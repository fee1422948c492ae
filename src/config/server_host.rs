//! One of the servers that a database may be on, and which of them a session may be on.

use postgres::config::{Host, TargetSessionAttrs};
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
