//! A client's connection: its input, its output and its deadline. It reads and writes without
//! blocking. `admission` decides on its requests.

use super::chunked::Chunked;
use super::framing::{self, Head, Refusal};
use super::output::{self, Output};
use super::proxied::{self, Begin};
use crate::config::HttpConfig;
use crate::server::in_flight::Ticket;
use crate::server::reply::Reply;
use crate::server::router::Route;
use crate::token::Token;
use ipnet::IpNet;
use mio::net::TcpStream;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long, at most, the rest of a refused request is read and thrown away. Some clients read the
/// answer only after they have written the whole request, and a socket that is closed over unread
/// data, or gets data afterwards, resets the connection before that.
const LINGER: Duration = Duration::from_secs(10);
/// A refused client that sends nothing for this long has sent everything.
const SILENT: Duration = Duration::from_secs(1);
/// How long a new connection is not closed to make room for another.
const NEWCOMER: Duration = Duration::from_millis(500);

pub(super) struct Connection {
    /// The socket, shared with the worker that answers.
    pub reply: Arc<Reply>,
    pub peer: IpAddr,
    /// The token of its request, and its route, while it is with the api lane.
    pub asked: Option<(Token, Arc<Route>)>,
    /// The client has ended its stream while its request waits for an answer, and may still be
    /// there.
    pub half_closed: bool,
    /// Tells this connection from an earlier one with the same key in the slab.
    pub serial: u64,
    pub state: State,
    /// When it entered its state.
    pub since: Instant,
    /// When it must leave its state.
    pub deadline: Option<Instant>,
    /// The socket may have bytes to read.
    pub readable: bool,
    /// Behind those bytes, the stream ends.
    pub read_closed: bool,
    /// It has had an answer to an earlier request.
    pub kept: bool,
    /// The socket takes no more bytes now; an event tells when it does.
    pub blocked: bool,
    /// A header of the PROXY protocol may come first.
    may_be_proxied: bool,
    input: Vec<u8>,
    /// Bytes of the input that were read, and are not a whole head.
    seen: usize,
    eof: bool,
    output: Output,
    close: bool,
    /// The rest of a refused request may still come.
    more_to_come: bool,
    /// Counts the request as in flight until its answer is written.
    ticket: Option<Ticket>,
}

pub(super) enum State {
    /// Between requests.
    Idle,
    /// Within the head of a request.
    Head,
    /// Within its body.
    Body(Admitted),
    /// Its request is being admitted, is with a lane, or was refused.
    Waiting,
    /// Its answer is being written.
    Answering,
    /// Its last answer is written; the rest of its input is thrown away.
    Lingering { until: Instant },
}

/// An admitted request, and its route.
pub(super) struct Admitted {
    pub head: Box<Head>,
    pub route: Arc<Route>,
    /// Counts the request as in flight from here on.
    pub ticket: Ticket,
    /// The part of a chunked body that has arrived.
    pub chunked: Option<Chunked>,
}

/// What to do next.
pub(super) enum Step {
    /// Nothing, until the next event.
    Wait,
    /// Take the next step.
    Go,
    /// The head is there: decide whether the body is read.
    Admit(Box<Head>),
    Request(Admitted, Vec<u8>),
    Refuse(Refusal),
    Close,
}

impl Connection {
    pub fn new(
        socket: TcpStream,
        peer: IpAddr,
        serial: u64,
        limits: &HttpConfig,
        proxies: &[IpNet],
    ) -> Connection {
        let now = Instant::now();
        Connection {
            reply: Arc::new(Reply::new(socket)),
            peer,
            asked: None,
            half_closed: false,
            serial,
            state: State::Idle,
            since: now,
            // A new connection sends its first request soon.
            deadline: Some(now + limits.header_timeout),
            readable: true,
            read_closed: false,
            kept: false,
            blocked: false,
            may_be_proxied: proxies.iter().any(|net| net.contains(&peer.to_canonical())),
            input: Vec::new(),
            seen: 0,
            eof: false,
            output: Output::default(),
            close: false,
            more_to_come: false,
            ticket: None,
        }
    }

    /// Whether it may be closed to make room, since no request of it is in flight. A new connection
    /// is given a moment to send one; the client that waits for room can wait that long.
    pub fn is_expendable(&self) -> bool {
        match self.state {
            State::Waiting => false,
            // The answer is complete, and the client does not take it.
            State::Answering => self.blocked,
            State::Idle => self.kept || self.since.elapsed() >= NEWCOMER,
            _ => true,
        }
    }

    /// Notes that the client has closed its stream while its request waits for an answer. Returns
    /// false if it has gone.
    pub fn note_end_of_stream(&mut self) -> bool {
        let is_there = self.reply.begin();
        self.half_closed = is_there;
        is_there
    }

    /// Notes that the client has gone. If nobody needs the answer to its request any more, returns
    /// whether it could have had one: not if it has not even waited for as long as that takes.
    pub fn abandon(&mut self) -> Option<bool> {
        let was_waiting = matches!(self.state, State::Waiting) && self.reply.give_up();
        let (token, route) = self.asked.take().filter(|_| was_waiting)?;
        token.fire();
        Some(self.since.elapsed() >= route.least_time.get())
    }

    /// Whether it is between two requests and has sent nothing of the next.
    pub fn is_at_rest(&self) -> bool {
        matches!(self.state, State::Idle) && self.kept && self.input.is_empty()
    }

    /// The announced length of a body that is on its way.
    pub fn announced(&self) -> usize {
        match &self.state {
            State::Body(admitted) => admitted.head.body.max(self.in_chunks()),
            _ => 0,
        }
    }

    /// The bytes that are buffered.
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

    /// Whether it sends a HEAD request, as far as that has arrived.
    pub fn asks_for_head(&self) -> bool {
        self.input.starts_with(b"HEAD ")
    }

    fn enter(&mut self, state: State, lasts: Option<Duration>) {
        self.state = state;
        self.since = Instant::now();
        self.deadline = lasts.map(|lasts| self.since + lasts);
    }

    /// `scratch` is lent for reading, so that idle connections hold no memory.
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
                        "this is not a PROXY protocol header",
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

    /// The body, once it is whole.
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

    /// Reads once. A read that does not fill the buffer has emptied the socket, and new bytes raise
    /// an event. An end of the stream that came with the last event does not.
    fn fill(&mut self, scratch: &mut [u8]) -> io::Result<usize> {
        match (&self.reply.socket).read(scratch) {
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

    /// Reads the body of an admitted request.
    pub fn read_body(&mut self, admitted: Admitted, limits: &HttpConfig) {
        self.enter(State::Body(admitted), Some(limits.body_timeout));
    }

    /// Throws away the body of a refused request. False if it is not there as a whole, and nothing
    /// behind it can be read.
    pub fn skip_body(&mut self, head: &Head) -> bool {
        let whole = !head.chunked && self.input.len() >= head.body;
        if whole {
            self.input.drain(..head.body);
        }
        self.more_to_come = !whole;
        whole
    }

    /// Asks the client for the body, with 100 Continue.
    pub fn ask_for_body(&mut self) -> Step {
        let go_on = b"HTTP/1.1 100 Continue\r\n\r\n";
        // Nothing else is on its way to the client, so these few bytes always fit.
        match (&self.reply.socket).write(go_on) {
            Ok(written) if written == go_on.len() => Step::Go,
            _ => Step::Close,
        }
    }

    /// Sets the answer, or the rest of it, to be written.
    pub fn answer(
        &mut self,
        output: Vec<u8>,
        close: bool,
        ticket: Option<Ticket>,
        limits: &HttpConfig,
    ) {
        self.output = Output::new(output);
        if close {
            // What is behind it is not read.
            self.more_to_come |= !self.input.is_empty();
            self.input = Vec::new();
        }
        self.close = close;
        self.ticket = ticket;
        self.asked = None;
        self.half_closed = false;
        // Refused before it was complete.
        self.more_to_come |= matches!(self.state, State::Head | State::Body(_));
        let patience = limits.write_timeout * output::MOST_MARKS;
        self.enter(State::Answering, Some(patience));
    }

    fn write(&mut self, limits: &HttpConfig) -> Step {
        match self.output.write(&self.reply.socket) {
            Ok(true) => {}
            Ok(false) => {
                self.blocked = true;
                return Step::Wait;
            }
            Err(_) => return Step::Close,
        }
        self.output = Output::default();
        self.ticket = None;
        if !self.close {
            self.kept = true;
            self.enter(State::Idle, Some(limits.idle_timeout));
            return Step::Go;
        }
        let all_read = !self.more_to_come && self.input.is_empty() && !self.readable;
        if all_read || self.eof || self.reply.socket.shutdown(Shutdown::Write).is_err() {
            return Step::Close;
        }
        self.input = Vec::new();
        let until = Instant::now() + LINGER;
        self.enter(State::Lingering { until }, Some(SILENT));
        Step::Go
    }

    /// Whether its time is over. While its answer is written, only if it takes too little of it.
    pub fn is_late(&mut self, now: Instant, limits: &HttpConfig) -> bool {
        if self.deadline.is_none_or(|at| now < at) {
            return false;
        }
        if let State::Answering = self.state {
            let marks = self.output.take_marks(&self.reply.socket);
            if marks > 0 {
                self.deadline = Some(now + limits.write_timeout * marks);
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
