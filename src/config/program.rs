//! All settings of the program.

#[cfg(feature = "server")]
use super::http::HttpConfig;
use super::pool::PoolConfig;
use super::source::Source;
use std::collections::BTreeMap;

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

/// All settings of the program, and where each came from.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// The pool's.
    pub pool: PoolConfig,
    /// The HTTP server's.
    #[cfg(feature = "server")]
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
            #[cfg(feature = "server")]
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
    /// Where a setting came from.
    pub fn source(&self, name: &str) -> Source {
        self.sources.get(name).copied().unwrap_or(Source::Default)
    }

    /// Threads for API requests, as they are in force.
    #[cfg(feature = "server")]
    pub fn http_workers(&self) -> usize {
        self.http.workers.unwrap_or(2 * self.pool.max_size as usize)
    }
}
