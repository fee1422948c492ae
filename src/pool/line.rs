//! The line: decides which thread gets the next connection.
//!
//! The hand-off is fair. A thread that finds an idle connection takes it if its class may hold one
//! more; any other thread queues. A connection that is checked in or newly opened goes straight to
//! a waiter, and only that thread is woken. Which one it is, two modules decide: the class that
//! holds the fewest ([`crate::class_queue`]), and in it the one who has waited longest, or, while
//! many give up, the newest ([`crate::line_rule`]). Invariants:
//!
//! - Waiters of a class are served in order, as long as the order is first come: while a thread
//!   waits, no connection goes to a later one.
//! - No connection is lost: if a waiter's deadline passes just as it is given a connection, it
//!   takes the connection anyway.
//! - There is never an idle connection while a thread waits whose class may hold one more.
//! - An opener is hired for each connection that is wanted: for a waiter, or because fewer are idle
//!   than `min_idle`. It goes when no more is wanted.
//!
//! The line does not depend on PostgreSQL: it hands out values of any type `T`. It does no I/O, and
//! it takes locks, threads and deadlines from `crate::sync`, so that a test can replace them with
//! those of a model checker.

use super::line_state::State;
use super::renewal::Renewal;
use super::waiter::{Outcome, Waiter};
use crate::class_queue::{ClassQueue, Share};
use crate::line_rule::{Departures, Rule, Switch};
use crate::sync::{Arc, Deadline, Instant, Mutex, MutexGuard, unpoison};
use std::time::Duration;

/// The line for values of type `T`.
pub struct Line<T> {
    state: Mutex<State<T>>,
    start: Instant,
    max_waiting: usize,
    min_idle: usize,
    openers: Openers,
    /// Is told when the order changes, and whether that is news, outside the lock.
    on_switch: OnSwitch,
}

/// How values are opened.
pub struct Openers {
    /// How many openers there may be at once.
    pub most: usize,
    /// Starts one, outside the lock. It opens a value, offers it, and calls
    /// [`opener_done`](Line::opener_done).
    pub start: Box<dyn Fn() + Send + Sync>,
}

pub type OnSwitch = Box<dyn Fn(Switch, bool) + Send + Sync>;

/// The name of a class; `None` is the class of all work without one.
type Class<'a> = Option<&'a std::sync::Arc<str>>;

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

/// The line's counts at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    pub max: usize,
    pub idle: usize,
    pub active: usize,
    pub waiting: usize,
    /// Number of openers at work.
    pub opening: usize,
    /// The newest waiters are served first.
    pub newest_first: bool,
    /// For how long, if the order has ever changed.
    pub order_for: Option<Duration>,
}

impl<T> Line<T> {
    /// Creates a line for at most `max` values and `max_waiting` waiters, which keeps `min_idle`
    /// values idle. There may be `beyond` more values, at most one, while a value is replaced.
    /// `on_switch` is told when the order changes; it must not use the line.
    pub fn new(
        max: usize,
        max_waiting: usize,
        min_idle: usize,
        beyond: usize,
        openers: Openers,
        rule: Rule,
        on_switch: OnSwitch,
    ) -> Line<T> {
        let state = State {
            idle: Vec::new(),
            waiters: ClassQueue::default(),
            rule,
            switch: None,
            active: 0,
            opening: 0,
            max,
            owed: false,
            renewal: Renewal::default(),
            beyond,
            closed: false,
        };
        Line {
            state: Mutex::new(state),
            start: Instant::now(),
            max_waiting,
            min_idle,
            openers,
            on_switch,
        }
    }

    fn now(&self) -> Duration {
        Instant::now().saturating_duration_since(self.start)
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        unpoison(self.state.lock())
    }

    /// Takes an idle value, or joins the line. `first` puts the thread at the head of the line: it
    /// is for a thread that was given a value which then turned out to be unusable.
    pub fn arrive(&self, share: &Share, first: bool) -> Arrival<T> {
        let mut state = self.lock();
        if state.closed {
            return Arrival::Closed;
        }
        // While threads wait that may be served there is no idle value. But a thread that comes
        // back with `first` may find a value that was returned in the meantime.
        if !state.idle.is_empty()
            && state.waiters.take(share)
            && let Some(value) = state.idle.pop()
        {
            state.active += 1;
            self.hire_openers(state);
            return Arrival::Ready(value);
        }
        // Waiters for which a value can be opened do not count against `max_waiting`: they do not
        // depend on a check-in.
        let room = state.max.saturating_sub(state.active);
        let mut displaced = None;
        if state.waiters.len() >= self.max_waiting.saturating_add(room) && !first {
            let newest_first = state.rule.is_newest_first();
            displaced = state.waiters.make_room(share, newest_first);
            // One leaves the line, or does not even enter it.
            let left = state.waiters.len();
            let switch = state.rule.refused(self.now(), 1, left);
            state.note(switch);
            if displaced.is_none() {
                self.unlock(state);
                return Arrival::Full;
            }
        }
        let place = Arc::new(Waiter::here());
        if first {
            state.waiters.push_returned(share, Arc::clone(&place));
        } else {
            state.waiters.push(share, Arc::clone(&place));
        }
        if let Some(waiter) = &displaced {
            waiter.tell(Outcome::Displaced);
        }
        // There may be some if classes are at their bounds, and this one's has just been raised.
        self.serve_idle(state);
        if let Some(waiter) = displaced {
            waiter.wake();
        }
        Arrival::Queued {
            place,
            room: room > 0,
        }
    }

    /// Tells of a change of the order, outside the lock.
    fn unlock(&self, mut state: MutexGuard<'_, State<T>>) {
        let switch = state.switch.take();
        drop(state);
        if let Some((switch, is_news)) = switch {
            (self.on_switch)(switch, is_news);
        }
    }

    /// Has connections opened if some are wanted. Called by a thread that has queued and found no
    /// connection elsewhere; and from time to time, since an opener may not have been to be had.
    pub fn call_openers(&self) {
        self.hire_openers(self.lock());
    }

    /// Asks for a connection to be opened in any case. Called by a thread that will not wait for
    /// it.
    pub fn owe_one(&self) {
        let mut state = self.lock();
        state.owed = true;
        self.hire_openers(state);
    }

    fn hire_openers(&self, mut state: MutexGuard<'_, State<T>>) {
        let hired = self.count_hired(&mut state);
        self.unlock(state);
        self.start_openers(hired);
    }

    fn start_openers(&self, count: usize) {
        (0..count).for_each(|_| (self.openers.start)());
    }

    /// Counts as many openers as are wanted, which the caller starts outside the lock.
    fn count_hired(&self, state: &mut State<T>) -> usize {
        let mut hired = 0;
        while !state.closed
            && state.opening < self.openers.most
            && state.wants_opener(self.min_idle)
        {
            state.opening += 1;
            hired += 1;
        }
        hired
    }

    /// Waits for a value. Only the thread that queued may call this, once. A thread that leaves the
    /// line within less than `least` says nothing about the line.
    pub fn wait(
        &self,
        waiter: &Arc<Waiter<T>>,
        deadline: &Deadline,
        least: Duration,
    ) -> Outcome<T> {
        let began = Instant::now();
        let mut has_waited = false;
        loop {
            if let Some(outcome) = waiter.take() {
                return outcome;
            }
            if deadline.passed() {
                let waited = Instant::now().saturating_duration_since(began);
                return self.leave(waiter, has_waited && waited >= least);
            }
            deadline.park();
            has_waited = true;
        }
    }

    /// Leaves the line, unless a value arrives at the same moment.
    fn leave(&self, waiter: &Arc<Waiter<T>>, counts: bool) -> Outcome<T> {
        let mut state = self.lock();
        let left = state.waiters.take_out(|w| Arc::ptr_eq(w, waiter));
        if !left.is_empty() {
            state.departed(self.now(), Departures::unserved(counts.into()));
            self.unlock(state);
            return Outcome::TimedOut;
        }
        drop(state);
        // Another thread has taken this waiter out of the line, and it filled the slot under the
        // same lock.
        waiter.take().unwrap_or(Outcome::TimedOut)
    }

    /// Returns a value that a class had checked out: it goes to a waiter or becomes idle. Hands the
    /// value back to the caller if the line is closed, or has more values than its maximum.
    #[must_use = "a value without a place must be closed by the caller"]
    pub fn give_back(&self, value: T, class: Class<'_>) -> Option<T> {
        let mut state = self.lock();
        state.active -= 1;
        state.waiters.release(class);
        self.hand_over(state, value)
    }

    /// Adds a value that was not checked out (a new one, a spare). Hands the value back to the
    /// caller if the line is closed, or has more values than its maximum.
    #[must_use = "a value without a place must be closed by the caller"]
    pub fn offer(&self, value: T) -> Option<T> {
        let mut state = self.lock();
        state.owed = false;
        state.renewal.opened();
        self.hand_over(state, value)
    }

    fn hand_over(&self, mut state: MutexGuard<'_, State<T>>, value: T) -> Option<T> {
        if state.closed || state.held() >= state.max + state.renewal.surplus() {
            self.serve_idle(state);
            return Some(value);
        }
        state.idle.push(value);
        self.serve_idle(state);
        None
    }

    /// Gives the idle values to waiters whose classes may hold one more. There is one such waiter
    /// at most, unless a class has been allowed more.
    fn serve_idle<'l>(&'l self, mut state: MutexGuard<'l, State<T>>) {
        while let Some(waiter) = state.serve_idle(|| self.now()) {
            let more = !state.idle.is_empty();
            self.unlock(state);
            // Unparked outside the lock, so that the woken thread does not block on it.
            waiter.wake();
            if !more {
                return;
            }
            state = self.lock();
        }
        self.unlock(state);
    }

    /// Notes that a value that a class had checked out was closed instead of being returned. Call
    /// this after the value is dropped, so that an opener finds room.
    pub fn discarded(&self, class: Class<'_>) {
        let mut state = self.lock();
        state.active -= 1;
        state.waiters.release(class);
        state.settle_replacement();
        let hired = self.count_hired(&mut state);
        self.serve_idle(state);
        self.start_openers(hired);
    }

    /// Notes that somebody who was given a value after a wait has had no use of it: the time was up
    /// before the work was done, or nobody needed it any more.
    pub fn served_too_late(&self) {
        let mut state = self.lock();
        if !state.waiters.is_empty() {
            state.departed(self.now(), Departures::unserved(1));
        }
        self.unlock(state);
    }

    /// How long the line takes at its present rate; `None` if nothing is known.
    pub fn clears_in(&self) -> Option<Duration> {
        let state = self.lock();
        let rate = state.rule.rate(self.now())?;
        Duration::try_from_secs_f64(state.waiters.len() as f64 / rate).ok()
    }

    /// Notes that an opener has finished, whether it got a value (which it has offered before) or
    /// not. Returns whether it is to open another.
    pub fn opener_done(&self) -> bool {
        let mut state = self.lock();
        state.opening -= 1;
        let more = self.count_hired(&mut state);
        self.unlock(state);
        self.start_openers(more.saturating_sub(1));
        more > 0
    }

    /// Returns whether the caller is to open a value, as an opener.
    pub fn begin_opening(&self) -> bool {
        let mut state = self.lock();
        let wanted = !state.closed && state.wants_opener(self.min_idle);
        state.opening += usize::from(wanted);
        wanted
    }

    /// Notes that an opener that was hired could not be started, or goes without opening.
    pub fn opener_missing(&self) {
        self.lock().opening -= 1;
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
        let mut state = self.lock();
        state.settle_replacement();
        self.hire_openers(state);
    }

    /// Whether a value whose time is over is to be closed now, since there is another in its place.
    /// If not, an opener is asked for one, and the value goes on serving until then.
    pub fn has_replacement(&self) -> bool {
        let mut state = self.lock();
        let there = state.has_replacement();
        self.hire_openers(state);
        there
    }

    /// The same for an idle value that `pick` selects, which is taken if it is to be closed. The
    /// caller closes it and calls [`closed_idle`](Line::closed_idle).
    pub fn take_replaced(&self, mut pick: impl FnMut(&T) -> bool) -> Option<T> {
        let mut state = self.lock();
        let place = state.idle.iter().position(&mut pick)?;
        let taken = state.has_replacement().then(|| state.idle.remove(place));
        self.hire_openers(state);
        taken
    }

    /// Notes that a value whose time is over is closed for another reason.
    pub fn forget_replacement(&self) {
        let mut state = self.lock();
        state.renewal.forget();
        state.settle_replacement();
    }

    /// Notes that no other value could be opened. If it was for one beyond the maximum, from now on
    /// one whose time is over is closed before another is opened.
    pub fn has_no_room(&self) {
        let mut state = self.lock();
        if state.renewal.is_wanted() && state.held() >= state.max {
            state.beyond = 0;
        }
    }

    /// Turns all waiters away if no value can come to them: none can be opened (which the caller
    /// knows), and none is checked out that could be returned.
    pub fn turn_away(&self) {
        let mut state = self.lock();
        if state.active > 0 || state.closed {
            return;
        }
        let waiters = state.dismiss(|| Outcome::TurnedAway);
        drop(state);
        waiters.iter().for_each(|waiter| waiter.wake());
    }

    /// Checks out one idle value that `pick` selects, for housekeeping, which has no class.
    pub fn check_out_idle(&self, mut pick: impl FnMut(&T) -> bool) -> Option<T> {
        let mut state = self.lock();
        let place = state.idle.iter().position(&mut pick)?;
        state.active += 1;
        state.waiters.take(&Share::default());
        Some(state.idle.remove(place))
    }

    /// Closes the line: all waiters are turned away. Returns the idle values, which the caller
    /// closes.
    pub fn close(&self) -> Vec<T> {
        let mut state = self.lock();
        state.closed = true;
        let waiters = state.dismiss(|| Outcome::Closed);
        let idle = std::mem::take(&mut state.idle);
        drop(state);
        waiters.iter().for_each(|waiter| waiter.wake());
        idle
    }

    /// From now on there may be `max` values. Returns the idle ones beyond that, those idle longest
    /// first; checked-out ones find no place when they come back.
    #[must_use = "values without a place must be closed by the caller"]
    pub fn resize(&self, max: usize) -> Vec<T> {
        let mut state = self.lock();
        state.max = max;
        state.renewal.settled();
        let kept = max.saturating_sub(state.active);
        let surplus = state.idle.len().saturating_sub(kept);
        let taken = state.idle.drain(..surplus).collect();
        self.hire_openers(state);
        taken
    }

    /// Whether there are as many values as there may be.
    pub fn is_full(&self) -> bool {
        let state = self.lock();
        state.held() >= state.max
    }

    pub fn figures(&self) -> Figures {
        let state = self.lock();
        Figures {
            max: state.max,
            idle: state.idle.len(),
            active: state.active,
            waiting: state.waiters.len(),
            opening: state.opening,
            newest_first: state.rule.is_newest_first(),
            order_for: state.rule.changed().map(|at| self.now().saturating_sub(at)),
        }
    }
}
