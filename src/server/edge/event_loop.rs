//! The loop: accepts, reads, hands on, writes back, and keeps everybody to their time.

use super::chunked::Chunked;
use super::connection::{Admitted, Connection, State, Step};
use super::dispatch::{Dispatch, Done, Exchange, PendingRequest, Shared};
use super::forwarded;
use super::framing::{Head, Refusal};
use super::lane_connections::{LaneConnections, Lost, Waiting};
use super::newcomers;
use crate::fd_limit;
use crate::server::browsers;
use crate::server::http::{Problem, request_id};
use crate::server::lane::{Plan, RequestMeta, SLOW, WorkerWakeup};
use crate::server::render::{closing, render};
use crate::server::router::{Lane, PerLane, Route};
use crate::server::service::{AccessEntry, Service};
use crate::server::shutdown::Phase;
use log::{debug, error, warn};
use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use slab::Slab;
use socket2::{Domain, SockRef, Socket, Type};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::os::unix::net;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

const LISTENER: Token = Token(0);
const WAKER: Token = Token(1);
/// The first link; then the others, then the clients.
const LINKS: usize = 2;

/// How often everybody's time is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How long the last clients have, those that have come and not asked.
const LAST_CLIENTS: Duration = Duration::from_millis(500);
/// How often it is looked, then, whether there are any more.
const LAST_LOOK: Duration = Duration::from_millis(10);
/// When the system has no file for a client, and nobody can make room.
const ACCEPT_AGAIN: Duration = Duration::from_millis(20);
/// What clients may have sent of bodies that are not whole, all together, and as much again of what is no body; whoever has
/// sent the most goes then.
const MOST_BUFFERED: usize = 64 << 20;
/// Clients that connect in one moment; the system shortens it to what it takes.
const BACKLOG: i32 = 4096;
/// Fewer are never allowed: at the limit the system refuses, and somebody makes room.
const LEAST_CLIENTS: usize = 8;

/// Steps that a client may take before it is the others' turn; a step reads 64 KiB at most.
const STEPS: usize = 16;

const BOTH: [Lane; 2] = [Lane::Health, Lane::Api];

pub(super) struct EventLoop {
    poll: Poll,
    listener: TcpListener,
    /// Others have it, too: it goes on when this server ends.
    is_inherited: bool,
    /// When every client's time was looked at.
    looked_at: Instant,
    /// Set while accepting has to wait.
    accept_at: Option<Instant>,
    /// A client that waits until another makes room; those behind it wait in the listener's backlog.
    at_the_door: Option<(TcpStream, SocketAddr)>,
    service: Arc<Service>,
    shared: Arc<Shared>,
    clients: Slab<Connection>,
    /// Clients who can go on, and have to let others go first.
    in_turn: Vec<usize>,
    most_clients: usize,
    next_serial: u64,
    next_exchange: u64,
    lanes: PerLane<LaneConnections>,
    /// Something may be done that nobody tells of.
    more: bool,
    mended: (Sender<Mended>, Receiver<Mended>),
    scratch: Box<[u8]>,
    phase: Phase,
}

/// A connection to a lane that was opened again, for the place that it has there.
struct Mended {
    lane: Lane,
    index: usize,
    stream: net::UnixStream,
    /// Of the lane that it leads to.
    wakeup: Arc<WorkerWakeup>,
}

impl EventLoop {
    pub fn new(
        service: Arc<Service>,
        inherited: Option<std::net::TcpListener>,
        lanes: impl FnOnce(&Arc<Dispatch>) -> (Plan, Plan),
        others: usize,
    ) -> io::Result<EventLoop> {
        let poll = Poll::new()?;
        let registry = poll.registry();
        let is_inherited = inherited.is_some();
        let mut listener = match inherited {
            Some(listener) => {
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener)
            }
            None => listen(service.config.addr)?,
        };
        registry.register(&mut listener, LISTENER, Interest::READABLE)?;
        let waker = Waker::new(registry, WAKER)?;
        let dispatch = Arc::new(Dispatch::new(waker, Arc::clone(&service)));
        let (health, api) = lanes(&dispatch);
        let shared = Arc::new(Shared {
            dispatch,
            over: AtomicBool::new(false),
            in_flight: PerLane::default(),
        });
        // No request waits for a worker of the health lane for long: all may do so at its door.
        let line = health.ahead;
        let (health, health_streams) = LaneConnections::start(health, line)?;
        let (api, api_streams) = LaneConnections::start(api, service.config.queue)?;
        let wanted = service.config.max_connections;
        let fit = fd_limit::limit().map_or(wanted, |limit| {
            limit.saturating_sub(others).max(LEAST_CLIENTS)
        });
        if fit < wanted {
            warn!("open files are limited: {fit} connections of clients at most");
        }
        let most_clients = wanted.min(fit);
        let mut event_loop = EventLoop {
            poll,
            listener,
            is_inherited,
            looked_at: Instant::now(),
            accept_at: None,
            at_the_door: None,
            service,
            shared,
            clients: Slab::new(),
            in_turn: Vec::new(),
            most_clients,
            next_serial: 0,
            next_exchange: 0,
            lanes: PerLane { health, api },
            more: false,
            mended: mpsc::channel(),
            scratch: vec![0; 64 * 1024].into_boxed_slice(),
            phase: Phase::Running,
        };
        for (lane, streams) in [(Lane::Health, health_streams), (Lane::Api, api_streams)] {
            for (index, stream) in streams.into_iter().enumerate() {
                event_loop.connected(lane, index, stream)?;
            }
        }
        Ok(event_loop)
    }

    pub fn addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The edge's ends of the connections to the api lane.
    #[cfg(test)]
    pub fn api_connections(&self) -> Vec<net::UnixStream> {
        self.lanes.api.second_handles()
    }

    pub fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Until it is told that it is over. Should it panic, it starts over without the clients that it had.
    pub fn run(&mut self) {
        while catch_unwind(AssertUnwindSafe(|| self.serve())).is_err() {
            error!("the edge panicked, and starts over");
            for key in self.clients.iter().map(|(key, _)| key).collect::<Vec<_>>() {
                self.close(key);
            }
        }
        // They know the dispatch, which holds them.
        self.shared.dispatch.clear();
    }

    fn serve(&mut self) {
        let mut events = Events::with_capacity(1024);
        while !self.shared.over.load(Ordering::SeqCst) {
            let pause = self.pause();
            self.round(&mut events, pause);
        }
        self.answer_the_last(&mut events);
    }

    /// The end. Nobody else gets in; those who have come are answered, the half-sent requests with a refusal.
    fn answer_the_last(&mut self, events: &mut Events) {
        if !self.is_inherited {
            newcomers::keep_out(&self.listener);
        }
        let port = self.addr().map(|addr| addr.port());
        let until = Instant::now() + LAST_CLIENTS;
        loop {
            // Asked before the backlog is looked at, where they stand next.
            let are_on_the_way = !self.is_inherited
                && port
                    .as_ref()
                    .is_ok_and(|port| newcomers::are_on_the_way(*port));
            self.accept();
            let left = until.saturating_duration_since(Instant::now());
            let is_through = !are_on_the_way
                && self.at_the_door.is_none()
                && self.clients.iter().all(|(_, c)| c.is_at_rest());
            if is_through || left.is_zero() {
                break;
            }
            let pause = self.pause().unwrap_or(LAST_LOOK);
            self.round(events, Some(pause.min(left).min(LAST_LOOK)));
        }
        for key in self.clients.iter().map(|(key, _)| key).collect::<Vec<_>>() {
            let state = self.clients.get(key).map(|c| &c.state);
            if matches!(state, Some(State::Head | State::Body(_))) {
                self.answer_in_place(key, draining());
                self.drive(key);
            }
        }
    }

    /// Waits for what happens, no longer than `pause`, and goes on with it.
    fn round(&mut self, events: &mut Events, pause: Option<Duration>) {
        if let Err(e) = self.poll.poll(events, pause)
            && e.kind() != ErrorKind::Interrupted
        {
            error!("the edge cannot wait for its sockets: {e}");
            std::thread::sleep(ACCEPT_AGAIN);
        }
        self.more = false;
        self.shared.dispatch.mark_awake();
        let done = self.shared.dispatch.take_done();
        // First, so that whoever asks again finds the room that its last request has left.
        for lane in BOTH {
            self.refill(lane);
        }
        self.go_on_with(done);
        for key in std::mem::take(&mut self.in_turn) {
            self.drive(key);
        }
        for event in &*events {
            match event.token() {
                LISTENER => self.accept(),
                WAKER => self.woken(),
                Token(token) => match self.link_of(token) {
                    Some((lane, index)) => self.link_event(lane, index, event),
                    None => self.client_event(token - self.first_client(), event),
                },
            }
        }
        let now = Instant::now();
        if self.accept_at.is_some_and(|at| now >= at) {
            self.accept();
        }
        if now >= self.looked_at + LOOK {
            self.looked_at = now;
            self.look_at_the_time(now);
        }
    }

    /// For how long nothing needs to be done that is not told of.
    fn pause(&self) -> Option<Duration> {
        let are_coming = |lane| self.lanes.of(lane).wakeup.are_coming();
        match () {
            () if self.more => Some(Duration::ZERO),
            () if BOTH.into_iter().any(are_coming) => Some(SLOW),
            () if self.accept_at.is_some() => Some(ACCEPT_AGAIN),
            () if !self.clients.is_empty() => Some(LOOK),
            () => None,
        }
    }

    fn first_client(&self) -> usize {
        LINKS + self.lanes.health.len() + self.lanes.api.len()
    }

    fn link_of(&self, token: usize) -> Option<(Lane, usize)> {
        let index = token - LINKS;
        match index.checked_sub(self.lanes.health.len()) {
            None => Some((Lane::Health, index)),
            Some(index) if index < self.lanes.api.len() => Some((Lane::Api, index)),
            Some(_) => None,
        }
    }

    fn token_of(&self, lane: Lane, index: usize) -> Token {
        Token(
            LINKS
                + index
                + if lane == Lane::Api {
                    self.lanes.health.len()
                } else {
                    0
                },
        )
    }

    // --- clients

    fn accept(&mut self) {
        self.accept_at = None;
        loop {
            let next = match self.at_the_door.take() {
                Some(waiting) => Ok(waiting),
                // They wait for the next server.
                None if self.is_inherited && self.phase == Phase::Draining => return,
                None => self.listener.accept(),
            };
            match next {
                Ok(next) if self.clients.len() >= self.most_clients && !self.make_room() => {
                    debug!(
                        "no room for {}: every connection has a request in flight",
                        next.1
                    );
                    self.at_the_door = Some(next);
                    self.accept_at = Some(Instant::now() + ACCEPT_AGAIN);
                    return;
                }
                Ok((socket, peer)) => self.welcome(socket, peer),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                // Out of files, the program's or the system's.
                Err(e)
                    if [Some(nix::libc::EMFILE), Some(nix::libc::ENFILE)]
                        .contains(&e.raw_os_error()) =>
                {
                    if !self.make_room() {
                        debug!("no file for a client: {e}");
                        self.accept_at = Some(Instant::now() + ACCEPT_AGAIN);
                        return;
                    }
                }
                // The client is gone again.
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::ConnectionAborted | ErrorKind::Interrupted
                    ) =>
                {
                    debug!("a client was not accepted: {e}");
                }
                Err(e) => {
                    warn!("no client can be accepted: {e}");
                    self.accept_at = Some(Instant::now() + LOOK);
                    return;
                }
            }
        }
    }

    fn welcome(&mut self, mut socket: TcpStream, peer: SocketAddr) {
        let first_client = self.first_client();
        let entry = self.clients.vacant_entry();
        let key = entry.key();
        let token = Token(first_client + key);
        if let Err(e) = self
            .poll
            .registry()
            .register(&mut socket, token, Interest::READABLE)
        {
            return warn!("a client cannot be listened to: {e}");
        }
        self.next_serial += 1;
        let connection = Connection::new(socket, peer.ip(), self.next_serial, &self.service.config);
        entry.insert(connection);
        self.drive(key);
    }

    /// Closes the one that has been waited for longest. False when all have a request in flight.
    fn make_room(&mut self) -> bool {
        let expendable = self.clients.iter().filter(|(_, c)| c.is_expendable());
        // Those with an answer that they do not take come last.
        let longest = expendable.min_by_key(|(_, c)| (c.blocked, c.since));
        let longest = longest.map(|(key, _)| key);
        if let Some(key) = longest {
            self.close(key);
        }
        longest.is_some()
    }

    fn close(&mut self, key: usize) {
        if let Some(connection) = self.clients.try_remove(key) {
            // A worker may still hold the socket.
            let fd = connection.socket.as_raw_fd();
            let _ = self.poll.registry().deregister(&mut SourceFd(&fd));
        }
    }

    fn client_event(&mut self, key: usize, event: &Event) {
        let Some(connection) = self.clients.get_mut(key) else {
            return;
        };
        // Asked of the socket: the event may be of one that had this key a moment ago.
        if event.is_error() && !matches!(connection.socket.take_error(), Ok(None)) {
            return self.close(key);
        }
        connection.read_closed |= event.is_read_closed();
        connection.readable |= event.is_readable() || event.is_read_closed();
        if event.is_writable() && connection.blocked {
            connection.blocked = false;
            // What comes meanwhile is told of again.
            if self.listen_to(key, Interest::READABLE).is_err() {
                return self.close(key);
            }
        } else if let State::Waiting = connection.state {
            // Its answer may be written by now; if not, the worker sees that it is waited for.
            connection.attention.store(true, Ordering::SeqCst);
            self.more = true;
            return;
        }
        self.drive(key);
    }

    fn listen_to(&self, key: usize, interest: Interest) -> io::Result<()> {
        let token = Token(self.first_client() + key);
        let Some(connection) = self.clients.get(key) else {
            return Ok(());
        };
        let fd = connection.socket.as_raw_fd();
        self.poll
            .registry()
            .reregister(&mut SourceFd(&fd), token, interest)
    }

    /// Goes on with a client for as long as something can be done, and it is its turn.
    fn drive(&mut self, key: usize) {
        for _ in 0..STEPS {
            let Some(connection) = self.clients.get_mut(key) else {
                return;
            };
            match connection.step(&self.service.config, &mut self.scratch) {
                Step::Go => {}
                Step::Wait => return self.wait_for(key),
                Step::Close => return self.close(key),
                Step::Refuse(refusal) => self.refuse(key, refusal),
                Step::Admit(head) => self.admit(key, head),
                Step::Request(admitted, body) => self.hand_on(key, admitted, &body),
            }
        }
        self.in_turn.push(key);
        self.more = true;
    }

    /// Asks to be told when a client takes more, where it would take no more.
    fn wait_for(&mut self, key: usize) {
        let blocked = self.clients.get(key).is_some_and(|c| c.blocked);
        let both = Interest::READABLE | Interest::WRITABLE;
        if blocked && self.listen_to(key, both).is_err() {
            self.close(key);
        }
    }

    /// The head is there: whether the rest is wanted.
    fn admit(&mut self, key: usize, mut head: Box<Head>) {
        let preflight = self
            .service
            .preflight(&head.method, head.path(), &head.headers);
        if let (Some(response), Some(connection)) = (preflight, self.clients.get_mut(key)) {
            head.close |= !connection.skip_body(&head);
            if let Some(pending) = self.pending(key, *head, "", None) {
                Exchange::new(&self.shared.dispatch, pending, None).answer_instead(response);
            }
            return;
        }
        let route = self
            .service
            .admit(&head.method, head.path(), &head.headers)
            .and_then(|route| match self.takes(&route, &head) {
                Ok(()) => Ok(route),
                Err(problem) => Err((route.pattern, problem)),
            });
        let Some(connection) = self.clients.get_mut(key) else {
            return;
        };
        match route {
            Ok(route) if route.instant => self.answer_at_once(key, *head, &route),
            Ok(route) => {
                let waits = head.expects_continue && connection.buffered() == 0;
                let ticket = self.shared.in_flight.of(route.lane).enter();
                let chunked = head.chunked.then(Chunked::default);
                let admitted = Admitted {
                    head,
                    route,
                    ticket,
                    chunked,
                };
                connection.read_body(admitted, &self.service.config);
                if waits && matches!(connection.ask_for_body(), Step::Close) {
                    self.close(key);
                }
            }
            Err((pattern, problem)) => {
                head.close |= !connection.skip_body(&head);
                self.refuse_request(key, *head, pattern, problem);
            }
        }
    }

    /// Answers in the place of a worker, with what needs no waiting.
    fn answer_at_once(&mut self, key: usize, head: Head, route: &Route) {
        let (method, path) = (head.method.clone(), head.path().to_owned());
        let query = head
            .target
            .get(path.len() + 1..)
            .unwrap_or_default()
            .to_owned();
        let Some(mut pending) = self.pending(key, head, route.pattern, None) else {
            return;
        };
        let request = pending.meta.request(method, path, query, Vec::new(), route);
        let answer = catch_unwind(AssertUnwindSafe(|| (route.handler)(&request)));
        let response = match answer {
            Ok(Ok(response)) => response,
            Ok(Err(problem)) => problem.into_response(Some(&request.id)),
            Err(_) => Problem::internal().into_response(Some(&request.id)),
        };
        Exchange::new(&self.shared.dispatch, pending, None).answer_instead(response);
    }

    /// Whether a request is taken now.
    fn takes(&self, route: &Route, head: &Head) -> Result<(), Problem> {
        let lane = route.lane;
        if lane == Lane::Health && head.has_body() {
            Err(Problem::plain(413, "no body is taken here"))
        } else if route.instant {
            // It waits for nobody, so no line is too long.
            Ok(())
        } else if lane == Lane::Api && self.phase == Phase::Draining {
            Err(draining())
        } else if head.has_body() && self.announced() + head.body > self.most_buffered() {
            let detail = "too much is being sent at once";
            Err(Problem::unavailable("overloaded", detail))
        } else {
            self.has_room(lane)
        }
    }

    /// What bodies that are not whole may come to, all together; one of the largest that is taken always fits.
    fn most_buffered(&self) -> usize {
        MOST_BUFFERED.max(self.service.config.max_body_bytes)
    }

    /// The bytes of all bodies that are on their way.
    fn announced(&self) -> usize {
        self.clients.iter().map(|(_, c)| c.announced()).sum()
    }

    fn has_room(&self, lane: Lane) -> Result<(), Problem> {
        if !self
            .lanes
            .of(lane)
            .has_room(self.shared.dispatch.waiting(lane))
        {
            let detail = "too many requests are in line";
            Err(Problem::unavailable("overloaded", detail))
        } else {
            Ok(())
        }
    }

    /// What cannot be read as a request, and nothing behind it.
    fn refuse(&mut self, key: usize, refusal: Refusal) {
        self.answer_in_place(key, Problem::plain(refusal.status, refusal.detail));
    }

    /// Answers what is no request yet, or not a whole one, and nothing behind it.
    fn answer_in_place(&mut self, key: usize, problem: Problem) {
        let Some(connection) = self.clients.get_mut(key) else {
            return;
        };
        let id = request_id(None);
        let response = problem.into_response(Some(&id));
        self.service.record(&AccessEntry {
            method: "-",
            path: "-",
            route: "",
            status: response.status,
            took: Duration::ZERO,
            id: &id,
            client: connection.peer.to_canonical(),
        });
        let answer = closing(render(&response, &id, connection.asks_for_head()));
        connection.answer(answer, true, None, &self.service.config);
    }

    // --- requests

    /// Answers in the place of a worker. The client is gone on with in the loop's next round, after the others.
    fn refuse_request(&mut self, key: usize, head: Head, pattern: &'static str, problem: Problem) {
        if let Some(pending) = self.pending(key, head, pattern, None) {
            Exchange::new(&self.shared.dispatch, pending, None).give_up(problem);
        }
    }

    fn hand_on(&mut self, key: usize, admitted: Admitted, body: &[u8]) {
        let Admitted {
            head,
            route,
            ticket,
            ..
        } = admitted;
        let lane = route.lane;
        // Others may have been faster, while its body came. In a drain it is finished: it was there before.
        if let Err(problem) = self.has_room(lane) {
            return self.refuse_request(key, *head, route.pattern, problem);
        }
        let made_key = match &head.idempotency_key {
            None if head.writes() => match new_key() {
                None => {
                    return self.refuse_request(key, *head, route.pattern, Problem::internal());
                }
                made => made,
            },
            _ => None,
        };
        self.next_exchange += 1;
        let bytes = head.for_lane(self.next_exchange, body);
        let Some(mut pending) = self.pending(key, *head, route.pattern, made_key) else {
            return;
        };
        pending.ticket = Some(ticket);
        let waiting = Waiting {
            pending,
            route,
            exchange: self.next_exchange,
            bytes,
        };
        self.lanes.of_mut(lane).queue(waiting);
        self.send_next(lane);
        // A worker that came free before it could see the line does not wake us.
        self.more |= self.lanes.of(lane).has_line();
    }

    /// Nothing where the client is gone.
    fn pending(
        &self,
        key: usize,
        head: Head,
        pattern: &'static str,
        made_key: Option<String>,
    ) -> Option<PendingRequest> {
        let connection = self.clients.get(key)?;
        // What has come already is not told of again.
        let has_more = connection.buffered() > 0 || connection.readable;
        connection.attention.store(has_more, Ordering::SeqCst);
        let config = &self.service.config;
        let arrived = Instant::now();
        let writes = head.writes();
        let path = head.path().to_owned();
        let page = browsers::named_page(&head.headers, &config.cors_origins);
        let meta = RequestMeta {
            arrived,
            page: page.map(str::to_owned),
            deadline: arrived + config.request_timeout,
            client: forwarded::client(
                connection.peer,
                &head.forwarded_for,
                &config.trusted_proxies,
            ),
            id: request_id(head.request_id.as_deref()),
            headers: head.headers,
            key_was_made: made_key.is_some(),
            key: made_key.or(head.idempotency_key).unwrap_or_default(),
        };
        Some(PendingRequest {
            client: (key, connection.serial),
            socket: Arc::clone(&connection.socket),
            attention: Arc::clone(&connection.attention),
            close: head.close,
            writes,
            pattern,
            path,
            method: head.method,
            meta,
            ticket: None,
        })
    }

    /// Sends what is in line, as far as there are workers for it.
    fn send_next(&mut self, lane: Lane) {
        while let Some((index, waiting)) = self.lanes.of_mut(lane).next() {
            self.shared
                .dispatch
                .put(waiting.exchange, index, waiting.pending, waiting.route);
            let token = self.token_of(lane, index);
            let links = self.lanes.of_mut(lane);
            if let Err(Lost) = links.send(index, &waiting.bytes, self.poll.registry(), token) {
                self.lost(lane, index);
            }
        }
        let links = self.lanes.of(lane);
        links.wakeup.call();
        self.shared
            .dispatch
            .set_refill_below(lane, links.refill_below());
    }

    /// Sends more, when workers are through with some; and sees to it that those who rest are called when others are slow.
    fn refill(&mut self, lane: Lane) {
        let freed = self.shared.dispatch.take_freed(lane);
        self.lanes.of_mut(lane).add_free(freed);
        self.send_next(lane);
    }

    /// Goes on with those whose answer was written.
    fn go_on_with(&mut self, done: Vec<Done>) {
        for done in done {
            let (key, serial) = done.client;
            let Some(connection) = self.clients.get_mut(key).filter(|c| c.serial == serial) else {
                continue;
            };
            if done.failed {
                self.close(key);
            } else {
                connection.answer(done.rest, done.close, done.ticket, &self.service.config);
                self.drive(key);
            }
        }
    }

    // --- lanes

    fn connected(&mut self, lane: Lane, index: usize, stream: net::UnixStream) -> io::Result<()> {
        let token = self.token_of(lane, index);
        let links = self.lanes.of_mut(lane);
        links.install(index, stream, self.poll.registry(), token)
    }

    fn link_event(&mut self, lane: Lane, index: usize, event: &Event) {
        let links = self.lanes.of_mut(lane);
        if let Err(Lost) = links.event(index, event, self.poll.registry()) {
            self.lost(lane, index);
        }
    }

    /// A connection to a lane is gone, and with it what no worker had taken from it.
    fn lost(&mut self, lane: Lane, index: usize) {
        if !self.lanes.of(lane).is_open(index) {
            return;
        }
        warn!("a connection to the {lane:?} lane was lost");
        self.lanes.of_mut(lane).drop_connection(index);
        self.mend(lane, index);
        for exchange in self.shared.dispatch.take_lost(lane, index) {
            exchange.give_up(Problem::lost());
        }
    }

    fn mend(&mut self, lane: Lane, index: usize) {
        let (done, shared) = (self.mended.0.clone(), Arc::clone(&self.shared));
        self.lanes.of_mut(lane).mend(move |stream, wakeup| {
            // Nobody wants it any more when the server is closed.
            let _ = done.send(Mended {
                lane,
                index,
                stream,
                wakeup,
            });
            shared.dispatch.wake();
        });
    }

    /// The phase may have changed, or a connection may have been mended.
    fn woken(&mut self) {
        while let Ok(mended) = self.mended.1.try_recv() {
            let (lane, index) = (mended.lane, mended.index);
            // The lane was built anew: the connections to the old one lead nowhere.
            if !Arc::ptr_eq(&self.lanes.of(lane).wakeup, &mended.wakeup) {
                self.lanes.of_mut(lane).wakeup = mended.wakeup;
                for other in (0..self.lanes.of(lane).len()).filter(|other| *other != index) {
                    self.lost(lane, other);
                }
            }
            match self.connected(lane, index, mended.stream) {
                Ok(()) => self.send_next(lane),
                Err(e) => {
                    warn!("a mended connection cannot be listened to: {e}");
                    self.mend(lane, index);
                }
            }
        }
        let before = std::mem::replace(&mut self.phase, self.service.phase.get());
        if self.phase == Phase::Draining && before < Phase::Draining {
            self.close_idle();
        }
    }

    /// Those that are kept between two requests; not those that have just come, and are about to ask.
    fn close_idle(&mut self) {
        let idle = |c: &Connection| c.kept && matches!(c.state, State::Idle);
        let all = self.clients.iter().filter(|(_, c)| idle(c));
        for key in all.map(|(key, _)| key).collect::<Vec<_>>() {
            // A request may be there already.
            if let Some(connection) = self.clients.get_mut(key) {
                connection.readable = true;
            }
            self.drive(key);
            if self.clients.get(key).is_some_and(idle) {
                self.close(key);
            }
        }
    }

    // --- time

    fn look_at_the_time(&mut self, now: Instant) {
        let clients = &self.clients;
        let is_stale = |lane, pending: &PendingRequest| {
            let (key, serial) = pending.client;
            let late = lane == Lane::Api && now >= pending.meta.deadline;
            late || clients.get(key).is_none_or(|c| c.serial != serial)
        };
        let dispatch = &self.shared.dispatch;
        let mut stale = dispatch.take_stale(is_stale);
        for lane in BOTH {
            let links = self.lanes.of_mut(lane);
            let in_line = links.take_stale(|pending| is_stale(lane, pending));
            let exchanges = in_line.into_iter();
            stale.extend(exchanges.map(|pending| Exchange::new(dispatch, pending, None)));
        }
        for exchange in stale {
            exchange.give_up(Problem::no_worker());
        }
        let limits = &self.service.config;
        let late: Vec<usize> = self
            .clients
            .iter_mut()
            .filter_map(|(key, c)| c.is_late(now, limits).then_some(key))
            .collect();
        for key in late {
            match self.clients.get(key).map(|c| &c.state) {
                Some(State::Head | State::Body(_)) => {
                    let detail = "the request did not come to its end in time";
                    self.refuse(
                        key,
                        Refusal {
                            status: 408,
                            detail,
                        },
                    );
                    self.drive(key);
                }
                _ => self.close(key),
            }
        }
        while self
            .clients
            .iter()
            .map(|(_, c)| c.buffered())
            .sum::<usize>()
            > self.most_buffered() + MOST_BUFFERED
        {
            let most = self.clients.iter().max_by_key(|(_, c)| c.buffered());
            let Some(key) = most.map(|(key, _)| key) else {
                return;
            };
            warn!("too much is sent at once: a connection is closed");
            self.close(key);
        }
    }
}

fn draining() -> Problem {
    Problem::unavailable("draining", "the server is shutting down")
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    // A port that was in use a moment ago may be taken again.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    // Accepted sockets inherit it: an answer is one write, and must not wait for the acknowledgement of the last.
    SockRef::from(&socket).set_tcp_nodelay(true)?;
    Ok(TcpListener::from_std(socket.into()))
}

/// One that nobody guesses: who knows it gets the answer that is kept with it.
fn new_key() -> Option<String> {
    let mut random = [0; 16];
    match getrandom::fill(&mut random) {
        Ok(()) => Some(format!("{:032x}", u128::from_be_bytes(random))),
        Err(e) => {
            error!("no random numbers: {e}");
            None
        }
    }
}
