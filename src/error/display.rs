//! How errors are printed, and what caused them.

use super::kinds::{CheckoutError, Error, OpenError};
use super::reasons::CheckoutFailure;
use super::text::{Chain, server_said};
use crate::metrics::AbandonedStage;
use std::error::Error as StdError;
use std::fmt;

/// As the chain of its causes: a derived one would print the detail of the server's error, which
/// holds row values.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Error::Checkout(_) => "Checkout",
            Error::QueryTimeout { .. } => "QueryTimeout",
            Error::Database { .. } => "Database",
            Error::OutcomeUnknown { .. } => "OutcomeUnknown",
            Error::KeyInUse => "KeyInUse",
            Error::NotReplicated => "NotReplicated",
            Error::TransactionAborted { .. } => "TransactionAborted",
            Error::GaveUp { .. } => "GaveUp",
            Error::Abandoned { .. } => "Abandoned",
            Error::Misuse(_) => "Misuse",
            Error::Application(_) => "Application",
        };
        write!(f, "{name}({})", Chain(self))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Checkout(e) => write!(f, "{e}"),
            Error::QueryTimeout { limit, sql, .. } => {
                write!(f, "query timeout after {} ms: {sql}", limit.as_millis())
            }
            Error::Database { source, .. } => match source.as_db_error() {
                Some(db) => server_said(db, f),
                None => write!(f, "{source}"),
            },
            Error::OutcomeUnknown { .. } => {
                f.write_str("the outcome is unknown: the write may have been done, or not")
            }
            Error::KeyInUse => f.write_str("another transaction holds the key"),
            Error::NotReplicated => f.write_str(
                "the server stopped waiting for a synchronous standby: the write is committed there, and may be lost with that server",
            ),
            Error::GaveUp {
                attempts, reason, ..
            } => {
                let times = if *attempts == 1 {
                    "attempt"
                } else {
                    "attempts"
                };
                write!(f, "gave up after {attempts} {times}: {reason}")
            }
            Error::TransactionAborted { cause, .. } => {
                write!(
                    f,
                    "nothing was committed: a statement of the transaction failed: {cause}"
                )
            }
            Error::Abandoned { stage } => f.write_str(match stage {
                AbandonedStage::Waiting => "abandoned while it waited for a connection",
                AbandonedStage::Running => "abandoned while its statement ran",
                _ => "abandoned before it began",
            }),
            Error::Misuse(what) => f.write_str(what),
            Error::Application(e) => write!(f, "{e}"),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Error::Checkout(e) => e.source(),
            Error::QueryTimeout { source, .. } => Some(source),
            // The server's message is in our own line already; what is below it is the same once
            // more.
            Error::Database { source, .. } => match source.as_db_error() {
                Some(_) => None,
                None => source.source(),
            },
            Error::OutcomeUnknown { source } | Error::GaveUp { source, .. } => Some(source),
            Error::KeyInUse
            | Error::NotReplicated
            | Error::TransactionAborted { .. }
            | Error::Abandoned { .. }
            | Error::Misuse(_) => None,
            Error::Application(e) => e.source(),
        }
    }
}

impl fmt::Display for CheckoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason {
            CheckoutFailure::Timeout => write!(f, "no connection within {:.1?}", self.waited)?,
            CheckoutFailure::LineFull => write!(f, "too many threads in line for a connection")?,
            CheckoutFailure::FailingFast => write!(f, "the database is unreachable")?,
            CheckoutFailure::Refused => write!(f, "the database refuses the pool's connections")?,
            CheckoutFailure::Closed => write!(f, "the pool is closed")?,
        }
        let s = &self.stats;
        write!(
            f,
            " (total={} active={} idle={} waiting={} max={}",
            s.total, s.active, s.idle, s.waiting, s.max
        )?;
        match (&self.held_here, &self.longest) {
            (Some(own), _) if self.reason == CheckoutFailure::Timeout => write!(
                f,
                "; this thread holds one itself and asked for another at {}: {own})",
                self.place
            ),
            (_, Some(holder)) => write!(f, "; longest: {holder})"),
            (_, None) => f.write_str(")"),
        }
    }
}

impl StdError for CheckoutError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.last_open_error.as_deref().map(|e| e as _)
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Driver(_) => f.write_str("could not open a connection"),
            OpenError::Timeout(limit) => {
                write!(f, "the server did not complete the login within {limit:?}")
            }
            OpenError::Resolve(_) => f.write_str("the host's name could not be resolved"),
            OpenError::Connect(_) => f.write_str("could not reach the server"),
            OpenError::Tls(what) => f.write_str(what),
            OpenError::Password(_) => f.write_str("the password could not be had"),
            OpenError::Unfit { asked, standby } => {
                let kind = if *standby { "a standby" } else { "a primary" };
                write!(
                    f,
                    "target_session_attrs={asked}: no server is of that kind; the last one is {kind}"
                )
            }
            OpenError::OnConnect(_) => f.write_str("on_connect failed"),
            OpenError::OnConnectTimeout(limit) => {
                write!(
                    f,
                    "on_connect did not end within {limit:.0?}, which opening a connection may take"
                )
            }
            OpenError::Files(_) => f.write_str("no file descriptors are left for a connection"),
            OpenError::Panicked(what) => write!(f, "panicked while opening a connection: {what}"),
            OpenError::Closed => f.write_str("the pool is closed"),
        }
    }
}

impl StdError for OpenError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            OpenError::Driver(e) => Some(e),
            OpenError::Resolve(e) | OpenError::Connect(e) | OpenError::Files(e) => Some(e),
            OpenError::OnConnect(e) => Some(e),
            OpenError::Password(e) => Some(&**e),
            OpenError::Timeout(_)
            | OpenError::Tls(_)
            | OpenError::Unfit { .. }
            | OpenError::OnConnectTimeout(_)
            | OpenError::Panicked(_)
            | OpenError::Closed => None,
        }
    }
}
