//! Counts the connections that openers wait for.

use crate::sync::unpoison;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};

/// Keeps r2d2 from opening a connection that no opener waits for.
#[derive(Default)]
pub(crate) struct Demand {
    state: Mutex<Wanted>,
    changed: Condvar,
}

#[derive(Default)]
struct Wanted {
    /// Number of openers that wait for a connection.
    by: usize,
    /// Number of connections that are being opened for them, or are ready.
    served: usize,
}

impl Demand {
    fn lock(&self) -> MutexGuard<'_, Wanted> {
        unpoison(self.state.lock())
    }

    /// Notes that an opener waits for a connection.
    pub fn raise(&self) {
        self.lock().by += 1;
        self.changed.notify_all();
    }

    /// Notes that an opener no longer waits.
    pub fn lower(&self) {
        self.lock().by -= 1;
    }

    /// Whether an opener waits for a connection, and takes the next one that r2d2 has.
    pub fn is_raised(&self) -> bool {
        self.lock().by > 0
    }

    /// Notes that a connection was taken from r2d2.
    pub fn taken(&self) {
        let mut wanted = self.lock();
        wanted.served = wanted.served.saturating_sub(1);
        drop(wanted);
        self.changed.notify_all();
    }

    /// Waits until a connection is wanted that is not being opened yet. Returns false when the pool
    /// is closing.
    pub fn serve(&self, closing: &AtomicBool) -> bool {
        let mut wanted = self.lock();
        loop {
            if closing.load(Ordering::SeqCst) {
                return false;
            }
            if wanted.served < wanted.by {
                wanted.served += 1;
                return true;
            }
            wanted = unpoison(self.changed.wait(wanted));
        }
    }

    /// Wakes the waiting threads, so that they see that the pool is closing.
    pub fn close(&self) {
        drop(self.lock());
        self.changed.notify_all();
    }
}
