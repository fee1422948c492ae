//! A lane: a tiny_http server on a private Unix socket, and the worker threads that take its
//! requests. Only the edge can reach the socket. It opens its connections one after the other and
//! proves each: tiny_http 0.12 leaves some connections of a burst without a thread.
//!
//! Over a connection the edge sends one request at a time: method and target, the request's number
//! in the dispatch table, which holds the rest of its head, and the body.

mod intake;
mod worker_wakeup;

pub(super) use intake::{Incoming, NUMBER, RequestMeta};
pub(super) use worker_wakeup::{SLOW, WorkerWakeup};

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

pub(super) type Serve = Arc<dyn Fn(Incoming, &WorkerWakeup) + Send + Sync>;

/// How to start a lane; kept to start it again.
pub(super) struct Plan {
    pub name: &'static str,
    pub workers: usize,
    /// How many workers are busy at once, as long as they are quick.
    pub at_once: usize,
    /// Requests that are sent beyond one for each worker, and wait in tiny_http's own queue.
    pub ahead: usize,
    /// Requests that were sent, and that no worker has taken yet.
    pub coming: Arc<AtomicUsize>,
    /// What a worker does with a request; wakes the next worker once it has taken it.
    pub serve: Serve,
    /// The directory of the lanes' sockets.
    pub dir: Arc<Temporary>,
}

/// A running lane; it stops when this is dropped.
pub(super) struct Running {
    shared: Arc<Shared>,
    workers: usize,
}

struct Shared {
    // Dropped before the directory: tiny_http ends its thread by connecting to itself.
    http: tiny_http::Server,
    path: PathBuf,
    wakeup: Arc<WorkerWakeup>,
    /// The lane takes no new connections.
    deaf: AtomicBool,
    _dir: Arc<Temporary>,
}

impl Plan {
    pub fn start(&self) -> io::Result<Running> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.path().join(format!("{}-{number}", self.name));
        let http = tiny_http::Server::http_unix(&path).map_err(io::Error::other)?;
        let wakeup = WorkerWakeup::new(self.workers, self.at_once, Arc::clone(&self.coming));
        let shared = Arc::new(Shared {
            http,
            path,
            wakeup: Arc::new(wakeup),
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
                    let serve = |incoming| serve(incoming, &self.wakeup);
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

impl Running {
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

impl Drop for Running {
    /// Each worker ends once it has answered its request.
    fn drop(&mut self) {
        self.shared.wakeup.close();
        for _ in 0..self.workers {
            self.shared.http.unblock();
        }
    }
}
