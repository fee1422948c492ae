//! Which order is in force in the line for a worker, and since when: the event loop says it, and
//! the routes show it.

use crate::sync::unpoison;
use std::sync::Mutex;
use std::time::{Duration, Instant};

#[derive(Default)]
pub(super) struct OrderReport(Mutex<(bool, Option<Instant>)>);

impl OrderReport {
    pub fn set(&self, newest_first: bool) {
        *unpoison(self.0.lock()) = (newest_first, Some(Instant::now()));
    }

    /// Whether the newest are served first; and for how long the order has been as it is, if it has
    /// ever changed.
    pub fn get(&self) -> (bool, Option<Duration>) {
        let (newest_first, changed) = *unpoison(self.0.lock());
        (newest_first, changed.map(|at| at.elapsed()))
    }
}
