//! SIGINT and SIGTERM: the first signal starts a clean shutdown, a second one ends the program at
//! once. SIGHUP has the settings read again.
//!
//! ctrlc does not tell which signal came. The exit code of the second signal (130, 143) is set by
//! handlers of signal-hook, which pass each signal on to ctrlc's handler. So that one must be set
//! first.

use super::failure::Failure;
use log::debug;
use nix::sys::signal::{SigSet, Signal};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::fs::File;
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

/// Keeps SIGHUP from all threads: ctrlc would take it for a signal to stop. Must be called before
/// other threads start, which inherit the mask. Returns whether somebody listens for it: under nohup
/// it is ignored.
pub(super) fn block_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    let hangup = 1 << (Signal::SIGHUP as u64 - 1);
    if let Err(e) = SigSet::from(Signal::SIGHUP).thread_block() {
        debug!("SIGHUP stops this program: {e}");
        return false;
    }
    ignored.is_none_or(|ignored| ignored & hangup == 0)
}

/// Calls `reload` at each SIGHUP, and `stop` at the one that says that the terminal is gone.
pub(super) fn on_hangup(
    mut reload: impl FnMut() + Send + 'static,
    stop: impl Fn() + Send + 'static,
) -> Result<(), Failure> {
    let has_terminal = || File::open("/dev/tty").is_ok();
    let had_terminal = has_terminal();
    let listen = move || {
        while SigSet::from(Signal::SIGHUP).wait().is_ok() {
            match had_terminal && !has_terminal() {
                true => stop(),
                false => reload(),
            }
        }
    };
    let begun = thread::Builder::new().name("millpond-hangup".into());
    begun
        .spawn(listen)
        .map(drop)
        .map_err(|e| Failure::because(format!("SIGHUP cannot be handled: {e}")))
}
