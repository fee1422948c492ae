//! Closing a pool: refuse what is new, let what runs finish, cancel what does not, cut what does not answer.

use super::{CloseReason, Inner, LONGEST, Pool};
use log::info;
use std::fmt;
use std::sync::PoisonError;
use std::thread;
use std::time::{Duration, Instant};

/// How a drain went, in connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Closed at rest, or after their work was done.
    pub drained: usize,
    /// Their statement was cancelled to end it.
    pub cancelled: usize,
    /// Cut, because they did not answer or were not given back.
    pub aborted: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "drained={} cancelled={} aborted={}",
            self.drained, self.cancelled, self.aborted
        )
    }
}

impl Pool {
    /// Closes the pool: no check-out from now on, those in line are turned away, idle connections are closed, those in use
    /// are waited for. What still runs shortly before `timeout` is cancelled; what does not answer then is cut. Returns
    /// within `timeout`, and a little for the cut. A COMMIT on its way is never cancelled. A second call does nothing more.
    pub fn close(&self, timeout: Duration) -> Report {
        self.inner.close(timeout)
    }
}

impl Inner {
    fn close(&self, timeout: Duration) -> Report {
        let timeout = timeout.min(LONGEST);
        let deadline = Instant::now() + timeout;
        // The last part of the time is for those who must be told: a cancel, then the cut.
        let grace = (timeout / 2).min(Duration::from_secs(2));
        let before = self.stats();
        self.shut_line();
        self.probe.close();
        let (mut cancelled, mut aborted) = (Vec::new(), Vec::new());
        if !self.wait_until_returned(deadline - grace) {
            cancelled = self.shared.watchdog.cancel_all_held(grace);
            if !self.wait_until_returned(deadline) {
                aborted = self.shared.watchdog.abort_all_held();
                // Freed at once by the cut, unless its thread is at something else.
                self.wait_until_returned(Instant::now() + Duration::from_millis(100));
            }
        }
        // What was still being opened when the closing began.
        while let Some(spare) = self.r2d2.try_get() {
            self.discard(spare, CloseReason::Drained);
        }
        cancelled.retain(|id| !aborted.contains(id));
        let told = cancelled.len() + aborted.len();
        let report = Report {
            drained: (before.idle + before.active).saturating_sub(told),
            cancelled: cancelled.len(),
            aborted: aborted.len(),
        };
        info!("pool closed: {report}");
        report
    }

    /// Saying goodbye takes a system call each, or as long as its deadline where a buffer is full: not one after the other.
    pub(super) fn shut_line(&self) {
        self.shared
            .closing
            .store(true, std::sync::atomic::Ordering::SeqCst);
        self.shared.gate.close();
        self.shared.ledger.wake_sweeper();
        let mut idle = self.line.close();
        while let Some(spare) = self.r2d2.try_get() {
            idle.push(spare);
        }
        let each = idle.len().div_ceil(8).max(1);
        thread::scope(|scope| {
            while !idle.is_empty() {
                let some = idle.split_off(idle.len().saturating_sub(each));
                scope.spawn(move || {
                    some.into_iter()
                        .for_each(|held| self.discard(held, CloseReason::Drained))
                });
            }
        });
    }

    fn wait_until_returned(&self, until: Instant) -> bool {
        let (lock, returned) = &self.returned;
        let mut guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if self.line.figures().active == 0 {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            guard = returned
                .wait_timeout(guard, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}
