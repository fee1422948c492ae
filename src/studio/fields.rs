//! Reads bodies and queries strictly, and reports everything that is wrong with them at once.
//!
//! Each reader returns a value in any case. The placeholder for a bad value is never used, since
//! `finish` fails then. Unknown fields are skipped, not built, so a body costs a small multiple of
//! its bytes, whatever it holds.

use super::wrong::Wrong;
use crate::server::{Problem, Request};
use jiff::Timestamp;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess,
    Visitor,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;

/// The longest name of a customer, in characters.
pub(super) const LONGEST_NAME: usize = 200;

/// 422, with what is wrong with the fields.
pub(super) fn invalid(wrong: Wrong) -> Problem {
    wrong.add_to(Problem::of_kind(422, "invalid-fields", WRONG_FIELDS))
}

const WRONG_FIELDS: &str = "some fields are missing or wrong";

/// The fields of a body that is a JSON object.
pub(super) struct Fields {
    given: BTreeMap<String, Value>,
    unknown: Wrong,
    wrong: Wrong,
}

impl Fields {
    /// Reads the `known` fields from the body. Also returns the body in its canonical form, which
    /// does not depend on blanks and order.
    pub fn of(request: &Request, known: &[&str]) -> Result<(Fields, String), Problem> {
        expect_type(request, "application/json")?;
        let mut from = serde_json::Deserializer::from_slice(&request.body);
        let body = Body { known }
            .deserialize(&mut from)
            .and_then(|body| from.end().map(|()| body));
        let body =
            body.map_err(|e| Problem::plain(400, format!("the body is not acceptable JSON: {e}")))?;
        let Some(fields) = body else {
            let mut wrong = Wrong::default();
            wrong.add_body("takes an object");
            return Err(invalid(wrong));
        };
        let canonical = json!(fields.given).to_string();
        Ok((fields, canonical))
    }

    /// For a route without a body: accepts none, or an object without fields.
    pub fn none(request: &Request) -> Result<String, Problem> {
        if request.body.is_empty() {
            return Ok(String::new());
        }
        let (fields, _) = Fields::of(request, &[])?;
        fields.finish().map(|()| String::new())
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        let value = self.given.remove(name);
        if value.is_none() {
            self.wrong.add_field(name, "is missing");
        }
        value
    }

    /// An id, from 1 up.
    pub fn id(&mut self, name: &str) -> i64 {
        let Some(value) = self.take(name) else {
            return 0;
        };
        match value.as_i64() {
            Some(id) if id >= 1 => id,
            _ => {
                let takes = "takes a whole number from 1 to 9223372036854775807";
                self.wrong.add_field(name, takes);
                0
            }
        }
    }

    fn text<T>(
        &mut self,
        name: &str,
        takes: &str,
        read: impl FnOnce(&str) -> Result<T, &'static str>,
    ) -> Option<T> {
        let read = match self.take(name)? {
            Value::String(text) => read(&text),
            _ => {
                self.wrong.add_field(name, takes);
                return None;
            }
        };
        read.map_err(|detail| self.wrong.add_field(name, detail))
            .ok()
    }

    /// A name: 1 to 200 characters, without control characters or a leading blank.
    pub fn name(&mut self, name: &str) -> String {
        let read = |text: &str| check_name(text).map(|()| text.to_owned());
        self.text(name, NAME, read).unwrap_or_default()
    }

    /// A moment.
    pub fn time(&mut self, name: &str) -> Timestamp {
        self.text(name, TIME, time).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// A time range, which ends after it starts.
    pub fn range(&mut self) -> (Timestamp, Timestamp) {
        let before = self.wrong.count();
        let (starts_at, ends_at) = (self.time("startsAt"), self.time("endsAt"));
        if self.wrong.count() == before && starts_at >= ends_at {
            self.wrong.add_field("endsAt", "must be after startsAt");
        }
        (starts_at, ends_at)
    }

    /// Fails if anything was wrong, or is unknown.
    pub fn finish(mut self) -> Result<(), Problem> {
        self.wrong.append(self.unknown);
        self.wrong.refuse(WRONG_FIELDS)
    }
}

/// Refuses a body of another type. The parameters of the type do not matter.
pub(super) fn expect_type(request: &Request, wanted: &str) -> Result<(), Problem> {
    if request.media_type().eq_ignore_ascii_case(wanted) {
        return Ok(());
    }
    Err(Problem::plain(
        415,
        format!("the body must be {wanted}, with a matching Content-Type"),
    ))
}

const NAME: &str = "takes 1 to 200 characters, no control characters, no blank first";
const TIME: &str =
    "takes a time as 2030-01-02T10:00:00Z or 2030-01-02T11:00:00+01:00, to the microsecond at most";

pub(super) fn check_name(text: &str) -> Result<(), &'static str> {
    let blank_first = text.chars().next().is_none_or(char::is_whitespace);
    if blank_first || text.chars().count() > LONGEST_NAME || text.chars().any(char::is_control) {
        return Err(NAME);
    }
    Ok(())
}

/// A time as in RFC 3339, with an offset. More digits than the database stores are refused, not
/// rounded.
pub(super) fn time(text: &str) -> Result<Timestamp, &'static str> {
    let shape: Vec<u8> = text
        .bytes()
        .map(|b| {
            if b.is_ascii_digit() {
                b'0'
            } else {
                b.to_ascii_uppercase()
            }
        })
        .collect();
    let Some(rest) = shape.strip_prefix(b"0000-00-00T00:00:00") else {
        return Err(TIME);
    };
    let fraction = match rest.strip_prefix(b".") {
        None => 0,
        Some(rest) => rest.iter().take_while(|b| **b == b'0').count(),
    };
    let offset = &rest[if fraction > 0 { fraction + 1 } else { 0 }..];
    if fraction > 6 || !(offset == b"Z" || offset == b"+00:00" || offset == b"-00:00") {
        return Err(TIME);
    }
    // The parser accepts more than RFC 3339, or changes the value: leap seconds, offsets of more
    // than a day, years that do not have four digits in UTC.
    let number =
        |at: std::ops::Range<usize>| text.get(at).and_then(|digits| digits.parse::<u32>().ok());
    let at_offset = text.len() - 5;
    let far_off = offset != b"Z"
        && (number(at_offset..at_offset + 2) > Some(23)
            || number(at_offset + 3..text.len()) > Some(59));
    let at: Timestamp = text.parse().map_err(|_| TIME)?;
    let years = -62_135_596_800..253_402_300_800;
    match number(17..19) {
        Some(0..60) if !far_off && years.contains(&at.as_second()) => Ok(at),
        _ => Err(TIME),
    }
}

/// A time in the last days of the year 9999, which the time library cannot hold. In a filter, the
/// latest time that it can hold does as well.
fn last(text: &str) -> Option<Timestamp> {
    let rest = text
        .strip_prefix("9999-12-30")
        .or(text.strip_prefix("9999-12-31"))?;
    let known = time(&format!("9999-12-29{rest}"));
    known.ok().map(|_| Timestamp::MAX)
}

/// A number that consists of digits alone.
pub(super) fn whole(text: &str) -> Option<i64> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

/// Reads a body: an object of these fields, each at most once, or anything else. Objects and arrays
/// are left empty, since no field takes one.
struct Body<'k> {
    known: &'k [&'k str],
}

impl<'de> DeserializeSeed<'de> for Body<'_> {
    type Value = Option<Fields>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Option<Fields>, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Body<'_> {
    type Value = Option<Fields>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Option<Fields>, A::Error> {
        let (mut given, mut unknown) = (BTreeMap::new(), Wrong::default());
        while let Some(name) = from.next_key::<String>()? {
            if !self.known.contains(&name.as_str()) {
                from.next_value::<IgnoredAny>()?;
                unknown.add_field(&name, "is unknown");
                continue;
            }
            let Flat(value) = from.next_value()?;
            if given.insert(name, value).is_some() {
                return Err(A::Error::custom("it contains a name twice"));
            }
        }
        let wrong = Wrong::default();
        Ok(Some(Fields {
            given,
            unknown,
            wrong,
        }))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, from: A) -> Result<Option<Fields>, A::Error> {
        skip_all(from).map(|()| None)
    }
    fn visit_bool<E>(self, _: bool) -> Result<Option<Fields>, E> {
        Ok(None)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Option<Fields>, E> {
        Ok(None)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Option<Fields>, E> {
        Ok(None)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Option<Fields>, E> {
        Ok(None)
    }
    fn visit_str<E>(self, _: &str) -> Result<Option<Fields>, E> {
        Ok(None)
    }
    fn visit_unit<E>(self) -> Result<Option<Fields>, E> {
        Ok(None)
    }
}

/// A value; of an object or array, only its kind.
struct Flat(Value);

impl<'de> Deserialize<'de> for Flat {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Flat, D::Error> {
        struct Reads;
        impl<'de> Visitor<'de> for Reads {
            type Value = Flat;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Flat, A::Error> {
                while from.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Flat(json!({})))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, from: A) -> Result<Flat, A::Error> {
                skip_all(from).map(|()| Flat(json!([])))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Flat, E> {
                Ok(Flat(value.into()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Flat, E> {
                Ok(Flat(value.into()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Flat, E> {
                Ok(Flat(value.into()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Flat, E> {
                Ok(Flat(value.into()))
            }
            fn visit_str<E>(self, value: &str) -> Result<Flat, E> {
                Ok(Flat(value.into()))
            }
            fn visit_unit<E>(self) -> Result<Flat, E> {
                Ok(Flat(Value::Null))
            }
        }
        from.deserialize_any(Reads)
    }
}

fn skip_all<'de, A: SeqAccess<'de>>(mut from: A) -> Result<(), A::Error> {
    while from.next_element::<IgnoredAny>()?.is_some() {}
    Ok(())
}

/// The parameters of a query.
pub(super) struct Parameters {
    given: BTreeMap<String, String>,
    wrong: Wrong,
}

impl Parameters {
    pub fn of(request: &Request) -> Parameters {
        let mut read = Parameters {
            given: BTreeMap::new(),
            wrong: Wrong::default(),
        };
        for (name, value) in request.query_pairs() {
            if read.given.insert(name.to_string(), value.into()).is_some() {
                read.wrong(&name, "is given more than once");
            }
        }
        read
    }

    pub fn wrong(&mut self, name: &str, detail: &str) {
        self.wrong.add_parameter(name, detail);
    }

    fn take<T>(
        &mut self,
        name: &str,
        takes: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.given.remove(name)?;
        let value = read(&text);
        if value.is_none() {
            self.wrong(name, takes);
        }
        value
    }

    pub fn whole(&mut self, name: &str, least: i64, most: i64) -> Option<i64> {
        let takes = format!("takes a whole number from {least} to {most}");
        self.take(name, &takes, |text| {
            let number = whole(text)?;
            (least..=most).contains(&number).then_some(number)
        })
    }

    pub fn time(&mut self, name: &str) -> Option<Timestamp> {
        self.take(name, TIME, |text| time(text).ok().or_else(|| last(text)))
    }

    pub fn text(&mut self, name: &str) -> Option<String> {
        self.given.remove(name)
    }

    /// Fails when anything was wrong, or is unknown.
    pub fn finish(mut self) -> Result<(), Problem> {
        for name in std::mem::take(&mut self.given).keys() {
            self.wrong(name, "is unknown");
        }
        self.wrong.refuse("some parameters are wrong")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_needs_its_offset_and_is_kept_as_it_is() {
        for (text, utc) in [
            ("2030-01-02T10:00:00Z", "2030-01-02T10:00:00Z"),
            ("2030-01-02T11:00:00+01:00", "2030-01-02T10:00:00Z"),
            ("2030-01-02t10:00:00.5z", "2030-01-02T10:00:00.5Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
            ("9999-12-30T20:00:00Z", "9999-12-30T20:00:00Z"),
            (
                "2030-01-02T10:00:00.123456-00:00",
                "2030-01-02T10:00:00.123456Z",
            ),
        ] {
            assert_eq!(time(text).unwrap().to_string(), utc, "{text}");
        }
        for bad in [
            "",
            "2030-01-02",
            "2030-01-02T10:00:00",
            "2030-01-02 10:00:00Z",
            "2030-01-02T10:00Z",
            "2030-01-02T10:00:00.1234567Z",
            "2030-01-02T10:00:00.Z",
            "2030-13-02T10:00:00Z",
            "2030-02-30T10:00:00Z",
            "2030-01-02T25:00:00Z",
            "2030-01-02T10:00:00Z[Europe/Berlin]",
            "+002030-01-02T10:00:00Z",
            "2030-01-02T10:00:00+0100",
            "２030-01-02T10:00:00Z",
            "2030-01-02T10:00:60Z",
            "2030-01-02T10:00:00+24:00",
            "2030-01-02T10:00:00+23:60",
            "0000-12-31T23:59:59Z",
            "0001-01-01T00:00:00+00:01",
            "9999-12-31T23:59:59-00:01",
        ] {
            assert_eq!(time(bad), Err(TIME), "{bad}");
        }
    }

    fn read(text: &str) -> serde_json::Result<Option<Fields>> {
        let mut from = serde_json::Deserializer::from_str(text);
        let body = Body { known: &["a", "b"] }.deserialize(&mut from)?;
        from.end().map(|()| body)
    }

    #[test]
    fn a_body_is_an_object_whose_names_differ() {
        assert!(matches!(read(r#"{"a":1,"b":[{}]}"#), Ok(Some(_))));
        for other in ["1", "-1", "1.5", "\"x\"", "null", "true", "[1,{\"a\":2}]"] {
            assert!(matches!(read(other), Ok(None)), "{other}");
        }
        for bad in [
            "",
            "{",
            "{\"a\":1,\"a\":1}",
            "{} {}",
            "1e999",
            "\"\\ud800\"",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_not_asked_for_is_counted_and_not_kept() {
        let many: Vec<_> = (0..1000).map(|n| format!("\"x{n}\":[{{}}]")).collect();
        let fields = read(&format!("{{\"a\":{{\"b\":[1,2]}},{}}}", many.join(",")));
        let fields = fields.unwrap().unwrap();
        assert_eq!((fields.given.len(), fields.unknown.count()), (1, 1000));
        assert_eq!(fields.given["a"], json!({}));
    }
}
