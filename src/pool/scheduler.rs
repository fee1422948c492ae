//! The thread on which r2d2 counts new connections: one for all pools of a process. It never waits
//! for a database (see `manager`).

use super::process::Process;
use scheduled_thread_pool::{OnPoolDropBehavior, ScheduledThreadPool};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError, Weak};
use std::thread;
use std::time::Duration;

/// The one that there is, and the process that has its thread.
type Shared = Option<(Process, Weak<ScheduledThreadPool>)>;

static SHARED: Mutex<Shared> = Mutex::new(None);

/// Returns it, or starts it. Panics if the thread cannot be started (scheduled-thread-pool 0.2.7).
pub(super) fn shared() -> Arc<ScheduledThreadPool> {
    let Some(mut shared) = lock() else {
        return start();
    };
    let found = shared.as_ref().filter(|(process, _)| !process.is_another());
    if let Some(found) = found.and_then(|(_, scheduler)| scheduler.upgrade()) {
        return found;
    }
    let new = start();
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

fn start() -> Arc<ScheduledThreadPool> {
    let scheduler = ScheduledThreadPool::builder()
        .num_threads(1)
        .thread_name_pattern("millpond-r2d2")
        // Only what is of no use without its pool waits there.
        .on_drop_behavior(OnPoolDropBehavior::DiscardPendingScheduled)
        .build();
    Arc::new(scheduler)
}
