//! The loop: waits for events, drives each client's connection step by step, and enforces
//! deadlines. `admission` decides on the requests.

use super::accept::ACCEPT_AGAIN;
use super::clients::{Clients, Reaction};
use super::connection::Step;
use super::listener::Listener;
use crate::server::exchange::Exchange;
use crate::server::http::Problem;
use crate::server::in_flight::InFlight;
use crate::server::inbox::Inbox;
use crate::server::lane::{Lanes, Size};
use crate::server::router::{Lane, PerLane};
use crate::server::service::Service;
use crate::server::shutdown::Phase;
use crate::temporary::Temporary;
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
/// The most steps that a client takes in a row, each of which reads 64 KiB at most. Then the others
/// have their turn.
const STEPS: usize = 16;

/// What the event loop's thread shares with the server's handle.
pub(super) struct Shared {
    pub inbox: Arc<Inbox>,
    /// The loop is to end.
    pub over: AtomicBool,
    pub in_flight: PerLane<Arc<InFlight>>,
}

pub(super) struct EventLoop {
    pub(super) poll: Poll,
    pub(super) clients: Clients,
    pub(super) lanes: Lanes,
    pub(super) service: Arc<Service>,
    pub(super) shared: Arc<Shared>,
    pub(super) phase: Phase,
    /// Clients that can go on, and have let the others go first.
    in_turn: Vec<usize>,
    deadlines_checked_at: Instant,
    /// The next poll must not block: there may be work that raises no event.
    more: bool,
}

impl EventLoop {
    /// Opens the listener, and starts the lanes, whose sockets are in `dir`. `others` file
    /// descriptors are not for clients.
    pub fn new(
        service: Arc<Service>,
        inherited: Option<TcpListener>,
        sizes: PerLane<Size>,
        dir: &Arc<Temporary>,
        others: usize,
    ) -> io::Result<EventLoop> {
        let poll = Poll::new()?;
        let registry = poll.registry();
        let listener = Listener::new(inherited, service.config.addr, registry, LISTENER)?;
        let waker = Waker::new(registry, WAKER)?;
        let inbox = Arc::new(Inbox::new(waker, Arc::clone(&service)));
        let lanes = Lanes::start(
            sizes,
            Arc::clone(&inbox),
            dir,
            registry,
            FIRST_LANE_CONNECTION,
        )?;
        let clients = Clients::new(listener, Arc::clone(&inbox), others, lanes.end_token());
        let shared = Arc::new(Shared {
            inbox,
            over: AtomicBool::new(false),
            in_flight: PerLane::default(),
        });
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

    /// How many requests were sent to a lane that no worker has taken.
    #[cfg(test)]
    pub fn waiting(&self) -> impl Fn(Lane) -> usize + Send + use<> {
        self.lanes.waiting()
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
    /// request that crosses the end of its connection is lost, and its client cannot know whether
    /// it was done.
    fn answer_the_last(&mut self, events: &mut Events) {
        self.clients.keep_newcomers_out();
        let until = Instant::now() + LAST_CLIENTS;
        loop {
            self.accept();
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || (self.are_through() && self.nobody_comes(until)) {
                break;
            }
            let pause = self.pause().unwrap_or(CHECK_LAST_CLIENTS);
            self.round(events, Some(pause.min(left).min(CHECK_LAST_CLIENTS)));
        }
        for key in self.clients.keys() {
            // The last look: a request may be there already.
            self.drive_if_idle(key);
            if self.clients.is_within_request(key) {
                self.clients.refuse(key, Problem::draining());
                self.drive(key);
            }
        }
    }

    /// Returns whether every client that is connected has been answered.
    fn are_through(&self) -> bool {
        match self.phase {
            Phase::Draining => self.clients.are_gone(),
            _ => self.clients.are_at_rest(),
        }
    }

    /// Returns whether no further client is on its way. To find out is slow on a machine with many
    /// connections, so it comes last, and is given up at `until`.
    fn nobody_comes(&mut self, until: Instant) -> bool {
        // Read before the backlog, which is where they come next.
        let has_newcomers = self.clients.listener().has_newcomers(until);
        self.accept();
        !has_newcomers && self.are_through()
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
        self.shared.inbox.mark_awake();
        let done = self.shared.inbox.take_done();
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
        self.drop_abandoned();
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
        if self.more {
            return Some(Duration::ZERO);
        }
        self.lanes.may_sleep().or(match () {
            () if self.clients.accept_at().is_some() => Some(ACCEPT_AGAIN),
            () if !self.clients.is_empty() => Some(CHECK_DEADLINES),
            () => None,
        })
    }

    fn accept(&mut self) {
        let is_draining = self.phase == Phase::Draining;
        while let Some(key) = self.clients.accept(is_draining, self.poll.registry()) {
            self.drive(key);
        }
    }

    pub(super) fn close(&mut self, key: usize) {
        self.clients.close(key, self.poll.registry());
    }

    /// The phase may have changed, or a connection to a lane may have been reopened.
    fn woken(&mut self) {
        self.lanes.install_reopened(self.poll.registry());
        self.phase = self.service.phase.get();
    }

    /// Ends the requests of clients that have gone.
    fn drop_abandoned(&mut self) {
        let unserved = std::mem::take(&mut self.clients.gone_unserved);
        self.lanes.note_unserved(unserved);
        if std::mem::take(&mut self.clients.have_gone) {
            self.lanes.abandon(Exchange::is_abandoned);
        }
    }

    /// Clients that have ended their streams, and are there still, give way to those that wait for
    /// a worker or a connection.
    fn let_half_closed_give_way(&mut self) {
        let half_closed = self.clients.half_closed();
        if half_closed.is_empty() {
            return;
        }
        let is_one = |client| half_closed.iter().any(|(one, _)| *one == client);
        let for_worker = self.lanes.waiting_of(Lane::Api, |e| !is_one(e.client()));
        let in_pool = half_closed.iter().map(|(_, token)| token.waiting());
        let in_pool: usize = in_pool.map(|waiting| waiting.load(Ordering::Relaxed)).sum();
        let for_connection = self.service.pool.stats().waiting.saturating_sub(in_pool);
        let give_way = half_closed.iter().take(for_worker + for_connection);
        give_way.for_each(|(_, token)| token.fire());
        self.lanes.abandon(Exchange::is_abandoned);
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
                Step::Request(admitted, body) => self.submit(key, admitted, &body),
            }
        }
        self.in_turn.push(key);
        self.more = true;
    }

    // --- time

    fn check_deadlines(&mut self, now: Instant) {
        self.lanes.give_up_late(now);
        self.let_half_closed_give_way();
        for key in self.clients.take_late(now) {
            let detail = "the request was not complete in time";
            self.end(key, Problem::plain(408, detail));
        }
        while let Some(key) = self.clients.largest_beyond_the_limit() {
            warn!("too many bytes of requests at once: refusing the largest");
            self.end(key, Problem::too_much());
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
