//! How long which statements take, by their text, over the last minutes. Pure but for its lock.

use crate::retry::without_values;
use crate::server::format::as_ms;
use crate::sync::unpoison;
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Over this time.
pub(crate) const MINUTES: usize = 5;
/// Texts that are kept. Those that took the least time give way to new ones.
const MOST_TEXTS: usize = 250;
/// Of a text, this many bytes are shown.
const LONGEST: usize = 400;
/// Texts as they were sent, whose shown text is known.
const MOST_SENT: usize = 2000;
/// So many are shown.
const SHOWN: usize = 20;
/// Two for each doubling of the time, from 1 µs to 67 s.
const BUCKETS: usize = 52;

pub(super) struct Statements {
    start: Instant,
    hashing: RandomState,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// By a hash of the text as it was sent.
    sent: HashMap<u64, Box<str>>,
    texts: HashMap<Box<str>, Kept>,
    /// So many texts were sent that they were forgotten, in this minute.
    overflowed: Option<u64>,
}

#[derive(Default)]
struct Kept([Minute; MINUTES + 1]);

/// The statements of one minute.
#[derive(Clone)]
struct Minute {
    /// Its number since the start.
    nth: u64,
    count: u32,
    failures: u32,
    total: Duration,
    longest: Duration,
    buckets: [u32; BUCKETS],
}

impl Default for Minute {
    fn default() -> Minute {
        Minute {
            nth: 0,
            count: 0,
            failures: 0,
            total: Duration::ZERO,
            longest: Duration::ZERO,
            buckets: [0; BUCKETS],
        }
    }
}

/// One text.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Shown {
    pub sql: String,
    pub count: u64,
    pub failures: u64,
    pub mean_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    pub share_percent: f64,
}

impl Statements {
    pub fn new(start: Instant) -> Statements {
        Statements {
            start,
            hashing: RandomState::new(),
            inner: Mutex::default(),
        }
    }

    fn minute(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start).as_secs() / 60
    }

    pub fn note(&self, sql: &str, took: Duration, failed: bool, now: Instant) {
        let (hash, minute) = (self.hashing.hash_one(sql), self.minute(now));
        let mut inner = unpoison(self.inner.lock());
        let inner = &mut *inner;
        if inner.sent.len() >= MOST_SENT && !inner.sent.contains_key(&hash) {
            inner.sent.clear();
            inner.overflowed = Some(minute);
        }
        let text = inner
            .sent
            .entry(hash)
            .or_insert_with(|| without_values(sql, LONGEST).into());
        if let Some(kept) = inner.texts.get_mut(text) {
            return kept.note(minute, took, failed);
        }
        let text = text.clone();
        if inner.texts.len() >= MOST_TEXTS {
            inner.make_room(minute);
        }
        let kept = inner.texts.entry(text).or_default();
        kept.note(minute, took, failed);
    }

    /// Those with the largest share of the time of all, the largest first.
    pub fn slowest(&self, now: Instant) -> Vec<Shown> {
        let minute = self.minute(now);
        let inner = unpoison(self.inner.lock());
        let texts = inner.texts.iter();
        let mut all: Vec<_> = texts
            .map(|(text, kept)| (text.clone(), kept.over(minute)))
            .filter(|(_, over)| over.count > 0)
            .collect();
        drop(inner);
        let whole: Duration = all.iter().map(|(_, over)| over.total).sum();
        all.sort_by_key(|(_, over)| Reverse(over.total));
        all.truncate(SHOWN);
        let shown = |(text, over): (Box<str>, Minute)| Shown {
            sql: text.into(),
            count: over.count.into(),
            failures: over.failures.into(),
            mean_ms: as_ms(over.total / over.count),
            p99_ms: as_ms(over.p99()),
            max_ms: as_ms(over.longest),
            share_percent: (over.total.as_secs_f64() / whole.as_secs_f64().max(1e-9) * 1000.0)
                .round()
                / 10.0,
        };
        all.into_iter().map(shown).collect()
    }

    /// How many texts there are, without the values in them.
    pub fn texts(&self) -> usize {
        unpoison(self.inner.lock()).texts.len()
    }

    /// How many texts were sent, as they were sent; `None` if so many that they were not counted.
    pub fn sent(&self, now: Instant) -> Option<usize> {
        let minute = self.minute(now);
        let inner = unpoison(self.inner.lock());
        let recently = |at: u64| at + MINUTES as u64 >= minute;
        match inner.overflowed {
            Some(at) if recently(at) => None,
            _ => Some(inner.sent.len()),
        }
    }
}

impl Inner {
    /// Forgets the quarter of the texts that took the least time: one at a time would cost a look at
    /// all of them for each new text.
    fn make_room(&mut self, minute: u64) {
        let totals = self.texts.values().map(|kept| kept.over(minute).total);
        let mut totals: Vec<_> = totals.collect();
        totals.sort_unstable();
        let limit = totals[MOST_TEXTS / 4];
        let mut gone = 0;
        self.texts.retain(|_, kept| {
            let goes = gone < MOST_TEXTS / 4 && kept.over(minute).total <= limit;
            gone += usize::from(goes);
            !goes
        });
    }
}

impl Kept {
    fn note(&mut self, minute: u64, took: Duration, failed: bool) {
        let slot = &mut self.0[minute as usize % (MINUTES + 1)];
        if slot.nth != minute {
            *slot = Minute {
                nth: minute,
                ..Minute::default()
            };
        }
        slot.count = slot.count.saturating_add(1);
        slot.failures = slot.failures.saturating_add(failed.into());
        slot.total += took;
        slot.longest = slot.longest.max(took);
        let bucket = &mut slot.buckets[bucket_of(took)];
        *bucket = bucket.saturating_add(1);
    }

    /// The sum of the last minutes.
    fn over(&self, minute: u64) -> Minute {
        let recent = |slot: &&Minute| slot.nth <= minute && slot.nth + MINUTES as u64 >= minute;
        let mut sum = Minute::default();
        for slot in self.0.iter().filter(recent) {
            sum.count = sum.count.saturating_add(slot.count);
            sum.failures = sum.failures.saturating_add(slot.failures);
            sum.total += slot.total;
            sum.longest = sum.longest.max(slot.longest);
            for (all, one) in sum.buckets.iter_mut().zip(slot.buckets) {
                *all = all.saturating_add(one);
            }
        }
        sum
    }
}

impl Minute {
    /// The upper end of the bucket, or the longest time if that is shorter.
    fn p99(&self) -> Duration {
        let rank = (f64::from(self.count) * 0.99).ceil() as u32;
        let mut seen = 0_u32;
        for (nth, count) in self.buckets.iter().enumerate() {
            seen = seen.saturating_add(*count);
            if seen >= rank.max(1) {
                let end = 2_f64.powf((nth + 1) as f64 / 2.0);
                return Duration::from_secs_f64(end / 1e6).min(self.longest);
            }
        }
        self.longest
    }
}

fn bucket_of(took: Duration) -> usize {
    let us = took.as_secs_f64() * 1e6;
    let nth = if us <= 1.0 { 0.0 } else { us.log2() * 2.0 };
    (nth as usize).min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn statements_are_told_apart_by_their_text_without_values() {
        let now = Instant::now();
        let statements = Statements::new(now);
        for n in 0..100 {
            statements.note(&format!("SELECT {n}"), MS, n == 0, now);
        }
        statements.note("SELECT a FROM t", 300 * MS, false, now);
        let slowest = statements.slowest(now);
        assert_eq!(slowest.len(), 2);
        let [slow, quick] = [&slowest[0], &slowest[1]];
        assert_eq!((&*slow.sql, slow.share_percent), ("SELECT a FROM t", 75.0));
        assert_eq!(
            (&*quick.sql, quick.count, quick.failures),
            ("SELECT ?", 100, 1)
        );
        assert_eq!((quick.mean_ms, quick.max_ms), (1.0, 1.0));
        assert_eq!(statements.sent(now), Some(101));
    }

    #[test]
    fn p99_is_within_a_half_of_the_truth() {
        let now = Instant::now();
        let statements = Statements::new(now);
        for n in 1..=1000_u32 {
            statements.note("SELECT 1", n * MS / 10, false, now);
        }
        let p99 = statements.slowest(now)[0].p99_ms;
        assert!((99.0..=100.0).contains(&p99), "{p99}");
        statements.note("SELECT 1", 60_000 * MS, false, now);
        let p99 = statements.slowest(now)[0].p99_ms;
        assert!((99.0..=142.0).contains(&p99), "{p99}");
    }

    #[test]
    fn what_is_older_is_forgotten() {
        let now = Instant::now();
        let statements = Statements::new(now);
        statements.note("SELECT 1", MS, false, now);
        assert_eq!(statements.slowest(now + 5 * MINUTE).len(), 1);
        assert!(statements.slowest(now + 6 * MINUTE).is_empty());
        // The same slot, six minutes later.
        statements.note("SELECT 1", MS, false, now + 6 * MINUTE);
        assert_eq!(statements.slowest(now + 6 * MINUTE)[0].count, 1);
    }

    #[test]
    fn texts_are_bounded_and_the_slow_ones_stay() {
        let now = Instant::now();
        let statements = Statements::new(now);
        statements.note("SELECT slow", 1000 * MS, false, now);
        for n in 0..5000 {
            statements.note(&format!("SELECT column_{n}"), MS, false, now);
        }
        assert!(unpoison(statements.inner.lock()).texts.len() <= MOST_TEXTS);
        assert_eq!(statements.slowest(now)[0].sql, "SELECT slow");
        assert_eq!(statements.sent(now), None, "too many to be counted");
    }
}
