//! `millpond serve`.

use super::{Failure, database, logger, signals};
use crate::config::{Config, Source};
use crate::pool::Builder;
use crate::server::{Router, Server};
use log::{info, warn};

pub(super) fn run(mut config: Config) -> Result<(), Failure> {
    refuse_open_studio(&config)?;
    let private = database::is_private(&config)?;
    logger::start(config.log_level);
    for name in ["STUDIO_API", "STUDIO_CURRENCY"] {
        if config.studio_api && config.source(name) != Source::Default {
            warn!("{name} is set, but the studio's routes are not in this version");
        }
    }
    let stop = signals::listen()?;
    let server = if private {
        Some(database::start_private(&mut config)?)
    } else {
        None
    };
    let outcome = serve(&config, private, &stop);
    // After the pool has said goodbye to it.
    drop(server);
    outcome
}

fn serve(
    config: &Config,
    private: bool,
    stop: &std::sync::mpsc::Receiver<()>,
) -> Result<(), Failure> {
    let pool = Builder::from(config.pool.clone()).build()?;
    let http = config.http.clone();
    let server = Server::start(http, pool, Router::new(), private)
        .map_err(|e| Failure::because(format!("cannot listen on {}: {e}", config.http.addr)))?;
    // The sender lives as long as the signal handler: this returns when a signal came.
    let _ = stop.recv();
    info!(
        "stopping: draining for at most {:?}",
        config.http.shutdown_timeout
    );
    let report = server.shut_down(config.http.shutdown_delay, config.http.shutdown_timeout);
    info!("stopped: {report}");
    if report.is_clean() {
        Ok(())
    } else {
        Err(Failure::because(format!(
            "the drain was cut short: {report}"
        )))
    }
}

/// The studio's routes are not for everybody on the network, unless somebody says so.
fn refuse_open_studio(config: &Config) -> Result<(), Failure> {
    let http = &config.http;
    if !config.studio_api
        || http.addr.ip().is_loopback()
        || http.api_token.is_some()
        || http.allow_anonymous
    {
        return Ok(());
    }
    Err(Failure::Settings(format!(
        "HTTP_ADDR is {}, so that anybody on the network could use the studio's API; set API_TOKEN, \
         or STUDIO_API=off, or API_ALLOW_ANONYMOUS=on, or a loopback HTTP_ADDR",
        http.addr
    )))
}
