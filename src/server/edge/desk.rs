//! Where the event loop and the workers meet: what is on its way through a lane, and what has come of it.
//!
//! A worker writes its answer to the client's own socket, as the loop does with a refusal. The loop need not be woken for
//! that: it learns of it when the client asks again, unless something waits for it: more of the answer than the socket
//! takes, a connection to be closed, a client that has sent more already, or a request in line when few are left that were
//! sent ahead.

use super::in_flight::Ticket;
use crate::server::http::{Note, Problem, Response, closing, render};
use crate::server::router::{Lane, PerLane, Route};
use crate::server::shutdown::Phase;
use crate::server::{Seen, Service};
use mio::Waker;
use mio::net::TcpStream;
use std::collections::HashMap;
use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Key and serial number of a client's connection.
pub(super) type ClientKey = (usize, u64);

/// A request on its way. Whoever holds it has to answer it, once; one that is dropped without is answered for.
pub(in crate::server) struct Exchange {
    desk: Arc<Desk>,
    origin: Origin,
    /// Its answer leaves room for another in this lane.
    in_lane: Option<Lane>,
    answered: bool,
}

/// What the loop knows of a request when it hands it on.
pub(super) struct Origin {
    pub client: ClientKey,
    pub socket: Arc<TcpStream>,
    pub attention: Arc<AtomicBool>,
    pub close: bool,
    pub writes: bool,
    pub method: String,
    pub path: String,
    /// Its route's; empty where there is none.
    pub pattern: &'static str,
    pub note: Note,
    /// In flight, until it is answered.
    pub ticket: Option<Ticket>,
}

/// A request that was answered.
pub(super) struct Done {
    pub client: ClientKey,
    /// What the socket did not take.
    pub rest: Vec<u8>,
    pub close: bool,
    /// The client is gone.
    pub failed: bool,
    /// Until the rest is written.
    pub ticket: Option<Ticket>,
}

pub(in crate::server) struct Desk {
    waker: Waker,
    woken: AtomicBool,
    service: Arc<Service>,
    /// Sent to a lane, and not taken by a worker. Who takes a request out has it.
    sent: Mutex<HashMap<u64, Sent>>,
    done: Mutex<Vec<Done>>,
    doors: PerLane<Door>,
}

/// What was sent to a lane.
struct Sent {
    /// The connection that it was sent over.
    link: usize,
    route: Arc<Route>,
    /// None where it was given up; a worker still has to take it from the lane.
    exchange: Option<Exchange>,
}

/// Between the loop and the workers of one lane.
#[derive(Default)]
struct Door {
    /// Requests that were sent, and that no worker has taken.
    coming: Arc<AtomicUsize>,
    /// Those of them that were given up.
    given_up: AtomicUsize,
    /// How many more may be sent than the loop knows of.
    freed: AtomicUsize,
    /// The loop is to be woken for that when fewer are coming; 0 while none are in line.
    refill_below: AtomicUsize,
}

impl Desk {
    pub(super) fn new(waker: Waker, service: Arc<Service>) -> Desk {
        Desk {
            waker,
            woken: AtomicBool::new(false),
            service,
            sent: Mutex::default(),
            done: Mutex::default(),
            doors: PerLane::default(),
        }
    }

    /// Once is enough until the loop has seen it.
    pub(super) fn wake(&self) {
        if self.woken.swap(true, Ordering::SeqCst) {
            return;
        }
        if let Err(e) = self.waker.wake() {
            log::warn!("the edge cannot be woken: {e}");
        }
    }

    /// The loop looks at everything from here on.
    pub(super) fn is_awake(&self) {
        self.woken.store(false, Ordering::SeqCst);
    }

    fn sent(&self) -> MutexGuard<'_, HashMap<u64, Sent>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests that were sent to a lane, and that no worker has taken.
    pub fn coming(&self, lane: Lane) -> Arc<AtomicUsize> {
        Arc::clone(&self.doors.of(lane).coming)
    }

    /// A request is about to be sent over `link`, under this number.
    pub(super) fn put(
        self: &Arc<Self>,
        number: u64,
        link: usize,
        origin: Origin,
        route: Arc<Route>,
    ) {
        let lane = route.lane;
        let exchange = Some(Exchange::new(self, origin, Some(lane)));
        self.sent().insert(
            number,
            Sent {
                link,
                route,
                exchange,
            },
        );
        self.doors.of(lane).coming.fetch_add(1, Ordering::SeqCst);
    }

    /// The worker has it now; nobody has when it was given up.
    pub fn take(&self, number: u64) -> Option<(Exchange, Arc<Route>)> {
        let sent = self.sent().remove(&number)?;
        self.has_gone(&sent);
        self.ask_for_more(sent.route.lane);
        sent.exchange.map(|exchange| (exchange, sent.route))
    }

    /// Those that were sent over a connection that is gone: no worker will ever take them.
    pub(super) fn take_lost(&self, lane: Lane, link: usize) -> Vec<Exchange> {
        let lost = |_: &u64, sent: &mut Sent| sent.route.lane == lane && sent.link == link;
        let lost: Vec<_> = self.sent().extract_if(lost).map(|(_, sent)| sent).collect();
        lost.iter().for_each(|sent| self.has_gone(sent));
        lost.into_iter().filter_map(|sent| sent.exchange).collect()
    }

    /// It comes to no worker any more; one that was given up leaves its room with that.
    fn has_gone(&self, sent: &Sent) {
        let door = self.doors.of(sent.route.lane);
        door.coming.fetch_sub(1, Ordering::SeqCst);
        if sent.exchange.is_none() {
            door.given_up.fetch_sub(1, Ordering::SeqCst);
            door.freed.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Of those that were sent to a lane, and that no worker has taken: how many are waited for.
    pub(super) fn waiting(&self, lane: Lane) -> usize {
        let door = self.doors.of(lane);
        let given_up = door.given_up.load(Ordering::SeqCst);
        let coming = door.coming.load(Ordering::SeqCst);
        coming.saturating_sub(given_up)
    }

    /// Those that nobody waits for any more.
    pub(super) fn take_stale(&self, is_stale: impl Fn(Lane, &Origin) -> bool) -> Vec<Exchange> {
        let mut sent = self.sent();
        let stale = sent.values_mut().filter_map(|sent| {
            let lane = sent.route.lane;
            let mut exchange = sent.exchange.take_if(|e| is_stale(lane, &e.origin))?;
            exchange.in_lane = None;
            let given_up = &self.doors.of(lane).given_up;
            given_up.fetch_add(1, Ordering::SeqCst);
            Some(exchange)
        });
        stale.collect()
    }

    /// Asked after every change; the loop looks at the changes after it has said what it waits for. So one of both sees the
    /// other.
    fn ask_for_more(&self, lane: Lane) {
        let door = self.doors.of(lane);
        let few = door.coming.load(Ordering::SeqCst) < door.refill_below.load(Ordering::SeqCst);
        if few && door.freed.load(Ordering::SeqCst) > 0 {
            self.wake();
        }
    }

    /// How many more may be sent than before.
    pub(super) fn take_freed(&self, lane: Lane) -> usize {
        self.doors.of(lane).freed.swap(0, Ordering::SeqCst)
    }

    /// When to wake the loop for more room.
    pub(super) fn refill_below(&self, lane: Lane, coming: usize) {
        self.doors
            .of(lane)
            .refill_below
            .store(coming, Ordering::SeqCst);
    }

    /// Nobody is left to answer.
    pub(super) fn clear(&self) {
        let left = std::mem::take(&mut *self.sent());
        drop(left);
    }

    pub(super) fn take_done(&self) -> Vec<Done> {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut done)
    }
}

impl Exchange {
    pub(super) fn new(desk: &Arc<Desk>, origin: Origin, in_lane: Option<Lane>) -> Exchange {
        Exchange {
            desk: Arc::clone(desk),
            origin,
            in_lane,
            answered: false,
        }
    }

    pub fn note(&self) -> &Note {
        &self.origin.note
    }

    pub fn note_mut(&mut self) -> &mut Note {
        &mut self.origin.note
    }

    /// Sends the answer.
    pub fn answer(mut self, answer: Vec<u8>) {
        self.send(answer);
    }

    /// Answers in the place of a handler.
    pub fn give_up(mut self, problem: Problem) {
        self.send_problem(problem);
    }

    fn send_problem(&mut self, problem: Problem) {
        let note = &self.origin.note;
        let response = problem.into_response(Some(&note.id));
        self.send_instead(response);
    }

    /// Answers in the place of a handler, with what is no problem.
    pub fn answer_instead(mut self, response: Response) {
        self.send_instead(response);
    }

    fn send_instead(&mut self, mut response: Response) {
        let note = &self.origin.note;
        response.headers.extend(note.for_pages());
        self.desk.service.note(&Seen {
            method: &self.origin.method,
            path: &self.origin.path,
            route: self.origin.pattern,
            status: response.status,
            took: note.arrived.elapsed(),
            id: &note.id,
            client: note.client,
        });
        let answer = render(&response, &note.id, self.origin.method == "HEAD");
        self.send(answer);
    }

    fn send(&mut self, mut answer: Vec<u8>) {
        self.answered = true;
        let close = self.origin.close || self.desk.service.phase.get() > Phase::Running;
        if close {
            answer = closing(answer);
        }
        let mut written = 0;
        let mut failed = false;
        while written < answer.len() && !failed {
            match (&*self.origin.socket).write(&answer[written..]) {
                Ok(more) if more > 0 => written += more,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                _ => failed = true,
            }
        }
        let rest = answer.split_off(written);
        let urgent = close || failed || !rest.is_empty();
        let done = Done {
            client: self.origin.client,
            close,
            failed,
            ticket: self.origin.ticket.take().filter(|_| !rest.is_empty()),
            rest,
        };
        let desk = &self.desk;
        if let Some(lane) = self.in_lane {
            let freed = &desk.doors.of(lane).freed;
            freed.fetch_add(1, Ordering::SeqCst);
        }
        desk.done
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(done);
        if let Some(lane) = self.in_lane {
            desk.ask_for_more(lane);
        }
        // Asked after it was put there; the loop looks there after it has said that it waits. So one of both sees the other.
        if urgent || self.origin.attention.load(Ordering::SeqCst) {
            desk.wake();
        }
    }
}

impl Drop for Exchange {
    /// A worker that had it is gone: it may have done what was asked, or be at it.
    fn drop(&mut self) {
        if !self.answered {
            let problem = match self.origin.writes {
                true => Problem::outcome_unknown()
                    .with("idempotencyKey", std::mem::take(&mut self.origin.note.key)),
                false => Problem::internal(),
            };
            self.send_problem(problem);
        }
    }
}
