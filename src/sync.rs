//! The locks, threads and deadlines under what is model-checked: those of the standard library. The tests have a module of
//! the same shape with the model checker's.

#[cfg(feature = "server")]
pub use std::sync::atomic::AtomicUsize;
pub use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::sync::{LockResult, PoisonError};
pub use std::thread::{Thread, current as current_thread};
pub use std::time::Instant;

/// The lock's content, also after a panic elsewhere: every critical section here leaves its data whole.
pub fn unpoison<G>(result: LockResult<G>) -> G {
    result.unwrap_or_else(PoisonError::into_inner)
}

/// A moment to give up at, or none.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(pub Option<Instant>);

impl Deadline {
    pub fn passed(&self) -> bool {
        self.0.is_some_and(|at| Instant::now() >= at)
    }

    /// Sleeps until woken or until the deadline; may return early.
    pub fn park(&self) {
        match self.0 {
            None => std::thread::park(),
            Some(at) => std::thread::park_timeout(at.saturating_duration_since(Instant::now())),
        }
    }
}
