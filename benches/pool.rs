//! The cost of the pool, compared with other pools and with the bare driver, in one run on one
//! private server.
//!
//! `cargo bench` prints medians of five rounds. In each round the contenders run one after the
//! other, so that noise on the machine affects all of them. Compare the ratios: the absolute
//! numbers depend on the machine.

mod measure;

/// The byte stream under the pool's connections, also used for a bare client.
#[path = "../src/pool/wire/mod.rs"]
#[allow(dead_code, unused_imports)]
mod wire;

/// The locks that the byte stream needs.
#[path = "../src/sync.rs"]
#[allow(dead_code, unused_imports)]
mod sync;

/// A certificate for the server, made with the program `openssl`.
#[path = "../tests/suite/authority.rs"]
#[allow(dead_code)]
mod authority;

/// The byte stream's reports to the pool, which this benchmark ignores.
#[allow(dead_code)]
mod retry {
    pub enum Progress {
        NothingSent,
        Sent,
        Completed,
        Answered,
    }
}

use measure::{Figures, mean_ns, median, used};
use millpond::Pool;
use millpond::embedded::{Options, PrivateServer};
use postgres::config::{SslMode, SslNegotiation};
use postgres::{Client, Config, NoTls, Statement};
use r2d2_postgres::PostgresConnectionManager;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Barrier, Mutex};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

const THREADS: usize = 50;
const CONNECTIONS: u32 = 20;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(2);
const SQL: &str = "SELECT $1::int";

/// Runs the closure from `work` in a loop on each thread, each with a value of its own from
/// `start`.
fn hammer<S: Send, F: FnMut(i32) + Send>(
    start: impl Fn() -> S + Sync,
    work: impl Fn(S) -> F + Sync,
) -> Figures {
    let barrier = Barrier::new(THREADS + 1);
    let (latencies, wall, cpu) = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    let mut one = work(start());
                    one(0);
                    barrier.wait();
                    let begun = Instant::now();
                    let mut latencies = Vec::with_capacity(100_000);
                    let mut n = 0;
                    while begun.elapsed() < ROUND {
                        let t = Instant::now();
                        one(n);
                        latencies.push(t.elapsed().as_secs_f64() * 1e3);
                        n += 1;
                    }
                    latencies
                })
            })
            .collect();
        barrier.wait();
        let (begun, before) = (Instant::now(), used());
        let all: Vec<f64> = threads
            .into_iter()
            .flat_map(|t| t.join().expect("no thread panics"))
            .collect();
        (all, begun.elapsed(), used().saturating_sub(before))
    });
    Figures::of(latencies, wall, cpu)
}

fn millpond_queries(pool: &Pool) -> Figures {
    hammer(
        || pool.clone(),
        |pool| {
            move |n| {
                let rows = pool.query(SQL, &[&n]).expect("query");
                assert_eq!(rows[0].get::<_, i32>(0), n);
            }
        },
    )
}

type Plain = r2d2::Pool<PostgresConnectionManager<NoTls>>;

fn r2d2_queries(pool: &Plain) -> Figures {
    hammer(
        || pool.clone(),
        |pool| {
            move |n| {
                let rows = pool
                    .get()
                    .expect("connection")
                    .query(SQL, &[&n])
                    .expect("query");
                assert_eq!(rows[0].get::<_, i32>(0), n);
            }
        },
    )
}

/// Clients of the driver in a line that serves waiting threads in order, and does nothing else: what
/// a fair pool of threads costs at least.
#[derive(Default)]
struct FairLine(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    idle: Vec<(Client, Statement)>,
    line: VecDeque<Arc<Place>>,
}

struct Place {
    thread: Thread,
    given: Mutex<Option<(Client, Statement)>>,
}

impl FairLine {
    fn of(url: &str) -> FairLine {
        let line = FairLine::default();
        for _ in 0..CONNECTIONS {
            let mut client = Client::connect(url, NoTls).expect("connection");
            let statement = client.prepare(SQL).expect("statement");
            line.give_back((client, statement));
        }
        line
    }

    fn take(&self) -> (Client, Statement) {
        let mut waiting = self.0.lock().expect("no thread panics");
        if let Some(idle) = waiting.idle.pop() {
            return idle;
        }
        let place = Arc::new(Place {
            thread: thread::current(),
            given: Mutex::default(),
        });
        waiting.line.push_back(Arc::clone(&place));
        drop(waiting);
        loop {
            if let Some(given) = place.given.lock().expect("no thread panics").take() {
                return given;
            }
            thread::park();
        }
    }

    fn give_back(&self, client: (Client, Statement)) {
        let mut waiting = self.0.lock().expect("no thread panics");
        let Some(place) = waiting.line.pop_front() else {
            return waiting.idle.push(client);
        };
        *place.given.lock().expect("no thread panics") = Some(client);
        drop(waiting);
        place.thread.unpark();
    }
}

fn fair_queries(line: &FairLine) -> Figures {
    hammer(
        || line,
        |line| {
            move |n| {
                let (mut client, statement) = line.take();
                let rows = client.query(&statement, &[&n]).expect("query");
                assert_eq!(rows[0].get::<_, i32>(0), n);
                line.give_back((client, statement));
            }
        },
    )
}

fn over_the_wire(url: &str) -> Client {
    let mut config: Config = url.parse().expect("url");
    config
        .ssl_mode(SslMode::Require)
        .ssl_negotiation(SslNegotiation::Direct);
    let address = SocketAddr::from(([127, 0, 0, 1], config.get_ports()[0]));
    let wire = wire::Connector {
        handle: Arc::default(),
        route: wire::Route {
            place: wire::Place::Tcp(address),
            tls: None,
        },
    };
    config.connect(wire).expect("connection")
}

fn bare_queries(connect: impl Fn() -> Client + Sync) -> Figures {
    hammer(connect, |mut client| {
        let statement = client.prepare(SQL).expect("statement");
        move |n| {
            let rows = client.query(&statement, &[&n]).expect("query");
            assert_eq!(rows[0].get::<_, i32>(0), n);
        }
    })
}

fn deadpool(url: &str) -> deadpool_postgres::Pool {
    let config: tokio_postgres::Config = url.parse().expect("url");
    let manager = deadpool_postgres::Manager::new(config, tokio_postgres::NoTls);
    deadpool_postgres::Pool::builder(manager)
        .max_size(CONNECTIONS as usize)
        .build()
        .expect("pool")
}

fn deadpool_queries(runtime: &tokio::runtime::Runtime, pool: &deadpool_postgres::Pool) -> Figures {
    let barrier = Arc::new(tokio::sync::Barrier::new(THREADS + 1));
    let (latencies, wall, cpu) = runtime.block_on(async {
        let tasks: Vec<_> = (0..THREADS)
            .map(|_| {
                let (pool, barrier) = (pool.clone(), Arc::clone(&barrier));
                tokio::spawn(async move {
                    let one = async |n: i32| {
                        let client = pool.get().await.expect("connection");
                        let statement = client.prepare_cached(SQL).await.expect("statement");
                        let rows = client.query(&statement, &[&n]).await.expect("query");
                        assert_eq!(rows[0].get::<_, i32>(0), n);
                    };
                    one(0).await;
                    barrier.wait().await;
                    let begun = Instant::now();
                    let mut latencies = Vec::with_capacity(100_000);
                    let mut n = 0;
                    while begun.elapsed() < ROUND {
                        let t = Instant::now();
                        one(n).await;
                        latencies.push(t.elapsed().as_secs_f64() * 1e3);
                        n += 1;
                    }
                    latencies
                })
            })
            .collect();
        barrier.wait().await;
        let (begun, before) = (Instant::now(), used());
        let mut all = Vec::new();
        for task in tasks {
            all.extend(task.await.expect("no task panics"));
        }
        (all, begun.elapsed(), used().saturating_sub(before))
    });
    Figures::of(latencies, wall, cpu)
}

/// The same for many threads at once, the time that passes for each.
fn check_out_by_many_ns(one: impl Fn() + Sync) -> f64 {
    const EACH: u32 = 5_000;
    let round = || {
        let barrier = Barrier::new(THREADS + 1);
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    barrier.wait();
                    (0..EACH).for_each(|_| one());
                    barrier.wait();
                });
            }
            barrier.wait();
            let begun = Instant::now();
            barrier.wait();
            begun.elapsed().as_nanos() as f64 / f64::from(EACH) / THREADS as f64
        })
    };
    median((0..ROUNDS).map(|_| round()).collect())
}

/// The longest of the calls in the first round of a pool, in milliseconds: the median of the rounds,
/// and the longest of all.
fn longest_at_first(first: impl Fn() -> Figures) -> (f64, f64) {
    let longest: Vec<_> = (0..ROUNDS).map(|_| first().max_ms).collect();
    let most = longest.iter().copied().fold(0.0, f64::max);
    (median(longest), most)
}

/// Nanoseconds for one check-out and check-in of an idle connection, on one thread.
fn check_out_ns(mut one: impl FnMut()) -> f64 {
    let rounds = (0..ROUNDS).map(|_| mean_ns(5_000, &mut one));
    median(rounds.collect())
}

/// Microseconds for one of so many, the mean.
fn mean_us(count: u32, one: impl FnMut()) -> f64 {
    mean_ns(count, one) / 1e3
}

/// Microseconds for one transaction; each transaction gets a number of its own.
fn transaction_us(mut one: impl FnMut(i32)) -> f64 {
    let mut n = 0;
    let rounds = (0..ROUNDS).map(|_| {
        mean_us(1_000, || {
            n += 1;
            one(n);
        })
    });
    median(rounds.collect())
}

fn main() {
    // `cargo test --benches` runs this too, only to see that it starts; `cargo bench` passes
    // --bench.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let authority = authority::Authority::new("bench");
    let certificate = authority.issue("server", "localhost", "IP:127.0.0.1", "30");
    let mut options = Options::temporary().setting("max_connections", "250");
    for (name, value) in certificate.for_the_server().settings() {
        options = options.setting(name, &value);
    }
    let server = PrivateServer::start(options).expect("PostgreSQL");
    let encrypted = format!(
        "{}?sslmode=verify-full&sslrootcert={}",
        server.url(),
        authority.root().display()
    );
    // Everything but what is about TLS speaks plain.
    let url = server.url() + "?sslmode=disable";
    let pool = Pool::builder()
        .database_url(&url)
        .max_size(CONNECTIONS)
        .build()
        .expect("pool");
    let manager = PostgresConnectionManager::new(url.parse().expect("url"), NoTls);
    let plain: Plain = r2d2::Pool::builder()
        .max_size(CONNECTIONS)
        .build(manager)
        .expect("pool");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime");
    let dead = deadpool(&url);

    println!("settings");
    println!(
        "  millpond      max_size={CONNECTIONS}, else its defaults: fair line, validation after 500 ms idle, statement cache"
    );
    println!(
        "  millpond, max_uses=0: the same, but no connection is replaced (by default, after 7500 uses)"
    );
    println!("  millpond, TLS: the same with sslmode=verify-full; all others speak plain");
    println!(
        "  r2d2_postgres max_size={CONNECTIONS}, as it comes: test_on_check_out, no statement cache"
    );
    println!("  bare          one postgres::Client per thread, statement prepared once");
    println!(
        "  fair line     {CONNECTIONS} bare clients in a line of threads that is served in order, without deadlines or anything else: the least that fairness costs"
    );
    println!(
        "  bare, wire    the same on the byte stream that can be cut, as under millpond's connections"
    );
    println!(
        "  deadpool      max_size={CONNECTIONS}, as it comes: RecyclingMethod::Fast, prepare_cached, tokio with 2 workers"
    );

    println!("\ncheck-out and check-in of an idle connection, one thread");
    let ours = check_out_ns(|| drop(pool.get().expect("connection")));
    let theirs = check_out_ns(|| drop(plain.get().expect("connection")));
    let async_theirs = runtime.block_on(async {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let begun = Instant::now();
            for _ in 0..5_000 {
                drop(dead.get().await.expect("connection"));
            }
            rounds.push(begun.elapsed().as_nanos() as f64 / 5_000.0);
        }
        median(rounds)
    });
    println!("  millpond      {ours:>9.0} ns");
    println!(
        "  r2d2_postgres {theirs:>9.0} ns  ({:.1} x millpond)",
        theirs / ours
    );
    println!(
        "  deadpool      {async_theirs:>9.0} ns  ({:.1} x millpond)",
        async_theirs / ours
    );
    println!("  bare                  - (nothing to check out)");

    let fair = FairLine::of(&url);
    println!("\nthe same, {THREADS} threads on {CONNECTIONS} idle connections");
    for (name, ns) in [
        (
            "millpond",
            check_out_by_many_ns(|| drop(pool.get().expect("connection"))),
        ),
        (
            "r2d2_postgres",
            check_out_by_many_ns(|| drop(plain.get().expect("connection"))),
        ),
        (
            "fair line",
            check_out_by_many_ns(|| fair.give_back(fair.take())),
        ),
    ] {
        println!("  {name:<13} {ns:>9.0} ns");
    }

    println!("\nTLS with sslmode=verify-full beside plain, one thread");
    let ways = [&url, &encrypted].map(|url| {
        let once = Pool::builder().database_url(url).max_size(1).min_idle(0);
        let once = once.build().expect("pool");
        let kept = Pool::builder().database_url(url).max_size(1);
        (once, kept.build().expect("pool"))
    });
    let mut rounds: [[Vec<f64>; 2]; 2] = Default::default();
    for _ in 0..ROUNDS {
        for (way, (once, kept)) in ways.iter().enumerate() {
            let query = || drop(kept.query(SQL, &[&1]).expect("query"));
            rounds[0][way].push(mean_us(100, || {
                once.evict();
                drop(once.get().expect("connection"));
            }));
            rounds[1][way].push(mean_us(5_000, query));
        }
    }
    for (what, rounds) in ["a connection is opened", SQL].iter().zip(rounds) {
        let [plain, encrypted] = rounds.map(median);
        println!(
            "  {what:<22} plain {plain:>7.0} us   TLS {encrypted:>7.0} us  ({:.2} x plain)",
            encrypted / plain
        );
    }

    println!("\na transaction with one INSERT, one thread");
    pool.create_ledger().expect("the ledger");
    let mut client = Client::connect(&url, NoTls).expect("connection");
    client
        .batch_execute("CREATE TABLE t (n int)")
        .expect("a table");
    let insert = "INSERT INTO t VALUES ($1)";
    let statement = client.prepare(insert).expect("statement");
    let bare = transaction_us(|n| {
        let mut tx = client.transaction().expect("BEGIN");
        tx.execute(&statement, &[&n]).expect("INSERT");
        tx.commit().expect("COMMIT");
    });
    let ours = transaction_us(|n| {
        pool.transaction(|tx| tx.execute(insert, &[&n]))
            .expect("a transaction");
    });
    let keyed = transaction_us(|n| {
        pool.transaction_with_key(&n.to_string(), |tx| tx.execute(insert, &[&n]))
            .expect("a transaction with a key");
    });
    println!("  bare          {bare:>9.0} us");
    println!(
        "  millpond      {ours:>9.0} us  ({:.2} x bare)",
        ours / bare
    );
    println!(
        "  with a key    {keyed:>9.0} us  ({:.2} x bare)",
        keyed / bare
    );

    println!(
        "\n{SQL}, {THREADS} threads on {CONNECTIONS} connections, median of {ROUNDS} rounds of {ROUND:?}"
    );
    let over_tls = Pool::builder().database_url(&encrypted);
    let over_tls = over_tls.max_size(CONNECTIONS).build().expect("pool");
    let unworn = Pool::builder().database_url(&url).max_uses(0);
    let unworn = unworn.max_size(CONNECTIONS).build().expect("pool");
    let mut rounds: [Vec<Figures>; 8] = Default::default();
    for _ in 0..ROUNDS {
        rounds[0].push(millpond_queries(&pool));
        rounds[1].push(r2d2_queries(&plain));
        rounds[2].push(bare_queries(|| {
            Client::connect(&url, NoTls).expect("connection")
        }));
        rounds[3].push(bare_queries(|| over_the_wire(&url)));
        rounds[4].push(deadpool_queries(&runtime, &dead));
        rounds[5].push(millpond_queries(&over_tls));
        rounds[6].push(millpond_queries(&unworn));
        rounds[7].push(fair_queries(&fair));
    }
    let [ours, plain, bare, wire, dead, tls, unworn, fair] = rounds.map(|r| Figures::medians(&r));
    println!(
        "                 queries/s    p50 ms    p99 ms    max ms  us of cpu  of bare  of fair"
    );
    for (name, f) in [
        ("millpond", ours),
        ("  max_uses=0", unworn),
        ("  TLS", tls),
        ("r2d2_postgres", plain),
        ("bare", bare),
        ("bare, wire", wire),
        ("fair line", fair),
        ("deadpool", dead),
    ] {
        println!(
            "  {name:<13} {:>10.0} {:>9.3} {:>9.3} {:>9.1} {:>10.1} {:>8.2} {:>8.2}",
            f.rate,
            f.p50_ms,
            f.p99_ms,
            f.max_ms,
            f.cpu_us,
            f.rate / bare.rate,
            f.rate / fair.rate,
        );
    }

    // A new process of the server may starve for a while where each is a group of its own to the
    // scheduler.
    let groups = std::fs::read_to_string("/proc/sys/kernel/sched_autogroup_enabled");
    println!(
        "\nthe longest call of the first {ROUND:?} of a pool: the median of {ROUNDS}, and the longest (kernel.sched_autogroup_enabled={})",
        groups.as_deref().unwrap_or("?").trim()
    );
    let ours = || {
        let new = Pool::builder().database_url(&url).max_size(CONNECTIONS);
        millpond_queries(&new.build().expect("pool"))
    };
    let fair = || fair_queries(&FairLine::of(&url));
    for (name, (median, most)) in [
        ("millpond", longest_at_first(ours)),
        ("fair line", longest_at_first(fair)),
    ] {
        println!("  {name:<13} {median:>9.1} ms {most:>9.1} ms");
    }
}
