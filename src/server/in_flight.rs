//! Counts the requests in flight: in line, with a worker, or with their answer on its way.

use crate::sync::unpoison;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

#[derive(Default)]
pub struct InFlight {
    count: Mutex<usize>,
    ended: Condvar,
}

/// A request in flight, until this is dropped.
pub(super) struct Ticket(Arc<InFlight>);

impl InFlight {
    fn lock(&self) -> MutexGuard<'_, usize> {
        unpoison(self.count.lock())
    }

    pub(super) fn enter(self: &Arc<Self>) -> Ticket {
        *self.lock() += 1;
        Ticket(Arc::clone(self))
    }

    pub fn count(&self) -> usize {
        *self.lock()
    }

    /// Waits until nothing is in flight; false if `until` comes first.
    pub fn wait_until_empty(&self, until: Instant) -> bool {
        let mut count = self.lock();
        while *count > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            count = unpoison(self.ended.wait_timeout(count, left)).0;
        }
        true
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut count = self.0.lock();
        *count -= 1;
        if *count == 0 {
            self.0.ended.notify_all();
        }
    }
}
