//! What grows with the number of waiting threads, of connections and of pools. A cost that grows
//! faster than the number does would show here.
//!
//! `cargo bench --bench growth` prints three tables. Compare the lines of a table: the absolute
//! numbers depend on the machine.

mod measure;

use measure::{mean_ns, median, memory, used};
use millpond::Pool;
use millpond::embedded::{Options, PrivateServer};
use std::collections::HashSet;
use std::ffi::OsString;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(60);

/// The median of the rounds.
fn of_rounds(round: impl FnMut() -> f64) -> f64 {
    median(std::iter::repeat_with(round).take(ROUNDS).collect())
}

/// The threads of this process, by their number.
fn threads() -> HashSet<OsString> {
    let all = std::fs::read_dir("/proc/self/task").expect("/proc");
    all.flatten().map(|thread| thread.file_name()).collect()
}

/// The share of one processor that this process uses while nobody uses its pools.
fn at_rest() -> f64 {
    let (begun, before) = (Instant::now(), used());
    thread::sleep(Duration::from_secs(3));
    used().saturating_sub(before).as_secs_f64() / begun.elapsed().as_secs_f64()
}

fn pool(url: &str, connections: u32) -> Pool {
    Pool::builder()
        .database_url(url)
        .max_size(connections)
        .min_idle(connections)
        .max_waiting(10_000)
        .connection_timeout(PATIENCE)
        .build()
        .expect("pool")
}

/// Waits until all connections are open. Returns how long that took.
fn fill(pools: &[Pool]) -> Duration {
    let begun = Instant::now();
    for pool in pools {
        while pool.stats().idle < pool.stats().max {
            assert!(begun.elapsed() < PATIENCE, "{:?}", pool.stats());
            thread::sleep(Duration::from_millis(1));
        }
    }
    begun.elapsed()
}

/// Threads that check out and check in, one after the other, as fast as they can. Returns the
/// nanoseconds that one check-out takes, and those that it uses a processor.
fn contended(pool: &Pool, threads: usize) -> (f64, f64) {
    const LASTS: Duration = Duration::from_secs(1);
    let count = AtomicU64::new(0);
    let (begun, before) = (Instant::now(), used());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut mine = 0;
                while begun.elapsed() < LASTS {
                    drop(pool.get().expect("connection"));
                    mine += 1;
                }
                count.fetch_add(mine, Ordering::Relaxed);
            });
        }
    });
    let count = count.load(Ordering::Relaxed) as f64;
    let per_one = |time: Duration| time.as_nanos() as f64 / count;
    (
        per_one(begun.elapsed()),
        per_one(used().saturating_sub(before)),
    )
}

fn main() {
    // `cargo test --benches` runs this too, only to see that it starts; `cargo bench` passes
    // --bench.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let options = Options::temporary().setting("max_connections", "700");
    let server = PrivateServer::start(options).expect("PostgreSQL");
    let url = server.url() + "?sslmode=disable";

    println!("threads that check out and check in, on 8 connections, medians of {ROUNDS} rounds");
    println!("  threads   ns for one   ns of a processor");
    let eight = pool(&url, 8);
    fill(std::slice::from_ref(&eight));
    for threads in [1, 10, 100, 1000] {
        let rounds = (0..ROUNDS).map(|_| contended(&eight, threads));
        let (wall, processor): (Vec<_>, Vec<_>) = rounds.unzip();
        println!(
            "  {threads:>7} {:>12.0} {:>19.0}",
            median(wall),
            median(processor)
        );
    }
    eight.close(PATIENCE);

    println!("\nconnections of one pool");
    println!(
        "  number   opened in s   check-out ns   stats ns   metrics us   health us   at rest, of a processor   kB each   closed in s"
    );
    for connections in [5, 20, 100, 500] {
        let empty = memory("VmRSS");
        let pool = pool(&url, connections);
        let opened = fill(std::slice::from_ref(&pool));
        let each = (memory("VmRSS") - empty) / f64::from(connections);
        let check_out = of_rounds(|| mean_ns(5_000, || drop(pool.get().expect("connection"))));
        let stats = of_rounds(|| mean_ns(5_000, || _ = black_box(pool.stats())));
        let metrics = of_rounds(|| mean_ns(100, || _ = black_box(pool.metrics_text())));
        let health = of_rounds(|| mean_ns(100, || _ = black_box(pool.health())));
        let rest = at_rest();
        let begun = Instant::now();
        pool.close(PATIENCE);
        println!(
            "  {connections:>6} {:>13.2} {check_out:>14.0} {stats:>10.0} {:>12.0} {:>11.0} {:>24.2}% {each:>9.0} {:>13.2}",
            opened.as_secs_f64(),
            metrics / 1e3,
            health / 1e3,
            rest * 100.0,
            begun.elapsed().as_secs_f64()
        );
    }

    println!("\npools of 4 connections in one process");
    println!("  number   built and opened in s   threads each   at rest, of a processor");
    for number in [1, 4, 16, 64] {
        let before = threads();
        let begun = Instant::now();
        let pools: Vec<_> = (0..number).map(|_| pool(&url, 4)).collect();
        fill(&pools);
        let opened = begun.elapsed();
        let each = threads().difference(&before).count() as f64 / f64::from(number);
        let rest = at_rest();
        println!(
            "  {number:>6} {:>23.2} {each:>14.1} {:>24.2}%",
            opened.as_secs_f64(),
            rest * 100.0
        );
        for pool in pools {
            pool.close(PATIENCE);
        }
    }
}
