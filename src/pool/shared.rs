//! The state that the sessions of a pool share and may read. This module does not depend on
//! sessions, nor on the code that opens them.

use super::backend::first_value;
use super::blocking;
use super::clock::DatabaseClock;
use super::limits::as_server_ms;
use super::observer::{Observer, Observers};
use super::param_types::Descriptions;
use super::process::{self, Process};
use super::watchdog::Watchdog;
use crate::config::{PoolConfig, Pooler};
use crate::error::{Error, excerpt, query_text};
use crate::metrics::Metrics;
use crate::sync::unpoison;
use crate::traceparent::{Traceparent, traced};
use log::{Level, info};
use postgres::Client;
use postgres::error::SqlState;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub(crate) type OnConnect = dyn Fn(&mut Client) -> Result<(), postgres::Error> + Send + Sync;

/// The state that the sessions of a pool share.
pub(crate) struct Shared {
    pub config: PoolConfig,
    pub process: Process,
    pub metrics: Metrics,
    pub watchdog: Arc<Watchdog>,
    pub closing: AtomicBool,
    /// Sessions of an older generation are retired.
    pub generation: AtomicU64,
    /// Sessions that began to be opened before this are retired, in nanoseconds since `start`.
    evicted_at: AtomicU64,
    /// Options in the startup packet are refused, as poolers do.
    pub(super) without_options: AtomicBool,
    /// The options of the URL set `statement_timeout`, and nothing overrides them. A URL in a file
    /// may change.
    server_timeout_is_theirs: AtomicBool,
    /// The server sends this role no warnings by default. We need them: only a warning reports that
    /// the wait for a standby was given up.
    pub(super) hides_warnings: AtomicBool,
    /// A pooler stands between the pool and the server: a connection of the pool is not a session
    /// of the server. Once detected, this stays true.
    pooled: AtomicBool,
    /// What the pool prepares for itself was deallocated unseen, as by a function. It prepares
    /// nothing for itself any more: the next transaction would fail for it, too.
    pub loses_names: AtomicBool,
    start: Instant,
    /// When a session last broke, in nanoseconds since `start`. A session on which the server has
    /// not answered since is validated before its use.
    trouble_at: AtomicU64,
    /// When a working session was last checked in, in the same unit.
    answered_at: AtomicU64,
    /// A write was refused, and the health probe has not run since.
    pub was_refused_a_write: AtomicBool,
    /// It looks back for as long as a key is kept.
    pub database_clock: DatabaseClock,
    pub descriptions: Descriptions,
    pub(super) on_connect: Option<Arc<OnConnect>>,
    pub(super) observers: Arc<Observers>,
    slow: Mutex<HashMap<Box<str>, Instant>>,
}

fn sets_timeout(parameters: &postgres::Config) -> bool {
    let options = parameters.get_options().unwrap_or_default();
    options.contains("statement_timeout")
}

impl Shared {
    pub fn new(
        config: PoolConfig,
        on_connect: Option<Arc<OnConnect>>,
        observers: Observers,
        watchdog: Arc<Watchdog>,
        metrics: Metrics,
    ) -> Shared {
        let theirs = config.database.as_ref();
        let theirs = theirs.is_some_and(|database| sets_timeout(database.config()));
        Shared {
            server_timeout_is_theirs: AtomicBool::new(theirs && !config.statement_timeout_wins),
            pooled: AtomicBool::new(config.effective_pooler() == Pooler::On),
            database_clock: DatabaseClock::looking_back(config.ledger_ttl),
            config,
            process: Process::this(),
            metrics,
            watchdog,
            closing: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            evicted_at: AtomicU64::new(0),
            without_options: AtomicBool::new(false),
            hides_warnings: AtomicBool::new(false),
            loses_names: AtomicBool::new(false),
            start: Instant::now(),
            trouble_at: AtomicU64::new(0),
            answered_at: AtomicU64::new(0),
            was_refused_a_write: AtomicBool::new(false),
            descriptions: Descriptions::default(),
            on_connect,
            observers: Arc::new(observers),
            slow: Mutex::default(),
        }
    }

    /// Returns an error on a thread that must not block, and in a process that did not make the
    /// pool. To be called before anything else is touched.
    pub fn may_block_here(&self) -> Result<(), Error> {
        if self.process.is_another() {
            return Err(process::MISUSE);
        }
        if blocking::is_forbidden() {
            return Err(blocking::MISUSE);
        }
        Ok(())
    }

    /// Notifies the observers. A panic in one of them is caught and logged.
    pub fn observe(&self, tell: impl Fn(&dyn Observer)) {
        self.observers.tell(tell);
    }

    pub(super) fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    pub fn note_trouble(&self) {
        self.trouble_at.store(self.now(), Ordering::Relaxed);
    }

    pub fn note_answer(&self) {
        self.answered_at.store(self.now(), Ordering::Relaxed);
    }

    /// Returns whether any session broke since this moment, at which this session last answered.
    pub fn trouble_since(&self, last_used: Instant) -> bool {
        let trouble = self.trouble_at.load(Ordering::Relaxed);
        trouble > 0 && last_used.saturating_duration_since(self.start).as_nanos() as u64 <= trouble
    }

    /// Retires the sessions of this generation and older ones, whose server is gone. Newer sessions
    /// are kept.
    pub fn retire_generation(&self, generation: u64) {
        self.generation.fetch_max(generation + 1, Ordering::Relaxed);
    }

    /// Retires all sessions that are open now, or being opened.
    pub fn evict(&self) {
        self.evicted_at.fetch_max(self.now(), Ordering::Relaxed);
    }

    /// Returns whether a session whose opening began at this moment is one of those.
    pub fn is_evicted(&self, since: Instant) -> bool {
        let evicted = self.evicted_at.load(Ordering::Relaxed);
        evicted > 0 && since.saturating_duration_since(self.start).as_nanos() <= u128::from(evicted)
    }

    /// Returns whether a pooler stands between the pool and the server. Then settings of a session
    /// may affect other clients, statements have no names, and process numbers and transaction ids
    /// may belong to other clients.
    pub fn is_pooled(&self) -> bool {
        self.pooled.load(Ordering::Relaxed)
    }

    /// Notes that a session was seen to be served by a process other than its own.
    pub fn note_pooler(&self, how: &str) {
        if self.config.effective_pooler() != Pooler::Auto
            || self.pooled.swap(true, Ordering::Relaxed)
        {
            return;
        }
        info!(
            "connected through a pooler ({how}): no prepared statements, no session settings, and the outcome of a lost \
             COMMIT is known only for writes with a key"
        );
    }

    /// Notes that a statement of the pool's own was gone.
    pub fn note_lost_names(&self) {
        if !self.loses_names.swap(true, Ordering::Relaxed) {
            info!(
                "something deallocates all prepared statements, also the pool's own: BEGIN and COMMIT are sent unprepared from now on"
            );
        }
    }

    /// Logs a slow statement; the same text at most once a second.
    pub fn note_slow(
        &self,
        sql: &str,
        took: Duration,
        code: Option<&SqlState>,
        of: Option<Traceparent>,
    ) {
        let text = excerpt(sql);
        let mut seen = unpoison(self.slow.lock());
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
        traced!(
            Level::Warn,
            of,
            "db.system.name" = "postgresql",
            "db.query.text" = query_text(sql).as_str(),
            "db.operation.duration" = took.as_secs_f64(),
            "db.response.status_code" = code.map(SqlState::code);
            "slow statement took={took:.1?} sql={text:?}"
        );
    }

    /// Prepares a new connection for use: applies the settings that the startup packet could not
    /// contain, and runs the application's `on_connect`. On a server connection that is shared with
    /// others nothing is set; our own deadlines apply instead.
    pub fn restore(&self, client: &mut Client) -> Result<(), Error> {
        let failed = Error::before_any_effect;
        self.set_up(client).map_err(failed)?;
        let Some(on_connect) = &self.on_connect else {
            return Ok(());
        };
        on_connect(client).map_err(failed)?;
        // In a transaction that began earlier, its start differs from the start of this statement.
        let idle = "SELECT now() = statement_timestamp()";
        let idle = match client.simple_query(idle) {
            Ok(answer) => first_value(&answer) == Some("t"),
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

    /// Returns the `statement_timeout` that each transaction sets for itself because it cannot be
    /// set on the session; None if none is needed.
    pub fn timeout_of_transactions(&self) -> Option<Duration> {
        let needed = self.is_pooled() && !self.server_timeout_is_theirs();
        self.config.statement_timeout.filter(|_| needed)
    }

    /// Returns the `statement_timeout` that new sessions should have; `None` if the URL sets it.
    pub(super) fn asked_for_timeout(&self) -> Option<Duration> {
        let limit = self.config.statement_timeout.unwrap_or_default();
        let ms = Duration::from_millis(as_server_ms(limit) as u64);
        (!self.server_timeout_is_theirs()).then_some(ms)
    }

    pub(super) fn sends_options(&self) -> bool {
        !self.without_options.load(Ordering::Relaxed) && !self.server_timeout_is_theirs()
    }

    /// Returns whether the URL sets `statement_timeout`, and not the pool.
    pub(super) fn server_timeout_is_theirs(&self) -> bool {
        self.server_timeout_is_theirs.load(Ordering::Relaxed)
    }

    /// Notes what these parameters, with which a session is about to be opened, say about its
    /// settings.
    pub(super) fn follow(&self, parameters: &postgres::Config) {
        let theirs = sets_timeout(parameters) && !self.config.statement_timeout_wins;
        self.server_timeout_is_theirs
            .store(theirs, Ordering::Relaxed);
    }

    /// Returns whether SET is used for the settings that the startup packet could not contain.
    pub(super) fn sets_timeout(&self) -> bool {
        self.without_options.load(Ordering::Relaxed) && !self.is_pooled()
    }

    pub(super) fn statement_timeout_ms(&self) -> u128 {
        as_server_ms(self.config.statement_timeout.unwrap_or_default())
    }

    /// Returns for how long no working session has been checked in.
    pub fn silent_for(&self) -> Duration {
        let answered = Duration::from_nanos(self.answered_at.load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(answered)
    }

    /// Returns what a line of the log says of the server, if it is a standby that reads use.
    pub fn at(&self) -> String {
        let host = self.config.only_host.as_ref();
        host.map_or_else(String::new, |host| format!(" standby={host}"))
    }

    /// Returns the name shown in `pg_stat_activity`.
    pub fn application_name(&self) -> String {
        let database = self.config.database.as_ref();
        let given = self.config.application_name.clone().or_else(|| {
            let name = database?.config().get_application_name()?;
            Some(name.to_owned())
        });
        given.unwrap_or_else(|| {
            let program = std::env::args_os().next().map(std::path::PathBuf::from);
            let file = program
                .as_deref()
                .and_then(|p| p.file_name())
                .map(|f| f.to_string_lossy().into_owned());
            file.unwrap_or_else(|| "millpond".into())
        })
    }
}
