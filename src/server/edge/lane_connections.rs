//! The connections to one lane, and the line of requests for its workers.
//!
//! A lane is sent one request for each worker, and some ahead, so that a worker that becomes free
//! need not wait for the event loop. The other requests wait in line until half of those sent ahead
//! are taken. A few connections are enough, since no answer comes back over them.

use super::dispatch::PendingRequest;
use crate::server::lane::{Plan, Running, WorkerWakeup};
use crate::server::router::Route;
use crate::sync::unpoison;
use log::{info, warn};
use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Pause between two attempts to reopen a connection.
const REOPEN_AGAIN: Duration = Duration::from_millis(100);
/// The most connections to a lane: while one carries a large body, the others go on.
pub const MOST_LANE_CONNECTIONS: usize = 4;
/// The most bytes of all requests that are in line or being sent.
const MOST_BYTES: usize = 64 << 20;
/// The capacity that an empty output buffer keeps.
const KEPT: usize = 64 * 1024;

/// A request in line.
pub(super) struct Waiting {
    /// Its number in the dispatch table.
    pub number: u64,
    pub pending: PendingRequest,
    pub route: Arc<Route>,
    /// The request as it is sent.
    pub bytes: Vec<u8>,
}

/// One connection to a lane.
#[derive(Default)]
struct LaneConnection {
    stream: Option<UnixStream>,
    output: Vec<u8>,
    written: usize,
}

/// The connection is broken.
pub(super) struct Lost;

impl LaneConnection {
    fn unsent(&self) -> usize {
        self.output.len() - self.written
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

/// All connections to a lane, and its line.
pub(super) struct LaneConnections {
    all: Vec<LaneConnection>,
    line: VecDeque<Waiting>,
    /// The most requests that wait: in line, and sent ahead.
    longest: usize,
    bytes_in_line: usize,
    ahead: usize,
    /// How many more requests the lane may be sent.
    free: usize,
    /// Wakes the lane's workers.
    pub wakeup: Arc<WorkerWakeup>,
    lane: Arc<Mutex<Restartable>>,
}

/// The lane itself, which is rebuilt when it takes no connections.
struct Restartable {
    plan: Plan,
    running: Running,
}

impl LaneConnections {
    /// Starts the lane and opens connections to it. At most `longest` requests wait for a worker.
    pub fn start(
        plan: Plan,
        longest: usize,
    ) -> io::Result<(LaneConnections, Vec<net::UnixStream>)> {
        let running = plan.start()?;
        let (workers, most) = (plan.workers, plan.workers.min(MOST_LANE_CONNECTIONS));
        let streams: io::Result<_> = (0..most).map(|_| running.connect()).collect();
        let ahead = plan.ahead.min(longest);
        let connections = LaneConnections {
            all: (0..most).map(|_| LaneConnection::default()).collect(),
            line: VecDeque::new(),
            longest,
            bytes_in_line: 0,
            ahead,
            free: workers + ahead,
            wakeup: running.wakeup(),
            lane: Arc::new(Mutex::new(Restartable { plan, running })),
        };
        Ok((connections, streams?))
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    #[cfg(test)]
    pub fn second_handles(&self) -> Vec<net::UnixStream> {
        use std::os::fd::AsFd;
        let streams = self
            .all
            .iter()
            .filter_map(|connection| connection.stream.as_ref());
        let handles = streams.map(|stream| stream.as_fd().try_clone_to_owned().expect("a handle"));
        handles.map(net::UnixStream::from).collect()
    }

    /// Registers an open connection in its place.
    pub fn install(
        &mut self,
        index: usize,
        stream: net::UnixStream,
        registry: &Registry,
        token: Token,
    ) -> io::Result<()> {
        let mut stream = UnixStream::from_std(stream);
        registry.register(&mut stream, token, Interest::READABLE)?;
        self.all[index] = LaneConnection {
            stream: Some(stream),
            ..LaneConnection::default()
        };
        Ok(())
    }

    pub fn is_open(&self, index: usize) -> bool {
        self.all[index].stream.is_some()
    }

    /// Whether there is room for one more request, with `waiting` requests sent ahead.
    pub fn has_room(&self, waiting: usize) -> bool {
        let unsent: usize = self.all.iter().map(LaneConnection::unsent).sum();
        self.bytes_in_line + unsent < MOST_BYTES
            && (self.free > 0 || self.line.len() + waiting < self.longest)
    }

    pub fn has_line(&self) -> bool {
        !self.line.is_empty()
    }

    /// More requests should follow once fewer than this are left of those sent ahead; 0 while the
    /// line is empty.
    pub fn refill_below(&self) -> usize {
        match self.has_line() {
            true => self.ahead / 2 + 1,
            false => 0,
        }
    }

    pub fn queue(&mut self, waiting: Waiting) {
        self.bytes_in_line += waiting.bytes.len();
        self.line.push_back(waiting);
    }

    /// Takes the next request out of the line, if there is a free worker, and picks its connection:
    /// the first of the least busy ones, whose thread is probably still awake.
    pub fn next(&mut self) -> Option<(usize, Waiting)> {
        if self.free == 0 || self.line.is_empty() {
            return None;
        }
        let open = self
            .all
            .iter()
            .enumerate()
            .filter(|(_, connection)| connection.stream.is_some());
        let (index, _) = open.min_by_key(|(_, connection)| connection.unsent())?;
        let waiting = self.line.pop_front()?;
        self.bytes_in_line -= waiting.bytes.len();
        self.free -= 1;
        Some((index, waiting))
    }

    pub fn send(
        &mut self,
        index: usize,
        bytes: &[u8],
        registry: &Registry,
        token: Token,
    ) -> Result<(), Lost> {
        let connection = &mut self.all[index];
        let busy = !connection.output.is_empty();
        connection.output.extend_from_slice(bytes);
        if busy {
            Ok(())
        } else {
            connection.write(registry, token)
        }
    }

    /// Handles an event of a connection.
    pub fn event(
        &mut self,
        index: usize,
        event: &mio::event::Event,
        registry: &Registry,
    ) -> Result<(), Lost> {
        let connection = &mut self.all[index];
        if connection.stream.is_none() {
            // Lost already, in the same round.
            return Ok(());
        }
        if event.is_writable() && !connection.output.is_empty() {
            connection.write(registry, event.token())?;
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            connection.read()?;
        }
        Ok(())
    }

    /// Counts workers that have become free.
    pub fn add_free(&mut self, more: usize) {
        self.free += more;
    }

    /// Drops a broken connection; its place stays empty until it is reopened.
    pub fn drop_connection(&mut self, index: usize) {
        self.all[index] = LaneConnection::default();
    }

    /// Takes the stale requests out of the line.
    pub fn take_stale(
        &mut self,
        is_stale: impl Fn(&PendingRequest) -> bool,
    ) -> Vec<PendingRequest> {
        let stays = |waiting: &Waiting| !is_stale(&waiting.pending);
        if self.line.iter().all(stays) {
            return Vec::new();
        }
        let all = std::mem::take(&mut self.line);
        let (stay, stale): (Vec<_>, Vec<_>) = all.into_iter().partition(stays);
        self.line = stay.into();
        self.bytes_in_line = self.line.iter().map(|waiting| waiting.bytes.len()).sum();
        stale.into_iter().map(|waiting| waiting.pending).collect()
    }

    /// Opens a connection again, on a thread of its own, and rebuilds the lane if it takes none.
    /// `done` gets the connection and the wake-up of the lane that it leads to.
    pub fn reopen(&self, done: impl FnOnce(net::UnixStream, Arc<WorkerWakeup>) + Send + 'static) {
        let lane = Arc::clone(&self.lane);
        let reopen = move || {
            // Until it succeeds, or the server is gone.
            while Arc::strong_count(&lane) > 1 {
                let mut lane = unpoison(lane.lock());
                let connected = lane.running.connect().or_else(|e| {
                    warn!("rebuilding lane {}: {e}", lane.plan.name);
                    lane.running = lane.plan.start()?;
                    lane.running.connect()
                });
                match connected {
                    Ok(stream) => {
                        info!("reconnected to lane {}", lane.plan.name);
                        return done(stream, lane.running.wakeup());
                    }
                    Err(e) => {
                        warn!("lane {} cannot be reached: {e}", lane.plan.name);
                        drop(lane);
                        thread::sleep(REOPEN_AGAIN);
                    }
                }
            }
        };
        let spawned = thread::Builder::new()
            .name("millpond-mend".into())
            .spawn(reopen);
        if let Err(e) = spawned {
            warn!("cannot start a thread to reconnect to a lane: {e}");
        }
    }
}
