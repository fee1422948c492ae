//! The requests that were sent to the lanes, by number, until a worker takes them; and how many
//! more may be sent.
//!
//! A worker that takes or answers a request wakes the event loop only if requests wait in line, and
//! few are left of those that were sent ahead.

use crate::server::exchange::Exchange;
use crate::server::http::Problem;
use crate::server::inbox::Inbox;
use crate::server::router::{Lane, PerLane, Route};
use crate::sync::unpoison;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// The requests that were handed to the lanes.
pub(super) struct Table {
    inbox: Arc<Inbox>,
    /// Requests that were sent to a lane, and that no worker has taken. Whoever removes one owns
    /// it.
    sent: Mutex<HashMap<u64, Sent>>,
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
    /// The requests that left their places, by class, which the loop has not counted yet: as many
    /// may be sent in addition.
    freed: Mutex<Vec<Option<Arc<str>>>>,
    /// Requests that a worker had, and that nobody needed any more, or not in time.
    served_too_late: AtomicUsize,
    /// The loop is woken for `freed` if fewer than this are coming; 0 while the line is empty.
    refill_below: AtomicUsize,
}

/// The place in a lane of a request that a worker has taken; another request may be sent once this
/// is dropped.
pub(super) struct Place<'t> {
    table: &'t Table,
    lane: Lane,
    class: Option<Arc<str>>,
}

impl Place<'_> {
    /// Notes that the request was served to nobody, or too late.
    pub fn note_lateness(&self) {
        let late = &self.table.counts.of(self.lane).served_too_late;
        late.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.table.counts.of(self.lane).free(self.class.take());
        self.table.ask_for_more(self.lane);
    }
}

impl Counts {
    fn free(&self, class: Option<Arc<str>>) {
        unpoison(self.freed.lock()).push(class);
    }
}

impl Table {
    pub fn new(inbox: Arc<Inbox>) -> Table {
        Table {
            inbox,
            sent: Mutex::default(),
            counts: PerLane::default(),
        }
    }

    fn sent(&self) -> MutexGuard<'_, HashMap<u64, Sent>> {
        unpoison(self.sent.lock())
    }

    /// The number of requests that were sent to a lane, and that no worker has taken yet.
    pub fn coming(&self, lane: Lane) -> Arc<AtomicUsize> {
        Arc::clone(&self.counts.of(lane).coming)
    }

    /// Enters a request that is about to be sent over `connection`.
    pub fn put(&self, number: u64, connection: usize, exchange: Exchange, route: Arc<Route>) {
        let lane = route.lane;
        let sent = Sent {
            connection,
            route,
            exchange: Some(exchange),
        };
        self.sent().insert(number, sent);
        self.counts.of(lane).coming.fetch_add(1, Ordering::SeqCst);
    }

    /// Hands a request to a worker; `None` if it was given up.
    pub fn take(&self, number: u64) -> Option<(Exchange, Arc<Route>, Place<'_>)> {
        let Sent {
            route, exchange, ..
        } = self.sent().remove(&number)?;
        let lane = route.lane;
        self.mark_gone(&route, exchange.is_none());
        self.ask_for_more(lane);
        // One that was given up has left its place already.
        let exchange = exchange?;
        let place = Place {
            table: self,
            lane,
            class: route.share.class.clone(),
        };
        Some((exchange, route, place))
    }

    /// Gives up the requests that were sent over a lost connection: no worker will ever take them.
    pub fn give_up_lost(&self, lane: Lane, connection: usize) {
        let lost =
            |_: &u64, sent: &mut Sent| sent.route.lane == lane && sent.connection == connection;
        let lost: Vec<_> = self.sent().extract_if(lost).map(|(_, sent)| sent).collect();
        for sent in &lost {
            self.mark_gone(&sent.route, sent.exchange.is_none());
        }
        for sent in lost {
            // The others, which were not given up before, have their places back as well.
            if let Some(exchange) = sent.exchange {
                self.counts.of(lane).free(sent.route.share.class.clone());
                exchange.give_up(Problem::lost());
            }
        }
        self.ask_for_more(lane);
    }

    /// Stops counting a request as coming. If it was given up, there is room for another now.
    fn mark_gone(&self, route: &Route, was_given_up: bool) {
        let counts = self.counts.of(route.lane);
        counts.coming.fetch_sub(1, Ordering::SeqCst);
        if was_given_up {
            counts.given_up.fetch_sub(1, Ordering::SeqCst);
            counts.free(route.share.class.clone());
        }
    }

    /// How many requests of a lane were given up, and are still to be read off it.
    pub fn given_up(&self, lane: Lane) -> usize {
        self.counts.of(lane).given_up.load(Ordering::SeqCst)
    }

    /// How many requests wait in a lane for a worker, without those that were given up.
    #[cfg(test)]
    pub fn waiting(&self, lane: Lane) -> usize {
        let counts = self.counts.of(lane);
        let given_up = counts.given_up.load(Ordering::SeqCst);
        let coming = counts.coming.load(Ordering::SeqCst);
        coming.saturating_sub(given_up)
    }

    /// Takes back the requests that are stale.
    pub fn take_stale(&self, is_stale: impl Fn(Lane, &Exchange) -> bool) -> Vec<Exchange> {
        let mut sent = self.sent();
        let stale = sent.values_mut().filter_map(|sent| {
            let lane = sent.route.lane;
            let exchange = sent.exchange.take_if(|e| is_stale(lane, e))?;
            let given_up = &self.counts.of(lane).given_up;
            given_up.fetch_add(1, Ordering::SeqCst);
            Some(exchange)
        });
        stale.collect()
    }

    /// Wakes the loop if it waits for room. Called after every change, while the loop reads the
    /// changes after it has stored `refill_below`. SeqCst on both sides, or the lock of `freed`: at
    /// least one of the two sees the other's store.
    fn ask_for_more(&self, lane: Lane) {
        let counts = self.counts.of(lane);
        let few = counts.coming.load(Ordering::SeqCst) < counts.refill_below.load(Ordering::SeqCst);
        if few && !unpoison(counts.freed.lock()).is_empty() {
            self.inbox.wake();
        }
    }

    /// The classes of the requests that left their places: as many may be sent in addition.
    pub fn take_freed(&self, lane: Lane) -> Vec<Option<Arc<str>>> {
        std::mem::take(&mut *unpoison(self.counts.of(lane).freed.lock()))
    }

    /// How many requests were served to nobody, or too late, since the last call.
    pub fn take_served_too_late(&self, lane: Lane) -> usize {
        let late = &self.counts.of(lane).served_too_late;
        late.swap(0, Ordering::SeqCst)
    }

    /// How many requests that no worker has taken are of this kind.
    pub fn count(&self, is_of_kind: impl Fn(&Exchange) -> bool) -> usize {
        let sent = self.sent();
        let exchanges = sent.values().filter_map(|sent| sent.exchange.as_ref());
        exchanges.filter(|exchange| is_of_kind(exchange)).count()
    }

    /// Sets below how many coming requests the loop is woken for more room.
    pub fn set_refill_below(&self, lane: Lane, coming: usize) {
        let refill_below = &self.counts.of(lane).refill_below;
        refill_below.store(coming, Ordering::SeqCst);
    }

    /// Takes all that no worker has taken.
    pub fn take_all(&self) -> Vec<Exchange> {
        let left = std::mem::take(&mut *self.sent());
        left.into_values()
            .filter_map(|sent| sent.exchange)
            .collect()
    }
}
