//! Interrupted starts: the program is killed, asked to stop or cut off from the database at every
//! request of the migrations and of `create_ledger`, and at every step in which a private database
//! is made. Each time, the next start must serve.
//!
//! If `MILLPOND_TORTURE_SECONDS` is set, every interruption is tried at every request; otherwise
//! one at each, in turn.

use super::cli::{Serving, get, millpond, open_dir, serve, server_processes, spawn, start};
use super::proxy::{Act, Proxy};
use super::servers::signal;
use super::support::{
    Database, SECOND, admin, database, eventually, no_backend_is_left, programs_in_use,
};
use millpond::Pool;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;
use tempfile::TempDir;

/// Every migration that was ever released. Add new migrations; never change one that was released:
/// a database that has it refuses a program whose migration of the same version differs.
const SERVED: [(i32, &str, &str); 1] = [(1, "studio", "2467900361067023414")];

#[test]
fn a_migration_that_was_served_is_never_changed() {
    let db = database();
    let dir = TempDir::new().unwrap();
    let serving = serve(dir.path(), &[("DATABASE_URL", &db.url)]);
    serves(&db, serving);
    let sql = "SELECT version, name, checksum FROM studio.schema_history ORDER BY version";
    let rows = db.admin().query(sql, &[]).unwrap();
    let ran: Vec<(i32, String, String)> = rows
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect();
    let known = SERVED.map(|(version, name, sum)| (version, name.to_owned(), sum.to_owned()));
    assert_eq!(
        ran, known,
        "add a new migration; never change one that was served"
    );
}

/// The first request of a session that migrates.
const MIGRATES: &[u8] = b"SET statement_timeout = 0";

/// How a start is interrupted.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// Before the database gets the request, or after it has processed the request, at its answer.
    KilledBefore,
    KilledAfter,
    TerminatedBefore,
    TerminatedAfter,
    CutOffBefore,
    CutOffAfter,
}

const FATES: [Fate; 6] = [
    Fate::KilledBefore,
    Fate::TerminatedAfter,
    Fate::CutOffBefore,
    Fate::KilledAfter,
    Fate::TerminatedBefore,
    Fate::CutOffAfter,
];

impl Fate {
    /// Arms the fault at the nth request from `needle` on; `hit` sends a signal to the program.
    fn lies_in_wait(
        self,
        proxy: &Proxy,
        needle: &[u8],
        nth: usize,
        hit: impl Fn(&str) + Send + 'static,
    ) {
        let (act, after) = match self {
            Fate::KilledBefore => (Act::LoseAfter(Box::new(move || hit("KILL"))), false),
            Fate::KilledAfter => (Act::LoseAfter(Box::new(move || hit("KILL"))), true),
            Fate::TerminatedBefore => (Act::DeliverAfter(Box::new(move || hit("TERM"))), false),
            Fate::TerminatedAfter => (Act::DeliverAfter(Box::new(move || hit("TERM"))), true),
            Fate::CutOffBefore => (Act::Lose, false),
            Fate::CutOffAfter => (Act::Lose, true),
        };
        match after {
            false => proxy.on_nth_request(needle, nth, act),
            true => proxy.on_nth_answer(needle, nth, act),
        }
    }
}

/// The interruptions that are tried at this request.
fn fates_at(nth: usize) -> Vec<Fate> {
    match std::env::var_os("MILLPOND_TORTURE_SECONDS") {
        Some(_) => FATES.to_vec(),
        None => vec![FATES[nth % 6]],
    }
}

/// Waits until the program serves the studio, and checks that the schema is complete.
#[track_caller]
fn serves(db: &Database, mut serving: Serving) -> Serving {
    eventually("it is ready", || serving.is_ready());
    assert_eq!(get(serving.port, "/api/studios").0, 200);
    let sql = "SELECT (SELECT count(*) FROM studio.schema_history), (SELECT count(*) FROM studio.studios), \
               to_regclass('studio.ledger') IS NOT NULL";
    let row = db.admin().query_one(sql, &[]).unwrap();
    let whole = (SERVED.len() as i64, 3i64, true);
    assert_eq!((row.get(0), row.get(1), row.get(2)), whole);
    serving
}

/// False if the start was complete before its nth request.
fn interrupt_migrations(fate: Fate, nth: usize) -> bool {
    let db = database();
    let proxy = Proxy::in_front_of(db.port);
    let url = proxy.url(&db.url);
    let dir = TempDir::new().unwrap();
    let vars = [
        ("DATABASE_URL", url.as_str()),
        ("DB_APPLICATION_NAME", "interrupted"),
        ("DB_POOL_MIN", "0"),
    ];
    let (started, its_pid) = mpsc::channel();
    fate.lies_in_wait(&proxy, MIGRATES, nth, move |name| {
        assert!(signal(its_pid.recv().unwrap(), name));
    });
    let mut first = start(dir.path(), &vars);
    // If no signal is to be sent, nothing receives the id.
    let _ = started.send(first.child.id());
    eventually("it is interrupted, or through", || {
        !proxy.is_armed() || first.is_ready()
    });
    let struck = !proxy.is_armed();
    println!(
        "request {nth}: {fate:?}{}",
        if struck { "" } else { ": through" }
    );
    if struck {
        match fate {
            Fate::KilledBefore | Fate::KilledAfter => assert_eq!(first.ends(), None),
            Fate::TerminatedBefore | Fate::TerminatedAfter => {
                assert_eq!(first.ends(), Some(0), "{}", first.log());
                no_backend_is_left(&db, "interrupted");
            }
            // The program recovers without a restart.
            Fate::CutOffBefore | Fate::CutOffAfter => {
                first = serves(&db, first);
                assert!(first.log().contains("start over"), "{}", first.log());
            }
        }
    }
    drop(first);
    serves(&db, serve(dir.path(), &vars));
    drop(proxy);
    db.drop();
    struck
}

#[test]
fn a_start_that_is_interrupted_at_any_statement_of_its_migrations_keeps_no_later_one_from_it() {
    let (next, through) = (AtomicUsize::new(1), AtomicBool::new(false));
    let most = Mutex::new(0);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !through.load(Ordering::SeqCst) {
                    let nth = next.fetch_add(1, Ordering::SeqCst);
                    for fate in fates_at(nth) {
                        match interrupt_migrations(fate, nth) {
                            true => {
                                let mut most = most.lock().unwrap();
                                *most = nth.max(*most);
                            }
                            false => through.store(true, Ordering::SeqCst),
                        }
                    }
                }
            });
        }
    });
    // At least as many as there are statements; fewer would mean that the proxy did not see them.
    assert!(*most.lock().unwrap() >= 20);
}

#[test]
fn a_signal_to_a_start_that_waits_for_a_lock_leaves_no_session_behind() {
    // What already exists, and the statement in another session's open transaction, for whose lock
    // the start waits.
    let waits = [
        ("", "CREATE SCHEMA studio"),
        (
            "CREATE SCHEMA studio; CREATE TABLE studio.schema_history \
             (version int4 PRIMARY KEY, name text, applied_on text, checksum text)",
            "LOCK TABLE studio.schema_history",
        ),
        ("CREATE SCHEMA studio", "CREATE TABLE studio.quotes (x int)"),
        ("CREATE SCHEMA studio", "CREATE TABLE studio.ledger (x int)"),
    ];
    for (there, in_hand) in waits {
        let db = database();
        let mut holder = db.admin();
        holder.batch_execute(there).unwrap();
        holder.batch_execute(&format!("BEGIN; {in_hand}")).unwrap();
        let dir = TempDir::new().unwrap();
        let vars = [
            ("DATABASE_URL", db.url.as_str()),
            ("DB_APPLICATION_NAME", "waits for a lock"),
        ];
        let mut waiting = start(dir.path(), &vars);
        eventually("it waits for the lock", || waits_for_a_lock(&db));
        let asked = Instant::now();
        waiting.signal("TERM");
        assert_eq!(waiting.ends(), Some(0), "{}", waiting.log());
        no_backend_is_left(&db, "waits for a lock");
        println!("{in_hand}: ended {:?} after the signal", asked.elapsed());
        assert!(asked.elapsed() < 5 * SECOND, "{:?}", asked.elapsed());
        holder
            .batch_execute("ROLLBACK; DROP SCHEMA IF EXISTS studio CASCADE")
            .unwrap();
        serves(&db, serve(dir.path(), &vars));
    }
}

pub fn waits_for_a_lock(db: &Database) -> bool {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    db.admin().query_one(sql, &[]).unwrap().get::<_, i64>(0) == 1
}

/// Interrupts one request of `create_ledger`; false if it was complete before. The request is
/// retried, and the outcome of its COMMIT is found out.
fn interrupt_ledger(fate: Fate, nth: usize) -> bool {
    let db = database();
    let proxy = Proxy::in_front_of(db.port);
    let url = proxy.url(&db.url);
    let pool = || {
        let pool = super::support::pool(&url).max_size(1).min_idle(0);
        pool.build().unwrap()
    };
    let first = pool();
    fate.lies_in_wait(&proxy, b"BEGIN", nth, |_| {});
    let made = first.create_ledger();
    let struck = !proxy.is_armed();
    println!("request {nth}: {fate:?}: {made:?}");
    made.unwrap();
    has_a_ledger(&first);
    drop(first);
    has_a_ledger(&pool());
    drop(proxy);
    db.drop();
    struck
}

#[track_caller]
fn has_a_ledger(pool: &Pool) {
    pool.create_ledger().unwrap();
    let key = format!("{:?}", Instant::now());
    let write = pool.execute_with_key(&key, "SELECT 1", &[]);
    assert!(matches!(write, Ok(millpond::Keyed::Done(_))), "{write:?}");
}

#[test]
fn a_ledger_whose_making_is_cut_off_at_any_statement_is_made() {
    for fate in [Fate::CutOffBefore, Fate::CutOffAfter] {
        let most = (1..).find(|nth| !interrupt_ledger(fate, *nth)).unwrap();
        assert!(most > 4, "BEGIN, the lock, the table, COMMIT");
    }
}

const AT_ONCE: usize = 6;

fn start_at_once(dir: &TempDir, url: &str) -> Vec<Serving> {
    let several = (0..AT_ONCE).map(|n| {
        let name = format!("at-once-{n}");
        start(
            dir.path(),
            &[("DATABASE_URL", url), ("DB_APPLICATION_NAME", &name)],
        )
    });
    several.collect()
}

#[test]
fn of_six_programs_that_start_at_once_each_serves() {
    let db = database();
    let dir = TempDir::new().unwrap();
    let several = start_at_once(&dir, &db.url);
    let serving: Vec<_> = several.into_iter().map(|one| serves(&db, one)).collect();
    let made = |one: &&Serving| one.log().contains("ran migration version=1");
    assert_eq!(serving.iter().filter(made).count(), 1);
}

#[test]
fn of_six_programs_that_start_at_once_the_others_serve_where_the_one_that_migrates_is_killed() {
    let db = database();
    let proxy = Proxy::in_front_of(db.port);
    let dir = TempDir::new().unwrap();
    let (started, their_pids) = mpsc::channel::<Vec<u32>>();
    let (struck, victim) = mpsc::channel();
    let url = db.url.clone();
    let kill = move || {
        let sql = "SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid) \
                   WHERE locktype = 'advisory' AND granted AND datname = current_database()";
        let name: String = admin(&url).query_one(sql, &[]).unwrap().get(0);
        let nth: usize = name.trim_start_matches("at-once-").parse().unwrap();
        assert!(signal(their_pids.recv().unwrap()[nth], "KILL"));
        struck.send(nth).unwrap();
    };
    proxy.on_request(
        b"CREATE TABLE studio.studios",
        Act::LoseAfter(Box::new(kill)),
    );
    let mut several = start_at_once(&dir, &proxy.url(&db.url));
    let pids = several.iter().map(|one| one.child.id()).collect();
    started.send(pids).unwrap();
    let mut killed = several.remove(victim.recv_timeout(20 * SECOND).unwrap());
    assert_eq!(killed.ends(), None);
    several.push(start(dir.path(), &[("DATABASE_URL", &db.url)]));
    let serving: Vec<_> = several.into_iter().map(|one| serves(&db, one)).collect();
    let made = |one: &&Serving| one.log().contains("ran migration version=1");
    assert_eq!(serving.iter().filter(made).count(), 1);
}

/// PostgreSQL's programs, one of which stops at a stage of its work until it is told to go on.
struct Stages(TempDir);

impl Stages {
    /// `script` gets the stage in `$stage`, the program in `$real` and its data directory in
    /// `$data`. It stops with `wait_here`, whose argument is the id of the process to report.
    fn of(program: &str, script: &str) -> Stages {
        let dir = open_dir(0o777);
        let (real, here) = (programs_in_use(), dir.path().display());
        for entry in fs::read_dir(&real).unwrap().flatten() {
            symlink(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
        let wrapper = dir.path().join(program);
        fs::remove_file(&wrapper).unwrap();
        let text = format!(
            "#!/bin/sh\nhere='{here}' real='{}'\n{STAGE}\n{script}\n",
            real.join(program).display()
        );
        fs::write(&wrapper, text).unwrap();
        fs::set_permissions(&wrapper, Permissions::from_mode(0o755)).unwrap();
        let stages = Stages(dir);
        stages.stop_at("none");
        stages
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn stop_at(&self, stage: &str) {
        for name in ["go", "reached"] {
            let _ = fs::remove_file(self.file(name));
        }
        fs::write(self.file("stage"), stage).unwrap();
    }

    /// Programs that start from now on do not stop. One that has stopped still waits for `go_on`.
    fn stop_no_more(&self) {
        fs::write(self.file("stage"), "none").unwrap();
    }

    /// Waits until the stage is reached. Returns the id of the process that was reported.
    fn is_reached(&self) -> u32 {
        let reached = self.file("reached");
        eventually("the stage is reached", || reached.exists());
        fs::read_to_string(reached).unwrap().trim().parse().unwrap()
    }

    fn go_on(&self) {
        fs::write(self.file("go"), "").unwrap();
    }

    fn vars(&self) -> [(&str, &str); 1] {
        [("PG_BIN_DIR", self.0.path().to_str().unwrap())]
    }
}

/// A program that waits when the test ends goes on as well.
const STAGE: &str = r#"
wait_here() {
  echo "$1" >"$here/reached.new" && mv "$here/reached.new" "$here/reached"
  while [ -e "$here/stage" ] && ! [ -e "$here/go" ]; do sleep 0.02; done
}
for word; do [ "$before" = -D ] && data=$word; before=$word; done
stage=$(cat "$here/stage")
"#;

const INITDB: &str = r#"
case $stage in
  before) wait_here $$ ;;
  half | dies)
    "$real" "$@" & initdb=$!
    until [ -s "$data/PG_VERSION" ] || ! kill -0 $initdb; do sleep 0.01; done
    if [ $stage = dies ]; then kill -KILL $initdb; wait $initdb; kill -KILL $$; fi
    kill -STOP $initdb; wait_here $$; kill -CONT $initdb
    wait $initdb; exit ;;
  whole) "$real" "$@"; status=$?; wait_here $$; exit $status ;;
esac
exec "$real" "$@"
"#;

const POSTGRES: &str = r#"
case "$stage $1" in
  "before -D" | "before --single") wait_here $$ ;;
  "starting -D")
    {
      until [ -e "$data/postmaster.pid" ]; do sleep 0.01; done
      kill -STOP $$; wait_here $$; kill -CONT $$
    } </dev/null >/dev/null 2>&1 & ;;
esac
exec "$real" "$@"
"#;

/// True if the process is gone or a zombie: its parent may not wait for it.
fn has_ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_none_or(|(_, rest)| rest.starts_with('Z'))
}

/// Checks that a start in this directory serves the studio, and leaves no process behind when it is
/// asked to stop. Returns its log.
#[track_caller]
fn serves_in(dir: &TempDir, vars: &[(&str, &str)]) -> String {
    let mut serving = serve(dir.path(), vars);
    eventually("it is ready", || serving.is_ready());
    assert_eq!(get(serving.port, "/api/studios").0, 200);
    serving.signal("TERM");
    assert_eq!(serving.ends(), Some(0), "{}", serving.log());
    let log = serving.log();
    // An initdb that was left behind uses a directory of its own.
    let mut left = server_processes(&log);
    left.retain(|line| !line.contains("pg.new-"));
    assert_eq!(left, [""; 0]);
    log
}

/// Checks that no files of killed starts are left.
#[track_caller]
fn is_tidy(dir: &TempDir) {
    let names = fs::read_dir(dir.path().join(".millpond"))
        .unwrap()
        .flatten();
    let mut names: Vec<_> = names
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["lock", "password", "pg", "postgres.log"]);
}

/// Kills a start, or asks it to stop, while one of PostgreSQL's programs is at this stage. A killed
/// start leaves that program behind; it goes on before the next start, or beside it.
fn interrupt_at(stages: &Stages, stage: &str, name: &str, goes_on_before: bool) {
    println!("{stage}: {name}");
    let dir = open_dir(0o755);
    stages.stop_at(stage);
    let mut first = start(dir.path(), &stages.vars());
    let waiting = stages.is_reached();
    first.signal(name);
    let killed = name == "KILL";
    if killed {
        assert_eq!(first.ends(), None);
    }
    if goes_on_before || !killed {
        stages.go_on();
    }
    if !killed {
        assert_eq!(first.ends(), Some(0), "{}", first.log());
    }
    stages.stop_no_more();
    serves_in(&dir, &stages.vars());
    stages.go_on();
    eventually("what was left behind has ended", || has_ended(waiting));
    serves_in(&dir, &stages.vars());
    is_tidy(&dir);
}

/// Kills a start, and asks one to stop, at each of these stages of a program.
fn interrupt_at_each(program: &str, script: &str, stages: &[&str], goes_on_before: bool) {
    thread::scope(|scope| {
        for name in ["KILL", "TERM"] {
            scope.spawn(move || {
                let wrapped = Stages::of(program, script);
                for stage in stages {
                    interrupt_at(&wrapped, stage, name, goes_on_before);
                }
            });
        }
    });
}

#[test]
fn a_start_that_is_interrupted_at_any_step_of_initdb_keeps_no_later_one_from_it() {
    interrupt_at_each("initdb", INITDB, &["before", "half", "whole"], false);
}

#[test]
fn a_start_that_is_interrupted_while_its_server_starts_leaves_none_running() {
    interrupt_at_each("postgres", POSTGRES, &["before", "starting"], true);
}

#[test]
fn an_initdb_that_is_killed_is_told_of_and_run_anew() {
    let stages = Stages::of("initdb", INITDB);
    stages.stop_at("dies");
    let dir = open_dir(0o755);
    let mut ended = start(dir.path(), &stages.vars());
    assert_eq!(ended.ends(), Some(1));
    eventually("it is said", || ended.log().contains("millpond: "));
    let said = ended.log();
    let sentence = "initdb failed (signal: 9 (SIGKILL)): no private database was created; the next start tries again";
    assert!(said.contains(sentence), "{said}");
    stages.stop_at("none");
    serves_in(&dir, &stages.vars());
    is_tidy(&dir);
}

/// A Ctrl-C reaches the whole process group, but must not reach initdb, which would end in the
/// middle of its work.
#[test]
fn a_ctrl_c_while_the_database_is_made_is_a_clean_end() {
    let stages = Stages::of("initdb", INITDB);
    stages.stop_at("half");
    let dir = open_dir(0o755);
    let mut program = millpond(dir.path(), &["serve"]);
    program.envs(stages.vars()).process_group(0);
    let mut first = spawn(&mut program);
    stages.is_reached();
    let group = format!("-{}", first.child.id());
    let sent = Command::new("kill").args(["-INT", "--", &group]).status();
    assert!(sent.unwrap().success());
    stages.go_on();
    assert_eq!(first.ends(), Some(0), "{}", first.log());
    stages.stop_at("none");
    serves_in(&dir, &stages.vars());
}

#[test]
fn whatever_a_start_that_was_killed_has_left_behind_the_next_one_serves() {
    let gone = Command::new("true").spawn().and_then(|mut child| {
        let id = child.id();
        child.wait().map(|_| id.to_string())
    });
    let gone = gone.unwrap();
    // The lock exists, but the password is not yet written; or half of it is, beside half of the
    // data.
    let left: [&[(&str, &str)]; 3] = [
        &[("lock", "")],
        &[("lock", &gone), ("password", "")],
        &[
            ("lock", &gone),
            ("password", "0a"),
            ("password.new", "0"),
            ("pg.new-00000000/PG_VERSION", "1"),
        ],
    ];
    for files in left {
        let dir = open_dir(0o755);
        for (name, text) in files {
            let path = dir.path().join(".millpond").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        serves_in(&dir, &[]);
        is_tidy(&dir);
        let password = fs::read_to_string(dir.path().join(".millpond/password")).unwrap();
        assert_eq!(password.trim().len(), 32);
    }
}

#[test]
fn a_private_database_whose_password_is_lost_gets_a_new_one() {
    let stages = Stages::of("postgres", POSTGRES);
    let dir = open_dir(0o755);
    let vars = stages.vars();
    serves_in(&dir, &vars);
    let file = |name: &str| dir.path().join(".millpond").join(name);
    let mended = || {
        let log = serves_in(&dir, &vars);
        assert!(log.contains("setting a new password"), "{log}");
        assert!(log.contains("the studio's schema is up to date"), "{log}");
    };
    fs::write(file("password"), "").unwrap();
    mended();
    fs::remove_file(file("password")).unwrap();
    fs::write(file("password.new"), "0").unwrap();
    mended();
    // Killed while it sets a new password: the lock is still held, so that no other program starts
    // in between.
    fs::remove_file(file("password")).unwrap();
    stages.stop_at("before");
    let mut first = start(dir.path(), &vars);
    let waiting = stages.is_reached();
    first.signal("KILL");
    assert_eq!(first.ends(), None);
    let lock = fs::File::open(file("lock")).unwrap();
    assert!(lock.try_lock().is_err(), "it is held");
    stages.stop_no_more();
    stages.go_on();
    mended();
    assert!(has_ended(waiting));
    is_tidy(&dir);
    let log = serves_in(&dir, &vars);
    assert!(!log.contains("setting a new password"), "{log}");
}
