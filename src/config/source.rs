//! Where a setting came from.

use std::fmt;

/// Where a setting came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// It was not set.
    Default,
    /// A variable of the environment.
    Environment,
    /// The file `.env`.
    DotEnv,
    /// A parameter of `DATABASE_URL`.
    DatabaseUrl,
    /// The URL in the file that `DATABASE_URL_FILE` names.
    DatabaseUrlFile,
    /// A parameter of a service (`pg_service.conf`).
    Service,
    /// libpq's variables (`PGHOST` and others).
    Libpq,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Default => "default",
            Source::Environment => "environment",
            Source::DotEnv => ".env",
            Source::DatabaseUrl => "DATABASE_URL",
            Source::DatabaseUrlFile => "DATABASE_URL_FILE",
            Source::Service => "service",
            Source::Libpq => "PG variables",
        })
    }
}
