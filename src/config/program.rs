//! All settings of the program.

use super::environment::Variables;
#[cfg(feature = "server")]
use super::http::HttpConfig;
use super::pool::PoolConfig;
use super::source::Source;
use std::collections::BTreeMap;
use std::fmt;

/// Whether the program starts a PostgreSQL of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrivateDatabase {
    /// If no database is configured and the server cannot be reached from other machines.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// The form of the program's log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// A JSON object on each line.
    Json,
}

/// The text of the URL, and the path of its file if it has one. Its `Debug` shows neither.
#[derive(Clone, Default)]
pub(super) struct Url {
    pub text: Option<String>,
    pub file: Option<String>,
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// All settings of the program, and where each came from.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// The settings of the pool.
    pub pool: PoolConfig,
    /// The settings of the HTTP server.
    #[cfg(feature = "server")]
    pub http: HttpConfig,
    /// Whether the program starts a PostgreSQL of its own.
    pub private_database: PrivateDatabase,
    /// The directory of the PostgreSQL server's programs (`PG_BIN_DIR`).
    pub pg_bin_dir: Option<std::path::PathBuf>,
    /// Whether the studio's routes are served.
    pub studio_api: bool,
    /// The currency of all amounts.
    pub studio_currency: String,
    /// The form of the program's log lines.
    pub log_format: LogFormat,
    /// The most detailed level that is logged.
    pub log_level: log::LevelFilter,
    pub(super) url: Url,
    pub(super) variables: Variables,
    pub(crate) sources: BTreeMap<&'static str, Source>,
    /// Variables of the environment or of `.env` that look like settings but are none, each with
    /// the setting that may be meant.
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
            url: Url::default(),
            variables: Variables::default(),
            pg_bin_dir: None,
            studio_api: true,
            studio_currency: "EUR".into(),
            log_format: LogFormat::Text,
            log_level: log::LevelFilter::Info,
            sources: BTreeMap::new(),
            unknown: Vec::new(),
        }
    }
}

impl Config {
    /// Returns where a setting came from.
    pub fn source(&self, name: &str) -> Source {
        self.sources.get(name).copied().unwrap_or(Source::Default)
    }

    /// Returns the number of threads for API requests that is in force.
    #[cfg(feature = "server")]
    pub fn http_workers(&self) -> usize {
        self.http.workers.unwrap_or(2 * self.pool.max_size as usize)
    }
}
