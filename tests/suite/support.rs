//! What the tests share: private PostgreSQL servers, a database for each test, and waiting for a
//! condition.

use super::authority::{Authority, Files};
use millpond::embedded::{Options, PrivateServer};
use millpond::error::CheckoutError;
use millpond::pool::Builder;
use millpond::{Error, Pool, RetryPolicy};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use postgres::{Client, NoTls};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, Once, OnceLock, mpsc};
use std::time::{Duration, Instant};

pub const MS: Duration = Duration::from_millis(1);
pub const SECOND: Duration = Duration::from_secs(1);

/// Tells the threads of a scope to end, also when the test fails: the scope waits for them.
pub struct EndAtDrop<'f>(pub &'f AtomicBool);

impl Drop for EndAtDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The server for all tests that do not disturb others. It ends with this process.
pub fn shared_server() -> &'static PrivateServer {
    static SERVER: OnceLock<PrivateServer> = OnceLock::new();
    SERVER.get_or_init(|| {
        // Each connection takes several files, on both sides of each proxy.
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
        // Little write-ahead log is kept, for a machine with a small disk.
        let wal = [("min_wal_size", "32MB"), ("max_wal_size", "128MB")];
        server(&[("max_connections", "400"), wal[0], wal[1]])
    })
}

/// A server for a test that restarts it, fills it up or takes it away.
pub fn server(settings: &[(&str, &str)]) -> PrivateServer {
    let tls = over_tls().map(Files::settings);
    let tls = tls
        .iter()
        .flatten()
        .map(|(name, value)| (*name, value.as_str()));
    let options = tls.chain(settings.iter().copied()).fold(
        Options::temporary().bin_dir(programs()),
        |options, (name, value)| options.setting(name, value),
    );
    PrivateServer::start(options).expect("a private PostgreSQL")
}

/// The server's certificate if the tests run over TLS: with `MILLPOND_TEST_TLS`, every server offers
/// it, so every pool uses it, and the proxies between end it, so that they see what passes.
pub fn over_tls() -> Option<&'static Files> {
    static TLS: OnceLock<Option<(Authority, Files)>> = OnceLock::new();
    let made = TLS.get_or_init(|| {
        std::env::var_os("MILLPOND_TEST_TLS")?;
        let authority = Authority::new("the tests' authority");
        let names = "DNS:localhost,IP:127.0.0.1";
        let files = authority.issue("server", "localhost", names, "30");
        Some((authority, files.for_the_server()))
    });
    made.as_ref().map(|(_, files)| files)
}

/// The programs in `PG_BIN_DIR`, if it is set: to test another version of PostgreSQL.
pub fn programs() -> Option<std::path::PathBuf> {
    std::env::var_os("PG_BIN_DIR").map(Into::into)
}

/// The directory of the shared server's programs.
pub fn programs_in_use() -> std::path::PathBuf {
    let pid = shared_server().pid().expect("a running server");
    let postgres = std::fs::read_link(format!("/proc/{pid}/exe")).expect("its program");
    postgres.parent().expect("a directory").to_owned()
}

/// The databases that a thread made, by name. They are dropped when it ends: a thread runs one test.
/// Behind a pooler they are kept: PgBouncer up to 1.19 exits if the server ends a session while a
/// cancel request for it is under way.
struct Made(RefCell<Vec<String>>);

impl Drop for Made {
    fn drop(&mut self) {
        static WORK: OnceLock<mpsc::Sender<String>> = OnceLock::new();
        // A thread that ends can no longer connect, so another one does the work.
        let work = WORK.get_or_init(|| {
            let (work, names) = mpsc::channel::<String>();
            std::thread::spawn(move || {
                let mut admin = admin(&shared_server().url());
                for name in names {
                    let sql = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
                    admin.batch_execute(&sql).expect("DROP DATABASE");
                }
            });
            work
        });
        let is_kept = std::env::var_os("MILLPOND_TEST_POOLER").is_some();
        for name in self.0.take().into_iter().filter(|_| !is_kept) {
            let _ = work.send(name);
        }
    }
}

/// A database of its own on the shared server, until the test ends.
pub struct Database {
    pub url: String,
    pub port: u16,
}

pub fn database() -> Database {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let server = shared_server();
    let name = format!("test_{}", NEXT.fetch_add(1, Ordering::SeqCst));
    admin(&server.url())
        .batch_execute(&format!("CREATE DATABASE {name}"))
        .expect("a database");
    thread_local!(static MADE: Made = const { Made(RefCell::new(Vec::new())) });
    MADE.with(|made| made.0.borrow_mut().push(name.clone()));
    let base = server.url();
    let url = format!(
        "{}/{name}",
        base.rsplit_once('/').expect("a URL with a database").0
    );
    Database {
        url,
        port: server.port(),
    }
}

impl Database {
    pub fn pool(&self) -> Builder {
        pool(&self.url)
    }

    pub fn admin(&self) -> Client {
        admin(&self.url)
    }

    /// Drops the database, for a test that makes many. Its connections are cut off.
    pub fn drop(self) {
        let (base, name) = self.url.rsplit_once('/').expect("a URL with a database");
        admin(&format!("{base}/postgres"))
            .batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)"))
            .expect("DROP DATABASE");
    }
}

/// A pool with short pauses between retries.
pub fn pool(url: &str) -> Builder {
    collect_logs();
    #[cfg(feature = "lab")]
    let between = super::pooler::in_between(url);
    #[cfg(feature = "lab")]
    let url = between.as_deref().unwrap_or(url);
    Pool::builder().database_url(url).retry_policy(
        RetryPolicy::default()
            .initial_delay(5 * MS)
            .max_delay(50 * MS),
    )
}

/// A plain connection that does not belong to the pool.
pub fn admin(url: &str) -> Client {
    Client::connect(url, NoTls).expect("a plain connection")
}

/// Backends of this database that belong to a pool with this application name.
pub fn backends(client: &mut Client, application: &str) -> Vec<i32> {
    let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = $1 ORDER BY pid";
    client
        .query(sql, &[&application])
        .expect("pg_stat_activity")
        .iter()
        .map(|row| row.get(0))
        .collect()
}

/// Waits until the server has no backend with this application name.
#[track_caller]
pub fn no_backend_is_left(db: &Database, application: &str) {
    let mut admin = db.admin();
    eventually("no backend is left", || {
        backends(&mut admin, application).is_empty()
    });
}

/// The backend that serves the pool's next statement.
pub fn pid(pool: &Pool) -> i32 {
    pool.query("SELECT pg_backend_pid()", &[]).unwrap()[0].get(0)
}

/// The reason why a check-out failed.
#[track_caller]
pub fn refused(error: Error) -> Box<CheckoutError> {
    match error {
        Error::Checkout(e) => e,
        other => panic!("{other:?}"),
    }
}

/// Log lines at info and above, of all tests together, with their key-values.
static LOG: Mutex<Vec<(String, Fields)>> = Mutex::new(Vec::new());

/// The key-values of a log line; those that are empty are left out.
pub type Fields = BTreeMap<String, String>;

/// Notes the key-values of a log record.
#[derive(Default)]
struct Noted(Fields);

impl<'kvs> log::kv::VisitSource<'kvs> for Noted {
    fn visit_pair(
        &mut self,
        key: log::kv::Key<'kvs>,
        value: log::kv::Value<'kvs>,
    ) -> Result<(), log::kv::Error> {
        if format!("{value:?}") != "None" {
            self.0.insert(key.to_string(), value.to_string());
        }
        Ok(())
    }
}

struct Collector;

impl log::Log for Collector {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with("millpond")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let mut noted = Noted::default();
            record.key_values().visit(&mut noted).unwrap();
            let line = format!("{} {}", record.level(), record.args());
            LOG.lock().unwrap().push((line, noted.0));
        }
    }

    fn flush(&self) {}
}

fn collect_logs() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Collector).expect("no other logger in the tests");
        log::set_max_level(log::LevelFilter::Info);
    });
}

/// The log lines so far that contain `needle`.
pub fn log_lines(needle: &str) -> Vec<String> {
    let log = LOG.lock().unwrap();
    let lines = log.iter().map(|(line, _)| line);
    lines.filter(|l| l.contains(needle)).cloned().collect()
}

/// The key-values of the log lines so far that contain `needle`.
pub fn log_fields(needle: &str) -> Vec<Fields> {
    let log = LOG.lock().unwrap();
    let found = log.iter().filter(|(line, _)| line.contains(needle));
    found.map(|(_, fields)| fields.clone()).collect()
}

/// The value of a counter in the pool's metrics: the sum over all of its labels if `name` has no
/// label. A label in `name` must exist.
#[track_caller]
pub fn counter(pool: &Pool, name: &str) -> u64 {
    let text = pool.metrics_text();
    let found = text.lines().any(|l| l.starts_with(name));
    assert!(found || !name.contains('{'), "there is no {name}");
    text.lines()
        .filter(|l| l.starts_with(name))
        .filter_map(|l| l.rsplit_once(' ')?.1.parse::<u64>().ok())
        .sum()
}

/// A figure of a process's memory in /proc (`VmRSS`, `VmHWM`), in kB.
pub fn memory(pid: u32, figure: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(figure)).unwrap();
    let kb = line.trim_start_matches(':').split_whitespace().next();
    kb.unwrap().parse().unwrap()
}

/// Waits until the condition holds.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let patience = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < patience, "it never happened: {what}");
        std::thread::sleep(5 * MS);
    }
}
