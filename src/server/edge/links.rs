//! The connections to one lane, and the line of requests for its workers.
//!
//! A lane is sent as many requests as it has workers, and some ahead, so that a worker who comes free need not wait for the
//! loop; the others wait in line, until half of those sent ahead are taken. Few connections are enough for that: nothing
//! comes back over them.

use super::desk::Origin;
use crate::server::lane::{Plan, Running};
use crate::server::router::Route;
use crate::server::turns::Turns;
use log::{info, warn};
use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Between two attempts to mend a connection.
const MEND_AGAIN: Duration = Duration::from_millis(100);
/// Connections to a lane: one is busy over a large body while the others go on.
pub(in crate::server) const MOST_LINKS: usize = 4;
/// Bytes of requests in line, all together, and of those that are being sent.
const MOST_BYTES: usize = 64 << 20;
/// What a connection keeps for bytes to come, when it has none.
const KEPT: usize = 64 * 1024;

/// A request in line.
pub(super) struct Waiting {
    pub origin: Origin,
    pub route: Arc<Route>,
    /// Its number at the desk.
    pub exchange: u64,
    /// As it is sent.
    pub bytes: Vec<u8>,
}

/// One connection to a lane.
#[derive(Default)]
struct Link {
    stream: Option<UnixStream>,
    output: Vec<u8>,
    written: usize,
}

/// The connection is of no use any more.
pub(super) struct Lost;

impl Link {
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
                    // Told of once; not asked for otherwise, since every read at the other end would be told of.
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

    /// Nothing ever comes; an end, or an answer that nobody asked for, is the end of it.
    fn read(&mut self) -> Result<(), Lost> {
        let stream = self.stream.as_mut().ok_or(Lost)?;
        match stream.read(&mut [0; 64]) {
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
            _ => Err(Lost),
        }
    }
}

/// All connections to a lane.
pub(super) struct Links {
    all: Vec<Link>,
    line: VecDeque<Waiting>,
    /// Of the line, and of what was sent ahead of it.
    longest: usize,
    bytes_in_line: usize,
    ahead: usize,
    /// How many more the lane may be sent.
    free: usize,
    /// Whose turn it is in the lane.
    pub turns: Arc<Turns>,
    lane: Arc<Mutex<Mending>>,
}

/// The lane itself, which is built anew when it takes no connections.
struct Mending {
    plan: Plan,
    running: Running,
}

impl Links {
    /// Starts the lane, and opens connections to it. `longest` is the line before its workers.
    pub fn start(plan: Plan, longest: usize) -> io::Result<(Links, Vec<net::UnixStream>)> {
        let running = plan.start()?;
        let (workers, most) = (plan.workers, plan.workers.min(MOST_LINKS));
        let streams: io::Result<_> = (0..most).map(|_| running.connect()).collect();
        let ahead = plan.ahead.min(longest);
        let links = Links {
            all: (0..most).map(|_| Link::default()).collect(),
            line: VecDeque::new(),
            longest,
            bytes_in_line: 0,
            ahead,
            free: workers + ahead,
            turns: running.turns(),
            lane: Arc::new(Mutex::new(Mending { plan, running })),
        };
        Ok((links, streams?))
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    #[cfg(test)]
    pub fn second_handles(&self) -> Vec<net::UnixStream> {
        use std::os::fd::AsFd;
        let streams = self.all.iter().filter_map(|link| link.stream.as_ref());
        let handles = streams.map(|stream| stream.as_fd().try_clone_to_owned().expect("a handle"));
        handles.map(net::UnixStream::from).collect()
    }

    /// Puts an open connection in its place.
    pub fn connected(
        &mut self,
        index: usize,
        stream: net::UnixStream,
        registry: &Registry,
        token: Token,
    ) -> io::Result<()> {
        let mut stream = UnixStream::from_std(stream);
        registry.register(&mut stream, token, Interest::READABLE)?;
        self.all[index] = Link {
            stream: Some(stream),
            ..Link::default()
        };
        Ok(())
    }

    pub fn is_open(&self, index: usize) -> bool {
        self.all[index].stream.is_some()
    }

    /// There is room for one more request, beside those `waiting` which were sent ahead.
    pub fn has_room(&self, waiting: usize) -> bool {
        let unsent: usize = self.all.iter().map(Link::unsent).sum();
        self.bytes_in_line + unsent < MOST_BYTES
            && (self.free > 0 || self.line.len() + waiting < self.longest)
    }

    pub fn has_line(&self) -> bool {
        !self.line.is_empty()
    }

    /// Of those that were sent ahead, so few are left that more should follow; none while none are in line.
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

    /// The next request and the connection for it, when there are both and a worker: the first one that is not busy, which
    /// keeps the thread behind it awake rather than waking another.
    pub fn next(&mut self) -> Option<(usize, Waiting)> {
        if self.free == 0 || self.line.is_empty() {
            return None;
        }
        let open = self
            .all
            .iter()
            .enumerate()
            .filter(|(_, link)| link.stream.is_some());
        let (index, _) = open.min_by_key(|(_, link)| link.unsent())?;
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
        let link = &mut self.all[index];
        let busy = !link.output.is_empty();
        link.output.extend_from_slice(bytes);
        if busy {
            Ok(())
        } else {
            link.write(registry, token)
        }
    }

    /// Something has happened to a connection.
    pub fn event(
        &mut self,
        index: usize,
        event: &mio::event::Event,
        registry: &Registry,
    ) -> Result<(), Lost> {
        let link = &mut self.all[index];
        if link.stream.is_none() {
            // Lost already, in the same moment.
            return Ok(());
        }
        if event.is_writable() && !link.output.is_empty() {
            link.write(registry, event.token())?;
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            link.read()?;
        }
        Ok(())
    }

    /// Workers are through with so many.
    pub fn freed(&mut self, more: usize) {
        self.free += more;
    }

    /// It is of no use until it is mended.
    pub fn lost(&mut self, index: usize) {
        self.all[index] = Link::default();
    }

    /// Takes those out of the line that nobody waits for any more.
    pub fn take_stale(&mut self, is_stale: impl Fn(&Origin) -> bool) -> Vec<Origin> {
        let stays = |waiting: &Waiting| !is_stale(&waiting.origin);
        if self.line.iter().all(stays) {
            return Vec::new();
        }
        let all = std::mem::take(&mut self.line);
        let (stay, stale): (Vec<_>, Vec<_>) = all.into_iter().partition(stays);
        self.line = stay.into();
        self.bytes_in_line = self.line.iter().map(|waiting| waiting.bytes.len()).sum();
        stale.into_iter().map(|waiting| waiting.origin).collect()
    }

    /// Opens a connection again on a thread of its own, and the lane as well when it takes none. `done` is told the turns of
    /// the lane that it leads to.
    pub fn mend(&self, done: impl FnOnce(net::UnixStream, Arc<Turns>) + Send + 'static) {
        let lane = Arc::clone(&self.lane);
        let mend = move || {
            // Until it is mended, or nobody wants it any more: the server is gone.
            while Arc::strong_count(&lane) > 1 {
                let mut lane = lane.lock().unwrap_or_else(PoisonError::into_inner);
                let connected = lane.running.connect().or_else(|e| {
                    warn!("lane {} is built anew: {e}", lane.plan.name);
                    lane.running = lane.plan.start()?;
                    lane.running.connect()
                });
                match connected {
                    Ok(stream) => {
                        info!("a connection to lane {} is mended", lane.plan.name);
                        return done(stream, lane.running.turns());
                    }
                    Err(e) => {
                        warn!("lane {} cannot be reached: {e}", lane.plan.name);
                        drop(lane);
                        thread::sleep(MEND_AGAIN);
                    }
                }
            }
        };
        let mending = thread::Builder::new()
            .name("millpond-mend".into())
            .spawn(mend);
        if let Err(e) = mending {
            warn!("no thread to mend a connection to a lane: {e}");
        }
    }
}
