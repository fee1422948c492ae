//! Readings for tests, as a server writes them.

use super::history::History;
use super::reading::Reading;
use serde_json::{Value, json};

fn parsed(value: Value) -> Reading {
    serde_json::from_value(value).unwrap()
}

fn base() -> Value {
    json!({
        "version": 1,
        "timestamp": "2026-11-29T18:37:02.906Z",
        "startedAt": "2026-11-29T18:30:00.000Z",
        "sequence": 422,
        "application": "millpond", "release": "0.1.0",
        "state": {"name": "ready", "healthy": true, "sentence": "Ready: statements are answered; 20 of 20 connections are free."},
        "pool": {"total": 0, "idle": 0, "active": 0, "opening": 0, "waiting": 0, "max": 20, "minIdle": 5, "utilizationPercent": 0.0},
        "server": null,
        "standbys": [],
        "totals": {"statements": 0, "later": {"x": 1}},
        "history": {"stepMs": 1000, "first": 1, "fields": [], "samples": []},
        "holders": [],
        "statements": {"minutes": 5, "list": []},
        "events": [],
        "advice": [],
        "later": [1, 2, 3]
    })
}

/// A server that has just started, and has done nothing.
pub(super) fn empty() -> History {
    History::begin(parsed(base()))
}

/// So many statements in each second from this one on, and an event in each of the first.
pub(super) fn rates(first: u64, statements: &[f64]) -> Reading {
    let mut value = base();
    let rows: Vec<_> = statements
        .iter()
        .map(|count| json!([count, null]))
        .collect();
    value["history"] = json!({"stepMs": 1000, "first": first, "fields": ["statements", "waitP99Ms"], "samples": rows});
    let events = (0..statements.len().min(10) as u64).map(|index| {
        json!({"sequence": first.saturating_add(index), "at": "2026-11-29T18:30:17.120Z", "kind": "opened", "level": "info", "text": "connection 5 opened in 12 ms"})
    });
    value["events"] = events.collect();
    parsed(value)
}

/// A server that has seen a rush.
pub(super) fn busy() -> Reading {
    let mut value = base();
    value["state"]["sentence"] =
        json!("Ready: statements are answered; 13 of 20 connections are free.");
    value["pool"] = json!({"total": 12, "idle": 4, "active": 7, "opening": 1, "waiting": 0, "max": 20, "minIdle": 5, "utilizationPercent": 35.0});
    value["server"] = json!({"maxConnections": 100, "reservedConnections": 3, "usedConnections": 12, "availableConnections": 85, "byApplication": []});
    value["standbys"] = json!([{"host": "10.0.0.2:5432", "state": "used", "lagMs": 3.1, "error": null, "pool": {"total": 1, "idle": 0, "active": 1, "waiting": 0, "max": 20}}]);
    let fields = [
        "active",
        "idle",
        "opening",
        "max",
        "waiting",
        "waitP50Ms",
        "waitP99Ms",
        "operationP50Ms",
        "operationP99Ms",
        "statements",
        "requests",
        "errors",
        "retries",
    ];
    let samples: Vec<_> = (1..=422_u64).map(second).collect();
    value["history"] = json!({"stepMs": 1000, "first": 1, "fields": fields, "samples": samples});
    value["holders"] = json!([
        {"connection": 5, "place": "src/reports/monthly.rs:88:21", "thread": "reports", "heldMs": 64_210.0, "statement": "SELECT studio_id, date_trunc('month', starts_at), sum(total_cents) FROM studio.invoices GROUP BY 1, 2", "running": true, "statementMs": 64_195.3, "leaked": true},
        {"connection": 9, "place": "src/studio/quotes.rs:112:17", "thread": "millpond-api-3", "heldMs": 18.4, "statement": "UPDATE studio.quotes SET status = $1 WHERE id = $2", "running": true, "statementMs": 12.0, "leaked": false},
        {"connection": 2, "place": "src/studio/quotes.rs:140:9", "thread": "millpond-api-7", "heldMs": 3.9, "statement": "SELECT * FROM studio.quotes WHERE id = $1", "running": false, "statementMs": 0.4, "leaked": false},
        {"connection": 4, "place": "src/studio/invoices.rs:61:9", "thread": "millpond-api-1", "heldMs": 1.2, "statement": null, "running": false, "statementMs": null, "leaked": false}
    ]);
    value["statements"]["list"] = json!([
        {"sql": "INSERT INTO studio.reservations (studio_id, customer, starts_at, ends_at) VALUES ($1, $2, $3, $4)", "count": 5210, "failures": 12, "meanMs": 6.1, "p99Ms": 48.0, "maxMs": 212.0, "sharePercent": 61.0},
        {"sql": "SELECT studio_id, sum(total_cents) FROM studio.invoices WHERE issued_at >= $1 GROUP BY 1", "count": 31, "failures": 0, "meanMs": 84.2, "p99Ms": 120.0, "maxMs": 131.0, "sharePercent": 5.0}
    ]);
    value["events"] = json!([
        {"sequence": 0, "at": "2026-11-29T18:30:00.000Z", "kind": "started", "level": "info", "text": "millpond 0.1.0 started"},
        {"sequence": 328, "at": "2026-11-29T18:35:28.120Z", "kind": "retried", "level": "warning", "text": "a statement was retried: 40001 (rolled back)"},
        {"sequence": 358, "at": "2026-11-29T18:35:58.001Z", "kind": "leak", "level": "error", "text": "connection 5 is held longer than 60 s by thread reports, checked out at src/reports/monthly.rs:88:21"}
    ]);
    value["advice"] = json!([
        {"kind": "pool-too-small", "text": "Threads wait for connections although the server has room: raise DB_POOL_MAX.", "reason": "In the last 5 minutes 12 % of the seconds had threads in line, and the server has 60 connections left.", "setting": "DB_POOL_MAX"}
    ]);
    parsed(value)
}

/// More and more statements for a while, with threads in line at the height of it.
fn second(number: u64) -> Value {
    let rush = 60_u64.saturating_sub(number.abs_diff(330));
    let noise = number * 7919 % 13;
    let load = 30 + 2 * noise + 5 * rush;
    let waiting = rush.saturating_sub(40) / 2;
    let wait = (waiting > 0).then_some(waiting as f64 * 4.5);
    let p99 = 2.0 + noise as f64 / 4.0 + rush as f64 / 2.0;
    let failed = u64::from(rush > 55 && number.is_multiple_of(2));
    let p50 = 0.4 + noise as f64 / 100.0 + rush as f64 / 20.0;
    json!([
        7,
        4,
        1,
        20,
        waiting,
        wait,
        wait,
        p50,
        p99,
        load,
        load / 3,
        failed,
        u64::from(rush > 50)
    ])
}

/// The same with texts that would rather be obeyed than read.
pub(super) fn hostile() -> Reading {
    let evil = "\u{1b}[2J\u{1b}]0;owned\u{7}\u{9b}5m\r\n\t\u{202e}日本語\0\u{200b} DROP";
    let mut value = base();
    for field in ["timestamp", "startedAt", "application", "release"] {
        value[field] = json!(evil);
    }
    value["state"] = json!({"name": evil, "healthy": false, "sentence": evil});
    value["server"] =
        json!({"maxConnections": u64::MAX, "usedConnections": u64::MAX, "availableConnections": 0});
    value["pool"] = json!({"idle": u64::MAX, "active": u64::MAX, "opening": u64::MAX, "waiting": u64::MAX, "max": 0});
    value["standbys"] = json!([{"host": evil, "state": evil, "lagMs": 1e300, "error": evil}]);
    value["history"] = json!({"stepMs": 0, "first": u64::MAX, "fields": ["waiting", evil, "statements"], "samples": [[], [1e300], [-1e300, null, 1e300], [null, null, null, 3]]});
    value["holders"] = json!([{"connection": u64::MAX, "place": evil, "thread": evil, "heldMs": 1e300, "statement": evil.repeat(5000), "running": true, "statementMs": -1.0, "leaked": true}]);
    value["statements"] = json!({"minutes": u64::MAX, "list": [{"sql": evil, "count": u64::MAX, "failures": 1, "meanMs": null, "p99Ms": null, "maxMs": null, "sharePercent": 1e300}]});
    value["events"] =
        json!([{"sequence": u64::MAX, "at": evil, "kind": evil, "level": evil, "text": evil}]);
    value["advice"] = json!([{"kind": evil, "text": evil, "reason": evil, "setting": evil}]);
    parsed(value)
}
