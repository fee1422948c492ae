//! One sample a second, for the last 15 minutes. Pure.

use serde::Serialize;
use serde_json::Value;
use std::collections::VecDeque;

/// 15 minutes.
const KEPT: usize = 15 * 60;

/// What a sample holds, in this order.
pub(super) const FIELDS: [&str; 13] = [
    "active",
    "idle",
    "opening",
    "max",
    "waiting",
    "waitP50Ms",
    "waitP99Ms",
    "operationP50Ms",
    "operationP99Ms",
    "statements",
    "requests",
    "errors",
    "retries",
];

/// The figures of one second; `NAN` where nothing is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample(pub [f32; FIELDS.len()]);

impl Sample {
    const UNKNOWN: Sample = Sample([f32::NAN; FIELDS.len()]);

    pub fn get(&self, field: &str) -> Option<f32> {
        let at = FIELDS.iter().position(|one| *one == field)?;
        Some(self.0[at]).filter(|value| !value.is_nan())
    }
}

/// The samples, and the number of the newest, which is that of its second since the start.
pub(super) struct History {
    samples: VecDeque<Sample>,
    newest: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Shown {
    step_ms: u32,
    first: u64,
    fields: [&'static str; FIELDS.len()],
    samples: Vec<Vec<Value>>,
}

impl History {
    pub fn new() -> History {
        History {
            samples: VecDeque::with_capacity(KEPT),
            newest: 0,
        }
    }

    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// Adds the sample of a second. Seconds in which none was taken are unknown.
    pub fn add(&mut self, second: u64, sample: Sample) {
        let missing = second.saturating_sub(self.newest + 1).min(KEPT as u64);
        for _ in 0..missing {
            self.push(Sample::UNKNOWN);
        }
        if second > self.newest {
            self.push(sample);
            self.newest = second;
        }
    }

    fn push(&mut self, sample: Sample) {
        if self.samples.len() == KEPT {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }

    /// The last so many seconds, oldest first.
    pub fn last(&self, seconds: usize) -> impl Iterator<Item = &Sample> {
        let skipped = self.samples.len().saturating_sub(seconds);
        self.samples.iter().skip(skipped)
    }

    /// The samples after this one; all of them if there is no such sample yet.
    pub fn after(&self, known: u64) -> Shown {
        let oldest = self.newest + 1 - self.samples.len() as u64;
        let first = match known {
            known if known > self.newest => oldest,
            known => (known + 1).max(oldest),
        };
        let wanted = self.samples.iter().skip((first - oldest) as usize);
        let shown = |value: &f32| match f64::from(*value) {
            value if value.is_nan() => Value::Null,
            value if value.fract() == 0.0 => Value::from(value as i64),
            // As many digits as mean something.
            value => Value::from((value * 100.0).round() / 100.0),
        };
        Shown {
            step_ms: 1000,
            first,
            fields: FIELDS,
            samples: wanted
                .map(|sample| sample.0.iter().map(shown).collect())
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(n: f32) -> Sample {
        Sample([n; FIELDS.len()])
    }

    fn firsts(shown: &Shown) -> Vec<Value> {
        shown.samples.iter().map(|s| s[0].clone()).collect()
    }

    #[test]
    fn only_what_is_new_is_shown() {
        let mut history = History::new();
        let none = history.after(0);
        assert_eq!((none.first, none.samples.len()), (1, 0));
        for second in 1..=5 {
            history.add(second, sample(second as f32));
        }
        assert_eq!(firsts(&history.after(3)), [4, 5]);
        assert_eq!(history.after(3).first, 4);
        assert!(firsts(&history.after(5)).is_empty());
        // Of another run of the program.
        assert_eq!(firsts(&history.after(6)), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_second_without_a_sample_is_unknown() {
        let mut history = History::new();
        history.add(1, sample(1.5));
        history.add(1, sample(2.0));
        history.add(4, sample(4.0));
        let shown = firsts(&history.after(0));
        assert_eq!(
            shown,
            [Value::from(1.5), Value::Null, Value::Null, 4.into()]
        );
        assert_eq!(history.last(2).last().unwrap().get("active"), Some(4.0));
        assert_eq!(history.last(2).next().unwrap().get("active"), None);
    }

    #[test]
    fn it_is_bounded() {
        let mut history = History::new();
        for second in 1..2000 {
            history.add(second, sample(0.0));
        }
        history.add(1_000_000, sample(7.0));
        let shown = history.after(0);
        assert_eq!(shown.samples.len(), KEPT);
        assert_eq!(shown.first, 1_000_001 - KEPT as u64);
        assert_eq!(firsts(&shown).pop(), Some(Value::from(7)));
    }
}
