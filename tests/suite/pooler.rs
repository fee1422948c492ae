//! The pool behind PgBouncer, in session and transaction mode.

use super::commit::{COMMITTED, outcomes};
use super::proxy::{Act, Proxy};
use super::servers::signal;
use super::support::{
    MS, SECOND, admin, eventually, log_lines, over_tls, pool, server, shared_server,
};
use super::writers::{
    EVERY_WAY, check_all, pool_for_writers, repeat, server_for_writers, terminate_for, write_during,
};
use millpond::config::Pooler;
use millpond::embedded::{PrivateServer, Stop};
use millpond::{Keyed, Pool};
use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;
use tempfile::TempDir;

pub const TRANSACTION: &str = "pool_mode=transaction";
const SESSION: &str = "pool_mode=session";
const BOTH: [&str; 2] = [TRANSACTION, SESSION];
/// PgBouncer's manual recommends this for drivers that send options; PgBouncer then drops the
/// options.
const DROPS_OPTIONS: &str = "ignore_startup_parameters=extra_float_digits,options";

/// A PgBouncer of the test's own, which ends when this is dropped.
pub struct PgBouncer {
    pub port: u16,
    owner: (u32, u32),
    process: Child,
    dir: TempDir,
}

impl PgBouncer {
    /// Starts PgBouncer in front of a server's port, with these settings.
    pub fn in_front_of(server: &PrivateServer, upstream: u16, settings: &[&str]) -> PgBouncer {
        let dir = TempDir::new().expect("a directory");
        let owner = fs::metadata(server.dir()).expect("the server's directory");
        let owner = (owner.uid(), owner.gid());
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|l| l.local_addr())
            .expect("a free port")
            .port();
        let url = server.url();
        let (user, rest) = url
            .strip_prefix("postgresql://")
            .and_then(|rest| rest.split_once(':'))
            .expect("a URL with a user");
        let (password, _) = rest.split_once('@').expect("a URL with a password");
        let users = dir.path().join("users.txt");
        fs::write(&users, format!("\"{user}\" \"{password}\"\n")).expect("users.txt");
        let tls = over_tls().map_or_else(String::new, |files| {
            format!(
                "client_tls_sslmode=prefer\nclient_tls_cert_file={}\nclient_tls_key_file={}\nserver_tls_sslmode=prefer",
                files.certificate.display(),
                files.key.display()
            )
        });
        let ini = format!(
            "[databases]\n* = host=127.0.0.1 port={upstream}\n[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\n\
             auth_type=trust\nauth_file={}\nunix_socket_dir={}\nmax_client_conn=500\ndefault_pool_size=40\n\
             server_login_retry=1\nserver_check_delay=0\n{tls}\n{}\n",
            users.display(),
            dir.path().display(),
            settings.join("\n")
        );
        fs::write(dir.path().join("pgbouncer.ini"), ini).expect("pgbouncer.ini");
        for path in [
            dir.path().to_owned(),
            users,
            dir.path().join("pgbouncer.ini"),
        ] {
            chown(path, Some(owner.0), Some(owner.1)).expect("chown");
        }
        let process = PgBouncer::start(&dir, owner, port);
        PgBouncer {
            port,
            owner,
            process,
            dir,
        }
    }

    fn start(dir: &TempDir, owner: (u32, u32), port: u16) -> Child {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(dir.path().join("log"))
            .expect("a log");
        let process = Command::new("pgbouncer")
            .arg(dir.path().join("pgbouncer.ini"))
            .uid(owner.0)
            .gid(owner.1)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("PgBouncer: apt-get install pgbouncer");
        eventually("PgBouncer listens", || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
        });
        process
    }

    /// The same URL, but through PgBouncer.
    pub fn url(&self, server: &PrivateServer) -> String {
        let there = format!(":{}/", server.port());
        server.url().replace(&there, &format!(":{}/", self.port))
    }

    /// The same, over PgBouncer's Unix socket.
    fn socket_url(&self, server: &PrivateServer) -> String {
        let url = server.url();
        let rest = url.strip_prefix("postgresql://").expect("a URL");
        let (user, _) = rest.split_once(':').expect("a user");
        let database = url.rsplit_once('/').expect("a database").1;
        format!(
            "host={} port={} user={user} dbname={database}",
            self.dir.path().display(),
            self.port
        )
    }

    /// Restarts PgBouncer as after a crash: requests that are under way are lost.
    fn restart(&mut self) {
        self.end();
        self.process = PgBouncer::start(&self.dir, self.owner, self.port);
    }

    /// Lets another process end it and remove its files, for one that is never dropped.
    fn end_with_this_process(&self) {
        Command::new("sh")
            .args([
                "-c",
                "cat; kill $0; rm -r $1",
                &self.process.id().to_string(),
            ])
            .arg(self.dir.path())
            .stdin(Stdio::piped())
            .spawn()
            .map(std::mem::forget)
            .expect("sh");
    }

    fn end(&mut self) {
        signal(self.process.id(), "KILL");
        self.process.wait().expect("its end");
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        self.end();
    }
}

/// The same URL behind a PgBouncer in front of the shared server, in the mode that
/// `MILLPOND_TEST_POOLER` names, if it is set: to run any test of the pool behind a pooler.
pub fn in_between(url: &str) -> Option<String> {
    static SHARED: OnceLock<PgBouncer> = OnceLock::new();
    let mode = std::env::var("MILLPOND_TEST_POOLER").ok()?;
    let server = shared_server();
    let there = format!(":{}/", server.port());
    url.contains(&there).then(|| {
        let shared = SHARED.get_or_init(|| {
            let mode = format!("pool_mode={mode}");
            let shared = PgBouncer::in_front_of(server, server.port(), &[&mode, DROPS_OPTIONS]);
            shared.end_with_this_process();
            shared
        });
        url.replace(&there, &format!(":{}/", shared.port))
    })
}

fn behind(settings: &[&str]) -> (PrivateServer, PgBouncer) {
    let server = server(&[]);
    let pgbouncer = PgBouncer::in_front_of(&server, server.port(), settings);
    (server, pgbouncer)
}

fn one(pool: &Pool, sql: &str) -> String {
    pool.query(sql, &[]).unwrap()[0].get(0)
}

#[test]
fn a_pooler_is_seen_and_nothing_is_set_on_what_it_shares() {
    for mode in BOTH {
        for options in [DROPS_OPTIONS, "# options are refused"] {
            let (server, pgbouncer) = behind(&[mode, options, "default_pool_size=1"]);
            let url = pgbouncer.url(&server);
            let seen = log_lines("connected through a pooler").len();
            let warned = log_lines("statement_timeout is off on the server").len();
            let pool = pool(&url).max_size(1).build().unwrap();
            pool.create_ledger().unwrap();
            pool.execute("SELECT 1", &[]).unwrap();
            assert!(
                log_lines("connected through a pooler").len() > seen,
                "{mode}"
            );
            assert!(
                log_lines("statement_timeout is off on the server").len() > warned,
                "{mode} {options}: the timeout is not in force"
            );
            // In a transaction, the timeout is in force.
            let inside = pool
                .transaction(|tx| tx.query_one("SHOW statement_timeout", &[]))
                .unwrap();
            assert_eq!(inside.get::<_, String>(0), "5s");
            // There is only one server connection. If the resolver of a lost COMMIT left its
            // settings there, the next client would see them.
            drop(pool.get().unwrap());
            let keyed = pool.execute_with_key("k", "SELECT 1", &[]).unwrap();
            assert_eq!(keyed, Keyed::Done(1));
            pool.close(SECOND);
            let mut stranger = admin(&url);
            for (setting, value) in [("statement_timeout", "0"), ("lock_timeout", "0")] {
                let row = stranger.query_one(&format!("SHOW {setting}"), &[]).unwrap();
                assert_eq!(row.get::<_, String>(0), value, "{mode} {setting}");
            }
        }
    }
}

#[test]
fn behind_a_unix_socket_the_refusal_of_options_gives_a_pooler_away() {
    let (server, pgbouncer) = behind(&[TRANSACTION, "default_pool_size=1"]);
    let pool = pool(&pgbouncer.socket_url(&server))
        .max_size(1)
        .build()
        .unwrap();
    pool.execute("SELECT 1", &[]).unwrap();
    let mut stranger = admin(&pgbouncer.url(&server));
    let row = stranger.query_one("SHOW statement_timeout", &[]).unwrap();
    assert_eq!(row.get::<_, String>(0), "0");
}

#[test]
fn statements_are_not_prepared_by_name_where_another_server_may_answer() {
    for by_socket in [false, true] {
        let (server, pgbouncer) = behind(&[TRANSACTION, DROPS_OPTIONS, "default_pool_size=4"]);
        let url = match by_socket {
            false => pgbouncer.url(&server),
            true => pgbouncer.socket_url(&server),
        };
        let pool = pool(&url).max_size(8).build().unwrap();
        pool.create_ledger().unwrap();
        let until = Instant::now() + 2 * SECOND;
        thread::scope(|scope| {
            for writer in 0..8 {
                let pool = &pool;
                scope.spawn(move || {
                    for n in 0.. {
                        if Instant::now() >= until {
                            break;
                        }
                        let rows = pool.query("SELECT $1::int", &[&n]).unwrap();
                        assert_eq!(rows[0].get::<_, i32>(0), n);
                        let key = format!("{}-{writer}-{n}", pgbouncer.port);
                        pool.transaction_with_key(&key, |tx| tx.query("SELECT $1::int", &[&n]))
                            .unwrap();
                    }
                });
            }
        });
        assert_eq!(
            super::support::counter(&pool, "millpond_retries_total"),
            0,
            "nothing had to be repeated"
        );
        let mut stranger = admin(&pgbouncer.url(&server));
        for _ in 0..8 {
            assert_eq!(prepared(&mut stranger), 0, "by_socket={by_socket}");
        }
    }
}

#[test]
fn a_lost_commit_is_unknown_without_a_key_and_ends_nobody_elses_transaction() {
    for mode in BOTH {
        let server = server(&[]);
        // The proxy is between the pooler and the server: if a message is lost there, the pooler
        // reports an error in its own words.
        let proxy = Proxy::in_front_of(server.port());
        let pgbouncer = PgBouncer::in_front_of(&server, proxy.port, &[mode, DROPS_OPTIONS]);
        let url = pgbouncer.url(&server);
        admin(&server.url())
            .batch_execute("CREATE TABLE t (n int)")
            .unwrap();
        let pool = pool(&url).max_size(2).build().unwrap();
        pool.create_ledger().unwrap();
        let rows = || super::commit::rows(&server.url());
        let insert = "INSERT INTO t VALUES (1)";

        proxy.on_answer(b"INSERT 0 1\0", Act::Lose);
        let error = pool.execute(insert, &[]).unwrap_err();
        assert!(error.is_outcome_unknown(), "{mode} lone: {error:?}");
        assert_eq!(rows(), 1);

        let mut attempts = 0;
        let error = pool
            .transaction(|tx| -> millpond::Result<_> {
                attempts += 1;
                tx.execute(insert, &[])?;
                proxy.on_answer(COMMITTED, Act::Lose);
                Ok(())
            })
            .unwrap_err();
        assert!(error.is_outcome_unknown(), "{mode} transaction: {error:?}");
        assert_eq!((attempts, rows(), outcomes(&pool, "unknown")), (1, 2, 1));

        let done = pool.transaction_with_key("k", |tx| -> millpond::Result<_> {
            tx.execute(insert, &[])?;
            proxy.on_answer(COMMITTED, Act::Lose);
            Ok(())
        });
        assert_eq!(done.unwrap(), Keyed::Done(()), "{mode}");
        assert_eq!((rows(), outcomes(&pool, "committed")), (3, 1));
        // A COMMIT that is lost before it reaches the server is retried.
        let mut attempts = 0;
        let done = pool.transaction_with_key("l", |tx| -> millpond::Result<_> {
            attempts += 1;
            tx.execute(insert, &[])?;
            if attempts == 1 {
                proxy.on_request(super::commit::COMMIT, Act::Lose);
            }
            Ok(())
        });
        assert_eq!(done.unwrap(), Keyed::Done(()), "{mode}");
        assert_eq!(
            (attempts, rows(), outcomes(&pool, "not_committed")),
            (2, 4, 1)
        );
        // Inside a transaction, before its COMMIT, a lost server connection only causes a retry.
        let mut attempts = 0;
        pool.transaction(|tx| {
            attempts += 1;
            if attempts == 1 {
                proxy.on_answer(b"INSERT 0 1\0", Act::Lose);
            }
            tx.execute(insert, &[])
        })
        .unwrap();
        assert_eq!((attempts, rows()), (2, 5), "{mode}");
    }
}

#[test]
fn a_server_that_cannot_be_reached_through_the_pooler_is_waited_for() {
    for mode in BOTH {
        let (mut server, pgbouncer) = behind(&[mode, DROPS_OPTIONS]);
        let pool = pool(&pgbouncer.url(&server))
            .connection_timeout(20 * SECOND)
            .build()
            .unwrap();
        let write = || pool.transaction(|tx| tx.query("SELECT 1", &[]).map(|_| ()));
        write().unwrap();
        server.stop(Stop::Fast);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                pool.call()
                    .with_policy(millpond::RetryPolicy::default().max_retries(1000))
                    .with_deadline(Instant::now() + 20 * SECOND)
                    .transaction(|tx| tx.query("SELECT 1", &[]).map(|_| ()))
            });
            thread::sleep(500 * MS);
            server.start_again().unwrap();
            waiting.join().unwrap().unwrap();
        });
    }
}

#[test]
fn a_pooler_is_what_the_settings_say() {
    let (server, pgbouncer) = behind(&[TRANSACTION, DROPS_OPTIONS, "default_pool_size=1"]);
    // Off: the pool behaves as without a pooler.
    let off = pool(&pgbouncer.url(&server))
        .pooler(Pooler::Off)
        .max_size(1)
        .build()
        .unwrap();
    let named = "SELECT count(*)::text FROM pg_prepared_statements WHERE name LIKE 's%'";
    one(&off, named);
    assert_eq!(one(&off, named), "1");
    off.close(SECOND);
    // On: no statement has a name, even if there is no other sign of a pooler.
    let on = pool(&format!("{}?pgbouncer=true", server.url()))
        .max_size(1)
        .build()
        .unwrap();
    one(&on, named);
    assert_eq!(one(&on, named), "0");
    let direct = pool(&server.url()).max_size(1).build().unwrap();
    one(&direct, named);
    assert_eq!(
        one(&direct, named),
        "1",
        "no pooler is seen where there is none"
    );
}

/// Writers behind PgBouncer, while the server is stopped and crashed, PgBouncer is restarted, and
/// server sessions are ended.
fn torture(mode: &str) {
    let lasts = super::torture::lasts(30 * SECOND);
    let mut server = server_for_writers();
    let direct = server.url();
    let mut pgbouncer = PgBouncer::in_front_of(
        &server,
        server.port(),
        &[mode, DROPS_OPTIONS, "default_pool_size=20"],
    );
    let pool = pool_for_writers(&direct, &pgbouncer.url(&server), 20);
    let faults = |written: &AtomicUsize| {
        let written = || written.load(Ordering::Relaxed);
        let enough = |restarts| restarts >= 6 && written() >= 100;
        let restarts = repeat(lasts * 2 / 3, enough, |restarts| {
            thread::sleep(400 * MS);
            match restarts % 3 {
                0 => server.stop(Stop::Fast),
                1 => server.stop(Stop::Immediate),
                _ => pgbouncer.restart(),
            };
            if restarts % 3 < 2 {
                server.start_again().expect("a restart");
            }
            1
        });
        let enough = |ended| ended >= 30 && written() >= 300;
        (restarts, terminate_for(&direct, lasts / 3, enough))
    };
    let (told, (restarts, ended)) = write_during(&[("pgbouncer", &pool)], &EVERY_WAY, 16, faults);
    let [done, refused, unknown] = check_all(mode, &told, &direct);
    println!(
        "{mode}: {restarts} restarts, {ended} sessions ended: {done} done, {refused} refused, {unknown} unknown"
    );
    assert!(
        restarts >= 6 && ended >= 30 && done >= 300,
        "too few to say anything"
    );
}

#[test]
fn writers_behind_transaction_pooling_are_told_the_truth() {
    torture(TRANSACTION);
}

#[test]
fn writers_behind_session_pooling_are_told_the_truth() {
    torture(SESSION);
}

/// Tables with a column whose type the driver must look up.
fn moods(server: &PrivateServer, count: usize) {
    let mut admin = admin(&server.url());
    for n in 0..count {
        admin
            .batch_execute(&format!(
                "CREATE TYPE mood_{n} AS ENUM ('a', 'b'); CREATE TABLE m_{n} (m mood_{n}, at timestamp)"
            ))
            .unwrap();
    }
}

/// The number of prepared statements on the server connection that this client gets.
fn prepared(client: &mut postgres::Client) -> usize {
    let answer = client.simple_query("SELECT FROM pg_prepared_statements");
    let answer = answer.expect("pg_prepared_statements");
    let rows = answer.iter();
    rows.filter(|m| matches!(m, postgres::SimpleQueryMessage::Row(_)))
        .count()
}

fn count(server: &PrivateServer, table: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM {table}");
    admin(&server.url()).query_one(&sql, &[]).unwrap().get(0)
}

#[test]
fn a_write_that_returns_a_type_to_be_looked_up_is_done_once_and_leaves_nothing_behind() {
    for mode in BOTH {
        let (server, pgbouncer) = behind(&[mode, DROPS_OPTIONS, "default_pool_size=4"]);
        moods(&server, 6);
        let url = pgbouncer.url(&server);
        let pool = pool(&url).max_size(4).build().unwrap();
        thread::scope(|scope| {
            for writer in 0..8 {
                let pool = &pool;
                scope.spawn(move || {
                    for n in 0..24 {
                        let table = (writer + n) % 6;
                        let sql = format!("INSERT INTO m_{table} VALUES ($1) RETURNING m");
                        // An enum is sent as text.
                        let mood = Mood("a".into());
                        let rows = if n % 2 == 0 {
                            pool.query(&sql, &[&mood]).unwrap()
                        } else {
                            pool.transaction(|tx| tx.query(&sql, &[&mood])).unwrap()
                        };
                        assert_eq!(rows[0].get::<_, Mood>(0), mood);
                    }
                });
            }
        });
        let there: i64 = (0..6).map(|n| count(&server, &format!("m_{n}"))).sum();
        assert_eq!(there, 8 * 24, "{mode}");
        assert_eq!(
            super::support::counter(&pool, "millpond_retries_total"),
            0,
            "{mode}: nothing had to be repeated"
        );
        // The error is that of the write, not of a type look-up behind it.
        let clash = "INSERT INTO m_0 SELECT 'a' WHERE 1 / (1 - $1::int) = 1 RETURNING m";
        let error = pool
            .transaction(|tx| tx.query(clash, &[&1i32]))
            .unwrap_err();
        assert_eq!(
            error.sqlstate().map(postgres::error::SqlState::code),
            Some("22012"),
            "{mode}"
        );
        pool.close(SECOND);
        let mut stranger = admin(&url);
        for _ in 0..8 {
            assert_eq!(prepared(&mut stranger), 0, "{mode}");
        }
    }
}

#[test]
fn a_write_whose_rows_have_become_of_another_type_is_not_done_twice() {
    for mode in BOTH {
        let (server, pgbouncer) = behind(&[mode, DROPS_OPTIONS, "default_pool_size=4"]);
        moods(&server, 2);
        let pool = pool(&pgbouncer.url(&server)).max_size(1).build().unwrap();
        // The driver has looked up one type, and has seen the statement's text before the column of
        // the other type was added.
        pool.query("SELECT m FROM m_0", &[]).unwrap();
        let sql = "INSERT INTO m_1 (at) VALUES (now()) RETURNING *";
        pool.query(sql, &[]).unwrap();
        admin(&server.url())
            .batch_execute("CREATE TYPE newer AS ENUM ('a'); ALTER TABLE m_1 ADD n newer")
            .unwrap();
        let before = count(&server, "m_1");
        match pool.query(sql, &[]) {
            Ok(_) => assert_eq!(count(&server, "m_1"), before + 1, "{mode}"),
            Err(e) => {
                assert!(e.is_outcome_unknown(), "{mode}: {e:?}");
                assert!(count(&server, "m_1") <= before + 1, "{mode}");
            }
        }
        // The type is known from now on.
        let before = count(&server, "m_1");
        pool.query(sql, &[]).unwrap();
        assert_eq!(count(&server, "m_1"), before + 1, "{mode}");
        // A read is retried.
        pool.read("SELECT * FROM m_1", &[]).unwrap();
        admin(&server.url())
            .batch_execute("CREATE TYPE newest AS ENUM ('a'); ALTER TABLE m_1 ADD o newest")
            .unwrap();
        pool.read("SELECT * FROM m_1", &[]).unwrap();
    }
}

#[test]
fn names_that_others_left_behind_and_words_in_literals_are_in_nobodys_way() {
    let (server, pgbouncer) = behind(&[TRANSACTION, DROPS_OPTIONS, "default_pool_size=1"]);
    moods(&server, 2);
    let url = pgbouncer.url(&server);
    let mut stranger = admin(&url);
    // Whatever numbers this process has reached, its statement names meet runs of names that are
    // taken.
    let taken = (0..10_000).filter(|n| n % 20 >= 5);
    for n in taken {
        stranger
            .batch_execute(&format!("PREPARE s{n} AS SELECT 1"))
            .unwrap();
    }
    let pool = pool(&url).max_size(1).build().unwrap();
    for n in 0..40 {
        pool.query(&format!("SELECT {n}"), &[]).unwrap();
    }
    pool.transaction(|tx| {
        tx.query("SELECT m FROM m_0", &[])?;
        tx.query("SELECT 'to deallocate a room'", &[])
    })
    .unwrap();
    pool.query("INSERT INTO m_1 VALUES ('a') RETURNING m", &[])
        .unwrap();
    assert_eq!(
        prepared(&mut stranger),
        7_500,
        "what was there stays, and nothing else is"
    );
    // A type look-up may begin anywhere in a run of free names, and any one of its statements may
    // be the first to meet a taken name.
    drop(pool);
    let mut direct = admin(&server.url());
    for burnt in 0..40 {
        (0..burnt).for_each(|_| drop(direct.prepare("SELECT 1").unwrap()));
        let pool = super::support::pool(&url).max_size(1).build().unwrap();
        match burnt % 2 {
            0 => drop(pool.query("SELECT m FROM m_0", &[]).unwrap()),
            _ => drop(
                pool.transaction(|tx| tx.query("SELECT m FROM m_0", &[]))
                    .unwrap(),
            ),
        }
        drop(pool);
        assert_eq!(prepared(&mut stranger), 7_500, "after {burnt}");
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Mood(String);

impl postgres::types::ToSql for Mood {
    fn to_sql(
        &self,
        _: &postgres::types::Type,
        out: &mut bytes::BytesMut,
    ) -> Result<postgres::types::IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(self.0.as_bytes());
        Ok(postgres::types::IsNull::No)
    }

    fn accepts(ty: &postgres::types::Type) -> bool {
        matches!(ty.kind(), postgres::types::Kind::Enum(_))
    }

    postgres::types::to_sql_checked!();
}

impl<'a> postgres::types::FromSql<'a> for Mood {
    fn from_sql(
        ty: &postgres::types::Type,
        raw: &'a [u8],
    ) -> Result<Mood, Box<dyn std::error::Error + Sync + Send>> {
        <String as postgres::types::FromSql>::from_sql(ty, raw).map(Mood)
    }

    fn accepts(ty: &postgres::types::Type) -> bool {
        matches!(ty.kind(), postgres::types::Kind::Enum(_))
    }
}

#[test]
fn the_program_starts_behind_a_pooler_that_has_one_connection() {
    let (server, pgbouncer) = behind(&[TRANSACTION, DROPS_OPTIONS, "default_pool_size=1"]);
    let pool = pool(&pgbouncer.url(&server)).max_size(2).build().unwrap();
    let studio = millpond::studio::Studio::new(pool.clone(), "EUR");
    studio.migrate().unwrap();
    let rows = pool
        .query("SELECT count(*) FROM studio.studios", &[])
        .unwrap();
    assert_eq!(rows[0].get::<_, i64>(0), 3);
}

#[test]
fn a_value_is_of_the_type_that_the_server_expects() {
    let (server, pgbouncer) = behind(&[TRANSACTION, DROPS_OPTIONS]);
    moods(&server, 1);
    admin(&server.url())
        .batch_execute("ALTER ROLE CURRENT_USER SET timezone = 'Asia/Tokyo'")
        .unwrap();
    for url in [server.url(), pgbouncer.url(&server)] {
        let pool = pool(&url).build().unwrap();
        let noon = std::time::SystemTime::UNIX_EPOCH + 43_200 * SECOND;
        let rows = pool
            .query(
                "INSERT INTO m_0 (at) VALUES ($1) RETURNING at::text",
                &[&noon],
            )
            .unwrap();
        assert_eq!(rows[0].get::<_, &str>(0), "1970-01-01 12:00:00");
        let error = pool.query("SELECT $1::int", &[&1i32, &2i32]).unwrap_err();
        assert!(
            !error.is_retryable() && !error.is_outcome_unknown(),
            "{error:?}"
        );
        let error = pool.query("SELECT 'a\0b'", &[]).unwrap_err();
        assert!(
            !error.is_retryable() && !error.is_outcome_unknown(),
            "{error:?}"
        );
    }
}

#[test]
fn a_login_that_the_pooler_refuses_is_a_refusal_and_no_outage() {
    let (server, pgbouncer) = behind(&[TRANSACTION, "auth_type=plain"]);
    let url = pgbouncer.url(&server);
    let (before, at) = url.split_once('@').unwrap();
    let user = before.rsplit_once(':').unwrap().0;
    let pool = pool(&format!("{user}:wrong@{at}")).build().unwrap();
    let started = Instant::now();
    let error = pool.execute("SELECT 1", &[]).unwrap_err();
    let said = millpond::error::Chain(&error).to_string();
    assert!(said.contains("refuses the pool's connections"), "{said}");
    assert!(started.elapsed() < 2 * SECOND, "{:?}", started.elapsed());
    eventually("health knows why", || {
        pool.health().error == Some(millpond::pool::ProbeError::Authentication)
    });
}

/// It lets a client in and ends its connection when the first statement comes.
#[test]
fn what_the_pooler_says_at_the_door_is_the_cause() {
    let (mut server, pgbouncer) = behind(&[TRANSACTION, DROPS_OPTIONS, "server_login_retry=20"]);
    let pool = pool(&pgbouncer.url(&server))
        .max_size(2)
        .min_idle(0)
        .connection_timeout(3 * SECOND)
        .retry_policy(millpond::RetryPolicy::none())
        .build()
        .unwrap();
    pool.query("SELECT 1", &[]).unwrap();
    server.stop(Stop::Immediate);
    eventually("it is said", || {
        let error = pool.query("SELECT 1", &[]).unwrap_err();
        millpond::error::Chain(&error)
            .to_string()
            .contains("server login has been failing")
    });
}

#[test]
fn a_pooler_without_room_is_no_outage() {
    let (server, pgbouncer) = behind(&[TRANSACTION, DROPS_OPTIONS, "max_client_conn=2"]);
    let pool = pool(&pgbouncer.url(&server))
        .max_size(8)
        .min_idle(2)
        .connection_timeout(3 * SECOND)
        .build()
        .unwrap();
    eventually("both places are taken", || pool.stats().idle == 2);
    eventually("the probe is refused, and all is well", || {
        let health = pool.health();
        health.healthy && health.probe_refused
    });
    let outages = log_lines("cannot open a connection, retrying").len();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| pool.query("SELECT pg_sleep(0.2)", &[]).unwrap());
        }
    });
    assert_eq!(
        log_lines("cannot open a connection, retrying").len(),
        outages
    );
}
