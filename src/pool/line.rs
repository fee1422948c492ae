//! The line: who gets the next connection.
//!
//! A fair hand-off. Whoever finds an idle connection and nobody in line takes it; everybody else queues. What comes
//! back, or is newly opened, goes straight to the thread that has waited longest, which is woken alone. Invariants:
//!
//! - nobody is overtaken: while a thread waits, no connection goes to a later one;
//! - nothing is lost: a connection given to a waiter whose deadline passes in that moment is taken by it all the same;
//! - an idle connection and a waiting thread never exist side by side;
//! - as many idle ones as are to be kept ready are asked for as soon as there are fewer, and never more.
//!
//! The line knows nothing of PostgreSQL: it hands out values of any type `T`. It does no I/O, and it takes locks, threads
//! and deadlines from `crate::sync`, so that a test can put a model checker's in their place.

use crate::sync::{Arc, Condvar, Deadline, Mutex, MutexGuard, Thread, current_thread, unpoison};
use std::collections::VecDeque;

/// The line for values of type `T`.
pub struct Line<T> {
    state: Mutex<State<T>>,
    /// Openers sleep here until somebody is in line for whom nobody opens a connection yet.
    demand: Condvar,
    max_waiting: usize,
    min_idle: usize,
}

struct State<T> {
    /// Idle values, the one that came back last at the end.
    idle: Vec<T>,
    waiters: VecDeque<Arc<Waiter<T>>>,
    /// Values that are checked out.
    active: usize,
    /// Openers at work for those in line.
    opening: usize,
    /// The most values there may be.
    max: usize,
    /// One is to be opened though nobody waits for it.
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

/// What a thread finds on arrival.
pub enum Arrival<T> {
    /// An idle value; it counts as checked out now.
    Ready(T),
    /// A place in line.
    Queued {
        place: Arc<Waiter<T>>,
        /// Not all values that there may be are out: another could be had from elsewhere.
        room: bool,
    },
    /// As many are in line as may be.
    Full,
    /// The line is closed.
    Closed,
}

/// How a wait ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome<T> {
    /// A value; it counts as checked out now.
    Given(T),
    /// The deadline passed; the place in line is given up.
    TimedOut,
    /// There was nothing to wait for any more.
    TurnedAway,
    /// The line was closed.
    Closed,
}

/// The line's figures at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    pub max: usize,
    pub idle: usize,
    pub active: usize,
    pub waiting: usize,
}

impl<T> Line<T> {
    /// For at most `max` values, of which `min_idle` are kept ready, and `max_waiting` threads.
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

    /// Joins the line, or takes an idle value when nobody is in it. `first` puts the thread ahead of all others: for one
    /// that had been given a value already, and it turned out to be spent.
    pub fn arrive(&self, first: bool) -> Arrival<T> {
        let mut state = self.lock();
        if state.closed {
            return Arrival::Closed;
        }
        // Somebody in line means nothing idle; but one who comes back ahead of the line may find what came meanwhile.
        if let Some(value) = state.idle.pop() {
            state.active += 1;
            self.wake_opener(state);
            return Arrival::Ready(value);
        }
        // Those for whom a value can be had from elsewhere do not count: they are not waiting for anybody.
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

    /// Asks for a connection to be opened for those in line. Called by a thread that queued and found nothing else.
    pub fn call_opener(&self) {
        self.wake_opener(self.lock());
    }

    /// Asks for one in any case: called by a thread that will not wait for it.
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

    /// Gives the place in line up, unless a value came in this moment.
    fn leave(&self, waiter: &Arc<Waiter<T>>) -> Outcome<T> {
        let mut state = self.lock();
        let place = state.waiters.iter().position(|w| Arc::ptr_eq(w, waiter));
        if let Some(place) = place {
            state.waiters.remove(place);
            return Outcome::TimedOut;
        }
        drop(state);
        // Not in line any more: whoever removed us filled the slot under the same lock.
        waiter.take().unwrap_or(Outcome::TimedOut)
    }

    /// A checked-out value comes back and goes to the longest waiter, or becomes idle. Returns it
    /// if it has no place: the line is closed, or there are more values than there may be.
    #[must_use = "a value without a place must be closed by the caller"]
    pub fn give_back(&self, value: T) -> Option<T> {
        let mut state = self.lock();
        state.active -= 1;
        self.hand_over(state, value)
    }

    /// A value that was not checked out (a new one, a spare) joins. Returns it if it has no place.
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
        // Woken outside the lock: the thread need not come back for it.
        waiter.thread.unpark();
        None
    }

    /// A checked-out value was closed instead of coming back. Call it after the value is gone, so that an opener finds room.
    pub fn discarded(&self) {
        let mut state = self.lock();
        state.active -= 1;
        self.wake_opener(state);
    }

    /// Blocks an opener until somebody is in line for whom nobody opens a connection yet, or fewer are idle than are to be
    /// kept ready. False when the line is closed.
    /// Each `true` is answered with one [`opener_done`](Line::opener_done).
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

    /// An opener has done its work, whether it got a value (which it offered before) or not.
    pub fn opener_done(&self) {
        let mut state = self.lock();
        state.opening -= 1;
        self.wake_opener(state);
    }

    /// Takes up to `most` idle values that `pick` chooses, those idle longest first. They are not checked out: the caller
    /// offers them again, or closes them and says so with [`closed_idle`](Line::closed_idle).
    /// The lock is held while `pick` looks at them: it must not block.
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

    /// How many idle values are of a kind.
    pub fn count_idle(&self, of_kind: impl Fn(&T) -> bool) -> usize {
        let state = self.lock();
        state.idle.iter().filter(|value| of_kind(value)).count()
    }

    /// Idle values were closed: others may have to take their place.
    pub fn closed_idle(&self) {
        self.wake_opener(self.lock());
    }

    /// Turns everybody in line away who waits for a value to be opened, when that has become hopeless: where none is checked
    /// out that could come back.
    pub fn turn_away(&self) {
        let mut state = self.lock();
        if state.active > 0 || state.closed {
            return;
        }
        let waiters = state.dismiss(|| Slot::TurnedAway);
        drop(state);
        waiters.iter().for_each(|waiter| waiter.thread.unpark());
    }

    /// Checks one idle value out that `pick` chooses, for upkeep.
    pub fn check_out_idle(&self, mut pick: impl FnMut(&T) -> bool) -> Option<T> {
        let mut state = self.lock();
        let place = state.idle.iter().position(&mut pick)?;
        state.active += 1;
        Some(state.idle.remove(place))
    }

    /// Closes the line: all in it are turned away, the idle values are returned for closing.
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
    /// Empties the line with this answer. Its threads are to be woken outside the lock.
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
