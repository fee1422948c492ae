//! The locks, threads and deadlines under what is model-checked: those of the standard library. The tests have a module of
//! the same shape with the model checker's.

use std::panic::{AssertUnwindSafe, catch_unwind};
#[cfg(feature = "server")]
pub use std::sync::atomic::AtomicUsize;
pub use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::sync::{LockResult, PoisonError};
pub use std::thread::{Thread, current as current_thread};
use std::time::Duration;
pub use std::time::Instant;

/// Longer is never: an [`Instant`] cannot be moved much further.
pub const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// The lock's content, also after a panic elsewhere: every critical section here leaves its data whole.
pub fn unpoison<G>(result: LockResult<G>) -> G {
    result.unwrap_or_else(PoisonError::into_inner)
}

/// A panic as an error: what it said.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        // What was thrown may panic once more when it is dropped.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(panic))).map_err(std::mem::forget);
        text.unwrap_or_else(|| "no message".into())
    })
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
