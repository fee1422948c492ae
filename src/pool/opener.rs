//! Opens server connections: chooses the host, the address, the settings and the time limit, and
//! retries.
//!
//! While the database is down, one thread tries about every 25 ms and the others wait for it (see
//! `gate`). So the database is not flooded with attempts, and is found at once when it is back. An
//! attempt that gets no answer is overtaken by another (see `hedge`).

use super::backend::Backend;
use super::demand::Demand;
use super::gate::{Gate, Turn};
use super::hedge::{self, Attempt, Attempts, Opens, Purpose};
use super::names::Names;
use super::pooler::{Seen, refuses_options};
use super::session::Session;
use super::shared::Shared;
use super::startup::is_tcp;
use super::watchdog::Plan;
use super::wire::Connector;
use crate::error::{Chain, OpenError, is_out_of_files};
use crate::metrics::CloseReason;
use crate::sync::caught;
use log::{debug, info};
use postgres::NoTls;
use postgres::config::{Host, LoadBalanceHosts};
use postgres::error::SqlState;
use r2d2::ManageConnection;
use r2d2_postgres::PostgresConnectionManager;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Pause between two attempts while the database is down.
const RETRY_EVERY: Duration = Duration::from_millis(25);
/// Pause if the server is up but has no room, and if `on_connect` panicked.
const RETRY_LATER: Duration = Duration::from_millis(250);
/// Pause if the next attempt will most likely fail as well.
const RETRY_REFUSED: Duration = Duration::from_secs(3);
/// Pause between a hedged attempt without an answer and the next.
const HEDGE_AGAIN: Duration = Duration::from_millis(25);

/// Opens the sessions of one pool.
pub(crate) struct Opener {
    pub shared: Arc<Shared>,
    pub gate: Gate,
    /// Connections that are being opened at this moment.
    pub attempts: Attempts<Session>,
    pub demand: Demand,
    /// Called when the database refuses every connection, so that no thread waits for a connection
    /// to be opened.
    pub on_refused: OnceLock<Box<dyn Fn() + Send + Sync>>,
    pub has_connected: AtomicBool,
    hosts: Vec<postgres::Config>,
    last_good_host: AtomicUsize,
    /// A standby refused a write: if there are several hosts, the primary is wanted.
    wants_primary: AtomicBool,
    /// When a connection last led to a primary, in nanoseconds as counted by `Shared::now`; 0 =
    /// never.
    primary_at: AtomicU64,
    names: Names,
    next_id: AtomicU64,
    pub(super) warned_of_timeout: AtomicBool,
    pub(super) warned_of_incarnation: AtomicBool,
    pub(super) warned_of_risks: AtomicBool,
}

impl Opener {
    pub fn new(shared: Arc<Shared>, hosts: Vec<postgres::Config>) -> Opener {
        Opener {
            shared,
            gate: Gate::default(),
            attempts: Attempts::default(),
            demand: Demand::default(),
            on_refused: OnceLock::new(),
            has_connected: AtomicBool::new(false),
            hosts,
            last_good_host: AtomicUsize::new(0),
            wants_primary: AtomicBool::new(false),
            primary_at: AtomicU64::new(0),
            names: Names::default(),
            next_id: AtomicU64::new(1),
            warned_of_timeout: AtomicBool::new(false),
            warned_of_incarnation: AtomicBool::new(false),
            warned_of_risks: AtomicBool::new(false),
        }
    }

    /// Returns whether a session opened now may lead to another server than one that was opened to
    /// a standby. It may if several hosts are configured, or if the only address has led to a
    /// primary recently, as the address of a proxy in front of several servers does.
    pub fn may_lead_elsewhere(&self) -> bool {
        const OF_LATE: Duration = Duration::from_secs(60);
        let primary = self.primary_at.load(Ordering::Relaxed);
        let since = self.shared.now().saturating_sub(primary);
        self.hosts.len() > 1 || (primary > 0 && u128::from(since) < OF_LATE.as_nanos())
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
        let limit = started + self.shared.config.connection_timeout;
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
            () if error.is_refusal() => RETRY_REFUSED,
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
        Err(error)
    }

    /// Opens a connection to the first host that accepts one, beginning with the last host that
    /// did. Each address may take `each`.
    pub fn open(
        self: &Arc<Self>,
        deadline: Instant,
        each: Duration,
        purpose: Purpose,
        attempt: Option<&Attempt<Session>>,
    ) -> Result<Session, OpenError> {
        let first = match self
            .hosts
            .first()
            .map(postgres::Config::get_load_balance_hosts)
        {
            Some(LoadBalanceHosts::Random) => fastrand::usize(..self.hosts.len()),
            _ => self.last_good_host.load(Ordering::Relaxed),
        };
        let count = self.hosts.len();
        let mut last_error = OpenError::Closed;
        let wants_primary = count > 1 && self.wants_primary.load(Ordering::Relaxed);
        let mut standby = None;
        for nth in 0..count {
            let at = (first + nth) % count;
            // Each host gets a share of the remaining time: one that accepts the connection and
            // then stays silent must not use up the time of the others.
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / (count - nth) as u32;
            match self.open_host(
                &self.hosts[at],
                Instant::now() + share,
                each,
                purpose,
                attempt,
            ) {
                Ok(mut session) if wants_primary && session.backend().standby => {
                    session.close_for(CloseReason::FailedOver);
                    standby.get_or_insert(at);
                }
                Ok(session) => {
                    self.last_good_host.store(at, Ordering::Relaxed);
                    return Ok(session);
                }
                Err(e) => last_error = e,
            }
        }
        match standby {
            // A standby is better than nothing: it can be read from, and may be promoted.
            Some(at) => self.open_host(&self.hosts[at], deadline, each, purpose, attempt),
            None => Err(last_error),
        }
    }

    /// Opens a connection to one host, at the first of its addresses that accepts one.
    fn open_host(
        self: &Arc<Self>,
        host: &postgres::Config,
        deadline: Instant,
        each: Duration,
        purpose: Purpose,
        attempt: Option<&Attempt<Session>>,
    ) -> Result<Session, OpenError> {
        let mut last_error = OpenError::Closed;
        let left = || deadline.saturating_duration_since(Instant::now());
        let all = self.addresses(host, left().min(each))?;
        let count = all.len();
        for (nth, one) in all.iter().enumerate() {
            let share = left() / (count - nth) as u32;
            match self.open_at(one, share.min(each), purpose, attempt) {
                Ok(session) => return Ok(session),
                Err(e) => last_error = e,
            }
        }
        Err(last_error)
    }

    /// Returns one configuration for each address of a host. If the driver were given all
    /// addresses, it would try each of them within one connect, with the whole time limit for each.
    fn addresses(
        &self,
        host: &postgres::Config,
        limit: Duration,
    ) -> Result<Vec<postgres::Config>, OpenError> {
        let (Some(Host::Tcp(name)), []) = (host.get_hosts().first(), host.get_hostaddrs()) else {
            return Ok(vec![host.clone()]);
        };
        let mut found = self
            .names
            .addresses(name, limit)
            .map_err(OpenError::Resolve)?;
        found.dedup();
        let with = |addr| {
            let mut one = host.clone();
            one.hostaddr(addr);
            one
        };
        Ok(found.into_iter().map(with).collect())
    }

    fn open_at(
        self: &Arc<Self>,
        host: &postgres::Config,
        limit: Duration,
        purpose: Purpose,
        attempt: Option<&Attempt<Session>>,
    ) -> Result<Session, OpenError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let generation = self.shared.generation.load(Ordering::Relaxed);
        let started = Instant::now();
        let registration = self.shared.watchdog.register(id);
        let armed = registration.arm(Some(started + limit), Plan::Abort);
        let wire = Arc::clone(&registration.tracked.wire);
        if let Some(attempt) = attempt {
            attempt.set_wire(&wire);
            // The close sets `closing` before it cuts the wires, and this thread has registered its
            // wire before it reads `closing`: so either the close is seen here, or the close sees
            // this wire.
            if purpose == Purpose::Use && self.shared.closing.load(Ordering::SeqCst) {
                return Err(OpenError::Closed);
            }
        }
        let tcp = is_tcp(host);
        let connect = |with_options: bool| {
            let config = (self.shared).startup(host, limit, with_options, &registration.tracked);
            if tcp {
                PostgresConnectionManager::new(config, Connector(Arc::clone(&wire))).connect()
            } else {
                PostgresConnectionManager::new(config, NoTls).connect()
            }
        };
        if let Some(e) = out_of_files() {
            return Err(OpenError::Files(e));
        }
        let opened = caught(|| {
            if self.shared.without_options.load(Ordering::Relaxed) {
                return connect(false);
            }
            let refused = match connect(true) {
                Err(e) if host.get_options().is_none() && refuses_options(&e) => e,
                other => return other,
            };
            let opened = connect(false)?;
            info!(
                "the server refuses startup options, as poolers do; connected without them: {}",
                Chain(&refused)
            );
            self.shared.without_options.store(true, Ordering::Relaxed);
            if !tcp {
                self.shared.note_pooler("it refuses startup options");
            }
            Ok(opened)
        });
        let opened = match opened {
            Ok(Ok(client)) => Ok(client),
            Ok(Err(_)) if wire.is_aborted() => Err(OpenError::Timeout(limit)),
            Ok(Err(e)) => Err(OpenError::Driver(e)),
            // The driver unwraps the result of building its runtime.
            Err(panic) => Err(out_of_files().map_or(OpenError::Panicked(panic), OpenError::Files)),
        };
        let mut client = opened?;
        let mut backend = match Backend::read(&mut client) {
            Ok(backend) => backend,
            Err(_) if wire.is_aborted() => return Err(OpenError::Timeout(limit)),
            Err(e) => return Err(OpenError::Driver(e)),
        };
        let seen = Seen {
            told: wire.process(),
            over_tcp: tcp,
            port: host.get_ports().first().copied(),
            since: started.elapsed(),
        };
        if let Some(how) = seen.betrays_pooler(&backend) {
            self.shared.note_pooler(how);
        } else if self.shared.sends_options()
            && self.shared.asked_for_timeout() != Some(backend.statement_timeout)
        {
            self.shared.note_pooler("it drops startup options");
        }
        if !backend.standby {
            self.primary_at.store(self.shared.now(), Ordering::Relaxed);
        }
        self.note_incarnation(&backend);
        self.note_risks(&backend);
        if let Some(reading) = backend.clock() {
            self.shared.database_clock.note(Instant::now(), reading);
        }
        if self.shared.sets_timeout() {
            backend.statement_timeout = self.shared.config.statement_timeout.unwrap_or_default();
        }
        self.note_timeout(&backend);
        self.shared
            .hides_warnings
            .fetch_or(backend.hides_warnings, Ordering::Relaxed);
        registration.tracked.set_cancel(client.cancel_token(), tcp);
        let restored = match purpose {
            Purpose::Use => caught(|| self.shared.restore(&mut client)),
            Purpose::Resolve => Ok(Ok(())),
        };
        // Whatever the result says, the attempt has used all of its time, and the wire may be cut
        // at any moment.
        if armed.disarm() {
            return Err(match purpose {
                Purpose::Use if self.shared.on_connect.is_some() => {
                    OpenError::OnConnectTimeout(limit)
                }
                _ => OpenError::Timeout(limit),
            });
        }
        match restored {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return Err(OpenError::OnConnect(Box::new(e))),
            Err(panic) => return Err(OpenError::Panicked(panic)),
        }
        let took = started.elapsed();
        self.attempts.note_opened(took);
        Ok(Session::new(
            client,
            backend,
            registration,
            Arc::clone(&self.shared),
            generation,
            took,
        ))
    }
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
        let until = Instant::now() + self.shared.config.connection_timeout;
        match self.open(until, patience, purpose, None) {
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

/// Returns the error if no more files can be opened. The driver needs three file descriptors for a
/// connection and panics if it gets none for its runtime. This is checked beforehand, since each
/// panic would be printed.
fn out_of_files() -> Option<std::io::Error> {
    let spare: Result<Vec<_>, _> = (0..3).map(|_| std::fs::File::open("/dev/null")).collect();
    spare.err().filter(is_out_of_files)
}
