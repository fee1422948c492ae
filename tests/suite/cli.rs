//! The program itself, run as a user runs it: its commands, signals, logs and exit codes.

use super::frozen::slack;
use super::http;
use super::servers::Frozen;
use super::support::{EndAtDrop, MS, SECOND, database, eventually, memory};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// The program in this directory, without any variables of the tester's environment that could
/// affect it.
pub fn millpond(dir: &Path, args: &[&str]) -> Command {
    // When the tests run as another user, the program is not where it was built.
    let program = std::env::var_os("MILLPOND_BIN").unwrap_or(env!("CARGO_BIN_EXE_millpond").into());
    let mut command = Command::new(program);
    command
        .args(args)
        .current_dir(dir)
        .env_clear()
        // If the program is killed, its temporary files go with the test's directory.
        .env("TMPDIR", dir)
        .stdin(Stdio::null());
    for name in ["PATH", "HOME", "PG_BIN_DIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

pub fn run(dir: &Path, args: &[&str], vars: &[(&str, &str)]) -> Output {
    millpond(dir, args)
        .envs(vars.iter().copied())
        .output()
        .unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A running server process.
pub struct Serving {
    pub child: Child,
    log: Arc<Mutex<String>>,
    pub port: u16,
}

/// Starts a server and waits until it listens.
pub fn serve(dir: &Path, vars: &[(&str, &str)]) -> Serving {
    listening(start(dir, vars))
}

fn listening(mut serving: Serving) -> Serving {
    let patience = Instant::now() + 60 * SECOND;
    while !serving.listens() {
        let ended = serving.child.try_wait().unwrap().is_some();
        assert!(!ended, "it ended: {}", serving.log());
        assert!(
            Instant::now() < patience,
            "it does not listen: {}",
            serving.log()
        );
        thread::sleep(5 * MS);
    }
    serving
}

/// Starts a server that may fail to come up.
pub fn start(dir: &Path, vars: &[(&str, &str)]) -> Serving {
    let mut command = millpond(dir, &[]);
    spawn(command.envs(vars.iter().copied()))
}

pub fn spawn(command: &mut Command) -> Serving {
    let mut child = command
        .env("HTTP_ADDR", "127.0.0.1:0")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = Arc::new(Mutex::new(String::new()));
    let (lines, copy) = (
        BufReader::new(child.stderr.take().unwrap()),
        Arc::clone(&log),
    );
    thread::spawn(move || {
        for line in lines.lines().map_while(Result::ok) {
            copy.lock().unwrap().push_str(&(line + "\n"));
        }
    });
    Serving {
        child,
        log,
        port: 0,
    }
}

impl Serving {
    /// True once the log names the port; sets `port`.
    fn listens(&mut self) -> bool {
        let log = self.log();
        let port = log
            .lines()
            .find_map(|l| l.split_once("listening on http://127.0.0.1:"))
            .map(|(_, port)| port);
        // In JSON, more of the line comes behind it.
        let port = port.and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
        self.port = port.and_then(|p| p.parse().ok()).unwrap_or(0);
        self.port != 0
    }

    /// False if the process has ended in the meantime.
    pub fn is_ready(&mut self) -> bool {
        self.listens()
            && self
                .status("/health/ready")
                .is_some_and(|status| status == "200")
    }

    fn status(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(20 * SECOND)).unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.split(' ').nth(1).map(str::to_owned)
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(self.child.id().to_string())
            .status();
        assert!(sent.unwrap().success());
    }

    /// Asks the process to stop, and checks that it stops in good order.
    #[track_caller]
    fn stops(&mut self) {
        self.signal("TERM");
        assert_eq!(self.ends(), Some(0), "{}", self.log());
    }

    pub fn ends(&mut self) -> Option<i32> {
        let patience = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < patience, "it does not end: {}", self.log());
            thread::sleep(10 * MS);
        }
    }

    fn check(&self, dir: &Path, more: &[&str]) -> Output {
        let url = format!("http://127.0.0.1:{}", self.port);
        run(dir, &[&["check", "--url", &url], more].concat(), &[])
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory with this mode: a private server may run as another user, which must be able to
/// enter it.
pub fn open_dir(mode: u32) -> tempfile::TempDir {
    let dir = tempfile::TempDir::new().unwrap();
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
    std::fs::set_permissions(dir.path(), permissions).unwrap();
    dir
}

/// Processes of the private server that this log names.
pub fn server_processes(log_of_program: &str) -> Vec<String> {
    let needle = data_dir(log_of_program);
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let mut line = String::new();
        if let Ok(mut file) = std::fs::File::open(entry.path().join("cmdline")) {
            let _ = file.read_to_string(&mut line);
        }
        if line.contains(&needle) {
            found.push(line.replace('\0', " "));
        }
    }
    found
}

/// The private server's data directory, which also holds its log. It is elsewhere if the server's
/// user cannot enter this directory.
fn data_dir(log_of_program: &str) -> String {
    let line = log_of_program
        .lines()
        .find_map(|l| l.split_once("data in "));
    line.expect("the start says where the data are")
        .1
        .trim()
        .to_owned()
}

/// Removes data that are outside the test's own directory.
struct Cleared(String);

impl Drop for Cleared {
    fn drop(&mut self) {
        if self.0.starts_with("/var/lib/millpond/") {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

fn server_log(log_of_program: &str) -> String {
    std::fs::read_to_string(Path::new(&data_dir(log_of_program)).join("postgres.log")).unwrap()
}

#[test]
fn without_a_database_it_brings_its_own_and_leaves_nothing_running() {
    // `tempdir` creates it with mode 0700: if the tests run as root, the server's user cannot enter
    // it.
    let dir = tempfile::tempdir().unwrap();
    let mut first = serve(dir.path(), &[]);
    eventually("it is ready", || {
        first.check(dir.path(), &["--ready"]).status.code() == Some(0)
    });
    let health = first.check(dir.path(), &[]);
    let body: serde_json::Value = serde_json::from_slice(&health.stdout).unwrap();
    assert_eq!(
        (&body["status"], &body["private"]),
        (&"healthy".into(), &true.into())
    );

    let _cleared = Cleared(data_dir(&first.log()));
    assert!(!server_processes(&first.log()).is_empty());

    // A second program in the same directory is refused; the message gives the reason and the
    // process that is in the way.
    let second = run(dir.path(), &["serve"], &[("HTTP_ADDR", "127.0.0.1:0")]);
    assert_eq!(second.status.code(), Some(1));
    let said = stderr(&second);
    assert!(
        said.contains("in use by another program") && said.contains(&first.child.id().to_string()),
        "{said}"
    );

    // The load test uses the server that is already running.
    let load = run(
        dir.path(),
        &["load-test", "--workers", "10", "--queries", "20", "--json"],
        &[],
    );
    assert_eq!(load.status.code(), Some(0), "{}", stderr(&load));
    let report: serde_json::Value = serde_json::from_slice(&load.stdout).unwrap();
    assert_eq!(
        (report["queries"].as_u64(), report["errors"].as_u64()),
        (Some(200), Some(0))
    );
    assert!(
        report["meanMs"].as_f64().unwrap() > 0.0
            && report["pool"]["mostOpen"].as_u64().unwrap() <= 20
    );

    first.signal("INT");
    assert_eq!(first.ends(), Some(0), "{}", first.log());
    assert!(
        server_processes(&first.log()).is_empty(),
        "{:?}",
        server_processes(&first.log())
    );
    let log = server_log(&first.log());
    assert!(log.contains("database system is shut down"), "{log}");
    assert!(!log.contains("unexpected EOF"), "{log}");

    // The data are kept. If no server runs, the load test starts one.
    let load = run(
        dir.path(),
        &["load-test", "--workers", "2", "--queries", "5"],
        &[],
    );
    let printed = String::from_utf8_lossy(&load.stdout).into_owned();
    assert_eq!(load.status.code(), Some(0), "{}", stderr(&load));
    assert!(
        printed.contains("queries      10 from 2 threads") && printed.contains("p99"),
        "{printed}"
    );
}

#[test]
fn a_killed_program_leaves_no_server_and_its_data_can_be_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = serve(dir.path(), &[]);
    first.signal("KILL");
    assert_eq!(first.ends(), None);
    let second = serve(dir.path(), &[]);
    eventually("it is ready", || {
        second.check(dir.path(), &["--ready"]).status.code() == Some(0)
    });
    let log = second.log();
    let _cleared = Cleared(data_dir(&log));
    assert!(!server_processes(&log).is_empty());
    drop(second);
    eventually("nothing is left", || server_processes(&log).is_empty());
}

#[test]
fn a_frozen_server_ends_with_its_program_as_well() {
    let dir = open_dir(0o755);
    let mut serving = serve(dir.path(), &[]);
    let log = serving.log();
    let _cleared = Cleared(data_dir(&log));
    let text = std::fs::read_to_string(Path::new(&data_dir(&log)).join("pg/postmaster.pid"));
    let pid = text.unwrap().lines().next().unwrap().parse().unwrap();
    assert!(super::servers::signal(pid, "STOP"));
    // One process of the orphaned group is stopped, so the kernel sends the whole group a SIGHUP.
    serving.child.kill().unwrap();
    serving.child.wait().unwrap();
    eventually("the server is gone", || server_processes(&log).is_empty());
}

#[test]
fn a_second_signal_ends_at_once() {
    let db = database();
    let dir = tempfile::tempdir().unwrap();
    let vars = [
        ("DATABASE_URL", db.url.as_str()),
        ("SHUTDOWN_DELAY_MS", "60000"),
        ("SHUTDOWN_TIMEOUT_MS", "60000"),
    ];
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let mut serving = serve(dir.path(), &vars);
        eventually("it is ready", || {
            serving.check(dir.path(), &["--ready"]).status.code() == Some(0)
        });
        // A wrapper may pass the same signal on: two SIGTERMs count as one request to stop.
        serving.signal("TERM");
        serving.signal("TERM");
        eventually("it is not ready", || {
            serving.check(dir.path(), &["--ready"]).status.code() == Some(1)
        });
        thread::sleep(400 * MS);
        assert_eq!(
            serving.check(dir.path(), &["--live"]).status.code(),
            Some(0)
        );
        serving.signal(signal);
        assert_eq!(serving.ends(), Some(code));
    }
}

#[test]
fn it_serves_while_the_database_is_down() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let dir = tempfile::tempdir().unwrap();
    let url = format!("postgresql://u:s3cret@127.0.0.1:{unused}/d");
    let mut serving = serve(
        dir.path(),
        &[("DATABASE_URL", &url), ("LOG_LEVEL", "trace")],
    );
    assert_eq!(
        serving.check(dir.path(), &["--live"]).status.code(),
        Some(0)
    );
    let health = serving.check(dir.path(), &[]);
    assert_eq!(health.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&health.stdout).contains(r#""error":"refused""#));
    serving.stops();
    assert!(!serving.log().contains("s3cret"), "{}", serving.log());
}

#[test]
fn the_studio_is_served_with_its_schema_or_not_at_all() {
    let db = database();
    let dir = tempfile::tempdir().unwrap();
    let url = ("DATABASE_URL", db.url.as_str());
    let schemas = || -> i64 {
        let sql = "SELECT count(*) FROM pg_namespace WHERE nspname IN ('studio', 'millpond')";
        db.admin().query_one(sql, &[]).unwrap().get(0)
    };
    let studios = |serving: &Serving| {
        let ready = || serving.check(dir.path(), &["--ready"]).status.code() == Some(0);
        eventually("it is ready", ready);
        get(serving.port, "/api/studios").0
    };
    let without = serve(dir.path(), &[url, ("STUDIO_API", "off")]);
    assert_eq!((studios(&without), schemas()), (404, 0));
    drop(without);
    for again in [false, true] {
        let mut serving = serve(dir.path(), &[url]);
        assert_eq!((studios(&serving), schemas()), (200, 1));
        let log = serving.log();
        assert_eq!(
            log.contains("ran migration version=1 name=studio"),
            !again,
            "{log}"
        );
        serving.stops();
    }
    // A role that may not create the schema is told so, and where to look.
    db.admin()
        .batch_execute("DROP SCHEMA studio CASCADE; CREATE ROLE visitor LOGIN PASSWORD 'p'")
        .unwrap();
    let (_, rest) = db.url.split_once('@').unwrap();
    let refused = format!("postgresql://visitor:p@{rest}");
    let ended = run(
        dir.path(),
        &[],
        &[("DATABASE_URL", &refused), ("HTTP_ADDR", "127.0.0.1:0")],
    );
    assert_eq!(ended.status.code(), Some(1));
    let said = stderr(&ended);
    assert!(
        said.contains("the studio's schema could not be created")
            && said.contains("permission denied"),
        "{said}"
    );
}

/// The status, and how long the answer took.
pub fn get(port: u16, path: &str) -> (u16, Duration) {
    let since = Instant::now();
    let answer = http::get(([127, 0, 0, 1], port).into(), path);
    (answer.status, since.elapsed())
}

#[test]
fn a_frozen_database_keeps_neither_health_nor_the_shutdown_waiting() {
    let server = super::support::server(&[]);
    let url = server.url();
    let dir = tempfile::tempdir().unwrap();
    let mut serving = serve(
        dir.path(),
        &[("DATABASE_URL", &url), ("SHUTDOWN_TIMEOUT_MS", "3000")],
    );
    let port = serving.port;
    // The schema is made by then: a statement for it would be cut at the end.
    let is_ready = || get(port, "/health/ready").0 == 200;
    eventually("it is ready", is_ready);
    let tree = || Frozen::tree(server.pid().unwrap());
    let frozen = tree();
    // An earlier answer is shared for a quarter of a second.
    eventually("it is not healthy", || get(port, "/health").0 == 503);
    for _ in 0..3 {
        // Long enough that the answer is not a shared one.
        thread::sleep(300 * MS);
        let (status, took) = get(port, "/health");
        println!("/health {status} after {took:?}");
        assert_eq!(status, 503);
        assert!(took <= 900 * MS + slack(), "{took:?}");
    }
    let (status, took) = get(port, "/api/metrics/db");
    println!("/api/metrics/db {status} after {took:?}");
    assert_eq!(status, 200);
    assert!(took <= 10 * SECOND + 500 * MS, "{took:?}");
    frozen.thaw();
    let thawed = Instant::now();
    eventually("it is healthy again", || get(port, "/health").0 == 200);
    println!("/health 200 {:?} after the thaw", thawed.elapsed());
    assert!(thawed.elapsed() <= SECOND + slack());
    eventually("it is ready again", is_ready);
    let _frozen = tree();
    let signalled = Instant::now();
    serving.signal("TERM");
    assert_eq!(serving.ends(), Some(0), "{}", serving.log());
    println!("ended {:?} after SIGTERM", signalled.elapsed());
    assert!(signalled.elapsed() <= 4 * SECOND + slack());
}

#[test]
fn bad_settings_are_all_named_and_no_secret_is() {
    let dir = tempfile::tempdir().unwrap();
    let vars = [
        ("DB_POOL_MAX", "many"),
        ("DB_POOL_MIN", "-1"),
        ("DATABASE_URL", "postgresql://u:s3cret@h/d?nonsense=1"),
    ];
    for command in [&[][..], &["serve"], &["config"], &["load-test"]] {
        let output = run(dir.path(), command, &vars);
        assert_eq!(output.status.code(), Some(2));
        let said = stderr(&output);
        for word in [
            "DB_POOL_MAX",
            "\"many\"",
            "DB_POOL_MIN",
            "\"-1\"",
            "nonsense",
            "a whole number from 1 to 10000",
        ] {
            assert!(said.contains(word), "{word}: {said}");
        }
        assert!(!said.contains("s3cret"), "{said}");
    }
}

#[test]
fn what_would_be_open_to_everybody_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let url = ("DATABASE_URL", "postgresql://u:s3cret@h/d");
    let public = ("HTTP_ADDR", "0.0.0.0:0");
    let output = run(dir.path(), &[], &[url, public]);
    assert_eq!(output.status.code(), Some(2));
    for word in [
        "API_TOKEN",
        "STUDIO_API",
        "API_ALLOW_ANONYMOUS",
        "HTTP_ADDR",
    ] {
        assert!(stderr(&output).contains(word), "{}", stderr(&output));
    }
    // No private database is started if other machines could reach the HTTP server.
    for vars in [
        &[public, ("STUDIO_API", "off")][..],
        &[("API_TOKEN", "t")],
        &[("PRIVATE_DATABASE", "off")],
    ] {
        let output = run(dir.path(), &[], vars);
        assert_eq!(output.status.code(), Some(2), "{vars:?}");
        assert!(
            stderr(&output).contains("DATABASE_URL"),
            "{}",
            stderr(&output)
        );
    }
    assert!(!dir.path().join(".millpond").exists());
}

#[test]
fn config_shows_values_and_sources_but_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join(".env"),
        "DB_POOL_MAX=7\nDB_POOL_MIN=3\nAPI_TOKEN=t0ken\n",
    )
    .unwrap();
    let vars = [
        ("DB_POOL_MIN", "4"),
        (
            "DATABASE_URL",
            "postgresql://u:s3cret@h/d?application_name=mine",
        ),
    ];
    let output = run(dir.path(), &["config"], &vars);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let row = |name: &str| {
        let line = text
            .lines()
            .find(|l| l.split_whitespace().next() == Some(name))
            .unwrap();
        line.split_whitespace()
            .skip(1)
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(row("DB_POOL_MAX"), "7 .env");
    assert_eq!(row("DB_POOL_MIN"), "4 environment");
    assert_eq!(row("DB_MAX_USES"), "7500 default");
    assert_eq!(row("HTTP_WORKERS"), "14 default");
    assert_eq!(row("DB_APPLICATION_NAME"), "mine DATABASE_URL");
    assert_eq!(
        row("DATABASE_URL"),
        "postgresql://u:***@h:5432/d?application_name=mine environment"
    );
    assert_eq!(row("API_TOKEN"), "*** .env");
    assert!(
        !text.contains("s3cret") && !text.contains("t0ken"),
        "{text}"
    );
}

#[test]
fn a_broken_env_file_is_named_without_its_words() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(".env"), "DB_POOL_MAX=7\nthis is s3cret\n").unwrap();
    let output = run(dir.path(), &["config"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains(".env") && !stderr(&output).contains("s3cret"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn arguments_are_checked_and_help_is_there() {
    let dir = tempfile::tempdir().unwrap();
    for args in [
        &["check", "--live", "--ready"][..],
        &["check", "--timeout-ms", "0"],
        &["dance"],
        &["load-test", "--workers", "0"],
    ] {
        assert_eq!(
            run(dir.path(), args, &[]).status.code(),
            Some(2),
            "{args:?}"
        );
    }
    let help = String::from_utf8(run(dir.path(), &["--help"], &[]).stdout).unwrap();
    for command in ["serve", "check", "load-test", "config"] {
        assert!(help.contains(command), "{help}");
    }
    let version = String::from_utf8(run(dir.path(), &["--version"], &[]).stdout).unwrap();
    assert_eq!(
        version.trim(),
        concat!("millpond ", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn check_fails_where_nobody_answers() {
    let dir = tempfile::tempdir().unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let started = Instant::now();
    let output = run(
        dir.path(),
        &["check", "--url", &url, "--timeout-ms", "200"],
        &[],
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(started.elapsed() < 10 * SECOND);
    let addr = silent.local_addr().unwrap().to_string();
    drop(silent);
    assert_eq!(
        run(dir.path(), &["check"], &[("HTTP_ADDR", &addr)])
            .status
            .code(),
        Some(1)
    );
}

#[test]
fn a_load_test_that_cannot_connect_fails() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let dir = tempfile::tempdir().unwrap();
    let url = format!("postgresql://u:s3cret@127.0.0.1:{unused}/d");
    let vars = [
        ("DATABASE_URL", url.as_str()),
        ("DB_CONNECTION_TIMEOUT_MS", "100"),
        ("DB_MAX_RETRIES", "0"),
    ];
    let output = run(dir.path(), &["load-test"], &vars);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("refused") && !stderr(&output).contains("s3cret"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn without_file_descriptors_for_more_the_connections_that_are_open_do_the_work() {
    let db = database();
    let dir = tempfile::TempDir::new().unwrap();
    let load_test = ["load-test", "--workers", "10", "--queries", "20"];
    let limited = limited("-n 16", dir.path(), &load_test)
        .env("DATABASE_URL", &db.url)
        .output()
        .unwrap();
    let said = stderr(&limited);
    assert!(limited.status.success(), "{said}");
    assert!(
        said.contains("the limit of open files is too low"),
        "{said}"
    );
    assert!(!said.contains("panicked"), "{said}");
}

/// The program in this directory, run under a `ulimit`.
fn limited(limit: &str, dir: &Path, args: &[&str]) -> Command {
    let program = millpond(dir, args);
    let mut command = Command::new("bash");
    command
        .args(["-c", &format!("ulimit {limit}; exec \"$0\" \"$@\"")])
        .arg(program.get_program())
        .args(program.get_args())
        .current_dir(dir)
        .env_clear();
    command
}

#[test]
fn with_few_files_it_uses_what_fits_and_answers_every_client() {
    let db = database();
    let dir = tempfile::TempDir::new().unwrap();
    let too_few = limited("-n 40", dir.path(), &[])
        .env("DATABASE_URL", &db.url)
        .output()
        .unwrap();
    assert_eq!(too_few.status.code(), Some(1));
    let said = stderr(&too_few);
    assert!(
        said.contains("open files are limited to 40") && said.contains("ulimit -n"),
        "{said}"
    );
    let mut command = limited("-n 100", dir.path(), &[]);
    let vars = [
        ("DATABASE_URL", db.url.as_str()),
        ("DB_POOL_MAX", "300"),
        ("DB_POOL_MIN", "300"),
    ];
    let mut serving = listening(spawn(command.envs(vars)));
    assert!(
        serving.log().contains("lower DB_POOL_MAX, which is 300"),
        "{}",
        serving.log()
    );
    let addr = ([127, 0, 0, 1], serving.port).into();
    eventually("it is ready", || {
        http::get(addr, "/health/ready").status == 200
    });
    // Far more connections at once than the process may have open files.
    thread::scope(|scope| {
        let all: Vec<_> = (0..240)
            .map(|_| {
                scope.spawn(move || {
                    let mut client = http::Client::to(addr);
                    // Some clients wait before they send their request.
                    thread::sleep(30 * MS);
                    let close = "Connection: close\r\n";
                    client.ask("GET", "/api/studios", close, b"").status
                })
            })
            .collect();
        for one in all {
            assert_eq!(one.join().unwrap(), 200);
        }
    });
    let is_healthy = || http::get(addr, "/health").status == 200;
    eventually("it is healthy", is_healthy);
    serving.stops();
}

#[test]
fn with_few_threads_it_uses_what_fits_or_says_so() {
    let db = database();
    let dir = open_dir(0o777);
    let program = dir.path().join("millpond");
    std::fs::copy(millpond(dir.path(), &[]).get_program(), &program).unwrap();
    // The limit counts all processes of a user and does not apply to root: root runs the program as
    // a user that has no other processes.
    let is_root = nix::unistd::geteuid().is_root();
    let as_nobody_else = match is_root {
        true => "setpriv --reuid=61234 --regid=61234 --clear-groups",
        false => "",
    };
    let allowed = |threads: u32| {
        let mut command = Command::new("bash");
        let line = format!("ulimit -u {threads}; exec {as_nobody_else} \"$0\"");
        command
            .args(["-c", &line])
            .arg(&program)
            .current_dir(dir.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
    };
    for few in [1, 12] {
        let refused = allowed(few).env("DATABASE_URL", &db.url).output().unwrap();
        let said = stderr(&refused);
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(
            said.contains("ulimit -u") && !said.contains("panicked"),
            "{few}: {said}"
        );
    }
    if is_root {
        let mut serving = listening(spawn(allowed(60).env("DATABASE_URL", &db.url)));
        assert!(
            serving.log().contains("lower HTTP_WORKERS, which is 40"),
            "{}",
            serving.log()
        );
        let addr = ([127, 0, 0, 1], serving.port).into();
        eventually("it serves", || {
            http::get(addr, "/api/studios").status == 200
        });
        let is_healthy = || http::get(addr, "/health").status == 200;
        eventually("it is healthy", is_healthy);
        serving.stops();
    }
}

#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    let db = database();
    let dir = tempfile::TempDir::new().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    for (level, terminal) in [("info", false), ("trace", false), ("trace", true)] {
        // For example a terminal whose output is stopped.
        let terminal = terminal.then(|| nix::pty::openpty(None, None).unwrap());
        let stderr = match &terminal {
            Some(pty) => pty.slave.try_clone().unwrap().into(),
            None => Stdio::piped(),
        };
        let mut child = millpond(dir.path(), &[])
            .env("DATABASE_URL", &db.url)
            .env("HTTP_ADDR", format!("127.0.0.1:{port}"))
            .env("LOG_LEVEL", level)
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let unread = child.stderr.take();
        let get = |path: &str| http::get(([127, 0, 0, 1], port).into(), path);
        eventually("it serves", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
                && get("/health/ready").status == 200
        });
        // Far more log lines than a pipe holds: every request and every ended connection is logged.
        let mut admin = db.admin();
        for n in 0..400 {
            assert_eq!(get("/api/studios?limit=1").status, 200);
            if n % 20 == 0 {
                admin
                    .execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                         WHERE application_name = 'studio-revenue-manager'",
                        &[],
                    )
                    .unwrap();
            }
        }
        eventually("it is healthy", || get("/health").status == 200);
        let asked = Instant::now();
        let kill = Command::new("kill").arg(child.id().to_string()).status();
        assert!(kill.unwrap().success());
        eventually("it ends", || child.try_wait().unwrap().is_some());
        assert!(asked.elapsed() < 8 * SECOND, "{:?}", asked.elapsed());
        assert!(child.wait().unwrap().success());
        drop(unread);
    }
}

#[test]
fn a_full_or_closed_output_is_a_code_and_no_panic() {
    let dir = tempfile::TempDir::new().unwrap();
    let program = millpond(dir.path(), &[]).get_program().to_owned();
    for (to, says) in [("> /dev/full", "No space left"), (">&-", "")] {
        let output = Command::new("bash")
            .args(["-c", &format!("exec \"$0\" config {to}")])
            .arg(&program)
            .current_dir(dir.path())
            .output()
            .unwrap();
        let said = stderr(&output);
        assert!(
            !said.contains("panicked") && said.contains(says),
            "{to}: {said}"
        );
        if to.contains("full") {
            assert_eq!(output.status.code(), Some(1));
        }
    }
    let output = Command::new("bash")
        .args(["-c", "\"$0\" config | true; exit ${PIPESTATUS[0]}"])
        .arg(&program)
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
}

#[test]
fn a_server_on_an_ipv6_address_is_asked_too() {
    let db = database();
    let dir = tempfile::TempDir::new().unwrap();
    let port = std::net::TcpListener::bind("[::1]:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let addr = format!("[::1]:{port}");
    let mut child = millpond(dir.path(), &[])
        .envs([("DATABASE_URL", db.url.as_str()), ("HTTP_ADDR", &addr)])
        .env("DB_POOL_MXA", "5")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let base = format!("http://{addr}");
    let check = |args: &[&str]| {
        let vars = [("HTTP_ADDR", addr.as_str())];
        run(dir.path(), &[&["check"], args].concat(), &vars)
    };
    for which in ["--ready", "--live"] {
        eventually(which, || check(&[which]).status.code() == Some(0));
    }
    eventually("it is healthy", || check(&[]).status.code() == Some(0));
    for (url, code) in [
        (base.as_str(), 0),
        (&format!("{base}/health/live"), 0),
        ("localhost:3000", 2),
    ] {
        let output = check(&["--url", url]);
        assert_eq!(output.status.code(), Some(code), "{url}: {output:?}");
    }
    let stop = Command::new("kill").arg(child.id().to_string()).status();
    assert!(stop.unwrap().success());
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert!(child.wait().unwrap().success());
    assert!(
        said.contains("DB_POOL_MXA is not a setting; did you mean DB_POOL_MAX?"),
        "{said}"
    );
}

#[test]
fn a_start_that_is_killed_while_it_makes_its_database_keeps_no_later_one_from_it() {
    let dir = open_dir(0o755);
    let data = dir.path().join(".millpond");
    let half_made = || {
        let entries = std::fs::read_dir(&data).into_iter().flatten().flatten();
        let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.any(|name| name.starts_with("pg.new"))
    };
    for nth in 0..4 {
        let mut child = millpond(dir.path(), &[])
            .env("HTTP_ADDR", "127.0.0.1:0")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually("initdb is at work", half_made);
        // At a different moment in each round.
        thread::sleep(nth * 40 * MS);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let mut serving = serve(dir.path(), &[]);
    eventually("it serves", || {
        serving.check(dir.path(), &["--ready"]).status.code() == Some(0)
    });
    serving.stops();
}

#[test]
fn a_database_that_is_made_anew_gets_its_schema_again() {
    let db = database();
    let (base, name) = db.url.rsplit_once('/').unwrap();
    let dir = tempfile::TempDir::new().unwrap();
    let mut serving = serve(dir.path(), &[("DATABASE_URL", &db.url)]);
    let addr = ([127, 0, 0, 1], serving.port).into();
    eventually("it is ready", || {
        http::get(addr, "/health/ready").status == 200
    });
    let mut admin = super::support::admin(&format!("{base}/postgres"));
    let again = [
        format!("DROP DATABASE {name} WITH (FORCE)"),
        format!("CREATE DATABASE {name}"),
    ];
    again
        .iter()
        .for_each(|sql| admin.batch_execute(sql).unwrap());
    eventually("it serves the studio again", || {
        http::get(addr, "/api/studios").status == 200
    });
    assert!(
        serving.log().contains("creating it again"),
        "{}",
        serving.log()
    );
    serving.stops();
}

#[test]
fn a_private_server_that_was_killed_is_started_again_and_that_is_said() {
    let dir = open_dir(0o755);
    let mut serving = serve(dir.path(), &[]);
    let ready = || serving.check(dir.path(), &["--ready"]).status.code() == Some(0);
    eventually("it is ready", ready);
    let pid_file = dir.path().join(".millpond/pg/postmaster.pid");
    let pid = || {
        let text = std::fs::read_to_string(&pid_file).unwrap_or_default();
        text.lines()
            .next()
            .and_then(|line| line.parse::<u32>().ok())
    };
    let before = pid().unwrap();
    assert!(super::servers::signal(before, "KILL"));
    eventually("it was started again", || {
        serving.log().contains("was restarted") && pid() != Some(before)
    });
    let addr = ([127, 0, 0, 1], serving.port).into();
    eventually("it serves again", || {
        http::get(addr, "/api/studios").status == 200
    });
    serving.stops();
}

#[test]
fn a_busy_port_is_found_before_a_private_database_is_made() {
    let dir = tempfile::TempDir::new().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let output = run(dir.path(), &["serve"], &[("HTTP_ADDR", &addr)]);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains(&format!("cannot listen on {addr}")), "{said}");
    assert!(!dir.path().join(".millpond").exists(), "{said}");
}

#[test]
fn it_does_without_a_temporary_directory_that_cannot_be_used_and_takes_away_what_was_left() {
    let db = database();
    let dir = tempfile::TempDir::new().unwrap();
    let long = format!("{}/{}", dir.path().display(), "long/".repeat(30));
    std::fs::create_dir_all(&long).unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for unusable in ["/nowhere/at/all", &long, file.to_str().unwrap()] {
        let vars = [("DATABASE_URL", db.url.as_str()), ("TMPDIR", unusable)];
        let mut serving = serve(dir.path(), &vars);
        assert!(serving.log().contains(unusable), "{}", serving.log());
        let addr = ([127, 0, 0, 1], serving.port).into();
        eventually("it serves", || {
            http::get(addr, "/api/studios").status == 200
        });
        serving.stops();
    }
    // A killed program leaves its directory behind; a later start removes it.
    let own = dir.path().join("tmp");
    std::fs::create_dir(&own).unwrap();
    let left = || {
        std::fs::read_dir(&own)
            .unwrap()
            .flatten()
            .collect::<Vec<_>>()
    };
    let vars = [
        ("DATABASE_URL", db.url.as_str()),
        ("TMPDIR", own.to_str().unwrap()),
    ];
    let mut killed = serve(dir.path(), &vars);
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    let [kept] = &left()[..] else {
        panic!("{:?}", left())
    };
    let then = std::time::SystemTime::now() - 120 * SECOND;
    let lock = std::fs::File::options()
        .write(true)
        .open(kept.path().join("lock"))
        .unwrap();
    lock.set_modified(then).unwrap();
    let mut next = serve(dir.path(), &vars);
    assert!(!kept.path().exists());
    next.signal("TERM");
    assert_eq!(next.ends(), Some(0));
    assert_eq!(left().len(), 0);
}

#[test]
fn a_hangup_has_the_settings_read_again_and_stops_nothing() {
    let db = database();
    let dir = tempfile::TempDir::new().unwrap();
    let settings = |text: &str| std::fs::write(dir.path().join(".env"), text).unwrap();
    settings("DB_POOL_MAX=3\n");
    let mut serving = serve(dir.path(), &[("DATABASE_URL", &db.url)]);
    let addr = ([127, 0, 0, 1], serving.port).into();
    let from = |client: &str| {
        let mut connection = http::Client::to(addr);
        let answer = connection.ask(
            "GET",
            "/health/live",
            &format!("X-Forwarded-For: {client}\r\n"),
            b"",
        );
        assert_eq!(answer.status, 200);
    };
    from("192.0.2.1");
    let says = |text: &str| serving.log().contains(text);
    settings("DB_POOL_MAX=4\nLOG_LEVEL=debug\nHTTP_TRUSTED_PROXIES=127.0.0.1\nAPI_TOKEN=secret\n");
    serving.signal("HUP");
    eventually("it has read them", || says("needs a restart"));
    assert!(
        says("the settings were read again: HTTP_TRUSTED_PROXIES, LOG_LEVEL changed")
            && says("what has changed in DB_POOL_MAX, API_TOKEN needs a restart"),
        "{}",
        serving.log()
    );
    from("192.0.2.2");
    eventually("it is trusted, and said", || says("client=192.0.2.2"));
    assert!(!says("192.0.2.1") && !says("secret"));
    settings("LOG_LEVEL=loud\n");
    serving.signal("HUP");
    eventually("it is refused", || says("the settings stay as they are"));
    from("192.0.2.3");
    eventually("they do", || says("client=192.0.2.3"));
    serving.signal("TERM");
    assert_eq!(serving.ends(), Some(0));
}

#[test]
fn a_hangup_does_nothing_under_nohup_and_stops_what_has_lost_its_terminal() {
    let db = database();
    let dir = tempfile::TempDir::new().unwrap();
    let program = millpond(dir.path(), &[]);
    let vars = [("DATABASE_URL", &*db.url), ("LOG_LEVEL", "info")];
    let start = |command: &mut Command| {
        command
            .arg(program.get_program())
            .current_dir(dir.path())
            .env_clear()
            .envs(vars);
        listening(spawn(command))
    };
    let mut nohup = Command::new("sh");
    let mut serving = start(nohup.args(["-c", "trap '' HUP; exec \"$0\""]));
    serving.signal("HUP");
    let addr = ([127, 0, 0, 1], serving.port).into();
    for _ in 0..10 {
        assert_eq!(http::get(addr, "/health/live").status, 200);
        thread::sleep(20 * MS);
    }
    assert!(!serving.log().contains("read again"));
    serving.signal("TERM");
    assert_eq!(serving.ends(), Some(0));

    let terminal = nix::pty::openpty(None, None).unwrap();
    let closes = FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC);
    fcntl(&terminal.master, closes).unwrap();
    let mut in_terminal = Command::new("setsid");
    in_terminal.arg("--ctty").stdin(terminal.slave);
    let mut serving = start(&mut in_terminal);
    serving.signal("HUP");
    eventually("as long as it is there", || {
        serving.log().contains("read again")
    });
    // The window is closed.
    drop(in_terminal);
    drop(terminal.master);
    assert_eq!(serving.ends(), Some(0), "{}", serving.log());
}

#[test]
fn systemd_is_told_of_the_start_the_end_and_that_it_lives() {
    let db = database();
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("notify");
    let systemd = UnixDatagram::bind(&path).unwrap();
    systemd.set_read_timeout(Some(20 * SECOND)).unwrap();
    let vars = [
        ("DATABASE_URL", &*db.url),
        ("NOTIFY_SOCKET", path.to_str().unwrap()),
        ("WATCHDOG_USEC", "300000"),
    ];
    let mut serving = serve(dir.path(), &vars);
    let told = || {
        let mut text = [0; 1024];
        let length = systemd.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..length]).into_owned()
    };
    let first = told();
    let status = format!("STATUS=listening on http://127.0.0.1:{}", serving.port);
    assert!(
        first.contains("READY=1") && first.contains(&status),
        "{first}"
    );
    for _ in 0..5 {
        assert_eq!(told().trim(), "WATCHDOG=1");
    }
    // A program that is stopped says nothing: systemd restarts it.
    let frozen = Frozen::process(serving.child.id());
    systemd.set_read_timeout(Some(500 * MS)).unwrap();
    while systemd.recv(&mut [0; 1024]).is_ok() {}
    drop(frozen);
    systemd.set_read_timeout(Some(20 * SECOND)).unwrap();
    assert_eq!(told().trim(), "WATCHDOG=1");
    serving.signal("TERM");
    while !told().contains("STOPPING=1") {}
    assert_eq!(serving.ends(), Some(0));
}

#[test]
fn the_units_name_this_program_and_systemd_takes_them() {
    let dir = tempfile::TempDir::new().unwrap();
    let printed = |arguments: &[&str]| {
        let printed = run(dir.path(), arguments, &[]);
        assert!(printed.status.success());
        String::from_utf8(printed.stdout).unwrap()
    };
    let service = printed(&["unit"]);
    let program = millpond(dir.path(), &[]);
    let program = std::fs::canonicalize(program.get_program()).unwrap();
    assert!(
        service.contains(&format!("ExecStart={} serve\n", program.display())),
        "{service}"
    );
    let socket = printed(&["unit", "--socket"]);
    let addr = millpond::Config::default().http.addr;
    assert!(
        socket.contains(&format!("ListenStream={addr}\n")),
        "{socket}"
    );
    let units = [("millpond.service", service), ("millpond.socket", socket)];
    let paths = units.map(|(name, unit)| {
        let path = dir.path().join(name);
        std::fs::write(&path, unit).unwrap();
        path
    });
    // Where systemd is installed, it says what it thinks of the units.
    let Ok(verified) = Command::new("systemd-analyze")
        .arg("verify")
        .args(paths)
        .output()
    else {
        return;
    };
    let said = stderr(&verified);
    let of_ours: Vec<_> = said
        .lines()
        .filter(|line| line.contains("millpond"))
        .collect();
    assert!(of_ours.is_empty(), "{said}");
}

#[test]
fn the_assets_are_printed_and_another_word_is_refused() {
    let dir = tempfile::TempDir::new().unwrap();
    let printed = |which: &str| {
        let printed = run(dir.path(), &["assets", which], &[]);
        assert!(printed.status.success());
        String::from_utf8(printed.stdout).unwrap()
    };
    assert!(printed("alerts").contains("\n  - name: millpond\n    rules:\n"));
    let dashboard: serde_json::Value = serde_json::from_str(&printed("grafana")).unwrap();
    assert_eq!(dashboard["title"], "millpond");
    for wrong in [&["assets", "dashboard"][..], &["assets"]] {
        let refused = run(dir.path(), wrong, &[]);
        assert_eq!(refused.status.code(), Some(2), "{wrong:?}");
        let said = stderr(&refused);
        assert!(
            said.contains("alerts") && said.contains("grafana"),
            "{said}"
        );
    }
}

#[test]
fn log_lines_may_be_json() {
    let db = database();
    let dir = tempfile::TempDir::new().unwrap();
    let vars = [
        ("DATABASE_URL", &*db.url),
        ("LOG_FORMAT", "json"),
        ("LOG_LEVEL", "debug"),
    ];
    let mut serving = serve(dir.path(), &vars);
    let addr = ([127, 0, 0, 1], serving.port).into();
    // What comes from outside stays within its line.
    http::get(addr, "/nowhere/%0A%22x");
    eventually("it is logged", || serving.log().contains("/nowhere/"));
    serving.signal("TERM");
    assert_eq!(serving.ends(), Some(0));
    let log = serving.log();
    assert!(log.lines().count() > 5, "{log}");
    for line in log.lines() {
        let object: serde_json::Value = serde_json::from_str(line).expect(line);
        let text = |name: &str| object[name].as_str().unwrap_or_default().to_owned();
        assert!(
            text("timestamp").parse::<jiff::Timestamp>().is_ok(),
            "{line}"
        );
        assert!(
            ["error", "warn", "info", "debug"].contains(&&*text("level")),
            "{line}"
        );
        assert!(
            !text("message").is_empty() && !text("target").is_empty(),
            "{line}"
        );
    }
}

#[test]
fn thirty_bad_bodies_at_once_cost_a_small_multiple_of_their_bytes() {
    const LIMIT: usize = 1 << 20;
    let filled = |begin: &str, piece: &str, end: &str| {
        let times = (LIMIT - begin.len() - end.len()) / piece.len();
        format!("{begin}{}{end}", piece.repeat(times))
    };
    let names: String = (0..100_000).map(|n| format!("\"{n:x}\":0,")).collect();
    let (json, csv) = ("application/json", "text/csv");
    let header = "studioId,customer,startsAt,endsAt\n";
    let bodies = [
        (json, filled("{\"a\":[", "{\"\":0},", "0]}")),
        (json, filled("{\"customer\":[", "{\"\":0},", "0]}")),
        (json, format!("{{{names}\"z\":0}}")),
        (json, filled("{\"", "\\u0001", "\":0}")),
        (json, filled("", "[", "")),
        (csv, filled(header, "x\n", "")),
        (csv, filled(header, ",", "")),
    ];
    let db = database();
    let dir = tempfile::TempDir::new().unwrap();
    let serving = serve(dir.path(), &[("DATABASE_URL", &db.url)]);
    let addr = ([127, 0, 0, 1], serving.port).into();
    eventually("it serves", || {
        http::get(addr, "/api/studios").status == 200
    });
    for (kind, body) in &bodies {
        let path = match *kind == csv {
            true => "/api/reservations/import",
            false => "/api/reservations",
        };
        thread::scope(|scope| {
            for _ in 0..30 {
                scope.spawn(|| {
                    let headers = format!("Content-Type: {kind}\r\nConnection: close\r\n");
                    let mut client = http::Client::to(addr);
                    let answer = client.ask("POST", path, &headers, body.as_bytes());
                    assert!([400, 422, 503].contains(&answer.status), "{answer:?}");
                    assert!(answer.body.len() < 64 << 10, "{}", answer.body.len());
                });
            }
        });
        let peak = memory(serving.child.id(), "VmHWM");
        println!("{kind} {:.30}: {} MiB", body, peak / 1024);
        assert!(peak < 200 * 1024, "{kind} {body:.30}");
    }
}

#[test]
fn bodies_in_chunks_that_come_to_too_much_are_refused_with_a_word() {
    let db = database();
    let dir = tempfile::TempDir::new().unwrap();
    let vars = [
        ("DATABASE_URL", db.url.as_str()),
        ("HTTP_MAX_BODY_BYTES", "4000000"),
    ];
    let mut serving = serve(dir.path(), &vars);
    let addr = SocketAddr::from(([127, 0, 0, 1], serving.port));
    let live = || http::get(addr, "/health/ready").status == 200;
    eventually("it is ready", live);
    let head = b"POST /api/reservations/import HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/csv\r\nX-Request-Id: mine\r\n\
                 Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n";
    let mut all: Vec<_> = (0..45)
        .map(|_| {
            let mut stream = TcpStream::connect(addr).unwrap();
            stream.set_read_timeout(Some(20 * SECOND)).unwrap();
            stream.write_all(head).unwrap();
            // While there is room, the request is admitted.
            let mut go_on = [0; 25];
            stream.read_exact(&mut go_on).unwrap();
            assert!(go_on.starts_with(b"HTTP/1.1 100 "));
            stream
        })
        .collect();
    let chunk = [&b"384000\r\n"[..], &vec![b'x'; 0x0038_4000]].concat();
    for stream in &mut all {
        let _ = stream.write_all(&chunk);
    }
    // The rest of each body is still to come.
    eventually("some are refused, each with its own id", || {
        let mut heads = all.iter_mut().map(|stream| {
            stream.set_nonblocking(true).unwrap();
            let mut head = [0; 300];
            let length = stream.peek(&mut head).unwrap_or(0);
            String::from_utf8_lossy(&head[..length]).into_owned()
        });
        heads.any(|head| head.starts_with("HTTP/1.1 503 ") && head.contains("X-Request-Id: mine"))
    });
    drop(all);
    serving.stops();
}

/// The program with a listener that the test has opened, passed as systemd passes a socket.
fn on_listener(dir: &Path, listener: &std::net::TcpListener) -> Command {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use std::os::fd::AsRawFd;
    fcntl(listener, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let line = format!(
        "exec 3<&{}; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\"",
        listener.as_raw_fd()
    );
    let mut command = Command::new("bash");
    command
        .args(["-c", &line])
        .arg(millpond(dir, &[]).get_program())
        .current_dir(dir)
        .env_clear();
    command
}

#[test]
fn on_an_inherited_listener_nobody_is_refused_while_one_program_follows_another() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let db = database();
    let dir = tempfile::TempDir::new().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let start = || {
        let mut command = on_listener(dir.path(), &listener);
        listening(spawn(command.env("DATABASE_URL", &db.url)))
    };
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = EndAtDrop(&over);
        let mut first = start();
        let clients: Vec<_> = (0..10)
            .map(|_| {
                scope.spawn(|| {
                    let mut all = 0;
                    while !over.load(Ordering::SeqCst) {
                        assert_eq!(http::get(addr, "/health/live").status, 200);
                        // The next program accepts connections as soon as it can answer them. This
                        // connection may have reached the previous program just as it was stopped.
                        let answer = http::get(addr, "/api/studios");
                        let is_stopped = answer.body.contains("shutting down");
                        assert!(answer.status == 200 || is_stopped, "{answer:?}");
                        all += 1;
                    }
                    all
                })
            })
            .collect();
        for _ in 0..3 {
            thread::sleep(200 * MS);
            first.signal("TERM");
            assert_eq!(first.ends(), Some(0));
            first = start();
        }
        thread::sleep(200 * MS);
        drop(end);
        let all: usize = clients.into_iter().map(|c| c.join().unwrap()).sum();
        assert!(all > 100, "{all}");
    });
}

#[test]
fn an_inherited_listener_that_others_can_reach_needs_a_token_as_well() {
    let db = database();
    let dir = tempfile::TempDir::new().unwrap();
    let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let output = on_listener(dir.path(), &listener)
        .env("DATABASE_URL", &db.url)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("API_TOKEN"), "{}", stderr(&output));
}

#[test]
fn what_psql_knows_counts_where_the_url_is_silent() {
    let db = database();
    let dir = open_dir(0o777);
    let rest = db.url.strip_prefix("postgresql://").unwrap();
    let (user, rest) = rest.split_once(':').unwrap();
    let (password, rest) = rest.split_once('@').unwrap();
    let name = rest.rsplit_once('/').unwrap().1;
    let port = db.port.to_string();
    // A service, and the password of psql's file.
    let services = dir.path().join("services");
    std::fs::write(
        &services,
        format!("[studio]\nhost=127.0.0.1\nport={port}\n"),
    )
    .unwrap();
    let passfile = dir.path().join("pgpass");
    std::fs::write(&passfile, format!("*:*:*:{user}:{password}\n")).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&passfile, std::fs::Permissions::from_mode(0o600)).unwrap();
    let (services, passfile) = (
        services.display().to_string(),
        passfile.display().to_string(),
    );
    let ways: [&[(&str, &str)]; 3] = [
        &[
            ("PGHOST", "127.0.0.1"),
            ("PGPORT", &port),
            ("PGPASSWORD", password),
        ],
        &[
            ("PGSERVICE", "studio"),
            ("PGSERVICEFILE", &services),
            ("PGPASSFILE", &passfile),
        ],
        // The URL counts first.
        &[
            ("DATABASE_URL", &format!("postgresql://127.0.0.1:{port}")),
            ("PGHOST", "192.0.2.1"),
            ("PGPASSFILE", &passfile),
        ],
    ];
    for way in ways {
        let common = [
            ("PGUSER", user),
            ("PGDATABASE", name),
            ("STUDIO_API", "off"),
        ];
        let vars: Vec<_> = way.iter().chain(&common).copied().collect();
        let shown = run(dir.path(), &["config"], &vars);
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert!(!shown.contains(password), "{shown}");
        let line = |name: &str| {
            let found = shown
                .lines()
                .find(|line| line.split_whitespace().next() == Some(name));
            found
                .unwrap_or_else(|| panic!("no {name}: {shown}"))
                .split_whitespace()
                .collect::<Vec<_>>()
        };
        assert_eq!(line("PGUSER"), ["PGUSER", user, "environment"]);
        if way[0].0 == "PGSERVICE" {
            assert_eq!(line("port"), ["port", &port, "service"]);
        }
        let mut serving = listening(spawn(
            millpond(dir.path(), &[])
                .envs(vars.iter().copied())
                .env("HTTP_ADDR", "127.0.0.1:0"),
        ));
        let addr = ([127, 0, 0, 1], serving.port).into();
        eventually("it is healthy", || http::get(addr, "/health").status == 200);
        serving.stops();
    }
    // What cannot be had is refused by name.
    for (variable, value) in [
        ("PGREQUIREAUTH", "scram-sha-256"),
        ("PGGSSENCMODE", "require"),
        ("PGSSLMODE", "maybe"),
        ("PGSERVICE", "nobody"),
    ] {
        let output = run(
            dir.path(),
            &["config"],
            &[("PGHOST", "h"), (variable, value)],
        );
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(variable), "{}", stderr(&output));
    }
}
