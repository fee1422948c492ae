//! What the dashboard shows, and who may see it.

use super::http::{Answer, ask, get, send, settings};
use super::servers::Frozen;
use super::support::{MS, SECOND, database, eventually, pool, server};
use millpond::embedded::Stop;
use millpond::server::{DatabaseKind, Router, Server};
use millpond::{Error, Keyed, Pool};
use serde_json::Value;
use std::net::SocketAddr;
use std::thread;
use std::time::Instant;

const LIVE: &str = "/api/metrics/live";

fn serve(pool: &Pool, vars: &[(&str, &str)]) -> Server {
    let kind = DatabaseKind::External;
    Server::start(settings(vars), pool.clone(), Router::new(), kind).unwrap()
}

fn live(addr: SocketAddr) -> Value {
    let answer = get(addr, LIVE);
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

fn state(addr: SocketAddr) -> String {
    live(addr)["state"]["name"].as_str().unwrap().to_owned()
}

fn list<'v>(value: &'v Value, name: &str) -> &'v [Value] {
    value[name].as_array().unwrap()
}

#[test]
fn the_last_quarter_of_an_hour_comes_whole_and_then_in_pieces() {
    let pool = database().pool().max_size(3).build().unwrap();
    let server = serve(&pool, &[]);
    let addr = server.addr();
    pool.query("SELECT 'hidden', $1::int", &[&1]).unwrap();
    pool.query("SELECT no_such_column", &[]).unwrap_err();
    eventually("three samples", || {
        live(addr)["sequence"].as_u64() >= Some(3)
    });
    let whole = live(addr);
    assert_eq!(
        (&whole["version"], &whole["state"]["name"]),
        (&1.into(), &"ready".into())
    );
    assert_eq!(whole["pool"]["max"], 3);
    let history = &whole["history"];
    assert_eq!(
        (&history["first"], &history["stepMs"]),
        (&1.into(), &1000.into())
    );
    let fields = list(history, "fields");
    let samples = list(history, "samples");
    assert!(
        samples
            .iter()
            .all(|sample| sample.as_array().unwrap().len() == fields.len())
    );
    let column = |name: &str| {
        let at = fields.iter().position(|field| field == name).unwrap();
        samples.iter().filter_map(move |sample| sample[at].as_f64())
    };
    assert_eq!(column("statements").sum::<f64>(), 2.0);
    assert!(column("operationP99Ms").all(|ms| ms > 0.0));
    let statements = list(&whole["statements"], "list");
    let of = |sql: &str| statements.iter().find(|one| one["sql"] == sql).unwrap();
    assert_eq!(of("SELECT ?, $1::int")["count"], 1);
    assert_eq!(of("SELECT no_such_column")["failures"], 1);
    assert_eq!(whole["totals"]["statementFailures"][0]["sqlstate"], "42703");
    assert!(
        list(&whole, "events")
            .iter()
            .any(|event| event["kind"] == "opened")
    );
    assert!(!whole.to_string().contains("hidden"));
    let newest = whole["sequence"].as_u64().unwrap();
    let rest = get(addr, &format!("{LIVE}?after={newest}")).json();
    assert_eq!(rest["history"]["first"], newest + 1);
    let newer = rest["sequence"].as_u64().unwrap() - newest;
    let samples = list(&rest["history"], "samples").len() as u64;
    // One may have been added while the answer was made.
    assert!((newer..=newer + 1).contains(&samples), "{samples} {newer}");
    let events = list(&rest, "events").iter();
    assert!(
        events
            .into_iter()
            .all(|event| event["sequence"].as_u64() > Some(newest))
    );
    // The page kept the number of another run of the program.
    let all = get(addr, &format!("{LIVE}?after=1000000")).json();
    assert_eq!(all["history"]["first"], 1);
    let wrong = get(addr, &format!("{LIVE}?after=-1"));
    assert_eq!(wrong.status, 422, "{}", wrong.body);
}

#[test]
fn an_outage_is_told_by_few_events_and_without_names_to_strangers() {
    let pool = pool("postgresql://someone@127.0.0.1:1/nowhere");
    let pool = pool.fail_fast_after(300 * MS).build().unwrap();
    let server = serve(&pool, &[]);
    let addr = server.addr();
    eventually("it fails fast", || state(addr) == "failing-fast");
    eventually("many attempts", || {
        let failures = live(addr)["totals"]["connectFailures"][0]["count"].as_u64();
        live(addr)["sequence"].as_u64() >= Some(3) && failures >= Some(6)
    });
    let shown = live(addr);
    let failed = list(&shown, "events").iter();
    let failed = failed
        .filter(|event| event["kind"] == "open-failed")
        .count();
    assert!((1..=2).contains(&failed), "{shown}");
    assert!(list(&shown, "advice").is_empty(), "{shown}");
    let sentence = shown["state"]["sentence"].as_str().unwrap();
    assert!(sentence.contains("refused"), "{sentence}");
    let head = format!("GET {LIVE} HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n");
    let told = send(addr, &head).json();
    assert_eq!(told["state"]["name"], "failing-fast");
    assert!(!told.to_string().contains("refused"), "{told}");
}

#[test]
fn who_holds_a_connection_and_a_leak_are_shown() {
    let db = database();
    let pool = db
        .pool()
        .max_size(2)
        .leak_threshold(200 * MS)
        .build()
        .unwrap();
    let server = serve(&pool, &[]);
    let mut held = pool.get().unwrap();
    held.query("SELECT 's3cret'", &[]).unwrap();
    eventually("the leak", || live(server.addr())["totals"]["leaks"] == 1);
    let shown = live(server.addr());
    let holder = &list(&shown, "holders")[0];
    assert_eq!(holder["statement"], "SELECT ?");
    assert_eq!(
        (&holder["leaked"], &holder["running"]),
        (&true.into(), &false.into())
    );
    let place = holder["place"].as_str().unwrap();
    assert!(place.starts_with("tests/suite/dashboard.rs:"), "{place}");
    assert!(holder["heldMs"].as_f64() >= Some(200.0));
    let kinds = || -> Vec<String> {
        let shown = live(server.addr());
        let kinds = list(&shown, "events").iter().map(|event| &event["kind"]);
        kinds
            .map(|kind| kind.as_str().unwrap().to_owned())
            .collect()
    };
    assert!(kinds().iter().any(|kind| kind == "leak"));
    eventually("the advice", || {
        let shown = live(server.addr());
        let kinds = list(&shown, "advice")
            .iter()
            .map(|advice| advice["kind"].clone());
        kinds
            .into_iter()
            .any(|kind| kind == "held-without-statement")
    });
    drop(held);
    assert!(kinds().iter().any(|kind| kind == "returned"));
    assert!(list(&live(server.addr()), "holders").is_empty());
}

#[test]
fn a_holder_is_shown_with_a_text_whatever_it_sent_last() {
    let pool = database().pool().max_size(1).build().unwrap();
    let server = serve(&pool, &[]);
    let shown = || {
        let shown = live(server.addr());
        list(&shown, "holders")[0]["statement"].clone()
    };
    let mut held = pool.get().unwrap();
    assert_eq!(shown(), Value::Null);
    for text in ["", " ", "-- a comment", "/* another */"] {
        held.simple_query(text).unwrap();
        assert_eq!(shown(), "(empty)", "{text:?}");
        held.execute(text, &[]).unwrap();
        assert_eq!(shown(), "(empty)", "{text:?}");
    }
    let hidden = format!("/* {} */ SELECT 1", "x".repeat(500));
    held.simple_query(&hidden).unwrap();
    assert_eq!(shown(), "…");
    drop(held);
    pool.create_ledger().unwrap();
    let of_begun = pool.transaction_with_key("k", |_| Ok::<_, Error>(shown()));
    let claim = "INSERT INTO \"millpond\".ledger";
    assert_eq!(of_begun.unwrap(), Keyed::Done(claim.into()));
    let of_begun = pool.transaction(|tx| {
        // In a round trip of its own, since such a text follows.
        tx.batch_execute("/* a comment */")?;
        Ok::<_, Error>(shown())
    });
    assert_eq!(of_begun.unwrap(), "(empty)");
    pool.execute("", &[]).unwrap();
    let shown = live(server.addr());
    let texts = list(&shown["statements"], "list");
    assert!(
        texts.iter().any(|text| text["sql"] == "(empty)"),
        "{texts:?}"
    );
    assert!(texts.iter().all(|text| text["sql"] != ""), "{texts:?}");
}

#[test]
fn a_restart_is_shown_and_a_freeze_holds_up_nothing() {
    let mut database = server(&[]);
    let pool = pool(&database.url()).build().unwrap();
    let server = serve(&pool, &[]);
    let addr = server.addr();
    eventually("it is ready", || state(addr) == "ready");
    let frozen = Frozen::tree(database.pid().unwrap());
    eventually("the freeze shows", || state(addr) == "database-away");
    for _ in 0..3 {
        let asked = Instant::now();
        live(addr);
        println!("answered after {:?}", asked.elapsed());
        assert!(asked.elapsed() < 400 * MS + super::frozen::slack());
        thread::sleep(300 * MS);
    }
    frozen.thaw();
    eventually("it is ready again", || state(addr) == "ready");
    let seen = live(addr)["sequence"].as_u64().unwrap();
    database.stop(Stop::Fast);
    database.start_again().unwrap();
    eventually("the restart shows", || {
        let shown = get(addr, &format!("{LIVE}?after={seen}")).json();
        let events = list(&shown, "events").iter();
        let mut closed = events.filter(|event| event["kind"] == "closed");
        closed.any(|event| event["text"].as_str().unwrap().contains("broken"))
    });
    eventually("it is ready once more", || state(addr) == "ready");
}

#[test]
fn the_state_says_pause_and_drain() {
    let pool = database().pool().build().unwrap();
    let server = serve(&pool, &[]);
    let addr = server.addr();
    eventually("it is ready", || state(addr) == "ready");
    pool.pause(60 * SECOND);
    assert_eq!(state(addr), "paused");
    pool.resume();
    eventually("it goes on", || state(addr) == "ready");
    let closing = thread::spawn(move || server.shut_down(4 * SECOND, 8 * SECOND));
    eventually("the drain shows", || state(addr) == "draining");
    closing.join().unwrap();
}

const TOKEN: &str = "sesame-0123456789";

fn post(addr: SocketAddr, path: &str, more: &str, body: &str) -> Answer {
    let kind = "Content-Type: application/x-www-form-urlencoded";
    let length = body.len();
    send(
        addr,
        &format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{kind}\r\n{more}Content-Length: {length}\r\n\r\n{body}"
        ),
    )
}

#[test]
fn a_browser_signs_in_and_keeps_no_token() {
    let pool = database().pool().build().unwrap();
    let server = serve(&pool, &[("METRICS_TOKEN", TOKEN)]);
    let addr = server.addr();
    assert_eq!(get(addr, LIVE).status, 401);
    let before = get(addr, "/dashboard");
    assert_eq!(before.status, 200);
    assert!(before.body.contains("name=\"token\"") && !before.body.contains("{{"));
    for wrong in [
        "token=",
        "token=other",
        "",
        "token=sesame",
        &format!("other={TOKEN}"),
    ] {
        let refused = post(addr, "/dashboard/sign-in", "", wrong);
        assert_eq!(refused.status, 403, "{wrong}");
        assert!(refused.body.contains("This is not the token."));
        assert!(refused.header("Set-Cookie").is_none());
    }
    let long = format!("token={}", "x".repeat(100_000));
    assert_eq!(post(addr, "/dashboard/sign-in", "", &long).status, 413);
    let foreign = "Origin: https://evil.example\r\nSec-Fetch-Site: cross-site\r\n";
    let right = format!("token={TOKEN}");
    assert_eq!(
        post(addr, "/dashboard/sign-in", foreign, &right).status,
        403
    );
    let policy = before.header("Referrer-Policy");
    assert_eq!(
        policy,
        Some("same-origin"),
        "a browser tells a form its origin"
    );
    let own = "Origin: http://localhost\r\nSec-Fetch-Site: same-origin\r\n";
    let entered = post(addr, "/dashboard/sign-in", own, &right);
    assert_eq!(
        (entered.status, entered.header("Location")),
        (303, Some("/dashboard"))
    );
    let cookie = entered.header("Set-Cookie").unwrap();
    for word in ["HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(cookie.contains(word), "{cookie}");
    }
    assert!(!cookie.contains(TOKEN));
    let cookie = format!("Cookie: {}\r\n", cookie.split(';').next().unwrap());
    let with_cookie = |path: &str| ask(addr, "GET", path, &cookie);
    let page = with_cookie("/dashboard");
    assert!(page.body.contains("dashboard.js") && !page.body.contains(TOKEN));
    assert_eq!(with_cookie(LIVE).json()["textsHidden"], false);
    assert_eq!(with_cookie("/metrics").status, 200);
    let bearer = format!("Authorization: Bearer {TOKEN}\r\n");
    assert_eq!(ask(addr, "GET", LIVE, &bearer).status, 200);
    let chunked = format!(
        "POST /dashboard/sign-in HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Forwarded-Proto: https\r\n\
         Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{right}\r\n0\r\n\r\n",
        right.len()
    );
    let entered = send(addr, &chunked);
    let secure = entered.header("Set-Cookie").unwrap();
    assert!(secure.ends_with("; Secure"), "{secure}");
    let again = get(addr, "/dashboard/sign-in");
    assert_eq!(
        (again.status, again.header("Location")),
        (303, Some("/dashboard"))
    );
    let left = post(addr, "/dashboard/sign-out", &cookie, "");
    assert_eq!(
        (left.status, left.header("Location")),
        (303, Some("/dashboard"))
    );
    assert_eq!(with_cookie(LIVE).status, 401);
}

#[test]
fn the_page_asks_nothing_of_others_and_runs_no_script_of_others() {
    let pool = database().pool().build().unwrap();
    let server = serve(&pool, &[]);
    let page = get(server.addr(), "/dashboard");
    assert_eq!(page.status, 200);
    assert_eq!(
        page.header("Content-Type"),
        Some("text/html; charset=utf-8")
    );
    let policy = page.header("Content-Security-Policy").unwrap();
    assert!(
        policy.starts_with("default-src 'none';") && !policy.contains("unsafe"),
        "{policy}"
    );
    assert!(!page.body.contains("{{") && !page.body.contains("style="));
    for (path, kind) in [
        ("/dashboard/dashboard.js", "text/javascript; charset=utf-8"),
        ("/dashboard/dashboard.css", "text/css; charset=utf-8"),
    ] {
        assert!(page.body.contains(path), "{path}");
        let asset = get(server.addr(), path);
        assert_eq!(
            (asset.status, asset.header("Content-Type")),
            (200, Some(kind))
        );
        assert!(
            !asset.body.contains("https://"),
            "{path} asks another server"
        );
    }
}

#[test]
fn without_a_token_texts_are_for_this_machine_only() {
    let pool = database().pool().build().unwrap();
    let server = serve(&pool, &[]);
    let addr = server.addr();
    let mut held = pool.get().unwrap();
    held.query("SELECT 1", &[]).unwrap();
    pool.query("SELECT 2", &[]).unwrap();
    let ask_as = |host: &str, more: &str| {
        let head =
            format!("GET {LIVE} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n");
        send(addr, &head).json()
    };
    let shown = ask_as("localhost", "");
    assert_eq!(
        (&shown["textsHidden"], &shown["holders"][0]["statement"]),
        (&false.into(), &"SELECT ?".into())
    );
    for (host, more) in [
        ("pool.example", ""),
        ("localhost", "X-Forwarded-For: 127.0.0.1\r\n"),
        ("localhost", "X-Forwarded-For: unknown\r\n"),
        ("localhost", "Forwarded: for=_hidden\r\n"),
        ("localhost", "Via: 1.1 proxy\r\n"),
        ("localhost", "Sec-Fetch-Site: cross-site\r\n"),
        ("localhost", "Origin: https://evil.example\r\n"),
    ] {
        let hidden = ask_as(host, more);
        assert_eq!(hidden["textsHidden"], true, "{host} {more}");
        assert!(hidden["holders"][0]["statement"].is_null());
        assert!(list(&hidden["statements"], "list").is_empty());
    }
}
