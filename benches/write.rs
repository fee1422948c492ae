//! A write over HTTP that is done once for its key, beside the same statements run by PostgreSQL's
//! own load generator.
//!
//! `cargo bench --bench write` prints medians of five rounds, in which the contenders run one after
//! the other. It needs `pgbench`.

mod measure;

use measure::{Figures, over_http};
use millpond::Pool;
use millpond::config::HttpConfig;
use millpond::embedded::{Options, PrivateServer};
use millpond::server::{DatabaseKind, Router, Server};
use millpond::studio::Studio;
use postgres::{Client, NoTls};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(4);
const CLIENTS: usize = 16;

/// The statements of `POST /api/reservations` in their three flights: BEGIN and the claim of the
/// key, the reservation, what finishes the claim and COMMIT. pgbench makes up its own keys and
/// times.
const BEGIN: &str = "BEGIN
SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_current_xact_id()::text END AS xid, pg_backend_pid() AS pid, current_setting('synchronous_commit') AS synchronous_commit, current_setting('client_min_messages') AS client_min_messages, set_config('statement_timeout', '29000', true), set_config('millpond.session_authorization', current_setting('session_authorization'), true), set_config('millpond.role', current_setting('role'), true), set_config('millpond.lock_timeout', current_setting('lock_timeout'), true), set_config('lock_timeout', '14000', true)
INSERT INTO millpond.ledger AS entry (key, attempt, state) VALUES (encode(sha256((:n)::text::bytea), 'hex'), gen_random_uuid(), 'done') ON CONFLICT (key) DO UPDATE SET attempt = excluded.attempt, state = 'done', answer = NULL, at = now() WHERE entry.state = 'aborted' RETURNING attempt::text AS claimed
SELECT set_config('lock_timeout', current_setting('millpond.lock_timeout'), true), state, attempt::text AS attempt, encode(answer, 'hex') AS answer FROM (VALUES (1)) AS always LEFT JOIN millpond.ledger ON key = encode(sha256((:n)::text::bytea), 'hex')";
const RESERVE: &str = "INSERT INTO studio.reservations (studio_id, customer, starts_at, ends_at) SELECT 1, 'Ada Lovelace', at, at + interval '30 minutes' FROM (SELECT timestamptz '2030-01-01 00:00Z' + nextval('half_hours') * interval '30 minutes' AS at) AS next RETURNING id, studio_id, customer, starts_at, ends_at, status, created_at";
const COMMIT: &str = "SELECT CASE WHEN pg_current_xact_id_if_assigned() IS NULL THEN current_setting('millpond.transaction_ended_inside') END, set_config('millpond.closure_authorization', current_setting('session_authorization'), true), set_config('millpond.closure_role', current_setting('role'), true), set_config('session_authorization', current_setting('millpond.session_authorization'), true), set_config('role', current_setting('millpond.role'), true)
UPDATE millpond.ledger SET answer = decode(repeat('7b', 400), 'hex'), at = clock_timestamp() WHERE key = encode(sha256((:n)::text::bytea), 'hex')
SELECT set_config('session_authorization', current_setting('millpond.closure_authorization'), true), set_config('role', current_setting('millpond.closure_role'), true)
COMMIT";
const FLIGHTS: [&str; 3] = [BEGIN, RESERVE, COMMIT];

/// Has pgbench run the flights, each in one message or in one pipeline.
fn pgbench(url: &str, dir: &Path, mode: &str) -> Figures {
    let script = FLIGHTS.map(|flight| match mode {
        "simple" => flight.replace('\n', " \\;\n") + ";\n",
        _ if flight.contains('\n') => {
            let statements = flight.replace('\n', ";\n");
            format!("\\startpipeline\n{statements};\n\\endpipeline\n")
        }
        _ => format!("{flight};\n"),
    });
    let script = format!("\\set n random(1, 9000000000000000)\n{}", script.concat());
    let file = dir.join("flights.sql");
    std::fs::write(&file, script).expect("a file");
    for old in std::fs::read_dir(dir).expect("a directory").flatten() {
        if old.file_name().to_string_lossy().starts_with("took") {
            std::fs::remove_file(old.path()).expect("an old log");
        }
    }
    let run = Command::new("pgbench")
        .current_dir(dir)
        .args(["-n", "-l", "--log-prefix=took", "-j", "2", "-M", mode])
        .args(["-c", &CLIENTS.to_string()])
        .args(["-T", &ROUND.as_secs().to_string()])
        .arg("-f")
        .args([&file])
        .arg(url)
        .output()
        .expect("pgbench");
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "pgbench: {said}");
    let mut latencies = Vec::new();
    for log in std::fs::read_dir(dir).expect("a directory").flatten() {
        if log.file_name().to_string_lossy().starts_with("took") {
            let log = std::fs::read_to_string(log.path()).expect("a log");
            // The client, its transaction, the microseconds that it took, and more.
            let took = log.lines().filter_map(|line| line.split(' ').nth(2));
            latencies.extend(took.map(|us| us.parse::<f64>().expect("a number") / 1e3));
        }
    }
    Figures::of(latencies, ROUND, Duration::ZERO)
}

/// Makes reservations, each with a key of its own.
fn reserve(addr: SocketAddr, next: &AtomicUsize) -> Figures {
    let request = |_, _| reservation(next.fetch_add(1, Ordering::Relaxed));
    over_http(addr, CLIENTS, ROUND, request, " 201 ")
}

/// A request for the nth half hour.
fn reservation(n: usize) -> (String, String) {
    let (day, half) = (n / 48, n % 48);
    let (year, day) = (2030 + day / 336, day % 336);
    let (month, day, hour) = (1 + day / 28, 1 + day % 28, half / 2);
    let at = format!("{year}-{month:02}-{day:02}T{hour:02}");
    let (starts, ends) = match half % 2 {
        0 => ("00:00", "30:00"),
        _ => ("30:00", "59:59"),
    };
    let body = format!(
        r#"{{"studioId":1,"customer":"Ada Lovelace","startsAt":"{at}:{starts}Z","endsAt":"{at}:{ends}Z"}}"#
    );
    let head = format!(
        "POST /api/reservations HTTP/1.1\r\nContent-Type: application/json\r\n\
         Idempotency-Key: bench-{n}\r\n"
    );
    (head, body)
}

fn main() {
    // `cargo test --benches` runs this too, only to see that it starts; `cargo bench` passes
    // --bench.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    println!(
        "POST /api/reservations with a key each, {CLIENTS} clients, medians of {ROUNDS} rounds of {ROUND:?}"
    );
    println!("  millpond          its defaults; each request is one transaction in three flights");
    println!(
        "  pgbench           the same statements in the same three flights, 2 threads, no HTTP:"
    );
    println!(
        "    simple          each flight one message, which is parsed and planned (-M simple)"
    );
    println!(
        "    prepared        each statement prepared once, as millpond does (-M prepared, pipelined)"
    );
    for durable in [false, true] {
        let switch = if durable { "on" } else { "off" };
        let mut options = Options::temporary();
        if durable {
            for name in ["fsync", "synchronous_commit", "full_page_writes"] {
                options = options.setting(name, switch);
            }
        }
        let server = PrivateServer::start(options).expect("PostgreSQL");
        println!("\nsynchronous_commit={switch}");
        run(&(server.url() + "?sslmode=disable"));
    }
}

fn run(url: &str) {
    let pool = Pool::builder().database_url(url).build().expect("pool");
    let studio = Studio::new(pool.clone(), "EUR");
    studio.migrate().expect("the schema");
    let mut admin = Client::connect(url, NoTls).expect("connection");
    admin
        .batch_execute("CREATE SEQUENCE half_hours START 10000000")
        .expect("a sequence");
    let mut config = HttpConfig::default();
    config.addr.set_port(0);
    let router = studio.routes(Router::new());
    let server = Server::start(config, pool, router, DatabaseKind::Private).expect("server");
    let dir = tempfile::tempdir().expect("a directory");
    let next = AtomicUsize::new(0);
    let contenders: [(&str, &dyn Fn() -> Figures); 3] = [
        ("millpond", &|| reserve(server.addr(), &next)),
        ("pgbench, simple", &|| pgbench(url, dir.path(), "simple")),
        ("pgbench, prepared", &|| {
            pgbench(url, dir.path(), "prepared")
        }),
    ];
    let mut rounds = contenders.map(|_| Vec::new());
    for _ in 0..ROUNDS {
        for (rounds, (_, contender)) in rounds.iter_mut().zip(&contenders) {
            // Each begins with empty tables.
            admin
                .batch_execute(
                    "SET client_min_messages = warning; \
                     TRUNCATE studio.reservations CASCADE; TRUNCATE millpond.ledger; CHECKPOINT",
                )
                .expect("TRUNCATE");
            rounds.push(contender());
        }
    }
    let medians = rounds.map(|rounds| Figures::medians(&rounds));
    println!("                      writes/s    p50 ms    p99 ms    max ms   of simple");
    for ((name, _), f) in contenders.iter().zip(medians) {
        println!(
            "  {name:<18} {:>9.0} {:>9.2} {:>9.2} {:>9.2} {:>11.2}",
            f.rate,
            f.p50_ms,
            f.p99_ms,
            f.max_ms,
            f.rate / medians[1].rate
        );
    }
    server.shut_down(Duration::ZERO, Duration::from_secs(10));
}
