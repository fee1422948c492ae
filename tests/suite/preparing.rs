//! A text that the pool knows takes one round trip on a connection that has never seen it, and is
//! never run or read by what was true before.

use super::proxy::{Act, Proxy, fatal};
use super::support::{Database, SECOND, database, eventually, pid, pool};
use super::wire::flights;
use millpond::{Pool, Transaction};

const INSERT: &str = "INSERT INTO t VALUES ($1)";
const SELECT: &str = "SELECT n FROM t ORDER BY 1";

/// One connection at a time to a database with a table `t`, through a proxy. The pool knows its
/// texts.
fn set_up() -> (Database, Proxy, Pool) {
    let db = database();
    db.admin().batch_execute("CREATE TABLE t (n int)").unwrap();
    let proxy = Proxy::in_front_of(db.port);
    let pool = pool(&proxy.url(&db.url)).max_size(1).build().unwrap();
    pool.execute(INSERT, &[&1]).unwrap();
    pool.query(SELECT, &[]).unwrap();
    (db, proxy, pool)
}

/// Replaces the connection by one that has seen no text but this.
fn renew(pool: &Pool) {
    pool.evict();
    pool.query("SELECT 1", &[]).unwrap();
}

fn prepared(pool: &Pool, sql: &str) -> i64 {
    let count = "SELECT count(*) FROM pg_prepared_statements WHERE statement = $1";
    pool.query_scalar(count, &[&sql]).unwrap()
}

#[test]
fn a_known_text_takes_one_round_trip_on_each_connection() {
    let (_db, proxy, pool) = set_up();
    let far = pool.with_timeout(60 * SECOND);
    let insert = |tx: &mut Transaction<'_>| tx.execute(INSERT, &[&1]);
    type Work<'w> = &'w dyn Fn();
    // The preparation goes before the statement, which brings its text this once; and a check of
    // its parameters.
    let works: [(&str, Work<'_>, &[&str], &[&str]); 4] = [
        (
            INSERT,
            &|| assert_eq!(pool.execute(INSERT, &[&1]).unwrap(), 1),
            &["PDPBEPBDES"],
            &["BES"],
        ),
        (
            SELECT,
            &|| drop(pool.query(SELECT, &[]).unwrap()),
            &["PDPBDES"],
            &["BES"],
        ),
        (
            INSERT,
            &|| assert_eq!(pool.transaction(insert).unwrap(), 1),
            &["CPBECPBEPDPBEPBDES", "CPBEPBDES"],
            &["BEBEBES", "BEPBDES"],
        ),
        (
            INSERT,
            &|| assert_eq!(far.execute(INSERT, &[&1]).unwrap(), 1),
            &["CPBECPBEPDPBEPBDES", "CPBEPBDES"],
            &["BEBEBES", "BEPBDES"],
        ),
    ];
    for (sql, work, first, then) in works {
        renew(&pool);
        proxy.take_newest_log();
        for expected in [first, then, then] {
            work();
            assert_eq!(flights(&proxy.take_newest_log()), expected, "{sql}");
        }
        assert_eq!(prepared(&pool, sql), 1);
    }
    // A text that the pool does not know takes one more.
    for expected in [&["PDS", "BES"][..], &["BES"]] {
        proxy.take_newest_log();
        pool.query("SELECT 2", &[]).unwrap();
        assert_eq!(flights(&proxy.take_newest_log()), expected);
    }
    renew(&pool);
    let error = pool.execute(INSERT, &[]).unwrap_err();
    assert!(error.to_string().contains("parameters"), "{error}");
    pool.execute(INSERT, &[&1]).unwrap();
}

/// The tables of values before and after: of the same width, of another, and with another name.
#[test]
fn rows_are_read_by_the_types_that_they_have() {
    let (db, proxy, pool) = set_up();
    let all = "SELECT * FROM t";
    let mut admin = db.admin();
    let mut read = |change: &str| {
        pool.query(all, &[]).unwrap();
        renew(&pool);
        admin.batch_execute(change).unwrap();
        let mut seen = Vec::new();
        for _ in 0..3 {
            proxy.take_newest_log();
            let row = pool.query_one(all, &[]).unwrap();
            let ty = row.columns()[0].type_().name().to_owned();
            // The end of a statement that was given up is not waited for.
            let trips = flights(&proxy.take_newest_log());
            let trips = trips.iter().filter(|sent| *sent != "CS").count();
            seen.push((row, ty, trips));
        }
        assert!(seen.iter().all(|(_, ty, _)| *ty == seen[0].1), "{seen:?}");
        // What was told does not hold, so it is prepared once more, and then known.
        let trips: Vec<_> = seen.iter().map(|(.., trips)| *trips).collect();
        assert_eq!(trips, [1, 2, 1], "{change}");
        seen.swap_remove(0).0
    };
    let row = read("ALTER TABLE t ALTER n TYPE real");
    assert_eq!(row.get::<_, f32>(0), 1.0);
    let row = read("ALTER TABLE t ALTER n TYPE text USING 'long'");
    assert_eq!(row.get::<_, &str>("n"), "long");
    let row = read("ALTER TABLE t RENAME n TO m");
    assert_eq!(row.get::<_, &str>("m"), "long");
    let row = read("ALTER TABLE t ADD o bigint DEFAULT 7");
    assert_eq!((row.len(), row.get::<_, i64>("o")), (2, 7));
    let row = read("DROP TABLE t; CREATE TABLE t (n int); INSERT INTO t VALUES (3)");
    assert_eq!(row.get::<_, i32>(0), 3);
}

/// What a parameter is compared with, which function takes it.
#[test]
fn parameters_are_of_the_types_that_the_server_expects_now() {
    let (db, _proxy, pool) = set_up();
    let mut admin = db.admin();
    admin
        .batch_execute(
            "CREATE EXTENSION citext; CREATE TABLE names (name text); INSERT INTO names VALUES ('Ada'); \
             CREATE TABLE called (which text); CREATE FUNCTION f(varchar) RETURNS text LANGUAGE sql AS \
             $$INSERT INTO called VALUES ('varchar') RETURNING which$$",
        )
        .unwrap();
    let delete = "DELETE FROM names WHERE name = $1";
    let call = "SELECT f($1)";
    let run = |transaction: bool, sql: &str| match transaction {
        false => pool.query(sql, &[&"ada"]).unwrap(),
        true => pool.transaction(|tx| tx.query(sql, &[&"ada"])).unwrap(),
    };
    for transaction in [false, true] {
        run(transaction, delete);
        run(transaction, call);
        renew(&pool);
        admin
            .batch_execute(
                "TRUNCATE called; ALTER TABLE names ALTER name TYPE citext; \
                 CREATE FUNCTION f(text) RETURNS text LANGUAGE sql AS \
                 $$INSERT INTO called VALUES ('text') RETURNING which$$",
            )
            .unwrap();
        run(transaction, delete);
        run(transaction, call);
        let left: i64 = pool
            .query_scalar("SELECT count(*) FROM names", &[])
            .unwrap();
        assert_eq!(left, 0, "Ada is ada now");
        let called: Vec<String> = pool
            .query_scalar("SELECT array_agg(which) FROM called", &[])
            .unwrap();
        assert_eq!(called, ["text"]);
        admin
            .batch_execute(
                "ALTER TABLE names ALTER name TYPE text; INSERT INTO names VALUES ('Ada'); DROP FUNCTION f(text)",
            )
            .unwrap();
    }
}

#[test]
fn an_error_of_the_preparation_is_the_statements() {
    let (db, _proxy, pool) = set_up();
    let insert = |tx: &mut Transaction<'_>| {
        tx.execute(INSERT, &[&2])?;
        tx.execute(INSERT, &[&3])
    };
    let mut admin = db.admin();
    for transaction in [false, true] {
        renew(&pool);
        admin.batch_execute("ALTER TABLE t RENAME TO u").unwrap();
        let error = match transaction {
            false => pool.execute(INSERT, &[&2]),
            true => pool.transaction(insert),
        };
        let error = error.unwrap_err();
        assert_eq!(
            error
                .sqlstate()
                .map(millpond::postgres::error::SqlState::code),
            Some("42P01"),
            "{error:?}"
        );
        admin.batch_execute("ALTER TABLE u RENAME TO t").unwrap();
        for _ in 0..3 {
            pool.transaction(insert).unwrap();
        }
        // A text that fails in a transaction is not kept for a while.
        assert_eq!(prepared(&pool, INSERT), i64::from(!transaction));
    }
    let rows = pool.query(SELECT, &[]).unwrap();
    assert_eq!(rows.len(), 1 + 2 * 3 * 2);
}

/// The values of a statement are converted on this side, and may not fit.
#[test]
fn a_statement_that_is_not_sent_leaves_nothing_behind() {
    let (_db, proxy, pool) = set_up();
    renew(&pool);
    let error = pool.execute(INSERT, &[&"text"]).unwrap_err();
    assert!(error.sqlstate().is_none(), "{error:?}");
    proxy.take_newest_log();
    pool.query("SELECT 1", &[]).unwrap();
    let sent = flights(&proxy.take_newest_log()).concat();
    assert!(sent.ends_with("BES") && !sent.contains("PD"), "{sent}");
    pool.execute(INSERT, &[&1]).unwrap();
    assert_eq!(prepared(&pool, INSERT), 1);
}

#[test]
fn a_first_run_without_an_answer_is_done_once() {
    let (db, proxy, pool) = set_up();
    let insert = |tx: &mut Transaction<'_>| tx.execute(INSERT, &[&1]);
    let acts: [fn() -> Act; 3] = [
        || Act::Lose,
        || Act::DeliverThen(Box::new(|| {})),
        || Act::AnswerWith(fatal("57P01")),
    ];
    for (n, act) in acts.iter().enumerate() {
        renew(&pool);
        proxy.on_request(INSERT.as_bytes(), act());
        pool.transaction(insert).unwrap();
        assert!(!proxy.is_armed());
        assert_eq!(super::commit::rows(&db.url), n as i64 + 2);
        // Of a statement alone it is known only if the server says so.
        renew(&pool);
        pool.execute("UPDATE t SET n = n", &[]).unwrap();
        renew(&pool);
        proxy.on_request(b"UPDATE t", act());
        let done = pool.execute("UPDATE t SET n = n", &[]);
        assert!(!proxy.is_armed());
        match done {
            Ok(rows) => assert_eq!((n, rows), (2, 4)),
            Err(error) => assert!(n < 2 && error.is_outcome_unknown(), "{error:?}"),
        }
    }
}

/// Has the pool open a connection that nobody waits for.
fn open_ahead(pool: &Pool, proxy: &Proxy) {
    let before = proxy.accepted();
    pool.evict();
    eventually("another connection", || {
        proxy.accepted() > before && pool.stats().idle == 1
    });
}

#[test]
fn a_connection_that_is_opened_ahead_knows_what_the_pool_uses() {
    let (db, proxy, pool) = set_up();
    db.admin().batch_execute("CREATE TABLE gone ()").unwrap();
    let once = "SELECT 'once'";
    pool.query(once, &[]).unwrap();
    for _ in 0..2 {
        renew(&pool);
        pool.query(SELECT, &[]).unwrap();
        pool.execute(INSERT, &[&1]).unwrap();
    }
    open_ahead(&pool, &proxy);
    for sql in [SELECT, INSERT] {
        assert_eq!(prepared(&pool, sql), 1, "{sql}");
    }
    assert_eq!(prepared(&pool, once), 0);
    // One that cannot be prepared any more does not keep the others away.
    for _ in 0..6 {
        renew(&pool);
        pool.query("SELECT FROM gone", &[]).unwrap();
    }
    db.admin().batch_execute("DROP TABLE gone").unwrap();
    open_ahead(&pool, &proxy);
    assert_eq!(prepared(&pool, INSERT), 1);
    proxy.take_newest_log();
    pool.execute(INSERT, &[&1]).unwrap();
    assert_eq!(flights(&proxy.take_newest_log()), ["BES"]);
    // Somebody's lock is not waited for, and nothing is left of the attempt.
    let mut admin = db.admin();
    let mut locked = admin.transaction().unwrap();
    locked.batch_execute("LOCK TABLE t").unwrap();
    open_ahead(&pool, &proxy);
    assert_eq!(prepared(&pool, INSERT), 0);
    let state = "SELECT state FROM pg_stat_activity WHERE pid = $1";
    let state = db.admin().query_one(state, &[&pid(&pool)]).unwrap();
    assert_eq!(state.get::<_, &str>(0), "idle");
    let timeout: String = pool.query_scalar("SHOW lock_timeout", &[]).unwrap();
    assert_eq!(timeout, "0");
    locked.commit().unwrap();
    for _ in 0..2 {
        pool.execute(INSERT, &[&1]).unwrap();
    }
    assert_eq!(prepared(&pool, INSERT), 1);
}
