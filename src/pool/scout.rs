//! A second look beside an attempt to open a connection that gets no answer.
//!
//! A server that was frozen after it had accepted, or a network that swallowed a packet, can hold an attempt for as long
//! as attempts may take, also when the server, or another host, has long been ready for a new one. So when an attempt
//! has waited for a while, the scout makes short ones beside it, one at a time; the first that succeeds takes the
//! place of the oldest that waits, which is cut. Nothing is lost where opening is merely slow: it goes on.

use super::manager::{Purpose, Shared};
use super::session::Session;
use super::wire;
use crate::error::Chain;
use crate::metrics::CloseReason;
use crate::sync::caught;
use log::{debug, error, warn};
use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long an attempt waits before the scout looks, and how long a look at one address may take: so long, or twice as long
/// as opening takes here. A look that is cut too early finds nothing, and costs a busy server a process each time.
const PATIENCE: Duration = Duration::from_millis(100);
const LONGEST_PATIENCE: Duration = Duration::from_secs(1);
/// The fastest of so many openings tells what is usual: one that was held up is not.
const RECENT: usize = 4;
/// Between a look without an answer and the next.
const PAUSE: Duration = Duration::from_millis(25);

/// The attempts under way.
#[derive(Default)]
pub(crate) struct Attempts(Mutex<State>);

#[derive(Default)]
struct State {
    /// The oldest first.
    waiting: Vec<Arc<Attempt>>,
    scouting: bool,
    /// What opening took of late.
    took: VecDeque<Duration>,
    /// Found when nobody was waiting any more; for whoever comes while the scout is about.
    spare: Option<Session>,
}

/// One attempt, which may go from host to host.
pub(crate) struct Attempt {
    since: Instant,
    purpose: Purpose,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    wire: Option<Arc<wire::Handle>>,
    found: Option<Session>,
    over: bool,
}

impl Attempts {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those for the pool's own connections.
    pub fn count(&self) -> usize {
        let state = self.lock();
        let used = |a: &&Arc<Attempt>| a.purpose == Purpose::Use;
        state.waiting.iter().filter(used).count()
    }

    /// What the scout found and nobody has taken yet.
    pub fn take_spare(&self) -> Option<Session> {
        self.lock().spare.take()
    }

    /// Takes note of an attempt that begins, until that is dropped, and has somebody look after it.
    pub fn begin<'a>(&'a self, shared: &Arc<Shared>, purpose: Purpose) -> UnderWay<'a> {
        let attempt = Arc::new(Attempt {
            since: Instant::now(),
            purpose,
            inner: Mutex::default(),
        });
        let mut state = self.lock();
        state.waiting.push(Arc::clone(&attempt));
        if !state.scouting {
            let shared = Arc::clone(shared);
            let scout = thread::Builder::new().name("millpond-scout".into());
            let work = move || {
                if let Err(panic) = caught(|| scout_for(&shared)) {
                    error!("the second look panicked: {panic}");
                    shared.attempts.lock().scouting = false;
                }
            };
            match scout.spawn(work) {
                Ok(_) => state.scouting = true,
                Err(e) => warn!("no thread for a second look: {e}"),
            }
        }
        drop(state);
        UnderWay {
            attempts: self,
            attempt,
        }
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

    /// For how long the oldest has been waiting, and what for. With none, the scout's work is done.
    fn longest_wait(&self) -> Option<(Duration, Purpose)> {
        let mut state = self.lock();
        let longest = state.waiting.first();
        let longest = longest.map(|a| (a.since.elapsed(), a.purpose));
        state.scouting = longest.is_some();
        let unneeded = state.spare.take_if(|_| longest.is_none());
        drop(state);
        close(unneeded);
        longest
    }

    /// Gives a session to the oldest that waits for one of its kind.
    fn found(&self, session: Session, purpose: Purpose) {
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
        close(unneeded);
    }
}

/// An attempt that goes on until this is dropped. What was found in its place, and not needed, is closed then.
pub(crate) struct UnderWay<'a> {
    attempts: &'a Attempts,
    attempt: Arc<Attempt>,
}

impl Deref for UnderWay<'_> {
    type Target = Attempt;

    fn deref(&self) -> &Attempt {
        &self.attempt
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut state = self.attempts.lock();
        state.waiting.retain(|a| !Arc::ptr_eq(a, &self.attempt));
        drop(state);
        let mut inner = self.attempt.lock();
        inner.over = true;
        let unneeded = inner.found.take();
        drop(inner);
        close(unneeded);
    }
}

impl Attempt {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The attempt goes on over this wire.
    pub fn goes_over(&self, wire: &Arc<wire::Handle>) {
        let mut inner = self.lock();
        if inner.found.is_some() {
            wire.abort();
        }
        inner.wire = Some(Arc::clone(wire));
    }

    pub fn take_found(&self) -> Option<Session> {
        self.lock().found.take()
    }

    /// Gives the session back when the attempt has ended in this moment.
    fn replace(&self, session: Session) -> Option<Session> {
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

fn close(unneeded: Option<Session>) {
    if let Some(mut session) = unneeded {
        session.close_for(CloseReason::Drained);
    }
}

fn scout_for(shared: &Arc<Shared>) {
    thread::sleep(shared.attempts.patience());
    while let Some((waited, purpose)) = shared.attempts.longest_wait() {
        let patience = shared.attempts.patience();
        if waited < patience {
            thread::sleep(patience - waited);
            continue;
        }
        if shared.closing.load(Ordering::SeqCst) {
            // Those who wait are told by others.
            thread::sleep(PATIENCE);
            continue;
        }
        let until = Instant::now() + shared.config.connection_timeout;
        match shared.open(until, patience, purpose, None) {
            Ok(session) => {
                shared.attempts.found(session, purpose);
                shared.note_opened();
            }
            Err(e) => {
                debug!("a second look found nothing: {}", Chain(&e));
                thread::sleep(PAUSE);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_opening_that_was_held_up_does_not_make_the_scout_slow() {
        let attempts = Attempts::default();
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
