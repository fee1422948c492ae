//! Why a call failed.

use super::reasons::{CheckoutFailure, GaveUpReason};
use super::text::{Chain, HeldBy, is_out_of_files, server_said};
use crate::metrics::Stats;
use crate::retry::{self, Phase, Repeat, Symptom, Verdict};
use postgres::error::SqlState;
use std::error::Error as StdError;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

/// The result of the library's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed.
#[non_exhaustive]
pub enum Error {
    /// No connection could be had; the database was never asked.
    Checkout(Box<CheckoutError>),
    /// A statement ran longer than its limit and was stopped. Where the server said so nothing of it took effect, unless it
    /// commits inside; a write whose connection was cut ends as [`Error::OutcomeUnknown`] around this.
    QueryTimeout {
        /// The limit that was passed.
        limit: Duration,
        /// The first 100 characters of the statement.
        sql: Box<str>,
        /// What the driver said.
        source: postgres::Error,
        /// How far the work had come.
        phase: Phase,
    },
    /// The server refused the statement, or the connection was lost.
    Database {
        /// What the driver said.
        source: postgres::Error,
        /// How far the work had come.
        phase: Phase,
    },
    /// A write was sent and its answer lost: it may have been done, or not. Never repeated by the pool.
    OutcomeUnknown {
        /// What was lost.
        source: Box<Error>,
    },
    /// Another transaction has had the key in hand for as long as the call was to wait for it; nothing was done.
    KeyInUse,
    /// The server gave up its wait for a synchronous standby and said so in a warning only: the write is done there, and may
    /// be lost with that server.
    NotReplicated,
    /// A statement failed inside a transaction and its closure went on as if it had not: nothing was committed.
    TransactionAborted {
        /// What the failed statement's error said.
        cause: Box<str>,
        /// The server's code for it.
        sqlstate: Option<SqlState>,
    },
    /// The last error of a call that was repeated, or that could have been repeated and was not.
    GaveUp {
        /// How often it was tried, the first time included.
        attempts: u32,
        /// Why it was not tried once more.
        reason: GaveUpReason,
        /// The last error.
        source: Box<Error>,
    },
    /// The call was used in a way that cannot work.
    Misuse(&'static str),
    /// An error of the application, handed through a transaction's closure. The transaction was rolled back.
    Application(Box<dyn StdError + Send + Sync>),
}

impl Error {
    /// Wraps an error of the application, to be returned from a transaction's closure.
    pub fn application(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        Error::Application(error.into())
    }

    /// The application's own error, when this is one of type `E`.
    pub fn downcast<E: StdError + Send + Sync + 'static>(self) -> Result<E, Error> {
        match self {
            Error::Application(inner) => inner.downcast().map(|e| *e).map_err(Error::Application),
            other => Err(other),
        }
    }

    /// True when time ran out: waiting for a connection, or on a statement.
    pub fn is_timeout(&self) -> bool {
        match self {
            Error::Checkout(e) => e.reason == CheckoutFailure::Timeout,
            Error::QueryTimeout { .. } => true,
            Error::OutcomeUnknown { source } | Error::GaveUp { source, .. } => source.is_timeout(),
            Error::TransactionAborted { sqlstate, .. } => {
                sqlstate.as_ref() == Some(&SqlState::QUERY_CANCELED)
            }
            Error::Database { .. }
            | Error::KeyInUse
            | Error::NotReplicated
            | Error::Misuse(_)
            | Error::Application(_) => false,
        }
    }

    /// True when the call took no effect for certain, and the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::GaveUp { source, .. } => source.is_retryable(),
            // Not repeated by the pool, which would only lengthen the line; the caller may try later.
            Error::Checkout(e) => {
                let hopeless = e
                    .last_open_error
                    .as_ref()
                    .is_some_and(|open| open.is_permanent());
                e.reason != CheckoutFailure::Closed && !hopeless
            }
            Error::KeyInUse => true,
            // Not repeated by the pool: whoever says NOWAIT wants to know at once.
            Error::Database { source, .. } if Symptom::of(source) == Symptom::NoWait => true,
            other => matches!(
                other.verdict().repeat,
                Repeat::NeverSent | Repeat::RolledBack
            ),
        }
    }

    /// True when a write may have been done, or not.
    pub fn is_outcome_unknown(&self) -> bool {
        match self {
            Error::OutcomeUnknown { .. } => true,
            Error::GaveUp { source, .. } => source.is_outcome_unknown(),
            _ => false,
        }
    }

    /// The server's code, where the server said one. The codes stand in appendix A of PostgreSQL's manual.
    pub fn sqlstate(&self) -> Option<&SqlState> {
        match self {
            Error::Checkout(e) => e.last_open_error.as_ref()?.sqlstate(),
            Error::QueryTimeout { source, .. } | Error::Database { source, .. } => source.code(),
            Error::OutcomeUnknown { source } | Error::GaveUp { source, .. } => source.sqlstate(),
            Error::TransactionAborted { sqlstate, .. } => sqlstate.as_ref(),
            Error::KeyInUse => Some(&SqlState::LOCK_NOT_AVAILABLE),
            Error::NotReplicated | Error::Misuse(_) | Error::Application(_) => None,
        }
    }

    /// The same, once it is known that what it speaks of took no effect.
    pub(crate) fn without_effect(self) -> Error {
        match self {
            // The server itself stopped it: the next attempt would most likely end the same way.
            Error::QueryTimeout {
                limit, sql, source, ..
            } if source.code() == Some(&SqlState::QUERY_CANCELED) => Error::QueryTimeout {
                limit,
                sql,
                source,
                phase: Phase::Preparing,
            },
            Error::Database { source, .. } | Error::QueryTimeout { source, .. } => {
                Error::Database {
                    source,
                    phase: Phase::Preparing,
                }
            }
            Error::OutcomeUnknown { source } => source.without_effect(),
            // The server that had it is gone, and the one that took its place has not.
            Error::NotReplicated => Error::TransactionAborted {
                cause: "its server was lost before a standby had it".into(),
                sqlstate: Some(SqlState::ADMIN_SHUTDOWN),
            },
            other => other,
        }
    }

    /// May it be repeated, and is the connection spent?
    pub(crate) fn verdict(&self) -> Verdict {
        match self {
            Error::Checkout(e) => match (e.reason, &e.last_open_error) {
                (CheckoutFailure::Closed, _) => Verdict::PERMANENT,
                (_, Some(open)) if open.is_permanent() => Verdict::PERMANENT,
                // The line is full because retries would only lengthen it; fail fast means what it says.
                (
                    CheckoutFailure::LineFull
                    | CheckoutFailure::FailingFast
                    | CheckoutFailure::Refused,
                    _,
                ) => Verdict::PERMANENT,
                // All are in use: another place in line would be no better, and the line longer.
                (CheckoutFailure::Timeout, _) if e.stats.active >= e.stats.max => {
                    Verdict::PERMANENT
                }
                (CheckoutFailure::Timeout, _) => Verdict::NEVER_SENT,
            },
            Error::Database { source, phase } => retry::verdict(&Symptom::of(source), *phase),
            // A timeout is not repeated: the next attempt would most likely end the same way, and cost as much. Where the
            // server did not say that it stopped, a write may have been done all the same.
            Error::QueryTimeout { source, phase, .. } => {
                match retry::verdict(&Symptom::of(source), *phase) {
                    lost if lost.repeat == Repeat::Ambiguous => lost,
                    other => Verdict {
                        repeat: Repeat::Permanent,
                        ..other
                    },
                }
            }
            Error::TransactionAborted {
                sqlstate: Some(code),
                ..
            } => retry::verdict(&Symptom::Server(code), Phase::InTransaction),
            Error::TransactionAborted { .. }
            | Error::KeyInUse
            | Error::Misuse(_)
            | Error::Application(_) => Verdict::PERMANENT,
            Error::OutcomeUnknown { .. } | Error::NotReplicated => Verdict::AMBIGUOUS,
            Error::GaveUp { source, .. } => source.verdict(),
        }
    }
}

/// As the chain of its causes: a derived one would print the detail of the server's error, which holds row values.
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
            Error::KeyInUse => f.write_str("another transaction has the key in hand"),
            Error::NotReplicated => f.write_str(
                "the server gave up its wait for a synchronous standby: the write is done there, and may be lost with it",
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
            // The server's message is in our own line already; what is below it is the same once more.
            Error::Database { source, .. } => match source.as_db_error() {
                Some(_) => None,
                None => source.source(),
            },
            Error::OutcomeUnknown { source } | Error::GaveUp { source, .. } => Some(source),
            Error::KeyInUse
            | Error::NotReplicated
            | Error::TransactionAborted { .. }
            | Error::Misuse(_) => None,
            Error::Application(e) => e.source(),
        }
    }
}

/// For reading rows inside a closure: `row.try_get(..)?`. A mistake there rolls the transaction back for good.
impl From<postgres::Error> for Error {
    fn from(source: postgres::Error) -> Error {
        Error::Database {
            source,
            phase: Phase::Statement,
        }
    }
}

/// For reading and writing inside a closure, as that of a COPY. The transaction is rolled back.
impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Error {
        Error::application(error)
    }
}

/// Why no connection could be had, and what the pool looked like then.
#[derive(Debug)]
#[non_exhaustive]
pub struct CheckoutError {
    /// What ended the wait.
    pub reason: CheckoutFailure,
    /// How long the caller was in line.
    pub waited: Duration,
    /// Where it asked.
    pub place: &'static Location<'static>,
    /// The pool's figures at that moment.
    pub stats: Stats,
    /// Who holds a connection longest.
    pub longest: Option<HeldBy>,
    /// The connection that the calling thread holds itself, and cannot give back while it waits for another.
    pub held_here: Option<HeldBy>,
    /// The last failure to open a connection, when the newest attempt failed, or when there was no room for another while the
    /// caller was in line.
    pub last_open_error: Option<Arc<OpenError>>,
}

impl fmt::Display for CheckoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason {
            CheckoutFailure::Timeout => write!(f, "no connection within {:.1?}", self.waited)?,
            CheckoutFailure::LineFull => write!(f, "too many threads in line for a connection")?,
            CheckoutFailure::FailingFast => write!(f, "the database is away")?,
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

/// Why a connection to the server could not be opened.
#[derive(Debug)]
#[non_exhaustive]
pub enum OpenError {
    /// What the driver or the server said.
    Driver(postgres::Error),
    /// The server took longer than allowed to accept and to authenticate.
    Timeout(Duration),
    /// The host's name could not be resolved.
    Resolve(std::io::Error),
    /// The application's `on_connect` failed.
    OnConnect(Box<Error>),
    /// The application's `on_connect` took longer than opening a connection may.
    OnConnectTimeout(Duration),
    /// The process, or the system, has no file descriptors left.
    Files(std::io::Error),
    /// The driver, or `on_connect`, panicked.
    Panicked(String),
    /// The pool was closed meanwhile.
    Closed,
}

impl OpenError {
    /// The server's code for what happened, where it said one.
    pub fn sqlstate(&self) -> Option<&SqlState> {
        match self {
            OpenError::Driver(e) => e.code(),
            OpenError::OnConnect(e) => e.sqlstate(),
            OpenError::Timeout(_)
            | OpenError::Resolve(_)
            | OpenError::OnConnectTimeout(_)
            | OpenError::Files(_)
            | OpenError::Panicked(_)
            | OpenError::Closed => None,
        }
    }

    /// The server is there, and has no room for one more connection, or this process has none.
    pub(crate) fn is_for_want_of_room(&self) -> bool {
        self.sqlstate() == Some(&SqlState::TOO_MANY_CONNECTIONS) || self.is_out_of_files()
    }

    /// What was missing was on our side, and may be there again in a moment.
    pub(crate) fn is_out_of_files(&self) -> bool {
        match self {
            OpenError::Files(_) => true,
            OpenError::Resolve(e) => is_out_of_files(e),
            OpenError::Driver(e) => {
                let cause = e.source().and_then(|cause| cause.downcast_ref());
                cause.is_some_and(is_out_of_files)
            }
            _ => false,
        }
    }

    /// True where the next attempt will most likely fail as well: a wrong password, an unknown database.
    pub fn is_permanent(&self) -> bool {
        retry::verdict(&self.symptom(), Phase::Opening).repeat == Repeat::Permanent
    }

    /// Somebody, or something, refuses whoever comes. (A panic may have been a chance.)
    pub(crate) fn is_refusal(&self) -> bool {
        self.is_permanent() && matches!(self, OpenError::Driver(_) | OpenError::OnConnect(_))
    }

    fn symptom(&self) -> Symptom<'_> {
        match self {
            OpenError::Driver(e) => Symptom::of(e),
            OpenError::Timeout(_)
            | OpenError::Resolve(_)
            | OpenError::OnConnectTimeout(_)
            | OpenError::Files(_) => Symptom::Lost,
            OpenError::OnConnect(e) => match &**e {
                Error::Database { source, .. } | Error::QueryTimeout { source, .. } => {
                    Symptom::of(source)
                }
                _ => Symptom::BadCall,
            },
            OpenError::Panicked(_) | OpenError::Closed => Symptom::BadCall,
        }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Driver(_) => f.write_str("could not open a connection"),
            OpenError::Timeout(limit) => write!(f, "the server did not let us in within {limit:?}"),
            OpenError::Resolve(_) => f.write_str("the host's name could not be resolved"),
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
            OpenError::Resolve(e) | OpenError::Files(e) => Some(e),
            OpenError::OnConnect(e) => Some(e),
            OpenError::Timeout(_)
            | OpenError::OnConnectTimeout(_)
            | OpenError::Panicked(_)
            | OpenError::Closed => None,
        }
    }
}
