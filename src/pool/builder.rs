//! The options of a pool.

use super::checkout::Pool;
use super::common::Common;
use super::observer::Observer;
use super::shared::OnConnect;
use crate::config::{self, Database, LineOrder, PoolConfig, Pooler, Reset};
use crate::retry::RetryPolicy;
use crate::secrets::Secret;
use postgres::Client;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Options of a pool. [`build`](Builder::build) returns at once, even if the database is down.
#[derive(Default)]
#[must_use = "nothing happens before build()"]
pub struct Builder {
    pub(super) config: PoolConfig,
    pub(super) on_connect: Option<Arc<OnConnect>>,
    pub(super) observers: Vec<Arc<dyn Observer>>,
    pub(super) bad_url: Option<String>,
    pub(super) bad_read_hosts: Option<String>,
    /// What this pool has in common with the one that it is a part of.
    pub(super) common: Option<Common>,
}

/// Takes the settings of [`Config::from_env`](crate::Config::from_env), or any others.
impl From<PoolConfig> for Builder {
    fn from(config: PoolConfig) -> Builder {
        Builder {
            config,
            ..Builder::default()
        }
    }
}

/// Takes the driver's settings of a connection, and the defaults for everything else. As with a
/// URL, [`build`](Builder::build) refuses settings that it would have to weaken silently, such as
/// `sslmode=require` without the feature `tls`.
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

/// Returns None for zero, which means "off" or "never".
fn unless_zero(time: Duration) -> Option<Duration> {
    Some(time).filter(|t| !t.is_zero())
}

impl Builder {
    /// Sets the database: a `postgresql://` URL or a `key=value` string, which may name several
    /// hosts. No default: [`build`](Self::build) fails without it, and reports what is wrong with
    /// it. All of libpq's parameters for TLS are taken with the feature `tls`; without it, a URL that
    /// insists on TLS is refused. libpq's environment and its services do not count here, but
    /// [`PoolConfig::from_env`](crate::config::PoolConfig) reads them.
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

    /// Sets where the password comes from, in place of the URL's: `password` is called for each
    /// connection that is opened, and again when the server refuses what it returned. It must not
    /// take long. No default. An error counts as a failure to open the connection; its text is
    /// logged, so it must not hold a secret.
    ///
    /// ```
    /// let builder = millpond::Pool::builder()
    ///     .database_url("postgresql://app@db.example/studio")
    ///     .password(|| Ok(std::fs::read_to_string("/run/secrets/token")?));
    /// ```
    pub fn password<F>(mut self, password: F) -> Self
    where
        F: Fn() -> Result<String, Box<dyn std::error::Error + Send + Sync>> + Send + Sync + 'static,
    {
        self.config.password = Some(Arc::new(Secret::callback(Arc::new(password))));
        self
    }

    /// Sets the file that holds the password, in place of the URL's. It is read again when it has
    /// changed, and when the server refuses what it held. No default.
    pub fn password_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.config.password = Some(Arc::new(Secret::file(path)));
        self
    }

    /// Sets the command that prints the password, in place of the URL's: it is run by `sh -c`, and
    /// its first line is the password. A second line `expires_in=SECONDS` says how long that may be
    /// used; without it, the command is run again after 60 s (for a token of AWS RDS: after three
    /// quarters of its life), and in any case when the server refuses the password, at most once a
    /// second. It may take 10 s. No default.
    pub fn password_command(mut self, command: impl Into<String>) -> Self {
        self.config.password = Some(Arc::new(Secret::command(command)));
        self
    }

    /// Sets the most connections of the pool. Default 20; [`build`](Self::build) refuses values
    /// outside 1 to 10000.
    ///
    /// The server should allow three more: one for the health probe, one for a second attempt to
    /// connect while the first gets no answer, and one for looking up the outcome of a lost COMMIT.
    /// Each connection takes up to five open files. If the process may not open that many when the
    /// pool is built, after an eighth is reserved for the rest of the process, the pool is made as
    /// large as fits, and a warning is logged.
    pub fn max_size(mut self, connections: u32) -> Self {
        self.config.max_size = connections;
        self
    }

    /// Sets the number of idle connections that are kept ready. Default 2, or `max_size` if that is
    /// smaller; 0 = none. [`build`](Self::build) refuses more than `max_size`.
    pub fn min_idle(mut self, connections: u32) -> Self {
        self.config.min_idle = Some(connections);
        self
    }

    /// Sets the limit for one check-out (waiting in line plus validation). Default 2 s;
    /// [`build`](Self::build) refuses zero. A check-out that takes longer fails as
    /// [`Error::Checkout`](crate::Error::Checkout).
    pub fn connection_timeout(mut self, limit: Duration) -> Self {
        self.config.connection_timeout = limit;
        self
    }

    /// Sets the limit for opening one connection: name, TCP, TLS and login. Default 10 s, or the
    /// URL's `connect_timeout`; zero = the default. It may be longer than
    /// [`connection_timeout`](Self::connection_timeout): then a check-out that gives up leaves the
    /// connection to the next.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.config.connect_timeout = unless_zero(limit);
        self
    }

    /// Sets how long a connection above the minimum may be idle before it is closed. Default 30 s;
    /// zero = forever.
    pub fn idle_timeout(mut self, time: Duration) -> Self {
        self.config.idle_timeout = unless_zero(time);
        self
    }

    /// Sets the age at which another connection is opened in place of one, less up to 10 % jitter.
    /// The old one goes on serving until the new one is open. Default 30 min; zero = never.
    pub fn max_lifetime(mut self, age: Duration) -> Self {
        self.config.max_lifetime = unless_zero(age);
        self
    }

    /// Sets after how many check-outs another connection is opened in place of one, less up to 10 %
    /// jitter, as for [`max_lifetime`](Self::max_lifetime). Default 7500; 0 = never.
    pub fn max_uses(mut self, uses: u64) -> Self {
        self.config.max_uses = uses;
        self
    }

    /// Sets the most threads that may wait in line. A further thread is refused at once, as
    /// [`Error::Checkout`](crate::Error::Checkout). Default 1000; with 0, a thread may wait only
    /// for a connection that can still be opened.
    pub fn max_waiting(mut self, threads: usize) -> Self {
        self.config.max_waiting = threads;
        self
    }

    /// Sets who in line is served next. Default [`LineOrder::Auto`]: first come, first served, but
    /// the newest first while many leave the line unserved.
    pub fn line_order(mut self, order: LineOrder) -> Self {
        self.config.line_order = order;
        self
    }

    /// Sets PostgreSQL's `statement_timeout` for every connection (manual, section 20.11). Default
    /// 5 s; zero = off. Fails as [`Error::QueryTimeout`](crate::Error::QueryTimeout).
    pub fn statement_timeout(mut self, limit: Duration) -> Self {
        self.config.statement_timeout = unless_zero(limit);
        self.config.statement_timeout_wins = true;
        self
    }

    /// Sets the pool's own deadline for one statement. It also holds if the server is frozen or
    /// unreachable: a cancel request is sent at the deadline, and the connection is cut 500 ms
    /// later. Default 5 s; zero = off. Fails as
    /// [`Error::QueryTimeout`](crate::Error::QueryTimeout).
    pub fn query_timeout(mut self, limit: Duration) -> Self {
        self.config.query_timeout = unless_zero(limit);
        self
    }

    /// Sets how many prepared statements are kept per connection. Default 256; 0 = unnamed
    /// statements only, as behind a [pooler](Self::pooler). [`build`](Self::build) refuses more
    /// than 100000.
    pub fn statement_cache(mut self, statements: usize) -> Self {
        self.config.statement_cache = statements;
        self
    }

    /// Sets when the state that was left on a connection is removed.
    ///
    /// Default [`Reset::Auto`]: after a statement whose text shows that it may leave state (`SET`,
    /// `set_config(.., false)`, `pg_advisory_lock`, `CREATE TEMP`, `LISTEN`, `PREPARE`, `DO`, ..),
    /// and after a plain check-out that was used. Use [`Reset::Always`] if functions or procedures
    /// of the application do such things inside. A session that loaded a library, or opened a
    /// connection of dblink's, is closed instead.
    pub fn reset(mut self, reset: Reset) -> Self {
        self.config.reset = reset;
        self
    }

    /// Sets whether a connection pooler, such as PgBouncer, stands between the pool and the server.
    ///
    /// Default [`Pooler::Auto`], or what `pgbouncer=` in the URL says. Behind a pooler, in session
    /// mode as well as in transaction mode:
    ///
    /// - Statements are not prepared by name.
    /// - Settings are made only inside transactions, never on a connection. So
    ///   [`statement_timeout`](Self::statement_timeout) holds only there, and
    ///   [`query_timeout`](Self::query_timeout) everywhere.
    /// - A plain connection that was checked out is closed at its check-in.
    /// - The outcome of a COMMIT whose answer was lost can be found out only for [writes with a
    ///   key](Pool::transaction_with_key).
    ///
    /// A pooler that gives its clients the server's own process numbers (pgpool-II) cannot be told
    /// from the server: use [`Pooler::On`] there.
    pub fn pooler(mut self, pooler: Pooler) -> Self {
        self.config.pooler = Some(pooler);
        self
    }

    /// Sets `application_name`, as `pg_stat_activity` shows it. Default: the program's file name.
    pub fn application_name(mut self, name: impl Into<String>) -> Self {
        self.config.application_name = Some(name.into());
        self
    }

    /// Sets whether the statements of a call that has a [`traceparent`](crate::Call::traceparent)
    /// end with a comment that names it, in the form of sqlcommenter: the database's log and
    /// `pg_stat_activity` show then which request a statement is for. Default false.
    ///
    /// Such a statement is parsed and planned anew each time, but takes one round trip as any
    /// other, and the prepared statements that are kept stay those of the bare texts. BEGIN,
    /// COMMIT and COPY have the comment, too; a text that has a comment of its own stays as it is.
    pub fn sqlcommenter(mut self, on: bool) -> Self {
        self.config.sqlcommenter = on;
        self
    }

    /// Sets how often calls are retried, and after which pauses. Default: [`RetryPolicy::default`].
    /// A call that used up its retries fails as [`Error::GaveUp`](crate::Error::GaveUp).
    pub fn retry_policy(mut self, policy: RetryPolicy) -> Self {
        self.config.retry = policy;
        self
    }

    /// Sets the time without a successful connection after which check-outs fail at once. They fail
    /// as [`Error::Checkout`](crate::Error::Checkout), with the cause, until a connection is
    /// opened. Default 10 s; zero = at the first failure.
    pub fn fail_fast_after(mut self, time: Duration) -> Self {
        self.config.fail_fast_after = time;
        self
    }

    /// Sets the duration above which a statement is logged, its text without values. Default 500
    /// ms; zero = off.
    pub fn slow_query(mut self, limit: Duration) -> Self {
        self.config.slow_query = unless_zero(limit);
        self
    }

    /// Sets the most connections that all instances of the program have together: all pools with
    /// this `application_name` in this database, those of their health probes included. Default 0:
    /// each has its own maximum only.
    ///
    /// A pool that joins starts with one connection and grows to its share within some seconds.
    /// Behind a pooler this is off.
    pub fn fleet_max(mut self, connections: u32) -> Self {
        self.config.fleet_max = connections;
        self
    }

    /// Sets the standbys that [`read`](Pool::read) may use, such as `db2,db3:5433`. Default none. A
    /// port that is not given is the database's, and so is everything else.
    ///
    /// Each has a pool of its own, of the same size. A read goes to one that is no further behind
    /// than [`read_max_lag`](Self::read_max_lag), and that has what was [written for the same
    /// client](crate::Call::client) before; else, and if anything goes wrong there, to the primary.
    /// The list may name the primary too: what counts is what each is at the moment.
    pub fn read_hosts(mut self, hosts: &str) -> Self {
        match config::hosts(hosts) {
            Ok(hosts) => (self.config.read_hosts, self.bad_read_hosts) = (hosts, None),
            Err(why) => self.bad_read_hosts = Some(why),
        }
        self
    }

    /// Sets how far behind the primary a standby may be that reads use. Default 1 s;
    /// [`build`](Self::build) refuses less than 100 ms. While no primary can be reached, reads go
    /// on for as long.
    pub fn read_max_lag(mut self, lag: Duration) -> Self {
        self.config.read_max_lag = lag;
        self
    }

    /// Sets the time after which a warning is logged, once, for a connection that is still checked
    /// out. It names the place of the check-out, the thread and the last statement; another line
    /// says when the connection comes back. Default zero = off. See also [`Pool::holders`].
    pub fn leak_threshold(mut self, time: Duration) -> Self {
        self.config.leak_threshold = unless_zero(time);
        self
    }

    /// Sets the schema of the table in which [transactions with a key](Pool::transaction_with_key)
    /// record their keys. Default `millpond`. [`build`](Self::build) accepts small letters, digits
    /// and underscores. [`Pool::create_ledger`] creates the schema and the table.
    pub fn ledger_schema(mut self, name: impl Into<String>) -> Self {
        self.config.ledger_schema = name.into();
        self
    }

    /// Sets how long a key is kept, at least. Default 24 h; [`build`](Self::build) refuses zero.
    ///
    /// A key is kept for longer while the outcome of its COMMIT may still be looked up, because the
    /// answer was lost: for [`query_timeout`](Self::query_timeout) (or a minute) plus twice
    /// [`connection_timeout`](Self::connection_timeout), at least 4 s. Pools that share a ledger
    /// should have the same values.
    pub fn ledger_ttl(mut self, time: Duration) -> Self {
        self.config.ledger_ttl = time;
        self
    }

    /// Runs `work` once on each new connection before it is used (`SET search_path`, `SET ROLE`),
    /// and again after a plain connection was reset at its check-in. It has to end within
    /// [`connect_timeout`](Self::connect_timeout). An error counts as a failure to open the
    /// connection.
    ///
    /// ```
    /// let builder = millpond::Pool::builder()
    ///     .on_connect(|client| client.batch_execute("SET search_path = app"));
    /// ```
    pub fn on_connect<F>(mut self, work: F) -> Self
    where
        F: Fn(&mut Client) -> Result<(), postgres::Error> + Send + Sync + 'static,
    {
        self.on_connect = Some(Arc::new(work));
        self
    }

    /// Adds an observer, which is told what happens to connections. May be called more than once.
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observers.push(observer);
        self
    }
}

impl Pool {
    /// Starts with the defaults of the README's table.
    pub fn builder() -> Builder {
        Builder::default()
    }
}
