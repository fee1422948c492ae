//! The connections to one lane, and the line of requests for them.

use super::in_flight::Ticket;
use crate::server::lane::{Plan, Running};
use log::{info, warn};
use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Between two attempts to mend a connection.
const MEND_AGAIN: Duration = Duration::from_millis(100);
/// The longest head of an answer, of which we make all.
const HEADERS: usize = 32;

/// A request as the loop keeps it while a lane has it.
pub(super) struct Held {
    /// Key and serial number of the client's connection.
    pub client: (usize, u64),
    /// The answer has no body.
    pub head_only: bool,
    /// It may change something.
    pub writes: bool,
    pub close: bool,
    pub method: String,
    pub path: String,
    pub id: String,
    /// The client's, or the one made for it.
    pub key: String,
    pub arrived: Instant,
    pub deadline: Instant,
    pub ticket: Ticket,
}

/// A request in line, as it will be sent.
pub(super) struct Waiting {
    pub held: Held,
    pub bytes: Vec<u8>,
}

/// One connection to a lane.
#[derive(Default)]
pub(super) struct Link {
    stream: Option<UnixStream>,
    output: Vec<u8>,
    written: usize,
    input: Vec<u8>,
    pub held: Option<Held>,
}

/// What became of a link.
pub(super) enum Progress {
    Wait,
    /// The whole answer.
    Answer(Vec<u8>),
    /// It is of no use any more.
    Lost,
}

impl Link {
    /// Sends a request.
    pub fn send(&mut self, waiting: Waiting, registry: &Registry, token: Token) -> Progress {
        self.held = Some(waiting.held);
        self.output = waiting.bytes;
        self.written = 0;
        self.write(registry, token)
    }

    pub fn write(&mut self, registry: &Registry, token: Token) -> Progress {
        let Some(stream) = &mut self.stream else {
            return Progress::Lost;
        };
        while self.written < self.output.len() {
            match stream.write(&self.output[self.written..]) {
                Ok(written) if written > 0 => self.written += written,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    // Told of once; not asked for otherwise, since every read at the other end would be told of.
                    let both = Interest::READABLE | Interest::WRITABLE;
                    return match registry.reregister(stream, token, both) {
                        Ok(()) => Progress::Wait,
                        Err(_) => Progress::Lost,
                    };
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                _ => return Progress::Lost,
            }
        }
        Progress::Wait
    }

    pub fn read(&mut self, scratch: &mut [u8]) -> Progress {
        let Some(stream) = &mut self.stream else {
            return Progress::Wait;
        };
        loop {
            match stream.read(scratch) {
                Ok(0) => return Progress::Lost,
                Ok(read) => {
                    self.input.extend_from_slice(&scratch[..read]);
                    if read < scratch.len() {
                        break;
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Progress::Lost,
            }
        }
        let Some(held) = &self.held else {
            // An answer that nobody asked for.
            return if self.input.is_empty() {
                Progress::Wait
            } else {
                Progress::Lost
            };
        };
        match length_of_answer(&self.input, held.head_only) {
            Ok(Some(length)) if length == self.input.len() => {
                self.output = Vec::new();
                Progress::Answer(std::mem::take(&mut self.input))
            }
            Ok(None) => Progress::Wait,
            _ => Progress::Lost,
        }
    }

    /// Closes it; returns what it held.
    pub fn lose(&mut self) -> Option<Held> {
        std::mem::take(self).held
    }
}

/// How long an answer is, once its head is there.
fn length_of_answer(input: &[u8], head_only: bool) -> Result<Option<usize>, httparse::Error> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(input)? else {
        return Ok(None);
    };
    let length = response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("Content-Length"))
        .and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok())
        .unwrap_or(0);
    let whole = head + if head_only { 0 } else { length };
    Ok((input.len() >= whole).then_some(whole))
}

/// All connections to a lane.
pub(super) struct Links {
    all: Vec<Link>,
    idle: Vec<usize>,
    line: VecDeque<Waiting>,
    longest: usize,
    lane: Arc<Mutex<Mending>>,
}

/// The lane itself, which is built anew when it takes no connections.
struct Mending {
    plan: Plan,
    running: Running,
}

impl Links {
    /// Starts the lane, and opens a connection for each of its workers.
    pub fn start(plan: Plan, longest: usize) -> io::Result<(Links, Vec<UnixStream>)> {
        let running = plan.start()?;
        let streams: io::Result<Vec<_>> = (0..plan.workers)
            .map(|_| running.connect().map(UnixStream::from_std))
            .collect();
        let links = Links {
            all: (0..plan.workers).map(|_| Link::default()).collect(),
            idle: Vec::new(),
            line: VecDeque::new(),
            longest,
            lane: Arc::new(Mutex::new(Mending { plan, running })),
        };
        Ok((links, streams?))
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn link(&mut self, index: usize) -> &mut Link {
        &mut self.all[index]
    }

    /// Puts an open connection in its place.
    pub fn connected(
        &mut self,
        index: usize,
        mut stream: UnixStream,
        registry: &Registry,
        token: Token,
    ) -> io::Result<()> {
        registry.register(&mut stream, token, Interest::READABLE)?;
        self.all[index] = Link {
            stream: Some(stream),
            ..Link::default()
        };
        self.idle.push(index);
        Ok(())
    }

    /// There is room for one more request.
    pub fn has_room(&self) -> bool {
        !self.idle.is_empty() || self.line.len() < self.longest
    }

    pub fn queue(&mut self, waiting: Waiting) {
        self.line.push_back(waiting);
    }

    /// The next request and the link for it, when there are both.
    pub fn next(&mut self) -> Option<(usize, Waiting)> {
        if self.line.is_empty() {
            return None;
        }
        let index = self.idle.pop()?;
        Some((index, self.line.pop_front()?))
    }

    /// The link may be used again.
    pub fn free(&mut self, index: usize) {
        self.idle.push(index);
    }

    /// It is of no use until it is mended.
    pub fn lost(&mut self, index: usize) -> Option<Held> {
        self.idle.retain(|idle| *idle != index);
        self.all[index].lose()
    }

    /// Takes those out of the line whose time is over, or whose client is gone.
    pub fn take_late(
        &mut self,
        now: Instant,
        is_there: impl Fn((usize, u64)) -> bool,
    ) -> Vec<Held> {
        let mut late = Vec::new();
        let keep = |waiting: &Waiting| waiting.held.deadline > now && is_there(waiting.held.client);
        if self.line.iter().all(keep) {
            return late;
        }
        for waiting in std::mem::take(&mut self.line) {
            if keep(&waiting) {
                self.line.push_back(waiting);
            } else {
                late.push(waiting.held);
            }
        }
        late
    }

    /// Opens a connection again on a thread of its own, and the lane as well when that does not help.
    pub fn mend(&self, done: impl FnOnce(std::os::unix::net::UnixStream) + Send + 'static) {
        let lane = Arc::clone(&self.lane);
        let mend = move || {
            loop {
                let mut lane = lane.lock().unwrap_or_else(PoisonError::into_inner);
                let connected = lane.running.connect().or_else(|e| {
                    warn!("lane {} is built anew: {e}", lane.plan.name);
                    lane.running = lane.plan.start()?;
                    lane.running.connect()
                });
                match connected {
                    Ok(stream) => {
                        info!("a connection to lane {} is mended", lane.plan.name);
                        return done(stream);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_body_is() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        for end in 0..answer.len() {
            assert_eq!(length_of_answer(&answer[..end], false), Ok(None), "{end}");
        }
        assert_eq!(length_of_answer(answer, false), Ok(Some(answer.len())));
        assert_eq!(length_of_answer(answer, true), Ok(Some(answer.len() - 2)));
        let empty = b"HTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(length_of_answer(empty, false), Ok(Some(empty.len())));
        assert!(length_of_answer(b"what?\r\n\r\n", false).is_err());
    }
}
