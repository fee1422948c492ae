//! An answer on its way to a client, and how fast the client takes it.

use mio::net::TcpStream;
use std::io::{self, ErrorKind, Write};

/// A client must take at least this much of its answer in each `write_timeout`.
const MARK: i64 = 16 * 1024;
/// The average of so many times counts: a receiver's system tells of what was read once there is
/// room for a whole segment again, which has 64 KiB on loopback.
pub(super) const MOST_MARKS: u32 = 4;

#[derive(Default)]
pub(super) struct Output {
    bytes: Vec<u8>,
    written: usize,
    /// How much of it the client had taken at the last check; set once the socket first takes no
    /// more.
    had_taken: Option<i64>,
}

impl Output {
    pub fn new(bytes: Vec<u8>) -> Output {
        Output {
            bytes,
            ..Output::default()
        }
    }

    /// Writes as much as the socket takes. True once all is written.
    pub fn write(&mut self, mut socket: &TcpStream) -> io::Result<bool> {
        while self.written < self.bytes.len() {
            match socket.write(&self.bytes[self.written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => self.written += written,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    let taken = self.taken(socket);
                    self.had_taken.get_or_insert(taken);
                    return Ok(false);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// How many of the written bytes have left this system, less what it still holds of earlier
    /// answers.
    fn taken(&self, socket: &TcpStream) -> i64 {
        self.written as i64 - i64::from(queued(socket))
    }

    /// How many [marks](MARK) the client has taken since the last call that found any; at most
    /// [`MOST_MARKS`].
    pub fn take_marks(&mut self, socket: &TcpStream) -> u32 {
        let Some(had_taken) = self.had_taken else {
            return 0;
        };
        let taken = self.taken(socket);
        let marks = ((taken - had_taken) / MARK).clamp(0, i64::from(MOST_MARKS)) as u32;
        if marks > 0 {
            self.had_taken = Some(taken);
        }
        marks
    }
}

/// The bytes that the system holds for the peer, including its overhead. Writability is no measure:
/// the system reports it only once a third of the buffer is free, which may be megabytes.
#[cfg(target_os = "linux")]
fn queued(socket: &TcpStream) -> u32 {
    use nix::libc::{self, SK_MEMINFO_WMEM_QUEUED, SOL_SOCKET, c_int};
    use nix::{getsockopt_impl, sockopt_impl};
    /// As in asm-generic/socket.h. On platforms with another value the call fails.
    const SO_MEMINFO: c_int = 55;
    sockopt_impl!(MemoryInfo, GetOnly, SOL_SOCKET, SO_MEMINFO, [u32; 9]);
    let figures = nix::sys::socket::getsockopt(socket, MemoryInfo);
    figures.map_or(0, |figures| figures[SK_MEMINFO_WMEM_QUEUED as usize])
}

/// Not known on this platform.
#[cfg(not(target_os = "linux"))]
fn queued(_: &TcpStream) -> u32 {
    0
}
