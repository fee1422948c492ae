//! Log lines on standard error, with times in UTC.

use super::output::{Lines, Waiter};
use log::{LevelFilter, error};
use simplelog::{ColorChoice, ConfigBuilder, TermLogger, TerminalMode, WriteLogger};
use std::io::IsTerminal;
use std::sync::OnceLock;

static WAITER: OnceLock<Waiter> = OnceLock::new();

/// Starts logging. The driver's own lines are left out, since at debug level they hold statements
/// and parameter values; so are those of the migration library, since the studio logs which
/// migrations ran.
pub(super) fn start(level: LevelFilter) {
    let mut config = ConfigBuilder::new();
    config
        .set_time_format_rfc3339()
        .set_thread_level(LevelFilter::Trace)
        .set_location_level(LevelFilter::Off);
    for theirs in ["tokio_postgres", "postgres", "mio", "tracing", "refinery"] {
        config.add_filter_ignore_str(theirs);
    }
    // Setting the logger fails only if one is set already, which then stays.
    config.set_write_log_enable_colors(std::io::stderr().is_terminal());
    // A thread of its own writes the lines: a full pipe or a stopped terminal must not block
    // others.
    match Lines::start() {
        Ok((lines, waiter)) => {
            let _ = WriteLogger::init(level, config.build(), lines);
            let _ = WAITER.set(waiter);
            // The default hook writes to standard error itself, and could block.
            std::panic::set_hook(Box::new(|panic| error!("{panic}")));
        }
        Err(_) => {
            let never = ColorChoice::Never;
            let _ = TermLogger::init(level, config.build(), TerminalMode::Stderr, never);
        }
    }
}

/// Waits a moment until all lines are written.
pub(super) fn finish() {
    if let Some(waiter) = WAITER.get() {
        waiter.wait();
    }
}
