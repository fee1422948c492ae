//! A transaction's BEGIN is sent with its first statement: it takes no round trip of its own, and no
//! statement ever runs outside of its transaction.

use super::commit::rows;
use super::proxy::{Act, Mode, Proxy};
use super::support::{
    Database, MS, SECOND, admin, counter, database, eventually, pid, pool, server,
};
use super::wire::flights;
use millpond::pool::Builder;
use millpond::postgres::IsolationLevel;
use millpond::retry::Phase;
use millpond::{Error, Pool, RetryPolicy, Transaction};
use std::cell::Cell;
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

/// One connection to a database with a table `t`, through a proxy.
fn set_up(options: impl FnOnce(Builder) -> Builder) -> (Database, Proxy, Pool) {
    let db = database();
    let (proxy, pool) = set_up_at(&db.url, db.port, &db.url, options);
    (db, proxy, pool)
}

/// The same with a server, and a way to it that leads over this port.
fn set_up_at(
    server: &str,
    port: u16,
    way: &str,
    options: impl FnOnce(Builder) -> Builder,
) -> (Proxy, Pool) {
    admin(server)
        .batch_execute(
            "CREATE TABLE t (n int); CREATE TABLE refused (n int); \
             CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
             'BEGIN RAISE EXCEPTION ''not before the data''; END'; \
             CREATE TRIGGER refuse BEFORE INSERT ON refused EXECUTE FUNCTION refuse()",
        )
        .unwrap();
    let proxy = Proxy::in_front_of(port);
    let pool = options(pool(&proxy.url(way)).max_size(1)).build().unwrap();
    pool.execute(INSERT, &[&0]).unwrap();
    pool.query("SELECT n FROM t", &[]).unwrap();
    pool.execute("TRUNCATE t", &[]).unwrap();
    (proxy, pool)
}

const INSERT: &str = "INSERT INTO t VALUES ($1)";
/// The name of a BEGIN, which is a hash of it, on a connection that has prepared it.
pub const BEGIN: &[u8] = b"millpond.a8402858d4f1e1d2\0";
const EACH: &str = "INSERT INTO t VALUES ($1) RETURNING n";

/// Statements kept prepared, not kept, and closed all the time.
const OPTIONS: [fn(Builder) -> Builder; 3] =
    [|b| b, |b| b.statement_cache(0), |b| b.statement_cache(1)];

type First = fn(&mut Transaction<'_>) -> millpond::Result<()>;

/// Ways to insert a row, as the first statement of a transaction.
const FIRST: [(&str, First); 8] = [
    ("known", |tx| tx.execute(INSERT, &[&1]).map(drop)),
    ("new", |tx| {
        let text = format!("{INSERT} -- {}", fastrand::u64(..));
        tx.execute(&text, &[&1]).map(drop)
    }),
    ("query", |tx| tx.query(EACH, &[&1]).map(drop)),
    ("each", |tx| {
        tx.query_each(EACH, &[&1], |_| Ok(ControlFlow::Break(())))
    }),
    ("batch", |tx| tx.batch_execute("INSERT INTO t VALUES (1)")),
    ("savepoint", |tx| {
        tx.savepoint(|tx| tx.execute(INSERT, &[&1]).map(drop))
    }),
    ("copy in", |tx| {
        tx.copy_in("COPY t FROM STDIN", |data| Ok(data.write_all(b"1\n")?))
            .map(drop)
    }),
    ("copy out", |tx| {
        let copy = "COPY (SELECT 1) TO STDOUT";
        tx.copy_out(copy, |data| Ok(std::io::copy(data, &mut std::io::sink())?))?;
        tx.execute(INSERT, &[&1]).map(drop)
    }),
];

fn code(error: &Error) -> &str {
    error.sqlstate().map_or("", |code| code.code())
}

#[test]
fn begin_takes_no_round_trip_of_its_own() {
    let (_db, proxy, pool) = set_up(|b| b);
    let far = pool.with_timeout(60 * SECOND);
    let strict = far.clone().isolation_level(IsolationLevel::Serializable);
    let insert = |tx: &mut Transaction<'_>| tx.execute(INSERT, &[&1]);
    type Work<'w> = &'w dyn Fn();
    let works: [(Work<'_>, &[&str]); 6] = [
        (
            &|| {
                pool.transaction(insert).unwrap();
            },
            &["BEBEBES", "BEPBDES"],
        ),
        (
            &|| {
                let both = |tx: &mut Transaction<'_>| insert(tx).and_then(|_| insert(tx));
                {
                    pool.transaction(both).unwrap();
                };
            },
            &["BEBEBES", "BES", "BEPBDES"],
        ),
        (
            &|| {
                far.execute(INSERT, &[&1]).unwrap();
            },
            &["BEBEBES", "BEPBDES"],
        ),
        (
            &|| {
                strict.transaction(insert).unwrap();
            },
            &["BEBEBES", "BEPBDES"],
        ),
        (
            &|| {
                let read = |tx: &mut Transaction<'_>| tx.query("SELECT n FROM t", &[]);
                drop(pool.call().read_only().transaction(read).unwrap());
            },
            &["BEBEBES", "BEPBDES"],
        ),
        // The simple protocol has no Sync.
        (
            &|| {
                pool.transaction(|tx| tx.batch_execute("SELECT 1")).unwrap();
            },
            &["BEBEPBDES", "Q", "BEPBDES"],
        ),
    ];
    for (work, expected) in works {
        work();
        proxy.take_log();
        work();
        assert_eq!(flights(&proxy.take_log()), expected);
    }
}

#[test]
fn a_transaction_without_statements_sends_nothing() {
    let (_db, proxy, pool) = set_up(|b| b);
    proxy.take_log();
    assert_eq!(pool.transaction(|_| Ok::<_, Error>(7)).unwrap(), 7);
    let error = pool
        .transaction(|_| Err::<(), _>(Error::Misuse("so")))
        .unwrap_err();
    assert!(matches!(error, Error::Misuse("so")), "{error:?}");
    let panics = || pool.transaction(|_| -> millpond::Result<()> { panic!("so") });
    catch_unwind(AssertUnwindSafe(panics)).unwrap_err();
    // Refused by the driver or the pool, before anything is sent.
    let text = |tx: &mut Transaction<'_>| tx.execute(INSERT, &[&"text"]);
    pool.transaction(|tx| tx.execute("COMMIT", &[]))
        .unwrap_err();
    pool.transaction(|tx| tx.execute(INSERT, &[])).unwrap_err();
    assert_eq!(proxy.take_log(), []);
    // The types are looked at again: the statement may have changed.
    pool.transaction(text).unwrap_err();
    proxy.take_log();
    pool.query("SELECT 1", &[]).unwrap();
    let sent = flights(&proxy.take_log()).concat();
    assert!(!sent.contains('Q'), "nothing to roll back: {sent}");
}

#[test]
fn every_kind_of_first_statement_is_inside() {
    for options in OPTIONS {
        let (db, _proxy, pool) = set_up(options);
        every_kind_is_inside(&pool, &db.url);
    }
}

fn every_kind_is_inside(pool: &Pool, url: &str) {
    for (kind, first) in FIRST {
        let undone = pool.transaction(|tx| {
            first(tx)?;
            Err::<(), _>(Error::Misuse("rolled back"))
        });
        let rolled_back = matches!(undone, Err(Error::Misuse("rolled back")));
        assert!(rolled_back, "{kind}: {undone:?}");
        assert_eq!(rows(url), 0, "{kind}");
        pool.transaction(first).unwrap();
        pool.transaction(|tx| first(tx).and_then(|()| first(tx)))
            .unwrap();
        assert_eq!(rows(url), 3, "{kind}");
        pool.execute("TRUNCATE t", &[]).unwrap();
    }
}

/// The server refuses BEGIN, or what is behind it: nothing of what follows is done, whatever the
/// closure does.
#[test]
fn nothing_runs_behind_a_begin_that_failed() {
    let (db, proxy, pool) = set_up(|b| b.statement_cache(0));
    let backend = pid(&pool);
    nothing_runs_behind_a_faulty_text(&pool, &proxy, &db.url);
    assert_eq!(pid(&pool), backend, "the connection was kept");
    // Where BEGIN is prepared, its name is not known. Then no names are used any more.
    for first in FIRST {
        let (db, proxy, pool) = set_up(|b| b);
        pool.transaction(|tx| tx.query("SELECT 1", &[])).unwrap();
        let fault = (BEGIN, &b"millpond.0123456789abcdef\0"[..], "26000");
        nothing_runs_behind(&pool, &proxy, &db.url, fault, first);
    }
}

fn nothing_runs_behind_a_faulty_text(pool: &Pool, proxy: &Proxy, url: &str) {
    let faults: [Fault; 2] = [
        (b"BEGIN", b"BEGIM", "42601"),
        (b"pg_is_in_recovery()", b"pg_is_in_recoverx()", "42883"),
    ];
    for fault in faults {
        for first in FIRST {
            nothing_runs_behind(pool, proxy, url, fault, first);
        }
    }
}

/// What is sent, what arrives, and what the server says to that.
type Fault = (&'static [u8], &'static [u8], &'static str);

fn nothing_runs_behind(
    pool: &Pool,
    proxy: &Proxy,
    url: &str,
    (sent, arrives, expected): Fault,
    (kind, first): (&str, First),
) {
    proxy.on_request(sent, Act::Garble(arrives));
    let (runs, refused) = (Cell::new(0), Cell::new(0));
    let once = pool.with_policy(RetryPolicy::none());
    let result = once.transaction(|tx| {
        runs.set(runs.get() + 1);
        let error = first(tx).expect_err(kind);
        assert!(!proxy.is_armed());
        assert_eq!(code(&error), expected, "{kind}: {error:?}");
        let Error::Database { phase, .. } = &error else {
            panic!("{kind}: {error:?}");
        };
        assert_eq!(*phase, Phase::Preparing, "{kind}");
        // The closure goes on as if nothing had happened.
        for (_, next) in FIRST {
            refused.set(refused.get() + usize::from(next(tx).is_err()));
        }
        Ok::<_, Error>(())
    });
    let aborted = matches!(result, Err(Error::TransactionAborted { .. }));
    assert!(aborted, "{kind}: {result:?}");
    assert_eq!((runs.get(), refused.get()), (1, FIRST.len()), "{kind}");
    assert_eq!(rows(url), 0, "{kind}");
    // The connection is used again, for a transaction that is one.
    pool.transaction(first).unwrap();
    assert_eq!(rows(url), 1, "{kind}");
    pool.execute("TRUNCATE t", &[]).unwrap();
}

#[cfg(feature = "lab")]
#[test]
fn behind_a_pooler_it_is_no_different() {
    use super::pooler::{PgBouncer, TRANSACTION};
    let server = server(&[]);
    let settings = [TRANSACTION, "default_pool_size=2"];
    let pgbouncer = PgBouncer::in_front_of(&server, server.port(), &settings);
    let (direct, way) = (server.url(), pgbouncer.url(&server));
    let (proxy, pool) = set_up_at(&direct, pgbouncer.port, &way, |b| b);
    every_kind_is_inside(&pool, &direct);
    nothing_runs_behind_a_faulty_text(&pool, &proxy, &direct);
    proxy.take_log();
    pool.transaction(|tx| tx.execute(INSERT, &[&1])).unwrap();
    // BEGIN, the limit of idle time, the number; a text that is known, but not by name.
    let flights = flights(&proxy.take_log());
    assert_eq!(flights.len(), 2, "{flights:?}");
}

/// What the pool has prepared for its own use may be deallocated by anybody. If it does not see
/// that, one transaction is done again, and the pool prepares nothing for itself any more.
#[test]
fn statements_of_our_own_that_are_gone_are_no_reason_to_fail() {
    const HIDDEN: &str = "DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$";
    let ways: [(&str, &str, First); 3] = [
        ("a batch", "DEALLOCATE ALL", |tx| {
            tx.batch_execute("DEALLOCATE ALL")
        }),
        ("a statement", "DEALLOCATE ALL", |tx| {
            tx.execute("DEALLOCATE ALL", &[]).map(drop)
        }),
        ("hidden", HIDDEN, |tx| tx.batch_execute(HIDDEN)),
    ];
    for (way, text, deallocate) in ways {
        for keyed in [false, true] {
            let (db, _proxy, pool) = set_up(|b| b);
            pool.create_ledger().unwrap();
            let runs = Cell::new(0);
            let write = |key: &str, deallocates: bool| {
                let work = |tx: &mut Transaction<'_>| {
                    runs.set(runs.get() + 1);
                    tx.batch_execute("INSERT INTO t VALUES (1)")?;
                    if deallocates {
                        deallocate(tx)?;
                    }
                    Ok::<_, Error>(())
                };
                match keyed {
                    true => pool.transaction_with_key(key, work).map(drop),
                    false => pool.transaction(work),
                }
                .unwrap();
                runs.take()
            };
            assert_eq!(write("prepares them", false), 1);
            let first = if text == HIDDEN { 2 } else { 1 };
            assert_eq!(write("deallocates them", true), first, "{way}");
            assert_eq!(write("again", true), 1, "{way}");
            // Before it begins.
            pool.query(text, &[]).unwrap();
            assert_eq!(write("behind", false), 1, "{way}");
            let mut lent = pool.get().unwrap();
            lent.batch_execute(HIDDEN).unwrap();
            drop(lent);
            assert_eq!(write("behind a loan", false), 1, "{way}");
            assert_eq!(rows(&db.url), 5, "{way}");
            // The server itself has said that nothing was committed.
            for outcome in ["unknown", "not_committed"] {
                assert_eq!(super::commit::outcomes(&pool, outcome), 0, "{way}");
            }
        }
    }
}

#[test]
fn a_setting_that_the_server_refuses_is_the_first_statements_error() {
    let (db, proxy, pool) = set_up(|b| b.statement_cache(0));
    let far = pool.with_timeout(60 * SECOND);
    let fault: &[u8] = b"'statement_timeout'";
    proxy.on_request(fault, Act::Garble(b"'statement_timeoux'"));
    let error = far.execute(INSERT, &[&1]).unwrap_err();
    assert_eq!(code(&error), "42704", "{error:?}");
    assert_eq!(rows(&db.url), 0);
    far.execute(INSERT, &[&1]).unwrap();
    assert_eq!(rows(&db.url), 1);
}

/// After a COPY that failed, it is not certain how many answers are still to come, and BEGIN is sent
/// alone.
#[test]
fn after_a_copy_that_failed_transactions_go_on() {
    let (db, proxy, pool) = set_up(|b| b);
    let copy = |table: &str, data: &'static [u8]| {
        pool.transaction(|tx| {
            let sql = format!("COPY {table} FROM STDIN");
            tx.copy_in(&sql, |to| Ok(to.write_all(data)?))
        })
    };
    let insert = || pool.transaction(|tx| tx.execute(INSERT, &[&1])).unwrap();
    copy("t", b"1\n").unwrap();
    insert();
    proxy.take_log();
    insert();
    assert_eq!(flights(&proxy.take_log()), ["BEBEBES", "BEPBDES"]);
    copy("t", b"no number\n").unwrap_err();
    proxy.take_log();
    insert();
    let alone = "PBDES";
    assert_eq!(
        flights(&proxy.take_log()),
        [alone, alone, alone, "BES", alone, alone]
    );
    // A trigger refuses it before the data are read.
    for _ in 0..5 {
        copy("refused", b"1\n").unwrap_err();
        insert();
        insert();
    }
    assert_eq!(rows(&db.url), 14);
}

#[test]
fn a_connection_that_was_ended_while_idle_is_replaced() {
    let (db, _proxy, pool) = set_up(|b| b);
    for n in 1..=5 {
        let backend = pid(&pool);
        db.admin()
            .execute("SELECT pg_terminate_backend($1, 5000)", &[&backend])
            .unwrap();
        pool.transaction(|tx| tx.execute(INSERT, &[&1])).unwrap();
        assert_eq!(rows(&db.url), n);
    }
}

/// The first request or its answer is lost, in whatever way.
#[test]
fn a_first_request_without_an_answer_is_done_once() {
    let (db, proxy, pool) = set_up(|b| b);
    let done = Cell::new(0);
    let write = |call: &millpond::Call<'_>| {
        let runs = Cell::new(0);
        let work = |tx: &mut Transaction<'_>| {
            runs.set(runs.get() + 1);
            tx.execute(INSERT, &[&1])
        };
        let result = call.transaction(work);
        (result, runs.get())
    };
    let acts: [fn() -> Act; 4] = [
        || Act::Lose,
        || Act::DeliverThen(Box::new(|| {})),
        || Act::DeliverLateThen(100 * MS, Box::new(|| {})),
        || Act::AnswerWith(super::proxy::fatal("57P01")),
    ];
    for act in acts {
        proxy.on_request(BEGIN, act());
        let (result, runs) = write(&pool.call());
        result.unwrap();
        assert_eq!(runs, 2);
        done.set(done.get() + 1);
        assert_eq!(rows(&db.url), done.get());
        proxy.on_request(BEGIN, act());
        let (result, runs) = write(&pool.with_policy(RetryPolicy::none()));
        let error = result.unwrap_err();
        assert_eq!(runs, 1);
        assert!(!matches!(error, Error::OutcomeUnknown { .. }), "{error:?}");
        assert_eq!(rows(&db.url), done.get());
    }
    // Both answers come, and then the connection is lost.
    proxy.on_answer(
        b"INSERT 0 1\0",
        Act::FollowWith(super::proxy::fatal("57P01")),
    );
    let (result, _) = write(&pool.call());
    result.unwrap();
    assert_eq!(rows(&db.url), done.get() + 1);
}

#[test]
fn a_first_statement_ends_at_its_deadline() {
    let (db, proxy, pool) = set_up(|b| b.max_size(2));
    let call = pool.with_timeout(300 * MS);
    // The server cancels it.
    let error = call
        .transaction(|tx| tx.query("SELECT pg_sleep(10)", &[]))
        .unwrap_err();
    assert!(error.is_timeout() && code(&error) == "57014", "{error:?}");
    // Nothing passes any more.
    proxy.on_request(
        BEGIN,
        Act::DeliverAfter({
            let switch = proxy.switch();
            Box::new(move || switch(Mode::BlackHole))
        }),
    );
    let started = Instant::now();
    let error = call
        .transaction(|tx| tx.execute(INSERT, &[&1]))
        .unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
    assert!(started.elapsed() < 5 * SECOND, "{:?}", started.elapsed());
    proxy.set(Mode::Pass);
    eventually("it works again", || pool.query("SELECT 1", &[]).is_ok());
    pool.transaction(|tx| tx.execute(INSERT, &[&1])).unwrap();
    assert_eq!(rows(&db.url), 1);
}

/// The proof of what became of a COMMIT needs the number of the transaction, which BEGIN's answer
/// contains.
#[test]
fn the_outcome_of_a_lost_commit_is_still_found_out() {
    let (db, proxy, pool) = set_up(|b| b.max_size(2));
    for n in 1..=2 {
        proxy.on_answer(super::commit::COMMITTED, Act::Lose);
        pool.transaction(|tx| tx.execute(INSERT, &[&1])).unwrap();
        assert_eq!(rows(&db.url), n);
    }
    proxy.on_request(super::commit::COMMIT, Act::Lose);
    let runs = Cell::new(0);
    pool.transaction(|tx| {
        runs.set(runs.get() + 1);
        tx.execute(INSERT, &[&1])
    })
    .unwrap();
    assert_eq!((runs.get(), rows(&db.url)), (2, 3));
    let unknown = "millpond_commit_outcomes_total{outcome=\"unknown\"} ";
    assert_eq!(counter(&pool, unknown), 0);
}

/// Cancels hit BEGIN, its settings and the statement. The closure goes on after each, and what it is
/// told is what was done.
#[test]
fn cancels_at_any_moment_leave_nothing_half_done() {
    let server = server(&[]);
    let mut canceller = admin(&server.url());
    canceller
        .batch_execute("CREATE TABLE t (n int primary key)")
        .unwrap();
    let pool = pool(&server.url()).max_size(4).build().unwrap();
    let stop = AtomicBool::new(false);
    let started = Instant::now();
    // On a busy machine it takes longer until enough has happened.
    let (rows_done, calls_failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let is_over = || {
        let [done, failed] = [&rows_done, &calls_failed].map(|of| of.load(Ordering::SeqCst));
        let enough = done > 10 && failed > 10;
        let most = if enough { 3 } else { 60 };
        started.elapsed() > most * SECOND
    };
    std::thread::scope(|scope| {
        let (stop, pool, is_over) = (&stop, &pool, &is_over);
        let (rows_done, calls_failed) = (&rows_done, &calls_failed);
        scope.spawn(move || {
            let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity \
                          WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'";
            while !stop.load(Ordering::SeqCst) {
                canceller.query(cancel, &[]).unwrap();
            }
        });
        let writers: Vec<_> = (0..4)
            .map(|thread| {
                scope.spawn(move || {
                    let (mut done, mut unknown) = (Vec::new(), Vec::new());
                    for n in (thread..).step_by(4) {
                        if is_over() {
                            break;
                        }
                        let insert = "INSERT INTO t VALUES ($1)";
                        let result = pool.transaction(|tx| {
                            // Whatever became of the first, the second says whether it can go on.
                            let first = tx.execute(insert, &[&(2 * n)]);
                            let second = tx.execute(insert, &[&(2 * n + 1)]);
                            first.and(second)
                        });
                        match result {
                            Ok(_) => {
                                done.extend([2 * n, 2 * n + 1]);
                                rows_done.fetch_add(2, Ordering::SeqCst);
                            }
                            // Those who look for the outcome are cancelled, too.
                            Err(Error::OutcomeUnknown { .. }) => unknown.push(n),
                            Err(_) => {
                                calls_failed.fetch_add(1, Ordering::SeqCst);
                            }
                        }
                    }
                    (done, unknown)
                })
            })
            .collect();
        let all: Vec<_> = writers.into_iter().map(|w| w.join().unwrap()).collect();
        stop.store(true, Ordering::SeqCst);
        let failed = calls_failed.load(Ordering::SeqCst);
        let rows = admin(&server.url())
            .query("SELECT n FROM t ORDER BY n", &[])
            .unwrap();
        let there: HashSet<i32> = rows.iter().map(|row| row.get(0)).collect();
        let unknown: Vec<i32> = all.iter().flat_map(|(_, u)| u).copied().collect();
        let mut done: HashSet<i32> = all.iter().flat_map(|(d, _)| d).copied().collect();
        println!(
            "{} rows, {failed} failed, {} unknown",
            done.len(),
            unknown.len()
        );
        assert!(failed > 10 && done.len() > 10);
        for n in unknown {
            let both = [2 * n, 2 * n + 1];
            assert_eq!(there.contains(&both[0]), there.contains(&both[1]));
            done.extend(both.iter().filter(|n| there.contains(n)));
        }
        let wrong: Vec<_> = there.symmetric_difference(&done).collect();
        assert!(wrong.is_empty(), "not as it was told: {wrong:?}");
    });
}
