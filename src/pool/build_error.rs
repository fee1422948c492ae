//! Why a pool could not be built.

use crate::config::ConfigErrors;
use std::fmt;
use std::io;

/// Why a pool could not be built.
#[derive(Debug)]
#[non_exhaustive]
pub enum BuildError {
    /// Settings that cannot work, all at once.
    Settings(ConfigErrors),
    /// The system refused one of the pool's threads.
    Thread(io::Error),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BuildError::Settings(errors) => write!(f, "{errors}"),
            BuildError::Thread(e) => write!(
                f,
                "cannot start a thread for the pool: {e}; raise the limit (ulimit -u or -v, or pids.max of the control group)"
            ),
        }
    }
}

impl std::error::Error for BuildError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            // Their texts are in our own already.
            BuildError::Settings(_) => None,
            BuildError::Thread(e) => e.source(),
        }
    }
}
