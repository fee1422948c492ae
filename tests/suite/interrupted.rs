//! Starts that are interrupted: killed, asked to stop, and cut off from the database, at every request of the migrations and of
//! `create_ledger`, and at every step in the making of a private database. The next start serves, each time.
//!
//! With `MILLPOND_TORTURE_SECONDS` set, every interruption is tried at every request; without it, two at each.

use super::cli::{Serving, get, serve, start};
use super::proxy::{Act, Proxy};
use super::servers::signal;
use super::support::{Database, SECOND, admin, database, eventually, no_backend_is_left};
use millpond::Pool;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;
use tempfile::TempDir;

/// Every migration that was ever served. Add a new migration; never change one that was served: a database that has it
/// refuses a program whose migration of that version is another.
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

/// What becomes of a start.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// Before the database has the request, and when it has done it and answers.
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
    /// Meets the session at its n-th request from `needle` on; `hit` sends a signal to its program.
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

/// Which of them are tried at this request.
fn fates_at(nth: usize) -> Vec<Fate> {
    match std::env::var_os("MILLPOND_TORTURE_SECONDS") {
        Some(_) => FATES.to_vec(),
        None => vec![FATES[nth % 6], FATES[(nth + 1) % 6]],
    }
}

/// Waits until it serves the studio, whose schema is whole.
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

/// False where the start was through before its n-th request.
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
    // Nobody asks for it where no signal is sent.
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
            // It recovers by itself.
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
    // As many at the least as there are statements: or the proxy has seen none of them.
    assert!(*most.lock().unwrap() >= 20);
}

#[test]
fn a_signal_to_a_start_that_waits_for_a_lock_leaves_no_session_behind() {
    // What is there, what another session has in hand, and so what is waited for.
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

fn waits_for_a_lock(db: &Database) -> bool {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    db.admin().query_one(sql, &[]).unwrap().get::<_, i64>(0) == 1
}

/// One at a request of `create_ledger`; false where it was through before. It is repeated, and its COMMIT resolved.
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
