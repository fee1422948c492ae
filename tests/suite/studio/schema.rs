//! The schema is made at the start, by one of several, and as soon as the database is there.

use super::{Served, count};
use crate::http;
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
        // One that is at the schema already is waited for, however long it takes.
        let mut first = None;
        database.start_again().unwrap();
        eventually("somebody else migrates", || {
            let mut other = admin(&database.url());
            let locked = other.query_one(
                "SELECT pg_try_advisory_lock($1)",
                &[&0x6d69_6c6c_706f_6e64_i64],
            );
            first = locked.unwrap().get::<_, bool>(0).then_some(other);
            first.is_some() || migration.is_finished()
        });
        if first.is_some() && !migration.is_finished() {
            eventually("it has connected", || served.pool.has_connected());
            assert_eq!(ready(), (503, "starting".into()));
        }
        drop(first);
        migration.join().unwrap().unwrap();
        eventually("it is ready", || ready() == (200, "ready".into()));
        assert_eq!(served.get("/api/studios").status, 200);
    });
}

#[test]
fn a_migration_that_is_interrupted_starts_over() {
    let db = database();
    let mut holder = db.admin();
    holder
        .execute("SELECT pg_advisory_lock($1)", &[&0x6d69_6c6c_706f_6e64_i64])
        .unwrap();
    let served = Served::start(&db.url, &[]);
    thread::scope(|scope| {
        let migration = scope.spawn(|| served.studio.migrate());
        let mut ended = 0;
        while ended < 3 {
            let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                       WHERE wait_event = 'advisory' AND datname = current_database()";
            ended += holder.query_one(end, &[]).unwrap().get::<_, i64>(0);
            assert!(!migration.is_finished());
        }
        holder
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
