//! The workers of a lane: a tiny_http server on a private Unix socket, and the threads that take
//! its requests. Only the edge can reach the socket. It opens its connections one after the other
//! and proves each: tiny_http 0.12 leaves some connections of a burst without a thread.
//!
//! Over a connection the edge sends one request at a time. No answer comes back over it.

use super::table::Table;
use super::wire::Incoming;
use super::worker;
use super::worker_wakeup::{SLOW, WorkerWakeup};
use crate::server::router::Lane;
use crate::temporary::Temporary;
use log::{error, warn};
use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

/// How large a lane is.
#[derive(Clone, Copy)]
pub struct Size {
    pub workers: usize,
    /// How many workers are busy at once, as long as they are quick.
    pub at_once: usize,
    /// Requests that are sent beyond one for each worker, and wait in tiny_http's own queue.
    pub ahead: usize,
    /// The most requests that wait for a worker: in line, and sent ahead.
    pub queue: usize,
    /// Whether the order of the line may change.
    pub adapts: bool,
}

/// How to start a lane; kept to start it again.
pub(super) struct Plan {
    pub lane: Lane,
    pub size: Size,
    pub table: Arc<Table>,
    /// The directory of the lanes' sockets.
    pub dir: Arc<Temporary>,
}

/// A running lane; it stops when this is dropped.
pub(super) struct Workers {
    shared: Arc<Shared>,
    count: usize,
}

/// What the threads of a lane share.
struct Shared {
    // Dropped before the directory: tiny_http ends its thread by connecting to itself.
    http: tiny_http::Server,
    path: PathBuf,
    wakeup: Arc<WorkerWakeup>,
    table: Arc<Table>,
    /// The lane takes no new connections.
    deaf: AtomicBool,
    _dir: Arc<Temporary>,
}

impl Plan {
    pub fn name(&self) -> &'static str {
        match self.lane {
            Lane::Health => "health",
            Lane::Api => "api",
        }
    }

    pub fn start(&self) -> io::Result<Workers> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.path().join(format!("{}-{number}", self.name()));
        let http = tiny_http::Server::http_unix(&path).map_err(io::Error::other)?;
        let (count, coming) = (self.size.workers, self.table.coming(self.lane));
        let wakeup = WorkerWakeup::new(count, self.size.at_once, coming);
        let shared = Arc::new(Shared {
            http,
            path,
            wakeup: Arc::new(wakeup),
            table: Arc::clone(&self.table),
            deaf: AtomicBool::new(false),
            _dir: Arc::clone(&self.dir),
        });
        let workers = Workers { shared, count };
        for me in 0..count {
            let shared = Arc::clone(&workers.shared);
            thread::Builder::new()
                .name(format!("millpond-{}-{me}", self.name()))
                .spawn(move || shared.work(me))?;
        }
        Ok(workers)
    }
}

impl Shared {
    fn work(&self, me: usize) {
        while let Some(taken) = self.next(me) {
            match taken {
                Ok(raw) => {
                    let serve = |incoming| worker::serve(incoming, &self.table, &self.wakeup);
                    let served = catch_unwind(AssertUnwindSafe(|| Incoming::of(raw).map(serve)));
                    if served.is_err() {
                        error!("a worker panicked while it handled a request");
                    }
                }
                // Its connections stay. The lane is rebuilt when a new one is needed.
                Err(e) if !self.wakeup.is_closed() => {
                    warn!("a lane cannot accept new connections: {e}");
                    self.deaf.store(true, Ordering::SeqCst);
                }
                Err(_) => {}
            }
        }
    }

    /// The next request for a worker; `None` once the lane is closed.
    fn next(&self, me: usize) -> Option<io::Result<tiny_http::Request>> {
        let found = match self.wakeup.done(me) {
            true => self.http.try_recv().transpose(),
            false => None,
        };
        let taken = match found {
            Some(taken) => taken,
            None if self.wakeup.rest(me) => self.http.recv(),
            None => return None,
        };
        self.wakeup.took(me);
        Some(taken)
    }
}

impl Workers {
    pub fn wakeup(&self) -> Arc<WorkerWakeup> {
        Arc::clone(&self.shared.wakeup)
    }

    /// Opens a connection and waits until a worker has answered over it, however long all of them
    /// are busy.
    ///
    /// # Errors
    /// The lane takes no connections.
    pub fn connect(&self) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(&self.shared.path)?;
        stream.set_read_timeout(Some(SLOW))?;
        let wakeup = &self.shared.wakeup;
        let _announced = wakeup.announce();
        (&stream).write_all(b"GET / HTTP/1.1\r\n\r\n")?;
        let mut answer = Vec::new();
        let mut buffer = [0; 256];
        while !answer.ends_with(b"\r\n\r\n") {
            wakeup.call();
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

impl Drop for Workers {
    /// Each worker ends once it has answered its request.
    fn drop(&mut self) {
        self.shared.wakeup.close();
        for _ in 0..self.count {
            self.shared.http.unblock();
        }
    }
}
