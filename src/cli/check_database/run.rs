//! Opens a connection as the pool would, has the questions asked within the time there is, and
//! prints what was found.

use super::facts::{Facts, Plan, ReadHost};
use super::finding::{Finding, Findings, Level};
use super::{questions, rules};
use crate::cli::failure::Failure;
use crate::cli::{config, database, output, serve};
use millpond::config::{Config, Pooler};
use millpond::error::{Chain, OpenError};
use millpond::for_cli::Endpoint;
use millpond::pool::{Pool, PooledConnection, StandbyState};
use millpond::{Error, postgres};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// How long a try to get a connection waits, until it is seen whether opening one has failed.
const LOOK: Duration = Duration::from_millis(50);
/// What an answer may take beyond the limit, so that an error that says more than "late" is heard.
const GRACE: Duration = Duration::from_millis(250);
/// How long a standby may take until reads would go there.
const STANDBYS_LIMIT: Duration = Duration::from_secs(2);
/// How long closing the connection may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

pub fn run(config: &Config, instances: Option<u32>, limit: Duration) -> Result<(), Failure> {
    if database::is_private(config)? {
        return Err(Failure::Settings(
            "check --database needs a database of yours, and the settings name none; set DATABASE_URL"
                .into(),
        ));
    }
    let findings = find_out(config, instances.unwrap_or(1), limit)?;
    let lines = findings.iter().map(|finding| format!("{finding}\n"));
    output::print(&lines.collect::<String>())?;
    for text in config::unknown_settings(config) {
        output::complain(&format!("millpond: {text}"));
    }
    match findings.iter().any(|found| found.level == Level::Wrong) {
        true => Err(Failure::Failed(None)),
        false => Ok(()),
    }
}

fn find_out(config: &Config, instances: u32, limit: Duration) -> Result<Vec<Finding>, Failure> {
    let settings = &config.pool;
    // It detects a pooler, whatever is set, and takes part in no budget.
    let pool = serve::builder(config)
        .max_size(1)
        .min_idle(0)
        .fleet_max(0)
        .pooler(Pooler::Auto)
        .connect_timeout(limit)
        .fail_fast_after(Duration::ZERO)
        .build()?;
    let Some(named) = &settings.database else {
        return Err(Failure::Settings("DATABASE_URL is not set".into()));
    };
    let plan = Plan {
        instances,
        max_size: settings.max_size,
        min_idle: settings.effective_min_idle(),
        fleet_max: settings.fleet_max,
        pooler: settings.effective_pooler(),
        ssl_mode: named.ssl_mode(),
        statement_timeout: settings.statement_timeout,
        query_timeout: settings.query_timeout,
        idle_timeout: settings.idle_timeout,
        max_lifetime: settings.max_lifetime,
        studio: cfg!(feature = "studio") && config.studio_api,
        ledger_schema: pool.config().ledger_schema.clone(),
    };
    // A plain connection has no deadline, so it is used on a thread that can be left behind.
    let (tell, told) = mpsc::channel();
    let (asked, asker) = (plan.clone(), pool.clone());
    let ask = move || {
        let found = look(&asker, &asked, limit);
        // After the limit, no thread listens.
        let _ = tell.send(found);
        let _ = asker.close(CLOSE_LIMIT);
    };
    let asking = thread::Builder::new().name("millpond-check".into());
    let asking = asking.spawn(ask).map_err(|e| Failure::of(&e))?;
    let found = told.recv_timeout(limit + GRACE);
    if found.is_ok() {
        let _ = asking.join();
    }
    let late = || Err(("server", format!("no answer within {limit:?}")));
    Ok(match found.unwrap_or_else(|_| late()) {
        Ok(facts) => rules::findings(&plan, &facts),
        Err((topic, why)) => {
            let mut found = Findings::about(topic);
            found.wrong(format!("{why}; the database is {named}"));
            found.end()
        }
    })
}

/// Returns what is known of the database, or the topic and the reason why nothing is.
fn look(pool: &Pool, plan: &Plan, limit: Duration) -> Result<Facts, (&'static str, String)> {
    let until = Instant::now() + limit;
    let mut connection = connect(pool, limit).map_err(|e| why_not(&e, limit))?;
    let endpoint = Endpoint::of(pool, &connection);
    let lost = |questions::Lost(why)| ("server", format!("the questions were not answered: {why}"));
    let mut facts = questions::ask(&mut connection, endpoint, plan).map_err(lost)?;
    facts.read_hosts = read_hosts(pool, until.min(Instant::now() + STANDBYS_LIMIT));
    Ok(facts)
}

/// Returns what is known of the standbys that reads are to use. The pool finds it out by itself,
/// and that takes a moment.
fn read_hosts(pool: &Pool, until: Instant) -> Vec<ReadHost> {
    loop {
        let known = pool.standbys();
        let is_known = known.iter().all(|known| known.state == StandbyState::Used);
        if is_known || Instant::now() >= until {
            let known = known.into_iter().map(|known| ReadHost {
                host: known.host,
                state: known.state,
                lag: known.lag,
                error: known.error,
                room: known.headroom.map(|room| room.available()),
            });
            return known.collect();
        }
        thread::sleep(LOOK);
    }
}

/// Checks a connection out. Does not try again once opening one has failed.
fn connect(pool: &Pool, limit: Duration) -> Result<PooledConnection, Error> {
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match pool.get_timeout(left.min(LOOK)) {
            Err(_) if Instant::now() < until && !pool.is_failing_fast() => {}
            result => return result,
        }
    }
}

fn why_not(error: &Error, limit: Duration) -> (&'static str, String) {
    let late = || format!("no connection within {limit:?}");
    let cause = match error {
        // The figures of a pool of one say nothing.
        Error::Checkout(e) => match e.last_open_error.as_deref() {
            Some(OpenError::Timeout(_)) | None => late(),
            Some(cause) => Chain(cause).to_string(),
        },
        other => Chain(other).to_string(),
    };
    let no_room = error.sqlstate() == Some(&postgres::error::SqlState::TOO_MANY_CONNECTIONS);
    let topic = if no_room { "connections" } else { "server" };
    (topic, cause)
}
