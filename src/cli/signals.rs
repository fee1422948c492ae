//! SIGINT and SIGTERM: the first asks for a clean end, a second ends at once.
//!
//! ctrlc tells that a signal came, not which. The exit code of a second one (130, 143) is set by signal-hook's own handlers,
//! which pass each signal on to ctrlc's; so ctrlc's must be there first. They run in the order of their registration: each
//! looks whether there was a signal before, and only then takes note of this one.

use super::Failure;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Receiver};

/// Starts listening; the receiver gets a word when a signal came.
pub(super) fn listen() -> Result<Receiver<()>, Failure> {
    let (asked, receiver) = mpsc::channel();
    let on_signal = move || {
        // Nobody listens any more when the program is ending already.
        let _ = asked.send(());
    };
    let failed =
        |e: &dyn std::fmt::Display| Failure::because(format!("signals cannot be handled: {e}"));
    ctrlc::set_handler(on_signal).map_err(|e| failed(&e))?;
    let signalled = Arc::new(AtomicBool::new(false));
    for (signal, code) in [(SIGINT, 130), (SIGTERM, 143)] {
        flag::register_conditional_shutdown(signal, code, Arc::clone(&signalled))
            .map_err(|e| failed(&e))?;
        flag::register(signal, Arc::clone(&signalled)).map_err(|e| failed(&e))?;
    }
    Ok(receiver)
}
