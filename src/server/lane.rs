//! A lane: a tiny_http server on a private Unix socket, and the worker threads that take its requests. Only the edge can
//! reach the socket, and only over connections that were opened one after the other and proven: tiny_http 0.12 leaves some
//! of those that come in a burst without a thread.
//!
//! The edge sends over one connection one request at a time: method and target, its number at the edge's desk, where the rest
//! of its head is, and the body.

use super::http::Incoming;
use super::turns::{SLOW, Turns};
use crate::temporary::Temporary;
use log::{error, warn};
use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;

/// The header with the number of a request at the edge's desk; short, since tiny_http reads byte by byte.
pub(super) const NUMBER: &str = "Desk";

pub(super) type Serve = Arc<dyn Fn(Incoming, &Turns) + Send + Sync>;

/// How to start a lane, and to start it again.
pub(super) struct Plan {
    pub name: &'static str,
    pub workers: usize,
    /// How many of them are at work at once, as long as they are quick.
    pub at_once: usize,
    /// Requests that it is sent beyond one for each worker: of the line, those that wait at the workers' own door.
    pub ahead: usize,
    /// Requests on their way to it, which no worker has taken.
    pub coming: Arc<AtomicUsize>,
    /// What a worker does with a request; it tells when it has taken it.
    pub serve: Serve,
    /// Holds the sockets.
    pub dir: Arc<Temporary>,
}

/// A lane that runs, until it is dropped.
pub(super) struct Running {
    shared: Arc<Shared>,
    workers: usize,
}

struct Shared {
    // Closed before the directory goes: it ends its thread by connecting to itself.
    http: tiny_http::Server,
    path: PathBuf,
    turns: Arc<Turns>,
    /// It takes no new connections.
    deaf: AtomicBool,
    _dir: Arc<Temporary>,
}

impl Plan {
    pub fn start(&self) -> io::Result<Running> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.path().join(format!("{}-{number}", self.name));
        let http = tiny_http::Server::http_unix(&path).map_err(io::Error::other)?;
        let turns = Turns::new(self.workers, self.at_once, Arc::clone(&self.coming));
        let shared = Arc::new(Shared {
            http,
            path,
            turns: Arc::new(turns),
            deaf: AtomicBool::new(false),
            _dir: Arc::clone(&self.dir),
        });
        let running = Running {
            shared,
            workers: self.workers,
        };
        for me in 0..self.workers {
            let (shared, serve) = (Arc::clone(&running.shared), Arc::clone(&self.serve));
            thread::Builder::new()
                .name(format!("millpond-{}", self.name))
                .spawn(move || shared.work(me, &serve))?;
        }
        Ok(running)
    }
}

impl Shared {
    fn work(&self, me: usize, serve: &Serve) {
        while let Some(taken) = self.next(me) {
            match taken {
                Ok(raw) => {
                    let serve = |incoming| serve(incoming, &self.turns);
                    let served = catch_unwind(AssertUnwindSafe(|| Incoming::of(raw).map(serve)));
                    if served.is_err() {
                        error!("a worker panicked over a request");
                    }
                }
                // What it has goes on, and it is built anew when a connection is needed.
                Err(e) if !self.turns.are_over() => {
                    warn!("a lane takes no new connections: {e}");
                    self.deaf.store(true, Ordering::SeqCst);
                }
                Err(_) => {}
            }
        }
    }

    /// What a worker does next; nothing when the lane is closed.
    fn next(&self, me: usize) -> Option<io::Result<tiny_http::Request>> {
        let found = match self.turns.done(me) {
            true => self.http.try_recv().transpose(),
            false => None,
        };
        let taken = match found {
            Some(taken) => taken,
            None if self.turns.rest(me) => self.http.recv(),
            None => return None,
        };
        self.turns.took(me);
        Some(taken)
    }
}

impl Running {
    pub fn turns(&self) -> Arc<Turns> {
        Arc::clone(&self.shared.turns)
    }

    /// Opens a connection and has a worker answer over it, for however long all of them are busy.
    ///
    /// # Errors
    /// When the lane takes no connections.
    pub fn connect(&self) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(&self.shared.path)?;
        stream.set_read_timeout(Some(SLOW))?;
        let turns = &self.shared.turns;
        let _announced = turns.announce();
        (&stream).write_all(b"GET / HTTP/1.1\r\n\r\n")?;
        let mut answer = Vec::new();
        let mut buffer = [0; 256];
        while !answer.ends_with(b"\r\n\r\n") {
            turns.call();
            match (&stream).read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => answer.extend_from_slice(&buffer[..read]),
                Err(e) if !matches!(e.kind(), WouldBlock | TimedOut | Interrupted) => {
                    return Err(e);
                }
                Err(e) if self.shared.deaf.load(Ordering::SeqCst) => return Err(e),
                Err(_) => {}
            }
        }
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

impl Drop for Running {
    /// Lets the workers go, each when it has answered what it has.
    fn drop(&mut self) {
        self.shared.turns.close();
        for _ in 0..self.workers {
            self.shared.http.unblock();
        }
    }
}
