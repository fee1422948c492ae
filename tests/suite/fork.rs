//! A pool in a forked process, which did not build it.

use super::support::{SECOND, admin, backends, database, eventually, pool};
use millpond::Error;
use std::process::Command;

const URL: &str = "MILLPOND_TEST_FORKED_URL";
const REPORT: &str = "MILLPOND_TEST_FORKED_REPORT";
const APPLICATION: &str = "forked";

#[test]
fn a_child_neither_uses_nor_ends_what_is_its_parents() {
    if let (Ok(url), Ok(report)) = (std::env::var(URL), std::env::var(REPORT)) {
        let said = std::panic::catch_unwind(|| daemonize_with_a_pool(&url));
        let said = said.map_or("it panicked".into(), |()| "all is well".to_owned());
        std::fs::write(report, said).unwrap();
        std::process::exit(0);
    }
    let db = database();
    let dir = tempfile::TempDir::new().unwrap();
    let report = dir.path().join("report");
    let daemon = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "fork::a_child_neither_uses_nor_ends_what_is_its_parents",
            "--nocapture",
        ])
        .env(URL, &db.url)
        .env(REPORT, &report)
        .output()
        .unwrap();
    eventually("the daemon has reported", || report.exists());
    let said = || std::fs::read_to_string(&report).unwrap();
    eventually("and wrote what it has to say", || !said().is_empty());
    assert_eq!(said(), "all is well", "{daemon:?}");
}

/// Runs in a process of its own: builds the pool, then forks into a daemon.
fn daemonize_with_a_pool(url: &str) {
    let parents = pool(url)
        .max_size(3)
        .application_name(APPLICATION)
        .build()
        .unwrap();
    parents.query("SELECT 1", &[]).unwrap();
    assert!(parents.health().healthy);
    let lent = parents.get().unwrap();
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
    assert_eq!(own.query("SELECT 1", &[]).unwrap().len(), 1);
}
