//! The application's own health checks, as `/health` reports them.

use super::http::{Answer, get, settings};
use super::support::{MS, SECOND, database, eventually};
use millpond::Pool;
use millpond::server::{DatabaseKind, Router, Server};
use serde_json::json;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

fn serve(router: Router) -> Server {
    let pool = database().pool().build().unwrap();
    let server =
        Server::start(settings(&[]), pool.clone(), router, DatabaseKind::External).unwrap();
    eventually("the database is there", || pool.health().healthy);
    server
}

/// The answer of `/health`; checks that it comes in time.
fn health(server: &Server) -> Answer {
    let started = Instant::now();
    let answer = get(server.addr(), "/health");
    assert!(
        started.elapsed() < 1500 * MS + super::frozen::slack(),
        "{:?}",
        started.elapsed()
    );
    answer
}

/// Controls what a health check does.
#[derive(Default)]
struct Switch {
    state: Mutex<State>,
    changed: Condvar,
    runs: AtomicUsize,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum State {
    #[default]
    Well,
    Fails,
    Hangs,
    Panics,
}

impl Switch {
    fn set(&self, state: State) {
        *self.state.lock().unwrap() = state;
        self.changed.notify_all();
    }

    fn check(self: &Arc<Self>) -> impl Fn() -> Result<(), String> + Send + Sync + 'static {
        let switch = Arc::clone(self);
        move || {
            switch.runs.fetch_add(1, Ordering::SeqCst);
            let state = switch.state.lock().unwrap();
            let hangs = |state: &mut State| *state == State::Hangs;
            let state = *switch.changed.wait_while(state, hangs).unwrap();
            match state {
                State::Fails => Err("the relay refuses".repeat(100)),
                State::Panics => panic!("a check of the test panics, as it should"),
                _ => Ok(()),
            }
        }
    }
}

#[test]
fn without_checks_health_is_as_it_was() {
    let answer = health(&serve(Router::new()));
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json().get("checks"), None);
}

#[test]
fn a_failing_check_makes_health_unhealthy_and_nothing_else() {
    let (smtp, disk) = (Arc::<Switch>::default(), Arc::<Switch>::default());
    let router = Router::new()
        .health_check("smtp", smtp.check())
        .health_check("disk", disk.check());
    let server = serve(router);
    let answer = health(&server);
    assert_eq!(answer.status, 200, "{answer:?}");
    let well = json!({ "disk": { "healthy": true }, "smtp": { "healthy": true } });
    assert_eq!(answer.json()["checks"], well);

    smtp.set(State::Fails);
    eventually("it fails", || health(&server).status == 503);
    let body = health(&server).json();
    assert_eq!(body["status"], "unhealthy");
    assert_eq!(body["database"]["healthy"], true);
    assert_eq!(body["checks"]["disk"], json!({ "healthy": true }));
    let check = &body["checks"]["smtp"];
    assert_eq!(check["healthy"], false);
    let error = check["error"].as_str().unwrap();
    assert!(error.starts_with("the relay refuses") && error.len() == 200);
    for path in ["/health/db", "/health/ready", "/health/live"] {
        let answer = get(server.addr(), path);
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(answer.json().get("checks"), None, "{path}");
    }

    smtp.set(State::Well);
    eventually("it is well again", || health(&server).status == 200);
}

#[test]
fn a_check_that_panics_fails_and_goes_on() {
    let switch = Arc::<Switch>::default();
    switch.set(State::Panics);
    let server = serve(Router::new().health_check("cache", switch.check()));
    let expected = json!({ "cache": { "healthy": false, "error": "the check panicked" } });
    // The first panic of a process is slow, because of the backtrace.
    eventually("the panic is told", || {
        let answer = health(&server);
        assert_eq!(answer.status, 503);
        answer.json()["checks"] == expected
    });
    switch.set(State::Well);
    eventually("it is well again", || health(&server).status == 200);
}

#[test]
fn a_check_that_hangs_is_late_and_holds_up_nobody() {
    let (hangs, well) = (Arc::<Switch>::default(), Arc::<Switch>::default());
    let never = Arc::<Switch>::default();
    never.set(State::Hangs);
    let router = Router::new()
        .health_check("hangs", hangs.check())
        .health_check("well", well.check());
    let server = serve(router);
    assert_eq!(health(&server).status, 200);
    hangs.set(State::Hangs);
    thread::sleep(300 * MS);
    // More requests than the lane has workers.
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| health(&server));
        }
    });
    let answer = health(&server);
    let checks = answer.json()["checks"].clone();
    // The answer has the check's last result.
    assert_eq!(answer.status, 200);
    assert_eq!(checks["hangs"], json!({ "healthy": true, "late": true }));
    assert_eq!(checks["well"], json!({ "healthy": true }));
    let runs = hangs.runs.load(Ordering::SeqCst);
    assert_eq!(health(&server).status, 200);
    assert_eq!(hangs.runs.load(Ordering::SeqCst), runs, "one at a time");
    hangs.set(State::Fails);
    eventually("it tells what it has found", || {
        health(&server).json()["checks"]["hangs"]
            .get("late")
            .is_none()
    });
    assert_eq!(health(&server).status, 503);

    let server = serve(Router::new().health_check("never", never.check()));
    let answer = health(&server);
    let expected = json!({ "healthy": false, "error": "no answer yet", "late": true });
    assert_eq!(answer.json()["checks"]["never"], expected);
    assert_eq!(answer.status, 503);
    let started = Instant::now();
    server.shut_down(Duration::ZERO, 5 * SECOND);
    assert!(started.elapsed() < 3 * SECOND, "{:?}", started.elapsed());
}

#[test]
fn those_who_ask_together_share_one_run() {
    let switch = Arc::<Switch>::default();
    let server = serve(Router::new().health_check("smtp", switch.check()));
    eventually("the first run is over", || health(&server).status == 200);
    thread::sleep(300 * MS);
    let before = switch.runs.load(Ordering::SeqCst);
    let started = Instant::now();
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| health(&server));
        }
    });
    let runs = switch.runs.load(Ordering::SeqCst) - before;
    let most = 1 + started.elapsed().as_millis() as usize / 250;
    assert!((1..=most.min(10)).contains(&runs), "{runs} of {most}");
}

#[test]
fn checks_have_names_of_their_own() {
    let pool = || Pool::builder().database_url("postgresql://u:p@127.0.0.1:1/d");
    for names in [&["a", "a"][..], &[""]] {
        let add = |router: Router, name: &&str| router.health_check(*name, || Ok::<(), String>(()));
        let router = names.iter().fold(Router::new(), add);
        let refused = Server::start(
            settings(&[]),
            pool().build().unwrap(),
            router,
            DatabaseKind::External,
        );
        let why = refused.err().unwrap().to_string();
        assert!(why.contains("a name of its own"), "{why}");
    }
}
