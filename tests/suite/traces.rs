//! What a tracing system is told: fields of log lines by OpenTelemetry's names.

use super::cli::serve;
use super::http;
use super::support::{MS, database, eventually, log_fields, log_lines};
use postgres::Client;
use serde_json::Value;

/// The fields of the JSON log lines whose message contains `needle`.
fn json_lines(log: &str, needle: &str) -> Vec<Value> {
    let lines = log
        .lines()
        .map(|line| serde_json::from_str(line).expect(line));
    let is_it = |line: &Value| line["message"].as_str().unwrap().contains(needle);
    lines.filter(is_it).collect()
}

/// Waits until a statement of another session waits for a lock.
fn something_is_blocked(admin: &mut Client) {
    let sql = "SELECT count(*) FROM pg_stat_activity \
               WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually("a statement waits for a lock", || {
        admin.query_one(sql, &[]).unwrap().get::<_, i64>(0) > 0
    });
}

#[test]
fn a_json_line_has_its_figures_as_fields_by_their_opentelemetry_names() {
    let db = database();
    let dir = tempfile::TempDir::new().unwrap();
    let vars = [
        ("DATABASE_URL", &*db.url),
        ("LOG_FORMAT", "json"),
        ("LOG_LEVEL", "debug"),
        ("DB_SLOW_QUERY_MS", "100"),
    ];
    let serving = serve(dir.path(), &vars);
    let addr = ([127, 0, 0, 1], serving.port).into();
    eventually("the schema is there", || {
        http::get(addr, "/health/ready").status == 200
    });
    let (mut holder, mut admin) = (db.admin(), db.admin());
    let mut lock = holder.transaction().unwrap();
    lock.batch_execute("LOCK TABLE studio.studios").unwrap();
    let asked = std::thread::spawn(move || http::get(addr, "/api/studios").status);
    something_is_blocked(&mut admin);
    std::thread::sleep(150 * MS);
    lock.commit().unwrap();
    assert_eq!(asked.join().unwrap(), 200);
    eventually("both are logged", || {
        let log = serving.log();
        log.contains("slow statement") && log.contains("GET /api/studios")
    });
    let log = serving.log();

    let slow = &json_lines(&log, "slow statement")[0];
    assert_eq!(slow["db.system.name"], "postgresql");
    let took = slow["db.client.operation.duration"].as_f64().unwrap();
    assert!((0.1..60.0).contains(&took), "{slow}");
    let text = slow["db.query.text"].as_str().unwrap();
    assert!(text.contains("studios"), "{slow}");

    let access = &json_lines(&log, "GET /api/studios")[0];
    assert_eq!(access["http.request.method"], "GET");
    assert_eq!(access["http.route"], "/api/studios");
    assert_eq!(access["url.path"], "/api/studios");
    assert_eq!(access["http.response.status_code"], 200);
    assert_eq!(access["client.address"], "127.0.0.1");
    let took = access["http.server.request.duration"].as_f64().unwrap();
    assert!((0.1..60.0).contains(&took), "{access}");
}

#[test]
fn a_text_line_has_no_fields() {
    let db = database();
    let dir = tempfile::TempDir::new().unwrap();
    let vars = [("DATABASE_URL", &*db.url), ("LOG_LEVEL", "debug")];
    let serving = serve(dir.path(), &vars);
    let addr = ([127, 0, 0, 1], serving.port).into();
    http::get(addr, "/nowhere");
    let line = || {
        let log = serving.log();
        let line = log.lines().find(|line| line.contains("GET /nowhere"));
        line.map(str::to_owned)
    };
    eventually("it is logged", || line().is_some());
    let line = line().unwrap();
    assert!(line.ends_with(" client=127.0.0.1"), "{line}");
    assert!(!line.contains("http."), "{line}");
}

#[test]
fn a_slow_statement_that_fails_and_a_retry_tell_the_code() {
    let pool = database().pool().slow_query(50 * MS).build().unwrap();
    let mut first = true;
    pool.transaction(|tx| -> millpond::Result<_> {
        if std::mem::take(&mut first) {
            tx.batch_execute(
                "DO $$ BEGIN PERFORM pg_sleep(0.1); \
                 RAISE EXCEPTION 'code_of_a_retry' USING ERRCODE = '40001'; END $$",
            )?;
        }
        Ok(())
    })
    .unwrap();
    let logged = |beginning: &str| {
        let lines = log_lines("code_of_a_retry").into_iter();
        let mut both = lines.zip(log_fields("code_of_a_retry"));
        both.find(|(line, _)| line.starts_with(beginning))
            .unwrap()
            .1
    };
    let (retry, slow) = (logged("INFO retrying"), logged("WARN slow"));
    for line in [&retry, &slow] {
        assert_eq!(line["db.system.name"], "postgresql");
        assert_eq!(line["db.response.status_code"], "40001");
    }
    assert_eq!(retry["error.type"], "40001");
    assert!(slow["db.query.text"].ends_with("END $$"), "{slow:?}");
}
