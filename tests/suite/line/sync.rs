//! The model checker's locks and threads, in the shape in which the line wants them. A deadline is an event that another
//! thread brings about, at any moment.

use loom::sync::atomic::{AtomicBool, Ordering};
pub use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
pub use loom::thread::{Thread, current as current_thread};
use std::sync::{LockResult, PoisonError};

pub fn unpoison<G>(result: LockResult<G>) -> G {
    result.unwrap_or_else(PoisonError::into_inner)
}

/// A moment to give up at, or none.
pub struct Deadline(pub Option<Arc<AtomicBool>>);

impl Deadline {
    pub fn passed(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|flag| flag.load(Ordering::SeqCst))
    }

    pub fn park(&self) {
        loom::thread::park();
    }
}
