//! How many connections are waited for.

use crate::sync::unpoison;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};

/// Opened only while somebody waits for it.
#[derive(Default)]
pub(crate) struct Demand {
    state: Mutex<Wanted>,
    changed: Condvar,
}

#[derive(Default)]
struct Wanted {
    /// Openers that wait for a connection.
    by: usize,
    /// Connections under way to them, or there.
    served: usize,
}

impl Demand {
    fn lock(&self) -> MutexGuard<'_, Wanted> {
        unpoison(self.state.lock())
    }

    /// An opener waits for a connection.
    pub fn raise(&self) {
        self.lock().by += 1;
        self.changed.notify_all();
    }

    /// It does no longer.
    pub fn lower(&self) {
        self.lock().by -= 1;
    }

    /// A connection was taken from r2d2.
    pub fn taken(&self) {
        let mut wanted = self.lock();
        wanted.served = wanted.served.saturating_sub(1);
        drop(wanted);
        self.changed.notify_all();
    }

    /// Waits until a connection is wanted that nobody is bringing. False when the pool is closing.
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

    /// Wakes those who wait, so that they see that the pool is closing.
    pub fn close(&self) {
        drop(self.lock());
        self.changed.notify_all();
    }
}
