//! The thread on which r2d2 counts new connections: one for all pools of a process. It never waits
//! for a database (see `manager`).
//!
//! **Forks.** r2d2 and this thread wait with parking_lot, which keeps a table of the waiting threads
//! in static memory. A forked child has that table with the parent's threads in it, whose memory its
//! own threads take over. Then a wait of r2d2 in the child, for a pool of its own, may never end
//! (seen in one of 15). So the thread waits here for as long as no connection is opened, and not
//! with parking_lot.

use super::process::Process;
use scheduled_thread_pool::{OnPoolDropBehavior, ScheduledThreadPool};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, TryLockError, Weak};
use std::thread::{self, Thread};
use std::time::Duration;

/// The one that there is, and the process that has its thread.
type Shared = Option<(Process, Weak<Scheduler>)>;

static SHARED: Mutex<Shared> = Mutex::new(None);

pub(crate) struct Scheduler {
    jobs: Arc<ScheduledThreadPool>,
    rest: Arc<Rest>,
}

/// What the thread does while r2d2 has nothing for it.
#[derive(Default)]
struct Rest {
    thread: OnceLock<Thread>,
    /// How many openers need it.
    needed: AtomicUsize,
    over: AtomicBool,
}

impl Rest {
    fn wait(&self) {
        let _ = self.thread.set(thread::current());
        while self.needed.load(Ordering::SeqCst) == 0 && !self.over.load(Ordering::SeqCst) {
            thread::park();
        }
    }

    fn wake(&self) {
        // If it is not known yet, it looks before it parks.
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

impl Scheduler {
    /// Starts the thread. Panics if it cannot be started (scheduled-thread-pool 0.2.7).
    fn start() -> Arc<Scheduler> {
        let jobs = ScheduledThreadPool::builder()
            .num_threads(1)
            .thread_name_pattern("millpond-r2d2")
            // Only what is of no use without its pool waits there.
            .on_drop_behavior(OnPoolDropBehavior::DiscardPendingScheduled)
            .build();
        let scheduler = Scheduler {
            jobs: Arc::new(jobs),
            rest: Arc::default(),
        };
        scheduler.lay_to_rest();
        Arc::new(scheduler)
    }

    pub fn jobs(&self) -> Arc<ScheduledThreadPool> {
        Arc::clone(&self.jobs)
    }

    fn lay_to_rest(&self) {
        let rest = Arc::clone(&self.rest);
        self.jobs.execute(move || rest.wait());
    }

    /// Runs `work`, for which r2d2 needs the thread.
    pub fn awake<T>(&self, work: impl FnOnce() -> T) -> T {
        self.rest.needed.fetch_add(1, Ordering::SeqCst);
        self.rest.wake();
        let done = work();
        if self.rest.needed.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.lay_to_rest();
        }
        done
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.rest.over.store(true, Ordering::SeqCst);
        self.rest.wake();
    }
}

/// Returns the one that there is, or starts it, which may panic.
pub(super) fn shared() -> Arc<Scheduler> {
    let Some(mut shared) = lock() else {
        return Scheduler::start();
    };
    let found = shared.as_ref().filter(|(process, _)| !process.is_another());
    if let Some(found) = found.and_then(|(_, scheduler)| scheduler.upgrade()) {
        return found;
    }
    let new = Scheduler::start();
    *shared = Some((Process::this(), Arc::downgrade(&new)));
    new
}

/// Returns nothing if it stays locked: it was when the process forked, and the thread that would
/// unlock it is the parent's.
fn lock() -> Option<MutexGuard<'static, Shared>> {
    for _ in 0..100 {
        match SHARED.try_lock() {
            Ok(shared) => return Some(shared),
            Err(TryLockError::Poisoned(shared)) => return Some(shared.into_inner()),
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(1)),
        }
    }
    None
}
