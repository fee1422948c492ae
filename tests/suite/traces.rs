//! What a tracing system is told: fields of log lines by OpenTelemetry's names.

use super::cli::{Serving, serve};
use super::commit::COMMITTED;
use super::http;
use super::proxy::{Act, Proxy};
use super::support::{Database, MS, database, eventually, log_fields, log_lines, pool, server};
use millpond::Traceparent;
use millpond::config::Pooler;
use millpond::embedded::PrivateServer;
use postgres::Client;
use serde_json::Value;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::Path;

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

/// The program on a database, with a JSON log that knows slow statements.
fn serve_studio(db: &Database, dir: &Path, sqlcommenter: &str) -> (Serving, SocketAddr) {
    let vars = [
        ("DATABASE_URL", &*db.url),
        ("LOG_FORMAT", "json"),
        ("LOG_LEVEL", "debug"),
        ("DB_SQLCOMMENTER", sqlcommenter),
        ("DB_SLOW_QUERY_MS", "100"),
    ];
    let serving = serve(dir, &vars);
    let addr = ([127, 0, 0, 1], serving.port).into();
    eventually("the schema is there", || {
        http::get(addr, "/health/ready").status == 200
    });
    (serving, addr)
}

#[test]
fn a_json_line_has_its_figures_as_fields_by_their_opentelemetry_names() {
    let (db, dir) = (database(), tempfile::TempDir::new().unwrap());
    let (serving, addr) = serve_studio(&db, dir.path(), "off");
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
    let took = slow["db.operation.duration"].as_f64().unwrap();
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
                "SELECT pg_sleep(0.1) AS code_of_a_retry; \
                 DO $$ BEGIN RAISE EXCEPTION 'code_of_a_retry' USING ERRCODE = '40001'; END $$",
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
    let text = "SELECT pg_sleep(?) AS code_of_a_retry; DO ?";
    assert_eq!(slow["db.query.text"], text);
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// A `traceparent` of this trace, with a span for each test.
fn parent(span: u64) -> Traceparent {
    format!("00-{TRACE}-{span:016x}-01").parse().unwrap()
}

fn comment(span: u64) -> String {
    format!(" /*traceparent='{}'*/", parent(span))
}

/// What the database says that this connection is doing: its statement's text as it was sent.
const WHAT_I_RUN: &str = "SELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid()";

#[test]
fn the_database_sees_for_which_request_a_statement_is() {
    let db = database();
    let ways = [
        db.pool(),
        db.pool().statement_cache(0),
        db.pool().pooler(Pooler::On),
    ];
    for way in ways {
        let pool = way.max_size(1).sqlcommenter(true).build().unwrap();
        let call = pool.call().traceparent(parent(1));
        let comment = comment(1);
        let seen: String = call.query_scalar(WHAT_I_RUN, &[]).unwrap();
        assert_eq!(seen, format!("{WHAT_I_RUN}{comment}"));
        let with_parameter = format!("{WHAT_I_RUN} AND $1 = $1::int8");
        for n in 0..3_i64 {
            let rows = call.read(&with_parameter, &[&n]).unwrap();
            let seen: String = rows[0].get(0);
            assert_eq!(seen, format!("{with_parameter}{comment}"));
        }
        let mut each = Vec::new();
        call.query_each(WHAT_I_RUN, &[], |row| {
            each.push(row.get::<_, String>(0));
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        assert!(each.len() == 1 && each[0].ends_with(&comment), "{each:?}");
        let bare: String = pool.query_scalar(WHAT_I_RUN, &[]).unwrap();
        assert_eq!(bare, WHAT_I_RUN);
    }
    // Without the option, the text is the bare one.
    let off = db.pool().max_size(1).build().unwrap();
    let call = off.call().traceparent(parent(1));
    let seen: String = call.query_scalar(WHAT_I_RUN, &[]).unwrap();
    assert_eq!(seen, WHAT_I_RUN);
}

#[test]
fn the_statements_that_are_kept_are_those_of_the_bare_texts() {
    let db = database();
    let pool = db.pool().max_size(1).sqlcommenter(true).build().unwrap();
    let kept = || -> Vec<String> {
        let sql = "SELECT statement FROM pg_prepared_statements ORDER BY 1";
        let rows = pool.get().unwrap().simple_query(sql).unwrap();
        let texts = rows.iter().filter_map(|message| match message {
            postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        texts.collect()
    };
    let sql = "SELECT $1::int8 + 1";
    for n in 0..20 {
        let call = pool.call().traceparent(parent(n + 1));
        let n = i64::try_from(n).unwrap();
        assert_eq!(call.query_scalar::<i64>(sql, &[&n]).unwrap(), n + 1);
    }
    assert!(kept().is_empty(), "{:?}", kept());
    // Behind the comment, the same text is prepared and used as ever.
    assert_eq!(pool.query_scalar::<i64>(sql, &[&1_i64]).unwrap(), 2);
    let call = pool.call().traceparent(parent(1));
    assert_eq!(call.query_scalar::<i64>(sql, &[&1_i64]).unwrap(), 2);
}

#[test]
fn a_statement_with_a_comment_follows_a_table_that_is_altered() {
    let db = database();
    let pool = db.pool().max_size(1).sqlcommenter(true).build().unwrap();
    db.admin()
        .batch_execute("CREATE TYPE mood AS ENUM ('calm'); CREATE TABLE t (n int, m mood); INSERT INTO t VALUES (1, 'calm')")
        .unwrap();
    let call = pool.call().traceparent(parent(2));
    let sql = "SELECT * FROM t WHERE n = $1";
    assert_eq!(call.query(sql, &[&1_i32]).unwrap()[0].len(), 2);
    db.admin()
        .batch_execute("ALTER TABLE t ALTER n TYPE int8, ADD more text")
        .unwrap();
    assert_eq!(call.query(sql, &[&1_i64]).unwrap()[0].len(), 3);
    assert_eq!(pool.query(sql, &[&1_i64]).unwrap()[0].len(), 3);
}

#[test]
fn a_comment_changes_no_text_that_has_one_and_none_that_ends_oddly() {
    let db = database();
    let pool = db.pool().max_size(1).sqlcommenter(true).build().unwrap();
    let call = pool.call().traceparent(parent(3));
    let seen = |behind: &str| -> String {
        let sql = format!("{WHAT_I_RUN}{behind}");
        call.query_scalar(&sql, &[]).unwrap()
    };
    for own in [
        " -- the end",
        " /* the end */",
        " /* a /* nested */ one */",
        " -- /* ",
        " --\r AND '--' <> '/*'",
        " AND 1 -/**/1 = 0",
    ] {
        assert_eq!(seen(own), format!("{WHAT_I_RUN}{own}"));
    }
    for plain in [
        ";",
        " ; ;",
        "\n",
        " AND '--' = '--'",
        " AND $a$/* $b$ -- $a$ <> '*/'",
        " AND E'\\'--' <> ''",
        " AND U&'--' <> \"query\"",
    ] {
        assert_eq!(seen(plain), format!("{WHAT_I_RUN}{plain}{}", comment(3)));
    }
    // What is refused without a comment is refused with one.
    for broken in [
        "SELECT 'a",
        "SELECT \"a",
        "SELECT $$a",
        "SELECT /* a",
        "SELECT E'a\\'",
    ] {
        assert!(call.query(broken, &[]).is_err(), "{broken}");
        assert!(call.batch_execute(broken).is_err(), "{broken}");
    }
    assert_eq!(pool.query_scalar::<i32>("SELECT 1", &[]).unwrap(), 1);
}

/// The statements that the database has logged for a span, as they were sent.
fn logged(server: &PrivateServer, span: u64) -> Vec<String> {
    let log = server.log();
    let lines = log
        .lines()
        .filter(|line| line.contains(&comment(span)[1..]));
    lines.map(str::to_owned).collect()
}

#[test]
fn a_transaction_is_commented_from_its_begin_to_its_commit() {
    let server = server(&[("log_statement", "all")]);
    let pool = pool(&server.url())
        .max_size(1)
        .sqlcommenter(true)
        .build()
        .unwrap();
    pool.batch_execute("CREATE TABLE t (n int)").unwrap();
    let call = pool.call().traceparent(parent(4));
    call.transaction(|tx| -> millpond::Result<_> {
        tx.execute("INSERT INTO t VALUES ($1)", &[&1])?;
        tx.batch_execute("UPDATE t SET n = 2; UPDATE t SET n = 3")?;
        tx.copy_in("COPY t FROM STDIN", |to| Ok(to.write_all(b"4\n")?))?;
        let mut copied = String::new();
        tx.copy_out("COPY t TO STDOUT", |from| {
            from.read_to_string(&mut copied)?;
            Ok(())
        })?;
        assert_eq!(copied, "3\n4\n");
        tx.savepoint(|tx| tx.execute("DELETE FROM t WHERE n = 4", &[]))
    })
    .unwrap();
    let all = [
        "BEGIN /*",
        "pg_current_xact_id",
        "INSERT INTO t",
        "UPDATE t SET n = 2; UPDATE t SET n = 3",
        "COPY t FROM",
        "COPY t TO",
        "SAVEPOINT",
        "DELETE FROM t",
        "RELEASE",
        "COMMIT /*",
    ];
    let found = || {
        let log = logged(&server, 4);
        let is_there = |text: &&str| log.iter().any(|line| line.contains(*text));
        all.into_iter().filter(is_there).count()
    };
    eventually("all of it is logged with the comment", || {
        found() == all.len()
    });
    assert_eq!(
        pool.query_scalar::<i32>("SELECT sum(n)::int4 FROM t", &[])
            .unwrap(),
        3
    );
}

#[test]
fn the_lines_about_a_call_name_its_trace() {
    let db = database();
    let proxy = Proxy::in_front_of(db.port);
    db.admin().batch_execute("CREATE TABLE t (n int)").unwrap();
    let pool = pool(&proxy.url(&db.url))
        .max_size(2)
        .slow_query(50 * MS)
        .build()
        .unwrap();
    let mut attempts = 0;
    pool.call()
        .traceparent(parent(5))
        .transaction(|tx| -> millpond::Result<_> {
            attempts += 1;
            tx.query("SELECT pg_sleep(0.1) AS of_a_span", &[])?;
            match attempts {
                1 => tx.batch_execute(
                    "DO $$ BEGIN RAISE EXCEPTION 'of_a_span' USING ERRCODE = '40001'; END $$",
                ),
                _ => {
                    tx.execute("INSERT INTO t VALUES (1)", &[])?;
                    proxy.on_answer(COMMITTED, Act::Lose);
                    Ok(())
                }
            }
        })
        .unwrap();
    let span = format!("{:016x}", 5);
    let of_ours = |needle: &str| {
        let mut lines = log_fields(needle).into_iter();
        lines.any(|line| {
            let has = |name: &str, value: &str| line.get(name).is_some_and(|v| v == value);
            has("trace_id", TRACE) && has("span_id", &span) && has("trace_flags", "01")
        })
    };
    for needle in [
        "slow statement",
        "retrying attempt=1",
        "lost commit outcome=committed",
    ] {
        assert!(of_ours(needle), "{needle}");
    }
    // The next call on the same connection is another one.
    pool.query("SELECT pg_sleep(0.1) AS of_no_span", &[])
        .unwrap();
    let fields = log_fields("of_no_span");
    assert!(!fields.is_empty() && fields.iter().all(|line| !line.contains_key("trace_id")));
}

#[test]
fn a_requests_traceparent_reaches_the_log_and_the_database() {
    let (db, dir) = (database(), tempfile::TempDir::new().unwrap());
    let (serving, addr) = serve_studio(&db, dir.path(), "on");
    let (mut holder, mut admin) = (db.admin(), db.admin());
    let mut lock = holder.transaction().unwrap();
    lock.batch_execute("LOCK TABLE studio.studios").unwrap();
    let header = format!("traceparent: {}\r\n", parent(6));
    let asked = std::thread::spawn(move || {
        let mut client = http::Client::to(addr);
        client.ask("GET", "/api/studios", &header, b"").status
    });
    let sql = "SELECT query FROM pg_stat_activity \
               WHERE datname = current_database() AND wait_event_type = 'Lock'";
    // The view may show the statement before it beside what it waits for.
    eventually("the statement waits for the lock, with its comment", || {
        let row = admin.query_opt(sql, &[]).unwrap();
        row.is_some_and(|row| row.get::<_, &str>(0).ends_with(&comment(6)))
    });
    std::thread::sleep(150 * MS);
    lock.commit().unwrap();
    assert_eq!(asked.join().unwrap(), 200);

    // What is malformed, or comes twice, is no error, and is not used.
    let good = parent(7).to_string();
    for bad in [
        format!("traceparent: {}\r\n", good.to_uppercase()),
        format!("traceparent: ff{}\r\n", &good[2..]),
        "traceparent: '; DROP TABLE studios; --\r\n".to_owned(),
        "traceparent:\r\n".to_owned(),
        format!("traceparent: {good}\r\nTraceParent: {good}\r\n"),
    ] {
        let mut client = http::Client::to(addr);
        let answer = client.ask("GET", "/api/quotes", &bad, b"");
        assert_eq!(answer.status, 200, "{bad}");
    }
    eventually("all are logged", || {
        let log = serving.log();
        json_lines(&log, "GET /api/quotes").len() == 5 && log.contains("slow statement")
    });
    let log = serving.log();
    for needle in ["slow statement", "GET /api/studios"] {
        let line = &json_lines(&log, needle)[0];
        assert_eq!(line["trace_id"], TRACE, "{line}");
        assert_eq!(line["span_id"], format!("{:016x}", 6), "{line}");
        assert_eq!(line["trace_flags"], "01", "{line}");
    }
    for line in json_lines(&log, "GET /api/quotes") {
        assert!(line.get("trace_id").is_none(), "{line}");
    }
}
