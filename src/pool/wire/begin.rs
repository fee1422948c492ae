//! A BEGIN that waits for the first statement, so that both take one round trip.
//!
//! A session hands over the statements that begin its transaction. They are held back until the
//! driver writes its next request, and leave in front of it. The driver does not learn of them:
//! their answer is taken out of what the server sends, and kept for the session.
//!
//! **A statement never runs outside its transaction.** BEGIN may fail: it is cancelled, a standby
//! refuses its isolation level, a setting behind it is invalid. In a message of the simple
//! protocol, its answer would have an end of its own, and the server would go on with the next
//! message: the statement would run, and commit, by itself. So BEGIN and its settings are sent in
//! the extended protocol, and without a Sync. After an error there, the server skips all messages
//! up to the next Sync (manual, section 55.2.3), which is the one behind the statement. What
//! follows from this:
//!
//! - BEGIN is put directly before a Parse or a Bind, with which a request begins that has one Sync,
//!   at its end. The driver may write other requests before, to close statements; BEGIN comes
//!   behind their Sync.
//! - A request of the simple protocol has no Sync, and would be skipped without an answer. So a
//!   session first begins in a round trip of its own there; a Query behind a held BEGIN cuts the
//!   connection.
//! - Once the server has refused BEGIN, nothing more may be written until the session, which then
//!   knows, has rolled back: the next statement would run by itself.
//! - The answer is complete before that to the statement begins, so the session knows the number of
//!   its transaction before it can send COMMIT.
//!
//! Where BEGIN's answer starts is found by counting the ends of answers, from the first message of
//! the connection. A COPY that fails may spoil that count (see `Answers`); then nothing is held any
//! more.

use super::frame::{first_message, put_message};

/// What has become of a transaction's BEGIN.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) enum BeginState {
    /// There is none that the wire knows of.
    #[default]
    None,
    /// It waits for the first statement.
    Held(Messages),
    /// It was sent, and not answered yet.
    Sent,
    /// All of it was done. Contains the values of the last row.
    Done(Vec<Option<String>>),
    /// The server has not done all of it, and nothing of what was sent behind it.
    Refused,
}

/// Statements as messages of the extended protocol.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Messages {
    pub(super) bytes: Vec<u8>,
    count: usize,
}

impl Messages {
    pub(super) fn of<'s>(statements: impl IntoIterator<Item = &'s str>) -> Messages {
        let mut messages = Messages::default();
        for text in statements {
            // The unnamed statement, without types of parameters; the unnamed portal of it, without
            // formats and parameters, whose values come as text; all of its rows.
            let out = &mut messages.bytes;
            put_message(out, b'P', &[b"\0", text.as_bytes(), b"\0\0\0"]);
            put_message(out, b'B', &[&[0; 8]]);
            put_message(out, b'E', &[&[0; 5]]);
            messages.count += 1;
        }
        messages
    }
}

/// The answer that is still to come.
pub(super) struct Expected {
    /// Statements that are not complete yet.
    left: usize,
    row: Vec<Option<String>>,
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
    pub fn new(messages: &Messages) -> Expected {
        Expected {
            left: messages.count,
            row: Vec::new(),
        }
    }

    /// Removes the messages of the answer from the front of `data`.
    pub fn take(&mut self, data: &mut Vec<u8>) -> Taken<BeginState> {
        let mut at = 0;
        let taken = loop {
            if self.left == 0 {
                break Taken::End(BeginState::Done(std::mem::take(&mut self.row)));
            }
            let Some((tag, body, length)) = first_message(&data[at..]) else {
                break Taken::Part;
            };
            match tag {
                // ParseComplete, BindComplete.
                b'1' | b'2' => {}
                b'C' => self.left -= 1,
                b'D' => self.row = values(body),
                // A notice, a setting, a notification.
                b'N' | b'S' | b'A' => break Taken::Other(length),
                _ => break Taken::End(BeginState::Refused),
            }
            at += length;
        };
        data.drain(..at);
        taken
    }
}

/// Returns the values of a row (DataRow). One that cannot be read is missing.
fn values(body: &[u8]) -> Vec<Option<String>> {
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

    /// Takes the answer out of data that come in pieces. Returns what is left, and the end.
    fn taken(data: &[u8], size: usize) -> (Vec<u8>, Option<BeginState>) {
        let messages = Messages::of(["BEGIN", "SELECT 1"]);
        let mut expected = Expected::new(&messages);
        let (mut held, mut passed, mut end) = (Vec::new(), Vec::new(), None);
        for piece in data.chunks(size) {
            held.extend_from_slice(piece);
            while end.is_none() {
                match expected.take(&mut held) {
                    Taken::Part => break,
                    Taken::Other(length) => passed.extend(held.drain(..length)),
                    Taken::End(begin) => end = Some(begin),
                }
            }
        }
        passed.extend(held);
        (passed, end)
    }

    #[test]
    fn statements_become_messages_without_a_sync() {
        let Messages { bytes, count } = Messages::of(["BEGIN", "SELECT 1"]);
        let of = |text: &[u8]| {
            let parse = message(b'P', &[b"\0", text, b"\0\0\0"].concat());
            [parse, message(b'B', &[0; 8]), message(b'E', &[0; 5])].concat()
        };
        assert_eq!(bytes, [of(b"BEGIN"), of(b"SELECT 1")].concat());
        assert_eq!(count, 2);
    }

    #[test]
    fn the_answer_is_taken_out_in_whatever_pieces_it_comes() {
        let notice = message(b'N', b"SNOTICE\0\0");
        let statement = [done(b"INSERT 0 1\0"), message(b'Z', b"T")].concat();
        let select = [message(b'1', b""), message(b'2', b""), row()].concat();
        let all = [&notice, &done(b"BEGIN\0"), &notice, &select, &notice];
        let end = message(b'C', b"SELECT 1\0");
        let data = [&all.map(|m| &m[..]).concat()[..], &end, &statement].concat();
        let others = [&notice[..], &notice, &notice, &statement].concat();
        let values = vec![Some("742".to_owned()), None, Some(String::new())];
        for size in 1..=data.len() {
            let (passed, end) = taken(&data, size);
            assert_eq!(passed, others, "in pieces of {size}");
            assert_eq!(end, Some(BeginState::Done(values.clone())));
        }
    }

    #[test]
    fn an_error_is_the_statements_wherever_it_comes() {
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
                assert_eq!(end, Some(BeginState::Refused));
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
