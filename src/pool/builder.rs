//! Setting a pool up.

use super::checkout::{Inner, Pool};
use super::housekeeping;
use super::line::Line;
use super::manager::Manager;
use super::observer::{Observer, Observers};
use super::opener::Opener;
use super::probe::Probe;
use super::shared::{OnConnect, Shared};
use super::watchdog::Watchdog;
use crate::config::{ConfigErrors, Database, PoolConfig, Pooler, Problem, Reset};
use crate::fd_limit;
use crate::retry::{Budget, RetryPolicy};
use crate::sync::{LONGEST, caught};
use log::warn;
use postgres::Client;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// Options of a pool. [`build`](Builder::build) returns at once, also while the database is down.
#[derive(Default)]
#[must_use = "nothing happens before build()"]
pub struct Builder {
    config: PoolConfig,
    on_connect: Option<Box<OnConnect>>,
    observers: Vec<Arc<dyn Observer>>,
    bad_url: Option<String>,
}

/// The settings of [`Config::from_env`](crate::Config::from_env), or any others.
impl From<PoolConfig> for Builder {
    fn from(config: PoolConfig) -> Builder {
        Builder {
            config,
            ..Builder::default()
        }
    }
}

/// The driver's settings of a connection, and the defaults of everything else. As with a URL,
/// [`build`](Builder::build) refuses what would be weakened silently, such as `sslmode=require`.
///
/// ```
/// use millpond::pool::Builder;
///
/// let mut config = millpond::postgres::Config::new();
/// config.host("localhost").user("app").dbname("studio");
/// let pool = Builder::from(config).max_size(5).build()?;
/// # Ok::<_, millpond::BuildError>(())
/// ```
impl From<postgres::Config> for Builder {
    fn from(config: postgres::Config) -> Builder {
        Builder::default().with_database(Database::try_from(config))
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// A zero that means "off" or "never".
fn unless_zero(time: Duration) -> Option<Duration> {
    Some(time).filter(|t| !t.is_zero())
}

impl Builder {
    /// Where the database is: a `postgresql://` URL or a `key=value` string. Several hosts may be named. `sslmode` may be
    /// `disable` or `prefer` (which is plain: TLS is not built in). What is wrong with it is said by [`build`](Self::build).
    pub fn database_url(self, url: &str) -> Self {
        self.with_database(url.parse())
    }

    fn with_database(mut self, database: Result<Database, String>) -> Self {
        match database {
            Ok(database) => (self.config.database, self.bad_url) = (Some(database), None),
            Err(why) => self.bad_url = Some(why),
        }
        self
    }

    /// Most connections of the pool. Default 20; 1 to 10000. The server should allow three more: for
    /// the health probe, for a second attempt where one gets no answer, and for finding out about a lost commit.
    /// Each takes up to five files of the process: where fewer than that may be open when the pool is built, beside an eighth
    /// for the rest of the process, the pool is as large as fits, which is logged.
    pub fn max_size(mut self, connections: u32) -> Self {
        self.config.max_size = connections;
        self
    }

    /// Idle connections kept ready. Default 2, or `max_size` where that is smaller; at most `max_size`.
    pub fn min_idle(mut self, connections: u32) -> Self {
        self.config.min_idle = Some(connections);
        self
    }

    /// Upper bound on one check-out: waiting in line plus validation; and on opening one connection: name, TCP, handshake and
    /// authentication. Default 2 s; zero is refused. Fails as [`Error::Checkout`](crate::Error::Checkout).
    pub fn connection_timeout(mut self, limit: Duration) -> Self {
        self.config.connection_timeout = limit;
        self
    }

    /// How long a connection above the minimum may be idle before it is closed. Default 30 s; zero = for ever.
    pub fn idle_timeout(mut self, time: Duration) -> Self {
        self.config.idle_timeout = unless_zero(time);
        self
    }

    /// The age at which a connection is retired, less up to 10 % jitter; one in use when it comes back. Default 30 min; zero =
    /// never.
    pub fn max_lifetime(mut self, age: Duration) -> Self {
        self.config.max_lifetime = unless_zero(age);
        self
    }

    /// How often a connection is checked out before it is retired. Default 7500; 0 = without end.
    pub fn max_uses(mut self, uses: u64) -> Self {
        self.config.max_uses = uses;
        self
    }

    /// Most threads in line; one more is refused at once, as [`Error::Checkout`](crate::Error::Checkout). Default 1000.
    pub fn max_waiting(mut self, threads: usize) -> Self {
        self.config.max_waiting = threads;
        self
    }

    /// PostgreSQL's `statement_timeout` of every connection (manual, section 20.11). Default 5 s; zero = off. Fails as
    /// [`Error::QueryTimeout`](crate::Error::QueryTimeout).
    pub fn statement_timeout(mut self, limit: Duration) -> Self {
        self.config.statement_timeout = unless_zero(limit);
        self.config.statement_timeout_wins = true;
        self
    }

    /// Our own deadline of one statement, which also holds when the server is frozen or unreachable: a cancel request at the
    /// deadline, and the connection is cut 500 ms later (not over a Unix socket). Default 5 s; zero = off. Fails as
    /// [`Error::QueryTimeout`](crate::Error::QueryTimeout).
    pub fn query_timeout(mut self, limit: Duration) -> Self {
        self.config.query_timeout = unless_zero(limit);
        self
    }

    /// Prepared statements kept per connection. Default 256; 0 = unnamed statements only, as behind a [pooler](Self::pooler).
    pub fn statement_cache(mut self, statements: usize) -> Self {
        self.config.statement_cache = statements;
        self
    }

    /// When what was left on a connection is taken away. Default [`Reset::Auto`]: after a statement whose text shows that it
    /// may leave something (`SET`, `set_config(.., false)`, `pg_advisory_lock`, `CREATE TEMP`, `LISTEN`, `PREPARE`, `DO`, ..),
    /// and after a plain check-out that was used. Where functions or procedures of the application's own do such things
    /// inside, say [`Reset::Always`]. A library that was loaded, or a connection of dblink's, costs the session.
    pub fn reset(mut self, reset: Reset) -> Self {
        self.config.reset = reset;
        self
    }

    /// Whether a connection pooler, such as PgBouncer, stands between. Default [`Pooler::Auto`], or what `pgbouncer=` in the
    /// URL says. Behind one, in session mode as in transaction mode: statements are not prepared by name; nothing is set on
    /// a connection, but inside transactions, so that [`statement_timeout`](Self::statement_timeout) holds there only and
    /// [`query_timeout`](Self::query_timeout) everywhere; a connection that was lent out raw is closed; and what became of
    /// a COMMIT whose answer was lost is found out for [writes with a key](Pool::transaction_with_key) alone.
    ///
    /// A pooler that hands its clients the server's own process numbers (pgpool-II) cannot be told from the server: say
    /// [`Pooler::On`] there. A relay that forwards a Unix socket over TCP looks like a pooler: say [`Pooler::Off`].
    pub fn pooler(mut self, pooler: Pooler) -> Self {
        self.config.pooler = Some(pooler);
        self
    }

    /// `application_name`, as `pg_stat_activity` shows it. Default: the program's file name.
    pub fn application_name(mut self, name: impl Into<String>) -> Self {
        self.config.application_name = Some(name.into());
        self
    }

    /// When calls are repeated. Default: [`RetryPolicy::default`].
    pub fn retry_policy(mut self, policy: RetryPolicy) -> Self {
        self.config.retry = policy;
        self
    }

    /// Once no connection could be opened for this long, check-outs fail at once with the cause, until one opens. Default
    /// 10 s; zero = at the first failure.
    pub fn fail_fast_after(mut self, time: Duration) -> Self {
        self.config.fail_fast_after = time;
        self
    }

    /// A statement that takes longer is logged, its text without values. Default 500 ms; zero = off.
    pub fn slow_query(mut self, limit: Duration) -> Self {
        self.config.slow_query = unless_zero(limit);
        self
    }

    /// Warns, with the place of check-out, when a connection is held longer. Default zero = off.
    pub fn leak_threshold(mut self, time: Duration) -> Self {
        self.config.leak_threshold = unless_zero(time);
        self
    }

    /// The schema of the table in which [transactions with a key](Pool::transaction_with_key) take note of their keys. Default
    /// `millpond`; small letters, digits and underscores. [`Pool::create_ledger`] makes it.
    pub fn ledger_schema(mut self, name: impl Into<String>) -> Self {
        self.config.ledger_schema = name.into();
        self
    }

    /// How long a key is kept, at least. Default 24 h; zero is refused. One that somebody may still ask for, because the answer
    /// to its COMMIT was lost, is kept for longer: [`query_timeout`](Self::query_timeout) (or a minute) and twice
    /// [`connection_timeout`](Self::connection_timeout), at least 4 s. Pools with one ledger should agree on these.
    pub fn ledger_ttl(mut self, time: Duration) -> Self {
        self.config.ledger_ttl = time;
        self
    }

    /// Runs once for each new connection, before it is used (`SET search_path`, `SET ROLE`), and again after a connection that
    /// was lent out raw was reset. An error counts as a failure to open.
    pub fn on_connect<F>(mut self, work: F) -> Self
    where
        F: Fn(&mut Client) -> Result<(), postgres::Error> + Send + Sync + 'static,
    {
        self.on_connect = Some(Box::new(work));
        self
    }

    /// Tells this observer what happens to connections. May be called more than once.
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observers.push(observer);
        self
    }

    /// Builds the pool and returns at once: connections are opened in the background, and as long as that takes. A pool belongs
    /// to the process that built it: in a child that was forked, each call ends as
    /// [`Error::Misuse`](crate::Error::Misuse), and nothing that it drops touches the parent's connections. So daemonize, then
    /// build.
    ///
    /// # Errors
    /// [`BuildError::Settings`] with every setting that cannot work, by the names of this builder's
    /// methods; [`BuildError::Thread`] if the system grants no thread.
    pub fn build(self) -> Result<Pool, BuildError> {
        let mut config = self.config;
        config.bound_times(LONGEST);
        let mut problems = config.problems(|option, _variable| option);
        let url = |takes: String| Problem {
            name: "database_url",
            got: None,
            takes,
        };
        match (&config.database, self.bad_url) {
            (_, Some(why)) => problems.push(url(why)),
            (None, None) => problems.push(url("is not set".into())),
            (Some(_), None) => {}
        }
        if !problems.is_empty() {
            return Err(BuildError::Settings(ConfigErrors(problems)));
        }
        let fit = fd_limit::connections_that_fit(config.max_size as usize) as u32;
        if fit < config.max_size {
            warn!(
                "too few files may be open for max_size={} connections (DB_POOL_MAX): using {fit} at most; raise the limit (ulimit -n)",
                config.max_size
            );
            config.max_size = fit;
        }
        let hosts = config
            .database
            .as_ref()
            .map(Database::each_host)
            .unwrap_or_default();
        let watchdog = Watchdog::start().map_err(BuildError::Thread)?;
        let shared = Arc::new(Shared::new(
            config,
            self.on_connect,
            Observers::new(self.observers),
            watchdog,
        ));
        let opener = Arc::new(Opener::new(Arc::clone(&shared), hosts));
        let config = &shared.config;
        // Without a thread it panics (scheduled-thread-pool 0.2.7).
        let r2d2 = caught(|| {
            r2d2::Pool::builder()
                .max_size(config.max_size)
                .connection_timeout(config.connection_timeout)
                // These are ours; see the head of the pool's module.
                .min_idle(Some(0))
                .max_lifetime(None)
                .idle_timeout(None)
                .test_on_check_out(false)
                .error_handler(Box::new(r2d2::NopErrorHandler))
                // `build` would wait for the first connections.
                .build_unchecked(Manager(Arc::clone(&opener)))
        });
        let r2d2 = r2d2.map_err(|panic| {
            shared.watchdog.stop();
            // The system's own word is in the panic's; it says the same once more.
            let refused = std::thread::Builder::new().spawn(|| {}).err();
            BuildError::Thread(refused.unwrap_or_else(|| std::io::Error::other(panic)))
        })?;
        let (max, waiting) = (config.max_size as usize, config.max_waiting);
        let line = Line::new(max, waiting, config.effective_min_idle() as usize);
        let inner = Arc::new(Inner {
            budget: Budget::for_pool_of(config.max_size),
            probe: Probe::default(),
            line: Arc::new(line),
            r2d2,
            max: AtomicUsize::new(max),
            out: AtomicUsize::new(0),
            warned_at: AtomicU64::new(0),
            next_look: AtomicUsize::new(0),
            start: Instant::now(),
            report: OnceLock::new(),
            housekeeper: Mutex::default(),
            returned: Default::default(),
            sweeper: OnceLock::new(),
            opener,
            shared,
        });
        let line = Arc::downgrade(&inner.line);
        let tell_the_line = move || {
            if let Some(line) = line.upgrade() {
                line.turn_away();
            }
        };
        let _ = inner.opener.on_refused.set(Box::new(tell_the_line));
        housekeeping::start(&inner).map_err(BuildError::Thread)?;
        Ok(Pool { inner })
    }
}

/// Why a pool could not be built.
#[derive(Debug)]
#[non_exhaustive]
pub enum BuildError {
    /// Settings that cannot work, all at once.
    Settings(ConfigErrors),
    /// The system refused one of the pool's threads.
    Thread(io::Error),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BuildError::Settings(errors) => write!(f, "{errors}"),
            BuildError::Thread(e) => write!(
                f,
                "cannot start a thread for the pool: {e}; raise the limit (ulimit -u or -v, or pids.max of the control group)"
            ),
        }
    }
}

impl std::error::Error for BuildError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            // Their texts are in our own already.
            BuildError::Settings(_) => None,
            BuildError::Thread(e) => e.source(),
        }
    }
}

impl Pool {
    /// Sets a pool up; every option has the default of the README's table.
    pub fn builder() -> Builder {
        Builder::default()
    }
}
