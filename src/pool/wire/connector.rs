//! Connects the driver to a server by a route of ours.

use super::answers::Answers;
use super::failure::Failure;
use super::handle::Handle;
use super::handshake;
use super::route::{Place, Route};
use super::stream::{Either, Stream, Wire};
use postgres::Socket;
use postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Makes one wire. Each connection needs a new connector, since the handle belongs to the wire.
#[derive(Clone)]
pub(crate) struct Connector {
    pub handle: Arc<Handle>,
    pub route: Route,
}

impl MakeTlsConnect<Socket> for Connector {
    type Stream = Answers<Stream>;
    type TlsConnect = Connector;
    type Error = io::Error;

    fn make_tls_connect(&mut self, _host: &str) -> io::Result<Connector> {
        Ok(self.clone())
    }
}

impl TlsConnect<Socket> for Connector {
    type Stream = Answers<Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Answers<Stream>>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        Box::pin(async move {
            let stream = self.stream(socket).await?;
            Ok(Answers::new(stream, self.handle))
        })
    }
}

impl Connector {
    async fn stream(&self, socket: Socket) -> Result<Stream, Failure> {
        self.handle.encrypted.store(false, Ordering::Relaxed);
        let socket = match &self.route.place {
            Place::Tcp(_) => Either::Tcp(socket),
            // The driver was led elsewhere; see `startup::detour`.
            #[cfg(unix)]
            Place::Unix(path) => {
                drop(socket);
                let real = tokio::net::UnixStream::connect(path).await;
                Either::Unix(real.map_err(Failure::Io)?)
            }
        };
        let wire = Wire {
            socket,
            handle: Arc::clone(&self.handle),
        };
        match &self.route.tls {
            Some(tls) => handshake::encrypt(wire, tls).await,
            None => Ok(Stream::Plain(wire)),
        }
    }
}

impl TlsStream for Answers<Stream> {
    fn channel_binding(&self) -> ChannelBinding {
        self.stream().channel_binding()
    }
}
