//! Times from the database as text. The database has times that RFC 3339 cannot express:
//! `infinity`, and years of more than four digits.

use jiff::Timestamp;
use postgres::Row;
use postgres::types::{FromSql, Type};

/// The earliest and the latest time with a year of four digits.
const FIRST: &str = "0001-01-01T00:00:00Z";
const LAST: &str = "9999-12-31T23:59:59.999999Z";

/// A time as text. Times beyond the limits are shown as the earliest or the latest one.
struct Moment(String);

impl<'a> FromSql<'a> for Moment {
    fn from_sql(
        _: &Type,
        raw: &'a [u8],
    ) -> Result<Moment, Box<dyn std::error::Error + Sync + Send>> {
        // Microseconds since 2000; the largest and the smallest number are the infinities.
        const TO_2000: i64 = 946_684_800_000_000;
        let micros = i64::from_be_bytes(raw.try_into()?);
        let at = micros.checked_add(TO_2000).map(Timestamp::from_microsecond);
        Ok(Moment(match at {
            Some(Ok(at)) if at.to_string().starts_with(|c: char| c.is_ascii_digit()) => {
                at.to_string()
            }
            _ if micros < 0 => FIRST.to_owned(),
            _ => LAST.to_owned(),
        }))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }
}

/// A column of type `timestamptz`.
pub(super) fn text(row: &Row, column: &str) -> Result<String, postgres::Error> {
    row.try_get(column).map(|Moment(text)| text)
}

/// A column of type `timestamptz` that may be NULL.
pub(super) fn optional(row: &Row, column: &str) -> Result<Option<String>, postgres::Error> {
    let at: Option<Moment> = row.try_get(column)?;
    Ok(at.map(|Moment(text)| text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_said_is_the_earliest_or_the_latest() {
        let text = |micros: i64| {
            Moment::from_sql(&Type::TIMESTAMPTZ, &micros.to_be_bytes())
                .unwrap()
                .0
        };
        assert_eq!(text(0), "2000-01-01T00:00:00Z");
        assert_eq!(text(i64::MAX), LAST);
        assert_eq!(text(i64::MIN), FIRST);
        assert_eq!(text(i64::MAX - 1), LAST);
        assert_eq!(text(-70_000_000_000_000_000), FIRST);
    }
}
