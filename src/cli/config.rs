//! `millpond config`.

use super::{Failure, output};
use crate::config::Config;

/// One line for each setting: name, value, source.
pub(super) fn print(config: &Config) -> Result<(), Failure> {
    let settings = config.effective();
    let width = |of: fn(&(&'static str, String, crate::config::Source)) -> usize| {
        settings.iter().map(of).max().unwrap_or(0)
    };
    let (names, values) = (width(|s| s.0.len()), width(|s| s.1.len()));
    let lines = settings
        .iter()
        .map(|(name, value, source)| format!("{name:<names$}  {value:<values$}  {source}\n"));
    output::print(&lines.collect::<String>())?;
    for text in super::unknown_settings(config) {
        output::complain(&format!("millpond: {text}"));
    }
    Ok(())
}
