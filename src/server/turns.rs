//! Whose turn it is: which workers of a lane are at work, and which rest.
//!
//! To wake a thread, and to be woken, is a third of what a short request costs; so nobody is woken whom it would not help:
//!
//! - whoever has answered takes the next request, without being woken for it;
//! - of those who find none, one waits at the lane's door, the **watch**; the others sit on a bench, and no request wakes
//!   them. When the watch has one, another is called from the bench only if more are coming: one by one, each by the one
//!   before, as fast as they get to it;
//! - while `at_once` or more are at work, nobody else is called: workers beyond the connections to the database would only stand in
//!   another line, and be woken once more for it. Who has been at a request for longer than [`SLOW`] does not count: behind
//!   slow statements, the others go on.
//!
//! No request is forgotten. Each is counted as coming before [`call`](Turns::call) is asked for it, and from then on there is
//! a watch; or a worker that is about to look at the door, as all do that have answered; or one that is about to call, as all
//! do that took a request; or there is no room, until one of those at work has answered, or is slow: whoever sends looks
//! for that every [`SLOW`], while any are coming.
//!
//! This knows nothing of HTTP. It takes locks, threads and time from `super::sync`, so that a test can put a model checker's in
//! their place.

use super::sync::{Arc, AtomicUsize, Deadline, Instant, Mutex, MutexGuard, Thread};
use super::sync::{current_thread, unpoison};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Who has been at a request for longer does not keep others from theirs.
pub const SLOW: Duration = Duration::from_millis(10);

/// The workers of one lane, by number.
pub struct Turns {
    state: Mutex<State>,
    at_once: usize,
    /// Requests on their way to the lane, which no worker has taken.
    coming: Arc<AtomicUsize>,
}

struct State {
    /// Since when each is at work.
    at_work: Vec<Option<Instant>>,
    busy: usize,
    /// Waits at the door, or is about to.
    watch: Option<usize>,
    /// Asleep; who came last is the first to go.
    bench: Vec<(usize, Thread)>,
    closed: bool,
}

impl Turns {
    pub fn new(workers: usize, at_once: usize, coming: Arc<AtomicUsize>) -> Turns {
        let state = State {
            at_work: vec![None; workers],
            busy: 0,
            watch: None,
            bench: Vec::new(),
            closed: false,
        };
        Turns {
            state: Mutex::new(state),
            at_once,
            coming,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        unpoison(self.state.lock())
    }

    /// Whether one more may be at work.
    fn has_room(&self, state: &State) -> bool {
        state.busy < self.at_once || state.busy - state.slow() < self.at_once
    }

    /// The worker has taken something.
    pub fn took(&self, me: usize) {
        let mut state = self.lock();
        if state.watch == Some(me) {
            state.watch = None;
        }
        state.at_work[me] = Some(Instant::now());
        state.busy += 1;
    }

    /// The worker is through with it: whether it may look for another.
    pub fn done(&self, me: usize) -> bool {
        let mut state = self.lock();
        state.busy -= usize::from(state.at_work[me].take().is_some());
        self.has_room(&state)
    }

    /// Returns when the worker is to wait at the door; false when the lane is closed.
    pub fn rest(&self, me: usize) -> bool {
        let mut state = self.lock();
        if state.watch.is_none() && self.has_room(&state) {
            state.watch = Some(me);
        } else if !state.closed {
            state.bench.push((me, current_thread()));
        }
        while state.watch != Some(me) && !state.closed {
            drop(state);
            Deadline(None).park();
            state = self.lock();
        }
        !state.closed
    }

    /// Sees to it that somebody is at the door when requests are coming.
    pub fn call(&self) {
        if !self.are_coming() {
            return;
        }
        let mut state = self.lock();
        if state.watch.is_some() || !self.has_room(&state) {
            return;
        }
        let Some((next, thread)) = state.bench.pop() else {
            return;
        };
        state.watch = Some(next);
        drop(state);
        thread.unpark();
    }

    /// Counts one that is about to be sent, until this is dropped.
    pub fn announce(&self) -> Announced<'_> {
        self.coming.fetch_add(1, Ordering::SeqCst);
        Announced(self)
    }

    /// Requests are on their way that no worker has taken.
    pub fn are_coming(&self) -> bool {
        self.coming.load(Ordering::SeqCst) > 0
    }

    pub fn are_over(&self) -> bool {
        self.lock().closed
    }

    /// Nobody rests any more.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let bench = std::mem::take(&mut state.bench);
        drop(state);
        for (_, thread) in bench {
            thread.unpark();
        }
    }
}

/// A request that is counted as coming.
pub struct Announced<'t>(&'t Turns);

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        self.0.coming.fetch_sub(1, Ordering::SeqCst);
    }
}

impl State {
    fn slow(&self) -> usize {
        let now = Instant::now();
        let slow = |since: &&Instant| now.saturating_duration_since(**since) > SLOW;
        self.at_work.iter().flatten().filter(slow).count()
    }
}
