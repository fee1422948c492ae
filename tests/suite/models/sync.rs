//! The model checker's locks and threads, with the interface of `crate::sync`. A deadline is an
//! event that another thread brings about at any moment.

pub use loom::sync::atomic::AtomicUsize;
use loom::sync::atomic::{AtomicBool, Ordering};
pub use loom::sync::{Arc, Mutex, MutexGuard};
pub use loom::thread::{Thread, current as current_thread};
use std::sync::{LockResult, PoisonError};
use std::time::Duration;

pub fn unpoison<G>(result: LockResult<G>) -> G {
    result.unwrap_or_else(PoisonError::into_inner)
}

/// A deadline, or none.
pub struct Deadline(pub Option<Arc<AtomicBool>>);

impl Deadline {
    pub fn never() -> Deadline {
        Deadline(None)
    }

    pub fn passed(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|flag| flag.load(Ordering::SeqCst))
    }

    pub fn park(&self) {
        loom::thread::park();
    }
}

loom::lazy_static! {
    static ref LATER: AtomicBool = AtomicBool::new(false);
}

/// From now on, every earlier moment is long past.
pub fn time_passes() {
    LATER.store(true, Ordering::SeqCst);
}

/// A moment in time. Until `time_passes`, all moments are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instant;

impl Instant {
    pub fn now() -> Instant {
        Instant
    }

    pub fn saturating_duration_since(&self, _: Instant) -> Duration {
        match LATER.load(Ordering::SeqCst) {
            true => Duration::from_secs(1),
            false => Duration::ZERO,
        }
    }
}
