//! Log lines on standard error, with times in UTC.

use log::LevelFilter;
use simplelog::{ColorChoice, ConfigBuilder, TermLogger, TerminalMode};
use std::io::IsTerminal;

/// Starts logging. The driver's own lines are left out: at debug they hold statements and parameter values. So are those
/// of the migrations' library: which migrations ran is said once, by us.
pub(super) fn start(level: LevelFilter) {
    let mut config = ConfigBuilder::new();
    config
        .set_time_format_rfc3339()
        .set_thread_level(LevelFilter::Trace)
        .set_location_level(LevelFilter::Off);
    for theirs in ["tokio_postgres", "postgres", "mio", "tracing", "refinery"] {
        config.add_filter_ignore_str(theirs);
    }
    // Into a file or a pipe goes plain text.
    let colour = if std::io::stderr().is_terminal() {
        ColorChoice::Auto
    } else {
        ColorChoice::Never
    };
    // Fails only where a logger is set already, which then stays.
    let _ = TermLogger::init(level, config.build(), TerminalMode::Stderr, colour);
}
