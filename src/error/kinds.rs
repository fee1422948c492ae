//! Why a call failed.

use super::reasons::{CheckoutFailure, Effect, GaveUpReason};
use super::text::{HeldBy, is_out_of_files};
use crate::metrics::{AbandonedStage, Stats};
use crate::retry::{self, Phase, Repeat, Symptom, Verdict};
use postgres::error::SqlState;
use std::error::Error as StdError;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

/// The result of the library's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed.
///
/// Ask the predicates, which look through [`Error::GaveUp`] and [`Error::OutcomeUnknown`]:
///
/// ```no_run
/// use millpond::error::Chain;
///
/// # let pool = millpond::Pool::builder().build().unwrap();
/// match pool.execute("UPDATE studios SET open = true WHERE id = $1", &[&1i64]) {
///     Ok(rows) => println!("{rows} opened"),
///     Err(e) if e.is_outcome_unknown() => println!("look whether it was done: {}", Chain(&e)),
///     Err(e) if e.is_retryable() => println!("not done, try again later: {}", Chain(&e)),
///     Err(e) => println!("not done: {}", Chain(&e)),
/// }
/// ```
#[non_exhaustive]
pub enum Error {
    /// No connection was available. Nothing was sent to the database.
    Checkout(Box<CheckoutError>),
    /// A statement ran longer than its limit and was stopped. If the server reported that, the
    /// statement had no effect, unless it commits inside. A write whose connection had to be cut
    /// ends as [`Error::OutcomeUnknown`] around this.
    QueryTimeout {
        /// The limit that was exceeded; if it was the call's deadline, the time that the statement
        /// ran.
        limit: Duration,
        /// The beginning of the statement, with `?` for each constant in it.
        sql: Box<str>,
        /// What the driver said.
        source: postgres::Error,
        /// How far the work had come.
        phase: Phase,
        /// What is known of its effect beyond that.
        effect: Effect,
    },
    /// The server refused the statement, or the connection was lost.
    Database {
        /// What the driver said.
        source: postgres::Error,
        /// How far the work had come.
        phase: Phase,
        /// What is known of its effect beyond that.
        effect: Effect,
    },
    /// A write was sent and its answer was lost: it may have been done or not. The pool never
    /// repeats it.
    OutcomeUnknown {
        /// What was lost.
        source: Box<Error>,
    },
    /// Another transaction held the key for as long as the call was to wait for it. Nothing was
    /// done.
    KeyInUse,
    /// The server gave up waiting for a synchronous standby, which it reports in a warning only.
    /// The write is committed on that server, and may be lost with it. Callers find it as the
    /// source of an [`Error::OutcomeUnknown`].
    NotReplicated,
    /// A statement of a transaction failed, and the closure returned `Ok` all the same. Nothing was
    /// committed.
    TransactionAborted {
        /// The error of the failed statement.
        cause: Box<str>,
        /// The server's code for it.
        sqlstate: Option<SqlState>,
    },
    /// The last error of a call that was repeated, or could have been repeated and was not.
    GaveUp {
        /// The number of attempts, including the first.
        attempts: u32,
        /// Why there was no further attempt.
        reason: GaveUpReason,
        /// The last error.
        source: Box<Error>,
    },
    /// The call's [token](crate::Token) was fired: nobody needs the result. Nothing was done.
    Abandoned {
        /// How far the call had come.
        stage: AbandonedStage,
    },
    /// The call was used in a way that cannot work. The text says what to do instead.
    Misuse(&'static str),
    /// An error of the application, returned from a transaction's closure. The transaction was
    /// rolled back.
    Application(Box<dyn StdError + Send + Sync>),
}

impl Error {
    /// Wraps an error of the application, to be returned from a transaction's closure.
    pub fn application(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        Error::Application(error.into())
    }

    /// Returns the application's own error if it is of type `E`.
    ///
    /// # Errors
    /// Returns this error unchanged if it is not.
    pub fn downcast<E: StdError + Send + Sync + 'static>(self) -> Result<E, Error> {
        match self {
            Error::Application(inner) => inner.downcast().map(|e| *e).map_err(Error::Application),
            other => Err(other),
        }
    }

    /// Returns whether time ran out: waiting for a connection, or during a statement.
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
            | Error::Abandoned { .. }
            | Error::Misuse(_)
            | Error::Application(_) => false,
        }
    }

    /// Returns whether the call certainly had no effect, and may succeed if it is made again later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::GaveUp { source, .. } => source.is_retryable(),
            // The pool does not repeat it, which would only lengthen the line; the caller may.
            Error::Checkout(e) => {
                let hopeless = e
                    .last_open_error
                    .as_ref()
                    .is_some_and(|open| open.is_permanent());
                e.reason != CheckoutFailure::Closed && !hopeless
            }
            Error::KeyInUse => true,
            // The pool does not repeat it: NOWAIT asks for an answer at once.
            Error::Database { source, .. } if Symptom::of(source) == Symptom::NoWait => true,
            other => matches!(
                other.verdict().repeat,
                Repeat::NeverSent | Repeat::RolledBack
            ),
        }
    }

    /// Returns whether a write may have been done or not.
    pub fn is_outcome_unknown(&self) -> bool {
        match self {
            Error::OutcomeUnknown { .. } => true,
            Error::GaveUp { source, .. } => source.is_outcome_unknown(),
            _ => false,
        }
    }

    /// Returns the server's code, if there is one (PostgreSQL's manual, appendix A).
    pub fn sqlstate(&self) -> Option<&SqlState> {
        match self {
            Error::Checkout(e) => e.last_open_error.as_ref()?.sqlstate(),
            Error::QueryTimeout { source, .. } | Error::Database { source, .. } => source.code(),
            Error::OutcomeUnknown { source } | Error::GaveUp { source, .. } => source.sqlstate(),
            Error::TransactionAborted { sqlstate, .. } => sqlstate.as_ref(),
            Error::KeyInUse => Some(&SqlState::LOCK_NOT_AVAILABLE),
            Error::NotReplicated
            | Error::Abandoned { .. }
            | Error::Misuse(_)
            | Error::Application(_) => None,
        }
    }

    /// Returns the class of the error, as OpenTelemetry's `error.type` has it: the server's code if
    /// there is one.
    pub(crate) fn class(&self) -> &str {
        match self.sqlstate() {
            Some(code) => code.code(),
            None if self.is_timeout() => "timeout",
            None => "_OTHER",
        }
    }

    /// A failure on the way to something that has not begun to take effect.
    pub(crate) fn before_any_effect(source: postgres::Error) -> Error {
        Error::in_phase(Phase::Preparing, source)
    }

    /// A failure of which no more is known than how far the work had come.
    pub(crate) fn in_phase(phase: Phase, source: postgres::Error) -> Error {
        Error::Database {
            source,
            phase,
            effect: Effect::ByPhase,
        }
    }

    /// The same error, once it is known that the work had no effect.
    pub(crate) fn without_effect(self) -> Error {
        match self {
            // The server itself stopped it: the next attempt would most likely end the same way.
            Error::QueryTimeout {
                limit,
                sql,
                source,
                phase,
                ..
            } if source.code() == Some(&SqlState::QUERY_CANCELED) => Error::QueryTimeout {
                limit,
                sql,
                source,
                phase,
                effect: Effect::None,
            },
            Error::Database { source, phase, .. } | Error::QueryTimeout { source, phase, .. } => {
                Error::Database {
                    source,
                    phase,
                    effect: Effect::None,
                }
            }
            Error::OutcomeUnknown { source } => source.without_effect(),
            // The server that had the write is gone, and its successor does not have it.
            Error::NotReplicated => Error::TransactionAborted {
                cause: "its server was lost before a standby had it".into(),
                sqlstate: Some(SqlState::ADMIN_SHUTDOWN),
            },
            other => other,
        }
    }

    /// Returns whether the call may be repeated, and whether the connection can still be used.
    pub(crate) fn verdict(&self) -> Verdict {
        match self {
            Error::Checkout(e) => match (e.reason, &e.last_open_error) {
                (CheckoutFailure::Closed, _) => Verdict::PERMANENT,
                (_, Some(open)) if open.is_permanent() => Verdict::PERMANENT,
                // A retry would lengthen a full line, and defeat failing fast.
                (
                    CheckoutFailure::LineFull
                    | CheckoutFailure::FailingFast
                    | CheckoutFailure::Refused,
                    _,
                ) => Verdict::PERMANENT,
                // All connections are in use: a retry would only lengthen the line.
                (CheckoutFailure::Timeout, _) if e.stats.active >= e.stats.max => {
                    Verdict::PERMANENT
                }
                (CheckoutFailure::Timeout, _) => Verdict::NEVER_SENT,
            },
            Error::Database {
                source,
                phase,
                effect,
            } => retry::verdict(&Symptom::of(source), effect.judged(*phase)),
            // A timeout is not repeated: the next attempt would most likely end the same way, and
            // cost as much. If the server did not report that it stopped the statement, a write may
            // have been done.
            Error::QueryTimeout {
                source,
                phase,
                effect,
                ..
            } => match retry::verdict(&Symptom::of(source), effect.judged(*phase)) {
                lost if lost.repeat == Repeat::Ambiguous => lost,
                other => Verdict {
                    repeat: Repeat::Permanent,
                    ..other
                },
            },
            Error::TransactionAborted {
                sqlstate: Some(code),
                ..
            } => retry::verdict(&Symptom::Server(code), Phase::InTransaction),
            Error::TransactionAborted { .. }
            | Error::KeyInUse
            | Error::Abandoned { .. }
            | Error::Misuse(_)
            | Error::Application(_) => Verdict::PERMANENT,
            Error::OutcomeUnknown { .. } | Error::NotReplicated => Verdict::AMBIGUOUS,
            Error::GaveUp { source, .. } => source.verdict(),
        }
    }
}

/// For reading rows inside a closure: `row.try_get(..)?`. A mistake there rolls the transaction
/// back, and is not retried.
impl From<postgres::Error> for Error {
    fn from(source: postgres::Error) -> Error {
        Error::in_phase(Phase::Statement, source)
    }
}

/// For reading and writing inside a closure, such as that of a COPY. The transaction is rolled
/// back.
impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Error {
        Error::application(error)
    }
}

/// Why no connection was available, and the pool's figures at that moment.
#[derive(Debug)]
#[non_exhaustive]
pub struct CheckoutError {
    /// What ended the wait.
    pub reason: CheckoutFailure,
    /// How long the line takes at its present rate, if it was full and the rate is known: a good
    /// time to wait before another call.
    pub retry_after: Option<Duration>,
    /// How long the caller waited.
    pub waited: Duration,
    /// The place in the source that asked for a connection.
    pub place: &'static Location<'static>,
    /// The pool's figures at that moment.
    pub stats: Stats,
    /// The connection that has been checked out longest.
    pub longest: Option<HeldBy>,
    /// The connection that the calling thread itself holds, and cannot return while it waits.
    pub held_here: Option<HeldBy>,
    /// The last failure to open a connection, if the newest attempt failed, or if the server had no
    /// room for another connection during the wait.
    pub last_open_error: Option<Arc<OpenError>>,
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
    /// The server's socket could not be reached, or the connection was lost before the login.
    Connect(std::io::Error),
    /// The encryption that was asked for is not to be had: the server offers none, or its
    /// certificate is wrong, or a file that is needed. The text says what was expected and what
    /// came.
    Tls(String),
    /// The password could not be had: its file or its command, or the application's callback.
    Password(Box<dyn StdError + Send + Sync>),
    /// No server is of the kind that `target_session_attrs` asks for.
    #[non_exhaustive]
    Unfit {
        /// What was asked for.
        asked: &'static str,
        /// The last server that was reached is a standby.
        standby: bool,
    },
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
    /// Returns the server's code, if there is one.
    pub fn sqlstate(&self) -> Option<&SqlState> {
        match self {
            OpenError::Driver(e) => e.code(),
            OpenError::OnConnect(e) => e.sqlstate(),
            OpenError::Timeout(_)
            | OpenError::Resolve(_)
            | OpenError::Connect(_)
            | OpenError::Tls(_)
            | OpenError::Password(_)
            | OpenError::Unfit { .. }
            | OpenError::OnConnectTimeout(_)
            | OpenError::Files(_)
            | OpenError::Panicked(_)
            | OpenError::Closed => None,
        }
    }

    /// Returns whether the server does not accept who we say we are.
    pub(crate) fn is_wrong_password(&self) -> bool {
        self.meant()
            .is_some_and(|code| code.code().starts_with("28"))
    }

    /// Returns the code that the server means. A pooler refuses a login with a code of its own, and
    /// says why in the text only (PgBouncer 1.18).
    pub(crate) fn meant(&self) -> Option<&SqlState> {
        let by_pooler = match self {
            OpenError::Driver(e) if matches!(Symptom::of(e), Symptom::Middleman(_)) => {
                e.as_db_error().map(|db| db.message().to_ascii_lowercase())
            }
            _ => None,
        };
        match by_pooler {
            Some(said)
                if said.contains("authentication failed") || said.contains("no such user") =>
            {
                Some(&SqlState::INVALID_PASSWORD)
            }
            Some(said) if said.contains("no such database") => {
                Some(&SqlState::INVALID_CATALOG_NAME)
            }
            Some(said) if said.contains("no more connections allowed") => {
                Some(&SqlState::TOO_MANY_CONNECTIONS)
            }
            Some(said) if said.contains("ssl required") => {
                Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)
            }
            _ => self.sqlstate(),
        }
    }

    /// Returns whether the server is reachable but has no room for another connection, or this
    /// process has none.
    pub(crate) fn is_for_want_of_room(&self) -> bool {
        self.meant() == Some(&SqlState::TOO_MANY_CONNECTIONS) || self.is_out_of_files()
    }

    /// Returns whether this process lacked something that may be available again in a moment.
    pub(crate) fn is_out_of_files(&self) -> bool {
        match self {
            OpenError::Files(_) => true,
            OpenError::Resolve(e) | OpenError::Connect(e) => is_out_of_files(e),
            OpenError::Driver(e) => {
                let cause = e.source().and_then(|cause| cause.downcast_ref());
                cause.is_some_and(is_out_of_files)
            }
            _ => false,
        }
    }

    /// Returns whether the next attempt will most likely fail as well: a wrong password, an unknown
    /// database.
    pub fn is_permanent(&self) -> bool {
        retry::verdict(&self.symptom(), Phase::Opening).repeat == Repeat::Permanent
    }

    /// Returns whether every connection is refused, by the server or by `on_connect`. A panic does
    /// not count: the next attempt may succeed.
    pub(crate) fn is_refusal(&self) -> bool {
        let by_others = matches!(
            self,
            OpenError::Driver(_) | OpenError::OnConnect(_) | OpenError::Tls(_)
        );
        by_others && self.is_permanent()
    }

    fn symptom(&self) -> Symptom<'_> {
        match self {
            OpenError::Driver(e) => match (Symptom::of(e), self.meant()) {
                (Symptom::Middleman(said), Some(meant)) if said != meant => Symptom::Fatal(meant),
                (symptom, _) => symptom,
            },
            OpenError::Timeout(_)
            | OpenError::Resolve(_)
            | OpenError::Connect(_)
            | OpenError::Password(_)
            | OpenError::Unfit { .. }
            | OpenError::OnConnectTimeout(_)
            | OpenError::Files(_) => Symptom::Lost,
            OpenError::OnConnect(e) => match &**e {
                Error::Database { source, .. } | Error::QueryTimeout { source, .. } => {
                    Symptom::of(source)
                }
                _ => Symptom::BadCall,
            },
            OpenError::Tls(_) | OpenError::Panicked(_) | OpenError::Closed => Symptom::BadCall,
        }
    }
}
