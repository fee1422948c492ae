//! The health checks of the application's own, beside that of the database.
//!
//! Each runs on a thread of its own, and only when `/health` is asked, so that one that hangs holds
//! up neither the answer nor another check. A run that is not waited for any longer is late: its
//! check counts with its last result, and fails once the run takes so long that it probably hangs.

use super::router::HealthCheck;
use crate::sync::{caught, unpoison};
use log::{info, warn};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

/// All who ask within this time share one result, as with the probe of the database.
const FRESH: Duration = Duration::from_millis(250);
/// How long a run is waited for, from when it was asked for: all who ask meanwhile wait for the
/// same moment, and those who ask later for none, so that a run that hangs does not fill the health
/// lane. `/health` is to be answered within 900 ms; the database has as long, at the same time.
const LONGEST_WAIT: Duration = Duration::from_millis(800);
/// A run that takes longer fails its check.
const LONGEST_RUN: Duration = Duration::from_secs(10);
/// The longest error that is told, in characters.
const LONGEST_ERROR: usize = 200;

/// The running checks; their threads end once this is dropped, and their last run has come to its
/// end.
pub(super) struct Checks(Vec<Arc<Check>>);

/// What `/health` shows of the checks, by name.
#[derive(Serialize)]
#[serde(transparent)]
pub(super) struct Report(BTreeMap<String, Reading>);

/// One check.
struct Check {
    name: String,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Since when a run is wanted, or is under way.
    asked_at: Option<Instant>,
    last: Option<Run>,
    over: bool,
}

/// A run that has come to its end.
struct Run {
    ended_at: Instant,
    error: Option<String>,
}

/// What is known of a check at one moment.
#[derive(Debug, PartialEq, Serialize)]
struct Reading {
    healthy: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// The run that was asked for has not come to its end.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    late: bool,
}

impl Checks {
    /// Starts the threads, and runs each check once, so that `/health` has a result early.
    pub fn start(checks: &[HealthCheck]) -> io::Result<Checks> {
        let mut started = Checks(Vec::new());
        for HealthCheck { name, run } in checks {
            let check = Arc::new(Check {
                name: name.clone(),
                state: Mutex::default(),
                changed: Condvar::new(),
            });
            started.0.push(Arc::clone(&check));
            let run = Arc::clone(run);
            thread::Builder::new()
                .name("millpond-check".into())
                .spawn(move || check.work(&*run))?;
        }
        started.ask();
        Ok(started)
    }

    /// Wants a result of each check that is not fresh, and does not wait for it.
    pub fn ask(&self) {
        self.0.iter().for_each(|check| check.ask());
    }

    /// The results, those that were asked for if they come in time; `None` without checks.
    pub fn report(&self) -> Option<Report> {
        let read = |check: &Arc<Check>| (check.name.clone(), check.read());
        let all: BTreeMap<_, _> = self.0.iter().map(read).collect();
        (!all.is_empty()).then_some(Report(all))
    }
}

impl Drop for Checks {
    fn drop(&mut self) {
        for check in &self.0 {
            check.lock().over = true;
            check.changed.notify_all();
        }
    }
}

impl Report {
    pub fn are_healthy(&self) -> bool {
        self.0.values().all(|reading| reading.healthy)
    }
}

impl Check {
    fn lock(&self) -> MutexGuard<'_, State> {
        unpoison(self.state.lock())
    }

    /// The thread: runs the check whenever it is asked to.
    fn work(&self, run: &dyn Fn() -> Result<(), String>) {
        loop {
            let wants = |state: &mut State| state.asked_at.is_none() && !state.over;
            let state = unpoison(self.changed.wait_while(self.lock(), wants));
            if state.over {
                return;
            }
            drop(state);
            let result = caught(run);
            let error = result
                .unwrap_or_else(|_| Err("the check panicked".into()))
                .err();
            let error = error.map(|text| text.chars().take(LONGEST_ERROR).collect::<String>());
            let mut state = self.lock();
            let had_failed = state.last.as_ref().is_some_and(|run| run.error.is_some());
            match &error {
                Some(error) if !had_failed => warn!("health check {} fails: {error}", self.name),
                None if had_failed => info!("health check {} is well again", self.name),
                _ => {}
            }
            state.last = Some(Run {
                ended_at: Instant::now(),
                error,
            });
            state.asked_at = None;
            self.changed.notify_all();
        }
    }

    fn ask(&self) {
        let mut state = self.lock();
        let now = Instant::now();
        let is_fresh = |run: &Run| now.saturating_duration_since(run.ended_at) < FRESH;
        if state.asked_at.is_none() && !state.last.as_ref().is_some_and(is_fresh) {
            state.asked_at = Some(now);
            self.changed.notify_all();
        }
    }

    fn read(&self) -> Reading {
        let mut state = self.lock();
        if let Some(asked_at) = state.asked_at {
            let left = (asked_at + LONGEST_WAIT).saturating_duration_since(Instant::now());
            let runs = |state: &mut State| state.asked_at == Some(asked_at);
            state = unpoison(self.changed.wait_timeout_while(state, left, runs)).0;
        }
        state.reading(Instant::now())
    }
}

impl State {
    fn reading(&self, now: Instant) -> Reading {
        let runs_for = self.asked_at.map(|at| now.saturating_duration_since(at));
        let error = match (&self.last, runs_for) {
            (_, Some(long)) if long > LONGEST_RUN => {
                Some(format!("no answer for {} s", long.as_secs()))
            }
            (None, _) => Some("no answer yet".to_owned()),
            (Some(run), _) => run.error.clone(),
        };
        Reading {
            healthy: error.is_none(),
            error,
            late: runs_for.is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_run_counts_with_the_last_result_until_it_probably_hangs() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let failed = Some("down");
        // When the running one was asked for; the error of the last one; the time; what is read.
        let rows = [
            (None, Some(None), 60, (None, false)),
            (None, Some(failed), 60, (failed, false)),
            (Some(50), Some(None), 60, (None, true)),
            (Some(50), Some(failed), 60, (failed, true)),
            (Some(49), Some(None), 60, (Some("no answer for 11 s"), true)),
            (Some(59), None, 60, (Some("no answer yet"), true)),
            (Some(0), None, 60, (Some("no answer for 60 s"), true)),
        ];
        for (asked_at, last, now, (error, late)) in rows {
            let owned = |text: Option<&str>| text.map(str::to_owned);
            let state = State {
                asked_at: asked_at.map(at),
                last: last.map(|error| Run {
                    ended_at: start,
                    error: owned(error),
                }),
                over: false,
            };
            let expected = Reading {
                healthy: error.is_none(),
                error: owned(error),
                late,
            };
            assert_eq!(state.reading(at(now)), expected, "{asked_at:?} {last:?}");
        }
    }
}
