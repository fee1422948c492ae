//! Finds the texts of statements in the data for the server. Pure: bytes in, texts out.
//!
//! The messages that matter are Query (a text), Parse (a name, a text), Bind (a portal, a name), and
//! those that have an answer with an end of its own (ReadyForQuery): the first, Query and Sync. All
//! other data is skipped (manual, section 55.7). A write may end anywhere in a message.

use super::frame::first_message;
use std::collections::HashMap;
use std::sync::Arc;

const QUERY: u8 = b'Q';
const PARSE: u8 = b'P';
const BIND: u8 = b'B';
const SYNC: u8 = b'S';

/// The cursor through which the pool passes on rows one by one. One name is enough: a transaction
/// has at most one, since the code that reads the rows has borrowed the transaction. Of the
/// statements on it, the one that it was declared for counts here.
pub(crate) const CURSOR: &str = "millpond_each";

/// How a text begins that does nothing: statements of the pool's own leave in front of it.
const BEHIND: &str = "/* behind ";

/// Returns a text that does nothing. Here it counts as `what` leaves in front of it.
pub(crate) fn behind(what: &str) -> String {
    format!("{BEHIND}{what} */")
}

const HEAD: usize = 5;
/// Of a text, this many bytes are kept, and an ellipsis for the rest.
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
    /// Messages that have an answer with an end of its own.
    ends: u64,
    /// Length of the part of its body that was not written yet.
    left: usize,
    /// The beginning of its body.
    body: Vec<u8>,
    texts: HashMap<Box<[u8]>, Arc<str>>,
    /// What the cursor was declared for.
    rows_of: Option<Arc<str>>,
}

/// What comes first in data for the server.
pub(super) enum Next {
    /// A request of the extended protocol, up to its Sync.
    Statement,
    /// A request of the simple protocol.
    Query,
    /// A message of another kind, or the rest of one, of this length: a Close, a Sync.
    Other(usize),
}

impl Sent {
    /// Takes note of data that was written. Returns the text of the last statement in it whose message
    /// is complete, and the number of the answer that ends it, from 1.
    pub fn note(&mut self, mut data: &[u8]) -> Option<(Arc<str>, u64)> {
        let mut noted = None;
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
                let ends = self.ends;
                let last = self.text().map(|text| (text, ends + 1));
                noted = last.or(noted);
                if !self.has_begun || matches!(self.tag(), QUERY | SYNC) {
                    self.ends += 1;
                }
                self.has_begun = true;
                self.head.clear();
                self.body.clear();
            }
        }
        noted
    }

    /// Returns how many messages were written that have an answer with an end of its own.
    pub fn ends(&self) -> u64 {
        self.ends
    }

    /// Returns what comes first in data that is about to be written.
    pub fn next(&self, data: &[u8]) -> Next {
        if !self.has_begun || !self.head.is_empty() {
            // At least one byte is left of the current message.
            return Next::Other(self.left.clamp(1, data.len().max(1)));
        }
        match data.first() {
            Some(&(PARSE | BIND)) => Next::Statement,
            Some(&QUERY) => Next::Query,
            _ => Next::Other(first_message(data).map_or(data.len(), |(.., length)| length)),
        }
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
                let text = shown(until_zero(rest).0);
                let text = match in_front_of(&text) {
                    Some(what) => what.into(),
                    None => behind_cursor(&mut self.rows_of, text),
                };
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

/// Returns what leaves in front of a text of [`behind`], which may have a comment.
fn in_front_of(text: &str) -> Option<&str> {
    let (what, rest) = text.strip_prefix(BEHIND)?.split_once(" */")?;
    (rest.is_empty() || rest.starts_with(" /*")).then_some(what)
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
    match text.split_at_checked(LONGEST) {
        Some((kept, [_, ..])) => {
            let kept = String::from_utf8_lossy(kept);
            // The last character may be cut, too.
            let whole = kept.trim_end_matches(char::REPLACEMENT_CHARACTER);
            format!("{whole}…").into()
        }
        _ => String::from_utf8_lossy(text).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u32 + 4).to_be_bytes();
        [&[tag], &length[..], body].concat()
    }

    fn noted(sent: &mut Sent, data: &[u8]) -> Option<(String, u64)> {
        let (text, end) = sent.note(data)?;
        Some((text.to_string(), end))
    }

    fn text(sent: &mut Sent, data: &[u8]) -> Option<String> {
        noted(sent, data).map(|(text, _)| text)
    }

    #[test]
    fn texts_are_found_wherever_the_writes_end() {
        let startup = [&[0, 0, 0, 15][..], b"\0\x03\0\0user\0\0\0"].concat();
        let long = format!("SELECT {}", "x".repeat(2000));
        let cut = format!("{}…", &long[..LONGEST]);
        let letters = format!("SELECT '{}", "é".repeat(200));
        let cut_letters = format!("SELECT '{}…", "é".repeat(196));
        let declare = format!("\0DECLARE {CURSOR} NO SCROLL CURSOR FOR SELECT 4\0\0\0");
        let fetch = format!("\0FETCH 100 FROM {CURSOR}\0\0\0");
        let begun = format!("s2\0{} /*traceparent=''*/\0\0\0", behind("BEGIN"));
        let by_others = format!("\0{} SELECT 5\0\0\0", behind("BEGIN"));
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
            (message(b'P', begun.as_bytes()), Some("BEGIN")),
            (message(b'B', b"\0s2\0\0\0"), Some("BEGIN")),
            (
                message(b'P', by_others.as_bytes()),
                Some(&by_others[1..by_others.len() - 3]),
            ),
            (message(b'Q', long.as_bytes()), Some(&cut)),
            (message(b'Q', letters.as_bytes()), Some(&cut_letters)),
        ];
        for size in [1, 2, 3, 5, 7, 64, 10_000] {
            let mut sent = Sent::default();
            for (bytes, expected) in &steps {
                let mut found = None;
                for piece in bytes.chunks(size) {
                    found = text(&mut sent, piece).or(found);
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
        assert_eq!(noted(&mut sent, &both), Some(("SELECT 1".into(), 3)));
        // The driver closes a statement in the message before the next.
        let closes = [message(b'C', b"Ss1\0"), message(b'S', b"")].concat();
        let parse = message(b'P', b"\0SELECT 2\0\0\0");
        let all = [closes, parse, message(b'S', b"")].concat();
        assert_eq!(noted(&mut sent, &all), Some(("SELECT 2".into(), 5)));
        let query = message(b'Q', b"SELECT 3\0");
        assert_eq!(noted(&mut sent, &query), Some(("SELECT 3".into(), 6)));
    }

    #[test]
    fn lengths_that_cannot_be_are_survived() {
        let mut sent = Sent::default();
        for byte in [0, 0, 0, 0, b'Q', 0, 0, 0, 0, b'Q', 0, 0, 0, 4] {
            sent.note(&[byte]);
        }
        let query = message(b'Q', b"SELECT 1\0");
        assert_eq!(text(&mut sent, &query).as_deref(), Some("SELECT 1"));
    }

    #[test]
    fn names_are_bounded() {
        let mut sent = Sent::default();
        sent.note(b"\0\0\0\x08\0\x03\0\0");
        for n in 0..2500 {
            sent.note(&message(b'P', format!("s{n}\0SELECT {n}\0\0\0").as_bytes()));
        }
        assert!(sent.texts.len() <= MOST_NAMES);
        let bind = message(b'B', b"\0s2499\0");
        assert_eq!(text(&mut sent, &bind).as_deref(), Some("SELECT 2499"));
    }
}
