//! Whether the database can be reached, and which thread may try next.

use crate::error::{Chain, OpenError};
use crate::sync::unpoison;
use log::{info, warn};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How often an outage is logged while it lasts.
const REMIND_EVERY: Duration = Duration::from_secs(30);

/// Whether the database can be reached, and which thread may try next.
#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    down: Option<Down>,
    /// The number of the turn whose thread is trying while the database is down.
    trying: Option<u64>,
    turns: u64,
    /// When the newest successful attempt ended.
    opened_at: Option<Instant>,
    /// When the server last had no room for another connection, and the error. Other connections
    /// may come and go at the same time, so a successful attempt in between does not clear it.
    full: Option<Full>,
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
        let mut state = self.lock();
        loop {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if closing.load(Ordering::SeqCst) || left.is_some_and(|left| left.is_zero()) {
                return None;
            }
            let wait = match &state.down {
                None => {
                    return Some(Turn {
                        gate: self,
                        number: None,
                    });
                }
                Some(_) if state.trying.is_some() => Duration::from_secs(1),
                Some(down) => down.next_try.saturating_duration_since(Instant::now()),
            };
            if wait.is_zero() {
                state.turns += 1;
                let number = Some(state.turns);
                state.trying = number;
                return Some(Turn { gate: self, number });
            }
            let wait = left.map_or(wait, |left| wait.min(left));
            state = unpoison(self.changed.wait_timeout(state, wait)).0;
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
        state.down = Some(Down {
            since,
            next_try: now + pause,
            error,
            logged_at,
        });
    }

    /// Wakes the waiting threads, so that they see that the pool is closing.
    pub fn close(&self) {
        drop(self.lock());
        self.changed.notify_all();
    }

    /// Returns since when no connection could be opened; None while the database is not down.
    pub fn down_since(&self) -> Option<Instant> {
        self.lock().down.as_ref().map(|d| d.since)
    }

    /// Returns the newest failure if the newest attempt failed.
    pub fn last_error(&self) -> Option<Arc<OpenError>> {
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

/// A thread's turn to try while the database is down. It ends when this value is dropped, so that
/// the next thread may try however the attempt ends.
pub(crate) struct Turn<'g> {
    gate: &'g Gate,
    /// None while the database is not down: then every thread may try.
    number: Option<u64>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.number.is_none() {
            return;
        }
        let mut state = self.gate.lock();
        if state.trying == self.number {
            state.trying = None;
        }
        drop(state);
        self.gate.changed.notify_all();
    }
}
