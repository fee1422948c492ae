//! When an answer breaks off, the reported outcome of a write follows from what the server can have
//! done.

use super::commit::{COMMIT, outcomes, rows};
use super::proxy::{Act, Proxy, fatal, pooler_error};
use super::support::{Database, EndAtDrop, MS, SECOND, admin, counter, database, pool, server};
use millpond::embedded::PrivateServer;
use millpond::{Error, Keyed, Pool};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

const INSERT: &str = "INSERT INTO t VALUES (1)";
/// The server's answer to `INSERT`.
const INSERTED: &[u8] = b"INSERT 0 1\0";

fn set_up() -> (Database, Proxy, Pool) {
    let db = database();
    let proxy = Proxy::in_front_of(db.port);
    db.admin().batch_execute("CREATE TABLE t (n int)").unwrap();
    let pool = pool(&proxy.url(&db.url)).max_size(1).build().unwrap();
    // The statement is prepared now, so that its later requests arrive in one piece.
    pool.execute(INSERT, &[]).unwrap();
    (db, proxy, pool)
}

#[test]
fn a_finished_answer_counts_whatever_comes_right_behind_it() {
    let (db, proxy, pool) = set_up();
    for round in 0..20 {
        let before = rows(&db.url);
        let end = if round % 2 == 0 {
            fatal("57P01")
        } else {
            Vec::new()
        };
        proxy.on_answer(INSERTED, Act::FollowWith(end.clone()));
        assert_eq!(pool.execute(INSERT, &[]).unwrap(), 1);
        assert_eq!(rows(&db.url), before + 1, "once, in round {round}");
        proxy.on_answer(b"COMMIT\0", Act::FollowWith(end));
        pool.transaction(|tx| tx.execute(INSERT, &[])).unwrap();
        assert_eq!(rows(&db.url), before + 2, "once, in round {round}");
    }
    let of = |outcome| outcomes(&pool, outcome);
    assert_eq!((of("committed"), of("unknown")), (0, 0), "nothing was lost");
}

#[test]
fn a_lone_write_whose_session_ends_is_repeated_only_where_it_cannot_be_done() {
    let (db, proxy, pool) = set_up();
    for code in ["57P01", "57P05", "25P03", "25P04"] {
        let before = rows(&db.url);
        // The session ended before the statement was complete, so the server rolled it back, and it
        // is retried.
        proxy.on_request(b"E\0\0\0\x09", Act::AnswerWith(fatal(code)));
        assert_eq!(pool.execute(INSERT, &[]).unwrap(), 1, "{code}");
        assert_eq!(rows(&db.url), before + 1, "{code}");
        // The statement is complete, and its commit is under way.
        proxy.on_answer(INSERTED, Act::BreakOffWith(fatal(code)));
        let error = pool.execute(INSERT, &[]).unwrap_err();
        assert!(error.is_outcome_unknown(), "{code}: {error:?}");
        assert_eq!(
            error.sqlstate().map(postgres::error::SqlState::code),
            Some(code)
        );
        assert_eq!(rows(&db.url), before + 2, "{code}");
        // A read may be retried.
        proxy.on_answer(b"SELECT 1\0", Act::BreakOffWith(fatal(code)));
        pool.read("SELECT 1", &[]).unwrap();
    }
}

#[test]
fn a_middlemans_word_is_not_the_servers() {
    let (db, proxy, pool) = set_up();
    pool.create_ledger().unwrap();
    for (severity, code) in [("FATAL", "08P01"), ("ERROR", "XX000"), ("ERROR", "08006")] {
        let before = rows(&db.url);
        let said = || pooler_error(severity, code);
        // The statement is done, but the pooler lost the connection to the server that did it.
        proxy.on_answer(INSERTED, Act::ReplaceWith(said()));
        let error = pool.execute(INSERT, &[]).unwrap_err();
        assert!(error.is_outcome_unknown(), "{code}: {error:?}");
        assert_eq!(rows(&db.url), before + 1);
        // Inside a transaction nothing is committed yet, so it is retried. The outcome of its
        // COMMIT is found out.
        let mut attempts = 0;
        pool.transaction(|tx| {
            attempts += 1;
            match attempts {
                1 => proxy.on_answer(INSERTED, Act::ReplaceWith(said())),
                2 => proxy.on_request(COMMIT, Act::AnswerWith(said())),
                _ => proxy.on_answer(b"COMMIT\0", Act::ReplaceWith(said())),
            }
            tx.execute(INSERT, &[])
        })
        .unwrap();
        assert_eq!((attempts, rows(&db.url)), (3, before + 2), "{code}");
        // The same with a key.
        let done = pool.transaction_with_key(code, |tx| {
            let done = tx.execute(INSERT, &[]);
            proxy.on_answer(b"COMMIT\0", Act::ReplaceWith(said()));
            done
        });
        assert_eq!(done.unwrap(), Keyed::Done(1), "{code}");
        assert_eq!(rows(&db.url), before + 3, "{code}");
    }
    // While a connection is being opened, the error is a reason to try again.
    pool.close(SECOND);
    let pool = super::support::pool(&proxy.url(&db.url))
        .max_size(1)
        .min_idle(0)
        .build()
        .unwrap();
    proxy.on_request(b"\0user\0", Act::AnswerWith(pooler_error("FATAL", "08P01")));
    pool.execute(INSERT, &[]).unwrap();
    // Where logins take long, another attempt may have been under way, and then no failure counts.
    assert!(!proxy.is_armed());
}

/// A server whose commits take a tenth of a second, which logs every statement, and has this
/// setting too.
fn slow_commits(also: (&str, &str)) -> PrivateServer {
    let server = server(&[
        ("fsync", "on"),
        ("synchronous_commit", "on"),
        ("commit_delay", "100000"),
        ("commit_siblings", "0"),
        ("log_min_duration_statement", "0"),
        also,
    ]);
    admin(&server.url())
        .batch_execute("CREATE TABLE t (n int)")
        .unwrap();
    server
}

/// Applies `function` to the writers' backends while they commit, until `work` is done. Returns the
/// result of `work` and how many backends were met.
fn meanwhile<T>(direct: &str, function: &str, work: impl FnOnce() -> T) -> (T, usize) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = EndAtDrop(&over);
        let meddler = scope.spawn(|| {
            let mut admin = admin(direct);
            let sql = format!(
                "SELECT {function}(pid) FROM pg_stat_activity WHERE application_name = 'slow' AND state = 'active' \
                 AND query ~ '^INSERT|COMMIT$' AND clock_timestamp() - query_start > interval '30 ms'"
            );
            let mut done = 0;
            while !over.load(Ordering::Relaxed) {
                done += admin.query(&sql, &[]).unwrap().len();
                thread::sleep(MS);
            }
            done
        });
        let done = work();
        drop(end);
        (done, meddler.join().unwrap())
    })
}

/// A Unix socket that relays to a port, in a directory and under the name that the driver expects.
pub fn unix_socket(port: u16) -> tempfile::TempDir {
    let dir = tempfile::TempDir::new().unwrap();
    let listener = UnixListener::bind(dir.path().join(format!(".s.PGSQL.{port}"))).unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(mut client) = client else { return };
            let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
            thread::spawn(move || {
                let _ = std::io::copy(&mut server, &mut client);
                let _ = client.shutdown(Shutdown::Both);
            });
        }
    });
    dir
}

#[test]
fn a_commit_that_is_answered_with_an_error_is_found_out() {
    let server = slow_commits(("log_duration", "on"));
    let direct = server.url();
    let pool = pool(&direct).application_name("slow").build().unwrap();
    pool.create_ledger().unwrap();
    for function in ["pg_cancel_backend", "pg_terminate_backend"] {
        let ((), met) = meanwhile(&direct, function, || {
            for n in 0..10 {
                let before = rows(&direct);
                pool.transaction(|tx| tx.execute(INSERT, &[])).unwrap();
                assert_eq!(rows(&direct), before + 1, "{function} {n}");
                let key = format!("{function} {n}");
                let done = pool.execute_with_key(&key, INSERT, &[]).unwrap();
                assert_eq!(done, Keyed::Done(1));
                assert_eq!(rows(&direct), before + 2, "{function} {n}");
            }
        });
        assert!(met >= 10, "{function} met {met} commits only");
    }
    assert!(
        outcomes(&pool, "committed") >= 10,
        "some were answered with an error"
    );
    assert_eq!(outcomes(&pool, "unknown"), 0);
}

#[test]
fn a_session_that_is_ended_while_its_lone_write_commits_does_not_do_it_twice() {
    let server = slow_commits(("log_duration", "on"));
    let direct = server.url();
    write_while_sessions_are_ended(&direct, &direct);
}

/// Writes through `url`, whose answers are followed by the error that ends the session.
fn write_while_sessions_are_ended(direct: &str, url: &str) {
    let pool = pool(url).application_name("slow").build().unwrap();
    pool.execute(INSERT, &[]).unwrap();
    let ((), met) = meanwhile(direct, "pg_terminate_backend", || {
        for n in 0..20 {
            let before = rows(direct);
            let sql = if n % 2 == 0 {
                INSERT.to_owned()
            } else {
                format!("{INSERT} RETURNING n")
            };
            // The error that ends the session follows right behind the answer.
            pool.query(&sql, &[]).unwrap();
            assert_eq!(rows(direct), before + 1, "{n}");
        }
    });
    assert!(met >= 10, "only {met} met their end");
}

#[test]
fn over_a_unix_socket_answers_are_seen_as_well() {
    let server = slow_commits(("log_duration", "on"));
    let direct = server.url();
    let dir = unix_socket(server.port());
    let rest = direct.strip_prefix("postgresql://").unwrap();
    let (who, at) = rest.split_once('@').unwrap();
    let (user, password) = who.split_once(':').unwrap();
    let (_, name) = at.split_once('/').unwrap();
    let socket = format!(
        "host={} port={} user={user} password={password} dbname={name}",
        dir.path().display(),
        server.port()
    );
    write_while_sessions_are_ended(&direct, &socket);
}

#[test]
fn a_mistake_in_reading_rows_rolls_back_and_is_called_a_mistake() {
    let (db, _proxy, pool) = set_up();
    pool.create_ledger().unwrap();
    type Read = fn(&millpond::postgres::Row) -> millpond::Result<()>;
    let mistakes: [(&str, Read); 4] = [
        ("another type", |row| {
            Ok(row.try_get::<_, String>(0).map(drop)?)
        }),
        ("no such column", |row| {
            Ok(row.try_get::<_, i32>("nothing").map(drop)?)
        }),
        ("no such number", |row| {
            Ok(row.try_get::<_, i32>(7).map(drop)?)
        }),
        ("a NULL", |row| Ok(row.try_get::<_, i32>(1).map(drop)?)),
    ];
    for (what, read) in mistakes {
        let before = rows(&db.url);
        let mut attempts = 0;
        let mut work = |tx: &mut millpond::Transaction<'_>| {
            attempts += 1;
            tx.execute(INSERT, &[])?;
            read(&tx.query_one("SELECT 1, NULL::int", &[])?)
        };
        let plain = pool.transaction(&mut work).unwrap_err();
        let keyed = pool.transaction_with_key("k", &mut work).unwrap_err();
        let read_only = pool
            .call()
            .read_only()
            .transaction(|tx| read(&tx.query_one("SELECT 1, NULL::int", &[])?))
            .unwrap_err();
        for error in [plain, keyed, read_only] {
            assert!(matches!(error, Error::Database { .. }), "{what}: {error:?}");
            assert!(
                !error.is_outcome_unknown() && !error.is_retryable(),
                "{what}: {error:?}"
            );
        }
        assert_eq!((attempts, rows(&db.url)), (2, before), "{what}");
    }
    let closed = counter(
        &pool,
        "millpond_connections_closed_total{reason=\"broken\"}",
    );
    assert_eq!(closed, 0, "the connection is as good as before");
}
