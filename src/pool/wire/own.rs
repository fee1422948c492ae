//! Statements of the pool's own that leave in front of the driver's next request, in one round trip
//! with it: a BEGIN and what belongs to it; what a transaction does before its COMMIT.
//!
//! They are held back until the driver writes its request. The driver does not learn of them: their
//! answer is taken out of what the server sends, and kept for the session.
//!
//! **A statement never runs outside its transaction.** BEGIN may fail: it is cancelled, a standby
//! refuses its isolation level, a setting behind it is invalid. In a message of the simple
//! protocol, its answer would have an end of its own, and the server would go on with the next
//! message: the statement would run, and commit, by itself. So all of them are sent in the extended
//! protocol, and without a Sync. After an error there, the server skips all messages up to the next
//! Sync (manual, section 55.2.3), which is the one behind the driver's request. In the same way, a
//! COMMIT does not run if one of the statements in front of it fails. What follows from this:
//!
//! - They are put directly before a Parse or a Bind, with which a request begins that has one Sync,
//!   at its end. The driver may write other requests before, to close statements; ours come behind
//!   their Sync.
//! - A request of the simple protocol has no Sync, and would be skipped without an answer. So a
//!   session first begins in a round trip of its own there; a Query behind held statements cuts the
//!   connection.
//! - Once the server has refused one, nothing more may be written until the session, which then
//!   knows, has rolled back: the next statement would run by itself.
//! - The answer is complete before that to the request begins, so the session knows the number of
//!   its transaction before it can send COMMIT.
//!
//! Where the answer starts is found by counting the ends of answers, from the first message of the
//! connection. A COPY that fails may spoil that count (see `Answers`); then nothing is held any
//! more.
//!
//! **Names.** Most of these statements have the same few texts each time, and parsing and planning
//! them costs the server more than running them. So each text is prepared once for a connection,
//! under a name, and its values are parameters. A name may be gone: `DEALLOCATE ALL` is seen in a
//! text, but not in a function. Then nothing of the request was done (26000), and from then on the
//! pool uses no names (`Shared::loses_names`). Each preparation begins with a Close, which is no
//! error if there is no such statement: so it does not matter what the server still has. A name is
//! a hash of its text: should a pooler that was not recognized lead elsewhere, it means the same
//! there, or nothing.

use super::frame::{first_message, put_message};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::VecDeque;

/// How all names begin.
pub(crate) const OWN_NAMES: &str = "millpond.";
/// More texts than the pool has; of further ones none is prepared.
const MOST_NAMES: usize = 64;

/// A statement of the pool's own. Its parameters are text, so its text says what it makes of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Own {
    pub text: Cow<'static, str>,
    pub params: Vec<Option<String>>,
}

impl Own {
    pub fn new(text: impl Into<Cow<'static, str>>) -> Own {
        Own {
            text: text.into(),
            params: Vec::new(),
        }
    }

    /// Adds a parameter. Returns how the text names it.
    pub fn param(&mut self, value: impl Into<String>) -> String {
        self.params.push(Some(value.into()));
        format!("${}", self.params.len())
    }
}

/// The values of a row, as text.
pub(crate) type OwnRow = Vec<Option<String>>;

/// What has become of the statements of our own.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) enum OwnState {
    /// There are none that the wire knows of.
    #[default]
    None,
    /// They wait for the driver's request.
    Held(Messages),
    /// They were sent, and not all of them is answered yet.
    Sent,
    /// All of them were done. Contains their rows.
    Done(Vec<OwnRow>),
    /// The server has not done all of them, and nothing of what was sent behind them.
    Refused,
}

/// Which texts are prepared on a connection. There are few, and they differ in their lengths, so
/// looking through them is quicker than hashing one of a thousand letters.
#[derive(Debug, Default)]
pub(super) struct Names(Vec<Name>);

#[derive(Debug)]
struct Name {
    text: Box<str>,
    name: String,
    is_known: bool,
}

impl Names {
    /// Returns the name of a text, and whether the server knows it; None if it has none.
    fn of(&mut self, text: &str) -> Option<(String, bool)> {
        if let Some(name) = self.find(text) {
            return Some((name.name.clone(), name.is_known));
        }
        if self.0.len() >= MOST_NAMES {
            return None;
        }
        let hash = Sha256::digest(text);
        let hash = hash
            .first_chunk()
            .map_or(0, |first| u64::from_be_bytes(*first));
        let name = format!("{OWN_NAMES}{hash:016x}");
        self.0.push(Name {
            text: text.into(),
            name: name.clone(),
            is_known: false,
        });
        Some((name, false))
    }

    fn find(&mut self, text: &str) -> Option<&mut Name> {
        self.0.iter_mut().find(|name| *name.text == *text)
    }

    fn confirm(&mut self, text: &str) {
        if let Some(name) = self.find(text) {
            name.is_known = true;
        }
    }

    /// Has all of them prepared anew.
    pub fn forget(&mut self) {
        self.0.iter_mut().for_each(|name| name.is_known = false);
    }
}

/// Statements as messages of the extended protocol.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Messages {
    pub(super) bytes: Vec<u8>,
    count: usize,
    /// The texts that are prepared with them; None if one has no name.
    prepared: VecDeque<Option<String>>,
}

impl Messages {
    /// Takes the statements without names.
    pub(super) fn of(statements: &[Own]) -> Messages {
        let mut messages = Messages::default();
        for own in statements {
            messages.put(own, None);
        }
        messages
    }

    pub(super) fn named(statements: &[Own], names: &mut Names) -> Messages {
        let mut messages = Messages::default();
        for own in statements {
            messages.put(own, names.of(&own.text));
        }
        messages
    }

    fn put(&mut self, own: &Own, named: Option<(String, bool)>) {
        let out = &mut self.bytes;
        let (name, is_known) = named.unwrap_or_default();
        let name = [name.as_bytes(), b"\0"].concat();
        if !is_known {
            let has_name = name.len() > 1;
            if has_name {
                put_message(out, b'C', &[b"S", &name]);
            }
            // Without types of parameters: the server takes them from the text.
            put_message(out, b'P', &[&name, own.text.as_bytes(), b"\0\0\0"]);
            self.prepared
                .push_back(has_name.then(|| own.text.to_string()));
        }
        // The unnamed portal, without formats: values go and come as text.
        let mut values = (own.params.len() as u16).to_be_bytes().to_vec();
        for value in &own.params {
            let length = value.as_ref().map_or(-1, |value| value.len() as i32);
            values.extend(length.to_be_bytes());
            values.extend_from_slice(value.as_deref().unwrap_or_default().as_bytes());
        }
        put_message(out, b'B', &[b"\0", &name, b"\0\0", &values, b"\0\0"]);
        // All of its rows.
        put_message(out, b'E', &[&[0; 5]]);
        self.count += 1;
    }
}

/// The answer that is still to come.
pub(super) struct Expected {
    /// Statements that are not complete yet.
    left: usize,
    prepared: VecDeque<Option<String>>,
    rows: Vec<OwnRow>,
}

/// What is next in the data from the server.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken<E> {
    /// A message for the driver, of this length.
    Other(usize),
    /// A message that is not whole yet.
    Part,
    /// No part of the answer any more.
    End(E),
}

impl Expected {
    pub fn new(messages: &mut Messages) -> Expected {
        Expected {
            left: messages.count,
            prepared: std::mem::take(&mut messages.prepared),
            rows: Vec::new(),
        }
    }

    /// Removes the messages of the answer from the front of `data`.
    pub fn take(&mut self, data: &mut Vec<u8>, names: &mut Names) -> Taken<OwnState> {
        let mut at = 0;
        let taken = loop {
            if self.left == 0 {
                break Taken::End(OwnState::Done(std::mem::take(&mut self.rows)));
            }
            let Some((tag, body, length)) = first_message(&data[at..]) else {
                break Taken::Part;
            };
            match tag {
                // ParseComplete.
                b'1' => {
                    if let Some(Some(text)) = self.prepared.pop_front() {
                        names.confirm(&text);
                    }
                }
                // BindComplete, CloseComplete.
                b'2' | b'3' => {}
                b'C' => self.left -= 1,
                b'D' => self.rows.push(values(body)),
                // A notice, a setting, a notification.
                b'N' | b'S' | b'A' => break Taken::Other(length),
                _ => break Taken::End(OwnState::Refused),
            }
            at += length;
        };
        data.drain(..at);
        taken
    }
}

/// Returns the values of a row (DataRow). One that cannot be read is missing.
fn values(body: &[u8]) -> OwnRow {
    let mut rest = body.get(2..).unwrap_or_default();
    let mut values = Vec::new();
    while let Some((length, behind)) = rest.split_first_chunk() {
        // -1 is a NULL.
        let length = usize::try_from(i32::from_be_bytes(*length)).ok();
        let (value, behind) = match length.map(|length| behind.split_at_checked(length)) {
            None => (None, behind),
            Some(Some((value, behind))) => (Some(value), behind),
            Some(None) => break,
        };
        values.push(value.map(|value| String::from_utf8_lossy(value).into_owned()));
        rest = behind;
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u32 + 4).to_be_bytes();
        [&[tag], &length[..], body].concat()
    }

    fn done(command: &[u8]) -> Vec<u8> {
        [
            message(b'1', b""),
            message(b'2', b""),
            message(b'C', command),
        ]
        .concat()
    }

    fn row() -> Vec<u8> {
        message(b'D', b"\0\x03\0\0\0\x03742\xff\xff\xff\xff\0\0\0\0")
    }

    fn own(texts: &[&'static str]) -> Vec<Own> {
        texts.iter().map(|text| Own::new(*text)).collect()
    }

    /// Takes the answer out of data that come in pieces. Returns what is left, and the end.
    fn taken(data: &[u8], size: usize) -> (Vec<u8>, Option<OwnState>) {
        let mut messages = Messages::of(&own(&["BEGIN", "SELECT 1"]));
        let mut expected = Expected::new(&mut messages);
        let (mut held, mut passed, mut end) = (Vec::new(), Vec::new(), None);
        for piece in data.chunks(size) {
            held.extend_from_slice(piece);
            while end.is_none() {
                match expected.take(&mut held, &mut Names::default()) {
                    Taken::Part => break,
                    Taken::Other(length) => passed.extend(held.drain(..length)),
                    Taken::End(state) => end = Some(state),
                }
            }
        }
        passed.extend(held);
        (passed, end)
    }

    #[test]
    fn statements_become_messages_without_a_sync() {
        // By sha256sum.
        const BEGIN: &[u8] = b"millpond.a8402858d4f1e1d2";
        const SELECT: &[u8] = b"millpond.6096b3b47b56a626";
        let mut select = Own::new("SELECT $1, $2");
        select.param("ab");
        select.params.push(None);
        let all = [Own::new("BEGIN"), select];
        let parse =
            |name: &[u8], text: &[u8]| message(b'P', &[name, b"\0", text, b"\0\0\0"].concat());
        let run = |name: &[u8], values: &[u8]| {
            let bind = [b"\0", name, b"\0\0\0", values, b"\0\0"].concat();
            [message(b'B', &bind), message(b'E', &[0; 5])].concat()
        };
        let values = b"\0\x02\0\0\0\x02ab\xff\xff\xff\xff";
        let unnamed = [
            parse(b"", b"BEGIN"),
            run(b"", b"\0\0"),
            parse(b"", b"SELECT $1, $2"),
            run(b"", values),
        ];
        assert_eq!(Messages::of(&all).bytes, unnamed.concat());
        let mut names = Names::default();
        let first = [
            message(b'C', &[b"S", BEGIN, b"\0"].concat()),
            parse(BEGIN, b"BEGIN"),
            run(BEGIN, b"\0\0"),
            message(b'C', &[b"S", SELECT, b"\0"].concat()),
            parse(SELECT, b"SELECT $1, $2"),
            run(SELECT, values),
        ];
        // Nothing is taken to be prepared before the server says so.
        for _ in 0..2 {
            assert_eq!(Messages::named(&all, &mut names).bytes, first.concat());
        }
        let mut expected = Expected::new(&mut Messages::named(&all, &mut names));
        let mut answer = [message(b'3', b""), done(b"BEGIN\0")].concat();
        assert_eq!(expected.take(&mut answer, &mut names), Taken::Part);
        let half = [&[run(BEGIN, b"\0\0")], &first[3..]].concat();
        assert_eq!(Messages::named(&all, &mut names).bytes, half.concat());
        names.forget();
        assert_eq!(Messages::named(&all, &mut names).bytes, first.concat());
    }

    #[test]
    fn so_many_texts_have_names_and_no_more() {
        let mut names = Names::default();
        let all: Vec<_> = (0..MOST_NAMES + 1)
            .map(|n| Own::new(format!("SELECT {n}")))
            .collect();
        let bytes = Messages::named(&all, &mut names).bytes;
        assert!(bytes.ends_with(&Messages::of(&all[MOST_NAMES..]).bytes));
        assert!(names.of("SELECT 0").is_some() && names.of("SELECT").is_none());
    }

    #[test]
    fn the_answer_is_taken_out_in_whatever_pieces_it_comes() {
        let notice = message(b'N', b"SNOTICE\0\0");
        let statement = [done(b"INSERT 0 1\0"), message(b'Z', b"T")].concat();
        let select = [message(b'1', b""), message(b'2', b""), row()].concat();
        let all = [
            &notice,
            &done(b"BEGIN\0"),
            &notice,
            &select,
            &notice,
            &row(),
        ];
        let end = message(b'C', b"SELECT 2\0");
        let data = [&all.map(|m| &m[..]).concat()[..], &end, &statement].concat();
        let others = [&notice[..], &notice, &notice, &statement].concat();
        let values = vec![Some("742".to_owned()), None, Some(String::new())];
        for size in 1..=data.len() {
            let (passed, end) = taken(&data, size);
            assert_eq!(passed, others, "in pieces of {size}");
            assert_eq!(end, Some(OwnState::Done(vec![values.clone(); 2])));
        }
    }

    #[test]
    fn an_error_is_the_requests_wherever_it_comes() {
        let error = [message(b'E', b"SERROR\0\0"), message(b'Z', b"I")].concat();
        let before = [
            vec![],
            message(b'1', b""),
            done(b"BEGIN\0"),
            [
                done(b"BEGIN\0"),
                message(b'1', b""),
                message(b'2', b""),
                row(),
            ]
            .concat(),
        ];
        for before in before {
            for size in 1..=before.len() + error.len() {
                let (passed, end) = taken(&[&before[..], &error].concat(), size);
                assert_eq!(passed, error);
                assert_eq!(end, Some(OwnState::Refused));
            }
        }
    }

    proptest! {
        #[test]
        fn no_answer_stops_it(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (passed, _) = taken(&data, 7);
            prop_assert!(passed.len() <= data.len());
            values(&data);
        }
    }
}
