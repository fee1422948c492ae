//! Which end of a line is served next. Pure: departures in, order out. Moments are the time since
//! any fixed one.
//!
//! The order is first come, first served, as long as that serves anybody. If more comes than can be
//! served, a line only grows, until those at its head have waited for so long that they give up, or
//! have given up already: then everybody is served too late. The newest, however, can still be
//! served in time. So while at least 5 % of those who leave the line leave it unserved, the newest
//! are served first, and those who have waited for longest are the ones who go without.
//!
//! This needs no setting, since how long people wait is not guessed: it is seen. Where nobody gives
//! up, nothing changes. Simulated with 5 servers, 20 ms of work each, and clients who give up after
//! 500 ms (the tests repeat it), the share of the possible answers that came in time:
//!
//! | offered, of what is possible | 0.8 | 1.05 | 1.2 | 2 | 4 | 10 |
//! |---|---|---|---|---|---|---|
//! | first come, and who gives up stays in line | 1.00 | 0.41 | 0.10 | 0.03 | 0.02 | 0.02 |
//! | first come, and who gives up leaves | 1.00 | 0.86 | 0.35 | 0.04 | 0.02 | 0.02 |
//! | this rule | 1.00 | 0.99 | 0.99 | 0.99 | 0.99 | 1.00 |
//!
//! Tried, and worse: newest first whenever there is a line (among 100 patient clients one was
//! served once, another 969 times); a bound on the wait, also one that adapts as CoDel's does (it
//! refuses most of a burst that could be served, and is wrong for another patience).

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

/// The departures of this time count.
const WINDOW: Duration = Duration::from_secs(1);
/// Departures are counted together for this long.
const GRAIN: Duration = Duration::from_millis(50);
/// At least so many departures count, however long ago they were.
const LEAST: u32 = 20;
/// So many are enough to begin with newest first.
const LEAST_TO_BEGIN: u32 = 10;
/// Newest first begins at this share of departures unserved, in percent, and ends below the other.
const BEGIN_PERCENT: u32 = 5;
const END_PERCENT: u32 = 1;

/// Decides on the order of one line.
pub struct Rule {
    /// Whether the order may change.
    adapts: bool,
    newest_first: bool,
    /// The oldest first.
    grains: VecDeque<Grain>,
    /// The sums of the grains.
    recent: Departures,
    /// When the order changed last, and who has left since.
    changed: Option<Duration>,
    since: Departures,
}

/// How many have left a line, and how many of them unserved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Departures {
    pub all: u32,
    pub unserved: u32,
}

struct Grain {
    began: Duration,
    departures: Departures,
}

/// A change of the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// To newest first, because of these departures of the last second.
    NewestFirst(Departures),
    /// Back to first come, after this time, in which these left.
    FirstCome(Duration, Departures),
}

impl fmt::Display for Departures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Departures { all, unserved } = self;
        write!(f, "{unserved} of {all}")
    }
}

impl fmt::Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Switch::NewestFirst(recent) => write!(
                f,
                "newest first from now on, since {recent} that left it in the last second were not served"
            ),
            Switch::FirstCome(lasted, since) => write!(
                f,
                "first come, first served again after {lasted:.1?}, in which {since} were not served"
            ),
        }
    }
}

impl Departures {
    fn add(&mut self, other: Departures) {
        self.all += other.all;
        self.unserved += other.unserved;
    }

    fn subtract(&mut self, other: Departures) {
        self.all -= other.all;
        self.unserved -= other.unserved;
    }

    /// Whether the share of the unserved is at least this.
    fn reach(self, percent: u32) -> bool {
        u64::from(self.unserved) * 100 >= u64::from(self.all) * u64::from(percent)
    }
}

impl Rule {
    /// The rule of a new line. If it does not adapt, the order is first come for good.
    pub fn new(adapts: bool) -> Rule {
        Rule {
            adapts,
            newest_first: false,
            grains: VecDeque::new(),
            recent: Departures::default(),
            changed: None,
            since: Departures::default(),
        }
    }

    pub fn is_newest_first(&self) -> bool {
        self.newest_first
    }

    /// When the order changed last; `None` if it never did.
    pub fn changed(&self) -> Option<Duration> {
        self.changed
    }

    /// Notes that `all` have left the line, so many of them unserved: their time was up, their
    /// client has gone, or there was no room for them. Returns the change that follows, if any.
    #[must_use]
    pub fn departed(&mut self, now: Duration, departures: Departures) -> Option<Switch> {
        if departures.all == 0 {
            return None;
        }
        self.count(now, departures);
        let recent = self.recent;
        if self.newest_first {
            self.since.add(departures);
            let end = recent.all >= LEAST && !recent.reach(END_PERCENT);
            return if end { self.end(now) } else { None };
        }
        let begin = recent.all >= LEAST_TO_BEGIN && recent.reach(BEGIN_PERCENT);
        if !(self.adapts && begin) {
            return None;
        }
        self.newest_first = true;
        self.since = Departures::default();
        self.changed = Some(now);
        Some(Switch::NewestFirst(recent))
    }

    /// Notes that nobody is in line any more: whatever was, is over. Returns the change that
    /// follows, if any.
    #[must_use]
    pub fn drained(&mut self, now: impl FnOnce() -> Duration) -> Option<Switch> {
        if self.recent.all > 0 {
            self.grains.clear();
            self.recent = Departures::default();
        }
        match self.newest_first {
            true => self.end(now()),
            false => None,
        }
    }

    /// How many are served a second, by the departures that count; `None` if nobody was.
    pub fn rate(&self, now: Duration) -> Option<f64> {
        let first = self.grains.front()?;
        let served = self.recent.all - self.recent.unserved;
        let time = now.saturating_sub(first.began).max(GRAIN);
        (served > 0).then(|| f64::from(served) / time.as_secs_f64())
    }

    fn end(&mut self, now: Duration) -> Option<Switch> {
        self.newest_first = false;
        let began = self.changed.replace(now)?;
        let lasted = now.saturating_sub(began);
        Some(Switch::FirstCome(lasted, self.since))
    }

    fn count(&mut self, now: Duration, departures: Departures) {
        let age = |grain: &Grain| now.saturating_sub(grain.began);
        match self.grains.back_mut() {
            Some(last) if age(last) < GRAIN => last.departures.add(departures),
            _ => self.grains.push_back(Grain {
                began: now,
                departures,
            }),
        }
        self.recent.add(departures);
        while let Some(first) = self.grains.front()
            && age(first) > WINDOW
            && self.recent.all - first.departures.all >= LEAST
        {
            self.recent.subtract(first.departures);
            self.grains.pop_front();
        }
    }
}

impl Departures {
    pub fn served(count: usize) -> Departures {
        Departures {
            all: count as u32,
            unserved: 0,
        }
    }

    pub fn unserved(count: usize) -> Departures {
        Departures {
            all: count as u32,
            unserved: count as u32,
        }
    }
}
