//! The connections to one lane, and the line of requests for its workers.
//!
//! A lane is sent one request for each worker, and some ahead, so that a worker that becomes free
//! need not wait for the event loop. The other requests wait in line until half of those sent ahead
//! are taken. Nothing is sent ahead while that gains little and costs something: while the newest
//! in line are served first ([`crate::line_rule`]), since what was sent ahead is served in its
//! order; and while the workers are slow, so that a request of another route need not wait behind
//! those of a slow one ([`crate::class_queue`]). A few connections are enough, since no answer
//! comes back over them.

use super::connection::{Connection, Lost};
use super::worker_wakeup::WorkerWakeup;
use super::workers::{Plan, Workers};
use crate::class_queue::{ClassQueue, Share};
use crate::line_rule::{Departures, Rule, Switch};
use crate::server::exchange::Exchange;
use crate::server::router::Route;
use crate::sync::unpoison;
use log::{info, warn};
use mio::event::Event;
use mio::{Registry, Token};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Pause between two attempts to reopen a connection.
const REOPEN_AGAIN: Duration = Duration::from_millis(100);
/// The most connections to a lane: while one carries a large body, the others go on.
pub const MOST_LANE_CONNECTIONS: usize = 4;
/// The most bytes of all requests that are in line or being sent.
const MOST_BYTES: usize = 64 << 20;

/// A request in line.
pub(super) struct Waiting {
    /// Its number in the table of sent requests.
    pub number: u64,
    pub exchange: Exchange,
    pub route: Arc<Route>,
    /// The request as it is sent.
    pub bytes: Vec<u8>,
}

/// All connections to a lane, and its line.
pub(super) struct Connections {
    /// As many as at the start: a lost one leaves its place empty, so that an index stays good.
    all: Vec<Connection>,
    line: ClassQueue<Waiting>,
    rule: Rule,
    start: Instant,
    /// Changes of the order, which the caller reports, and whether they are news.
    switches: Vec<(Switch, bool)>,
    /// The most requests that wait: in line, and sent ahead.
    queue: usize,
    bytes_in_line: usize,
    ahead: usize,
    /// How many more requests the lane may be sent.
    free: usize,
    /// Wakes the lane's workers.
    pub wakeup: Arc<WorkerWakeup>,
    lane: Arc<Mutex<Restartable>>,
}

/// The lane itself, which is rebuilt when it takes no connections.
struct Restartable {
    plan: Plan,
    workers: Workers,
}

impl Connections {
    /// Starts the lane and opens connections to it, which the caller [installs](Self::install).
    pub fn start(plan: Plan) -> io::Result<(Connections, Vec<UnixStream>)> {
        let workers = plan.start()?;
        let size = plan.size;
        let most = size.workers.min(MOST_LANE_CONNECTIONS);
        let streams: io::Result<_> = (0..most).map(|_| workers.connect()).collect();
        let ahead = size.ahead.min(size.queue);
        let connections = Connections {
            all: (0..most).map(|_| Connection::default()).collect(),
            line: ClassQueue::default(),
            rule: Rule::new(size.adapts),
            start: Instant::now(),
            switches: Vec::new(),
            queue: size.queue,
            bytes_in_line: 0,
            ahead,
            free: size.workers + ahead,
            wakeup: workers.wakeup(),
            lane: Arc::new(Mutex::new(Restartable { plan, workers })),
        };
        Ok((connections, streams?))
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    #[cfg(test)]
    pub fn second_handles(&self) -> Vec<UnixStream> {
        self.all
            .iter()
            .filter_map(Connection::second_handle)
            .collect()
    }

    /// Puts an open connection in its place.
    pub fn install(
        &mut self,
        index: usize,
        stream: UnixStream,
        registry: &Registry,
        token: Token,
    ) -> io::Result<()> {
        self.all[index] = Connection::open(stream, registry, token)?;
        Ok(())
    }

    pub fn is_open(&self, index: usize) -> bool {
        self.all[index].is_open()
    }

    /// Whether there is room for one more request of a route, with `waiting` requests sent ahead.
    fn has_room(&self, share: &Share, waiting: usize) -> bool {
        let unsent: usize = self.all.iter().map(Connection::unsent).sum();
        let is_sent_at_once = self.has_free_worker() && self.line.may_take(share);
        self.bytes_in_line + unsent < MOST_BYTES
            && (is_sent_at_once || self.line.len() + waiting < self.queue)
    }

    /// Whether one more request of a route is taken, though another may be refused for it.
    pub fn admits(&self, share: &Share, waiting: usize) -> bool {
        let newest_first = self.rule.is_newest_first();
        self.has_room(share, waiting) || self.line.can_make_room(share, newest_first)
    }

    /// Makes room in a full line. Returns the requests that are to be refused, and whether there
    /// is room now.
    pub fn make_room(&mut self, share: &Share, waiting: usize) -> (Vec<Exchange>, bool) {
        let mut refused = Vec::new();
        while !self.has_room(share, waiting) {
            let newest_first = self.rule.is_newest_first();
            let Some(out) = self.line.make_room(share, newest_first) else {
                return (refused, false);
            };
            self.bytes_in_line -= out.bytes.len();
            refused.push(out.exchange);
        }
        (refused, true)
    }

    /// How many requests were sent beyond one for each worker, without those that were given up.
    pub fn sent_ahead(&self, given_up: usize) -> usize {
        let sent_ahead = self.ahead.saturating_sub(self.free);
        sent_ahead.saturating_sub(given_up)
    }

    fn has_free_worker(&self) -> bool {
        self.free > self.ahead
    }

    pub fn has_line(&self) -> bool {
        !self.line.is_empty()
    }

    /// How many in line are of a kind.
    pub fn count(&self, is_of_kind: impl Fn(&Exchange) -> bool) -> usize {
        let exchanges = self.line.iter().map(|waiting| &waiting.exchange);
        exchanges.filter(|exchange| is_of_kind(exchange)).count()
    }

    /// How long the line takes at its present rate, with `waiting` requests sent ahead.
    pub fn clears_in(&self, waiting: usize) -> Option<Duration> {
        let rate = self.rule.rate(self.start.elapsed())?;
        Duration::try_from_secs_f64((self.line.len() + waiting) as f64 / rate).ok()
    }

    /// More requests should follow once fewer than this are left of those sent ahead; 0 while the
    /// line is empty.
    pub fn refill_below(&self) -> usize {
        match self.has_line() {
            true if self.sends_ahead() => self.ahead / 2 + 1,
            // As soon as any worker is free.
            true => usize::MAX,
            false => 0,
        }
    }

    fn sends_ahead(&self) -> bool {
        !self.rule.is_newest_first() && !self.wakeup.are_slow()
    }

    pub fn put_in_line(&mut self, waiting: Waiting) {
        self.bytes_in_line += waiting.bytes.len();
        self.line.push(&waiting.route.share.clone(), waiting);
    }

    /// Notes who has left the line.
    pub fn departed(&mut self, departures: Departures) {
        let left = self.line.len();
        let switch = self.rule.departed(self.start.elapsed(), departures, left);
        self.note(switch);
    }

    /// Notes that so many found no room in the line.
    pub fn refused(&mut self, count: usize) {
        if count > 0 {
            let switch = self
                .rule
                .refused(self.start.elapsed(), count, self.line.len());
            self.note(switch);
        }
    }

    fn note(&mut self, switch: Option<Switch>) {
        if let Some(switch) = switch {
            self.switches.push((switch, self.rule.is_news()));
        }
    }

    /// The changes of the order since the last call.
    pub fn take_switches(&mut self) -> Vec<(Switch, bool)> {
        std::mem::take(&mut self.switches)
    }

    /// Takes the next request out of the line, if there is a free worker, and picks its connection:
    /// the first of the least busy ones, whose thread is probably still awake. `fresh` is the
    /// number of a request that has just come, and does not have to wait if a worker is free.
    pub fn next(&mut self, fresh: Option<u64>) -> Option<(usize, Waiting)> {
        if self.line.is_empty() {
            let switch = self.rule.drained(|| self.start.elapsed());
            self.note(switch);
            return None;
        }
        let has_worker = self.has_free_worker();
        if self.free == 0 || !(has_worker || self.sends_ahead()) {
            return None;
        }
        let open = self
            .all
            .iter()
            .enumerate()
            .filter(|(_, connection)| connection.is_open());
        let (index, _) = open.min_by_key(|(_, connection)| connection.unsent())?;
        let mut waiting = self.line.next(self.rule.is_newest_first())?;
        if !(has_worker && fresh == Some(waiting.number)) {
            waiting.exchange.begin_to_wait();
        }
        self.bytes_in_line -= waiting.bytes.len();
        self.free -= 1;
        Some((index, waiting))
    }

    pub fn send(
        &mut self,
        index: usize,
        bytes: &[u8],
        registry: &Registry,
        token: Token,
    ) -> Result<(), Lost> {
        self.all[index].send(bytes, registry, token)
    }

    /// Handles an event of a connection.
    pub fn event(&mut self, index: usize, event: &Event, registry: &Registry) -> Result<(), Lost> {
        self.all[index].event(event, registry)
    }

    /// Counts workers that have become free of requests of these classes, and how many of those
    /// were served to nobody.
    pub fn add_free(&mut self, freed: &[Option<Arc<str>>], late: usize) {
        self.free += freed.len();
        for class in freed {
            self.line.release(class.as_ref());
        }
        self.departed(Departures {
            // One that was late may be about to leave its place.
            all: freed.len().max(late) as u32,
            unserved: late as u32,
        });
    }

    /// Drops a broken connection; its place stays empty until it is reopened.
    pub fn drop_connection(&mut self, index: usize) {
        self.all[index] = Connection::default();
    }

    /// Takes the stale requests out of the line.
    pub fn take_stale(&mut self, is_stale: impl Fn(&Exchange) -> bool) -> Vec<Exchange> {
        let stale = self.line.take_out(|waiting| is_stale(&waiting.exchange));
        let out = stale.into_iter().map(|mut waiting| {
            self.bytes_in_line -= waiting.bytes.len();
            waiting.exchange.begin_to_wait();
            waiting.exchange
        });
        out.collect()
    }

    /// Opens a connection again, on a thread of its own, and rebuilds the lane if it takes none.
    /// `done` gets the connection and the wake-up of the lane that it leads to.
    pub fn reopen(&self, done: impl FnOnce(UnixStream, Arc<WorkerWakeup>) + Send + 'static) {
        let lane = Arc::clone(&self.lane);
        let reopen = move || {
            // Until it succeeds, or the server is gone.
            while Arc::strong_count(&lane) > 1 {
                let mut lane = unpoison(lane.lock());
                let connected = lane.workers.connect().or_else(|e| {
                    warn!("rebuilding lane {}: {e}", lane.plan.name());
                    lane.workers = lane.plan.start()?;
                    lane.workers.connect()
                });
                match connected {
                    Ok(stream) => {
                        info!("reconnected to lane {}", lane.plan.name());
                        return done(stream, lane.workers.wakeup());
                    }
                    Err(e) => {
                        warn!("lane {} cannot be reached: {e}", lane.plan.name());
                        drop(lane);
                        thread::sleep(REOPEN_AGAIN);
                    }
                }
            }
        };
        let spawned = thread::Builder::new()
            .name("millpond-mend".into())
            .spawn(reopen);
        if let Err(e) = spawned {
            warn!("cannot start a thread to reconnect to a lane: {e}");
        }
    }
}
