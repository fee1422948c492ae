//! Writes with a key are done once, even if their answers are lost.

use super::commit::{COMMIT, COMMITTED, outcomes, own_server, rows};
use super::interrupted::waits_for_a_lock;
use super::proxy::{Act, Mode, Proxy};
use super::support::{Database, MS, SECOND, admin, database, eventually, pool};
use millpond::embedded::Stop;
use millpond::{Error, Keyed, Pool, RetryPolicy};
use std::cell::Cell;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

fn set_up() -> (Database, Proxy, Pool) {
    let db = database();
    let proxy = Proxy::in_front_of(db.port);
    db.admin().batch_execute("CREATE TABLE t (n int)").unwrap();
    let pool = pool(&proxy.url(&db.url)).max_size(4).build().unwrap();
    pool.create_ledger().unwrap();
    (db, proxy, pool)
}

/// Writes one row under the key, with the fault armed in the first attempt. Returns the result and
/// the number of attempts.
fn write(
    pool: &Pool,
    key: &str,
    fault: impl FnOnce(),
) -> (millpond::Result<Keyed<&'static str>>, u32) {
    let (attempts, fault) = (Cell::new(0), Cell::new(Some(fault)));
    let result = pool.transaction_with_key(key, |tx| {
        attempts.set(attempts.get() + 1);
        tx.execute("INSERT INTO t VALUES (1)", &[])?;
        tx.keep_answer("the answer")?;
        if let Some(fault) = fault.take() {
            fault();
        }
        Ok("done")
    });
    (result, attempts.get())
}

fn already_done<T>() -> Keyed<T> {
    Keyed::AlreadyDone(Some(b"the answer".to_vec()))
}

#[test]
fn a_key_is_done_once_and_its_answer_kept() {
    let (db, _proxy, pool) = set_up();
    assert_eq!(write(&pool, "k", || {}).0.unwrap(), Keyed::Done("done"));
    let (again, attempts) = write(&pool, "k", || {});
    assert_eq!((again.unwrap(), attempts), (already_done(), 0));
    assert_eq!(
        write(&pool, "another", || {}).0.unwrap(),
        Keyed::Done("done")
    );
    assert_eq!(rows(&db.url), 2);
    // A transaction that stored no result returns none when it is repeated.
    let bare = || {
        pool.transaction_with_key("bare", |_| Ok::<_, Error>(()))
            .unwrap()
    };
    assert_eq!(
        (bare(), bare()),
        (Keyed::Done(()), Keyed::AlreadyDone(None))
    );
}

#[test]
fn a_statement_with_a_key_says_how_many_rows_it_touched_then_and_later() {
    let (db, _proxy, pool) = set_up();
    let insert = || {
        pool.execute_with_key("k", "INSERT INTO t VALUES ($1), ($1)", &[&7i32])
            .unwrap()
    };
    assert_eq!(
        (insert(), insert()),
        (Keyed::Done(2), Keyed::AlreadyDone(2))
    );
    assert_eq!(rows(&db.url), 2);
    write(&pool, "of a transaction", || {}).0.unwrap();
    let error = pool
        .execute_with_key("of a transaction", "INSERT INTO t VALUES (1)", &[])
        .unwrap_err();
    assert!(matches!(error, Error::Misuse(_)), "{error:?}");
}

#[test]
fn what_fails_leaves_its_key_free() {
    let (db, _proxy, pool) = set_up();
    let error = pool
        .transaction_with_key("k", |tx| {
            tx.execute("INSERT INTO t VALUES (1)", &[])?;
            Err::<(), _>(Error::application("no"))
        })
        .unwrap_err();
    assert!(matches!(error, Error::Application(_)), "{error:?}");
    let error = pool
        .execute_with_key("k", "INSERT INTO t SELECT 1 / $1", &[&0i32])
        .unwrap_err();
    assert_eq!(
        error.sqlstate().map(postgres::error::SqlState::code),
        Some("22012")
    );
    assert_eq!(rows(&db.url), 0);
    assert_eq!(write(&pool, "k", || {}).0.unwrap(), Keyed::Done("done"));
}

#[test]
fn any_text_is_a_key() {
    let (_db, _proxy, pool) = set_up();
    let long = "x".repeat(10_000);
    for key in [
        "",
        "'",
        "\\",
        "'; DROP TABLE t; --",
        "a\u{0}b",
        "ключ",
        &long,
    ] {
        assert_eq!(write(&pool, key, || {}).0.unwrap(), Keyed::Done("done"));
        assert_eq!(write(&pool, key, || {}).0.unwrap(), already_done());
    }
}

#[test]
fn of_many_at_once_one_does_it_and_all_get_its_answer() {
    let (db, _proxy, pool) = set_up();
    let done = thread::scope(|scope| {
        let callers: Vec<_> = (0..16)
            .map(|_| scope.spawn(|| write(&pool, "k", || {}).0.unwrap()))
            .collect();
        callers
            .into_iter()
            .map(|c| c.join().unwrap())
            .filter(|out| *out == Keyed::Done("done"))
            .count()
    });
    assert_eq!((done, rows(&db.url)), (1, 1));
}

#[test]
fn who_waits_for_a_key_no_longer_than_he_wants_is_told_that_it_is_in_use() {
    let (db, _proxy, pool) = set_up();
    thread::scope(|scope| {
        let ((has_it, it_is_had), (may_end, end)) = (mpsc::channel(), mpsc::channel::<()>());
        let pool = &pool;
        let first = scope.spawn(move || {
            pool.transaction_with_key("k", |tx| -> millpond::Result<_> {
                tx.execute("INSERT INTO t VALUES (1)", &[])?;
                has_it.send(()).unwrap();
                end.recv().unwrap();
                Ok(())
            })
        });
        it_is_had.recv().unwrap();
        let impatient = pool.call().with_key_wait(100 * MS);
        let mut ran = false;
        let second = impatient.transaction_with_key("k", |_| -> millpond::Result<_> {
            ran = true;
            Ok(())
        });
        let error = second.unwrap_err();
        assert!(matches!(error, Error::KeyInUse), "{error:?}");
        assert!(error.is_retryable() && !error.is_outcome_unknown() && !ran);
        may_end.send(()).unwrap();
        assert_eq!(first.join().unwrap().unwrap(), Keyed::Done(()));
        let done = impatient
            .transaction_with_key("k", |_| Ok::<_, Error>(()))
            .unwrap();
        assert_eq!(done, Keyed::AlreadyDone(None));
    });
    assert_eq!(rows(&db.url), 1);
    // The limit applies to the wait for the key only, not to what the transaction then waits for.
    let call = pool.call().with_key_wait(100 * MS);
    let limit = |tx: &mut millpond::Transaction<'_>| -> millpond::Result<String> {
        Ok(tx.query_one("SHOW lock_timeout", &[])?.get(0))
    };
    let inside = call.transaction_with_key("another", limit).unwrap();
    assert_eq!(inside, Keyed::Done("0".to_owned()));
}

#[test]
fn the_table_is_made_by_an_explicit_call_alone_and_by_many_at_once() {
    let db = database();
    let make = || db.pool().ledger_schema("of_the_app").build().unwrap();
    let error = make()
        .execute_with_key("k", "SELECT 1", &[])
        .unwrap_err()
        .to_string();
    assert!(error.contains("create_ledger"), "{error}");
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname IN ('millpond', 'of_the_app')";
    let count = |n: i64| {
        assert_eq!(
            db.admin().query_one(schemas, &[]).unwrap().get::<_, i64>(0),
            n
        );
    };
    count(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| make().create_ledger().unwrap());
        }
    });
    count(1);
    let pool = make();
    let error = pool.execute_with_key("k", "SELECT 1", &[]).unwrap();
    assert_eq!(error, Keyed::Done(1));
    let error = db.pool().ledger_schema("No Such").build().unwrap_err();
    assert!(error.to_string().contains("ledger_schema"), "{error}");
}

#[test]
fn a_key_needs_a_transaction_that_writes_and_an_answer_a_key() {
    let (_db, _proxy, pool) = set_up();
    let read_only = pool
        .call()
        .read_only()
        .transaction_with_key("k", |_| Ok(()));
    assert!(matches!(read_only, Err(Error::Misuse(_))));
    let no_key = pool.transaction(|tx| tx.keep_answer("x"));
    assert!(matches!(no_key, Err(Error::Misuse(_))));
}

#[test]
fn answered_but_not_delivered_is_done() {
    let (db, proxy, pool) = set_up();
    let (result, attempts) = write(&pool, "k", || proxy.on_answer(COMMITTED, Act::Lose));
    assert_eq!((result.unwrap(), attempts), (Keyed::Done("done"), 1));
    assert_eq!(write(&pool, "k", || {}).0.unwrap(), already_done());
    assert_eq!((rows(&db.url), outcomes(&pool, "committed")), (1, 1));
}

#[test]
fn lost_on_the_way_is_done_again() {
    let (db, proxy, pool) = set_up();
    let (result, attempts) = write(&pool, "k", || proxy.on_request(COMMIT, Act::Lose));
    assert_eq!((result.unwrap(), attempts), (Keyed::Done("done"), 2));
    assert_eq!((rows(&db.url), outcomes(&pool, "not_committed")), (1, 1));
}

#[test]
fn lost_without_retries_is_said_and_the_key_is_free() {
    let (db, proxy, pool) = set_up();
    let error = pool
        .with_policy(RetryPolicy::none())
        .transaction_with_key("k", |tx| -> millpond::Result<_> {
            tx.execute("INSERT INTO t VALUES (1)", &[])?;
            proxy.on_request(COMMIT, Act::Lose);
            Ok(())
        })
        .unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    assert_eq!(rows(&db.url), 0);
    assert_eq!(write(&pool, "k", || {}).0.unwrap(), Keyed::Done("done"));
    assert_eq!(rows(&db.url), 1);
}

#[test]
fn one_that_arrives_after_the_question_does_nothing() {
    let (db, proxy, pool) = set_up();
    let (arrived, late) = mpsc::channel();
    let (result, attempts) = write(&pool, "k", || {
        proxy.on_request(
            COMMIT,
            Act::DeliverLateThen(
                300 * MS,
                Box::new(move || {
                    let _ = arrived.send(());
                }),
            ),
        );
    });
    assert_eq!((result.unwrap(), attempts), (Keyed::Done("done"), 2));
    late.recv_timeout(20 * SECOND)
        .expect("it was delivered late");
    assert_eq!((rows(&db.url), outcomes(&pool, "not_committed")), (1, 1));
}

#[test]
fn three_lost_in_a_row_on_one_key_are_found_out_one_by_one() {
    let (db, proxy, pool) = set_up();
    let attempts = Cell::new(0);
    let result = pool.transaction_with_key("k", |tx| -> millpond::Result<_> {
        attempts.set(attempts.get() + 1);
        tx.execute("INSERT INTO t VALUES (1)", &[])?;
        match attempts.get() {
            1 | 2 => proxy.on_request(COMMIT, Act::Lose),
            _ => proxy.on_answer(COMMITTED, Act::Lose),
        }
        Ok(())
    });
    assert_eq!((result.unwrap(), attempts.get()), (Keyed::Done(()), 3));
    assert_eq!(
        (
            rows(&db.url),
            outcomes(&pool, "not_committed"),
            outcomes(&pool, "committed")
        ),
        (1, 2, 1)
    );
}

#[test]
fn two_callers_on_one_key_while_the_answer_of_the_first_is_cut() {
    for deliver in [true, false] {
        let (db, proxy, pool) = set_up();
        let (in_hand, claimed) = mpsc::channel();
        let (first, second) = thread::scope(|scope| {
            let first = scope.spawn(|| {
                write(&pool, "k", || {
                    in_hand.send(()).unwrap();
                    // By now the second call waits for the key.
                    eventually("somebody waits for the key", || {
                        let sql = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'";
                        db.admin().query_one(sql, &[]).unwrap().get::<_, i64>(0) > 0
                    });
                    match deliver {
                        true => proxy.on_answer(COMMITTED, Act::Lose),
                        false => proxy.on_request(COMMIT, Act::Lose),
                    }
                })
                .0
            });
            claimed.recv_timeout(20 * SECOND).unwrap();
            let second = scope.spawn(|| write(&pool, "k", || {}).0);
            (
                first.join().unwrap().unwrap(),
                second.join().unwrap().unwrap(),
            )
        });
        assert_eq!(rows(&db.url), 1, "delivered={deliver}");
        let both = [&first, &second];
        let done = both.iter().filter(|o| ***o == Keyed::Done("done")).count();
        let later = both.iter().filter(|o| ***o == already_done()).count();
        assert_eq!((done, later), (1, 1), "delivered={deliver}: {both:?}");
        if deliver {
            assert_eq!(first, Keyed::Done("done"));
        }
    }
}

#[test]
fn whatever_a_closure_sets_for_its_transaction_its_answer_is_kept_as_it_is() {
    let (db, _proxy, pool) = set_up();
    db.admin()
        .batch_execute("CREATE ROLE humble; GRANT ALL ON t TO humble")
        .unwrap();
    let all: Vec<u8> = (0..=255).collect();
    for sets in [
        "SET LOCAL standard_conforming_strings = off",
        "SET LOCAL bytea_output = 'escape'",
        "SET LOCAL ROLE humble",
        "SET ROLE humble",
        "SET LOCAL SESSION AUTHORIZATION humble",
        "SET LOCAL SESSION AUTHORIZATION humble; SET LOCAL ROLE humble",
    ] {
        let done = pool.transaction_with_key(sets, |tx| -> millpond::Result<_> {
            tx.batch_execute(sets)?;
            tx.execute("INSERT INTO t VALUES (1)", &[])?;
            tx.keep_answer(all.clone())
        });
        assert_eq!(done.unwrap(), Keyed::Done(()), "{sets}");
        let again = pool
            .transaction_with_key(sets, |_| Ok::<_, Error>(()))
            .unwrap();
        assert_eq!(again, Keyed::AlreadyDone(Some(all.clone())), "{sets}");
    }
    assert_eq!(rows(&db.url), 6);
}

#[test]
fn what_a_closure_defers_runs_in_its_own_role_with_a_key_as_without() {
    let (db, _proxy, pool) = set_up();
    db.admin()
        .batch_execute(
            "CREATE ROLE low; CREATE TABLE who (name text); GRANT ALL ON t, who TO low; \
             CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS \
             'BEGIN INSERT INTO who VALUES (current_user); RETURN NULL; END'; \
             CREATE CONSTRAINT TRIGGER deferred AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED \
             FOR EACH ROW EXECUTE FUNCTION note()",
        )
        .unwrap();
    let work = |tx: &mut millpond::Transaction<'_>| {
        tx.batch_execute("SET LOCAL ROLE low")?;
        tx.execute("INSERT INTO t VALUES (1)", &[])
    };
    pool.transaction(work).unwrap();
    pool.transaction_with_key("k", work).unwrap();
    let who = db.admin().query("SELECT name FROM who", &[]).unwrap();
    let who: Vec<String> = who.iter().map(|row| row.get(0)).collect();
    assert_eq!(who, ["low", "low"]);
}

#[test]
fn a_closure_that_commits_by_itself_is_told_so_with_a_key_as_without() {
    let (db, _proxy, pool) = set_up();
    for sql in [
        "INSERT INTO t VALUES (1); COMMIT",
        "INSERT INTO t VALUES (1); COMMIT; BEGIN",
        "INSERT INTO t VALUES (1); COMMIT AND CHAIN",
    ] {
        let before = rows(&db.url);
        let done = pool.transaction_with_key(sql, |tx| tx.batch_execute(sql));
        let error = done.unwrap_err();
        assert!(matches!(error, Error::Misuse(_)), "{sql}: {error:?}");
        assert_eq!(rows(&db.url), before + 1, "{sql}");
    }
}

#[test]
fn what_is_done_is_found_out_in_the_role_that_may() {
    let (db, proxy, _) = set_up();
    // `weak` may not end other roles' sessions; `front` may write to the ledger only as `keeper`.
    db.admin()
        .batch_execute(
            "CREATE ROLE weak; GRANT ALL ON t TO weak; GRANT USAGE ON SCHEMA millpond TO weak; \
             GRANT ALL ON millpond.ledger TO weak; \
             CREATE ROLE keeper; GRANT ALL ON t TO keeper; GRANT USAGE ON SCHEMA millpond TO keeper; \
             GRANT ALL ON millpond.ledger TO keeper; \
             CREATE ROLE front LOGIN NOINHERIT PASSWORD 'front' IN ROLE keeper; \
             CREATE ROLE masked LOGIN PASSWORD 'masked' IN ROLE weak; ALTER ROLE masked SET role = 'weak'",
        )
        .unwrap();
    let (_, at) = db.url.split_once('@').unwrap();
    let by_front = format!("postgresql://front:front@{at}");
    let by_masked = format!("postgresql://masked:masked@{at}");
    for (url, role) in [
        (&db.url, "weak"),
        (&by_front, "keeper"),
        (&by_masked, "weak"),
    ] {
        let set_role = format!("SET ROLE {role}");
        let pool = pool(&proxy.url(url))
            .on_connect(move |client| client.batch_execute(&set_role))
            .build()
            .unwrap();
        let before = (rows(&db.url), proxy.accepted());
        let by_key = write(&pool, url, || proxy.on_answer(COMMITTED, Act::Lose));
        assert_eq!(by_key.0.unwrap(), Keyed::Done("done"), "{role}");
        // The backend is still alive and would commit later. It is ended, and the transaction is
        // retried.
        let (arrived, late) = mpsc::channel();
        let mut attempts = 0;
        let without = pool.transaction(|tx| {
            attempts += 1;
            let done = tx.execute("INSERT INTO t VALUES (1)", &[]);
            if attempts == 1 {
                let arrived = arrived.clone();
                let then = Box::new(move || arrived.send(()).unwrap());
                proxy.on_request(COMMIT, Act::DeliverLateThen(500 * MS, then));
            }
            done
        });
        assert_eq!((without.unwrap(), attempts), (1, 2), "{role}");
        late.recv_timeout(20 * SECOND).expect("it was delivered");
        assert_eq!(rows(&db.url), before.0 + 2);
        let opened = proxy.accepted() - before.1;
        assert!(opened < 12, "{opened} connections for two questions");
    }
}

#[test]
fn a_key_is_kept_from_the_end_of_its_write_on() {
    let (db, _proxy, pool) = set_up();
    for (n, keeps) in [false, true].into_iter().enumerate() {
        let done =
            pool.transaction_with_key(&format!("keeps: {keeps}"), |tx| -> millpond::Result<_> {
                if keeps {
                    tx.keep_answer("kept")?;
                }
                let end = tx.query_one("SELECT clock_timestamp() FROM pg_sleep(0.3)", &[])?;
                Ok(end.get::<_, std::time::SystemTime>(0))
            });
        let Keyed::Done(end) = done.unwrap() else {
            panic!("it was done before");
        };
        let sql = "SELECT count(*) FROM millpond.ledger WHERE at >= $1";
        let kept = db.admin().query_one(sql, &[&end]).unwrap();
        assert_eq!(kept.get::<_, i64>(0), 1, "of {} keys", n + 1);
    }
}

#[test]
fn a_key_is_kept_while_its_lost_commit_is_asked_for() {
    let (db, proxy, _) = set_up();
    let pool = pool(&proxy.url(&db.url))
        .connection_timeout(4 * SECOND)
        .ledger_ttl(SECOND / 2)
        .build()
        .unwrap();
    let sweeper = db.pool().ledger_ttl(SECOND / 2).build().unwrap();
    let (result, attempts) = thread::scope(|scope| {
        let switch = proxy.switch();
        let (lost, was_lost) = mpsc::channel();
        let writer = scope.spawn(|| {
            write(&pool, "k", || {
                let lose = Box::new(move || {
                    switch(Mode::Refuse);
                    lost.send(()).unwrap();
                });
                proxy.on_answer(COMMITTED, Act::LoseAfter(lose));
            })
        });
        was_lost.recv_timeout(20 * SECOND).expect("it was lost");
        thread::sleep(2 * SECOND);
        sweeper.sweep_ledger().unwrap();
        proxy.set(Mode::Pass);
        writer.join().unwrap()
    });
    assert_eq!((result.unwrap(), attempts), (Keyed::Done("done"), 1));
    assert_eq!(rows(&db.url), 1);
}

#[test]
fn when_another_did_it_in_the_meantime_its_answer_is_the_answer() {
    let (db, proxy, pool) = set_up();
    let other = db.pool().build().unwrap();
    let url = db.url.clone();
    let attempts = Cell::new(0);
    let first = pool.with_policy(RetryPolicy::none()).transaction_with_key(
        "k",
        |tx| -> millpond::Result<_> {
            attempts.set(attempts.get() + 1);
            let pid: i32 = tx.query_one("SELECT pg_backend_pid()", &[])?.get(0);
            tx.execute("INSERT INTO t VALUES (1)", &[])?;
            let (other, url, switch) = (other.clone(), url.clone(), proxy.switch());
            let act = Box::new(move || {
                // The first attempt gets no answer until the other call is done.
                switch(Mode::BlackHole);
                let end = "SELECT pg_terminate_backend($1, 5000)";
                admin(&url).execute(end, &[&pid]).unwrap();
                write(&other, "k", || {}).0.unwrap();
                switch(Mode::Pass);
            });
            proxy.on_request(COMMIT, Act::LoseAfter(act));
            Ok("by the first")
        },
    );
    assert_eq!((first.unwrap(), attempts.get()), (already_done(), 1));
    assert_eq!((rows(&db.url), outcomes(&pool, "not_committed")), (1, 1));
}

#[test]
fn a_reset_of_the_statistics_changes_nothing() {
    let (_server, proxy, direct, by_proxy) = own_server(false);
    let pool = pool(&by_proxy).build().unwrap();
    pool.create_ledger().unwrap();
    let reset_by = direct.clone();
    let reset = Box::new(move || {
        admin(&reset_by)
            .batch_execute("SELECT pg_stat_reset_shared('wal')")
            .unwrap();
    });
    let (result, attempts) = write(&pool, "k", || {
        proxy.on_answer(COMMITTED, Act::LoseAfter(reset));
    });
    assert_eq!((result.unwrap(), attempts), (Keyed::Done("done"), 1));
    assert_eq!((rows(&direct), outcomes(&pool, "committed")), (1, 1));
}

#[test]
fn a_server_that_crashes_over_the_commit_is_no_reason_not_to_know() {
    let (server, proxy, direct, by_proxy) = own_server(true);
    let pool = pool(&by_proxy)
        .connection_timeout(10 * SECOND)
        .build()
        .unwrap();
    pool.create_ledger().unwrap();
    for (nth, deliver) in [true, false, true, false].into_iter().enumerate() {
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
        let key = format!("k{nth}");
        let (result, _) = write(&pool, &key, || proxy.on_request(COMMIT, act));
        done.recv_timeout(60 * SECOND).expect("the crash happened");
        assert_eq!(result.unwrap(), Keyed::Done("done"));
        assert_eq!(rows(&direct), nth as i64 + 1);
        assert_eq!(write(&pool, &key, || {}).0.unwrap(), already_done());
    }
    assert_eq!(outcomes(&pool, "unknown"), 0);
}

#[test]
fn a_role_that_may_not_look_at_the_server_knows_by_its_key() {
    let (db, proxy, owner) = set_up();
    let url = proxy.url(&db.url);
    let (_, after) = url.split_once('@').unwrap();
    db.admin()
        .batch_execute(
            "CREATE ROLE keyed_role LOGIN PASSWORD 'keyed'; GRANT ALL ON t TO keyed_role; \
             GRANT USAGE ON SCHEMA millpond TO keyed_role; \
             GRANT SELECT, INSERT, UPDATE, DELETE ON millpond.ledger TO keyed_role; \
             REVOKE EXECUTE ON FUNCTION pg_control_system() FROM public",
        )
        .unwrap();
    drop(owner);
    let pool = pool(&format!("postgresql://keyed_role:keyed@{after}"))
        .build()
        .unwrap();
    let (result, attempts) = write(&pool, "k", || proxy.on_answer(COMMITTED, Act::Lose));
    assert_eq!((result.unwrap(), attempts), (Keyed::Done("done"), 1));
    let (result, attempts) = write(&pool, "l", || proxy.on_request(COMMIT, Act::Lose));
    assert_eq!((result.unwrap(), attempts), (Keyed::Done("done"), 2));
    assert_eq!(rows(&db.url), 2);
}

/// A pool whose ledger holds 1100 keys that are 23 hours old and one new key, and a function that
/// counts the keys.
fn with_old_keys(db: &Database, ttl: Duration) -> (Pool, impl Fn() -> i64 + use<>) {
    let pool = db.pool().ledger_ttl(ttl).build().unwrap();
    pool.create_ledger().unwrap();
    let mut admin = db.admin();
    admin
        .batch_execute(
            "INSERT INTO millpond.ledger SELECT encode(sha256(i::text::bytea), 'hex'), gen_random_uuid(), 'done', NULL, \
             now() - interval '23 hours' FROM generate_series(1, 1100) AS i",
        )
        .unwrap();
    pool.execute_with_key("new", "SELECT 1", &[]).unwrap();
    let admin = std::cell::RefCell::new(admin);
    let sql = "SELECT count(*) FROM millpond.ledger";
    (pool, move || {
        admin.borrow_mut().query_one(sql, &[]).unwrap().get(0)
    })
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn keys_are_kept_for_their_time_and_swept_then() {
    let (pool, count) = with_old_keys(&database(), 24 * HOUR);
    assert_eq!((pool.sweep_ledger().unwrap(), count()), (Some(0), 1101));
    let (pool, count) = with_old_keys(&database(), 22 * HOUR);
    assert_eq!((pool.sweep_ledger().unwrap(), count()), (Some(1100), 1));
}

#[test]
fn a_close_does_not_wait_for_a_sweep() {
    let db = database();
    let (pool, _) = with_old_keys(&db, 22 * HOUR);
    let mut other = db.admin();
    let mut locking = other.transaction().unwrap();
    locking.execute("LOCK TABLE millpond.ledger", &[]).unwrap();
    thread::scope(|scope| {
        let sweep = scope.spawn(|| pool.sweep_ledger());
        eventually("it waits for the lock", || waits_for_a_lock(&db));
        let began = Instant::now();
        let report = pool.close(10 * SECOND);
        assert_eq!((report.cancelled, report.aborted), (0, 0), "{report}");
        assert!(began.elapsed() < 2 * SECOND, "{:?}", began.elapsed());
        sweep.join().unwrap().unwrap_err();
    });
}

#[test]
fn one_program_sweeps_at_a_time() {
    let db = database();
    let (pool, count) = with_old_keys(&db, 22 * HOUR);
    let mut other = db.admin();
    let mut sweeping = other.transaction().unwrap();
    let lock = "SELECT pg_advisory_xact_lock($1, 'millpond.ledger'::regclass::oid::int)";
    sweeping.execute(lock, &[&0x6d70_6c64i32]).unwrap();
    assert_eq!((pool.sweep_ledger().unwrap(), count()), (None, 1101));
    drop(sweeping);
    assert_eq!((pool.sweep_ledger().unwrap(), count()), (Some(1100), 1));
}

#[test]
fn a_pool_that_writes_with_keys_sweeps_by_itself() {
    let (pool, count) = with_old_keys(&database(), SECOND);
    eventually("the old ones are gone", || count() <= 1);
    // The new key is removed too, when it is a second old.
    eventually("all are gone", || count() == 0);
    assert_eq!(
        pool.execute_with_key("new", "SELECT 1", &[]).unwrap(),
        Keyed::Done(1)
    );
}

#[test]
fn a_clock_that_is_set_ahead_takes_no_key_that_is_young() {
    let db = database();
    // The database has a clock of its own, which the test can set.
    db.admin()
        .batch_execute(
            "CREATE SCHEMA fake; CREATE TABLE fake.ahead (by interval); INSERT INTO fake.ahead VALUES ('0');
             CREATE FUNCTION fake.now() RETURNS timestamptz LANGUAGE sql STABLE
                 AS 'SELECT pg_catalog.now() + (SELECT by FROM fake.ahead)';
             CREATE FUNCTION fake.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
                 AS 'SELECT pg_catalog.clock_timestamp() + (SELECT by FROM fake.ahead)';
             DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = fake, pg_catalog, public', current_database()); END $$",
        )
        .unwrap();
    let pool = db.pool().build().unwrap();
    pool.create_ledger().unwrap();
    let once = || {
        pool.execute_with_key("young", "SELECT 1", &[])
            .map(|done| matches!(done, Keyed::Done(_)))
    };
    assert!(once().unwrap());
    let old = "INSERT INTO millpond.ledger (key, attempt, state, at) \
               VALUES (repeat('a', 64), gen_random_uuid(), 'done', pg_catalog.now() - interval '25 hours')";
    db.admin().batch_execute(old).unwrap();
    db.admin()
        .batch_execute("UPDATE fake.ahead SET by = '48 hours'")
        .unwrap();
    assert_eq!(pool.sweep_ledger().unwrap(), Some(1), "the old one alone");
    assert!(!once().unwrap(), "the young one is done");
}

#[test]
fn a_table_of_the_ledgers_name_that_is_none_is_named() {
    let db = database();
    db.admin()
        .batch_execute("CREATE SCHEMA millpond; CREATE TABLE millpond.ledger (key text, at date)")
        .unwrap();
    let pool = db.pool().build().unwrap();
    for refused in [
        pool.create_ledger().unwrap_err(),
        pool.execute_with_key("k", "SELECT 1", &[]).unwrap_err(),
    ] {
        assert!(
            matches!(refused, Error::Misuse(why) if why.contains("is not a ledger")),
            "{refused}"
        );
    }
}
