//! Reservations from a CSV file: all lines are imported, or none.

use super::{Served, count, date, kind, served};
use crate::http::Answer;
use crate::support::eventually;
use serde_json::{Value, json};
use std::thread;

const CSV: &str = "Content-Type: text/csv; charset=utf-8\r\n";
const HEADER: &str = "studioId,customer,startsAt,endsAt\n";
const RESERVATIONS: &str = "SELECT count(*) FROM studio.reservations";

fn import(served: &Served, content: &str) -> Answer {
    served.ask("POST", "/api/reservations/import", CSV, content)
}

/// Line and detail of each listed error.
fn bad_lines(answer: &Answer) -> Vec<(u64, String)> {
    let problem = answer.json();
    let errors = problem["errors"]
        .as_array()
        .unwrap_or_else(|| panic!("{answer:?}"));
    let line = |e: &Value| {
        (
            e["line"].as_u64().unwrap(),
            e["detail"].as_str().unwrap().to_owned(),
        )
    };
    errors.iter().map(line).collect()
}

fn line(n: usize) -> String {
    let (day, hour) = (date(n / 20), n % 20);
    format!(
        "{},Customer {n},{day}T{hour:02}:00:00Z,{day}T{hour:02}:45:00+00:00\n",
        n % 3 + 1
    )
}

#[test]
fn ten_thousand_lines_are_reserved_once() {
    let (db, served) = served();
    let content: String = HEADER.to_owned() + &(0..10_000).map(line).collect::<String>();
    let headers = format!("{CSV}Idempotency-Key: import-1\r\n");
    let ask = || served.ask("POST", "/api/reservations/import", &headers, &content);
    let done = ask();
    assert_eq!(
        (done.status, done.body.as_str()),
        (201, r#"{"imported":10000}"#)
    );
    let again = ask();
    assert_eq!(
        (again.status, again.header("Idempotency-Replayed")),
        (201, Some("true"))
    );
    assert_eq!(count(&db.url, RESERVATIONS), 10_000);
    let first = served.get("/api/reservations/1").json();
    assert_eq!(
        (&first["customer"], &first["startsAt"]),
        (&json!("Customer 0"), &json!("2030-01-01T00:00:00Z"))
    );
    // Without the key, the time of every line is taken already.
    let taken = import(&served, &content);
    assert_eq!((taken.status, kind(&taken).as_str()), (409, "overlap"));
    assert_eq!(
        (bad_lines(&taken).len(), &taken.json()["badLines"]),
        (100, &json!(10_000))
    );
}

#[test]
fn one_bad_line_and_none_is_reserved() {
    let (db, served) = served();
    let good = line(0);
    let long = "x".repeat(201);
    for bad in [
        "1,Ada,2030-01-02T10:00:00Z",
        "1,Ada,2030-01-02T10:00:00Z,2030-01-02T11:00:00Z,more",
        "0,Ada,2030-01-02T10:00:00Z,2030-01-02T11:00:00Z",
        "x,Ada,2030-01-02T10:00:00Z,2030-01-02T11:00:00Z",
        "99999999999999999999,Ada,2030-01-02T10:00:00Z,2030-01-02T11:00:00Z",
        "99,Ada,2030-01-02T10:00:00Z,2030-01-02T11:00:00Z",
        "1,,2030-01-02T10:00:00Z,2030-01-02T11:00:00Z",
        &format!("1,{long},2030-01-02T10:00:00Z,2030-01-02T11:00:00Z"),
        "1,\"a\nb\",2030-01-02T10:00:00Z,2030-01-02T11:00:00Z",
        "1,Ada,2030-01-02T10:00:00,2030-01-02T11:00:00Z",
        "1,Ada,2030-01-02T10:00:00Z,2030-01-02T10:00:00Z",
    ] {
        let answer = import(&served, &format!("{HEADER}{good}{bad}\n"));
        assert_eq!(
            (answer.status, kind(&answer).as_str()),
            (422, "invalid-fields"),
            "{bad} {answer:?}"
        );
        let lines: Vec<u64> = bad_lines(&answer).iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [3], "{bad}");
    }
    // Lines are numbered as in an editor, whatever the line ends and the number of blank lines.
    for (content, bad) in [
        (
            format!("{HEADER}{good}1,Ada,x,y\n").replace('\n', "\r\n"),
            3,
        ),
        (format!("{HEADER}\n\n{good}\n1,Ada,x,y\n"), 6),
        (
            format!("{HEADER}1,\"Ada\",2030-01-02T10:00:00Z,2030-01-02T11:00:00Z\r\n\r\n1,Ada,x,y"),
            4,
        ),
        (
            format!("{HEADER}1,Z,0000-05-01T00:00:00Z,0000-05-02T00:00:00Z"),
            2,
        ),
    ] {
        let answer = import(&served, &content);
        assert_eq!(answer.status, 422, "{content:?} {answer:?}");
        assert_eq!(bad_lines(&answer)[0].0, bad, "{content:?}");
    }
    // Two lines of the same file may not overlap either.
    let twice = import(&served, &format!("{HEADER}{good}{}{good}", line(1)));
    assert_eq!((twice.status, kind(&twice).as_str()), (409, "overlap"));
    assert_eq!(bad_lines(&twice)[0].0, 4);
    // All wrong lines are counted, and the first hundred are listed one by one.
    let many = HEADER.to_owned() + &"1,Ada,x,y\n".repeat(250);
    let answer = import(&served, &many);
    let lines: Vec<u64> = bad_lines(&answer).iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, (2..102).collect::<Vec<_>>());
    assert_eq!(answer.json()["badLines"], 250);
    assert_eq!(count(&db.url, RESERVATIONS), 0);
}

#[test]
fn what_is_no_such_file_is_told_what_one_is() {
    let (db, served) = served();
    for content in [
        "",
        "a,b\n1,2\n",
        "customer,studioId,startsAt,endsAt\n",
        HEADER,
        &line(0),
    ] {
        let answer = import(&served, content);
        assert_eq!(
            (answer.status, kind(&answer).as_str()),
            (422, "invalid-fields"),
            "{content}"
        );
        assert!(!bad_lines(&answer)[0].1.is_empty());
    }
    let path = "/api/reservations/import";
    let content = HEADER.to_owned() + &line(0);
    assert_eq!(served.ask("POST", path, super::JSON, &content).status, 415);
    let other = served.ask("GET", path, "", "");
    assert_eq!((other.status, other.header("Allow")), (405, Some("POST")));
    let latin = [
        content.as_bytes(),
        b"1,\xe9,2030-01-02T10:00:00Z,2030-01-02T11:00:00Z\n",
    ]
    .concat();
    let answer = crate::http::Client::to(served.addr).ask("POST", path, CSV, &latin);
    assert_eq!(answer.status, 400);
    assert_eq!(count(&db.url, RESERVATIONS), 0);
    // With a byte order mark and the line ends that spreadsheets write.
    let spreadsheet = format!("\u{feff}{}", content.replace('\n', "\r\n"));
    assert_eq!(import(&served, &spreadsheet).status, 201);
}

#[test]
fn of_two_files_with_the_same_lines_one_is_taken_and_the_other_told_which() {
    let (db, served) = served();
    let content = HEADER.to_owned() + &(0..20).map(line).collect::<String>();
    let mut holder = db.admin();
    // Both imports check whether the times are free, and then wait.
    holder
        .batch_execute("BEGIN; LOCK TABLE studio.reservations IN SHARE ROW EXCLUSIVE MODE")
        .unwrap();
    let mut answers = thread::scope(|scope| {
        let ask = || import(&served, &content);
        let asked = [scope.spawn(ask), scope.spawn(ask)];
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'studio.reservations'::regclass";
        eventually("both wait", || count(&db.url, waiting) == 2);
        holder.batch_execute("COMMIT").unwrap();
        asked.map(|a| a.join().unwrap())
    });
    answers.sort_by_key(|answer| answer.status);
    assert_eq!(
        (answers[0].status, answers[1].status),
        (201, 409),
        "{answers:?}"
    );
    assert_eq!(
        (bad_lines(&answers[1]).len(), &answers[1].json()["badLines"]),
        (20, &json!(20))
    );
    assert_eq!(count(&db.url, RESERVATIONS), 20);
}

#[test]
fn a_line_that_no_reservation_could_be_is_not_taken_apart() {
    let (_db, served) = served();
    let file = format!(
        "{HEADER}1,Ada,2030-01-02T10:00:00Z,2030-01-02T12:00:00Z\r\n{}\n",
        ",".repeat(100_000)
    );
    let answer = import(&served, &file);
    assert_eq!(answer.status, 422);
    assert_eq!(
        answer.json()["errors"],
        json!([{ "line": 3, "detail": "is longer than 8192 bytes" }])
    );
}
