//! Pure: how far a standby is behind, by positions in the write-ahead log.
//!
//! A standby cannot know it: while it is cut off from its primary, it has replayed all that it has
//! received. Nor do the servers' clocks agree. So the primary is asked for its position now and
//! then. A standby that has replayed as far as the primary was when it was asked has all that was
//! committed before that question, by the pool's own clock.
//!
//! That holds for servers of one history. A position of a standby counts once the primary, asked
//! later, was there or beyond: a standby that is ahead has *diverged*, with writes that were lost
//! at a failover, say. It is taken for one until it is on the primary's timeline, or was rewound.
//! While there is no primary, what counted last goes on to count.
//!
//! The primary passes a diverged standby some day, and positions then say nothing. So timelines are
//! compared: a standby on a later timeline than the primary follows another one; one on an earlier
//! timeline is as old as the last question to a primary of that timeline. Of clusters that have
//! nothing to do with each other, the identifiers differ.

use std::time::{Duration, Instant};

/// For how many times the most lag that is allowed a standby's lag is known.
const KNOWN_LAGS: u32 = 8;
/// How many samples are kept of the time of the most lag. With fewer, a standby seems to be further
/// behind than it is, never less.
const SAMPLES: u32 = 64;

/// Where the primary was, and when: in ascending order of both, and of timelines.
#[derive(Debug)]
pub(super) struct History {
    max_lag: Duration,
    samples: Vec<Sample>,
    /// The cluster's identifier, if it is known.
    system: Option<u64>,
}

/// Where a primary was when it was asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub asked_at: Instant,
    pub position: u64,
    /// None if the role may not read it.
    pub timeline: Option<u32>,
}

/// How far a server had replayed when it answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub answered_at: Instant,
    pub is_standby: bool,
    pub position: u64,
    /// None if the role may not read it.
    pub timeline: Option<u32>,
    /// The identifier of its cluster, if it is known.
    pub system: Option<u64>,
}

/// What one server has answered.
#[derive(Clone, Debug)]
pub(super) struct Track {
    newest: Look,
    /// The newest that counts.
    confirmed: Option<Look>,
    /// Those that do not yet: the oldest, and the newest.
    pending: Vec<Look>,
    /// Where it was when it was found to have diverged.
    diverged_at: Option<u64>,
}

/// What a standby is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fitness {
    /// It has all that was committed before this moment.
    AsOf(Instant),
    /// It has not answered of late.
    Silent,
    /// It takes writes.
    Primary,
    /// Of the last known positions of the primary it has reached none.
    Behind,
    /// It has another history.
    Diverged,
    /// It belongs to another cluster.
    Foreign,
}

impl Track {
    pub fn of(look: Look) -> Track {
        Track {
            newest: look,
            confirmed: None,
            pending: vec![look],
            diverged_at: None,
        }
    }

    /// Notes a further answer of the same server.
    pub fn note(&mut self, look: Look) {
        self.newest = look;
        self.pending.truncate(1);
        self.pending.push(look);
    }

    /// Returns when it last answered.
    pub fn answered_at(&self) -> Instant {
        self.newest.answered_at
    }

    /// Returns the position up to which it is known to have everything.
    pub fn position(&self) -> Option<u64> {
        self.confirmed.map(|look| look.position)
    }

    /// Compares its answers with where the primary was when it was asked later.
    pub fn compare(&mut self, primary: &Sample) {
        let is_earlier = |look: &Look| look.answered_at < primary.asked_at;
        let Some(at) = self.pending.iter().rposition(is_earlier) else {
            return;
        };
        let look = self.pending[at];
        self.pending.drain(..=at);
        if look.position > primary.position || is_later(look.timeline, primary.timeline) {
            self.diverged_at.get_or_insert(look.position);
            self.confirmed = None;
            return;
        }
        if let Some(diverged_at) = self.diverged_at {
            let is_back = match (look.timeline, primary.timeline) {
                (Some(its), Some(the_primarys)) => its == the_primarys,
                _ => look.position < diverged_at,
            };
            if !is_back {
                return;
            }
            self.diverged_at = None;
        }
        self.confirmed = Some(look);
    }
}

fn is_later(timeline: Option<u32>, other: Option<u32>) -> bool {
    timeline.zip(other).is_some_and(|(one, other)| one > other)
}

impl History {
    /// Starts with nothing, to tell whether a standby is further behind than this.
    pub fn up_to(max_lag: Duration) -> History {
        History {
            max_lag,
            samples: Vec::new(),
            system: None,
        }
    }

    /// Notes where the primary of this cluster was.
    pub fn note(&mut self, sample: Sample, system: Option<u64>) {
        self.system = system;
        // Of a primary that is behind an earlier one, the last writes of that one are lost.
        let known = self.max_lag * KNOWN_LAGS;
        self.samples.retain(|earlier| {
            let age = sample.asked_at.saturating_duration_since(earlier.asked_at);
            earlier.position <= sample.position
                && !is_later(earlier.timeline, sample.timeline)
                && age <= known
        });
        if let [.., before, last] = self.samples[..]
            && last.asked_at - before.asked_at < self.max_lag / SAMPLES
        {
            self.samples.pop();
        }
        let is_same =
            |last: &Sample| last.position == sample.position && last.timeline == sample.timeline;
        if self.samples.last().is_some_and(is_same) {
            self.samples.pop();
        }
        self.samples.push(sample);
    }

    /// Returns what a standby is good for, which counts as silent after this time.
    pub fn fitness(&self, track: &Track, now: Instant, silent_after: Duration) -> Fitness {
        let newest = &track.newest;
        if now.saturating_duration_since(newest.answered_at) > silent_after {
            return Fitness::Silent;
        }
        if !newest.is_standby {
            return Fitness::Primary;
        }
        if (self.system.zip(newest.system)).is_some_and(|(ours, theirs)| ours != theirs) {
            return Fitness::Foreign;
        }
        if track.diverged_at.is_some() {
            return Fitness::Diverged;
        }
        let Some(look) = track.confirmed else {
            return Fitness::Behind;
        };
        let is_reached = |sample: &Sample| {
            sample.position <= look.position && !is_later(sample.timeline, look.timeline)
        };
        match self.samples.partition_point(is_reached).checked_sub(1) {
            Some(newest) => Fitness::AsOf(self.samples[newest].asked_at),
            None => Fitness::Behind,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENT: Duration = Duration::from_secs(1);

    /// A primary and a standby, by a clock in milliseconds.
    struct Pair {
        start: Instant,
        history: History,
        track: Option<Track>,
    }

    impl Pair {
        fn new() -> Pair {
            Pair {
                start: Instant::now(),
                history: History::up_to(SILENT),
                track: None,
            }
        }

        fn at(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }

        fn primary(&mut self, ms: u64, position: u64, timeline: Option<u32>) {
            let sample = Sample {
                asked_at: self.at(ms),
                position,
                timeline,
            };
            self.history.note(sample, Some(1));
            if let Some(track) = &mut self.track {
                track.compare(&sample);
            }
        }

        fn standby(&mut self, ms: u64, position: u64, timeline: Option<u32>) {
            let look = Look {
                answered_at: self.at(ms),
                is_standby: true,
                position,
                timeline,
                system: Some(1),
            };
            match &mut self.track {
                Some(track) => track.note(look),
                None => self.track = Some(Track::of(look)),
            }
        }

        fn fitness(&self, ms: u64) -> Fitness {
            let track = self.track.as_ref().expect("a look");
            self.history.fitness(track, self.at(ms), SILENT)
        }

        fn is_as_of(&self, ms: u64, as_of: u64) {
            assert_eq!(self.fitness(ms), Fitness::AsOf(self.at(as_of)));
        }
    }

    #[test]
    fn a_standby_is_as_old_as_the_last_question_whose_answer_it_has_reached() {
        for (position, as_of) in [(100, 0), (299, 100), (300, 200), (400, 200)] {
            let mut pair = Pair::new();
            for (ms, position) in [(0, 100), (100, 200), (200, 300)] {
                pair.primary(ms, position, Some(1));
            }
            pair.standby(210, position, Some(1));
            pair.primary(220, 1000, Some(1));
            pair.is_as_of(250, as_of);
        }
        let mut pair = Pair::new();
        pair.primary(0, 100, Some(1));
        pair.standby(10, 99, Some(1));
        pair.primary(20, 100, Some(1));
        assert_eq!(pair.fitness(30), Fitness::Behind);
    }

    #[test]
    fn while_nothing_is_written_the_newest_question_counts() {
        let mut pair = Pair::new();
        for ms in 0..100 {
            pair.standby(ms, 100, None);
            pair.primary(ms, 100, None);
        }
        assert_eq!(pair.history.samples.len(), 1);
        pair.is_as_of(100, 99);
    }

    #[test]
    fn an_answer_counts_once_the_primary_was_asked_later_and_then_for_as_long_as_there_is_none() {
        let mut pair = Pair::new();
        pair.primary(0, 100, Some(1));
        pair.standby(10, 100, Some(1));
        assert_eq!(pair.fitness(10), Fitness::Behind);
        pair.primary(20, 200, Some(1));
        pair.is_as_of(20, 0);
        // The primary is gone.
        pair.standby(30, 300, Some(1));
        pair.is_as_of(500, 0);
        // Answers come more often than the primary is asked: the newest that is early enough.
        for ms in 31..40 {
            pair.standby(ms, 310, Some(1));
        }
        pair.primary(39, 400, Some(1));
        pair.is_as_of(40, 20);
    }

    #[test]
    fn one_that_is_silent_or_a_primary_or_of_another_cluster_is_not_used() {
        let mut pair = Pair::new();
        pair.standby(0, 100, Some(1));
        pair.primary(10, 100, Some(1));
        assert_eq!(pair.fitness(1001), Fitness::Silent);
        let mut other = pair.track.clone().expect("a look");
        other.newest.system = Some(2);
        let fitness = |track: &Track| pair.history.fitness(track, pair.at(20), SILENT);
        assert_eq!(fitness(&other), Fitness::Foreign);
        // A role may not read it.
        other.newest.system = None;
        assert_eq!(fitness(&other), Fitness::AsOf(pair.at(10)));
        other.newest.is_standby = false;
        assert_eq!(fitness(&other), Fitness::Primary);
    }

    #[test]
    fn a_standby_with_writes_that_were_lost_is_not_used_even_when_the_primary_has_passed_it() {
        for (old, new) in [(Some(1), Some(2)), (None, None)] {
            let mut pair = Pair::new();
            pair.primary(0, 500, old);
            pair.standby(10, 600, old);
            // The new primary never had more than 450, and goes on from there.
            pair.primary(20, 450, new);
            assert_eq!(pair.fitness(30), Fitness::Diverged);
            for ms in (40..400).step_by(10) {
                pair.standby(ms, 600, old);
                pair.primary(ms + 5, 450 + ms, new);
                assert_eq!(pair.fitness(ms + 6), Fitness::Diverged, "{ms}");
            }
            // It was rewound, and follows.
            pair.standby(500, 440, new);
            pair.primary(510, 1000, new);
            assert_ne!(pair.fitness(520), Fitness::Diverged);
            pair.standby(530, 1000, new);
            pair.primary(540, 1000, new);
            pair.is_as_of(550, 540);
        }
    }

    #[test]
    fn one_on_an_earlier_timeline_is_as_old_as_the_last_primary_of_that_one() {
        let mut pair = Pair::new();
        pair.primary(0, 500, Some(1));
        pair.standby(10, 500, Some(1));
        // Written on the new primary, which this standby does not follow.
        pair.primary(20, 510, Some(2));
        pair.primary(30, 520, Some(2));
        pair.standby(40, 515, Some(1));
        pair.primary(50, 530, Some(2));
        pair.is_as_of(60, 0);
        pair.standby(70, 530, Some(2));
        pair.primary(80, 530, Some(2));
        pair.is_as_of(90, 80);
    }

    #[test]
    fn one_on_a_later_timeline_follows_another_primary_wherever_it_is() {
        let mut pair = Pair::new();
        pair.primary(0, 500, Some(1));
        for ms in (10..200).step_by(10) {
            pair.standby(ms, 400 + ms, Some(2));
            pair.primary(ms + 5, 500 + 2 * ms, Some(1));
            assert_eq!(pair.fitness(ms + 6), Fitness::Diverged, "{ms}");
        }
    }

    #[test]
    fn however_long_it_lasts_the_samples_are_bounded_and_err_on_the_safe_side() {
        let mut pair = Pair::new();
        for n in 0..10_000 {
            pair.primary(n, n, None);
            let most = (KNOWN_LAGS * SAMPLES) as usize + 2;
            assert!(pair.history.samples.len() <= most);
        }
        for position in [2_500, 5_000, 9_000, 9_998] {
            pair.track = None;
            pair.standby(10_000, position, None);
            pair.primary(10_001, 10_001, None);
            let Fitness::AsOf(moment) = pair.fitness(10_002) else {
                panic!("{position}")
            };
            let late = pair.at(position) - moment;
            assert!(late < SILENT / SAMPLES * 2, "{position}: {late:?}");
        }
    }
}
