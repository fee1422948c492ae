//! Which request of which trace work is done for (W3C Trace Context). Pure.

use log::kv::{ToValue, Value};
use std::fmt;
use std::str::FromStr;

/// The span that work is done for, as it is passed on in the header `traceparent` ([W3C Trace
/// Context](https://www.w3.org/TR/trace-context/), section 3.2).
///
/// ```
/// use millpond::Traceparent;
///
/// let header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// let parent: Traceparent = header.parse()?;
/// assert!(parent.is_sampled());
/// assert_eq!(parent.to_string(), header);
///
/// // Everything else is refused: here, letters in upper case.
/// assert!(header.to_uppercase().parse::<Traceparent>().is_err());
/// # Ok::<_, millpond::BadTraceparent>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Traceparent {
    trace: u128,
    span: u64,
    flags: u8,
}

/// The length of version 00, which a later version may only continue.
const LENGTH: usize = 55;
/// The flags that are defined: sampled, and (level 2) a random trace id. Others are to be zero.
const FLAGS: u8 = 0b11;

impl Traceparent {
    /// Returns the id of the trace, which is never zero.
    pub fn trace_id(&self) -> u128 {
        self.trace
    }

    /// Returns the id of the span, which is never zero.
    pub fn span_id(&self) -> u64 {
        self.span
    }

    /// Returns whether the caller may have recorded the span.
    pub fn is_sampled(&self) -> bool {
        self.flags & 1 == 1
    }

    fn parse(text: &[u8]) -> Option<Traceparent> {
        let is_version_0 = text.starts_with(b"00");
        let ends_well = match text.get(LENGTH) {
            None => text.len() == LENGTH,
            Some(next) => !is_version_0 && *next == b'-',
        };
        let has_dashes = [2, 35, 52].iter().all(|at| text.get(*at) == Some(&b'-'));
        if !ends_well || !has_dashes || hex(&text[..2])? == 0xff {
            return None;
        }
        let parent = Traceparent {
            trace: hex(&text[3..35])?,
            span: u64::try_from(hex(&text[36..52])?).ok()?,
            flags: u8::try_from(hex(&text[53..55])?).ok()? & FLAGS,
        };
        (parent.trace != 0 && parent.span != 0).then_some(parent)
    }
}

/// Returns the value of digits in lower case.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u128::from(digit))
    })
}

/// Takes version 00 as it is specified, and of any later version the fields that are in version 00.
impl FromStr for Traceparent {
    type Err = BadTraceparent;

    fn from_str(text: &str) -> Result<Traceparent, BadTraceparent> {
        Traceparent::parse(text.as_bytes()).ok_or(BadTraceparent(()))
    }
}

/// Writes version 00.
impl fmt::Display for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Traceparent { trace, span, flags } = self;
        write!(f, "00-{trace:032x}-{span:016x}-{flags:02x}")
    }
}

/// A text is no `traceparent`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadTraceparent(());

impl fmt::Display for BadTraceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a traceparent as W3C Trace Context specifies it")
    }
}

impl std::error::Error for BadTraceparent {}

/// A field of a log line, in hexadecimal digits.
pub(crate) struct Digits {
    value: u128,
    width: usize,
}

impl fmt::Display for Digits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Digits { value, width } = self;
        write!(f, "{value:0width$x}")
    }
}

impl ToValue for Digits {
    fn to_value(&self) -> Value<'_> {
        Value::from_display(self)
    }
}

impl Traceparent {
    /// Returns the values of `trace_id`, `span_id` and `trace_flags`, for [`traced!`].
    pub(crate) fn fields(self) -> [Digits; 3] {
        let Traceparent { trace, span, flags } = self;
        [(trace, 32), (span.into(), 16), (flags.into(), 2)]
            .map(|(value, width)| Digits { value, width })
    }
}

/// Logs a line with key-values, and with those of an `Option<Traceparent>`: `trace_id`, `span_id`
/// and `trace_flags`, as OpenTelemetry has them in logs.
macro_rules! traced {
    ($level:expr, $of:expr, $($key:tt $(:$capture:tt)? = $value:expr),+; $($told:tt)+) => {
        log::log!(
            $level,
            $($key $(:$capture)? = $value,)*
            "trace_id" = $of.map(|of: $crate::Traceparent| { let [id, _, _] = of.fields(); id }),
            "span_id" = $of.map(|of: $crate::Traceparent| { let [_, id, _] = of.fields(); id }),
            "trace_flags" = $of.map(|of: $crate::Traceparent| { let [_, _, flags] = of.fields(); flags });
            $($told)+
        )
    };
}
pub(crate) use traced;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_taken_as_specified_or_not_at_all() {
        const IDS: &str = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";
        let good = |text: &str, as_written: &str| {
            let parsed: Traceparent = text.parse().unwrap_or_else(|_| panic!("{text}"));
            assert_eq!(parsed.to_string(), as_written);
        };
        for flags in ["00", "01", "02", "03"] {
            good(&format!("00-{IDS}-{flags}"), &format!("00-{IDS}-{flags}"));
        }
        // Flags that are not defined are left out.
        good(&format!("00-{IDS}-ff"), &format!("00-{IDS}-03"));
        good(&format!("00-{IDS}-08"), &format!("00-{IDS}-00"));
        // What a later version adds is left out.
        for more in ["", "-", "-what-is-to-come"] {
            good(&format!("cc-{IDS}-01{more}"), &format!("00-{IDS}-01"));
        }
        let (trace, span) = IDS.split_once('-').unwrap();
        for bad in [
            String::new(),
            "00".into(),
            format!("00-{IDS}"),
            format!("00-{IDS}-"),
            format!("00-{IDS}-1"),
            format!("00-{IDS}-001"),
            format!("00-{IDS}-01-"),
            format!("00-{IDS}-01-more"),
            format!("cc-{IDS}-01.more"),
            format!("cc-{IDS}-011"),
            format!("ff-{IDS}-01"),
            format!("0-{IDS}-01"),
            format!("0x-{IDS}-01"),
            format!("CC-{IDS}-01"),
            format!("00-{IDS}-0G"),
            format!("00-{IDS}-0A"),
            format!("00-{}-01", IDS.to_uppercase()),
            format!("00-{:032}-{span}-01", 0),
            format!("00-{trace}-{:016}-01", 0),
            format!("00_{trace}-{span}-01"),
            format!("00-{trace}_{span}-01"),
            format!("00-{trace}-{span}_01"),
            format!(" 00-{IDS}-01"),
            format!("00-{IDS}-01 "),
            format!("00-{}ä-{span}-01", &trace[2..]),
        ] {
            assert_eq!(bad.parse::<Traceparent>(), Err(BadTraceparent(())), "{bad}");
        }
    }
}
