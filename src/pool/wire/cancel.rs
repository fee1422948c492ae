//! A cancel request: a connection of its own, over which the key of the connection concerned is
//! sent, encrypted if that one is.

#[cfg(feature = "tls")]
use super::handshake::{Handshake, REQUEST};
use super::route::{Place, Route};
use std::io::{self, Read, Write};
use std::net::TcpStream;
#[cfg(unix)]
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Tells the server that this is a cancel request and no start of a session.
const CODE: [u8; 4] = 80_877_102_u32.to_be_bytes();

/// A blocking stream whose every wait ends at a deadline.
struct Timed<S> {
    socket: S,
    until: Instant,
}

trait Socket: Read + Write {
    fn limit(&self, left: Duration) -> io::Result<()>;
}

impl Socket for TcpStream {
    fn limit(&self, left: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(left))?;
        self.set_write_timeout(Some(left))
    }
}

#[cfg(unix)]
impl Socket for UnixStream {
    fn limit(&self, left: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(left))?;
        self.set_write_timeout(Some(left))
    }
}

impl<S: Socket> Timed<S> {
    fn limited(&mut self) -> io::Result<&mut S> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.socket.limit(left)?;
        Ok(&mut self.socket)
    }
}

impl<S: Socket> Read for Timed<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.limited()?.read(buf)
    }
}

impl<S: Socket> Write for Timed<S> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.limited()?.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

/// Asks the server to cancel what runs on the connection with this key, and returns once the server
/// is done with the request: it closes the connection then.
pub(crate) fn cancel(route: &Route, key: [u8; 8], until: Instant) -> io::Result<()> {
    match &route.place {
        Place::Tcp(address) => {
            let left = until.saturating_duration_since(Instant::now());
            let socket = TcpStream::connect_timeout(address, left.max(Duration::from_millis(1)))?;
            // A handshake would wait for delayed acknowledgements otherwise.
            socket.set_nodelay(true)?;
            send_over(Timed { socket, until }, route, key)
        }
        // A connect to a Unix socket waits only while the server's backlog is full.
        #[cfg(unix)]
        Place::Unix(path) => {
            let socket = UnixStream::connect(path)?;
            send_over(Timed { socket, until }, route, key)
        }
    }
}

fn send_over<S: Socket>(stream: Timed<S>, route: &Route, key: [u8; 8]) -> io::Result<()> {
    match &route.tls {
        None => send(stream, key),
        #[cfg(feature = "tls")]
        Some(tls) => send(encrypted(stream, tls)?, key),
        #[cfg(not(feature = "tls"))]
        Some(never) => match *never {},
    }
}

#[cfg(feature = "tls")]
fn encrypted<S: Socket>(
    mut stream: Timed<S>,
    tls: &Handshake,
) -> io::Result<rustls::StreamOwned<rustls::ClientConnection, Timed<S>>> {
    if !tls.direct {
        stream.write_all(&REQUEST)?;
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        // The connection concerned is encrypted, so its key never travels in the clear.
        if !tls.is_offered(answer[0])? {
            return Err(io::Error::other("the server does not offer TLS any more"));
        }
    }
    let (config, name) = (tls.config.clone(), tls.name.clone());
    let session = rustls::ClientConnection::new(config, name).map_err(io::Error::other)?;
    Ok(rustls::StreamOwned::new(session, stream))
}

fn send(mut stream: impl Read + Write, key: [u8; 8]) -> io::Result<()> {
    let request = [&16_u32.to_be_bytes()[..], &CODE, &key].concat();
    stream.write_all(&request)?;
    stream.flush()?;
    let mut rest = [0; 64];
    loop {
        match stream.read(&mut rest) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(e) => match e.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => return Err(e),
                // A server that resets the connection, or leaves out the end of TLS, has closed it
                // as well.
                _ => return Ok(()),
            },
        }
    }
}
