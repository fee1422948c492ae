//! The system's limits, checked before the program starts: it uses what fits, and names the setting
//! to lower.

use super::failure::Failure;
use log::{debug, warn};
use millpond::config::Config;
use millpond::for_cli;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// The least number of clients to have room for, unless fewer are wanted.
const LEAST_CLIENTS: usize = 8;
/// Threads in addition to the workers: those of the pool, the edge, the health lane, tiny_http and
/// the log, and some to spare.
const OTHER_THREADS: usize = 48;

/// Lowers the settings that do not fit.
pub(super) fn fit(config: &mut Config, private: bool) -> Result<(), Failure> {
    raise_open_files();
    if let Some(limit) = for_cli::max_open_files() {
        fit_files(config, limit)?;
    }
    fit_threads(config, private)
}

/// Raises the soft limit of open files to the hard one. Only a program may do that, not a library:
/// `select` cannot take more than 1,024.
fn raise_open_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(e) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        debug!("the limit of open files stays at {soft}: {e}");
    }
}

fn fit_files(config: &mut Config, limit: usize) -> Result<(), Failure> {
    let clients = config
        .http
        .max_connections
        .min(LEAST_CLIENTS.max(limit / 6));
    let needed = |max_size: u32| {
        let workers = config.http.workers.unwrap_or(2 * max_size as usize);
        for_cli::files_needed(max_size as usize, workers) + clients
    };
    let wanted = config.pool.max_size;
    let fits = (1..=wanted)
        .rev()
        .find(|max_size| needed(*max_size) <= limit);
    let Some(max_size) = fits else {
        return Err(Failure::because(format!(
            "open files are limited to {limit}, and {} are needed with DB_POOL_MAX=1: raise the limit (ulimit -n)",
            needed(1)
        )));
    };
    if max_size < wanted {
        warn!(
            "open files are limited to {limit}, and {} are needed: using {max_size} connections to the database at most; \
             lower DB_POOL_MAX, which is {wanted}, or raise the limit (ulimit -n)",
            needed(wanted)
        );
        config.pool.max_size = max_size;
        config.pool.min_idle = config.pool.min_idle.map(|min| min.min(max_size));
    }
    Ok(())
}

fn fit_threads(config: &mut Config, private: bool) -> Result<(), Failure> {
    let workers = config.http_workers();
    // A private PostgreSQL has a process for each connection, which counts as a thread.
    let processes = match private {
        true => config.pool.max_size as usize + for_cli::MORE_CONNECTIONS,
        false => 0,
    };
    let others = OTHER_THREADS + processes;
    let there = threads(others + workers);
    if there == others + workers {
        return Ok(());
    }
    let advice = "raise the limit (ulimit -u or -v, or pids.max of the control group)";
    if there <= others {
        return Err(Failure::because(format!(
            "the system allows this program {there} more threads, and {} are needed with HTTP_WORKERS=1: {advice}",
            others + 1
        )));
    }
    let fit = there - others;
    warn!(
        "the system allows this program {there} more threads, and {} are needed: using {fit} workers; lower HTTP_WORKERS, \
         which is {workers}, or {advice}",
        others + workers
    );
    config.http.workers = Some(fit);
    Ok(())
}

/// How many of the wanted threads the system allows at once. Found out by trying, since the limits
/// cannot be read reliably.
fn threads(wanted: usize) -> usize {
    let gate = Mutex::new(());
    let closed = gate.lock().unwrap_or_else(PoisonError::into_inner);
    thread::scope(|scope| {
        let spawn = |_: &usize| {
            let wait = || drop(gate.lock());
            thread::Builder::new().spawn_scoped(scope, wait).is_ok()
        };
        let count = (0..wanted).take_while(spawn).count();
        drop(closed);
        count
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fitted(max_size: u32, limit: usize) -> Result<u32, String> {
        let mut config = Config::default();
        config.pool.max_size = max_size;
        match fit_files(&mut config, limit) {
            Ok(()) => Ok(config.pool.max_size),
            Err(Failure::Failed(Some(text)) | Failure::Settings(text)) => Err(text),
            Err(Failure::Failed(None)) => Err(String::new()),
        }
    }

    #[test]
    fn what_does_not_fit_is_lowered_or_refused_by_name() {
        assert_eq!(fitted(20, 1024), Ok(20));
        let fit = fitted(300, 1024).unwrap();
        assert!((100..200).contains(&fit), "{fit}");
        assert_eq!(fitted(20, 100).map(|fit| fit < 20), Ok(true));
        let refused = fitted(20, 40).unwrap_err();
        assert!(
            refused.contains("limited to 40") && refused.contains("ulimit -n"),
            "{refused}"
        );
    }

    #[test]
    fn threads_are_tried() {
        assert_eq!(threads(20), 20);
    }
}
