//! Which end of a line is served next. Pure: departures in, order out. Moments are durations since
//! any fixed moment.
//!
//! The order is first come, first served, as long as that works. If more arrive than can be served,
//! the line grows until those at its head have waited so long that they give up; from then on, all
//! are served too late. The newest, however, can still be served in time. So while at least 5 % of
//! those who leave the line leave it unserved, the newest are served first, and those who have
//! waited longest go unserved.
//!
//! There is no setting: how long clients wait is not guessed but seen. Where nobody gives up,
//! nothing changes. In a simulation with 5 servers, 20 ms of work each, and clients that give up
//! after 500 ms (the tests repeat it), this share of the possible answers came in time:
//!
//! | offered, relative to the maximum | 0.8 | 1.05 | 1.2 | 2 | 4 | 10 |
//! |---|---|---|---|---|---|---|
//! | first come; those who give up stay in line | 1.00 | 0.3 | 0.10 | 0.03 | 0.02 | 0.02 |
//! | first come; those who give up leave | 1.00 | 0.8 | 0.36 | 0.04 | 0.02 | 0.02 |
//! | this rule | 1.00 | 0.99 | 0.99 | 1.00 | 1.00 | 1.00 |
//!
//! Newest first itself makes those at the other end give up, even if first come could serve all of
//! them again. So first come is tried again after a second, and after each failed trial twice as
//! late. A trial ends as soon as the line grows.
//!
//! Those who give up sooner than their work takes cannot be served in any order. They are not
//! counted ([`LeastTime`]): otherwise a single impatient client would turn the order, be served
//! first, and be in vain each time.
//!
//! Tried, and worse: newest first whenever there is a line (of 100 patient clients one was served
//! once, another 969 times); a limit on the wait, also an adaptive one like CoDel's (it refuses
//! most of a burst that could be served, and is wrong for another patience).

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The departures of this time count.
const WINDOW: Duration = Duration::from_secs(1);
/// Departures are counted together for this long.
const GRAIN: Duration = Duration::from_millis(50);
/// At least this many departures count, however long ago they were.
const LEAST: u32 = 20;
/// Newest first begins only after this many departures.
const LEAST_TO_BEGIN: u32 = 10;
/// Newest first begins only if at least this many left unserved: one or two mean nothing.
const LEAST_UNSERVED: u32 = 3;
/// Newest first begins at this share of departures unserved, in percent, and ends below the other.
/// The two are close to each other: a few impatient callers may always be there, and newest first
/// must end in spite of them if it began in an outage.
const BEGIN_PERCENT: u32 = 5;
const END_PERCENT: u32 = 4;
/// How long newest first lasts before first come is tried again; this doubles after each failed
/// trial.
const FIRST_TRIAL: Duration = Duration::from_secs(1);
const LAST_TRIAL: Duration = Duration::from_secs(64);
/// Departures in this time do not count against a trial: those who leave then have waited in vain
/// under the other order.
const QUIET: Duration = Duration::from_millis(300);
/// A change of the order is not told again within this time.
const QUIET_LOG: Duration = Duration::from_secs(10);
/// How long a trial lasts. It fails if the line grows meanwhile.
const TRIAL: Duration = Duration::from_secs(5);

/// Decides on the order of one line.
pub struct Rule {
    /// Whether the order may change.
    adapts: bool,
    newest_first: bool,
    /// The oldest first.
    grains: VecDeque<Grain>,
    /// The sums of the grains.
    recent: Departures,
    /// When the order changed last, and the departures since then.
    changed: Option<Duration>,
    since: Departures,
    /// First come is being tried.
    trial: Option<Trial>,
    /// How long newest first lasts before the next trial.
    until_trial: Duration,
    /// When the line was last full.
    refused: Option<Duration>,
    /// When the log was last told that newest first begins.
    told: Option<Duration>,
    is_news: bool,
}

/// How many have left a line, and how many of them unserved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Departures {
    pub all: u32,
    pub unserved: u32,
}

struct Trial {
    began: Duration,
    /// It fails if more are in line.
    longest: usize,
}

struct Grain {
    began: Duration,
    departures: Departures,
}

/// A change of the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// To newest first, because of these departures of the last second; and how many wait.
    NewestFirst(Departures, usize),
    /// Back to first come, after this time, in which these left.
    FirstCome(Duration, Departures),
}

/// About the least time that a piece of work has taken of late. A client that gives up sooner could
/// not have been served in any order, so its departure says nothing about the line.
#[derive(Debug, Default)]
pub struct LeastTime(
    /// Nanoseconds; 0 if nothing is known.
    AtomicU64,
);

impl LeastTime {
    /// A shorter time counts at once, longer ones count little by little.
    pub fn observe(&self, took: Duration) {
        let took = took.as_nanos().min(u128::from(u64::MAX)) as u64;
        let least = self.0.load(Ordering::Relaxed);
        let now = match least {
            0 => took,
            _ if took <= least => took,
            _ => least + (took - least) / 64,
        };
        self.0.store(now.max(1), Ordering::Relaxed);
    }

    /// Longer than any wait if nothing is known.
    pub fn get(&self) -> Duration {
        match self.0.load(Ordering::Relaxed) {
            0 => Duration::MAX,
            least => Duration::from_nanos(least),
        }
    }
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
            Switch::NewestFirst(recent, left) => write!(
                f,
                "newest first from now on: {recent} that left it in the last second were not served, and {left} wait"
            ),
            Switch::FirstCome(lasted, since) => write!(
                f,
                "first come, first served again after {lasted:.1?}, in which {since} were not served"
            ),
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

    fn add(&mut self, other: Departures) {
        self.all = self.all.saturating_add(other.all);
        self.unserved = self.unserved.saturating_add(other.unserved);
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
            trial: None,
            until_trial: FIRST_TRIAL,
            refused: None,
            told: None,
            is_news: false,
        }
    }

    /// Whether the last change of the order belongs in the log. If the order changes back and
    /// forth, as the line fills and empties, only the first change does, and its end.
    pub fn is_news(&self) -> bool {
        self.is_news
    }

    pub fn is_newest_first(&self) -> bool {
        self.newest_first
    }

    /// When the order changed last; `None` if it never did.
    pub fn changed(&self) -> Option<Duration> {
        self.changed
    }

    /// Notes departures from the line, in which `left` remain. Those left unserved whose time was
    /// up, whose client has gone, or for whom there was no room. Returns the resulting change of
    /// the order, if any.
    #[must_use]
    pub fn departed(
        &mut self,
        now: Duration,
        departures: Departures,
        left: usize,
    ) -> Option<Switch> {
        if departures.all == 0 {
            return None;
        }
        if let Some(trial) = &self.trial {
            let lasts = now.saturating_sub(trial.began);
            match () {
                () if lasts > TRIAL => {
                    self.trial = None;
                    self.until_trial = FIRST_TRIAL;
                }
                () if left > trial.longest => {
                    self.count(now, departures);
                    return Some(self.begin(now, left));
                }
                () if lasts < QUIET => {
                    let served = departures.all - departures.unserved;
                    self.count(now, Departures::served(served as usize));
                    return None;
                }
                () => {}
            }
        }
        self.count(now, departures);
        let recent = self.recent;
        if self.newest_first {
            self.since.add(departures);
            // Right after a trial, those who wait have not waited long enough to give up.
            let may_end = self.until_trial == FIRST_TRIAL || self.has_lasted(now);
            let is_over = may_end && recent.all >= LEAST && !recent.reach(END_PERCENT);
            if !(is_over || self.may_try(now)) {
                return None;
            }
            // A trial in any case: where clients are not seen to give up, few leave for as long as
            // they may wait.
            self.forget();
            self.trial = Some(Trial {
                began: now,
                longest: left + (left / 16).max(LEAST as usize),
            });
            return self.end(now);
        }
        let enough = recent.all >= LEAST_TO_BEGIN && recent.unserved >= LEAST_UNSERVED;
        let begin = enough && recent.reach(BEGIN_PERCENT);
        if !(self.adapts && begin) {
            return None;
        }
        Some(self.begin(now, left))
    }

    fn begin(&mut self, now: Duration, left: usize) -> Switch {
        if self.trial.take().is_some() {
            self.until_trial = (self.until_trial * 2).min(LAST_TRIAL);
        }
        self.is_news = self
            .told
            .is_none_or(|told| now.saturating_sub(told) > QUIET_LOG);
        if self.is_news {
            self.told = Some(now);
        }
        self.newest_first = true;
        self.since = Departures::default();
        self.changed = Some(now);
        Switch::NewestFirst(self.recent, left)
    }

    /// Notes that this many found no room in the line. Returns the resulting change, if any.
    #[must_use]
    pub fn refused(&mut self, now: Duration, count: usize, left: usize) -> Option<Switch> {
        self.refused = Some(now);
        self.departed(now, Departures::unserved(count), left)
    }

    /// Notes that the line is empty: earlier departures no longer count. Returns the resulting
    /// change, if any.
    #[must_use]
    pub fn drained(&mut self, now: impl FnOnce() -> Duration) -> Option<Switch> {
        if self.recent.all > 0 {
            self.forget();
        }
        self.trial = None;
        self.until_trial = FIRST_TRIAL;
        match self.newest_first {
            true => self.end(now()),
            false => None,
        }
    }

    /// How many were served per second of late; `None` if none were.
    pub fn rate(&self, now: Duration) -> Option<f64> {
        let age = |grain: &Grain| now.saturating_sub(grain.began);
        let recent = self.grains.iter().filter(|grain| age(grain) <= WINDOW);
        let mut time = GRAIN;
        let mut served = 0;
        for grain in recent {
            time = time.max(age(grain));
            served += grain.departures.all - grain.departures.unserved;
        }
        (served > 0).then(|| f64::from(served) / time.as_secs_f64())
    }

    /// Whether first come could serve everybody again. Under newest first, the line consists of
    /// those who will leave unserved, so its length is their rate times the time that they wait
    /// (Little's law). If clearly fewer leave than are served, first come would serve them before
    /// they leave. This says nothing if the line is full, which limits its length.
    fn may_try(&self, now: Duration) -> bool {
        let Departures { all, unserved } = self.recent;
        let has_room = |refused: Duration| now.saturating_sub(refused) > WINDOW;
        self.has_lasted(now)
            && all >= LEAST
            && u64::from(unserved) * 4 < u64::from(all - unserved) * 3
            && self.refused.is_none_or(has_room)
    }

    /// Whether newest first has lasted for as long as it is to last before a trial.
    fn has_lasted(&self, now: Duration) -> bool {
        let lasted = |began: Duration| now.saturating_sub(began) >= self.until_trial;
        self.changed.is_some_and(lasted)
    }

    fn forget(&mut self) {
        self.grains.clear();
        self.recent = Departures::default();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn departures(all: u32, unserved: u32) -> Departures {
        Departures { all, unserved }
    }

    /// Any moment.
    const START: Duration = Duration::from_secs(1000);

    #[test]
    fn newest_first_begins_when_five_percent_leave_unserved() {
        let (mut rule, now) = (Rule::new(true), START);
        assert_eq!(rule.departed(now, Departures::served(95), 9), None);
        assert_eq!(rule.departed(now, Departures::unserved(4), 9), None);
        assert!(!rule.is_newest_first());
        let switch = rule.departed(now, Departures::unserved(1), 9);
        assert_eq!(switch, Some(Switch::NewestFirst(departures(100, 5), 9)));
        assert!(rule.is_newest_first());
    }

    #[test]
    fn fewer_than_ten_departures_change_nothing() {
        let (mut rule, now) = (Rule::new(true), START);
        assert_eq!(rule.departed(now, Departures::unserved(9), 9), None);
        assert_eq!(rule.departed(now, Departures::unserved(0), 9), None);
        let switch = rule.departed(now, Departures::unserved(1), 9);
        assert_eq!(switch, Some(Switch::NewestFirst(departures(10, 10), 9)));
    }

    /// A rule that has begun with newest first because 5 of 100 left unserved.
    fn begun(now: Duration) -> Rule {
        let mut rule = Rule::new(true);
        assert!(rule.departed(now, departures(100, 5), 9).is_some());
        rule
    }

    #[test]
    fn newest_first_ends_when_fewer_than_four_percent_leave_unserved() {
        let start = START;
        let mut rule = begun(start);
        let later = start + Duration::from_millis(700);
        assert_eq!(rule.departed(later, Departures::served(25), 9), None);
        assert!(rule.is_newest_first());
        let end = Switch::FirstCome(Duration::from_millis(700), departures(26, 0));
        assert_eq!(rule.departed(later, Departures::served(1), 9), Some(end));
        assert!(!rule.is_newest_first());
        // Another time, what was before does not count.
        let later = later + WINDOW;
        assert!(rule.departed(later, Departures::unserved(30), 9).is_some());
        let end = Switch::FirstCome(Duration::ZERO, Departures::default());
        assert_eq!(rule.drained(|| later), Some(end));
    }

    #[test]
    fn the_last_twenty_departures_count_however_long_ago_they_were() {
        let mut rule = Rule::new(true);
        assert!(rule.departed(START, Departures::unserved(10), 9).is_some());
        let later = START + Duration::from_secs(60);
        assert_eq!(rule.departed(later, Departures::served(12), 9), None);
        let end = Switch::FirstCome(Duration::from_secs(60), departures(20, 0));
        assert_eq!(rule.departed(later, Departures::served(8), 9), Some(end));
    }

    #[test]
    fn first_come_is_tried_after_a_second_and_after_a_failure_later() {
        let (mut rule, second) = (begun(START), Duration::from_secs(1));
        let share = departures(100, 20);
        assert_eq!(rule.departed(START + second / 2, share, 100), None);
        let tried = rule.departed(START + second, share, 100);
        assert!(matches!(tried, Some(Switch::FirstCome(..))), "{tried:?}");
        // It makes the line grow.
        let at = START + second + QUIET / 2;
        assert_eq!(rule.departed(at, share, 120), None);
        assert!(rule.departed(at, share, 121).is_some());
        for later in [second, second * 19 / 10] {
            assert_eq!(rule.departed(at + later, share, 100), None, "{later:?}");
        }
        assert!(rule.departed(at + second * 2, share, 100).is_some());
        assert!(!rule.is_newest_first());
        // This time it goes well: later, nothing of that counts.
        let at = at + second * 10;
        assert_eq!(rule.departed(at, Departures::served(100), 500), None);
        assert!(rule.departed(at + second, share, 500).is_some());
        assert!(rule.departed(at + second * 2, share, 500).is_some());
    }

    #[test]
    fn first_come_is_not_tried_while_the_line_is_full_or_as_many_leave_as_are_served() {
        let second = Duration::from_secs(1);
        let mut rule = begun(START);
        for n in 1..30 {
            let now = START + second * n;
            assert_eq!(rule.refused(now, 10, 100), None);
            assert_eq!(rule.departed(now, departures(100, 10), 100), None);
        }
        let mut rule = begun(START);
        for n in 1..30 {
            assert_eq!(
                rule.departed(START + second * n, departures(100, 90), 9),
                None
            );
        }
    }

    #[test]
    fn what_was_more_than_a_second_ago_does_not_count() {
        let (mut rule, start) = (Rule::new(true), START);
        assert_eq!(rule.departed(start, Departures::served(1000), 9), None);
        let later = start + Duration::from_millis(1001);
        let switch = rule.departed(later, departures(60, 3), 9);
        assert_eq!(switch, Some(Switch::NewestFirst(departures(60, 3), 9)));
    }

    #[test]
    fn an_empty_line_ends_newest_first_and_what_was_is_forgotten() {
        let start = START;
        let mut rule = begun(start);
        let now = start + Duration::from_millis(10);
        assert_eq!(rule.departed(now, departures(3, 2), 9), None);
        let end = Switch::FirstCome(Duration::from_millis(10), departures(3, 2));
        assert_eq!(rule.drained(|| now), Some(end));
        assert!(!rule.is_newest_first());
        assert_eq!(rule.rate(now), None);
        assert_eq!(rule.departed(now, Departures::unserved(9), 9), None);
    }

    #[test]
    fn an_empty_line_under_first_come_does_not_ask_for_the_time() {
        let mut rule = Rule::new(true);
        assert_eq!(rule.drained(|| unreachable!()), None);
        assert_eq!(rule.departed(START, Departures::served(5), 9), None);
        assert_eq!(rule.drained(|| unreachable!()), None);
    }

    #[test]
    fn it_is_known_when_the_order_changed_last() {
        assert_eq!(Rule::new(true).changed(), None);
        let mut rule = begun(START);
        assert_eq!(rule.changed(), Some(START));
        let later = START + Duration::from_millis(900);
        assert_eq!(rule.departed(later, departures(2, 2), 9), None);
        assert_eq!(rule.changed(), Some(START));
        assert!(rule.drained(|| later).is_some());
        assert_eq!(rule.changed(), Some(later));
    }

    #[test]
    fn the_least_time_falls_at_once_and_rises_slowly() {
        let (least, ms) = (LeastTime::default(), Duration::from_millis);
        assert_eq!(least.get(), Duration::MAX);
        least.observe(ms(50));
        least.observe(ms(20));
        assert_eq!(least.get(), ms(20));
        least.observe(ms(84));
        assert_eq!(least.get(), ms(21));
        (0..1000).for_each(|_| least.observe(ms(84)));
        assert!(least.get() > ms(83));
    }

    #[test]
    fn of_changes_to_and_fro_only_the_first_is_told() {
        let mut rule = Rule::new(true);
        let mut told = Vec::new();
        for n in 0..25 {
            let now = START + Duration::from_secs(1) * n;
            assert!(rule.departed(now, Departures::unserved(20), 9).is_some());
            let begin = rule.is_news();
            assert!(rule.drained(|| now).is_some());
            assert_eq!(rule.is_news(), begin, "its end is as much news");
            told.extend(begin.then_some(n));
        }
        assert_eq!(told, [0, 11, 22]);
    }

    #[test]
    fn a_change_of_the_order_is_told_with_its_figures() {
        let begins = Switch::NewestFirst(departures(100, 5), 9).to_string();
        assert!(
            begins.starts_with("newest first") && begins.contains(" 5 of 100 "),
            "{begins}"
        );
        let ends = Switch::FirstCome(Duration::from_millis(1520), departures(80, 30)).to_string();
        assert!(
            ends.starts_with("first come") && ends.contains(" 1.5s, in which 30 of 80 "),
            "{ends}"
        );
    }

    #[test]
    fn a_rule_that_does_not_adapt_keeps_first_come() {
        let (mut rule, now) = (Rule::new(false), START);
        for _ in 0..1000 {
            assert_eq!(rule.departed(now, Departures::unserved(1), 9), None);
        }
        assert!(!rule.is_newest_first());
        assert_eq!(rule.drained(|| now), None);
    }

    #[test]
    fn the_figures_of_a_very_long_spell_do_not_overflow() {
        let start = START;
        let mut rule = begun(start);
        let many = departures(1_000_000_000, 500_000_000);
        for second in (2..=20).step_by(2) {
            let switch = rule.departed(start + Duration::from_secs(second), many, 9);
            assert_eq!(switch, None);
        }
        let end = Switch::FirstCome(Duration::from_secs(20), departures(u32::MAX, u32::MAX));
        assert_eq!(rule.drained(|| start + Duration::from_secs(20)), Some(end));
    }

    #[test]
    fn the_rate_is_that_of_the_served() {
        let (mut rule, start) = (Rule::new(true), START);
        assert_eq!(rule.rate(start), None);
        let _ = rule.departed(start, Departures::unserved(1), 9);
        assert_eq!(rule.rate(start), None);
        let _ = rule.departed(start, Departures::served(2), 9);
        assert_eq!(rule.rate(start), Some(40.0));
        // 250 a second are served, and as many are not; then 50 a second.
        for (pause, rate) in [(4_u64, 250.0), (20, 50.0)] {
            let from = start + Duration::from_secs(pause);
            for nth in 1..=500 {
                let now = from + nth * Duration::from_millis(pause);
                let _ = rule.departed(now, departures(2, 1), 9);
                let measured = rule.rate(now).unwrap();
                let off = (measured / rate - 1.0).abs();
                assert!(nth < 300 || off < 0.1, "{measured} instead of {rate}");
            }
        }
    }

    #[test]
    fn many_departures_take_no_more_memory_than_few() {
        for pause in [Duration::from_micros(30), Duration::from_millis(51), WINDOW] {
            let (mut rule, start) = (Rule::new(true), START);
            for nth in 0..1_000_000.min(30_000_000 / pause.as_micros() as u32) {
                let _ = rule.departed(start + nth * pause, departures(1, nth % 2), 9);
                assert!(rule.grains.len() < 40);
            }
            let mut sum = Departures::default();
            rule.grains
                .iter()
                .for_each(|grain| sum.add(grain.departures));
            assert_eq!(sum, rule.recent);
            assert!(sum.all >= LEAST);
        }
    }
}
