//! The table of requests in flight, where the event loop and the workers meet.
//!
//! A worker writes its answer straight to the client's socket, as the loop does with a refusal.
//! That alone does not wake the loop, which finds the answer in the table when the client asks
//! again. The loop is woken only if it has something to do at once:
//!
//! - the socket did not take the whole answer,
//! - the connection is to be closed,
//! - the client has sent more already,
//! - requests wait in line, and few are left that were sent ahead.

use super::in_flight::{InFlight, Ticket};
use crate::server::http::{Problem, Response};
use crate::server::lane::RequestMeta;
use crate::server::render::{closing, render};
use crate::server::router::{Lane, PerLane, Route};
use crate::server::service::{AccessEntry, Service};
use crate::server::shutdown::Phase;
use crate::sync::unpoison;
use mio::Waker;
use mio::net::TcpStream;
use std::collections::HashMap;
use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Key and serial number of a client's connection.
pub(super) type ClientKey = (usize, u64);

/// What the event loop's thread shares with the server's handle.
pub(super) struct Shared {
    pub dispatch: Arc<Dispatch>,
    pub over: AtomicBool,
    pub in_flight: PerLane<Arc<InFlight>>,
}

/// The duty to answer a request once. If it is dropped unanswered, the client gets a 500.
pub struct Exchange {
    dispatch: Arc<Dispatch>,
    pending: PendingRequest,
    /// The lane that has room for another request once this is answered.
    in_lane: Option<Lane>,
    answered: bool,
}

/// A request that is not answered yet, as the event loop knows it.
pub(super) struct PendingRequest {
    pub client: ClientKey,
    pub socket: Arc<TcpStream>,
    pub attention: Arc<AtomicBool>,
    pub close: bool,
    pub writes: bool,
    pub method: String,
    pub path: String,
    /// The route's pattern; empty if no route matched.
    pub pattern: &'static str,
    pub meta: RequestMeta,
    /// Counts the request as in flight until it is answered.
    pub ticket: Option<Ticket>,
}

/// An answered request.
pub(super) struct Done {
    pub client: ClientKey,
    /// The part of the answer that the socket did not take.
    pub rest: Vec<u8>,
    pub close: bool,
    /// The client is gone.
    pub failed: bool,
    /// Counts the request as in flight until the rest is written.
    pub ticket: Option<Ticket>,
}

/// The requests that were handed to the lanes, and their results.
pub struct Dispatch {
    waker: Waker,
    woken: AtomicBool,
    service: Arc<Service>,
    /// Requests that were sent to a lane, and that no worker has taken. Whoever removes one owns
    /// it.
    sent: Mutex<HashMap<u64, Sent>>,
    done: Mutex<Vec<Done>>,
    counts: PerLane<Counts>,
}

/// A request that was sent to a lane.
struct Sent {
    /// The index of the connection that it was sent over.
    connection: usize,
    route: Arc<Route>,
    /// `None` once it was given up; a worker still has to read it off the lane.
    exchange: Option<Exchange>,
}

/// What the loop and the workers of one lane count together.
#[derive(Default)]
struct Counts {
    /// Requests that were sent, and that no worker has taken yet.
    coming: Arc<AtomicUsize>,
    /// Requests among `coming` that were given up.
    given_up: AtomicUsize,
    /// Requests that may be sent in addition, which the loop has not counted yet.
    freed: AtomicUsize,
    /// The loop is woken for `freed` if fewer than this are coming; 0 while the line is empty.
    refill_below: AtomicUsize,
}

impl Dispatch {
    pub(super) fn new(waker: Waker, service: Arc<Service>) -> Dispatch {
        Dispatch {
            waker,
            woken: AtomicBool::new(false),
            service,
            sent: Mutex::default(),
            done: Mutex::default(),
            counts: PerLane::default(),
        }
    }

    /// Wakes the loop, unless a wake-up is pending already.
    pub(super) fn wake(&self) {
        if self.woken.swap(true, Ordering::SeqCst) {
            return;
        }
        if let Err(e) = self.waker.wake() {
            log::warn!("cannot wake the event loop: {e}");
        }
    }

    /// The loop has woken up: from here on it looks at everything, and later changes wake it again.
    pub(super) fn mark_awake(&self) {
        self.woken.store(false, Ordering::SeqCst);
    }

    fn sent(&self) -> MutexGuard<'_, HashMap<u64, Sent>> {
        unpoison(self.sent.lock())
    }

    /// The number of requests that were sent to a lane, and that no worker has taken yet.
    pub fn coming(&self, lane: Lane) -> Arc<AtomicUsize> {
        Arc::clone(&self.counts.of(lane).coming)
    }

    /// Enters a request that is about to be sent over `connection`.
    pub(super) fn put(
        self: &Arc<Self>,
        number: u64,
        connection: usize,
        pending: PendingRequest,
        route: Arc<Route>,
    ) {
        let lane = route.lane;
        let exchange = Some(Exchange::new(self, pending, Some(lane)));
        self.sent().insert(
            number,
            Sent {
                connection,
                route,
                exchange,
            },
        );
        self.counts.of(lane).coming.fetch_add(1, Ordering::SeqCst);
    }

    /// Hands a request to a worker; `None` if it was given up.
    pub fn take(&self, number: u64) -> Option<(Exchange, Arc<Route>)> {
        let sent = self.sent().remove(&number)?;
        self.mark_gone(&sent);
        self.ask_for_more(sent.route.lane);
        sent.exchange.map(|exchange| (exchange, sent.route))
    }

    /// Removes the requests that were sent over a lost connection: no worker will ever take them.
    pub(super) fn take_lost(&self, lane: Lane, connection: usize) -> Vec<Exchange> {
        let lost =
            |_: &u64, sent: &mut Sent| sent.route.lane == lane && sent.connection == connection;
        let lost: Vec<_> = self.sent().extract_if(lost).map(|(_, sent)| sent).collect();
        lost.iter().for_each(|sent| self.mark_gone(sent));
        lost.into_iter().filter_map(|sent| sent.exchange).collect()
    }

    /// Stops counting a request as coming. If it was given up, there is room for another now.
    fn mark_gone(&self, sent: &Sent) {
        let counts = self.counts.of(sent.route.lane);
        counts.coming.fetch_sub(1, Ordering::SeqCst);
        if sent.exchange.is_none() {
            counts.given_up.fetch_sub(1, Ordering::SeqCst);
            counts.freed.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// How many requests wait in a lane for a worker, without those that were given up.
    pub(super) fn waiting(&self, lane: Lane) -> usize {
        let counts = self.counts.of(lane);
        let given_up = counts.given_up.load(Ordering::SeqCst);
        let coming = counts.coming.load(Ordering::SeqCst);
        coming.saturating_sub(given_up)
    }

    /// Gives up the requests that are stale.
    pub(super) fn take_stale(
        &self,
        is_stale: impl Fn(Lane, &PendingRequest) -> bool,
    ) -> Vec<Exchange> {
        let mut sent = self.sent();
        let stale = sent.values_mut().filter_map(|sent| {
            let lane = sent.route.lane;
            let mut exchange = sent.exchange.take_if(|e| is_stale(lane, &e.pending))?;
            exchange.in_lane = None;
            let given_up = &self.counts.of(lane).given_up;
            given_up.fetch_add(1, Ordering::SeqCst);
            Some(exchange)
        });
        stale.collect()
    }

    /// Wakes the loop if it waits for room. Called after every change, while the loop reads the
    /// changes after it has stored `refill_below`. SeqCst on both sides: at least one of the two
    /// sees the other's store.
    fn ask_for_more(&self, lane: Lane) {
        let counts = self.counts.of(lane);
        let few = counts.coming.load(Ordering::SeqCst) < counts.refill_below.load(Ordering::SeqCst);
        if few && counts.freed.load(Ordering::SeqCst) > 0 {
            self.wake();
        }
    }

    /// How many requests may be sent in addition.
    pub(super) fn take_freed(&self, lane: Lane) -> usize {
        self.counts.of(lane).freed.swap(0, Ordering::SeqCst)
    }

    /// Sets below how many coming requests the loop is woken for more room.
    pub(super) fn set_refill_below(&self, lane: Lane, coming: usize) {
        self.counts
            .of(lane)
            .refill_below
            .store(coming, Ordering::SeqCst);
    }

    /// Answers what is left, which no worker will take.
    pub(super) fn clear(&self) {
        let left = std::mem::take(&mut *self.sent());
        drop(left);
    }

    pub(super) fn take_done(&self) -> Vec<Done> {
        let mut done = unpoison(self.done.lock());
        std::mem::take(&mut done)
    }
}

impl Exchange {
    pub(super) fn new(
        dispatch: &Arc<Dispatch>,
        pending: PendingRequest,
        in_lane: Option<Lane>,
    ) -> Exchange {
        Exchange {
            dispatch: Arc::clone(dispatch),
            pending,
            in_lane,
            answered: false,
        }
    }

    pub fn meta(&self) -> &RequestMeta {
        &self.pending.meta
    }

    pub fn meta_mut(&mut self) -> &mut RequestMeta {
        &mut self.pending.meta
    }

    /// Sends the answer.
    pub fn answer(mut self, answer: Vec<u8>) {
        self.send(answer);
    }

    /// Answers with a problem, in place of the handler.
    pub fn give_up(mut self, problem: Problem) {
        self.send_problem(problem);
    }

    fn send_problem(&mut self, problem: Problem) {
        let meta = &self.pending.meta;
        let response = problem.into_response(Some(&meta.id));
        self.send_instead(response);
    }

    /// Answers with a response, in place of the handler.
    pub fn answer_instead(mut self, response: Response) {
        self.send_instead(response);
    }

    fn send_instead(&mut self, mut response: Response) {
        let meta = &self.pending.meta;
        response.headers.extend(meta.for_pages.iter().cloned());
        self.dispatch.service.record(&AccessEntry {
            method: &self.pending.method,
            path: &self.pending.path,
            route: self.pending.pattern,
            status: response.status,
            took: meta.arrived.elapsed(),
            id: &meta.id,
            client: meta.client,
        });
        let answer = render(&response, &meta.id, self.pending.method == "HEAD");
        self.send(answer);
    }

    fn send(&mut self, mut answer: Vec<u8>) {
        self.answered = true;
        let close = self.pending.close || self.dispatch.service.phase.get() > Phase::Running;
        if close {
            answer = closing(answer);
        }
        let mut written = 0;
        let mut failed = false;
        while written < answer.len() && !failed {
            match (&*self.pending.socket).write(&answer[written..]) {
                Ok(more) if more > 0 => written += more,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                _ => failed = true,
            }
        }
        let rest = answer.split_off(written);
        let urgent = close || failed || !rest.is_empty();
        let done = Done {
            client: self.pending.client,
            close,
            failed,
            ticket: self.pending.ticket.take().filter(|_| !rest.is_empty()),
            rest,
        };
        let dispatch = &self.dispatch;
        if let Some(lane) = self.in_lane {
            let freed = &dispatch.counts.of(lane).freed;
            freed.fetch_add(1, Ordering::SeqCst);
        }
        unpoison(dispatch.done.lock()).push(done);
        if let Some(lane) = self.in_lane {
            dispatch.ask_for_more(lane);
        }
        // Read after `done` was changed, while the loop reads `done` after it has stored
        // `attention`. SeqCst on both sides: at least one of the two sees the other's store.
        if urgent || self.pending.attention.load(Ordering::SeqCst) {
            dispatch.wake();
        }
    }
}

impl Drop for Exchange {
    /// The worker panicked: it may have done what was asked.
    fn drop(&mut self) {
        if !self.answered {
            let problem = match self.pending.writes {
                true => Problem::outcome_unknown()
                    .with("idempotencyKey", std::mem::take(&mut self.pending.meta.key)),
                false => Problem::internal(),
            };
            self.send_problem(problem);
        }
    }
}
