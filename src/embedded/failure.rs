//! Why there is no private server.

use std::fmt;
use std::io;
use std::path::PathBuf;

pub(super) const OLDEST: u32 = 14;

/// Why there is no private server.
#[derive(Debug)]
#[non_exhaustive]
pub enum EmbeddedError {
    /// PostgreSQL's programs are not installed on this machine, or too old.
    NotInstalled(String),
    /// Another program uses the data directory.
    InUse {
        /// The data directory.
        dir: PathBuf,
        /// The process id of that program, if it is known.
        pid: Option<u32>,
    },
    /// One of PostgreSQL's programs failed.
    Failed {
        /// Which program failed, and how.
        what: String,
        /// The last lines that it printed.
        printed: String,
    },
    /// A system call failed.
    Io {
        /// What was attempted.
        what: String,
        /// The system's error.
        source: io::Error,
    },
}

impl fmt::Display for EmbeddedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EmbeddedError::NotInstalled(why) => write!(
                f,
                "no private PostgreSQL: {why}. Install PostgreSQL {OLDEST} or newer (Debian, Ubuntu: apt-get install postgresql), \
                 name its directory in PG_BIN_DIR, or name a database in DATABASE_URL"
            ),
            EmbeddedError::InUse { dir, pid } => {
                write!(
                    f,
                    "the private database in {} is in use by another program",
                    dir.display()
                )?;
                match pid {
                    Some(pid) => write!(
                        f,
                        " (pid {pid}); stop it, or start this one in another directory"
                    ),
                    None => write!(f, "; stop it, or start this one in another directory"),
                }
            }
            EmbeddedError::Failed { what, printed } if printed.trim().is_empty() => {
                f.write_str(what)
            }
            EmbeddedError::Failed { what, printed } => write!(f, "{what}: {}", printed.trim()),
            EmbeddedError::Io { what, .. } => f.write_str(what),
        }
    }
}

impl std::error::Error for EmbeddedError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            EmbeddedError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

pub(super) trait Tried<T> {
    fn tried(self, what: impl FnOnce() -> String) -> Result<T, EmbeddedError>;
}

impl<T, E: Into<io::Error>> Tried<T> for Result<T, E> {
    fn tried(self, what: impl FnOnce() -> String) -> Result<T, EmbeddedError> {
        self.map_err(|e| EmbeddedError::Io {
            what: what(),
            source: e.into(),
        })
    }
}
