//! The state of a connection that other threads may read and change.

use super::wire::{self, Route};
use crate::error::{HeldBy, LastStatement};
use crate::retry::without_values;
use crate::sync::unpoison;
use std::panic::Location;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long the server may take with a cancel request, until its connection is not used again.
const LONGEST_CANCEL: Duration = Duration::from_millis(500);

/// The deadline of one connection in one word: nanoseconds since the watchdog's start, and in the
/// two lowest bits the action to take then. 0 = nothing is on the wire.
pub(super) mod word {
    pub const CANCEL: u64 = 1;
    pub const ABORT: u64 = 2;
    pub const CANCELLED: u64 = 3;
    /// Work is on the wire, without a deadline.
    pub const NEVER: u64 = u64::MAX >> 2;

    pub fn pack(nanos: u64, stage: u64) -> u64 {
        (nanos.min(NEVER) << 2) | stage
    }

    pub fn unpack(word: u64) -> (u64, u64) {
        (word >> 2, word & 3)
    }
}

/// The state of a connection that other threads may read and change.
pub(crate) struct Tracked {
    pub id: u64,
    pub wire: Arc<wire::Handle>,
    pub(super) word: AtomicU64,
    /// Set once the server has accepted the connection.
    pub(super) route: OnceLock<Route>,
    pub(super) holder: Mutex<Option<Holder>>,
    /// The server reported in a warning that it gave up the wait for a synchronous standby.
    pub gave_up_on_standbys: AtomicBool,
    /// The server is done with the cancel request that was asked for last, or none was sent.
    pub(super) cancel_over: AtomicBool,
    /// Its work is cancelled as soon as the pool closes.
    pub ends_with_pool: AtomicBool,
}

/// Makes what runs on a connection end with the pool, until this is dropped.
pub(crate) struct EndsWithPool(Arc<Tracked>);

impl EndsWithPool {
    /// A close sets its flag first, and cancels what ends with the pool afterwards: so the caller
    /// asks whether the pool is closed once it has this.
    pub fn mark(tracked: &Arc<Tracked>) -> EndsWithPool {
        tracked.ends_with_pool.store(true, Ordering::SeqCst);
        EndsWithPool(Arc::clone(tracked))
    }
}

impl Drop for EndsWithPool {
    fn drop(&mut self) {
        self.0.ends_with_pool.store(false, Ordering::SeqCst);
    }
}

pub(super) struct Holder {
    pub place: &'static Location<'static>,
    pub thread: Thread,
    pub since: Instant,
    /// It has been named in a warning.
    pub warned: bool,
}

impl Tracked {
    /// Sets the way that cancel requests take, once the connection is open.
    pub fn set_route(&self, route: Route) {
        // A second call would set the same.
        let _ = self.route.set(route);
    }

    /// Waits until the server is done with the cancel request that was asked for last, so that it
    /// cannot hit a later statement. Returns false if that is not known in time.
    pub fn await_cancel(&self) -> bool {
        let until = Instant::now() + LONGEST_CANCEL;
        while !self.cancel_over.load(Ordering::SeqCst) {
            if Instant::now() >= until {
                return false;
            }
            thread::sleep(Duration::from_micros(500));
        }
        true
    }

    pub(super) fn holder(&self) -> MutexGuard<'_, Option<Holder>> {
        unpoison(self.holder.lock())
    }

    pub fn set_holder(&self, place: &'static Location<'static>, since: Instant) {
        self.wire.forget_statement();
        *self.holder() = Some(Holder {
            place,
            thread: thread::current(),
            since,
            warned: false,
        });
    }

    /// Ends the hold, and returns it.
    pub(super) fn take_hold(&self) -> Option<Holder> {
        self.holder().take()
    }

    pub(super) fn describe_holder(&self, holder: &Holder) -> HeldBy {
        let last = self.wire.last_statement();
        HeldBy {
            connection: self.id,
            place: holder.place,
            thread: holder.thread.name().map(str::to_owned),
            held: holder.since.elapsed(),
            statement: last.map(|last| LastStatement {
                sql: without_values(&last.text, last.text.len()),
                running: last.is_running,
                since: last.since.elapsed(),
            }),
        }
    }
}
