//! The clients' connections: their events, their answers and their limits. `accept` takes clients
//! in, `admission` decides on their requests.

use super::connection::{Connection, State, Step};
use super::forwarded;
use super::framing::Head;
use super::listener::Listener;
use crate::config::HttpConfig;
use crate::fd_limit;
use crate::server::browsers;
use crate::server::exchange::{Exchange, PendingRequest};
use crate::server::http::{Problem, request_id, traceparent};
use crate::server::inbox::{ClientKey, Done, Inbox};
use crate::server::render::{closing, render};
use crate::server::router::Route;
use crate::server::service::{AccessEntry, Service};
use crate::token::Token;
use log::warn;
use mio::event::Event;
use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Interest, Registry};
use slab::Slab;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The most bytes of unfinished bodies that all clients together may have sent, and as many again
/// of everything else. Above that, the client that has sent the most is refused.
const MOST_BUFFERED: usize = 64 << 20;
/// The lowest limit of clients. If even these do not fit, the system refuses files, and clients
/// make room for each other.
const LEAST_CLIENTS: usize = 8;

/// The part of an event's token that is for the key, beside the tokens of the lanes: more than
/// there may be connections.
const KEY_BITS: u32 = 21;

pub(super) struct Clients {
    pub(super) all: Slab<Connection>,
    pub(super) listener: Listener,
    pub(super) service: Arc<Service>,
    inbox: Arc<Inbox>,
    /// The token of the client with key 0; the others follow.
    pub(super) first_token: usize,
    pub(super) most: usize,
    pub(super) last_serial: u64,
    /// When to accept again, while accepting has to wait.
    pub(super) accept_at: Option<Instant>,
    /// An accepted client that waits until another makes room. Those behind it wait in the
    /// listener's backlog.
    pub(super) next_client: Option<(TcpStream, SocketAddr)>,
    /// Clients have gone while the api lane had their requests, since the loop asked last; and how
    /// many of them the line could have served.
    pub(super) have_gone: bool,
    pub(super) gone_unserved: usize,
    /// Lent to each connection that reads, so that idle ones hold no memory.
    scratch: Box<[u8]>,
}

/// What an event of a client leads to.
pub(super) enum Reaction {
    Nothing,
    /// The connection may take its next step.
    Step,
    /// The answer may have been written meanwhile: the next round must look at once.
    LookAgain,
}

impl Clients {
    /// At most `max_connections` clients, and only as many as fit into the limit of open files
    /// beside the `others`.
    pub fn new(
        listener: Listener,
        inbox: Arc<Inbox>,
        others: usize,
        first_token: usize,
    ) -> Clients {
        let service = Arc::clone(&inbox.service);
        let wanted = service.config.max_connections;
        let fit = fd_limit::limit().map_or(wanted, |limit| {
            limit.saturating_sub(others).max(LEAST_CLIENTS)
        });
        if fit < wanted {
            warn!("the limit of open files allows at most {fit} client connections");
        }
        Clients {
            all: Slab::new(),
            listener,
            service,
            inbox,
            first_token,
            most: wanted.min(fit),
            last_serial: 0,
            accept_at: None,
            next_client: None,
            have_gone: false,
            gone_unserved: 0,
            scratch: vec![0; 64 * 1024].into_boxed_slice(),
        }
    }

    fn config(&self) -> &HttpConfig {
        &self.service.config
    }

    pub fn listener(&self) -> &Listener {
        &self.listener
    }

    /// Before the listener closes.
    pub fn keep_newcomers_out(&mut self) {
        self.listener.keep_newcomers_out();
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub fn keys(&self) -> Vec<usize> {
        self.all.iter().map(|(key, _)| key).collect()
    }

    pub fn get(&self, key: usize) -> Option<&Connection> {
        self.all.get(key)
    }

    pub fn get_mut(&mut self, key: usize) -> Option<&mut Connection> {
        self.all.get_mut(key)
    }

    /// Whether the client is still connected, and its key has not passed to another.
    pub fn knows(&self, (key, serial): ClientKey) -> bool {
        self.get(key).is_some_and(|c| c.serial == serial)
    }

    pub fn close(&mut self, key: usize, registry: &Registry) {
        if let Some(mut connection) = self.all.try_remove(key) {
            let abandoned = connection.abandon();
            self.have_gone |= abandoned.is_some();
            self.gone_unserved += usize::from(abandoned.unwrap_or_default());
            // A worker may still hold the socket.
            let fd = connection.reply.socket.as_raw_fd();
            let _ = registry.deregister(&mut SourceFd(&fd));
        }
    }

    // --- reading and writing

    /// The token of a client's events. An event may be read after its client has gone and another
    /// has got the key, so it names the serial number as well.
    pub(super) fn token_of(&self, key: usize, serial: u64) -> mio::Token {
        mio::Token((serial as usize) << KEY_BITS | (self.first_token + key))
    }

    /// Handles an event of a client's socket.
    pub fn event(&mut self, event: &Event, registry: &Registry) -> (usize, Reaction) {
        let key = (event.token().0 & ((1 << KEY_BITS) - 1)) - self.first_token;
        (key, self.react(key, event, registry))
    }

    fn react(&mut self, key: usize, event: &Event, registry: &Registry) -> Reaction {
        let serial = self.all.get(key).map(|connection| connection.serial);
        if serial.map(|serial| self.token_of(key, serial)) != Some(event.token()) {
            // It belongs to a client that had this key a moment ago.
            return Reaction::Nothing;
        }
        let Some(connection) = self.all.get_mut(key) else {
            return Reaction::Nothing;
        };
        if event.is_error() && !matches!(connection.reply.socket.take_error(), Ok(None)) {
            self.close(key, registry);
            return Reaction::Nothing;
        }
        connection.read_closed |= event.is_read_closed();
        connection.readable |= event.is_readable() || event.is_read_closed();
        if event.is_writable() && connection.blocked {
            connection.blocked = false;
            // What has come meanwhile is an event again.
            if self.listen_to(key, Interest::READABLE, registry).is_err() {
                self.close(key, registry);
                return Reaction::Nothing;
            }
        } else if let State::Waiting = connection.state {
            if event.is_read_closed() && !connection.note_end_of_stream() {
                self.close(key, registry);
                return Reaction::Nothing;
            }
            // If the answer is not written yet, the worker will see that the loop waits for it.
            connection.reply.ask_for_attention();
            return Reaction::LookAgain;
        }
        Reaction::Step
    }

    /// Takes a client's next step; `None` if it is gone.
    pub fn step(&mut self, key: usize) -> Option<Step> {
        let connection = self.all.get_mut(key)?;
        Some(connection.step(&self.service.config, &mut self.scratch))
    }

    /// Waits for a client's next event: if it takes no more now, also for when it does.
    pub fn wait_for(&mut self, key: usize, registry: &Registry) {
        let blocked = self.get(key).is_some_and(|c| c.blocked);
        let both = Interest::READABLE | Interest::WRITABLE;
        if blocked && self.listen_to(key, both, registry).is_err() {
            self.close(key, registry);
        }
    }

    fn listen_to(&self, key: usize, interest: Interest, registry: &Registry) -> io::Result<()> {
        let Some(connection) = self.get(key) else {
            return Ok(());
        };
        let token = self.token_of(key, connection.serial);
        let fd = connection.reply.socket.as_raw_fd();
        registry.reregister(&mut SourceFd(&fd), token, interest)
    }

    // --- requests and answers

    /// A client's request, to be answered; `None` if the client is gone. `pattern` is that of its
    /// route, or empty.
    pub fn exchange(&self, key: usize, head: Head, pattern: &'static str) -> Option<Exchange> {
        let connection = self.get(key)?;
        // Bytes that have come already raise no event.
        let has_more = connection.buffered() > 0 || connection.readable;
        connection.reply.expect(has_more);
        let config = self.config();
        let arrived = Instant::now();
        let page = browsers::named_page(&head.headers, &config.cors_origins);
        let pending = PendingRequest {
            client: (key, connection.serial),
            reply: Arc::clone(&connection.reply),
            token: Token::new(),
            close: head.close,
            writes: head.writes(),
            pattern,
            arrived,
            deadline: arrived + config.request_timeout,
            queue_deadline: arrived + config.effective_queue_timeout(),
            has_waited: false,
            address: forwarded::client(
                connection.peer,
                &head.forwarded_for,
                &self.service.trusted_proxies(),
            ),
            id: request_id(head.request_id.as_deref()),
            traceparent: traceparent(&head.headers),
            for_pages: browsers::may_read(page, &config.cors_origins),
            method: head.method,
            target: head.target,
            headers: head.headers,
            key: head.idempotency_key.unwrap_or_default(),
            key_was_made: false,
            ticket: None,
        };
        Some(Exchange::new(&self.inbox, pending))
    }

    /// Goes on with a client whose request was answered. Returns its key, unless it is gone.
    pub fn answered(&mut self, done: Done, registry: &Registry) -> Option<usize> {
        let (key, _) = done.client;
        if !self.knows(done.client) {
            return None;
        }
        if done.failed {
            self.close(key, registry);
            return None;
        }
        let connection = self.all.get_mut(key)?;
        connection.answer(done.rest, done.close, done.ticket, &self.service.config);
        Some(key)
    }

    /// Answers what is not a valid request, or not a whole one, and reads nothing behind it.
    pub fn refuse(&mut self, key: usize, problem: Problem) {
        let Some(connection) = self.all.get_mut(key) else {
            return;
        };
        let head = match &connection.state {
            State::Body(admitted) => Some(&admitted.head),
            _ => None,
        };
        let id = request_id(head.and_then(|head| head.request_id.as_deref()));
        let mut response = problem.into_response(Some(&id));
        let origins = &self.service.config.cors_origins;
        let page = head.and_then(|head| browsers::named_page(&head.headers, origins));
        response.headers.extend(browsers::may_read(page, origins));
        self.service.record(&AccessEntry {
            method: "-",
            path: "-",
            route: "",
            status: response.status,
            took: Duration::ZERO,
            id: &id,
            client: connection.peer.to_canonical(),
            traceparent: head.and_then(|head| traceparent(&head.headers)),
        });
        let answer = closing(render(&response, &id, connection.asks_for_head()));
        connection.answer(answer, true, None, &self.service.config);
    }

    /// Watches a client whose request has gone to the api lane. Its stream may have ended already,
    /// which raises no event any more.
    pub fn watch(&mut self, key: usize, token: Token, route: Arc<Route>, registry: &Registry) {
        let Some(connection) = self.all.get_mut(key) else {
            return;
        };
        connection.asked = Some((token, route));
        if connection.read_closed && !connection.note_end_of_stream() {
            self.close(key, registry);
        }
    }

    /// Those whose requests wait for an answer, and whose streams have ended; without those that
    /// have given way.
    pub fn half_closed(&self) -> Vec<(ClientKey, Token)> {
        let half_closed = self.all.iter().filter(|(_, c)| c.half_closed);
        let all =
            half_closed.filter_map(|(key, c)| Some(((key, c.serial), c.asked.as_ref()?.0.clone())));
        all.filter(|(_, token)| !token.is_fired()).collect()
    }

    // --- limits

    /// Whether a body of so many bytes may be sent, beside those that are on their way.
    pub fn has_room_for(&self, body: usize) -> bool {
        let announced: usize = self.all.iter().map(|(_, c)| c.announced()).sum();
        announced + body <= self.most_buffered()
    }

    /// The most bytes of all unfinished bodies; one of the largest size always fits.
    fn most_buffered(&self) -> usize {
        MOST_BUFFERED.max(self.config().max_body_bytes)
    }

    fn buffered(&self) -> usize {
        self.all.iter().map(|(_, c)| c.buffered()).sum()
    }

    /// The client that has sent the most, if all together are beyond the limit.
    pub fn largest_beyond_the_limit(&self) -> Option<usize> {
        let is_beyond = self.buffered() > self.most_buffered() + MOST_BUFFERED;
        let most = self.all.iter().max_by_key(|(_, c)| c.buffered());
        most.filter(|_| is_beyond).map(|(key, _)| key)
    }

    /// The clients whose time is over.
    pub fn take_late(&mut self, now: Instant) -> Vec<usize> {
        let limits = &self.service.config;
        let all = self.all.iter_mut();
        all.filter_map(|(key, c)| c.is_late(now, limits).then_some(key))
            .collect()
    }

    /// Whether a client is kept between two requests; not one that has just connected, and is about
    /// to ask.
    pub fn is_idle(&self, key: usize) -> bool {
        let idle = |c: &Connection| c.kept && matches!(c.state, State::Idle);
        self.get(key).is_some_and(idle)
    }

    /// Whether a client has sent a part of a request.
    pub fn is_within_request(&self, key: usize) -> bool {
        let state = self.get(key).map(|c| &c.state);
        matches!(state, Some(State::Head | State::Body(_)))
    }

    /// Whether there is no client any more, and none waits to be accepted.
    pub fn are_gone(&self) -> bool {
        self.next_client.is_none() && self.all.is_empty()
    }

    /// Whether every client has had its answer, and none waits to be accepted.
    pub fn are_at_rest(&self) -> bool {
        self.next_client.is_none() && self.all.iter().all(|(_, c)| c.is_at_rest())
    }
}
