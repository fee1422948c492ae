//! The way to a server: its address, and whether the connection is to be encrypted.

use super::handshake::Handshake;
use std::fmt;
use std::net::SocketAddr;
#[cfg(unix)]
use std::path::PathBuf;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Tcp(SocketAddr),
    #[cfg(unix)]
    Unix(PathBuf),
}

impl Place {
    pub fn is_tcp(&self) -> bool {
        matches!(self, Place::Tcp(_))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Tcp(address) => address.fmt(f),
            #[cfg(unix)]
            Place::Unix(path) => path.display().fmt(f),
        }
    }
}

#[derive(Clone)]
pub(crate) struct Route {
    pub place: Place,
    /// None for a plain connection.
    pub tls: Option<Handshake>,
}
