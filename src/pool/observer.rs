//! Observers: how an application follows what happens to its connections and statements.

use crate::error::{Error, HeldBy, OpenError};
use crate::metrics::CloseReason;
use crate::sync::caught;
use log::error;
use postgres::error::DbError;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Is told what happens to connections and statements. Every method does nothing by default.
///
/// The methods are called outside locks, on the thread that did the work. It waits for them, so
/// they should be quick. A panic is caught and logged.
///
/// ```
/// use millpond::pool::{Observer, StatementEvent};
///
/// struct Slowest(std::sync::Mutex<std::time::Duration>);
///
/// impl Observer for Slowest {
///     fn statement(&self, event: &StatementEvent<'_>) {
///         let mut slowest = self.0.lock().unwrap();
///         *slowest = event.took.max(*slowest);
///     }
/// }
///
/// let builder = millpond::Pool::builder().observer(std::sync::Arc::new(Slowest(Default::default())));
/// ```
pub trait Observer: Send + Sync {
    /// A connection was opened; it took this time.
    fn opened(&self, _connection: u64, _took: Duration) {}
    /// A connection was checked out after this wait.
    fn checked_out(&self, _connection: u64, _waited: Duration) {}
    /// A connection was checked in after this time.
    fn checked_in(&self, _connection: u64, _used: Duration) {}
    /// A connection was closed.
    fn closed(&self, _connection: u64, _reason: CloseReason, _age: Duration, _uses: u64) {}
    /// A connection could not be opened.
    fn open_failed(&self, _error: &OpenError) {}
    /// A statement of a call has ended, or its COMMIT; or its BEGIN, if that was not sent with the
    /// transaction's first statement. Statements on a plain client from
    /// [`get`](crate::Pool::get) are not reported.
    fn statement(&self, _event: &StatementEvent<'_>) {}
    /// A call failed with this error in this attempt (from 1), and is tried again after the pause.
    fn retried(&self, _attempt: u32, _error: &Error, _pause: Duration) {}
    /// A connection has been checked out for longer than the
    /// [leak threshold](crate::pool::Builder::leak_threshold). Each check-out is reported once.
    fn leaked(&self, _holder: &HeldBy) {}
    /// A connection that was reported as leaked was checked in after this time.
    fn leak_ended(&self, _connection: u64, _used: Duration) {}
    /// The server sent a notice or a warning (`RAISE NOTICE` and so on). Its text may contain
    /// values.
    fn notice(&self, _connection: u64, _notice: &DbError) {}
}

/// A statement that has ended.
#[derive(Debug)]
#[non_exhaustive]
pub struct StatementEvent<'a> {
    /// The connection's number in the log.
    pub connection: u64,
    /// The statement's text, without its parameters.
    pub sql: &'a str,
    /// The time from sending the statement to the end of its answer.
    pub took: Duration,
    /// The rows that it returned or affected, if it succeeded and they were counted.
    pub rows: Option<u64>,
    /// The number of the attempt of its call, from 1.
    pub attempt: u32,
    /// Why it failed.
    pub error: Option<&'a Error>,
}

/// A pool's observers.
pub(crate) struct Observers {
    all: Box<[Arc<dyn Observer>]>,
    /// The server in front of the pool, if there is one.
    server: OnceLock<Arc<dyn Observer>>,
}

impl Observers {
    pub fn new(all: Vec<Arc<dyn Observer>>) -> Observers {
        Observers {
            all: all.into(),
            server: OnceLock::new(),
        }
    }

    /// Adds the server's. Of several servers on one pool, the first is told.
    #[cfg(feature = "server")]
    pub fn add_server(&self, observer: Arc<dyn Observer>) {
        let _ = self.server.set(observer);
    }

    /// Calls each observer. A panic is caught and logged.
    pub fn tell(&self, tell: impl Fn(&dyn Observer)) {
        for observer in self.all.iter().chain(self.server.get()) {
            if let Err(panic) = caught(|| tell(&**observer)) {
                error!("an observer panicked: {panic}");
            }
        }
    }
}
