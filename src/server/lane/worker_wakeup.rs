//! Which worker of a lane is woken next.
//!
//! Waking a thread takes a third of the time of a short request, so a thread is woken only if that
//! helps:
//!
//! - A worker that has answered takes the next request without being woken for it.
//! - Of the workers that find no request, one is the **receiver**: it waits for the next request in
//!   tiny_http's queue. The others are parked, and no request wakes them. Once the receiver has a
//!   request, it unparks the next receiver, but only if more requests are coming.
//! - While `at_once` or more workers are busy, none is unparked: workers beyond the connections to
//!   the database would only wait in another line, and be woken once more for it. A worker that has
//!   been busy with a request for longer than [`SLOW`] does not count, so slow statements do not
//!   hold up the others.
//!
//! No request is forgotten. It is counted as coming before [`call`](WorkerWakeup::call), and from
//! then on one of these holds:
//!
//! - there is a receiver;
//! - a worker is about to look into the queue, as each does after its answer;
//! - a worker is about to call, as each does when it has taken a request;
//! - there is no room until a busy worker has answered or is slow. The sender calls again every
//!   [`SLOW`], as long as requests are coming.
//!
//! This knows nothing of HTTP. Locks, threads and time come from `crate::sync`, so that a test can
//! replace them with a model checker's.

use crate::sync::{Arc, AtomicUsize, Deadline, Instant, Mutex, MutexGuard, Thread};
use crate::sync::{current_thread, unpoison};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A worker that is busy with a request for longer does not count as busy.
pub const SLOW: Duration = Duration::from_millis(10);

/// The workers of one lane, by number.
pub struct WorkerWakeup {
    state: Mutex<State>,
    at_once: usize,
    /// Requests that were sent to the lane, and that no worker has taken yet.
    coming: Arc<AtomicUsize>,
}

struct State {
    /// Since when each worker is busy, by its number.
    busy_since: Vec<Option<Instant>>,
    busy: usize,
    /// The worker that waits for the next request, or is about to.
    receiver: Option<usize>,
    /// The workers that sleep; the last one is woken first.
    parked: Vec<(usize, Thread)>,
    closed: bool,
}

impl WorkerWakeup {
    pub fn new(workers: usize, at_once: usize, coming: Arc<AtomicUsize>) -> WorkerWakeup {
        let state = State {
            busy_since: vec![None; workers],
            busy: 0,
            receiver: None,
            parked: Vec::new(),
            closed: false,
        };
        WorkerWakeup {
            state: Mutex::new(state),
            at_once,
            coming,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        unpoison(self.state.lock())
    }

    /// Whether one more worker may be busy.
    fn has_room(&self, state: &State) -> bool {
        state.busy < self.at_once || state.busy - state.slow() < self.at_once
    }

    /// Worker `me` has taken a request.
    pub fn took(&self, me: usize) {
        let mut state = self.lock();
        if state.receiver == Some(me) {
            state.receiver = None;
        }
        state.busy_since[me] = Some(Instant::now());
        state.busy += 1;
    }

    /// Worker `me` is done with its request. Returns whether it may look for another.
    pub fn done(&self, me: usize) -> bool {
        let mut state = self.lock();
        state.busy -= usize::from(state.busy_since[me].take().is_some());
        self.has_room(&state)
    }

    /// Sleeps until worker `me` is to wait for the next request; false once the lane is closed.
    pub fn rest(&self, me: usize) -> bool {
        let mut state = self.lock();
        if state.receiver.is_none() && self.has_room(&state) {
            state.receiver = Some(me);
        } else if !state.closed {
            state.parked.push((me, current_thread()));
        }
        while state.receiver != Some(me) && !state.closed {
            drop(state);
            Deadline::never().park();
            state = self.lock();
        }
        !state.closed
    }

    /// Makes sure that there is a receiver if requests are coming.
    pub fn call(&self) {
        if !self.are_coming() {
            return;
        }
        let mut state = self.lock();
        if state.receiver.is_some() || !self.has_room(&state) {
            return;
        }
        let Some((next, thread)) = state.parked.pop() else {
            return;
        };
        state.receiver = Some(next);
        drop(state);
        thread.unpark();
    }

    /// Counts a request as coming until the guard is dropped.
    pub fn announce(&self) -> Announced<'_> {
        self.coming.fetch_add(1, Ordering::SeqCst);
        Announced(self)
    }

    /// Whether as many workers as may be busy at once have been busy with their requests for long.
    pub fn are_slow(&self) -> bool {
        let state = self.lock();
        state.busy >= self.at_once && state.slow() >= self.at_once
    }

    /// Whether requests were sent that no worker has taken yet.
    pub fn are_coming(&self) -> bool {
        self.coming.load(Ordering::SeqCst) > 0
    }

    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Wakes all workers, for good.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let parked = std::mem::take(&mut state.parked);
        drop(state);
        for (_, thread) in parked {
            thread.unpark();
        }
    }
}

/// A request that is counted as coming.
pub struct Announced<'t>(&'t WorkerWakeup);

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        self.0.coming.fetch_sub(1, Ordering::SeqCst);
    }
}

impl State {
    fn slow(&self) -> usize {
        let now = Instant::now();
        let slow = |since: &&Instant| now.saturating_duration_since(**since) > SLOW;
        self.busy_since.iter().flatten().filter(slow).count()
    }
}
