//! The locks, threads and deadlines of the code that is model-checked. These are those of the
//! standard library; the tests have a module of the same shape with those of the model checker.

use std::panic::{AssertUnwindSafe, catch_unwind};
#[cfg(feature = "server")]
pub use std::sync::atomic::AtomicUsize;
use std::sync::atomic::{AtomicBool, Ordering};
pub use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::sync::{LockResult, PoisonError};
pub use std::thread::{Thread, current as current_thread};
use std::time::Duration;
pub use std::time::Instant;

/// A longer time counts as "never", because an [`Instant`] cannot be moved much further.
pub const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Returns the lock's guard, even after a panic in another thread: every critical section here
/// leaves its data consistent.
pub fn unpoison<G>(result: LockResult<G>) -> G {
    result.unwrap_or_else(PoisonError::into_inner)
}

/// Runs `work`, and turns a panic into an error with its message.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        // The payload may panic again when it is dropped.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(panic))).map_err(std::mem::forget);
        text.unwrap_or_else(|| "no message".into())
    })
}

/// The end of a wait: a moment, or that a flag is set before. Whoever sets the flag unparks the
/// waiting thread.
#[derive(Clone, Copy, Debug)]
pub struct Deadline<'f> {
    /// `None` = never.
    pub at: Option<Instant>,
    pub flag: Option<&'f AtomicBool>,
}

impl Deadline<'_> {
    #[cfg(feature = "server")]
    pub fn never() -> Deadline<'static> {
        Deadline {
            at: None,
            flag: None,
        }
    }

    pub fn passed(&self) -> bool {
        self.flag.is_some_and(|flag| flag.load(Ordering::SeqCst))
            || self.at.is_some_and(|at| Instant::now() >= at)
    }

    /// Sleeps until woken or until the moment; may return early.
    pub fn park(&self) {
        match self.at {
            None => std::thread::park(),
            Some(at) => std::thread::park_timeout(at.saturating_duration_since(Instant::now())),
        }
    }
}
