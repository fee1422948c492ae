//! The byte stream under a server connection, and the handle that frees a thread blocked on it.
//!
//! The driver is asked for TLS with direct negotiation (`ssl_mode(Require)`,
//! `ssl_negotiation(Direct)`): it then passes the raw socket to our connector at once and speaks
//! the plain protocol over the stream that the connector returns (tokio-postgres 0.7.18). The
//! connector returns the socket inside a [`Wire`], without TLS. This has three uses:
//!
//! - [`Handle::abort`] works from any thread: a call blocked on the wire fails with `TimedOut` at
//!   once. This includes a query whose packets are silently dropped, a handshake that hangs, and
//!   the close that follows.
//! - A finished answer is always delivered. The driver polls the connection before it looks for its
//!   answer, and reports the connection's error in place of the answer (tokio-postgres 0.7.18,
//!   `poll_block_on` of postgres 0.19.14). If the end of the stream, or the FATAL of a server that
//!   shuts down, follows closely after an answer, the caller would be told that its statement
//!   failed although it succeeded. [`Answers`] therefore delivers nothing more between the end of
//!   an answer and the next poll.
//! - It reports what the driver does not: whether any part of a request had been sent, or reported
//!   as complete, when its connection was lost; and the process number that the server gave out,
//!   which reveals a pooler.
//!
//! `Answers` reads the protocol in plain text, so it must stand above any encryption. This is the
//! only file with async traits. A Unix socket has no wire (the driver has no host name to negotiate
//! TLS with): on it, the server's own timeout is the only limit, and the progress of a statement is
//! not known.

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
use std::task::{Context, Poll, Waker, ready as task_ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Ends every call that is blocked on one wire.
#[derive(Default)]
pub(crate) struct Handle {
    aborted: AtomicBool,
    waker: Mutex<Option<Waker>>,
    /// One of the constants of `progress`.
    progress: AtomicU8,
    /// The process number that the server gave out with the key for cancel requests; 0 = none was
    /// seen.
    process: AtomicI32,
    grown: AtomicBool,
    /// One of the constants of `look`.
    look: AtomicU8,
}

/// States of a look, which reads what the server has sent without a request.
///
/// The driver reports only messages that had arrived when its runtime last polled the socket, which
/// it does while it waits. So a look makes it wait for a notification that the wire itself
/// delivers.
mod look {
    pub const NONE: u8 = 0;
    pub const ASKED: u8 = 1;
    /// The runtime has polled the socket since the look was asked for.
    pub const TURNED: u8 = 2;
    /// A NotificationResponse: a length, a process, a channel, no payload.
    pub const MESSAGE: &[u8] = b"A\0\0\0\x17\0\0\0\0millpond_look\0\0";
    pub const CHANNEL: &str = "millpond_look";
}

/// After a message longer than this, the driver keeps buffers of that size for the life of its
/// connection.
const HUGE: usize = 16 << 20;

/// How far the current request has come. Only the thread that uses the connection advances it.
mod progress {
    /// The stream is not read here (Unix socket).
    pub const UNSEEN: u8 = 0;
    pub const NOTHING_SENT: u8 = 1;
    pub const SENT: u8 = 2;
    pub const COMPLETED: u8 = 3;
    /// Completed, then followed by an error.
    pub const FAILED: u8 = 4;
    pub const ANSWERED: u8 = 5;
}

impl Handle {
    /// Cuts the connection permanently. Never blocks.
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

    /// Resets the progress: the next request is about to be sent.
    pub fn begin_request(&self) {
        if self.progress.load(Ordering::Relaxed) != progress::UNSEEN {
            self.progress
                .store(progress::NOTHING_SENT, Ordering::Relaxed);
        }
    }

    /// Returns how far the request has come since [`begin_request`](Self::begin_request).
    pub fn progress(&self) -> Progress {
        match self.progress.load(Ordering::Relaxed) {
            progress::UNSEEN => Progress::Unseen,
            progress::NOTHING_SENT => Progress::NothingSent,
            progress::SENT => Progress::Sent,
            progress::ANSWERED => Progress::Answered,
            _ => Progress::Completed,
        }
    }

    /// Returns the process to be named in a cancel request, as the server gave it out when the
    /// connection was opened.
    pub fn process(&self) -> Option<i32> {
        Some(self.process.load(Ordering::Relaxed)).filter(|process| *process != 0)
    }

    /// Makes the next wait on the wire end at once: with a message from the server if there is one,
    /// otherwise with a notification that the wire makes. Returns false if the connection has no
    /// wire.
    pub fn ask_for_look(&self) -> bool {
        let seen = !matches!(self.progress(), Progress::Unseen);
        if seen {
            self.look.store(look::ASKED, Ordering::Relaxed);
        }
        seen
    }

    /// Returns whether a notification is the one that ends a look.
    pub fn is_look(notification: &Notification) -> bool {
        notification.process_id() == 0 && notification.channel() == look::CHANNEL
    }

    /// Returns whether a message longer than [`HUGE`] has passed.
    pub fn has_grown(&self) -> bool {
        self.grown.load(Ordering::Relaxed)
    }

    /// Stores the waker first and reads the flag afterwards, so that an abort between the two is
    /// not missed.
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

/// The byte stream under [`Answers`], which can be cut.
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

/// The stream that the driver reads and writes. It delivers each answer separately, so that the
/// driver can return it to the caller before it sees what follows.
pub(crate) struct Answers<S> {
    stream: S,
    handle: Arc<Handle>,
    frame: Frame,
    /// Data was delivered since the last poll that returned none, and (`ended`) it ended an answer.
    delivered: bool,
    ended: bool,
    /// Data that followed the end of an answer.
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
        if self.frame.largest() > HUGE {
            self.handle.grown.store(true, Ordering::Relaxed);
        }
        if let Some(process) = self.frame.take_process() {
            self.handle.process.store(process, Ordering::Relaxed);
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

/// Makes one wire. Each connection needs a new connector, since the handle belongs to the wire.
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

/// The stream of a cancel request. It is shut down once the server has closed its side, which it
/// does when it has passed the request on.
pub(crate) struct UntilClosed(Wire);

impl AsyncRead for UntilClosed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for UntilClosed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    /// A server that resets the connection has closed it as well; one that is silent is cut.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut bytes = [0; 64];
            let mut buf = ReadBuf::new(&mut bytes);
            let read = task_ready!(Pin::new(&mut self.0).poll_read(cx, &mut buf));
            match read {
                Ok(()) if !buf.filled().is_empty() => {}
                Err(e) if e.kind() == io::ErrorKind::TimedOut => return Poll::Ready(Err(e)),
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl TlsStream for UntilClosed {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

/// Makes one such stream, which its handle can cut.
#[derive(Clone)]
pub(crate) struct CancelConnector(pub Arc<Handle>);

impl MakeTlsConnect<Socket> for CancelConnector {
    type Stream = UntilClosed;
    type TlsConnect = CancelConnector;
    type Error = io::Error;

    fn make_tls_connect(&mut self, _host: &str) -> io::Result<CancelConnector> {
        Ok(self.clone())
    }
}

impl TlsConnect<Socket> for CancelConnector {
    type Stream = UntilClosed;
    type Error = io::Error;
    type Future = Ready<io::Result<UntilClosed>>;

    fn connect(self, socket: Socket) -> Self::Future {
        let handle = self.0;
        ready(Ok(UntilClosed(Wire { socket, handle })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert!(handle.ask_for_look());
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
