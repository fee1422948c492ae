//! `millpond check --database`: what it finds in databases that are fit, and in such that are not.

use super::cli::{run, stderr};
use super::servers::{Frozen, Standby, replicate_synchronously};
use super::support::{SECOND, admin, database, eventually, server};
use millpond::embedded::PrivateServer;
use std::time::Instant;

/// A server that keeps what it was told to keep, unlike those of the other tests.
fn durable(settings: &[(&str, &str)]) -> PrivateServer {
    let durable = [
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("synchronous_commit", "on"),
    ];
    server(&[&durable, settings].concat())
}

/// Runs the check of this database with these settings. Returns the exit code, and the lines.
fn check_with(url: &str, arguments: &[&str], vars: &[(&str, &str)]) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let arguments = [&["check", "--database"], arguments].concat();
    let vars = [&[("DATABASE_URL", url)], vars].concat();
    let output = run(dir.path(), &arguments, &vars);
    let printed = String::from_utf8(output.stdout.clone()).unwrap();
    let complained = stderr(&output);
    assert_eq!(complained, "", "{printed}");
    for line in printed.lines() {
        let level = line.split(' ').next().unwrap();
        assert!(["ok", "note", "wrong"].contains(&level), "{line}");
    }
    (output.status.code(), printed)
}

fn check(url: &str, vars: &[(&str, &str)]) -> (Option<i32>, String) {
    check_with(url, &[], vars)
}

/// It ends with this code, and one line of this level and topic contains the words.
#[track_caller]
fn finds((code, printed): &(Option<i32>, String), expected: i32, level: &str, words: &[&str]) {
    assert_eq!(*code, Some(expected), "{printed}");
    let mut lines = printed.lines().filter(|line| line.starts_with(level));
    let found = lines.any(|line| words.iter().all(|word| line.contains(word)));
    assert!(found, "{level} {words:?} in:\n{printed}");
}

/// A role of its own with a database of its own. Returns the URL.
fn ordinary(server: &PrivateServer, name: &str, encoding: &str) -> String {
    let mut admin = admin(&server.url());
    let role = format!("CREATE ROLE {name} LOGIN PASSWORD 's3cret'");
    admin.batch_execute(&role).unwrap();
    let database = format!(
        "CREATE DATABASE {name} OWNER {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
    );
    admin.batch_execute(&database).unwrap();
    as_role(server, name, name)
}

fn as_role(server: &PrivateServer, role: &str, database: &str) -> String {
    format!(
        "postgresql://{role}:s3cret@127.0.0.1:{}/{database}",
        server.port()
    )
}

#[test]
fn check_database_finds_nothing_amiss_in_a_database_that_is_fit_and_says_what_is_not() {
    let server = durable(&[("max_connections", "60")]);
    let url = ordinary(&server, "app", "UTF8");
    let fit = check(&url, &[]);
    assert_eq!(fit.0, Some(0), "{}", fit.1);
    assert!(
        fit.1.lines().all(|line| line.starts_with("ok ")),
        "{}",
        fit.1
    );
    assert!(fit.1.lines().count() == 11, "{}", fit.1);
    let place = format!("at 127.0.0.1:{}", server.port());
    finds(
        &fit,
        0,
        "ok      server        PostgreSQL ",
        &["a primary", &place],
    );

    // More than the server takes, and how much would fit.
    let many = check(&url, &[("DB_POOL_MAX", "60")]);
    let words = ["max_connections=60", "DB_POOL_MAX=54", "max_connections=66"];
    finds(&many, 1, "wrong   connections", &words);
    let thrice = check_with(&url, &["--instances", "3"], &[]);
    finds(
        &thrice,
        1,
        "wrong   connections",
        &["69 connections", "DB_POOL_MAX=16"],
    );
    let on_budget = check_with(&url, &["--instances", "3"], &[("DB_FLEET_MAX", "40")]);
    finds(&on_budget, 0, "ok      connections", &["DB_FLEET_MAX=40"]);
    // Sessions of other programs take room, those of this one do not.
    let mut others = Vec::new();
    for name in ["psql", "psql", "studio-revenue-manager"] {
        others.push(admin(&format!("{}?application_name={name}", server.url())));
    }
    let beside = check(&url, &[("DB_POOL_MAX", "53")]);
    finds(
        &beside,
        1,
        "wrong   connections",
        &["room for 55", "2 of \"psql\"", "DB_POOL_MAX=52"],
    );
    drop(others);

    // The role and what it may do.
    let mut root = admin(&server.url());
    root.batch_execute("ALTER ROLE app CONNECTION LIMIT 10")
        .unwrap();
    finds(
        &check(&url, &[]),
        1,
        "wrong   connections",
        &["the limit of the role \"app\", 10", "CONNECTION LIMIT 23"],
    );
    root.batch_execute(
        "ALTER ROLE app CONNECTION LIMIT -1; CREATE ROLE guest LOGIN PASSWORD 's3cret'",
    )
    .unwrap();
    let guest = as_role(&server, "guest", "app");
    finds(
        &check(&guest, &[]),
        1,
        "wrong   rights",
        &["GRANT CREATE ON DATABASE \"app\" TO \"guest\""],
    );
    finds(
        &check(&guest, &[("STUDIO_API", "off")]),
        0,
        "note    rights",
        &["only for writes with a key"],
    );
    finds(
        &check(&server.url(), &[]),
        0,
        "note    rights",
        &["superuser"],
    );

    // Settings of the role and of the database.
    let set = "ALTER ROLE guest SET default_transaction_read_only = on; ALTER ROLE guest SET idle_session_timeout = '1min'";
    root.batch_execute(set).unwrap();
    let set = check(&guest, &[("STUDIO_API", "off")]);
    finds(
        &set,
        1,
        "wrong   read only",
        &["default_transaction_read_only is on", "ALTER ROLE"],
    );
    finds(
        &set,
        1,
        "note    timeouts",
        &["idle_session_timeout=60s", "DB_MAX_LIFETIME_MS=60000"],
    );
    let theirs = check(&format!("{url}?options=-c%20statement_timeout%3D60s"), &[]);
    finds(
        &theirs,
        0,
        "note    timeouts",
        &["statement_timeout is 60s"],
    );
    let ascii = ordinary(&server, "ascii", "SQL_ASCII");
    finds(&check(&ascii, &[]), 1, "wrong   encoding", &["SQL_ASCII"]);
    finds(
        &check(&url, &[("DB_POOLER", "on")]),
        0,
        "note    pooler",
        &["none was detected"],
    );
}

#[test]
fn check_database_sees_the_tables_that_the_program_made_and_what_a_role_may_do_with_them() {
    let server = durable(&[]);
    let url = ordinary(&server, "app", "UTF8");
    let dir = super::cli::open_dir(0o755);
    let mut serving = super::cli::serve(dir.path(), &[("DATABASE_URL", &url)]);
    eventually("the schema is there", || serving.is_ready());
    drop(serving);
    finds(
        &check(&url, &[]),
        0,
        "ok      rights",
        &["may use the ledger, studio.ledger"],
    );
    let mut root = admin(&as_role(&server, "app", "app"));
    let mut super_root = admin(&server.url());
    super_root
        .batch_execute("CREATE ROLE guest LOGIN PASSWORD 's3cret'")
        .unwrap();
    let guest = as_role(&server, "guest", "app");
    finds(
        &check(&guest, &[]),
        1,
        "wrong   rights",
        &["GRANT USAGE ON SCHEMA \"studio\" TO \"guest\""],
    );
    root.batch_execute("GRANT USAGE ON SCHEMA studio TO guest; GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA studio TO guest; REVOKE INSERT ON studio.quotes FROM guest").unwrap();
    let found = check(&guest, &[]);
    finds(
        &found,
        1,
        "wrong   rights",
        &["GRANT INSERT ON studio.quotes TO \"guest\""],
    );
    finds(
        &found,
        1,
        "note    rights",
        &["GRANT DELETE ON studio.ledger"],
    );
    root.batch_execute("GRANT INSERT ON studio.quotes TO guest")
        .unwrap();
    assert_eq!(check(&guest, &[]).0, Some(0));
    root.batch_execute("DROP TABLE studio.ledger; CREATE TABLE studio.ledger (balance int)")
        .unwrap();
    finds(&check(&url, &[]), 1, "wrong   rights", &["is not a ledger"]);
}

#[test]
fn check_database_knows_standbys_and_commits_that_would_wait_for_ever() {
    let primary = durable(&[]);
    let url = ordinary(&primary, "app", "UTF8");
    let standby = Standby::of(&primary);
    let there = format!("127.0.0.1:{}", standby.server.port());
    let on_standby = url.replace(&format!("127.0.0.1:{}", primary.port()), &there);
    let found = check(&on_standby, &[]);
    finds(&found, 1, "wrong   read only", &["is a standby"]);
    finds(&found, 1, "ok      server", &["a standby", &there]);
    let reading = format!("{on_standby}?target_session_attrs=read-only");
    finds(
        &check(&reading, &[]),
        1,
        "note    read only",
        &["STUDIO_API=off"],
    );

    replicate_synchronously(&primary);
    let mut root = admin(&primary.url());
    finds(
        &check(&url, &[]),
        0,
        "note    durability",
        &["GRANT pg_read_all_stats"],
    );
    root.batch_execute("GRANT pg_read_all_stats TO app")
        .unwrap();
    finds(&check(&url, &[]), 0, "ok      durability", &["waits for 1"]);
    drop(standby);
    eventually("the standby is gone", || {
        let sql = "SELECT count(*) FROM pg_stat_replication";
        root.query_one(sql, &[]).unwrap().get::<_, i64>(0) == 0
    });
    finds(
        &check(&url, &[]),
        1,
        "wrong   durability",
        &["every COMMIT will hang", "none is connected"],
    );
}

#[test]
fn check_database_says_why_a_database_cannot_be_used_and_no_password() {
    let db = database();
    let mut root = db.admin();
    let name = db.url.rsplit('/').next().unwrap();
    let role = format!("locked_out_{name}");
    root.batch_execute(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'another' CONNECTION LIMIT 0"
    ))
    .unwrap();
    let url = |password: &str| {
        format!(
            "postgresql://{role}:{password}@127.0.0.1:{}/{name}",
            db.port
        )
    };
    let wrong = check(&url("s3cret"), &[]);
    finds(
        &wrong,
        1,
        "wrong   server",
        &["password authentication failed", &role],
    );
    assert!(
        !wrong.1.contains("s3cret") && wrong.1.lines().count() == 1,
        "{}",
        wrong.1
    );
    let full = check(&url("another"), &[]);
    finds(
        &full,
        1,
        "wrong   connections",
        &["too many connections for role"],
    );

    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = unused.local_addr().unwrap().port();
    let begun = Instant::now();
    let silent = format!("postgresql://u:s3cret@127.0.0.1:{port}/d");
    let found = check_with(&silent, &["--timeout-ms", "500"], &[]);
    finds(&found, 1, "wrong   server", &["500ms"]);
    drop(unused);
    finds(
        &check(&silent, &[]),
        1,
        "wrong   server",
        &["Connection refused"],
    );
    assert!(begun.elapsed() < 8 * SECOND, "{:?}", begun.elapsed());
    // The tests' servers are quick, not durable.
    let quick = check(&db.url, &[]);
    finds(&quick, 1, "wrong   durability", &["fsync=off"]);
}

#[test]
fn check_database_waits_no_longer_than_it_was_told_to() {
    let server = server(&[]);
    let frozen = Frozen::tree(server.pid().unwrap());
    let begun = Instant::now();
    let found = check_with(&server.url(), &["--timeout-ms", "700"], &[]);
    finds(&found, 1, "wrong   server", &["700ms"]);
    assert!(begun.elapsed() < 5 * SECOND, "{:?}", begun.elapsed());
    frozen.thaw();
}

#[test]
fn check_database_needs_a_database_that_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for (arguments, vars) in [
        (&["check", "--database"][..], &[][..]),
        (&["check", "--database"], &[("DB_POOL_MAX", "many")]),
        (&["check", "--database", "--live"], &[]),
        (&["check", "--database", "--ready"], &[]),
        (&["check", "--database", "--url", "http://h"], &[]),
        (&["check", "--instances", "3"], &[]),
        (&["check", "--database", "--instances", "0"], &[]),
    ] {
        let output = run(dir.path(), arguments, vars);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{arguments:?}: {}",
            stderr(&output)
        );
    }
    let output = run(dir.path(), &["check", "--database"], &[]);
    assert!(
        stderr(&output).contains("set DATABASE_URL"),
        "{}",
        stderr(&output)
    );
}

#[test]
#[cfg(feature = "lab")]
fn check_database_sees_a_pooler_and_asks_through_it() {
    use super::pooler::{PgBouncer, TRANSACTION};
    let server = durable(&[]);
    let pooler = PgBouncer::in_front_of(
        &server,
        server.port(),
        &[
            TRANSACTION,
            "ignore_startup_parameters=extra_float_digits,options",
        ],
    );
    let url = pooler.url(&server);
    let found = check(&url, &[]);
    finds(&found, 0, "ok      pooler", &["one stands in between"]);
    finds(&found, 0, "note    connections", &["max_client_conn"]);
    finds(&found, 0, "note    timeouts", &["ALTER ROLE"]);
    finds(
        &check(&url, &[("DB_FLEET_MAX", "10")]),
        0,
        "note    pooler",
        &["no effect"],
    );
    finds(
        &check(&url, &[("DB_POOLER", "off")]),
        1,
        "wrong   pooler",
        &["DB_POOLER=auto"],
    );
}
