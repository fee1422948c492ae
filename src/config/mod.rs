//! Every setting: its name, default and range.
//!
//! [`Config::from_env`] reads the environment and `.env`; a real variable wins. A bad value is never replaced by a default:
//! all problems are reported at once ([`ConfigErrors`]), and what could be a secret is never echoed. Those who embed the
//! pool set the same things with the same defaults on [`Pool::builder`](crate::Pool::builder).

mod database;
mod table;

pub use database::Database;
pub use ipnet::IpNet;
pub use table::{Source, names};

use crate::retry::RetryPolicy;
use crate::transaction::Ledger;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// What the pool needs to know. The defaults are those of the README's table.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PoolConfig {
    /// Where the database is.
    pub database: Option<Database>,
    /// Most connections of the pool. Default 20, at least 1.
    pub max_size: u32,
    /// Idle connections kept ready. `None` is 2, or `max_size` where that is smaller.
    pub min_idle: Option<u32>,
    /// An idle connection above the minimum is closed after this. Default 30 s; `None` = never.
    pub idle_timeout: Option<Duration>,
    /// Longest wait for a connection. Default 2 s.
    pub connection_timeout: Duration,
    /// A connection is retired at this age less up to 10 % jitter. Default 30 min; `None` = never.
    pub max_lifetime: Option<Duration>,
    /// A connection is retired after so many check-outs. Default 7500; 0 = never.
    pub max_uses: u64,
    /// Most threads in line; one more is refused at once. Default 1000.
    pub max_waiting: usize,
    /// The server's own `statement_timeout`. Default 5 s; `None` = off.
    pub statement_timeout: Option<Duration>,
    /// Our deadline of one statement: a cancel then, and the connection is cut 500 ms later. Default 5 s; `None` = off.
    pub query_timeout: Option<Duration>,
    /// Prepared statements kept per connection. Default 256; 0 = unnamed statements only.
    pub statement_cache: usize,
    /// When a connection is cleaned. Default [`Reset::Auto`].
    pub reset: Reset,
    /// Whether a pooler stands between. `None` is what the URL says (`pgbouncer=true`), else [`Pooler::Auto`].
    pub pooler: Option<Pooler>,
    /// Shown in `pg_stat_activity`. `None` is the program's file name.
    pub application_name: Option<String>,
    /// When calls are repeated.
    pub retry: RetryPolicy,
    /// Once no connection could be opened for this long, check-outs fail at once. Default 10 s; zero = at the first failure.
    pub fail_fast_after: Duration,
    /// A statement that takes longer is logged. Default 500 ms; `None` = off.
    pub slow_query: Option<Duration>,
    /// Warn when a connection is held longer. Default off.
    pub leak_threshold: Option<Duration>,
    /// The schema of the ledger's table. Default `millpond`; small letters, digits and underscores.
    pub ledger_schema: String,
    /// How long a key is kept. Default 24 h.
    pub ledger_ttl: Duration,
    /// `DB_STATEMENT_TIMEOUT_MS` was set, and so wins over the same option in the URL.
    pub(crate) statement_timeout_wins: bool,
}

impl Default for PoolConfig {
    fn default() -> Self {
        PoolConfig {
            database: None,
            max_size: 20,
            min_idle: None,
            idle_timeout: Some(Duration::from_secs(30)),
            connection_timeout: Duration::from_secs(2),
            max_lifetime: Some(Duration::from_secs(30 * 60)),
            max_uses: 7500,
            max_waiting: 1000,
            statement_timeout: Some(Duration::from_secs(5)),
            query_timeout: Some(Duration::from_secs(5)),
            statement_cache: 256,
            reset: Reset::Auto,
            pooler: None,
            application_name: None,
            retry: RetryPolicy::default(),
            fail_fast_after: Duration::from_secs(10),
            slow_query: Some(Duration::from_millis(500)),
            leak_threshold: None,
            ledger_schema: "millpond".into(),
            ledger_ttl: Duration::from_secs(24 * 60 * 60),
            statement_timeout_wins: false,
        }
    }
}

impl PoolConfig {
    /// The idle connections kept ready, as they are in force.
    pub fn effective_min_idle(&self) -> u32 {
        self.min_idle.unwrap_or(2).min(self.max_size)
    }

    /// Whether a pooler stands between, as it is in force.
    pub fn effective_pooler(&self) -> Pooler {
        let by_url = || match self.database.as_ref()?.pooler()? {
            true => Some(Pooler::On),
            false => Some(Pooler::Off),
        };
        self.pooler.or_else(by_url).unwrap_or(Pooler::Auto)
    }

    /// The URL asks for a server that takes no writes (`target_session_attrs=read-only`).
    pub(crate) fn reads_only(&self) -> bool {
        let attributes = self
            .database
            .as_ref()
            .map(|d| d.config().get_target_session_attrs());
        attributes == Some(postgres::config::TargetSessionAttrs::ReadOnly)
    }

    /// Times beyond `longest` mean "for ever" to whoever set them, and would overflow.
    pub(crate) fn bound_times(&mut self, longest: std::time::Duration) {
        for time in [
            &mut self.idle_timeout,
            &mut self.max_lifetime,
            &mut self.statement_timeout,
            &mut self.query_timeout,
            &mut self.slow_query,
            &mut self.leak_threshold,
            &mut self.retry.initial_delay,
        ] {
            *time = time.map(|t| t.min(longest));
        }
        for time in [
            &mut self.connection_timeout,
            &mut self.fail_fast_after,
            &mut self.ledger_ttl,
            &mut self.retry.max_delay,
        ] {
            *time = (*time).min(longest);
        }
    }

    /// Refuses what cannot work, all at once. The names are those of the environment.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        let mut expect = |good: bool, name: &'static str, got: String, takes: String| {
            if !good {
                found.push(Problem {
                    name,
                    got: Some(got),
                    takes,
                });
            }
        };
        let max = self.max_size;
        expect(
            (1..=table::MOST_CONNECTIONS).contains(&max),
            "DB_POOL_MAX",
            max.to_string(),
            "1 to 10000".into(),
        );
        if let Some(min) = self.min_idle {
            expect(
                min <= max,
                "DB_POOL_MIN",
                min.to_string(),
                format!("0 to DB_POOL_MAX, which is {max}"),
            );
        }
        let statements = self.statement_cache;
        expect(
            statements <= table::MOST_STATEMENTS,
            "DB_STATEMENT_CACHE",
            statements.to_string(),
            format!("0 to {}", table::MOST_STATEMENTS),
        );
        let wait = self.connection_timeout;
        expect(
            !wait.is_zero(),
            "DB_CONNECTION_TIMEOUT_MS",
            "0".into(),
            "at least 1: no limit is not offered".into(),
        );
        if let Some(first) = self.retry.initial_delay {
            let longest = self.retry.max_delay;
            expect(
                first <= longest,
                "DB_RETRY_INITIAL_DELAY_MS",
                first.as_millis().to_string(),
                format!(
                    "0 to DB_RETRY_MAX_DELAY_MS, which is {}",
                    longest.as_millis()
                ),
            );
        }
        expect(
            Ledger::is_schema_name(&self.ledger_schema),
            "ledger_schema",
            self.ledger_schema.clone(),
            "small letters, digits and underscores, no digit first, no pg_, at most 63".into(),
        );
        expect(
            !self.ledger_ttl.is_zero(),
            "ledger_ttl",
            "0".into(),
            "at least 1 ms: a key that is not kept is of no use".into(),
        );
        let growth = self.retry.multiplier;
        expect(
            growth >= 1.0,
            "DB_RETRY_MULTIPLIER",
            growth.to_string(),
            "a number of at least 1".into(),
        );
        found
    }
}

/// When what was left on a connection is taken away: settings, locks, temporary tables, subscriptions, prepared statements,
/// cursors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// After a statement whose text shows that it may leave something, and after a plain check-out that was used. What
    /// functions and procedures do inside is not seen.
    Auto,
    /// After every use, which takes a round trip, though seldom one that anybody waits for. Behind a pooler, the connection
    /// is closed instead.
    Always,
}

/// Whether a connection pooler, such as PgBouncer, stands between the pool and the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooler {
    /// It is found out: the process that a connection was told of is not the one that answers.
    Auto,
    /// Yes: statements have no names, nothing is set on sessions, and only a key tells what became of a lost COMMIT.
    On,
    /// No, whatever it looks like.
    Off,
}

/// Whether the program starts a PostgreSQL of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrivateDatabase {
    /// When no database is named and nobody else can reach the server.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// What the HTTP server needs to know.
#[derive(Clone)]
#[non_exhaustive]
pub struct HttpConfig {
    /// Listening address. Default `127.0.0.1:3000`; port 0 picks one.
    pub addr: std::net::SocketAddr,
    /// Threads for API requests. `None` is twice `DB_POOL_MAX`.
    pub workers: Option<usize>,
    /// Requests in line for a worker; one more gets 503. Default 1024.
    pub queue: usize,
    /// A larger body gets 413. Default 1 MiB.
    pub max_body_bytes: usize,
    /// The whole budget of one API request. Default 10 s.
    pub request_timeout: Duration,
    /// Most connections of clients; at the limit, the one idle longest makes room. Default 4096, or what the process may
    /// open where that is less.
    pub max_connections: usize,
    /// From the first byte of a request (or the connection's begin) to the end of its head; then 408. Default 5 s.
    pub header_timeout: Duration,
    /// From the end of a request's head to the end of its body; then 408. Default 10 s.
    pub body_timeout: Duration,
    /// A connection without a request is closed after this. Default 75 s.
    pub idle_timeout: Duration,
    /// A client that takes less than 16 KiB of its answer in this time is left. Default 10 s.
    pub write_timeout: Duration,
    /// Who may say by `Forwarded` or `X-Forwarded-For` on whose behalf a request comes. Default nobody.
    pub trusted_proxies: Vec<IpNet>,
    /// Pages of other sites that may use the API, by their origin (`https://app.example.com`). Default none.
    pub cors_origins: Vec<String>,
    /// The studio's routes ask for this bearer token.
    pub api_token: Option<String>,
    /// `/metrics`, `/api/metrics/*` and `/dashboard` ask for this bearer token.
    pub metrics_token: Option<String>,
    /// The studio's routes may be served without a token on an address that is not loopback.
    pub allow_anonymous: bool,
    /// Time between "not ready" and the drain. Default 0.
    pub shutdown_delay: Duration,
    /// From the signal to the exit, the delay included. Default 8 s.
    pub shutdown_timeout: Duration,
}

impl Default for HttpConfig {
    fn default() -> Self {
        HttpConfig {
            addr: std::net::SocketAddr::from(([127, 0, 0, 1], 3000)),
            workers: None,
            queue: 1024,
            max_body_bytes: 1 << 20,
            request_timeout: Duration::from_secs(10),
            max_connections: 4096,
            header_timeout: Duration::from_secs(5),
            body_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(10),
            trusted_proxies: Vec::new(),
            cors_origins: Vec::new(),
            api_token: None,
            metrics_token: None,
            allow_anonymous: false,
            shutdown_delay: Duration::ZERO,
            shutdown_timeout: Duration::from_secs(8),
        }
    }
}

/// Shows no token.
impl fmt::Debug for HttpConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = |token: &Option<String>| token.as_ref().map(|_| "***");
        f.debug_struct("HttpConfig")
            .field("addr", &self.addr)
            .field("workers", &self.workers)
            .field("queue", &self.queue)
            .field("max_body_bytes", &self.max_body_bytes)
            .field("request_timeout", &self.request_timeout)
            .field("max_connections", &self.max_connections)
            .field("header_timeout", &self.header_timeout)
            .field("body_timeout", &self.body_timeout)
            .field("idle_timeout", &self.idle_timeout)
            .field("write_timeout", &self.write_timeout)
            .field("trusted_proxies", &self.trusted_proxies)
            .field("cors_origins", &self.cors_origins)
            .field("api_token", &hidden(&self.api_token))
            .field("metrics_token", &hidden(&self.metrics_token))
            .field("allow_anonymous", &self.allow_anonymous)
            .field("shutdown_delay", &self.shutdown_delay)
            .field("shutdown_timeout", &self.shutdown_timeout)
            .finish()
    }
}

/// All settings of the program, and where each came from.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// The pool's.
    pub pool: PoolConfig,
    /// The HTTP server's.
    pub http: HttpConfig,
    /// Whether the program starts a PostgreSQL of its own.
    pub private_database: PrivateDatabase,
    /// `PGHOST` is set: somebody means a database that is there already.
    pub pghost_set: bool,
    /// Where the PostgreSQL server's programs are (`PG_BIN_DIR`).
    pub pg_bin_dir: Option<std::path::PathBuf>,
    /// The studio's routes are served.
    pub studio_api: bool,
    /// The one currency of all amounts.
    pub studio_currency: String,
    /// How much is logged.
    pub log_level: log::LevelFilter,
    pub(crate) sources: BTreeMap<&'static str, Source>,
    /// Variables of the environment or of `.env` that look like settings and are none, each with the one that may be meant.
    pub unknown: Vec<(String, Option<&'static str>)>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            pool: PoolConfig {
                application_name: Some("studio-revenue-manager".into()),
                ..PoolConfig::default()
            },
            http: HttpConfig::default(),
            private_database: PrivateDatabase::Auto,
            pghost_set: false,
            pg_bin_dir: None,
            studio_api: true,
            studio_currency: "EUR".into(),
            log_level: log::LevelFilter::Info,
            sources: BTreeMap::new(),
            unknown: Vec::new(),
        }
    }
}

impl Config {
    /// Reads the environment and the file `.env` of the current directory; a real variable wins.
    ///
    /// # Errors
    /// Every variable with a bad value, all at once.
    pub fn from_env() -> Result<Config, ConfigErrors> {
        table::read_environment()
    }

    /// Reads the variables given instead of the environment's.
    ///
    /// # Errors
    /// Every variable with a bad value, all at once.
    pub fn from_vars<'a>(
        vars: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Config, ConfigErrors> {
        let vars: BTreeMap<_, _> = vars.into_iter().collect();
        table::read(
            |name| {
                vars.get(name)
                    .map(|v| Ok(((*v).to_owned(), Source::Environment)))
            },
            Vec::new(),
        )
    }

    /// Where a setting came from.
    pub fn source(&self, name: &str) -> Source {
        self.sources.get(name).copied().unwrap_or(Source::Default)
    }

    /// Name, value and source of every setting in force; passwords and tokens as `***`.
    pub fn effective(&self) -> Vec<(&'static str, String, Source)> {
        table::effective(self)
    }

    /// Threads for API requests, as they are in force.
    pub fn http_workers(&self) -> usize {
        self.http.workers.unwrap_or(2 * self.pool.max_size as usize)
    }
}

/// One bad setting.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// The variable.
    pub name: &'static str,
    /// What it was set to; `None` where that could be a secret.
    pub got: Option<String>,
    /// What it takes.
    pub takes: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.got {
            Some(got) => write!(f, "{}: got {got:?}; takes {}", self.name, self.takes),
            None => write!(f, "{}: {}", self.name, self.takes),
        }
    }
}

/// Every bad setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<Problem>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.len() == 1 {
            "bad setting"
        } else {
            "bad settings"
        })?;
        for problem in &self.0 {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
