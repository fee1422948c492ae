//! The loop: waits for events, drives each client's connection step by step, admits or refuses its
//! requests, and keeps everybody to their time.

use super::chunked::Chunked;
use super::clients::{ACCEPT_AGAIN, Clients, Reaction};
use super::connection::{Admitted, Step};
use super::dispatch::{Dispatch, Exchange, Shared};
use super::framing::{Head, Refusal};
use super::lanes::Lanes;
use super::listener::Listener;
use crate::server::http::Problem;
use crate::server::lane::{Plan, SLOW};
use crate::server::router::{Lane, PerLane, Route};
use crate::server::service::Service;
use crate::server::shutdown::Phase;
use log::{error, warn};
use mio::{Events, Poll, Token, Waker};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const LISTENER: Token = Token(0);
const WAKER: Token = Token(1);
/// The token of the first connection to a lane. The clients follow behind the last one.
const FIRST_LANE_CONNECTION: usize = 2;

/// How often deadlines are checked.
const CHECK_DEADLINES: Duration = Duration::from_millis(100);
/// How long clients that are connected have at the end to send a request, which may be on its way
/// already.
pub(crate) const LAST_CLIENTS: Duration = Duration::from_millis(500);
/// How often the loop checks, at the end, whether there are any such clients left.
const CHECK_LAST_CLIENTS: Duration = Duration::from_millis(10);
/// A body of this size, that of the largest head, is taken however much others send.
const SMALL_BODY: usize = 16 * 1024;
/// The most steps that a client takes in a row, each of which reads 64 KiB at most. Then the others
/// have their turn.
const STEPS: usize = 16;

pub(super) struct EventLoop {
    poll: Poll,
    clients: Clients,
    lanes: Lanes,
    service: Arc<Service>,
    shared: Arc<Shared>,
    phase: Phase,
    /// Clients that can go on, and have let the others go first.
    in_turn: Vec<usize>,
    deadlines_checked_at: Instant,
    /// The next poll must not block: there may be work that raises no event.
    more: bool,
}

impl EventLoop {
    /// Opens the listener, and starts the lanes. `others` file descriptors are not for clients.
    pub fn new(
        service: Arc<Service>,
        inherited: Option<TcpListener>,
        lanes: impl FnOnce(&Arc<Dispatch>) -> (Plan, Plan),
        others: usize,
    ) -> io::Result<EventLoop> {
        let poll = Poll::new()?;
        let registry = poll.registry();
        let listener = Listener::new(inherited, service.config.addr, registry, LISTENER)?;
        let waker = Waker::new(registry, WAKER)?;
        let dispatch = Arc::new(Dispatch::new(waker, Arc::clone(&service)));
        let plans = lanes(&dispatch);
        let shared = Arc::new(Shared {
            dispatch: Arc::clone(&dispatch),
            over: AtomicBool::new(false),
            in_flight: PerLane::default(),
        });
        let queue = service.config.queue;
        let lanes = Lanes::start(plans, queue, dispatch, registry, FIRST_LANE_CONNECTION)?;
        let clients = Clients::new(listener, Arc::clone(&service), others, lanes.end_token());
        Ok(EventLoop {
            poll,
            clients,
            lanes,
            service,
            shared,
            phase: Phase::Running,
            in_turn: Vec::new(),
            deadlines_checked_at: Instant::now(),
            more: false,
        })
    }

    pub fn addr(&self) -> io::Result<SocketAddr> {
        self.clients.listener().addr()
    }

    /// The edge's ends of the connections to the api lane.
    #[cfg(test)]
    pub fn api_connections(&self) -> Vec<std::os::unix::net::UnixStream> {
        self.lanes.api_connections()
    }

    pub fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Runs until `over` is set. After a panic it starts over, without the clients that it had.
    pub fn run(&mut self) {
        while catch_unwind(AssertUnwindSafe(|| self.serve())).is_err() {
            error!("the event loop panicked and starts over");
            for key in self.clients.keys() {
                self.close(key);
            }
        }
        // The exchanges in the table hold the table.
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

    /// The end: keeps new clients out, answers those that are connected, and refuses the requests
    /// that are still unfinished then. In a drain, idle connections are kept for that long, too: a
    /// request that crosses the end of its connection is lost, and its client cannot know whether it
    /// was done.
    fn answer_the_last(&mut self, events: &mut Events) {
        self.clients.keep_newcomers_out();
        let until = Instant::now() + LAST_CLIENTS;
        loop {
            // Read before the backlog, which is where they come next.
            let has_newcomers = self.clients.listener().has_newcomers();
            self.accept();
            let left = until.saturating_duration_since(Instant::now());
            let are_through = match self.phase {
                Phase::Draining => self.clients.are_gone(),
                _ => self.clients.are_at_rest(),
            };
            if (!has_newcomers && are_through) || left.is_zero() {
                break;
            }
            let pause = self.pause().unwrap_or(CHECK_LAST_CLIENTS);
            self.round(events, Some(pause.min(left).min(CHECK_LAST_CLIENTS)));
        }
        for key in self.clients.keys() {
            // The last look: a request may be there already.
            self.drive_if_idle(key);
            if self.clients.is_within_request(key) {
                self.clients.refuse(key, draining());
                self.drive(key);
            }
        }
    }

    /// Waits for events, no longer than `pause`, and handles them.
    fn round(&mut self, events: &mut Events, pause: Option<Duration>) {
        if let Err(e) = self.poll.poll(events, pause)
            && e.kind() != ErrorKind::Interrupted
        {
            error!("the event loop cannot wait for its sockets: {e}");
            std::thread::sleep(ACCEPT_AGAIN);
        }
        self.more = false;
        self.shared.dispatch.mark_awake();
        let done = self.shared.dispatch.take_done();
        // First, so that a client that asks again finds the room that its last request has left.
        self.lanes.refill(self.poll.registry());
        for done in done {
            if let Some(key) = self.clients.answered(done, self.poll.registry()) {
                self.drive(key);
            }
        }
        for key in std::mem::take(&mut self.in_turn) {
            self.drive(key);
        }
        let first_client = self.lanes.end_token();
        for event in &*events {
            match event.token() {
                LISTENER => self.accept(),
                WAKER => self.woken(),
                Token(token) if token < first_client => {
                    self.lanes.event(event, self.poll.registry());
                }
                _ => match self.clients.event(event, self.poll.registry()) {
                    (key, Reaction::Step) => self.drive(key),
                    (_, Reaction::LookAgain) => self.more = true,
                    (_, Reaction::Nothing) => {}
                },
            }
        }
        let now = Instant::now();
        if self.clients.accept_at().is_some_and(|at| now >= at) {
            self.accept();
        }
        if now >= self.deadlines_checked_at + CHECK_DEADLINES {
            self.deadlines_checked_at = now;
            self.check_deadlines(now);
        }
    }

    /// How long the next poll may block.
    fn pause(&self) -> Option<Duration> {
        match () {
            () if self.more => Some(Duration::ZERO),
            () if self.lanes.are_coming() => Some(SLOW),
            () if self.clients.accept_at().is_some() => Some(ACCEPT_AGAIN),
            () if !self.clients.is_empty() => Some(CHECK_DEADLINES),
            () => None,
        }
    }

    fn accept(&mut self) {
        let is_draining = self.phase == Phase::Draining;
        while let Some(key) = self.clients.accept(is_draining, self.poll.registry()) {
            self.drive(key);
        }
    }

    fn close(&mut self, key: usize) {
        self.clients.close(key, self.poll.registry());
    }

    /// The phase may have changed, or a connection to a lane may have been reopened.
    fn woken(&mut self) {
        self.lanes.install_reopened(self.poll.registry());
        self.phase = self.service.phase.get();
    }

    fn drive_if_idle(&mut self, key: usize) {
        if self.clients.is_idle(key)
            && let Some(connection) = self.clients.get_mut(key)
        {
            connection.readable = true;
            self.drive(key);
        }
    }

    /// Takes a client's steps, as long as there are any and it is its turn.
    fn drive(&mut self, key: usize) {
        for _ in 0..STEPS {
            let Some(step) = self.clients.step(key) else {
                return;
            };
            match step {
                Step::Go => {}
                Step::Wait => return self.clients.wait_for(key, self.poll.registry()),
                Step::Close => return self.close(key),
                Step::Refuse(refusal) => self.refuse(key, refusal),
                Step::Admit(head) => self.admit(key, head),
                Step::Request(admitted, body) => self.hand_on(key, admitted, &body),
            }
        }
        self.in_turn.push(key);
        self.more = true;
    }

    // --- requests

    /// Decides by a request's head whether its body is read.
    fn admit(&mut self, key: usize, mut head: Box<Head>) {
        let preflight = self
            .service
            .preflight(&head.method, head.path(), &head.headers);
        if let (Some(response), Some(connection)) = (preflight, self.clients.get_mut(key)) {
            head.close |= !connection.skip_body(&head);
            if let Some(pending) = self.clients.pending(key, *head, "", None) {
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

    /// Answers in place of a worker, since the handler never waits.
    fn answer_at_once(&mut self, key: usize, head: Head, route: &Route) {
        let (method, path) = (head.method.clone(), head.path().to_owned());
        let query = head
            .target
            .get(path.len() + 1..)
            .unwrap_or_default()
            .to_owned();
        let Some(mut pending) = self.clients.pending(key, head, route.pattern, None) else {
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
            Err(Problem::plain(413, "this path does not accept a body"))
        } else if route.instant {
            // It needs no worker, so the line does not matter.
            Ok(())
        } else if lane == Lane::Api && self.phase == Phase::Draining {
            Err(draining())
        } else if (head.chunked || head.body > SMALL_BODY) && !self.clients.has_room_for(head.body)
        {
            Err(too_much())
        } else {
            self.has_room(lane)
        }
    }

    fn has_room(&self, lane: Lane) -> Result<(), Problem> {
        if !self.lanes.has_room(lane) {
            let detail = "too many requests are in line";
            Err(Problem::unavailable("overloaded", detail))
        } else {
            Ok(())
        }
    }

    /// Answers what cannot be read as a request, and reads nothing behind it.
    fn refuse(&mut self, key: usize, refusal: Refusal) {
        let problem = Problem::plain(refusal.status, refusal.detail);
        self.clients.refuse(key, problem);
    }

    /// Answers in place of a worker. The loop goes on with the client in its next round, after the
    /// others.
    fn refuse_request(&mut self, key: usize, head: Head, pattern: &'static str, problem: Problem) {
        if let Some(pending) = self.clients.pending(key, head, pattern, None) {
            Exchange::new(&self.shared.dispatch, pending, None).give_up(problem);
        }
    }

    /// Hands a whole request to its lane.
    fn hand_on(&mut self, key: usize, admitted: Admitted, body: &[u8]) {
        let Admitted {
            head,
            route,
            ticket,
            ..
        } = admitted;
        let lane = route.lane;
        // The line may have filled up while the body came. A drain does not stop a request that was
        // admitted before it.
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
        let number = self.lanes.next_number();
        let bytes = head.for_lane(number, body);
        let Some(mut pending) = self.clients.pending(key, *head, route.pattern, made_key) else {
            return;
        };
        pending.ticket = Some(ticket);
        let registry = self.poll.registry();
        self.lanes.hand_on(number, pending, route, bytes, registry);
        // A worker that became free before it could see the line does not wake the loop.
        self.more |= self.lanes.has_line(lane);
    }

    // --- time

    fn check_deadlines(&mut self, now: Instant) {
        let clients = &self.clients;
        let stale = self.lanes.take_stale(|lane, pending| {
            let late = lane == Lane::Api && now >= pending.meta.deadline;
            late || !clients.knows(pending.client)
        });
        for exchange in stale {
            exchange.give_up(Problem::no_worker());
        }
        for key in self.clients.take_late(now) {
            let detail = "the request was not complete in time";
            self.end(key, Problem::plain(408, detail));
        }
        while let Some(key) = self.clients.largest_beyond_the_limit() {
            warn!("too many bytes of requests at once: refusing the largest");
            self.end(key, too_much());
        }
    }

    /// Ends a client's connection, with this answer if it has sent a part of a request.
    fn end(&mut self, key: usize, problem: Problem) {
        if self.clients.is_within_request(key) {
            self.clients.refuse(key, problem);
            self.drive(key);
        } else {
            self.close(key);
        }
    }
}

fn too_much() -> Problem {
    Problem::unavailable(
        "overloaded",
        "the server is receiving too much data at once",
    )
}

fn draining() -> Problem {
    Problem::unavailable("draining", "the server is shutting down")
}

/// A key that cannot be guessed: it gives access to the answer that is stored with it.
fn new_key() -> Option<String> {
    let mut random = [0; 16];
    match getrandom::fill(&mut random) {
        Ok(()) => Some(format!("{:032x}", u128::from_be_bytes(random))),
        Err(e) => {
            error!("cannot read random numbers: {e}");
            None
        }
    }
}
