//! What applications that embed the pool rely on beside its guarantees: errors and types of their
//! own, helpers that run on any executor, streams of rows, notifications, and control over the
//! connections that the pool keeps open.

use super::proxy::{Mode, Proxy};
use super::support::{MS, SECOND, backends, counter, database, eventually, pid, refused, server};
use millpond::embedded::Stop;
use millpond::error::CheckoutFailure;
use millpond::pool::{Builder, Heard, Observer, StatementEvent};
use millpond::postgres::error::{DbError, SqlState};
use millpond::{Error, Executor, FromRow, Keyed, RetryPolicy};
use postgres::Row;
use std::io::BufRead;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

#[derive(Debug, thiserror::Error)]
enum Booking {
    #[error("the studio is taken")]
    Taken,
    #[error(transparent)]
    Database(#[from] Error),
}

#[test]
fn a_closures_own_error_comes_out_as_it_went_in() {
    let pool = database().pool().build().unwrap();
    pool.execute("CREATE TABLE t (id int PRIMARY KEY)", &[])
        .unwrap();
    let taken: Result<(), Booking> = pool.transaction(|tx| {
        tx.execute("INSERT INTO t VALUES (1)", &[])?;
        Err(Booking::Taken)
    });
    assert!(matches!(taken, Err(Booking::Taken)), "{taken:?}");
    let any = pool.transaction(|tx| -> anyhow::Result<()> {
        tx.execute("INSERT INTO t VALUES (2)", &[])?;
        anyhow::bail!("no more than {}", 1)
    });
    assert_eq!(any.unwrap_err().to_string(), "no more than 1");
    let boxed = pool.transaction(
        |_| -> Result<(), Box<dyn std::error::Error + Send + Sync>> { Err("boxed".into()) },
    );
    assert_eq!(boxed.unwrap_err().to_string(), "boxed");
    let count: i64 = pool.query_scalar("SELECT count(*) FROM t", &[]).unwrap();
    assert_eq!(count, 0, "each was rolled back");

    let failed: Result<u64, Booking> =
        pool.transaction(|tx| Ok(tx.execute("INSERT INTO missing VALUES (1)", &[])?));
    let Err(Booking::Database(error)) = failed else {
        panic!("{failed:?}")
    };
    assert_eq!(error.sqlstate(), Some(&SqlState::UNDEFINED_TABLE));

    pool.create_ledger().unwrap();
    let keyed: Result<Keyed<()>, Booking> = pool.transaction_with_key("k", |_| Err(Booking::Taken));
    assert!(matches!(keyed, Err(Booking::Taken)), "{keyed:?}");
    let free = pool.transaction_with_key("k", |_| Ok::<_, Booking>(7));
    assert!(matches!(free, Ok(Keyed::Done(7))), "{free:?}");
}

#[test]
fn a_deadlock_in_a_closure_is_repeated_whatever_the_closure_makes_of_it() {
    let pool = database().pool().build().unwrap();
    let attempts = AtomicUsize::new(0);
    let done = pool.transaction(|tx| -> anyhow::Result<usize> {
        use anyhow::Context;
        let nth = attempts.fetch_add(1, Ordering::SeqCst);
        if nth < 2 {
            tx.batch_execute("DO $$ BEGIN RAISE SQLSTATE '40P01'; END $$")
                .context("while booking")?;
        }
        Ok(nth)
    });
    assert_eq!(done.unwrap(), 2);
    assert!(
        pool.metrics_text()
            .contains(r#"millpond_retries_total{sqlstate="40P01",verdict="rolled_back"} 2"#)
    );

    let never = pool
        .with_policy(RetryPolicy::none())
        .transaction(|tx| -> anyhow::Result<()> {
            use anyhow::Context;
            tx.batch_execute("DO $$ BEGIN RAISE SQLSTATE '40P01'; END $$")
                .context("while booking")
        });
    assert_eq!(never.unwrap_err().to_string(), "while booking");
}

#[test]
fn an_own_error_behind_a_savepoint_undoes_that_part_alone() {
    let pool = database().pool().build().unwrap();
    pool.execute("CREATE TABLE t (id int)", &[]).unwrap();
    pool.transaction(|tx| -> Result<(), Booking> {
        tx.execute("INSERT INTO t VALUES (1)", &[])?;
        let inner = tx.savepoint(|tx| {
            tx.execute("INSERT INTO t VALUES (2)", &[])?;
            Err::<(), _>(Booking::Taken)
        });
        assert!(matches!(inner, Err(Booking::Taken)));
        Ok(())
    })
    .unwrap();
    let ids: Vec<(i32,)> = pool.query_as("SELECT id FROM t", &[]).unwrap();
    assert_eq!(ids, [(1,)]);
}

/// A helper that takes its client as a parameter, as in a program on the plain driver.
fn add(db: &mut impl Executor, name: &str) -> millpond::Result<i64> {
    db.execute("INSERT INTO t (name) VALUES ($1)", &[&name])?;
    db.batch_execute("SELECT 1; SELECT 2")?;
    db.query_one("SELECT 1", &[])?;
    assert!(db.query_opt("SELECT 1 WHERE false", &[])?.is_none());
    let mut seen = 0;
    db.query_each("SELECT name FROM t", &[], &mut |_| {
        seen += 1;
        Ok(ControlFlow::Continue(()))
    })?;
    let names: Vec<(String,)> = db.query_as("SELECT name FROM t", &[])?;
    let count: i64 = db.query_scalar("SELECT count(*) FROM t", &[])?;
    assert_eq!((seen, names.len() as i64), (count, count));
    Ok(count)
}

fn count(db: &mut dyn Executor) -> i64 {
    db.query("SELECT count(*) FROM t", &[]).unwrap()[0].get(0)
}

#[test]
fn a_helper_runs_inside_a_transaction_and_outside() {
    let db = database();
    let mut pool = db.pool().build().unwrap();
    pool.execute("CREATE TABLE t (name text)", &[]).unwrap();
    assert_eq!(add(&mut pool, "pool").unwrap(), 1);
    assert_eq!(add(&mut pool.with_timeout(SECOND), "call").unwrap(), 2);
    assert_eq!(pool.transaction(|tx| add(tx, "transaction")).unwrap(), 3);
    assert_eq!(add(&mut pool.get().unwrap(), "connection").unwrap(), 4);
    assert_eq!(add(&mut *pool.get().unwrap(), "its client").unwrap(), 5);
    let mut client = db.admin();
    assert_eq!(add(&mut client, "client").unwrap(), 6);
    let mut tx = client.transaction().unwrap();
    assert_eq!(add(&mut tx, "the driver's transaction").unwrap(), 7);
    assert_eq!(count(&mut tx), 7);
    let mut object: &mut dyn Executor = &mut tx;
    assert_eq!(add(&mut object, "an object").unwrap(), 8);
    drop(tx);
    assert_eq!(
        add(&mut pool.get().unwrap().detach(), "detached").unwrap(),
        7
    );
    assert_eq!(count(&mut pool), 7);
}

#[derive(Debug, PartialEq)]
struct Studio {
    id: i32,
    name: String,
}

impl FromRow for Studio {
    fn from_row(row: &Row) -> Result<Studio, postgres::Error> {
        Ok(Studio {
            id: row.try_get("id")?,
            name: row.try_get("name")?,
        })
    }
}

#[test]
fn rows_become_values_and_a_misfit_is_an_error() {
    let pool = database().pool().build().unwrap();
    let studios = pool.query_as::<Studio>("SELECT 7 AS id, 'A' AS name", &[]);
    let a = Studio {
        id: 7,
        name: "A".into(),
    };
    assert_eq!(studios.unwrap(), [a]);
    let pairs =
        pool.query_as::<(i32, String)>("SELECT n, n::text FROM generate_series(1, 2) AS n", &[]);
    assert_eq!(pairs.unwrap(), [(1, "1".into()), (2, "2".into())]);
    let none: Option<i32> = pool.query_scalar("SELECT NULL::int", &[]).unwrap();
    assert_eq!(none, None);

    let misfit = pool.query_scalar::<String>("SELECT 1", &[]).unwrap_err();
    assert!(matches!(misfit, Error::Database { .. }), "{misfit:?}");
    let short = pool.query_as::<(i32, i32)>("SELECT 1", &[]).unwrap_err();
    assert!(matches!(short, Error::Database { .. }), "{short:?}");
    for sql in ["SELECT 1 WHERE false", "VALUES (1), (2)"] {
        let wrong = pool.query_scalar::<i32>(sql, &[]).unwrap_err();
        assert!(matches!(wrong, Error::Misuse(_)), "{sql} {wrong:?}");
    }
    // The connection is still usable.
    assert_eq!(pool.query_scalar::<i32>("SELECT 1", &[]).unwrap(), 1);
}

#[test]
fn rows_that_were_passed_on_are_not_passed_on_twice() {
    let db = database();
    let pool = db.pool().build().unwrap();
    let mut admin = db.admin();
    let mut seen = Vec::new();
    let mut end_session = || {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE datname = current_database() AND pid <> pg_backend_pid()";
        admin.execute(sql, &[]).unwrap();
    };
    let lost = pool.query_each("SELECT generate_series(1, 2000)", &[], |row| {
        let n: i32 = row.try_get(0)?;
        seen.push(n);
        if n == 300 {
            end_session();
        }
        Ok(ControlFlow::Continue(()))
    });
    let error = lost.unwrap_err();
    assert!(!error.is_outcome_unknown(), "{error:?}");
    let mut once = seen.clone();
    once.dedup();
    assert_eq!(once, seen);
    assert!(seen.len() < 2000, "{}", seen.len());

    // Before the first row, a retry can pass no row on twice.
    drop(pool.get().unwrap());
    let stale = pid(&pool);
    let sql = "SELECT pg_terminate_backend($1)";
    admin.execute(sql, &[&stale]).unwrap();
    let mut rows = 0;
    pool.query_each("SELECT generate_series(1, 1000)", &[], |_| {
        rows += 1;
        Ok(match rows {
            400 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        })
    })
    .unwrap();
    assert_eq!(rows, 400);
}

#[test]
fn a_copy_goes_out_whole_in_part_or_not_at_all() {
    let db = database();
    let pool = db.pool().max_size(1).build().unwrap();
    let sql = "COPY (SELECT generate_series(1, 100000)) TO STDOUT";
    let lines = pool.transaction(|tx| tx.copy_out(sql, |rows| Ok(rows.lines().count())));
    assert_eq!(lines.unwrap(), 100_000);

    let before = pid(&pool);
    let first = pool.transaction(|tx| {
        let first = tx.copy_out(sql, |rows| {
            let mut line = String::new();
            rows.read_line(&mut line)?;
            Ok(line)
        })?;
        assert_eq!(tx.query_scalar::<i32>("SELECT 1", &[])?, 1, "it goes on");
        Ok::<_, Error>(first)
    });
    assert_eq!(first.unwrap(), "1\n");
    assert_eq!(pid(&pool), before);

    let refused = pool.transaction(|tx| {
        tx.copy_out(sql, |_| -> millpond::Result<()> {
            Err(std::io::Error::other("the disk is full").into())
        })
    });
    assert_eq!(refused.unwrap_err().to_string(), "the disk is full");
    assert_ne!(pid(&pool), before, "what was on its way is not waited for");

    let slow = "COPY (SELECT n, pg_sleep(0.2) FROM generate_series(1, 100) n) TO STDOUT";
    let started = Instant::now();
    let cut = pool.with_timeout(500 * MS).transaction(|tx| {
        tx.copy_out(slow, |rows| {
            let mut all = String::new();
            rows.read_to_string(&mut all)?;
            Ok(all)
        })
    });
    let error = cut.unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
    assert!(started.elapsed() < 5 * SECOND);
    let before = pid(&pool);
    for (sql, out) in [
        ("SELECT 1", true),
        ("COPY t FROM STDIN", true),
        ("COPY t TO STDOUT", false),
    ] {
        let error = pool.transaction(|tx| match out {
            true => tx.copy_out(sql, |_| Ok(0)),
            false => tx.copy_in(sql, |_| Ok(())),
        });
        assert!(matches!(error, Err(Error::Misuse(_))), "{sql} {error:?}");
    }
    assert_eq!(pid(&pool), before, "misuse costs no connection");
    let swallowed = pool.transaction(|tx| {
        let _ = tx.copy_out(sql, |_| -> millpond::Result<()> {
            Err(Error::Misuse("enough"))
        });
        tx.query_scalar::<i32>("SELECT 1", &[])
    });
    let error = swallowed.unwrap_err();
    assert!(!error.is_timeout(), "there was no deadline: {error:?}");
    let bad = pool.transaction(|tx| tx.copy_out("COPY missing TO STDOUT", |_| Ok(())));
    assert_eq!(
        bad.unwrap_err().sqlstate(),
        Some(&SqlState::UNDEFINED_TABLE)
    );
}

/// The next event that the listener hears; fails after 20 seconds.
#[track_caller]
fn heard(listener: &mut millpond::pool::Listener) -> Heard {
    let patience = Instant::now() + 20 * SECOND;
    loop {
        if let Some(heard) = listener.next(SECOND).unwrap() {
            return heard;
        }
        assert!(Instant::now() < patience, "nothing was heard");
    }
}

#[test]
fn a_listener_hears_and_says_when_it_may_have_missed_something() {
    let db = database();
    let pool = db.pool().max_size(2).build().unwrap();
    let mut listener = pool.listen(["jobs", "Odd \"name\""]).unwrap();
    assert!(listener.next(Duration::ZERO).unwrap().is_none());
    for (channel, payload) in [("jobs", "1"), ("Odd \"name\"", "2")] {
        pool.execute("SELECT pg_notify($1, $2)", &[&channel, &payload])
            .unwrap();
        match heard(&mut listener) {
            Heard::Notification(n) => assert_eq!((n.channel(), n.payload()), (channel, payload)),
            other => panic!("{other:?}"),
        }
    }
    // The listener does not use a connection of the pool.
    let both = (pool.get().unwrap(), pool.get().unwrap());
    drop(both);

    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'";
    db.admin().execute(sql, &[]).unwrap();
    assert!(matches!(heard(&mut listener), Heard::Gap));
    pool.execute("NOTIFY jobs, '3'", &[]).unwrap();
    assert!(matches!(heard(&mut listener), Heard::Notification(n) if n.payload() == "3"));

    let closer = pool.clone();
    let closing = thread::spawn(move || closer.close(SECOND));
    let closed = loop {
        match listener.next(5 * SECOND) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(refused(closed).reason, CheckoutFailure::Closed);
    assert_eq!(closing.join().unwrap().aborted, 0);
}

#[test]
fn a_listener_outlives_a_restart_and_a_server_that_falls_silent() {
    let mut server = server(&[]);
    let proxy = Proxy::in_front_of(server.port());
    let pool = super::support::pool(&proxy.url(&server.url()))
        .build()
        .unwrap();
    let mut listener = pool.listen(["jobs"]).unwrap();
    server.stop(Stop::Immediate);
    assert!(listener.next(100 * MS).unwrap().is_none(), "it waits on");
    server.start_again().unwrap();
    assert!(matches!(heard(&mut listener), Heard::Gap));

    proxy.set(Mode::BlackHole);
    let silent = Instant::now();
    let back = thread::spawn({
        let switch = proxy.switch();
        move || {
            thread::sleep(12 * SECOND);
            switch(Mode::Pass);
        }
    });
    let gap = loop {
        if let Some(heard) = listener.next(SECOND).unwrap() {
            break heard;
        }
        assert!(silent.elapsed() < 40 * SECOND, "it never noticed");
    };
    assert!(matches!(gap, Heard::Gap));
    back.join().unwrap();
}

#[test]
fn what_cannot_be_listened_to_is_refused() {
    let pool = database().pool().build().unwrap();
    let long = "x".repeat(64);
    for name in ["", "a\0b", &long] {
        let error = pool.listen([name]).unwrap_err();
        assert!(matches!(error, Error::Misuse(_)), "{error:?}");
    }
    let none: [&str; 0] = [];
    assert!(matches!(pool.listen(none).unwrap_err(), Error::Misuse(_)));
    let wrong = pool.config().database.clone().unwrap();
    let mut config = wrong.config().clone();
    config.user("nobody_of_this_name");
    let pool = Builder::from(config).build().unwrap();
    let started = Instant::now();
    for _ in 0..3 {
        let error = pool.listen(["jobs"]).unwrap_err();
        assert_eq!(
            error.sqlstate(),
            Some(&SqlState::INVALID_PASSWORD),
            "{error:?}"
        );
    }
    let limit = 3 * pool.config().connection_timeout;
    assert!(started.elapsed() < limit, "what is known is not waited for");
}

#[test]
fn a_listener_without_a_server_keeps_to_its_time() {
    let mut server = server(&[]);
    let timeout = 5 * SECOND;
    let pool = super::support::pool(&server.url()).connection_timeout(timeout);
    let pool = pool.build().unwrap();
    let mut listener = pool.listen(["jobs"]).unwrap();
    server.stop(Stop::Fast);
    eventually("the loss is noticed", || {
        listener.next(Duration::ZERO).unwrap();
        format!("{listener:?}").contains("connected: false")
    });
    let started = Instant::now();
    for _ in 0..5 {
        assert!(listener.next(Duration::ZERO).unwrap().is_none());
    }
    assert!(started.elapsed() < timeout, "{:?}", started.elapsed());
    let started = Instant::now();
    assert!(listener.next(SECOND).unwrap().is_none());
    let waited = started.elapsed();
    assert!((SECOND..timeout).contains(&waited), "{waited:?}");
    server.start_again().unwrap();
    assert!(matches!(heard(&mut listener), Heard::Gap));
}

/// A statement's text, rows and attempt, and the server's error code if it failed.
type Event = (String, Option<u64>, u32, Option<String>);

#[derive(Default)]
struct Seen {
    statements: Mutex<Vec<Event>>,
    notices: Mutex<Vec<String>>,
}

impl Observer for Seen {
    fn statement(&self, event: &StatementEvent<'_>) {
        let code = event
            .error
            .and_then(|e| Some(e.sqlstate()?.code().to_owned()));
        let seen = (event.sql.to_owned(), event.rows, event.attempt, code);
        self.statements.lock().unwrap().push(seen);
    }

    fn notice(&self, _: u64, notice: &DbError) {
        self.notices
            .lock()
            .unwrap()
            .push(notice.message().to_owned());
    }
}

#[test]
fn an_observer_is_told_of_statements_and_notices() {
    let seen = Arc::new(Seen::default());
    let pool = database().pool().observer(seen.clone()).build().unwrap();
    pool.query("VALUES (1), (2)", &[]).unwrap();
    pool.execute("CREATE TABLE t (id int)", &[]).unwrap();
    pool.execute("INSERT INTO t SELECT generate_series(1, 3)", &[])
        .unwrap();
    pool.query("SELECT missing", &[]).unwrap_err();
    let attempts = AtomicUsize::new(0);
    pool.transaction(|tx| {
        if attempts.fetch_add(1, Ordering::SeqCst) == 0 {
            tx.batch_execute("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")?;
        }
        tx.query_each("SELECT generate_series(1, 5)", &[], |_| {
            Ok(ControlFlow::Continue(()))
        })?;
        tx.batch_execute("DO $$ BEGIN RAISE NOTICE 'seen'; END $$")
    })
    .unwrap();
    let row = |sql: &str, rows, attempt, code: Option<&str>| {
        (sql.to_owned(), rows, attempt, code.map(str::to_owned))
    };
    let expected = [
        row("VALUES (1), (2)", Some(2), 1, None),
        row("CREATE TABLE t (id int)", Some(0), 1, None),
        row(
            "INSERT INTO t SELECT generate_series(1, 3)",
            Some(3),
            1,
            None,
        ),
        row("SELECT missing", None, 1, Some("42703")),
        row("BEGIN", None, 1, None),
        row(
            "DO $$ BEGIN RAISE SQLSTATE '40001'; END $$",
            None,
            1,
            Some("40001"),
        ),
        // This one's BEGIN is sent with it.
        row("SELECT generate_series(1, 5)", Some(5), 2, None),
        row("DO $$ BEGIN RAISE NOTICE 'seen'; END $$", None, 2, None),
        row("COMMIT", None, 2, None),
    ];
    assert_eq!(*seen.statements.lock().unwrap(), expected);
    assert_eq!(*seen.notices.lock().unwrap(), ["seen"]);
    let failures = |code: &str| {
        counter(
            &pool,
            &format!("millpond_statement_failures_total{{sqlstate=\"{code}\"}}"),
        )
    };
    assert_eq!((failures("42703"), failures("40001")), (1, 1));
}

#[test]
fn evicted_connections_are_replaced_and_nobody_notices() {
    let db = database();
    let pool = db
        .pool()
        .max_size(3)
        .min_idle(2)
        .application_name("evicted");
    let pool = pool.build().unwrap();
    pool.wait_ready(20 * SECOND).unwrap();
    let busy = pool.get().unwrap();
    let mut admin = db.admin();
    let before = backends(&mut admin, "evicted");
    pool.evict();
    eventually("the idle ones are new", || {
        let now = backends(&mut admin, "evicted");
        now.len() > 1 && now.iter().filter(|pid| before.contains(pid)).count() == 1
    });
    drop(busy);
    eventually("the busy one is, too", || {
        let now = backends(&mut admin, "evicted");
        now.len() > 1 && !now.iter().any(|pid| before.contains(pid))
    });
    let evicted = "millpond_connections_closed_total{reason=\"evicted\"}";
    assert_eq!(counter(&pool, evicted), before.len() as u64);
    pool.query("SELECT 1", &[]).unwrap();
}

#[test]
fn a_pool_is_resized_under_load_and_serves_its_line() {
    let db = database();
    let pool = db
        .pool()
        .max_size(6)
        .min_idle(6)
        .application_name("resized");
    let pool = pool.build().unwrap();
    pool.wait_ready(20 * SECOND).unwrap();
    for wrong in [0, 7] {
        assert!(matches!(pool.resize(wrong).unwrap_err(), Error::Misuse(_)));
    }
    let held: Vec<_> = (0..6).map(|_| pool.get().unwrap()).collect();
    pool.resize(2).unwrap();
    let waiting: Vec<_> = (0..4)
        .map(|_| {
            let pool = pool.clone();
            thread::spawn(move || pool.get_timeout(20 * SECOND).map(drop))
        })
        .collect();
    eventually("four wait", || pool.stats().waiting == 4);
    drop(held);
    for waiter in waiting {
        waiter.join().unwrap().unwrap();
    }
    let mut admin = db.admin();
    eventually("two are left", || {
        backends(&mut admin, "resized").len() == 2
    });
    let stats = pool.stats();
    assert_eq!((stats.max, stats.min_idle), (2, 2));
    let both = (pool.get().unwrap(), pool.get().unwrap());
    assert!(pool.get_timeout(50 * MS).is_err());
    pool.resize(6).unwrap();
    let third = pool.get_timeout(20 * SECOND).unwrap();
    drop((both, third));
    eventually("it has grown", || pool.stats().idle == 6);
}

#[test]
fn a_detached_connection_leaves_its_place_to_another() {
    let db = database();
    let pool = db.pool().max_size(1).min_idle(0).application_name("alone");
    let pool = pool.build().unwrap();
    let mut alone = pool.get().unwrap().detach();
    alone.batch_execute("SET work_mem = '7MB'").unwrap();
    assert_eq!(pool.stats().active, 0);
    let other = pool.get().unwrap();
    let mut admin = db.admin();
    assert_eq!(backends(&mut admin, "alone").len(), 2);
    drop(other);
    assert_eq!(pool.close(SECOND).aborted, 0);
    let kept: String = alone.query_one("SHOW work_mem", &[]).unwrap().get(0);
    assert_eq!(kept, "7MB");
    drop(alone);
    eventually("it is closed", || backends(&mut admin, "alone").is_empty());
}

#[test]
fn to_wait_for_a_pool_ends_when_it_is_ready_or_cannot_be() {
    let mut server = server(&[]);
    server.stop(Stop::Fast);
    let pool = super::support::pool(&server.url())
        .min_idle(3)
        .fail_fast_after(Duration::ZERO)
        .build()
        .unwrap();
    let started = Instant::now();
    let away = refused(pool.wait_ready(300 * MS).unwrap_err());
    assert!(started.elapsed() >= 300 * MS, "{:?}", started.elapsed());
    assert!(away.last_open_error.is_some());
    // Attempts that fail at once are repeated, and all of them count.
    let hasty = super::support::pool(&server.url()).fail_fast_after(50 * MS);
    let hasty = hasty.build().unwrap();
    eventually("it fails fast", || hasty.is_failing_fast());
    let hasty = refused(hasty.wait_ready(400 * MS).unwrap_err());
    assert_eq!(hasty.reason, CheckoutFailure::FailingFast);
    assert!(hasty.waited >= 400 * MS, "{:?}", hasty.waited);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| pool.wait_ready(30 * SECOND));
        server.start_again().unwrap();
        waiting.join().unwrap().unwrap();
    });
    assert!(pool.stats().idle >= 3, "{:?}", pool.stats());

    let mut config = server.url().parse::<postgres::Config>().unwrap();
    config.password("wrong");
    let wrong = Builder::from(config).build().unwrap();
    let started = Instant::now();
    let error = wrong.wait_ready(30 * SECOND).unwrap_err();
    assert_eq!(error.sqlstate(), Some(&SqlState::INVALID_PASSWORD));
    assert!(started.elapsed() < 10 * SECOND);
    pool.close(SECOND);
    let closed = refused(pool.wait_ready(SECOND).unwrap_err());
    assert_eq!(closed.reason, CheckoutFailure::Closed);
}

#[test]
fn the_drivers_settings_make_a_pool_and_none_is_weakened() {
    let db = database();
    let config = db.url.parse::<postgres::Config>().unwrap();
    let pool = Builder::from(config.clone()).max_size(2).build().unwrap();
    assert_eq!(pool.query_scalar::<i32>("SELECT 1", &[]).unwrap(), 1);
    let mut named = config.clone();
    named.application_name("named by the driver's settings");
    let pool = Builder::from(named).build().unwrap();
    let name: String = pool.query_scalar("SHOW application_name", &[]).unwrap();
    assert_eq!(name, "named by the driver's settings");
    let mut secure = config;
    secure.ssl_mode(postgres::config::SslMode::Require);
    let pool = Builder::from(secure).build().unwrap();
    match pool.query_scalar::<bool>(
        "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
        &[],
    ) {
        Ok(encrypted) => assert!(encrypted),
        Err(error) => {
            let said = millpond::error::Chain(&error).to_string();
            assert!(said.contains("sslmode=require"), "{said}");
        }
    }
}

#[test]
fn a_registry_takes_the_metrics_of_two_pools_and_tells_them_apart() {
    let db = database();
    let (a, b) = (db.pool().build().unwrap(), db.pool().build().unwrap());
    let registry = prometheus::Registry::new();
    registry.register(Box::new(a.collector("a"))).unwrap();
    registry.register(Box::new(b.collector("b"))).unwrap();
    assert!(registry.register(Box::new(b.collector("b"))).is_err());
    a.query("SELECT missing", &[]).unwrap_err();
    let text = prometheus::TextEncoder::new()
        .encode_to_string(&registry.gather())
        .unwrap();
    for (name, labels, value) in [
        (
            "millpond_statement_failures_total",
            r#",sqlstate="42703""#,
            Some("1"),
        ),
        ("db_client_connection_max", "", Some("20")),
        ("db_client_connection_wait_time_seconds_count", "", None),
        ("millpond_failing_fast", "", Some("0")),
    ] {
        let of_a = format!("{name}{{db_client_connection_pool_name=\"a\"{labels}}} ");
        let line = text.lines().find(|line| line.starts_with(&of_a));
        let line = line.unwrap_or_else(|| panic!("no {of_a} in {text}"));
        assert!(
            value.is_none_or(|v| line.ends_with(&format!(" {v}"))),
            "{line}"
        );
    }
    let series = text.lines().filter(|line| !line.starts_with('#'));
    let nameless: Vec<_> = series.filter(|line| !line.contains("pool_name=")).collect();
    assert!(nameless.is_empty(), "{nameless:?}");
    assert!(text.contains(r#"pool_name="b""#) && !text.contains("http_server"));
}

#[test]
fn figures_are_written_by_serde() {
    let pool = database().pool().max_size(3).min_idle(1).build().unwrap();
    pool.wait_ready(20 * SECOND).unwrap();
    let stats = serde_json::to_value(pool.stats()).unwrap();
    assert_eq!((&stats["max"], &stats["min_idle"]), (&3.into(), &1.into()));
    let health = serde_json::to_value(pool.health()).unwrap();
    assert_eq!(health["healthy"], true, "{health}");
    assert_eq!(health["stats"]["max"], 3);
    let report = serde_json::to_value(pool.close(SECOND)).unwrap();
    assert_eq!(report["aborted"], 0, "{report}");
    let reason = serde_json::to_value(millpond::pool::CloseReason::IdleTimeout).unwrap();
    assert_eq!(reason, "idle_timeout");
}

#[test]
fn a_private_server_gives_each_test_a_database_of_its_own() {
    let server = server(&[]);
    let (a, b) = (
        server.new_database().unwrap(),
        server.new_database().unwrap(),
    );
    assert_ne!(a, b);
    for url in [a, b] {
        let pool = super::support::pool(&url).build().unwrap();
        pool.execute("CREATE TABLE t (id int)", &[]).unwrap();
    }
}
