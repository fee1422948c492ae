//! Enforces the deadlines of all work on the wires of a pool, with one thread.
//!
//! Every connection has a [`Tracked`], the part of its state that other threads may read and
//! change. Work that waits for the server arms a deadline there, which costs two atomic stores; the
//! watchdog sleeps until the earliest deadline. At a statement's deadline it asks the server to
//! cancel; 500 ms later it cuts the wire, whether or not the cancel request has been sent by then.
//! While a COMMIT is on the wire nothing is cancelled: a cancel during the wait for a synchronous
//! standby makes the server answer COMMIT with a mere warning. Instead, the wire is cut at the
//! deadline. A connection to which a cancel was sent at a deadline is not used again: the signal
//! may arrive late and would end the next statement. If the cancel was sent because nobody needs
//! the result any more, and the server is alive, it is waited for (see `cancel`), and the
//! connection stays.

use super::cancel::{Cancels, MOST_CANCELS, cancel_one, next_cancel};
use super::tracked::{Holder, Tracked, word};
use crate::error::HeldBy;
use crate::sync::unpoison;
use log::{debug, error};
use std::cmp::Reverse;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long the server may take to obey a cancel before the wire is cut.
pub(crate) const CANCEL_GRACE: Duration = Duration::from_millis(500);

/// What happens at the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Ask the server to cancel, and cut the wire if it does not.
    Cancel,
    /// Cut the wire.
    Abort,
}

pub(crate) struct Watchdog {
    start: Instant,
    tracked: Mutex<Vec<Arc<Tracked>>>,
    /// When the thread wakes next; `u64::MAX` while it checks the connections.
    next_wake: AtomicU64,
    thread: OnceLock<Thread>,
    cancels: Arc<Mutex<Cancels>>,
    stop: AtomicBool,
}

impl Watchdog {
    /// Starts the thread. It ends after [`Watchdog::stop`], once no connection is left.
    pub fn start() -> std::io::Result<Arc<Watchdog>> {
        let watchdog = Arc::new(Watchdog {
            start: Instant::now(),
            tracked: Mutex::default(),
            next_wake: AtomicU64::new(u64::MAX),
            thread: OnceLock::new(),
            cancels: Arc::default(),
            stop: AtomicBool::new(false),
        });
        let worker = Arc::clone(&watchdog);
        let handle = thread::Builder::new()
            .name("millpond-watchdog".into())
            .spawn(move || {
                // If the thread ended with a panic, no deadline would be enforced any more: start
                // over.
                while catch_unwind(AssertUnwindSafe(|| worker.run())).is_err() {
                    error!("the watchdog panicked and continues");
                }
            })?;
        let _ = watchdog.thread.set(handle.thread().clone());
        Ok(watchdog)
    }

    pub fn stop(&self) {
        self.stop.store(true, SeqCst);
        self.wake();
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    fn all(&self) -> MutexGuard<'_, Vec<Arc<Tracked>>> {
        unpoison(self.tracked.lock())
    }

    /// Registers a connection that is about to be opened, until the registration is dropped.
    pub fn register(self: &Arc<Self>, id: u64) -> Registration {
        let tracked = Arc::new(Tracked {
            id,
            wire: Arc::default(),
            word: AtomicU64::new(0),
            route: OnceLock::new(),
            holder: Mutex::default(),
            gave_up_on_standbys: AtomicBool::new(false),
            cancel_over: AtomicBool::new(false),
            ends_with_pool: AtomicBool::new(false),
        });
        self.all().push(Arc::clone(&tracked));
        Registration {
            watchdog: Arc::clone(self),
            tracked,
        }
    }

    fn nanos(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start)
            .as_nanos()
            .min(u128::from(word::NEVER - 1)) as u64
    }

    fn run(&self) {
        while !(self.stop.load(SeqCst) && self.all().is_empty()) {
            // From here on, a thread that arms a deadline wakes this one, so that no deadline is
            // missed between the check and the sleep.
            self.next_wake.store(u64::MAX, SeqCst);
            let now = self.nanos(Instant::now());
            let mut next = word::NEVER;
            let all: Vec<_> = self.all().clone();
            for tracked in &all {
                next = next.min(self.look_at(tracked, now));
            }
            drop(all);
            self.next_wake.store(next, SeqCst);
            if next == word::NEVER {
                thread::park();
            } else {
                let now = self.nanos(Instant::now());
                thread::park_timeout(Duration::from_nanos(next.saturating_sub(now)));
            }
        }
    }

    /// Acts if the deadline has passed. Returns when to check again.
    fn look_at(&self, tracked: &Arc<Tracked>, now: u64) -> u64 {
        let seen = tracked.word.load(SeqCst);
        let (at, stage) = word::unpack(seen);
        if seen == 0 {
            return word::NEVER;
        }
        if at > now {
            return at;
        }
        match stage {
            word::CANCEL => {
                let then = now + CANCEL_GRACE.as_nanos() as u64;
                if tracked
                    .word
                    .compare_exchange(seen, word::pack(then, word::CANCELLED), SeqCst, SeqCst)
                    .is_ok()
                {
                    self.send_cancel(tracked);
                    return then;
                }
                0 // the statement ended in this moment: look again at once
            }
            _ => {
                // Marked before the cut: a thread that received its answer at this very moment then
                // knows that its wire is about to be cut.
                let fired = word::pack(word::NEVER, word::CANCELLED);
                if seen != fired
                    && tracked
                        .word
                        .compare_exchange(seen, fired, SeqCst, SeqCst)
                        .is_ok()
                {
                    debug!("aborting conn={}: no answer by its deadline", tracked.id);
                    tracked.wire.abort();
                }
                word::NEVER
            }
        }
    }

    /// Queues a cancel request, which a helper thread sends. There are only a few helpers; further
    /// requests wait for one.
    fn send_cancel(&self, tracked: &Arc<Tracked>) {
        tracked.cancel_over.store(false, SeqCst);
        let mut cancels = self.cancels();
        cancels.waiting.push_back(Arc::clone(tracked));
        if cancels.helpers >= MOST_CANCELS {
            return;
        }
        cancels.helpers += 1;
        drop(cancels);
        let queue = Arc::clone(&self.cancels);
        let helper = thread::Builder::new()
            .name("millpond-cancel".into())
            .spawn(move || {
                while let Some(tracked) = next_cancel(&queue) {
                    cancel_one(&tracked);
                }
            });
        if helper.is_err() {
            self.cancels().helpers -= 1;
        }
    }

    fn cancels(&self) -> MutexGuard<'_, Cancels> {
        unpoison(self.cancels.lock())
    }

    /// Cancels the current statement of every checked-out connection, for a drain; a COMMIT is not
    /// cancelled. The wires are cut `grace` later. Returns the ids of the connections.
    pub fn cancel_all_held(&self, grace: Duration) -> Vec<u64> {
        let all: Vec<_> = self.all().clone();
        let then = self.nanos(Instant::now() + grace);
        let mut asked = Vec::new();
        for tracked in all.iter().filter(|t| t.holder().is_some()) {
            if self.cancel_now(tracked, then) {
                asked.push(tracked.id);
            }
        }
        self.wake();
        asked
    }

    /// Cancels the statement that runs on a connection, whose wire is cut at `then`. Returns false
    /// if there is none, or it must not be cancelled, or was cancelled already.
    fn cancel_now(&self, tracked: &Arc<Tracked>, then: u64) -> bool {
        let seen = tracked.word.load(SeqCst);
        let cancelled = word::pack(then, word::CANCELLED);
        let is_ours = word::unpack(seen).1 == word::CANCEL
            && tracked
                .word
                .compare_exchange(seen, cancelled, SeqCst, SeqCst)
                .is_ok();
        if is_ours {
            self.send_cancel(tracked);
        }
        is_ours
    }

    /// Cancels the work on all connections that end with the pool. Returns false if there are none
    /// any more. Call this again until then: a cancel that arrives between two statements has no
    /// effect.
    pub fn cancel_what_ends_with_pool(&self) -> bool {
        let mut all = self.all().clone();
        all.retain(|tracked| tracked.ends_with_pool.load(SeqCst));
        for tracked in &all {
            let seen = tracked.word.load(SeqCst);
            let cancelled = word::pack(word::NEVER, word::CANCELLED);
            let is_running = match word::unpack(seen).1 {
                word::CANCEL => tracked
                    .word
                    .compare_exchange(seen, cancelled, SeqCst, SeqCst)
                    .is_ok(),
                stage => stage == word::CANCELLED,
            };
            if is_running {
                self.send_cancel(tracked);
            }
        }
        !all.is_empty()
    }

    /// Cuts all connections that end with the pool.
    pub fn abort_what_ends_with_pool(&self) {
        let all: Vec<_> = self.all().clone();
        for tracked in all.iter().filter(|t| t.ends_with_pool.load(SeqCst)) {
            tracked.wire.abort();
        }
    }

    /// Cuts every checked-out connection. Returns their ids.
    pub fn abort_all_held(&self) -> Vec<u64> {
        let all: Vec<_> = self.all().clone();
        let held = all.iter().filter(|t| t.holder().is_some());
        held.map(|t| {
            t.wire.abort();
            t.id
        })
        .collect()
    }

    /// Returns all holders, the one that has held its connection longest first.
    pub fn holders(&self) -> Vec<HeldBy> {
        let all: Vec<_> = self.all().clone();
        let held = |t: &Arc<Tracked>| t.holder().as_ref().map(|h| t.describe_holder(h));
        let mut held: Vec<_> = all.iter().filter_map(held).collect();
        held.sort_by_key(|h| Reverse(h.held));
        held
    }

    /// Returns the holder that has held its connection longest.
    pub fn longest_held(&self) -> Option<HeldBy> {
        self.longest_held_by(|_| true)
    }

    /// Returns the connection that the calling thread has held longest.
    pub fn held_by_this_thread(&self) -> Option<HeldBy> {
        let me = thread::current().id();
        self.longest_held_by(|holder| holder.thread.id() == me)
    }

    fn longest_held_by(&self, counts: impl Fn(&Holder) -> bool) -> Option<HeldBy> {
        let all: Vec<_> = self.all().clone();
        let since = |t: &Tracked| t.holder().as_ref().filter(|h| counts(h)).map(|h| h.since);
        let held = all.iter().filter_map(|t| Some((since(t)?, t)));
        let (_, longest) = held.min_by_key(|(since, _)| *since)?;
        // It may have been checked in meanwhile.
        let holder = longest.holder();
        holder.as_ref().map(|h| longest.describe_holder(h))
    }

    /// Returns the holders that have held a connection longer than `threshold` since their
    /// check-out. Each hold is returned only once.
    pub fn newly_held_longer_than(&self, threshold: Duration) -> Vec<HeldBy> {
        let all: Vec<_> = self.all().clone();
        let mut found = Vec::new();
        for tracked in &all {
            if let Some(holder) = tracked.holder().as_mut()
                && !holder.warned
                && holder.since.elapsed() > threshold
            {
                holder.warned = true;
                found.push(tracked.describe_holder(holder));
            }
        }
        found
    }
}

/// The watchdog watches a connection while this value lives.
pub(crate) struct Registration {
    watchdog: Arc<Watchdog>,
    pub tracked: Arc<Tracked>,
}

impl Registration {
    /// Arms a deadline for the work that begins now. With `None` there is no deadline, but a drain
    /// can cancel the work.
    pub fn arm(&self, at: Option<Instant>, plan: Plan) -> Armed {
        self.arm_for_good(at, plan);
        Armed {
            tracked: Arc::clone(&self.tracked),
        }
    }

    /// Returns what cancels the statement that runs at the time of the call, as at its deadline.
    pub fn canceller(&self) -> impl Fn() + Send + use<> {
        let (watchdog, tracked) = (Arc::clone(&self.watchdog), Arc::clone(&self.tracked));
        move || {
            let then = watchdog.nanos(Instant::now() + CANCEL_GRACE);
            if watchdog.cancel_now(&tracked, then) && then < watchdog.next_wake.load(SeqCst) {
                watchdog.wake();
            }
        }
    }

    /// Arms a deadline that stays armed until the registration is dropped.
    pub fn arm_for_good(&self, at: Option<Instant>, plan: Plan) {
        let nanos = at.map_or(word::NEVER, |at| self.watchdog.nanos(at));
        let stage = if plan == Plan::Cancel {
            word::CANCEL
        } else {
            word::ABORT
        };
        self.tracked.word.store(word::pack(nanos, stage), SeqCst);
        if nanos < self.watchdog.next_wake.load(SeqCst) {
            self.watchdog.wake();
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.watchdog
            .all()
            .retain(|t| !Arc::ptr_eq(t, &self.tracked));
        if self.watchdog.stop.load(SeqCst) {
            self.watchdog.wake();
        }
    }
}

/// Work on the wire that has a deadline.
pub(crate) struct Armed {
    tracked: Arc<Tracked>,
}

impl Armed {
    /// Ends the work. Returns true if the deadline has fired in the meantime: then the session must
    /// not be used again.
    pub fn disarm(self) -> bool {
        word::unpack(self.tracked.word.swap(0, SeqCst)).1 == word::CANCELLED
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        self.tracked.word.store(0, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::Location;

    #[test]
    fn a_deadline_that_passes_cuts_the_wire_and_one_that_is_kept_does_not() {
        let watchdog = Watchdog::start().unwrap();
        let late = watchdog.register(1);
        let kept = watchdog.register(2);
        let armed = kept.arm(
            Some(Instant::now() + Duration::from_millis(20)),
            Plan::Abort,
        );
        assert!(!armed.disarm());
        let armed = late.arm(
            Some(Instant::now() + Duration::from_millis(20)),
            Plan::Abort,
        );
        let patience = Instant::now() + Duration::from_secs(10);
        while !late.tracked.wire.is_aborted() {
            assert!(Instant::now() < patience, "the watchdog did not act");
            thread::yield_now();
        }
        drop(armed);
        assert!(!kept.tracked.wire.is_aborted());
        watchdog.stop();
    }

    #[test]
    fn a_statement_is_cancelled_first_and_a_deadline_in_the_past_counts() {
        let watchdog = Watchdog::start().unwrap();
        let registration = watchdog.register(1);
        let armed = registration.arm(Some(Instant::now()), Plan::Cancel);
        let patience = Instant::now() + Duration::from_secs(10);
        while !registration.tracked.wire.is_aborted() {
            assert!(Instant::now() < patience, "the watchdog did not act");
            thread::yield_now();
        }
        assert!(armed.disarm(), "a cancel came before the cut");
        watchdog.stop();
    }

    #[test]
    fn a_drain_cancels_statements_of_holders_but_no_commit() {
        let watchdog = Watchdog::start().unwrap();
        let (statement, commit, idle) = (
            watchdog.register(1),
            watchdog.register(2),
            watchdog.register(3),
        );
        for r in [&statement, &commit, &idle] {
            r.tracked.set_holder(Location::caller(), Instant::now());
        }
        let running = statement.arm(None, Plan::Cancel);
        let committing = commit.arm(None, Plan::Abort);
        assert_eq!(watchdog.cancel_all_held(Duration::from_secs(60)), [1]);
        assert!(running.disarm());
        assert!(!committing.disarm());
        assert_eq!(watchdog.abort_all_held(), [1, 2, 3]);
        watchdog.stop();
    }
}
