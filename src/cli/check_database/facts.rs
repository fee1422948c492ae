//! What is known: of the program's settings, and of the database. A fact that could not be found
//! out is `None`, or missing.

use millpond::config::{Pooler, SslMode};
use millpond::for_cli::Endpoint;
use millpond::pool::StandbyState;
use std::collections::BTreeMap;
use std::time::Duration;

/// What the program is going to do, by its settings.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub instances: u32,
    pub max_size: u32,
    pub min_idle: u32,
    /// 0 = no budget.
    pub fleet_max: u32,
    pub pooler: Pooler,
    pub ssl_mode: SslMode,
    /// `None` = off, as for the others.
    pub statement_timeout: Option<Duration>,
    pub query_timeout: Option<Duration>,
    pub idle_timeout: Option<Duration>,
    pub max_lifetime: Option<Duration>,
    /// The studio's API is served.
    pub studio: bool,
    pub ledger_schema: String,
}

/// What is known of the database.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub endpoint: Endpoint,
    pub round_trip: Duration,
    pub standby: bool,
    pub settings: Settings,
    pub sessions: Option<Sessions>,
    pub limits: Option<Limits>,
    pub encryption: Option<Encryption>,
    pub rights: Option<Rights>,
    /// The tables in the ledger's schema.
    pub tables: Option<Vec<Table>>,
    pub standbys: Option<Standbys>,
    /// The standbys that reads are to use.
    pub read_hosts: Vec<ReadHost>,
    /// By how much the server's clock is ahead, in seconds, and by how much that may be wrong.
    pub clock: Option<(f64, f64)>,
    pub oldest: Option<Oldest>,
    /// What could not be found out, by topic, and why.
    pub unknown: Vec<(&'static str, String)>,
}

/// One of `DB_READ_HOSTS`.
#[derive(Clone, Debug)]
pub(super) struct ReadHost {
    pub host: String,
    pub state: StandbyState,
    /// How old its data may be.
    pub lag: Option<Duration>,
    /// Why it could not be asked.
    pub error: Option<String>,
    /// How many more connections it takes.
    pub room: Option<usize>,
}

/// The server's settings as they are in force on the connection, by name: the value in its base
/// unit, and where it came from (`pg_settings`).
#[derive(Clone, Debug, Default)]
pub(super) struct Settings(pub BTreeMap<String, (String, String)>);

impl Settings {
    /// Returns a value; an empty one if there is no such setting, as in an older server.
    pub fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", |(value, _)| value)
    }

    pub fn number(&self, name: &str) -> Option<i64> {
        self.text(name).parse().ok()
    }

    /// Returns a timeout, which the server counts in milliseconds; `None` if it is off.
    pub fn timeout(&self, name: &str) -> Option<Duration> {
        let ms = self
            .number(name)
            .and_then(|number| u64::try_from(number).ok());
        ms.filter(|ms| *ms > 0).map(Duration::from_millis)
    }

    /// Returns where a value came from.
    pub fn source(&self, name: &str) -> &str {
        self.0.get(name).map_or("", |(_, source)| source)
    }
}

/// The sessions of other programs, that is under another `application_name`.
#[derive(Clone, Debug, Default)]
pub(super) struct Sessions {
    pub all: usize,
    pub of_this_role: usize,
    pub in_this_database: usize,
    /// How many each program has, the most first.
    pub by_application: Vec<(String, usize)>,
}

/// Limits of the role that logged in, and of the database; `None` = no limit.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    pub role: String,
    pub role_limit: Option<usize>,
    pub database: String,
    pub database_limit: Option<usize>,
    pub superuser: bool,
}

/// The encryption as the server sees it.
#[derive(Clone, Debug)]
pub(super) struct Encryption {
    pub version: String,
    pub cipher: String,
}

#[derive(Clone, Debug)]
pub(super) struct Rights {
    pub may_create_schemas: bool,
    pub may_create_temporary_tables: bool,
    /// Whether the role may use the ledger's schema, and create tables in it; `None` if there is no
    /// such schema.
    pub schema: Option<(bool, bool)>,
    /// It may read what tells whether a COMMIT was done.
    pub may_resolve_commits: bool,
}

/// A table, and what the role may do with it.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub name: String,
    /// Its columns are those of a ledger.
    pub is_ledger: bool,
    /// `SELECT`, `INSERT`, `UPDATE`, `DELETE`.
    pub allowed: [bool; 4],
}

/// The standbys that are connected to this server.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Standbys {
    pub all: usize,
    /// Those that a COMMIT may wait for.
    pub synchronous: usize,
    /// Those of which the role may not see whether they are.
    pub hidden: usize,
}

/// The database with the oldest transaction ids of the server.
#[derive(Clone, Debug)]
pub(super) struct Oldest {
    pub database: String,
    /// The age in transactions, and in multixacts.
    pub age: i64,
    pub multixact_age: i64,
}
