//! What the server still answers in time when more is asked of it than its database can do.
//!
//! The client is an open loop: requests arrive at a fixed rate, whatever comes back, as they do
//! from many people who know nothing of each other. Each has a connection of its own, which is
//! closed when the client's patience ends. An answer after that is worth nothing, but may have cost
//! the database as much as any other. Compare the shares: the rates depend on the machine.
//!
//! ```text
//! cargo bench --bench overload -- [--seconds N] [--only FACTOR,PATIENCE_MS].. [--via HOW]
//! ```
//!
//! - `--seconds`: the measured time of each case; default 10.
//! - `--only`: runs this case only, or these; a patience of 0 is the mix.
//! - `--via`: puts a proxy between. `nginx` and `haproxy` pass on that a client has hung up;
//!   `haproxy-hiding` does not. `hiding` needs no proxy: the client itself keeps its connections
//!   open when its patience ends.
//!
//! Each request has one outcome, which counts when it happens within the measured time:
//! - `in time`: a complete answer with status 200, within the patience;
//! - `503` and `other`: an answer with this, or with another, status, within the patience;
//! - `failed`: the connection was refused, or ended without an answer;
//! - `gave up`: the patience ended.
//!
//! `live` is for `/health/live`, which is asked at the server itself, also where a proxy is between.
//! `lag` says how late the client sent its requests; if it is not small, the figures are worthless.

use httparse::{EMPTY_HEADER, Status};
use millpond::Pool;
use millpond::config::HttpConfig;
use millpond::embedded::{Options, PrivateServer};
use millpond::server::{Access, DatabaseKind, Lane, Problem, Request, Response, Router, Server};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fmt::Display;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream as Blocking};
use std::ops::Range;
use std::process::{Child, Command, ExitCode, Stdio};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const CONNECTIONS: u32 = 5;
const SQL: &str = "SELECT pg_sleep(0.02)";
const FACTORS: [f64; 6] = [0.8, 1.05, 1.2, 2.0, 4.0, 10.0];
const PATIENCES: [Patience; 3] = [
    Patience::Of(Duration::from_millis(100)),
    Patience::Of(Duration::from_millis(500)),
    Patience::Mixed,
];
const MIX: [Duration; 3] = [
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(5),
];
const WARM_UP: Duration = Duration::from_secs(2);
const REST: Duration = Duration::from_secs(1);
const CALIBRATION: Duration = Duration::from_secs(3);
const CALIBRATING_CLIENTS: u32 = 10;
const LIVE_EVERY: Duration = Duration::from_millis(50);
/// How long a connection is kept open beyond the patience where that is to be hidden.
const HIDDEN: Duration = Duration::from_secs(10);
/// The longest wait for one answer to a client that asks one request after the other, for a proxy
/// to start, and for the server to be done with a case.
const LONGEST: Duration = Duration::from_secs(30);
const WORK: &[u8] = b"GET /api/work HTTP/1.1\r\nHost: localhost\r\n\r\n";
const LIVE: &[u8] = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// How long a client waits for its answer.
#[derive(Clone, Copy)]
enum Patience {
    Of(Duration),
    Mixed,
}

impl Patience {
    fn pick(self, random: &mut fastrand::Rng) -> Duration {
        match self {
            Patience::Of(time) => time,
            Patience::Mixed => MIX[random.usize(..MIX.len())],
        }
    }

    fn name(self) -> String {
        match self {
            Patience::Of(time) => time.as_millis().to_string(),
            Patience::Mixed => "mix".to_owned(),
        }
    }
}

/// One line of the output.
#[derive(Clone, Copy)]
struct Case {
    /// The offered rate, as a multiple of the capacity.
    factor: f64,
    patience: Patience,
}

impl Case {
    fn all() -> Vec<Case> {
        let with = |factor| PATIENCES.map(|patience| Case { factor, patience });
        FACTORS.into_iter().flat_map(with).collect()
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Case, String> {
        let problem = || format!("--only takes FACTOR,PATIENCE_MS, as in 1.2,100, not {text}");
        let (factor, patience) = text.split_once(',').ok_or_else(problem)?;
        let factor = factor.parse().map_err(|_| problem())?;
        if !(0.01..=100.0).contains(&factor) {
            return Err(problem());
        }
        let patience = match patience.parse().map_err(|_| problem())? {
            0 => Patience::Mixed,
            ms => Patience::Of(Duration::from_millis(ms)),
        };
        Ok(Case { factor, patience })
    }
}

/// What is between the client and the server.
#[derive(Clone, Copy, PartialEq)]
enum Via {
    Nothing,
    Nginx,
    Haproxy,
    HaproxyHiding,
    /// Nothing, but the client behaves like a proxy that keeps to itself that its client hung up.
    Hiding,
}

impl FromStr for Via {
    type Err = String;

    fn from_str(text: &str) -> Result<Via, String> {
        match text {
            "nginx" => Ok(Via::Nginx),
            "haproxy" => Ok(Via::Haproxy),
            "haproxy-hiding" => Ok(Via::HaproxyHiding),
            "hiding" => Ok(Via::Hiding),
            _ => Err(format!(
                "--via takes nginx, haproxy, haproxy-hiding or hiding, not {text}"
            )),
        }
    }
}

struct Settings {
    measured: Duration,
    cases: Vec<Case>,
    via: Via,
}

impl Settings {
    fn from_args(mut args: impl Iterator<Item = String>) -> Result<Settings, String> {
        let mut settings = Settings {
            measured: Duration::from_secs(10),
            cases: Vec::new(),
            via: Via::Nothing,
        };
        while let Some(name) = args.next() {
            let mut value = || args.next().ok_or(format!("{name} takes a value"));
            match name.as_str() {
                "--bench" => {}
                "--seconds" => {
                    let seconds = value()?.parse().ok().filter(|seconds| *seconds > 0);
                    let seconds = seconds.ok_or("--seconds takes a whole number above 0")?;
                    settings.measured = Duration::from_secs(seconds);
                }
                "--only" => settings.cases.push(value()?.parse()?),
                "--via" => settings.via = value()?.parse()?,
                _ => return Err(format!("unknown argument {name}")),
            }
        }
        if settings.cases.is_empty() {
            settings.cases = Case::all();
        }
        Ok(settings)
    }
}

/// Returns the status of an answer once it is complete. An answer that does not say its length ends
/// when the connection is `closed`.
fn status_if_complete(answer: &[u8], closed: bool) -> Option<u16> {
    let mut headers = [EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut headers);
    let Ok(Status::Complete(head_length)) = head.parse(answer) else {
        return None;
    };
    let length = head
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .and_then(|header| str::from_utf8(header.value).ok()?.parse::<usize>().ok());
    let complete = length.map_or(closed, |length| answer.len() >= head_length + length);
    head.code.filter(|_| complete)
}

/// A client that asks one request after the other on one connection.
struct KeptAlive(Blocking);

impl KeptAlive {
    fn connect(to: SocketAddr) -> io::Result<KeptAlive> {
        let stream = Blocking::connect_timeout(&to, LONGEST)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LONGEST))?;
        Ok(KeptAlive(stream))
    }

    fn ask(&mut self, request: &[u8]) -> io::Result<u16> {
        self.0.write_all(request)?;
        let mut answer = Vec::new();
        let mut part = [0; 4096];
        loop {
            let read = self.0.read(&mut part)?;
            answer.extend_from_slice(&part[..read]);
            if let Some(status) = status_if_complete(&answer, read == 0) {
                return Ok(status);
            }
            if read == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// Requests per second that are answered when there is always one to work on.
fn capacity(to: SocketAddr) -> f64 {
    let begun = Instant::now();
    let work = || {
        let mut client = KeptAlive::connect(to).expect("a connection");
        let mut answers = 0;
        while begun.elapsed() < CALIBRATION {
            assert_eq!(client.ask(WORK).expect("an answer"), 200);
            answers += 1;
        }
        answers
    };
    let answers: u32 = thread::scope(|scope| {
        let clients: Vec<_> = (0..CALIBRATING_CLIENTS)
            .map(|_| scope.spawn(work))
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().expect("no thread panics"))
            .sum()
    });
    f64::from(answers) / begun.elapsed().as_secs_f64()
}

/// Asks for `/health/live` until the end of the measured time; returns the milliseconds that each
/// answer took, retries on a new connection included.
fn live(to: SocketAddr, measured: &Range<Instant>) -> Vec<f64> {
    let mut client = KeptAlive::connect(to).expect("a connection");
    let mut times = Vec::new();
    let mut due = Instant::now();
    while due < measured.end {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        while !matches!(client.ask(LIVE), Ok(200)) && Instant::now() < measured.end {
            if let Ok(new) = KeptAlive::connect(to) {
                client = new;
            }
        }
        if measured.contains(&due) {
            times.push(milliseconds(due.elapsed()));
        }
        due += LIVE_EVERY;
    }
    times
}

/// What became of the requests in the measured time.
#[derive(Default)]
struct Outcomes {
    arrived: u32,
    /// Milliseconds by which the requests were sent too late.
    lags: Vec<f64>,
    /// Milliseconds of the answers in time.
    in_time: Vec<f64>,
    unavailable: u32,
    other: u32,
    failed: u32,
    gave_up: u32,
}

/// A request on its way.
struct Asking {
    stream: TcpStream,
    due: Instant,
    patience: Duration,
    sent: bool,
    answer: Vec<u8>,
    /// The patience has ended; the connection is still open.
    hidden: bool,
}

impl Asking {
    fn patience_end(&self) -> Instant {
        self.due + self.patience
    }

    /// Writes and reads what can be without blocking; returns the status once the answer is
    /// complete.
    fn advance(&mut self) -> io::Result<Option<u16>> {
        match self.try_advance() {
            // The latter while it is being connected.
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    fn try_advance(&mut self) -> io::Result<u16> {
        if !self.sent {
            // Always fits into the buffer of a new connection.
            self.stream.write_all(WORK)?;
            self.sent = true;
        }
        let mut part = [0; 4096];
        loop {
            let read = self.stream.read(&mut part)?;
            self.answer.extend_from_slice(&part[..read]);
            if let Some(status) = status_if_complete(&self.answer, read == 0) {
                return Ok(status);
            }
            if read == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// The open loop of one case. It runs on one thread and never blocks but to wait for what comes
/// next.
struct Crowd {
    to: SocketAddr,
    patience: Patience,
    hiding: bool,
    measured: Range<Instant>,
    poll: Poll,
    random: fastrand::Rng,
    /// By their numbers, which are their tokens too.
    asking: HashMap<usize, Asking>,
    /// When the next thing is to be done with a request that is still unanswered.
    ends: BinaryHeap<Reverse<(Instant, usize)>>,
    next_number: usize,
    outcomes: Outcomes,
}

impl Crowd {
    /// Sends `rate` requests a second until the end of the measured time, then hangs up on all
    /// that are left.
    fn run(mut self, rate: f64) -> Outcomes {
        let mut events = Events::with_capacity(1024);
        let mut next = Instant::now();
        loop {
            let mut now = Instant::now();
            while next <= now && next < self.measured.end {
                self.ask(next);
                // Poisson arrivals: the gaps are exponential.
                let gap = -(1.0 - self.random.f64()).ln() / rate;
                next += Duration::from_secs_f64(gap);
            }
            now = now.max(Instant::now());
            if now >= self.measured.end {
                return self.outcomes;
            }
            self.end_patience(now);
            let until = self
                .ends
                .peek()
                .map_or(next, |Reverse((at, _))| next.min(*at));
            let wait = until.saturating_duration_since(Instant::now());
            match self.poll.poll(&mut events, Some(wait)) {
                Err(e) if e.kind() != ErrorKind::Interrupted => panic!("poll: {e}"),
                _ => {}
            }
            for event in &events {
                self.advance(event.token().0);
            }
        }
    }

    /// Begins the request that was `due` to arrive then.
    fn ask(&mut self, due: Instant) {
        let now = Instant::now();
        if self.measured.contains(&due) {
            self.outcomes.arrived += 1;
            self.outcomes.lags.push(milliseconds(now - due));
        }
        let patience = self.patience.pick(&mut self.random);
        match self.connect() {
            Ok(stream) => {
                let asking = Asking {
                    stream,
                    due,
                    patience,
                    sent: false,
                    answer: Vec::new(),
                    hidden: false,
                };
                let number = self.next_number;
                self.ends.push(Reverse((asking.patience_end(), number)));
                self.asking.insert(number, asking);
                self.next_number += 1;
            }
            Err(_) => self.count(now, |outcomes| outcomes.failed += 1),
        }
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(self.to)?;
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(&mut stream, Token(self.next_number), both)?;
        Ok(stream)
    }

    fn advance(&mut self, number: usize) {
        // It may have ended since the event was reported.
        let Some(asking) = self.asking.get_mut(&number) else {
            return;
        };
        let result = asking.advance();
        if matches!(result, Ok(None)) {
            return;
        }
        let asking = self.asking.remove(&number).expect("it was there");
        if asking.hidden {
            return;
        }
        let now = Instant::now();
        let in_time = now <= asking.patience_end();
        self.count(now, |outcomes| match result {
            _ if !in_time => outcomes.gave_up += 1,
            Ok(Some(200)) => outcomes.in_time.push(milliseconds(now - asking.due)),
            Ok(Some(503)) => outcomes.unavailable += 1,
            Ok(_) => outcomes.other += 1,
            Err(_) => outcomes.failed += 1,
        });
    }

    /// Hangs up on those whose patience has ended, or only counts them, if that is to be hidden.
    fn end_patience(&mut self, now: Instant) {
        while let Some(&Reverse((at, number))) = self.ends.peek()
            && at <= now
        {
            self.ends.pop();
            let Some(asking) = self.asking.get_mut(&number) else {
                continue;
            };
            let gives_up = !asking.hidden;
            if gives_up && self.hiding {
                asking.hidden = true;
                self.ends.push(Reverse((at + HIDDEN, number)));
            } else {
                self.asking.remove(&number);
            }
            if gives_up {
                self.count(now, |outcomes| outcomes.gave_up += 1);
            }
        }
    }

    fn count(&mut self, at: Instant, outcome: impl FnOnce(&mut Outcomes)) {
        if self.measured.contains(&at) {
            outcome(&mut self.outcomes);
        }
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The milliseconds that the share `q` of all do not exceed.
fn quantile(times: &mut [f64], q: f64) -> String {
    times.sort_unstable_by(f64::total_cmp);
    match times.len().checked_sub(1) {
        None => "-".to_owned(),
        Some(last) => format!("{:.1}", times[(last as f64 * q) as usize]),
    }
}

/// A proxy in front of the server, in a process of its own that ends with this value.
struct Proxy {
    child: Child,
    addr: SocketAddr,
    dir: TempDir,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Fails only if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Proxy {
    /// Starts the proxy, if there is to be one.
    fn start(via: Via, server: SocketAddr) -> Result<Option<Proxy>, String> {
        let dir = tempfile::tempdir().map_err(said("a temporary directory"))?;
        let addr = free_addr().map_err(said("a free port"))?;
        let (program, config) = match via {
            Via::Nothing | Via::Hiding => return Ok(None),
            Via::Nginx => ("nginx", nginx_config(addr, server)),
            Via::Haproxy => (
                "haproxy",
                haproxy_config(addr, server, "option abortonclose"),
            ),
            // Newer versions have the option by default.
            Via::HaproxyHiding => {
                let no_option = "no option abortonclose";
                ("haproxy", haproxy_config(addr, server, no_option))
            }
        };
        std::fs::write(dir.path().join("config"), config).map_err(said("the configuration"))?;
        let child = spawn(program, &dir).map_err(|e| match e.kind() {
            ErrorKind::NotFound => format!("{program} is missing: apt-get install {program}"),
            _ => format!("{program}: {e}"),
        })?;
        let mut proxy = Proxy { child, addr, dir };
        proxy.wait_until_it_serves()?;
        Ok(Some(proxy))
    }

    fn wait_until_it_serves(&mut self) -> Result<(), String> {
        let serves = || {
            matches!(
                KeptAlive::connect(self.addr).and_then(|mut c| c.ask(LIVE)),
                Ok(200)
            )
        };
        let begun = Instant::now();
        while !serves() {
            let ended = self.child.try_wait().map_err(said("the proxy"))?;
            if ended.is_some() || begun.elapsed() > LONGEST {
                let log = std::fs::read_to_string(self.dir.path().join("log"));
                return Err(format!(
                    "the proxy does not serve: {}",
                    log.unwrap_or_default()
                ));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

fn said<E: Display>(what: &str) -> impl Fn(E) -> String {
    move |e| format!("{what}: {e}")
}

fn free_addr() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

/// Starts the program in the foreground, with the file `config` of the directory; what it says goes
/// to the file `log` there.
fn spawn(program: &str, dir: &TempDir) -> io::Result<Child> {
    let log = File::create(dir.path().join("log"))?;
    let mut command = Command::new(program);
    match program {
        "nginx" => command
            .arg("-p")
            .arg(dir.path())
            .args(["-e", "stderr", "-c", "config"]),
        _ => command.arg("-db").arg("-f").arg(dir.path().join("config")),
    };
    // Only root has this directory in its path on some systems.
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .env("PATH", format!("{path}:/usr/sbin"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
}

/// The defaults, but for places that only root may write to. It is one process, so that none is
/// left when that is killed.
fn nginx_config(addr: SocketAddr, server: SocketAddr) -> String {
    format!(
        "daemon off;
        master_process off;
        pid pid;
        events {{ worker_connections 8192; }}
        http {{
            access_log off;
            client_body_temp_path body;
            proxy_temp_path proxy;
            fastcgi_temp_path fastcgi;
            uwsgi_temp_path uwsgi;
            scgi_temp_path scgi;
            server {{
                listen {addr};
                location / {{
                    proxy_pass http://{server};
                    proxy_http_version 1.1;
                }}
            }}
        }}\n"
    )
}

fn haproxy_config(addr: SocketAddr, server: SocketAddr, abortonclose: &str) -> String {
    // Each of them takes two files, and haproxy does not start if it may not have as many.
    let most = file_limit().saturating_sub(200) / 2;
    format!(
        "global
            maxconn {maxconn}
        defaults
            mode http
            timeout connect 30s
            timeout client 30s
            timeout server 30s
            {abortonclose}
        listen millpond
            bind {addr}
            maxconn {maxconn}
            server millpond {server}\n",
        maxconn = most.min(20_000),
    )
}

fn file_limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE)
        .expect("the limit of files")
        .0
}

/// Both ends of each connection are in this process.
fn raise_file_limit() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of files");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("more files");
}

fn work(pool: &Pool, request: &Request) -> Result<Response, Problem> {
    request.call(pool).read(SQL, &[])?;
    Ok(Response::json(200, &"done"))
}

fn start_server(database: &PrivateServer) -> Server {
    let pool = Pool::builder()
        .database_url(&database.url())
        .max_size(CONNECTIONS)
        .min_idle(CONNECTIONS)
        .build()
        .expect("pool");
    let for_work = pool.clone();
    let router = Router::new().route("GET", "/api/work", Lane::Api, Access::Open, move |r| {
        work(&for_work, r)
    });
    let mut config = HttpConfig::default();
    config.addr.set_port(0);
    Server::start(config, pool, router, DatabaseKind::Private).expect("server")
}

/// Waits until the server is done with what the last case left behind.
fn rest(server: &Server) {
    let begun = Instant::now();
    while server.in_flight() > 0 {
        assert!(begun.elapsed() < LONGEST, "requests stay in flight");
        thread::sleep(Duration::from_millis(10));
    }
    thread::sleep(REST);
}

struct Bench {
    server: SocketAddr,
    /// The server's address, or that of the proxy in front of it.
    front: SocketAddr,
    hiding: bool,
    measured: Duration,
    capacity: f64,
}

impl Bench {
    fn run(&self, case: Case) {
        let begin = Instant::now() + WARM_UP;
        let measured = begin..begin + self.measured;
        let crowd = Crowd {
            to: self.front,
            patience: case.patience,
            hiding: self.hiding,
            measured: measured.clone(),
            poll: Poll::new().expect("poll"),
            random: fastrand::Rng::with_seed(1),
            asking: HashMap::new(),
            ends: BinaryHeap::new(),
            next_number: 0,
            outcomes: Outcomes::default(),
        };
        let rate = case.factor * self.capacity;
        let (outcomes, live) = thread::scope(|scope| {
            let live = scope.spawn(|| live(self.server, &measured));
            let crowd = scope.spawn(|| crowd.run(rate));
            let outcomes = crowd.join().expect("no thread panics");
            (outcomes, live.join().expect("no thread panics"))
        });
        self.print(case, outcomes, live);
    }

    fn print(&self, case: Case, mut outcomes: Outcomes, mut live: Vec<f64>) {
        let seconds = self.measured.as_secs_f64();
        let offered = f64::from(outcomes.arrived) / seconds;
        let in_time = outcomes.in_time.len() as f64 / seconds;
        println!(
            "{:>6} {:>9.1} {:>11} {:>9.1} {:>6.2} {:>7} {:>7} {:>6} {:>6} {:>6} {:>7} {:>11} {:>10}",
            case.factor,
            offered,
            case.patience.name(),
            in_time,
            in_time / offered.min(self.capacity),
            quantile(&mut outcomes.in_time, 0.5),
            quantile(&mut outcomes.in_time, 0.99),
            outcomes.unavailable,
            outcomes.other,
            outcomes.failed,
            outcomes.gave_up,
            quantile(&mut live, 0.99),
            quantile(&mut outcomes.lags, 0.99),
        );
    }
}

fn run(settings: &Settings) -> Result<(), String> {
    raise_file_limit();
    let database = PrivateServer::start(Options::temporary()).expect("PostgreSQL");
    let server = start_server(&database);
    let proxy = Proxy::start(settings.via, server.addr())?;
    let capacity = capacity(server.addr());
    println!(
        "capacity {capacity:.1} requests/s: {SQL} on {CONNECTIONS} connections, {CALIBRATING_CLIENTS} clients"
    );
    println!(
        "factor offered/s patience ms in time/s  share  p50 ms  p99 ms    503  other failed gave up live p99 ms lag p99 ms"
    );
    let bench = Bench {
        server: server.addr(),
        front: proxy.as_ref().map_or(server.addr(), |proxy| proxy.addr),
        hiding: settings.via == Via::Hiding,
        measured: settings.measured,
        capacity,
    };
    for case in &settings.cases {
        rest(&server);
        bench.run(*case);
    }
    server.shut_down(Duration::ZERO, LONGEST);
    Ok(())
}

fn main() -> ExitCode {
    // `cargo test --benches` runs this too, only to see that it starts; `cargo bench` passes
    // --bench.
    if !std::env::args().any(|arg| arg == "--bench") {
        return ExitCode::SUCCESS;
    }
    let settings = match Settings::from_args(std::env::args().skip(1)) {
        Ok(settings) => settings,
        Err(problem) => {
            eprintln!("{problem}");
            return ExitCode::from(2);
        }
    };
    match run(&settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}
