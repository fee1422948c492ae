//! A pause: for a database that is moved while its callers wait.

use super::cli::{open_dir, run, serve, stderr};
use super::http;
use super::support::{EndAtDrop, MS, SECOND, backends, database, eventually};
use millpond::Error;
use millpond::embedded::{Options, PrivateServer, Stop};
use std::fs;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

#[test]
fn callers_wait_through_a_pause_and_nothing_is_open_in_it() {
    let db = database();
    let pool = db
        .pool()
        .max_size(2)
        .min_idle(2)
        .connection_timeout(300 * MS)
        .application_name("paused")
        .build()
        .unwrap();
    pool.wait_ready(20 * SECOND).unwrap();
    let mut admin = db.admin();
    thread::scope(|scope| {
        // Both are in use, and others stand in line already, when the pause begins.
        let busy: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| pool.query("SELECT pg_sleep(0.2)", &[]).unwrap()))
            .collect();
        eventually("both are in use", || pool.stats().active == 2);
        let waiting: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| pool.query("SELECT 1", &[])))
            .collect();
        eventually("they stand in line", || pool.stats().waiting == 8);
        pool.pause(20 * SECOND);
        busy.into_iter().for_each(|one| drop(one.join().unwrap()));
        eventually("nothing is open", || {
            backends(&mut admin, "paused").is_empty()
        });
        assert!(pool.is_paused() && !pool.is_failing_fast());
        let raw = scope.spawn(|| pool.get().map(drop));
        // Whoever has a deadline of his own keeps it.
        let started = Instant::now();
        let error = pool.get_timeout(100 * MS).unwrap_err();
        assert!(matches!(error, Error::Checkout(_)), "{error:?}");
        let error = pool
            .with_deadline(Instant::now() + 100 * MS)
            .query("SELECT 1", &[])
            .unwrap_err();
        assert!(started.elapsed() < 2 * SECOND, "{error:?}");
        // The pool's own limit, which has passed by now, does not count.
        eventually("it has lasted", || started.elapsed() > 700 * MS);
        assert!(backends(&mut admin, "paused").is_empty());
        assert!(pool.resume());
        for one in waiting {
            one.join().unwrap().unwrap();
        }
        raw.join().unwrap().unwrap();
    });
    assert!(!pool.is_paused() && !pool.resume());
}

#[test]
fn a_pause_ends_by_itself() {
    let pool = database().pool().max_size(1).build().unwrap();
    pool.query("SELECT 1", &[]).unwrap();
    pool.pause(500 * MS);
    let started = Instant::now();
    pool.query("SELECT 1", &[]).unwrap();
    assert!(started.elapsed() >= 400 * MS, "{:?}", started.elapsed());
    assert!(!pool.is_paused());
    // A closed pool waits for nothing.
    pool.pause(20 * SECOND);
    let asked = Instant::now();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| pool.query("SELECT 1", &[]));
        eventually("it waits", || pool.stats().waiting == 1);
        pool.close(SECOND);
        assert!(waiting.join().unwrap().is_err());
    });
    assert!(asked.elapsed() < 5 * SECOND, "{:?}", asked.elapsed());
}

#[test]
fn a_database_is_moved_under_fifty_clients_and_no_request_fails() {
    let place = open_dir(0o755);
    let dir = place.path();
    let data = dir.join("data");
    let mut server = PrivateServer::start(Options::kept(&data)).unwrap();
    let url_file = dir.join("url");
    fs::write(&url_file, server.url()).unwrap();
    let vars = [("DATABASE_URL_FILE", url_file.to_str().unwrap())];
    let serving = serve(dir, &vars);
    let addr: SocketAddr = ([127, 0, 0, 1], serving.port).into();
    eventually("it is ready", || {
        http::get(addr, "/health/ready").status == 200
    });
    let (over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let odd = Mutex::new(Vec::new());
    let port = serving.port.to_string();
    let command = |words: &[&str]| {
        let output = run(dir, &[words, &["--port", &port]].concat(), &[]);
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    thread::scope(|scope| {
        let end = EndAtDrop(&over);
        for _ in 0..50 {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    let answer = http::get(addr, "/api/studios?limit=1");
                    answered.fetch_add(1, Ordering::SeqCst);
                    if answer.status != 200 {
                        odd.lock().unwrap().push(format!("{answer:?}"));
                    }
                }
            });
        }
        eventually("they are served", || answered.load(Ordering::SeqCst) > 500);
        let said = command(&["pause", "--at-most-ms", "30000"]);
        assert!(said.contains("no connection is in use"), "{said}");
        let ready = http::get(addr, "/health/ready");
        assert_eq!(ready.status, 200);
        assert!(ready.body.contains("\"paused\":true"), "{}", ready.body);
        let before = server.port();
        server.stop(Stop::Fast);
        drop(std::mem::replace(
            &mut server,
            PrivateServer::start(Options::kept(&data)).unwrap(),
        ));
        assert_ne!(server.port(), before);
        fs::write(&url_file, server.url()).unwrap();
        command(&["resume"]);
        let resumed = answered.load(Ordering::SeqCst);
        eventually("they are served again", || {
            answered.load(Ordering::SeqCst) > resumed + 500
        });
        drop(end);
    });
    let odd = odd.into_inner().unwrap();
    assert!(odd.is_empty(), "{} failed: {:?}", odd.len(), odd.first());
    // Without a pause there is none to be ended, and where nobody listens that is said.
    let output = run(dir, &["resume", "--port", &port], &[]);
    assert!(stderr(&output).contains("there was no pause"));
    drop(serving);
    let output = run(dir, &["pause", "--port", &port], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no server of this user on port"));
}
