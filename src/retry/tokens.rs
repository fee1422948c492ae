//! Splits the text of a statement into tokens. It knows just enough of the grammar to tell words,
//! names and constants apart.

/// The tokens of a text, as far as they matter here (manual, section 4.1): comments are skipped,
/// and a literal is one token.
#[derive(Clone, Copy)]
pub(super) struct Tokens<'a>(pub &'a str);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A keyword or a name.
    Word(&'a str),
    /// A name in double quotes, without them.
    Quoted(&'a str),
    /// A string with its quotes, or a number.
    Literal(&'a str),
    Sign(char),
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        self.0 = after_blanks(self.0);
        let text = self.0;
        let first = text.chars().next()?;
        let (length, token): (usize, fn(&'a str) -> Token<'a>) = match first {
            '\'' => (quoted_length(text, b'\'', false), Token::Literal),
            '"' => (quoted_length(text, b'"', false), |name| {
                Token::Quoted(name.trim_matches('"'))
            }),
            '$' => match dollar_quoted_length(text) {
                Some(length) => (length, Token::Literal),
                None => (1, |_| Token::Sign('$')),
            },
            '0'..='9' => (number_length(text), Token::Literal),
            _ if is_word(first) => {
                let length = word_length(text);
                let (word, rest) = text.split_at(length);
                if rest.starts_with('\'') && is(word, &["E", "B", "X", "N"]) {
                    let escapes = is(word, &["E"]);
                    let mut length = length + quoted_length(rest, b'\'', escapes);
                    // After a line break the string continues, with its escapes.
                    while escapes && let Some(more) = continuation(&text[length..]) {
                        length += more + quoted_length(&text[length + more..], b'\'', true);
                    }
                    (length, Token::Literal)
                } else {
                    (length, Token::Word)
                }
            }
            _ => {
                self.0 = &text[first.len_utf8()..];
                return Some(Token::Sign(first));
            }
        };
        let (found, rest) = text.split_at(length);
        self.0 = rest;
        Some(token(found))
    }
}

/// Returns the length of the blanks after which a string continues: they contain a line break, and
/// a quote follows (manual, section 4.1.2.1).
fn continuation(text: &str) -> Option<usize> {
    let rest = text.trim_start();
    let blanks = &text[..text.len() - rest.len()];
    (rest.starts_with('\'') && blanks.contains(['\n', '\r'])).then_some(blanks.len())
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || !c.is_ascii()
}

fn word_length(text: &str) -> usize {
    text.find(|c: char| !is_word(c) && !c.is_ascii_digit() && c != '$')
        .unwrap_or(text.len())
}

/// Returns the length of a number with the letters that stick to it. A string may follow at once.
fn number_length(text: &str) -> usize {
    text.find(|c: char| !is_word(c) && !c.is_ascii_digit())
        .unwrap_or(text.len())
}

/// Returns the length of a literal that begins with `quote`, including its end; the length of the
/// whole text if it has no end.
fn quoted_length(text: &str, quote: u8, escapes: bool) -> usize {
    let bytes = text.as_bytes();
    let mut at = 1;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\\' if escapes => at += 2,
            // A doubled quote stands for itself.
            _ if byte == quote && bytes.get(at + 1) == Some(&quote) => at += 2,
            _ if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

fn dollar_quoted_length(text: &str) -> Option<usize> {
    let tag = text[1..].find('$').map(|at| &text[..at + 2])?;
    let name = &tag[1..tag.len() - 1];
    if name.starts_with(|c: char| c.is_ascii_digit()) || word_length(name) != name.len() {
        return None;
    }
    let body = &text[tag.len()..];
    Some(body.find(tag).map_or(text.len(), |at| 2 * tag.len() + at))
}

/// Returns whether a text has a comment anywhere.
pub(crate) fn has_comment(sql: &str) -> bool {
    if !sql.contains("--") && !sql.contains("/*") {
        return false;
    }
    let mut tokens = Tokens(sql);
    loop {
        let rest = tokens.0.trim_start();
        if rest.starts_with("--") || rest.starts_with("/*") {
            return true;
        }
        if tokens.next().is_none() {
            return false;
        }
    }
}

/// Returns the text after blanks and comments.
pub(super) fn after_blanks(mut text: &str) -> &str {
    loop {
        text = text.trim_start();
        if let Some(rest) = text.strip_prefix("--") {
            // The server ends a comment at either character (scan.l).
            text = rest.split_once(['\n', '\r']).map_or("", |(_, after)| after);
        } else if let Some(rest) = text.strip_prefix("/*") {
            text = after_block_comment(rest);
        } else {
            return text;
        }
    }
}

/// Returns the text after a block comment. Block comments nest in PostgreSQL (manual, section
/// 4.1.5).
pub(super) fn after_block_comment(mut text: &str) -> &str {
    let mut depth = 1;
    while depth > 0 {
        let Some(at) = text.find(['*', '/']) else {
            return "";
        };
        text = &text[at..];
        if let Some(rest) = text.strip_prefix("*/") {
            depth -= 1;
            text = rest;
        } else if let Some(rest) = text.strip_prefix("/*") {
            depth += 1;
            text = rest;
        } else {
            text = &text[1..];
        }
    }
    text
}

pub(super) fn is(word: &str, list: &[&str]) -> bool {
    list.iter().any(|one| one.eq_ignore_ascii_case(word))
}
