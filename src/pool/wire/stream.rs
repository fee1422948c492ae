//! The byte stream under [`Answers`](super::answers::Answers), which can be cut.

#[cfg(feature = "tls")]
use super::binding::channel_binding;
use super::handle::Handle;
use postgres::Socket;
use postgres::tls::{ChannelBinding, TlsStream};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
#[cfg(unix)]
use tokio::net::UnixStream;

/// A connection to the server, which its handle can cut.
pub(crate) struct Wire {
    pub socket: Either,
    pub handle: Arc<Handle>,
}

pub(crate) enum Either {
    Tcp(Socket),
    #[cfg(unix)]
    Unix(UnixStream),
}

/// Calls one of the methods of a stream on whichever it is.
macro_rules! on_socket {
    ($wire:expr, $method:ident($($argument:expr),*)) => {
        match &mut $wire.socket {
            Either::Tcp(socket) => Pin::new(socket).$method($($argument),*),
            #[cfg(unix)]
            Either::Unix(socket) => Pin::new(socket).$method($($argument),*),
        }
    };
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.handle.check(cx)?;
        on_socket!(self, poll_read(cx, buf))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.handle.check(cx)?;
        on_socket!(self, poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_socket!(self, poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.handle.check(cx)?;
        on_socket!(self, poll_shutdown(cx))
    }
}

/// The wire, or the encryption above it.
pub(crate) enum Stream {
    Plain(Wire),
    #[cfg(feature = "tls")]
    Encrypted(Box<tokio_rustls::client::TlsStream<Wire>>),
}

macro_rules! on_stream {
    ($stream:expr, $method:ident($($argument:expr),*)) => {
        match &mut *$stream {
            Stream::Plain(wire) => Pin::new(wire).$method($($argument),*),
            #[cfg(feature = "tls")]
            Stream::Encrypted(above) => Pin::new(&mut **above).$method($($argument),*),
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        on_stream!(self, poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        on_stream!(self, poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, poll_shutdown(cx))
    }
}

impl TlsStream for Stream {
    fn channel_binding(&self) -> ChannelBinding {
        match self {
            Stream::Plain(_) => ChannelBinding::none(),
            #[cfg(feature = "tls")]
            Stream::Encrypted(above) => {
                let certificates = above.get_ref().1.peer_certificates();
                let own = certificates.and_then(|chain| chain.first());
                own.map_or_else(ChannelBinding::none, channel_binding)
            }
        }
    }
}
