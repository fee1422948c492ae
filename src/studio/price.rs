//! The price of time in a studio. Pure.

use jiff::Timestamp;

/// The duration in microseconds, the database's resolution.
fn micros(starts_at: Timestamp, ends_at: Timestamp) -> i128 {
    i128::from(ends_at.as_microsecond()) - i128::from(starts_at.as_microsecond())
}

/// Divides and rounds half up; the amount must not be negative.
fn divided(amount: i128, by: i128) -> i64 {
    i64::try_from((2 * amount + by) / (2 * by)).unwrap_or(i64::MAX)
}

/// Rate times duration, rounded half up to a cent.
pub(super) fn cents(hourly_rate_cents: i64, starts_at: Timestamp, ends_at: Timestamp) -> i64 {
    let hour = 3_600_000_000;
    divided(
        i128::from(hourly_rate_cents) * micros(starts_at, ends_at),
        hour,
    )
}

/// The duration in minutes, rounded half up.
pub(super) fn minutes(starts_at: Timestamp, ends_at: Timestamp) -> i64 {
    divided(micros(starts_at, ends_at), 60_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_cent_is_rounded_up() {
        let at = |seconds: i64| Timestamp::from_second(seconds).unwrap();
        for (rate, seconds, price) in [
            (4500, 7200, 9000),
            (4500, 60, 75),
            (100, 18, 1),
            (100, 17, 0),
            (1, 1800, 1),
            (1, 1799, 0),
            (0, 3600, 0),
            (9900, 1, 3),
        ] {
            assert_eq!(cents(rate, at(0), at(seconds)), price, "{rate} {seconds}");
        }
        assert_eq!(minutes(at(0), at(7200)), 120);
        assert_eq!((minutes(at(0), at(29)), minutes(at(0), at(30))), (0, 1));
    }

    #[test]
    fn the_dearest_and_longest_still_has_a_price() {
        let price = cents(100_000_000, Timestamp::MIN, Timestamp::MAX);
        assert!(price > 1 << 50 && price < i64::MAX, "{price}");
    }
}
