//! A server that accepts connections and does not answer: waiting threads are freed in time, and
//! the pool works again as soon as the server does.
//!
//! The tests print their figures. On a busy machine the figures say little, so they are held to
//! strict bounds only when `MILLPOND_TEST_FIGURES` is set; otherwise to bounds that a busy machine
//! keeps as well.

use super::proxy::{Mode, Proxy};
use super::servers::Frozen;
use super::support::{MS, SECOND, backends, eventually, pool, server};
use millpond::embedded::PrivateServer;
use millpond::{Pool, RetryPolicy};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

/// Time to add to a bound on a machine that does other things too.
pub fn slack() -> Duration {
    match std::env::var_os("MILLPOND_TEST_FIGURES") {
        Some(_) => Duration::ZERO,
        None => 2 * SECOND,
    }
}

const CHECK_OUT: Duration = Duration::from_millis(400);
const QUERY: Duration = Duration::from_millis(300);
const SIZE: u32 = 4;

struct Scene {
    server: PrivateServer,
    proxy: Proxy,
    pool: Pool,
}

/// A pool with all of its connections open, and a proxy between it and its server.
fn scene() -> Scene {
    let server = server(&[]);
    let proxy = Proxy::in_front_of(server.port());
    let by_proxy = proxy.url(&server.url());
    let pool = pool(&by_proxy)
        .max_size(SIZE)
        .connection_timeout(CHECK_OUT)
        .query_timeout(QUERY)
        .statement_timeout(Duration::ZERO)
        .retry_policy(RetryPolicy::none())
        .application_name("frozen")
        .build()
        .unwrap();
    let scene = Scene {
        server,
        proxy,
        pool,
    };
    eventually("the pool is whole", || scene.whole());
    scene
}

impl Scene {
    /// True if all connections can be checked out and used at once.
    fn whole(&self) -> bool {
        let all_there = Barrier::new(SIZE as usize);
        thread::scope(|scope| {
            let users: Vec<_> = (0..SIZE)
                .map(|_| {
                    scope.spawn(|| {
                        let connection = self.pool.get();
                        all_there.wait();
                        connection.is_ok_and(|mut c| c.simple_query("SELECT 1").is_ok())
                    })
                })
                .collect();
            // All results are collected first: `all` on the iterator would stop at the first
            // failure.
            let good: Vec<_> = users.into_iter().map(|u| u.join().unwrap()).collect();
            good.into_iter().all(|good| good)
        })
    }

    /// Runs a query on each of `threads` threads at once. Returns the longest time.
    fn query_from(&self, threads: usize) -> Duration {
        thread::scope(|scope| {
            let users: Vec<_> = (0..threads)
                .map(|_| {
                    scope.spawn(|| {
                        let since = Instant::now();
                        let _ = self.pool.read("SELECT 1", &[]);
                        since.elapsed()
                    })
                })
                .collect();
            let took = users.into_iter().map(|u| u.join().unwrap());
            took.max().unwrap()
        })
    }
}

/// Makes a fault, measures its effect on waiting threads, and ends it. `end` returns when the fault
/// is over.
fn look_at<F>(what: &str, start: impl FnOnce(&Scene) -> F, end: impl FnOnce(&Scene, F)) {
    let scene = scene();
    let held = scene.pool.get().unwrap();
    let fault = start(&scene);
    let since = Instant::now();
    drop(held);
    let dropped = since.elapsed();
    // The connections were used a moment ago and are trusted, so the query itself meets the fault.
    let queried = scene.query_from(SIZE as usize);
    let checked_out = (0..3)
        .map(|_| {
            let since = Instant::now();
            let _ = scene.pool.get();
            since.elapsed()
        })
        .max()
        .unwrap();
    end(&scene, fault);
    let since = Instant::now();
    let patience = since + 20 * SECOND;
    while !scene.whole() {
        assert!(Instant::now() < patience, "{what}: never whole again");
    }
    let whole = since.elapsed();
    println!(
        "{what:20} query {queried:8.1?}  check-out {checked_out:8.1?}  drop {dropped:8.1?}  whole again {whole:8.1?}"
    );
    assert!(
        queried <= QUERY + 550 * MS + slack(),
        "{what}: query {queried:?}"
    );
    assert!(
        checked_out <= CHECK_OUT + 50 * MS + slack(),
        "{what}: check-out {checked_out:?}"
    );
    assert!(dropped <= 10 * MS + slack(), "{what}: drop {dropped:?}");
    assert!(whole <= 250 * MS + slack(), "{what}: whole again {whole:?}");
}

fn pass(scene: &Scene, (): ()) {
    scene.proxy.set(Mode::Pass);
}

#[test]
fn a_black_hole() {
    look_at("black hole", |s| s.proxy.set(Mode::BlackHole), pass);
}

#[test]
fn refused() {
    let start = |s: &Scene| {
        s.proxy.set(Mode::Refuse);
        s.proxy.cut();
    };
    look_at("refused", start, pass);
}

#[test]
fn accepted_and_never_answered() {
    let start = |s: &Scene| {
        s.proxy.set(Mode::Silent);
        s.proxy.cut();
    };
    look_at("half-open accept", start, pass);
}

#[test]
fn a_stopped_postmaster() {
    let start = |s: &Scene| {
        // Open connections are still served by their backends, so they are cut as well.
        let frozen = Frozen::process(s.server.pid().unwrap());
        s.proxy.cut();
        frozen
    };
    look_at("stopped postmaster", start, |_, frozen| frozen.thaw());
}

#[test]
fn stopped_backends() {
    let start = |s: &Scene| {
        let mut admin = super::support::admin(&s.server.url());
        let pids = backends(&mut admin, "frozen");
        assert_eq!(pids.len(), SIZE as usize);
        pids.iter()
            .map(|pid| Frozen::process(pid.unsigned_abs()))
            .collect::<Vec<_>>()
    };
    look_at("stopped backends", start, |_, frozen| drop(frozen));
}

#[test]
fn a_whole_server_stopped() {
    let start = |s: &Scene| Frozen::tree(s.server.pid().unwrap());
    look_at("stopped server", start, |_, frozen| frozen.thaw());
}

#[test]
fn twenty_queries_past_their_deadline_at_once_are_all_freed_in_time() {
    let server = server(&[]);
    let proxy = Proxy::in_front_of(server.port());
    let by_proxy = proxy.url(&server.url());
    let pool = pool(&by_proxy)
        .connection_timeout(20 * SECOND)
        .query_timeout(3 * SECOND)
        .build()
        .unwrap();
    let (there, gone) = (Barrier::new(21), Barrier::new(21));
    let longest = thread::scope(|scope| {
        let users: Vec<_> = (0..20)
            .map(|_| {
                scope.spawn(|| {
                    let mut took = Duration::ZERO;
                    let result = pool.transaction(|tx| {
                        there.wait();
                        gone.wait();
                        let since = Instant::now();
                        let result = tx.query("SELECT 1", &[]);
                        took = since.elapsed();
                        result
                    });
                    (result, took)
                })
            })
            .collect();
        there.wait();
        proxy.set(Mode::BlackHole);
        gone.wait();
        users
            .into_iter()
            .map(|user| {
                let (result, took) = user.join().unwrap();
                assert!(result.unwrap_err().is_timeout());
                took
            })
            .max()
            .unwrap()
    });
    println!("20 at once on a black hole: {longest:?}");
    assert!(longest <= 3 * SECOND + 550 * MS + slack());
}

#[test]
fn a_cancel_never_hits_the_next_statement() {
    let server = server(&[]);
    let pool = pool(&server.url())
        .max_size(2)
        .statement_timeout(Duration::ZERO)
        .retry_policy(RetryPolicy::none())
        .build()
        .unwrap();
    let until = Instant::now() + 5 * SECOND;
    let (mut timeouts, mut good) = (0, 0);
    while Instant::now() < until {
        // The query ends near its deadline: sometimes before the cancel, sometimes because of it,
        // sometimes while it is under way.
        let limit = Duration::from_micros(2_000 + some_micros(90_000));
        match pool.with_timeout(limit).query("SELECT pg_sleep(0.06)", &[]) {
            Ok(_) => good += 1,
            Err(e) => {
                assert!(e.is_timeout(), "{e:?}");
                timeouts += 1;
            }
        }
        for _ in 0..20 {
            pool.query("SELECT 1", &[]).expect("no stray 57014");
        }
    }
    println!("{timeouts} timeouts, {good} in time, no stray cancel");
    assert!(timeouts > 5 && good > 0, "{timeouts} {good}");
}

/// A number that differs from call to call; it need not be random.
fn some_micros(below: u32) -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::from(now.unwrap().subsec_micros() % below)
}

#[test]
fn a_call_with_a_deadline_returns_550_ms_after_it_at_the_latest() {
    let scene = scene();
    let time = 300 * MS;
    type Work = fn(&millpond::Call<'_>, &mut dyn FnMut());
    let works: [(&str, Work); 6] = [
        ("a query", |call, freeze| {
            freeze();
            call.query("SELECT 1", &[]).unwrap_err();
        }),
        ("a statement in a transaction", |call, freeze| {
            let work = |tx: &mut millpond::Transaction<'_>| {
                freeze();
                tx.query("SELECT 1", &[])
            };
            call.transaction(once(work)).unwrap_err();
        }),
        ("a rollback", |call, freeze| {
            let work = |tx: &mut millpond::Transaction<'_>| -> millpond::Result<()> {
                tx.query("SELECT 1", &[])?;
                freeze();
                thread::sleep(250 * MS);
                Err(millpond::Error::application("no"))
            };
            call.transaction(once(work)).unwrap_err();
        }),
        ("a commit", |call, freeze| {
            let work = |tx: &mut millpond::Transaction<'_>| {
                let done = tx.query("SELECT 1", &[]);
                freeze();
                done
            };
            call.transaction(once(work)).unwrap_err();
        }),
        ("a sign of life", |call, freeze| {
            thread::sleep(600 * MS);
            freeze();
            call.clone()
                .with_deadline(Instant::now() + 300 * MS)
                .query("SELECT 1", &[])
                .unwrap_err();
        }),
        ("a cleaning", |call, freeze| {
            call.execute("SET work_mem = '1MB'", &[]).unwrap();
            freeze();
            call.query("SELECT 1", &[]).unwrap_err();
        }),
    ];
    for (what, work) in works {
        let mut frozen = None;
        let mut at = Instant::now();
        eventually("the pool is whole", || scene.whole());
        let call = scene.pool.with_deadline(Instant::now() + time);
        let call = if what == "a sign of life" {
            scene.pool.call()
        } else {
            call
        };
        work(&call, &mut || {
            frozen = Some(Frozen::tree(scene.server.pid().unwrap()));
            at = Instant::now();
        });
        let took = at.elapsed();
        println!("{what}: {took:?} after the server was frozen");
        assert!(took < time + 550 * MS + slack(), "{what}: {took:?}");
        drop(frozen);
    }
}

/// Turns a closure that may run only once into one that panics if it runs again.
fn once<T>(
    work: impl FnOnce(&mut millpond::Transaction<'_>) -> millpond::Result<T>,
) -> impl FnMut(&mut millpond::Transaction<'_>) -> millpond::Result<T> {
    let mut work = Some(work);
    move |tx| (work.take().expect("not repeated"))(tx)
}

#[test]
fn over_a_unix_socket_too_a_check_out_ends_when_its_time_is_up() {
    let server = server(&[]);
    let dir = super::answers::unix_socket(server.port());
    let url = server.url().replace(
        &format!("127.0.0.1:{}", server.port()),
        &format!(
            "{}:{}",
            dir.path().display().to_string().replace('/', "%2F"),
            server.port()
        ),
    );
    let pool = pool(&url)
        .max_size(2)
        .pooler(millpond::config::Pooler::Off)
        .build()
        .unwrap();
    pool.query("SELECT 1", &[]).unwrap();
    eventually("the minimum is there", || pool.stats().idle == 2);
    // Longer than a connection is trusted without a probe.
    thread::sleep(600 * MS);
    let frozen = Frozen::tree(server.pid().unwrap());
    for _ in 0..3 {
        let started = Instant::now();
        assert!(pool.get_timeout(300 * MS).is_err());
        let took = started.elapsed();
        assert!(took < 850 * MS + slack(), "{took:?}");
    }
    frozen.thaw();
    eventually("the pool works again", || {
        pool.query("SELECT 1", &[]).is_ok()
    });
    eventually("and nothing is left out", || pool.stats().active == 0);
}
