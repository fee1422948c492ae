//! The settings of the pool.

use super::database::Database;
use super::problem::Problem;
use super::server_host::{ServerHost, SessionAttrs};
use super::url_file::UrlFile;
use crate::retry::RetryPolicy;
use crate::secrets::Secret;
use std::sync::Arc;
use std::time::Duration;

/// A larger number is a typing error: PostgreSQL itself takes at most 262143.
pub(super) const MOST_CONNECTIONS: u32 = 10_000;
pub(super) const MOST_STATEMENTS: usize = 100_000;
/// How far behind a standby is, is known with a delay of this order.
pub(super) const LEAST_LAG: Duration = Duration::from_millis(100);

/// The settings of the pool. The defaults are those in the README's table.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PoolConfig {
    /// Where the database is.
    pub database: Option<Database>,
    /// The most connections of the pool. Default 20, at least 1.
    pub max_size: u32,
    /// The number of connections kept idle. `None` is 2, or `max_size` if that is smaller.
    pub min_idle: Option<u32>,
    /// An idle connection above the minimum is closed after this. Default 30 s; `None` = never.
    pub idle_timeout: Option<Duration>,
    /// Longest wait for a connection. Default 2 s.
    pub connection_timeout: Duration,
    /// Longest time to open one connection. `None` is the URL's `connect_timeout`, else 10 s.
    pub connect_timeout: Option<Duration>,
    /// At this age less up to 10 % jitter another connection is opened in place of one, which goes
    /// on serving until then. Default 30 min; `None` = never.
    pub max_lifetime: Option<Duration>,
    /// After this many check-outs, less up to 10 % jitter, another connection is opened in place of
    /// one, as at `max_lifetime`. Default 7500; 0 = never.
    pub max_uses: u64,
    /// The most threads that may wait in line; a further one is refused at once. Default 1000.
    pub max_waiting: usize,
    /// Who in line is served next. Default [`LineOrder::Auto`].
    pub line_order: LineOrder,
    /// The server's own `statement_timeout`. Default 5 s; `None` = off.
    pub statement_timeout: Option<Duration>,
    /// The pool's deadline for one statement: the statement is cancelled then, and the connection
    /// is cut 500 ms later. Default 5 s; `None` = off.
    pub query_timeout: Option<Duration>,
    /// Prepared statements kept per connection. Default 256; 0 = unnamed statements only.
    pub statement_cache: usize,
    /// When a connection is cleaned. Default [`Reset::Auto`].
    pub reset: Reset,
    /// Whether a pooler stands between the pool and the server. `None` is what the URL says
    /// (`pgbouncer=true`), else [`Pooler::Auto`].
    pub pooler: Option<Pooler>,
    /// Shown in `pg_stat_activity`. `None` is the program's file name.
    pub application_name: Option<String>,
    /// The statements of a call that has a `traceparent` end with a comment that names it. Default
    /// false.
    pub sqlcommenter: bool,
    /// How often calls are retried, and after which pauses.
    pub retry: RetryPolicy,
    /// Once no connection could be opened for this long, check-outs fail at once. Default 10 s;
    /// zero = at the first failure.
    pub fail_fast_after: Duration,
    /// A statement that takes longer is logged. Default 500 ms; `None` = off.
    pub slow_query: Option<Duration>,
    /// A connection that is held longer is logged with a warning. Default `None` = off.
    pub leak_threshold: Option<Duration>,
    /// The most connections of all instances with this application name together; 0 = no such limit.
    /// Default 0.
    pub fleet_max: u32,
    /// How far behind the primary a standby may be that reads use. Default 1 s, at least 100 ms.
    pub read_max_lag: Duration,
    /// The schema of the ledger's table. Default `millpond`; small letters, digits and underscores.
    pub ledger_schema: String,
    /// How long a key is kept. Default 24 h.
    pub ledger_ttl: Duration,
    /// Where the password comes from if it may change. It takes the place of the URL's.
    pub(crate) password: Option<Arc<Secret>>,
    /// The standbys that reads may use. A port of 0 is that of the database's first host.
    pub(crate) read_hosts: Vec<ServerHost>,
    /// Of the pool of one standby: the only host that it uses.
    pub(crate) only_host: Option<ServerHost>,
    /// The file that holds the URL.
    pub(crate) url_file: Option<Arc<UrlFile>>,
    /// `DB_STATEMENT_TIMEOUT_MS` was set, and so overrides the same option in the URL.
    pub(crate) statement_timeout_wins: bool,
    /// Where the URL names an application, its name is used: it may change, if the URL is in a file.
    pub(crate) application_name_follows: bool,
}

impl Default for PoolConfig {
    fn default() -> Self {
        PoolConfig {
            database: None,
            max_size: 20,
            min_idle: None,
            connect_timeout: None,
            password: None,
            url_file: None,
            idle_timeout: Some(Duration::from_secs(30)),
            connection_timeout: Duration::from_secs(2),
            max_lifetime: Some(Duration::from_secs(30 * 60)),
            max_uses: 7500,
            max_waiting: 1000,
            line_order: LineOrder::Auto,
            statement_timeout: Some(Duration::from_secs(5)),
            query_timeout: Some(Duration::from_secs(5)),
            statement_cache: 256,
            reset: Reset::Auto,
            pooler: None,
            application_name: None,
            sqlcommenter: false,
            retry: RetryPolicy::default(),
            fail_fast_after: Duration::from_secs(10),
            slow_query: Some(Duration::from_millis(500)),
            leak_threshold: None,
            fleet_max: 0,
            read_max_lag: Duration::from_secs(1),
            read_hosts: Vec::new(),
            only_host: None,
            ledger_schema: "millpond".into(),
            ledger_ttl: Duration::from_secs(24 * 60 * 60),
            statement_timeout_wins: false,
            application_name_follows: false,
        }
    }
}

impl PoolConfig {
    /// Returns the number of connections kept idle that is in force.
    pub fn effective_min_idle(&self) -> u32 {
        self.min_idle.unwrap_or(2).min(self.max_size)
    }

    /// Returns the setting for a pooler that is in force.
    pub fn effective_pooler(&self) -> Pooler {
        let by_url = || match self.database.as_ref()?.pooler()? {
            true => Some(Pooler::On),
            false => Some(Pooler::Off),
        };
        self.pooler.or_else(by_url).unwrap_or(Pooler::Auto)
    }

    /// Returns whether a server is wanted that takes no writes: the URL asks for one
    /// (`target_session_attrs=read-only`), or the pool is a standby's.
    pub(crate) fn reads_only(&self) -> bool {
        let asked = self.database.as_ref().map(Database::session_attrs);
        asked == Some(SessionAttrs::ReadOnly) || self.only_host.is_some()
    }

    /// Returns the limit for opening a connection that is in force.
    pub(crate) fn effective_connect_timeout(&self) -> Duration {
        let by_url = || {
            self.database
                .as_ref()?
                .config()
                .get_connect_timeout()
                .copied()
        };
        let given = self.connect_timeout.or_else(by_url);
        given.unwrap_or(Duration::from_secs(10))
    }

    /// Limits all times to `longest`. Longer times are meant as "never", and would overflow.
    pub(crate) fn bound_times(&mut self, longest: std::time::Duration) {
        for time in [
            &mut self.connect_timeout,
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
            &mut self.read_max_lag,
            &mut self.retry.max_delay,
        ] {
            *time = (*time).min(longest);
        }
    }

    /// Returns all values that cannot work. `name` chooses between the names of a setting: the
    /// builder's option, and the variable of the environment.
    pub(crate) fn problems(
        &self,
        name: impl Fn(&'static str, &'static str) -> &'static str,
    ) -> Vec<Problem> {
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
            (1..=MOST_CONNECTIONS).contains(&max),
            name("max_size", "DB_POOL_MAX"),
            max.to_string(),
            "1 to 10000".into(),
        );
        if let Some(min) = self.min_idle {
            expect(
                min <= max,
                name("min_idle", "DB_POOL_MIN"),
                min.to_string(),
                format!("0 to {}, which is {max}", name("max_size", "DB_POOL_MAX")),
            );
        }
        let statements = self.statement_cache;
        expect(
            statements <= MOST_STATEMENTS,
            name("statement_cache", "DB_STATEMENT_CACHE"),
            statements.to_string(),
            format!("0 to {MOST_STATEMENTS}"),
        );
        let wait = self.connection_timeout;
        expect(
            !wait.is_zero(),
            name("connection_timeout", "DB_CONNECTION_TIMEOUT_MS"),
            "0".into(),
            "at least 1; waiting without a limit is not supported".into(),
        );
        if let Some(first) = self.retry.initial_delay {
            let longest = self.retry.max_delay;
            expect(
                first <= longest,
                name("initial_delay", "DB_RETRY_INITIAL_DELAY_MS"),
                first.as_millis().to_string(),
                format!(
                    "0 to {}, which is {}",
                    name("max_delay", "DB_RETRY_MAX_DELAY_MS"),
                    longest.as_millis()
                ),
            );
        }
        expect(
            is_schema_name(&self.ledger_schema),
            "ledger_schema",
            self.ledger_schema.clone(),
            "small letters, digits and underscores, no digit first, no pg_, at most 63".into(),
        );
        expect(
            !self.ledger_ttl.is_zero(),
            "ledger_ttl",
            "0".into(),
            "at least 1 ms".into(),
        );
        let lag = self.read_max_lag;
        expect(
            lag >= LEAST_LAG,
            name("read_max_lag", "DB_READ_MAX_LAG_MS"),
            lag.as_millis().to_string(),
            format!("at least {} ms", LEAST_LAG.as_millis()),
        );
        let growth = self.retry.multiplier;
        expect(
            growth >= 1.0,
            name("multiplier", "DB_RETRY_MULTIPLIER"),
            growth.to_string(),
            "a number of at least 1".into(),
        );
        found
    }
}

/// When the state that was left on a connection is removed: settings, locks, temporary tables,
/// subscriptions, prepared statements, cursors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub enum Reset {
    /// After a statement whose text shows that it may leave state, and after a plain check-out that
    /// was used. What functions and procedures do inside is not noticed.
    #[default]
    Auto,
    /// After every use. This takes a round trip, though seldom one that a thread waits for. Behind
    /// a pooler, the connection is closed instead.
    Always,
}

/// Who in line is served next: of the threads that wait for a connection, and of the requests that
/// wait for a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub enum LineOrder {
    /// First come, first served; but while at least 5 % of those who left the line in the last
    /// second left it unserved (their time was up, their client has gone, or the line was full),
    /// the newest first: those can still be served in time. Back to first come once the line is
    /// empty, or less than 4 % leave unserved; and tried now and then in between.
    #[default]
    Auto,
    /// Always first come, first served.
    Fifo,
}

/// Whether a connection pooler, such as PgBouncer, stands between the pool and the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub enum Pooler {
    /// It is detected: the process that the server named at the start is not the one that answers.
    #[default]
    Auto,
    /// Yes: statements have no names, nothing is set on sessions, and the outcome of a lost COMMIT
    /// is known only with a key.
    On,
    /// No, even if it seems so.
    Off,
}

/// Returns whether a name needs no quoting, so that it means the same everywhere.
fn is_schema_name(name: &str) -> bool {
    let mut chars = name.chars();
    let first = chars
        .next()
        .is_some_and(|c| c.is_ascii_lowercase() || c == '_');
    first
        && name.len() <= 63
        && !name.starts_with("pg_")
        && chars.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::is_schema_name;

    #[test]
    fn a_schema_is_named_in_plain_letters() {
        for good in ["millpond", "_x1", "studio"] {
            assert!(is_schema_name(good), "{good}");
        }
        let long = "x".repeat(64);
        for bad in ["", "1x", "Studio", "a b", "a\"b", "pg_x", "ä", &long] {
            assert!(!is_schema_name(bad), "{bad}");
        }
    }
}
