//! What a client's request leads to: a refusal, an answer at once, or a place in a lane.

use super::chunked::Chunked;
use super::connection::{Admitted, Connection, Step};
use super::event_loop::EventLoop;
use super::framing::{Head, Refusal};
use crate::server::http::Problem;
use crate::server::router::{Lane, Route};
use crate::server::shutdown::Phase;
use log::error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// A body of this size, that of the largest head, is taken however much others send.
const SMALL_BODY: usize = 16 * 1024;

impl EventLoop {
    /// Decides by a request's head whether its body is read.
    pub(super) fn admit(&mut self, key: usize, mut head: Box<Head>) {
        let preflight = self
            .service
            .preflight(&head.method, head.path(), &head.headers);
        if let (Some(response), Some(connection)) = (preflight, self.clients.get_mut(key)) {
            head.close |= !connection.skip_body(&head);
            if let Some(exchange) = self.clients.exchange(key, *head, "") {
                exchange.answer(response);
            }
            return;
        }
        let buffered = self.clients.get(key).map_or(0, Connection::buffered);
        let route = self
            .service
            .admit(&head.method, head.path(), &head.headers)
            .and_then(|route| match self.takes(&route, &head, buffered) {
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
        let Some(mut exchange) = self.clients.exchange(key, head, route.pattern) else {
            return;
        };
        let request = exchange.request(Vec::new(), route);
        match catch_unwind(AssertUnwindSafe(|| (route.handler)(&request))) {
            Ok(Ok(response)) => exchange.answer(response),
            Ok(Err(problem)) => exchange.give_up(problem),
            Err(_) => exchange.give_up(Problem::internal()),
        }
    }

    /// Whether a request is taken now, with so many bytes of its body there.
    fn takes(&mut self, route: &Route, head: &Head, buffered: usize) -> Result<(), Problem> {
        let lane = route.lane;
        // The dashboard's forms are the only ones for which this lane takes a body.
        let takes_body = lane == Lane::Api || route.method == "POST";
        if head.has_body() && !takes_body {
            Err(Problem::plain(413, "this path does not accept a body"))
        } else if lane == Lane::Health && head.body > SMALL_BODY {
            Err(Problem::plain(413, "the body is too large"))
        } else if route.instant {
            // It needs no worker, so the line does not matter.
            Ok(())
        } else if lane == Lane::Api && self.phase == Phase::Draining {
            Err(Problem::draining())
        } else if (head.chunked || head.body > SMALL_BODY) && !self.clients.has_room_for(head.body)
        {
            Err(Problem::too_much())
        } else if is_soon_whole(head, buffered) {
            // Decided when it is whole. A refusal before that would have to close the connection.
            Ok(())
        } else {
            self.lanes.admits(route)
        }
    }

    /// Answers what cannot be read as a request, and reads nothing behind it.
    pub(super) fn refuse(&mut self, key: usize, refusal: Refusal) {
        let problem = Problem::plain(refusal.status, refusal.detail);
        self.clients.refuse(key, problem);
    }

    /// Answers in place of a worker. The loop goes on with the client in its next round, after the
    /// others.
    fn refuse_request(&mut self, key: usize, head: Head, pattern: &'static str, problem: Problem) {
        if let Some(exchange) = self.clients.exchange(key, head, pattern) {
            exchange.give_up(problem);
        }
    }

    /// Hands a whole request to its lane. A drain does not stop one that was admitted before it.
    pub(super) fn submit(&mut self, key: usize, admitted: Admitted, body: &[u8]) {
        let Admitted {
            head,
            route,
            ticket,
            ..
        } = admitted;
        let needs_key = head.writes() && head.idempotency_key.is_none();
        let Some(mut exchange) = self.clients.exchange(key, *head, route.pattern) else {
            return;
        };
        if needs_key {
            match new_key() {
                Some(made) => exchange.set_key(made),
                None => return exchange.give_up(Problem::internal()),
            }
        }
        exchange.hold(ticket);
        let (token, its_route) = (exchange.token().clone(), Arc::clone(&route));
        self.lanes
            .submit(exchange, route, body, self.poll.registry());
        if its_route.lane == Lane::Api {
            self.clients
                .watch(key, token, its_route, self.poll.registry());
        }
    }
}

/// The body is small, and on its way.
fn is_soon_whole(head: &Head, buffered: usize) -> bool {
    let is_small = head.body <= SMALL_BODY && !head.chunked && !head.expects_continue;
    is_small && buffered < head.body
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
