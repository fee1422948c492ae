//! What readings tell one after another: each brings the samples and events since the one before.

use super::reading::{Event, Reading, Samples};
use std::collections::VecDeque;

/// The server keeps no more either: 15 minutes.
const MOST_SAMPLES: usize = 900;
const MOST_EVENTS: usize = 300;

/// A second of the server's life. Counts are rates per second; none where nothing happened.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sample {
    pub waiting: Option<f64>,
    pub wait_p99: Option<f64>,
    pub statement_p50: Option<f64>,
    pub statement_p99: Option<f64>,
    pub statements: Option<f64>,
    pub requests: Option<f64>,
    pub errors: Option<f64>,
    pub retries: Option<f64>,
}

/// How several samples become one bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fold {
    Highest,
    Mean,
}

/// The last reading, and what those before it have told.
#[derive(Clone, Debug)]
pub(super) struct History {
    pub last: Reading,
    /// By number, which counts steps since the server's start.
    samples: VecDeque<(u64, Sample)>,
    /// Oldest first.
    pub events: VecDeque<Event>,
    step_ms: u64,
}

impl History {
    pub fn begin(reading: Reading) -> History {
        let mut history = History {
            last: reading,
            samples: VecDeque::new(),
            events: VecDeque::new(),
            step_ms: 1000,
        };
        history.keep();
        history
    }

    /// Takes the next reading. A server that was started again has another history.
    pub fn take(&mut self, reading: Reading) {
        if reading.started_at != self.last.started_at {
            *self = History::begin(reading);
            return;
        }
        // What is younger than the last reading's number may have been incomplete, and comes again.
        let known = self.last.sequence;
        self.samples.retain(|(number, _)| *number <= known);
        self.events.retain(|event| event.sequence <= known);
        self.last = reading;
        self.keep();
    }

    fn keep(&mut self) {
        let (rows, events) = (
            &mut self.last.history,
            std::mem::take(&mut self.last.events),
        );
        let known = self.samples.back().map(|(number, _)| *number);
        let new = samples(rows).filter(|(number, _)| known.is_none_or(|known| *number > known));
        self.samples.extend(new);
        self.step_ms = rows.step_ms.max(1);
        rows.samples.clear();
        let known = self.events.back().map(|event| event.sequence);
        // Several may have one number.
        let new = events
            .into_iter()
            .filter(|event| known.is_none_or(|known| event.sequence > known));
        self.events.extend(new);
        let excess = self.samples.len().saturating_sub(MOST_SAMPLES);
        self.samples.drain(..excess);
        let excess = self.events.len().saturating_sub(MOST_EVENTS);
        self.events.drain(..excess);
    }

    /// The figure in the newest sample that has it, unless that is older than some seconds.
    pub fn now(&self, figure: fn(&Sample) -> Option<f64>) -> Option<f64> {
        let fresh = self.samples.iter().rev().take(5);
        fresh.filter_map(|(_, sample)| figure(sample)).next()
    }

    /// The figure in as many bars as there are columns, the newest last, over this time.
    pub fn bars(
        &self,
        figure: fn(&Sample) -> Option<f64>,
        fold: Fold,
        columns: usize,
        seconds: u64,
    ) -> Vec<Option<f64>> {
        let mut bars = vec![(0.0, 0_u32); columns];
        let steps = (seconds.saturating_mul(1000) / self.step_ms).max(1);
        let each = steps.div_ceil(columns.max(1) as u64);
        let newest = self.samples.back().map_or(0, |(number, _)| number / each);
        for (number, sample) in &self.samples {
            // Bars begin at multiples of their width, so that they do not change while they move.
            let age = newest.saturating_sub(number / each);
            let bar = usize::try_from(age).ok();
            let bar = bar.and_then(|age| columns.checked_sub(age + 1));
            if let (Some(bar), Some(value)) = (bar, figure(sample)) {
                let (so_far, count) = bars[bar];
                bars[bar] = match fold {
                    Fold::Highest => (value.max(so_far), 1),
                    Fold::Mean => (so_far + value, count + 1),
                };
            }
        }
        bars.into_iter()
            .map(|(sum, count)| (count > 0).then(|| sum / f64::from(count)))
            .collect()
    }
}

/// The samples with their numbers.
fn samples(rows: &Samples) -> impl Iterator<Item = (u64, Sample)> {
    let at = |name: &str| rows.fields.iter().position(|field| field == name);
    let (waiting, wait_p99) = (at("waiting"), at("waitP99Ms"));
    let (p50, p99) = (at("operationP50Ms"), at("operationP99Ms"));
    let (statements, requests) = (at("statements"), at("requests"));
    let (errors, retries) = (at("errors"), at("retries"));
    let per_second = 1000.0 / rows.step_ms.max(1) as f64;
    let numbered = rows
        .samples
        .iter()
        .zip(0..)
        .skip(rows.samples.len().saturating_sub(MOST_SAMPLES));
    numbered.map(move |(row, index)| {
        let value = |at: Option<usize>| *row.get(at?)?;
        let rate = |at| value(at).map(|count| count * per_second);
        let sample = Sample {
            waiting: value(waiting),
            wait_p99: value(wait_p99),
            statement_p50: value(p50),
            statement_p99: value(p99),
            statements: rate(statements),
            requests: rate(requests),
            errors: rate(errors),
            retries: rate(retries),
        };
        (rows.first.saturating_add(index), sample)
    })
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    fn statements(history: &History, columns: usize, seconds: u64) -> Vec<Option<f64>> {
        history.bars(|s| s.statements, Fold::Mean, columns, seconds)
    }

    #[test]
    fn what_is_told_twice_is_kept_once_and_a_start_forgets_all() {
        let mut begun = sample::rates(1, &[1.0, 2.0, 9.0]);
        // The last sample, and the events of its second, were not complete yet.
        begun.sequence = 2;
        begun.events[2].text = "once".into();
        let mut history = History::begin(begun);
        let mut next = sample::rates(3, &[3.0, 4.0]);
        next.events[0].text = "twice".into();
        history.take(next);
        assert_eq!(history.events[2].text.as_str(), "twice");
        let all = [None, Some(1.0), Some(2.0), Some(3.0), Some(4.0)];
        assert_eq!(statements(&history, 5, 5), all);
        assert_eq!(history.events.len(), 4);
        let mut again = sample::rates(1, &[9.0]);
        again.started_at = "2026-11-29T19:00:00Z".into();
        history.take(again);
        assert_eq!(statements(&history, 2, 2), [None, Some(9.0)]);
        assert_eq!(history.events.len(), 1);
    }

    #[test]
    fn bars_keep_their_seconds_while_they_move() {
        let history = History::begin(sample::rates(1, &[1.0, 3.0, 5.0, 7.0]));
        // Seconds 1, 2 and 3, 4.
        let two = [Some(1.0), Some(4.0), Some(7.0)];
        assert_eq!(statements(&history, 3, 6), two);
        let highest = history.bars(|s| s.statements, Fold::Highest, 3, 6);
        assert_eq!(highest, [Some(1.0), Some(5.0), Some(7.0)]);
        assert_eq!(statements(&history, 0, 60), []);
        assert_eq!(history.now(|s| s.statements), Some(7.0));
        assert_eq!(history.now(|s| s.wait_p99), None);
    }

    #[test]
    fn a_history_that_is_endless_is_cut() {
        let mut history = History::begin(sample::rates(u64::MAX - 1, &[1.0; 2000]));
        for first in 1..2000 {
            history.take(sample::rates(first, &[1.0]));
        }
        assert!(history.samples.len() <= MOST_SAMPLES);
        assert!(history.events.len() <= MOST_EVENTS);
        let _ = statements(&history, 80, 300);
    }
}
