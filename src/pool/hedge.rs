//! A second attempt beside one that gets no answer.
//!
//! A server that was frozen after it had accepted, or a network that swallowed a packet, can hold an attempt for as long
//! as attempts may take, also when the server, or another host, has long been ready for a new one. So when an attempt
//! has waited for a while, short ones are made beside it, one at a time; the first that succeeds takes the place of the
//! oldest that waits, which is cut. Nothing is lost where opening is merely slow: it goes on.

use super::wire;
use crate::sync::{caught, unpoison};
use log::{error, warn};
use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

/// How long an attempt waits before another is made beside it, and how long that one may take at one address: so long, or twice
/// as long as opening takes here. One that is cut too early finds nothing, and costs a busy server a process each time.
const PATIENCE: Duration = Duration::from_millis(100);
const LONGEST_PATIENCE: Duration = Duration::from_secs(1);
/// The fastest of so many openings tells what is usual: one that was held up is not.
const RECENT: usize = 4;

/// What a session is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To be used by the application, whose `on_connect` has run.
    Use,
    /// To find out about a lost COMMIT, as the role that logs in: the application's may not be allowed to.
    Resolve,
}

/// Opens what is attempted.
pub(super) trait Opens: Send + Sync + 'static {
    type Opened: Send;

    fn attempts(&self) -> &Attempts<Self::Opened>;
    fn is_closing(&self) -> bool;
    /// A hedged attempt, with this much patience at each address. Where it finds nothing, the next may be made at once.
    fn open_beside(self: &Arc<Self>, patience: Duration, purpose: Purpose) -> Option<Self::Opened>;
    /// A connection could be opened.
    fn note_opened(&self);
}

/// The attempts under way.
pub(crate) struct Attempts<T>(Mutex<State<T>>);

struct State<T> {
    /// The oldest first.
    waiting: Vec<Arc<Attempt<T>>>,
    is_hedging: bool,
    /// What opening took of late.
    took: VecDeque<Duration>,
    /// Found when nobody was waiting any more; for whoever comes while the hedging goes on.
    spare: Option<T>,
}

/// One attempt, which may go from host to host.
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
            took: VecDeque::new(),
            spare: None,
        }))
    }
}

impl<T> Attempts<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        unpoison(self.0.lock())
    }

    /// Those for the pool's own connections.
    pub fn count(&self) -> usize {
        let state = self.lock();
        let used = |a: &&Arc<Attempt<T>>| a.purpose == Purpose::Use;
        state.waiting.iter().filter(used).count()
    }

    /// What a hedged attempt found and nobody has taken yet.
    pub fn take_spare(&self) -> Option<T> {
        self.lock().spare.take()
    }

    /// Cuts those for the pool's own connections: it is closing.
    pub fn cut(&self) {
        for attempt in &self.lock().waiting {
            if attempt.purpose == Purpose::Use
                && let Some(wire) = &attempt.lock().wire
            {
                wire.abort();
            }
        }
    }

    /// Opening a connection took so long.
    pub fn note_opened(&self, took: Duration) {
        let mut state = self.lock();
        if state.took.len() == RECENT {
            state.took.pop_front();
        }
        state.took.push_back(took);
    }

    fn patience(&self) -> Duration {
        let usual = self.lock().took.iter().min().copied();
        (2 * usual.unwrap_or_default()).clamp(PATIENCE, LONGEST_PATIENCE)
    }

    /// For how long the oldest has been waiting, and what for. With none, the hedging is done.
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

    /// Gives a session to the oldest that waits for one of its kind.
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

/// An attempt that goes on until this is dropped. What was found in its place, and not needed, is closed then.
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
        drop(state);
        let mut inner = self.attempt.lock();
        inner.over = true;
        let unneeded = inner.found.take();
        drop(inner);
        drop(unneeded);
    }
}

impl<T> Attempt<T> {
    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        unpoison(self.inner.lock())
    }

    /// The attempt goes on over this wire.
    pub fn goes_over(&self, wire: &Arc<wire::Handle>) {
        let mut inner = self.lock();
        if inner.found.is_some() {
            wire.abort();
        }
        inner.wire = Some(Arc::clone(wire));
    }

    pub fn take_found(&self) -> Option<T> {
        self.lock().found.take()
    }

    /// Gives the session back when the attempt has ended in this moment.
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

/// Takes note of an attempt that begins, until that is dropped, and has others made beside it when it takes too long.
pub(super) fn begin<O: Opens>(opener: &Arc<O>, purpose: Purpose) -> UnderWay<'_, O::Opened> {
    let attempts = opener.attempts();
    let attempt = Arc::new(Attempt {
        since: Instant::now(),
        purpose,
        inner: Mutex::new(Inner {
            wire: None,
            found: None,
            over: false,
        }),
    });
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
            Err(e) => warn!("no thread for a hedged attempt: {e}"),
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
            thread::sleep(patience - waited);
        } else if opener.is_closing() {
            // Those who wait are told by others.
            thread::sleep(PATIENCE);
        } else if let Some(opened) = opener.open_beside(patience, purpose) {
            attempts.found(opened, purpose);
            opener.note_opened();
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
