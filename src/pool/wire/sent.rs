//! Finds the texts of statements in the data for the server. Pure: bytes in, texts out.
//!
//! The messages that matter are Query (a text), Parse (a name, a text) and Bind (a portal, a name);
//! all other data is skipped (manual, section 55.7). A write may end anywhere in a message.

use std::collections::HashMap;
use std::sync::Arc;

const QUERY: u8 = b'Q';
const PARSE: u8 = b'P';
const BIND: u8 = b'B';

/// The cursor through which the pool passes on rows one by one. One name is enough: a transaction
/// has at most one, since the code that reads the rows has borrowed the transaction. Of the
/// statements on it, the one that it was declared for counts here.
pub(crate) const CURSOR: &str = "millpond_each";

const HEAD: usize = 5;
/// Of a text, this many bytes are kept.
const LONGEST: usize = 400;
/// Of names before a text. The driver's are short: the letter s and a number.
const NAMES: usize = 64;
/// More names than a session keeps statements. The names of closed statements are among them.
const MOST_NAMES: usize = 1000;

/// The state between two writes.
#[derive(Default)]
pub(super) struct Sent {
    /// The startup message, the first on a connection, has no tag.
    has_begun: bool,
    /// Tag and length of the current message, as far as they were written.
    head: Vec<u8>,
    /// Length of the part of its body that was not written yet.
    left: usize,
    /// The beginning of its body.
    body: Vec<u8>,
    texts: HashMap<Box<[u8]>, Arc<str>>,
    /// What the cursor was declared for.
    rows_of: Option<Arc<str>>,
}

impl Sent {
    /// Takes note of data that was written. Returns the text of the last statement in it whose
    /// message is complete.
    pub fn note(&mut self, mut data: &[u8]) -> Option<Arc<str>> {
        let mut last = None;
        while !data.is_empty() {
            if self.left == 0 {
                let wanted = if self.has_begun { HEAD } else { HEAD - 1 };
                let step = (wanted - self.head.len()).min(data.len());
                self.head.extend_from_slice(&data[..step]);
                data = &data[step..];
                let Some(length) = (self.head.len() == wanted)
                    .then(|| self.head.last_chunk())
                    .flatten()
                else {
                    continue;
                };
                let length = u32::from_be_bytes(*length) as usize;
                self.left = length.saturating_sub(size_of::<u32>());
            }
            let step = self.left.min(data.len());
            if matches!(self.tag(), QUERY | PARSE | BIND) {
                let room = (LONGEST + NAMES).saturating_sub(self.body.len());
                self.body.extend_from_slice(&data[..step.min(room)]);
            }
            data = &data[step..];
            self.left -= step;
            if self.left == 0 {
                last = self.text().or(last);
                self.has_begun = true;
                self.head.clear();
                self.body.clear();
            }
        }
        last
    }

    fn tag(&self) -> u8 {
        match self.has_begun {
            true => self.head[0],
            false => 0,
        }
    }

    /// The text of the statement that the current message names.
    fn text(&mut self) -> Option<Arc<str>> {
        match self.tag() {
            QUERY => Some(shown(until_zero(&self.body).0)),
            PARSE => {
                let (name, rest) = until_zero(&self.body);
                let text = behind_cursor(&mut self.rows_of, shown(until_zero(rest).0));
                if self.texts.len() >= MOST_NAMES {
                    self.texts.clear();
                }
                self.texts.insert(name.into(), Arc::clone(&text));
                Some(text)
            }
            BIND => {
                let (_portal, rest) = until_zero(&self.body);
                self.texts.get(until_zero(rest).0).cloned()
            }
            _ => None,
        }
    }
}

/// Returns the text for which the cursor was declared, if the statement is one on the cursor.
fn behind_cursor(rows_of: &mut Option<Arc<str>>, text: Arc<str>) -> Arc<str> {
    let Some((before, after)) = text.split_once(CURSOR) else {
        return text;
    };
    if before == "DECLARE "
        && let Some((_, sql)) = after.split_once("CURSOR FOR ")
    {
        return Arc::clone(rows_of.insert(sql.into()));
    }
    match (rows_of, before.strip_prefix("FETCH ")) {
        (Some(sql), Some(_)) => Arc::clone(sql),
        _ => text,
    }
}

/// Returns what comes before the first zero byte, and what comes after it.
fn until_zero(bytes: &[u8]) -> (&[u8], &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let first = parts.next().unwrap_or_default();
    (first, parts.next().unwrap_or_default())
}

fn shown(text: &[u8]) -> Arc<str> {
    String::from_utf8_lossy(&text[..text.len().min(LONGEST)]).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u32 + 4).to_be_bytes();
        [&[tag], &length[..], body].concat()
    }

    #[test]
    fn texts_are_found_wherever_the_writes_end() {
        let startup = [&[0, 0, 0, 15][..], b"\0\x03\0\0user\0\0\0"].concat();
        let long = format!("SELECT {}", "x".repeat(2000));
        let declare = format!("\0DECLARE {CURSOR} NO SCROLL CURSOR FOR SELECT 4\0\0\0");
        let fetch = format!("\0FETCH 100 FROM {CURSOR}\0\0\0");
        let steps = [
            (startup, None),
            (message(b'p', b"SELECT secret\0"), None),
            (message(b'Q', b"SELECT 1\0"), Some("SELECT 1")),
            (message(b'P', b"s1\0SELECT $1\0\0\0"), Some("SELECT $1")),
            (message(b'P', b"\0SELECT 2\0\0\0"), Some("SELECT 2")),
            (message(b'B', b"\0s1\0\0\0"), Some("SELECT $1")),
            (message(b'B', b"\0\0\0\0"), Some("SELECT 2")),
            (message(b'B', b"\0other\0\0\0"), None),
            (message(b'd', b"SELECT 3\0"), None),
            (message(b'S', b""), None),
            (message(b'P', declare.as_bytes()), Some("SELECT 4")),
            (message(b'P', fetch.as_bytes()), Some("SELECT 4")),
            (message(b'B', b"\0\0\0\0"), Some("SELECT 4")),
            (message(b'Q', long.as_bytes()), Some(&long[..LONGEST])),
        ];
        for size in [1, 2, 3, 5, 7, 64, 10_000] {
            let mut sent = Sent::default();
            for (bytes, expected) in &steps {
                let mut found = None;
                for piece in bytes.chunks(size) {
                    found = sent.note(piece).or(found);
                }
                assert_eq!(found.as_deref(), *expected, "in pieces of {size}");
            }
        }
    }

    #[test]
    fn of_several_in_one_write_the_last_counts() {
        let mut sent = Sent::default();
        sent.note(b"\0\0\0\x08\0\x03\0\0");
        let both = [message(b'Q', b"BEGIN\0"), message(b'Q', b"SELECT 1\0")].concat();
        assert_eq!(sent.note(&both).as_deref(), Some("SELECT 1"));
    }

    #[test]
    fn lengths_that_cannot_be_are_survived() {
        let mut sent = Sent::default();
        for byte in [0, 0, 0, 0, b'Q', 0, 0, 0, 0, b'Q', 0, 0, 0, 4] {
            sent.note(&[byte]);
        }
        let text = sent.note(&message(b'Q', b"SELECT 1\0"));
        assert_eq!(text.as_deref(), Some("SELECT 1"));
    }

    #[test]
    fn names_are_bounded() {
        let mut sent = Sent::default();
        sent.note(b"\0\0\0\x08\0\x03\0\0");
        for n in 0..2500 {
            sent.note(&message(b'P', format!("s{n}\0SELECT {n}\0\0\0").as_bytes()));
        }
        assert!(sent.texts.len() <= MOST_NAMES);
        assert_eq!(
            sent.note(&message(b'B', b"\0s2499\0")).as_deref(),
            Some("SELECT 2499")
        );
    }
}
