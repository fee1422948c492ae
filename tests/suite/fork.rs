//! A pool in a forked process, which did not build it.

use super::support::{SECOND, admin, backends, database, eventually, pool};
use millpond::Error;
use millpond::error::Chain;
use nix::sys::resource::{Resource, setrlimit};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::thread;

const URL: &str = "MILLPOND_TEST_FORKED_URL";
const REPORT: &str = "MILLPOND_TEST_FORKED_REPORT";
const APPLICATION: &str = "forked";

/// Runs a part of a test, by its name, in a process of its own, which may end before its children.
fn in_its_own_process(test: &str, work: fn(&str)) {
    if let (Ok(url), Ok(report)) = (std::env::var(URL), std::env::var(REPORT)) {
        let said = std::panic::catch_unwind(|| work(&url));
        let said = said.map_or("it panicked".into(), |()| "all is well".to_owned());
        std::fs::write(report, said).unwrap();
        std::process::exit(0);
    }
    let db = database();
    let dir = tempfile::TempDir::new().unwrap();
    // It may have become another user.
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
    let report = dir.path().join("report");
    let process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(URL, &db.url)
        .env(REPORT, &report)
        .output()
        .unwrap();
    eventually("the process has reported", || report.exists());
    let said = || std::fs::read_to_string(&report).unwrap();
    eventually("and wrote what it has to say", || !said().is_empty());
    assert_eq!(said(), "all is well", "{process:?}");
}

#[test]
fn a_child_neither_uses_nor_ends_what_is_its_parents() {
    in_its_own_process(
        "fork::a_child_neither_uses_nor_ends_what_is_its_parents",
        daemonize_with_a_pool,
    );
}

#[test]
fn pools_at_rest_have_two_threads_each_and_one_together() {
    in_its_own_process(
        "fork::pools_at_rest_have_two_threads_each_and_one_together",
        build_pools_and_count_threads,
    );
}

fn build_pools_and_count_threads(url: &str) {
    let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
    let before = threads();
    for number in [1, 5] {
        let pools: Vec<_> = (0..number)
            .map(|_| pool(url).max_size(10).min_idle(5).build().unwrap())
            .collect();
        for pool in &pools {
            eventually("all are open", || pool.stats().idle == 5);
            pool.transaction(|tx| tx.query("SELECT 1", &[])).unwrap();
        }
        eventually("those that opened them are gone", || {
            threads() == before + 2 * number + 1
        });
        drop(pools);
        eventually("all are gone", || threads() == before);
    }
}

#[test]
fn a_process_that_may_start_no_more_threads_still_opens_connections() {
    in_its_own_process(
        "fork::a_process_that_may_start_no_more_threads_still_opens_connections",
        lose_connections_without_threads,
    );
}

fn lose_connections_without_threads(url: &str) {
    let mut admin = admin(url);
    let pool = pool(url)
        .max_size(3)
        .application_name("threadless")
        .build()
        .unwrap();
    pool.query("SELECT 1", &[]).unwrap();
    eventually("those that opened them are gone", || {
        pool.stats().idle >= 1 && pool.stats().opening == 0
    });
    if nix::unistd::geteuid().is_root() {
        // The limit does not hold for root.
        nix::unistd::setuid(nix::unistd::Uid::from_raw(65534)).unwrap();
    }
    setrlimit(Resource::RLIMIT_NPROC, 1, 1).unwrap();
    thread::Builder::new().spawn(|| ()).unwrap_err();
    for _ in 0..3 {
        for backend in backends(&mut admin, "threadless") {
            admin
                .execute("SELECT pg_terminate_backend($1, 5000)", &[&backend])
                .unwrap();
        }
        pool.query("SELECT 1", &[]).unwrap();
    }
}

/// Runs in a process of its own: builds the pool, then forks into a daemon.
fn daemonize_with_a_pool(url: &str) {
    let parents = pool(url)
        .max_size(3)
        .application_name(APPLICATION)
        .build()
        .unwrap();
    parents.query("SELECT 1", &[]).unwrap();
    eventually("it is healthy", || parents.health().healthy);
    let lent = parents.get().unwrap();
    // A thread that is in the middle of something when its process forks may leave a lock of a
    // library locked in the child for good.
    eventually("no connection is being opened", || {
        let stats = parents.stats();
        stats.opening == 0 && stats.total == 3
    });
    let within = parents.transaction(|tx| {
        tx.query("SELECT 1", &[])?;
        nix::unistd::daemon(true, true).unwrap();
        tx.query("SELECT 1", &[])
    });
    let refused = |what: &str, result: Result<(), Error>| match result {
        Err(Error::Misuse(why)) => assert!(why.contains("parent process"), "{what}: {why}"),
        other => panic!("{what}: {other:?}"),
    };
    let open = || backends(&mut admin(url), APPLICATION).len();
    let before = open();
    assert!(before >= 3, "{before}");
    refused("within", within.map(drop));
    refused("query", parents.query("SELECT 1", &[]).map(drop));
    refused("get", parents.get().map(drop));
    refused("transaction", parents.transaction(|_| Ok(())));
    assert!(parents.try_get().is_none() && !parents.health().healthy);
    assert_eq!(parents.close(SECOND), millpond::pool::Report::default());
    drop(lent);
    drop(parents);
    assert_eq!(open(), before, "none of the parent's was ended");
    // A pool that is built after the fork works.
    let own = pool(url).max_size(1).build().unwrap();
    let answer = own.query("SELECT 1", &[]);
    let why = |error: Error| panic!("{}: {:?}", Chain(&error), own.stats());
    assert_eq!(answer.unwrap_or_else(why).len(), 1);
}
