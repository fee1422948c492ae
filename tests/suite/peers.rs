//! Behaviour that the test suites of other pools require, checked here for millpond: psycopg, pgx
//! and puddle, sqlx, HikariCP, node-postgres, r2d2, bb8, deadpool.

use super::proxy::{Act, Mode, Proxy};
use super::support::{
    Database, EndAtDrop, MS, SECOND, backends, counter, database, eventually, no_backend_is_left,
    pid, refused,
};
use millpond::error::{CheckoutFailure, OpenError};
use millpond::pool::{CloseReason, Observer, PooledConnection};
use millpond::{Error, Pool, RetryPolicy};
use postgres::SimpleQueryMessage;
use postgres::fallible_iterator::FallibleIterator;
use std::collections::HashSet;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// The longest that something may take if it need not wait, even on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Diary {
    opened: Mutex<Vec<u64>>,
    closed: Mutex<Vec<(CloseReason, Duration)>>,
}

impl Observer for Diary {
    fn opened(&self, connection: u64, _: Duration) {
        self.opened.lock().unwrap().push(connection);
    }
    fn closed(&self, _: u64, reason: CloseReason, age: Duration, _: u64) {
        self.closed.lock().unwrap().push((reason, age));
    }
}

impl Diary {
    fn opened(&self) -> usize {
        self.opened.lock().unwrap().len()
    }
    fn reasons(&self) -> Vec<CloseReason> {
        let closed = self.closed.lock().unwrap();
        closed.iter().map(|(reason, _)| *reason).collect()
    }
}

fn chain(error: &Error) -> String {
    millpond::error::Chain(error).to_string()
}

fn get(pool: &Pool) -> PooledConnection {
    pool.get_timeout(20 * SECOND).unwrap()
}

/// True if the connection answers and is in no transaction. In a transaction, `now()` would be
/// earlier than the statement.
fn is_at_rest(connection: &mut PooledConnection) -> bool {
    let sql = "SELECT now() = statement_timestamp()";
    let answer = connection.simple_query(sql).unwrap();
    answer
        .iter()
        .any(|m| matches!(m, SimpleQueryMessage::Row(row) if row.get(0) == Some("t")))
}

fn kill(db: &Database, pids: &[i32]) {
    let sql = "SELECT pg_terminate_backend(pid, 5000) FROM unnest($1::int[]) pid";
    db.admin().query(sql, &[&pids]).unwrap();
}

// Opening connections.

#[test]
fn the_minimum_is_idle_beside_those_in_use_up_to_the_maximum() {
    let db = database();
    let pool = db
        .pool()
        .max_size(4)
        .min_idle(2)
        .application_name("beside")
        .build()
        .unwrap();
    let mut admin = db.admin();
    let mut held = Vec::new();
    for (active, idle) in [(1, 2), (2, 2), (3, 1), (4, 0)] {
        held.push(get(&pool));
        eventually("as many are idle as may be", || {
            let s = pool.stats();
            (s.active, s.idle, s.opening) == (active, idle, 0)
        });
        assert_eq!(backends(&mut admin, "beside").len(), active + idle);
    }
}

#[test]
fn a_killed_idle_connection_is_replaced_unasked() {
    let db = database();
    let diary = Arc::new(Diary::default());
    let pool = db
        .pool()
        .max_size(4)
        .min_idle(4)
        .application_name("unasked")
        .observer(diary.clone())
        .build()
        .unwrap();
    eventually("all are open", || pool.stats().idle == 4);
    let mut admin = db.admin();
    let before = backends(&mut admin, "unasked");
    kill(&db, &before[..1]);
    eventually("another has taken its place", || {
        let now = backends(&mut admin, "unasked");
        now.len() == 4 && before[1..].iter().all(|pid| now.contains(pid))
    });
    eventually("it is idle", || pool.stats().idle == 4);
    assert_eq!((diary.opened(), pool.stats().total), (5, 4));
    assert_eq!(diary.reasons(), [CloseReason::Broken]);
}

#[test]
fn of_several_idle_connections_only_the_killed_one_goes() {
    let db = database();
    let diary = Arc::new(Diary::default());
    let pool = db
        .pool()
        .max_size(4)
        .min_idle(4)
        .application_name("one_of_four")
        .observer(diary.clone())
        .build()
        .unwrap();
    eventually("all are open", || pool.stats().idle == 4);
    let mut admin = db.admin();
    let before = backends(&mut admin, "one_of_four");
    // Longer than an idle connection is trusted without a probe.
    thread::sleep(600 * MS);
    kill(&db, &before[..1]);
    let mut held: Vec<_> = (0..4).map(|_| get(&pool)).collect();
    for connection in &mut held {
        assert!(is_at_rest(connection));
    }
    drop(held);
    eventually("all are idle again", || pool.stats().idle == 4);
    let after = backends(&mut admin, "one_of_four");
    assert_eq!(after.len(), 4);
    assert!(
        before[1..].iter().all(|pid| after.contains(pid)),
        "{before:?} {after:?}"
    );
    assert_eq!(diary.reasons(), [CloseReason::Broken]);
}

#[test]
fn an_idle_connection_that_dies_leaves_the_figures_unasked() {
    let db = database();
    let pool = db.pool().min_idle(0).build().unwrap();
    let pid = pid(&pool);
    assert_eq!((pool.stats().total, pool.stats().idle), (1, 1));
    kill(&db, &[pid]);
    let killed = Instant::now();
    eventually("it is not counted any more", || pool.stats().total == 0);
    // It takes about half a second.
    assert!(killed.elapsed() < AT_ONCE, "{:?}", killed.elapsed());
    assert_eq!(pool.stats().idle, 0);
}

#[test]
fn connections_are_opened_side_by_side() {
    let go = Arc::new(AtomicBool::new(false));
    let let_go = EndAtDrop(&go);
    let goes = Arc::clone(&go);
    let pool = database()
        .pool()
        .max_size(3)
        .min_idle(3)
        .connection_timeout(20 * SECOND)
        .on_connect(move |_| {
            while !goes.load(Ordering::SeqCst) {
                thread::sleep(MS);
            }
            Ok(())
        })
        .build()
        .unwrap();
    eventually("three are being opened", || pool.stats().opening == 3);
    drop(let_go);
    eventually("three are open", || pool.stats().idle == 3);
}

#[test]
fn a_burst_of_quick_users_opens_few_connections() {
    let pool = database()
        .pool()
        .max_size(40)
        .min_idle(0)
        .connection_timeout(20 * SECOND)
        .on_connect(|client| client.batch_execute("SELECT pg_sleep(0.4)"))
        .build()
        .unwrap();
    thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| drop(get(&pool)));
        }
    });
    let opened = counter(&pool, "db_client_connection_create_time_seconds_count");
    assert!((1..=10).contains(&opened), "{opened} were opened");
}

#[test]
fn a_connection_opened_for_one_who_gave_up_is_kept_for_the_next() {
    let db = database();
    let diary = Arc::new(Diary::default());
    let pool = db
        .pool()
        .min_idle(0)
        .on_connect(|client| client.batch_execute("SELECT pg_sleep(0.4)"))
        .observer(diary.clone())
        .build()
        .unwrap();
    let timeouts = || counter(&pool, "db_client_connection_timeouts_total");
    assert_eq!(timeouts(), 0);
    let error = pool.get_timeout(10 * MS).unwrap_err();
    assert_eq!(refused(error).reason, CheckoutFailure::Timeout);
    assert_eq!(timeouts(), 1);
    eventually("it is idle", || pool.stats().idle == 1);
    let next = get(&pool);
    assert_eq!(*diary.opened.lock().unwrap(), [next.id()]);
    assert_eq!(pool.stats().total, 1);
}

// The line of waiting threads.

#[test]
fn after_a_timeout_the_pool_works_on() {
    let db = database();
    let pool = db.pool().max_size(1).build().unwrap();
    let held = get(&pool);
    for _ in 0..3 {
        let error = pool.get_timeout(10 * MS).unwrap_err();
        assert_eq!(refused(error).reason, CheckoutFailure::Timeout);
    }
    assert_eq!(pool.stats().waiting, 0);
    drop(held);
    assert_eq!(pool.query("SELECT 1", &[]).unwrap().len(), 1);
}

#[test]
fn one_who_waits_for_an_opening_is_served_by_one_that_comes_back_while_openings_fail() {
    let db = database();
    for permanently in [false, true] {
        let proxy = Proxy::in_front_of(db.port);
        let fails = Arc::new(AtomicBool::new(false));
        let failing = Arc::clone(&fails);
        let pool = super::support::pool(&proxy.url(&db.url))
            .max_size(2)
            .min_idle(0)
            .on_connect(move |client| match failing.load(Ordering::SeqCst) {
                true => client.batch_execute("nonsense"),
                false => Ok(()),
            })
            .build()
            .unwrap();
        let held = get(&pool);
        let id = held.id();
        if permanently {
            fails.store(true, Ordering::SeqCst);
        } else {
            proxy.set(Mode::Refuse);
        }
        thread::scope(|scope| {
            let waiter = scope.spawn(|| pool.get_timeout(20 * SECOND).map(|c| c.id()));
            eventually("openings fail", || {
                counter(&pool, "millpond_connect_failures_total") > 0
            });
            assert_eq!(pool.stats().waiting, 1);
            drop(held);
            assert_eq!(waiter.join().unwrap().unwrap(), id);
        });
    }
}

#[test]
fn a_caller_whose_time_is_over_fails_at_once_and_leaves_nothing_in_line() {
    let db = database();
    let proxy = Proxy::in_front_of(db.port);
    proxy.set(Mode::Silent);
    let pool = super::support::pool(&proxy.url(&db.url))
        .max_size(1)
        .min_idle(0)
        .connection_timeout(60 * SECOND)
        .build()
        .unwrap();
    let fails_at_once = || {
        let started = Instant::now();
        let error = pool.get_timeout(Duration::ZERO).unwrap_err();
        assert_eq!(refused(error).reason, CheckoutFailure::Timeout);
        let call = pool.with_policy(RetryPolicy::none());
        let error = call
            .with_deadline(started)
            .query("SELECT 1", &[])
            .unwrap_err();
        assert!(matches!(error, Error::Checkout(_)), "{error:?}");
        assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
        assert_eq!(pool.stats().waiting, 0);
    };
    // Once with an empty pool, once with its only connection checked out.
    fails_at_once();
    proxy.set(Mode::Pass);
    proxy.cut();
    let mut held = None;
    eventually("one is open", || {
        held = pool.get_timeout(100 * MS).ok();
        held.is_some()
    });
    fails_at_once();
    drop(held);
    assert_eq!((pool.stats().active, pool.stats().idle), (0, 1));
}

#[test]
fn try_get_on_an_empty_pool_is_none_at_once_and_starts_an_opening() {
    let pool = database()
        .pool()
        .min_idle(0)
        .on_connect(|client| client.batch_execute("SELECT pg_sleep(0.4)"))
        .build()
        .unwrap();
    assert!(pool.try_get().is_none());
    assert_eq!(pool.stats().waiting, 0);
    eventually("one is open", || pool.stats().idle == 1);
    assert!(pool.try_get().is_some());
    assert_eq!(pool.stats().total, 1);
}

#[test]
fn try_get_passes_over_dead_connections() {
    let db = database();
    let pool = db.pool().max_size(4).min_idle(0).build().unwrap();
    let mut held: Vec<_> = (0..4).map(|_| get(&pool)).collect();
    let pids: Vec<i32> = held
        .iter_mut()
        .map(|c| c.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0))
        .collect();
    let good = held[0].id();
    // The good connection is returned first, and so is taken last.
    drop(held);
    eventually("all are idle", || pool.stats().idle == 4);
    // Longer than an idle connection is trusted without a probe.
    thread::sleep(600 * MS);
    kill(&db, &pids[1..]);
    assert_eq!(pool.try_get().map(|c| c.id()), Some(good));
}

#[test]
fn connections_that_all_break_on_return_do_not_starve_those_in_line() {
    let db = database();
    let pool = db.pool().max_size(2).min_idle(0).build().unwrap();
    let started = Instant::now();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..5 {
                    let mut connection = get(&pool);
                    let end = "SELECT pg_terminate_backend(pg_backend_pid())";
                    connection.batch_execute(end).unwrap_err();
                }
            });
        }
    });
    let took = started.elapsed();
    assert!(took < 10 * SECOND, "{took:?} for 40 connections");
    let opened = counter(&pool, "db_client_connection_create_time_seconds_count");
    assert!(opened >= 40, "{opened}");
    eventually("the last is closed", || {
        (pool.stats().active, pool.stats().waiting) == (0, 0)
    });
}

#[test]
fn while_one_is_asked_for_a_sign_of_life_the_others_come_and_go() {
    let db = database();
    let proxy = Proxy::in_front_of(db.port);
    let pool = super::support::pool(&proxy.url(&db.url))
        .max_size(2)
        .min_idle(0)
        .build()
        .unwrap();
    let [asked, other] = [get(&pool), get(&pool)];
    let ids = [asked.id(), other.id()];
    drop(asked);
    // Longer than an idle connection is trusted without a probe.
    thread::sleep(600 * MS);
    let (entered, go) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    let let_go = EndAtDrop(&go);
    let (enters, goes) = (Arc::clone(&entered), Arc::clone(&go));
    let hold_up = move || {
        enters.store(true, Ordering::SeqCst);
        while !goes.load(Ordering::SeqCst) {
            thread::sleep(MS);
        }
    };
    // The probe is an empty query.
    proxy.on_request(b"Q\0\0\0\x05\0", Act::DeliverAfter(Box::new(hold_up)));
    thread::scope(|scope| {
        let asking = scope.spawn(|| get(&pool).id());
        eventually("it is asked", || entered.load(Ordering::SeqCst));
        drop(other);
        assert_eq!(get(&pool).id(), ids[1]);
        drop(let_go);
        // If the other thread had waited for the probe, the probe would have run out of time.
        assert_eq!(asking.join().unwrap(), ids[0]);
    });
}

#[test]
fn a_thread_that_waits_for_what_it_holds_itself_is_told_so() {
    let db = database();
    let pool = db.pool().max_size(1).build().unwrap();
    let held = get(&pool);
    let error = refused(pool.get_timeout(10 * MS).unwrap_err());
    assert_eq!(error.held_here.as_ref().unwrap().connection, held.id());
    assert!(error.to_string().contains("this thread holds one itself"));
    let error = thread::scope(|scope| {
        let other = scope.spawn(|| pool.get_timeout(10 * MS).unwrap_err());
        refused(other.join().unwrap())
    });
    assert!(error.held_here.is_none(), "{error}");
}

#[test]
fn a_pool_that_fails_fast_finds_the_database_again_also_without_a_minimum() {
    let db = database();
    let proxy = Proxy::in_front_of(db.port);
    proxy.set(Mode::Refuse);
    let pool = super::support::pool(&proxy.url(&db.url))
        .min_idle(0)
        .fail_fast_after(Duration::ZERO)
        .build()
        .unwrap();
    eventually("it fails fast", || {
        pool.get_timeout(10 * MS).is_err_and(
            |e| matches!(e, Error::Checkout(e) if e.reason == CheckoutFailure::FailingFast),
        )
    });
    proxy.set(Mode::Pass);
    eventually("it is found", || pool.get_timeout(10 * MS).is_ok());
    assert!(!pool.is_failing_fast());
}

// Connections that are checked in.

type Borrower = fn(&mut PooledConnection);

const BORROWERS: [(&str, Borrower); 7] = [
    ("panics in a result", |c| {
        let mut rows = c.query_raw(MANY, [0; 0]).unwrap();
        rows.next().unwrap();
        panic!("a borrower of the test panics, as it should");
    }),
    ("reads half a result", |c| {
        let mut rows = c.query_raw(MANY, [0; 0]).unwrap();
        rows.next().unwrap();
    }),
    ("reads half a COPY", |c| {
        let sql = format!("COPY ({MANY}) TO STDOUT");
        let mut reader = c.copy_out(&sql).unwrap();
        reader.read_exact(&mut [0; 10]).unwrap();
    }),
    ("writes half a COPY", |c| {
        let mut writer = c.copy_in("COPY t FROM STDIN").unwrap();
        writer.write_all(b"1\n2\n").unwrap();
        writer.flush().unwrap();
    }),
    ("leaves a failed transaction", |c| {
        c.batch_execute("BEGIN; INSERT INTO t VALUES (1)").unwrap();
        c.batch_execute("SELECT 1 / 0").unwrap_err();
    }),
    ("ends its backend", |c| {
        let end = "SELECT pg_terminate_backend(pg_backend_pid())";
        c.batch_execute(end).unwrap_err();
    }),
    ("ends its backend in a transaction", |c| {
        let end = "SELECT pg_terminate_backend(pg_backend_pid())";
        c.batch_execute("BEGIN; INSERT INTO t VALUES (1)").unwrap();
        c.batch_execute(end).unwrap_err();
    }),
];
const MANY: &str = "SELECT n FROM generate_series(1, 100000) n";

#[test]
fn whatever_a_borrower_leaves_the_next_has_a_good_connection() {
    let db = database();
    db.admin().batch_execute("CREATE TABLE t (n int)").unwrap();
    let pool = db.pool().max_size(1).build().unwrap();
    for (what, borrow) in BORROWERS {
        // The next borrower is already in line, meets the housekeeper's cleaning, or only sends a
        // query.
        for next in 0..3 {
            let held = get(&pool);
            let works = |c: &mut PooledConnection| assert!(is_at_rest(c), "{what}");
            thread::scope(|scope| {
                let in_line = (next == 0).then(|| {
                    let waiter = scope.spawn(|| works(&mut get(&pool)));
                    eventually("one is in line", || pool.stats().waiting == 1);
                    waiter
                });
                let borrower = scope.spawn(move || {
                    let mut held = held;
                    borrow(&mut held);
                });
                let panicked = borrower.join().is_err();
                assert_eq!(panicked, what.starts_with("panics"), "{what}");
                if let Some(waiter) = in_line {
                    waiter.join().unwrap();
                }
            });
            match next {
                1 => works(&mut get(&pool)),
                _ => assert_eq!(
                    pool.query("SELECT n FROM t", &[]).unwrap().len(),
                    0,
                    "{what}"
                ),
            }
        }
    }
    assert_eq!((pool.stats().active, pool.stats().total), (0, 1));
}

#[test]
fn isolation_and_read_only_go_back_also_where_a_function_has_set_them() {
    let db = database();
    let pool = db.pool().max_size(1).build().unwrap();
    let first = pid(&pool);
    let as_before = || {
        let sql = "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only'), \
                   current_setting('default_transaction_deferrable'), \
                   (SELECT count(*)::text FROM pg_locks WHERE locktype = 'advisory')";
        let row = &pool.query(sql, &[]).unwrap()[0];
        let found: [String; 4] = std::array::from_fn(|n| row.get(n));
        assert_eq!(found, ["read committed", "off", "off", "0"]);
    };
    let set = "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE";
    pool.get().unwrap().batch_execute(set).unwrap();
    as_before();
    pool.execute(set, &[]).unwrap();
    as_before();
    for by_function in [
        "SELECT set_config('default_transaction_isolation', 'serializable', false)",
        "SELECT set_config('default_transaction_read_only', 'on', false)",
        "SELECT pg_advisory_lock(1)",
    ] {
        pool.query(by_function, &[]).unwrap();
        as_before();
    }
    // The connection was cleaned, not replaced.
    assert_eq!(pid(&pool), first);
}

#[test]
fn what_a_borrower_prepared_by_name_is_gone() {
    let db = database();
    let pool = db.pool().max_size(1).build().unwrap();
    let first = pid(&pool);
    for _ in 0..3 {
        let mut connection = pool.get().unwrap();
        connection
            .batch_execute("PREPARE mine AS SELECT 1")
            .unwrap();
    }
    assert_eq!(pid(&pool), first);
}

#[test]
fn a_caller_without_time_does_not_cost_the_pool_what_is_to_be_cleaned() {
    let db = database();
    let pool = db.pool().max_size(1).build().unwrap();
    let first = pid(&pool);
    for _ in 0..5 {
        get(&pool).batch_execute("SET work_mem = '8MB'").unwrap();
        drop(pool.get_timeout(Duration::ZERO));
    }
    assert_eq!(pid(&pool), first);
}

#[test]
fn the_connection_that_was_used_last_is_taken_first() {
    let db = database();
    let pool = db.pool().max_size(3).min_idle(0).build().unwrap();
    let [a, b, c] = [get(&pool), get(&pool), get(&pool)];
    let order = [b.id(), a.id(), c.id()];
    drop(c);
    drop(a);
    drop(b);
    for _ in 0..10 {
        assert_eq!(get(&pool).id(), order[0]);
    }
    let all = [get(&pool), get(&pool), get(&pool)];
    assert_eq!(all.map(|c| c.id()), order);
}

// Retirement by age, uses and idle time.

#[test]
fn what_is_used_does_not_idle_out() {
    let db = database();
    let diary = Arc::new(Diary::default());
    let pool = db
        .pool()
        .max_size(3)
        .min_idle(0)
        .idle_timeout(SECOND)
        .observer(diary.clone())
        .build()
        .unwrap();
    let [mut lent, b, c] = [get(&pool), get(&pool), get(&pool)];
    drop((b, c));
    let used = pid(&pool);
    let started = Instant::now();
    // One connection is used again and again, one is checked out all the time; the third is closed.
    while started.elapsed() < 3 * SECOND || diary.reasons().is_empty() {
        assert_eq!(pid(&pool), used);
        assert!(started.elapsed() < 20 * SECOND, "the third did not go");
        thread::sleep(5 * MS);
    }
    lent.simple_query("SELECT 1").unwrap();
    assert_eq!(diary.reasons(), [CloseReason::IdleTimeout]);
    assert_eq!(pool.stats().total, 2);
}

#[test]
fn idle_connections_that_are_too_old_are_closed_one_by_one_and_refilled_unasked() {
    const AGE: Duration = Duration::from_secs(2);
    let db = database();
    let diary = Arc::new(Diary::default());
    let pool = db
        .pool()
        .max_size(16)
        .min_idle(16)
        .max_lifetime(AGE)
        // The pool checks as often as its shortest time requires.
        .leak_threshold(40 * MS)
        .application_name("too_old")
        .observer(diary.clone())
        .build()
        .unwrap();
    eventually("all are open", || pool.stats().idle == 16);
    let mut admin = db.admin();
    let first = backends(&mut admin, "too_old");
    eventually("all are others", || {
        let now = backends(&mut admin, "too_old");
        now.len() == 16 && first.iter().all(|pid| !now.contains(pid))
    });
    let closed = diary.closed.lock().unwrap();
    let reasons: Vec<_> = closed.iter().map(|(reason, _)| *reason).collect();
    assert!(
        reasons.iter().all(|r| *r == CloseReason::MaxLifetime),
        "{reasons:?}"
    );
    let ages: Vec<_> = closed.iter().map(|(_, age)| *age).collect();
    let (youngest, oldest) = (ages.iter().min().unwrap(), ages.iter().max().unwrap());
    // The last tenth of the age is used to spread the closings.
    assert!(*youngest >= AGE.mul_f64(0.9), "{ages:?}");
    assert!(*youngest < AGE.mul_f64(0.97), "{ages:?}");
    assert!(
        (*oldest).checked_sub(*youngest).unwrap() >= AGE.mul_f64(0.03),
        "{ages:?}"
    );
}

#[test]
fn one_in_line_for_a_connection_whose_uses_are_over_does_not_wait_for_a_fresh_one() {
    let db = database();
    let diary = Arc::new(Diary::default());
    let pool = db
        .pool()
        .max_size(1)
        .max_uses(1)
        .observer(diary.clone())
        .build()
        .unwrap();
    let held = get(&pool);
    let spent = held.id();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| get(&pool).id());
        eventually("one is in line", || pool.stats().waiting == 1);
        drop(held);
        assert_eq!(waiter.join().unwrap(), spent);
    });
    eventually("there is a fresh one", || get(&pool).id() != spent);
    assert_eq!(diary.reasons()[0], CloseReason::MaxUses);
}

// Closing the pool.

#[test]
fn a_pool_that_is_closed_twice_at_once_is_closed_once_and_both_wait() {
    let db = database();
    let pool = db.pool().max_size(2).min_idle(1).build().unwrap();
    let held = get(&pool);
    eventually("one more is idle", || pool.stats().idle == 1);
    thread::scope(|scope| {
        let closers: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| pool.close(60 * SECOND)))
            .collect();
        eventually("it closes", || pool.is_closed());
        assert!(pool.get().is_err());
        assert!(closers.iter().all(|closer| !closer.is_finished()));
        drop(held);
        for closer in closers {
            let report = closer.join().unwrap();
            assert_eq!(
                (report.drained, report.cancelled, report.aborted),
                (2, 0, 0)
            );
        }
    });
    assert_eq!(pool.close(Duration::ZERO).drained, 2);
}

#[test]
fn a_pool_closed_while_it_opens_a_connection_leaves_none_behind() {
    let db = database();
    let (entered, go) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let let_go = EndAtDrop(&go);
    let (enters, goes) = (Arc::clone(&entered), Arc::clone(&go));
    let pool = db
        .pool()
        .min_idle(0)
        .connection_timeout(20 * SECOND)
        .application_name("opening")
        .on_connect(move |_| {
            enters.fetch_add(1, Ordering::SeqCst);
            while !goes.load(Ordering::SeqCst) {
                thread::sleep(MS);
            }
            Ok(())
        })
        .build()
        .unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| pool.get().map(drop));
        eventually("one is being opened", || entered.load(Ordering::SeqCst) > 0);
        let started = Instant::now();
        pool.close(SECOND);
        assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
        let error = waiter.join().unwrap().unwrap_err();
        assert_eq!(refused(error).reason, CheckoutFailure::Closed);
        drop(let_go);
    });
    no_backend_is_left(&db, "opening");
    eventually("none is counted", || pool.stats().total == 0);
}

#[test]
fn a_pool_closed_while_the_server_does_not_answer_gives_its_attempt_up() {
    let db = database();
    let proxy = Proxy::in_front_of(db.port);
    proxy.set(Mode::Silent);
    let pool = super::support::pool(&proxy.url(&db.url))
        .connection_timeout(60 * SECOND)
        .build()
        .unwrap();
    eventually("one is being opened", || proxy.accepted() > 0);
    let started = Instant::now();
    pool.close(SECOND);
    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
    assert_eq!(pool.stats().total, 0, "the attempt is over");
}

#[test]
fn a_pool_closed_at_any_moment_of_its_opening_has_nothing_left_when_that_returns() {
    let db = database();
    for moment in 0..40 {
        let diary = Arc::new(Diary::default());
        let pool = db
            .pool()
            .max_size(4)
            .min_idle(2)
            .max_uses(3)
            .application_name("any moment")
            .observer(diary.clone())
            .build()
            .unwrap();
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| while pool.query("SELECT 1", &[]).is_ok() {});
            }
            thread::sleep(MS * moment / 2);
            pool.close(20 * SECOND);
            assert_eq!(pool.stats().total, 0, "after {moment} half milliseconds");
            assert_eq!(diary.opened(), diary.reasons().len());
        });
    }
    no_backend_is_left(&db, "any moment");
}

#[test]
fn a_dropped_pool_closes_its_connections_and_its_threads_let_go_of_it() {
    let db = database();
    let diary = Arc::new(Diary::default());
    let kept = Arc::downgrade(&diary);
    let pool = db
        .pool()
        .min_idle(3)
        .application_name("dropped")
        .observer(diary)
        .build()
        .unwrap();
    eventually("three are idle", || pool.stats().idle == 3);
    let mut admin = db.admin();
    drop(pool.clone());
    assert_eq!(backends(&mut admin, "dropped").len(), 3);
    drop(pool);
    no_backend_is_left(&db, "dropped");
    eventually("no thread has it", || kept.strong_count() == 0);
}

#[test]
fn one_lent_out_when_the_pool_is_dropped_works_and_is_closed_when_it_comes_back() {
    let db = database();
    let pool = db.pool().application_name("outlives").build().unwrap();
    let mut held = get(&pool);
    drop(pool);
    let own: i32 = held
        .query_one("SELECT pg_backend_pid()", &[])
        .unwrap()
        .get(0);
    let mut admin = db.admin();
    assert!(backends(&mut admin, "outlives").contains(&own));
    drop(held);
    no_backend_is_left(&db, "outlives");
}

#[test]
fn a_close_without_time_closes_what_is_idle_and_cuts_what_is_lent_out() {
    let db = database();
    let pool = db
        .pool()
        .max_size(3)
        .min_idle(2)
        .application_name("no_time")
        .build()
        .unwrap();
    let mut held = get(&pool);
    held.simple_query("SELECT 1").unwrap();
    eventually("two are idle", || pool.stats().idle == 2);
    let started = Instant::now();
    let report = pool.close(Duration::ZERO);
    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
    assert_eq!((report.drained, report.aborted), (2, 1), "{report}");
    assert!(held.simple_query("SELECT 1").is_err());
    drop(held);
    no_backend_is_left(&db, "no_time");
    assert_eq!(pool.stats().total, 0);
}

// Figures, callbacks and settings.

#[test]
fn the_figures_agree_at_every_look_while_connections_are_killed_under_load() {
    let db = database();
    let pool = db
        .pool()
        .max_size(4)
        .application_name("counted")
        .build()
        .unwrap();
    let over = AtomicBool::new(false);
    let reads = AtomicUsize::new(0);
    thread::scope(|scope| {
        let end = EndAtDrop(&over);
        for _ in 0..8 {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    // A read fails if its connections are killed too often. This test does not look
                    // at that.
                    if pool.read("SELECT 1", &[]).is_ok() {
                        reads.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
        scope.spawn(|| {
            let mut admin = db.admin();
            while !over.load(Ordering::SeqCst) {
                let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'counted' LIMIT 1";
                admin.query(sql, &[]).unwrap();
                thread::sleep(10 * MS);
            }
        });
        let broken = "millpond_connections_closed_total{reason=\"broken\"}";
        eventually("many were killed, and much was read", || {
            for _ in 0..1000 {
                let s = pool.stats();
                assert_eq!(s.total, s.idle + s.active + s.opening, "{s:?}");
                assert!(s.total <= s.max && s.waiting <= 8, "{s:?}");
            }
            counter(&pool, broken) > 50 && reads.load(Ordering::SeqCst) > 500
        });
        drop(end);
    });
    let mut admin = db.admin();
    eventually("they agree with the server", || {
        let s = pool.stats();
        let there = backends(&mut admin, "counted").len();
        (s.active, s.opening, s.waiting) == (0, 0, 0) && s.total == there && there >= 2
    });
}

#[test]
fn an_on_connect_that_failed_leaves_no_backend_and_works_later() {
    let db = database();
    let fails = Arc::new(AtomicBool::new(true));
    let failing = Arc::clone(&fails);
    let pool = db
        .pool()
        .application_name("fails_first")
        .on_connect(move |client| match failing.load(Ordering::SeqCst) {
            true => client.batch_execute("nonsense"),
            false => Ok(()),
        })
        .build()
        .unwrap();
    eventually("it has failed more than once", || {
        counter(&pool, "millpond_connect_failures_total") > 1
    });
    no_backend_is_left(&db, "fails_first");
    let mut admin = db.admin();
    fails.store(false, Ordering::SeqCst);
    eventually("it works", || pool.query("SELECT 1", &[]).is_ok());
    eventually("the minimum is there", || {
        pool.stats().idle >= 2 && backends(&mut admin, "fails_first").len() >= 2
    });
}

#[test]
fn an_on_connect_that_leaves_a_transaction_open_is_refused_with_the_reason() {
    let db = database();
    for (name, failed) in [("left_open", false), ("left_failed", true)] {
        let pool = db
            .pool()
            .application_name(name)
            .on_connect(move |client| {
                client.batch_execute("BEGIN")?;
                if failed {
                    let _ = client.batch_execute("SELECT 1 / 0");
                }
                Ok(())
            })
            .build()
            .unwrap();
        let error = chain(&pool.get().unwrap_err());
        assert!(error.contains("left a transaction open"), "{error}");
        no_backend_is_left(&db, name);
    }
    // The same when `on_connect` runs again after a check-in.
    let diary = Arc::new(Diary::default());
    let times = AtomicUsize::new(0);
    let pool = db
        .pool()
        .max_size(1)
        .on_connect(move |client| match times.fetch_add(1, Ordering::SeqCst) {
            1 => client.batch_execute("BEGIN"),
            _ => Ok(()),
        })
        .observer(diary.clone())
        .build()
        .unwrap();
    get(&pool).batch_execute("SELECT 1").unwrap();
    assert!(is_at_rest(&mut get(&pool)));
    assert_eq!(diary.reasons(), [CloseReason::LeakedState]);
}

#[test]
fn an_on_connect_without_end_is_cut_and_named() {
    let pool = database()
        .pool()
        .connection_timeout(400 * MS)
        .connect_timeout(400 * MS)
        .on_connect(|client| {
            loop {
                client.batch_execute("SELECT pg_sleep(0.02)")?;
            }
        })
        .build()
        .unwrap();
    eventually("an attempt is over", || {
        counter(&pool, "millpond_connect_failures_total") > 0
    });
    let started = Instant::now();
    let error = pool.get().unwrap_err();
    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
    let error = chain(&error);
    assert!(error.contains("on_connect did not end within"), "{error}");
}

/// An observer that asks the pool for its figures at every event.
#[derive(Default)]
struct Curious {
    pool: OnceLock<Pool>,
    asking: AtomicBool,
    seen: Mutex<HashSet<&'static str>>,
    open_errors: Mutex<Vec<String>>,
}

impl Curious {
    fn ask(&self, event: &'static str) {
        let Some(pool) = self.pool.get() else { return };
        // Its questions cause events too; they must not lead to further questions.
        if self.asking.swap(true, Ordering::SeqCst) {
            return;
        }
        let stats = pool.stats();
        assert!(stats.total <= stats.max);
        assert!(!pool.metrics_text().is_empty());
        let _ = (pool.is_failing_fast(), pool.is_closed());
        drop(pool.try_get());
        let soon = Instant::now() + 200 * MS;
        let _ = pool.call().with_deadline(soon).read("SELECT 1", &[]);
        self.asking.store(false, Ordering::SeqCst);
        self.seen.lock().unwrap().insert(event);
    }

    fn has_seen(&self, event: &str) -> bool {
        self.seen.lock().unwrap().contains(event)
    }
}

impl Observer for Curious {
    fn opened(&self, _: u64, _: Duration) {
        self.ask("opened");
    }
    fn checked_out(&self, _: u64, _: Duration) {
        self.ask("checked_out");
    }
    fn checked_in(&self, _: u64, _: Duration) {
        self.ask("checked_in");
    }
    fn closed(&self, _: u64, _: CloseReason, _: Duration, _: u64) {
        self.ask("closed");
    }
    fn open_failed(&self, error: &OpenError) {
        let code = error.sqlstate().map(|s| s.code().to_owned());
        let error = (code, error.is_permanent());
        self.open_errors.lock().unwrap().push(format!("{error:?}"));
        self.ask("open_failed");
    }
}

#[test]
fn an_observer_may_call_the_pool_and_is_told_why_none_could_be_opened() {
    let db = database();
    let curious = Arc::new(Curious::default());
    let fails = Arc::new(AtomicBool::new(false));
    let failing = Arc::clone(&fails);
    let pool = db
        .pool()
        .max_size(3)
        .min_idle(0)
        .max_uses(3)
        .observer(curious.clone())
        .on_connect(move |client| match failing.load(Ordering::SeqCst) {
            true => client.batch_execute("nonsense"),
            false => Ok(()),
        })
        .build()
        .unwrap();
    curious.pool.set(pool.clone()).unwrap();
    // On a thread of its own: if the pool held a lock while it calls an observer, that thread would
    // block on it.
    let observer = curious.clone();
    let work = thread::spawn(move || {
        for event in [
            "opened",
            "checked_out",
            "checked_in",
            "closed",
            "open_failed",
        ] {
            fails.store(event == "open_failed", Ordering::SeqCst);
            eventually(event, || {
                let soon = Instant::now() + 200 * MS;
                let _ = pool.call().with_deadline(soon).read("SELECT 1", &[]);
                observer.has_seen(event)
            });
        }
        pool.close(5 * SECOND);
    });
    eventually("nobody waits for himself", || work.is_finished());
    work.join().unwrap();
    let errors = curious.open_errors.lock().unwrap();
    assert!(
        errors.iter().all(|e| e == "(Some(\"42601\"), true)"),
        "{errors:?}"
    );
}

#[test]
fn numbers_and_times_without_end_harm_nobody() {
    let db = database();
    let forever = Duration::MAX;
    let policy = RetryPolicy::default()
        .max_retries(u32::MAX)
        .initial_delay(forever)
        .max_delay(forever)
        .multiplier(f64::INFINITY);
    let pool = db
        .pool()
        .max_size(1)
        .max_waiting(usize::MAX)
        .max_uses(u64::MAX)
        .connection_timeout(forever)
        .idle_timeout(forever)
        .max_lifetime(forever)
        .statement_timeout(forever)
        .query_timeout(forever)
        .fail_fast_after(forever)
        .slow_query(forever)
        .leak_threshold(forever)
        .ledger_ttl(forever)
        .build()
        .unwrap();
    let held = get(&pool);
    let error = pool.get_timeout(10 * MS).unwrap_err();
    assert_eq!(refused(error).reason, CheckoutFailure::Timeout);
    // The first pause is longer than any deadline.
    let call = pool
        .with_policy(policy)
        .with_timeout(forever)
        .with_key_wait(forever);
    let soon = Instant::now() + 200 * MS;
    assert!(
        call.clone()
            .with_deadline(soon)
            .read("SELECT 1", &[])
            .is_err()
    );
    drop(held);
    assert_eq!(call.read("SELECT 1", &[]).unwrap().len(), 1);
    pool.close(forever);
}

#[test]
fn a_retry_policy_without_end_is_taken_by_the_builder() {
    let policy = RetryPolicy::default()
        .max_retries(u32::MAX)
        .initial_delay(Duration::MAX)
        .max_delay(Duration::MAX)
        .multiplier(f64::MAX);
    let pool = database().pool().retry_policy(policy).build().unwrap();
    assert_eq!(pool.query("SELECT 1", &[]).unwrap().len(), 1);
}

#[test]
fn a_statement_cache_without_end_is_a_settings_error() {
    let built = database().pool().statement_cache(usize::MAX).build();
    let millpond::BuildError::Settings(errors) = built.unwrap_err() else {
        panic!("it is about settings")
    };
    assert_eq!(errors.0.len(), 1);
    assert_eq!(errors.0[0].name, "statement_cache");
}
