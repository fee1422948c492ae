//! The lanes as the event loop sees them: hands requests on, sends more when workers become free,
//! and reopens connections that were lost.

use super::dispatch::{Dispatch, Exchange, PendingRequest};
use super::lane_connections::{LaneConnections, Lost, Waiting};
use crate::server::http::Problem;
use crate::server::lane::{Plan, WorkerWakeup};
use crate::server::router::{Lane, PerLane, Route};
use log::warn;
use mio::event::Event;
use mio::{Registry, Token};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

const BOTH: [Lane; 2] = [Lane::Health, Lane::Api];

pub(super) struct Lanes {
    connections: PerLane<LaneConnections>,
    dispatch: Arc<Dispatch>,
    /// The token of the first connection; the others follow, health before api.
    first_token: usize,
    last_number: u64,
    reopened: (Sender<Reopened>, Receiver<Reopened>),
}

/// A connection that was opened again, and its place.
struct Reopened {
    lane: Lane,
    index: usize,
    stream: UnixStream,
    /// Of the lane that the connection leads to.
    wakeup: Arc<WorkerWakeup>,
}

impl Lanes {
    /// Starts the lanes (health, api) and connects to them. At most `queue` requests wait for the
    /// api lane.
    pub fn start(
        (health, api): (Plan, Plan),
        queue: usize,
        dispatch: Arc<Dispatch>,
        registry: &Registry,
        first_token: usize,
    ) -> io::Result<Lanes> {
        // Requests never wait for a health worker for long, so all of them may be sent ahead.
        let line = health.ahead;
        let (health, health_streams) = LaneConnections::start(health, line)?;
        let (api, api_streams) = LaneConnections::start(api, queue)?;
        let mut lanes = Lanes {
            connections: PerLane { health, api },
            dispatch,
            first_token,
            last_number: 0,
            reopened: mpsc::channel(),
        };
        for (lane, streams) in [(Lane::Health, health_streams), (Lane::Api, api_streams)] {
            for (index, stream) in streams.into_iter().enumerate() {
                lanes.install(lane, index, stream, registry)?;
            }
        }
        Ok(lanes)
    }

    /// The edge's ends of the connections to the api lane.
    #[cfg(test)]
    pub fn api_connections(&self) -> Vec<UnixStream> {
        self.connections.api.second_handles()
    }

    /// The first token behind those of the connections.
    pub fn end_token(&self) -> usize {
        self.first_token + self.connections.health.len() + self.connections.api.len()
    }

    fn token_of(&self, lane: Lane, index: usize) -> Token {
        let before = match lane {
            Lane::Health => 0,
            Lane::Api => self.connections.health.len(),
        };
        Token(self.first_token + before + index)
    }

    fn place_of(&self, token: usize) -> (Lane, usize) {
        let index = token - self.first_token;
        match index.checked_sub(self.connections.health.len()) {
            None => (Lane::Health, index),
            Some(index) => (Lane::Api, index),
        }
    }

    /// Whether a lane takes one more request.
    pub fn has_room(&self, lane: Lane) -> bool {
        let sent_ahead = self.dispatch.waiting(lane);
        self.connections.of(lane).has_room(sent_ahead)
    }

    /// Whether requests wait in line for a lane.
    pub fn has_line(&self, lane: Lane) -> bool {
        self.connections.of(lane).has_line()
    }

    /// Whether requests were sent that no worker has taken yet.
    pub fn are_coming(&self) -> bool {
        let are_coming = |lane| self.connections.of(lane).wakeup.are_coming();
        BOTH.into_iter().any(are_coming)
    }

    /// The number of the next request in the dispatch table.
    pub fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Puts a request in line, and sends what there are workers for.
    pub fn hand_on(
        &mut self,
        number: u64,
        pending: PendingRequest,
        route: Arc<Route>,
        bytes: Vec<u8>,
        registry: &Registry,
    ) {
        let lane = route.lane;
        self.connections.of_mut(lane).queue(Waiting {
            number,
            pending,
            route,
            bytes,
        });
        self.send_next(lane, registry);
    }

    /// Sends the requests in line, as far as there are workers for them.
    fn send_next(&mut self, lane: Lane, registry: &Registry) {
        while let Some((index, waiting)) = self.connections.of_mut(lane).next() {
            let Waiting {
                number,
                pending,
                route,
                bytes,
            } = waiting;
            self.dispatch.put(number, index, pending, route);
            let token = self.token_of(lane, index);
            let connections = self.connections.of_mut(lane);
            if let Err(Lost) = connections.send(index, &bytes, registry, token) {
                self.lost(lane, index);
            }
        }
        let connections = self.connections.of(lane);
        connections.wakeup.call();
        let refill_below = connections.refill_below();
        self.dispatch.set_refill_below(lane, refill_below);
    }

    /// Sends more requests if workers have become free. Wakes parked workers if others are slow.
    pub fn refill(&mut self, registry: &Registry) {
        for lane in BOTH {
            let freed = self.dispatch.take_freed(lane);
            self.connections.of_mut(lane).add_free(freed);
            self.send_next(lane, registry);
        }
    }

    /// Handles an event of a connection.
    pub fn event(&mut self, event: &Event, registry: &Registry) {
        let (lane, index) = self.place_of(event.token().0);
        let connections = self.connections.of_mut(lane);
        if let Err(Lost) = connections.event(index, event, registry) {
            self.lost(lane, index);
        }
    }

    /// A connection is lost, and with it the requests that no worker had taken from it.
    fn lost(&mut self, lane: Lane, index: usize) {
        if !self.connections.of(lane).is_open(index) {
            return;
        }
        warn!("a connection to the {lane:?} lane was lost");
        self.connections.of_mut(lane).drop_connection(index);
        self.reopen(lane, index);
        for exchange in self.dispatch.take_lost(lane, index) {
            exchange.give_up(Problem::lost());
        }
    }

    fn reopen(&mut self, lane: Lane, index: usize) {
        let (done, dispatch) = (self.reopened.0.clone(), Arc::clone(&self.dispatch));
        self.connections.of_mut(lane).reopen(move |stream, wakeup| {
            // Fails if the server has stopped.
            let _ = done.send(Reopened {
                lane,
                index,
                stream,
                wakeup,
            });
            dispatch.wake();
        });
    }

    /// Puts the connections in place that were reopened since the last call.
    pub fn install_reopened(&mut self, registry: &Registry) {
        while let Ok(reopened) = self.reopened.1.try_recv() {
            let (lane, index) = (reopened.lane, reopened.index);
            // The lane was rebuilt: the connections to the old one lead nowhere.
            if !Arc::ptr_eq(&self.connections.of(lane).wakeup, &reopened.wakeup) {
                self.connections.of_mut(lane).wakeup = reopened.wakeup;
                for other in (0..self.connections.of(lane).len()).filter(|other| *other != index) {
                    self.lost(lane, other);
                }
            }
            match self.install(lane, index, reopened.stream, registry) {
                Ok(()) => self.send_next(lane, registry),
                Err(e) => {
                    warn!("cannot watch a reopened connection to a lane: {e}");
                    self.reopen(lane, index);
                }
            }
        }
    }

    fn install(
        &mut self,
        lane: Lane,
        index: usize,
        stream: UnixStream,
        registry: &Registry,
    ) -> io::Result<()> {
        let token = self.token_of(lane, index);
        let connections = self.connections.of_mut(lane);
        connections.install(index, stream, registry, token)
    }

    /// Takes the stale requests back that no worker has taken yet, sent or in line.
    pub fn take_stale(
        &mut self,
        is_stale: impl Fn(Lane, &PendingRequest) -> bool,
    ) -> Vec<Exchange> {
        let mut stale = self.dispatch.take_stale(&is_stale);
        for lane in BOTH {
            let connections = self.connections.of_mut(lane);
            let in_line = connections.take_stale(|pending| is_stale(lane, pending));
            let exchanges = in_line.into_iter();
            stale.extend(exchanges.map(|pending| Exchange::new(&self.dispatch, pending, None)));
        }
        stale
    }
}
