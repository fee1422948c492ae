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

/// Starts listening: calls `on_signal` for each that comes.
pub(super) fn listen(on_signal: impl FnMut() + Send + 'static) -> Result<(), Failure> {
    let failed =
        |e: &dyn std::fmt::Display| Failure::because(format!("signals cannot be handled: {e}"));
    ctrlc::set_handler(on_signal).map_err(|e| failed(&e))?;
    let signalled = Arc::new(AtomicBool::new(false));
    for (signal, code) in [(SIGINT, 130), (SIGTERM, 143)] {
        flag::register_conditional_shutdown(signal, code, Arc::clone(&signalled))
            .map_err(|e| failed(&e))?;
        flag::register(signal, Arc::clone(&signalled)).map_err(|e| failed(&e))?;
    }
    Ok(())
}
