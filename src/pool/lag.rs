//! Pure: how far a standby is behind, by positions in the write-ahead log.
//!
//! A standby cannot know it: while it is cut off from its primary, it has replayed all that it has
//! received. Nor do the servers' clocks agree. So the primary is asked for its position now and
//! then. A standby that has replayed as far as the primary was when it was asked has all that was
//! committed before that question, by the pool's own clock.
//!
//! A standby that is further than its primary, although it was asked first, has another history:
//! that of a primary whose last writes were lost at a failover. It is not used until it follows
//! this primary, which it can only after it was rewound; and if it stays where it is, the primary
//! passes it, and it is too far behind. Between clusters that have nothing to do with each other,
//! positions say nothing, so their identifiers are compared as well.

use std::time::{Duration, Instant};

/// For how many times the most lag that is allowed a standby's lag is known.
const KNOWN_LAGS: u32 = 8;
/// How many samples are kept of the time of the most lag. With fewer, a standby seems to be further
/// behind than it is, never less.
const SAMPLES: u32 = 64;

/// Where the primary was, and when: in ascending order of both.
#[derive(Debug)]
pub(super) struct History {
    max_lag: Duration,
    samples: Vec<Sample>,
    /// The cluster's identifier, if it is known.
    system: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    asked_at: Instant,
    position: u64,
}

/// How far a server had replayed, or written, when it was asked last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub answered_at: Instant,
    pub is_standby: bool,
    pub position: u64,
    /// The identifier of its cluster, if it is known.
    pub system: Option<u64>,
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
    /// It is ahead of the primary.
    Diverged,
    /// It belongs to another cluster.
    Foreign,
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

    /// Notes where the primary of this cluster was when it was asked at this moment.
    pub fn note(&mut self, asked_at: Instant, position: u64, system: Option<u64>) {
        self.system = system;
        // Of a primary that is behind an earlier one, the last writes of that one are lost.
        let known = self.max_lag * KNOWN_LAGS;
        self.samples.retain(|sample| {
            let age = asked_at.saturating_duration_since(sample.asked_at);
            sample.position <= position && age <= known
        });
        if let [.., before, last] = self.samples[..]
            && last.asked_at - before.asked_at < self.max_lag / SAMPLES
        {
            self.samples.pop();
        }
        if (self.samples.last()).is_some_and(|last| last.position == position) {
            self.samples.pop();
        }
        self.samples.push(Sample { asked_at, position });
    }

    /// Returns what a standby is good for, that was asked last at `look`, and counts as silent after
    /// this time.
    pub fn fitness(&self, look: &Look, now: Instant, silent_after: Duration) -> Fitness {
        if now.saturating_duration_since(look.answered_at) > silent_after {
            return Fitness::Silent;
        }
        if !look.is_standby {
            return Fitness::Primary;
        }
        if (self.system.zip(look.system)).is_some_and(|(ours, theirs)| ours != theirs) {
            return Fitness::Foreign;
        }
        // The first that was asked later has the lowest position of those.
        let later = self
            .samples
            .partition_point(|s| s.asked_at <= look.answered_at);
        let is_ahead = |sample: &Sample| sample.position < look.position;
        if self.samples.get(later).is_some_and(is_ahead) {
            return Fitness::Diverged;
        }
        let reached = self
            .samples
            .partition_point(|s| s.position <= look.position);
        match reached.checked_sub(1) {
            Some(newest) => Fitness::AsOf(self.samples[newest].asked_at),
            None => Fitness::Behind,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENT: Duration = Duration::from_secs(1);

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    fn standby(answered_at: Instant, position: u64) -> Look {
        Look {
            answered_at,
            is_standby: true,
            position,
            system: None,
        }
    }

    #[test]
    fn a_standby_is_as_old_as_the_last_question_whose_answer_it_has_reached() {
        let start = Instant::now();
        let mut history = History::up_to(SILENT);
        for (ms, position) in [(0, 100), (100, 200), (200, 300)] {
            history.note(at(start, ms), position, None);
        }
        let now = at(start, 250);
        let fitness = |position| history.fitness(&standby(now, position), now, SILENT);
        assert_eq!(fitness(99), Fitness::Behind);
        assert_eq!(fitness(100), Fitness::AsOf(start));
        assert_eq!(fitness(299), Fitness::AsOf(at(start, 100)));
        assert_eq!(fitness(300), Fitness::AsOf(at(start, 200)));
        assert_eq!(fitness(400), Fitness::AsOf(at(start, 200)));
    }

    #[test]
    fn while_nothing_is_written_the_newest_question_counts() {
        let start = Instant::now();
        let mut history = History::up_to(SILENT);
        for ms in 0..100 {
            history.note(at(start, ms), 100, None);
        }
        assert_eq!(history.samples.len(), 1);
        let now = at(start, 100);
        let fitness = history.fitness(&standby(start, 100), now, SILENT);
        assert_eq!(fitness, Fitness::AsOf(at(start, 99)));
    }

    #[test]
    fn one_that_is_silent_or_a_primary_is_not_used() {
        let start = Instant::now();
        let mut history = History::up_to(SILENT);
        history.note(start, 100, None);
        let late = at(start, 1001);
        let look = standby(start, 100);
        assert_eq!(history.fitness(&look, late, SILENT), Fitness::Silent);
        let primary = Look {
            is_standby: false,
            ..look
        };
        assert_eq!(history.fitness(&primary, start, SILENT), Fitness::Primary);
    }

    #[test]
    fn an_old_primary_with_writes_that_were_lost_is_not_used() {
        let start = Instant::now();
        let mut history = History::up_to(SILENT);
        history.note(start, 500, None);
        // The old primary had written up to 600. The new one never had more than 450, and goes on
        // from there.
        let look = standby(at(start, 10), 600);
        history.note(at(start, 20), 450, None);
        let now = at(start, 30);
        assert_eq!(history.fitness(&look, now, SILENT), Fitness::Diverged);
        // Of what the old one had beyond 450, nothing counts.
        let follows = standby(at(start, 10), 450);
        assert_eq!(
            history.fitness(&follows, now, SILENT),
            Fitness::AsOf(at(start, 20))
        );
        // Passed by the new one, it is as old as what they have in common.
        history.note(at(start, 40), 700, None);
        let look = standby(at(start, 50), 600);
        let fitness = history.fitness(&look, at(start, 60), SILENT);
        assert_eq!(fitness, Fitness::AsOf(at(start, 20)));
    }

    #[test]
    fn one_of_another_cluster_is_not_used_wherever_it_is() {
        let start = Instant::now();
        let mut history = History::up_to(SILENT);
        history.note(start, 100, Some(1));
        let look = standby(start, 100);
        for (system, fitness) in [
            (Some(2), Fitness::Foreign),
            (Some(1), Fitness::AsOf(start)),
            // A role may not read it.
            (None, Fitness::AsOf(start)),
        ] {
            let look = Look { system, ..look };
            assert_eq!(history.fitness(&look, start, SILENT), fitness);
        }
    }

    #[test]
    fn however_long_it_lasts_the_samples_are_bounded_and_err_on_the_safe_side() {
        let start = Instant::now();
        let mut history = History::up_to(SILENT);
        for n in 0..10_000 {
            history.note(at(start, n), n, None);
            assert!(history.samples.len() <= (KNOWN_LAGS * SAMPLES) as usize + 2);
        }
        let now = at(start, 10_000);
        for position in [2_500, 5_000, 9_000, 9_998] {
            let Fitness::AsOf(moment) = history.fitness(&standby(now, position), now, SILENT)
            else {
                panic!("{position}")
            };
            let late = at(start, position) - moment;
            assert!(late < SILENT / SAMPLES * 2, "{position}: {late:?}");
        }
    }
}
