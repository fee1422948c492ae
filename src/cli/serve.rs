//! `millpond serve`: runs the server until a signal stops it.

use super::control::Control;
use super::failure::Failure;
use super::reload::Reload;
use super::{config, database, limits, logger, signals, supervisor};
use listenfd::ListenFd;
use log::{info, warn};
use millpond::config::Config;
use millpond::pool::{Builder, Pool};
use millpond::server::{DatabaseKind, Router, Server};
use std::io::ErrorKind;
use std::net::TcpListener;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// Pause between two checks whether the API can be served.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Why the program stops: `Ok` on a signal, or an error that prevents it from serving.
type Stop = Result<(), Failure>;

/// What the program is asked for while it serves.
enum Wish {
    Stop(Stop),
    ReadSettings,
}

/// Whether the API can be served.
type Ready = Box<dyn Fn() -> bool>;

pub(super) fn run(mut config: Config) -> Result<(), Failure> {
    let hears_hangup = signals::block_hangup();
    let mut settings = Reload::of(&config);
    // From systemd, for example (socket activation). Its address decides who may use the API
    // without a token.
    let inherited = ListenFd::from_env().take_tcp_listener(0).ok().flatten();
    if let Some(Ok(addr)) = inherited.as_ref().map(TcpListener::local_addr) {
        config.http.addr = addr;
    }
    refuse_open_studio(&config)?;
    let private = database::is_private(&config)?;
    logger::start(config.log_level, config.log_format);
    for text in config::unknown_settings(&config) {
        warn!("{text}");
    }
    limits::fit(&mut config, private)?;
    let (stop, stopped) = mpsc::channel();
    let asked = stop.clone();
    signals::listen(move || tell(&asked, Ok(())))?;
    if hears_hangup {
        let (again, gone) = (stop.clone(), stop.clone());
        let reload = move || drop(again.send(Wish::ReadSettings));
        signals::on_hangup(reload, move || tell(&gone, Ok(())))?;
    }
    let server = if private {
        if inherited.is_none() {
            // Fails early, before a private database is created for nothing.
            drop(TcpListener::bind(config.http.addr).map_err(|e| cannot_listen(&config, &e))?);
        }
        Some(database::keep_private(&mut config)?)
    } else {
        None
    };
    let database = match private {
        true => DatabaseKind::Private,
        false => DatabaseKind::External,
    };
    let outcome = serve(&config, inherited, database, stop, &stopped, &mut settings);
    // The private server stops after the pool has closed.
    drop(server);
    outcome
}

fn tell(stop: &Sender<Wish>, reason: Stop) {
    // Fails if the program is stopping already.
    let _ = stop.send(Wish::Stop(reason));
}

fn serve(
    config: &Config,
    inherited: Option<TcpListener>,
    database: DatabaseKind,
    stop: Sender<Wish>,
    stopped: &Receiver<Wish>,
    settings: &mut Reload,
) -> Result<(), Failure> {
    let pool = builder(config).build()?;
    let controlled = pool.clone();
    let http = config.http.clone();
    let (router, is_ready) = routes(config, &pool, stop)?;
    if inherited.is_some()
        && let Some(reason) = wait_until_ready(stopped, http.request_timeout, &*is_ready)
    {
        pool.close(http.shutdown_timeout);
        return reason;
    }
    let server = Server::start_on(inherited, http, pool, router, database)
        .map_err(|e| match e.kind() {
            // The error when the system refuses a thread; a port never causes it.
            ErrorKind::WouldBlock => Failure::because(format!(
                "the system does not allow this program more threads ({e}): lower HTTP_WORKERS, which is {}, or raise the limit \
                 (ulimit -u or -v, or pids.max of its control group)",
                config.http_workers()
            )),
            _ => cannot_listen(config, &e),
        })?;
    let _control = Control::listen(&controlled, server.addr().port());
    supervisor::ready(server.addr());
    let reason = loop {
        match stopped.recv() {
            Ok(Wish::ReadSettings) => settings.read_again(&server),
            Ok(Wish::Stop(reason)) => break reason,
            // The signal handler keeps a sender, so this does not happen.
            Err(_) => break Ok(()),
        }
    };
    supervisor::stopping();
    info!(
        "stopping: draining for at most {:?}",
        config.http.shutdown_timeout
    );
    let report = server.shut_down(config.http.shutdown_delay, config.http.shutdown_timeout);
    info!("stopped: {report}");
    reason?;
    if report.is_clean() {
        Ok(())
    } else {
        Err(Failure::because(format!(
            "the drain was cut short: {report}"
        )))
    }
}

/// The clients of an inherited listener wait in its backlog until they can be answered, but no
/// longer than a request may take. `Some` if the program is to stop meanwhile.
fn wait_until_ready(
    stopped: &Receiver<Wish>,
    limit: Duration,
    is_ready: &dyn Fn() -> bool,
) -> Option<Stop> {
    let until = Instant::now() + limit;
    while !is_ready() && Instant::now() < until {
        match stopped.recv_timeout(LOOK_AGAIN) {
            Ok(Wish::Stop(reason)) => return Some(reason),
            // They have just been read.
            Ok(Wish::ReadSettings) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Some(Ok(())),
        }
    }
    None
}

fn cannot_listen(config: &Config, error: &std::io::Error) -> Failure {
    Failure::because(format!("cannot listen on {}: {error}", config.http.addr))
}

/// The pool's options in this program.
#[cfg(feature = "studio")]
pub(super) fn builder(config: &Config) -> Builder {
    Builder::from(config.pool.clone()).ledger_schema(millpond::studio::SCHEMA)
}

/// The studio's routes. Its schema is created in the background.
#[cfg(feature = "studio")]
fn routes(config: &Config, pool: &Pool, stop: Sender<Wish>) -> Result<(Router, Ready), Failure> {
    use millpond::studio::{SchemaError, Studio};
    if !config.studio_api {
        return Ok((Router::new(), has_connected(pool)));
    }
    let studio =
        Studio::new(pool.clone(), &config.studio_currency).with_workers(config.http_workers());
    let router = studio.routes(Router::new());
    let migrated = studio.clone();
    let migrate = move || match studio.keep_migrated() {
        Ok(()) | Err(SchemaError::Closed) => {}
        Err(e) => tell(&stop, Err(Failure::of(&e))),
    };
    std::thread::Builder::new()
        .name("millpond-schema".into())
        .spawn(migrate)
        .map_err(|e| Failure::of(&e))?;
    Ok((router, Box::new(move || migrated.is_ready())))
}

#[cfg(not(feature = "studio"))]
pub(super) fn builder(config: &Config) -> Builder {
    Builder::from(config.pool.clone())
}

#[cfg(not(feature = "studio"))]
fn routes(config: &Config, pool: &Pool, _: Sender<Wish>) -> Result<(Router, Ready), Failure> {
    if config.studio_api {
        info!("built without the studio: only health and metrics are served");
    }
    Ok((Router::new(), has_connected(pool)))
}

fn has_connected(pool: &Pool) -> Ready {
    let pool = pool.clone();
    Box::new(move || pool.has_connected())
}

/// Refuses to open the studio's API to the network without a token, unless the settings ask for it.
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
        "HTTP_ADDR is {}, so anyone on the network could use the studio's API; set API_TOKEN, \
         or STUDIO_API=off, or API_ALLOW_ANONYMOUS=on, or a loopback HTTP_ADDR",
        http.addr
    )))
}
