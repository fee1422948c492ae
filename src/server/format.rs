//! Times and durations as the server's JSON shows them.

use std::time::Duration;

/// The current time in UTC, as RFC 3339 with milliseconds.
pub(super) fn timestamp() -> String {
    text(jiff::Timestamp::now())
}

/// The time so long ago, in the same form.
pub(super) fn time_ago(ago: Duration) -> String {
    let then = jiff::Timestamp::now().checked_sub(ago);
    text(then.unwrap_or(jiff::Timestamp::MIN))
}

/// A time in the same form.
pub(super) fn text(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// Milliseconds, rounded to two decimals.
pub(super) fn as_ms(latency: Duration) -> f64 {
    (latency.as_secs_f64() * 100_000.0).round() / 100.0
}
