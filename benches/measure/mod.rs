//! What the benches measure with.

use nix::sys::resource::{UsageWho, getrusage};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

/// The middle one of the values.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Nanoseconds for one of so many, the mean.
#[allow(dead_code, reason = "not each bench uses it")]
pub fn mean_ns(count: u32, one: impl FnMut()) -> f64 {
    let begun = Instant::now();
    std::iter::repeat_with(one)
        .take(count as usize)
        .for_each(drop);
    begun.elapsed().as_nanos() as f64 / f64::from(count)
}

/// A figure of this process's memory in /proc (`VmRSS`, `VmHWM`), in kB.
#[allow(dead_code, reason = "not each bench uses it")]
pub fn memory(figure: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix(figure));
    let kb = line.and_then(|line| line.trim_start_matches(':').split_whitespace().next());
    kb.and_then(|kb| kb.parse().ok()).expect("a figure in kB")
}

/// Opens a connection to an HTTP server.
#[allow(dead_code, reason = "not each bench uses it")]
pub fn connect(addr: SocketAddr) -> BufReader<TcpStream> {
    let stream = TcpStream::connect(addr).expect("connection");
    stream.set_nodelay(true).expect("an open socket");
    BufReader::new(stream)
}

/// Sends a request on a connection that is kept, and reads the answer to its end. Returns its first
/// line, and the length of its body.
#[allow(dead_code, reason = "not each bench uses it")]
pub fn ask(client: &mut BufReader<TcpStream>, head: &str, body: &str) -> (String, usize) {
    let head = format!(
        "{head}Host: localhost\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let stream = client.get_mut();
    stream.write_all(head.as_bytes()).expect("the server reads");
    stream.write_all(body.as_bytes()).expect("the server reads");
    let (mut status, mut length) = (String::new(), 0);
    client.read_line(&mut status).expect("an answer");
    loop {
        let mut line = String::new();
        client.read_line(&mut line).expect("a header");
        let line = line.trim_end().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().expect("a length");
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    client.read_exact(&mut body).expect("a body");
    (status, length)
}

/// The time on a processor that this process has used.
#[allow(dead_code, reason = "not each bench uses it")]
pub fn used() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("getrusage");
    let [user, system] = [usage.user_time(), usage.system_time()].map(|time| {
        Duration::from_secs(time.tv_sec() as u64) + Duration::from_micros(time.tv_usec() as u64)
    });
    user + system
}

/// What a round of calls has shown.
#[allow(dead_code, reason = "not each bench uses it")]
#[derive(Clone, Copy)]
pub struct Figures {
    /// Calls per second.
    pub rate: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    /// Of a processor, in this process, for one call.
    pub cpu_us: f64,
}

#[allow(dead_code, reason = "not each bench uses it")]
impl Figures {
    /// Those of a round that took so long and used so much of a processor.
    pub fn of(mut latencies_ms: Vec<f64>, wall: Duration, cpu: Duration) -> Figures {
        latencies_ms.sort_by(f64::total_cmp);
        let count = latencies_ms.len() as f64;
        let at = |q: f64| latencies_ms[((count - 1.0) * q) as usize];
        Figures {
            rate: count / wall.as_secs_f64(),
            p50_ms: at(0.5),
            p99_ms: at(0.99),
            max_ms: at(1.0),
            cpu_us: cpu.as_secs_f64() * 1e6 / count,
        }
    }

    /// The medians of several rounds.
    pub fn medians(rounds: &[Figures]) -> Figures {
        let of = |figure: fn(&Figures) -> f64| median(rounds.iter().map(figure).collect());
        Figures {
            rate: of(|f| f.rate),
            p50_ms: of(|f| f.p50_ms),
            p99_ms: of(|f| f.p99_ms),
            max_ms: of(|f| f.max_ms),
            cpu_us: of(|f| f.cpu_us),
        }
    }
}

/// Has clients ask on a kept connection each for one round. `request` makes the head and the body of
/// a client's nth request, and `status` is in the first line of each answer.
#[allow(dead_code, reason = "not each bench uses it")]
pub fn over_http(
    addr: SocketAddr,
    clients: usize,
    round: Duration,
    request: impl Fn(usize, usize) -> (String, String) + Sync,
    status: &str,
) -> Figures {
    let barrier = Barrier::new(clients + 1);
    let client = |number: usize| {
        let mut client = connect(addr);
        barrier.wait();
        let begun = Instant::now();
        let mut latencies: Vec<f64> = Vec::new();
        while begun.elapsed() < round {
            let (head, body) = request(number, latencies.len());
            let asked = Instant::now();
            let (first, length) = ask(&mut client, &head, &body);
            latencies.push(asked.elapsed().as_secs_f64() * 1e3);
            assert!(first.contains(status) && length > 0, "{first}");
        }
        latencies
    };
    let client = &client;
    let (latencies, cpu) = thread::scope(|scope| {
        let clients: Vec<_> = (0..clients)
            .map(|number| scope.spawn(move || client(number)))
            .collect();
        barrier.wait();
        let before = used();
        let clients = clients.into_iter();
        let latencies: Vec<f64> = clients
            .flat_map(|client| client.join().expect("no client panics"))
            .collect();
        (latencies, used().saturating_sub(before))
    });
    Figures::of(latencies, round, cpu)
}
