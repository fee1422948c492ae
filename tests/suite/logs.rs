//! The log lines that an operator reads.

use super::support::{MS, SECOND, database, eventually, log_lines};

#[test]
fn a_slow_statement_is_named_without_its_values_and_not_over_and_over() {
    let pool = database().pool().slow_query(50 * MS).build().unwrap();
    let started = std::time::Instant::now();
    for _ in 0..3 {
        pool.query(
            "SELECT pg_sleep(0.1), 's3cret', $1::text AS named_slow",
            &[&"s3cret"],
        )
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
    assert!(pool.holders().is_empty());
    let mut held = pool.get_timeout(20 * SECOND).unwrap();
    assert!(pool.holders()[0].statement.is_none());
    let sql = "SELECT $1::text || 's3cret' -- of mine";
    held.query(sql, &[&"hidden"]).unwrap();
    let conn = format!("conn={} held for", held.id());
    let ours = |what| {
        let mut lines = log_lines(what);
        lines.retain(|l| l.contains(&conn) && l.contains("tests/suite/logs.rs"));
        lines
    };
    let named = || ours("a connection may have leaked");
    eventually("the leak is named", || named().len() == 1);
    let line = &named()[0];
    for word in [
        "by thread logs::a_connection_held",
        "its last statement is over for",
        "\"SELECT $1::text || ?\"",
    ] {
        assert!(line.contains(word), "{word}: {line}");
    }
    let holder = &pool.holders()[0];
    assert_eq!(holder.connection, held.id());
    assert!(holder.held >= 80 * MS);
    assert!(holder.statement.as_ref().is_some_and(|last| !last.running));
    drop(held);
    eventually("its return is named", || {
        ours("that may have leaked is back").len() == 1
    });
    assert_eq!(named().len(), 1, "once for a loan");
    assert!(pool.holders().is_empty());
    assert_eq!(super::support::counter(&pool, "millpond_leaks_total"), 1);
    assert!(log_lines("s3cret").is_empty() && log_lines("hidden").is_empty());
    // The next loan is one of its own.
    let held = pool.get_timeout(20 * SECOND).unwrap();
    assert!(pool.holders()[0].statement.is_none());
    eventually("it is named, too", || named().len() == 2);
    drop(held);
}

/// Whether a statement runs is told by its own answer, not by that of a message before it.
#[test]
fn a_statement_runs_until_its_own_answer() {
    let db = database();
    let pool = db.pool().max_size(1).sqlcommenter(true).build().unwrap();
    let running = || {
        let holders = pool.holders();
        let last = holders.first().and_then(|holder| holder.statement.clone());
        last.is_some_and(|last| last.running && last.sql.starts_with("SELECT pg_sleep"))
    };
    std::thread::scope(|scope| {
        // Its description is closed in the message in which it is sent.
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let call = pool
            .call()
            .traceparent(parent.parse::<millpond::Traceparent>().unwrap());
        let call = scope.spawn(move || call.query("SELECT pg_sleep($1)", &[&1.0]));
        eventually("it runs", running);
        std::thread::sleep(200 * MS);
        assert!(running(), "it still runs");
        call.join().unwrap().unwrap();
    });
    db.admin().batch_execute("CREATE TABLE t (n int)").unwrap();
    let mut held = pool.get().unwrap();
    let mut copy = held.copy_in("COPY t FROM STDIN").unwrap();
    std::io::Write::write_all(&mut copy, b"1\n2\n").unwrap();
    let is_over = || !pool.holders()[0].statement.as_ref().unwrap().running;
    assert!(!is_over());
    assert_eq!(copy.finish().unwrap(), 2);
    assert!(is_over());
    held.query("SELECT 1", &[]).unwrap();
    assert!(is_over());
}

/// What is sent is seen on whatever connection and by whatever way.
#[test]
fn who_holds_a_connection_is_told_with_what_runs_on_it() {
    let db = database();
    let pool = db.pool().max_size(1).build().unwrap();
    let shown = || -> Option<(String, bool)> {
        let holders = pool.holders();
        let last = holders.first()?.statement.as_ref()?;
        Some((last.sql.clone(), last.running))
    };
    let sleeping = |what: &str, sql: &str| {
        let shows = || shown().is_some_and(|(text, running)| text == sql && running);
        eventually(what, shows);
        let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()";
        eventually("it is cancelled", || {
            db.admin().query(cancel, &[]).unwrap().len() == 1
        });
    };
    std::thread::scope(|scope| {
        let call = scope.spawn(|| pool.query("SELECT pg_sleep($1)", &[&60.0]));
        sleeping("a prepared one", "SELECT pg_sleep($1)");
        call.join().unwrap().unwrap_err();
        let batch = scope.spawn(|| pool.batch_execute("SELECT pg_sleep(60); SELECT 1"));
        sleeping("several", "SELECT pg_sleep(?); SELECT ?");
        batch.join().unwrap().unwrap_err();
        let in_transaction = scope.spawn(|| {
            pool.transaction(|tx| {
                tx.query("SELECT 2", &[])?;
                tx.query_each("SELECT pg_sleep(60)", &[], |_| {
                    Ok(std::ops::ControlFlow::Continue(()))
                })
            })
        });
        sleeping("row by row", "SELECT pg_sleep(?)");
        in_transaction.join().unwrap().unwrap_err();
        let plain = scope.spawn(|| pool.get().unwrap().simple_query("SELECT pg_sleep(60)"));
        sleeping("on the driver's client", "SELECT pg_sleep(?)");
        plain.join().unwrap().unwrap_err();
    });
    eventually("all are back", || pool.holders().is_empty());
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
            .any(|l| l.starts_with("INFO closed conn=") && l.contains(" uses="))
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
