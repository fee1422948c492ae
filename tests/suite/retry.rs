//! Retries: what is retried, how often, and what never is.

use super::proxy::{Act, Proxy};
use super::support::{MS, SECOND, counter, database, eventually, pid};
use millpond::error::GaveUpReason;
use millpond::{Error, Pool, RetryPolicy, Transaction};
use std::cell::Cell;
use std::io::Write;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// The message that begins every answer to a prepared statement.
const BIND_COMPLETE: &[u8] = b"2\0\0\0\x04";

fn fails_with(code: &str) -> String {
    format!("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{code}'; END $$")
}

fn count(pool: &Pool, table: &str) -> i64 {
    pool.query(&format!("SELECT count(*) FROM {table}"), &[])
        .unwrap()[0]
        .get(0)
}

// The basic cases: success, an error that is retried, one that is not, and the most retries.

#[test]
fn a_first_attempt_that_succeeds_is_the_only_one() {
    let pool = database().pool().build().unwrap();
    let attempts = Cell::new(0);
    let value = pool.transaction(|tx| -> millpond::Result<_> {
        attempts.set(attempts.get() + 1);
        Ok(tx.query_one("SELECT 7", &[])?.get::<_, i32>(0))
    });
    assert_eq!((value.unwrap(), attempts.get()), (7, 1));
    assert_eq!(counter(&pool, "millpond_retries_total"), 0);
}

#[test]
fn a_transaction_is_repeated_on_08000() {
    let pool = database().pool().build().unwrap();
    let attempts = Cell::new(0);
    let value = pool.transaction(|tx| -> millpond::Result<_> {
        attempts.set(attempts.get() + 1);
        if attempts.get() == 1 {
            tx.batch_execute(&fails_with("08000"))?;
        }
        Ok(attempts.get())
    });
    assert_eq!(value.unwrap(), 2);
    assert!(
        pool.metrics_text()
            .contains(r#"millpond_retries_total{sqlstate="08000",verdict="rolled_back"} 1"#)
    );
}

#[test]
fn a_syntax_error_is_not_repeated() {
    let pool = database().pool().build().unwrap();
    let error = pool.query("SELEC 1", &[]).unwrap_err();
    assert_eq!(
        error.sqlstate().map(postgres::error::SqlState::code),
        Some("42601")
    );
    assert!(
        !error.is_retryable() && matches!(error, Error::Database { .. }),
        "{error:?}"
    );
    assert_eq!(counter(&pool, "millpond_retries_total"), 0);
}

#[test]
fn the_most_retries_are_respected() {
    let pool = database().pool().build().unwrap();
    for retries in [0, 1, 4] {
        let attempts = Cell::new(0);
        let policy = RetryPolicy::default()
            .max_retries(retries)
            .initial_delay(MS);
        let error = pool
            .with_policy(policy)
            .transaction(|tx| {
                attempts.set(attempts.get() + 1);
                tx.batch_execute(&fails_with("40001"))
            })
            .unwrap_err();
        assert_eq!(attempts.get(), 1 + retries);
        assert_eq!(
            error.sqlstate().map(postgres::error::SqlState::code),
            Some("40001")
        );
        match error {
            Error::GaveUp {
                attempts,
                reason: GaveUpReason::MaxRetries,
                ..
            } => assert_eq!(attempts, 1 + retries),
            Error::Database { .. } if retries == 0 => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_retry_never_outlives_the_deadline() {
    let pool = database().pool().build().unwrap();
    let policy = RetryPolicy::default()
        .max_retries(1000)
        .initial_delay(50 * MS)
        .max_delay(50 * MS);
    let deadline = Instant::now() + 400 * MS;
    let error = pool
        .with_policy(policy)
        .with_deadline(deadline)
        .transaction(|tx| tx.batch_execute(&fails_with("40001")))
        .unwrap_err();
    assert!(Instant::now() < deadline + 5 * SECOND);
    // The deadline may also pass during an attempt.
    let gave_up = matches!(
        error,
        Error::GaveUp {
            reason: GaveUpReason::Deadline,
            ..
        }
    );
    assert!(gave_up || error.is_timeout(), "{error:?}");
}

#[test]
fn an_empty_budget_ends_retries_and_says_so() {
    let pool = database().pool().max_size(1).build().unwrap();
    let policy = RetryPolicy::default()
        .max_retries(1000)
        .initial_delay(Duration::ZERO);
    let error = pool
        .with_policy(policy)
        .transaction(|tx| tx.batch_execute(&fails_with("40P01")))
        .unwrap_err();
    // The first attempt, a free retry, and then 200 from the budget.
    match error {
        Error::GaveUp {
            attempts,
            reason: GaveUpReason::Budget,
            ..
        } => assert_eq!(attempts, 202),
        other => panic!("{other:?}"),
    }
    assert_eq!(counter(&pool, "millpond_retry_budget_empty_total"), 1);
}

#[test]
fn two_transactions_that_deadlock_both_succeed() {
    let db = database();
    db.admin()
        .batch_execute(
            "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 0), (2, 0)",
        )
        .unwrap();
    let pool = db.pool().build().unwrap();
    let met = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        for (first, second) in [(1, 2), (2, 1)] {
            let (pool, met) = (&pool, &met);
            scope.spawn(move || {
                let mut meet = true;
                pool.transaction(|tx| {
                    tx.execute("UPDATE t SET n = n + 1 WHERE id = $1", &[&first])?;
                    if std::mem::take(&mut meet) {
                        met.wait();
                    }
                    tx.execute("UPDATE t SET n = n + 1 WHERE id = $1", &[&second])
                })
                .unwrap();
            });
        }
    });
    let rows = pool.query("SELECT n FROM t", &[]).unwrap();
    assert!(rows.iter().all(|row| row.get::<_, i32>(0) == 2));
    assert!(
        pool.metrics_text()
            .contains(r#"millpond_retries_total{sqlstate="40P01",verdict="rolled_back"} 1"#)
    );
}

#[test]
fn a_lone_write_whose_answer_was_lost_is_not_repeated() {
    let db = database();
    let proxy = Proxy::in_front_of(db.port);
    db.admin().batch_execute("CREATE TABLE t (n int)").unwrap();
    let pool = super::support::pool(&proxy.url(&db.url))
        .max_size(1)
        .build()
        .unwrap();
    pool.execute("INSERT INTO t VALUES (0)", &[]).unwrap();
    proxy.on_answer(BIND_COMPLETE, Act::Lose);
    let error = pool.execute("INSERT INTO t VALUES (0)", &[]).unwrap_err();
    assert!(error.is_outcome_unknown(), "{error:?}");
    // In this case the write was done. It must never be done twice.
    eventually("the lost insert is there", || count(&pool, "t") == 2);
}

#[test]
fn a_read_whose_answer_was_lost_is_repeated() {
    let db = database();
    let proxy = Proxy::in_front_of(db.port);
    let pool = super::support::pool(&proxy.url(&db.url))
        .max_size(1)
        .build()
        .unwrap();
    pool.read("SELECT 1", &[]).unwrap();
    proxy.on_answer(BIND_COMPLETE, Act::Lose);
    assert_eq!(pool.read("SELECT 1", &[]).unwrap()[0].get::<_, i32>(0), 1);
    assert_eq!(counter(&pool, "millpond_retries_total"), 1);
}

#[test]
fn a_write_passed_to_read_by_mistake_is_never_done_twice() {
    let db = database();
    let proxy = Proxy::in_front_of(db.port);
    db.admin().batch_execute("CREATE TABLE t (n int)").unwrap();
    let pool = super::support::pool(&proxy.url(&db.url))
        .max_size(1)
        .build()
        .unwrap();
    let sql = "INSERT INTO t VALUES (0) RETURNING n";
    pool.read(sql, &[]).unwrap();
    proxy.on_answer(BIND_COMPLETE, Act::Lose);
    let error = pool.read(sql, &[]).unwrap_err();
    assert!(error.is_outcome_unknown(), "{error:?}");
    assert_eq!(count(&pool, "t"), 2);
}

#[test]
fn a_connection_lost_inside_a_transaction_repeats_the_whole_of_it() {
    let db = database();
    db.admin().batch_execute("CREATE TABLE t (n int)").unwrap();
    let pool = db.pool().max_size(2).build().unwrap();
    let attempts = Cell::new(0);
    pool.transaction(|tx| {
        attempts.set(attempts.get() + 1);
        tx.execute("INSERT INTO t VALUES (0)", &[])?;
        if attempts.get() == 1 {
            let pid: i32 = tx.query_one("SELECT pg_backend_pid()", &[])?.get(0);
            db.admin()
                .execute("SELECT pg_terminate_backend($1, 5000)", &[&pid])
                .unwrap();
        }
        tx.execute("INSERT INTO t VALUES (1)", &[])
    })
    .unwrap();
    assert_eq!((attempts.get(), count(&pool, "t")), (2, 2));
}

#[test]
fn a_backend_that_is_terminated_while_idle_is_noticed_before_it_matters() {
    let db = database();
    let pool = db
        .pool()
        .max_size(4)
        .min_idle(4)
        .application_name("victim")
        .build()
        .unwrap();
    let mut admin = db.admin();
    eventually("all are open", || pool.stats().idle == 4);
    for pid in super::support::backends(&mut admin, "victim") {
        admin
            .execute("SELECT pg_terminate_backend($1, 5000)", &[&pid])
            .unwrap();
    }
    std::thread::sleep(600 * MS);
    // The connections were idle for longer than they are trusted without a probe: each is probed
    // before it is used, so that even a write succeeds.
    db.admin().batch_execute("CREATE TABLE t (n int)").unwrap();
    for _ in 0..8 {
        pool.execute("INSERT INTO t VALUES (0)", &[]).unwrap();
    }
    assert_eq!(count(&pool, "t"), 8);
}

#[test]
fn statements_that_commit_inside_are_never_repeated_once_sent() {
    let pool = database().pool().build().unwrap();
    let error = pool.execute(&fails_with("40001"), &[]).unwrap_err();
    assert!(
        matches!(error, Error::Database { .. }) && !error.is_retryable(),
        "{error:?}"
    );
    assert_eq!(counter(&pool, "millpond_retries_total"), 0);
}

#[test]
fn an_error_swallowed_by_the_closure_still_fails_the_transaction() {
    let db = database();
    db.admin().batch_execute("CREATE TABLE t (n int)").unwrap();
    let pool = db.pool().build().unwrap();
    let error = pool
        .transaction(|tx| {
            tx.execute("INSERT INTO t VALUES (1)", &[])?;
            let _ = tx.query("SELECT 1/0", &[]);
            Ok(())
        })
        .unwrap_err();
    assert!(
        matches!(error, Error::TransactionAborted { .. }),
        "{error:?}"
    );
    assert_eq!(
        error.sqlstate().map(postgres::error::SqlState::code),
        Some("22012")
    );
    assert_eq!(count(&pool, "t"), 0);
}

#[test]
fn a_failure_in_rows_that_nobody_read_or_in_a_copy_fails_the_transaction() {
    let db = database();
    db.admin().batch_execute("CREATE TABLE t (n int)").unwrap();
    let pool = db.pool().build().unwrap();
    type Work = fn(&mut Transaction<'_>);
    let works: [Work; 5] = [
        // The error comes in a row after the one at which the closure stops: among the rows that
        // were under way, or, for a write, among all rows.
        |tx| {
            let sql = "SELECT 1 / (3 - i) FROM generate_series(1, 10) AS i";
            let enough = tx.query_each(sql, &[], |_| Ok(ControlFlow::Break(())));
            assert_eq!(enough.unwrap_err().sqlstate().unwrap().code(), "22012");
        },
        |tx| {
            let sql = "WITH t AS (INSERT INTO t SELECT i FROM generate_series(1, 10) AS i RETURNING n) \
                       SELECT 1 / (3 - n) FROM t";
            let _ = tx.query_each(sql, &[], |_| Ok(ControlFlow::Break(())));
        },
        |tx| {
            let sql = "SELECT 1 / (3 - i) FROM generate_series(1, 10) AS i";
            let _ = tx.query_each(sql, &[], |_| Ok(ControlFlow::Continue(())));
        },
        // A copy that its closure gives up half-way, and one with data that are no number.
        |tx| {
            let given_up = tx.copy_in("COPY t FROM STDIN", |out| {
                out.write_all(b"7\n").unwrap();
                Err(Error::application("no more"))
            });
            assert!(matches!(given_up, Err(Error::Application(_))));
        },
        |tx| {
            let fed = tx.copy_in("COPY t FROM STDIN", |out| {
                out.write_all(b"7\nx\n").map_err(Error::application)
            });
            assert_eq!(fed.unwrap_err().sqlstate().unwrap().code(), "22P02");
        },
    ];
    for (nth, work) in works.iter().enumerate() {
        let result = pool.transaction(|tx| -> millpond::Result<_> {
            tx.execute("INSERT INTO t VALUES (1)", &[])?;
            work(tx);
            Ok(())
        });
        let error = result.expect_err("nothing was committed");
        assert!(!error.is_outcome_unknown(), "{nth}: {error:?}");
        assert_eq!(count(&pool, "t"), 0, "{nth}");
    }
}

#[test]
fn rows_and_copies_pass_one_by_one() {
    let db = database();
    db.admin().batch_execute("CREATE TABLE t (n int)").unwrap();
    for cache in [256, 0] {
        let pool = db.pool().statement_cache(cache).build().unwrap();
        let lines = |out: &mut dyn Write| -> std::io::Result<()> {
            (0..100_000).try_for_each(|n| writeln!(out, "{n}"))
        };
        let sum = pool
            .transaction(|tx| {
                tx.execute("TRUNCATE t", &[])?;
                let copied = tx.copy_in("COPY t FROM STDIN", |out| {
                    lines(out).map_err(Error::application)
                })?;
                assert_eq!(copied, 100_000);
                let mut sum = 0;
                tx.query_each("SELECT n FROM t WHERE n >= $1", &[&10i32], |row| {
                    sum += i64::from(row.try_get::<_, i32>(0)?);
                    Ok(ControlFlow::Continue(()))
                })?;
                // If the closure stops early, the session stays usable.
                let mut seen = 0;
                tx.query_each("SELECT n FROM t", &[], |_| {
                    seen += 1;
                    Ok(ControlFlow::Break(()))
                })?;
                assert_eq!(seen, 1);
                // The closure's own error is returned unchanged, and does not fail the transaction.
                let refused = tx.query_each("SELECT n FROM t", &[], |_| -> millpond::Result<_> {
                    Err(Error::application("enough"))
                });
                assert!(matches!(refused, Err(Error::Application(_))));
                Ok::<_, millpond::Error>(sum)
            })
            .unwrap();
        assert_eq!(sum, (10..100_000).sum::<i64>());
        assert_eq!(count(&pool, "t"), 100_000);
    }
}

#[test]
fn a_copy_that_loses_its_connection_is_repeated_with_its_transaction() {
    let db = database();
    db.admin().batch_execute("CREATE TABLE t (n int)").unwrap();
    let pool = db.pool().build().unwrap();
    let mut attempts = 0;
    let copied = pool
        .transaction(|tx| {
            attempts += 1;
            let pid: i32 = tx.query_one("SELECT pg_backend_pid()", &[])?.get(0);
            tx.copy_in("COPY t FROM STDIN", |out| {
                if attempts == 1 {
                    let end = "SELECT pg_terminate_backend($1, 5000)";
                    db.admin().execute(end, &[&pid]).unwrap();
                }
                // The closure sees an error of writing; the transaction knows that the connection
                // was lost.
                let feed = (0..100_000).try_for_each(|n| writeln!(out, "{n}"));
                feed.map_err(Error::application)
            })
        })
        .unwrap();
    assert_eq!((attempts, copied, count(&pool, "t")), (2, 100_000, 100_000));
}

#[test]
fn a_savepoint_undoes_its_own_part_only() {
    let db = database();
    db.admin().batch_execute("CREATE TABLE t (n int)").unwrap();
    let pool = db.pool().build().unwrap();
    pool.transaction(|tx| {
        tx.execute("INSERT INTO t VALUES (1)", &[])?;
        let inner = tx.savepoint(|tx| {
            tx.execute("INSERT INTO t VALUES (2)", &[])?;
            tx.savepoint(|tx| tx.execute("INSERT INTO t VALUES (3)", &[]))?;
            tx.query("SELECT 1/0", &[])
        });
        assert_eq!(
            inner
                .unwrap_err()
                .sqlstate()
                .map(postgres::error::SqlState::code),
            Some("22012")
        );
        tx.savepoint(|tx| tx.execute("INSERT INTO t VALUES (4)", &[]))
    })
    .unwrap();
    let rows = pool.query("SELECT n FROM t ORDER BY n", &[]).unwrap();
    assert_eq!(
        rows.iter().map(|r| r.get::<_, i32>(0)).collect::<Vec<_>>(),
        [1, 4]
    );
}

#[test]
fn a_closure_cannot_end_its_transaction_by_itself() {
    let db = database();
    db.admin().batch_execute("CREATE TABLE t (n int)").unwrap();
    let pool = db.pool().build().unwrap();
    for sql in ["COMMIT", "/* so */ rollback", "BEGIN"] {
        let error = pool
            .transaction(|tx| {
                tx.execute("INSERT INTO t VALUES (1)", &[])?;
                tx.batch_execute(sql)
            })
            .unwrap_err();
        assert!(matches!(error, Error::Misuse(_)), "{error:?}");
    }
    assert_eq!(count(&pool, "t"), 0);
}

#[test]
fn a_closure_that_ends_its_transaction_behind_our_back_is_found_out_and_not_repeated() {
    let db = database();
    db.admin().batch_execute("CREATE TABLE t (n int)").unwrap();
    let pool = db.pool().build().unwrap();
    for then in ["SELECT 1", &fails_with("40001")] {
        let attempts = Cell::new(0);
        let error = pool
            .transaction(|tx| {
                attempts.set(attempts.get() + 1);
                tx.batch_execute("INSERT INTO t VALUES (1); COMMIT; BEGIN")?;
                tx.batch_execute(then)
            })
            .unwrap_err();
        assert!(matches!(error, Error::Misuse(_)), "{error:?}");
        assert_eq!(attempts.get(), 1);
    }
    assert_eq!(count(&pool, "t"), 2);
}

#[test]
fn a_lone_begin_is_refused_and_a_lone_set_does_not_stay() {
    let db = database();
    let pool = db.pool().max_size(1).build().unwrap();
    for sql in ["BEGIN", "start transaction", "COMMIT", " rollback"] {
        assert!(
            matches!(pool.execute(sql, &[]), Err(Error::Misuse(_))),
            "{sql}"
        );
        assert!(
            matches!(pool.read(sql, &[]), Err(Error::Misuse(_))),
            "{sql}"
        );
    }
    pool.execute("SET TIME ZONE 'Asia/Tokyo'", &[]).unwrap();
    pool.transaction(|tx| tx.execute("SET work_mem = '77MB'", &[]))
        .unwrap();
    let show =
        |name: &str| pool.query(&format!("SHOW {name}"), &[]).unwrap()[0].get::<_, String>(0);
    assert_ne!(show("TimeZone"), "Asia/Tokyo");
    assert_ne!(show("work_mem"), "77MB");
}

#[test]
fn a_procedure_that_committed_a_part_is_not_repeated_whatever_it_raises() {
    let db = database();
    db.admin()
        .batch_execute(
            "CREATE TABLE t (n int); CREATE PROCEDURE p(code text) LANGUAGE plpgsql AS $$ BEGIN \
             INSERT INTO t VALUES (1); COMMIT; RAISE EXCEPTION USING ERRCODE = code; END $$",
        )
        .unwrap();
    let pool = db.pool().build().unwrap();
    for code in ["26000", "40001", "55P03"] {
        pool.execute(&format!("CALL p('{code}')"), &[]).unwrap_err();
    }
    assert_eq!(count(&pool, "t"), 3);
}

#[test]
fn a_read_only_call_does_not_write() {
    let db = database();
    db.admin().batch_execute("CREATE TABLE t (n int)").unwrap();
    let pool = db.pool().build().unwrap();
    let error = pool
        .call()
        .read_only()
        .execute("INSERT INTO t VALUES (1)", &[])
        .unwrap_err();
    assert_eq!(
        error.sqlstate().map(postgres::error::SqlState::code),
        Some("25006")
    );
    let error = pool
        .with_timeout(60 * SECOND)
        .read("INSERT INTO t VALUES (1)", &[])
        .unwrap_err();
    assert_eq!(
        error.sqlstate().map(postgres::error::SqlState::code),
        Some("25006")
    );
    assert_eq!(count(&pool, "t"), 0);
}

#[test]
fn the_applications_own_error_rolls_back_and_comes_out_as_it_was() {
    #[derive(Debug, PartialEq)]
    struct Empty(u8);
    impl std::fmt::Display for Empty {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("the till is empty")
        }
    }
    impl std::error::Error for Empty {}
    let db = database();
    db.admin().batch_execute("CREATE TABLE t (n int)").unwrap();
    let pool = db.pool().build().unwrap();
    let error = pool
        .transaction(|tx| -> millpond::Result<()> {
            tx.execute("INSERT INTO t VALUES (1)", &[])?;
            Err(Error::application(Empty(3)))
        })
        .unwrap_err();
    assert_eq!(error.downcast::<Empty>().unwrap(), Empty(3));
    assert_eq!(count(&pool, "t"), 0);
}

#[test]
fn what_is_left_of_a_calls_time_is_the_servers_timeout_of_its_transaction() {
    let pool = database().pool().build().unwrap();
    pool.read("SELECT 1", &[]).unwrap();
    let by = Instant::now() + 10 * SECOND;
    let call = pool.call().with_timeout(10 * SECOND).with_deadline(by);
    let mut seen = Vec::new();
    let mut idle = String::new();
    let ended = call.transaction(|tx| {
        // The server ends a transaction that stands idle, slightly later than the call's own
        // deadline.
        idle = tx
            .query_one("SHOW idle_in_transaction_session_timeout", &[])?
            .get(0);
        let in_ms = "SELECT setting::int8 FROM pg_settings WHERE name = 'statement_timeout'";
        seen.push(tx.query_one(in_ms, &[])?.get::<_, i64>(0));
        std::thread::sleep(300 * MS);
        match seen.len() {
            1 => tx.execute("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$", &[]),
            _ => Ok(0),
        }
    });
    ended.unwrap();
    // The second attempt has the time that the first has left.
    assert!(seen[0] <= 10_000 && seen[1] <= seen[0] - 300, "{seen:?}");
    assert!(seen[1] > 1000, "{seen:?}");
    assert!(idle.ends_with("ms") && idle.starts_with("10"), "{idle}");
    for (setting, as_before) in [
        ("statement_timeout", "5s"),
        ("idle_in_transaction_session_timeout", "0"),
    ] {
        let after = pool.query(&format!("SHOW {setting}"), &[]).unwrap();
        assert_eq!(after[0].get::<_, &str>(0), as_before, "{setting}");
    }
}

#[test]
fn the_servers_statement_timeout_is_named_with_the_statement() {
    let pool = database()
        .pool()
        .max_size(1)
        .statement_timeout(100 * MS)
        .build()
        .unwrap();
    let before = pid(&pool);
    let error = pool
        .query("SELECT pg_sleep(60) /* in vain */", &[])
        .unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
    assert_eq!(
        error.to_string(),
        "query timeout after 100 ms: SELECT pg_sleep(?)"
    );
    assert_eq!(pid(&pool), before, "the connection is kept");
}

#[test]
fn a_timeout_of_one_call_may_be_shorter_or_longer_or_off() {
    let pool = database()
        .pool()
        .max_size(1)
        .statement_timeout(300 * MS)
        .query_timeout(300 * MS)
        .build()
        .unwrap();
    let started = Instant::now();
    let error = pool
        .with_timeout(100 * MS)
        .query("SELECT pg_sleep(60)", &[])
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("query timeout after 100 ms: SELECT pg_sleep"),
        "{error}"
    );
    assert!(started.elapsed() < 10 * SECOND);
    pool.with_timeout(20 * SECOND)
        .query("SELECT pg_sleep(0.7)", &[])
        .unwrap();
    pool.with_timeout(Duration::ZERO)
        .read("SELECT pg_sleep(0.7)", &[])
        .unwrap();
    pool.with_timeout(20 * SECOND)
        .transaction(|tx| tx.query("SELECT pg_sleep(0.7)", &[]))
        .unwrap();
    // The timeout does not remain on the session.
    assert!(
        pool.query("SELECT pg_sleep(60)", &[])
            .unwrap_err()
            .is_timeout()
    );
    assert_eq!(
        pool.query("SHOW statement_timeout", &[]).unwrap()[0].get::<_, String>(0),
        "300ms"
    );
}

#[test]
fn our_own_deadline_holds_where_the_server_has_none() {
    let pool = database()
        .pool()
        .statement_timeout(Duration::ZERO)
        .query_timeout(150 * MS)
        .build()
        .unwrap();
    let started = Instant::now();
    let error = pool.query("SELECT pg_sleep(60)", &[]).unwrap_err();
    assert!(
        error.to_string().starts_with("query timeout after 150 ms"),
        "{error}"
    );
    assert!(started.elapsed() < 10 * SECOND);
    // A cancel may arrive late. A connection to which one was sent is not used again, so no other
    // statement is hit.
    for n in 0..50i32 {
        assert_eq!(
            pool.query("SELECT $1::int", &[&n]).unwrap()[0].get::<_, i32>(0),
            n
        );
    }
}

#[test]
fn isolation_and_read_only_are_as_asked() {
    let db = database();
    db.admin().batch_execute("CREATE TABLE t (n int)").unwrap();
    let pool = db.pool().build().unwrap();
    let call = pool
        .call()
        .isolation_level(millpond::postgres::IsolationLevel::Serializable)
        .read_only();
    let level = call.transaction(|tx| -> millpond::Result<_> {
        Ok(tx
            .query_one("SHOW transaction_isolation", &[])?
            .get::<_, String>(0))
    });
    assert_eq!(level.unwrap(), "serializable");
    let error = call
        .transaction(|tx| tx.execute("INSERT INTO t VALUES (1)", &[]))
        .unwrap_err();
    assert_eq!(
        error.sqlstate().map(postgres::error::SqlState::code),
        Some("25006")
    );
}

#[test]
fn no_parameter_value_is_in_an_error() {
    let db = database();
    db.admin()
        .batch_execute("CREATE TABLE t (secret text UNIQUE)")
        .unwrap();
    let pool = db.pool().build().unwrap();
    let insert = || pool.execute("INSERT INTO t VALUES ($1)", &[&"s3cret"]);
    insert().unwrap();
    let error = insert().unwrap_err();
    assert_eq!(
        error.sqlstate().map(postgres::error::SqlState::code),
        Some("23505")
    );
    // PostgreSQL's data exceptions quote the value that did not fit.
    let quoted = pool
        .query("SELECT ($1::text)::int", &[&"s3cret"])
        .unwrap_err();
    assert_eq!(
        quoted.sqlstate().map(postgres::error::SqlState::code),
        Some("22P02")
    );
    // And so do syntax errors, in a statement and in a value with a syntax of its own.
    let [near, query, path] = [
        pool.batch_execute("SELECT 1 AS a 's3cret'").unwrap_err(),
        pool.query("SELECT to_tsquery($1)", &[&"s3cret & "])
            .unwrap_err(),
        pool.query("SELECT ($1::text)::jsonpath", &[&"s3cret s3cret"])
            .unwrap_err(),
    ];
    for error in [&near, &query, &path] {
        let code = error.sqlstate().map(postgres::error::SqlState::code);
        assert_eq!(code, Some("42601"));
    }
    for error in [error, quoted, near, query, path] {
        let said = format!("{} {error} {error:?}", millpond::error::Chain(&error));
        assert!(!said.contains("s3cret"), "{said}");
    }
}

#[test]
fn one_row_is_asked_for_and_a_violated_constraint_has_a_name() {
    let pool = database().pool().build().unwrap();
    pool.batch_execute(
        "CREATE TABLE guests (mail text CONSTRAINT known UNIQUE); INSERT INTO guests VALUES ('a')",
    )
    .unwrap();
    let all = "SELECT mail FROM guests ORDER BY mail";
    let one = "SELECT mail FROM guests WHERE mail = $1";
    assert_eq!(pool.query_one(all, &[]).unwrap().get::<_, &str>(0), "a");
    assert!(pool.query_opt(one, &[&"b"]).unwrap().is_none());
    let insert = "INSERT INTO guests VALUES ($1)";
    let error = pool.execute(insert, &[&"a"]).unwrap_err();
    assert_eq!(error.constraint(), Some("known"));
    assert_eq!(error.db_error().unwrap().table(), Some("guests"));
    pool.execute(insert, &[&"b"]).unwrap();
    for error in [
        pool.query_one(all, &[]).unwrap_err(),
        pool.query_opt(all, &[]).unwrap_err(),
        pool.query_one(one, &[&"c"]).unwrap_err(),
    ] {
        assert!(matches!(error, Error::Misuse(_)), "{error:?}");
        assert_eq!(error.constraint(), None);
    }
    // The batch is done completely or not at all.
    let half = "INSERT INTO guests VALUES ('c'); INSERT INTO guests VALUES ('a')";
    assert_eq!(
        pool.batch_execute(half).unwrap_err().constraint(),
        Some("known")
    );
    assert!(pool.query_opt(one, &[&"c"]).unwrap().is_none());
}
