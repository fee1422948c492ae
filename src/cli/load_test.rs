//! `millpond load-test`: runs queries from many threads, and reports how long they took.

use super::failure::Failure;
use super::{database, logger, output};
use indicatif::{ProgressBar, ProgressStyle};
use log::LevelFilter;
use millpond::config::Config;
use millpond::error::Chain;
use millpond::pool::{Builder, CloseReason, Observer, Pool};
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A mean above this fails the test.
const MEAN_LIMIT_MS: f64 = 200.0;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Threads that send queries
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    workers: u32,
    /// Queries of each thread
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    queries: u32,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Latencies are of whole calls: waiting for a connection, the query, and retries. In milliseconds.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    workers: u32,
    queries: usize,
    errors: usize,
    wall_seconds: f64,
    queries_per_second: f64,
    mean_ms: f64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    pool: PoolReport,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PoolReport {
    max_connections: u32,
    most_open: usize,
    opened: usize,
    most_waiting: usize,
}

/// Counts the connections that are open.
#[derive(Default)]
struct Counter {
    open: AtomicUsize,
    most: AtomicUsize,
    opened: AtomicUsize,
}

impl Observer for Counter {
    fn opened(&self, _: u64, _: Duration) {
        self.opened.fetch_add(1, Ordering::Relaxed);
        let open = self.open.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(open, Ordering::Relaxed);
    }

    fn closed(&self, _: u64, _: CloseReason, _: Duration, _: u64) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) fn run(mut config: Config, arguments: &Arguments) -> Result<(), Failure> {
    // Info lines would only clutter the report.
    logger::start(config.log_level.min(LevelFilter::Warn), config.log_format);
    let private = database::is_private(&config)?;
    let joined = private && database::join_private(&mut config)?;
    let server = if private && !joined {
        Some(database::start_private(&mut config)?)
    } else {
        None
    };
    let report = measure(&config, arguments);
    drop(server);
    let report = report?;
    let text = match arguments.json {
        true => serde_json::to_string_pretty(&report).map_err(|e| Failure::of(&e))?,
        false => table(&report),
    };
    output::print(&(text + "\n"))?;
    if report.errors > 0 {
        return Err(Failure::because(format!(
            "{} of {} queries failed",
            report.errors, report.queries
        )));
    }
    if report.mean_ms > MEAN_LIMIT_MS {
        return Err(Failure::because(format!(
            "the mean latency is over {MEAN_LIMIT_MS} ms"
        )));
    }
    Ok(())
}

fn measure(config: &Config, arguments: &Arguments) -> Result<Report, Failure> {
    let counter = Arc::new(Counter::default());
    let pool = Builder::from(config.pool.clone())
        .observer(counter.clone())
        .build()?;
    // Not measured: finds out whether there is a database at all.
    pool.read("SELECT 1", &[]).map_err(|e| Failure::of(&e))?;
    let total = u64::from(arguments.workers) * u64::from(arguments.queries);
    let bar = ProgressBar::new(total).with_style(style());
    let over = AtomicBool::new(false);
    let begun = Instant::now();
    let mut refused = None;
    let (results, wall, most_waiting) = thread::scope(|scope| {
        let sample = || {
            let mut most = 0;
            while !over.load(Ordering::Relaxed) {
                most = most.max(pool.stats().waiting);
                thread::sleep(Duration::from_millis(5));
            }
            most
        };
        let sampler = thread::Builder::new().spawn_scoped(scope, sample);
        let workers: Vec<_> = (0..arguments.workers)
            .map_while(|worker| {
                let (pool, bar) = (&pool, &bar);
                let work = move || one_worker(pool, bar, worker, arguments.queries);
                let started = thread::Builder::new().spawn_scoped(scope, work);
                started.map_err(|e| refused = Some(e)).ok()
            })
            .collect();
        let results: Vec<_> = workers
            .into_iter()
            .map(|w| {
                w.join().unwrap_or_else(|_| Results {
                    errors: arguments.queries as usize,
                    first_error: Some("a thread panicked".into()),
                    ..Results::default()
                })
            })
            .collect();
        let wall = begun.elapsed();
        over.store(true, Ordering::Relaxed);
        let most_waiting = sampler.map_or(0, |sampler| sampler.join().unwrap_or(0));
        (results, wall, most_waiting)
    });
    if let Some(e) = refused {
        return Err(Failure::because(format!(
            "only {} of {} threads could be started: {e}",
            results.len(),
            arguments.workers
        )));
    }
    bar.finish_and_clear();
    pool.close(Duration::from_secs(5));
    let mut latencies: Vec<f64> = results
        .iter()
        .flat_map(|r| &r.latencies_ms)
        .copied()
        .collect();
    latencies.sort_by(f64::total_cmp);
    let at = |q: f64| {
        latencies
            .get(((latencies.len().max(1) - 1) as f64 * q).round() as usize)
            .copied()
            .unwrap_or(0.0)
    };
    let errors = results.iter().map(|r| r.errors).sum::<usize>();
    if let Some(first) = results.iter().find_map(|r| r.first_error.as_ref()) {
        output::complain(&format!("the first error: {first}"));
    }
    Ok(Report {
        workers: arguments.workers,
        queries: total as usize,
        errors,
        wall_seconds: wall.as_secs_f64(),
        queries_per_second: latencies.len() as f64 / wall.as_secs_f64(),
        mean_ms: latencies.iter().sum::<f64>() / latencies.len().max(1) as f64,
        p50_ms: at(0.5),
        p99_ms: at(0.99),
        max_ms: at(1.0),
        pool: PoolReport {
            max_connections: pool.config().max_size,
            most_open: counter.most.load(Ordering::Relaxed),
            opened: counter.opened.load(Ordering::Relaxed),
            most_waiting,
        },
    })
}

/// The results of one thread. The latencies are those of successful queries.
#[derive(Default)]
struct Results {
    latencies_ms: Vec<f64>,
    errors: usize,
    first_error: Option<String>,
}

fn one_worker(pool: &Pool, bar: &ProgressBar, worker: u32, queries: u32) -> Results {
    let mut results = Results::default();
    for query in 0..queries {
        let value = (worker as i32).wrapping_mul(31).wrapping_add(query as i32);
        let started = Instant::now();
        match pool.read("SELECT $1::int", &[&value]) {
            Ok(rows)
                if rows
                    .first()
                    .is_some_and(|row| row.get::<_, i32>(0) == value) =>
            {
                results
                    .latencies_ms
                    .push(started.elapsed().as_secs_f64() * 1000.0);
            }
            Ok(_) => {
                results.errors += 1;
                results
                    .first_error
                    .get_or_insert_with(|| "the answer was not the value that was sent".into());
            }
            Err(e) => {
                results.errors += 1;
                results
                    .first_error
                    .get_or_insert_with(|| Chain(&e).to_string());
            }
        }
        bar.inc(1);
    }
    results
}

fn style() -> ProgressStyle {
    // Falls back to the default bar if the template is invalid.
    let template = "{bar:40} {pos}/{len} queries, {per_sec}, {eta} left";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn table(report: &Report) -> String {
    let pool = &report.pool;
    [
        format!(
            "queries      {} from {} threads",
            report.queries, report.workers
        ),
        format!("errors       {}", report.errors),
        format!("wall         {:.2} s", report.wall_seconds),
        format!("rate         {:.0} queries/s", report.queries_per_second),
        format!(
            "latency      mean {:.2} ms, p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
            report.mean_ms, report.p50_ms, report.p99_ms, report.max_ms
        ),
        format!(
            "pool         at most {} of {} connections open, {} opened, at most {} threads in line",
            pool.most_open, pool.max_connections, pool.opened, pool.most_waiting
        ),
    ]
    .join("\n")
}
