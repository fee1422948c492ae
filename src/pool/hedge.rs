//! Hedged attempts: a second attempt to open a connection, beside one that gets no answer.
//!
//! A server that was frozen after it had accepted a connection, or a network that lost a packet,
//! can block an attempt for its whole time limit, even when the server, or another host, has long
//! been ready for a new one. So when an attempt has waited for a while, short attempts are made
//! beside it, one at a time. The first of them that succeeds takes the place of the oldest waiting
//! attempt, whose wire is cut. If opening is merely slow, nothing is lost: the first attempt goes
//! on.

use super::wire;
use crate::sync::{caught, unpoison};
use log::{error, warn};
use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

/// How long an attempt waits before another is made beside it, and how long the hedged attempt may
/// take at one address: this long, or twice as long as opening usually takes. A hedged attempt that
/// is cut too early finds nothing, and costs a busy server a process each time.
const PATIENCE: Duration = Duration::from_millis(100);
const LONGEST_PATIENCE: Duration = Duration::from_secs(5);
/// The usual time is the fastest of this many recent openings, so that one slow opening does not
/// count.
const RECENT: usize = 4;

/// What a session is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// For the application: `on_connect` has run on it.
    Use,
    /// To find out the outcome of a lost COMMIT, as the login role: the role that `on_connect` sets
    /// may lack the rights.
    Resolve,
}

/// Opens the connections for hedged attempts.
pub(super) trait Opens: Send + Sync + 'static {
    type Opened: Send;

    fn attempts(&self) -> &Attempts<Self::Opened>;
    fn is_closing(&self) -> bool;
    /// Makes a hedged attempt, which may take `patience` at each address. If it returns None, the
    /// next may be made at once.
    fn open_beside(self: &Arc<Self>, patience: Duration, purpose: Purpose) -> Option<Self::Opened>;
    /// Notes that a connection was opened.
    fn note_opened(&self);
}

/// The attempts under way.
pub(crate) struct Attempts<T>(Mutex<State<T>>);

struct State<T> {
    /// The oldest attempt is first.
    waiting: Vec<Arc<Attempt<T>>>,
    is_hedging: bool,
    /// The hedged attempt.
    beside: Option<Arc<Attempt<T>>>,
    /// How many hedged attempts have found nothing since the last connection was opened.
    fruitless: u32,
    /// How long the most recent openings took.
    took: VecDeque<Duration>,
    /// Found when no attempt was waiting any more; kept for an attempt that begins while the
    /// hedging goes on.
    spare: Option<T>,
}

/// One attempt, which may try several hosts in turn.
pub(crate) struct Attempt<T> {
    since: Instant,
    purpose: Purpose,
    inner: Mutex<Inner<T>>,
}

struct Inner<T> {
    wire: Option<Arc<wire::Handle>>,
    found: Option<T>,
    over: bool,
}

impl<T> Default for Attempts<T> {
    fn default() -> Attempts<T> {
        Attempts(Mutex::new(State {
            waiting: Vec::new(),
            is_hedging: false,
            beside: None,
            fruitless: 0,
            took: VecDeque::new(),
            spare: None,
        }))
    }
}

impl<T> Attempts<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        unpoison(self.0.lock())
    }

    /// Returns the number of attempts to open connections for use in the pool.
    pub fn count(&self) -> usize {
        self.lock()
            .waiting
            .iter()
            .filter(|a| a.is_for_use())
            .count()
    }

    /// Whether there are any, hedged ones included.
    pub fn are_under_way(&self) -> bool {
        self.lock().all().any(|a| a.is_for_use())
    }

    /// Takes a session that a hedged attempt has found and no attempt has taken yet.
    pub fn take_spare(&self) -> Option<T> {
        self.lock().spare.take()
    }

    /// Registers a hedged attempt, until the returned value is dropped.
    pub fn begin_beside(&self, purpose: Purpose) -> UnderWay<'_, T> {
        let attempt = Attempt::new(purpose);
        self.lock().beside = Some(Arc::clone(&attempt));
        UnderWay {
            attempts: self,
            attempt,
        }
    }

    /// Cuts the attempts to open connections for use in the pool, which is closing.
    pub fn cut(&self) {
        for attempt in self.lock().all() {
            if attempt.is_for_use()
                && let Some(wire) = &attempt.lock().wire
            {
                wire.abort();
            }
        }
    }

    /// Returns how long opening a connection usually takes; `None` before the first.
    pub fn usual(&self) -> Option<Duration> {
        self.lock().took.iter().min().copied()
    }

    /// Records how long it took to open a connection.
    pub fn note_opened(&self, took: Duration) {
        let mut state = self.lock();
        if state.took.len() == RECENT {
            state.took.pop_front();
        }
        state.took.push_back(took);
        state.fruitless = 0;
    }

    /// Returns how long an attempt waits before another is made, and how long that may take. Before
    /// the first connection it is not known what is usual: the database may be far away, so each
    /// hedged attempt gets more time than the one before.
    fn patience(&self) -> Duration {
        let state = self.lock();
        let patience = match state.took.iter().min() {
            Some(usual) => 2 * *usual,
            None => PATIENCE * (1 << state.fruitless.min(8)),
        };
        patience.clamp(PATIENCE, LONGEST_PATIENCE)
    }

    /// Returns how long the oldest attempt has been waiting, and its purpose. If there is none, the
    /// hedging ends.
    fn longest_wait(&self) -> Option<(Duration, Purpose)> {
        let mut state = self.lock();
        let longest = state.waiting.first();
        let longest = longest.map(|a| (a.since.elapsed(), a.purpose));
        state.is_hedging = longest.is_some();
        let unneeded = state.spare.take_if(|_| longest.is_none());
        drop(state);
        drop(unneeded);
        longest
    }

    /// Gives a session to the oldest attempt that waits for one of its kind.
    fn found(&self, session: T, purpose: Purpose) {
        let mut state = self.lock();
        let oldest = state.waiting.iter().position(|a| a.purpose == purpose);
        let unneeded = match oldest {
            Some(at) => {
                let oldest = state.waiting.remove(at);
                drop(state);
                oldest.replace(session)
            }
            None if purpose == Purpose::Use => {
                let before = state.spare.replace(session);
                drop(state);
                before
            }
            None => Some(session),
        };
        drop(unneeded);
    }
}

impl<T> State<T> {
    fn all(&self) -> impl Iterator<Item = &Arc<Attempt<T>>> {
        self.waiting.iter().chain(&self.beside)
    }
}

/// An attempt that is under way until this value is dropped. A session that was found in its place
/// and is not needed is closed then.
pub(crate) struct UnderWay<'a, T> {
    attempts: &'a Attempts<T>,
    attempt: Arc<Attempt<T>>,
}

impl<T> Deref for UnderWay<'_, T> {
    type Target = Attempt<T>;

    fn deref(&self) -> &Attempt<T> {
        &self.attempt
    }
}

impl<T> Drop for UnderWay<'_, T> {
    fn drop(&mut self) {
        let mut state = self.attempts.lock();
        state.waiting.retain(|a| !Arc::ptr_eq(a, &self.attempt));
        state
            .beside
            .take_if(|beside| Arc::ptr_eq(beside, &self.attempt));
        drop(state);
        let mut inner = self.attempt.lock();
        inner.over = true;
        let unneeded = inner.found.take();
        drop(inner);
        drop(unneeded);
    }
}

impl<T> Attempt<T> {
    fn new(purpose: Purpose) -> Arc<Attempt<T>> {
        Arc::new(Attempt {
            since: Instant::now(),
            purpose,
            inner: Mutex::new(Inner {
                wire: None,
                found: None,
                over: false,
            }),
        })
    }

    fn is_for_use(&self) -> bool {
        self.purpose == Purpose::Use
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        unpoison(self.inner.lock())
    }

    /// Sets the wire that the attempt uses from now on.
    pub fn set_wire(&self, wire: &Arc<wire::Handle>) {
        let mut inner = self.lock();
        if inner.found.is_some() {
            wire.abort();
        }
        inner.wire = Some(Arc::clone(wire));
    }

    pub fn take_found(&self) -> Option<T> {
        self.lock().found.take()
    }

    /// Hands the session back to the caller if the attempt has just ended.
    fn replace(&self, session: T) -> Option<T> {
        let mut inner = self.lock();
        if inner.over {
            return Some(session);
        }
        inner.found = Some(session);
        if let Some(wire) = inner.wire.take() {
            wire.abort();
        }
        None
    }
}

/// Registers an attempt that begins, until the returned value is dropped. If it takes too long,
/// hedged attempts are made beside it.
pub(super) fn begin<O: Opens>(opener: &Arc<O>, purpose: Purpose) -> UnderWay<'_, O::Opened> {
    let attempts = opener.attempts();
    let attempt = Attempt::new(purpose);
    let mut state = attempts.lock();
    state.waiting.push(Arc::clone(&attempt));
    if !state.is_hedging {
        let opener = Arc::clone(opener);
        let work = move || {
            if let Err(panic) = caught(|| hedge(&opener)) {
                error!("a hedged attempt panicked: {panic}");
                opener.attempts().lock().is_hedging = false;
            }
        };
        match thread::Builder::new()
            .name("millpond-hedge".into())
            .spawn(work)
        {
            Ok(_) => state.is_hedging = true,
            Err(e) => warn!("cannot start a thread for a hedged attempt: {e}"),
        }
    }
    drop(state);
    UnderWay { attempts, attempt }
}

fn hedge<O: Opens>(opener: &Arc<O>) {
    let attempts = opener.attempts();
    thread::sleep(attempts.patience());
    while let Some((waited, purpose)) = attempts.longest_wait() {
        let patience = attempts.patience();
        if waited < patience {
            thread::sleep(patience.saturating_sub(waited));
        } else if opener.is_closing() {
            // The waiting threads are told of the close elsewhere.
            thread::sleep(PATIENCE);
        } else if let Some(opened) = opener.open_beside(patience, purpose) {
            if opener.is_closing() && purpose == Purpose::Use {
                continue;
            }
            attempts.found(opened, purpose);
            opener.note_opened();
        } else {
            attempts.lock().fruitless += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_opening_that_was_held_up_does_not_make_hedging_slow() {
        let attempts = Attempts::<()>::default();
        let patience_after = |ms: &[u64]| {
            for took in ms {
                attempts.note_opened(Duration::from_millis(*took));
            }
            attempts.patience()
        };
        assert_eq!(patience_after(&[]), PATIENCE);
        attempts.lock().fruitless = 3;
        assert_eq!(patience_after(&[]), 8 * PATIENCE);
        assert_eq!(patience_after(&[150]), Duration::from_millis(300));
        assert_eq!(
            patience_after(&[160, 155, 5000, 170]),
            Duration::from_millis(310)
        );
        assert_eq!(patience_after(&[5]), PATIENCE);
        assert_eq!(patience_after(&[3000; 4]), LONGEST_PATIENCE);
        assert_eq!(patience_after(&[5]), PATIENCE);
    }
}
