//! Whether a thread may block.
//!
//! The driver blocks on a runtime of its own, which panics on a thread that drives another runtime.
//! If that happens while a value is dropped, the process aborts. So this is checked beforehand.

use crate::error::Error;
use std::sync::OnceLock;
use tokio::runtime::{Builder, Handle, Runtime};

/// Returns true on a thread that drives an asynchronous runtime, and on one that is about to end.
///
/// Threads for blocking work (`spawn_blocking`, `block_in_place`) belong to a runtime but may
/// block. They can only be told apart by trying; if the trial fails, the panic hook prints its
/// panic.
pub(super) fn is_forbidden() -> bool {
    static TRIAL: OnceLock<Option<Runtime>> = OnceLock::new();
    match Handle::try_current() {
        Ok(_) => {}
        // At the end of a thread, while its thread-local values are dropped, the driver's runtime
        // cannot be entered either.
        Err(e) if e.is_thread_local_destroyed() => return true,
        Err(_) => return false,
    }
    let trial = TRIAL.get_or_init(|| Builder::new_current_thread().build().ok());
    let Some(trial) = trial else {
        return true;
    };
    crate::sync::caught(|| trial.block_on(std::future::ready(()))).is_err()
}

/// The error of a call on a thread that must not block.
pub(super) const MISUSE: Error = Error::Misuse(
    "this call blocks, and must not run on a thread that drives an asynchronous runtime; run it on a thread for blocking \
     work (tokio: spawn_blocking)",
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_thread_that_drives_a_runtime_may_not_block() {
        assert!(!is_forbidden());
        let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
        let on_worker = runtime.spawn(async { is_forbidden() });
        let on_blocking = runtime.spawn_blocking(is_forbidden);
        let in_place = runtime.spawn(async { tokio::task::block_in_place(is_forbidden) });
        let seen = runtime.block_on(async {
            (
                on_worker.await,
                on_blocking.await,
                in_place.await,
                is_forbidden(),
            )
        });
        assert!(seen.0.unwrap() && !seen.1.unwrap() && !seen.2.unwrap() && seen.3);
        assert!(!is_forbidden());
    }
}
