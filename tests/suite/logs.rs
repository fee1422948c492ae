//! The log lines that an operator reads.

use super::support::{MS, SECOND, database, eventually, log_lines};

#[test]
fn a_slow_statement_is_named_without_its_values_and_not_over_and_over() {
    let pool = database().pool().slow_query(50 * MS).build().unwrap();
    let started = std::time::Instant::now();
    for _ in 0..3 {
        pool.query("SELECT pg_sleep(0.1), $1::text AS named_slow", &[&"s3cret"])
            .unwrap();
    }
    let lines = log_lines("named_slow");
    assert!(
        lines[0].starts_with("WARN slow statement took="),
        "{lines:?}"
    );
    assert!(
        lines.len() as u64 <= 1 + started.elapsed().as_secs(),
        "{lines:?}"
    );
    assert!(log_lines("s3cret").is_empty());
}

#[test]
fn a_connection_held_for_too_long_is_named_once_with_the_place() {
    let pool = database()
        .pool()
        .max_size(1)
        .leak_threshold(80 * MS)
        .build()
        .unwrap();
    let held = pool.get_timeout(20 * SECOND).unwrap();
    let conn = format!("conn={} held for", held.id());
    let here = || {
        let lines = log_lines("may have leaked");
        lines
            .into_iter()
            .filter(|l| l.contains(&conn) && l.contains("tests/suite/logs.rs"))
            .count()
    };
    eventually("the leak is named", || here() == 1);
    std::thread::sleep(300 * MS);
    assert_eq!(here(), 1);
}

#[test]
fn running_short_is_said_before_it_hurts() {
    let pool = database().pool().max_size(7).build().unwrap();
    let held: Vec<_> = (0..6)
        .map(|_| pool.get_timeout(20 * SECOND).unwrap())
        .collect();
    let lines = log_lines("more than 80 %");
    let ours: Vec<_> = lines
        .iter()
        .filter(|l| l.contains("active=6") && l.contains("max=7"))
        .collect();
    assert!(
        ours.len() == 1 && ours[0].contains("DB_POOL_MAX"),
        "{lines:?}"
    );
    drop(held);
    // The line is logged at most once a minute.
    let _again: Vec<_> = (0..7).map(|_| pool.get().unwrap()).collect();
    assert!(
        !log_lines("more than 80 %")
            .iter()
            .any(|l| l.contains("active=7") && l.contains("max=7"))
    );
}

#[test]
fn retries_and_closes_have_one_shape() {
    let pool = database().pool().max_size(1).max_uses(1).build().unwrap();
    let mut first = true;
    pool.transaction(|tx| -> millpond::Result<_> {
        if std::mem::take(&mut first) {
            tx.batch_execute(
                "DO $$ BEGIN RAISE EXCEPTION 'shape_of_a_retry' USING ERRCODE = '40001'; END $$",
            )?;
        }
        Ok(())
    })
    .unwrap();
    let retry = &log_lines("shape_of_a_retry")[0];
    for part in [
        "INFO retrying attempt=1 pause=",
        "sqlstate=40001",
        "verdict=rolled_back",
    ] {
        assert!(retry.contains(part), "{retry}");
    }
    eventually("the close is logged", || {
        log_lines("reason=max_uses")
            .iter()
            .any(|l| l.starts_with("INFO closed conn=") && l.ends_with("uses=1"))
    });
}

#[test]
fn a_server_whose_commits_a_crash_may_take_is_named_at_the_start() {
    let db = database();
    let pool = db.pool().build().unwrap();
    pool.query("SELECT 1", &[]).unwrap();
    // The tests' server trades durability for speed.
    let lines = log_lines("WARN the server runs with synchronous_commit=off and fsync=off");
    assert!(!lines.is_empty());
}
