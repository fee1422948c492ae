//! How a pool is built from its options.

use super::build_error::BuildError;
use super::builder::Builder;
use super::checkout::{Inner, Pool};
use super::common::Common;
use super::gate::MOST_OPENERS;
use super::housekeeping;
use super::line::{Line, Openers};
use super::manager::Manager;
use super::member::Member;
use super::observer::{Observer, Observers};
use super::opener::Opener;
use super::pong::{ProbeError, Reading};
use super::probe::Probe;
use super::scheduler;
use super::shared::{OnConnect, Shared};
use super::standbys::{self, Standbys};
use super::target::Target;
use super::watchdog::Watchdog;
use crate::config::{ConfigErrors, LineOrder, PoolConfig, Problem, ServerHost};
use crate::fd_limit;
use crate::line_rule::{LeastTime, Rule, Switch};
use crate::retry::Budget;
use crate::sync::{LONGEST, caught};
use log::{debug, info, warn};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

/// The longest pause after which r2d2 looks again for a session that it is to count.
const R2D2_PAUSE: Duration = Duration::from_millis(250);

impl Builder {
    /// Builds the pool and returns at once. Connections are opened in the background, however long
    /// that takes.
    ///
    /// A pool belongs to the process that built it. In a forked child, each call fails as
    /// [`Error::Misuse`](crate::Error::Misuse), and dropping the pool there does not touch the
    /// parent's connections. So daemonize first, then build.
    ///
    /// # Errors
    /// [`BuildError::Settings`] with every setting that cannot work, by the names of this builder's
    /// methods; [`BuildError::Thread`] if the system grants no thread.
    pub fn build(self) -> Result<Pool, BuildError> {
        let mut config = self.config;
        config.bound_times(LONGEST);
        let mut problems = config.problems(|option, _variable| option);
        let url = |takes: String| Problem {
            name: "database_url",
            got: None,
            takes,
        };
        match (&config.database, self.bad_url) {
            (_, Some(why)) => problems.push(url(why)),
            (None, None) => problems.push(url("is not set".into())),
            (Some(_), None) => {}
        }
        if let Some(takes) = self.bad_read_hosts {
            problems.push(Problem {
                name: "read_hosts",
                got: None,
                takes,
            });
        }
        if !problems.is_empty() {
            return Err(BuildError::Settings(ConfigErrors(problems)));
        }
        let pools = 1 + config.read_hosts.len();
        let fit = fd_limit::connections_that_fit(config.max_size as usize * pools) / pools;
        let fit = (fit as u32).max(1);
        if fit < config.max_size {
            warn!(
                "the limit of open files is too low for max_size={} connections (DB_POOL_MAX): using at most {fit}; raise the limit (ulimit -n)",
                config.max_size
            );
            config.max_size = fit;
        }
        let Some(database) = config.database.clone() else {
            unreachable!("a missing database is a problem above");
        };
        let common = self.common.unwrap_or_default();
        let standbys = standbys(&config, &self.on_connect, &self.observers, &common)?;
        let look_every = (standbys.is_some() || config.only_host.is_some())
            .then(|| standbys::look_every(config.read_max_lag));
        let target = Target::new(
            database,
            config.url_file.clone(),
            config.password.clone(),
            config.only_host.clone(),
        );
        let watchdog = Watchdog::start().map_err(BuildError::Thread)?;
        let shared = Arc::new(Shared::new(
            config,
            self.on_connect,
            Observers::new(self.observers),
            watchdog,
            common.metrics,
        ));
        let opener = Opener::new(Arc::clone(&shared), target, common.connections);
        let opener = Arc::new(opener);
        let weak = Arc::downgrade(&opener);
        let has_changed = move |until| {
            let opener = weak.upgrade();
            opener.is_some_and(|opener| opener.target.has_changed(until))
        };
        let _ = (opener.gate.another_password).set(Box::new(has_changed));
        let config = &shared.config;
        // It panics if it cannot start a thread.
        let r2d2 = caught(|| {
            let scheduler = opener.opened.scheduler.get_or_init(scheduler::shared);
            r2d2::Pool::builder()
                .thread_pool(scheduler.jobs())
                // One more while a connection is replaced, for which the line asks.
                .max_size(config.max_size.saturating_add(1))
                // Limits only its pauses here, to half of it.
                .connection_timeout(R2D2_PAUSE * 2)
                // The pool does these itself; see `pool/mod.rs`.
                .min_idle(Some(0))
                .max_lifetime(None)
                .idle_timeout(None)
                .test_on_check_out(false)
                .error_handler(Box::new(r2d2::NopErrorHandler))
                // `build` would wait for the first connections.
                .build_unchecked(Manager(Arc::clone(&opener)))
        });
        let r2d2 = r2d2.map_err(|panic| {
            shared.watchdog.stop();
            // The system's error is only in the text of the panic. Starting another thread
            // returns the same error once more.
            let refused = std::thread::Builder::new().spawn(|| {}).err();
            BuildError::Thread(refused.unwrap_or_else(|| std::io::Error::other(panic)))
        })?;
        let (max, waiting) = (config.max_size as usize, config.max_waiting);
        let min_idle = config.effective_min_idle() as usize;
        let rule = Rule::new(config.line_order == LineOrder::Auto);
        let metrics = shared.metrics.clone();
        // The gauge is of the primary's line.
        let is_whole = config.only_host.is_none();
        let on_switch = Box::new(move |switch: Switch, is_news| {
            if is_whole {
                metrics.note_order("pool", matches!(switch, Switch::NewestFirst(..)));
            }
            match is_news {
                true => info!("line for a connection: {switch}"),
                false => debug!("line for a connection: {switch}"),
            }
        });
        // The budget of a fleet is kept.
        let beyond = usize::from(config.fleet_max == 0);
        let pool = Arc::new(OnceLock::<Weak<Inner>>::new());
        let hires = Arc::clone(&pool);
        let openers = Openers {
            most: MOST_OPENERS.min(max),
            start: Box::new(move || {
                if let Some(inner) = hires.get().and_then(Weak::upgrade) {
                    housekeeping::start_opener(&inner);
                }
            }),
        };
        let line = Line::new(max, waiting, min_idle, beyond, openers, rule, on_switch);
        let member = (config.fleet_max > 0).then(|| {
            Member::new(
                &shared.application_name(),
                config.fleet_max,
                config.max_size,
            )
        });
        let inner = Arc::new(Inner {
            budget: Budget::for_pool_of(config.max_size),
            probe: Probe::default(),
            line: Arc::new(line),
            r2d2,
            max: AtomicUsize::new(max),
            asked_max: AtomicUsize::new(max),
            member,
            standbys,
            look_every,
            least_use: LeastTime::default(),
            out: AtomicUsize::new(0),
            warned_at: AtomicU64::new(0),
            next_look: AtomicUsize::new(0),
            start: Instant::now(),
            report: OnceLock::new(),
            housekeeper: Mutex::default(),
            returned: Default::default(),
            sweeper: OnceLock::new(),
            opener,
            shared,
        });
        let _ = pool.set(Arc::downgrade(&inner));
        let line = Arc::downgrade(&inner.line);
        let tell_the_line = move || {
            if let Some(line) = line.upgrade() {
                line.turn_away();
            }
        };
        let _ = inner.opener.on_refused.set(Box::new(tell_the_line));
        let line = Arc::downgrade(&inner.line);
        let is_full = move || line.upgrade().is_some_and(|line| line.is_full());
        let _ = inner.opener.is_full.set(Box::new(is_full));
        let pool = Arc::downgrade(&inner);
        let make_room = move || {
            if let Some(pool) = pool.upgrade() {
                pool.line.has_no_room();
                pool.step_back();
            }
        };
        let _ = inner.opener.on_no_room.set(Box::new(make_room));
        if inner.member.is_some() {
            inner.join_fleet();
        }
        if let Some(standbys) = &inner.standbys {
            let note = standbys.on_primary();
            let tell = move |reading: &Reading| {
                note(reading);
                true
            };
            let _ = inner.opener.on_reading.set(Box::new(tell));
        }
        housekeeping::start(&inner).map_err(BuildError::Thread)?;
        inner.line.call_openers();
        Ok(Pool { inner })
    }
}

/// Builds the pools of the standbys.
fn standbys(
    config: &PoolConfig,
    on_connect: &Option<Arc<OnConnect>>,
    observers: &[Arc<dyn Observer>],
    common: &Common,
) -> Result<Option<Standbys<Pool>>, BuildError> {
    if config.read_hosts.is_empty() {
        return Ok(None);
    }
    let build = |host: &ServerHost| {
        let builder = Builder {
            config: PoolConfig {
                only_host: Some(host.clone()),
                read_hosts: Vec::new(),
                ..config.clone()
            },
            on_connect: on_connect.clone(),
            observers: observers.to_vec(),
            common: Some(common.clone()),
            ..Builder::default()
        };
        Ok((host.to_string(), builder.build()?))
    };
    let pools: Result<_, BuildError> = config.read_hosts.iter().map(build).collect();
    common.metrics.count_reads();
    let standbys = Standbys::new(pools?, config.read_max_lag);
    for (pool, note) in standbys.on_standbys() {
        let weak = Arc::downgrade(&pool.inner);
        let tell = move |reading: &Reading| {
            let keeps = note(reading);
            free_those_who_wait(&weak, reading);
            keeps
        };
        let _ = pool.inner.opener.on_reading.set(Box::new(tell));
    }
    Ok(Some(standbys))
}

/// Cuts the connections that are in use if their server does not answer, so that what was asked
/// there can be asked elsewhere.
fn free_those_who_wait(pool: &Weak<Inner>, reading: &Reading) {
    let is_gone = matches!(
        reading,
        Err((ProbeError::Timeout | ProbeError::Unreachable, _))
    );
    if is_gone && let Some(pool) = pool.upgrade() {
        pool.shared.evict();
        pool.shared.watchdog.abort_all_held();
        pool.sweep();
    }
}
