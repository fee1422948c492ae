//! Which database is used: the one that is named, or a private one.

use super::failure::Failure;
use log::{error, warn};
use millpond::config::{Config, Database, PrivateDatabase};
use millpond::embedded::{Options, PrivateServer};
use millpond::error::Chain;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Where the private server keeps its data, below the current directory.
const DIR: &str = ".millpond";

/// Whether a private database is wanted. An error names the setting to change.
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
            let public = if !config.http.addr.ip().is_loopback() {
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
    // Room for the pool, the probe, a load test and a psql session at the same time.
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

/// Starts the private server, and restarts it whenever it has ended by itself, until the result is
/// dropped.
pub(super) fn keep_private(config: &mut Config) -> Result<Kept, Failure> {
    let server = Arc::new(Mutex::new(Some(start_private(config)?)));
    let watched = Arc::clone(&server);
    let watch = move || {
        loop {
            thread::sleep(LOOK_AFTER);
            match &mut *watched.lock().unwrap_or_else(PoisonError::into_inner) {
                None => return,
                Some(server) => match server.revive() {
                    Ok(false) => {}
                    Ok(true) => {
                        error!("the private PostgreSQL ended unexpectedly and was restarted");
                    }
                    Err(e) => error!(
                        "the private PostgreSQL ended unexpectedly and cannot be restarted: {}",
                        Chain(&e)
                    ),
                },
            }
        }
    };
    let watcher = thread::Builder::new().name("millpond-private".into());
    watcher.spawn(watch).map_err(|e| Failure::of(&e))?;
    Ok(Kept(server))
}

/// How often the private server is checked.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// A private server that is restarted if it ends by itself.
pub(super) struct Kept(Arc<Mutex<Option<PrivateServer>>>);

impl Drop for Kept {
    fn drop(&mut self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// Points the configuration at the private server of another process in this directory, if there is
/// one.
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
