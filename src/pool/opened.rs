//! Sessions that openers have opened, on their way through r2d2, which counts them.

use super::scheduler::Scheduler;
use super::session::Session;
use crate::sync::unpoison;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

/// Sessions that are open and that r2d2 has not taken yet.
#[derive(Default)]
pub(crate) struct Opened {
    sessions: Mutex<Vec<Session>>,
    /// How many openers wait for r2d2 to hand a session out.
    awaited: AtomicUsize,
    /// What r2d2 counts them on.
    pub scheduler: OnceLock<Arc<Scheduler>>,
}

impl Opened {
    fn lock(&self) -> MutexGuard<'_, Vec<Session>> {
        unpoison(self.sessions.lock())
    }

    /// Leaves a session to r2d2, and waits for one with `take`.
    pub fn pass<T>(&self, session: Session, take: impl FnOnce() -> T) -> T {
        self.awaited.fetch_add(1, Ordering::SeqCst);
        self.lock().push(session);
        let taken = match self.scheduler.get() {
            Some(scheduler) => scheduler.awake(take),
            None => take(),
        };
        self.awaited.fetch_sub(1, Ordering::SeqCst);
        taken
    }

    /// Whether an opener waits, and takes the next session that r2d2 has.
    pub fn is_awaited(&self) -> bool {
        self.awaited.load(Ordering::SeqCst) > 0
    }

    pub fn take(&self) -> Option<Session> {
        self.lock().pop()
    }
}
