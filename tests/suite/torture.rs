//! Writers on a server that crashes, restarts and loses its answers: what each writer was told must
//! match what is in the tables afterwards.
//!
//! Takes ten seconds each, or longer on a slow machine; `MILLPOND_TORTURE_SECONDS` sets
//! another duration.

use super::commit::{COMMIT, COMMITTED, outcomes};
use super::proxy::{Act, Proxy};
use super::servers::signal;
use super::support::{EndAtDrop, MS, SECOND, admin, server};
use super::writers::{
    AllTold, EVERY_WAY, Told, check, check_all, counts, lasting_pool, pool_for_writers, repeat,
    server_for_writers, terminate_for, write_during,
};
use millpond::Pool;
use millpond::embedded::{PrivateServer, Stop};
use postgres::{Client, NoTls};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const WRITERS: usize = 8;
const ACCOUNTS: usize = 20;
const CENTS: i64 = 1000;

/// What a writer was told of its writes, with a key and without.
#[derive(Default)]
struct Both {
    keyed: AllTold,
    plain: AllTold,
}

fn write_until(over: &AtomicBool, acknowledged: &AtomicUsize, pool: &Pool, writer: usize) -> Both {
    let mut told = Both::default();
    for n in 0.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("{writer}-{n}");
        let result = if n % 2 == 0 {
            let result = pool.transaction_with_key(&name, |tx| {
                tx.execute("INSERT INTO keyed VALUES ($1)", &[&name])
            });
            told.keyed.insert(name, Told::of(&result));
            result.map(|_| ())
        } else {
            let (from, to) = (n * 7 % ACCOUNTS, (n * 3 + writer + 1) % ACCOUNTS);
            let result = transfer(pool, &name, from, to);
            told.plain.insert(name, Told::of(&result));
            result
        };
        if result.is_ok() {
            acknowledged.fetch_add(1, Ordering::Relaxed);
        }
    }
    told
}

fn transfer(pool: &Pool, name: &str, from: usize, to: usize) -> millpond::Result<()> {
    let add = "UPDATE accounts SET cents = cents + $1 WHERE id = $2";
    pool.transaction(|tx| {
        tx.execute(add, &[&-1i64, &(from as i32)])?;
        tx.execute(add, &[&1i64, &(to as i32)])?;
        tx.execute("INSERT INTO transfers VALUES ($1)", &[&name])?;
        Ok(())
    })
}

/// Loses answers to COMMITs, COMMIT requests, and the requests and answers with which transactions
/// begin, in turn.
fn lose_answers_until(over: &AtomicBool, proxy: &Proxy) {
    for turn in (0..4).cycle() {
        if over.load(Ordering::Relaxed) {
            break;
        }
        match turn {
            0 => proxy.on_answer(COMMITTED, Act::Lose),
            1 => proxy.on_request(super::begin::BEGIN, Act::Lose),
            2 => proxy.on_request(COMMIT, Act::Lose),
            _ => proxy.on_answer(b"BEGIN\0", Act::Lose),
        }
        thread::sleep(75 * MS);
    }
}

/// Kills a backend, restarts the server and crashes it, in turn.
fn crash_until(over: &AtomicBool, server: &mut PrivateServer) -> [u32; 3] {
    let mut done = [0; 3];
    for turn in (0..3).cycle() {
        thread::sleep(1500 * MS);
        if over.load(Ordering::Relaxed) {
            break;
        }
        match turn {
            0 => {
                // The backend may have ended already: the pool ends backends whose COMMIT was lost.
                if !some_backend(&server.url()).is_some_and(|pid| signal(pid, "KILL")) {
                    continue;
                }
            }
            1 => {
                server.stop(Stop::Fast);
                server.start_again().expect("a restart");
            }
            _ => {
                server.stop(Stop::Immediate);
                server.start_again().expect("a restart");
            }
        }
        done[turn] += 1;
    }
    done
}

fn some_backend(url: &str) -> Option<u32> {
    let mut client = Client::connect(url, NoTls).ok()?;
    let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 'writers' ORDER BY random() LIMIT 1";
    let pid: i32 = client.query_opt(sql, &[]).ok()??.get(0);
    Some(pid.unsigned_abs())
}

/// The duration in `MILLPOND_TORTURE_SECONDS`, or else `usually`.
pub fn lasts(usually: Duration) -> Duration {
    let seconds = std::env::var("MILLPOND_TORTURE_SECONDS");
    seconds.map_or(usually, |s| {
        Duration::from_secs(s.parse().expect("MILLPOND_TORTURE_SECONDS: a number"))
    })
}

#[test]
fn nobody_was_told_anything_but_the_truth() {
    let lasts = lasts(6 * SECOND);
    let mut server = server(&[("synchronous_commit", "on"), ("full_page_writes", "on")]);
    let url = server.url();
    let proxy = Proxy::in_front_of(server.port());
    let by_proxy = proxy.url(&url);
    admin(&url)
        .batch_execute(&format!(
            "CREATE TABLE accounts AS SELECT i AS id, {CENTS}::bigint AS cents FROM generate_series(0, {}) AS i; \
             CREATE TABLE transfers (name text); CREATE TABLE keyed (name text)",
            ACCOUNTS - 1
        ))
        .unwrap();
    let pool = lasting_pool(&by_proxy, WRITERS as u32);
    let (over, acknowledged) = (AtomicBool::new(false), AtomicUsize::new(0));
    let enough = || {
        outcomes(&pool, "committed") >= 20
            && outcomes(&pool, "not_committed") >= 20
            && acknowledged.load(Ordering::Relaxed) >= 200
    };
    let started = Instant::now();
    let (told, crashes) = thread::scope(|scope| {
        let end = EndAtDrop(&over);
        let writers: Vec<_> = (0..WRITERS)
            .map(|w| {
                let (over, acknowledged, pool) = (&over, &acknowledged, &pool);
                scope.spawn(move || write_until(over, acknowledged, pool, w))
            })
            .collect();
        scope.spawn(|| lose_answers_until(&over, &proxy));
        let crashes = scope.spawn(|| crash_until(&over, &mut server));
        while started.elapsed() < lasts || (!enough() && started.elapsed() < 4 * lasts) {
            thread::sleep(50 * MS);
        }
        drop(end);
        let crashes = crashes.join().unwrap();
        let mut told = Both::default();
        for writer in writers {
            let one = writer.join().unwrap();
            told.keyed.extend(one.keyed);
            told.plain.extend(one.plain);
        }
        (told, crashes)
    });
    drop(proxy);
    let mut admin = admin(&url);
    let keyed = check("with a key", &told.keyed, counts(&mut admin, "keyed"));
    let plain = check("without", &told.plain, counts(&mut admin, "transfers"));
    let sum = "SELECT sum(cents)::bigint FROM accounts";
    let sum: i64 = admin.query_one(sum, &[]).unwrap().get(0);
    println!(
        "{:?}: backends killed, fast and immediate restarts {crashes:?}; with a key {keyed:?} and without {plain:?} \
         done, refused, unknown; lost commits resolved: {} committed, {} not, {} unknown",
        started.elapsed(),
        outcomes(&pool, "committed"),
        outcomes(&pool, "not_committed"),
        outcomes(&pool, "unknown")
    );
    assert_eq!(sum, CENTS * ACCOUNTS as i64);
    assert_eq!(keyed[2], 0, "with a key nothing is unknown");
    assert!(crashes.iter().all(|times| *times > 0), "{crashes:?}");
    assert!(enough(), "too few to say anything");
}

#[test]
fn planned_restarts_crashes_and_ended_sessions_leave_no_write_twice() {
    let lasts = lasts(6 * SECOND);
    let mut server = server_for_writers();
    let url = server.url();
    let pool = pool_for_writers(&url, &url, 24);
    let faults = |written: &AtomicUsize| {
        let written = || written.load(Ordering::Relaxed);
        let enough = |restarts| restarts >= 10 && written() >= 300;
        let restarts = repeat(lasts * 2 / 3, enough, |restarts| {
            thread::sleep(300 * MS);
            server.stop(if restarts % 2 == 0 {
                Stop::Fast
            } else {
                Stop::Immediate
            });
            server.start_again().expect("a restart");
            1
        });
        let enough = |ended| ended >= 100 && written() >= 1000;
        (restarts, terminate_for(&url, lasts / 3, enough))
    };
    let (told, (restarts, ended)) = write_during(&[("direct", &pool)], &EVERY_WAY, 16, faults);
    let [done, refused, unknown] = check_all("restarts", &told, &url);
    println!(
        "{restarts} restarts, {ended} sessions ended: {done} done, {refused} refused, {unknown} unknown"
    );
    assert!(
        restarts >= 10 && ended >= 100 && done >= 1000,
        "too few to say anything"
    );
}
