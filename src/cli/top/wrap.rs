//! Text in lines of a width.

use ratatui::text::Span;

/// The text in lines that are no wider than this, broken between words where that is possible.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    if width == 0 {
        return Vec::new();
    }
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split_inclusive(' ') {
        let wide = Span::raw(word.trim_end()).width();
        if used > 0 && used + wide > width {
            lines.push(String::new());
            used = 0;
        }
        let mut buffer = [0; 4];
        for c in word.chars() {
            let wide = Span::raw(&*c.encode_utf8(&mut buffer)).width();
            if used + wide > width {
                // A blank at the end of a line is the break itself.
                if c == ' ' {
                    continue;
                }
                lines.push(String::new());
                used = 0;
            }
            if let Some(line) = lines.last_mut() {
                line.push(c);
            }
            used += wide;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_no_wider_than_they_may_be() {
        for (text, width, lines) in [
            ("one two three", 7, &["one two", "three"][..]),
            ("one two three", 8, &["one two ", "three"]),
            ("abcdefgh ij", 3, &["abc", "def", "gh ", "ij"]),
            ("日本語", 4, &["日本", "語"]),
            ("", 4, &[""]),
            ("a", 0, &[]),
        ] {
            assert_eq!(wrapped(text, width), lines, "{text} {width}");
        }
        // What does not fit at all is not waited for.
        assert!(wrapped("日本語", 1).len() <= 4);
    }
}
