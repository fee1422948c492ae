//! Why a connection could not be made, beside what the driver says itself.

use std::error::Error as StdError;
use std::fmt;
use std::io;

/// Why a connector failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The connection could not be made, or was lost.
    Io(io::Error),
    /// The encryption that is asked for is not to be had; says what was expected and what came.
    #[cfg_attr(not(feature = "tls"), allow(dead_code))]
    Tls(String),
}

impl Failure {
    /// Returns the failure that a driver's error stands for: the driver reports each as a failed
    /// handshake.
    pub fn behind(error: &postgres::Error) -> Option<&Failure> {
        let io = error.source()?.downcast_ref::<io::Error>()?;
        io.get_ref()?.downcast_ref()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Io(e) => e.fmt(f),
            Failure::Tls(what) => f.write_str(what),
        }
    }
}

impl StdError for Failure {}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> io::Error {
        let kind = match &failure {
            Failure::Io(e) => e.kind(),
            Failure::Tls(_) => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, failure)
    }
}
