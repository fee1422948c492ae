//! Closing a pool: refuse new check-outs, let work finish, cancel what does not finish, cut what
//! does not answer.

use super::checkout::{Inner, Pool};
use super::report::Report;
use crate::metrics::CloseReason;
use crate::sync::{self, LONGEST};
use log::info;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

/// Pause between two cancels of work that ends only with the pool.
const CANCEL_AGAIN: Duration = Duration::from_millis(50);
/// How long threads that open connections are waited for, at most, after their wires were cut: they
/// may be busy with something else, as a slow resolver of names.
const OPENERS_END: Duration = Duration::from_secs(2);
/// Number of threads that close idle connections in parallel.
const HELPERS: usize = 8;

impl Pool {
    /// Closes the pool. From now on check-outs fail, waiters are turned away, idle connections are
    /// closed and those that are being opened are cut; connections in use are waited for.
    ///
    /// Statements that still run shortly before `timeout` are cancelled, and connections that do
    /// not answer then are cut. A COMMIT on the wire is never cancelled. Returns within `timeout`,
    /// plus a little time for the cut. A thread that is opening a connection and is busy with
    /// something else, as looking up a name, is waited for, but for two seconds at most, and it
    /// opens none. A second call changes nothing: it waits for the first, up to
    /// its own `timeout`, and returns the report of the first once there is one, else a
    /// report of zeros. A pool that is dropped without it closes its idle connections and waits for
    /// none.
    ///
    /// ```no_run
    /// # let pool = millpond::Pool::builder().build().unwrap();
    /// let report = pool.close(std::time::Duration::from_secs(5));
    /// println!("{report}"); // drained=4 cancelled=0 aborted=0
    /// ```
    pub fn close(&self, timeout: Duration) -> Report {
        self.inner.close_all(timeout)
    }
}

impl Inner {
    /// Closes the pools of the standbys at the same time.
    fn close_all(&self, timeout: Duration) -> Report {
        let Some(standbys) = &self.standbys else {
            return self.close(timeout);
        };
        thread::scope(|scope| {
            let others: Vec<_> = standbys
                .pools()
                .map(|pool| {
                    let close = || pool.close(timeout);
                    thread::Builder::new().spawn_scoped(scope, close)
                })
                .collect();
            let mut report = self.close(timeout);
            for (other, pool) in others.into_iter().zip(standbys.pools()) {
                // Without a thread, it is this one's turn.
                let theirs = match other.map(thread::ScopedJoinHandle::join) {
                    Ok(Ok(report)) => report,
                    _ => pool.close(timeout),
                };
                report += theirs;
            }
            report
        })
    }

    fn close(&self, timeout: Duration) -> Report {
        if self.shared.process.is_another() {
            return Report::default();
        }
        let timeout = timeout.min(LONGEST);
        let started = Instant::now();
        let deadline = started + timeout;
        if self.shared.closing.swap(true, Ordering::SeqCst) {
            return self.wait_for_report(deadline);
        }
        // The last part of the time is kept for the cancels and then the cut.
        let grace = (timeout / 2).min(Duration::from_secs(2));
        let before = self.stats();
        self.shut_line();
        // A member of a fleet closes this last, since its claim goes with it.
        if self.member.is_none() {
            self.probe.close();
        }
        self.end_work_of_our_own(Instant::now() + grace);
        let (mut cancelled, mut aborted) = (Vec::new(), Vec::new());
        if !self.wait_until_returned(started + timeout.saturating_sub(grace)) {
            cancelled = self.shared.watchdog.cancel_all_held(grace);
            if !self.wait_until_returned(deadline) {
                aborted = self.shared.watchdog.abort_all_held();
                // The cut frees a thread at once, unless the thread is busy with something else.
                self.wait_until_returned(Instant::now() + Duration::from_millis(100));
            }
        }
        self.opener.target.close();
        self.wait_for_openers(deadline.min(Instant::now() + OPENERS_END));
        // Connections that were still being opened when the close began.
        while let Some(spare) = self.r2d2.try_get() {
            self.discard(Box::new(spare), CloseReason::Drained);
        }
        self.probe.close();
        cancelled.retain(|id| !aborted.contains(id));
        let told = cancelled.len() + aborted.len();
        let report = Report {
            drained: (before.idle + before.active).saturating_sub(told),
            cancelled: cancelled.len(),
            aborted: aborted.len(),
        };
        info!("pool closed: {report}");
        let report = *self.report.get_or_init(|| report);
        self.tell_returned();
        report
    }

    /// Ends migrations. They are not waited for, since the next program that starts begins them
    /// anew. They are cancelled, so that none of their statements waits on in the server after this
    /// program has ended, and cut if the server does not answer.
    fn end_work_of_our_own(&self, until: Instant) {
        while self.shared.watchdog.cancel_what_ends_with_pool() {
            if Instant::now() >= until {
                self.shared.watchdog.abort_what_ends_with_pool();
                return;
            }
            thread::sleep(CANCEL_AGAIN);
        }
    }

    fn wait_for_openers(&self, until: Instant) {
        while self.line.figures().opening > 0 || self.opener.attempts.are_under_way() {
            if Instant::now() >= until {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn wait_for_report(&self, until: Instant) -> Report {
        self.wait_for_returns(until, || self.report.get().is_some());
        self.report.get().copied().unwrap_or_default()
    }

    /// Closes the line, and the idle connections in parallel: each close takes a system call, or
    /// the whole limit for a close if a socket buffer is full.
    pub(super) fn shut_line(&self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        self.opener.gate.close();
        self.opener.attempts.cut();
        if let Some(sweeper) = self.sweeper.get() {
            sweeper.unpark();
        }
        let mut idle = self.line.close();
        while let Some(spare) = self.r2d2.try_get() {
            idle.push(Box::new(spare));
        }
        let helpers = idle.len().min(HELPERS);
        let idle = Mutex::new(idle);
        let next = || sync::unpoison(idle.lock()).pop();
        let close_all = || {
            while let Some(held) = next() {
                self.discard(held, CloseReason::Drained);
            }
        };
        thread::scope(|scope| {
            for _ in 1..helpers {
                // Without helpers the loop below does it all, only more slowly.
                let helper = thread::Builder::new().spawn_scoped(scope, close_all);
                if helper.is_err() {
                    break;
                }
            }
            close_all();
        });
    }

    /// Wakes the threads that wait for a drain, so that they check again.
    pub(super) fn tell_returned(&self) {
        drop(sync::unpoison(self.returned.0.lock()));
        self.returned.1.notify_all();
    }

    fn wait_until_returned(&self, until: Instant) -> bool {
        self.wait_for_returns(until, || self.line.figures().active == 0)
    }

    fn wait_for_returns(&self, until: Instant, done: impl Fn() -> bool) -> bool {
        let (lock, returned) = &self.returned;
        let mut guard = sync::unpoison(lock.lock());
        loop {
            if done() {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            guard = sync::unpoison(returned.wait_timeout(guard, left)).0;
        }
    }
}
