//! A place in line, and how the wait ends.

use crate::sync::{Mutex, Thread, current_thread, unpoison};

/// A place in line.
pub struct Waiter<T> {
    thread: Thread,
    /// Filled under the line's lock, when the place is taken out of the line.
    outcome: Mutex<Option<Outcome<T>>>,
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
    /// The line was full, and a later thread has taken the place.
    Displaced,
    /// The line was closed.
    Closed,
}

impl<T> Waiter<T> {
    /// A place for the current thread.
    pub fn here() -> Waiter<T> {
        Waiter {
            thread: current_thread(),
            outcome: Mutex::new(None),
        }
    }

    /// Sets the outcome. The caller wakes the thread outside the line's lock, so that it does not
    /// block on that.
    pub fn tell(&self, outcome: Outcome<T>) {
        *unpoison(self.outcome.lock()) = Some(outcome);
    }

    pub fn wake(&self) {
        self.thread.unpark();
    }

    /// The outcome, if there is one by now.
    pub fn take(&self) -> Option<Outcome<T>> {
        unpoison(self.outcome.lock()).take()
    }
}
