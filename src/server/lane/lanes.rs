//! The lanes as the event loop sees them: takes whole requests, sends more when workers become
//! free, and reopens connections that were lost.

use super::connection::Lost;
use super::connections::{Connections, Waiting};
use super::table::Table;
use super::wire::to_bytes;
use super::worker_wakeup::{SLOW, WorkerWakeup};
use super::workers::{Plan, Size};
use crate::line_rule::{Departures, Switch};
use crate::server::exchange::Exchange;
use crate::server::http::Problem;
use crate::server::inbox::Inbox;
use crate::server::router::{Lane, PerLane, Route};
use crate::temporary::Temporary;
use log::{debug, info, warn};
use mio::event::Event;
use mio::{Registry, Token};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

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

    /// Whether a lane takes one more request of a route.
    ///
    /// # Errors
    /// What to answer instead.
    pub fn admits(&mut self, route: &Route) -> Result<(), Problem> {
        let given_up = self.table.given_up(route.lane);
        let connections = self.connections.of_mut(route.lane);
        let sent_ahead = connections.sent_ahead(given_up);
        if connections.admits(&route.share, sent_ahead) {
            return Ok(());
        }
        connections.refused(1);
        if route.lane == Lane::Api {
            let metrics = self.inbox.service.pool.metrics();
            metrics.line_wait_of("api", "refused", 0.0);
        }
        Err(Problem::line_full().retry_after(connections.clears_in(sent_ahead)))
    }

    /// Makes room for a request of a route, if need be by refusing others.
    fn make_room(&mut self, route: &Route) -> Result<(), Problem> {
        let given_up = self.table.given_up(route.lane);
        let connections = self.connections.of_mut(route.lane);
        let sent_ahead = connections.sent_ahead(given_up);
        let (refused, has_room) = connections.make_room(&route.share, sent_ahead);
        connections.refused(refused.len());
        let clears_in = connections.clears_in(sent_ahead);
        for mut exchange in refused {
            exchange.begin_to_wait();
            exchange.end_wait("refused");
            exchange.give_up(Problem::line_full().retry_after(clears_in));
        }
        match has_room {
            true => Ok(()),
            false => self.admits(route),
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
        if let Err(problem) = self.make_room(&route) {
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
        self.send_next(lane, Some(number), registry);
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

    /// Sends the requests in line, as far as there are workers for them. `fresh` is the number of
    /// one that has just come.
    fn send_next(&mut self, lane: Lane, fresh: Option<u64>, registry: &Registry) {
        while let Some((index, waiting)) = self.connections.of_mut(lane).next(fresh) {
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
            // Read first: a worker notes that it was late before it frees its place.
            let late = self.table.take_served_too_late(lane);
            let freed = self.table.take_freed(lane);
            self.connections.of_mut(lane).add_free(&freed, late);
            self.send_next(lane, None, registry);
            self.report_order(lane);
        }
    }

    /// Tells of changes of a line's order.
    fn report_order(&mut self, lane: Lane) {
        for (switch, is_news) in self.connections.of_mut(lane).take_switches() {
            let newest_first = matches!(switch, Switch::NewestFirst(..));
            if lane == Lane::Api {
                self.inbox.service.note_order(newest_first);
            }
            match is_news {
                true => info!("line for a worker, lane {lane:?}: {switch}"),
                false => debug!("line for a worker, lane {lane:?}: {switch}"),
            }
        }
    }

    /// How many requests of a lane, of this kind, wait for a worker.
    pub fn waiting_of(&self, lane: Lane, is_of_kind: impl Fn(&Exchange) -> bool) -> usize {
        let sent_ahead = self.table.count(&is_of_kind);
        self.connections.of(lane).count(is_of_kind) + sent_ahead
    }

    /// Ends the requests that no worker has taken yet, and that nobody waits for.
    pub fn abandon(&mut self, is_abandoned: impl Fn(&Exchange) -> bool) {
        for exchange in self.take_waiting(|_, exchange| is_abandoned(exchange)) {
            exchange.abandon();
        }
    }

    /// Notes requests of the api lane whose clients have gone without an answer, wherever they are.
    pub fn note_unserved(&mut self, count: usize) {
        let connections = self.connections.of_mut(Lane::Api);
        connections.departed(Departures::unserved(count));
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
                Ok(()) => self.send_next(lane, None, registry),
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

    /// Refuses the requests of the api lane that no worker has taken in time.
    pub fn give_up_late(&mut self, now: Instant) {
        let is_late =
            |lane, exchange: &Exchange| lane == Lane::Api && now >= exchange.queue_deadline();
        let late = self.take_waiting(is_late);
        let given_up = self.table.given_up(Lane::Api);
        let connections = self.connections.of_mut(Lane::Api);
        let sent_ahead = connections.sent_ahead(given_up);
        connections.departed(Departures::unserved(late.len()));
        let clears_in = connections.clears_in(sent_ahead);
        for exchange in late {
            exchange.end_wait("timeout");
            exchange.give_up(Problem::no_worker().retry_after(clears_in));
        }
    }

    /// Takes back requests that no worker has taken yet, sent or in line.
    fn take_waiting(&mut self, is_wanted: impl Fn(Lane, &Exchange) -> bool) -> Vec<Exchange> {
        let mut taken = self.table.take_stale(&is_wanted);
        for exchange in &mut taken {
            exchange.begin_to_wait();
        }
        for lane in BOTH {
            let connections = self.connections.of_mut(lane);
            taken.extend(connections.take_stale(|exchange| is_wanted(lane, exchange)));
        }
        taken
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
