//! Many rows at once: copied in, read one by one, imported and listed over HTTP, beside what
//! PostgreSQL's own client and the bare driver take for the same.
//!
//! `cargo bench --bench bulk` prints medians of five rounds, in which the contenders run one after
//! the other. It needs `psql`.

mod measure;

use measure::{ask, connect, median, memory};
use millpond::Pool;
use millpond::config::HttpConfig;
use millpond::embedded::{Options, PrivateServer};
use millpond::server::{DatabaseKind, Router, Server};
use millpond::studio::Studio;
use postgres::fallible_iterator::FallibleIterator;
use postgres::{Client, NoTls};
use std::fmt::Write as _;
use std::io::Write;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;
const COPIED: u64 = 1_000_000;
const READ: i32 = 10_000_000;
const IMPORTED: usize = 100_000;
const LISTED: usize = 200;
const LISTS: u32 = 500;
const AGES: Duration = Duration::from_secs(600);

fn seconds(work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    begun.elapsed().as_secs_f64()
}

/// Runs the contenders in turn, and prints the median of each beside that of the last.
fn compare(what: &str, contenders: &mut [(&str, &mut dyn FnMut() -> f64)]) {
    let mut rounds = vec![Vec::new(); contenders.len()];
    for _ in 0..ROUNDS {
        for (rounds, (_, run)) in rounds.iter_mut().zip(&mut *contenders) {
            rounds.push(run());
        }
    }
    let medians: Vec<_> = rounds.into_iter().map(median).collect();
    let last = medians[medians.len() - 1];
    println!("\n{what}");
    for ((name, _), median) in contenders.iter().zip(&medians) {
        println!("  {name:<34} {median:>9.4} s  ({:.2})", median / last);
    }
}

/// Has psql run a command of its own.
fn psql(url: &str, command: &str) {
    let run = Command::new("psql").args([url, "-qXc", command]).status();
    assert!(run.is_ok_and(|status| status.success()), "psql: {command}");
}

/// Begins to look for the most memory anew.
fn forget_most_memory() {
    std::fs::write("/proc/self/clear_refs", "5").expect("/proc");
}

/// Reservations of one studio that follow one another.
fn reservations() -> String {
    let mut csv = "studioId,customer,startsAt,endsAt\n".to_owned();
    for n in 0..IMPORTED {
        let (day, hour) = (n / 24, n % 24);
        let (year, day) = (2030 + day / 336, day % 336);
        let (month, day) = (1 + day / 28, 1 + day % 28);
        let at = format!("{year}-{month:02}-{day:02}T{hour:02}");
        writeln!(csv, "1,Ada Lovelace,{at}:00:00Z,{at}:30:00Z").expect("a string takes it");
    }
    csv
}

fn main() {
    // `cargo test --benches` runs this too, only to see that it starts; `cargo bench` passes
    // --bench.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let server = PrivateServer::start(Options::temporary()).expect("PostgreSQL");
    let url = server.url() + "?sslmode=disable";
    let pool = Pool::builder().database_url(&url);
    let pool = pool.statement_timeout(AGES).query_timeout(AGES);
    let pool = pool.build().expect("pool");
    let mut bare = Client::connect(&url, NoTls).expect("connection");
    println!("medians of {ROUNDS} rounds, and their ratio to the last line");
    copy(&url, &pool, &mut bare);
    read(&pool, &mut bare);
    over_http(&url, &pool, &mut bare);
}

fn copy(url: &str, pool: &Pool, bare: &mut Client) {
    let create = "CREATE TABLE copied (n bigint, name text)";
    bare.batch_execute(create).expect("a table");
    let mut lines = String::new();
    for n in 0..COPIED {
        writeln!(lines, "{n},the name of number {n}").expect("a string takes it");
    }
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("lines.csv");
    std::fs::write(&file, &lines).expect("a file");
    let sql = "COPY copied FROM STDIN (FORMAT csv)";
    let mut ours = || {
        seconds(|| {
            let copied = pool.transaction(|tx| -> millpond::Result<_> {
                tx.copy_in(sql, |out| {
                    out.write_all(lines.as_bytes()).expect("the server reads");
                    Ok(())
                })
            });
            assert_eq!(copied.expect("COPY"), COPIED);
        })
    };
    let mut driver = || {
        seconds(|| {
            let mut writer = bare.copy_in(sql).expect("COPY");
            writer
                .write_all(lines.as_bytes())
                .expect("the server reads");
            assert_eq!(writer.finish().expect("COPY"), COPIED);
        })
    };
    let mut theirs = || seconds(|| psql(url, &copy_command("copied", &file)));
    compare(
        &format!("{COPIED} rows copied in"),
        &mut [
            ("millpond, copy_in", &mut ours),
            ("the bare driver, copy_in", &mut driver),
            ("psql, \\copy", &mut theirs),
        ],
    );
}

fn copy_command(table: &str, file: &Path) -> String {
    format!("\\copy {table} FROM '{}' (FORMAT csv)", file.display())
}

fn read(pool: &Pool, bare: &mut Client) {
    const SQL: &str = "SELECT n, 'a text of some length' FROM generate_series(1, $1::int) AS n";
    forget_most_memory();
    let before = memory("VmHWM");
    let mut ours = || {
        seconds(|| {
            let mut sum = 0;
            let read = pool.query_each(SQL, &[&READ], |row| {
                sum += i64::from(row.get::<_, i32>(0));
                Ok(ControlFlow::Continue(()))
            });
            read.expect("rows");
            assert_eq!(sum, i64::from(READ) * i64::from(READ + 1) / 2);
        })
    };
    let mut driver = || {
        seconds(|| {
            let mut sum = 0;
            let mut rows = bare.query_raw(SQL, [READ]).expect("rows");
            while let Some(row) = rows.next().expect("a row") {
                sum += i64::from(row.get::<_, i32>(0));
            }
            assert_eq!(sum, i64::from(READ) * i64::from(READ + 1) / 2);
        })
    };
    compare(
        &format!("{READ} rows read one by one"),
        &mut [
            ("millpond, query_each", &mut ours),
            ("the bare driver, query_raw", &mut driver),
        ],
    );
    println!(
        "  memory grew by {:.1} MB",
        (memory("VmHWM") - before) / 1e3
    );
}

fn over_http(url: &str, pool: &Pool, bare: &mut Client) {
    let studio = Studio::new(pool.clone(), "EUR");
    studio.migrate().expect("the schema");
    let mut config = HttpConfig::default();
    config.addr.set_port(0);
    config.max_body_bytes = 64 << 20;
    config.request_timeout = AGES;
    config.body_timeout = AGES;
    let router = studio.routes(Router::new());
    let server =
        Server::start(config, pool.clone(), router, DatabaseKind::Private).expect("server");
    let addr: SocketAddr = server.addr();
    let csv = reservations();
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("reservations.csv");
    std::fs::write(&file, csv.split_once('\n').expect("a header").1).expect("a file");
    let columns = "studio.reservations (studio_id, customer, starts_at, ends_at)";
    // It would name each table that refers to this one.
    let clear = "SET client_min_messages = warning; TRUNCATE studio.reservations CASCADE";
    let empty = || psql(url, clear);
    let mut ours = || {
        empty();
        seconds(|| {
            let head = "POST /api/reservations/import HTTP/1.1\r\nContent-Type: text/csv\r\n";
            let (status, _) = ask(&mut connect(addr), head, &csv);
            assert!(status.contains(" 201 "), "{status}");
        })
    };
    let mut theirs = || {
        empty();
        seconds(|| psql(url, &copy_command(columns, &file)))
    };
    compare(
        &format!("{IMPORTED} reservations from a CSV file, none of which may overlap"),
        &mut [
            ("POST /api/reservations/import", &mut ours),
            ("psql, \\copy", &mut theirs),
        ],
    );

    let mut client = connect(addr);
    let head = format!("GET /api/reservations?limit={LISTED} HTTP/1.1\r\n");
    let mut ours = || {
        let all = seconds(|| {
            for _ in 0..LISTS {
                let (status, length) = ask(&mut client, &head, "");
                assert!(
                    status.contains(" 200 ") && length > 100 * LISTED,
                    "{status}"
                );
            }
        });
        all / f64::from(LISTS)
    };
    let sql = format!(
        "SELECT json_agg(row_to_json(page)) FROM \
         (SELECT * FROM studio.reservations ORDER BY id LIMIT {LISTED}) AS page"
    );
    let statement = bare
        .prepare(&format!("SELECT ({sql})::text"))
        .expect("statement");
    let mut theirs = || {
        let all = seconds(|| {
            for _ in 0..LISTS {
                let row = bare.query_one(&statement, &[]).expect("a row");
                assert!(row.get::<_, &str>(0).len() > 100 * LISTED);
            }
        });
        all / f64::from(LISTS)
    };
    compare(
        &format!("a list of {LISTED} reservations as JSON"),
        &mut [
            ("GET /api/reservations", &mut ours),
            ("row_to_json, by the bare driver", &mut theirs),
        ],
    );
    server.shut_down(Duration::ZERO, Duration::from_secs(10));
}
