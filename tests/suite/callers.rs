//! One caller's mistakes do not affect other callers: its panics, the state it leaves behind, and
//! its calls inside other calls.

use super::proxy::Proxy;
use super::support::{
    MS, SECOND, backends, counter, database, eventually, no_backend_is_left, pid, pool,
};
use bytes::{BufMut, BytesMut};
use millpond::config::Reset;
use millpond::error::CheckoutFailure;
use millpond::pool::{CloseReason, Observer};
use millpond::{Error, Pool, RetryPolicy};
use postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// A parameter that panics when half of it is written.
#[derive(Debug)]
struct Panics;

impl ToSql for Panics {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.put_i32(1);
        panic!("a parameter of the test panics, as it should");
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

fn panicked<T>(work: impl FnOnce() -> T) -> bool {
    catch_unwind(AssertUnwindSafe(work)).is_err()
}

#[test]
fn a_parameter_that_panics_costs_its_caller_the_connection_and_nobody_else_anything() {
    let db = database();
    db.admin().batch_execute("CREATE TABLE t (n int)").unwrap();
    for cache in [256, 0] {
        let pool = db
            .pool()
            .max_size(1)
            .statement_cache(cache)
            .build()
            .unwrap();
        let insert = "INSERT INTO t VALUES ($1)";
        let ways: [&dyn Fn(); 6] = [
            &|| drop(pool.execute(insert, &[&Panics])),
            &|| drop(pool.read("SELECT $1::int", &[&Panics])),
            &|| drop(pool.transaction(|tx| tx.execute(insert, &[&Panics]))),
            &|| drop(pool.get().unwrap().execute(insert, &[&Panics])),
            &|| {
                let _ = pool.transaction(|tx| {
                    tx.query_each("SELECT 1", &[], |_| {
                        panic!("a closure of the test panics, as it should")
                    })
                });
            },
            &|| {
                let _ = pool.transaction(|tx| {
                    tx.copy_in("COPY t FROM STDIN", |_| {
                        panic!("a closure of the test panics, as it should")
                    })
                });
            },
        ];
        for (nth, way) in ways.iter().enumerate() {
            assert!(panicked(way), "{nth}");
            pool.execute(insert, &[&1i32]).unwrap();
            // Even if the closure catches the panic, the connection is unusable.
            let caught = pool.transaction(|tx| {
                assert!(panicked(|| tx.execute(insert, &[&Panics])));
                tx.execute(insert, &[&2i32])
            });
            assert!(!caught.unwrap_err().is_outcome_unknown(), "{nth}");
        }
        // If the borrower of a plain client catches the panic itself, the connection is cleaned or
        // closed.
        let mut raw = pool.get().unwrap();
        assert!(panicked(|| raw.execute(insert, &[&Panics])));
        drop(raw);
        pool.execute(insert, &[&1i32]).unwrap();
        let rows = pool.query("SELECT n FROM t", &[]).unwrap();
        assert!(rows.iter().all(|row| row.get::<_, i32>(0) == 1));
        assert_eq!(rows.len(), 7);
        pool.execute("TRUNCATE t", &[]).unwrap();
    }
}

#[test]
fn where_a_thread_may_not_block_every_call_says_so_and_no_drop_panics() {
    let db = database();
    let pool = db
        .pool()
        .max_size(3)
        .application_name("no_blocking")
        .build()
        .unwrap();
    pool.execute("CREATE TABLE t (n int)", &[]).unwrap();
    let held = pool.get().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
    let calls = |pool: Pool| {
        let refused = |result: Result<(), Error>| match result {
            Err(Error::Misuse(what)) => assert!(what.contains("blocking"), "{what}"),
            other => panic!("{other:?}"),
        };
        refused(pool.query("SELECT 1", &[]).map(drop));
        refused(pool.execute("SELECT 1", &[]).map(drop));
        refused(pool.read("SELECT 1", &[]).map(drop));
        refused(pool.transaction(|tx| tx.execute("SELECT 1", &[])).map(drop));
        refused(pool.execute_with_key("k", "SELECT 1", &[]).map(drop));
        refused(pool.create_ledger());
        refused(pool.get().map(drop));
        assert!(pool.try_get().is_none());
        assert!(pool.stats().max == 3 && !pool.metrics_text().is_empty());
        eventually("it is healthy", || pool.health().healthy);
    };
    let theirs = pool.clone();
    let worker = runtime.spawn(async move {
        calls(theirs.clone());
        // A connection that was checked out elsewhere may be returned here, and the pool may be
        // closed: by a normal drop, and by a drop while unwinding.
        drop(held);
        theirs
    });
    let theirs = runtime.block_on(worker).unwrap();
    runtime.block_on(async { calls(theirs) });
    let inside = pool.transaction(|tx| {
        let refused = runtime.block_on(async { tx.query("SELECT 1", &[]) });
        assert!(matches!(refused, Err(Error::Misuse(_))), "{refused:?}");
        Ok(())
    });
    assert!(matches!(inside, Err(Error::TransactionAborted { .. })));
    // A thread for blocking work may call the pool.
    let theirs = pool.clone();
    let work = runtime.spawn_blocking(move || theirs.query("SELECT 1", &[]).unwrap().len());
    assert_eq!(runtime.block_on(work).unwrap(), 1);
    let (mut spent, raw) = (pool.get().unwrap(), pool.get().unwrap());
    let _ = spent.batch_execute("SELECT pg_terminate_backend(pg_backend_pid())");
    let unwinding = runtime.spawn(async move {
        let _raw = raw;
        let _spent = spent;
        panic!("a task of the test panics, as it should");
    });
    assert!(runtime.block_on(unwinding).unwrap_err().is_panic());
    let last = runtime.spawn(async move {
        pool.close(SECOND);
        drop(pool);
    });
    runtime.block_on(last).unwrap();
    no_backend_is_left(&db, "no_blocking");
}

#[test]
fn what_a_statement_leaves_behind_does_not_reach_the_next_caller() {
    let db = database();
    db.admin()
        .batch_execute("CREATE EXTENSION pg_trgm")
        .unwrap();
    let pool = db.pool().max_size(1).min_idle(0).build().unwrap();
    let one = |sql: &str| -> String {
        let rows = pool.query(sql, &[]).unwrap();
        rows[0].get(0)
    };
    let trace = "SELECT concat_ws(',', nullif(current_setting('app.tenant', true), ''), \
                 (SELECT 'lock' FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() LIMIT 1), \
                 (SELECT 'temp' FROM pg_class WHERE relpersistence = 't' AND relnamespace = pg_my_temp_schema() LIMIT 1), \
                 (SELECT 'prepared' FROM pg_prepared_statements WHERE from_sql LIMIT 1), \
                 (SELECT 'cursor' FROM pg_cursors WHERE is_holdable LIMIT 1), \
                 (SELECT 'listen' FROM pg_listening_channels() LIMIT 1), \
                 nullif(current_setting('work_mem'), '4MB'))";
    assert_eq!(one(trace), "");
    let pid = one("SELECT pg_backend_pid()::text");
    let left = [
        "SELECT set_config('app.tenant', 'acme', false)",
        "SELECT pg_advisory_lock(42)",
        "SELECT pg_try_advisory_lock_shared(42)",
        "CREATE TEMP TABLE left_behind (n int)",
        "SELECT 1 AS n INTO TEMP left_behind",
        "DO $$BEGIN SET work_mem = '1MB'; END$$",
        "SET app.tenant = 'acme'",
        "PREPARE left_behind AS SELECT 1",
        "UPDATE pg_settings SET setting = '1024' WHERE name = 'work_mem'",
        "LISTEN news",
    ];
    for sql in left {
        pool.execute(sql, &[]).unwrap();
        assert_eq!(one(trace), "", "{sql}");
        pool.query(sql, &[]).unwrap();
        assert_eq!(one(trace), "", "{sql}");
        pool.transaction(|tx| -> millpond::Result<_> {
            tx.execute(sql, &[])?;
            Ok(())
        })
        .unwrap();
        assert_eq!(one(trace), "", "{sql}");
        // For a cached statement as well as for a new one.
        pool.transaction(|tx| tx.batch_execute(&format!("SELECT 1; /* and */ {sql}")))
            .unwrap();
        assert_eq!(one(trace), "", "{sql}");
    }
    pool.transaction(|tx| {
        tx.execute("DECLARE c CURSOR WITH HOLD FOR SELECT 1", &[])?;
        tx.query(
            "SELECT set_config($1, $2, false)",
            &[&"app.tenant", &"acme"],
        )
    })
    .unwrap();
    assert_eq!(one(trace), "");
    pool.get()
        .unwrap()
        .batch_execute("PREPARE \"by Hand\" AS SELECT 1")
        .unwrap();
    assert_eq!(one(trace), "");
    assert_eq!(
        one("SELECT pg_backend_pid()::text"),
        pid,
        "it was cleaned, not closed"
    );
    // A loaded library stays until its session ends.
    pool.execute("LOAD 'pg_trgm'", &[]).unwrap();
    assert_ne!(one("SELECT pg_backend_pid()::text"), pid);
}

#[test]
fn what_ends_with_its_transaction_costs_no_cleaning() {
    let db = database();
    let proxy = Proxy::in_front_of(db.port);
    let pool = pool(&proxy.url(&db.url)).max_size(1).build().unwrap();
    let tenant = |tx: &mut millpond::Transaction<'_>| {
        tx.query("SELECT set_config('app.tenant', $1, true)", &[&"acme"])?;
        tx.batch_execute("SET LOCAL work_mem = '1MB'")?;
        tx.query("SELECT pg_advisory_xact_lock(1)", &[])
    };
    pool.transaction(tenant).unwrap();
    proxy.take_log();
    pool.transaction(tenant).unwrap();
    // A cleaning statement would show up before this answer.
    pool.query("SELECT 1", &[]).unwrap();
    let simple = proxy.take_log();
    let simple = simple
        .iter()
        .filter(|passed| matches!(passed, super::proxy::Passed::Frontend('Q')));
    assert_eq!(simple.count(), 1, "SET LOCAL");
}

#[test]
fn with_reset_always_what_functions_hide_is_taken_away_too() {
    let db = database();
    db.admin()
        .batch_execute(
            "CREATE FUNCTION hides() RETURNS void LANGUAGE sql AS $$SELECT set_config('app.tenant', 'acme', false)$$;
             CREATE PROCEDURE hides_too() LANGUAGE plpgsql AS $$BEGIN SET app.tenant = 'acme'; END$$",
        )
        .unwrap();
    let pool = db.pool().max_size(1).reset(Reset::Always).build().unwrap();
    let tenant = || -> Option<String> {
        let sql = "SELECT nullif(current_setting('app.tenant', true), '')";
        pool.query(sql, &[]).unwrap()[0].get(0)
    };
    for sql in ["SELECT hides()", "CALL hides_too()"] {
        pool.execute(sql, &[]).unwrap();
        assert_eq!(tenant(), None, "{sql}");
    }
    assert_eq!(counter(&pool, "millpond_connections_closed_total"), 0);
}

#[test]
fn an_on_connect_that_prepares_does_not_cost_the_connection_at_every_loan() {
    let db = database();
    let pool = db
        .pool()
        .max_size(1)
        .on_connect(|client| {
            client.batch_execute("PREPARE mine AS SELECT 7; CREATE TEMP TABLE kept AS SELECT 8")
        })
        .build()
        .unwrap();
    for _ in 0..3 {
        let mut raw = pool.get().unwrap();
        assert_eq!(
            raw.query("EXECUTE mine", &[]).unwrap()[0].get::<_, i32>(0),
            7
        );
        assert_eq!(raw.query("TABLE kept", &[]).unwrap().len(), 1);
    }
    assert_eq!(counter(&pool, "millpond_connections_closed_total"), 0);
}

#[test]
fn a_call_inside_anothers_transaction_waits_once_and_names_both_places() {
    let db = database();
    let wait = 300 * MS;
    let pool = db
        .pool()
        .max_size(1)
        .connection_timeout(wait)
        .build()
        .unwrap();
    pool.query("SELECT 1", &[]).unwrap();
    let mut runs = 0;
    let started = Instant::now();
    let error = pool
        .transaction(|_| {
            runs += 1;
            pool.query("SELECT 1", &[])
        })
        .unwrap_err();
    let took = started.elapsed();
    assert_eq!(runs, 1, "it was not repeated for that");
    assert!(took >= wait && took < 10 * wait, "{took:?}");
    let Error::Checkout(refused) = &error else {
        panic!("{error:?}")
    };
    let held = refused.held_here.as_ref().unwrap();
    assert!(
        held.place.line() < refused.place.line(),
        "the outer and the inner call"
    );
    let said = error.to_string();
    assert!(said.contains("this thread holds one"), "{said}");
    assert_eq!(said.matches("callers.rs").count(), 2, "{said}");
    // If an inner call gave up, the outer call does not retry it.
    db.admin()
        .batch_execute(
            "CREATE FUNCTION raises() RETURNS void LANGUAGE plpgsql AS $$BEGIN RAISE SQLSTATE '40001'; END$$",
        )
        .unwrap();
    let other = db.pool().max_size(1).build().unwrap();
    let mut runs = 0;
    let error = pool
        .transaction(|_| {
            runs += 1;
            let inner = other.with_policy(RetryPolicy::default().initial_delay(MS).max_retries(2));
            inner.execute("SELECT raises()", &[])
        })
        .unwrap_err();
    assert!(
        matches!(error, Error::GaveUp { attempts: 3, .. }),
        "{error:?}"
    );
    assert_eq!(runs, 1);
}

#[test]
fn a_check_out_that_timed_out_in_a_full_pool_is_not_repeated() {
    let db = database();
    let pool = db
        .pool()
        .max_size(1)
        .connection_timeout(200 * MS)
        .build()
        .unwrap();
    let held = pool.get().unwrap();
    thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let started = Instant::now();
            (
                pool.execute("SELECT 1", &[]).unwrap_err(),
                started.elapsed(),
            )
        });
        let (error, took) = waits.join().unwrap();
        assert!(matches!(&error, Error::Checkout(e) if e.reason == CheckoutFailure::Timeout));
        assert!(error.is_retryable() && error.is_timeout());
        assert!(took < 2 * SECOND, "{took:?}");
    });
    assert_eq!(counter(&pool, "db_client_connection_timeouts_total"), 1);
    drop(held);
}

#[test]
fn a_lock_that_was_not_to_be_waited_for_is_said_at_once() {
    let db = database();
    db.admin()
        .batch_execute("CREATE TABLE t (n int); INSERT INTO t VALUES (1)")
        .unwrap();
    let pool = db.pool().build().unwrap();
    let mut locks = db.admin();
    let mut tx = locks.transaction().unwrap();
    tx.execute("SELECT n FROM t FOR UPDATE", &[]).unwrap();
    let error = pool
        .query("SELECT n FROM t FOR UPDATE NOWAIT", &[])
        .unwrap_err();
    assert!(matches!(error, Error::Database { .. }), "{error:?}");
    assert!(error.is_retryable());
    let mut runs = 0;
    let error = pool
        .transaction(|tx| {
            runs += 1;
            tx.batch_execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE NOWAIT")
        })
        .unwrap_err();
    assert_eq!((runs, error.sqlstate().unwrap().code()), (1, "55P03"));
    // A lock that was waited for, but not long enough, is retried.
    runs = 0;
    let error = pool
        .transaction(|tx| {
            runs += 1;
            tx.batch_execute("SET LOCAL lock_timeout = 20")?;
            tx.query("SELECT n FROM t FOR UPDATE", &[])
        })
        .unwrap_err();
    assert_eq!((runs, error.sqlstate().unwrap().code()), (4, "55P03"));
    tx.rollback().unwrap();
}

#[test]
fn a_wrong_password_is_said_when_it_is_known() {
    let db = database();
    let wait = 20 * SECOND;
    for (from, to, code) in [
        ("postgres:", "nobody_here:", "28P01"),
        ("/test_", "/no_such_", "3D000"),
    ] {
        let url = db.url.replacen(from, to, 1);
        let pool = pool(&url).connection_timeout(wait).build().unwrap();
        for _ in 0..2 {
            let started = Instant::now();
            let error = pool.query("SELECT 1", &[]).unwrap_err();
            assert!(started.elapsed() < wait / 2, "{:?}", started.elapsed());
            assert_eq!(
                error.sqlstate().map(postgres::error::SqlState::code),
                Some(code)
            );
            assert!(!error.is_retryable());
            assert!(error.to_string().contains("refuses"), "{error}");
        }
    }
    // If connections are checked out, one of them may be returned, so the call waits for it.
    let pool = db
        .pool()
        .max_size(2)
        .min_idle(0)
        .connection_timeout(wait)
        .build()
        .unwrap();
    let held = pool.get().unwrap();
    let mut admin = db.admin();
    admin
        .batch_execute("ALTER ROLE postgres CONNECTION LIMIT -1")
        .unwrap();
    thread::scope(|scope| {
        let waits = scope.spawn(|| pool.query("SELECT 1", &[]).map(|rows| rows.len()));
        drop(held);
        assert_eq!(waits.join().unwrap().unwrap(), 1);
    });
}

#[test]
fn too_many_parameters_are_a_mistake_that_costs_nothing() {
    let db = database();
    for cache in [256, 0] {
        let pool = db
            .pool()
            .max_size(1)
            .statement_cache(cache)
            .build()
            .unwrap();
        let before = pid(&pool);
        let values: Vec<i32> = (0..65_536).collect();
        let params: Vec<&(dyn ToSql + Sync)> = values.iter().map(|v| v as _).collect();
        let sql = |count: usize| {
            let list: Vec<_> = (1..=count).map(|n| format!("${n}::int")).collect();
            format!("SELECT 1 WHERE 1 IN ({})", list.join(","))
        };
        for error in [
            pool.query(&sql(65_536), &params).map(drop).unwrap_err(),
            pool.execute(&sql(65_536), &params).map(drop).unwrap_err(),
            pool.read(&sql(65_536), &params).map(drop).unwrap_err(),
            pool.transaction(|tx| tx.query(&sql(65_536), &params))
                .map(drop)
                .unwrap_err(),
        ] {
            assert!(
                matches!(error, Error::Misuse(what) if what.contains("65535")),
                "{error:?}"
            );
        }
        assert_eq!(pid(&pool), before);
        let most = pool.query(&sql(65_535), &params[..65_535]).unwrap();
        assert_eq!(most.len(), 1);
    }
}

#[test]
fn a_write_to_large_objects_is_not_repeated_by_read() {
    let db = database();
    let proxy = Proxy::in_front_of(db.port);
    let pool = pool(&proxy.url(&db.url)).max_size(1).build().unwrap();
    pool.query("SELECT 1", &[]).unwrap();
    // The CommandComplete in the answer to the execution.
    proxy.on_answer(b"SELECT 1\0", super::proxy::Act::Lose);
    let error = pool.read("SELECT lo_create(0)", &[]).unwrap_err();
    assert!(error.is_outcome_unknown(), "{error:?}");
    let made = "SELECT count(*) FROM pg_largeobject_metadata";
    assert!(pool.query(made, &[]).unwrap()[0].get::<_, i64>(0) <= 1);
}

#[test]
fn an_on_connect_that_leaves_a_transaction_open_or_takes_too_long_is_named() {
    let db = database();
    db.admin().batch_execute("CREATE TABLE t (n int)").unwrap();
    let begins = db
        .pool()
        .on_connect(|client| client.batch_execute("BEGIN; SELECT 1"))
        .connection_timeout(3 * SECOND)
        .build()
        .unwrap();
    let error = begins.execute("INSERT INTO t VALUES (1)", &[]).unwrap_err();
    let said = millpond::error::Chain(&error).to_string();
    assert!(
        said.contains("on_connect left a transaction open"),
        "{said}"
    );
    let slow = db
        .pool()
        .connect_timeout(300 * MS)
        .on_connect(|client| {
            // The result does not matter.
            let _ = client.batch_execute("SELECT pg_sleep(5)");
            Ok(())
        })
        .build()
        .unwrap();
    let known = Instant::now() + 5 * SECOND;
    let error = slow.with_deadline(known).query("SELECT 1", &[]).map(drop);
    drop(error);
    eventually("the cause is said", || {
        let error = slow
            .with_policy(RetryPolicy::none())
            .query("SELECT 1", &[])
            .unwrap_err();
        millpond::error::Chain(&error)
            .to_string()
            .contains("on_connect did not end within 300ms")
    });
    assert_eq!(slow.stats().idle, 0);
}

#[test]
fn a_second_close_waits_for_the_first_and_counts_nothing_twice() {
    let db = database();
    let pool = db.pool().max_size(2).build().unwrap();
    let (started, is_running) = mpsc::channel();
    thread::scope(|scope| {
        let work = scope.spawn(|| {
            pool.transaction(|tx| {
                started.send(()).unwrap();
                tx.query("SELECT pg_sleep(0.7)", &[])
            })
            .map(drop)
        });
        is_running.recv().unwrap();
        let first = scope.spawn(|| pool.close(20 * SECOND));
        eventually("it closes", || pool.is_closed());
        let second = pool.close(10 * MS);
        assert_eq!(
            second,
            millpond::pool::Report::default(),
            "not the first's, in so short a time"
        );
        assert!(work.join().unwrap().is_ok(), "the first waits for it");
        let first = first.join().unwrap();
        assert_eq!((first.cancelled, first.aborted), (0, 0));
        assert_eq!(pool.close(SECOND), first);
    });
}

#[test]
fn an_idle_connection_that_the_server_ended_is_replaced_without_a_call() {
    #[derive(Default)]
    struct Opened(AtomicUsize, AtomicUsize);
    impl Observer for Opened {
        fn opened(&self, _: u64, _: Duration) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
        fn closed(&self, _: u64, reason: CloseReason, _: Duration, _: u64) {
            if reason == CloseReason::Broken {
                self.1.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
    let db = database();
    let seen = Arc::new(Opened::default());
    let pool = db
        .pool()
        .max_size(10)
        .min_idle(4)
        .application_name("replaced")
        .observer(seen.clone())
        .build()
        .unwrap();
    eventually("the minimum is there", || pool.stats().idle == 4);
    let mut admin = db.admin();
    for pid in backends(&mut admin, "replaced") {
        let ended = admin.query_one("SELECT pg_terminate_backend($1, 5000)", &[&pid]);
        assert!(ended.unwrap().get::<_, bool>(0));
    }
    eventually("all four are missed", || seen.1.load(Ordering::SeqCst) == 4);
    eventually("and replaced", || pool.stats().idle == 4);
    // The minimum, plus at most one in place of a connection that was checked out.
    let opened = seen.0.load(Ordering::SeqCst);
    assert!((8..=9).contains(&opened), "{opened}");
    // After a raw borrower has met a dead connection, the others are probed before they are handed
    // out.
    eventually("a raw borrower meets a dead one", || {
        let all = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'replaced'";
        admin.query(all, &[]).unwrap();
        let mut raw = pool.get().unwrap();
        let met = raw.batch_execute("SELECT 1").is_err();
        drop(raw);
        for _ in 0..4 {
            let next = pool.get().unwrap().batch_execute("SELECT 1");
            assert!(next.is_ok() || !met, "{next:?}");
        }
        met
    });
}

#[test]
fn a_borrower_without_time_leaves_the_cleaning_to_others() {
    let db = database();
    let pool = db.pool().max_size(2).build().unwrap();
    let over = Instant::now() + SECOND;
    let mut got: u64 = 0;
    while Instant::now() < over {
        if let Ok(mut raw) = pool.get_timeout(Duration::ZERO) {
            raw.batch_execute("SET work_mem = '1MB'").unwrap();
            got += 1;
        }
    }
    assert!(got > 10);
    // On a busy machine, some cleanings may take too long.
    let closed = counter(&pool, "millpond_connections_closed_total");
    assert!(closed * 20 <= got, "{closed} of {got}");
}

#[test]
fn times_and_numbers_without_measure_are_settings_errors_or_work() {
    let db = database();
    let huge = db
        .pool()
        .max_waiting(usize::MAX)
        .connection_timeout(Duration::MAX)
        .idle_timeout(Duration::MAX)
        .max_lifetime(Duration::MAX)
        .max_uses(u64::MAX)
        .statement_timeout(Duration::MAX)
        .query_timeout(Duration::MAX)
        .fail_fast_after(Duration::MAX)
        .slow_query(Duration::MAX)
        .leak_threshold(Duration::MAX)
        .ledger_ttl(Duration::MAX)
        .statement_cache(100_000)
        .retry_policy(
            RetryPolicy::default()
                .max_retries(u32::MAX)
                .initial_delay(Duration::ZERO)
                .max_delay(Duration::MAX)
                .multiplier(f64::INFINITY),
        )
        .build()
        .unwrap();
    huge.query("SELECT 1", &[]).unwrap();
    huge.with_timeout(Duration::MAX)
        .with_key_wait(Duration::MAX)
        .query("SELECT 1", &[])
        .unwrap();
    let longest = RetryPolicy::default()
        .initial_delay(Duration::MAX)
        .max_delay(Duration::MAX)
        .multiplier(f64::NAN);
    assert!(longest.pause(u32::MAX, 1.0) <= Duration::MAX);
    let call = huge
        .with_policy(longest)
        .with_deadline(Instant::now() + SECOND);
    let error = call.query("SELECT 1 FROM no_such_table", &[]).unwrap_err();
    assert_eq!(error.sqlstate().unwrap().code(), "42P01");
    let tiny = Duration::from_nanos(1);
    db.pool()
        .idle_timeout(tiny)
        .max_lifetime(tiny)
        .leak_threshold(tiny)
        .build()
        .unwrap()
        .query("SELECT 1", &[])
        .unwrap();
    let error = db.pool().statement_cache(usize::MAX).build().unwrap_err();
    assert!(error.to_string().contains("statement_cache"), "{error}");
}

#[test]
fn a_transaction_that_is_to_read_only_cannot_be_made_to_write() {
    let db = database();
    db.admin().batch_execute("CREATE TABLE t (n int)").unwrap();
    let pool = db.pool().build().unwrap();
    for sql in [
        "SET TRANSACTION READ WRITE; INSERT INTO t VALUES (1)",
        "SELECT set_config('transaction_read_only', 'off', true); INSERT INTO t VALUES (1)",
    ] {
        let made = pool
            .call()
            .read_only()
            .transaction(|tx| tx.batch_execute(sql));
        assert_eq!(
            made.unwrap_err().sqlstate().unwrap().code(),
            "25001",
            "{sql}"
        );
    }
    assert!(pool.query("SELECT n FROM t", &[]).unwrap().is_empty());
    let ended = pool
        .call()
        .read_only()
        .transaction(|tx| tx.batch_execute("SELECT 1; COMMIT; INSERT INTO t VALUES (1); BEGIN"));
    assert!(matches!(ended, Err(Error::Misuse(_))), "{ended:?}");
}

#[test]
fn a_panic_behind_a_savepoint_is_no_half_of_a_transaction() {
    let db = database();
    db.admin().batch_execute("CREATE TABLE t (n int)").unwrap();
    let pool = db.pool().build().unwrap();
    let half = pool.transaction(|tx| {
        let inner = || {
            tx.savepoint(|tx| -> millpond::Result<()> {
                tx.execute("INSERT INTO t VALUES (1)", &[])?;
                panic!("a closure of the test panics, as it should")
            })
        };
        assert!(panicked(inner));
        Ok(())
    });
    assert!(
        matches!(half, Err(Error::TransactionAborted { .. })),
        "{half:?}"
    );
    assert!(pool.query("SELECT n FROM t", &[]).unwrap().is_empty());
}

#[test]
fn a_pool_that_ends_with_its_thread_is_closed() {
    thread_local!(static POOL: std::cell::RefCell<Option<Pool>> = const { std::cell::RefCell::new(None) });
    let db = database();
    thread::scope(|scope| {
        let uses = || {
            let pool = db.pool().application_name("thread_local").build().unwrap();
            pool.query("SELECT 1", &[]).unwrap();
            POOL.with(|place| place.replace(Some(pool)));
        };
        scope.spawn(uses).join().unwrap();
    });
    no_backend_is_left(&db, "thread_local");
}

#[test]
fn one_panic_in_on_connect_does_not_cost_the_caller_its_call() {
    let db = database();
    let opened = Arc::new(AtomicUsize::new(0));
    let counted = opened.clone();
    let pool = db
        .pool()
        .max_size(1)
        .min_idle(0)
        .connection_timeout(20 * SECOND)
        .on_connect(move |_| {
            assert!(
                counted.fetch_add(1, Ordering::SeqCst) != 0,
                "an on_connect of the test panics, as it should"
            );
            Ok(())
        })
        .build()
        .unwrap();
    let started = Instant::now();
    pool.query("SELECT 1", &[]).unwrap();
    assert!(started.elapsed() < 2 * SECOND, "{:?}", started.elapsed());
}

#[test]
fn a_statement_that_fails_inside_a_function_runs_once() {
    let db = database();
    db.admin()
        .batch_execute(
            "CREATE SEQUENCE runs; CREATE FUNCTION fails(how text) RETURNS void LANGUAGE plpgsql AS \
             $$BEGIN PERFORM nextval('runs'); IF how <> '' THEN RAISE SQLSTATE '42P01'; END IF; END$$",
        )
        .unwrap();
    let pool = db.pool().max_size(1).build().unwrap();
    let sql = "SELECT fails($1)";
    pool.query(sql, &[&""]).unwrap();
    for _ in 0..20 {
        pool.query(sql, &[&"x"]).unwrap_err();
    }
    // The first error is retried once, because a changed table could have caused it.
    let runs = pool.query("SELECT last_value FROM runs", &[]).unwrap();
    assert_eq!(runs[0].get::<_, i64>(0), 22);
}
