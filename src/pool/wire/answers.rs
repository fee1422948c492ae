//! Delivers each answer of the server separately, and notes how far a request has come.

use super::frame::Frame;
use super::handle::{HUGE, Handle, look, progress};
use super::sent::Sent;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
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
}

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
        if self.frame.take_failed() && now == progress::COMPLETED {
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
        }
        if ready {
            self.ends += 1;
            // The driver sends a Close before or behind a statement, which has an answer of its own.
            if self.ends >= self.end_of_last {
                self.handle.note_answered();
            }
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

    /// Delivers as much of the held data as fits.
    fn deliver_held(&mut self, buf: &mut ReadBuf<'_>) {
        let mut held = std::mem::take(&mut self.held);
        let fits = held.len().min(buf.remaining());
        let length = self.deliver(&held[..fits]);
        buf.put_slice(&held[..length]);
        held.drain(..length);
        self.held = held;
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
        if !answers.held.is_empty() {
            if answers.ended {
                return answers.later(cx);
            }
            answers.deliver_held(buf);
            return Poll::Ready(Ok(()));
        }
        let look = answers.handle.look.load(Ordering::Relaxed);
        if look == look::ASKED {
            answers.handle.look.store(look::TURNED, Ordering::Relaxed);
            return answers.later(cx);
        }
        let before = buf.filled().len();
        match Pin::new(&mut answers.stream).poll_read(cx, buf) {
            // Delivered in parts if the driver has little room: a read that returned nothing would
            // never be repeated.
            Poll::Pending if look == look::TURNED => {
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

impl<S: AsyncWrite + Unpin> AsyncWrite for Answers<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let progress = &self.handle.progress;
        if progress.load(Ordering::Relaxed) == progress::NOTHING_SENT {
            progress.store(progress::SENT, Ordering::Relaxed);
        }
        if buf.len() > HUGE {
            self.handle.grown.store(true, Ordering::Relaxed);
        }
        let poll = Pin::new(&mut self.stream).poll_write(cx, buf);
        if let Poll::Ready(Ok(written)) = poll
            && let Some((text, end)) = self.sent.note(&buf[..written])
        {
            self.end_of_last = end;
            self.handle.note_sent(text);
        }
        poll
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn a_handle_may_be_pulled_from_any_thread() {
        fn crosses_threads<T: Send + Sync>() {}
        crosses_threads::<Handle>();
    }
}
