//! What the line holds under its lock.

use super::renewal::Renewal;
use super::waiter::{Outcome, Waiter};
use crate::class_queue::ClassQueue;
use crate::line_rule::{Departures, Rule, Switch};
use crate::sync::Arc;
use std::time::Duration;

pub(super) struct State<T> {
    /// Idle values; the most recently returned one is last.
    pub idle: Vec<T>,
    pub waiters: ClassQueue<Arc<Waiter<T>>>,
    pub rule: Rule,
    /// A change of the order that `on_switch` was not told of, and whether it is news.
    pub switch: Option<(Switch, bool)>,
    /// Number of values that are checked out.
    pub active: usize,
    /// Number of openers at work.
    pub opening: usize,
    /// The most values there may be.
    pub max: usize,
    /// One value is to be opened even if no thread waits for it.
    pub owed: bool,
    pub renewal: Renewal,
    /// How many values there may be beyond `max` while one of them is replaced.
    pub beyond: usize,
    pub closed: bool,
}

impl<T> State<T> {
    /// How many values there are.
    pub fn held(&self) -> usize {
        self.active + self.idle.len()
    }

    /// Whether a value that is due is to be closed now. If not, another is wanted in its place.
    pub fn has_replacement(&mut self) -> bool {
        // Where one more is allowed it is waited for, even while there is one in excess.
        let has_room = self.beyond > 0 || self.held() < self.max;
        self.renewal.is_due(has_room)
    }

    /// A value was closed: if there are no more than there may be, the replacement of one is over.
    pub fn settle_replacement(&mut self) {
        if self.held() <= self.max {
            self.renewal.settled();
        }
    }

    /// Whether an opener is to open one more.
    pub fn wants_opener(&self, min_idle: usize) -> bool {
        let coming = self.idle.len() + self.opening;
        let wanted = self.waiters.servable().max(usize::from(self.owed)) + min_idle;
        let all = self.active + coming;
        (coming < wanted && all < self.max)
            || (self.opening == 0 && all < self.max + self.beyond && self.renewal.is_wanted())
    }

    /// The caller wakes the thread outside the lock.
    pub fn serve_idle(&mut self, now: impl Fn() -> Duration) -> Option<Arc<Waiter<T>>> {
        if self.waiters.is_empty() {
            self.drained(now);
            return None;
        }
        if self.idle.is_empty() {
            return None;
        }
        let waiter = self.waiters.next(self.rule.is_newest_first())?;
        let value = self.idle.pop()?;
        self.active += 1;
        waiter.tell(Outcome::Given(value));
        match self.waiters.is_empty() {
            true => self.drained(now),
            false => self.departed(now(), Departures::served(1)),
        }
        Some(waiter)
    }

    pub fn departed(&mut self, now: Duration, departures: Departures) {
        let switch = self.rule.departed(now, departures, self.waiters.len());
        self.note(switch);
    }

    fn drained(&mut self, now: impl Fn() -> Duration) {
        let switch = self.rule.drained(now);
        self.note(switch);
    }

    pub fn note(&mut self, switch: Option<Switch>) {
        if let Some(switch) = switch {
            self.switch = Some((switch, self.rule.is_news()));
        }
    }

    /// Empties the line with this answer. The caller wakes the threads outside the lock.
    pub fn dismiss(&mut self, answer: impl Fn() -> Outcome<T>) -> Vec<Arc<Waiter<T>>> {
        let waiters = self.waiters.take_out(|_| true);
        for waiter in &waiters {
            waiter.tell(answer());
        }
        waiters
    }
}
