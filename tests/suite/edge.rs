//! Hostile and clumsy clients at the public listener: which requests are refused, which are served,
//! and that other clients are not affected.

use super::cli::serve;
use super::http::{Answer, Client, get, settings};
use super::support::{EndAtDrop, MS, SECOND, database, eventually, memory};
use millpond::server::{Access, DatabaseKind, Lane, Response, Router, Server};
use millpond::{Config, Pool};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub struct Edge {
    server: Server,
    pool: Pool,
    pub addr: SocketAddr,
    /// Number of requests that have reached the route `/api/count`.
    pub reached: Arc<AtomicUsize>,
}

pub fn edge(vars: &[(&str, &str)]) -> Edge {
    let pool = database().pool().max_size(2).build().unwrap();
    let reached = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&reached);
    let count = move |request: &millpond::server::Request| {
        counted.fetch_add(1, Ordering::SeqCst);
        let said = format!(
            "{} {} {}",
            request.client,
            request.query,
            request.body.len()
        );
        Ok(Response::bytes(200, "text/plain", said))
    };
    let sleep = |request: &millpond::server::Request| {
        thread::sleep(request.query.parse::<u32>().unwrap() * MS);
        Ok(Response::bytes(200, "text/plain", "x".repeat(100)))
    };
    let long = |request: &millpond::server::Request| {
        Ok(Response::bytes(
            200,
            "text/plain",
            "x".repeat(request.query.parse().unwrap()),
        ))
    };
    let router = Router::new()
        .route("GET", "/api/count", Lane::Api, Access::Open, count.clone())
        .route("POST", "/api/count", Lane::Api, Access::Open, count.clone())
        .route("POST", "/api/secret", Lane::Api, Access::Api, count.clone())
        .route("GET", "/api/sleep", Lane::Api, Access::Open, sleep)
        .route("GET", "/api/long", Lane::Api, Access::Open, long);
    let server =
        Server::start(settings(vars), pool.clone(), router, DatabaseKind::External).unwrap();
    let addr = server.addr();
    Edge {
        server,
        pool,
        addr,
        reached,
    }
}

fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(20 * SECOND)).unwrap();
    stream
}

/// Reads until the server closes the connection or resets it.
fn rest_of(mut stream: TcpStream) -> String {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => all.extend_from_slice(&buffer[..read]),
            Err(e) if e.kind() == ErrorKind::ConnectionReset => break,
            Err(e) => panic!("{e}: {:?}", String::from_utf8_lossy(&all)),
        }
    }
    String::from_utf8(all).unwrap()
}

pub fn send(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = connect(addr);
    // The server may refuse the request before all of it is sent.
    let _ = stream.write_all(bytes);
    rest_of(stream)
}

pub fn statuses(answers: &str) -> Vec<u16> {
    let heads = answers.split("HTTP/1.1 ").skip(1);
    heads
        .filter_map(|head| head.get(..3)?.parse().ok())
        .collect()
}

/// A client whose request takes `ms` milliseconds and is the `nth` in flight.
fn sleeper(edge: &Edge, ms: u32, nth: usize) -> TcpStream {
    let mut stream = connect(edge.addr);
    let asked = format!("GET /api/sleep?{ms} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    stream.write_all(asked.as_bytes()).unwrap();
    eventually("it is in flight", || edge.server.in_flight() == nth);
    stream
}

#[test]
fn what_is_no_clean_request_is_refused_and_the_next_client_is_served() {
    let edge = edge(&[("HTTP_MAX_BODY_BYTES", "100")]);
    let long_head = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
        "y".repeat(20_000)
    );
    let many = format!(
        "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
        "X: y\r\n".repeat(100)
    );
    let rows: &[(&str, u16)] = &[
        (
            "POST /api/count HTTP/1.1\r\nHost: a\r\nContent-Length: 30000000000\r\n\r\n",
            413,
        ),
        (
            "POST /api/count HTTP/1.1\r\nHost: a\r\nContent-Length: 101\r\n\r\n",
            413,
        ),
        (
            "POST /api/count HTTP/1.1\r\nHost: a\r\nContent-Length: abc\r\n\r\nGET /api/count HTTP/1.1\r\nHost: a\r\n\r\n",
            400,
        ),
        (
            "POST /api/count HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
            400,
        ),
        (
            "POST /api/count HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
        ),
        (
            "POST /api/count HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
            400,
        ),
        ("GET /api/count HTTP/1.1\nHost: a\n\n", 400),
        (
            "GET /api/count HTTP/1.1\r\nHost: a\r\nX: \u{1}\r\n\r\n",
            400,
        ),
        ("GET /api/count HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET /api/count HTTP/1.1\r\n\r\n", 400),
        ("GET /api/count HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        ("GET /api/count\r\n\r\n", 400),
        ("\u{16}\u{3}\u{1} hello over TLS", 400),
        (
            "GET /api/count HTTP/1.1\r\nHost: a\r\nExpect: something\r\n\r\n",
            417,
        ),
        (
            "GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nabc",
            413,
        ),
        (&long_head, 431),
        (&many, 431),
    ];
    for (request, status) in rows {
        let answer = send(edge.addr, request.as_bytes());
        assert_eq!(statuses(&answer), [*status], "{request:.200} {answer}");
        assert!(answer.contains("Connection: close"), "{answer}");
        assert!(answer.contains("application/problem+json"), "{answer}");
        assert_eq!(get(edge.addr, "/health/live").status, 200, "{request:.200}");
    }
    assert_eq!(
        edge.reached.load(Ordering::SeqCst),
        0,
        "nothing of it was done"
    );
}

#[test]
fn what_leads_nowhere_or_has_no_token_is_told_so_before_its_body_and_without_a_worker() {
    let edge = edge(&[("API_TOKEN", "k"), ("HTTP_WORKERS", "1")]);
    let secret = "POST /api/secret HTTP/1.1\r\nHost: a\r\n";
    let token = "Authorization: Bearer k\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc";
    let answer = send(edge.addr, [secret, token].concat().as_bytes());
    assert_eq!(statuses(&answer), [200], "{answer}");
    // The only worker is busy.
    let _sleeper = sleeper(&edge, 5000, 1);
    let nowhere = "GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n";
    let other = "DELETE /api/count HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    // A connection is kept if the refused request's body has already arrived. It is closed if the
    // body is still to come: the server cannot tell where the next request begins.
    let small = format!("{secret}Content-Length: {}\r\n\r\n{nowhere}", nowhere.len());
    let large = format!("{secret}Content-Length: 100000\r\n\r\n{nowhere}");
    let answer = send(
        edge.addr,
        [nowhere, other, &small, &large].concat().as_bytes(),
    );
    assert_eq!(statuses(&answer), [404, 405, 401, 401], "{answer}");
    assert_eq!(answer.matches("Connection: close").count(), 1, "{answer}");
    let waiting = format!("{secret}Expect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    assert_eq!(statuses(&send(edge.addr, waiting.as_bytes())), [401]);
    assert_eq!(edge.reached.load(Ordering::SeqCst), 1);
    assert_eq!(edge.server.in_flight(), 1, "the worker is busy still");
}

#[test]
fn who_is_refused_and_sends_its_body_all_the_same_can_read_why() {
    let edge = edge(&[("API_TOKEN", "k"), ("HTTP_BODY_TIMEOUT_MS", "300")]);
    let length = 500_000;
    let post = |path: &str, length: usize| {
        format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n")
    };
    for (head, status) in [
        (post("/api/secret", length), 401),
        (post("/nowhere", length), 404),
        (post("/api/count", 2 << 20), 413),
        // Half of the body is sent in time, the rest too late.
        (post("/api/count", length) + &"x".repeat(length / 2), 408),
    ] {
        let mut stream = connect(edge.addr);
        stream.write_all(head.as_bytes()).unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).unwrap();
        assert_eq!(first, format!("HTTP/1.1 {status}").as_bytes());
        for _ in 0..10 {
            stream.write_all(&vec![b'x'; length / 20]).unwrap();
            thread::sleep(10 * MS);
        }
        stream.shutdown(Shutdown::Write).unwrap();
        let rest = rest_of(stream);
        assert!(rest.contains("Connection: close"), "{rest}");
        assert!(rest.ends_with('}'), "{rest}");
    }
    assert_eq!(edge.reached.load(Ordering::SeqCst), 0);
}

#[test]
fn who_sends_without_end_keeps_nobody_waiting() {
    // Once as requests, once as the empty lines that may stand before a request.
    for unit in ["GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n", "\r\n"] {
        without_end(unit);
    }
}

fn without_end(unit: &str) {
    let edge = edge(&[]);
    let over = AtomicBool::new(false);
    let mut stream = connect(edge.addr);
    let mut answers = stream.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let many = unit.repeat(40_000 / unit.len());
            // A connection that sends only empty lines makes no request, and is closed at some
            // point.
            while !over.load(Ordering::SeqCst) && stream.write_all(many.as_bytes()).is_ok() {
                std::hint::spin_loop();
            }
            let _ = stream.shutdown(Shutdown::Both);
        });
        scope.spawn(move || io::copy(&mut answers, &mut io::sink()));
        let end = EndAtDrop(&over);
        for _ in 0..20 {
            assert_eq!(get(edge.addr, "/api/count").status, 200);
        }
        drop(end);
    });
}

#[test]
fn a_second_request_inside_the_first_never_runs() {
    let edge = edge(&[]);
    let hidden = "GET /api/count?hidden HTTP/1.1\r\nHost: a\r\n\r\n";
    let length = hidden.len();
    let first =
        |headers: &str| format!("POST /api/count HTTP/1.1\r\nHost: a\r\n{headers}\r\n{hidden}");
    for headers in [
        format!("Content-Length: {length}\r\nContent-Length: 0\r\n"),
        "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n".into(),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n"),
        "Transfer-Encoding: xchunked\r\n".into(),
        "Transfer-Encoding : chunked\r\n".into(),
        "Content-Length: +0\r\n".into(),
        "Content-Length: 0x0\r\n".into(),
        "Content-Length: 0,0\r\n".into(),
        "X: y\r\n Content-Length: 5\r\n".into(),
        "X: y\nContent-Length: 5\r\n".into(),
    ] {
        let answer = send(edge.addr, first(&headers).as_bytes());
        let refused = statuses(&answer);
        assert!(refused == [400] || refused == [501], "{headers:?} {answer}");
    }
    assert_eq!(edge.reached.load(Ordering::SeqCst), 0);
    // With a correct Content-Length, the same bytes are a body.
    let mut stream = connect(edge.addr);
    let whole = first(&format!(
        "Content-Length: {length}\r\nConnection: close\r\n"
    ));
    stream.write_all(whole.as_bytes()).unwrap();
    let answer = rest_of(stream);
    assert_eq!(statuses(&answer), [200]);
    assert!(answer.ends_with(&format!(" {length}")), "{answer}");
    assert_eq!(edge.reached.load(Ordering::SeqCst), 1);
}

#[test]
fn pipelined_requests_are_answered_in_order_one_at_a_time() {
    let edge = edge(&[]);
    let mut stream = connect(edge.addr);
    let requests: String = (0..50)
        .map(|n| format!("POST /api/count?{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"))
        .collect();
    let last = "GET /api/count?last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let since = Instant::now();
    stream.write_all((requests + last).as_bytes()).unwrap();
    let answers = rest_of(stream);
    // Each request waits only for the one before it.
    assert!(since.elapsed() < 2 * SECOND, "{:?}", since.elapsed());
    assert_eq!(statuses(&answers), [200; 51]);
    let order: Vec<_> = answers
        .split("127.0.0.1 ")
        .skip(1)
        .map(|text| text.split(' ').next().unwrap().to_owned())
        .collect();
    let wanted: Vec<_> = (0..50)
        .map(|n| n.to_string())
        .chain(["last".into()])
        .collect();
    assert_eq!(order, wanted);
}

#[test]
fn who_waits_with_its_body_is_told_to_go_on_or_not() {
    let edge = edge(&[("HTTP_MAX_BODY_BYTES", "100")]);
    let head = |length: usize| {
        format!(
            "POST /api/count HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
        )
    };
    let mut stream = connect(edge.addr);
    stream.write_all(head(3).as_bytes()).unwrap();
    let mut go_on = [0; 25];
    stream.read_exact(&mut go_on).unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"abc").unwrap();
    assert_eq!(statuses(&rest_of(stream)), [200]);
    let refused = send(edge.addr, head(101).as_bytes());
    assert_eq!(statuses(&refused), [413], "before the body is sent");
}

#[test]
fn old_clients_and_those_who_have_nothing_more_to_say_are_answered() {
    let edge = edge(&[]);
    // The health check of a load balancer that still speaks HTTP/1.0.
    let old = send(edge.addr, b"GET /health/live HTTP/1.0\r\n\r\n");
    assert_eq!(statuses(&old), [200]);
    assert!(old.contains("Connection: close"), "{old}");
    let head = send(
        edge.addr,
        b"HEAD /health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    );
    assert!(
        head.ends_with("\r\n\r\n") && head.contains("Content-Length: 18"),
        "{head}"
    );
    let blank = send(
        edge.addr,
        b"\r\n\r\nGET /health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(statuses(&blank), [200]);
    let proxied = send(
        edge.addr,
        b"GET http://a/health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(statuses(&proxied), [200]);
    // Half-closed: the client sends nothing more, but still reads.
    let mut half = connect(edge.addr);
    half.write_all(b"GET /api/sleep?200 HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    assert_eq!(statuses(&rest_of(half)), [200]);
    // The same on a kept connection, with the close in the packet of the last request.
    for _ in 0..5 {
        let mut kept = connect(edge.addr);
        kept.write_all(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
        let mut first = [0; 12];
        kept.read_exact(&mut first).unwrap();
        socket2::SockRef::from(&kept).set_tcp_cork(true).unwrap();
        kept.write_all(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
        kept.shutdown(Shutdown::Write).unwrap();
        assert_eq!(statuses(&rest_of(kept)), [200], "and the end is heard");
    }
    // Half a request, then the end of the stream, does not count as a request.
    let mut half = connect(edge.addr);
    half.write_all(b"GET /api/count HTTP/1.1\r\nHo").unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest_of(half), "");
    assert_eq!(edge.reached.load(Ordering::SeqCst), 0);
}

#[test]
fn a_key_that_is_no_ascii_is_refused_and_other_headers_do_not_matter() {
    let edge = edge(&[]);
    let with = |header: &str| {
        let request =
            format!("GET /api/count HTTP/1.1\r\nHost: a\r\n{header}\r\nConnection: close\r\n\r\n");
        statuses(&send(edge.addr, request.as_bytes()))
    };
    assert_eq!(with("Idempotency-Key: schlüssel"), [400]);
    assert_eq!(with("User-Agent: Zoë"), [200]);
    assert_eq!(with("Number: 1 1 1.1.1.1 a b"), [200]);
}

#[test]
fn slow_clients_are_told_when_their_time_is_over() {
    let edge = edge(&[
        ("HTTP_HEADER_TIMEOUT_MS", "300"),
        ("HTTP_BODY_TIMEOUT_MS", "300"),
        ("HTTP_IDLE_TIMEOUT_MS", "600"),
    ]);
    // One client sends nothing, one sends half a head and then a byte now and then, one sends half
    // a body.
    let silent = connect(edge.addr);
    let mut dripping = connect(edge.addr);
    let drip = thread::spawn(move || {
        for byte in b"GET /api/count HTTP/1.1\r\nHost: abcdefghijklmnopqrstuvwxyz\r\n\r\n" {
            if dripping.write_all(&[*byte]).is_err() {
                break;
            }
            thread::sleep(50 * MS);
        }
        rest_of(dripping)
    });
    let mut half = connect(edge.addr);
    half.write_all(b"POST /api/count HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
        .unwrap();
    assert_eq!(rest_of(silent), "");
    assert_eq!(statuses(&rest_of(half)), [408]);
    // The bytes that the client sends after the answer can reset the connection, and the answer is
    // lost.
    let told = statuses(&drip.join().unwrap());
    assert!(told == [408] || told.is_empty(), "{told:?}");
    // Between two requests the timeout is longer, and the server closes without an answer.
    let mut kept = Client::to(edge.addr);
    assert_eq!(kept.ask("GET", "/health/live", "", b"").status, 200);
    thread::sleep(400 * MS);
    assert_eq!(kept.ask("GET", "/health/live", "", b"").status, 200);
    assert_eq!(kept.until_closed(), "");
    assert_eq!(edge.reached.load(Ordering::SeqCst), 0);
}

#[test]
fn a_client_that_does_not_read_is_left_and_holds_up_nobody() {
    let edge = edge(&[("HTTP_WRITE_TIMEOUT_MS", "400"), ("HTTP_WORKERS", "1")]);
    // More than the system's socket buffers hold.
    let bytes = 30_000_000;
    let mut deaf = connect(edge.addr);
    let request = format!("GET /api/long?{bytes} HTTP/1.1\r\nHost: a\r\n\r\n");
    deaf.write_all(request.as_bytes()).unwrap();
    eventually("its answer is on its way", || edge.server.in_flight() == 1);
    for _ in 0..5 {
        assert_eq!(
            get(edge.addr, "/api/count").status,
            200,
            "the only worker is free"
        );
    }
    eventually("it is left", || edge.server.in_flight() == 0);
    assert!(rest_of(deaf).len() < bytes);
    // A client that reads slowly gets the whole answer.
    let mut slow = connect(edge.addr);
    slow.write_all(b"GET /api/long?8000000 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut read = 0;
    let mut buffer = vec![0; 200_000];
    loop {
        match slow.read(&mut buffer).unwrap() {
            0 => break,
            more => read += more,
        }
        thread::sleep(10 * MS);
    }
    assert!(read > 8_000_000);
}

#[test]
fn who_reads_at_twice_the_least_rate_is_not_left() {
    let edge = edge(&[("HTTP_WRITE_TIMEOUT_MS", "1000")]);
    let mut slow = connect(edge.addr);
    // More than the system's socket buffers hold; the client reads 32 KiB of it per second.
    slow.write_all(b"GET /api/long?30000000 HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let mut piece = [0; 16 * 1024];
    for _ in 0..16 {
        slow.read_exact(&mut piece).unwrap();
        thread::sleep(500 * MS);
        assert_eq!(edge.server.in_flight(), 1, "it is left");
    }
}

#[test]
fn who_pipelines_without_reading_costs_little() {
    let db = database();
    let dir = tempfile::TempDir::new().unwrap();
    let vars = [
        ("DATABASE_URL", db.url.as_str()),
        ("HTTP_WRITE_TIMEOUT_MS", "1000"),
    ];
    // The server runs in a process of its own: other tests in this process allocate memory too.
    let serving = serve(dir.path(), &vars);
    let addr = SocketAddr::from(([127, 0, 0, 1], serving.port));
    eventually("it serves", || get(addr, "/api/studios").status == 200);
    let before = memory(serving.child.id(), "VmRSS");
    let mut stream = connect(addr);
    stream.set_write_timeout(Some(200 * MS)).unwrap();
    let many = "GET /api/studios HTTP/1.1\r\nHost: a\r\n\r\n".repeat(200_000);
    // The server takes requests no faster than it answers them.
    let sent = stream.write_all(many.as_bytes());
    assert!(sent.is_err(), "all of it was taken");
    assert_eq!(get(addr, "/health/live").status, 200);
    let grown = memory(serving.child.id(), "VmRSS").saturating_sub(before);
    assert!(grown < 50_000, "{grown} kB");
    // The server has closed the connection, so that further bytes are answered with a reset.
    eventually("it is left", || {
        let sent = stream.write_all(b"GET");
        sent.is_err_and(|e| !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
    });
}

#[test]
fn at_the_limit_the_one_idle_longest_makes_room() {
    let edge = edge(&[("HTTP_MAX_CONNECTIONS", "20")]);
    let mut oldest = Client::to(edge.addr);
    assert_eq!(oldest.ask("GET", "/health/live", "", b"").status, 200);
    let busy = sleeper(&edge, 2000, 1);
    let slow: Vec<_> = (0..60)
        .map(|_| {
            let mut slow = connect(edge.addr);
            slow.write_all(b"GET /").unwrap();
            slow
        })
        .collect();
    for _ in 0..5 {
        assert_eq!(get(edge.addr, "/health/live").status, 200);
    }
    assert_eq!(oldest.until_closed(), "");
    assert_eq!(
        statuses(&rest_of(busy)),
        [200],
        "who has a request in flight stays"
    );
    drop(slow);
}

#[test]
fn two_hundred_who_come_at_once_are_all_answered() {
    let edge = edge(&[]);
    let since = Instant::now();
    let mut all: Vec<_> = (0..200).map(|_| connect(edge.addr)).collect();
    for stream in &mut all {
        stream
            .write_all(b"GET /health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .unwrap();
    }
    for stream in all {
        assert_eq!(statuses(&rest_of(stream)), [200]);
    }
    let took = since.elapsed();
    assert!(took < 500 * MS + crate::frozen::slack(), "{took:?}");
}

#[test]
fn a_client_that_goes_away_in_the_middle_harms_nobody() {
    let edge = edge(&[("HTTP_WORKERS", "2")]);
    for _ in 0..20 {
        let mut gone = connect(edge.addr);
        gone.write_all(b"GET /api/sleep?50 HTTP/1.1\r\nHost: a\r\n\r\n")
            .unwrap();
        // Resets the connection, with the answer still unread.
        socket2::SockRef::from(&gone)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    }
    let mut kept = Client::to(edge.addr);
    for n in 0..20 {
        let answer: Answer = kept.ask("GET", &format!("/api/count?{n}"), "", b"");
        assert_eq!(
            answer.body,
            format!("127.0.0.1 {n} 0"),
            "its own answer, and nobody else's"
        );
    }
    eventually("nothing is left in flight", || edge.server.in_flight() == 0);
    assert!(!edge.pool.is_closed());
}

#[test]
fn who_resets_its_connection_does_not_take_the_next_ones_with_it() {
    let edge = edge(&[]);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let mut stream = connect(edge.addr);
                    // Load balancers close with a reset. The server may see it only after the next
                    // connection has come.
                    socket2::SockRef::from(&stream)
                        .set_linger(Some(Duration::ZERO))
                        .unwrap();
                    stream
                        .write_all(
                            b"GET /health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
                        )
                        .unwrap();
                    let mut first = [0; 12];
                    stream.read_exact(&mut first).unwrap();
                    assert_eq!(&first, b"HTTP/1.1 200");
                }
            });
        }
    });
}

#[test]
fn a_body_on_a_kept_connection_does_not_stall() {
    let edge = edge(&[]);
    let mut client = Client::to(edge.addr);
    let body = vec![b'x'; 2048];
    let mut times: Vec<Duration> = (0..101)
        .map(|_| {
            let since = Instant::now();
            assert_eq!(client.ask("POST", "/api/count", "", &body).status, 200);
            since.elapsed()
        })
        .collect();
    times.sort();
    assert!(times[50] < 20 * MS, "{:?}", times[50]);
}

#[test]
fn only_a_trusted_proxy_is_believed_about_who_asks() {
    for (trusted, client) in [
        (None, "127.0.0.1"),
        (Some("127.0.0.0/8, 10.0.0.1"), "203.0.113.7"),
    ] {
        let vars: Vec<_> = trusted
            .map(|t| ("HTTP_TRUSTED_PROXIES", t))
            .into_iter()
            .collect();
        let edge = edge(&vars);
        for header in [
            "X-Forwarded-For: 6.6.6.6, 203.0.113.7, 10.0.0.1\r\n",
            "Forwarded: for=6.6.6.6, for=203.0.113.7;proto=https\r\n",
            // The client sent `Forwarded`; the proxy passed it on and added `X-Forwarded-For`.
            "Forwarded: for=6.6.6.6\r\nX-Forwarded-For: 203.0.113.7\r\n",
        ] {
            let answer = Client::to(edge.addr).ask("GET", "/api/count", header, b"");
            assert!(
                answer.body.starts_with(&format!("{client} ")),
                "{trusted:?} {answer:?}"
            );
        }
    }
    let bad = Config::from_vars([("HTTP_TRUSTED_PROXIES", "10.0.0.0/8,proxy")]).unwrap_err();
    assert!(bad.to_string().contains("HTTP_TRUSTED_PROXIES"), "{bad}");
}

#[test]
fn the_line_is_no_longer_than_it_may_be_however_requests_come() {
    let edge = edge(&[("HTTP_WORKERS", "1"), ("HTTP_QUEUE", "4")]);
    // A client that leaves the queue frees exactly one place.
    let first = sleeper(&edge, 5000, 1);
    for _ in 0..10 {
        let gone = sleeper(&edge, 5000, 2);
        socket2::SockRef::from(&gone)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(gone);
        eventually("it is gone", || edge.server.in_flight() == 1);
    }
    // All heads first, then the bodies.
    let mut all: Vec<_> = (0..20)
        .map(|_| {
            let mut stream = connect(edge.addr);
            let head = b"POST /api/count HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nConnection: close\r\n\r\n";
            stream.write_all(head).unwrap();
            stream
        })
        .collect();
    get(edge.addr, "/health/live");
    for stream in &mut all {
        stream.write_all(b"abc").unwrap();
    }
    let told: Vec<u16> = all
        .into_iter()
        .flat_map(|s| statuses(&rest_of(s)))
        .collect();
    let served = told.iter().filter(|status| **status == 200).count();
    assert_eq!((served, told.len()), (4, 20), "{told:?}");
    assert!(told.iter().all(|status| [200, 503].contains(status)));
    assert_eq!(statuses(&rest_of(first)), [200]);
}

#[test]
fn who_was_answered_finds_room_for_the_next_request_where_there_is_no_line() {
    let edge = edge(&[("HTTP_WORKERS", "1"), ("HTTP_QUEUE", "0")]);
    let mut stream = connect(edge.addr);
    let again = "GET /api/count HTTP/1.1\r\nHost: a\r\n\r\n".repeat(200);
    let last = "GET /api/count HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    stream.write_all((again + last).as_bytes()).unwrap();
    assert_eq!(statuses(&rest_of(stream)), [200; 201]);
}

#[test]
fn behind_slow_requests_the_other_workers_go_on() {
    // The pool has two connections, so that at most two quick requests run at once.
    let edge = edge(&[("HTTP_WORKERS", "4")]);
    let slow: Vec<_> = (1..=3).map(|n| sleeper(&edge, 5000, n)).collect();
    for _ in 0..10 {
        assert_eq!(get(edge.addr, "/api/count").status, 200);
    }
    eventually("the slow ones are still there", || {
        edge.server.in_flight() == 3
    });
    for stream in slow {
        assert_eq!(statuses(&rest_of(stream)), [200]);
    }
}

#[test]
fn who_waits_at_the_workers_door_is_told_when_its_time_is_over_and_never_runs() {
    let edge = edge(&[("HTTP_WORKERS", "1"), ("HTTP_REQUEST_TIMEOUT_MS", "500")]);
    let body = vec![b'x'; 600_000];
    for body in [&b"abc"[..], &body] {
        let slow = sleeper(&edge, 4000, 1);
        let answer = Client::to(edge.addr).ask("POST", "/api/count", "", body);
        assert_eq!(answer.status, 503, "{answer:?}");
        eventually("the worker is still at the other", || {
            edge.server.in_flight() == 1
        });
        assert_eq!(statuses(&rest_of(slow)), [200]);
        // The refused request does not hold up the next one.
        let next = Client::to(edge.addr).ask("POST", "/api/count", "", b"abc");
        assert_eq!(next.status, 200, "{next:?}");
    }
    assert_eq!(edge.reached.load(Ordering::SeqCst), 2);
}

#[test]
fn who_comes_during_a_drain_is_told() {
    let edge = edge(&[]);
    let addr = edge.addr;
    thread::scope(|scope| {
        let sleeper = scope.spawn(move || Client::to(addr).ask("GET", "/api/sleep?4000", "", b""));
        eventually("it is in flight", || edge.server.in_flight() == 1);
        let Edge { server, .. } = edge;
        let stopping = scope.spawn(move || server.shut_down(Duration::ZERO, 10 * SECOND));
        eventually("it drains", || get(addr, "/api/count").status == 503);
        for _ in 0..50 {
            let mut asked = connect(addr);
            // The answer to another client must not end this connection.
            assert_eq!(get(addr, "/health/live").status, 200);
            let request = b"GET /api/count HTTP/1.1\r\nHost: a\r\n\r\n";
            asked.write_all(request).unwrap();
            assert_eq!(statuses(&rest_of(asked)), [503]);
        }
        assert_eq!(sleeper.join().unwrap().status, 200);
        assert!(stopping.join().unwrap().is_clean());
    });
}

#[test]
fn a_drain_ends_kept_connections_between_requests() {
    let edge = edge(&[]);
    let mut idle = Client::to(edge.addr);
    assert_eq!(idle.ask("GET", "/health/live", "", b"").status, 200);
    let mut kept = Client::to(edge.addr);
    let addr = edge.addr;
    thread::scope(|scope| {
        let sleeper = scope.spawn(move || Client::to(addr).ask("GET", "/api/sleep?4000", "", b""));
        eventually("it is in flight", || edge.server.in_flight() == 1);
        let Edge { server, .. } = edge;
        let stopping = scope.spawn(move || server.shut_down(3 * SECOND, 20 * SECOND));
        eventually("it drains", || {
            get(addr, "/health/ready").json()["status"] == "draining"
        });
        // Within the delay a request is still served, but its connection is then closed.
        let last = kept.ask("GET", "/api/count", "", b"");
        assert_eq!(
            (last.status, last.header("Connection")),
            (200, Some("close"))
        );
        assert_eq!(kept.until_closed(), "");
        assert_eq!(idle.until_closed(), "");
        let sleeper = sleeper.join().unwrap();
        assert_eq!(
            (sleeper.status, sleeper.header("Connection")),
            (200, Some("close"))
        );
        assert!(stopping.join().unwrap().is_clean());
    });
}

/// Makes one request on a connection of its own. Returns the status, or `None` if the port no
/// longer listens.
fn one_request(addr: SocketAddr, path: &str) -> Result<Option<u16>, std::io::Error> {
    let wait = Duration::from_millis(2500);
    let Ok(mut stream) = TcpStream::connect_timeout(&addr, wait) else {
        return Ok(None);
    };
    stream.set_read_timeout(Some(20 * SECOND))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer);
    match text
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
    {
        Some(status) => Ok(Some(status)),
        None => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

#[test]
fn a_drain_cuts_nobody_who_comes_with_a_connection_for_each_request() {
    for path in ["/api/count", "/health/live"] {
        for _ in 0..2 {
            let Edge { server, .. } = edge(&[]);
            let addr = server.addr();
            let over = AtomicBool::new(false);
            thread::scope(|scope| {
                let end = EndAtDrop(&over);
                let clients: Vec<_> = (0..20)
                    .map(|_| {
                        scope.spawn(|| {
                            let mut seen = Vec::new();
                            while !over.load(Ordering::SeqCst) {
                                match one_request(addr, path) {
                                    Ok(None) => break,
                                    Ok(Some(status)) => seen.push(status.to_string()),
                                    Err(e) => seen.push(e.to_string()),
                                }
                            }
                            seen
                        })
                    })
                    .collect();
                thread::sleep(150 * MS);
                let asked = Instant::now();
                server.shut_down(Duration::ZERO, 8 * SECOND);
                let took = asked.elapsed();
                drop(end);
                let mut all = 0;
                for client in clients {
                    let seen = client.join().unwrap();
                    all += seen.len();
                    let odd: Vec<_> = seen
                        .iter()
                        .filter(|s| !["200", "503"].contains(&&***s))
                        .collect();
                    assert!(odd.is_empty(), "{path}: {odd:?}");
                }
                println!("{path}: {all} requests, ended in {took:.1?}");
                assert!(all > 20 && took < 4 * SECOND, "{took:?}");
            });
        }
    }
}

/// Across a network, the last packet of a handshake may arrive after the listener has stopped
/// accepting. If the listener closed at once, that client would be reset.
#[test]
#[cfg(target_os = "linux")]
fn a_drain_waits_for_whoever_is_on_the_way() {
    use nix::libc::{self, c_int};
    use nix::{setsockopt_impl, sockopt_impl};
    use socket2::{Domain, Socket, Type};
    sockopt_impl!(MinTtl, SetOnly, libc::IPPROTO_IP, libc::IP_MINTTL, c_int);
    let Edge { server, .. } = edge(&[]);
    let on_the_way = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    on_the_way.set_nonblocking(true).unwrap();
    // This socket drops the answer to its SYN: packets over loopback arrive with a TTL below 255,
    // the minimum that it accepts.
    nix::sys::socket::setsockopt(&on_the_way, MinTtl, &255).unwrap();
    let _ = on_the_way.connect(&server.addr().into());
    let asked = Instant::now();
    server.shut_down(Duration::ZERO, 8 * SECOND);
    assert!(asked.elapsed() > 400 * MS, "{:?}", asked.elapsed());
}

/// Across a network, a request may be on its way on a kept connection when the drain begins.
#[test]
fn a_drain_answers_what_comes_on_a_kept_connection() {
    let edge = edge(&[]);
    let addr = edge.addr;
    let mut kept = Client::to(addr);
    assert_eq!(kept.ask("GET", "/api/count", "", b"").status, 200);
    eventually("that is over", || edge.server.in_flight() == 0);
    thread::scope(|scope| {
        let sleeper = scope.spawn(move || Client::to(addr).ask("GET", "/api/sleep?3000", "", b""));
        eventually("it is in flight", || edge.server.in_flight() == 1);
        let Edge { server, .. } = edge;
        let drain = scope.spawn(move || server.shut_down(Duration::ZERO, 20 * SECOND));
        eventually("it drains", || {
            let refused = get(addr, "/api/count");
            refused.status == 503 && refused.body.contains("draining")
        });
        let last = kept.ask("GET", "/api/count", "", b"");
        assert_eq!(
            (last.status, last.header("Connection")),
            (503, Some("close"))
        );
        assert_eq!(sleeper.join().unwrap().status, 200);
        assert!(drain.join().unwrap().is_clean());
    });
}

#[test]
fn a_drain_finishes_an_upload_and_answers_a_half_sent_request() {
    let Edge { server, .. } = edge(&[]);
    let addr = server.addr();
    let mut upload = TcpStream::connect(addr).unwrap();
    upload
        .write_all(b"POST /api/count HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345")
        .unwrap();
    let mut half = TcpStream::connect(addr).unwrap();
    half.write_all(b"GET /api/count HTT").unwrap();
    for stream in [&upload, &half] {
        stream.set_read_timeout(Some(20 * SECOND)).unwrap();
    }
    eventually("the upload is in flight", || server.in_flight() == 1);
    thread::scope(|scope| {
        let drain = scope.spawn(|| server.shut_down(Duration::ZERO, 8 * SECOND));
        thread::sleep(300 * MS);
        upload.write_all(b"67890").unwrap();
        let mut answer = String::new();
        upload.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let mut answer = String::new();
        half.read_to_string(&mut answer).unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 503 ") && answer.contains("draining"),
            "{answer}"
        );
        assert!(drain.join().unwrap().is_clean());
    });
}

#[test]
fn clients_who_do_not_take_their_answers_lock_nobody_out() {
    let Edge { server, .. } = edge(&[("HTTP_MAX_CONNECTIONS", "20")]);
    let addr = server.addr();
    // The answers are larger than the socket buffers.
    let unread: Vec<_> = (0..40)
        .map(|_| {
            let mut stream = TcpStream::connect(addr).unwrap();
            let _ = stream.write_all(b"GET /api/long?10000000 HTTP/1.1\r\nHost: a\r\n\r\n");
            stream
        })
        .collect();
    for _ in 0..20 {
        let asked = Instant::now();
        assert_eq!(get(addr, "/health/live").status, 200);
        assert!(asked.elapsed() < 2 * SECOND, "{:?}", asked.elapsed());
    }
    drop(unread);
}

#[test]
fn a_refusal_arrives_however_late_the_client_reads() {
    let Edge { server, .. } = edge(&[("HTTP_MAX_BODY_BYTES", "1000")]);
    let mut stream = TcpStream::connect(server.addr()).unwrap();
    stream.set_read_timeout(Some(20 * SECOND)).unwrap();
    let length = 10 << 20;
    let head = format!("POST /api/count HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    // The client sends the whole body, in pieces with pauses, before it reads anything.
    for _ in 0..40 {
        stream.write_all(&vec![b'x'; length / 40]).unwrap();
        thread::sleep(20 * MS);
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[test]
fn more_than_fits_of_bodies_is_refused_when_it_is_announced() {
    let Edge { server, .. } = edge(&[("HTTP_MAX_BODY_BYTES", "33554432")]);
    let addr = server.addr();
    let start = || {
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(20 * SECOND)).unwrap();
        let head = "POST /api/count HTTP/1.1\r\nHost: a\r\nContent-Length: 33554432\r\n\r\nx";
        stream.write_all(head.as_bytes()).unwrap();
        stream
    };
    let _two = [start(), start()];
    eventually("two are on their way", || server.in_flight() == 2);
    let small = Client::to(addr).ask("POST", "/api/count", "", b"small");
    assert_eq!(small.status, 200, "{small:?}");
    let mut third = start();
    let mut answer = String::new();
    third.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("Retry-After"),
        "{answer}"
    );
}

#[test]
fn a_trusted_proxy_may_say_who_asks_before_the_first_request() {
    let trusting = edge(&[("HTTP_TRUSTED_PROXIES", "127.0.0.1")]);
    let ask = |edge: &Edge, before: &[u8]| {
        let request = b"GET /api/count HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        send(edge.addr, &[before, request].concat())
    };
    let one = b"PROXY TCP4 192.0.2.7 127.0.0.1 12345 80\r\n";
    let two = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x7f\0\0\x01\x30\x39\0\x50";
    for (before, client) in [
        (&one[..], "192.0.2.7"),
        (two, "192.0.2.7"),
        (b"", "127.0.0.1"),
    ] {
        let answer = ask(&trusting, before);
        assert!(answer.ends_with(&format!("{client}  0")), "{answer}");
    }
    assert_eq!(statuses(&ask(&trusting, b"PROXY TCP4 nobody\r\n")), [400]);
    let other = edge(&[]);
    assert_eq!(statuses(&ask(&other, one)), [400]);
}
