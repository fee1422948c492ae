//! `millpond config`: prints the settings in force.

use super::failure::Failure;
use super::output;
use millpond::config::{Config, Source};

/// Prints a line for each setting: name, value, source.
pub(super) fn print(config: &Config) -> Result<(), Failure> {
    let settings = config.effective();
    let width = |of: fn(&(&'static str, String, Source)) -> usize| {
        settings.iter().map(of).max().unwrap_or(0)
    };
    let (names, values) = (width(|s| s.0.len()), width(|s| s.1.len()));
    let lines = settings
        .iter()
        .map(|(name, value, source)| format!("{name:<names$}  {value:<values$}  {source}\n"));
    output::print(&lines.collect::<String>())?;
    for text in unknown_settings(config) {
        output::complain(&format!("millpond: {text}"));
    }
    Ok(())
}

/// A line about each variable that looks like a setting and is not one.
pub(super) fn unknown_settings(config: &Config) -> Vec<String> {
    let told = config.unknown.iter().map(|(name, meant)| match meant {
        Some(meant) => format!("{name} is not a setting; did you mean {meant}?"),
        None => format!("{name} is not a setting"),
    });
    told.collect()
}
