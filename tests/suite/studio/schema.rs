//! The schema is created at the start, by one of several processes, and as soon as the database is
//! reachable.

use super::{Served, count, served, slot};
use crate::http;
use crate::servers::Frozen;
use crate::servers::Standby;
use crate::support::{SECOND, admin, database, eventually, server};
use millpond::embedded::Stop;
use millpond::studio::SchemaError;
use std::thread;

#[test]
fn of_several_servers_that_start_together_one_makes_it() {
    let db = database();
    let several: Vec<Served> = (0..4).map(|_| Served::start(&db.url, &[])).collect();
    thread::scope(|scope| {
        let all: Vec<_> = several
            .iter()
            .map(|served| scope.spawn(|| served.studio.migrate()))
            .collect();
        for one in all {
            one.join().unwrap().unwrap();
        }
    });
    for served in &several {
        assert_eq!(served.get("/api/studios").status, 200);
    }
    assert_eq!(
        count(&db.url, "SELECT count(*) FROM studio.schema_history"),
        1
    );
    assert_eq!(count(&db.url, "SELECT count(*) FROM studio.studios"), 3);
}

#[test]
fn it_is_not_ready_before_its_schema_is_there() {
    let mut database = server(&[]);
    database.stop(Stop::Fast);
    let served = Served::start(&database.url(), &[("DB_FAIL_FAST_AFTER_MS", "60000")]);
    let ready = || {
        let answer = http::get(served.addr, "/health/ready");
        (
            answer.status,
            answer.json()["status"].as_str().unwrap().to_owned(),
        )
    };
    thread::scope(|scope| {
        let migration = scope.spawn(|| served.studio.migrate());
        assert_eq!(ready(), (503, "starting".into()));
        assert_eq!(served.get("/api/studios").status, 503);
        database.start_again().unwrap();
        migration.join().unwrap().unwrap();
        eventually("it is ready", || ready() == (200, "ready".into()));
        assert_eq!(served.get("/api/studios").status, 200);
    });
}

#[test]
fn a_migration_elsewhere_is_waited_for_and_one_that_is_interrupted_starts_over() {
    let db = database();
    let mut other = db.admin();
    other
        .execute("SELECT pg_advisory_lock($1)", &[&0x6d69_6c6c_706f_6e64_i64])
        .unwrap();
    let served = Served::start(&db.url, &[]);
    thread::scope(|scope| {
        let migration = scope.spawn(|| served.studio.migrate());
        eventually("it has connected", || served.pool.has_connected());
        for _ in 0..3 {
            eventually("it looks again, and is cut off", || {
                let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                           WHERE query LIKE '%pg_try_advisory_lock%' AND pid <> pg_backend_pid() \
                           AND datname = current_database()";
                other.query_one(end, &[]).unwrap().get::<_, i64>(0) > 0
            });
            assert!(!migration.is_finished());
            let ready = http::get(served.addr, "/health/ready");
            assert_eq!(
                (ready.status, ready.json()["status"].as_str()),
                (503, Some("starting"))
            );
        }
        other
            .execute("SELECT pg_advisory_unlock_all()", &[])
            .unwrap();
        migration.join().unwrap().unwrap();
    });
    assert_eq!(served.get("/api/studios").status, 200);
}

#[test]
fn a_role_that_may_not_make_it_is_told_so() {
    let db = database();
    let mut admin = db.admin();
    let role = format!("ordinary_{}", db.url.rsplit('_').next().unwrap());
    admin
        .batch_execute(&format!("CREATE ROLE {role} LOGIN PASSWORD 'p'"))
        .unwrap();
    let (_, rest) = db.url.split_once('@').unwrap();
    let served = Served::start(&format!("postgresql://{role}:p@{rest}"), &[]);
    let error = served.studio.migrate().unwrap_err();
    assert!(matches!(error, SchemaError::Migration(_)));
    let said = millpond::error::Chain(&error).to_string();
    assert!(said.contains("permission denied"), "{said}");
    assert!(!said.contains(":p@"), "{said}");
    // If the schema is complete, nothing has to be created.
    Served::on(&db.url, &[]);
    admin
        .batch_execute(&format!(
            "GRANT USAGE ON SCHEMA studio TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA studio TO {role}"
        ))
        .unwrap();
    served.studio.migrate().unwrap();
}

#[test]
fn a_pool_that_is_closed_makes_no_schema() {
    let mut database = server(&[]);
    database.stop(Stop::Fast);
    let served = Served::start(&database.url(), &[]);
    thread::scope(|scope| {
        let migration = scope.spawn(|| served.studio.migrate());
        served.pool.close(SECOND);
        assert!(matches!(
            migration.join().unwrap(),
            Err(SchemaError::Closed)
        ));
    });
}

#[test]
fn a_pool_that_closes_ends_a_migration_also_on_a_frozen_server() {
    for freezes in [false, true] {
        let database = server(&[]);
        let served = Served::start(&database.url(), &[]);
        thread::scope(|scope| {
            let mut holder = admin(&database.url());
            holder.batch_execute("BEGIN; CREATE SCHEMA studio").unwrap();
            let migration = scope.spawn(|| served.studio.migrate());
            let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
            eventually("it waits for the lock", || {
                count(&database.url(), waits) == 1
            });
            let _frozen = freezes.then(|| Frozen::tree(database.pid().unwrap()));
            served.pool.close(4 * SECOND);
            eventually("the migration has ended", || migration.is_finished());
            let ended = migration.join().unwrap();
            assert!(matches!(ended, Err(SchemaError::Closed)), "{ended:?}");
        });
    }
}

#[test]
fn a_schema_that_is_newer_than_the_program_is_refused_with_a_sentence() {
    let db = database();
    let served = Served::on(&db.url, &[]);
    db.admin()
        .batch_execute(
            "INSERT INTO studio.schema_history (version, name, applied_on, checksum) \
             SELECT 9999, 'from_the_future', applied_on, '1' FROM studio.schema_history LIMIT 1",
        )
        .unwrap();
    let error = served.studio.migrate().unwrap_err().to_string();
    assert!(
        error.contains("version 9999") && error.contains("newer millpond"),
        "{error}"
    );
}

#[test]
fn a_database_that_cannot_hold_it_is_refused_with_a_sentence() {
    for encoding in ["LATIN1", "SQL_ASCII", "EUC_JP"] {
        let db = database();
        let name = format!("test_{}", encoding.to_lowercase());
        let create = format!(
            "CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        );
        db.admin().batch_execute(&create).unwrap();
        let (base, _) = db.url.rsplit_once('/').unwrap();
        let served = Served::start(&format!("{base}/{name}"), &[]);
        let error = served.studio.migrate().unwrap_err().to_string();
        assert!(
            error.contains("UTF8") && error.contains(encoding),
            "{error}"
        );
    }
}

#[test]
fn a_table_of_its_name_that_is_not_its_own_is_named() {
    let there = [
        ("studios", "CREATE TABLE studio.studios (x int)"),
        ("invoices", "CREATE VIEW studio.invoices AS SELECT 1"),
        (
            "schema_history",
            "CREATE TABLE studio.schema_history (x int)",
        ),
        ("ledger", "CREATE TABLE studio.ledger (key text, at date)"),
    ];
    for (name, sql) in there {
        let db = database();
        db.admin()
            .batch_execute(&format!("CREATE SCHEMA studio; {sql}"))
            .unwrap();
        let served = Served::start(&db.url, &[]);
        let error = served.studio.migrate().unwrap_err().to_string();
        assert!(
            error.contains(&format!("the table studio.{name} exists but")),
            "{error}"
        );
    }
}

#[test]
fn of_several_hosts_the_one_that_takes_writes_is_found_for_it_and_for_balancers() {
    let primary = server(&[("wal_level", "replica")]);
    let standby = Standby::of(&primary);
    let hosts = format!(
        "127.0.0.1:{},127.0.0.1:{}",
        standby.server.port(),
        primary.port()
    );
    let url = primary
        .url()
        .replace(&format!("127.0.0.1:{}", primary.port()), &hosts);
    let first = Served::on(&url, &[]);
    assert_eq!(first.post("/api/reservations", &slot(1, 1)).status, 201);
    drop(first);
    let second = Served::on(&url, &[]);
    eventually("it is ready", || second.get("/health/ready").status == 200);
}

#[test]
fn a_database_that_takes_no_writes_yet_is_waited_for() {
    let database = server(&[("default_transaction_read_only", "on")]);
    let served = Served::start(&database.url(), &[]);
    thread::scope(|scope| {
        let migration = scope.spawn(|| served.studio.migrate());
        eventually("it has connected", || served.pool.has_connected());
        thread::sleep(SECOND);
        assert!(!migration.is_finished());
        let mut admin = admin(&database.url());
        for sql in ["SET", "ALTER ROLE postgres SET"] {
            let sql = format!("{sql} default_transaction_read_only = off");
            admin.batch_execute(&sql).unwrap();
        }
        migration.join().unwrap().unwrap();
    });
    assert_eq!(served.get("/api/studios").status, 200);
}

#[test]
fn a_ledger_that_is_gone_is_made_again_and_a_table_that_is_gone_is_named() {
    let (db, served) = served();
    thread::scope(|scope| {
        let kept = scope.spawn(|| served.studio.keep_migrated());
        db.admin()
            .batch_execute("DROP TABLE studio.ledger")
            .unwrap();
        eventually("writes go on", || {
            served.post("/api/reservations", &slot(1, 1)).status == 201
        });
        served.pool.close(SECOND);
        kept.join().unwrap().unwrap();
    });
    db.admin()
        .batch_execute("DROP TABLE studio.quotes")
        .unwrap();
    let next = Served::start(&db.url, &[]);
    let error = next.studio.migrate().unwrap_err().to_string();
    assert!(
        error.contains("studio.quotes and its data are missing"),
        "{error}"
    );
}
