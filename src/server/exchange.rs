//! A request between its client and its answer, whoever answers it: a worker, or the edge itself.
//!
//! The answer is written straight to the client's socket. That alone does not wake the event loop,
//! which finds it in its [`Inbox`] when the client asks again. The loop is woken only if it has
//! something to do at once:
//!
//! - the socket did not take the whole answer,
//! - the connection is to be closed,
//! - the client has sent more already.

use super::http::{Problem, Response};
use super::in_flight::Ticket;
use super::inbox::{ClientKey, Done, Inbox};
use super::render::{closing, render};
use super::reply::Reply;
use super::request::Request;
use super::router::Route;
use super::service::AccessEntry;
use super::shutdown::Phase;
use crate::metrics::AbandonedStage;
use crate::token::Token;
use crate::traceparent::Traceparent;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

/// How a request is recorded whose client has gone before there was an answer. It is the number
/// that nginx records, and that its users look for; no client ever sees it.
const CLIENT_GONE: u16 = 499;

/// The duty to answer a request once. If it is dropped unanswered, the client gets a 500.
pub(super) struct Exchange {
    inbox: Arc<Inbox>,
    pending: PendingRequest,
    answered: bool,
}

/// A request that is not answered yet: its head, and where its answer goes.
pub(super) struct PendingRequest {
    pub client: ClientKey,
    pub reply: Arc<Reply>,
    /// Is fired when nobody waits for the answer any more.
    pub token: Token,
    /// The connection ends behind the answer.
    pub close: bool,
    pub writes: bool,
    pub method: String,
    /// Path and query.
    pub target: String,
    /// The route's pattern; empty if no route matched.
    pub pattern: &'static str,
    pub arrived: Instant,
    /// When it must have been answered.
    pub deadline: Instant,
    /// When a worker must have taken it.
    pub queue_deadline: Instant,
    /// It has waited for a worker.
    pub has_waited: bool,
    /// The client's address, or the one that a trusted proxy names.
    pub address: IpAddr,
    pub id: String,
    pub traceparent: Option<Traceparent>,
    pub headers: Vec<(String, String)>,
    /// The client's `Idempotency-Key`, or a generated one if a write brings none; else empty.
    pub key: String,
    pub key_was_made: bool,
    /// The headers that let another site's page read the answer.
    pub for_pages: Vec<(&'static str, String)>,
    /// Counts the request as in flight until it is answered.
    pub ticket: Option<Ticket>,
}

impl PendingRequest {
    fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }
}

impl Exchange {
    pub fn new(inbox: &Arc<Inbox>, pending: PendingRequest) -> Exchange {
        Exchange {
            inbox: Arc::clone(inbox),
            pending,
            answered: false,
        }
    }

    pub fn client(&self) -> ClientKey {
        self.pending.client
    }

    /// When it must have been answered.
    pub fn deadline(&self) -> Instant {
        self.pending.deadline
    }

    /// When a worker must have taken it.
    pub fn queue_deadline(&self) -> Instant {
        self.pending.queue_deadline
    }

    /// Nobody waits for the answer any more.
    pub fn is_abandoned(&self) -> bool {
        self.pending.token.is_fired()
    }

    pub fn token(&self) -> &Token {
        &self.pending.token
    }

    /// Notes that no worker is free for it.
    pub fn begin_to_wait(&mut self) {
        self.pending.has_waited = true;
    }

    /// Notes how its wait for a worker ended, if it had to wait.
    pub fn end_wait(&self, outcome: &str) {
        if self.pending.has_waited {
            let waited = self.pending.arrived.elapsed().as_secs_f64();
            let metrics = self.inbox.service.pool.metrics();
            metrics.line_wait_of("api", outcome, waited);
        }
    }

    pub fn method(&self) -> &str {
        &self.pending.method
    }

    /// Path and query.
    pub fn target(&self) -> &str {
        &self.pending.target
    }

    /// Sets the key of a write that brings none.
    pub fn set_key(&mut self, made: String) {
        self.pending.key = made;
        self.pending.key_was_made = true;
    }

    /// Keeps the ticket until the whole answer is written.
    pub fn hold(&mut self, ticket: Ticket) {
        self.pending.ticket = Some(ticket);
    }

    /// The request as its route sees it, once: it takes the headers along.
    pub fn request(&mut self, body: Vec<u8>, route: &Route) -> Request {
        let pending = &mut self.pending;
        let (path, query) = match pending.target.split_once('?') {
            Some((path, query)) => (path, query),
            None => (&*pending.target, ""),
        };
        Request {
            method: pending.method.clone(),
            // The edge has checked that they can be decoded.
            params: route.params(path).unwrap_or_default(),
            path: path.to_owned(),
            query: query.to_owned(),
            headers: std::mem::take(&mut pending.headers),
            body,
            client: pending.address,
            id: pending.id.clone(),
            fallback_key: match pending.key_was_made {
                true => pending.key.clone(),
                false => String::new(),
            },
            deadline: pending.deadline,
            token: pending.token.clone(),
            share: route.share.clone(),
            traceparent: pending.traceparent,
        }
    }

    /// Sends the answer, and notes it in the log and the metrics.
    pub fn answer(mut self, response: Response) {
        self.send(response);
    }

    /// Ends a request that was not begun, and whose client has gone.
    pub fn abandon(self) {
        self.end_wait("abandoned");
        self.note_not_begun();
        self.give_up(Problem::not_begun());
    }

    /// Counts a request that was abandoned before it began.
    pub fn note_not_begun(&self) {
        if self.pending.token.note_end() {
            let stage = AbandonedStage::Queued.as_str();
            let metrics = self.inbox.service.pool.metrics();
            metrics.abandoned.with_label_values(&[stage]).inc();
        }
    }

    /// Answers with a problem.
    pub fn give_up(mut self, problem: Problem) {
        self.send_problem(problem);
    }

    fn send_problem(&mut self, problem: Problem) {
        let response = problem.into_response(Some(&self.pending.id));
        self.send(response);
    }

    fn send(&mut self, mut response: Response) {
        self.answered = true;
        let pending = &mut self.pending;
        response.headers.append(&mut pending.for_pages);
        let service = &self.inbox.service;
        let is_for_nobody = pending.reply.is_given_up() && pending.token.has_ended_a_call();
        service.record(&AccessEntry {
            method: &pending.method,
            path: pending.path(),
            route: pending.pattern,
            status: match is_for_nobody {
                true => CLIENT_GONE,
                false => response.status,
            },
            took: pending.arrived.elapsed(),
            id: &pending.id,
            client: pending.address,
            traceparent: pending.traceparent,
        });
        let mut answer = render(&response, &pending.id, pending.method == "HEAD");
        let close = pending.close || service.phase.get() > Phase::Running;
        if close {
            answer = closing(answer);
        }
        let sent = pending.reply.send(answer);
        let failed = sent.is_err();
        let rest = sent.unwrap_or_default();
        let urgent = close || failed || !rest.is_empty();
        self.inbox.put(Done {
            client: pending.client,
            close,
            failed,
            ticket: pending.ticket.take().filter(|_| !rest.is_empty()),
            rest,
        });
        // Read after the inbox was changed, while the loop reads the inbox after it has stored
        // `attention`. SeqCst on both sides: at least one of the two sees the other's store.
        if urgent || pending.reply.wants_attention() {
            self.inbox.wake();
        }
    }
}

impl Drop for Exchange {
    /// The worker panicked: it may have done what was asked.
    fn drop(&mut self) {
        if !self.answered {
            let problem = match self.pending.writes {
                true => Problem::outcome_unknown()
                    .with("idempotencyKey", std::mem::take(&mut self.pending.key)),
                false => Problem::internal(),
            };
            self.send_problem(problem);
        }
    }
}
