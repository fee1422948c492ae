//! How long to pause before the next attempt. Pure: the random number is an argument.

use std::time::Duration;

/// How often a call is retried, and how long the pauses are.
///
/// As the policy of a pool, `build` refuses a `multiplier` below 1 and an `initial_delay` longer
/// than `max_delay`; as that of a call, they count as 1 and as `max_delay`.
///
/// The pause before retry `n` (counted from 0) is `initial_delay x multiplier^n`, with 10 % jitter
/// to either side, and never longer than `max_delay`. No retry begins after the caller's deadline.
#[derive(Clone, Debug, PartialEq)]
#[must_use]
#[non_exhaustive]
pub struct RetryPolicy {
    /// Retries after the first attempt. Default 3; 0 = none.
    pub max_retries: u32,
    /// The first pause. `None` is 100 ms, or `max_delay` if that is shorter.
    pub initial_delay: Option<Duration>,
    /// The longest pause, jitter included. Default 5 s.
    pub max_delay: Duration,
    /// How the pause grows from one retry to the next. Default 2; at least 1.
    pub multiplier: f64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy {
            max_retries: 3,
            initial_delay: None,
            max_delay: Duration::from_secs(5),
            multiplier: 2.0,
        }
    }
}

impl RetryPolicy {
    /// Returns a policy without retries.
    pub fn none() -> Self {
        RetryPolicy {
            max_retries: 0,
            ..RetryPolicy::default()
        }
    }

    /// Sets how often a call is retried after its first attempt.
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.max_retries = retries;
        self
    }

    /// Sets the first pause.
    pub fn initial_delay(mut self, pause: Duration) -> Self {
        self.initial_delay = Some(pause);
        self
    }

    /// Sets the longest pause.
    pub fn max_delay(mut self, pause: Duration) -> Self {
        self.max_delay = pause;
        self
    }

    /// Sets the factor by which the pause grows; less than 1 counts as 1.
    pub fn multiplier(mut self, factor: f64) -> Self {
        self.multiplier = factor;
        self
    }

    /// Returns the first pause in force.
    pub fn first_delay(&self) -> Duration {
        self.initial_delay
            .unwrap_or(Duration::from_millis(100))
            .min(self.max_delay)
    }

    /// Returns the pause before retry `retry` (the first is 0); `random` is in 0..1.
    pub fn pause(&self, retry: u32, random: f64) -> Duration {
        let longest = self.max_delay.as_secs_f64();
        // Growth beyond the range of f64 would be infinite, and 0 x infinity is not a number:
        // limiting the growth makes the result end at `max_delay` or at 0.
        let growth = self
            .multiplier
            .max(1.0)
            .powi(retry.min(1_000) as i32)
            .min(1e18);
        let grown = (self.first_delay().as_secs_f64() * growth).min(longest);
        let jittered = grown * (0.9 + 0.2 * random);
        // Rounding may carry the longest possible Duration beyond itself.
        Duration::try_from_secs_f64(jittered)
            .map_or(self.max_delay, |pause| pause.min(self.max_delay))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn pauses_double_up_to_the_longest() {
        let policy = RetryPolicy::default();
        let middle: Vec<_> = (0..8).map(|n| policy.pause(n, 0.5).as_millis()).collect();
        assert_eq!(middle, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }

    #[test]
    fn jitter_is_a_tenth_to_either_side_and_inside_the_cap() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.pause(0, 0.0).as_millis(), 90);
        assert_eq!(policy.pause(0, 1.0).as_millis(), 110);
        assert_eq!(policy.pause(20, 0.0).as_millis(), 4500);
        assert_eq!(policy.pause(20, 1.0).as_millis(), 5000);
    }

    #[test]
    fn the_first_pause_is_the_longest_where_that_is_shorter() {
        assert_eq!(
            RetryPolicy::default().max_delay(20 * MS).first_delay(),
            20 * MS
        );
        assert_eq!(
            RetryPolicy::default()
                .initial_delay(Duration::ZERO)
                .pause(5, 0.9),
            Duration::ZERO
        );
    }

    proptest! {
        #[test]
        fn no_pause_is_longer_than_the_longest(
            retry in 0u32..u32::MAX, random in 0.0f64..1.0, first in 0u64..10_000, longest in 0u64..100_000, factor in 0.0f64..1e6,
        ) {
            let policy = RetryPolicy::default()
                .initial_delay(Duration::from_millis(first))
                .max_delay(Duration::from_millis(longest))
                .multiplier(factor);
            prop_assert!(policy.pause(retry, random) <= Duration::from_millis(longest));
        }

        #[test]
        fn pauses_never_shrink(retry in 0u32..60, random in 0.0f64..1.0) {
            let policy = RetryPolicy::default();
            prop_assert!(policy.pause(retry + 1, random) >= policy.pause(retry, random));
        }
    }
}
