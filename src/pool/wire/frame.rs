//! Finds where messages begin and end in the data from the server, and the few that matter here.
//! Pure: bytes in, positions out.
//!
//! A message of PostgreSQL's protocol is a tag, a length that counts itself but not the tag, and a
//! body (manual, section 55.7). A read may end anywhere in a message.

/// CommandComplete: the statement has run. In the extended protocol the commit of a lone one is
/// still to come (`finish_xact_command` at Sync); in the simple protocol it has been committed.
const COMMAND_COMPLETE: u8 = b'C';
/// ReadyForQuery: the answer is complete.
const READY_FOR_QUERY: u8 = b'Z';
/// ErrorResponse.
const ERROR: u8 = b'E';
/// CopyInResponse: the server takes the data of a COPY, and ignores a Sync that was sent before them.
const COPY_IN: u8 = b'G';
/// BackendKeyData: the process to be named in a cancel request, and its key.
const BACKEND_KEY_DATA: u8 = b'K';

const HEAD: usize = 5;

/// The state between two reads.
#[derive(Default)]
pub(super) struct Frame {
    /// Tag and length of the current message, as far as they were read.
    head: [u8; HEAD],
    have: usize,
    /// Length of the part of its body that was not read yet.
    left: usize,
    /// The process number and the key, as far as they were read.
    cancel_key: [u8; 8],
    key_bytes: usize,
    completed: bool,
    failed: bool,
    copies_in: bool,
    largest: usize,
}

impl Frame {
    /// Returns how much of `data` belongs to messages up to the end of the first ReadyForQuery, and
    /// whether there is one. Without a ReadyForQuery, that is all of `data`. The caller passes the
    /// rest in again.
    pub fn until_ready(&mut self, data: &[u8]) -> (usize, bool) {
        let mut at = 0;
        while at < data.len() {
            let (step, ended) = self.until_end(&data[at..]);
            at += step;
            if ended == Some(READY_FOR_QUERY) {
                return (at, true);
            }
        }
        (at, false)
    }

    /// Returns how much of `data` belongs to the current message, and its tag if it ends there.
    fn until_end(&mut self, data: &[u8]) -> (usize, Option<u8>) {
        let mut at = 0;
        if self.have < HEAD {
            at = (HEAD - self.have).min(data.len());
            self.head[self.have..self.have + at].copy_from_slice(&data[..at]);
            self.have += at;
            if self.have < HEAD {
                return (at, None);
            }
            let [tag, length @ ..] = self.head;
            self.left = body_length(length);
            self.largest = self.largest.max(self.left);
            self.completed |= tag == COMMAND_COMPLETE;
            self.failed |= tag == ERROR;
            self.copies_in |= tag == COPY_IN;
        }
        let step = self.left.min(data.len() - at);
        if self.head[0] == BACKEND_KEY_DATA {
            self.keep_key(&data[at..at + step]);
        }
        self.left -= step;
        at += step;
        if self.left > 0 {
            return (at, None);
        }
        self.have = 0;
        (at, Some(self.head[0]))
    }

    /// Returns whether no message has begun whose end is still to come.
    pub fn is_between(&self) -> bool {
        self.have == 0
    }

    /// Returns true once after a CommandComplete.
    pub fn take_completed(&mut self) -> bool {
        std::mem::take(&mut self.completed)
    }

    /// Returns true once after an ErrorResponse.
    pub fn take_failed(&mut self) -> bool {
        std::mem::take(&mut self.failed)
    }

    /// Returns true once after a CopyInResponse.
    pub fn take_copies_in(&mut self) -> bool {
        std::mem::take(&mut self.copies_in)
    }

    /// Returns the length of the longest message so far.
    pub fn largest(&self) -> usize {
        self.largest
    }

    /// Returns the process number and the key of BackendKeyData, once after they arrived.
    pub fn take_cancel_key(&mut self) -> Option<[u8; 8]> {
        let whole = self.key_bytes == self.cancel_key.len();
        whole.then(|| {
            self.key_bytes = 0;
            self.cancel_key
        })
    }

    fn keep_key(&mut self, body: &[u8]) {
        // The driver speaks protocol 3.0, in which the key has four bytes.
        let before = self.body_read();
        for (offset, byte) in (before..self.cancel_key.len()).zip(body) {
            self.cancel_key[offset] = *byte;
            self.key_bytes = offset + 1;
        }
    }

    /// Returns how much of the current message's body was read before.
    fn body_read(&self) -> usize {
        let [_, length @ ..] = self.head;
        body_length(length) - self.left
    }
}

/// Appends a message whose body has these parts.
pub(super) fn put_message(out: &mut Vec<u8>, tag: u8, body: &[&[u8]]) {
    let length = size_of::<u32>() + body.iter().map(|part| part.len()).sum::<usize>();
    out.push(tag);
    out.extend((length as u32).to_be_bytes());
    body.iter().for_each(|part| out.extend_from_slice(part));
}

/// Returns the tag, the body and the length of the first message of `data`, if it is whole.
pub(super) fn first_message(data: &[u8]) -> Option<(u8, &[u8], usize)> {
    let [tag, length @ ..] = *data.first_chunk::<HEAD>()?;
    let end = HEAD + body_length(length);
    Some((tag, data.get(HEAD..end)?, end))
}

/// Returns the length of a body. A length too small to count itself is left for the driver to
/// reject.
fn body_length(length: [u8; HEAD - 1]) -> usize {
    (u32::from_be_bytes(length) as usize).saturating_sub(length.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u32 + 4).to_be_bytes();
        [&[tag], &length[..], body].concat()
    }

    #[test]
    fn an_answer_ends_with_ready_for_query_wherever_the_read_ends() {
        let answer = [
            message(b'2', b""),
            // A row whose value looks like the end of an answer.
            message(b'D', b"\0\x01\0\0\0\x06Z\0\0\0\x05I"),
            message(b'C', b"INSERT 0 1\0"),
            message(b'Z', b"I"),
        ]
        .concat();
        let fatal = message(b'E', b"SFATAL\0C57P01\0\0");
        let both = [&answer[..], &fatal].concat();
        for first in 0..=both.len() {
            let mut frame = Frame::default();
            let (one, two) = both.split_at(first);
            let (mut at, mut ready) = frame.until_ready(one);
            if !ready {
                assert_eq!(at, one.len(), "all of what is no whole answer");
                let (more, whole) = frame.until_ready(two);
                (at, ready) = (at + more, whole);
            }
            assert!(ready && at == answer.len(), "split at {first}: {at}");
            assert!(frame.take_completed() && !frame.take_completed());
            assert_eq!(frame.until_ready(&both[at..]), (fatal.len(), false));
        }
    }

    #[test]
    fn the_cancel_key_is_read_out_of_whatever_pieces() {
        let bytes = [0, 1, 0xe2, 0x40, 9, 8, 7, 6];
        let key = message(b'K', &bytes);
        let start = [message(b'R', &[0; 4]), key, message(b'Z', b"I")].concat();
        for size in 1..=start.len() {
            let mut frame = Frame::default();
            for piece in start.chunks(size) {
                frame.until_ready(piece);
            }
            assert_eq!(frame.take_cancel_key(), Some(bytes), "pieces of {size}");
            assert_eq!(frame.take_cancel_key(), None);
        }
    }

    proptest! {
        #[test]
        fn nothing_that_a_server_sends_stops_it(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut frame = Frame::default();
            let mut at = 0;
            while at < data.len() {
                let (step, _) = frame.until_ready(&data[at..]);
                prop_assert!(step > 0, "it would stand still");
                at += step;
            }
        }
    }
}
