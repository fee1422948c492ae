//! Check-out: which threads wait, for how long, and which error a thread gets if there is no
//! connection.

use super::support::{MS, SECOND, database, eventually, refused};
use millpond::error::CheckoutFailure;
use millpond::{Error, Pool};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn fifty_threads_share_twenty_connections_and_none_fails() {
    let db = database();
    let pool = db
        .pool()
        .max_size(20)
        .application_name("saturation")
        .build()
        .unwrap();
    thread::scope(|scope| {
        for thread in 0..50i32 {
            let pool = &pool;
            scope.spawn(move || {
                for n in 0..100 {
                    let sent = thread * 1000 + n;
                    let rows = pool.query("SELECT $1::int", &[&sent]).unwrap();
                    assert_eq!(rows[0].get::<_, i32>(0), sent);
                }
            });
        }
        let mut admin = db.admin();
        for _ in 0..20 {
            let seen = super::support::backends(&mut admin, "saturation").len();
            // One extra connection while a second attempt overtakes a slow one.
            assert!(seen <= 21, "{seen} connections");
            thread::sleep(MS);
        }
    });
    let stats = pool.stats();
    assert_eq!((stats.active, stats.waiting, stats.max), (0, 0, 20));
}

#[test]
fn those_in_line_are_served_in_their_order() {
    let db = database();
    let pool = db
        .pool()
        .max_size(1)
        .connection_timeout(20 * SECOND)
        .build()
        .unwrap();
    let held = pool.get().unwrap();
    let order = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for place in 0..8 {
            let (pool, order) = (&pool, &order);
            scope.spawn(move || {
                let connection = pool.get().unwrap();
                order.lock().unwrap().push(place);
                drop(connection);
            });
            eventually("the thread is in line", || {
                pool.stats().waiting == place + 1
            });
        }
        drop(held);
    });
    assert_eq!(*order.lock().unwrap(), (0..8).collect::<Vec<_>>());
}

#[test]
fn a_wait_ends_at_its_deadline_with_evidence() {
    let db = database();
    let pool = db
        .pool()
        .max_size(1)
        .connection_timeout(100 * MS)
        .build()
        .unwrap();
    let held = pool.get_timeout(20 * SECOND).unwrap();
    let started = Instant::now();
    let error = pool.get().unwrap_err();
    let waited = started.elapsed();
    assert!(waited >= 100 * MS && waited < 10 * SECOND, "{waited:?}");
    assert!(error.is_timeout() && error.is_retryable());
    let text = error.to_string();
    assert!(
        text.contains("total=1 active=1 idle=0 waiting=0 max=1"),
        "{text}"
    );
    assert!(
        text.contains("tests/suite/checkout.rs"),
        "the holder's place: {text}"
    );
    let evidence = refused(error);
    assert_eq!(evidence.reason, CheckoutFailure::Timeout);
    assert_eq!(evidence.longest.unwrap().connection, held.id());
}

#[test]
fn a_full_line_refuses_at_once() {
    let db = database();
    let pool = db
        .pool()
        .max_size(1)
        .max_waiting(2)
        .connection_timeout(20 * SECOND)
        .build()
        .unwrap();
    let held = pool.get().unwrap();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| drop(pool.get().unwrap()));
        }
        eventually("two are in line", || pool.stats().waiting == 2);
        let started = Instant::now();
        let error = pool.query("SELECT 1", &[]).unwrap_err();
        assert!(started.elapsed() < 5 * SECOND);
        assert!(!error.is_timeout());
        assert_eq!(refused(error).reason, CheckoutFailure::LineFull);
        drop(held);
    });
}

#[test]
fn a_line_of_no_length_still_hands_out_every_connection() {
    let db = database();
    let pool = db
        .pool()
        .max_size(3)
        .max_waiting(0)
        .connection_timeout(20 * SECOND)
        .build()
        .unwrap();
    let held: Vec<_> = (0..3).map(|_| pool.get().unwrap()).collect();
    assert_eq!(
        refused(pool.get().unwrap_err()).reason,
        CheckoutFailure::LineFull
    );
    drop(held);
    pool.query("SELECT 1", &[]).unwrap();
}

#[test]
fn a_caller_without_time_does_not_cost_the_pool_its_connections() {
    let db = database();
    let pool = db
        .pool()
        .max_size(4)
        .min_idle(4)
        .application_name("impatient")
        .build()
        .unwrap();
    eventually("all are open", || pool.stats().idle == 4);
    let mut admin = db.admin();
    let before = super::support::backends(&mut admin, "impatient");
    // The connections are idle for longer than they are trusted, so that each is probed.
    thread::sleep(600 * MS);
    for _ in 0..4 {
        drop(pool.get_timeout(Duration::ZERO));
    }
    assert_eq!(super::support::backends(&mut admin, "impatient"), before);
}

#[test]
fn times_without_end_are_taken_as_such() {
    let db = database();
    let forever = Duration::MAX;
    let pool = db
        .pool()
        .connection_timeout(forever)
        .idle_timeout(forever)
        .max_lifetime(forever)
        .statement_timeout(forever)
        .query_timeout(forever)
        .fail_fast_after(forever)
        .build()
        .unwrap();
    pool.query("SELECT 1", &[]).unwrap();
    pool.with_timeout(forever).query("SELECT 1", &[]).unwrap();
    drop(pool.get_timeout(forever).unwrap());
    pool.close(forever);
}

#[test]
fn try_get_does_not_wait() {
    let db = database();
    let pool = db.pool().max_size(1).build().unwrap();
    let held = pool.get_timeout(20 * SECOND).unwrap();
    let started = Instant::now();
    assert!(pool.try_get().is_none());
    assert!(started.elapsed() < SECOND + super::frozen::slack());
    drop(held);
    eventually("the connection is idle", || pool.try_get().is_some());
}

#[test]
fn the_pool_crosses_threads() {
    fn shared<T: Clone + Send + Sync + 'static>() {}
    fn sent<T: Send>() {}
    shared::<Pool>();
    sent::<millpond::pool::PooledConnection>();
    sent::<Error>();
}

#[test]
fn a_closed_pool_turns_everybody_away() {
    let db = database();
    let pool = db
        .pool()
        .max_size(1)
        .connection_timeout(20 * SECOND)
        .build()
        .unwrap();
    let held = pool.get().unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| pool.get().map(|_| ()));
        eventually("one is in line", || pool.stats().waiting == 1);
        let closer = scope.spawn(|| pool.close(10 * SECOND));
        let error = waiter.join().unwrap().unwrap_err();
        assert_eq!(refused(error).reason, CheckoutFailure::Closed);
        drop(held);
        let report = closer.join().unwrap();
        assert_eq!((report.cancelled, report.aborted), (0, 0), "{report}");
    });
    assert_eq!(
        refused(pool.get().unwrap_err()).reason,
        CheckoutFailure::Closed
    );
    assert_eq!(pool.stats().total, 0);
}

#[test]
fn closing_cancels_what_still_runs() {
    let db = database();
    let pool = db
        .pool()
        .statement_timeout(Duration::ZERO)
        .query_timeout(Duration::ZERO)
        .build()
        .unwrap();
    thread::scope(|scope| {
        // More statements than there are threads that send cancels.
        let sleepers: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| pool.query("SELECT pg_sleep(600)", &[]).map(|_| ())))
            .collect();
        let mut admin = db.admin();
        let sql = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()";
        eventually("all statements run", || {
            admin.query(sql, &[]).unwrap().len() == 8
        });
        let started = Instant::now();
        let report = pool.close(4 * SECOND);
        assert!(started.elapsed() < 10 * SECOND);
        assert_eq!((report.cancelled, report.aborted), (8, 0), "{report}");
        for sleeper in sleepers {
            let error = sleeper.join().unwrap().unwrap_err();
            assert_eq!(
                error.sqlstate().map(postgres::error::SqlState::code),
                Some("57014")
            );
        }
    });
}

#[test]
fn a_holder_that_never_returns_is_cut_when_the_time_is_up() {
    let db = database();
    let pool = db.pool().build().unwrap();
    let mut held = pool.get_timeout(20 * SECOND).unwrap();
    held.simple_query("SELECT 1").unwrap();
    let report = pool.close(200 * MS);
    assert_eq!(report.aborted, 1, "{report}");
    assert!(held.simple_query("SELECT 1").is_err());
}
