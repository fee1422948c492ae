//! Each route of the API: what it does, and which requests it refuses.

use super::{JSON, Served, count, date, kind, served, slot};
use crate::http::Answer;
use crate::support::{Database, database, eventually};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::thread;

#[test]
fn the_first_three_studios_are_there() {
    let db = database();
    let served = Served::on(&db.url, &[("STUDIO_CURRENCY", "CHF")]);
    let answer = served.get("/api/studios");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("Content-Type"), Some("application/json"));
    assert_eq!(
        answer.body,
        r#"{"items":[{"id":3,"name":"Studio C","hourlyRateCents":9900,"currency":"CHF"},"#
            .to_owned()
            + r#"{"id":2,"name":"Studio B","hourlyRateCents":6000,"currency":"CHF"},"#
            + r#"{"id":1,"name":"Studio A","hourlyRateCents":4500,"currency":"CHF"}],"nextCursor":null}"#
    );
}

#[test]
fn a_reservation_is_made_found_and_cancelled() {
    let (_db, served) = served();
    let wanted = json!({"studioId": 1, "customer": "Ada Lovelace ☕", "startsAt": "2030-01-02T11:00:00+01:00",
        "endsAt": "2030-01-02T12:00:00.5Z"});
    let made = served.post("/api/reservations", &wanted);
    assert_eq!(
        (made.status, made.header("Location")),
        (201, Some("/api/reservations/1"))
    );
    let reservation = made.json();
    let created = reservation["createdAt"].as_str().unwrap();
    assert!(created.ends_with('Z'), "{created}");
    assert_eq!(
        made.body,
        r#"{"id":1,"studioId":1,"customer":"Ada Lovelace ☕","startsAt":"2030-01-02T10:00:00Z","#
            .to_owned()
            + r#""endsAt":"2030-01-02T12:00:00.5Z","status":"active","#
            + &format!(r#""createdAt":"{created}"}}"#)
    );
    let found = served.get("/api/reservations/1");
    assert_eq!((found.status, found.body), (200, made.body.clone()));

    // A range includes its start but not its end.
    let next = json!({"studioId": 1, "customer": "Bob", "startsAt": "2030-01-02T12:00:00.5Z",
        "endsAt": "2030-01-02T13:00:00Z"});
    assert_eq!(served.post("/api/reservations", &next).status, 201);
    let inside = json!({"studioId": 1, "customer": "Bob", "startsAt": "2030-01-02T12:00:00Z",
        "endsAt": "2030-01-02T12:30:00Z"});
    let refused = served.post("/api/reservations", &inside);
    assert_eq!((refused.status, kind(&refused).as_str()), (409, "overlap"));
    assert!(
        refused.json()["detail"]
            .as_str()
            .unwrap()
            .contains("already reserved"),
        "{refused:?}"
    );
    let mut elsewhere = inside.clone();
    elsewhere["studioId"] = json!(2);
    assert_eq!(served.post("/api/reservations", &elsewhere).status, 201);

    // A reservation can be cancelled, and cancelled again; its time is then free for another.
    for _ in 0..2 {
        let cancelled = served.ask("DELETE", "/api/reservations/1", "", "");
        assert_eq!(cancelled.status, 200);
        assert_eq!(cancelled.json()["status"], "cancelled");
    }
    let again = served.post("/api/reservations", &wanted);
    assert_eq!(again.status, 201, "{again:?}");

    // Reservations that overlap [from, to), newest first.
    let ids = |query: &str| -> Vec<i64> {
        let body = served.get(&format!("/api/reservations{query}")).json();
        let items = body["items"].as_array().unwrap();
        items.iter().map(|it| it["id"].as_i64().unwrap()).collect()
    };
    let last = again.json()["id"].as_i64().unwrap();
    let all = ids("");
    assert_eq!((all.len(), all[0]), (4, last));
    assert!(all.is_sorted_by(|a, b| a > b));
    assert_eq!(ids("?studioId=1").len(), 3);
    assert_eq!(ids("?studioId=9").len(), 0);
    assert_eq!(ids("?from=2030-01-02T13:00:00Z").len(), 0);
    assert_eq!(ids("?to=2030-01-02T10:00:00Z").len(), 0);
    assert_eq!(
        ids("?studioId=1&from=2030-01-02T12:00:00.5Z&to=2030-01-02T14:00:00%2B01:00").len(),
        1
    );
}

#[test]
fn a_quote_is_priced_accepted_once_and_runs_out() {
    let (db, served) = served();
    // At 45.00 an hour, a minute and a half costs 1.125, rounded half up.
    let wanted = json!({"studioId": 1, "customer": "Ada", "startsAt": "2030-01-02T10:00:00Z",
        "endsAt": "2030-01-02T10:01:30Z"});
    let made = served.post("/api/quotes", &wanted);
    assert_eq!(
        (made.status, made.header("Location")),
        (201, Some("/api/quotes/1"))
    );
    let quote = made.json();
    assert_eq!(
        (&quote["totalCents"], &quote["currency"], &quote["status"]),
        (&json!(113), &json!("EUR"), &json!("open"))
    );
    assert_eq!(quote["reservationId"], Value::Null);
    let days = "SELECT extract(epoch FROM valid_until - now())::int8 / 3600 FROM studio.quotes";
    assert!((335..=336).contains(&count(&db.url, days)));
    assert_eq!(served.get("/api/quotes/1").body, made.body);

    let accepted = served.ask("POST", "/api/quotes/1/accept", "", "");
    assert_eq!(
        (accepted.status, accepted.header("Location")),
        (201, Some("/api/reservations/1"))
    );
    assert_eq!(accepted.body, served.get("/api/reservations/1").body);
    let quote = served.get("/api/quotes/1").json();
    assert_eq!(
        (&quote["status"], &quote["reservationId"]),
        (&json!("accepted"), &json!(1))
    );
    let again = served.ask("POST", "/api/quotes/1/accept", JSON, "{}");
    assert_eq!(
        (again.status, kind(&again).as_str()),
        (409, "already-accepted")
    );

    // A quote whose time was taken in the meantime cannot be accepted, and stays open.
    assert_eq!(served.post("/api/quotes", &wanted).status, 201);
    let taken = served.ask("POST", "/api/quotes/2/accept", "", "");
    assert_eq!((taken.status, kind(&taken).as_str()), (409, "overlap"));
    assert_eq!(served.get("/api/quotes/2").json()["status"], "open");

    db.admin()
        .execute("UPDATE studio.quotes SET valid_until = now()", &[])
        .unwrap();
    let late = served.ask("POST", "/api/quotes/2/accept", "", "");
    assert_eq!((late.status, kind(&late).as_str()), (409, "quote-expired"));
    let statuses: Vec<Value> = served.get("/api/quotes").json()["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|quote| quote["status"].clone())
        .collect();
    assert_eq!(statuses, ["expired", "accepted"]);
    let gone = served.ask("POST", "/api/quotes/3/accept", "", "");
    assert_eq!(gone.status, 404);
}

#[test]
fn an_invoice_is_made_once_and_paid_once() {
    let (_db, served) = served();
    served.reserve(1, 0);
    let of =
        |reservation: i64| served.post("/api/invoices", &json!({ "reservationId": reservation }));
    let made = of(1);
    assert_eq!(
        (made.status, made.header("Location")),
        (201, Some("/api/invoices/1"))
    );
    let issued = made.json()["issuedAt"].as_str().unwrap().to_owned();
    assert_eq!(
        made.body,
        r#"{"id":1,"number":"INV-000001","reservationId":1,"customer":"Ada","lines":[{"description":"Studio A","#
            .to_owned()
            + r#""quantityMinutes":120,"amountCents":9000}],"totalCents":9000,"currency":"EUR","status":"issued","#
            + &format!(r#""issuedAt":"{issued}","paidAt":null}}"#)
    );
    let again = of(1);
    assert_eq!(
        (again.status, kind(&again).as_str()),
        (409, "already-invoiced")
    );
    let kept = served.ask("DELETE", "/api/reservations/1", "", "");
    assert_eq!(
        (kept.status, kind(&kept).as_str()),
        (409, "already-invoiced")
    );
    let paid = served.ask("POST", "/api/invoices/1/pay", "", "");
    assert_eq!((paid.status, &paid.json()["status"]), (200, &json!("paid")));
    assert!(paid.json()["paidAt"].is_string());
    let again = served.ask("POST", "/api/invoices/1/pay", "", "");
    assert_eq!((again.status, kind(&again).as_str()), (409, "already-paid"));
    assert_eq!(served.get("/api/invoices/1").body, paid.body);

    let cancelled = served.reserve(1, 1);
    let path = format!("/api/reservations/{cancelled}");
    assert_eq!(served.ask("DELETE", &path, "", "").status, 200);
    let refused = of(cancelled);
    assert_eq!(
        (refused.status, kind(&refused).as_str()),
        (409, "cancelled")
    );

    // An invoice for an accepted quote has the quoted price. The refused request left no gap in the
    // numbers.
    served.post("/api/quotes", &slot(2, 2));
    let accepted = served.ask("POST", "/api/quotes/1/accept", "", "");
    let quoted = of(accepted.json()["id"].as_i64().unwrap()).json();
    assert_eq!(
        (&quoted["number"], &quoted["totalCents"]),
        (&json!("INV-000002"), &json!(12000))
    );
    let listed = served.get("/api/invoices").json();
    let numbers: Vec<&Value> = listed["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|invoice| &invoice["number"])
        .collect();
    assert_eq!(numbers, ["INV-000002", "INV-000001"]);
}

/// Method, path, headers and body; then the status, the problem type and the fields that are
/// reported as wrong.
type Refusal = (
    &'static str,
    &'static str,
    &'static str,
    String,
    u16,
    &'static str,
    &'static [&'static str],
);

fn refusals() -> Vec<Refusal> {
    let body = |change: fn(&mut Value)| {
        let mut body = slot(1, 0);
        change(&mut body);
        body.to_string()
    };
    let mut all: Vec<Refusal> = Vec::new();
    for path in ["/api/reservations", "/api/quotes"] {
        let mut invalid = |body: String, at: &'static [&'static str]| {
            all.push(("POST", path, JSON, body, 422, "invalid-fields", at));
        };
        invalid(
            "{}".into(),
            &["#/studioId", "#/customer", "#/startsAt", "#/endsAt"],
        );
        invalid("[]".into(), &["#"]);
        invalid("7".into(), &["#"]);
        invalid(body(|b| b["studioId"] = json!(99)), &["#/studioId"]);
        invalid(body(|b| b["studioId"] = json!(i64::MAX)), &["#/studioId"]);
        invalid(body(|b| b["studioId"] = json!(0)), &["#/studioId"]);
        invalid(body(|b| b["studioId"] = json!(1.0)), &["#/studioId"]);
        invalid(
            body(|b| b["startsAt"] = json!("0000-12-31T23:59:59Z")),
            &["#/startsAt"],
        );
        invalid(
            body(|b| b["endsAt"] = json!("9999-12-31T23:59:59-01:00")),
            &["#/endsAt"],
        );
        invalid(body(|b| b["studioId"] = json!(1.5)), &["#/studioId"]);
        invalid(body(|b| b["studioId"] = json!("1")), &["#/studioId"]);
        invalid(body(|b| b["studioId"] = json!(u64::MAX)), &["#/studioId"]);
        invalid(body(|b| b["customer"] = json!("")), &["#/customer"]);
        invalid(body(|b| b["customer"] = json!(" Ada")), &["#/customer"]);
        invalid(body(|b| b["customer"] = json!("A\u{0}da")), &["#/customer"]);
        invalid(
            body(|b| b["customer"] = json!("x".repeat(201))),
            &["#/customer"],
        );
        invalid(body(|b| b["customer"] = Value::Null), &["#/customer"]);
        invalid(
            body(|b| b["startsAt"] = json!("2030-01-02T10:00:00")),
            &["#/startsAt"],
        );
        invalid(body(|b| b["startsAt"] = json!("tomorrow")), &["#/startsAt"]);
        invalid(body(|b| b["startsAt"] = json!(5)), &["#/startsAt"]);
        invalid(body(|b| b["endsAt"] = b["startsAt"].clone()), &["#/endsAt"]);
        invalid(body(|b| b["a/b~"] = json!(1)), &["#/a~1b~0"]);
        invalid(
            body(|b| {
                b["studioId"] = json!(-1);
                b["customer"] = json!(["Ada"]);
                b["notes"] = json!({});
            }),
            &["#/studioId", "#/customer", "#/notes"],
        );
        all.push(("POST", path, JSON, "{".into(), 400, "about:blank", &[]));
        all.push(("POST", path, JSON, String::new(), 400, "about:blank", &[]));
        all.push((
            "POST",
            path,
            JSON,
            r#"{"studioId":1,"studioId":1}"#.into(),
            400,
            "about:blank",
            &[],
        ));
        all.push(("POST", path, "", body(|_| {}), 415, "about:blank", &[]));
        all.push((
            "POST",
            path,
            "Content-Type: text/plain\r\n",
            body(|_| {}),
            415,
            "about:blank",
            &[],
        ));
        all.push(("PUT", path, JSON, body(|_| {}), 405, "about:blank", &[]));
        all.push((
            "POST",
            path,
            JSON,
            "x".repeat((1 << 20) + 1),
            413,
            "about:blank",
            &[],
        ));
    }
    let invoice = |body: &str, at: &'static [&'static str]| -> Refusal {
        (
            "POST",
            "/api/invoices",
            JSON,
            body.into(),
            422,
            "invalid-fields",
            at,
        )
    };
    all.extend([
        invoice("{}", &["#/reservationId"]),
        invoice(r#"{"reservationId":99}"#, &["#/reservationId"]),
        invoice(r#"{"reservationId":true}"#, &["#/reservationId"]),
        invoice(r#"{"reservationId":1,"paid":true}"#, &["#/paid"]),
    ]);
    for list in ["studios", "reservations", "quotes", "invoices"] {
        let ask = |query: &str| -> &'static str { format!("/api/{list}{query}").leak() };
        for (query, at) in [
            ("?limit=0", "limit"),
            ("?limit=201", "limit"),
            ("?limit=x", "limit"),
            ("?limit=", "limit"),
            ("?limit=1&limit=2", "limit"),
            ("?page=2", "page"),
        ] {
            let at: &'static [&'static str] = vec![at].leak();
            all.push((
                "GET",
                ask(query),
                "",
                String::new(),
                422,
                "invalid-fields",
                at,
            ));
        }
        for query in [
            "?cursor=",
            "?cursor=1",
            "?cursor=%00%ff",
            "?cursor=0000000000000001ffffffffffffffff",
        ] {
            all.push((
                "GET",
                ask(query),
                "",
                String::new(),
                400,
                "about:blank",
                &[],
            ));
        }
        if list != "studios" {
            for id in [
                "/99",
                "/0",
                "/01",
                "/x",
                "/-1",
                "/99999999999999999999",
                "/1/2",
            ] {
                all.push(("GET", ask(id), "", String::new(), 404, "about:blank", &[]));
            }
        }
    }
    for (query, at) in [
        ("?studioId=0", &["studioId"] as &'static [&'static str]),
        ("?from=2030-01-02", &["from"]),
        (
            "?from=2030-01-02T10:00:00Z&to=2030-01-02T10:00:00Z",
            &["to"],
        ),
        ("?to=x&from=2030-01-02T10:00:00", &["from", "to"]),
    ] {
        let path: &'static str = format!("/api/reservations{query}").leak();
        all.push(("GET", path, "", String::new(), 422, "invalid-fields", at));
    }
    for (method, path) in [
        ("POST", "/api/reservations?dryRun=1"),
        ("DELETE", "/api/reservations/1?dryRun=1"),
        ("GET", "/api/invoices/1?dryRun=1"),
    ] {
        let at: &'static [&'static str] = &["dryRun"];
        all.push((method, path, "", String::new(), 422, "invalid-fields", at));
    }
    for (method, path) in [
        ("DELETE", "/api/reservations/99"),
        ("POST", "/api/quotes/99/accept"),
        ("POST", "/api/invoices/99/pay"),
    ] {
        all.push((method, path, "", String::new(), 404, "about:blank", &[]));
        all.push((
            method,
            path,
            JSON,
            r#"{"now":1}"#.into(),
            422,
            "invalid-fields",
            &["#/now"],
        ));
        all.push((method, path, "", "{}".into(), 415, "about:blank", &[]));
        all.push(("PATCH", path, "", String::new(), 405, "about:blank", &[]));
    }
    all
}

#[test]
fn what_is_wrong_is_named_and_nothing_is_written() {
    let (db, served) = served();
    for (method, path, headers, body, status, wanted, at) in refusals() {
        let answer = served.ask(method, path, headers, &body);
        let what = format!("{method} {path} {body:.200} {answer:?}");
        assert_eq!(answer.status, status, "{what}");
        assert_eq!(
            answer.header("Content-Type"),
            Some("application/problem+json"),
            "{what}"
        );
        let problem = answer.json();
        assert_eq!(kind(&answer), wanted, "{what}");
        assert_eq!(problem["status"], status, "{what}");
        assert!(
            problem["detail"].is_string() && problem["requestId"].is_string(),
            "{what}"
        );
        assert_eq!(answer.header("Allow").is_some(), status == 405, "{what}");
        let errors = problem["errors"].as_array().cloned().unwrap_or_default();
        let mut said: Vec<&str> = errors
            .iter()
            .filter_map(|e| e["pointer"].as_str().or(e["parameter"].as_str()))
            .collect();
        said.dedup();
        assert_eq!(said, at, "{what}");
        assert!(errors.iter().all(|e| e["detail"].is_string()), "{what}");
    }
    let written = "SELECT (SELECT count(*) FROM studio.reservations) + (SELECT count(*) FROM studio.quotes) \
                   + (SELECT count(*) FROM studio.invoices) + (SELECT last FROM studio.invoice_numbers)";
    assert_eq!(count(&db.url, written), 0);
    let left = "SELECT count(*) FROM studio.ledger";
    assert_eq!(
        count(&db.url, left),
        0,
        "what was refused leaves its key free"
    );
}

#[test]
fn the_routes_ask_for_the_token_where_one_is_set() {
    let db = database();
    let served = Served::on(&db.url, &[("API_TOKEN", "k3y")]);
    for (method, path) in [
        ("GET", "/api/studios"),
        ("POST", "/api/reservations"),
        ("GET", "/api/invoices/1"),
        ("POST", "/api/reservations/import"),
    ] {
        for headers in [
            "",
            "Authorization: Bearer k3\r\n",
            "Authorization: Basic k3y\r\n",
        ] {
            let answer = served.ask(method, path, headers, "");
            assert_eq!(answer.status, 401, "{method} {path} {headers}");
            assert_eq!(answer.header("WWW-Authenticate"), Some("Bearer"));
        }
    }
    let headers = "Authorization: Bearer k3y\r\n";
    assert_eq!(served.ask("GET", "/api/studios", headers, "").status, 200);
    // The API document needs no token.
    assert_eq!(served.get("/openapi.json").status, 200);
}

#[test]
fn a_list_is_read_to_its_end_while_it_grows() {
    let (_db, served) = served();
    for day in 0..25 {
        served.reserve(1, day);
    }
    let mut seen = Vec::new();
    let mut cursor = String::new();
    let mut pages = 0;
    loop {
        let page = served
            .get(&format!("/api/reservations?limit=10&studioId=1{cursor}"))
            .json();
        let items = page["items"].as_array().unwrap();
        seen.extend(items.iter().map(|it| it["id"].as_i64().unwrap()));
        pages += 1;
        // New reservations come before the first page, and do not shift the pages behind it.
        served.reserve(1, 100 + pages);
        let Some(next) = page["nextCursor"].as_str() else {
            break;
        };
        cursor = format!("&cursor={next}");
        // A cursor is valid only with the filters that it was issued for.
        for other in ["", "&studioId=2", "&studioId=1&from=2030-01-01T00:00:00Z"] {
            let path = format!("/api/reservations?limit=10{other}{cursor}");
            assert_eq!(served.get(&path).status, 400, "{path}");
        }
        let elsewhere = served.get(&format!("/api/quotes?{}", &cursor[1..]));
        assert_eq!(elsewhere.status, 400);
    }
    assert_eq!(pages, 3);
    assert_eq!(seen, (1..=25).rev().collect::<Vec<i64>>());
}

#[test]
fn of_two_who_want_the_same_time_one_gets_it() {
    let (db, served) = served();
    for round in 0..10 {
        // The starts are half an hour apart, so that neither request counts as a repetition of the
        // other.
        let (first, mut second) = (slot(1, round), slot(1, round));
        second["startsAt"] = json!(format!("{}T11:30:00Z", date(round)));
        let mut statuses: Vec<u16> = thread::scope(|scope| {
            let racers = [&first, &second].map(|wanted| {
                let served = &served;
                scope.spawn(move || served.post("/api/reservations", wanted).status)
            });
            racers.into_iter().map(|r| r.join().unwrap()).collect()
        });
        statuses.sort();
        assert_eq!(statuses, [201, 409]);
    }
    assert_eq!(
        count(&db.url, "SELECT count(*) FROM studio.reservations"),
        10
    );
}

#[test]
fn sixteen_who_make_invoices_at_once_leave_no_gap() {
    let (db, served) = served();
    let reservations: Vec<i64> = (0..16).map(|day| served.reserve(1, day)).collect();
    let clients = served.clients(16);
    let numbers: HashSet<String> = thread::scope(|scope| {
        let all = clients
            .into_iter()
            .zip(reservations)
            .map(|(mut client, reservation)| {
                scope.spawn(move || {
                    let body = json!({ "reservationId": reservation }).to_string();
                    // A refused request rolls its invoice number back.
                    let unknown = br#"{"reservationId":999}"#;
                    assert_eq!(
                        client.ask("POST", "/api/invoices", JSON, unknown).status,
                        422
                    );
                    let made = client.ask("POST", "/api/invoices", JSON, body.as_bytes());
                    assert_eq!(made.status, 201, "{made:?}");
                    let again = client.ask("POST", "/api/invoices", JSON, body.as_bytes());
                    assert_eq!(again.status, 409);
                    made.json()["number"].as_str().unwrap().to_owned()
                })
            });
        let all: Vec<_> = all.collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let wanted = (1..=16).map(|n| format!("INV-{n:06}")).collect();
    assert_eq!(numbers, wanted);
    assert_eq!(
        count(&db.url, "SELECT last FROM studio.invoice_numbers"),
        16
    );
}

#[test]
fn the_document_of_the_api_is_served() {
    let (_db, served) = served();
    let answer = served.get("/openapi.json");
    assert_eq!(
        (answer.status, answer.header("Content-Type")),
        (200, Some("application/json"))
    );
    let document = answer.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let statuses = &document["paths"]["/api/reservations"]["post"]["responses"];
    for status in [
        "201", "400", "401", "409", "413", "415", "422", "500", "503",
    ] {
        assert!(statuses[status].is_object(), "{status}");
    }
    let sizes = &document["components"]["schemas"]["NewReservation"]["properties"]["customer"];
    assert_eq!(sizes["maxLength"], 200);
}

/// The answers to two requests that both arrive while the table is locked, and go on when it is
/// released.
fn both_at_once(
    db: &Database,
    table: &str,
    asks: [&(dyn Fn() -> Answer + Sync); 2],
) -> Vec<Answer> {
    let mut holder = db.admin();
    holder
        .batch_execute(&format!(
            "BEGIN; LOCK TABLE studio.{table} IN ACCESS EXCLUSIVE MODE"
        ))
        .unwrap();
    let waiting = || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
        count(&db.url, sql)
    };
    thread::scope(|scope| {
        let mut asked = Vec::new();
        for ask in asks {
            asked.push(scope.spawn(ask));
            let so_far = asked.len() as i64;
            eventually("it waits for a lock", || waiting() == so_far);
        }
        holder.batch_execute("COMMIT").unwrap();
        asked.into_iter().map(|a| a.join().unwrap()).collect()
    })
}

#[test]
fn what_is_decided_under_a_lock_is_decided_on_what_is_true_then() {
    let (db, served) = served();
    let statuses = |answers: &[Answer]| answers.iter().map(|a| a.status).collect::<Vec<_>>();
    // The request that makes the invoice is first, and locks the reservation while the other waits
    // for it.
    served.reserve(1, 0);
    let invoice = || served.post("/api/invoices", &json!({ "reservationId": 1 }));
    let cancel = || served.ask("DELETE", "/api/reservations/1", "", "");
    let answers = both_at_once(&db, "invoice_lines", [&invoice, &cancel]);
    assert_eq!(statuses(&answers), [201, 409], "{answers:?}");
    assert_eq!(kind(&answers[1]), "already-invoiced");
    assert_eq!(served.get("/api/reservations/1").json()["status"], "active");
    // The same request twice.
    let pay = || served.ask("POST", "/api/invoices/1/pay", "", "");
    let answers = both_at_once(&db, "invoice_lines", [&pay, &pay]);
    assert_eq!(statuses(&answers), [200, 409], "{answers:?}");
    served.reserve(1, 1);
    let invoice = || served.post("/api/invoices", &json!({ "reservationId": 2 }));
    let answers = both_at_once(&db, "invoice_lines", [&invoice, &invoice]);
    assert_eq!(statuses(&answers), [201, 409], "{answers:?}");
    served.post("/api/quotes", &slot(2, 2));
    let accept = || served.ask("POST", "/api/quotes/1/accept", "", "");
    let answers = both_at_once(&db, "reservations", [&accept, &accept]);
    assert_eq!(statuses(&answers), [201, 409], "{answers:?}");
    assert_eq!(kind(&answers[1]), "already-accepted");
    assert_eq!(count(&db.url, "SELECT last FROM studio.invoice_numbers"), 2);
}

#[test]
fn times_that_rfc_3339_cannot_say_are_shown_as_the_latest_and_asked_for_up_to_then() {
    let (db, served) = served();
    let far = "INSERT INTO studio.reservations (studio_id, customer, starts_at, ends_at) \
               VALUES (1, 'Ada', '2031-01-01', 'infinity'), (2, 'Bob', '2031-01-01', '20000-01-01')";
    db.admin().batch_execute(far).unwrap();
    let list = served.get("/api/reservations?to=9999-12-31T23:59:59Z");
    assert_eq!(list.status, 200, "{list:?}");
    let items = list.json()["items"].as_array().unwrap().clone();
    assert_eq!(items.len(), 2);
    for item in items {
        assert_eq!(item["endsAt"], "9999-12-31T23:59:59.999999Z");
    }
    assert_eq!(
        served
            .get("/api/reservations?to=9999-12-32T00:00:00Z")
            .status,
        422
    );
}
