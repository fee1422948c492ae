//! Log lines on standard error, with times in UTC.

use super::output::{LONGEST_LINE, Lines, Waiter};
use log::kv::{self, Key, Value, VisitSource, VisitValue};
use log::{LevelFilter, Log, Metadata, Record, error};
use millpond::config::LogFormat;
use serde_json::Map;
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

/// Writes each line as a JSON object: the message, and the key-values of the record as fields.
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
        let line = as_json(record);
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The queue takes it or counts it as lost.
        let _ = writeln!(lines, "{line}");
    }

    fn flush(&self) {}
}

/// Returns the line, without its end. If it is too long, the longest texts are cut: a line that is
/// cut at its end is no JSON.
fn as_json(record: &Record<'_>) -> String {
    let mut fields = Fields(Map::new());
    // A field that cannot be read is left out.
    let _ = record.key_values().visit(&mut fields);
    let Fields(mut object) = fields;
    let mut put = |name: &str, text: String| object.insert(name.to_owned(), text.into());
    put("timestamp", format!("{:.3}", jiff::Timestamp::now()));
    put("level", record.level().as_str().to_lowercase());
    put("target", record.target().to_owned());
    put("message", record.args().to_string());
    let mut most = LONGEST_LINE;
    loop {
        let line = serde_json::Value::Object(object.clone()).to_string();
        if line.len() <= LONGEST_LINE || most == 0 {
            return line;
        }
        most /= 2;
        for text in object.values_mut() {
            if let serde_json::Value::String(text) = text {
                *text = text.chars().take(most).collect();
            }
        }
    }
}

/// The key-values of a record, without those that are empty.
struct Fields(Map<String, serde_json::Value>);

impl<'kvs> VisitSource<'kvs> for Fields {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        let mut field = Field(serde_json::Value::Null);
        value.visit(&mut field)?;
        if !field.0.is_null() {
            self.0.insert(key.as_str().to_owned(), field.0);
        }
        Ok(())
    }
}

/// A value: a number or a boolean stays one, anything else is a text.
struct Field(serde_json::Value);

impl VisitValue<'_> for Field {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), kv::Error> {
        self.0 = value.to_string().into();
        Ok(())
    }

    fn visit_null(&mut self) -> Result<(), kv::Error> {
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        self.0 = value.into();
        Ok(())
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), kv::Error> {
        self.0 = value.into();
        Ok(())
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        self.0 = value.into();
        Ok(())
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        self.0 = value.into();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_too_long_is_cut_inside_its_texts() {
        let long = "\u{1}ä".repeat(LONGEST_LINE);
        let fields = [("url.path", &*long), ("http.route", "/x")];
        let args = format_args!("{long}");
        let record = Record::builder().args(args).key_values(&fields).build();
        let line = as_json(&record);
        assert!(line.len() <= LONGEST_LINE, "{}", line.len());
        let object: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(object["http.route"], "/x");
        assert!(object["url.path"].as_str().unwrap().len() > 500, "{line}");
    }
}
