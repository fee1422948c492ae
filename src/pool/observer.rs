//! What an application may be told of its connections and statements.

use crate::error::{Error, OpenError};
use crate::metrics::CloseReason;
use crate::sync::caught;
use log::error;
use postgres::error::DbError;
use std::sync::Arc;
use std::time::Duration;

/// Told what happens to connections and statements; every method does nothing by default.
///
/// The methods are called outside locks, on the thread that did the work, which waits for them:
/// they should be quick. A panic ends there and is logged.
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
    /// A connection was opened, in this time.
    fn opened(&self, _connection: u64, _took: Duration) {}
    /// A connection was checked out after this wait.
    fn checked_out(&self, _connection: u64, _waited: Duration) {}
    /// A connection came back after this time.
    fn checked_in(&self, _connection: u64, _used: Duration) {}
    /// A connection was closed.
    fn closed(&self, _connection: u64, _reason: CloseReason, _age: Duration, _uses: u64) {}
    /// A connection could not be opened.
    fn open_failed(&self, _error: &OpenError) {}
    /// A statement of a call has ended, or the BEGIN or COMMIT of one. Statements on a plain client
    /// from [`get`](crate::Pool::get) are not seen.
    fn statement(&self, _event: &StatementEvent<'_>) {}
    /// The server sent a notice or a warning (`RAISE NOTICE` and so on). Its text may hold values.
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
    /// From sending it to the end of its answer.
    pub took: Duration,
    /// The rows that it returned or touched, if it succeeded and they were counted.
    pub rows: Option<u64>,
    /// Which attempt of its call it belongs to, from 1.
    pub attempt: u32,
    /// Why it failed.
    pub error: Option<&'a Error>,
}

/// A pool's observers.
#[derive(Clone, Default)]
pub(crate) struct Observers(Arc<[Arc<dyn Observer>]>);

impl Observers {
    pub fn new(all: Vec<Arc<dyn Observer>>) -> Observers {
        Observers(all.into())
    }

    /// Tells each of them.
    pub fn tell(&self, tell: impl Fn(&dyn Observer)) {
        for observer in &*self.0 {
            if let Err(panic) = caught(|| tell(&**observer)) {
                error!("an observer panicked: {panic}");
            }
        }
    }
}
