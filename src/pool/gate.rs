//! Whether the database can be reached, and which thread may try next.

use crate::error::{Chain, OpenError};
use crate::sync::unpoison;
use log::{info, warn};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

/// How often an outage, or a want of threads, is logged while it lasts.
pub(super) const REMIND_EVERY: Duration = Duration::from_secs(30);

/// Whether the database can be reached, and which thread may try next.
#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
    /// Until when nothing is opened; read by all who wait for a connection.
    paused: Pause,
    /// Called while a refusal is waited out: whether there is another password by now, so that the
    /// next attempt may be made at once. It returns by the moment that it is given.
    pub another_password: OnceLock<Box<dyn Fn(Instant) -> bool + Send + Sync>>,
}

/// The most connections that are opened at once.
pub(super) const MOST_OPENERS: usize = 10;
/// After an outage, this many connections are opened at once, and one more with each that succeeds:
/// a database that has just come back is not to be met by a storm.
const FIRST_AFTER_OUTAGE: usize = 3;
/// How often `another_password` is called.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Limit for a call of it by a thread that has no deadline: a command may take as long.
const LONGEST_ASK: Duration = Duration::from_secs(10);

/// A moment until which nothing is opened, if there is one.
#[derive(Default)]
struct Pause {
    is_on: AtomicBool,
    until: Mutex<Option<Instant>>,
}

impl Pause {
    fn set(&self, until: Option<Instant>) {
        *unpoison(self.until.lock()) = until;
        self.is_on.store(until.is_some(), Ordering::SeqCst);
    }

    /// Returns its end if it has not come yet.
    fn ends_at(&self) -> Option<Instant> {
        if !self.is_on.load(Ordering::SeqCst) {
            return None;
        }
        let mut until = unpoison(self.until.lock());
        if until.is_some_and(|at| at <= Instant::now()) {
            warn!("the pause is over, since nobody has ended it in time");
            self.is_on.store(false, Ordering::SeqCst);
            *until = None;
        }
        *until
    }
}

struct GateState {
    down: Option<Down>,
    /// Attempts under way while the database is not down, and how many there may be.
    opening: usize,
    at_once: usize,
    /// The number of the turn whose thread is trying while the database is down.
    trying: Option<u64>,
    turns: u64,
    /// When the newest successful attempt ended.
    opened_at: Option<Instant>,
    /// When the server last had no room for another connection, and the error. Other connections
    /// may come and go at the same time, so a successful attempt in between does not clear it.
    full: Option<Full>,
}

impl Default for GateState {
    fn default() -> GateState {
        GateState {
            down: None,
            opening: 0,
            at_once: MOST_OPENERS,
            trying: None,
            turns: 0,
            opened_at: None,
            full: None,
        }
    }
}

struct Full {
    at: Instant,
    error: Arc<OpenError>,
    logged_at: Instant,
}

struct Down {
    since: Instant,
    next_try: Instant,
    error: Arc<OpenError>,
    /// When the outage was last logged. None if the only error was that there was no room for
    /// another connection.
    logged_at: Option<Instant>,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, GateState> {
        unpoison(self.state.lock())
    }

    /// Waits until this thread may try. Returns None when the pool is closing or the deadline has
    /// passed.
    pub fn turn(&self, closing: &AtomicBool, deadline: Option<Instant>) -> Option<Turn<'_>> {
        self.turn_within(closing, deadline, deadline)
    }

    /// The same for a thread that asks again if its turn does not come by then.
    pub fn turn_soon(&self, closing: &AtomicBool, soon: Instant) -> Option<Turn<'_>> {
        self.turn_within(closing, Some(soon), None)
    }

    /// `ask_until`: by when `another_password` must return.
    fn turn_within(
        &self,
        closing: &AtomicBool,
        until: Option<Instant>,
        ask_until: Option<Instant>,
    ) -> Option<Turn<'_>> {
        let mut state = self.lock();
        loop {
            let left = until.map(|at| at.saturating_duration_since(Instant::now()));
            if closing.load(Ordering::SeqCst) || left.is_some_and(|left| left.is_zero()) {
                return None;
            }
            let paused = self.paused.ends_at();
            let wait = match (&state.down, paused) {
                // Not nothing at all, which would be a turn.
                (_, Some(end)) => {
                    let rest = end.saturating_duration_since(Instant::now());
                    rest.max(Duration::from_millis(1))
                }
                (None, _) if state.opening < state.at_once => {
                    state.opening += 1;
                    return Some(Turn {
                        gate: self,
                        number: None,
                    });
                }
                (None, _) => Duration::from_secs(1),
                (Some(_), _) if state.trying.is_some() => Duration::from_secs(1),
                (Some(down), _) => down.next_try.saturating_duration_since(Instant::now()),
            };
            if wait.is_zero() {
                state.turns += 1;
                let number = Some(state.turns);
                state.trying = number;
                return Some(Turn { gate: self, number });
            }
            let wait = left.map_or(wait, |left| wait.min(left));
            let refused = |state: &GateState| {
                let down = state.down.as_ref();
                down.is_some_and(|down| down.error.is_wrong_password())
                    && state.trying.is_none()
                    && paused.is_none()
            };
            match self.another_password.get().filter(|_| refused(&state)) {
                None => state = unpoison(self.changed.wait_timeout(state, wait)).0,
                Some(changed) => {
                    let short = wait.min(LOOK_EVERY);
                    drop(unpoison(self.changed.wait_timeout(state, short)).0);
                    let may_try =
                        changed(ask_until.unwrap_or_else(|| Instant::now() + LONGEST_ASK));
                    state = self.lock();
                    if may_try
                        && refused(&state)
                        && let Some(down) = &mut state.down
                    {
                        down.next_try = Instant::now();
                    }
                }
            }
        }
    }

    pub fn note_opened(&self) {
        let mut state = self.lock();
        if let Some(down) = state.down.take()
            && down.logged_at.is_some()
        {
            info!("the database is back after {:.1?}", down.since.elapsed());
        }
        state.opened_at = Some(Instant::now());
        state.at_once = (state.at_once + 1).min(MOST_OPENERS);
        state.trying = None;
        drop(state);
        self.changed.notify_all();
    }

    pub fn note_failed(&self, error: Arc<OpenError>, started: Instant, pause: Duration) {
        let now = Instant::now();
        let mut state = self.lock();
        if state.opened_at.is_some_and(|at| at > started) {
            // Another attempt has reached the database since this one began, so this failure is out
            // of date.
            return;
        }
        let before = state.down.as_ref();
        let since = before.map_or(now, |down| down.since);
        let mut logged_at = before.and_then(|down| down.logged_at);
        let is_due = |last: Option<Instant>| last.is_none_or(|at| now - at >= REMIND_EVERY);
        let cause = Chain(&*error);
        if error.is_for_want_of_room() {
            let said = state.full.as_ref().map(|full| full.logged_at);
            if is_due(said) {
                warn!("cannot open another connection, the limit is reached: {cause}");
            }
            state.full = Some(Full {
                at: now,
                error: Arc::clone(&error),
                logged_at: said.filter(|_| !is_due(said)).unwrap_or(now),
            });
        } else if is_due(logged_at) {
            match logged_at {
                None => warn!("cannot open a connection, retrying: {cause}"),
                Some(_) => warn!(
                    "no connection could be opened for {:.0?}: {cause}",
                    now - since
                ),
            }
            logged_at = Some(now);
        }
        state.at_once = FIRST_AFTER_OUTAGE;
        state.down = Some(Down {
            since,
            next_try: now + pause,
            error,
            logged_at,
        });
    }

    /// Lets no thread try until this moment, or until the pause is ended.
    pub fn pause(&self, until: Instant) {
        self.paused.set(Some(until));
    }

    /// Ends the pause. Returns false if there is none.
    pub fn resume(&self) -> bool {
        let was_paused = self.paused.ends_at().is_some();
        self.paused.set(None);
        let mut state = self.lock();
        if let Some(down) = &mut state.down {
            down.next_try = Instant::now();
        }
        drop(state);
        self.changed.notify_all();
        was_paused
    }

    /// Returns when the pause ends, if there is one.
    pub fn paused_until(&self) -> Option<Instant> {
        self.paused.ends_at()
    }

    /// Returns whether there is a pause.
    pub fn is_paused(&self) -> bool {
        self.paused_until().is_some()
    }

    /// Wakes the waiting threads, so that they see that the pool is closing.
    pub fn close(&self) {
        drop(self.lock());
        self.changed.notify_all();
    }

    /// Returns since when no connection could be opened; None while the database is not down, and
    /// during a pause, in which that is expected.
    pub fn down_since(&self) -> Option<Instant> {
        if self.is_paused() {
            return None;
        }
        self.lock().down.as_ref().map(|d| d.since)
    }

    /// Returns the newest failure if the newest attempt failed, and there is no pause.
    pub fn last_error(&self) -> Option<Arc<OpenError>> {
        if self.is_paused() {
            return None;
        }
        self.lock().down.as_ref().map(|d| Arc::clone(&d.error))
    }

    /// Returns why a thread that has waited since `since` got no connection.
    pub fn cause(&self, since: Instant) -> Option<Arc<OpenError>> {
        let state = self.lock();
        let down = state.down.as_ref().map(|down| &down.error);
        let full = state.full.as_ref().filter(|full| full.at >= since);
        down.or(full.map(|full| &full.error)).cloned()
    }
}

/// A thread's turn to try. It ends when this value is dropped, so that the next thread may try
/// however the attempt ends.
pub(crate) struct Turn<'g> {
    gate: &'g Gate,
    /// None while the database is not down: then several threads may try.
    number: Option<u64>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        match self.number {
            None => state.opening -= 1,
            number if state.trying == number => state.trying = None,
            Some(_) => {}
        }
        drop(state);
        self.gate.changed.notify_all();
    }
}
