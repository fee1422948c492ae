//! Failover: the primary fails, and a standby takes its place.

use super::commit::{COMMITTED, outcomes};
use super::proxy::{Act, Mode, Proxy};
use super::servers::{Frozen, Standby, replicate_synchronously};
use super::support::{EndAtDrop, MS, SECOND, admin, counter, eventually, pool, server};
use millpond::embedded::{PrivateServer, Stop};
use millpond::{Error, Keyed, Pool, RetryPolicy};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

/// A primary with a standby.
fn pair() -> (PrivateServer, Standby) {
    let primary = server(&[("synchronous_commit", "on")]);
    admin(&primary.url())
        .batch_execute("CREATE TABLE t (n int)")
        .unwrap();
    let standby = Standby::of(&primary);
    (primary, standby)
}

/// A URL that names both hosts.
fn url(primary: &PrivateServer, first: u16, standby: &Standby, attributes: &str) -> String {
    let both = format!("127.0.0.1:{first},127.0.0.1:{}/", standby.server.port());
    primary
        .url()
        .replace(&format!("127.0.0.1:{}/", primary.port()), &both)
        + attributes
}

const READ_WRITE: &str = "?target_session_attrs=read-write";

fn keys(url: &str) -> Vec<i32> {
    let rows = admin(url).query("SELECT n FROM t ORDER BY n", &[]).unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[test]
fn writes_go_on_at_a_promoted_standby_and_none_that_was_acknowledged_is_lost() {
    let (mut primary, standby) = pair();
    let pool = pool(&url(&primary, primary.port(), &standby, READ_WRITE))
        .max_size(4)
        .connection_timeout(4 * SECOND)
        .build()
        .unwrap();
    pool.create_ledger().unwrap();
    replicate_synchronously(&primary);
    let acknowledged = Mutex::new(Vec::new());
    let count = || acknowledged.lock().unwrap().len();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = EndAtDrop(&over);
        for writer in 0..4 {
            let (pool, acknowledged, over) = (&pool, &acknowledged, &over);
            scope.spawn(move || {
                for n in (writer..).step_by(4) {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    // With a key, the write can be retried until it is known to be done.
                    let done = loop {
                        let by = Instant::now() + 30 * SECOND;
                        let sql = "INSERT INTO t VALUES ($1)";
                        let call = pool.call().with_deadline(by);
                        match call.execute_with_key(&n.to_string(), sql, &[&n]) {
                            Ok(done) => break done,
                            Err(e) => assert!(e.is_outcome_unknown() || e.is_retryable(), "{e:?}"),
                        }
                    };
                    assert!(matches!(done, Keyed::Done(1) | Keyed::AlreadyDone(1)));
                    acknowledged.lock().unwrap().push(n);
                }
            });
        }
        eventually("writes are acknowledged", || count() > 200);
        primary.stop(Stop::Immediate);
        standby.promote();
        let (promoted, before) = (Instant::now(), count());
        eventually("writes go on", || count() > before + 4);
        println!("first writes {:?} after the promotion", promoted.elapsed());
        let so_far = count();
        eventually("and on", || count() > so_far + 200);
        drop(end);
    });
    let mut acknowledged = acknowledged.into_inner().unwrap();
    acknowledged.sort_unstable();
    assert_eq!(keys(&standby.server.url()), acknowledged);
}

#[test]
fn a_first_host_that_is_silent_keeps_no_write_from_the_promoted_second() {
    for frozen in [false, true] {
        let (primary, standby) = pair();
        let proxy = Proxy::in_front_of(primary.port());
        let limit = 4 * SECOND;
        let pool = pool(&url(&primary, proxy.port, &standby, READ_WRITE))
            .connection_timeout(limit)
            .query_timeout(500 * MS)
            .build()
            .unwrap();
        let write = || pool.execute("INSERT INTO t VALUES (1)", &[]);
        write().unwrap();
        // Only this wait ensures that the standby has the row: replication is asynchronous.
        eventually("the standby has it", || {
            keys(&standby.server.url()).len() == 1
        });
        standby.promote();
        // The primary answers neither open nor new connections: the kernel accepts connections for
        // a stopped process.
        let frozen = frozen.then(|| Frozen::tree(primary.pid().unwrap()));
        if frozen.is_none() {
            proxy.set(Mode::BlackHole);
        }
        let since = Instant::now();
        eventually("a write succeeds", || match write() {
            Ok(_) => true,
            // The write was on its way to the silent primary, or was being prepared there.
            Err(e) => {
                let known = e.is_outcome_unknown() || e.is_retryable() || e.is_timeout();
                assert!(known, "{e:?}");
                false
            }
        });
        let took = since.elapsed();
        println!("a write after {took:?}, frozen={}", frozen.is_some());
        assert!(took <= 2 * limit, "{took:?}");
        assert_eq!(keys(&standby.server.url()).len(), 2);
        let next = Instant::now();
        write().unwrap();
        assert!(
            next.elapsed() < SECOND + super::frozen::slack(),
            "the silent one is asked last now"
        );
    }
}

#[test]
fn a_commit_that_the_standby_has_not_got_is_not_called_committed() {
    let (primary, standby) = pair();
    let proxy = Proxy::in_front_of(primary.port());
    let by_proxy = proxy.url(&primary.url());
    let pool = pool(&by_proxy)
        .connection_timeout(2 * SECOND)
        .build()
        .unwrap();
    pool.create_ledger().unwrap();
    replicate_synchronously(&primary);
    let write = |keyed: bool| {
        if keyed {
            pool.transaction_with_key("k", |_| Ok(())).map(|_| ())
        } else {
            pool.transaction(|tx| tx.execute("INSERT INTO t VALUES (1)", &[]))
                .map(|_| ())
        }
    };
    let mut admin = admin(&primary.url());
    let waiting = "SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query = 'COMMIT'";
    let stopped = Frozen::tree(standby.server.pid().unwrap());
    for keyed in [false, true] {
        let error = thread::scope(|scope| {
            let writer = scope.spawn(|| write(keyed).unwrap_err());
            eventually("the COMMIT waits for the standby", || {
                admin.query(waiting, &[]).unwrap().len() == 1
            });
            proxy.cut();
            writer.join().unwrap()
        });
        assert!(error.is_outcome_unknown(), "keyed={keyed} {error:?}");
    }
    assert_eq!(
        (outcomes(&pool, "unknown"), outcomes(&pool, "committed")),
        (2, 0)
    );
    // A later call with the same key does not report it as done either.
    let again = pool
        .with_timeout(2 * SECOND)
        .transaction_with_key("k", |_| Ok::<_, Error>(()));
    let error = again.unwrap_err();
    assert!(error.is_outcome_unknown(), "{error:?}");
    // With the standby back, the outcome can be found out.
    stopped.thaw();
    proxy.on_answer(COMMITTED, Act::Lose);
    write(false).unwrap();
    assert_eq!(outcomes(&pool, "committed"), 1);
    let again = pool
        .transaction_with_key("k", |_| Ok::<_, Error>(()))
        .unwrap();
    assert_eq!(again, Keyed::AlreadyDone(None));
}

#[test]
fn a_lost_commit_waits_for_the_standby_as_its_transaction_would_have() {
    let (primary, standby) = pair();
    let proxy = Proxy::in_front_of(primary.port());
    let by_proxy = proxy.url(&primary.url());
    let pool_whose_role_has = |level: &str| {
        admin(&primary.url())
            .batch_execute(&format!(
                "ALTER ROLE CURRENT_USER SET synchronous_commit = {level}"
            ))
            .unwrap();
        let pool = pool(&by_proxy)
            .connection_timeout(2 * SECOND)
            .build()
            .unwrap();
        pool.create_ledger().unwrap();
        pool
    };
    let careless = pool_whose_role_has("off");
    let careful = pool_whose_role_has("on");
    replicate_synchronously(&primary);
    let mut admin = admin(&primary.url());
    let waiting = "SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query = 'COMMIT'";
    let stopped = Frozen::tree(standby.server.pid().unwrap());
    let write = |pool: &Pool, key: Option<&str>, level: &str| {
        let work = |tx: &mut millpond::Transaction<'_>| {
            tx.execute(
                "SELECT set_config('SYNCHRONOUS_COMMIT', $1, true)",
                &[&level],
            )?;
            tx.execute("INSERT INTO t VALUES (1)", &[])
        };
        match key {
            Some(key) => pool.transaction_with_key(key, work).map(drop),
            None => pool.transaction(work).map(drop),
        }
    };
    for key in [None, Some("careful")] {
        let error = thread::scope(|scope| {
            let writer = scope.spawn(|| write(&careless, key, "on").unwrap_err());
            eventually("the COMMIT waits for the standby", || {
                admin.query(waiting, &[]).unwrap().len() == 1
            });
            proxy.cut();
            writer.join().unwrap()
        });
        assert!(error.is_outcome_unknown(), "{key:?} {error:?}");
    }
    // A commit that was not to wait for the standby is found out without such a wait.
    for key in [None, Some("careless")] {
        let before = outcomes(&careful, "committed");
        proxy.on_answer(COMMITTED, Act::Lose);
        write(&careful, key, "local").unwrap();
        assert_eq!(outcomes(&careful, "committed"), before + 1, "{key:?}");
    }
    drop(stopped);
}

#[test]
fn a_mistaken_write_on_a_lone_standby_costs_its_own_connections_alone() {
    let (_primary, standby) = pair();
    let pool = pool(&standby.server.url())
        .max_size(12)
        .min_idle(12)
        .build()
        .unwrap();
    eventually("all are open", || pool.stats().idle == 12);
    let error = pool.execute("INSERT INTO t VALUES (1)", &[]).unwrap_err();
    assert_eq!(
        error.sqlstate().map(postgres::error::SqlState::code),
        Some("25006")
    );
    for _ in 0..12 {
        pool.read("SELECT 1", &[]).unwrap();
    }
    let closed = counter(
        &pool,
        "millpond_connections_closed_total{reason=\"failed_over\"}",
    );
    assert!(closed <= 4, "{closed} were closed, one for each attempt");
}

#[test]
fn a_wait_for_the_standby_that_the_server_gives_up_is_no_success() {
    let (primary, standby) = pair();
    let pool = pool(&primary.url())
        .connection_timeout(SECOND)
        .query_timeout(500 * MS)
        .build()
        .unwrap();
    pool.execute("INSERT INTO t VALUES (0)", &[]).unwrap();
    replicate_synchronously(&primary);
    let stopped = Frozen::tree(standby.server.pid().unwrap());
    // The cancel at the deadline ends the wait for the standby. The server then reports success,
    // with only a warning.
    let error = pool.execute("INSERT INTO t VALUES (1)", &[]).unwrap_err();
    let cause = matches!(&error, Error::OutcomeUnknown { source } if matches!(**source, Error::NotReplicated));
    assert!(cause, "{error:?}");
    assert_eq!(
        keys(&primary.url()),
        [0, 1],
        "it is there, and may be lost with this server"
    );
    // A COMMIT that is under way is not cancelled; the pool finds out its outcome instead.
    let write = || pool.transaction(|tx| tx.execute("INSERT INTO t VALUES (2)", &[]));
    assert!(write().unwrap_err().is_outcome_unknown());
    stopped.thaw();
    write().unwrap();
}

#[test]
fn a_wait_that_is_given_up_is_no_success_also_where_warnings_are_not_sent() {
    let primary = server(&[("synchronous_commit", "on")]);
    let direct = primary.url();
    admin(&direct)
        .batch_execute(
            "CREATE TABLE t (n int); CREATE ROLE quiet LOGIN PASSWORD 'quiet'; GRANT ALL ON t TO quiet; \
             ALTER ROLE quiet SET client_min_messages = error",
        )
        .unwrap();
    let (_, at) = direct.split_once('@').unwrap();
    let quiet = pool(&format!("postgresql://quiet:quiet@{at}"))
        .build()
        .unwrap();
    let loud = pool(&direct).build().unwrap();
    let insert = "INSERT INTO t VALUES (1)";
    for pool in [&quiet, &loud] {
        pool.execute(insert, &[]).unwrap();
    }
    // No standby by this name will connect.
    for sql in [
        "ALTER SYSTEM SET synchronous_standby_names = 'nobody'",
        "SELECT pg_reload_conf()",
    ] {
        admin(&direct).batch_execute(sql).unwrap();
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = EndAtDrop(&over);
        scope.spawn(|| {
            let mut admin = admin(&direct);
            let cancel =
                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
            while !over.load(Ordering::Relaxed) {
                admin.query(cancel, &[]).unwrap();
                thread::sleep(5 * MS);
            }
        });
        eventually("a commit waits", || loud.execute(insert, &[]).is_err());
        let lone = quiet.execute(insert, &[]);
        let inside = loud.transaction(|tx| {
            tx.batch_execute("SET LOCAL client_min_messages = error")?;
            tx.execute(insert, &[])
        });
        // A warning that one borrower received is not reported to the next.
        let mut raw = loud.get().unwrap();
        raw.batch_execute(insert).unwrap();
        drop(raw);
        let next = (0..loud.stats().idle + 1).map(|_| loud.query("SELECT 1", &[]));
        let next: Vec<_> = next.collect();
        drop(end);
        for (what, result) in [("lone", lone), ("in a transaction", inside)] {
            let error = result.expect_err(what);
            assert!(error.is_outcome_unknown(), "{what}: {error:?}");
        }
        for result in next {
            result.unwrap();
        }
    });
}

#[test]
fn on_a_lone_standby_whatever_only_reads_is_answered() {
    let (_primary, standby) = pair();
    let pool = pool(&standby.server.url()).build().unwrap();
    let sql = "SELECT count(*) FROM t";
    pool.query(sql, &[]).unwrap();
    pool.with_timeout(60 * SECOND).query(sql, &[]).unwrap();
    pool.transaction(|tx| tx.query(sql, &[])).unwrap();
    assert_eq!(counter(&pool, "millpond_retries_total"), 0);
}

#[test]
fn a_write_that_meets_a_standby_is_done_at_the_primary() {
    let (primary, standby) = pair();
    // The standby comes first, and the URL does not say which kind of server is wanted.
    let standby_first = primary.url().replace(
        &format!("127.0.0.1:{}/", primary.port()),
        &format!(
            "127.0.0.1:{},127.0.0.1:{}/",
            standby.server.port(),
            primary.port()
        ),
    );
    let pool = pool(&standby_first).max_size(4).build().unwrap();
    let on_standby =
        |pool: &Pool| -> bool { pool.read("SELECT pg_is_in_recovery()", &[]).unwrap()[0].get(0) };
    assert!(on_standby(&pool), "the first host is a standby");
    pool.execute("INSERT INTO t VALUES (1)", &[]).unwrap();
    assert!(!on_standby(&pool), "the whole pool has moved");
    pool.transaction(|tx| tx.execute("INSERT INTO t VALUES (2)", &[]))
        .unwrap();
    assert_eq!(keys(&primary.url()), [1, 2]);
    // A write in a call that is declared read-only is refused as before.
    let error = pool
        .call()
        .read_only()
        .execute("INSERT INTO t VALUES (3)", &[])
        .unwrap_err();
    assert_eq!(
        error.sqlstate().map(postgres::error::SqlState::code),
        Some("25006")
    );
    assert!(!error.is_retryable(), "{error:?}");
}

#[test]
fn behind_one_address_the_pool_moves_with_it_to_the_new_primary() {
    let (mut primary, standby) = pair();
    let proxy = Proxy::in_front_of(standby.server.port());
    let by_proxy = proxy.url(&standby.server.url());
    let pool = pool(&by_proxy).retry_policy(
        RetryPolicy::default()
            .max_retries(1000)
            .initial_delay(20 * MS)
            .max_delay(20 * MS),
    );
    let pool = pool.build().unwrap();
    pool.read("SELECT 1", &[]).unwrap();
    thread::scope(|scope| {
        let writer =
            scope.spawn(|| pool.transaction(|tx| tx.execute("INSERT INTO t VALUES (1)", &[])));
        eventually("its connections are retired as those of a standby", || {
            counter(
                &pool,
                "millpond_connections_closed_total{reason=\"failed_over\"}",
            ) > 1
        });
        primary.stop(Stop::Fast);
        standby.promote();
        assert_eq!(writer.join().unwrap().unwrap(), 1);
    });
    assert_eq!(keys(&standby.server.url()), [1]);
}

#[test]
fn a_promotion_that_comes_right_after_the_refusal_hides_it_from_nobody() {
    let (_primary, standby) = pair();
    let standby = Arc::new(standby);
    let proxy = Proxy::in_front_of(standby.server.port());
    let pool = pool(&proxy.url(&standby.server.url())).build().unwrap();
    let promoted = Arc::clone(&standby);
    proxy.on_answer(
        b"C25006\0",
        Act::DeliverAfter(Box::new(move || promoted.promote())),
    );
    let write = pool.transaction(|tx| tx.execute("INSERT INTO t VALUES (1)", &[]));
    assert_eq!(write.unwrap(), 1);
    assert_eq!(keys(&standby.server.url()), [1]);
}

#[test]
fn what_commits_inside_is_not_repeated_for_a_promotion_that_was_before() {
    let (primary, standby) = pair();
    let halves = "CREATE PROCEDURE halves() LANGUAGE plpgsql AS \
                'BEGIN INSERT INTO t VALUES (1); COMMIT; SET TRANSACTION READ ONLY; INSERT INTO t VALUES (2); END'";
    admin(&primary.url()).batch_execute(halves).unwrap();
    let direct = standby.server.url();
    eventually("the standby has it", || {
        let found = admin(&direct).query("SELECT FROM pg_proc WHERE proname = 'halves'", &[]);
        found.unwrap().len() == 1
    });
    let pool = pool(&direct).max_size(1).build().unwrap();
    // The session began on a standby, and survives its promotion.
    pool.read("SELECT 1", &[]).unwrap();
    standby.promote();
    let error = pool.execute("CALL halves()", &[]).unwrap_err();
    assert_eq!(
        error.sqlstate().map(postgres::error::SqlState::code),
        Some("25006")
    );
    assert_eq!(keys(&direct), [1]);
}

#[test]
fn a_pool_that_reads_only_reads_from_a_standby() {
    let (primary, standby) = pair();
    let pool = pool(&url(
        &primary,
        primary.port(),
        &standby,
        "?target_session_attrs=read-only",
    ))
    .build()
    .unwrap();
    let standby = |rows: Vec<millpond::postgres::Row>| rows[0].get::<_, bool>(0);
    let sql = "SELECT pg_is_in_recovery()";
    assert!(standby(pool.query(sql, &[]).unwrap()));
    assert!(standby(pool.transaction(|tx| tx.query(sql, &[])).unwrap()));
    let error = pool
        .transaction(|tx| tx.execute("INSERT INTO t VALUES (1)", &[]))
        .unwrap_err();
    assert_eq!(
        error.sqlstate().map(postgres::error::SqlState::code),
        Some("25006")
    );
}

#[test]
fn sessions_are_on_the_kind_of_server_that_is_asked_for() {
    let (primary, standby) = pair();
    // Which of the two answers: the first host is the primary.
    let is_standby = |attributes: &str| {
        let pool = pool(&url(&primary, primary.port(), &standby, attributes))
            .connection_timeout(SECOND)
            .min_idle(0)
            .retry_policy(millpond::RetryPolicy::none())
            .build()
            .unwrap();
        let found = pool.read("SELECT pg_is_in_recovery()", &[]);
        found.map(|rows| rows[0].get::<_, bool>(0))
    };
    for (asked, standby) in [
        ("any", false),
        ("read-write", false),
        ("primary", false),
        ("read-only", true),
        ("standby", true),
        ("prefer-standby", true),
    ] {
        let found = is_standby(&format!("?target_session_attrs={asked}"));
        assert_eq!(found.unwrap(), standby, "{asked}");
    }
    // In any order, and both are used.
    let random = "?target_session_attrs=any&load_balance_hosts=random";
    let found: std::collections::BTreeSet<_> =
        (0..40).map(|_| is_standby(random).unwrap()).collect();
    assert_eq!(found.len(), 2);
    drop(standby);
    let without = |asked: &str| {
        let pool = pool(&format!("{}?target_session_attrs={asked}", primary.url()))
            .connection_timeout(SECOND)
            .min_idle(0)
            .retry_policy(millpond::RetryPolicy::none())
            .build()
            .unwrap();
        pool.read("SELECT 1", &[]).map(|_| ())
    };
    without("prefer-standby").unwrap();
    for asked in ["standby", "read-only"] {
        let error = without(asked).unwrap_err();
        let said = millpond::error::Chain(&error).to_string();
        assert!(
            said.contains(&format!("target_session_attrs={asked}")),
            "{said}"
        );
    }
}
