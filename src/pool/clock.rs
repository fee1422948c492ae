//! The database's clock as this process has read it. The clock may be set, and the next server may
//! have another.

use crate::sync::unpoison;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Number of readings kept of the span.
const READINGS: u32 = 32;

/// Readings of the clock in microseconds since 1970, each with the `Instant` at which it was taken.
pub(crate) struct DatabaseClock {
    span: Duration,
    readings: Mutex<VecDeque<(Instant, i64)>>,
}

impl DatabaseClock {
    pub fn looking_back(span: Duration) -> DatabaseClock {
        DatabaseClock {
            span,
            readings: Mutex::default(),
        }
    }

    pub fn note(&self, now: Instant, reading: i64) {
        let mut readings = unpoison(self.readings.lock());
        let is_due = |last: &(Instant, i64)| now >= last.0 + self.span / READINGS;
        if readings.back().is_none_or(is_due) {
            readings.push_back((now, reading));
        }
        // The first reading that is kept is the newest one that is at least as old as the span.
        while readings
            .get(1)
            .is_some_and(|(at, _)| *at + self.span <= now)
        {
            readings.pop_front();
        }
    }

    /// Returns what the clock showed one span ago or a little earlier; or its first reading, if
    /// that is more recent. A row with a later timestamp of the database is younger than the span.
    pub fn back_then(&self) -> Option<i64> {
        let readings = unpoison(self.readings.lock());
        readings.front().map(|(_, reading)| *reading)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000_000;

    #[test]
    fn it_looks_back_by_our_own_time_whatever_the_clock_is_set_to() {
        let clock = DatabaseClock::looking_back(Duration::from_secs(24 * 3600));
        assert_eq!(clock.back_then(), None);
        let start = Instant::now();
        let mut jump = 0;
        for hour in 0..100_i64 {
            if hour == 10 {
                jump = 48;
            }
            clock.note(
                start + Duration::from_secs(3600 * hour.unsigned_abs()),
                (hour + jump) * HOUR,
            );
            let expected = match hour {
                0..=24 => 0,
                25..34 => hour - 24,
                _ => hour - 24 + 48,
            };
            assert_eq!(clock.back_then(), Some(expected * HOUR), "after {hour} h");
        }
        assert!(clock.readings.lock().unwrap().len() <= READINGS as usize + 2);
    }
}
