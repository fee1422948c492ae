//! The byte stream under a server connection, and the handle that frees a thread blocked on it.
//!
//! The driver is asked for TLS with direct negotiation (`ssl_mode(Require)`, `ssl_negotiation(Direct)`): it then hands the
//! raw socket to our connector at once and speaks the plain protocol over whatever the connector returns
//! (tokio-postgres 0.7.18). The connector returns the socket inside a [`Wire`], without TLS. What that gives:
//!
//! - [`Handle::abort`] from any thread: whatever is blocked on the wire ends with `TimedOut` at once, a query on a black
//!   hole, a hung handshake, and the close that follows;
//! - a finished answer is always delivered. The driver polls the connection before it looks for its answer, and
//!   reports the connection's error in its place (tokio-postgres 0.7.18, `poll_block_on` of postgres 0.19.14): when the end
//!   of the stream, or the FATAL of a server that shuts down, follows an answer closely, the caller would be told that his
//!   statement failed, though it was done. [`Answers`] therefore lets nothing pass between the end of an answer and the
//!   next poll;
//! - what the driver does not tell: whether anything of a request had been sent, or called complete, when its connection
//!   was lost; and the process number that the server gave out, which betrays a pooler.
//!
//! `Answers` stands above whatever encrypts: it reads the protocol in the clear. This is the only file with async traits.
//! A Unix socket has no wire (the driver gives it no host name to negotiate with): there the server's own timeout is all
//! there is, and nobody sees how far a statement had come.

mod frame;

use crate::retry::Progress;
use crate::sync::unpoison;
use frame::Frame;
use postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use postgres::{Notification, Socket};
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Ends whatever is blocked on one wire.
#[derive(Default)]
pub(crate) struct Handle {
    aborted: AtomicBool,
    waker: Mutex<Option<Waker>>,
    /// One of `progress`.
    progress: AtomicU8,
    /// The process number that was given out with the key for cancel requests; 0 = none was seen.
    process: AtomicI32,
    grown: AtomicBool,
    /// One of `look`.
    look: AtomicU8,
}

/// A look at what the server has said unasked. The driver tells only of what has come when its runtime looked at the socket
/// last, which it does while it waits; so it is made to wait for a notification that the wire itself gives it.
mod look {
    pub const NONE: u8 = 0;
    pub const ASKED: u8 = 1;
    /// The runtime has looked since.
    pub const TURNED: u8 = 2;
    /// NotificationResponse: a length, a process, a channel, no payload.
    pub const MESSAGE: &[u8] = b"A\0\0\0\x17\0\0\0\0millpond_look\0\0";
    pub const CHANNEL: &str = "millpond_look";
}

/// A message that is longer than this leaves the driver with buffers as long, for the life of its connection.
const HUGE: usize = 16 << 20;

/// How far the request under way has come. Only the thread that uses the connection moves it on.
mod progress {
    /// Nobody looks.
    pub const UNSEEN: u8 = 0;
    pub const NOTHING_SENT: u8 = 1;
    pub const SENT: u8 = 2;
    pub const COMPLETED: u8 = 3;
    /// Completed, with an error behind it.
    pub const FAILED: u8 = 4;
    pub const ANSWERED: u8 = 5;
}

impl Handle {
    /// Cuts the connection for good. Never blocks.
    pub fn abort(&self) {
        self.aborted.store(true, Ordering::SeqCst);
        let waker = unpoison(self.waker.lock()).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::SeqCst)
    }

    /// A request is about to be made.
    pub fn begin_request(&self) {
        if self.progress.load(Ordering::Relaxed) != progress::UNSEEN {
            self.progress
                .store(progress::NOTHING_SENT, Ordering::Relaxed);
        }
    }

    /// How far the request has come since [`begin_request`](Self::begin_request).
    pub fn progress(&self) -> Progress {
        match self.progress.load(Ordering::Relaxed) {
            progress::UNSEEN => Progress::Unseen,
            progress::NOTHING_SENT => Progress::NothingSent,
            progress::SENT => Progress::Sent,
            progress::ANSWERED => Progress::Answered,
            _ => Progress::Completed,
        }
    }

    /// The process to be named in a cancel request, as it was given out when the connection was opened.
    pub fn process(&self) -> Option<i32> {
        Some(self.process.load(Ordering::Relaxed)).filter(|process| *process != 0)
    }

    /// The next wait on the wire ends at once: with what the server has said, if it has, or with a notification of our own.
    /// False where nobody looks at the wire.
    pub fn ask_for_look(&self) -> bool {
        let seen = !matches!(self.progress(), Progress::Unseen);
        if seen {
            self.look.store(look::ASKED, Ordering::Relaxed);
        }
        seen
    }

    /// A notification is the one of a look.
    pub fn is_look(notification: &Notification) -> bool {
        notification.process_id() == 0 && notification.channel() == look::CHANNEL
    }

    /// A huge message has passed.
    pub fn has_grown(&self) -> bool {
        self.grown.load(Ordering::Relaxed)
    }

    /// Registers who is to be woken, then looks: an abort between the two cannot be missed.
    fn check(&self, cx: &Context<'_>) -> io::Result<()> {
        let mut waker = unpoison(self.waker.lock());
        if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        drop(waker);
        if self.is_aborted() {
            Err(io::ErrorKind::TimedOut.into())
        } else {
            Ok(())
        }
    }
}

/// The byte stream that can be cut.
pub(crate) struct Wire {
    socket: Socket,
    handle: Arc<Handle>,
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.handle.check(cx)?;
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.handle.check(cx)?;
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.handle.check(cx)?;
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// What the driver reads and writes: answers, each of which it can hand to its caller before it sees what came behind.
pub(crate) struct Answers<S> {
    stream: S,
    handle: Arc<Handle>,
    frame: Frame,
    /// Since the last poll that had nothing to give: data was delivered, and it ended an answer.
    delivered: bool,
    ended: bool,
    /// What came behind the end of an answer.
    held: Vec<u8>,
}

impl<S> Answers<S> {
    fn new(stream: S, handle: Arc<Handle>) -> Answers<S> {
        handle
            .progress
            .store(progress::NOTHING_SENT, Ordering::Relaxed);
        Answers {
            stream,
            handle,
            frame: Frame::default(),
            delivered: false,
            ended: false,
            held: Vec::new(),
        }
    }

    /// Looks at what is about to be delivered: up to where, so that it ends with the first end of an answer.
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
        if self.frame.largest() > HUGE {
            self.handle.grown.store(true, Ordering::Relaxed);
        }
        if let Some(process) = self.frame.take_process() {
            self.handle.process.store(process, Ordering::Relaxed);
        }
        (self.delivered, self.ended) = (true, ready);
        length
    }

    /// As much of it as there is room for.
    fn deliver_held(&mut self, buf: &mut ReadBuf<'_>) {
        let mut held = std::mem::take(&mut self.held);
        let fits = held.len().min(buf.remaining());
        let length = self.deliver(&held[..fits]);
        buf.put_slice(&held[..length]);
        held.drain(..length);
        self.held = held;
    }

    /// Has the driver look for its answer first, and come again at once.
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
            // However little the driver has room for: one that got nothing would wait for ever.
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
            // The end. What was delivered before it is looked at first.
            _ if answers.delivered => return answers.later(cx),
            end => return end,
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
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl TlsStream for Answers<Wire> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

/// Makes one wire; a fresh one for each connection, since the handle belongs to it.
#[derive(Clone)]
pub(crate) struct Connector(pub Arc<Handle>);

impl MakeTlsConnect<Socket> for Connector {
    type Stream = Answers<Wire>;
    type TlsConnect = Connector;
    type Error = io::Error;

    fn make_tls_connect(&mut self, _host: &str) -> io::Result<Connector> {
        Ok(self.clone())
    }
}

impl TlsConnect<Socket> for Connector {
    type Stream = Answers<Wire>;
    type Error = io::Error;
    type Future = Ready<io::Result<Answers<Wire>>>;

    fn connect(self, socket: Socket) -> Self::Future {
        let wire = Wire {
            socket,
            handle: Arc::clone(&self.0),
        };
        ready(Ok(Answers::new(wire, self.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that says nothing.
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
            assert!(handle.ask_for_look());
            let mut cx = Context::from_waker(Waker::noop());
            let (mut got, mut polls) = (Vec::new(), 0);
            while got.len() < look::MESSAGE.len() {
                let mut bytes = vec![0; room];
                let mut buf = ReadBuf::new(&mut bytes);
                let poll = Pin::new(&mut answers).poll_read(&mut cx, &mut buf);
                // Once, it has the runtime look at the socket first.
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
