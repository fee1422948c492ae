//! `Idempotency-Key`: a request is done once, however often it is sent.

use super::{Served, count, kind, served, slot};
use crate::http::Client;
use crate::support::{MS, SECOND, database, eventually};
use serde_json::json;
use std::thread;
use std::time::{Duration, Instant};

fn key(key: &str) -> String {
    format!("Idempotency-Key: {key}\r\n")
}

const RESERVATIONS: &str = "SELECT count(*) FROM studio.reservations";

#[test]
fn a_request_that_comes_again_gets_the_first_answer() {
    let (db, served) = served();
    let path = "/api/reservations";
    let first = served.post_with(path, &key("k1"), &slot(1, 0));
    assert_eq!(
        (first.status, first.header("Idempotency-Replayed")),
        (201, None)
    );
    // The key may be bare or quoted, and the body may be formatted in any way.
    let body = slot(1, 0);
    let other_order = format!(
        r#"{{ "endsAt":{}, "startsAt":{},"customer":"Ada" , "studioId":1}}"#,
        body["endsAt"], body["startsAt"]
    );
    for (named, body) in [
        ("k1", body.to_string()),
        ("\"k1\"", body.to_string()),
        ("k1", other_order),
    ] {
        let headers = format!("{}{}", super::JSON, key(named));
        let again = served.ask("POST", path, &headers, &body);
        assert_eq!(
            (again.status, again.header("Idempotency-Replayed")),
            (201, Some("true"))
        );
        assert_eq!(again.header("Location"), first.header("Location"));
        assert_eq!(again.body, first.body);
    }
    // The answer is the same, whatever happened to the reservation since then.
    served.ask("DELETE", "/api/reservations/1", "", "");
    assert_eq!(
        served.post_with(path, &key("k1"), &slot(1, 0)).body,
        first.body
    );

    let reused = served.post_with(path, &key("k1"), &slot(1, 1));
    assert_eq!((reused.status, kind(&reused).as_str()), (422, "key-reused"));
    // The scope of a key is the method and the path.
    assert_eq!(
        served
            .post_with("/api/quotes", &key("k1"), &slot(1, 0))
            .status,
        201
    );
    assert_eq!(count(&db.url, RESERVATIONS), 1);
}

#[test]
fn every_write_takes_a_key() {
    let (_db, served) = served();
    served.post("/api/quotes", &slot(1, 0));
    for (method, path, status) in [
        ("POST", "/api/quotes/1/accept", 201),
        ("POST", "/api/invoices", 201),
        ("POST", "/api/invoices/1/pay", 200),
        ("DELETE", "/api/reservations/2", 200),
    ] {
        let ask = || match path {
            "/api/invoices" => served.post_with(path, &key("one"), &json!({ "reservationId": 1 })),
            _ => served.ask(method, path, &key("one"), ""),
        };
        if method == "DELETE" {
            assert_eq!(served.reserve(2, 1), 2);
        }
        let (first, again) = (ask(), ask());
        assert_eq!(
            (first.status, again.status),
            (status, status),
            "{path} {first:?}"
        );
        assert_eq!(first.body, again.body);
        assert_eq!(again.header("Idempotency-Replayed"), Some("true"));
    }
}

#[test]
fn what_was_refused_may_be_tried_again_with_its_key() {
    let (_db, served) = served();
    let taken = served.reserve(1, 0);
    let ask = || served.post_with("/api/reservations", &key("k"), &slot(1, 0));
    assert_eq!(ask().status, 409);
    assert_eq!(ask().status, 409);
    // A body that was refused does not bind the key either.
    let wrong = served.post_with("/api/reservations", &key("k"), &json!({}));
    assert_eq!(wrong.status, 422);
    served.ask("DELETE", &format!("/api/reservations/{taken}"), "", "");
    let done = ask();
    assert_eq!(
        (done.status, done.header("Idempotency-Replayed")),
        (201, None)
    );
}

#[test]
fn keys_are_text_and_nothing_else() {
    let (db, served) = served();
    let longest = "k".repeat(255);
    let good = [
        "a'b",
        "a\"b",
        "\"",
        "\\",
        "'; DROP TABLE studio.ledger; --",
        "$1",
        "%s {} [] () \\x00 \\u0000",
        "~!@#$%^&*()_+`-={}|[]:<>?,./",
        "2",
        &longest,
    ];
    for (day, text) in good.iter().enumerate() {
        for replayed in [None, Some("true")] {
            let answer = served.post_with("/api/reservations", &key(text), &slot(1, day));
            assert_eq!(answer.status, 201, "{text} {answer:?}");
            assert_eq!(answer.header("Idempotency-Replayed"), replayed, "{text}");
        }
    }
    let huge = "k".repeat(10_000);
    for text in ["", "\"\"", "  ", "a\tb", &"k".repeat(256), &huge] {
        let answer = served.post_with("/api/reservations", &key(text), &slot(1, 50));
        assert_eq!(answer.status, 400, "{text} {answer:?}");
    }
    let twice = key("a") + &key("a");
    assert_eq!(
        served
            .post_with("/api/reservations", &twice, &slot(1, 50))
            .status,
        400
    );
    assert_eq!(count(&db.url, RESERVATIONS), good.len() as i64);
}

/// Holds up every reservation until the returned client is dropped.
fn hold_up(url: &str) -> postgres::Client {
    let mut admin = crate::support::admin(url);
    admin
        .batch_execute("BEGIN; LOCK TABLE studio.reservations IN SHARE ROW EXCLUSIVE MODE")
        .unwrap();
    admin
}

#[test]
fn duplicates_of_a_slow_request_wait_without_a_connection() {
    let (db, served) = served();
    let held_up = hold_up(&db.url);
    thread::scope(|scope| {
        let duplicates: Vec<_> = (1..=30)
            .map(|n| {
                let served = &served;
                let duplicate = scope.spawn(move || {
                    served.post_with("/api/reservations", &key("same"), &slot(1, 0))
                });
                eventually("it is in flight", || served.server.in_flight() == n);
                duplicate
            })
            .collect();
        let in_use = served.pool.stats();
        assert_eq!((in_use.active, in_use.waiting), (1, 0));
        // Other requests are served in the meantime.
        assert_eq!(served.get("/api/studios").status, 200);
        let quote = served.post("/api/quotes", &slot(1, 0));
        assert_eq!(quote.status, 201, "{quote:?}");
        drop(held_up);
        let answers: Vec<_> = duplicates.into_iter().map(|d| d.join().unwrap()).collect();
        assert!(
            answers
                .iter()
                .all(|a| a.status == 201 && a.body == answers[0].body)
        );
        let first = answers
            .iter()
            .filter(|a| a.header("Idempotency-Replayed").is_none());
        assert_eq!(first.count(), 1);
    });
    assert_eq!(count(&db.url, RESERVATIONS), 1);
}

#[test]
fn duplicates_do_not_take_all_workers() {
    let db = database();
    // Six workers, three of which may wait for a key.
    let served = Served::on(&db.url, &[("DB_POOL_MAX", "2"), ("HTTP_WORKERS", "6")]);
    let held_up = hold_up(&db.url);
    let ask = || served.post_with("/api/reservations", &key("same"), &slot(1, 0));
    thread::scope(|scope| {
        let asked: Vec<_> = (0..5)
            .map(|_| {
                scope.spawn(|| {
                    let since = Instant::now();
                    (ask(), since.elapsed())
                })
            })
            .collect();
        // One request is in the database, three wait for the key. The fifth, whichever it is, is
        // turned away long before a wait would end.
        eventually("one is turned away", || {
            asked.iter().any(thread::ScopedJoinHandle::is_finished)
        });
        assert_eq!(served.get("/api/studios").status, 200);
        drop(held_up);
        let answers: Vec<_> = asked.into_iter().map(|a| a.join().unwrap()).collect();
        let (done, refused): (Vec<_>, Vec<_>) =
            answers.iter().partition(|(answer, _)| answer.status == 201);
        assert_eq!((done.len(), refused.len()), (4, 1), "{answers:?}");
        let (answer, took) = refused[0];
        assert_eq!((answer.status, kind(answer).as_str()), (409, "key-in-use"));
        assert!(*took < 5 * SECOND, "{took:?}");
    });
}

#[test]
fn who_waits_too_long_for_the_first_is_told_that_it_still_runs() {
    let db = database();
    let served = Served::on(&db.url, &[]);
    let elsewhere = Served::on(&db.url, &[("HTTP_REQUEST_TIMEOUT_MS", "2500")]);
    let held_up = hold_up(&db.url);
    let ask = |served: &Served| served.post_with("/api/reservations", &key("k"), &slot(1, 0));
    thread::scope(|scope| {
        let first = scope.spawn(|| ask(&served));
        eventually("the first runs", || {
            let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted";
            count(&db.url, waiting) == 1
        });
        // In the same process, and in another one, where at most one session waits for the key.
        let others: Vec<_> = (1..=3)
            .map(|n| {
                let other = scope.spawn(|| ask(&elsewhere));
                eventually("it is in flight", || elsewhere.server.in_flight() == n);
                other
            })
            .collect();
        eventually("one waits in the database", || {
            elsewhere.pool.stats().active == 1
        });
        assert_eq!(elsewhere.pool.stats().waiting, 0);
        for other in others {
            let answer = other.join().unwrap();
            let what = (answer.status, kind(&answer));
            assert_eq!(what, (409, "key-in-use".into()), "{answer:?}");
            assert!(answer.header("Retry-After").is_some());
        }
        let since = Instant::now();
        drop(held_up);
        assert_eq!(first.join().unwrap().status, 201);
        assert!(since.elapsed() < 3 * SECOND);
    });
    let again = elsewhere.post_with("/api/reservations", &key("k"), &slot(1, 0));
    assert_eq!(
        (again.status, again.header("Idempotency-Replayed")),
        (201, Some("true"))
    );
    assert_eq!(count(&db.url, RESERVATIONS), 1);
}

#[test]
fn the_budget_of_a_request_is_kept_and_nothing_of_it_stays() {
    let db = database();
    let served = Served::on(&db.url, &[("HTTP_REQUEST_TIMEOUT_MS", "700")]);
    let held_up = hold_up(&db.url);
    let since = Instant::now();
    let answer = served.post_with("/api/reservations", &key("k"), &slot(1, 0));
    assert!(
        since.elapsed() < Duration::from_millis(1200) + crate::frozen::slack(),
        "{:?}",
        since.elapsed()
    );
    assert_eq!((answer.status, kind(&answer).as_str()), (503, "timeout"));
    assert!(answer.header("Retry-After").is_some());
    drop(held_up);
    assert_eq!(count(&db.url, RESERVATIONS), 0);
    let mut client = Client::to(served.addr);
    let again = client.ask(
        "POST",
        "/api/reservations",
        &(super::JSON.to_owned() + &key("k")),
        slot(1, 0).to_string().as_bytes(),
    );
    assert_eq!(
        (again.status, again.header("Idempotency-Replayed")),
        (201, None)
    );
}

#[test]
fn those_who_wait_for_the_same_key_leave_workers_to_others() {
    let db = database();
    let served = Served::on(&db.url, &[("HTTP_WORKERS", "2")]);
    let mut holder = db.admin();
    holder
        .batch_execute("BEGIN; LOCK TABLE studio.reservations")
        .unwrap();
    thread::scope(|scope| {
        let first =
            scope.spawn(|| served.post_with("/api/reservations", &key("same"), &slot(1, 1)));
        eventually("the first is at it", || served.server.in_flight() == 1);
        thread::sleep(100 * MS);
        let asked = Instant::now();
        let again = served.post_with("/api/reservations", &key("same"), &slot(1, 1));
        assert_eq!((again.status, kind(&again).as_str()), (409, "key-in-use"));
        assert_eq!(served.get("/api/studios").status, 200);
        assert!(
            asked.elapsed() < SECOND + crate::frozen::slack(),
            "{:?}",
            asked.elapsed()
        );
        holder.batch_execute("ROLLBACK").unwrap();
        assert_eq!(first.join().unwrap().status, 201);
    });
}
