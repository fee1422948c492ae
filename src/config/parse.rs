//! Converts texts to values, and values to texts.

use super::pool::{LineOrder, Pooler, Reset};
use super::program::{LogFormat, PrivateDatabase};
use crate::error::Chain;
use crate::secrets::Secret;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// PostgreSQL's own limit for a time in milliseconds, about 24 days.
const LONGEST_MS: u64 = i32::MAX as u64;

pub(super) fn parsed<T: FromStr>(text: &str) -> Result<T, String> {
    text.trim().parse().map_err(|_| String::new())
}

pub(super) fn number<T: FromStr + PartialOrd>(
    text: &str,
    range: RangeInclusive<T>,
) -> Result<T, String> {
    let value: T = parsed(text)?;
    if range.contains(&value) {
        Ok(value)
    } else {
        Err(String::new())
    }
}

pub(super) fn ms(text: &str, least: u64) -> Result<Duration, String> {
    number(text, least..=LONGEST_MS).map(Duration::from_millis)
}

pub(super) fn off_at_zero(text: &str) -> Result<Option<Duration>, String> {
    Ok(Some(ms(text, 0)?).filter(|d| !d.is_zero()))
}

pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "on" | "true" | "1" => Ok(true),
        "off" | "false" | "0" => Ok(false),
        _ => Err(String::new()),
    }
}

/// Parses a switch that may also be `auto`, which is `None`.
pub(super) fn auto_or_switch(text: &str) -> Result<Option<bool>, String> {
    if text.trim().eq_ignore_ascii_case("auto") {
        return Ok(None);
    }
    switch(text).map(Some)
}

pub(super) fn private(text: &str) -> Result<PrivateDatabase, String> {
    Ok(match auto_or_switch(text)? {
        None => PrivateDatabase::Auto,
        Some(true) => PrivateDatabase::On,
        Some(false) => PrivateDatabase::Off,
    })
}

pub(super) fn reset(text: &str) -> Result<Reset, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "auto" => Ok(Reset::Auto),
        "always" => Ok(Reset::Always),
        _ => Err(String::new()),
    }
}

pub(super) fn line_order(text: &str) -> Result<LineOrder, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "auto" => Ok(LineOrder::Auto),
        "fifo" => Ok(LineOrder::Fifo),
        _ => Err(String::new()),
    }
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(String::new()),
    }
}

pub(super) fn pooler(text: &str) -> Result<Pooler, String> {
    Ok(match auto_or_switch(text)? {
        None => Pooler::Auto,
        Some(true) => Pooler::On,
        Some(false) => Pooler::Off,
    })
}

pub(super) fn filled(text: &str) -> Result<String, String> {
    let fits = !text.trim().is_empty() && !text.contains('\0');
    if fits {
        Ok(text.trim().to_owned())
    } else {
        Err(String::new())
    }
}

pub(super) fn currency(text: &str) -> Result<String, String> {
    let fits = text.len() == 3 && text.bytes().all(|b| b.is_ascii_uppercase());
    if fits {
        Ok(text.to_owned())
    } else {
        Err(String::new())
    }
}

pub(super) fn read_file(path: &str) -> Result<String, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| format!("the file {path:?} cannot be read: {e}"))?;
    let text = text.trim_end_matches(['\r', '\n']);
    match text.contains(['\r', '\n']) {
        true => Err(format!("the file {path:?} holds more than one line")),
        false => Ok(text.to_owned()),
    }
}

pub(super) fn as_ms(time: Duration) -> String {
    time.as_millis().to_string()
}

pub(super) fn optional_ms(time: Option<Duration>) -> String {
    as_ms(time.unwrap_or_default())
}

pub(super) fn on_off(switch: bool) -> String {
    if switch { "on" } else { "off" }.to_owned()
}

pub(super) fn password_file(path: &str) -> Result<Arc<Secret>, String> {
    let secret = Secret::file(filled(path)?);
    match secret.current(Instant::now()) {
        Ok(_) => Ok(Arc::new(secret)),
        Err(e) => Err(Chain(&e).to_string()),
    }
}

pub(super) fn password_command(line: &str) -> Result<Arc<Secret>, String> {
    Ok(Arc::new(Secret::command(filled(line)?)))
}
