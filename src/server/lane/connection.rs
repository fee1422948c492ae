//! One connection of the edge to a lane.

use mio::event::Event;
use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net;

/// The capacity that an empty output buffer keeps.
const KEPT: usize = 64 * 1024;

/// A connection, or the empty place of one that was lost.
#[derive(Default)]
pub(super) struct Connection {
    stream: Option<UnixStream>,
    output: Vec<u8>,
    written: usize,
}

/// The connection is broken.
pub(super) struct Lost;

impl Connection {
    /// Listens to an open stream.
    pub fn open(
        stream: net::UnixStream,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Connection> {
        let mut stream = UnixStream::from_std(stream);
        registry.register(&mut stream, token, Interest::READABLE)?;
        Ok(Connection {
            stream: Some(stream),
            ..Connection::default()
        })
    }

    pub fn is_open(&self) -> bool {
        self.stream.is_some()
    }

    /// A second handle of its socket.
    #[cfg(test)]
    pub fn second_handle(&self) -> Option<net::UnixStream> {
        use std::os::fd::AsFd;
        let handle = self.stream.as_ref()?.as_fd().try_clone_to_owned();
        Some(handle.expect("a handle").into())
    }

    /// The bytes that wait until the lane has read others.
    pub fn unsent(&self) -> usize {
        self.output.len() - self.written
    }

    pub fn send(&mut self, bytes: &[u8], registry: &Registry, token: Token) -> Result<(), Lost> {
        let is_busy = !self.output.is_empty();
        self.output.extend_from_slice(bytes);
        match is_busy {
            true => Ok(()),
            false => self.write(registry, token),
        }
    }

    pub fn event(&mut self, event: &Event, registry: &Registry) -> Result<(), Lost> {
        if self.stream.is_none() {
            // Lost already, in the same round.
            return Ok(());
        }
        if event.is_writable() && !self.output.is_empty() {
            self.write(registry, event.token())?;
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.read()?;
        }
        Ok(())
    }

    fn write(&mut self, registry: &Registry, token: Token) -> Result<(), Lost> {
        let stream = self.stream.as_mut().ok_or(Lost)?;
        while self.written < self.output.len() {
            match stream.write(&self.output[self.written..]) {
                Ok(written) if written > 0 => self.written += written,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    if self.written > self.output.len() / 2 {
                        self.output.drain(..self.written);
                        self.written = 0;
                    }
                    // One event, when there is room. Registered only now: otherwise every read at
                    // the other end would be an event.
                    let both = Interest::READABLE | Interest::WRITABLE;
                    return registry.reregister(stream, token, both).map_err(|_| Lost);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                _ => return Err(Lost),
            }
        }
        self.output.clear();
        self.output.shrink_to(KEPT);
        self.written = 0;
        Ok(())
    }

    /// A lane never sends anything: the end of the stream and any data both break the connection.
    fn read(&mut self) -> Result<(), Lost> {
        let stream = self.stream.as_mut().ok_or(Lost)?;
        match stream.read(&mut [0; 64]) {
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
            _ => Err(Lost),
        }
    }
}
