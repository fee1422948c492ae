//! Where the event loop and the workers meet: what is on its way through a lane, and what has come of it.
//!
//! A worker writes its answer to the client's own socket. The loop need not be woken for that: it learns of it when the
//! client asks again, unless something waits for it: more of the answer than the socket takes, a connection to be closed, a
//! client that has sent more already, or a request in line.

use super::in_flight::Ticket;
use crate::server::http::{Problem, closing, render};
use crate::server::router::Lane;
use crate::server::shutdown::Phase;
use crate::server::{Seen, Service};
use mio::Waker;
use mio::net::TcpStream;
use std::collections::HashMap;
use std::io::{ErrorKind, Write};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Key and serial number of a client's connection.
pub(super) type ClientKey = (usize, u64);

/// A request on its way. Whoever holds it has to answer it, once; one that is dropped without is answered for.
pub(in crate::server) struct Exchange {
    desk: Arc<Desk>,
    /// The connection to the lane that it was sent over; none where it was still in line.
    link: Option<usize>,
    origin: Origin,
    answered: bool,
}

/// What the loop knows of a request when it hands it on.
pub(super) struct Origin {
    pub client: ClientKey,
    pub lane: Lane,
    pub socket: Arc<TcpStream>,
    pub attention: Arc<AtomicBool>,
    pub close: bool,
    pub writes: bool,
    pub method: String,
    pub path: String,
    pub id: String,
    pub asker: IpAddr,
    pub arrived: Instant,
    pub key: String,
    /// In flight, until it is answered.
    pub ticket: Option<Ticket>,
}

/// A request that was answered.
pub(super) struct Done {
    pub client: ClientKey,
    /// It leaves room for another in this lane.
    pub frees: Option<Lane>,
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
    sent: Mutex<HashMap<u64, Exchange>>,
    done: Mutex<Vec<Done>>,
    /// Requests that wait for a worker to be free.
    in_line: AtomicUsize,
}

impl Desk {
    pub(super) fn new(waker: Waker, service: Arc<Service>) -> Desk {
        Desk {
            waker,
            woken: AtomicBool::new(false),
            service,
            sent: Mutex::default(),
            done: Mutex::default(),
            in_line: AtomicUsize::new(0),
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

    fn sent(&self) -> MutexGuard<'_, HashMap<u64, Exchange>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request is about to be sent over `link`, under this number.
    pub(super) fn put(self: &Arc<Self>, number: u64, link: usize, origin: Origin) {
        let exchange = Exchange::new(self, Some(link), origin);
        self.sent().insert(number, exchange);
    }

    /// The worker has it now; nobody has when it was given up.
    pub fn take(&self, number: u64) -> Option<Exchange> {
        self.sent().remove(&number)
    }

    /// Those that were sent over a connection that is gone: no worker will ever take them.
    pub(super) fn take_lost(&self, lane: Lane, link: usize) -> Vec<Exchange> {
        let lost = |_: &u64, e: &mut Exchange| e.origin.lane == lane && e.link == Some(link);
        self.sent().extract_if(lost).map(|(_, e)| e).collect()
    }

    /// Sent to a lane, and with no worker yet.
    #[cfg(test)]
    pub(super) fn on_their_way(&self) -> usize {
        self.sent().len()
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

    pub(super) fn set_in_line(&self, requests: usize) {
        self.in_line.store(requests, Ordering::SeqCst);
    }
}

impl Exchange {
    pub(super) fn new(desk: &Arc<Desk>, link: Option<usize>, origin: Origin) -> Exchange {
        Exchange {
            desk: Arc::clone(desk),
            link,
            origin,
            answered: false,
        }
    }

    /// Sends the answer.
    pub fn answer(mut self, answer: Vec<u8>) {
        self.send(answer);
    }

    /// Answers that it was lost before a worker had it.
    pub fn give_up(mut self, problem: Problem) {
        self.send_problem(problem);
    }

    fn send_problem(&mut self, problem: Problem) {
        let response = problem.into_response(Some(&self.origin.id));
        self.desk.service.note(&Seen {
            method: &self.origin.method,
            path: &self.origin.path,
            route: "",
            status: response.status,
            took: self.origin.arrived.elapsed(),
            id: &self.origin.id,
            client: self.origin.asker,
        });
        self.send(render(
            &response,
            &self.origin.id,
            self.origin.method == "HEAD",
        ));
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
            frees: self.link.map(|_| self.origin.lane),
            close,
            failed,
            ticket: self.origin.ticket.take().filter(|_| !rest.is_empty()),
            rest,
        };
        let desk = &self.desk;
        desk.done
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(done);
        // Asked after it was put there; the loop looks there after it has said that it waits. So one of both sees the other.
        let waited_for =
            self.origin.attention.load(Ordering::SeqCst) || desk.in_line.load(Ordering::SeqCst) > 0;
        if urgent || waited_for {
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
                    .with("idempotencyKey", std::mem::take(&mut self.origin.key)),
                false => Problem::internal(),
            };
            self.send_problem(problem);
        }
    }
}
