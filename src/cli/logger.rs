//! Log lines on standard error, with times in UTC.

use super::output::{Lines, Waiter};
use log::{LevelFilter, Log, Metadata, Record, error};
use millpond::config::LogFormat;
use serde_json::json;
use simplelog::{ColorChoice, ConfigBuilder, TermLogger, TerminalMode, WriteLogger};
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, OnceLock, PoisonError};

static WAITER: OnceLock<Waiter> = OnceLock::new();

/// Whose lines are left out: the driver's own, which hold statements and parameter values at debug
/// level; and those of the migration library, since the studio logs which migrations ran.
const THEIRS: [&str; 5] = ["tokio_postgres", "postgres", "mio", "tracing", "refinery"];

/// Starts logging.
pub(super) fn start(level: LevelFilter, format: LogFormat) {
    let mut config = ConfigBuilder::new();
    config
        .set_time_format_rfc3339()
        .set_thread_level(LevelFilter::Trace)
        .set_location_level(LevelFilter::Off);
    for theirs in THEIRS {
        config.add_filter_ignore_str(theirs);
    }
    config.set_write_log_enable_colors(std::io::stderr().is_terminal());
    // A thread of its own writes the lines: a full pipe or a stopped terminal must not block
    // others. Setting the logger fails only if one is set already, which then stays.
    match Lines::start() {
        Ok((lines, waiter)) => {
            let _ = match format {
                LogFormat::Text => WriteLogger::init(LevelFilter::Trace, config.build(), lines),
                LogFormat::Json => log::set_boxed_logger(Box::new(JsonLines(Mutex::new(lines)))),
            };
            let _ = WAITER.set(waiter);
            // The default hook writes to standard error itself, and could block.
            std::panic::set_hook(Box::new(|panic| error!("{panic}")));
        }
        Err(_) => {
            let never = ColorChoice::Never;
            let all = LevelFilter::Trace;
            let _ = TermLogger::init(all, config.build(), TerminalMode::Stderr, never);
        }
    }
    set_level(level);
}

/// Changes the most detailed level that is logged.
pub(super) fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

/// Waits a moment until all lines are written.
pub(super) fn finish() {
    if let Some(waiter) = WAITER.get() {
        waiter.wait();
    }
}

/// Writes each line as a JSON object.
struct JsonLines(Mutex<Lines>);

impl Log for JsonLines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        !THEIRS
            .iter()
            .any(|theirs| metadata.target().starts_with(theirs))
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = json!({
            "timestamp": format!("{:.3}", jiff::Timestamp::now()),
            "level": record.level().as_str().to_lowercase(),
            "target": record.target(),
            "message": record.args().to_string(),
        });
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The queue takes it or counts it as lost.
        let _ = writeln!(lines, "{line}");
    }

    fn flush(&self) {}
}
