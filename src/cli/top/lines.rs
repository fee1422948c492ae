//! The figures once, as lines of text for scripts and pipes: a name, and what there is to say of it.

use super::history::History;
use super::lists::clock;
use super::text::Text;
use super::units::{milliseconds, number};
use std::fmt::Write;

/// Statements and events that are listed.
const MOST: usize = 10;

pub(super) fn lines(history: &History) -> String {
    let last = &history.last;
    let mut all = Vec::new();
    let mut line = |name: &'static str, text: String| all.push((name, text));
    line(
        "state",
        format!("{}: {}", last.state.name, last.state.sentence),
    );
    line(
        "connections",
        format!(
            "{} active, {} opening, {} idle, of {}",
            last.pool.active, last.pool.opening, last.pool.idle, last.pool.max
        ),
    );
    let wait = milliseconds(history.now(|s| s.wait_p99));
    line(
        "in line",
        format!("{} threads, wait p99 {wait}", last.pool.waiting),
    );
    line(
        "statements",
        format!(
            "{}/s, p50 {}, p99 {}",
            number(history.now(|s| s.statements)),
            milliseconds(history.now(|s| s.statement_p50)),
            milliseconds(history.now(|s| s.statement_p99)),
        ),
    );
    line(
        "requests",
        format!(
            "{}/s, {} errors/s",
            number(history.now(|s| s.requests)),
            number(history.now(|s| s.errors)),
        ),
    );
    let retries = number(history.now(|s| s.retries));
    line("retries", format!("{retries}/s"));
    if let Some(server) = &last.server {
        line(
            "server",
            format!(
                "{} connections used, room for {}, of {}",
                server.used_connections, server.available_connections, server.max_connections
            ),
        );
    }
    for standby in &last.standbys {
        let lag = milliseconds(standby.lag_ms);
        let mut text = format!("{}: {}, {lag} behind", standby.host, standby.state);
        if let Some(error) = &standby.error {
            let _ = write!(text, ", {error}");
        }
        line("standby", text);
    }
    for holder in &last.holders {
        let held = milliseconds(Some(holder.held_ms));
        let leaked = if holder.leaked { " (leaked)" } else { "" };
        let doing = match (&holder.statement, holder.running) {
            (Some(sql), true) => {
                format!("running for {}: {sql}", milliseconds(holder.statement_ms))
            }
            (Some(sql), false) => format!("idle after: {sql}"),
            (None, _) if holder.statement_ms.is_none() => "no statement yet".to_owned(),
            (None, true) => format!("running for {}", milliseconds(holder.statement_ms)),
            (None, false) => "idle".to_owned(),
        };
        let (thread, place) = (&holder.thread, &holder.place);
        line(
            "holder",
            format!("{held}{leaked}, {thread} at {place}, {doing}"),
        );
    }
    for statement in last.statements.list.iter().take(MOST) {
        line(
            "statement",
            format!(
                "{} % of the time, {} times, {} failed, mean {}, p99 {}: {}",
                number(statement.share_percent),
                statement.count,
                statement.failures,
                milliseconds(statement.mean_ms),
                milliseconds(statement.p99_ms),
                statement.sql
            ),
        );
    }
    let skipped = history.events.len().saturating_sub(MOST);
    for event in history.events.iter().skip(skipped) {
        let at = clock(&event.at);
        line("event", format!("{at} UTC {}: {}", event.level, event.text));
    }
    for advice in &last.advice {
        let reason = advice.reason.as_ref().map_or("", Text::as_str);
        line("advice", format!("{} {reason}", advice.text));
    }
    all.iter()
        .map(|(name, text)| format!("{name:<13}{}\n", text.trim_end()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn each_line_has_a_name_and_no_more_than_one_line() {
        let text = lines(&History::begin(sample::busy()));
        for line in [
            "state        ready: Ready: statements are answered; 13 of 20 connections are free.",
            "connections  7 active, 1 opening, 4 idle, of 20",
            "in line      0 threads, wait p99 –",
            "requests     18/s, 0 errors/s",
            "server       12 connections used, room for 85, of 100",
            "standby      10.0.0.2:5432: used, 3.10 ms behind",
            "holder       1.20 ms, millpond-api-1 at src/studio/invoices.rs:61:9, no statement yet",
            "event        18:30:00 UTC info: millpond 0.1.0 started",
        ] {
            assert!(text.lines().any(|have| have == line), "{line}\n{text}");
        }
        let text = lines(&sample::empty());
        assert!(text.contains("statements   –/s, p50 –, p99 –\n"), "{text}");
    }

    #[test]
    fn nothing_that_a_terminal_would_obey_is_printed() {
        let text = lines(&History::begin(sample::hostile()));
        assert!(text.contains("日本語"), "{text}");
        let printed = |c: char| c == '\n' || !c.is_control();
        assert!(text.chars().all(printed), "{text:?}");
    }
}
