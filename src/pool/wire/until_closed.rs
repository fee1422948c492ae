//! The stream of a cancel request: it is shut down once the server has closed its side, which it
//! does when it has passed the request on.

use super::{Handle, Wire};
use postgres::Socket;
use postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready as poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

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
            let read = poll!(Pin::new(&mut self.0).poll_read(cx, &mut buf));
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
