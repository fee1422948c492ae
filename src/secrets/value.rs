//! What a secret must be, and why there is none.

use crate::sync::Arc;
use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

/// The most bytes of a secret.
pub(super) const LONGEST: usize = 64 * 1024;

/// Why there is no value. No variant holds the value or the text of a command.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SecretError {
    /// The file cannot be read.
    Read {
        path: PathBuf,
        source: Arc<io::Error>,
    },
    /// A value was found, but it cannot be a password.
    Unfit { origin: String, flaw: Flaw },
    /// The command could not be started, or not be waited for.
    NotRun(Arc<io::Error>),
    /// The command failed.
    Command { status: ExitStatus },
    /// The command ran for longer than its limit and was killed.
    CommandTimeout(Duration),
    /// The caller's own deadline passed first. The command may still be running.
    Deadline,
    /// The callback failed or panicked.
    Callback(Arc<dyn Error + Send + Sync>),
}

/// What makes a value unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Flaw {
    Empty,
    Nul,
    NotUtf8,
    TooLong,
    /// A command printed more than a password and `expires_in=SECONDS`.
    MoreLines,
}

impl SecretError {
    pub(super) fn unfit(origin: impl Into<String>, flaw: Flaw) -> SecretError {
        let origin = origin.into();
        SecretError::Unfit { origin, flaw }
    }

    /// What a command printed.
    pub(super) fn printed(flaw: Flaw) -> SecretError {
        SecretError::unfit("what the secret's command printed", flaw)
    }

    pub(super) fn not_run(error: io::Error) -> SecretError {
        SecretError::NotRun(Arc::new(error))
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Flaw::Empty => "is empty",
            Flaw::Nul => "contains a NUL byte, which PostgreSQL does not accept",
            Flaw::NotUtf8 => "is not UTF-8",
            Flaw::TooLong => "is longer than 64 KiB",
            Flaw::MoreLines => {
                "has lines that are not understood: the first is the password, and an optional \
                 second one says expires_in=SECONDS"
            }
        })
    }
}

impl fmt::Display for SecretError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecretError::Read { path, .. } => {
                write!(f, "the secret's file {} cannot be read", path.display())
            }
            SecretError::Unfit { origin, flaw } => write!(f, "{origin} {flaw}"),
            SecretError::NotRun(_) => f.write_str("the secret's command could not be run"),
            SecretError::Command { status } => write!(f, "the secret's command failed ({status})"),
            SecretError::CommandTimeout(limit) => {
                write!(f, "the secret's command was killed after {limit:?}")
            }
            SecretError::Deadline => {
                f.write_str("the secret's command had not finished at the caller's deadline")
            }
            SecretError::Callback(_) => f.write_str("the secret's callback failed"),
        }
    }
}

impl Error for SecretError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            SecretError::Read { source, .. } | SecretError::NotRun(source) => Some(source),
            SecretError::Callback(error) => Some(&**error),
            SecretError::Unfit { .. }
            | SecretError::Command { .. }
            | SecretError::CommandTimeout(_)
            | SecretError::Deadline => None,
        }
    }
}

/// Checks what every secret must be, whatever its source.
pub(super) fn fit(bytes: &[u8]) -> Result<&str, Flaw> {
    match bytes {
        [] => Err(Flaw::Empty),
        _ if bytes.len() > LONGEST => Err(Flaw::TooLong),
        _ if bytes.contains(&0) => Err(Flaw::Nul),
        _ => std::str::from_utf8(bytes).map_err(|_| Flaw::NotUtf8),
    }
}

/// Removes one newline at the end.
pub(super) fn without_newline(bytes: &[u8]) -> &[u8] {
    match bytes.strip_suffix(b"\n") {
        Some(rest) => rest.strip_suffix(b"\r").unwrap_or(rest),
        None => bytes,
    }
}
