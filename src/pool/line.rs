//! The line: decides which thread gets the next connection.
//!
//! The hand-off is fair. A thread that finds an idle connection and an empty line takes the
//! connection; any other thread queues. A connection that is checked in or newly opened goes
//! straight to the thread that has waited longest, and only that thread is woken. Invariants:
//!
//! - Waiters are served in order: while a thread waits, no connection goes to a later one.
//! - No connection is lost: if a waiter's deadline passes just as it is given a connection, it
//!   takes the connection anyway.
//! - There is never an idle connection while a thread waits.
//! - Openers are asked for more connections as soon as fewer are idle than `min_idle`, and never
//!   for more than that.
//!
//! The line does not depend on PostgreSQL: it hands out values of any type `T`. It does no I/O, and
//! it takes locks, threads and deadlines from `crate::sync`, so that a test can replace them with
//! those of a model checker.

use crate::sync::{Arc, Condvar, Deadline, Mutex, MutexGuard, Thread, current_thread, unpoison};
use std::collections::VecDeque;

/// The line for values of type `T`.
pub struct Line<T> {
    state: Mutex<State<T>>,
    /// Openers sleep here until a thread is in line for which no connection is being opened yet.
    demand: Condvar,
    max_waiting: usize,
    min_idle: usize,
}

struct State<T> {
    /// Idle values; the most recently returned one is last.
    idle: Vec<T>,
    waiters: VecDeque<Arc<Waiter<T>>>,
    /// Number of values that are checked out.
    active: usize,
    /// Number of openers at work for the waiters.
    opening: usize,
    /// The most values there may be.
    max: usize,
    /// One value is to be opened even if no thread waits for it.
    owed: bool,
    closed: bool,
}

/// A place in line.
pub struct Waiter<T> {
    thread: Thread,
    slot: Mutex<Slot<T>>,
}

enum Slot<T> {
    Empty,
    Given(T),
    TurnedAway,
    Closed,
}

/// What a thread finds when it joins the line.
pub enum Arrival<T> {
    /// An idle value, which now counts as checked out.
    Ready(T),
    /// A place in line.
    Queued {
        place: Arc<Waiter<T>>,
        /// Fewer than `max` values are checked out, so that another one can be obtained elsewhere.
        room: bool,
    },
    /// The maximum number of threads is already in line.
    Full,
    /// The line is closed.
    Closed,
}

/// How a wait ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome<T> {
    /// A value, which now counts as checked out.
    Given(T),
    /// The deadline passed; the thread has left the line.
    TimedOut,
    /// No value can come any more (see [`turn_away`](Line::turn_away)).
    TurnedAway,
    /// The line was closed.
    Closed,
}

/// The line's counts at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    pub max: usize,
    pub idle: usize,
    pub active: usize,
    pub waiting: usize,
}

impl<T> Line<T> {
    /// Creates a line for at most `max` values and `max_waiting` waiters, which keeps `min_idle`
    /// values idle.
    pub fn new(max: usize, max_waiting: usize, min_idle: usize) -> Line<T> {
        let state = State {
            idle: Vec::new(),
            waiters: VecDeque::new(),
            active: 0,
            opening: 0,
            max,
            owed: false,
            closed: false,
        };
        Line {
            state: Mutex::new(state),
            demand: Condvar::new(),
            max_waiting,
            min_idle,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        unpoison(self.state.lock())
    }

    /// Takes an idle value, or joins the line. `first` puts the thread at the head of the line: it
    /// is for a thread that was given a value which then turned out to be unusable.
    pub fn arrive(&self, first: bool) -> Arrival<T> {
        let mut state = self.lock();
        if state.closed {
            return Arrival::Closed;
        }
        // While threads wait there is no idle value. But a thread that comes back with `first` may
        // find a value that was returned in the meantime.
        if let Some(value) = state.idle.pop() {
            state.active += 1;
            self.wake_opener(state);
            return Arrival::Ready(value);
        }
        // Waiters for which a value can be opened do not count against `max_waiting`: they do not
        // depend on a check-in.
        let room = state.max.saturating_sub(state.active);
        if state.waiters.len() >= self.max_waiting.saturating_add(room) && !first {
            return Arrival::Full;
        }
        let place = Arc::new(Waiter {
            thread: current_thread(),
            slot: Mutex::new(Slot::Empty),
        });
        if first {
            state.waiters.push_front(Arc::clone(&place));
        } else {
            state.waiters.push_back(Arc::clone(&place));
        }
        Arrival::Queued {
            place,
            room: room > 0,
        }
    }

    /// Asks for a connection to be opened for the waiters. Called by a thread that has queued and
    /// found no connection elsewhere.
    pub fn call_opener(&self) {
        self.wake_opener(self.lock());
    }

    /// Asks for a connection to be opened in any case. Called by a thread that will not wait for
    /// it.
    pub fn owe_one(&self) {
        let mut state = self.lock();
        state.owed = true;
        self.wake_opener(state);
    }

    fn wake_opener(&self, state: MutexGuard<'_, State<T>>) {
        let wanted = self.wants_opener(&state);
        drop(state);
        if wanted {
            self.demand.notify_one();
        }
    }

    fn wants_opener(&self, state: &State<T>) -> bool {
        let coming = state.idle.len() + state.opening;
        let wanted = state.waiters.len().max(usize::from(state.owed)) + self.min_idle;
        coming < wanted && state.active + coming < state.max
    }

    /// Waits for a value. Only the thread that queued may call this, once.
    pub fn wait(&self, waiter: &Arc<Waiter<T>>, deadline: &Deadline) -> Outcome<T> {
        loop {
            if let Some(outcome) = waiter.take() {
                return outcome;
            }
            if deadline.passed() {
                return self.leave(waiter);
            }
            deadline.park();
        }
    }

    /// Leaves the line, unless a value arrives at the same moment.
    fn leave(&self, waiter: &Arc<Waiter<T>>) -> Outcome<T> {
        let mut state = self.lock();
        let place = state.waiters.iter().position(|w| Arc::ptr_eq(w, waiter));
        if let Some(place) = place {
            state.waiters.remove(place);
            return Outcome::TimedOut;
        }
        drop(state);
        // Another thread has taken this waiter out of the line, and it filled the slot under the
        // same lock.
        waiter.take().unwrap_or(Outcome::TimedOut)
    }

    /// Returns a checked-out value: it goes to the longest waiter or becomes idle. Hands the value
    /// back to the caller if the line is closed, or has more values than its maximum.
    #[must_use = "a value without a place must be closed by the caller"]
    pub fn give_back(&self, value: T) -> Option<T> {
        let mut state = self.lock();
        state.active -= 1;
        self.hand_over(state, value)
    }

    /// Adds a value that was not checked out (a new one, a spare). Hands the value back to the
    /// caller if the line is closed, or has more values than its maximum.
    #[must_use = "a value without a place must be closed by the caller"]
    pub fn offer(&self, value: T) -> Option<T> {
        let mut state = self.lock();
        state.owed = false;
        self.hand_over(state, value)
    }

    fn hand_over(&self, mut state: MutexGuard<'_, State<T>>, value: T) -> Option<T> {
        if state.closed || state.active + state.idle.len() >= state.max {
            return Some(value);
        }
        let Some(waiter) = state.waiters.pop_front() else {
            state.idle.push(value);
            return None;
        };
        state.active += 1;
        *unpoison(waiter.slot.lock()) = Slot::Given(value);
        drop(state);
        // Unparked outside the lock, so that the woken thread does not block on it.
        waiter.thread.unpark();
        None
    }

    /// Notes that a checked-out value was closed instead of being returned. Call this after the
    /// value is dropped, so that an opener finds room.
    pub fn discarded(&self) {
        let mut state = self.lock();
        state.active -= 1;
        self.wake_opener(state);
    }

    /// Blocks an opener until a thread is in line for which no connection is being opened yet, or
    /// fewer than `min_idle` values are idle. Returns false when the line is closed. Each `true`
    /// must be followed by one [`opener_done`](Line::opener_done).
    pub fn await_demand(&self) -> bool {
        let mut state = self.lock();
        loop {
            if state.closed {
                return false;
            }
            if self.wants_opener(&state) {
                state.opening += 1;
                return true;
            }
            state = unpoison(self.demand.wait(state));
        }
    }

    /// Notes that an opener has finished, whether it got a value (which it has offered before) or
    /// not.
    pub fn opener_done(&self) {
        let mut state = self.lock();
        state.opening -= 1;
        self.wake_opener(state);
    }

    /// Takes up to `most` idle values that `pick` selects; the values idle longest come first. They
    /// do not count as checked out: the caller either offers them again, or closes them and calls
    /// [`closed_idle`](Line::closed_idle). The lock is held while `pick` runs, so `pick` must not
    /// block.
    pub fn take_idle(&self, most: usize, mut pick: impl FnMut(&mut T) -> bool) -> Vec<T> {
        let mut state = self.lock();
        let mut taken = Vec::new();
        let mut kept = Vec::with_capacity(state.idle.len());
        for mut value in state.idle.drain(..) {
            if taken.len() < most && pick(&mut value) {
                taken.push(value);
            } else {
                kept.push(value);
            }
        }
        state.idle = kept;
        taken
    }

    /// Returns how many idle values are of a kind.
    pub fn count_idle(&self, of_kind: impl Fn(&T) -> bool) -> usize {
        let state = self.lock();
        state.idle.iter().filter(|value| of_kind(value)).count()
    }

    /// Notes that idle values were closed: others may have to be opened in their place.
    pub fn closed_idle(&self) {
        self.wake_opener(self.lock());
    }

    /// Turns all waiters away if no value can come to them: none can be opened (which the caller
    /// knows), and none is checked out that could be returned.
    pub fn turn_away(&self) {
        let mut state = self.lock();
        if state.active > 0 || state.closed {
            return;
        }
        let waiters = state.dismiss(|| Slot::TurnedAway);
        drop(state);
        waiters.iter().for_each(|waiter| waiter.thread.unpark());
    }

    /// Checks out one idle value that `pick` selects, for housekeeping.
    pub fn check_out_idle(&self, mut pick: impl FnMut(&T) -> bool) -> Option<T> {
        let mut state = self.lock();
        let place = state.idle.iter().position(&mut pick)?;
        state.active += 1;
        Some(state.idle.remove(place))
    }

    /// Closes the line: all waiters are turned away. Returns the idle values, which the caller
    /// closes.
    pub fn close(&self) -> Vec<T> {
        let mut state = self.lock();
        state.closed = true;
        let waiters = state.dismiss(|| Slot::Closed);
        let idle = std::mem::take(&mut state.idle);
        drop(state);
        self.demand.notify_all();
        waiters.iter().for_each(|waiter| waiter.thread.unpark());
        idle
    }

    /// From now on there may be `max` values. Returns the idle ones beyond that, those idle longest
    /// first; checked-out ones find no place when they come back.
    #[must_use = "values without a place must be closed by the caller"]
    pub fn resize(&self, max: usize) -> Vec<T> {
        let mut state = self.lock();
        state.max = max;
        let kept = max.saturating_sub(state.active);
        let surplus = state.idle.len().saturating_sub(kept);
        let taken = state.idle.drain(..surplus).collect();
        self.wake_opener(state);
        taken
    }

    pub fn figures(&self) -> Figures {
        let state = self.lock();
        Figures {
            max: state.max,
            idle: state.idle.len(),
            active: state.active,
            waiting: state.waiters.len(),
        }
    }
}

impl<T> State<T> {
    /// Empties the line with this answer. The caller wakes the threads outside the lock.
    fn dismiss(&mut self, answer: impl Fn() -> Slot<T>) -> VecDeque<Arc<Waiter<T>>> {
        let waiters = std::mem::take(&mut self.waiters);
        for waiter in &waiters {
            *unpoison(waiter.slot.lock()) = answer();
        }
        waiters
    }
}

impl<T> Waiter<T> {
    fn take(&self) -> Option<Outcome<T>> {
        let mut slot = unpoison(self.slot.lock());
        match std::mem::replace(&mut *slot, Slot::Empty) {
            Slot::Empty => None,
            Slot::Given(value) => Some(Outcome::Given(value)),
            Slot::TurnedAway => Some(Outcome::TurnedAway),
            Slot::Closed => Some(Outcome::Closed),
        }
    }
}
