//! Opens server connections: chooses the host, the address and the time limit, and retries.
//!
//! While the database is down, one thread tries about every 25 ms and the others wait for it (see
//! `gate`). So the database is not flooded with attempts, and is found at once when it is back. An
//! attempt that gets no answer is overtaken by another (see `hedge`).

use super::gate::{Gate, REMIND_EVERY, Turn};
use super::hedge::{self, Attempt, Attempts, Opens, Purpose};
use super::names::Names;
use super::opened::Opened;
use super::pong::Reading;
use super::session::Session;
use super::shared::Shared;
use super::target::Target;
use super::wire::Place;
use crate::config::{Database, ServerHost, SessionAttrs};
use crate::error::{Chain, OpenError};
use crate::metrics::CloseReason;
#[cfg(feature = "tls")]
use crate::tls::ClientCache;
use log::{debug, warn};
use postgres::config::{Host, LoadBalanceHosts};
use postgres::error::SqlState;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Pause between two attempts while the database is down.
const RETRY_EVERY: Duration = Duration::from_millis(25);
/// Pause if the server is up but has no room, and if `on_connect` panicked.
const RETRY_LATER: Duration = Duration::from_millis(250);
/// Pause if the next attempt will most likely fail as well.
const RETRY_REFUSED: Duration = Duration::from_secs(3);
/// For this long after the first refusal the pause is shorter: a password may be changed in two
/// places, one after the other.
const SOON_AFTER: Duration = Duration::from_secs(5);
const RETRY_SOON: Duration = Duration::from_millis(500);
/// Limit for warming a connection up: this, or so many times as long as opening it took. A server
/// that accepts a login and then does not answer must not hold up threads that come meanwhile.
const WARMING: Duration = Duration::from_millis(250);
const WARMING_RATIO: u32 = 5;
/// How long no thread is asked for after the system granted none.
const NO_THREAD_FOR: Duration = Duration::from_secs(1);
/// How long connections are not warmed up after one was lost in that.
const COLD_FOR: Duration = Duration::from_secs(60);
/// Pause between a hedged attempt without an answer and the next.
const HEDGE_AGAIN: Duration = Duration::from_millis(25);

/// Returns whether the probe keeps its session.
pub(crate) type OnReading = dyn Fn(&Reading) -> bool + Send + Sync;
pub(crate) type Upkeep =
    dyn Fn(Option<&mut Session>, Instant) -> Result<(), postgres::Error> + Send + Sync;

/// Opens the sessions of one pool.
pub(crate) struct Opener {
    pub shared: Arc<Shared>,
    pub gate: Gate,
    /// Connections that are being opened at this moment.
    pub attempts: Attempts<Session>,
    pub opened: Opened,
    /// Called when the database refuses every connection, so that no thread waits for a connection
    /// to be opened.
    pub on_refused: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Called with the probe's session after each probe, and without one if it has failed: for the
    /// fleet's upkeep.
    pub upkeep: OnceLock<Box<Upkeep>>,
    /// Called with the result of each probe. While it is set, the probe asks for the server's
    /// position in the write-ahead log as well.
    pub on_reading: OnceLock<Box<OnReading>>,
    /// Whether the pool has as many connections as it may have. One that is being opened then takes
    /// the place of another, and no thread waits for it.
    pub is_full: OnceLock<Box<dyn Fn() -> bool + Send + Sync>>,
    /// Called when the server has no room for another connection.
    pub on_no_room: OnceLock<Box<dyn Fn() + Send + Sync>>,
    pub has_connected: AtomicBool,
    /// The connections that are being warmed up.
    pub warming: AtomicUsize,
    /// When one was last lost in that, in nanoseconds as counted by `Shared::now`; 0 = never.
    lost_warming_at: AtomicU64,
    pub(super) target: Target,
    #[cfg(feature = "tls")]
    pub(super) tls_clients: ClientCache,
    last_good_host: AtomicUsize,
    /// A standby refused a write: if there are several hosts, the primary is wanted.
    wants_primary: AtomicBool,
    /// When a connection last led to a primary, in nanoseconds as counted by `Shared::now`; 0 =
    /// never.
    pub(super) primary_at: AtomicU64,
    names: Names,
    /// The numbers of connections, which no two pools of one have in common.
    pub(super) next_id: Arc<AtomicU64>,
    /// When the system last granted no thread, and when that was last logged, in the same unit.
    no_thread_at: AtomicU64,
    warned_of_thread_at: AtomicU64,
    pub(super) warned_of_timeout: AtomicBool,
    pub(super) warned_of_incarnation: AtomicBool,
    pub(super) warned_of_risks: AtomicBool,
    pub(super) warned_of_plain: AtomicBool,
}

impl Opener {
    pub fn new(shared: Arc<Shared>, target: Target, next_id: Arc<AtomicU64>) -> Opener {
        Opener {
            shared,
            gate: Gate::default(),
            attempts: Attempts::default(),
            opened: Opened::default(),
            on_refused: OnceLock::new(),
            upkeep: OnceLock::new(),
            on_reading: OnceLock::new(),
            is_full: OnceLock::new(),
            on_no_room: OnceLock::new(),
            has_connected: AtomicBool::new(false),
            warming: AtomicUsize::new(0),
            lost_warming_at: AtomicU64::new(0),
            target,
            #[cfg(feature = "tls")]
            tls_clients: ClientCache::default(),
            last_good_host: AtomicUsize::new(0),
            wants_primary: AtomicBool::new(false),
            primary_at: AtomicU64::new(0),
            names: Names::default(),
            next_id,
            no_thread_at: AtomicU64::new(0),
            warned_of_thread_at: AtomicU64::new(0),
            warned_of_timeout: AtomicBool::new(false),
            warned_of_incarnation: AtomicBool::new(false),
            warned_of_risks: AtomicBool::new(false),
            warned_of_plain: AtomicBool::new(false),
        }
    }

    /// Returns whether a session opened now may lead to another server than one that was opened to
    /// a standby. It may if several hosts are configured, or if the only address has led to a
    /// primary recently, as the address of a proxy in front of several servers does.
    pub fn may_lead_elsewhere(&self) -> bool {
        const OF_LATE: Duration = Duration::from_secs(60);
        let primary = self.primary_at.load(Ordering::Relaxed);
        let since = self.shared.now().saturating_sub(primary);
        self.target.known().servers().len() > 1
            || (primary > 0 && u128::from(since) < OF_LATE.as_nanos())
    }

    /// Retires the sessions of this generation, whose server takes no writes, and looks for a
    /// primary.
    pub fn leave_server(&self, generation: u64) {
        self.shared.retire_generation(generation);
        self.look_for_primary();
    }

    /// Makes new connections use a standby only if no host is a primary.
    pub fn look_for_primary(&self) {
        self.wants_primary.store(true, Ordering::Relaxed);
    }

    /// Returns whether no connection could be opened for so long that no thread should wait for
    /// one, and none of the open ones works.
    pub fn failing_fast(&self) -> bool {
        let Some(since) = self.gate.down_since() else {
            return false;
        };
        let away = since.elapsed();
        let limit = self.shared.config.fail_fast_after;
        let silent = self.shared.silent_for();
        away >= limit && silent >= limit.min(away)
    }

    /// Returns whether this moment, in nanoseconds as counted by `Shared::now`, was so short a while
    /// ago; 0 = never.
    fn is_within(&self, while_ago: Duration, moment: &AtomicU64) -> bool {
        let at = moment.load(Ordering::Relaxed);
        let since = self.shared.now().saturating_sub(at);
        at > 0 && u128::from(since) < while_ago.as_nanos()
    }

    /// Returns whether the system granted no thread a short while ago.
    pub fn is_short_of_threads(&self) -> bool {
        self.is_within(NO_THREAD_FOR, &self.no_thread_at)
    }

    pub fn note_no_thread(&self, error: &std::io::Error) {
        let now = self.shared.now();
        self.no_thread_at.store(now, Ordering::Relaxed);
        if !self.is_within(REMIND_EVERY, &self.warned_of_thread_at) {
            self.warned_of_thread_at.store(now, Ordering::Relaxed);
            warn!(
                "cannot start a thread to open connections, opening one after the other: {error}"
            );
        }
    }

    /// Warms a new session up, as long as no thread `is_waiting` for it. If one was lost in that a
    /// short while ago, the next ones go to work as they are.
    pub fn warm_up(&self, session: &mut Session, is_waiting: impl Fn() -> bool) {
        if self.is_within(COLD_FOR, &self.lost_warming_at) || session.retire().is_some() {
            return;
        }
        let limit = WARMING.max(WARMING_RATIO * session.took());
        self.warming.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = session.warm_up(Instant::now() + limit, is_waiting) {
            debug!(
                "a connection was lost as it was warmed up: {}",
                Chain(&error)
            );
            session.close_for(CloseReason::Broken);
            self.lost_warming_at
                .store(self.shared.now(), Ordering::Relaxed);
        }
        self.warming.fetch_sub(1, Ordering::Relaxed);
    }

    /// Opens a connection. Retries until that succeeds, the pool is closing, or the deadline has
    /// passed. While the database is down, one thread at a time tries.
    pub fn open_when_possible(
        self: &Arc<Self>,
        deadline: Option<Instant>,
        purpose: Purpose,
    ) -> Result<Session, OpenError> {
        while let Some(turn) = self.gate.turn(&self.shared.closing, deadline) {
            if let Ok(session) = self.open_in_turn(turn, deadline, purpose) {
                return Ok(session);
            }
        }
        Err(OpenError::Closed)
    }

    /// Makes one attempt to open a connection, in this thread's turn.
    pub fn open_in_turn(
        self: &Arc<Self>,
        turn: Turn<'_>,
        deadline: Option<Instant>,
        purpose: Purpose,
    ) -> Result<Session, Arc<OpenError>> {
        if purpose == Purpose::Use
            && let Some(mut session) = self.attempts.take_spare()
        {
            session.announce();
            return Ok(session);
        }
        let started = Instant::now();
        let limit = started + self.shared.config.effective_connect_timeout();
        let attempt = hedge::begin(self, purpose);
        let until = deadline.map_or(limit, |at| at.min(limit));
        let result = self.open(until, Duration::MAX, purpose, Some(&attempt));
        let result = result.or_else(|e| attempt.take_found().ok_or(e));
        drop(attempt);
        let error = match result {
            Ok(mut session) => {
                self.note_opened();
                session.announce();
                return Ok(session);
            }
            // The close has cut this attempt, so its error says nothing about the database.
            Err(_) if self.shared.closing.load(Ordering::SeqCst) => {
                return Err(Arc::new(OpenError::Closed));
            }
            Err(e) => Arc::new(e),
        };
        let code = error.sqlstate().map_or("", SqlState::code);
        self.shared
            .metrics
            .connect_failures
            .with_label_values(&[code])
            .inc();
        self.shared.observe(|o| o.open_failed(&error));
        let pause = match () {
            () if error.is_refusal() => match self.gate.down_since() {
                Some(since) if since.elapsed() > SOON_AFTER => RETRY_REFUSED,
                _ => RETRY_SOON,
            },
            () if error.is_permanent() || error.is_for_want_of_room() => RETRY_LATER,
            () => RETRY_EVERY.mul_f64(0.8 + 0.4 * fastrand::f64()),
        };
        self.gate.note_failed(Arc::clone(&error), started, pause);
        drop(turn);
        if error.is_refusal()
            && let Some(tell) = self.on_refused.get()
        {
            tell();
        }
        if error.meant() == Some(&SqlState::TOO_MANY_CONNECTIONS)
            && let Some(tell) = self.on_no_room.get()
        {
            tell();
        }
        Err(error)
    }

    /// Opens a connection to the first host that accepts one and fits what is asked for, beginning
    /// with the last host that did. Each address may take `each`. If the password is refused and
    /// there is another one by now, that is tried as well.
    pub fn open(
        self: &Arc<Self>,
        deadline: Instant,
        each: Duration,
        purpose: Purpose,
        attempt: Option<&Attempt<Session>>,
    ) -> Result<Session, OpenError> {
        let open = || self.open_to(&self.target.database(), deadline, each, purpose, attempt);
        match open() {
            Err(e) if e.is_wrong_password() && self.target.has_changed(deadline) => open(),
            other => other,
        }
    }

    fn open_to(
        self: &Arc<Self>,
        database: &Arc<Database>,
        deadline: Instant,
        each: Duration,
        purpose: Purpose,
        attempt: Option<&Attempt<Session>>,
    ) -> Result<Session, OpenError> {
        let hosts = database.servers();
        let wants_primary = hosts.len() > 1 && self.wants_primary.load(Ordering::Relaxed);
        let asked = match database.session_attrs() {
            SessionAttrs::Any if wants_primary => SessionAttrs::Primary,
            asked => asked,
        };
        let open = |at: usize, share| {
            self.open_host((database, &hosts[at]), share, each, purpose, attempt)
        };
        // A server that was passed over is better than none: a standby can be read from, and may be
        // promoted.
        let settles = asked != database.session_attrs() || asked == SessionAttrs::PreferStandby;
        let order = self.order(database);
        let mut last_error = OpenError::Closed;
        let mut passed_over = None;
        for (nth, &at) in order.iter().enumerate() {
            // Each host gets a share of the remaining time: one that accepts the connection and
            // then stays silent must not use up the time of the others.
            let share = share_of(deadline, order.len() - nth);
            match open(at, share) {
                Ok(mut session) => {
                    let backend = session.backend();
                    if asked.fits(backend.standby, backend.read_only) {
                        self.last_good_host.store(at, Ordering::Relaxed);
                        return Ok(session);
                    }
                    last_error = OpenError::Unfit {
                        asked: asked.as_str(),
                        standby: backend.standby,
                    };
                    session.close_for(CloseReason::FailedOver);
                    passed_over.get_or_insert(at);
                }
                Err(e) => last_error = e,
            }
        }
        match passed_over.filter(|_| settles) {
            Some(at) => open(at, deadline),
            None => Err(last_error),
        }
    }

    /// Returns the hosts in the order in which they are tried.
    fn order(&self, database: &Database) -> Vec<usize> {
        let count = database.servers().len();
        let mut order: Vec<_> = (0..count).collect();
        match database.config().get_load_balance_hosts() {
            LoadBalanceHosts::Random => fastrand::shuffle(&mut order),
            _ => order.rotate_left(self.last_good_host.load(Ordering::Relaxed) % count.max(1)),
        }
        order
    }

    /// Opens a connection to one host, at the first of its addresses that accepts one.
    fn open_host(
        self: &Arc<Self>,
        (database, server): (&Arc<Database>, &ServerHost),
        deadline: Instant,
        each: Duration,
        purpose: Purpose,
        attempt: Option<&Attempt<Session>>,
    ) -> Result<Session, OpenError> {
        let mut last_error = OpenError::Closed;
        let left = || deadline.saturating_duration_since(Instant::now());
        let places = self.places(database, server, left().min(each))?;
        for (nth, place) in places.iter().enumerate() {
            let share = left() / (places.len() - nth) as u32;
            match self.open_at((database, server), place, share.min(each), purpose, attempt) {
                Ok(session) => return Ok(session),
                Err(e) => last_error = e,
            }
        }
        Err(last_error)
    }

    /// Returns the places of a host, whose name is looked up each time: it may lead elsewhere than
    /// before. If the driver were given all addresses, it would try each of them within one
    /// connect, with the whole time limit for each.
    fn places(
        &self,
        database: &Database,
        server: &ServerHost,
        limit: Duration,
    ) -> Result<Vec<Place>, OpenError> {
        let port = server.port;
        let found = match (&server.host, server.address) {
            #[cfg(unix)]
            (Host::Unix(directory), _) => {
                let path = directory.join(format!(".s.PGSQL.{port}"));
                return Ok(vec![Place::Unix(path)]);
            }
            (Host::Tcp(_), Some(address)) => vec![address],
            (Host::Tcp(name), None) => {
                let looked_up = self.names.addresses(name, limit);
                let mut found = looked_up.map_err(OpenError::Resolve)?;
                found.dedup();
                if database.config().get_load_balance_hosts() == LoadBalanceHosts::Random {
                    fastrand::shuffle(&mut found);
                }
                found
            }
        };
        let place = |address| Place::Tcp(SocketAddr::new(address, port));
        Ok(found.into_iter().map(place).collect())
    }
}

/// Returns when the next of `count` equal shares of the time that remains ends.
fn share_of(deadline: Instant, count: usize) -> Instant {
    let now = Instant::now();
    now + deadline.saturating_duration_since(now) / count as u32
}

impl Opens for Opener {
    type Opened = Session;

    fn attempts(&self) -> &Attempts<Session> {
        &self.attempts
    }

    fn is_closing(&self) -> bool {
        self.shared.closing.load(Ordering::SeqCst)
    }

    fn open_beside(self: &Arc<Self>, patience: Duration, purpose: Purpose) -> Option<Session> {
        let is_full = || self.is_full.get().is_some_and(|is_full| is_full());
        if purpose == Purpose::Use && is_full() {
            std::thread::sleep(patience);
            return None;
        }
        let until = Instant::now() + self.shared.config.effective_connect_timeout();
        let attempt = self.attempts.begin_beside(purpose);
        let opened = self.open(until, patience, purpose, Some(&attempt));
        drop(attempt);
        match opened {
            Ok(session) => Some(session),
            Err(e) => {
                debug!("a hedged attempt failed: {}", Chain(&e));
                std::thread::sleep(HEDGE_AGAIN);
                None
            }
        }
    }

    fn note_opened(&self) {
        self.has_connected.store(true, Ordering::SeqCst);
        self.gate.note_opened();
    }
}
