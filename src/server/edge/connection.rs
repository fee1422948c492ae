//! One client: what it has sent, what it is owed, and for how long it may take its time. It reads and writes without ever
//! blocking; what a request leads to is the event loop's to decide.

use super::chunked::Chunked;
use super::framing::{self, Head, Refusal};
use super::in_flight::Ticket;
use super::proxied::{self, Begin};
use crate::config::HttpConfig;
use crate::server::router::Route;
use mio::net::TcpStream;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// For how long, at the most, a client that was refused is listened to, so that it reads the refusal, which it may not do before
/// it has written all of its request: a socket that is closed over unread data resets the connection, as does data for a
/// closed one.
const LINGER: Duration = Duration::from_secs(10);
/// One that sends nothing for so long is through with it.
const SILENT: Duration = Duration::from_secs(1);
/// For how long one that has just come is not closed to make room.
const NEWCOMER: Duration = Duration::from_millis(500);
/// A client takes at least this much of its answer in each `write_timeout`.
const MARK: i64 = 16 * 1024;
/// The average of so many times counts: a receiver's system tells of what was read once there is room for a whole segment
/// again, which has 64 KiB on loopback.
const MOST_MARKS: i64 = 4;

pub(super) struct Connection {
    /// Shared with the worker that answers.
    pub socket: Arc<TcpStream>,
    pub peer: IpAddr,
    /// More has come while a worker has its request.
    pub attention: Arc<AtomicBool>,
    /// Tells this one from another that had its key in the slab before.
    pub serial: u64,
    pub state: State,
    /// Since when it is in its state.
    pub since: Instant,
    /// When it has been for too long.
    pub deadline: Option<Instant>,
    /// The system may have bytes for us.
    pub readable: bool,
    /// Behind those bytes is the end.
    pub read_closed: bool,
    /// A request of it was answered before.
    pub kept: bool,
    /// The system would take no more; asked to tell when it does.
    pub blocked: bool,
    /// A trusted proxy may say for whom the connection is, before anything else.
    may_be_proxied: bool,
    input: Vec<u8>,
    /// Of the input: looked at, and no whole head.
    seen: usize,
    eof: bool,
    output: Vec<u8>,
    written: usize,
    /// What it had taken of its answers when that was looked at last, from when it would take no more for the first time.
    had_taken: Option<i64>,
    close: bool,
    /// The rest of what was refused is still to come, or may be.
    more_to_come: bool,
    /// The request is in flight until its answer is written.
    ticket: Option<Ticket>,
}

pub(super) enum State {
    /// Between requests.
    Idle,
    /// Within the head of one.
    Head,
    /// Within its body.
    Body(Admitted),
    /// Its request is with others: looked at, handed on, or refused.
    Waiting,
    /// Its answer is being written.
    Answering,
    /// Answered for the last time.
    Lingering { until: Instant },
}

/// A request that is wanted, and where it leads.
pub(super) struct Admitted {
    pub head: Box<Head>,
    pub route: Arc<Route>,
    /// In flight from here on.
    pub ticket: Ticket,
    /// What has come of a body in chunks.
    pub chunked: Option<Chunked>,
}

/// What to do next.
pub(super) enum Step {
    /// Nothing before the client or the system does.
    Wait,
    /// The next step.
    Go,
    /// The head is there, and may be refused before the body is asked for.
    Admit(Box<Head>),
    Request(Admitted, Vec<u8>),
    Refuse(Refusal),
    Close,
}

impl Connection {
    pub fn new(socket: TcpStream, peer: IpAddr, serial: u64, limits: &HttpConfig) -> Connection {
        let now = Instant::now();
        Connection {
            socket: Arc::new(socket),
            attention: Arc::default(),
            peer,
            serial,
            state: State::Idle,
            since: now,
            // Who connects has something to say.
            deadline: Some(now + limits.header_timeout),
            readable: true,
            read_closed: false,
            kept: false,
            blocked: false,
            may_be_proxied: limits
                .trusted_proxies
                .iter()
                .any(|net| net.contains(&peer.to_canonical())),
            input: Vec::new(),
            seen: 0,
            eof: false,
            output: Vec::new(),
            written: 0,
            had_taken: None,
            close: false,
            more_to_come: false,
            ticket: None,
        }
    }

    /// Nothing of it is in flight, so that it may be closed to make room. One that has just come is given a moment to ask: those
    /// that it would make room for lose nothing by waiting for that.
    pub fn is_expendable(&self) -> bool {
        match self.state {
            State::Waiting => false,
            // Its answer is finished, and not taken.
            State::Answering => self.blocked,
            State::Idle => self.kept || self.since.elapsed() >= NEWCOMER,
            _ => true,
        }
    }

    /// It is between two requests, or was answered for the last time with nothing more to come.
    pub fn is_at_rest(&self) -> bool {
        matches!(self.state, State::Idle) && self.kept && self.input.is_empty()
    }

    /// The bytes of a body that is on its way.
    pub fn announced(&self) -> usize {
        match &self.state {
            State::Body(admitted) => admitted.head.body.max(self.in_chunks()),
            _ => 0,
        }
    }

    /// Bytes that are kept of it.
    pub fn buffered(&self) -> usize {
        self.input.len() + self.in_chunks()
    }

    /// What has come of a body in chunks.
    fn in_chunks(&self) -> usize {
        match &self.state {
            State::Body(admitted) => admitted.chunked.as_ref().map_or(0, Chunked::len),
            _ => 0,
        }
    }

    /// It asks for a head alone, as far as that can be seen.
    pub fn asks_for_head(&self) -> bool {
        self.input.starts_with(b"HEAD ")
    }

    fn enter(&mut self, state: State, lasts: Option<Duration>) {
        self.state = state;
        self.since = Instant::now();
        self.deadline = lasts.map(|lasts| self.since + lasts);
    }

    /// `scratch` is lent by the loop, so that those who wait hold no memory.
    pub fn step(&mut self, limits: &HttpConfig, scratch: &mut [u8]) -> Step {
        match &self.state {
            State::Waiting => Step::Wait,
            State::Answering => self.write(limits),
            State::Lingering { until } => self.discard(*until, scratch),
            State::Idle | State::Head | State::Body(_) => self.read(limits, scratch),
        }
    }

    fn read(&mut self, limits: &HttpConfig, scratch: &mut [u8]) -> Step {
        if self.may_be_proxied {
            match proxied::begin(&self.input) {
                Begin::Incomplete if self.eof => return Step::Close,
                Begin::Incomplete if !self.readable => return Step::Wait,
                Begin::Incomplete => return self.read_more(scratch),
                Begin::Bad => {
                    self.may_be_proxied = false;
                    return Step::Refuse(framing::refusal(
                        400,
                        "this is no header of the PROXY protocol",
                    ));
                }
                Begin::Request => self.may_be_proxied = false,
                Begin::Header(length, client) => {
                    self.may_be_proxied = false;
                    self.input.drain(..length);
                    self.peer = client.unwrap_or(self.peer);
                }
            }
        }
        if let State::Idle = self.state {
            self.input.drain(..framing::blank_lines(&self.input));
            if !self.input.is_empty() {
                self.seen = 0;
                self.enter(State::Head, Some(limits.header_timeout));
            }
        }
        if let State::Head = self.state {
            match framing::head(&self.input, self.seen, limits.max_body_bytes) {
                Err(refusal) => return Step::Refuse(refusal),
                Ok(None) => self.seen = self.input.len(),
                Ok(Some(head)) => {
                    self.input.drain(..head.length);
                    self.enter(State::Waiting, None);
                    return Step::Admit(Box::new(head));
                }
            }
        }
        match self.take_body(limits) {
            Err(refusal) => return Step::Refuse(refusal),
            Ok(None) => {}
            Ok(Some(body)) => {
                let State::Body(admitted) = std::mem::replace(&mut self.state, State::Waiting)
                else {
                    return Step::Close;
                };
                self.enter(State::Waiting, None);
                return Step::Request(admitted, body);
            }
        }
        if self.eof {
            return Step::Close;
        }
        if !self.readable {
            return Step::Wait;
        }
        self.read_more(scratch)
    }

    fn read_more(&mut self, scratch: &mut [u8]) -> Step {
        match self.fill(scratch) {
            Ok(read) => {
                self.input.extend_from_slice(&scratch[..read]);
                Step::Go
            }
            Err(_) => Step::Close,
        }
    }

    /// The body that is being read, when it is whole.
    fn take_body(&mut self, limits: &HttpConfig) -> Result<Option<Vec<u8>>, Refusal> {
        match &mut self.state {
            State::Body(Admitted {
                chunked: Some(chunked),
                ..
            }) => chunked.take(&mut self.input, limits.max_body_bytes),
            State::Body(Admitted { head, .. }) if self.input.len() >= head.body => {
                let rest = self.input.split_off(head.body);
                Ok(Some(std::mem::replace(&mut self.input, rest)))
            }
            _ => Ok(None),
        }
    }

    /// Reads once. A read that fills less than there is room has read it all, and more is told of; but not of an end that
    /// came together with it.
    fn fill(&mut self, scratch: &mut [u8]) -> io::Result<usize> {
        match (&*self.socket).read(scratch) {
            Ok(read) => {
                self.eof = read == 0;
                self.readable = !self.eof && (read == scratch.len() || self.read_closed);
                Ok(read)
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(0)
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(0),
            Err(e) => Err(e),
        }
    }

    /// Goes on with the body of a request that is wanted.
    pub fn read_body(&mut self, admitted: Admitted, limits: &HttpConfig) {
        self.enter(State::Body(admitted), Some(limits.body_timeout));
    }

    /// Leaves out the body of a request that is not wanted, where it is there. Else nothing behind it can be read.
    pub fn skip_body(&mut self, head: &Head) -> bool {
        let whole = !head.chunked && self.input.len() >= head.body;
        if whole {
            self.input.drain(..head.body);
        }
        self.more_to_come = !whole;
        whole
    }

    /// Lets the client send the body that it waits with.
    pub fn ask_for_body(&mut self) -> Step {
        let go_on = b"HTTP/1.1 100 Continue\r\n\r\n";
        // Nothing else is on its way to the client: so few bytes always fit.
        match (&*self.socket).write(go_on) {
            Ok(written) if written == go_on.len() => Step::Go,
            _ => Step::Close,
        }
    }

    /// Hands it its answer, or what is left to be written of it.
    pub fn answer(
        &mut self,
        output: Vec<u8>,
        close: bool,
        ticket: Option<Ticket>,
        limits: &HttpConfig,
    ) {
        self.output = output;
        self.written = 0;
        self.had_taken = None;
        if close {
            // What is behind it is not read.
            self.more_to_come |= !self.input.is_empty();
            self.input = Vec::new();
        }
        self.close = close;
        self.ticket = ticket;
        // Refused in the middle.
        self.more_to_come |= matches!(self.state, State::Head | State::Body(_));
        let patience = limits.write_timeout * MOST_MARKS as u32;
        self.enter(State::Answering, Some(patience));
    }

    fn write(&mut self, limits: &HttpConfig) -> Step {
        while self.written < self.output.len() {
            match (&*self.socket).write(&self.output[self.written..]) {
                Ok(0) => return Step::Close,
                Ok(written) => self.written += written,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    let taken = self.taken();
                    self.had_taken.get_or_insert(taken);
                    self.blocked = true;
                    return Step::Wait;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Step::Close,
            }
        }
        self.output = Vec::new();
        self.ticket = None;
        if !self.close {
            self.kept = true;
            self.enter(State::Idle, Some(limits.idle_timeout));
            return Step::Go;
        }
        let all_read = !self.more_to_come && self.input.is_empty() && !self.readable;
        if all_read || self.eof || self.socket.shutdown(Shutdown::Write).is_err() {
            return Step::Close;
        }
        self.input = Vec::new();
        let until = Instant::now() + LINGER;
        self.enter(State::Lingering { until }, Some(SILENT));
        Step::Go
    }

    /// Of the bytes that were written, how many have left this system; up to what it holds of earlier answers.
    fn taken(&self) -> i64 {
        self.written as i64 - i64::from(queued(&self.socket))
    }

    /// Whether its time is over; while it is answered, only where it takes too little.
    pub fn is_late(&mut self, now: Instant, limits: &HttpConfig) -> bool {
        if self.deadline.is_none_or(|at| now < at) {
            return false;
        }
        if let (State::Answering, Some(had_taken)) = (&self.state, self.had_taken) {
            let taken = self.taken();
            let marks = ((taken - had_taken) / MARK).clamp(0, MOST_MARKS);
            if marks > 0 {
                self.had_taken = Some(taken);
                self.deadline = Some(now + limits.write_timeout * marks as u32);
                return false;
            }
        }
        true
    }

    fn discard(&mut self, until: Instant, scratch: &mut [u8]) -> Step {
        if self.eof {
            return Step::Close;
        }
        if !self.readable {
            return Step::Wait;
        }
        match self.fill(scratch) {
            Ok(read) => {
                if read > 0 {
                    self.deadline = Some(until.min(Instant::now() + SILENT));
                }
                Step::Go
            }
            Err(_) => Step::Close,
        }
    }
}

/// The bytes that the system holds for the peer, with what it takes to hold them. When there is room for more it tells only once
/// a third of them is gone, and these may be megabytes.
#[cfg(target_os = "linux")]
fn queued(socket: &TcpStream) -> u32 {
    use nix::libc::{self, SK_MEMINFO_WMEM_QUEUED, SOL_SOCKET, c_int};
    use nix::{getsockopt_impl, sockopt_impl};
    /// Of asm-generic/socket.h; where it is another, no figures come.
    const SO_MEMINFO: c_int = 55;
    sockopt_impl!(MemoryInfo, GetOnly, SOL_SOCKET, SO_MEMINFO, [u32; 9]);
    let figures = nix::sys::socket::getsockopt(socket, MemoryInfo);
    figures.map_or(0, |figures| figures[SK_MEMINFO_WMEM_QUEUED as usize])
}

/// Not known here.
#[cfg(not(target_os = "linux"))]
fn queued(_: &TcpStream) -> u32 {
    0
}
