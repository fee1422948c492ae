//! Delivers each answer of the server separately, and notes how far a request has come.

use super::frame::Frame;
use super::handle::{HUGE, Handle, look, progress};
use super::own::{Expected, OwnState, Taken};
use super::prepare::Described;
use super::sent::{Next, Sent};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The stream that the driver reads and writes. It delivers each answer separately, so that the
/// driver can return it to the caller before it sees what follows.
pub(crate) struct Answers<S> {
    stream: S,
    handle: Arc<Handle>,
    frame: Frame,
    sent: Sent,
    /// Answers that have ended, and the number of the one that ends the last statement.
    ends: u64,
    end_of_last: u64,
    /// Data was delivered since the last poll that returned none, and (`ended`) it ended an answer.
    delivered: bool,
    ended: bool,
    /// Data that followed the end of an answer.
    held: Vec<u8>,
    /// The answer to statements that the driver knows nothing of, and that to preparations whose
    /// answer it has already. They come after this many ends.
    unasked: Option<Expected>,
    prepared: Option<Described>,
    own_after: u64,
    /// An answer that the server has no part in, and after how many ends it comes.
    told: Option<(u64, Vec<u8>)>,
    /// What is to be written before anything else.
    out: Vec<u8>,
    /// The server takes the data of a COPY.
    copies_in: bool,
}

/// So much of a request is joined to what leaves in front of it. More would be copied for nothing.
const JOINED: usize = 16 << 10;

impl<S> Answers<S> {
    pub fn new(stream: S, handle: Arc<Handle>) -> Answers<S> {
        handle
            .progress
            .store(progress::NOTHING_SENT, Ordering::Relaxed);
        Answers {
            stream,
            handle,
            frame: Frame::default(),
            sent: Sent::default(),
            ends: 0,
            end_of_last: 0,
            delivered: false,
            ended: false,
            held: Vec::new(),
            unasked: None,
            prepared: None,
            own_after: 0,
            told: None,
            out: Vec::new(),
            copies_in: false,
        }
    }

    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Examines the data that is about to be delivered, and returns its length up to the first end
    /// of an answer.
    fn deliver(&mut self, data: &[u8]) -> usize {
        let (length, ready) = self.frame.until_ready(data);
        let before = self.handle.progress.load(Ordering::Relaxed);
        let mut now = before;
        if self.frame.take_completed() && now == progress::SENT {
            now = progress::COMPLETED;
        }
        let failed = self.frame.take_failed();
        if failed && now == progress::COMPLETED {
            now = progress::FAILED;
        }
        if ready && now == progress::COMPLETED {
            now = progress::ANSWERED;
        }
        if now != before {
            self.handle.progress.store(now, Ordering::Relaxed);
        }
        if self.frame.take_copies_in() {
            // The Sync that the driver has sent is ignored, and the one behind the data counts.
            self.ends += 1;
            self.end_of_last += 1;
            self.copies_in = true;
        }
        if failed && self.copies_in {
            // It may not have ignored that Sync: it failed before it looked for data.
            self.handle.miscounts.store(true, Ordering::Relaxed);
        }
        // The driver sends a Close before or behind a statement, which has an answer of its own. It
        // does not wait for the end of an answer with an error, after which the server does nothing
        // of the request any more.
        if (ready || failed) && self.ends + 1 >= self.end_of_last {
            self.handle.note_answered();
        }
        if ready {
            self.copies_in = false;
            self.ends += 1;
        }
        if self.frame.largest() > HUGE {
            self.handle.grown.store(true, Ordering::Relaxed);
        }
        if let Some(key) = self.frame.take_cancel_key() {
            let key = u64::from_be_bytes(key);
            self.handle.cancel_key.store(key, Ordering::Relaxed);
        }
        (self.delivered, self.ended) = (true, ready);
        length
    }

    /// Delivers as much of the held data as fits. Returns false if none is for the driver yet.
    fn deliver_held(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let free = self.without_own();
        if free == 0 {
            return false;
        }
        let mut held = std::mem::take(&mut self.held);
        let fits = free.min(held.len()).min(buf.remaining());
        let length = self.deliver(&held[..fits]);
        buf.put_slice(&held[..length]);
        held.drain(..length);
        self.held = held;
        true
    }

    /// Whether the server is still to answer what the driver does not know of, or has an answer to.
    fn awaits_own(&self) -> bool {
        self.unasked.is_some() || self.prepared.is_some()
    }

    /// Takes the answers to that out of the held data. Returns how much of these is for the driver.
    fn without_own(&mut self) -> usize {
        // What comes before ends with an end, where `deliver` stops.
        if !self.awaits_own() || self.ends < self.own_after {
            return self.held.len();
        }
        // A message that came unasked, and that the driver has a part of.
        if !self.frame.is_between() {
            return 1;
        }
        if let Some(unasked) = &mut self.unasked {
            match unasked.take(&mut self.held, &mut self.handle.names()) {
                Taken::Other(length) => return length,
                Taken::Part => return 0,
                Taken::End(end) => *self.handle.own() = end,
            }
            self.unasked = None;
        }
        if let Some(prepared) = &mut self.prepared {
            let confirmed = &mut self.handle.prepares().confirmed;
            match prepared.take(&mut self.held, confirmed) {
                Taken::Other(length) => return length,
                Taken::Part => return 0,
                Taken::End(()) => self.prepared = None,
            }
        }
        self.held.len()
    }

    /// Puts an answer that the server has no part in where its turn is.
    fn tell(&mut self) {
        if let Some((after, _)) = &self.told
            && self.ends >= *after
            && self.frame.is_between()
            && let Some((_, answer)) = self.told.take()
        {
            self.held.splice(..0, answer);
        }
    }

    /// Makes the driver look for its answer first and poll again at once.
    fn later(&mut self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        (self.delivered, self.ended) = (false, false);
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Answers<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let answers = &mut *self;
        let before = buf.filled().len();
        loop {
            answers.tell();
            if !answers.held.is_empty() {
                if answers.ended {
                    return answers.later(cx);
                }
                if answers.deliver_held(buf) {
                    return Poll::Ready(Ok(()));
                }
            }
            let look = answers.handle.look.load(Ordering::Relaxed);
            if look == look::ASKED {
                answers.handle.look.store(look::TURNED, Ordering::Relaxed);
                return answers.later(cx);
            }
            match Pin::new(&mut answers.stream).poll_read(cx, buf) {
                // Delivered in parts if the driver has little room: a read that returned nothing
                // would never be repeated.
                Poll::Pending if look == look::TURNED && !answers.awaits_own() => {
                    answers.handle.look.store(look::NONE, Ordering::Relaxed);
                    answers.held.extend_from_slice(look::MESSAGE);
                    answers.deliver_held(buf);
                    return Poll::Ready(Ok(()));
                }
                Poll::Pending => {
                    (answers.delivered, answers.ended) = (false, false);
                    return Poll::Pending;
                }
                Poll::Ready(Ok(())) if buf.filled().len() > before => {}
                // The end of the stream. The driver first looks at what was delivered before it.
                _ if answers.delivered => return answers.later(cx),
                end @ Poll::Ready(_) => return end,
            }
            if !answers.awaits_own() {
                break;
            }
            answers.held.extend_from_slice(&buf.filled()[before..]);
            buf.set_filled(before);
        }
        let data = &buf.filled()[before..];
        let length = if answers.ended {
            0
        } else {
            answers.deliver(data)
        };
        answers.held.extend_from_slice(&data[length..]);
        buf.set_filled(before + length);
        if length == 0 {
            return answers.later(cx);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> Answers<S> {
    /// Returns how much of `data` may be written now. If it is the beginning of the request behind
    /// held statements, or behind preparations that wait, `out` contains both.
    fn join_held<'d>(&mut self, data: &'d [u8]) -> io::Result<&'d [u8]> {
        let mut own = self.handle.own();
        let mut prepares = self.handle.prepares();
        let is_held = match &*own {
            OwnState::Refused => return Err(io::Error::other("the transaction did not begin")),
            OwnState::Held(_) => true,
            OwnState::None | OwnState::Sent | OwnState::Done(_) => false,
        };
        if !is_held && !prepares.are_held() {
            return Ok(data);
        }
        let part = match self.sent.next(data) {
            Next::Statement => &data[..data.len().min(JOINED)],
            Next::Query if is_held => {
                return Err(io::Error::other("a query behind held statements"));
            }
            Next::Query => return Ok(data),
            Next::Other(length) => return Ok(&data[..length.min(data.len())]),
        };
        self.own_after = self.sent.ends();
        if let OwnState::Held(messages) = &mut *own {
            self.unasked = Some(Expected::new(messages));
            self.out.append(&mut messages.bytes);
            *own = OwnState::Sent;
        }
        if let Some((mut messages, described)) = prepares.send() {
            self.prepared = Some(described);
            self.out.append(&mut messages);
        }
        self.out.extend_from_slice(part);
        Ok(part)
    }

    /// Holds back the preparation at the front of `data`, if the driver is told its answer, and
    /// returns its length.
    fn hold_prepare(&mut self, data: &[u8]) -> Option<usize> {
        let mut prepares = self.handle.prepares();
        if !prepares.is_expecting() || !matches!(self.sent.next(data), Next::Statement) {
            return None;
        }
        let (length, answer) = prepares.hold(data)?;
        drop(prepares);
        self.told = Some((self.sent.ends(), answer));
        self.note_written(&data[..length]);
        Some(length)
    }

    fn note_written(&mut self, data: &[u8]) {
        if let Some((text, end)) = self.sent.note(data) {
            self.end_of_last = end;
            self.handle.note_sent(text);
        }
    }

    fn write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.out))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Answers<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let answers = &mut *self;
        if let Some(length) = answers.hold_prepare(buf) {
            // The driver reads before it writes.
            cx.waker().wake_by_ref();
            return Poll::Ready(Ok(length));
        }
        let progress = &answers.handle.progress;
        if progress.load(Ordering::Relaxed) == progress::NOTHING_SENT {
            progress.store(progress::SENT, Ordering::Relaxed);
        }
        if buf.len() > HUGE {
            answers.handle.grown.store(true, Ordering::Relaxed);
        }
        ready!(answers.write_out(cx))?;
        let part = answers.join_held(buf)?;
        let poll = match answers.out.is_empty() {
            true => Pin::new(&mut answers.stream).poll_write(cx, part),
            false => {
                // What is not written now is written before the next data, or at the flush.
                if let Poll::Ready(Err(e)) = answers.write_out(cx) {
                    return Poll::Ready(Err(e));
                }
                Poll::Ready(Ok(part.len()))
            }
        };
        if let Poll::Ready(Ok(written)) = poll {
            answers.note_written(&part[..written]);
        }
        poll
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.write_out(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::super::own::{Messages, Own};
    use super::super::prepare::Description;
    use super::*;
    use std::task::Waker;

    /// A server that sends nothing.
    struct Silent;

    impl AsyncRead for Silent {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    #[test]
    fn a_look_ends_however_little_room_the_driver_has() {
        for room in 1..=look::MESSAGE.len() + 1 {
            let handle = Arc::<Handle>::default();
            let mut answers = Answers::new(Silent, Arc::clone(&handle));
            handle.ask_for_look();
            let mut cx = Context::from_waker(Waker::noop());
            let (mut got, mut polls) = (Vec::new(), 0);
            while got.len() < look::MESSAGE.len() {
                let mut bytes = vec![0; room];
                let mut buf = ReadBuf::new(&mut bytes);
                let poll = Pin::new(&mut answers).poll_read(&mut cx, &mut buf);
                // The first poll may be pending, so that the runtime polls the socket first.
                assert!(polls == 0 || poll.is_ready(), "{room}: poll {polls}");
                got.extend_from_slice(buf.filled());
                polls += 1;
            }
            assert_eq!(got, look::MESSAGE);
        }
    }

    /// A server that answers with what it is told to, and takes a few bytes at a time.
    #[derive(Default)]
    struct Scripted {
        answers: Vec<u8>,
        written: Vec<u8>,
        takes: usize,
    }

    impl AsyncRead for Scripted {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if self.answers.is_empty() {
                return Poll::Pending;
            }
            let step = self.takes.min(self.answers.len()).min(buf.remaining());
            buf.put_slice(&self.answers[..step]);
            self.answers.drain(..step);
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Scripted {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            let step = self.takes.min(buf.len());
            self.written.extend_from_slice(&buf[..step]);
            Poll::Ready(Ok(step))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u32 + 4).to_be_bytes();
        [&[tag], &length[..], body].concat()
    }

    fn messages(all: &[(u8, &[u8])]) -> Vec<u8> {
        all.iter()
            .flat_map(|(tag, body)| message(*tag, body))
            .collect()
    }

    /// A connection after its start.
    fn started(takes: usize) -> Answers<Scripted> {
        let stream = Scripted {
            takes,
            ..Scripted::default()
        };
        let mut answers = Answers::new(stream, Arc::default());
        write(&mut answers, b"\0\0\0\x08\0\x03\0\0").unwrap();
        answers.stream.answers = messages(&[(b'R', &[0; 4]), (b'Z', b"I")]);
        read(&mut answers);
        answers.stream.written.clear();
        answers
    }

    fn write(answers: &mut Answers<Scripted>, mut data: &[u8]) -> io::Result<()> {
        let mut cx = Context::from_waker(Waker::noop());
        while !data.is_empty() {
            match Pin::new(&mut *answers).poll_write(&mut cx, data) {
                Poll::Ready(written) => data = &data[written?..],
                Poll::Pending => unreachable!("it always takes some"),
            }
        }
        while Pin::new(&mut *answers).poll_flush(&mut cx)?.is_pending() {}
        Ok(())
    }

    /// Reads all that there is.
    fn read(answers: &mut Answers<Scripted>) -> Vec<u8> {
        let mut cx = Context::from_waker(Waker::noop());
        let (mut got, mut idle) = (Vec::new(), 0);
        while idle < 3 {
            let mut bytes = [0; 64];
            let mut buf = ReadBuf::new(&mut bytes);
            match Pin::new(&mut *answers).poll_read(&mut cx, &mut buf) {
                Poll::Pending => idle += 1,
                Poll::Ready(done) => {
                    done.unwrap();
                    idle = 0;
                }
            }
            got.extend_from_slice(buf.filled());
        }
        got
    }

    const DONE: [(u8, &[u8]); 3] = [(b'1', b""), (b'2', b""), (b'C', b"BEGIN\0")];

    #[test]
    fn a_statement_is_over_with_its_error() {
        let close = messages(&[(b'C', b"Ss1\0"), (b'S', b"")]);
        let statement = messages(&[(b'P', b"\0SELECT 1\0\0\0"), (b'S', b"")]);
        let mut answers = started(1000);
        write(&mut answers, &[close, statement].concat()).unwrap();
        // The end of an answer with an error may come late, and the driver does not wait for it.
        for (messages, is_running) in [
            (messages(&[(b'3', b""), (b'Z', b"I")]), true),
            (messages(&[(b'1', b"")]), true),
            (messages(&[(b'E', b"\0")]), false),
        ] {
            answers.stream.answers = messages;
            read(&mut answers);
            let last = answers.handle.last_statement().unwrap();
            assert_eq!(last.is_running, is_running);
        }
    }

    #[test]
    fn begin_is_written_before_the_first_statement_and_behind_what_closes_others() {
        let close = messages(&[(b'C', b"Ss1\0"), (b'S', b"")]);
        let statement = messages(&[(b'B', b"\0s2\0\0\0"), (b'E', b"\0\0\0\0\0"), (b'S', b"")]);
        let begin = Messages::of(&[Own::new("BEGIN")]).bytes;
        let closed = messages(&[(b'3', b""), (b'Z', b"I")]);
        let done = messages(&[(b'2', b""), (b'C', b"INSERT 0 1\0"), (b'Z', b"T")]);
        for takes in [1, 2, 3, 7, 20, 1000] {
            for closes in [0, 1, 2] {
                let mut answers = started(takes);
                // One was written before, and not answered yet.
                write(&mut answers, &close).unwrap();
                assert!(answers.handle.hold_own(&[Own::new("BEGIN")], false));
                write(&mut answers, &[&*close.repeat(closes), &statement].concat()).unwrap();
                let expected = [&*close.repeat(closes + 1), &begin, &statement].concat();
                assert_eq!(answers.stream.written, expected, "{takes} {closes}");
                answers.stream.answers =
                    [&*closed.repeat(closes + 1), &messages(&DONE), &done].concat();
                let got = read(&mut answers);
                assert_eq!(got, [&*closed.repeat(closes + 1), &done].concat());
                assert_eq!(answers.handle.take_own(), OwnState::Done(vec![]));
                assert_eq!(answers.handle.take_own(), OwnState::None);
                // What follows passes as it is.
                answers.stream.answers = messages(&DONE);
                assert_eq!(read(&mut answers), messages(&DONE));
            }
        }
    }

    #[test]
    fn nothing_is_written_behind_a_begin_that_was_refused() {
        let statement = messages(&[(b'P', b"\0SELECT 1\0\0\0"), (b'S', b"")]);
        let query = message(b'Q', b"SELECT 1\0");
        let error = messages(&[(b'E', b"SERROR\0\0"), (b'Z', b"I")]);
        let mut answers = started(5);
        assert!(
            answers
                .handle
                .hold_own(&["BEGIN", "SELECT 2"].map(Own::new), false)
        );
        write(&mut answers, &query).unwrap_err();
        write(&mut answers, &statement).unwrap();
        answers.stream.answers = [&*messages(&DONE), &error].concat();
        assert_eq!(read(&mut answers), error);
        assert_eq!(answers.handle.take_own(), OwnState::Refused);
        answers.stream.written.clear();
        for data in [&statement, &query] {
            write(&mut answers, data).unwrap_err();
        }
        assert_eq!(answers.stream.written, b"");
        // The session has learnt of it and rolls back.
        assert!(!answers.handle.forget_own());
        write(&mut answers, &query).unwrap();
    }

    #[test]
    fn a_preparation_is_written_before_the_statement_and_answered_before_that() {
        let prepare = messages(&[(b'P', b"s2\0SELECT 1\0\0\0"), (b'D', b"Ss2\0"), (b'S', b"")]);
        let told = messages(&[(b't', b"\0\0"), (b'n', b"")]);
        let answer = [&messages(&[(b'1', b"")]), &told].map(|m| &m[..]).concat();
        let close = messages(&[(b'C', b"Ss1\0"), (b'S', b"")]);
        let closed = messages(&[(b'3', b""), (b'Z', b"I")]);
        let statement = messages(&[(b'P', b"\0SELECT 1\0\0\0"), (b'S', b"")]);
        let done = messages(&[(b'1', b""), (b'C', b"SELECT 1\0"), (b'Z', b"I")]);
        let begin = Messages::of(&[Own::new("BEGIN")]).bytes;
        for takes in [1, 2, 3, 7, 20, 1000] {
            for begins in [false, true] {
                let mut answers = started(takes);
                let handle = Arc::clone(&answers.handle);
                // One was written before, and is not answered yet.
                write(&mut answers, &close).unwrap();
                if begins {
                    assert!(handle.hold_own(&[Own::new("BEGIN")], false));
                }
                assert!(handle.expect_prepare(Description::new([].into_iter(), &[]), true));
                write(&mut answers, &prepare).unwrap();
                assert!(handle.holds_prepare());
                assert_eq!(answers.stream.written, close);
                assert_eq!(read(&mut answers), b"", "the other answer comes first");
                answers.stream.answers = closed.clone();
                let ready = messages(&[(b'Z', b"I")]);
                assert_eq!(read(&mut answers), [&*closed, &answer, &ready].concat());
                write(&mut answers, &[&*close, &statement].concat()).unwrap();
                let held = &prepare[..prepare.len() - 5];
                let begin = if begins { &begin[..] } else { b"" };
                let written = [&*close, &close, begin, held, &statement].concat();
                assert_eq!(answers.stream.written, written, "{takes}");
                let begun = messages(if begins { &DONE } else { &[] });
                answers.stream.answers = [&*closed, &begun, &answer, &done].concat();
                assert_eq!(read(&mut answers), [&*closed, &done].concat());
                assert_eq!(handle.take_prepares(), [true]);
                assert_eq!(handle.take_prepares(), [] as [bool; 0]);
                // What follows passes as it is.
                write(&mut answers, &prepare).unwrap();
                assert!(answers.stream.written.ends_with(&prepare));
                answers.stream.answers = answer.clone();
                assert_eq!(read(&mut answers), answer);
            }
        }
    }

    #[test]
    fn a_begin_is_forgotten_as_long_as_it_was_not_sent() {
        let statement = messages(&[(b'P', b"\0SELECT 1\0\0\0"), (b'S', b"")]);
        let mut answers = started(1000);
        answers.handle.hold_own(&[Own::new("BEGIN")], false);
        assert!(answers.handle.forget_own());
        write(&mut answers, &statement).unwrap();
        assert_eq!(answers.stream.written, statement);
    }

    #[test]
    fn a_handle_may_be_pulled_from_any_thread() {
        fn crosses_threads<T: Send + Sync>() {}
        crosses_threads::<Handle>();
    }
}
