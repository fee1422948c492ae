//! The lanes as the event loop sees them: takes whole requests, sends more when workers become
//! free, and reopens connections that were lost.

use super::connection::Lost;
use super::connections::{Connections, Waiting};
use super::table::Table;
use super::wire::to_bytes;
use super::worker_wakeup::{SLOW, WorkerWakeup};
use super::workers::{Plan, Size};
use crate::server::exchange::Exchange;
use crate::server::http::Problem;
use crate::server::inbox::Inbox;
use crate::server::router::{Lane, PerLane, Route};
use crate::temporary::Temporary;
use log::warn;
use mio::event::Event;
use mio::{Registry, Token};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

const BOTH: [Lane; 2] = [Lane::Health, Lane::Api];

pub struct Lanes {
    connections: PerLane<Connections>,
    table: Arc<Table>,
    inbox: Arc<Inbox>,
    /// The token of the first connection; the others follow, health before api.
    first_token: usize,
    /// The number of the last request in the table.
    last_number: u64,
    /// A worker that became free before it could see the line does not wake the loop.
    look_again: bool,
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
    /// Starts the lanes and connects to them. `dir` is for their sockets.
    pub fn start(
        sizes: PerLane<Size>,
        inbox: Arc<Inbox>,
        dir: &Arc<Temporary>,
        registry: &Registry,
        first_token: usize,
    ) -> io::Result<Lanes> {
        let table = Arc::new(Table::new(Arc::clone(&inbox)));
        let start = |lane, size| {
            let (table, dir) = (Arc::clone(&table), Arc::clone(dir));
            Connections::start(Plan {
                lane,
                size,
                table,
                dir,
            })
        };
        let (health, health_streams) = start(Lane::Health, sizes.health)?;
        let (api, api_streams) = start(Lane::Api, sizes.api)?;
        let mut lanes = Lanes {
            connections: PerLane { health, api },
            table,
            inbox,
            first_token,
            last_number: 0,
            look_again: false,
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

    /// How many requests were sent to a lane that no worker has taken.
    #[cfg(test)]
    pub fn waiting(&self) -> impl Fn(Lane) -> usize + Send + use<> {
        let table = Arc::clone(&self.table);
        move |lane| table.waiting(lane)
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
    ///
    /// # Errors
    /// What to answer instead.
    pub fn admits(&self, lane: Lane) -> Result<(), Problem> {
        let sent_ahead = self.table.waiting(lane);
        match self.connections.of(lane).has_room(sent_ahead) {
            true => Ok(()),
            false => Err(Problem::unavailable(
                "overloaded",
                "too many requests are in line",
            )),
        }
    }

    /// Takes a whole request: it is sent once there is a worker for it, and answered in any case.
    pub fn submit(
        &mut self,
        exchange: Exchange,
        route: Arc<Route>,
        body: &[u8],
        registry: &Registry,
    ) {
        let lane = route.lane;
        // The line may have filled up while the body came.
        if let Err(problem) = self.admits(lane) {
            return exchange.give_up(problem);
        }
        self.last_number += 1;
        let number = self.last_number;
        let bytes = to_bytes(exchange.method(), exchange.target(), number, body);
        self.connections.of_mut(lane).put_in_line(Waiting {
            number,
            exchange,
            route,
            bytes,
        });
        self.send_next(lane, registry);
        self.look_again |= self.connections.of(lane).has_line();
    }

    /// How long the loop may sleep before it must [refill](Self::refill); `None` is for good.
    pub fn may_sleep(&self) -> Option<Duration> {
        let are_coming = |lane| self.connections.of(lane).wakeup.are_coming();
        match () {
            () if self.look_again => Some(Duration::ZERO),
            () if BOTH.into_iter().any(are_coming) => Some(SLOW),
            () => None,
        }
    }

    /// Sends the requests in line, as far as there are workers for them.
    fn send_next(&mut self, lane: Lane, registry: &Registry) {
        while let Some((index, waiting)) = self.connections.of_mut(lane).next() {
            let Waiting {
                number,
                exchange,
                route,
                bytes,
            } = waiting;
            self.table.put(number, index, exchange, route);
            let token = self.token_of(lane, index);
            let connections = self.connections.of_mut(lane);
            if let Err(Lost) = connections.send(index, &bytes, registry, token) {
                self.lost(lane, index);
            }
        }
        let connections = self.connections.of(lane);
        connections.wakeup.call();
        let refill_below = connections.refill_below();
        self.table.set_refill_below(lane, refill_below);
    }

    /// Sends more requests if workers have become free. Wakes parked workers if others are slow.
    pub fn refill(&mut self, registry: &Registry) {
        self.look_again = false;
        for lane in BOTH {
            let freed = self.table.take_freed(lane);
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
        self.table.give_up_lost(lane, index);
    }

    fn reopen(&mut self, lane: Lane, index: usize) {
        let (done, inbox) = (self.reopened.0.clone(), Arc::clone(&self.inbox));
        self.connections.of_mut(lane).reopen(move |stream, wakeup| {
            // Fails if the server has stopped.
            let _ = done.send(Reopened {
                lane,
                index,
                stream,
                wakeup,
            });
            inbox.wake();
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

    /// Gives up the stale requests that no worker has taken yet, sent or in line.
    pub fn give_up_stale(&mut self, is_stale: impl Fn(Lane, &Exchange) -> bool) {
        let mut stale = self.table.take_stale(&is_stale);
        for lane in BOTH {
            let connections = self.connections.of_mut(lane);
            stale.extend(connections.take_stale(|exchange| is_stale(lane, exchange)));
        }
        for exchange in stale {
            exchange.give_up(Problem::no_worker());
        }
    }
}

impl Drop for Lanes {
    /// Answers what no worker has taken. A worker that is still busy outlives this, and with it the
    /// table.
    fn drop(&mut self) {
        let mut left = self.table.take_all();
        for lane in BOTH {
            left.extend(self.connections.of_mut(lane).take_stale(|_| true));
        }
        for exchange in left {
            exchange.give_up(Problem::draining());
        }
    }
}
