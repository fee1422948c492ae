//! The database goes away and comes back: what callers see, and how the pool recovers.

use super::proxy::{Mode, Proxy};
use super::support::{
    EndAtDrop, MS, SECOND, counter, database, eventually, log_lines, pool, server,
};
use millpond::embedded::Stop;
use millpond::error::CheckoutFailure;
use millpond::pool::ProbeError;
use millpond::{Error, RetryPolicy};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn fifty_readers_live_through_three_restarts_without_an_error() {
    let mut server = server(&[]);
    let pool = millpond::Pool::builder()
        .database_url(&server.url())
        .build()
        .unwrap();
    let over = AtomicBool::new(false);
    let reads = AtomicUsize::new(0);
    let last_read = Mutex::new(Instant::now());
    thread::scope(|scope| {
        let end = EndAtDrop(&over);
        let readers: Vec<_> = (0..50)
            .map(|_| {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        pool.read("SELECT 1", &[]).unwrap();
                        reads.fetch_add(1, Ordering::Relaxed);
                        *last_read.lock().unwrap() = Instant::now();
                    }
                })
            })
            .collect();
        for _ in 0..3 {
            let before = reads.load(Ordering::Relaxed);
            eventually("the readers read", || {
                reads.load(Ordering::Relaxed) > before + 1000
            });
            server.stop(Stop::Fast);
            server.start_again().unwrap();
            let accepting = Instant::now();
            eventually("a read succeeds again", || {
                *last_read.lock().unwrap() > accepting
            });
            println!(
                "first success {:?} after the server was ready",
                last_read.lock().unwrap().duration_since(accepting)
            );
        }
        drop(end);
        readers
            .into_iter()
            .for_each(|r| r.join().expect("no read failed"));
    });
}

#[test]
fn a_pool_is_built_while_the_database_is_down_and_finds_it() {
    let mut server = server(&[]);
    let url = server.url();
    server.stop(Stop::Fast);
    let started = Instant::now();
    let pool = pool(&url).connection_timeout(200 * MS).build().unwrap();
    assert!(started.elapsed() < SECOND + super::frozen::slack());
    assert_eq!(pool.health().error, Some(ProbeError::Refused));
    let error = pool
        .with_policy(RetryPolicy::none())
        .query("SELECT 1", &[])
        .unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    let chain = millpond::error::Chain(&error).to_string();
    assert!(
        chain.contains("no connection within") && chain.contains("refused"),
        "{chain}"
    );
    server.start_again().unwrap();
    eventually("a query succeeds", || pool.query("SELECT 1", &[]).is_ok());
    eventually("it is healthy", || pool.health().healthy);
}

#[test]
fn a_caller_with_a_deadline_waits_through_the_outage() {
    let mut server = server(&[]);
    let pool = pool(&server.url())
        .connection_timeout(SECOND)
        .build()
        .unwrap();
    pool.query("SELECT 1", &[]).unwrap();
    server.stop(Stop::Immediate);
    thread::scope(|scope| {
        let caller = scope.spawn(|| {
            pool.call()
                .with_deadline(Instant::now() + 60 * SECOND)
                .read("SELECT 1", &[])
        });
        thread::sleep(SECOND);
        server.start_again().unwrap();
        caller.join().unwrap().unwrap();
    });
}

#[test]
fn a_server_without_room_is_named_and_what_is_open_goes_on() {
    let server = server(&[
        ("max_connections", "8"),
        ("superuser_reserved_connections", "0"),
    ]);
    // Other pools may have the rest; this pool gets six connections of its ten.
    let mut others: Vec<_> = (0..2)
        .map(|_| super::support::admin(&server.url()))
        .collect();
    let pool = pool(&server.url())
        .max_size(10)
        .connection_timeout(2 * SECOND)
        .build()
        .unwrap();
    let mut held = Vec::new();
    let error = loop {
        match pool.get() {
            Ok(connection) => held.push(connection),
            Err(e) => break e,
        }
    };
    assert_eq!(held.len(), 6);
    assert_eq!(
        error.sqlstate().map(postgres::error::SqlState::code),
        Some("53300")
    );
    assert!(error.is_retryable() && error.is_timeout());
    // The health probe gets no connection either, which does not mean that the database is down.
    let health = pool.health();
    assert!(health.healthy && health.probe_refused, "{health:?}");
    assert!(!pool.is_failing_fast());
    held.pop();
    pool.query("SELECT 1", &[]).unwrap();
    drop(held);
    others.clear();
    let mut held = Vec::new();
    eventually("there is room again", || {
        held.extend(pool.get().ok());
        held.len() > 6
    });
}

#[test]
fn a_wrong_password_is_not_tried_again_and_again() {
    let db = database();
    let url = db.url.replace("postgres:", "nobody_here:");
    let pool = pool(&url).connection_timeout(SECOND).build().unwrap();
    let started = Instant::now();
    let error = pool.query("SELECT 1", &[]).unwrap_err();
    assert!(started.elapsed() < 3 * SECOND, "not repeated");
    assert_eq!(
        error.sqlstate().map(postgres::error::SqlState::code),
        Some("28P01")
    );
    assert!(!error.is_retryable());
    let failures = counter(&pool, "millpond_connect_failures_total{sqlstate=\"28P01\"}");
    assert!((1..=3).contains(&failures), "{failures}");
}

#[test]
fn after_a_while_check_outs_fail_at_once_until_a_connection_opens() {
    let db = database();
    let proxy = Proxy::in_front_of(db.port);
    let pool = pool(&proxy.url(&db.url))
        .connection_timeout(10 * SECOND)
        .fail_fast_after(300 * MS)
        .build()
        .unwrap();
    pool.query("SELECT 1", &[]).unwrap();
    proxy.set(Mode::Refuse);
    proxy.cut();
    // The first caller finds out that the database is down; in the end no caller waits.
    let call = pool.with_policy(RetryPolicy::none());
    eventually("check-outs fail fast", || {
        let _ = call
            .clone()
            .with_deadline(Instant::now() + 50 * MS)
            .read("SELECT 1", &[]);
        pool.is_failing_fast()
    });
    let started = Instant::now();
    let error = call.query("SELECT 1", &[]).unwrap_err();
    assert!(started.elapsed() < 5 * SECOND);
    assert!(
        matches!(&error, Error::Checkout(e) if e.reason == CheckoutFailure::FailingFast),
        "{error:?}"
    );
    assert!(pool.metrics_text().contains("millpond_failing_fast 1"));
    proxy.set(Mode::Pass);
    eventually("the database is found again", || !pool.is_failing_fast());
    pool.query("SELECT 1", &[]).unwrap();
}

#[test]
fn an_outage_sees_few_attempts_to_connect() {
    let db = database();
    let proxy = Proxy::in_front_of(db.port);
    let pool = pool(&proxy.url(&db.url)).build().unwrap();
    pool.query("SELECT 1", &[]).unwrap();
    proxy.set(Mode::Refuse);
    proxy.cut();
    let before = proxy.accepted();
    let over = Instant::now() + 2 * SECOND;
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                while Instant::now() < over {
                    let _ = pool.call().with_deadline(over).read("SELECT 1", &[]);
                }
            });
        }
    });
    let attempts = proxy.accepted() - before;
    assert!((2..=120).contains(&attempts), "{attempts} attempts in 2 s");
}

#[test]
fn a_query_on_a_black_hole_ends_at_its_deadline() {
    let db = database();
    let proxy = Proxy::in_front_of(db.port);
    let pool = pool(&proxy.url(&db.url))
        .query_timeout(300 * MS)
        .statement_timeout(Duration::ZERO)
        .build()
        .unwrap();
    pool.query("SELECT 1", &[]).unwrap();
    proxy.set(Mode::BlackHole);
    let started = Instant::now();
    let error = pool.query("SELECT 1", &[]).unwrap_err();
    let took = started.elapsed();
    assert!(
        error.is_timeout() && error.is_outcome_unknown(),
        "{error:?}"
    );
    assert!(took >= 800 * MS && took < 3 * SECOND, "{took:?}");
    proxy.set(Mode::Pass);
    eventually("the pool works again", || {
        pool.query("SELECT 1", &[]).is_ok()
    });
}

#[test]
fn a_first_host_that_is_silent_or_gone_does_not_keep_the_pool_from_the_second() {
    let db = database();
    let proxy = Proxy::in_front_of(db.port);
    proxy.set(Mode::BlackHole);
    let unused = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    for first in [proxy.port, unused] {
        let here = format!("127.0.0.1:{}", db.port);
        let url = db
            .url
            .replace(&here, &format!("127.0.0.1:{first},localhost:{}", db.port));
        let pool = pool(&url).connection_timeout(2 * SECOND).build().unwrap();
        let started = Instant::now();
        pool.call()
            .with_deadline(started + 20 * SECOND)
            .read("SELECT 1", &[])
            .unwrap();
        // The first host had its share of one attempt, and is tried last from now on.
        assert!(started.elapsed() < 4 * SECOND, "{:?}", started.elapsed());
    }
}

#[test]
fn a_role_without_room_for_more_is_the_cause_and_no_outage() {
    let db = database();
    let mut admin = db.admin();
    let role = format!("three_{}", db.url.rsplit('_').next().unwrap());
    admin
        .batch_execute(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'p' CONNECTION LIMIT 3"
        ))
        .unwrap();
    let (_, rest) = db.url.split_once('@').unwrap();
    let pool = pool(&format!("postgresql://{role}:p@{rest}"))
        .max_size(10)
        .min_idle(0)
        .connection_timeout(SECOND)
        .build()
        .unwrap();
    // The role has all the connections that it may have, so the others are told why not.
    let held = [(); 3].map(|()| pool.get().unwrap());
    let errors: Vec<_> = thread::scope(|scope| {
        let callers = [(); 7].map(|()| scope.spawn(|| pool.query("SELECT 1", &[]).unwrap_err()));
        callers.into_iter().map(|c| c.join().unwrap()).collect()
    });
    drop(held);
    for error in errors {
        assert_eq!(
            error.sqlstate().map(postgres::error::SqlState::code),
            Some("53300"),
            "{error}"
        );
    }
    // It is logged once, however often the pool tries.
    let said = log_lines(&format!("too many connections for role \"{role}\""));
    let of_room = said
        .iter()
        .filter(|l| l.starts_with("WARN cannot open another connection"));
    assert_eq!(of_room.count(), 1, "{said:?}");
    let others = said
        .iter()
        .filter(|l| l.contains("cannot open a connection, retrying"));
    assert_eq!(others.count(), 0, "{said:?}");
}
