//! The HTTP server in this process, with routes of the test's own.

use super::support::{Database, MS, SECOND, database, eventually, server as private};
use millpond::config::HttpConfig;
use millpond::embedded::Stop;
use millpond::server::{Access, DatabaseKind, DrainReport, Lane, Response, Router, Server};
use millpond::{Config, Pool};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            line.split_once(": ")
                .filter(|(n, _)| n.eq_ignore_ascii_case(name))
                .map(|(_, v)| v)
        })
    }
}

/// A client whose connection is kept for several requests.
pub struct Client(BufReader<TcpStream>);

impl Client {
    pub fn to(addr: SocketAddr) -> Client {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(30 * SECOND)).unwrap();
        Client(BufReader::new(stream))
    }

    /// `headers` are lines, each with its line end.
    pub fn ask(&mut self, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{headers}\r\n"
        );
        let stream = self.0.get_mut();
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        self.answer()
    }

    /// The bytes that arrive before the server closes the connection.
    pub fn until_closed(&mut self) -> String {
        let mut rest = String::new();
        self.0.read_to_string(&mut rest).unwrap();
        rest
    }

    fn answer(&mut self) -> Answer {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let read = self.0.read_line(&mut head).unwrap();
            assert!(read > 0, "closed in the middle of an answer: {head:?}");
        }
        let mut answer = Answer {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head,
            body: String::new(),
        };
        let length = answer.header("Content-Length").unwrap().parse().unwrap();
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        answer.body = String::from_utf8(body).unwrap();
        answer
    }
}

pub fn send(addr: SocketAddr, request: &str) -> Answer {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(20 * SECOND)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = Vec::new();
    stream.read_to_end(&mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    let (head, body) = text
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer {
        status,
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

pub fn ask(addr: SocketAddr, method: &str, path: &str, more: &str) -> Answer {
    send(
        addr,
        &format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{more}\r\n"),
    )
}

pub fn get(addr: SocketAddr, path: &str) -> Answer {
    ask(addr, "GET", path, "")
}

/// Settings, as read from these environment variables.
pub fn settings(vars: &[(&str, &str)]) -> HttpConfig {
    let all = [("HTTP_ADDR", "127.0.0.1:0")].iter().chain(vars).copied();
    Config::from_vars(all).unwrap().http
}

/// A route that holds a connection for as long as the query says, and one that panics.
fn slow_routes(pool: &Pool) -> Router {
    let pool = pool.clone();
    Router::new()
        .route(
            "GET",
            "/api/sleep",
            Lane::Api,
            Access::Api,
            move |request| {
                let seconds: f64 = request.query.parse().unwrap();
                pool.call()
                    .with_deadline(request.deadline)
                    .read("SELECT pg_sleep($1)", &[&seconds])?;
                Ok(Response::json(200, &"slept"))
            },
        )
        .route("GET", "/api/panic", Lane::Api, Access::Api, |_| {
            panic!("a handler of the test panics, as it should")
        })
        .route(
            "POST",
            "/api/echo/{what}",
            Lane::Api,
            Access::Api,
            |request| {
                let what = request.param("what").unwrap_or_default().to_owned();
                Ok(Response::bytes(
                    200,
                    "text/plain",
                    [what.as_bytes(), b"=", &request.body].concat(),
                ))
            },
        )
}

fn serve(db: &Database, max: u32, vars: &[(&str, &str)]) -> (Server, Pool) {
    let pool = db
        .pool()
        .max_size(max)
        .statement_timeout(Duration::ZERO)
        .query_timeout(Duration::ZERO)
        .build()
        .unwrap();
    let server = Server::start(
        settings(vars),
        pool.clone(),
        slow_routes(&pool),
        DatabaseKind::External,
    )
    .unwrap();
    (server, pool)
}

#[test]
fn health_has_the_fields_that_people_rely_on() {
    let (server, pool) = serve(&database(), 20, &[]);
    eventually("it is ready", || pool.has_connected());
    for path in ["/health", "/health/db"] {
        let answer = get(server.addr(), path);
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("Content-Type"), Some("application/json"));
        let body = answer.json();
        assert_eq!(body["status"], "healthy");
        let timestamp = body["timestamp"].as_str().unwrap();
        assert!(
            timestamp.len() == 24 && timestamp.ends_with('Z'),
            "{timestamp}"
        );
        let database = &body["database"];
        assert_eq!(database["healthy"], true);
        for field in [
            "totalConnections",
            "idleConnections",
            "activeConnections",
            "waitingRequests",
        ] {
            assert!(database[field].is_u64(), "{field}");
        }
        assert_eq!(database["maxConnections"], 20);
        assert!(database["utilizationPercent"].is_f64() && database["latencyMs"].is_f64());
        assert!(body.get("draining").is_none() && body.get("private").is_none());
    }
    assert_eq!(get(server.addr(), "/health/live").status, 200);
    let ready = get(server.addr(), "/health/ready");
    assert_eq!(
        (ready.status, ready.json()["status"].as_str()),
        (200, Some("ready"))
    );
}

#[test]
fn health_is_503_while_the_database_is_down_and_live_is_not() {
    let mut database = private(&[]);
    let pool = super::support::pool(&database.url()).build().unwrap();
    let server = Server::start(
        settings(&[]),
        pool.clone(),
        Router::new(),
        DatabaseKind::Private,
    )
    .unwrap();
    eventually("it is ready", || {
        get(server.addr(), "/health/ready").status == 200
    });
    assert_eq!(get(server.addr(), "/health").json()["private"], true);
    database.stop(Stop::Fast);
    eventually("the probe fails", || {
        get(server.addr(), "/health").status == 503
    });
    let body = get(server.addr(), "/health").json();
    assert_eq!(body["status"], "unhealthy");
    assert_eq!(body["database"]["healthy"], false);
    assert_eq!(body["database"]["error"], "refused");
    assert!(body["database"].get("latencyMs").is_none());
    assert_eq!(get(server.addr(), "/health/live").status, 200);
    let metrics = get(server.addr(), "/api/metrics/db");
    assert_eq!(
        (metrics.status, &metrics.json()["performance"]["latencyMs"]),
        (200, &Value::Null)
    );
    assert!(
        get(server.addr(), "/metrics")
            .body
            .contains("millpond_probe_up 0")
    );
    database.start_again().unwrap();
    eventually("it is healthy again", || {
        get(server.addr(), "/health").status == 200
    });
}

#[test]
fn readiness_waits_for_the_first_connection() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let pool = super::support::pool(&format!("postgresql://u:p@127.0.0.1:{unused}/d"))
        .build()
        .unwrap();
    let server = Server::start(settings(&[]), pool, Router::new(), DatabaseKind::External).unwrap();
    let ready = get(server.addr(), "/health/ready");
    assert_eq!(
        (ready.status, ready.json()["status"].as_str()),
        (503, Some("starting"))
    );
    assert_eq!(get(server.addr(), "/health/live").status, 200);
}

#[test]
fn health_answers_at_once_while_every_worker_and_every_connection_is_busy() {
    let (server, pool) = serve(&database(), 2, &[("HTTP_WORKERS", "3")]);
    let addr = server.addr();
    get(addr, "/health");
    thread::scope(|scope| {
        let sleepers: Vec<_> = (0..6)
            .map(|_| scope.spawn(move || get(addr, "/api/sleep?1.5").status))
            .collect();
        eventually("all connections are held, one worker is in line", || {
            let stats = pool.stats();
            stats.active == 2 && stats.waiting == 1
        });
        let answer = get(addr, "/health");
        assert_eq!(answer.status, 200);
        let body = answer.json();
        assert_eq!(body["database"]["activeConnections"], 2);
        assert_eq!(body["database"]["waitingRequests"], 1);
        let mut times: Vec<Duration> = (0..11)
            .map(|_| {
                let started = Instant::now();
                assert_eq!(get(addr, "/health").status, 200);
                started.elapsed()
            })
            .collect();
        times.sort();
        // The median: other tests may make the machine busy at any one moment.
        assert!(times[5] < 50 * MS, "{times:?}");
        assert!(sleepers.into_iter().all(|s| s.join().unwrap() == 200));
    });
}

#[test]
fn metrics_have_their_names_in_both_forms() {
    let (server, _pool) = serve(&database(), 20, &[]);
    let body = get(server.addr(), "/api/metrics/db").json();
    for field in [
        "total",
        "idle",
        "active",
        "waiting",
        "max",
        "utilizationPercent",
    ] {
        assert!(body["pool"][field].is_number(), "{field}");
    }
    assert!(body["performance"]["latencyMs"].is_f64());
    eventually("the server's room was seen", || {
        let body = get(server.addr(), "/api/metrics/db").json();
        let room = &body["server"];
        let seen = ["maxConnections", "usedConnections", "availableConnections"];
        room["byApplication"].is_array() && seen.iter().all(|name| room[name].is_u64())
    });
    assert_eq!(body["config"]["maxConnections"], 20);
    assert_eq!(body["config"]["idleTimeoutMs"], 30000);
    assert_eq!(body["config"]["connectionTimeoutMs"], 2000);

    let answer = get(server.addr(), "/metrics");
    assert_eq!(
        answer.header("Content-Type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    for name in [
        "db_client_connection_count{",
        "db_client_connection_max{",
        "db_client_connection_idle_min{",
        "db_client_connection_pending_requests{",
        "db_client_connection_timeouts_total 0",
        "db_client_connection_create_time_seconds_bucket{le=\"0.2\"}",
        "db_client_connection_wait_time_seconds_count",
        "db_client_connection_use_time_seconds_sum",
        "db_client_operation_duration_seconds_bucket{db_system_name=\"postgresql\",le=\"0.5\"}",
        "http_server_request_duration_seconds_count{http_request_method=\"GET\",http_response_status_code=\"200\",http_route=\"/api/metrics/db\"}",
        "millpond_connect_failures_total{",
        "millpond_retries_total{",
        "millpond_connections_closed_total{reason=\"idle_timeout\"} 0",
        "millpond_commit_outcomes_total{outcome=\"committed\"} 0",
        "millpond_failing_fast 0",
        "millpond_probe_up 1",
        "millpond_build_info{version=\"",
    ] {
        assert!(
            answer.body.lines().any(|line| line.starts_with(name)),
            "{name}\n{}",
            answer.body
        );
    }
}

#[test]
fn errors_are_problems_and_head_has_no_body() {
    let (server, _pool) = serve(&database(), 1, &[("HTTP_MAX_BODY_BYTES", "10")]);
    let addr = server.addr();
    let nothing = ask(addr, "GET", "/nothing", "X-Request-Id: abc-1.2_3\r\n");
    assert_eq!(nothing.status, 404);
    assert_eq!(
        nothing.header("Content-Type"),
        Some("application/problem+json")
    );
    assert_eq!(nothing.header("X-Request-Id"), Some("abc-1.2_3"));
    let body = nothing.json();
    assert_eq!(
        (body["type"].as_str(), body["status"].as_u64()),
        (Some("about:blank"), Some(404))
    );
    assert_eq!(
        (body["title"].as_str(), body["requestId"].as_str()),
        (Some("Not Found"), Some("abc-1.2_3"))
    );

    let odd = ask(addr, "GET", "/nothing", "X-Request-Id: a b\r\n");
    assert!(odd.header("X-Request-Id").is_some_and(|id| id.len() == 16));

    let method = ask(addr, "POST", "/health", "Content-Length: 0\r\n");
    assert_eq!(
        (method.status, method.header("Allow")),
        (405, Some("GET, HEAD"))
    );
    let head = ask(addr, "HEAD", "/health/live", "");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert_eq!(
        head.header("Content-Length"),
        Some(get(addr, "/health/live").body.len().to_string().as_str())
    );

    let echo = |body: &str| {
        ask(
            addr,
            "POST",
            "/api/echo/it",
            &format!("Content-Length: {}\r\n\r\n{body}", body.len()),
        )
    };
    assert_eq!(echo("0123456789").body.trim_end(), "it=0123456789");
    assert_eq!(echo("0123456789a").status, 413);
    let chunked = ask(
        addr,
        "POST",
        "/api/echo/it",
        "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n",
    );
    assert_eq!((chunked.status, chunked.body.trim_end()), (200, "it=a"));

    let panicked = get(addr, "/api/panic");
    assert_eq!(
        (panicked.status, panicked.json()["type"].as_str()),
        (500, Some("about:blank"))
    );
    assert_eq!(get(addr, "/api/sleep?0").status, 200);
    let old = send(addr, "GET /health/live HTTP/1.0\r\n\r\n");
    assert_eq!((old.status, old.header("Connection")), (200, Some("close")));
}

#[test]
fn tokens_are_asked_for_where_they_are_set() {
    let (server, _pool) = serve(
        &database(),
        1,
        &[("API_TOKEN", "k3y"), ("METRICS_TOKEN", "m3t")],
    );
    let addr = server.addr();
    let with =
        |path: &str, token: &str| ask(addr, "GET", path, &format!("Authorization: {token}\r\n"));
    let refused = get(addr, "/metrics");
    assert_eq!(
        (refused.status, refused.header("WWW-Authenticate")),
        (401, Some("Bearer"))
    );
    for (path, token, status) in [
        ("/health", "", 200),
        ("/health/live", "", 200),
        ("/metrics", "Bearer m3t", 200),
        ("/metrics", "bearer m3t", 200),
        ("/api/metrics/db", "Bearer m3t", 200),
        ("/api/metrics/db", "Bearer k3y", 401),
        ("/metrics", "Basic m3t", 401),
        ("/api/sleep?0", "", 401),
        ("/api/sleep?0", "Bearer k3", 401),
        ("/api/sleep?0", "Bearer k3y", 200),
    ] {
        assert_eq!(with(path, token).status, status, "{path} {token}");
    }
}

#[test]
fn a_full_queue_and_a_spent_budget_are_503_with_retry_after() {
    let vars = [
        ("HTTP_WORKERS", "1"),
        ("HTTP_QUEUE", "1"),
        ("HTTP_REQUEST_TIMEOUT_MS", "700"),
    ];
    let (server, pool) = serve(&database(), 1, &vars);
    let addr = server.addr();
    pool.query("SELECT 1", &[]).unwrap();
    let answers: Vec<Answer> = thread::scope(|scope| {
        let first = scope.spawn(move || get(addr, "/api/sleep?60"));
        eventually("the worker is busy", || pool.stats().active == 1);
        let second = scope.spawn(move || get(addr, "/api/sleep?60"));
        eventually("the second is in line", || server.in_flight() == 2);
        let third = get(addr, "/api/sleep?60");
        vec![first.join().unwrap(), second.join().unwrap(), third]
    });
    let kinds: Vec<_> = answers
        .iter()
        .map(|a| a.json()["type"].as_str().unwrap().to_owned())
        .collect();
    // The first request runs out of time in its statement, the second in line; the third finds the
    // line full.
    assert_eq!(
        kinds,
        [
            "urn:millpond:timeout",
            "urn:millpond:timeout",
            "urn:millpond:overloaded"
        ]
    );
    for answer in &answers {
        assert_eq!(
            (answer.status, answer.header("Retry-After")),
            (503, Some("1"))
        );
    }
}

#[test]
fn a_drain_finishes_what_is_in_flight_and_refuses_what_is_new() {
    let (server, pool) = serve(&database(), 2, &[]);
    let addr = server.addr();
    let report: DrainReport = thread::scope(|scope| {
        let sleeper = scope.spawn(move || get(addr, "/api/sleep?3"));
        eventually("the request runs", || pool.stats().active == 1);
        let stopping = scope.spawn(move || server.shut_down(2 * SECOND, 20 * SECOND));
        eventually("it drains", || {
            get(addr, "/health/ready").json()["status"] == "draining"
        });
        // Within the delay, requests are still served, but their connections are closed.
        let served = get(addr, "/api/sleep?0");
        assert_eq!(
            (served.status, served.header("Connection")),
            (200, Some("close"))
        );
        eventually("new requests are refused", || {
            get(addr, "/api/sleep?0").status == 503
        });
        let refused = get(addr, "/api/sleep?0");
        assert_eq!(refused.json()["type"], "urn:millpond:draining");
        let health = get(addr, "/health");
        assert_eq!(health.json()["draining"], true);
        assert_eq!(sleeper.join().unwrap().status, 200);
        stopping.join().unwrap()
    });
    assert!(report.is_clean(), "{report}");
    assert_eq!(pool.stats().total, 0);
}

#[test]
fn a_drain_cancels_what_does_not_finish_in_time() {
    let (server, pool) = serve(&database(), 2, &[]);
    let addr = server.addr();
    thread::scope(|scope| {
        let sleeper = scope.spawn(move || get(addr, "/api/sleep?60"));
        eventually("the request runs", || pool.stats().active == 1);
        let started = Instant::now();
        let report = server.shut_down(Duration::ZERO, 8 * SECOND);
        assert!(started.elapsed() < 12 * SECOND);
        assert!(!report.is_clean());
        assert_eq!(
            (report.pool.cancelled, report.requests_cut),
            (1, 0),
            "{report}"
        );
        assert_eq!(sleeper.join().unwrap().status, 503);
    });
}

/// A pool without a reachable database, for routes that need none.
fn nowhere() -> Pool {
    let pool = Pool::builder().database_url("postgresql://u:p@127.0.0.1:1/d");
    pool.build().unwrap()
}

#[test]
fn an_embedders_answers_are_sent_as_they_are_meant() {
    // Path; status line; whether a Content-Length is sent; body.
    let rows = [
        ("/204", "204 No Content", false, ""),
        ("/304", "304 Not Modified", false, ""),
        ("/302", "302 Found", true, "text"),
        ("/403", "403 Forbidden", true, "text"),
        ("/429", "429 Too Many Requests", true, "text"),
        ("/503", "503 Service Unavailable", true, "text"),
    ];
    let router = rows.iter().fold(Router::new(), |router, (path, ..)| {
        let status = path[1..].parse().unwrap();
        router.route("GET", path, Lane::Api, Access::Open, move |_| {
            Ok(Response::bytes(status, "text/plain", "text")
                .header("Content-Length", "7")
                .header("Transfer-Encoding", "chunked")
                .header("connection", "upgrade")
                .header("Two\r\nLines", "x")
                .header("Location", "/elsewhere"))
        })
    });
    let router = router
        .route("GET", "/0", Lane::Api, Access::Open, |_| {
            Ok(Response::bytes(0, "text/plain", "text"))
        })
        .route("GET", "/echo/{what}", Lane::Api, Access::Open, |request| {
            let what = request.param("what").unwrap_or_default();
            Ok(Response::bytes(200, "text/plain", what))
        });
    let server = Server::start(settings(&[]), nowhere(), router, DatabaseKind::External).unwrap();
    let addr = server.addr();
    for (path, line, has_length, body) in rows {
        let answer = get(addr, path);
        assert!(
            answer.head.starts_with(&format!("HTTP/1.1 {line}\r\n")),
            "{answer:?}"
        );
        let lengths = answer.head.matches("Content-Length").count();
        assert_eq!(
            (lengths, answer.body.as_str()),
            (usize::from(has_length), body),
            "{answer:?}"
        );
        assert_eq!(answer.header("Location"), Some("/elsewhere"));
        assert!(
            !answer.head.contains("chunked") && !answer.head.contains("upgrade"),
            "{answer:?}"
        );
        assert!(!answer.head.contains("Lines"), "{answer:?}");
        if has_length {
            assert_eq!(answer.header("Content-Length"), Some("4"), "{answer:?}");
        }
    }
    assert_eq!(get(addr, "/0").status, 500);
    assert_eq!(get(addr, "/echo/a%2Fb%20%C3%A4").body, "a/b ä");
    assert_eq!(get(addr, "/echo/%ff").status, 400);
    let start = get(addr, "/");
    assert_eq!(start.status, 200);
    assert!(
        start.body.contains("href=\"/health\"") && !start.body.contains("openapi"),
        "{start:?}"
    );
}

#[test]
fn routes_that_could_never_be_reached_are_refused_by_name() {
    let ok = |_: &_| Ok(Response::bytes(200, "text/plain", ""));
    let router = Router::new()
        .route("get", "/notes", Lane::Api, Access::Open, ok)
        .route("GET", "/metrics", Lane::Api, Access::Open, ok);
    let refused = Server::start(settings(&[]), nowhere(), router, DatabaseKind::External)
        .err()
        .unwrap();
    let said = refused.to_string();
    assert!(
        said.contains("get /notes: a method is written in capitals"),
        "{said}"
    );
    assert!(
        said.contains("GET /metrics: this route exists already"),
        "{said}"
    );
}

#[test]
fn pages_of_other_sites_are_refused_unless_they_are_named() {
    let router = || {
        let ok = |_: &_| Ok(Response::bytes(200, "text/plain", "done"));
        Router::new()
            .route("POST", "/api/pay", Lane::Api, Access::Api, ok)
            .route("GET", "/api/pay", Lane::Api, Access::Api, ok)
    };
    let vars = [(
        "HTTP_CORS_ORIGINS",
        "https://app.example,http://other.example:8080",
    )];
    let server =
        Server::start(settings(&vars), nowhere(), router(), DatabaseKind::External).unwrap();
    let addr = server.addr();
    let raw = |method: &str, headers: &str| {
        send(
            addr,
            &format!("{method} /api/pay HTTP/1.1\r\nConnection: close\r\n{headers}\r\n"),
        )
    };
    let evil = raw(
        "POST",
        "Host: localhost\r\nOrigin: https://evil.example\r\n",
    );
    assert_eq!(
        (evil.status, evil.header("Access-Control-Allow-Origin")),
        (403, None)
    );
    assert_eq!(raw("POST", "Host: evil.example\r\n").status, 403);
    assert_eq!(
        raw("GET", "Host: localhost\r\nSec-Fetch-Site: cross-site\r\n").status,
        403
    );
    assert_eq!(raw("POST", "Host: localhost\r\n").status, 200);
    let page = "Host: localhost\r\nOrigin: https://app.example\r\nSec-Fetch-Site: cross-site\r\n";
    let named = raw("POST", page);
    assert_eq!(
        (
            named.status,
            named.header("Access-Control-Allow-Origin"),
            named.header("Vary")
        ),
        (200, Some("https://app.example"), Some("Origin"))
    );
    let asks = "Access-Control-Request-Method: POST\r\n";
    let before = raw("OPTIONS", &format!("{page}{asks}"));
    assert_eq!(
        (
            before.status,
            before.header("Access-Control-Allow-Methods"),
            before.body.as_str()
        ),
        (204, Some("POST, GET, HEAD"), "")
    );
    let evil = raw(
        "OPTIONS",
        &format!("Host: localhost\r\nOrigin: https://evil.example\r\n{asks}"),
    );
    assert_eq!(
        (evil.status, evil.header("Access-Control-Allow-Origin")),
        (405, None)
    );
    // The token alone keeps other pages out, so that the Host header does not matter. A listed page
    // may read the refusal of a request without the token.
    let vars = [vars[0], ("API_TOKEN", "t")];
    let server =
        Server::start(settings(&vars), nowhere(), router(), DatabaseKind::External).unwrap();
    let ask = |headers: &str| {
        send(
            server.addr(),
            &format!("POST /api/pay HTTP/1.1\r\nConnection: close\r\n{headers}\r\n"),
        )
    };
    let without = ask(page);
    assert_eq!(
        (
            without.status,
            without.header("Access-Control-Allow-Origin")
        ),
        (401, Some("https://app.example"))
    );
    assert_eq!(
        ask("Host: api.example\r\nAuthorization: Bearer t\r\n").status,
        200
    );
}

#[test]
fn who_asks_whether_it_lives_does_not_wait_behind_those_who_ask_for_the_database() {
    // Both ends of each connection are in this process.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let database = private(&[]);
    let pool = super::support::pool(&database.url()).build().unwrap();
    let server = Server::start(
        settings(&[]),
        pool,
        Router::new().that_writes(),
        DatabaseKind::External,
    )
    .unwrap();
    let addr = server.addr();
    eventually("it is ready", || get(addr, "/health/ready").status == 200);
    // Afterwards the probe has an idle connection: a connection that is opened during the freeze
    // might not be frozen.
    assert_eq!(get(addr, "/health").status, 200);
    thread::sleep(500 * MS);
    let frozen = super::servers::Frozen::tree(database.pid().unwrap());
    // Longer than the last answer is shared.
    thread::sleep(300 * MS);
    // Each client waits for the probe. There are enough of them to fill the queue before the
    // workers.
    let askers: Vec<_> = (0..1500)
        .map(|_| {
            let mut asker = TcpStream::connect(addr).unwrap();
            let request = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
            asker.write_all(request).unwrap();
            asker
        })
        .collect();
    for _ in 0..10 {
        for path in ["/health/live", "/health/ready"] {
            let asked = Instant::now();
            assert_eq!(get(addr, path).status, 200);
            let most = 400 * MS + super::frozen::slack();
            assert!(asked.elapsed() < most, "{path}: {:?}", asked.elapsed());
        }
        thread::sleep(50 * MS);
    }
    for mut asker in askers {
        let mut answer = String::new();
        asker.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    }
    frozen.thaw();
}
