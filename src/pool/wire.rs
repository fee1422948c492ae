//! The byte stream under a server connection, and the handle that frees a thread blocked on it.
//!
//! The driver is asked for TLS with direct negotiation (`ssl_mode(Require)`, `ssl_negotiation(Direct)`): it then hands the
//! raw socket to our connector at once and speaks the plain protocol over whatever the connector returns
//! (tokio-postgres 0.7.18). The connector returns the socket inside a [`Wire`], without TLS. What that gives:
//!
//! - [`Handle::abort`] from any thread: whatever is blocked on the wire ends with `TimedOut` at once, a query on a black
//!   hole, a hung handshake, and the close that follows;
//! - the last answer is not lost: when the end of the stream follows data in one poll, the driver would learn that the
//!   connection is gone before its caller has the answer, and report `Closed` for a statement that was answered. The end
//!   is therefore held back for one poll.
//!
//! This is the only file with async traits. A Unix socket has no wire (the driver gives it no host name to negotiate
//! with): there the server's own timeout is all there is.

use postgres::Socket;
use postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Ends whatever is blocked on one wire.
#[derive(Default)]
pub(crate) struct Handle {
    aborted: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Handle {
    /// Cuts the connection for good. Never blocks.
    pub fn abort(&self) {
        self.aborted.store(true, Ordering::SeqCst);
        let waker = self
            .waker
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::SeqCst)
    }

    /// Registers who is to be woken, then looks: an abort between the two cannot be missed.
    fn check(&self, cx: &Context<'_>) -> io::Result<()> {
        let mut waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
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

/// The stream that the driver reads and writes.
pub(crate) struct Wire {
    socket: Socket,
    handle: Arc<Handle>,
    /// Data was delivered since the last wait: an end right behind it is held back for one poll.
    data_first: bool,
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.handle.check(cx)?;
        let before = buf.filled().len();
        let answer = Pin::new(&mut self.socket).poll_read(cx, buf);
        let ended = match &answer {
            Poll::Ready(Ok(())) => buf.filled().len() == before,
            Poll::Ready(Err(_)) => true,
            Poll::Pending => {
                self.data_first = false;
                return Poll::Pending;
            }
        };
        if !ended {
            self.data_first = true;
        } else if std::mem::take(&mut self.data_first) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        answer
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

impl TlsStream for Wire {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

/// Makes one wire; a fresh one for each connection, since the handle belongs to it.
#[derive(Clone)]
pub(crate) struct Connector(pub Arc<Handle>);

impl MakeTlsConnect<Socket> for Connector {
    type Stream = Wire;
    type TlsConnect = Connector;
    type Error = io::Error;

    fn make_tls_connect(&mut self, _host: &str) -> io::Result<Connector> {
        Ok(self.clone())
    }
}

impl TlsConnect<Socket> for Connector {
    type Stream = Wire;
    type Error = io::Error;
    type Future = Ready<io::Result<Wire>>;

    fn connect(self, socket: Socket) -> Self::Future {
        ready(Ok(Wire {
            socket,
            handle: self.0,
            data_first: false,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_may_be_pulled_from_any_thread() {
        fn crosses_threads<T: Send + Sync>() {}
        crosses_threads::<Handle>();
    }
}
