//! Passwords that change while the pool runs.

use super::support::{EndAtDrop, MS, SECOND, admin, backends, eventually, log_lines, server};
use millpond::Pool;
use millpond::config::Config;
use millpond::embedded::PrivateServer;
use millpond::pool::{Builder, ProbeError};
use postgres::Client;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

/// Where the password stands, and how it is written there.
#[derive(Clone, Copy, Debug)]
enum Source {
    UrlFile,
    PasswordFile,
    Passfile,
    Command,
}

impl Source {
    /// Replaces the file, as careful tools do: the new one is complete when it gets the name.
    fn write(self, file: &Path, port: u16, password: &str) {
        let text = match self {
            Source::UrlFile => format!("postgresql://app:{password}@127.0.0.1:{port}/postgres"),
            Source::PasswordFile | Source::Command => format!("{password}\n"),
            Source::Passfile => format!("127.0.0.1:{port}:*:app:{password}\n"),
        };
        let new = file.with_extension("new");
        std::fs::write(&new, text).unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::rename(new, file).unwrap();
    }

    fn pool(self, file: &Path, port: u16) -> Pool {
        let url = format!("postgresql://app@127.0.0.1:{port}/postgres");
        let path = file.display().to_string();
        let command = format!("cat {path}; echo expires_in=3600");
        let vars = match self {
            Source::UrlFile => vec![("DATABASE_URL_FILE", &path)],
            Source::PasswordFile => vec![("DATABASE_URL", &url), ("DB_PASSWORD_FILE", &path)],
            Source::Passfile => vec![("DATABASE_URL", &url), ("PGPASSFILE", &path)],
            Source::Command => vec![("DATABASE_URL", &url), ("DB_PASSWORD_COMMAND", &command)],
        };
        let config = Config::from_vars(vars.into_iter().map(|(n, v)| (n, v.as_str()))).unwrap();
        Builder::from(config.pool)
            .application_name("rotated")
            .max_size(10)
            .min_idle(1)
            .build()
            .unwrap()
    }
}

/// A server with the role `app`, whose password is `one`.
fn server_with_role() -> (PrivateServer, Client) {
    let server = server(&[]);
    let mut admin = admin(&server.url());
    admin
        .batch_execute("CREATE ROLE app LOGIN PASSWORD 'one'")
        .unwrap();
    (server, admin)
}

/// A password in a file of its own, for the server at this port.
struct Kept {
    dir: tempfile::TempDir,
    port: u16,
}

impl Kept {
    fn file(&self) -> PathBuf {
        self.dir.path().join("secret")
    }

    fn write(&self, password: &str) {
        Source::PasswordFile.write(&self.file(), self.port, password);
    }
}

/// A pool whose password stands in a file of its own.
fn by_password_file(server: &PrivateServer, password: &str) -> (Kept, Pool) {
    let kept = Kept {
        dir: tempfile::tempdir().unwrap(),
        port: server.port(),
    };
    kept.write(password);
    let pool = Source::PasswordFile.pool(&kept.file(), kept.port);
    (kept, pool)
}

fn rotate_under_fifty_threads(source: Source) {
    let (server, mut admin) = server_with_role();
    let port = server.port();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    source.write(&file, port, "one");
    let pool = source.pool(&file, port);
    let (over, calls) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let end = EndAtDrop(&over);
        for _ in 0..50 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    if let Err(e) = pool.read("SELECT 1", &[]) {
                        over.store(true, Ordering::Relaxed);
                        panic!("{source:?}: {e:?}");
                    }
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for password in ["two", "three"] {
            eventually("all are open", || open(&pool) == 10);
            let refused = refusals(&pool);
            admin
                .batch_execute(&format!("ALTER ROLE app PASSWORD '{password}'"))
                .unwrap();
            // Some connections are lost, and the server refuses the password of the new ones.
            let lost = &backends(&mut admin, "rotated")[..3];
            let ended = "SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) pid";
            admin.query(ended, &[&lost]).unwrap();
            eventually("a refusal", || refusals(&pool) > refused);
            let before = calls.load(Ordering::Relaxed);
            eventually("work goes on", || {
                calls.load(Ordering::Relaxed) > before + 1000 || over.load(Ordering::Relaxed)
            });
            assert!(open(&pool) < 10);
            source.write(&file, port, password);
            let written = Instant::now();
            eventually("all are open again", || {
                open(&pool) == 10 || over.load(Ordering::Relaxed)
            });
            let took = written.elapsed();
            println!("{source:?}: {took:?}");
            assert!(took < 2 * SECOND, "{source:?}: it took {took:?}");
            eventually("healthy", || pool.health().healthy);
        }
        drop(end);
    });
}

fn open(pool: &Pool) -> usize {
    let stats = pool.stats();
    stats.idle + stats.active
}

fn refusals(pool: &Pool) -> u64 {
    let label = "millpond_connect_failures_total{sqlstate=\"28P01\"}";
    match pool.metrics_text().contains(label) {
        true => super::support::counter(pool, label),
        false => 0,
    }
}

#[test]
fn a_url_in_a_file_may_change_under_load() {
    rotate_under_fifty_threads(Source::UrlFile);
}

#[test]
fn a_password_in_a_file_may_change_under_load() {
    rotate_under_fifty_threads(Source::PasswordFile);
}

#[test]
fn a_password_file_of_libpq_may_change_under_load() {
    rotate_under_fifty_threads(Source::Passfile);
}

#[test]
fn a_command_may_print_another_password_under_load() {
    rotate_under_fifty_threads(Source::Command);
}

#[test]
fn health_says_that_the_password_is_what_fails_and_recovers_with_it() {
    let (server, _) = server_with_role();
    let (kept, pool) = by_password_file(&server, "wrong");
    eventually("the health check knows why", || {
        pool.health().error == Some(ProbeError::Authentication)
    });
    kept.write("one");
    let written = Instant::now();
    eventually("healthy", || pool.health().healthy);
    assert!(written.elapsed() < 2 * SECOND);
    pool.read("SELECT 1", &[]).unwrap();
}

/// The probe's own session may be from before, and goes on.
#[test]
fn a_probe_that_still_gets_through_does_not_hide_that_nothing_else_does() {
    let (server, mut admin) = server_with_role();
    let (kept, pool) = by_password_file(&server, "one");
    eventually("healthy", || pool.health().healthy);
    admin
        .batch_execute("ALTER ROLE app PASSWORD 'two'")
        .unwrap();
    assert!(pool.health().healthy, "what is open goes on");
    pool.evict();
    eventually("nothing is open", || open(&pool) == 0);
    eventually("the health check knows why", || {
        pool.health().error == Some(ProbeError::Authentication)
    });
    kept.write("two");
    eventually("healthy again", || pool.health().healthy);
    pool.read("SELECT 1", &[]).unwrap();
}

#[test]
fn all_that_a_url_in_a_file_says_may_change() {
    let (server, _) = server_with_role();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("url");
    let write = |more: &str| {
        let port = server.port();
        let text = format!("postgresql://app:one@127.0.0.1:{port}/postgres{more}");
        std::fs::write(&file, text).unwrap();
    };
    write("?application_name=first");
    let poolers = log_lines("connected through a pooler").len();
    let path = file.display().to_string();
    let config = Config::from_vars([("DATABASE_URL_FILE", &*path)]).unwrap();
    let pool = Builder::from(config.pool).max_size(1).build().unwrap();
    let shown = |name: &str| -> String {
        let rows = pool.read(&format!("SHOW {name}"), &[]).unwrap();
        rows[0].get(0)
    };
    assert_eq!(
        (shown("application_name"), shown("statement_timeout")),
        ("first".to_owned(), "5s".to_owned())
    );
    write("?application_name=second&options=-c%20statement_timeout%3D650");
    pool.evict();
    assert_eq!(
        (shown("application_name"), shown("statement_timeout")),
        ("second".to_owned(), "650ms".to_owned())
    );
    let error = pool.query("SELECT pg_sleep(5)", &[]).unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
    write("");
    pool.evict();
    assert_eq!(shown("statement_timeout"), "5s");
    assert_eq!(log_lines("connected through a pooler").len(), poolers);
}

#[test]
fn a_command_that_hangs_ends_with_the_pool() {
    let (server, _) = server_with_role();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let url = format!("postgresql://app@127.0.0.1:{}/postgres", server.port());
    let command = format!("echo $$ > {}; sleep 60", file.display());
    let vars = [("DATABASE_URL", &*url), ("DB_PASSWORD_COMMAND", &*command)];
    let pool = Builder::from(Config::from_vars(vars).unwrap().pool);
    let pool = pool.build().unwrap();
    let pid = || std::fs::read_to_string(&file).unwrap_or_default();
    eventually("it runs", || pid().ends_with('\n'));
    let started = Instant::now();
    pool.close(SECOND);
    let running = Path::new("/proc").join(pid().trim()).exists();
    assert!(!running, "it is left behind");
    assert!(started.elapsed() < 3 * SECOND, "{:?}", started.elapsed());
}

#[test]
fn the_application_may_be_asked_for_the_password() {
    let (server, _) = server_with_role();
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let pool = Pool::builder()
        .database_url(&format!(
            "postgresql://app@127.0.0.1:{}/postgres",
            server.port()
        ))
        .password(|| match ASKED.fetch_add(1, Ordering::Relaxed) {
            0 => Err("the vault is sealed".into()),
            1 => Ok("wrong".to_owned()),
            _ => Ok("one".to_owned()),
        })
        .connection_timeout(10 * SECOND)
        .retry_policy(millpond::RetryPolicy::default().initial_delay(5 * MS))
        .build()
        .unwrap();
    pool.read("SELECT 1", &[]).unwrap();
    assert!(ASKED.load(Ordering::Relaxed) >= 3);
}

#[test]
fn the_file_may_change_before_the_server_knows_the_password() {
    let (server, mut admin) = server_with_role();
    let (kept, pool) = by_password_file(&server, "one");
    pool.read("SELECT 1", &[]).unwrap();
    kept.write("two");
    let all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'";
    // One that is being opened right now may be missed.
    eventually("a refusal", || {
        admin.batch_execute(all).unwrap();
        refusals(&pool) > 0
    });
    admin
        .batch_execute("ALTER ROLE app PASSWORD 'two'")
        .unwrap();
    let changed = Instant::now();
    eventually("it works again", || pool.read("SELECT 1", &[]).is_ok());
    assert!(changed.elapsed() < 2 * SECOND, "{:?}", changed.elapsed());
}
