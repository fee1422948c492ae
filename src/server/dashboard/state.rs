//! The server's state in a word and a sentence. Pure.

use crate::metrics::Stats;
use crate::server::shutdown::Phase;
use serde::Serialize;

/// What is known of the server at one moment.
pub(super) struct Facts {
    pub phase: Phase,
    /// The first connection was opened, and the application says that it is ready.
    pub has_started: bool,
    pub paused: bool,
    pub failing_fast: bool,
    /// Why the last connection could not be opened, while none can be.
    pub cause: Option<String>,
    /// The health probe's last answer was one.
    pub probe_up: bool,
    pub probe_error: Option<String>,
    pub stats: Stats,
}

/// The state, as the route and the page show it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct State {
    pub name: &'static str,
    pub healthy: bool,
    pub sentence: String,
}

pub(super) fn state(facts: &Facts) -> State {
    let Stats {
        active,
        waiting,
        max,
        ..
    } = facts.stats;
    let because = |cause: &Option<String>| match cause {
        Some(cause) => format!(" ({cause})"),
        None => String::new(),
    };
    let (name, healthy, sentence) = match facts {
        Facts {
            phase: Phase::Unready,
            ..
        } => (
            "draining",
            false,
            "About to stop: requests are still served, and balancers are told to send no more."
                .to_owned(),
        ),
        Facts {
            phase: Phase::Draining,
            ..
        } => (
            "draining",
            false,
            "Draining: requests in flight are finished, new ones are refused.".to_owned(),
        ),
        Facts { paused: true, .. } => (
            "paused",
            false,
            format!("Paused: callers wait in line until the pool is resumed; {waiting} wait now."),
        ),
        Facts {
            failing_fast: true,
            cause,
            ..
        } => (
            "failing-fast",
            false,
            format!(
                "Failing fast: no connection can be opened{}, and callers are told so at once.",
                because(cause)
            ),
        ),
        Facts {
            has_started: false,
            cause,
            ..
        } => (
            "starting",
            false,
            format!(
                "Starting: the database has not been ready for requests yet{}.",
                because(cause)
            ),
        ),
        Facts {
            probe_up: false,
            probe_error,
            ..
        } => (
            "database-away",
            false,
            format!("The database does not answer{}.", because(probe_error)),
        ),
        _ if waiting > 0 && active >= max => (
            "saturated",
            true,
            format!(
                "Saturated: all {max} connections are in use, and {} in line.",
                match waiting {
                    1 => "1 thread waits".to_owned(),
                    many => format!("{many} threads wait"),
                }
            ),
        ),
        _ => (
            "ready",
            true,
            format!(
                "Ready: statements are answered; {} of {max} connections are free.",
                max.saturating_sub(active)
            ),
        ),
    };
    State {
        name,
        healthy,
        sentence,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_is_said() {
        let stats = Stats {
            active: 3,
            max: 20,
            ..Stats::default()
        };
        let mut facts = Facts {
            phase: Phase::Running,
            has_started: true,
            paused: false,
            failing_fast: false,
            cause: None,
            probe_up: true,
            probe_error: None,
            stats,
        };
        let said = |facts: &Facts| {
            let State { name, sentence, .. } = state(facts);
            (name, sentence)
        };
        let ready = "Ready: statements are answered; 17 of 20 connections are free.";
        assert_eq!(said(&facts), ("ready", ready.to_owned()));
        facts.stats.active = 20;
        facts.stats.waiting = 1;
        let full = "Saturated: all 20 connections are in use, and 1 thread waits in line.";
        assert_eq!(said(&facts), ("saturated", full.to_owned()));
        facts.probe_up = false;
        facts.probe_error = Some("timeout".into());
        let away = "The database does not answer (timeout).";
        assert_eq!(said(&facts), ("database-away", away.to_owned()));
        facts.failing_fast = true;
        assert_eq!(said(&facts).0, "failing-fast");
        facts.paused = true;
        assert_eq!(said(&facts).0, "paused");
        facts.phase = Phase::Unready;
        assert_eq!(said(&facts).0, "draining");
        assert!(!state(&facts).healthy);
    }
}
