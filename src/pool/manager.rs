//! Opens server connections for r2d2, and knows whether the database can be reached.
//!
//! r2d2 backs off by itself when `connect` fails, up to many seconds, and so would be late when the database is back.
//! `connect` therefore does not fail while the pool is open: it keeps trying. While the database is down one of r2d2's three
//! threads tries about every 25 ms and the others wait for it (the [`Gate`]), so that the database sees no storm and is
//! found at once when it is back. A panic in `connect` would leak r2d2's pending slot for ever (r2d2 0.8.10): it is caught.
//!
//! Each time that somebody asks r2d2 and gives up before it has opened a connection, one more stays pending there, up to the
//! most there may be (r2d2 0.8.10, `get_timeout`). So that no outage ends with all of them being opened, one that is pending
//! is opened only while an opener waits for it (the [`Demand`]).

use super::Observer;
use super::blocking;
use super::clock::DatabaseClock;
use super::identity::{Identity, first_row};
use super::names::Names;
use super::param_types::Descriptions;
use super::process::{self, Process};
use super::scout::{Attempt, Attempts};
use super::session::{Session, as_server_ms};
use super::watchdog::{Plan, Tracked, Watchdog};
use super::wire::Connector;
use crate::config::{PoolConfig, Pooler};
use crate::error::{Chain, Error, OpenError, excerpt, is_out_of_files};
use crate::metrics::{CloseReason, Metrics};
use crate::retry::{Phase, Symptom};
use crate::sync::caught;
use log::{debug, error, info, warn};
use postgres::config::{Host, LoadBalanceHosts, SslMode, SslNegotiation};
use postgres::error::SqlState;
use postgres::{Client, NoTls};
use r2d2::ManageConnection;
use r2d2_postgres::PostgresConnectionManager;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// Between two attempts while the database is down.
const RETRY_EVERY: Duration = Duration::from_millis(25);
/// The same where the server is there and has no room, and where `on_connect` panicked.
const RETRY_FULL: Duration = Duration::from_millis(250);
/// The same where the next attempt will most likely fail as well.
const RETRY_PERMANENT: Duration = Duration::from_secs(3);
/// How often an outage is logged while it lasts.
const REMIND_EVERY: Duration = Duration::from_secs(30);

pub(crate) type OnConnect = dyn Fn(&mut Client) -> Result<(), postgres::Error> + Send + Sync;

/// What the sessions, the manager and the pool have in common.
pub(crate) struct Shared {
    pub config: PoolConfig,
    pub process: Process,
    pub metrics: Metrics,
    pub watchdog: Arc<Watchdog>,
    pub gate: Gate,
    pub closing: AtomicBool,
    pub has_connected: AtomicBool,
    /// Sessions of an older generation are retired.
    pub generation: AtomicU64,
    /// Connections being opened at this moment.
    pub attempts: Attempts,
    pub demand: Demand,
    /// Told when the database refuses whoever comes: nobody need wait for a connection to be opened.
    pub on_refused: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Options in the startup packet are refused, as poolers do.
    without_options: AtomicBool,
    /// The URL's options set `statement_timeout`, and nothing wins over them.
    server_timeout_is_theirs: bool,
    warned_of_timeout: AtomicBool,
    /// Warnings are not sent to the role: but that the wait for a standby was given up is said in one only.
    hides_warnings: AtomicBool,
    /// A pooler stands between us and the server: a connection of ours is not a session there. Once seen, it stays.
    pooled: AtomicBool,
    start: Instant,
    /// When a session last broke, in nanoseconds since `start`: who was not heard of since is asked for a sign of life.
    trouble_at: AtomicU64,
    /// When a session last came back in good order, in the same unit.
    answered_at: AtomicU64,
    hosts: Vec<postgres::Config>,
    last_good_host: AtomicUsize,
    /// A write was refused by a standby: of several hosts, the primary is wanted.
    wants_primary: AtomicBool,
    /// A write was refused, and the health probe has not looked since.
    pub was_refused_a_write: AtomicBool,
    /// When a connection last led to a primary, in nanoseconds since `start`; 0 = never.
    primary_at: AtomicU64,
    warned_of_incarnation: AtomicBool,
    warned_of_risks: AtomicBool,
    /// It looks back for as long as a key is kept.
    pub database_clock: DatabaseClock,
    /// Sweeps the ledger, and is woken when the pool closes.
    pub sweeper: OnceLock<Thread>,
    pub descriptions: Descriptions,
    names: Names,
    next_id: AtomicU64,
    on_connect: Option<Box<OnConnect>>,
    observers: Vec<Arc<dyn Observer>>,
    slow: Mutex<HashMap<Box<str>, Instant>>,
}

impl Shared {
    pub fn new(
        config: PoolConfig,
        hosts: Vec<postgres::Config>,
        on_connect: Option<Box<OnConnect>>,
        observers: Vec<Arc<dyn Observer>>,
        watchdog: Arc<Watchdog>,
    ) -> Shared {
        let theirs = config
            .database
            .as_ref()
            .and_then(|d| d.config().get_options())
            .unwrap_or_default();
        Shared {
            server_timeout_is_theirs: theirs.contains("statement_timeout")
                && !config.statement_timeout_wins,
            sweeper: OnceLock::new(),
            pooled: AtomicBool::new(config.effective_pooler() == Pooler::On),
            database_clock: DatabaseClock::looking_back(config.ledger_ttl),
            config,
            process: Process::this(),
            metrics: Metrics::new(),
            watchdog,
            gate: Gate::default(),
            closing: AtomicBool::new(false),
            has_connected: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            attempts: Attempts::default(),
            demand: Demand::default(),
            on_refused: OnceLock::new(),
            without_options: AtomicBool::new(false),
            warned_of_timeout: AtomicBool::new(false),
            hides_warnings: AtomicBool::new(false),
            start: Instant::now(),
            trouble_at: AtomicU64::new(0),
            answered_at: AtomicU64::new(0),
            hosts,
            last_good_host: AtomicUsize::new(0),
            wants_primary: AtomicBool::new(false),
            was_refused_a_write: AtomicBool::new(false),
            primary_at: AtomicU64::new(0),
            warned_of_incarnation: AtomicBool::new(false),
            warned_of_risks: AtomicBool::new(false),
            descriptions: Descriptions::default(),
            names: Names::default(),
            next_id: AtomicU64::new(1),
            on_connect,
            observers,
            slow: Mutex::default(),
        }
    }

    /// A thread that may not block, and a process that did not make the pool, are refused before they touch anything.
    pub fn may_block_here(&self) -> Result<(), Error> {
        if self.process.is_another() {
            return Err(process::MISUSE);
        }
        if blocking::is_forbidden() {
            return Err(blocking::MISUSE);
        }
        Ok(())
    }

    /// Tells the observers. A panic of theirs ends there.
    pub fn observe(&self, tell: impl Fn(&dyn Observer)) {
        for observer in &self.observers {
            if let Err(panic) = caught(|| tell(&**observer)) {
                error!("an observer panicked: {panic}");
            }
        }
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    pub fn note_trouble(&self) {
        self.trouble_at.store(self.now(), Ordering::Relaxed);
    }

    pub fn note_opened(&self) {
        self.has_connected.store(true, Ordering::SeqCst);
        self.gate.opened();
    }

    pub fn note_answer(&self) {
        self.answered_at.store(self.now(), Ordering::Relaxed);
    }

    /// Something broke since this session was last heard of.
    pub fn trouble_since(&self, last_used: Instant) -> bool {
        let trouble = self.trouble_at.load(Ordering::Relaxed);
        trouble > 0 && last_used.saturating_duration_since(self.start).as_nanos() as u64 <= trouble
    }

    /// The sessions of this generation and older were opened to a server that is gone; newer ones were not.
    pub fn retire_generation(&self, generation: u64) {
        self.generation.fetch_max(generation + 1, Ordering::Relaxed);
    }

    /// A session opened now may lead to another server than one that was opened to a standby: several hosts are named, or
    /// the one address has led to a primary of late, as that of a proxy in front of several does.
    pub fn may_lead_elsewhere(&self) -> bool {
        const OF_LATE: Duration = Duration::from_secs(60);
        let primary = self.primary_at.load(Ordering::Relaxed);
        let since = self.now().saturating_sub(primary);
        self.hosts.len() > 1 || (primary > 0 && u128::from(since) < OF_LATE.as_nanos())
    }

    /// A pooler stands between: what is set on a session may reach strangers, statements have no names, and numbers of
    /// processes and transactions are somebody else's.
    pub fn is_pooled(&self) -> bool {
        self.pooled.load(Ordering::Relaxed)
    }

    /// A session was seen to be served by a process other than its own.
    pub fn note_pooler(&self, how: &str) {
        if self.config.effective_pooler() != Pooler::Auto
            || self.pooled.swap(true, Ordering::Relaxed)
        {
            return;
        }
        info!(
            "a pooler stands between us and the server ({how}): statements are not prepared, nothing is set on its \
             connections, and only a write with a key can be asked for once its answer was lost"
        );
    }

    /// From now on, a standby is used only where no host is a primary.
    pub fn look_for_primary(&self) {
        self.wants_primary.store(true, Ordering::Relaxed);
    }

    /// No connection could be opened for so long that nobody should wait for one, and none of the open ones works.
    pub fn failing_fast(&self) -> bool {
        let Some(since) = self.gate.down_since() else {
            return false;
        };
        let away = since.elapsed();
        let limit = self.config.fail_fast_after;
        let silent = self.start.elapsed().saturating_sub(Duration::from_nanos(
            self.answered_at.load(Ordering::Relaxed),
        ));
        away >= limit && silent >= limit.min(away)
    }

    /// Logs a slow statement, the same text at most once a second.
    pub fn note_slow(&self, sql: &str, took: Duration) {
        let text = excerpt(sql);
        let mut seen = self.slow.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if seen
            .get(&text)
            .is_some_and(|last| now - *last < Duration::from_secs(1))
        {
            return;
        }
        if seen.len() >= 1000 {
            seen.clear();
        }
        seen.insert(text.clone(), now);
        drop(seen);
        warn!("slow statement took={took:.1?} sql={text:?}");
    }

    /// Does what a new connection needs before it is used: what was not let into the startup packet, and the application's
    /// `on_connect`. What is shared with others is not for us to set: there our own deadlines stand in.
    pub fn restore(&self, client: &mut Client) -> Result<(), Error> {
        let failed = |source| Error::Database {
            source,
            phase: Phase::Preparing,
        };
        self.set_up(client).map_err(failed)?;
        let Some(on_connect) = &self.on_connect else {
            return Ok(());
        };
        on_connect(client).map_err(failed)?;
        // In a transaction that was begun before, its moment is another than that of the statement.
        let idle = "SELECT now() = statement_timestamp()";
        let idle = match client.simple_query(idle) {
            Ok(answer) => {
                first_row(&answer).and_then(|row| row.try_get(0).ok().flatten()) == Some("t")
            }
            Err(e) if e.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION) => false,
            Err(e) => return Err(failed(e)),
        };
        match idle {
            true => Ok(()),
            false => Err(Error::Misuse(
                "on_connect left a transaction open; commit it, or begin none",
            )),
        }
    }

    fn set_up(&self, client: &mut Client) -> Result<(), postgres::Error> {
        if self.sets_timeout() {
            let limit = self.statement_timeout_ms();
            client.batch_execute(&format!("SET statement_timeout = {limit}"))?;
        }
        if self.hides_warnings.load(Ordering::Relaxed) && !self.is_pooled() {
            client.batch_execute("SET client_min_messages = warning")?;
        }
        Ok(())
    }

    /// The `statement_timeout` that each transaction sets for itself, where the session's cannot be.
    pub fn timeout_of_transactions(&self) -> Option<Duration> {
        let needed = self.is_pooled() && !self.server_timeout_is_theirs;
        self.config.statement_timeout.filter(|_| needed)
    }

    /// The `statement_timeout` that new sessions are to have; `None` where that is the URL's business.
    fn asked_for_timeout(&self) -> Option<Duration> {
        let limit = self.config.statement_timeout.unwrap_or_default();
        let ms = Duration::from_millis(as_server_ms(limit) as u64);
        (!self.server_timeout_is_theirs).then_some(ms)
    }

    fn sends_options(&self) -> bool {
        !self.without_options.load(Ordering::Relaxed) && !self.server_timeout_is_theirs
    }

    /// SET stands in for what was not let into the startup packet.
    fn sets_timeout(&self) -> bool {
        self.without_options.load(Ordering::Relaxed) && !self.is_pooled()
    }

    /// Opens a connection, and keeps trying until that succeeds, the pool is closing, or the deadline has passed. One
    /// thread at a time tries while the database is down.
    pub fn open_when_possible(
        self: &Arc<Self>,
        deadline: Option<Instant>,
        purpose: Purpose,
    ) -> Result<Session, OpenError> {
        while let Some(turn) = self.gate.turn(&self.closing, deadline) {
            if purpose == Purpose::Use
                && let Some(mut session) = self.attempts.take_spare()
            {
                session.announce();
                return Ok(session);
            }
            let started = Instant::now();
            let limit = started + self.config.connection_timeout;
            let attempt = self.attempts.begin(self, purpose);
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
                // What is cut by the end says nothing.
                Err(_) if self.closing.load(Ordering::SeqCst) => return Err(OpenError::Closed),
                Err(e) => Arc::new(e),
            };
            let code = error.sqlstate().map_or("", SqlState::code);
            self.metrics
                .connect_failures
                .with_label_values(&[code])
                .inc();
            self.observe(|o| o.open_failed(&error));
            let pause = match () {
                () if error.is_refusal() => RETRY_PERMANENT,
                () if error.is_permanent() || error.is_for_want_of_room() => RETRY_FULL,
                () => RETRY_EVERY.mul_f64(0.8 + 0.4 * fastrand::f64()),
            };
            let refused = error.is_refusal();
            self.gate.failed(error, started, pause);
            drop(turn);
            if refused && let Some(tell) = self.on_refused.get() {
                tell();
            }
        }
        Err(OpenError::Closed)
    }

    /// Opens a connection to the first host that lets us in, the last good one first; at each of their addresses within
    /// `each`.
    pub fn open(
        self: &Arc<Self>,
        deadline: Instant,
        each: Duration,
        purpose: Purpose,
        attempt: Option<&Attempt>,
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
            // A share of what is left for each host: one that accepts and stays silent must not eat the others' time.
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / (count - nth) as u32;
            match self.open_host(
                &self.hosts[at],
                Instant::now() + share,
                each,
                purpose,
                attempt,
            ) {
                Ok(mut session) if wants_primary && session.identity().standby => {
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
            // Better than nothing: it can be read from, and may be promoted.
            Some(at) => self.open_host(&self.hosts[at], deadline, each, purpose, attempt),
            None => Err(last_error),
        }
    }

    /// Opens a connection to one host, at whichever of its addresses lets us in.
    fn open_host(
        self: &Arc<Self>,
        host: &postgres::Config,
        deadline: Instant,
        each: Duration,
        purpose: Purpose,
        attempt: Option<&Attempt>,
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

    /// One setting for each address of a host: the driver would walk them inside one connect, each with the whole of the time.
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
        attempt: Option<&Attempt>,
    ) -> Result<Session, OpenError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let generation = self.generation.load(Ordering::Relaxed);
        let started = Instant::now();
        let registration = self.watchdog.register(id);
        let armed = registration.arm(Some(started + limit), Plan::Abort);
        let wire = Arc::clone(&registration.tracked.wire);
        if let Some(attempt) = attempt {
            attempt.goes_over(&wire);
            // Seen here, or the wire is seen by whoever closes.
            if purpose == Purpose::Use && self.closing.load(Ordering::SeqCst) {
                return Err(OpenError::Closed);
            }
        }
        let tcp = is_tcp(host);
        let connect = |config: postgres::Config| {
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
            if self.without_options.load(Ordering::Relaxed) {
                return connect(self.startup(host, limit, false, &registration.tracked));
            }
            let refused = match connect(self.startup(host, limit, true, &registration.tracked)) {
                Err(e) if host.get_options().is_none() && refuses_options(&e) => e,
                other => return other,
            };
            let opened = connect(self.startup(host, limit, false, &registration.tracked))?;
            info!(
                "startup options are refused, as poolers do: {}",
                Chain(&refused)
            );
            self.without_options.store(true, Ordering::Relaxed);
            if !tcp {
                self.note_pooler("it refuses startup options");
            }
            Ok(opened)
        });
        let opened = match opened {
            Ok(Ok(client)) => Ok(client),
            Ok(Err(_)) if wire.is_aborted() => Err(OpenError::Timeout(limit)),
            Ok(Err(e)) => Err(OpenError::Driver(e)),
            // The driver unwraps the making of its runtime.
            Err(panic) => Err(out_of_files().map_or(OpenError::Panicked(panic), OpenError::Files)),
        };
        let mut client = opened?;
        let mut identity = match Identity::read(&mut client) {
            Ok(identity) => identity,
            Err(_) if wire.is_aborted() => return Err(OpenError::Timeout(limit)),
            Err(e) => return Err(OpenError::Driver(e)),
        };
        let seen = Seen {
            told: wire.process(),
            over_tcp: tcp,
            port: host.get_ports().first().copied(),
            since: started.elapsed(),
        };
        if let Some(how) = seen.betrays_pooler(&identity) {
            self.note_pooler(how);
        } else if self.sends_options()
            && self.asked_for_timeout() != Some(identity.statement_timeout)
        {
            self.note_pooler("it drops startup options");
        }
        if !identity.standby {
            self.primary_at.store(self.now(), Ordering::Relaxed);
        }
        self.note_incarnation(&identity);
        self.note_risks(&identity);
        if let Some(reading) = identity.clock() {
            self.database_clock.note(Instant::now(), reading);
        }
        if self.sets_timeout() {
            identity.statement_timeout = self.config.statement_timeout.unwrap_or_default();
        }
        self.note_timeout(&identity);
        self.hides_warnings
            .fetch_or(identity.hides_warnings, Ordering::Relaxed);
        registration.tracked.set_cancel(client.cancel_token(), tcp);
        let restored = match purpose {
            Purpose::Use => caught(|| self.restore(&mut client)),
            Purpose::Resolve => Ok(Ok(())),
        };
        // Whatever it says, it has used all of the time, and its connection may be cut.
        if armed.disarm() {
            return Err(match purpose {
                Purpose::Use if self.on_connect.is_some() => OpenError::OnConnectTimeout(limit),
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
            identity,
            registration,
            Arc::clone(self),
            generation,
            took,
        ))
    }

    /// Once, where lost commits can only be unknown. A standby takes no writes.
    fn note_incarnation(&self, identity: &Identity) {
        if identity.incarnation.is_none()
            && !self.is_pooled()
            && !self.config.reads_only()
            && !self.warned_of_incarnation.swap(true, Ordering::Relaxed)
        {
            warn!(
                "what becomes of a commit whose answer is lost cannot be found out here: \
                 a standby, or a role that may not read pg_control_system, pg_walfile_name and pg_stat_wal"
            );
        }
    }

    /// Once, where a write that was reported as done may be lost.
    fn note_risks(&self, identity: &Identity) {
        let risks = &identity.risks;
        if !risks.is_empty()
            && !identity.standby
            && !self.warned_of_risks.swap(true, Ordering::Relaxed)
        {
            warn!(
                "the server runs with {risks}: a crash of it may take the last writes that were reported as done"
            );
        }
    }

    /// Once, where the server's own timeout is not the one that was asked for: poolers drop or refuse it.
    fn note_timeout(&self, identity: &Identity) {
        let in_force = identity.statement_timeout;
        let asked_for = match self.asked_for_timeout() {
            Some(asked_for) if asked_for != in_force => asked_for,
            _ => return,
        };
        if self.warned_of_timeout.swap(true, Ordering::Relaxed) {
            return;
        }
        let shown = |limit: Duration| match limit.is_zero() {
            true => "off".to_owned(),
            false => format!("{limit:?}"),
        };
        warn!(
            "statement_timeout is {} on the server, not {} as was asked for: a pooler keeps it from the server, or the \
             server sets its own; a lone statement is stopped by DB_QUERY_TIMEOUT_MS alone",
            shown(in_force),
            shown(asked_for)
        );
    }

    /// The settings of the startup packet. Later options win over earlier ones, so the order says who wins.
    fn startup(
        &self,
        host: &postgres::Config,
        limit: Duration,
        with_options: bool,
        tracked: &Arc<Tracked>,
    ) -> postgres::Config {
        let mut config = host.clone();
        if is_tcp(host) {
            // The wire's way in; what the user asked for in the way of TLS was settled when the URL was read.
            config
                .ssl_mode(SslMode::Require)
                .ssl_negotiation(SslNegotiation::Direct);
        } else {
            config.ssl_mode(SslMode::Disable);
        }
        let own = host.get_connect_timeout().copied().unwrap_or(limit);
        config.connect_timeout(own.min(limit).max(Duration::from_millis(1)));
        config.application_name(&self.application_name());
        if with_options {
            let ours = format!("-c statement_timeout={}", self.statement_timeout_ms());
            let options = match host.get_options() {
                Some(theirs) if self.config.statement_timeout_wins => format!("{theirs} {ours}"),
                Some(theirs) => format!("{ours} {theirs}"),
                None => ours,
            };
            config.options(&options);
        }
        let tracked = Arc::clone(tracked);
        config.notice_callback(move |notice| {
            // A notice may quote values: its text is not for the log. The routine is the same in every language.
            debug!("notice from the server: {}", notice.code().code());
            if notice.routine() == Some("SyncRepWaitForLSN") {
                tracked.gave_up_on_standbys.store(true, Ordering::Relaxed);
            }
        });
        config
    }

    fn statement_timeout_ms(&self) -> u128 {
        as_server_ms(self.config.statement_timeout.unwrap_or_default())
    }

    /// The name shown in `pg_stat_activity`.
    pub fn application_name(&self) -> String {
        self.config.application_name.clone().unwrap_or_else(|| {
            let program = std::env::args_os().next().map(std::path::PathBuf::from);
            let file = program
                .as_deref()
                .and_then(|p| p.file_name())
                .map(|f| f.to_string_lossy().into_owned());
            file.unwrap_or_else(|| "millpond".into())
        })
    }
}

/// What a session is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To be used by the application, whose `on_connect` has run.
    Use,
    /// To find out about a lost COMMIT, as the role that logs in: the application's may not be allowed to.
    Resolve,
}

/// What is known of a connection on our side of it.
struct Seen {
    /// The process that it was told of; `None` where nobody saw that (Unix sockets).
    told: Option<i32>,
    over_tcp: bool,
    port: Option<u16>,
    since: Duration,
}

impl Seen {
    /// Whether a pooler stands between, by what the server sees on its side; a plain relay is none.
    fn betrays_pooler(&self, server: &Identity) -> Option<&'static str> {
        /// Two clocks, which may be set right in between by a little.
        const SLACK: Duration = Duration::from_millis(5);
        match self.told {
            Some(process) if process == server.pid => None,
            Some(_) => Some("the process that answers is not the one that cancel requests go to"),
            None if server.age > self.since + SLACK => {
                Some("the process that answers is older than the connection")
            }
            // A relay that looks the same is taken for one; a wrong guess in the other direction would cost more.
            None if server.over_tcp != self.over_tcp || server.port != self.port => {
                Some("the server was reached in another way than we went")
            }
            None => None,
        }
    }
}

/// Poolers that refuse options say so in words only.
fn refuses_options(error: &postgres::Error) -> bool {
    error.as_db_error().is_some_and(|db| {
        let said = db.message().to_ascii_lowercase();
        matches!(Symptom::of(error), Symptom::Middleman(_))
            && (said.contains("startup parameter") || said.contains("option"))
    })
}

fn is_tcp(host: &postgres::Config) -> bool {
    // There are no others on Windows.
    matches!(host.get_hosts().first(), None | Some(Host::Tcp(_)))
}

/// The driver needs three file descriptors for a connection, and panics where it gets none for its runtime: looked at
/// before, since each panic would be printed.
fn out_of_files() -> Option<std::io::Error> {
    let spare: Result<Vec<_>, _> = (0..3).map(|_| std::fs::File::open("/dev/null")).collect();
    spare.err().filter(is_out_of_files)
}

/// Opened only while somebody waits for it.
#[derive(Default)]
pub(crate) struct Demand {
    state: Mutex<Wanted>,
    changed: Condvar,
}

#[derive(Default)]
struct Wanted {
    /// Openers that wait for a connection.
    by: usize,
    /// Connections under way to them, or there.
    served: usize,
}

impl Demand {
    fn lock(&self) -> MutexGuard<'_, Wanted> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An opener waits for a connection.
    pub fn raise(&self) {
        self.lock().by += 1;
        self.changed.notify_all();
    }

    /// It does no longer.
    pub fn lower(&self) {
        self.lock().by -= 1;
    }

    /// A connection was taken from r2d2.
    pub fn taken(&self) {
        let mut wanted = self.lock();
        wanted.served = wanted.served.saturating_sub(1);
        drop(wanted);
        self.changed.notify_all();
    }

    /// Waits until a connection is wanted that nobody is bringing. False when the pool is closing.
    fn serve(&self, closing: &AtomicBool) -> bool {
        let mut wanted = self.lock();
        loop {
            if closing.load(Ordering::SeqCst) {
                return false;
            }
            if wanted.served < wanted.by {
                wanted.served += 1;
                return true;
            }
            wanted = self
                .changed
                .wait(wanted)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Wakes those who wait, so that they see that the pool is closing.
    pub fn close(&self) {
        drop(self.lock());
        self.changed.notify_all();
    }
}

/// Whether the database can be reached, and whose turn it is to try.
#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    down: Option<Down>,
    /// The turn of whoever is trying while it is down.
    trying: Option<u64>,
    turns: u64,
    /// The newest success.
    opened_at: Option<Instant>,
    /// When there was no room for one more connection, and why. Those that are open may come and go all the while, so that an
    /// attempt that succeeds in between is no news.
    full: Option<Full>,
}

struct Full {
    at: Instant,
    error: Arc<OpenError>,
    logged_at: Instant,
}

struct Down {
    since: Instant,
    next_try: Instant,
    error: Arc<OpenError>,
    /// When it was last said that the database is away; never, where there was only no room for one more connection.
    logged_at: Option<Instant>,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until this thread may try. None when the pool is closing, or the deadline has passed.
    fn turn(&self, closing: &AtomicBool, deadline: Option<Instant>) -> Option<Turn<'_>> {
        let mut state = self.lock();
        loop {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if closing.load(Ordering::SeqCst) || left.is_some_and(|left| left.is_zero()) {
                return None;
            }
            let wait = match &state.down {
                None => {
                    return Some(Turn {
                        gate: self,
                        number: None,
                    });
                }
                Some(_) if state.trying.is_some() => Duration::from_secs(1),
                Some(down) => down.next_try.saturating_duration_since(Instant::now()),
            };
            if wait.is_zero() {
                state.turns += 1;
                let number = Some(state.turns);
                state.trying = number;
                return Some(Turn { gate: self, number });
            }
            let wait = left.map_or(wait, |left| wait.min(left));
            state = self
                .changed
                .wait_timeout(state, wait)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn opened(&self) {
        let mut state = self.lock();
        if let Some(down) = state.down.take()
            && down.logged_at.is_some()
        {
            info!("the database is back after {:.1?}", down.since.elapsed());
        }
        state.opened_at = Some(Instant::now());
        state.trying = None;
        drop(state);
        self.changed.notify_all();
    }

    fn failed(&self, error: Arc<OpenError>, started: Instant, pause: Duration) {
        let now = Instant::now();
        let mut state = self.lock();
        if state.opened_at.is_some_and(|at| at > started) {
            // Another attempt has found the database since: this one speaks of the past.
            return;
        }
        let before = state.down.as_ref();
        let since = before.map_or(now, |down| down.since);
        let mut logged_at = before.and_then(|down| down.logged_at);
        let is_due = |last: Option<Instant>| last.is_none_or(|at| now - at >= REMIND_EVERY);
        let cause = Chain(&*error);
        if error.is_for_want_of_room() {
            let said = state.full.as_ref().map(|full| full.logged_at);
            if is_due(said) {
                warn!("there is no room for another connection: {cause}");
            }
            state.full = Some(Full {
                at: now,
                error: Arc::clone(&error),
                logged_at: said.filter(|_| !is_due(said)).unwrap_or(now),
            });
        } else if is_due(logged_at) {
            match logged_at {
                None => warn!("could not open a connection, trying on: {cause}"),
                Some(_) => warn!(
                    "no connection could be opened for {:.0?}: {cause}",
                    now - since
                ),
            }
            logged_at = Some(now);
        }
        state.down = Some(Down {
            since,
            next_try: now + pause,
            error,
            logged_at,
        });
    }

    /// Wakes those who wait, so that they see that the pool is closing.
    pub fn close(&self) {
        drop(self.lock());
        self.changed.notify_all();
    }

    /// Since when no connection could be opened.
    pub fn down_since(&self) -> Option<Instant> {
        self.lock().down.as_ref().map(|d| d.since)
    }

    /// The newest failure, when the newest attempt failed.
    pub fn last_error(&self) -> Option<Arc<OpenError>> {
        self.lock().down.as_ref().map(|d| Arc::clone(&d.error))
    }

    /// Why somebody who has waited from `since` on got no connection.
    pub fn cause(&self, since: Instant) -> Option<Arc<OpenError>> {
        let state = self.lock();
        let down = state.down.as_ref().map(|down| &down.error);
        let full = state.full.as_ref().filter(|full| full.at >= since);
        down.or(full.map(|full| &full.error)).cloned()
    }
}

/// A thread's turn to try while the database is down, until this is dropped: whatever ends the attempt, the next may try.
struct Turn<'g> {
    gate: &'g Gate,
    /// None while it is not down: everybody may try.
    number: Option<u64>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.number.is_none() {
            return;
        }
        let mut state = self.gate.lock();
        if state.trying == self.number {
            state.trying = None;
        }
        drop(state);
        self.gate.changed.notify_all();
    }
}

/// r2d2's way to our sessions.
pub(crate) struct Manager(pub Arc<Shared>);

impl ManageConnection for Manager {
    type Connection = Session;
    type Error = OpenError;

    fn connect(&self) -> Result<Session, OpenError> {
        let shared = &self.0;
        while shared.demand.serve(&shared.closing) {
            let opened = caught(|| shared.open_when_possible(None, Purpose::Use));
            match opened {
                Ok(Ok(session)) if !shared.closing.load(Ordering::SeqCst) => return Ok(session),
                Ok(_) => {}
                Err(panic) => error!("opening a connection panicked: {panic}"),
            }
            shared.demand.taken();
        }
        Err(OpenError::Closed)
    }

    /// Never asked by r2d2 (`test_on_check_out` is off): the pool validates by itself, and only who was idle for a while.
    fn is_valid(&self, session: &mut Session) -> Result<(), OpenError> {
        session.validate(None).map_err(OpenError::Driver)
    }

    fn has_broken(&self, session: &mut Session) -> bool {
        session.is_closing()
    }
}
