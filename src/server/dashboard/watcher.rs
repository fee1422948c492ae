//! Watches the pool once a second, and keeps what it sees.

use super::advice::{Advice, Grounds, advice};
use super::events::{Event, Events, Level, Reporter};
use super::history::{FIELDS, History, Sample, Shown};
use super::state::{Facts, State, state};
use super::statements::{self, MINUTES, Statements};
use crate::error::HeldBy;
use crate::metrics::Snapshot;
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
/// So long after the database was away, the line may be longer for that.
const AFTERMATH: u64 = 30;
/// That the pool is saturated, or is so no more, is worth an event after this many seconds.
const LASTS: u64 = 3;
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
    /// When the database was last away, or nobody was to use it.
    trouble: Option<u64>,
    saturation: Saturation,
    waits: VecDeque<Wait>,
}

/// The line for connections in one of the last seconds, in which nothing but the pool's size kept
/// anybody waiting.
#[derive(Clone, Copy, Default)]
struct Wait {
    in_line: bool,
    /// Waits that ended at their deadline.
    timeouts: u64,
}

impl Seen {
    /// Notes the line of a second, unless it may be there because the database was away.
    fn note_wait(&mut self, second: u64, state: &State, now: &Snapshot, in_line: bool) {
        if !matches!(state.name, "ready" | "saturated") {
            self.trouble = Some(second);
        }
        let in_trouble = self.trouble.is_some_and(|at| at + AFTERMATH > second);
        let wait = Wait {
            in_line,
            timeouts: now.timeouts.saturating_sub(self.last.timeouts),
        };
        if self.waits.len() == LOOKS_BACK {
            self.waits.pop_front();
        }
        self.waits
            .push_back(if in_trouble { Wait::default() } else { wait });
    }
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
                trouble: None,
                saturation: Saturation::default(),
                waits: VecDeque::new(),
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

    /// The state at this moment, with the reason why nothing can be opened, or without. Never waits
    /// for the database.
    pub fn state(&self, with_cause: bool) -> State {
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
            cause: pool.why_nothing_opens().filter(|_| with_cause),
            // Before the first answer, nothing speaks against the database.
            probe_up: probe_error.is_none(),
            probe_error,
            stats: pool.stats(),
        })
    }

    pub fn advice(&self, holders: &[HeldBy], now: &Snapshot) -> Vec<Advice> {
        let seen = unpoison(self.seen.lock());
        let (pool, stats) = (&self.pool, self.pool.stats());
        let mut outcomes = now.commits.iter();
        let unknown = outcomes.find(|(labels, _)| labels[0] == "unknown");
        let most_retried = now.retries.iter().max_by_key(|(_, count)| *count);
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
            in_line: seen.waits.iter().filter(|wait| wait.in_line).count(),
            timeouts: seen.waits.iter().map(|wait| wait.timeouts).sum(),
            unknown_commits: unknown.map_or(0, |(_, count)| *count),
            // The labels are in the order of their names: sqlstate, verdict.
            retried_for: most_retried.map(|(labels, _)| labels[0].clone()),
            cores: pool
                .is_on_this_machine()
                .then(|| thread::available_parallelism().map_or(1, usize::from)),
        })
    }

    fn look(&self) {
        let state = self.state(false);
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
        if second > seen.history.newest() {
            seen.history.add(second, Sample(values.map(|v| v as f32)));
            self.events.now.store(second, Ordering::Relaxed);
            seen.note_wait(second, &state, &now, stats.waiting > 0);
            seen.last = now;
        }
        let before = std::mem::replace(&mut seen.state, state.name);
        let turned = seen.saturation.turns(state.name == "saturated", second);
        drop(seen);
        if before != state.name {
            self.tell(before, &state);
        }
        let (kind, level, text) = match turned {
            Some(true) => ("saturated", Level::Warning, &*state.sentence),
            Some(false) => ("relieved", Level::Info, "The pool is no longer saturated."),
            None => return,
        };
        self.events.add(kind, level, text, text.to_owned());
    }

    /// Adds the event of a change of the state.
    fn tell(&self, before: &'static str, state: &State) {
        let was_bad = matches!(before, "failing-fast" | "database-away");
        let (kind, level) = match (state.name, before) {
            ("failing-fast", _) => ("failing-fast", Level::Error),
            ("database-away", _) => ("database-away", Level::Error),
            ("starting", _) => ("started", Level::Info),
            ("paused", _) => ("paused", Level::Warning),
            ("draining", _) => ("draining", Level::Warning),
            (_, "paused") => ("resumed", Level::Info),
            (_, "starting" | "") => ("started", Level::Info),
            _ if was_bad => ("recovered", Level::Info),
            // That the pool is saturated is told once it lasts.
            _ => return,
        };
        self.events
            .add(kind, level, &state.sentence, state.sentence.clone());
    }
}

/// Whether the pool is saturated, as it is told: not each change, but what lasts.
#[derive(Default)]
struct Saturation {
    is: bool,
    since: u64,
    told: bool,
}

impl Saturation {
    /// Notes whether it is saturated in this second. Returns what is to be told, if anything is.
    fn turns(&mut self, is: bool, second: u64) -> Option<bool> {
        if self.is != is {
            (self.is, self.since) = (is, second);
        }
        (self.told != is && second >= self.since + LASTS).then(|| {
            self.told = is;
            is
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saturation_is_told_when_it_lasts() {
        let mut saturation = Saturation::default();
        let seconds = "..##.#.######.###....#..";
        let told: Vec<_> = seconds
            .chars()
            .zip(1..)
            .filter_map(|(sign, second)| Some((second, saturation.turns(sign == '#', second)?)))
            .collect();
        assert_eq!(told, [(11, true), (21, false)]);
    }
}
