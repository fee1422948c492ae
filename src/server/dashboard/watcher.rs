//! Watches the pool once a second, and keeps what it sees.

use super::advice::{Advice, Grounds, advice};
use super::events::{Event, Events, Level, Reporter};
use super::history::{FIELDS, History, Sample, Shown};
use super::state::{Facts, State, state};
use super::statements::{self, MINUTES, Statements};
use crate::error::HeldBy;
use crate::metrics::{Labelled, Snapshot};
use crate::pool::Pool;
use crate::server::shutdown::PhaseFlag;
use crate::sync::{caught, unpoison};
use jiff::Timestamp;
use log::error;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
/// The seconds that advice looks back.
const LOOKS_BACK: usize = MINUTES * 60;

/// What the dashboard shows, as long as it lives.
pub(crate) struct Watcher {
    pool: Pool,
    phase: Arc<PhaseFlag>,
    condition: Arc<dyn Fn() -> bool + Send + Sync>,
    pub started_at: Timestamp,
    start: Instant,
    events: Arc<Events>,
    statements: Arc<Statements>,
    seen: Mutex<Seen>,
}

struct Seen {
    history: History,
    last: Snapshot,
    state: &'static str,
    /// Waits that had ended at their deadline, a value for each of the last seconds.
    timeouts: VecDeque<u64>,
}

impl Watcher {
    /// Starts the thread, which ends once the watcher is dropped.
    pub fn start(
        pool: &Pool,
        phase: &Arc<PhaseFlag>,
        condition: Arc<dyn Fn() -> bool + Send + Sync>,
    ) -> io::Result<Arc<Watcher>> {
        let start = Instant::now();
        let watcher = Arc::new(Watcher {
            pool: pool.clone(),
            phase: Arc::clone(phase),
            condition,
            started_at: Timestamp::now(),
            start,
            events: Arc::new(Events::new()),
            statements: Arc::new(Statements::new(start)),
            seen: Mutex::new(Seen {
                history: History::new(),
                last: pool.metrics().snapshot(),
                state: "",
                timeouts: VecDeque::new(),
            }),
        });
        pool.report_to(Arc::new(Reporter {
            events: Arc::clone(&watcher.events),
            statements: Arc::clone(&watcher.statements),
        }));
        let weak = Arc::downgrade(&watcher);
        thread::Builder::new()
            .name("millpond-watcher".into())
            .spawn(move || watch(&weak))?;
        Ok(watcher)
    }

    /// The number of the newest sample: the seconds since the start.
    pub fn newest(&self) -> u64 {
        unpoison(self.seen.lock()).history.newest()
    }

    pub fn samples_after(&self, known: u64) -> Shown {
        unpoison(self.seen.lock()).history.after(known)
    }

    pub fn events_after(&self, known: u64) -> Vec<Event> {
        self.events.after(known)
    }

    pub fn slowest(&self) -> Vec<statements::Shown> {
        self.statements.slowest(Instant::now())
    }

    /// The state at this moment. Never waits for the database.
    pub fn state(&self) -> State {
        let pool = &self.pool;
        let reading = pool.newest_probe();
        let probe_error = match &reading {
            Some(Err((error, _))) => Some(error.to_string()),
            _ => None,
        };
        state(&Facts {
            phase: self.phase.get(),
            has_started: pool.has_connected() && (self.condition)(),
            paused: pool.is_paused(),
            failing_fast: pool.is_failing_fast(),
            cause: pool.why_nothing_opens(),
            // Before the first answer, nothing speaks against the database.
            probe_up: probe_error.is_none(),
            probe_error,
            stats: pool.stats(),
        })
    }

    pub fn advice(&self, holders: &[HeldBy], now: &Snapshot) -> Vec<Advice> {
        let seen = unpoison(self.seen.lock());
        let (pool, stats) = (&self.pool, self.pool.stats());
        let of = |labels: &[Labelled], at: usize, value: &str| -> u64 {
            let alike = labels.iter().filter(|(labels, _)| labels[at] == value);
            alike.map(|(_, count)| count).sum()
        };
        let most_retried = now.retries.iter().max_by_key(|(_, count)| *count);
        let back_then = seen.timeouts.front().copied();
        let instant = Instant::now();
        advice(&Grounds {
            samples: seen.history.last(LOOKS_BACK).collect(),
            max: stats.max,
            headroom: pool.headroom(),
            total: stats.total,
            holders,
            texts: self.statements.sent(instant),
            shown_texts: self.statements.texts(),
            statement_cache: pool.config().statement_cache,
            timeouts: now.timeouts - back_then.unwrap_or(now.timeouts),
            unknown_commits: of(&now.commits, 0, "unknown"),
            // The labels are in the order of their names: sqlstate, verdict.
            retried_for: most_retried.map(|(labels, _)| labels[0].clone()),
            cores: pool
                .is_on_this_machine()
                .then(|| thread::available_parallelism().map_or(1, usize::from)),
        })
    }

    fn look(&self) {
        let state = self.state();
        let now = self.pool.metrics().snapshot();
        let second = self.start.elapsed().as_secs();
        let mut seen = unpoison(self.seen.lock());
        let stats = self.pool.stats();
        let (wait, operation) = (
            now.wait.since(&seen.last.wait),
            now.operation.since(&seen.last.operation),
        );
        let ms = |seconds: Option<f64>| seconds.map_or(f64::NAN, |s| s * 1000.0);
        let since =
            |total: fn(&Snapshot) -> u64| total(&now).saturating_sub(total(&seen.last)) as f64;
        let values: [f64; FIELDS.len()] = [
            stats.active as f64,
            stats.idle as f64,
            stats.opening as f64,
            stats.max as f64,
            stats.waiting as f64,
            ms(wait.quantile(0.5)),
            ms(wait.quantile(0.99)),
            ms(operation.quantile(0.5)),
            ms(operation.quantile(0.99)),
            operation.count() as f64,
            since(|s| s.requests.iter().sum()),
            since(|s| s.requests[5]),
            since(|s| s.retries.iter().map(|(_, count)| count).sum()),
        ];
        seen.history.add(second, Sample(values.map(|v| v as f32)));
        self.events
            .now
            .store(seen.history.newest(), Ordering::Relaxed);
        if seen.timeouts.len() > LOOKS_BACK {
            seen.timeouts.pop_front();
        }
        seen.timeouts.push_back(now.timeouts);
        seen.last = now;
        let before = std::mem::replace(&mut seen.state, state.name);
        drop(seen);
        if before != state.name {
            self.tell(before, &state);
        }
    }

    /// Adds the event of a change of the state.
    fn tell(&self, before: &'static str, state: &State) {
        let was_bad = matches!(before, "failing-fast" | "database-away");
        let (kind, level) = match (state.name, before) {
            ("failing-fast" | "database-away", _) => ("failing-fast", Level::Error),
            ("starting", _) => ("started", Level::Info),
            ("paused", _) => ("paused", Level::Warning),
            ("draining", _) => ("draining", Level::Warning),
            (_, "paused") => ("resumed", Level::Info),
            (_, "starting" | "") => ("started", Level::Info),
            _ if was_bad => ("recovered", Level::Info),
            // Whether the pool is saturated may change each second.
            _ => return,
        };
        self.events
            .add(kind, level, &state.sentence, state.sentence.clone());
    }
}

fn watch(watcher: &Weak<Watcher>) {
    let mut next = Instant::now();
    // It is held only during a look, so that dropping it ends this thread.
    while let Some(watcher) = watcher.upgrade() {
        if let Err(panic) = caught(|| watcher.look()) {
            error!("the dashboard's watcher panicked and continues: {panic}");
        }
        drop(watcher);
        next = (next + SECOND).max(Instant::now());
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}
