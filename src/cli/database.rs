//! Which database: the one that is named, or a private one.

use super::Failure;
use crate::config::{Config, Database, PrivateDatabase};
use crate::embedded::{Options, PrivateServer};
use log::warn;
use std::path::Path;

/// Where the private server keeps its data, below the current directory.
const DIR: &str = ".millpond";

/// Says whether a private database is wanted; an error names what to set.
pub(super) fn is_private(config: &Config) -> Result<bool, Failure> {
    let named = config.pool.database.is_some();
    match config.private_database {
        PrivateDatabase::On if named => Err(Failure::Settings(
            "PRIVATE_DATABASE is on, but DATABASE_URL names another database; unset one of the two"
                .into(),
        )),
        PrivateDatabase::On => Ok(true),
        _ if named => Ok(false),
        PrivateDatabase::Off => Err(Failure::Settings(
            "DATABASE_URL is not set, and PRIVATE_DATABASE is off; set DATABASE_URL".into(),
        )),
        PrivateDatabase::Auto => {
            let public = if config.pghost_set {
                "PGHOST is set, which is not read"
            } else if !config.http.addr.ip().is_loopback() {
                "HTTP_ADDR is not loopback"
            } else if config.http.api_token.is_some() {
                "API_TOKEN is set"
            } else {
                return Ok(true);
            };
            Err(Failure::Settings(format!(
                "DATABASE_URL is not set, and no private database is started because {public}; \
                 set DATABASE_URL, or PRIVATE_DATABASE=on"
            )))
        }
    }
}

/// Starts the private server and points the configuration at it.
pub(super) fn start_private(config: &mut Config) -> Result<PrivateServer, Failure> {
    // Room for the pool, the probe, a load test beside it, and somebody with psql.
    let connections = (2 * config.pool.max_size + 20).max(100).to_string();
    let options = Options::kept(DIR)
        .bin_dir(config.pg_bin_dir.clone())
        .setting("max_connections", &connections);
    let server = PrivateServer::start(options).map_err(|e| Failure::of(&e))?;
    warn!(
        "DATABASE_URL is not set: using a private PostgreSQL on port {}, data in {}",
        server.port(),
        server.dir().display()
    );
    use_url(config, &server.url())?;
    Ok(server)
}

/// Points the configuration at a private server that another program runs in this directory, if there is one.
pub(super) fn join_private(config: &mut Config) -> Result<bool, Failure> {
    match PrivateServer::url_of_running(Path::new(DIR)).map_err(|e| Failure::of(&e))? {
        Some(url) => use_url(config, &url).map(|()| true),
        None => Ok(false),
    }
}

fn use_url(config: &mut Config, url: &str) -> Result<(), Failure> {
    let database: Database = url.parse().map_err(Failure::because)?;
    config.pool.database = Some(database);
    Ok(())
}
