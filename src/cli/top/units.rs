//! Numbers as people read them, each in a few characters, whatever the number is.

/// What stands for a number that there is none of.
pub(super) const NONE: &str = "–";

pub(super) fn milliseconds(value: Option<f64>) -> String {
    let Some(ms) = value.filter(|ms| ms.is_finite()) else {
        return NONE.to_owned();
    };
    let ms = ms.max(0.0);
    match ms {
        ..9.995 => format!("{ms:.2} ms"),
        ..99.95 => format!("{ms:.1} ms"),
        ..999.5 => format!("{ms:.0} ms"),
        ..9_995.0 => format!("{:.2} s", ms / 1e3),
        ..60_000.0 => format!("{:.1} s", ms / 1e3),
        _ => duration(ms / 1e3),
    }
}

/// A duration in its two largest units.
pub(super) fn duration(seconds: f64) -> String {
    let all = seconds.max(0.0) as u64;
    let (days, hours, minutes) = (all / 86_400, all / 3600 % 24, all / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{all} s"),
        (0, 0, _) => format!("{minutes} min {} s", all % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        (..=999, _, _) => format!("{days} d {hours} h"),
        _ => "years".to_owned(),
    }
}

/// A count, or a rate.
pub(super) fn number(value: Option<f64>) -> String {
    let Some(value) = value.filter(|value| value.is_finite()) else {
        return NONE.to_owned();
    };
    let value = value.max(0.0);
    match value {
        v if v < 9.95 && v.fract() >= 0.05 => format!("{v:.1}"),
        ..9_999.5 => format!("{value:.0}"),
        ..999_950.0 => format!("{:.1}k", value / 1e3),
        ..999_950_000.0 => format!("{:.1}M", value / 1e6),
        ..1e12 => format!("{:.1}G", value / 1e9),
        _ => "> 1000G".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_short() {
        for (given, shown) in [
            (Some(0.4), "0.40 ms"),
            (Some(12.34), "12.3 ms"),
            (Some(340.2), "340 ms"),
            (Some(1234.5), "1.23 s"),
            (Some(12_345.0), "12.3 s"),
            (Some(62_000.0), "1 min 2 s"),
            (Some(7.3e6), "2 h 1 min"),
            (Some(1e300), "years"),
            (Some(-1.0), "0.00 ms"),
            (Some(f64::NAN), "–"),
            (None, "–"),
        ] {
            assert_eq!(milliseconds(given), shown);
        }
        for (given, shown) in [
            (Some(0.0), "0"),
            (Some(0.25), "0.2"),
            (Some(12.0), "12"),
            (Some(9999.0), "9999"),
            (Some(12_345.0), "12.3k"),
            (Some(2.5e6), "2.5M"),
            (Some(1e300), "> 1000G"),
            (None, "–"),
        ] {
            assert_eq!(number(given), shown);
        }
        assert_eq!(duration(90_061.0), "1 d 1 h");
    }
}
