//! The edge: the public listener. It owns every client's socket, reads whole requests under limits, refuses what is no
//! clean request, and hands the others to the lanes.
//!
//! tiny_http 0.12 never meets a stranger: one request with `Content-Length: 30000000000` aborts a process, `GET / HTTP/2.0`
//! keeps a thread for ever, a burst of connections leaves most of them unserved, a lack of file descriptors ends accepting
//! for good, heads may be of any size, and nothing has a time limit. Here all of that ends:
//!
//! ```text
//!  clients ──► one thread, one event loop ──► health lane: 2 workers
//!              (framing, limits, deadlines)   api lane: HTTP_WORKERS, behind a line of HTTP_QUEUE
//! ```
//!
//! A slow client costs a buffer, not a thread. A request takes one of its lane's connections when one is free; one more than
//! the line takes is refused at once. The event loop never waits for anything but its sockets.

mod connection;
mod desk;
mod event_loop;
mod files;
mod forwarded;
mod framing;
mod in_flight;
mod links;

use super::Service;
use super::lane::Plan;
use super::router::Lane;
pub(super) use desk::Desk;
use event_loop::EventLoop;
use in_flight::InFlight;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// The running edge; it ends when this is dropped.
pub(super) struct Edge {
    addr: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the loop's thread shares with others.
struct Shared {
    desk: Arc<Desk>,
    over: AtomicBool,
    health: Arc<InFlight>,
    api: Arc<InFlight>,
}

impl Edge {
    /// Listens, and serves with the lanes (health, api), whose workers answer at the desk. `for_database` file descriptors
    /// are not taken by clients.
    pub fn start(
        service: Arc<Service>,
        lanes: impl FnOnce(&Arc<Desk>) -> (Plan, Plan),
        for_database: usize,
    ) -> io::Result<Edge> {
        let mut event_loop = EventLoop::new(service, lanes, for_database)?;
        let (addr, shared) = (event_loop.addr()?, event_loop.shared());
        let thread = thread::Builder::new()
            .name("millpond-edge".into())
            .spawn(move || event_loop.run())?;
        Ok(Edge {
            addr,
            shared,
            thread: Some(thread),
        })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Requests of a lane that are not answered yet.
    pub fn in_flight(&self, lane: Lane) -> &InFlight {
        self.shared.in_flight(lane)
    }

    /// Has it look at the phase.
    pub fn wake(&self) {
        self.shared.desk.wake();
    }
}

impl Shared {
    fn in_flight(&self, lane: Lane) -> &Arc<InFlight> {
        match lane {
            Lane::Health => &self.health,
            Lane::Api => &self.api,
        }
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        self.shared.desk.wake();
        if let Some(thread) = self.thread.take() {
            // It panicked, and said so.
            let _ = thread.join();
        }
    }
}
