//! Writers over HTTP while the database restarts, loses connections, stands still or is gone.

use super::{JSON, Served, count, date, kind};
use crate::commit::outcomes;
use crate::frozen::slack;
use crate::http::{Answer, Client};
use crate::servers::Frozen;
use crate::support::{EndAtDrop, MS, SECOND, admin, eventually, server};
use millpond::embedded::{PrivateServer, Stop};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const CLIENTS: usize = 16;

/// Makes reservations as one client, each for a time that no other client asks for, half of them
/// with a key of their own. Returns for each customer the status of the answer, and the problem
/// type if it is a problem.
fn write_until(
    over: &AtomicBool,
    mut client: Client,
    number: usize,
) -> BTreeMap<String, (u16, String)> {
    let mut told = BTreeMap::new();
    for n in 0.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let customer = format!("client {number} write {n}");
        let day = date(n / 24);
        let hour = n % 24;
        let body = json!({
            "studioId": number % 3 + 1,
            "customer": customer,
            // Clients that share a studio use different minutes.
            "startsAt": format!("{day}T{hour:02}:{number:02}:00Z"),
            "endsAt": format!("{day}T{hour:02}:{number:02}:59Z"),
        });
        let headers = match n % 2 {
            0 => JSON.to_owned(),
            _ => format!("{JSON}Idempotency-Key: {number}-{n}\r\n"),
        };
        let answer = client.ask(
            "POST",
            "/api/reservations",
            &headers,
            body.to_string().as_bytes(),
        );
        let why = if answer.status == 201 {
            String::new()
        } else {
            kind(&answer)
        };
        told.insert(customer, (answer.status, why));
    }
    told
}

/// Ends half of the pool's connections every 0.4 s, and restarts the server every `restart_every`.
fn torment(server: &mut PrivateServer, lasts: Duration, restart_every: Duration) -> (usize, i64) {
    let started = Instant::now();
    let (mut restarts, mut ended) = (0, 0);
    while started.elapsed() < lasts {
        thread::sleep(400 * MS);
        let half = "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid, row_number() OVER (ORDER BY random()) AS n, \
                    count(*) OVER () AS all FROM pg_stat_activity WHERE application_name = 'studio-revenue-manager') AS t \
                    WHERE n * 2 <= t.all";
        ended += count(&server.url(), half);
        if started.elapsed() > restart_every * (restarts as u32 + 1) {
            server.stop(if restarts % 2 == 0 {
                Stop::Fast
            } else {
                Stop::Immediate
            });
            server.start_again().unwrap();
            restarts += 1;
        }
    }
    (restarts, ended)
}

#[test]
fn writers_ride_out_restarts_and_lost_connections() {
    let strict = std::env::var_os("MILLPOND_TEST_FIGURES").is_some();
    let (lasts, restart_every) = if strict {
        (30 * SECOND, 8 * SECOND)
    } else {
        (9 * SECOND, 3 * SECOND)
    };
    // Acknowledged writes survive a crash, as on any production server; the tests' other servers do
    // without that.
    let mut database = server(&[("synchronous_commit", "on")]);
    let url = database.url();
    let served = Served::on(&url, &[]);
    let clients = served.clients(CLIENTS);
    let over = AtomicBool::new(false);
    let mut told = BTreeMap::new();
    let (restarts, ended) = thread::scope(|scope| {
        let end = EndAtDrop(&over);
        let writers: Vec<_> = clients
            .into_iter()
            .enumerate()
            .map(|(number, client)| {
                scope.spawn({
                    let over = &over;
                    move || write_until(over, client, number)
                })
            })
            .collect();
        let torment = torment(&mut database, lasts, restart_every);
        drop(end);
        writers
            .into_iter()
            .for_each(|w| told.extend(w.join().unwrap()));
        torment
    });
    let mut stored: BTreeMap<String, i64> = BTreeMap::new();
    for row in admin(&url)
        .query(
            "SELECT customer, count(*) FROM studio.reservations GROUP BY customer",
            &[],
        )
        .unwrap()
    {
        stored.insert(row.get(0), row.get(1));
    }
    let mut kinds: BTreeMap<(u16, &str), usize> = BTreeMap::new();
    for (customer, (status, kind)) in &told {
        *kinds.entry((*status, kind)).or_default() += 1;
        let there = stored.remove(customer).unwrap_or(0);
        assert_eq!(
            there,
            i64::from(*status == 201),
            "{customer} was told {status} {kind}"
        );
    }
    assert!(stored.is_empty(), "nobody asked for {stored:?}");
    let found_out = outcomes(&served.pool, "committed") + outcomes(&served.pool, "not_committed");
    println!(
        "writes {kinds:?}, restarts {restarts}, connections ended {ended}, commits resolved {found_out} ({} committed)",
        outcomes(&served.pool, "committed")
    );
    assert!(restarts >= 2 && ended >= 20);
    assert_eq!(outcomes(&served.pool, "unknown"), 0);
    let acknowledged = kinds.remove(&(201, "")).unwrap_or(0);
    assert!(kinds.keys().all(|(status, _)| *status == 503), "{kinds:?}");
    assert!(
        acknowledged * 10 >= told.len() * 9,
        "{acknowledged} of {}",
        told.len()
    );
    assert!(acknowledged > 100 && found_out > 0);
    if strict {
        assert!(acknowledged >= 2000 && found_out >= 20);
        assert!(
            acknowledged * 100 >= told.len() * 99,
            "{acknowledged} of {}",
            told.len()
        );
    }
}

fn reserve(served: &Served, customer: &str, hour: usize, headers: &str) -> Answer {
    let body = json!({"studioId": 1, "customer": customer, "startsAt": format!("2030-01-02T{hour:02}:00:00Z"),
        "endsAt": format!("2030-01-02T{hour:02}:30:00Z")});
    served.post_with("/api/reservations", headers, &body)
}

#[test]
fn a_frozen_database_ends_requests_in_time() {
    let database = server(&[]);
    let budget = 1500 * MS;
    let served = Served::on(&database.url(), &[("HTTP_REQUEST_TIMEOUT_MS", "1500")]);
    let frozen = Frozen::tree(database.pid().unwrap());
    let timed = |ask: &(dyn Fn() -> Answer + Sync)| {
        let since = Instant::now();
        let answer = ask();
        let took = since.elapsed();
        assert!(took < budget + 500 * MS + slack(), "{took:?} {answer:?}");
        answer
    };
    thread::scope(|scope| {
        let asked = [
            scope.spawn(|| timed(&|| served.get("/api/studios"))),
            scope.spawn(|| timed(&|| served.get("/api/invoices/1"))),
            scope.spawn(|| timed(&|| reserve(&served, "Ada", 1, ""))),
            scope.spawn(|| timed(&|| reserve(&served, "Bob", 2, "Idempotency-Key: b\r\n"))),
        ];
        for answer in asked {
            let answer = answer.join().unwrap();
            assert_eq!(answer.status, 503, "{answer:?}");
            assert!(answer.header("Retry-After").is_some());
        }
    });
    frozen.thaw();
    eventually("it serves again", || {
        served.get("/api/studios").status == 200
    });
    assert_eq!(
        count(&database.url(), "SELECT count(*) FROM studio.reservations"),
        0
    );
    assert_eq!(
        reserve(&served, "Bob", 2, "Idempotency-Key: b\r\n").status,
        201
    );
}

#[test]
fn a_database_that_is_gone_is_a_503_at_once_after_a_while() {
    let mut database = server(&[]);
    let served = Served::on(&database.url(), &[("DB_FAIL_FAST_AFTER_MS", "200")]);
    database.stop(Stop::Fast);
    eventually("check-outs fail fast", || {
        served.get("/api/quotes").status == 503 && served.pool.is_failing_fast()
    });
    for answer in [served.get("/api/quotes"), reserve(&served, "Ada", 1, "")] {
        assert_eq!(
            (answer.status, kind(&answer).as_str()),
            (503, "database-unavailable")
        );
        assert!(answer.header("Retry-After").is_some());
        assert!(!answer.body.contains("127.0.0.1"), "{answer:?}");
    }
    database.start_again().unwrap();
    eventually("it serves again", || {
        reserve(&served, "Ada", 1, "").status == 201
    });
}

/// Balancers ask every few seconds, and act upon what one answer says.
#[test]
fn a_balancer_that_asks_seldom_is_told_the_truth_of_the_moment() {
    let database = server(&[]);
    let served = Served::on(&database.url(), &[]);
    eventually("it is ready", || served.get("/health/ready").status == 200);
    for (value, status) in [("on", 503), ("off", 200)] {
        let mut admin = admin(&database.url());
        admin
            .batch_execute(&format!(
                "ALTER SYSTEM SET default_transaction_read_only = {value}"
            ))
            .unwrap();
        admin.batch_execute("SELECT pg_reload_conf()").unwrap();
        // Nobody asks meanwhile.
        std::thread::sleep(3 * SECOND);
        assert_eq!(served.get("/health/ready").status, status, "{value}");
    }
}

#[test]
fn a_database_that_takes_no_writes_is_a_503_that_says_so() {
    let database = server(&[]);
    let served = Served::on(&database.url(), &[]);
    let set = |value: &str| {
        let mut admin = admin(&database.url());
        admin
            .batch_execute("SET default_transaction_read_only = off")
            .unwrap();
        admin
            .batch_execute(&format!(
                "ALTER DATABASE postgres SET default_transaction_read_only = {value}"
            ))
            .unwrap();
    };
    set("on");
    // Sessions keep the setting that they started with. Sessions that may write are ended here; the
    // read-only ones stay open when the setting is changed back below.
    admin(&database.url())
        .batch_execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = 'postgres' AND pid <> pg_backend_pid()",
        )
        .unwrap();
    let mut answer = reserve(&served, "Ada", 1, "");
    eventually("new connections refuse writes", || {
        answer = reserve(&served, "Ada", 1, "");
        answer.status == 503
    });
    assert_eq!(kind(&answer), "database-read-only");
    eventually("balancers are told", || {
        let ready = served.get("/health/ready");
        (ready.status, ready.json()["status"].as_str()) == (503, Some("database-read-only"))
    });
    let health = served.get("/health");
    assert_eq!(
        (health.status, &health.json()["database"]["readOnly"]),
        (200, &true.into())
    );
    assert!(answer.header("Retry-After").is_some());
    assert_eq!(served.get("/api/reservations").status, 200);
    set("off");
    eventually("it takes writes again", || {
        reserve(&served, "Ada", 1, "").status == 201
    });
    eventually("balancers are told", || {
        served.get("/health/ready").status == 200
    });
}

#[test]
fn balancers_are_told_at_once_when_the_database_lets_nobody_in() {
    let database = server(&[]);
    let mut admin = admin(&database.url());
    admin
        .batch_execute("CREATE ROLE app LOGIN SUPERUSER PASSWORD 'p'")
        .unwrap();
    let (_, rest) = database
        .url()
        .split_once('@')
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    let served = Served::on(&format!("postgresql://app:p@{rest}"), &[]);
    eventually("it is ready", || served.get("/health/ready").status == 200);
    admin
        .batch_execute(
            "ALTER ROLE app NOLOGIN; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'",
        )
        .unwrap();
    eventually("requests fail at once", || {
        let asked = std::time::Instant::now();
        served.get("/api/studios").status == 503 && asked.elapsed() < 200 * MS
    });
    assert_eq!(served.get("/health/ready").status, 503);
    admin.batch_execute("ALTER ROLE app LOGIN").unwrap();
    eventually("it is ready again", || {
        served.get("/health/ready").status == 200
    });
}

#[test]
fn a_commit_that_cannot_be_found_out_says_so_and_its_key_tells_the_truth() {
    let database = server(&[]);
    let served = Served::on(&database.url(), &[("HTTP_REQUEST_TIMEOUT_MS", "1500")]);
    // The row waits at COMMIT for longer than the request may take: its outcome is not known by
    // then.
    admin(&database.url())
        .batch_execute(
            "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(4); RETURN NULL; END'; \
             CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON studio.reservations DEFERRABLE INITIALLY DEFERRED \
             FOR EACH ROW WHEN (NEW.customer = 'slow') EXECUTE FUNCTION wait()",
        )
        .unwrap();
    let answer = reserve(&served, "slow", 1, "");
    assert_eq!(
        (answer.status, kind(&answer).as_str()),
        (500, "outcome-unknown")
    );
    assert!(answer.header("Retry-After").is_none());
    let key = answer.json()["idempotencyKey"].as_str().unwrap().to_owned();
    eventually("its key tells", || {
        reserve(&served, "slow", 1, &format!("Idempotency-Key: {key}\r\n")).status == 201
    });
    assert_eq!(
        count(&database.url(), "SELECT count(*) FROM studio.reservations"),
        1
    );
}
