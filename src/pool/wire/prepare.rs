//! A preparation that waits for a statement, so that both take one round trip.
//!
//! Once a text was prepared on one connection, the pool knows how the server describes it. On
//! another connection the session hands that description over and has the driver prepare the text.
//! The wire answers the driver itself, and holds the messages back until the next statement, which
//! they leave in front of. The server's answer to them is taken out of what it sends, and compared
//! with what the driver was told.
//!
//! **No statement is run on a guess.** The one that they leave with is sent with its text: the
//! server describes it anew, so its rows are read by the types that they have. Its parameters are
//! sent with the types that the driver was told. That these are the types that the server expects
//! is checked there, by a query between the preparation and the statement, which fails if they are
//! not: a text that is compared with what has become a `citext` would be compared in another way.
//! The prepared one is used from then on, but only if the server has described it just as the
//! driver was told.
//!
//! All of it is sent without a Sync. So an error is the statement's, which then does not run: the
//! server skips all messages up to the Sync behind it (manual, section 55.2.3).

use super::frame::{first_message, put_message};
use super::own::{Messages, Own, Taken};
use postgres::Column;
use postgres::types::Oid;
use std::collections::VecDeque;

/// How the server describes a prepared statement: a ParameterDescription, and a RowDescription or
/// NoData. Without the sizes of types and the formats of columns, which the driver ignores.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Description {
    params: Vec<Oid>,
    messages: Vec<u8>,
}

impl Description {
    pub fn new(params: impl Iterator<Item = Oid>, columns: &[Column]) -> Description {
        let params: Vec<_> = params.collect();
        let mut messages = Vec::new();
        let mut body = (params.len() as u16).to_be_bytes().to_vec();
        body.extend(params.iter().flat_map(|oid| oid.to_be_bytes()));
        put_message(&mut messages, b't', &[&body]);
        if columns.is_empty() {
            put_message(&mut messages, b'n', &[]);
            return Description { params, messages };
        }
        let mut body = (columns.len() as u16).to_be_bytes().to_vec();
        for column in columns {
            body.extend_from_slice(column.name().as_bytes());
            body.push(0);
            body.extend(column.table_oid().unwrap_or(0).to_be_bytes());
            body.extend(column.column_id().unwrap_or(0).to_be_bytes());
            body.extend(column.type_().oid().to_be_bytes());
            body.extend([0; 2]);
            body.extend(column.type_modifier().to_be_bytes());
            body.extend([0; 2]);
        }
        put_message(&mut messages, b'T', &[&body]);
        Description { params, messages }
    }

    /// Returns a query that fails if the prepared statement of this name has other parameters.
    fn check(&self, name: &str) -> String {
        let oids: Vec<_> = self.params.iter().map(Oid::to_string).collect();
        // A setting that does not exist: reading it fails.
        format!(
            "SELECT CASE WHEN parameter_types::oid[] <> '{{{}}}'::oid[] \
             THEN current_setting('millpond.parameters_have_other_types') END \
             FROM pg_prepared_statements WHERE name = '{name}'",
            oids.join(",")
        )
    }

    /// Returns the whole answer to a preparation.
    fn answer(&self) -> Vec<u8> {
        const PARSE_COMPLETE: &[u8] = b"1\0\0\0\x04";
        const READY_FOR_QUERY: &[u8] = b"Z\0\0\0\x05I";
        [PARSE_COMPLETE, &self.messages, READY_FOR_QUERY].concat()
    }
}

/// Clears, in a RowDescription, the sizes of types and the formats of columns.
fn without_sizes(body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    let mut at = 2;
    while let Some(name) = body
        .get(at..)
        .and_then(|rest| rest.iter().position(|b| *b == 0))
    {
        // Behind the name: table, column, type, size, modifier, format.
        let rest = at + name + 1;
        let Some(fields) = body.get_mut(rest..rest + 18) else {
            break;
        };
        fields[10..12].fill(0);
        fields[16..18].fill(0);
        at = rest + 18;
    }
    body
}

/// The preparations of a connection that the server does not know of yet.
#[derive(Debug, Default)]
pub(crate) struct Prepares {
    /// What the driver's next preparation is answered with.
    next: Option<Description>,
    /// The last one was answered so.
    holds_last: bool,
    /// A statement follows that takes the parameters.
    checks: bool,
    /// The messages that wait for a statement.
    messages: Vec<u8>,
    /// What the driver was told of them, and whether a check follows.
    told: VecDeque<(Description, bool)>,
    /// Of those that were sent, whether the server has described them so.
    pub(super) confirmed: Vec<bool>,
}

impl Prepares {
    /// Answers the driver's next preparation with this description. `checks`: a statement follows
    /// that takes the parameters.
    pub fn expect(&mut self, description: Description, checks: bool) {
        (self.next, self.holds_last) = (Some(description), false);
        self.checks = checks;
    }

    /// Returns whether the driver's next preparation is to be held back.
    pub(super) fn is_expecting(&self) -> bool {
        self.next.is_some()
    }

    /// Returns whether the driver's last preparation was answered with a description, and waits.
    pub fn holds_last(&mut self) -> bool {
        self.next = None;
        self.holds_last
    }

    /// Holds back the preparation at the front of `data`. Returns its length, and the answer for
    /// the driver; None if there is no whole one, which is then sent like any other.
    pub(super) fn hold(&mut self, data: &[u8]) -> Option<(usize, Vec<u8>)> {
        let description = self.next.take()?;
        let (mut at, mut name) = (0, None);
        for wanted in [b'P', b'D', b'S'] {
            let (tag, body, length) = first_message(&data[at..])?;
            if tag != wanted {
                return None;
            }
            let text = body.split(|byte| *byte == 0).next();
            name = name.or(text.and_then(|text| std::str::from_utf8(text).ok()));
            at += length;
        }
        let name = name?;
        const SYNC: usize = 5;
        self.messages.extend_from_slice(&data[..at - SYNC]);
        let checks = self.checks && !description.params.is_empty();
        if checks {
            let check = description.check(name);
            let mut check = Messages::of(&[Own::new(check)]);
            self.messages.append(&mut check.bytes);
        }
        let answer = description.answer();
        self.told.push_back((description, checks));
        self.holds_last = true;
        Some((at, answer))
    }

    pub(super) fn are_held(&self) -> bool {
        !self.messages.is_empty()
    }

    /// Returns the messages that wait, which are about to be sent, and what is to be taken out of
    /// the answer; None if there are none.
    pub(super) fn send(&mut self) -> Option<(Vec<u8>, Described)> {
        if self.messages.is_empty() {
            return None;
        }
        let described = Described {
            told: std::mem::take(&mut self.told),
            got: Vec::new(),
            checking: false,
        };
        Some((std::mem::take(&mut self.messages), described))
    }

    /// Forgets all of them. Returns, of those that were sent, whether the server has described them
    /// as the driver was told.
    pub fn take(&mut self) -> Vec<bool> {
        std::mem::take(self).confirmed
    }
}

/// The server's answers to preparations that the driver was told of already.
pub(super) struct Described {
    told: VecDeque<(Description, bool)>,
    /// What came of the first one.
    got: Vec<u8>,
    /// The answer to a check is next.
    checking: bool,
}

impl Described {
    /// Removes messages of the answers from the front of `data`, and notes which are as told.
    pub fn take(&mut self, data: &mut Vec<u8>, confirmed: &mut Vec<bool>) -> Taken<()> {
        let mut at = 0;
        let taken = loop {
            if self.told.is_empty() && !self.checking {
                break Taken::End(());
            }
            let Some((tag, body, length)) = first_message(&data[at..]) else {
                break Taken::Part;
            };
            let message = &data[at..at + length];
            match tag {
                // CommandComplete.
                b'C' => self.checking = false,
                // ParseComplete, BindComplete, a row.
                b'1' | b'2' | b'D' if self.checking => {}
                b'1' => self.got.clear(),
                b't' => self.got.extend_from_slice(message),
                b'T' | b'n' => {
                    self.got.extend_from_slice(&message[..length - body.len()]);
                    self.got.extend(without_sizes(body));
                    if let Some((told, checks)) = self.told.pop_front() {
                        confirmed.push(self.got == told.messages);
                        self.checking = checks;
                    }
                }
                // A notice, a setting, a notification.
                b'N' | b'S' | b'A' => break Taken::Other(length),
                // An error, which is the statement's.
                _ => break Taken::End(()),
            }
            at += length;
        };
        data.drain(..at);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u32 + 4).to_be_bytes();
        [&[tag], &length[..], body].concat()
    }

    /// The description of a statement with one parameter, and the server's answer to it.
    fn described(modifier: u8) -> (Description, Vec<u8>) {
        let row = |size: u8, format: u8| {
            let mut row =
                b"\0\x01name\0\0\0\x40\0\0\x02\0\0\0\x17\0\x04\xff\xff\xff\0\0\0".to_vec();
            let end = row.len();
            (row[end - 7], row[end - 3], row[end - 1]) = (size, modifier, format);
            message(b'T', &row)
        };
        let params = message(b't', b"\0\x01\0\0\0\x17");
        let told = Description {
            params: vec![23],
            messages: [&params[..], &row(0, 0)].concat(),
        };
        let parsed = message(b'1', b"");
        (told, [&parsed[..], &params, &row(4, 1)].concat())
    }

    fn request() -> Vec<u8> {
        [
            message(b'P', b"s1\0SELECT $1\0\0\0"),
            message(b'D', b"Ss1\0"),
            message(b'S', b""),
        ]
        .concat()
    }

    /// Takes the answers out of data that come in pieces. Returns what is left, and what was
    /// confirmed.
    fn taken(told: &[Description], checks: bool, data: &[u8], size: usize) -> (Vec<u8>, Vec<bool>) {
        let mut prepares = Prepares::default();
        for told in told {
            prepares.expect(told.clone(), checks);
            prepares.hold(&request()).expect("a whole preparation");
        }
        let (messages, mut described) = prepares.send().expect("some wait");
        let sync = message(b'S', b"").len();
        let mut expected = request()[..request().len() - sync].to_vec();
        if checks {
            expected.extend(Messages::of(&[Own::new(told[0].check("s1"))]).bytes);
        }
        assert_eq!(messages, expected.repeat(told.len()));
        let (mut held, mut passed, mut ended) = (Vec::new(), Vec::new(), false);
        for piece in data.chunks(size) {
            held.extend_from_slice(piece);
            while !ended {
                match described.take(&mut held, &mut prepares.confirmed) {
                    Taken::Part => break,
                    Taken::Other(length) => passed.extend(held.drain(..length)),
                    Taken::End(()) => ended = true,
                }
            }
        }
        passed.extend(held);
        (passed, prepares.take())
    }

    #[test]
    fn a_statement_is_confirmed_if_it_is_described_as_told() {
        let (told, answer) = described(3);
        let (other, _) = described(4);
        let notice = message(b'N', b"SNOTICE\0\0");
        let behind = [message(b'1', b""), message(b'2', b""), message(b'Z', b"I")].concat();
        let parsed = [message(b'1', b""), message(b'2', b"")].concat();
        let row = message(b'D', b"\0\x01\xff\xff\xff\xff");
        let check = [&parsed[..], &row, &message(b'C', b"SELECT 1\0")].concat();
        for checks in [false, true] {
            let check = if checks { &check[..] } else { b"" };
            let answers = [&answer[..], &notice, check, &answer, check].concat();
            let data = [&notice[..], &answers, &behind].concat();
            for size in 1..=data.len() {
                let told = [told.clone(), other.clone()];
                let (passed, confirmed) = taken(&told, checks, &data, size);
                assert_eq!(passed, [&notice[..], &notice, &behind].concat());
                assert_eq!(confirmed, [true, false], "in pieces of {size}");
            }
        }
    }

    #[test]
    fn an_error_confirms_nothing_and_is_for_the_driver() {
        let (told, answer) = described(3);
        let error = [message(b'E', b"SERROR\0\0"), message(b'Z', b"I")].concat();
        for (whole, checks) in [(0, false), (1, false), (0, true), (1, true)] {
            let data = [&answer.repeat(whole)[..], &error].concat();
            for size in 1..=data.len() {
                let told = [told.clone(), told.clone()];
                let (passed, confirmed) = taken(&told, checks, &data, size);
                assert_eq!(passed, error);
                assert_eq!(confirmed, vec![true; whole]);
            }
        }
    }

    #[test]
    fn only_a_whole_preparation_is_held() {
        let (told, answer) = described(3);
        let whole = request();
        for length in 0..whole.len() {
            let mut prepares = Prepares::default();
            prepares.expect(told.clone(), true);
            assert!(prepares.hold(&whole[..length]).is_none());
            assert!(!prepares.holds_last() && !prepares.is_expecting() && !prepares.are_held());
        }
        let mut prepares = Prepares::default();
        prepares.expect(told.clone(), true);
        let (length, told_answer) = prepares.hold(&[&whole[..], &whole].concat()).unwrap();
        assert_eq!(length, whole.len());
        let ready = message(b'Z', b"I");
        assert_eq!(told_answer.len(), answer.len() + ready.len());
        assert!(prepares.holds_last() && told_answer.ends_with(&ready));
        // What is not told is not held.
        assert!(prepares.hold(&whole).is_none());
        assert_eq!(prepares.take(), [] as [bool; 0]);
        assert!(prepares.send().is_none());
    }

    proptest! {
        #[test]
        fn no_answer_stops_it(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (told, _) = described(3);
            let (passed, _) = taken(&[told], true, &data, 7);
            prop_assert!(passed.len() <= data.len());
            without_sizes(&data);
        }
    }
}
