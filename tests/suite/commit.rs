//! A COMMIT whose answer is lost: the pool finds out its outcome and never guesses.

use super::proxy::{Act, Proxy};
use super::support::{Database, MS, SECOND, admin, counter, database, pool, server};
use millpond::embedded::{PrivateServer, Stop};
use millpond::{Pool, RetryPolicy};
use std::cell::Cell;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Instant;

/// The answer to a COMMIT, and the request for one.
pub const COMMITTED: &[u8] = b"COMMIT\0";
pub const COMMIT: &[u8] = b"\0COMMIT\0";

fn set_up() -> (Database, Proxy, Pool) {
    let db = database();
    let proxy = Proxy::in_front_of(db.port);
    db.admin().batch_execute("CREATE TABLE t (n int)").unwrap();
    let pool = pool(&proxy.url(&db.url)).max_size(2).build().unwrap();
    (db, proxy, pool)
}

/// Writes one row in a transaction, with the fault armed in its first attempt. Returns the result
/// and the number of attempts.
fn write(pool: &Pool, fault: impl FnOnce()) -> (millpond::Result<()>, u32) {
    let (attempts, fault) = (Cell::new(0), Cell::new(Some(fault)));
    let result = pool.transaction(|tx| {
        attempts.set(attempts.get() + 1);
        tx.execute("INSERT INTO t VALUES (1)", &[])?;
        if let Some(fault) = fault.take() {
            fault();
        }
        Ok(())
    });
    (result, attempts.get())
}

pub fn rows(url: &str) -> i64 {
    admin(url)
        .query_one("SELECT count(*) FROM t", &[])
        .unwrap()
        .get(0)
}

pub fn outcomes(pool: &Pool, outcome: &str) -> u64 {
    let name = format!("millpond_commit_outcomes_total{{outcome=\"{outcome}\"}} ");
    counter(pool, &name)
}

#[test]
fn answered_but_not_delivered_is_committed() {
    let (db, proxy, pool) = set_up();
    let (result, attempts) = write(&pool, || proxy.on_answer(COMMITTED, Act::Lose));
    result.unwrap();
    assert_eq!(
        (attempts, rows(&db.url), outcomes(&pool, "committed")),
        (1, 1, 1)
    );
}

#[test]
fn lost_on_the_way_is_not_committed_and_repeated() {
    let (db, proxy, pool) = set_up();
    let (result, attempts) = write(&pool, || proxy.on_request(COMMIT, Act::Lose));
    result.unwrap();
    assert_eq!(
        (attempts, rows(&db.url), outcomes(&pool, "not_committed")),
        (2, 1, 1)
    );
}

#[test]
fn without_retries_not_committed_is_said_and_may_be_repeated() {
    let (db, proxy, pool) = set_up();
    let error = pool
        .with_policy(RetryPolicy::none())
        .transaction(|tx| -> millpond::Result<_> {
            tx.execute("INSERT INTO t VALUES (1)", &[])?;
            proxy.on_request(COMMIT, Act::Lose);
            Ok(())
        })
        .unwrap_err();
    assert!(
        error.is_retryable() && !error.is_outcome_unknown(),
        "{error:?}"
    );
    assert_eq!(rows(&db.url), 0);
}

#[test]
fn one_that_arrives_after_the_question_is_not_committed() {
    let (db, proxy, pool) = set_up();
    let (arrived, late) = mpsc::channel();
    let (result, attempts) = write(&pool, || {
        let then = Box::new(move || arrived.send(()).unwrap());
        proxy.on_request(COMMIT, Act::DeliverLateThen(300 * MS, then));
    });
    result.unwrap();
    late.recv_timeout(20 * SECOND).expect("it was delivered");
    // The first attempt's backend was ended before its COMMIT arrived.
    assert_eq!(
        (attempts, rows(&db.url), outcomes(&pool, "not_committed")),
        (2, 1, 1)
    );
}

#[test]
fn three_in_a_row_are_found_out_one_by_one() {
    let (db, proxy, pool) = set_up();
    let attempts = Cell::new(0);
    pool.transaction(|tx| -> millpond::Result<_> {
        attempts.set(attempts.get() + 1);
        tx.execute("INSERT INTO t VALUES (1)", &[])?;
        match attempts.get() {
            1 | 2 => proxy.on_request(COMMIT, Act::Lose),
            _ => proxy.on_answer(COMMITTED, Act::Lose),
        }
        Ok(())
    })
    .unwrap();
    assert_eq!((attempts.get(), rows(&db.url)), (3, 1));
    assert_eq!(
        (
            outcomes(&pool, "not_committed"),
            outcomes(&pool, "committed")
        ),
        (2, 1)
    );
}

#[test]
fn a_lone_statement_in_a_transaction_of_its_own_is_found_out_too() {
    let (db, proxy, pool) = set_up();
    proxy.on_answer(COMMITTED, Act::Lose);
    // The timeout is longer than the server's own, so that the statement runs in a transaction with
    // SET LOCAL.
    pool.with_timeout(60 * SECOND)
        .execute("INSERT INTO t VALUES (1)", &[])
        .unwrap();
    assert_eq!((rows(&db.url), outcomes(&pool, "committed")), (1, 1));
}

/// A server of its own behind a proxy, for faults that affect all of its clients. Returns the
/// server, the proxy, and the URLs past the proxy and through it.
pub fn own_server(durable: bool) -> (Arc<Mutex<PrivateServer>>, Proxy, String, String) {
    let on = if durable { "on" } else { "off" };
    let server = server(&[
        ("fsync", on),
        ("synchronous_commit", on),
        ("full_page_writes", on),
    ]);
    let direct = server.url();
    let proxy = Proxy::in_front_of(server.port());
    let by_proxy = proxy.url(&direct);
    admin(&direct)
        .batch_execute("CREATE TABLE t (n int)")
        .unwrap();
    (Arc::new(Mutex::new(server)), proxy, direct, by_proxy)
}

#[test]
fn a_server_that_crashes_over_the_commit_never_leads_to_a_wrong_answer() {
    let (server, proxy, direct, by_proxy) = own_server(true);
    let pool = pool(&by_proxy)
        .connection_timeout(5 * SECOND)
        .build()
        .unwrap();
    for deliver in [true, false, true] {
        let before = rows(&direct);
        let (crashing, (crashed, done)) = (Arc::clone(&server), mpsc::channel());
        let crash = Box::new(move || {
            let mut server = crashing.lock().unwrap();
            server.stop(Stop::Immediate);
            server.start_again().unwrap();
            crashed.send(()).unwrap();
        });
        let act = if deliver {
            Act::DeliverThen(crash)
        } else {
            Act::LoseAfter(crash)
        };
        let (result, attempts) = write(&pool, || proxy.on_request(COMMIT, act));
        done.recv_timeout(60 * SECOND).expect("the crash happened");
        let written = rows(&direct) - before;
        match result {
            Ok(()) => assert_eq!(written, 1, "acknowledged after {attempts} attempts"),
            Err(e) if e.is_outcome_unknown() => assert!(deliver && attempts == 1 && written <= 1),
            Err(e) => panic!("{e:?}: {written} rows"),
        }
    }
}

#[test]
fn a_reset_of_the_statistics_leads_to_unknown_rather_than_to_a_guess() {
    let (_server, proxy, direct, by_proxy) = own_server(false);
    let pool = pool(&by_proxy).build().unwrap();
    let reset_by = direct.clone();
    let reset = move || {
        let mut admin = admin(&reset_by);
        let mut at = || -> String {
            let sql = "SELECT stats_reset::text FROM pg_stat_wal";
            admin.query_one(sql, &[]).unwrap().get(0)
        };
        let before = at();
        // PostgreSQL 14 resets the figures with a delay.
        super::support::eventually("they are reset", || {
            super::support::admin(&reset_by)
                .batch_execute("SELECT pg_stat_reset_shared('wal')")
                .unwrap();
            at() != before
        });
    };
    let act = Act::LoseAfter(Box::new(reset));
    let (result, attempts) = write(&pool, || proxy.on_answer(COMMITTED, act));
    assert!(result.unwrap_err().is_outcome_unknown());
    assert_eq!(
        (attempts, rows(&direct), outcomes(&pool, "unknown")),
        (1, 1, 1)
    );
}

#[test]
fn a_server_that_stays_away_leads_to_unknown_in_time() {
    let (server, proxy, _direct, by_proxy) = own_server(false);
    let pool = pool(&by_proxy).connection_timeout(SECOND).build().unwrap();
    let act = Act::DeliverThen(Box::new(move || {
        server.lock().unwrap().stop(Stop::Immediate);
    }));
    let started = Instant::now();
    let (result, attempts) = write(&pool, || proxy.on_request(COMMIT, act));
    assert!(result.unwrap_err().is_outcome_unknown());
    assert!(started.elapsed() < 15 * SECOND, "{:?}", started.elapsed());
    assert_eq!((attempts, outcomes(&pool, "unknown")), (1, 1));
}

#[test]
fn an_ordinary_role_is_told_the_truth_and_one_that_may_not_look_is_told_unknown() {
    let (db, proxy, _) = set_up();
    db.admin()
        .batch_execute(
            "CREATE ROLE plain_role LOGIN PASSWORD 'plain'; GRANT ALL ON t TO plain_role; \
             CREATE ROLE blind_role LOGIN PASSWORD 'blind'; GRANT ALL ON t TO blind_role; \
             REVOKE EXECUTE ON FUNCTION pg_control_system() FROM public; \
             GRANT EXECUTE ON FUNCTION pg_control_system() TO plain_role",
        )
        .unwrap();
    let by_role = |role: &str, password: &str| {
        let (_, after) = db.url.split_once('@').unwrap();
        let url = format!("postgresql://{role}:{password}@{after}");
        pool(&proxy.url(&url)).build().unwrap()
    };
    let plain = by_role("plain_role", "plain");
    write(&plain, || proxy.on_answer(COMMITTED, Act::Lose))
        .0
        .unwrap();
    assert_eq!(outcomes(&plain, "committed"), 1);
    let blind = by_role("blind_role", "blind");
    let (result, _) = write(&blind, || proxy.on_answer(COMMITTED, Act::Lose));
    assert!(result.unwrap_err().is_outcome_unknown());
    assert_eq!(rows(&db.url), 2);
}
