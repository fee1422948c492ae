//! SIGINT, SIGTERM and SIGHUP: the first signal starts a clean shutdown, a second one ends the
//! program at once.
//!
//! ctrlc does not tell which signal came. The exit code of the second signal (130, 143) is set by
//! handlers of signal-hook, which pass each signal on to ctrlc's handler. So that one must be set
//! first.

use super::failure::Failure;
use log::debug;
use nix::sys::signal::{SigSet, Signal};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Wrappers (timeout, npm, a terminal's Ctrl-C) pass on a signal that the program has received
/// itself. Within this time, a second signal counts as the same one.
const ONE_WISH: Duration = Duration::from_millis(300);

/// Calls `on_signal` for each signal from now on.
pub(super) fn listen(mut on_signal: impl FnMut() + Send + 'static) -> Result<(), Failure> {
    let failed =
        |e: &dyn std::fmt::Display| Failure::because(format!("signals cannot be handled: {e}"));
    let heard = Arc::new(AtomicBool::new(false));
    let again = Arc::clone(&heard);
    let handler = move || {
        on_signal();
        thread::sleep(ONE_WISH);
        again.store(true, Ordering::SeqCst);
    };
    ctrlc::set_handler(handler).map_err(|e| failed(&e))?;
    for (signal, code) in [(SIGINT, 130), (SIGTERM, 143)] {
        flag::register_conditional_shutdown(signal, code, Arc::clone(&heard))
            .map_err(|e| failed(&e))?;
    }
    Ok(())
}

/// Blocks SIGHUP if the program was started with it ignored (nohup), since ctrlc would handle it.
/// Must be called before other threads start, which inherit the mask.
pub(super) fn leave_hangup_ignored() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    let hangup = 1 << (Signal::SIGHUP as u64 - 1);
    if ignored.is_some_and(|ignored| ignored & hangup != 0)
        && let Err(e) = SigSet::from(Signal::SIGHUP).thread_block()
    {
        debug!("cannot ignore SIGHUP: {e}");
    }
}
