//! What happened lately: connections opened and closed, attempts repeated, changes of the state.
//! Events of one kind within one second are shown as one.

use super::statements::Statements;
use crate::error::{Error, HeldBy, OpenError};
use crate::metrics::CloseReason;
use crate::pool::{Observer, StatementEvent};
use crate::server::format::text;
use crate::sync::unpoison;
use jiff::Timestamp;
use serde::Serialize;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const KEPT: usize = 300;

/// Ordered by how much they matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    Info,
    Warning,
    Error,
}

#[derive(Clone, Serialize)]
pub(crate) struct Event {
    /// The second since the start in which it happened, plus one: that of the first sample that can
    /// show it.
    sequence: u64,
    #[serde(serialize_with = "as_text")]
    at: Timestamp,
    kind: &'static str,
    level: Level,
    text: String,
    #[serde(skip)]
    what: String,
    #[serde(skip)]
    count: u32,
}

fn as_text<S: serde::Serializer>(at: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&text(*at))
}

/// The list, which is filled by the pool's threads and by the sampler.
pub(super) struct Events {
    /// The number of the newest sample.
    pub now: AtomicU64,
    list: Mutex<VecDeque<Event>>,
    going_on: Mutex<HashMap<String, GoingOn>>,
}

/// What happens again and again.
struct GoingOn {
    count: u64,
    /// In seconds since the start.
    first: u64,
    last: u64,
}

/// What does not happen for so many seconds is over.
const OVER: u64 = 30;

impl Events {
    pub fn new() -> Events {
        Events {
            now: AtomicU64::new(0),
            list: Mutex::default(),
            going_on: Mutex::default(),
        }
    }

    /// Adds an event. `what` tells it from others of its kind; if there is one like it in the same
    /// second, that one is counted on.
    pub fn add(&self, kind: &'static str, level: Level, what: &str, text: String) {
        let sequence = self.now.load(Ordering::Relaxed) + 1;
        let mut list = unpoison(self.list.lock());
        let mut recent = list.iter_mut().rev();
        let alike = recent
            .by_ref()
            .take_while(|event| event.sequence == sequence)
            .find(|event| event.kind == kind && event.what == what);
        if let Some(event) = alike {
            event.count += 1;
            event.text = format!("{} times within a second: {what}", event.count);
            return;
        }
        if list.len() == KEPT {
            list.pop_front();
        }
        list.push_back(Event {
            sequence,
            at: Timestamp::now(),
            kind,
            level,
            text,
            what: what.into(),
            count: 1,
        });
    }

    /// Adds an event that may happen again and again, for as long as something is wrong: in the first
    /// second each time, later when its number is a power of ten.
    pub fn add_seldom(&self, kind: &'static str, level: Level, what: &str) {
        let now = self.now.load(Ordering::Relaxed);
        let mut all = unpoison(self.going_on.lock());
        all.retain(|_, one| one.last + OVER >= now);
        let new = GoingOn {
            count: 0,
            first: now,
            last: now,
        };
        let one = all.entry(what.to_owned()).or_insert(new);
        one.count += 1;
        one.last = now;
        let (count, is_first) = (one.count, one.first == now);
        drop(all);
        if is_first {
            self.add(kind, level, what, what.to_owned());
        } else if count >= 100 && 10_u64.pow(count.ilog10()) == count {
            let text = format!("{count} times by now: {what}");
            self.add(kind, level, &text, text.clone());
        }
    }

    /// The events after this sample, the oldest first.
    pub fn after(&self, known: u64) -> Vec<Event> {
        let now = self.now.load(Ordering::Relaxed);
        let list = unpoison(self.list.lock());
        let is_wanted = |event: &&Event| known > now || event.sequence > known;
        list.iter().filter(is_wanted).cloned().collect()
    }
}

/// Hears of the pool's events.
pub(super) struct Reporter {
    pub events: Arc<Events>,
    pub statements: Arc<Statements>,
}

impl Observer for Reporter {
    fn opened(&self, connection: u64, took: Duration) {
        let text = format!("connection {connection} opened in {took:.1?}");
        self.events
            .add("opened", Level::Info, "connection opened", text);
    }

    fn closed(&self, connection: u64, reason: CloseReason, age: Duration, uses: u64) {
        let (kind, level) = match reason {
            CloseReason::FailedOver => ("failed-over", Level::Warning),
            CloseReason::Broken => ("closed", Level::Warning),
            _ => ("closed", Level::Info),
        };
        let reason = reason.as_str();
        let text = format!(
            "connection {connection} closed: {reason}, after {} s and {uses} uses",
            age.as_secs()
        );
        let what = format!("connection closed: {reason}");
        self.events.add(kind, level, &what, text);
    }

    fn open_failed(&self, error: &OpenError) {
        let what = match error.sqlstate() {
            Some(state) => format!("no connection could be opened ({})", state.code()),
            None => "no connection could be opened".to_owned(),
        };
        self.events.add_seldom("open-failed", Level::Warning, &what);
    }

    fn statement(&self, event: &StatementEvent<'_>) {
        let failed = event.error.is_some();
        self.statements
            .note(event.sql, event.took, failed, Instant::now());
    }

    fn retried(&self, attempt: u32, error: &Error, pause: Duration) {
        let state = error.sqlstate().map_or("no SQLSTATE", |state| state.code());
        let what = format!("an attempt was repeated ({state})");
        let text = format!("attempt {attempt} failed ({state}) and is repeated after {pause:.0?}");
        self.events.add("retried", Level::Warning, &what, text);
    }

    fn leaked(&self, holder: &HeldBy) {
        let HeldBy {
            connection,
            place,
            held,
            ..
        } = holder;
        let text =
            format!("connection {connection} may have leaked: held for {held:.1?}, since {place}");
        self.events.add("leak", Level::Warning, &text, text.clone());
    }

    fn leak_ended(&self, connection: u64, used: Duration) {
        let text =
            format!("connection {connection}, which may have leaked, is back after {used:.1?}");
        self.events
            .add("returned", Level::Info, &text, text.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(events: &Events, after: u64) -> Vec<String> {
        let shown = events.after(after).into_iter();
        shown.map(|event| event.text).collect()
    }

    #[test]
    fn those_alike_within_a_second_are_one() {
        let events = Events::new();
        for n in 0..3 {
            events.add("opened", Level::Info, "connection opened", format!("{n}"));
            events.add("closed", Level::Info, "connection closed", format!("c{n}"));
        }
        let both = [
            "3 times within a second: connection opened",
            "3 times within a second: connection closed",
        ];
        assert_eq!(texts(&events, 0), both);
        events.now.store(1, Ordering::Relaxed);
        events.add("opened", Level::Info, "connection opened", "next".into());
        assert_eq!(texts(&events, 1), ["next"]);
        assert_eq!(texts(&events, 0).len(), 3);
        assert_eq!(texts(&events, 9).len(), 3, "of another run of the program");
    }

    #[test]
    fn what_goes_on_for_long_is_told_seldom() {
        let events = Events::new();
        for second in 0..600 {
            events.now.store(second, Ordering::Relaxed);
            for _ in 0..2 {
                events.add_seldom("open-failed", Level::Warning, "it failed");
            }
        }
        let told = [
            "2 times within a second: it failed",
            "100 times by now: it failed",
            "1000 times by now: it failed",
        ];
        assert_eq!(texts(&events, 0), told);
        events.now.store(600 + OVER, Ordering::Relaxed);
        events.add_seldom("open-failed", Level::Warning, "it failed");
        assert_eq!(texts(&events, 0)[3..], ["it failed"], "of another outage");
    }

    #[test]
    fn the_list_is_bounded() {
        let events = Events::new();
        for n in 0..1000 {
            events.add("opened", Level::Info, &n.to_string(), n.to_string());
        }
        assert_eq!(
            (texts(&events, 0).len(), &*texts(&events, 0)[299]),
            (KEPT, "999")
        );
    }
}
