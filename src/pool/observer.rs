//! What an application may be told of its connections.

use crate::error::OpenError;
use crate::metrics::CloseReason;
use std::time::Duration;

/// Told what happens to connections; every method does nothing by itself. Called outside locks, on the thread that did it,
/// so it should be quick; a panic ends there and is logged.
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
}
