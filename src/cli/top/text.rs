//! Text from outside: statements, names of threads, messages. What a terminal would obey, or what
//! would hide something, is taken out of it.

use serde::Deserialize;
use std::fmt;

/// A longer text is cut here: no terminal shows more.
const LONGEST: usize = 8192;

/// One line of text that a terminal only shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub(super) struct Text(String);

impl Text {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for Text {
    fn from(text: String) -> Text {
        Text::from(text.as_str())
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Text {
        let mut clean = String::with_capacity(text.len().min(LONGEST));
        for c in text.trim().chars() {
            if clean.len() >= LONGEST {
                clean.push('…');
                break;
            }
            match c {
                c if c.is_whitespace() && clean.ends_with(' ') => {}
                c if c.is_whitespace() => clean.push(' '),
                c if is_hidden(c) => clean.push('·'),
                c => clean.push(c),
            }
        }
        Text(clean)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Control characters, of which escape sequences are made, and characters without a shape, which
/// hide or reorder others.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{202a}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{fe00}'..='\u{fe0f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_would_obey_is_left() {
        for (given, shown) in [
            ("SELECT 1", "SELECT 1"),
            ("  SELECT\n\t 1 ", "SELECT 1"),
            ("\u{1b}[2Ja\u{1b}]0;b\u{7}", "·[2Ja·]0;b·"),
            ("\u{9b}31ma\u{7f}\0", "·31ma··"),
            ("a\u{202e}b\u{200b}c\u{2028}d", "a·b·c d"),
            ("é 日本 ▂", "é 日本 ▂"),
        ] {
            assert_eq!(Text::from(given).as_str(), shown, "{given:?}");
        }
    }

    #[test]
    fn a_text_of_any_length_is_of_a_bearable_one() {
        let text = Text::from("é".repeat(1_000_000));
        assert!(text.as_str().len() < LONGEST + 8 && text.as_str().ends_with('…'));
    }
}
