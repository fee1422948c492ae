//! Too much work: who is still there gets an answer, work that nobody needs any more ends, and one
//! kind of work leaves room for the others.

use super::http::{Answer, Client, get, settings};
use super::support::{
    Database, EndAtDrop, MS, SECOND, backends, counter, database, eventually, log_lines, pid,
    server,
};
use millpond::config::LineOrder;
use millpond::error::AbandonedStage;
use millpond::server::{Access, DatabaseKind, Lane, Problem, Request, Response, Router, Server};
use millpond::{Error, Keyed, Pool, Result, RetryPolicy, Token};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A server with routes that read, write and compute, each for as many milliseconds as the query
/// says.
struct Served {
    pool: Pool,
    server: Server,
    addr: SocketAddr,
    /// Handlers of `/api/compute` that have begun, and those that saw that their client has gone.
    computing: Arc<AtomicUsize>,
    saw_the_end: Arc<AtomicUsize>,
}

fn ms_of(request: &Request) -> f64 {
    request.query.parse().unwrap()
}

fn read(pool: &Pool, request: &Request) -> Result<Response, Problem> {
    let seconds = ms_of(request) / 1000.0;
    let call = request.call(pool);
    call.read("SELECT /* slow */ pg_sleep($1)", &[&seconds])?;
    Ok(Response::json(200, &"read"))
}

fn write(pool: &Pool, request: &Request) -> Result<Response, Problem> {
    let (seconds, key) = (ms_of(request) / 1000.0, request.header("Idempotency-Key"));
    let key = key.unwrap().to_owned();
    let done = request.call(pool).transaction_with_key(&key, |tx| {
        tx.execute("INSERT INTO written VALUES ($1)", &[&key])?;
        tx.query("SELECT pg_sleep($1)", &[&seconds]).map(drop)
    })?;
    let told = match done {
        Keyed::Done(()) => "done",
        Keyed::AlreadyDone(_) => "done before",
    };
    Ok(Response::json(200, &told))
}

fn compute(request: &Request, computing: &AtomicUsize, saw_the_end: &AtomicUsize) -> Response {
    computing.fetch_add(1, Ordering::SeqCst);
    if request
        .token()
        .sleep(Duration::from_secs_f64(ms_of(request) / 1000.0))
    {
        saw_the_end.fetch_add(1, Ordering::SeqCst);
    }
    Response::json(200, &"computed")
}

fn serve(
    db: &Database,
    max: u32,
    vars: &[(&str, &str)],
    bound: impl Fn(Router) -> Router,
) -> Served {
    let mut admin = db.admin();
    admin
        .batch_execute("CREATE TABLE written (key text NOT NULL)")
        .unwrap();
    let pool = db
        .pool()
        .max_size(max)
        .min_idle(max)
        .statement_timeout(20 * SECOND)
        .query_timeout(20 * SECOND)
        .application_name("overloaded")
        .build()
        .unwrap();
    pool.create_ledger().unwrap();
    pool.wait_ready(20 * SECOND).unwrap();
    let saw_the_end = Arc::<AtomicUsize>::default();
    let (for_read, for_quick, for_write) = (pool.clone(), pool.clone(), pool.clone());
    let computing = Arc::<AtomicUsize>::default();
    let (begun, seen) = (Arc::clone(&computing), Arc::clone(&saw_the_end));
    let router = Router::new()
        .route("GET", "/api/read", Lane::Api, Access::Open, move |r| {
            read(&for_read, r)
        })
        .route("GET", "/api/quick", Lane::Api, Access::Open, move |r| {
            read(&for_quick, r)
        })
        .route("POST", "/api/write", Lane::Api, Access::Open, move |r| {
            write(&for_write, r)
        })
        .route("POST", "/api/compute", Lane::Api, Access::Open, move |r| {
            Ok(compute(r, &begun, &seen))
        });
    let server = Server::start(
        settings(vars),
        pool.clone(),
        bound(router),
        DatabaseKind::External,
    );
    let server = server.unwrap();
    let addr = server.addr();
    Served {
        pool,
        server,
        addr,
        computing,
        saw_the_end,
    }
}

impl Served {
    /// Sends a request over a connection of its own.
    fn send(&self, method: &str, target: &str, headers: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(30 * SECOND)).unwrap();
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n{headers}\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    fn ask(&self, target: &str) -> Answer {
        Client::to(self.addr).ask("GET", target, "", b"")
    }

    /// Waits until so many requests are in flight.
    fn has_in_flight(&self, count: usize) {
        eventually("they are in flight", || self.server.in_flight() == count);
    }

    fn count(&self, stage: &str) -> u64 {
        counter(
            &self.pool,
            &format!("millpond_requests_abandoned_total{{stage=\"{stage}\"}}"),
        )
    }

    fn closed_connections(&self) -> u64 {
        counter(&self.pool, "millpond_connections_closed_total")
    }
}

fn all_of(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn slow_statements(admin: &mut postgres::Client) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%/* slow */%' \
               AND datname = current_database() AND pid <> pg_backend_pid()";
    admin.query_one(sql, &[]).unwrap().get(0)
}

fn as_they_are(router: Router) -> Router {
    router
}

// --- hang-ups

#[test]
fn requests_whose_clients_hang_up_leave_nothing_behind() {
    let db = database();
    let served = serve(&db, 20, &[], as_they_are);
    let mut admin = db.admin();
    let before = backends(&mut admin, "overloaded");
    let closed = served.closed_connections();
    let all: Vec<_> = (0..100)
        .map(|_| served.send("GET", "/api/read?10000", ""))
        .collect();
    served.has_in_flight(100);
    eventually("all connections are in use", || {
        slow_statements(&mut admin) == 20
    });
    drop(all);
    let asked = Instant::now();
    assert_eq!(served.ask("/api/quick?1").status, 200);
    assert!(asked.elapsed() < 5 * SECOND, "{:?}", asked.elapsed());
    eventually("nothing of them runs", || slow_statements(&mut admin) == 0);
    served.has_in_flight(0);
    assert_eq!(backends(&mut admin, "overloaded"), before);
    assert_eq!(served.closed_connections(), closed);
    // A few more may have begun before their hang-ups were seen.
    assert!(served.count("running") >= 20);
    let all = ["queued", "waiting", "running"].map(|stage| served.count(stage));
    assert_eq!(all.iter().sum::<u64>(), 100, "{all:?}");
    let text = served.pool.metrics_text();
    assert!(text.contains("http_response_status_code=\"499\""), "{text}");
}

#[test]
fn a_single_report_whose_reader_has_gone_is_cancelled_also_where_nobody_waits() {
    let db = database();
    let served = serve(&db, 5, &[], as_they_are);
    let mut admin = db.admin();
    for _ in 0..5 {
        let reader = served.send("GET", "/api/read?10000", "");
        eventually("the report runs", || slow_statements(&mut admin) == 1);
        drop(reader);
        eventually("the report was cancelled", || {
            slow_statements(&mut admin) == 0
        });
    }
    served.has_in_flight(0);
    assert_eq!(served.count("running"), 5);
    assert_eq!(served.closed_connections(), 0);
}

#[test]
fn a_write_that_has_begun_goes_to_its_end_and_its_repeat_is_told_so() {
    let db = database();
    let served = serve(&db, 4, &[("HTTP_WORKERS", "8")], as_they_are);
    let mut admin = db.admin();
    let send = |n: usize, ms: u32| {
        let key = format!("Idempotency-Key: k{n}\r\n");
        served.send("POST", &format!("/api/write?{ms}"), &key)
    };
    let all: Vec<_> = (0..20).map(|n| send(n, 1500)).collect();
    served.has_in_flight(20);
    let written = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND state = 'active' \
                   AND datname = current_database() AND pid <> pg_backend_pid()";
    eventually("four write", || {
        admin.query_one(written, &[]).unwrap().get::<_, i64>(0) == 4
    });
    drop(all);
    served.has_in_flight(0);
    let begun: i64 = admin
        .query_one("SELECT count(*) FROM written", &[])
        .unwrap()
        .get(0);
    assert!((4..20).contains(&begun), "{begun} of 20 had begun");
    let mut told_before = 0;
    for n in 0..20 {
        let answer = all_of(send(n, 1));
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        told_before += i64::from(answer.ends_with("\"done before\""));
    }
    assert_eq!(told_before, begun);
    let once = "SELECT count(*) = 20 AND count(DISTINCT key) = 20 FROM written";
    assert!(admin.query_one(once, &[]).unwrap().get::<_, bool>(0));
    assert_eq!(served.closed_connections(), 0);
}

#[test]
fn a_handler_that_computes_can_see_that_its_client_has_gone() {
    let db = database();
    let served = serve(&db, 1, &[], as_they_are);
    let client = served.send("POST", "/api/compute?20000", "");
    eventually("it has begun", || {
        served.computing.load(Ordering::SeqCst) == 1
    });
    drop(client);
    eventually("it was seen", || {
        served.saw_the_end.load(Ordering::SeqCst) == 1
    });
    served.has_in_flight(0);
}

#[test]
fn a_client_that_closes_only_its_own_direction_is_answered() {
    let db = database();
    let served = serve(&db, 2, &[("HTTP_WORKERS", "2")], as_they_are);
    for wait in ["1", "700"] {
        let stream = served.send("GET", &format!("/api/read?{wait}"), "");
        stream.shutdown(Shutdown::Write).unwrap();
        let answer = all_of(stream);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    }
    // Also one that has sent its next request already, and while nobody else waits.
    let mut stream = TcpStream::connect(served.addr).unwrap();
    let two = "GET /api/read?300 HTTP/1.1\r\nHost: a\r\n\r\nGET /api/read?1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    stream.write_all(two.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let answers = all_of(stream);
    assert_eq!(
        answers.matches("HTTP/1.1 200 OK\r\n").count(),
        2,
        "{answers}"
    );
    // Bytes that are sent ahead are no hang-up.
    let mut stream = TcpStream::connect(served.addr).unwrap();
    let half = two.trim_end_matches("\r\n\r\n");
    stream.write_all(half.as_bytes()).unwrap();
    eventually("the first is answered", || {
        stream.set_read_timeout(Some(SECOND)).unwrap();
        stream.read(&mut [0; 4096]).is_ok_and(|read| read > 0)
    });
    assert_eq!(
        served.count("queued") + served.count("waiting") + served.count("running"),
        0
    );
}

#[test]
fn clients_that_have_closed_their_own_direction_give_way_to_those_who_wait() {
    let db = database();
    let served = serve(&db, 2, &[("HTTP_WORKERS", "4")], as_they_are);
    let half: Vec<_> = (0..6)
        .map(|_| {
            let stream = served.send("GET", "/api/read?4000", "");
            stream.shutdown(Shutdown::Write).unwrap();
            stream
        })
        .collect();
    served.has_in_flight(6);
    let asked = Instant::now();
    assert_eq!(served.ask("/api/quick?1").status, 200);
    assert!(asked.elapsed() < 5 * SECOND, "{:?}", asked.elapsed());
    // One place was enough.
    let told = half.into_iter().map(all_of);
    let refused: Vec<_> = told.filter(|a| a.starts_with("HTTP/1.1 503 ")).collect();
    assert!((1..=5).contains(&refused.len()), "{refused:?}");
    for answer in refused {
        assert!(answer.contains("urn:millpond:overloaded"), "{answer}");
    }
    assert_eq!(served.closed_connections(), 0);
}

#[test]
fn hang_ups_at_any_moment_lose_nothing_and_leave_nothing_behind() {
    let seconds = std::env::var("MILLPOND_TORTURE_SECONDS").map_or(4, |s| s.parse().unwrap());
    let db = database();
    let served = serve(
        &db,
        4,
        &[("HTTP_WORKERS", "8"), ("HTTP_QUEUE", "50")],
        as_they_are,
    );
    let until = Instant::now() + seconds * SECOND;
    let sent = AtomicUsize::new(0);
    thread::scope(|scope| {
        for thread in 0..16 {
            let (served, sent) = (&served, &sent);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(thread);
                while Instant::now() < until {
                    let n = sent.fetch_add(1, Ordering::SeqCst);
                    let wait = random.u64(..12);
                    let request = match random.u64(..3) {
                        0 => format!("GET /api/read?{wait} HTTP/1.1\r\nHost: a\r\n\r\n"),
                        _ => format!("POST /api/write?{wait} HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nIdempotency-Key: t{n}\r\n\r\nbody"),
                    };
                    let mut stream = TcpStream::connect(served.addr).unwrap();
                    // Before the head is whole, in the body, or with all of it sent.
                    let length = match random.u64(..4) {
                        0 => random.usize(..request.len()),
                        _ => request.len(),
                    };
                    let _ = stream.write_all(&request.as_bytes()[..length]);
                    if random.u64(..4) == 0 {
                        let _ = stream.shutdown(Shutdown::Write);
                    }
                    if random.u64(..4) == 0 {
                        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                    }
                    thread::sleep(Duration::from_micros(random.u64(..20_000)));
                }
            });
        }
    });
    served.has_in_flight(0);
    // Each write is there at most once, and its repeat is told the truth.
    let mut admin = db.admin();
    let twice = "SELECT count(*) - count(DISTINCT key) FROM written";
    assert_eq!(admin.query_one(twice, &[]).unwrap().get::<_, i64>(0), 0);
    let mut client = Client::to(served.addr);
    for row in admin
        .query("SELECT key FROM written LIMIT 50", &[])
        .unwrap()
    {
        let key = format!("Idempotency-Key: {}\r\n", row.get::<_, &str>(0));
        let answer = client.ask("POST", "/api/write?0", &key, b"");
        assert_eq!(answer.body, "\"done before\"");
    }
    let open = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'overloaded' \
                AND datname = current_database() AND state <> 'idle'";
    eventually("no session is in use", || {
        admin.query_one(open, &[]).unwrap().get::<_, i64>(0) == 0
    });
    let stats = served.pool.stats();
    assert_eq!((stats.active, stats.waiting), (0, 0), "{stats:?}");
    // All workers and all connections are there, and the line is as long as it was.
    let send = |_| served.send("GET", "/api/read?300", "");
    let mut together: Vec<_> = (0..8).map(send).collect();
    eventually("all workers are busy", || {
        let stats = served.pool.stats();
        (stats.active, stats.waiting) == (4, 4)
    });
    together.extend((0..50 + 7).map(send));
    let asked = Instant::now();
    let answers: Vec<_> = together.into_iter().map(all_of).collect();
    let are = |status: &str| answers.iter().filter(|a| a.starts_with(status)).count();
    let counts = (are("HTTP/1.1 200 "), are("HTTP/1.1 503 "));
    assert_eq!(counts, (58, 7));
    assert!(asked.elapsed() < 10 * SECOND, "{:?}", asked.elapsed());
    assert_eq!(
        served.closed_connections(),
        0,
        "{} sent",
        sent.load(Ordering::SeqCst)
    );
}

#[test]
fn a_client_that_closes_after_its_answer_is_not_taken_for_the_next_one() {
    let db = database();
    let served = serve(&db, 2, &[("HTTP_WORKERS", "4")], as_they_are);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let answer = all_of(served.send("GET", "/api/read?1", ""));
                    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
                }
            });
        }
    });
    let all = ["queued", "waiting", "running"].map(|stage| served.count(stage));
    assert_eq!(all, [0, 0, 0]);
}

#[test]
fn a_client_with_less_patience_than_its_request_takes_does_not_change_the_order() {
    let db = database();
    let served = serve(&db, 2, &[], as_they_are);
    let until = Instant::now() + 4 * SECOND;
    let slowest = thread::scope(|scope| {
        let patient: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = Client::to(served.addr);
                    let mut slowest = Duration::ZERO;
                    while Instant::now() < until {
                        let asked = Instant::now();
                        let answer = client.ask("GET", "/api/read?200", "", b"");
                        assert_eq!(answer.status, 200, "{answer:?}");
                        slowest = slowest.max(asked.elapsed());
                    }
                    slowest
                })
            })
            .collect();
        scope.spawn(|| {
            while Instant::now() < until {
                let impatient = served.send("GET", "/api/read?200", "");
                thread::sleep(5 * MS);
                drop(impatient);
            }
        });
        while Instant::now() < until {
            let gauge = "millpond_line_newest_first{line=\"api\"}";
            assert_eq!(counter(&served.pool, gauge), 0);
            assert!(!served.pool.stats().newest_first);
            thread::sleep(20 * MS);
        }
        let slowest = patient.into_iter().map(|client| client.join().unwrap());
        slowest.max().unwrap()
    });
    // In turn, each waits for 0.6 s.
    assert!(slowest < 5 * SECOND, "{slowest:?}");
}

// --- tokens

fn stage_of(error: &Error) -> AbandonedStage {
    match error {
        Error::Abandoned { stage } => *stage,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_call_whose_token_is_fired_ends_at_once_and_says_how_far_it_had_come() {
    let db = database();
    let pool = db.pool().max_size(1).build().unwrap();
    let backend = pid(&pool);
    let token = Token::new();
    let waits = thread::scope(|scope| {
        let held = pool.get().unwrap();
        let call = scope.spawn(|| pool.abandon_on(&token).execute("SELECT 1", &[]));
        eventually("it waits", || pool.stats().waiting == 1);
        token.fire();
        let error = call.join().unwrap().unwrap_err();
        drop(held);
        error
    });
    assert_eq!(stage_of(&waits), AbandonedStage::Waiting);
    assert!(!waits.is_retryable() && !waits.is_timeout() && !waits.is_outcome_unknown());
    let late = pool.abandon_on(&token).read("SELECT 1", &[]).unwrap_err();
    assert_eq!(stage_of(&late), AbandonedStage::Queued);

    let token = Token::new();
    let runs = thread::scope(|scope| {
        let call = scope.spawn(|| pool.abandon_on(&token).read("SELECT pg_sleep(20)", &[]));
        let mut admin = db.admin();
        let running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(20)' AND state = 'active'";
        eventually("it runs", || {
            admin.query_one(running, &[]).unwrap().get::<_, i64>(0) == 1
        });
        token.fire();
        call.join().unwrap().unwrap_err()
    });
    assert_eq!(stage_of(&runs), AbandonedStage::Running);
    assert_eq!(pid(&pool), backend, "its connection stays");
}

#[test]
fn a_transaction_that_reads_only_is_cancelled_and_any_other_is_not() {
    let db = database();
    let pool = db.pool().max_size(1).build().unwrap();
    let backend = pid(&pool);
    for reads_only in [true, false] {
        let token = Token::new();
        let done = thread::scope(|scope| {
            let call = match reads_only {
                true => pool.abandon_on(&token).read_only(),
                false => pool.abandon_on(&token),
            };
            let call = scope.spawn(move || {
                call.transaction(|tx| -> Result<i32> {
                    tx.query("SELECT pg_sleep(1)", &[])?;
                    tx.query_scalar("SELECT 7", &[])
                })
            });
            eventually("it runs", || pool.stats().active == 1);
            thread::sleep(50 * MS);
            token.fire();
            call.join().unwrap()
        });
        match reads_only {
            true => assert_eq!(stage_of(&done.unwrap_err()), AbandonedStage::Running),
            false => assert_eq!(done.unwrap(), 7),
        }
    }
    assert_eq!(pid(&pool), backend);
}

#[test]
fn calls_after_a_write_with_the_same_token_are_done_as_well() {
    let db = database();
    let pool = db.pool().build().unwrap();
    pool.batch_execute("CREATE TABLE orders (id int); CREATE TABLE mails (id int)")
        .unwrap();
    let token = Token::new();
    let call = pool.abandon_on(&token);
    call.execute("INSERT INTO orders VALUES (1)", &[]).unwrap();
    token.fire();
    call.execute("INSERT INTO mails VALUES (1)", &[]).unwrap();
    assert_eq!(call.read("SELECT 1", &[]).unwrap().len(), 1);
    // A write that was rolled back is none.
    let token = Token::new();
    let call = pool.abandon_on(&token);
    call.execute("INSERT INTO nothing VALUES (1)", &[])
        .unwrap_err();
    token.fire();
    let error = call.execute("INSERT INTO mails VALUES (2)", &[]);
    assert_eq!(stage_of(&error.unwrap_err()), AbandonedStage::Queued);
}

#[test]
fn a_pause_between_attempts_ends_with_the_token() {
    let db = database();
    let patient = RetryPolicy::default()
        .initial_delay(20 * SECOND)
        .max_delay(20 * SECOND);
    let pool = db.pool().retry_policy(patient).build().unwrap();
    let token = Token::new();
    let fires = token.clone();
    let asked = Instant::now();
    let error = thread::scope(|scope| {
        scope.spawn(move || {
            thread::sleep(200 * MS);
            fires.fire();
        });
        let fails = "DO $$ BEGIN RAISE SQLSTATE '40001'; END $$";
        pool.abandon_on(&token).batch_execute(fails).unwrap_err()
    });
    assert_eq!(stage_of(&error), AbandonedStage::Waiting);
    assert!(asked.elapsed() < 10 * SECOND, "{:?}", asked.elapsed());
}

#[test]
fn a_token_that_is_fired_at_any_moment_never_cancels_the_next_caller() {
    let db = database();
    let pool = db.pool().max_size(2).build().unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for thread in 0..2_u64 {
            let (pool, over) = (&pool, &over);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(thread);
                while !over.load(Ordering::SeqCst) {
                    let token = Token::new();
                    let (fires, pause) = (token.clone(), Duration::from_micros(random.u64(..9000)));
                    let firing = thread::spawn(move || {
                        thread::sleep(pause);
                        fires.fire();
                    });
                    match pool.abandon_on(&token).read("SELECT pg_sleep(0.004)", &[]) {
                        Ok(_) | Err(Error::Abandoned { .. }) => {}
                        Err(other) => panic!("{other:?}"),
                    }
                    firing.join().unwrap();
                }
            });
        }
        let _ends = EndAtDrop(&over);
        let until = Instant::now() + 3 * SECOND;
        while Instant::now() < until {
            // Not one of these is cancelled.
            pool.query("SELECT pg_sleep(0.002)", &[]).unwrap();
        }
    });
    assert_eq!(counter(&pool, "millpond_connections_closed_total"), 0);
}

// --- the line

#[test]
fn a_full_line_refuses_the_newest_and_under_newest_first_the_oldest() {
    let db = database();
    let vars = [("HTTP_WORKERS", "1"), ("HTTP_QUEUE", "12")];
    let served = serve(&db, 1, &vars, as_they_are);
    let busy = served.send("GET", "/api/read?20000", "");
    served.has_in_flight(1);
    let mut waiting: Vec<_> = (0..12)
        .map(|n| {
            let stream = served.send("GET", "/api/read?1", "");
            served.has_in_flight(n + 2);
            stream
        })
        .collect();
    // First come, first served: who comes now is refused, on a connection that stays.
    let mut client = Client::to(served.addr);
    for _ in 0..10 {
        let refused = client.ask("GET", "/api/read?1", "", b"");
        let kind = refused.json()["type"].as_str().unwrap().to_owned();
        assert_eq!((refused.status, &*kind), (503, "urn:millpond:overloaded"));
        let after: u64 = refused.header("Retry-After").unwrap().parse().unwrap();
        assert!((1..=91).contains(&after), "{after}");
    }
    // So many leave unserved that the order changes.
    let lines = || get(served.addr, "/api/metrics/db").json()["lines"].clone();
    eventually("newest first", || lines()["api"]["order"] == "newest-first");
    assert!(lines()["api"]["since"].is_string());
    assert_eq!(lines()["pool"]["order"], "first-come");
    let gauge = "millpond_line_newest_first{line=\"api\"}";
    assert_eq!(counter(&served.pool, gauge), 1);
    assert_eq!(get(served.addr, "/health/ready").status, 200);
    let newest = served.send("GET", "/api/read?1", "");
    // One was sent to the worker already, or not yet: the oldest in line is the next, or that one.
    let is_answered = |stream: &TcpStream| {
        stream.set_nonblocking(true).unwrap();
        let found = stream.peek(&mut [0]).is_ok();
        stream.set_nonblocking(false).unwrap();
        found
    };
    let mut oldest = None;
    eventually("the oldest is refused", || {
        oldest = waiting[..2].iter().position(is_answered);
        oldest.is_some()
    });
    let oldest = all_of(waiting.remove(oldest.unwrap()));
    assert!(oldest.contains("urn:millpond:overloaded"), "{oldest}");
    drop(busy);
    for stream in waiting.into_iter().chain([newest]) {
        let answer = all_of(stream);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    eventually("first come again", || {
        lines()["api"]["order"] == "first-come"
    });
    assert_eq!(counter(&served.pool, gauge), 0);
    assert!(!log_lines("line for a worker, lane Api: newest first from now on").is_empty());
    assert!(!log_lines("line for a worker, lane Api: first come, first served again").is_empty());
}

#[test]
fn a_request_waits_for_a_worker_no_longer_than_it_may() {
    let db = database();
    let vars = [("HTTP_WORKERS", "1"), ("HTTP_QUEUE_TIMEOUT_MS", "500")];
    let served = serve(&db, 1, &vars, as_they_are);
    let busy = served.send("GET", "/api/read?3000", "");
    served.has_in_flight(1);
    let asked = Instant::now();
    let waiting: Vec<_> = (0..3)
        .map(|_| served.send("GET", "/api/read?1", ""))
        .collect();
    for stream in waiting {
        let answer = all_of(stream);
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains("urn:millpond:timeout"), "{answer}");
    }
    assert!(asked.elapsed() >= 500 * MS);
    // One that is with a worker is not cut by it.
    assert!(all_of(busy).starts_with("HTTP/1.1 200 "));
}

#[test]
fn a_refused_request_with_a_small_body_keeps_its_connection() {
    let db = database();
    let served = serve(
        &db,
        1,
        &[("HTTP_WORKERS", "1"), ("HTTP_QUEUE", "0")],
        as_they_are,
    );
    let busy = served.send("GET", "/api/read?3000", "");
    served.has_in_flight(1);
    let mut stream = TcpStream::connect(served.addr).unwrap();
    stream.set_read_timeout(Some(20 * SECOND)).unwrap();
    stream.set_nodelay(true).unwrap();
    let head = "POST /api/compute?1 HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n";
    for part in [head, "body"] {
        stream.write_all(part.as_bytes()).unwrap();
        thread::sleep(50 * MS);
    }
    let mut buffer = [0; 4096];
    let read = stream.read(&mut buffer).unwrap();
    let answer = String::from_utf8_lossy(&buffer[..read]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(!answer.contains("Connection: close"), "{answer}");
    stream
        .write_all(b"GET /health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .unwrap();
    assert!(all_of(stream).starts_with("HTTP/1.1 200 "));
    drop(busy);
}

/// Uses a connection for as short a time as possible: a thread that gives up sooner than the least
/// work takes does not count, and all work before may have been slow.
fn take_little_time(pool: &Pool) {
    (0..10).for_each(|_| drop(pool.get().unwrap()));
}

#[test]
fn threads_in_line_are_served_newest_first_while_many_give_up_and_in_turn_again() {
    let db = database();
    for (order, newest_first) in [(LineOrder::Auto, true), (LineOrder::Fifo, false)] {
        let pool = db.pool().max_size(1).line_order(order).build().unwrap();
        pid(&pool);
        take_little_time(&pool);
        let held = pool.get().unwrap();
        let served = std::sync::Mutex::new(Vec::new());
        thread::scope(|scope| {
            let waits = |n: usize| {
                let (pool, served) = (&pool, &served);
                scope.spawn(move || {
                    let lease = pool.get_timeout(20 * SECOND).unwrap();
                    served.lock().unwrap().push(n);
                    drop(lease);
                });
                eventually("it waits", || pool.stats().waiting == n);
            };
            // Ten give up behind one who does not.
            waits(1);
            for _ in 0..10 {
                pool.get_timeout(10 * MS).unwrap_err();
            }
            assert_eq!(pool.stats().newest_first, newest_first);
            waits(2);
            waits(3);
            drop(held);
        });
        let expected = if newest_first { [3, 2, 1] } else { [1, 2, 3] };
        assert_eq!(*served.lock().unwrap(), expected, "{order:?}");
        assert!(!pool.stats().newest_first, "the line is empty");
    }
}

#[test]
fn one_who_only_looks_for_an_idle_connection_does_not_change_the_order() {
    let db = database();
    let pool = db.pool().max_size(1).build().unwrap();
    let held = pool.get().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| pool.get_timeout(20 * SECOND).map(drop).unwrap());
        eventually("it waits", || pool.stats().waiting == 1);
        for _ in 0..100 {
            assert!(pool.try_get().is_none());
        }
        assert!(!pool.stats().newest_first);
        drop(held);
    });
}

#[test]
fn a_full_line_of_threads_gives_the_place_of_the_oldest_to_the_newest_under_newest_first() {
    let db = database();
    let pool = db.pool().max_size(1).max_waiting(2).build().unwrap();
    pid(&pool);
    take_little_time(&pool);
    let held = pool.get().unwrap();
    thread::scope(|scope| {
        let waits = |n: usize| {
            let pool = &pool;
            let waiter = scope.spawn(move || pool.get_timeout(20 * SECOND).map(drop));
            eventually("it waits", || pool.stats().waiting == n);
            waiter
        };
        let oldest = waits(1);
        for _ in 0..10 {
            pool.get_timeout(10 * MS).unwrap_err();
        }
        let second = waits(2);
        let newest = scope.spawn(|| pool.get_timeout(20 * SECOND).map(drop));
        let refused = oldest.join().unwrap().unwrap_err();
        assert!(
            refused.to_string().contains("too many threads in line"),
            "{refused}"
        );
        drop(held);
        second.join().unwrap().unwrap();
        newest.join().unwrap().unwrap();
    });
}

#[test]
fn after_an_outage_under_load_the_order_is_first_come_again() {
    let mut database = server(&[]);
    let pool = super::support::pool(&database.url())
        .max_size(5)
        .connection_timeout(500 * MS)
        .build()
        .unwrap();
    pool.wait_ready(20 * SECOND).unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..30 {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    let _ = pool
                        .with_policy(RetryPolicy::none())
                        .read("SELECT pg_sleep(0.02)", &[]);
                }
            });
        }
        let _ends = EndAtDrop(&over);
        thread::sleep(300 * MS);
        database.stop(millpond::embedded::Stop::Immediate);
        thread::sleep(2 * SECOND);
        database.start_again().unwrap();
        eventually("the pool is back", || pool.read("SELECT 1", &[]).is_ok());
        eventually("first come again", || !pool.stats().newest_first);
    });
    assert_eq!(pool.stats().active, 0);
}

// --- classes

#[test]
fn a_connection_goes_to_the_waiting_class_that_holds_the_fewest() {
    let db = database();
    let pool = db.pool().max_size(2).build().unwrap();
    pool.wait_ready(20 * SECOND).unwrap();
    thread::scope(|scope| {
        for n in 0..6 {
            let pool = &pool;
            scope.spawn(move || {
                pool.class("reports")
                    .read("SELECT pg_sleep(0.5)", &[])
                    .unwrap()
            });
            eventually("it is there", || {
                pool.stats().active + pool.stats().waiting == n + 1
            });
        }
        // Four reports wait before it, and at least 1 s would pass.
        let asked = Instant::now();
        pool.class("quick")
            .with_deadline(asked + 20 * SECOND)
            .read("SELECT 1", &[])
            .unwrap();
        assert!(pool.stats().waiting >= 2, "{:?}", pool.stats());
    });
}

#[test]
fn a_class_holds_no_more_than_it_may_and_idle_connections_are_for_the_others() {
    let db = database();
    let pool = db.pool().max_size(4).min_idle(4).build().unwrap();
    pool.wait_ready(20 * SECOND).unwrap();
    let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                let call = pool
                    .class("reports")
                    .at_most(2)
                    .with_deadline(Instant::now() + 20 * SECOND);
                call.transaction(|tx| -> Result<()> {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    tx.query("SELECT pg_sleep(0.2)", &[])?;
                    now.fetch_sub(1, Ordering::SeqCst);
                    Ok(())
                })
                .unwrap();
            });
        }
        eventually("they wait", || pool.stats().waiting >= 9);
        for _ in 0..20 {
            let stats = pool.stats();
            assert!(stats.active <= 3, "{stats:?}");
            pool.read("SELECT 1", &[]).unwrap();
        }
    });
    assert_eq!(most.load(Ordering::SeqCst), 2);
    // A class that is allowed more gets it.
    pool.class("reports")
        .at_most(4)
        .read("SELECT 1", &[])
        .unwrap();
}

#[test]
fn a_bounded_route_leaves_workers_and_connections_to_the_others() {
    let db = database();
    let served = serve(&db, 4, &[], |router| router.at_most("/api/read", 3));
    let slow: Vec<_> = (0..20)
        .map(|_| served.send("GET", "/api/read?600", ""))
        .collect();
    served.has_in_flight(20);
    let mut admin = db.admin();
    let mut client = Client::to(served.addr);
    let alone = Instant::now();
    for _ in 0..50 {
        assert_eq!(client.ask("GET", "/api/quick?1", "", b"").status, 200);
        // Both routes have the same text.
        assert!(slow_statements(&mut admin) <= 3);
    }
    assert!(alone.elapsed() < 3 * SECOND, "{:?}", alone.elapsed());
    for stream in slow {
        assert!(all_of(stream).starts_with("HTTP/1.1 200 "));
    }
    let wrong = Router::new().at_most("/api/nothing", 3);
    let refused = Server::start(
        settings(&[]),
        served.pool.clone(),
        wrong,
        DatabaseKind::External,
    );
    assert!(refused.unwrap_err().to_string().contains("/api/nothing"));
}
