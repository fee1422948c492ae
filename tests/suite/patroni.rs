//! Two programs on a Patroni cluster that changes its leader: what was acknowledged is there, once,
//! writers wait hardly longer than the cluster makes everybody wait, and readers do not wait.
//! `tests/cluster.sh` runs it alone, and prints its figures.

use super::cli::{Serving, open_dir, serve};
use super::cluster::Cluster;
use super::http::{Answer, Client};
use super::support::{EndAtDrop, MS, SECOND, admin, eventually};
use super::writers::{AllTold, Told, check, counts};
use postgres::NoTls;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The writers of each kind, and the readers, of each program.
const EACH: usize = 8;
/// What a program may add to the time for which the cluster takes no writes.
const ADDED: Duration = SECOND;
const MOST_WITHOUT_READS: Duration = SECOND;

/// When somebody's requests were answered.
#[derive(Default)]
struct Successes(Mutex<Vec<Instant>>);

impl Successes {
    fn note(&self) {
        self.0.lock().unwrap().push(Instant::now());
    }

    /// The longest time without one, of a span.
    fn gap(&self, from: Instant, until: Instant) -> Duration {
        let mut all = self.0.lock().unwrap().clone();
        all.retain(|at| (from..until).contains(at));
        all.extend([from, until]);
        all.sort();
        let gaps = all.windows(2).map(|two| two[1] - two[0]);
        gaps.max().unwrap_or_default()
    }
}

/// One program, and what its clients have seen.
struct Program {
    via: &'static str,
    serving: Serving,
    writes: Successes,
    reads: Successes,
    /// Writes by a client that opens a connection for each, at the same entry point.
    bare: Successes,
}

impl Program {
    /// Sends a request on a connection of its own; None if there is no answer.
    fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> Option<Answer> {
        let addr = SocketAddr::from(([127, 0, 0, 1], self.serving.port));
        let headers = format!("Content-Type: application/json\r\nConnection: close\r\n{headers}");
        let ask = || Client::to(addr).ask(method, path, &headers, body.as_bytes());
        catch_unwind(AssertUnwindSafe(ask)).ok()
    }

    /// Makes a quote for a customer of this name.
    fn write(&self, name: &str, keyed: bool) -> Told {
        let body = format!(
            r#"{{"studioId":1,"customer":"{name}","startsAt":"2030-01-02T10:00:00Z","endsAt":"2030-01-02T11:00:00Z"}}"#
        );
        let key = match keyed {
            true => format!("Idempotency-Key: {name}\r\n"),
            false => String::new(),
        };
        let told = match self.ask("POST", "/api/quotes", &key, &body) {
            Some(answer) if answer.status == 201 => Told::Done,
            Some(answer) if !answer.body.contains("outcome-unknown") => Told::Refused,
            _ => Told::Unknown,
        };
        if told == Told::Done {
            self.writes.note();
        }
        told
    }

    fn write_until(&self, over: &AtomicBool, writer: usize, keyed: bool) -> AllTold {
        let mut all = AllTold::new();
        let kind = if keyed { "keyed" } else { "plain" };
        for n in 0.. {
            let name = format!("{}-{kind}-{writer}-{n}", self.via);
            let mut told = self.write(&name, keyed);
            // With a key, the same request may be sent until it is known to be done.
            while keyed && told != Told::Done {
                thread::sleep(50 * MS);
                told = self.write(&name, keyed);
            }
            all.insert(name, told);
            if over.load(Ordering::Relaxed) {
                break;
            }
            thread::sleep(50 * MS);
        }
        all
    }

    fn read_until(&self, over: &AtomicBool, reader: usize) {
        // Who has written reads what was written, and a client is known by its address.
        let from = format!("X-Forwarded-For: 192.0.2.{}\r\n", reader + 1);
        while !over.load(Ordering::Relaxed) {
            let answer = self.ask("GET", "/api/studios", &from, "");
            if answer.is_some_and(|answer| answer.status == 200) {
                self.reads.note();
            }
            thread::sleep(20 * MS);
        }
    }

    fn write_barely(&self, over: &AtomicBool, url: &str) {
        while !over.load(Ordering::Relaxed) {
            let write = "INSERT INTO bare VALUES (now())";
            let written = postgres::Client::connect(url, NoTls)
                .and_then(|mut client| client.batch_execute(write));
            match written {
                Ok(()) => self.bare.note(),
                Err(_) => thread::sleep(20 * MS),
            }
            thread::sleep(20 * MS);
        }
    }
}

#[test]
fn two_programs_lose_nothing_and_go_on_reading_while_the_leader_changes() {
    let (mut cluster, ways_in) = Cluster::start();
    admin(&ways_in["leader"])
        .batch_execute("CREATE TABLE bare (at timestamptz)")
        .unwrap();
    let dir = open_dir(0o700);
    let program = |via: &'static str| {
        let vars = [
            ("DATABASE_URL", ways_in[via].as_str()),
            ("DB_READ_HOSTS", &ways_in["nodes"]),
            ("DB_READ_MAX_LAG_MS", "60000"),
            ("HTTP_TRUSTED_PROXIES", "127.0.0.1"),
        ];
        let mut serving = serve(dir.path(), &vars);
        eventually("it is ready", || serving.is_ready());
        Program {
            via,
            serving,
            writes: Successes::default(),
            reads: Successes::default(),
            bare: Successes::default(),
        }
    };
    let programs = [program("haproxy"), program("pgbouncer")];
    let over = AtomicBool::new(false);
    let mut too_long = Vec::new();
    let (keyed, plain) = thread::scope(|scope| {
        let end = EndAtDrop(&over);
        let over = &over;
        let mut writers: [Vec<_>; 2] = Default::default();
        for program in &programs {
            let url = format!("{}?connect_timeout=2", ways_in[program.via]);
            scope.spawn(move || program.write_barely(over, &url));
            for n in 0..EACH {
                for (kind, writers) in writers.iter_mut().enumerate() {
                    writers.push(scope.spawn(move || program.write_until(over, n, kind == 0)));
                }
                scope.spawn(move || program.read_until(over, n));
            }
        }
        for change in [
            "switchover",
            "kill_leader",
            "cut_off_leader",
            "switchover",
            "kill_leader",
        ] {
            let from = Instant::now();
            thread::sleep(2 * SECOND);
            cluster.have(change);
            cluster.have("calm");
            thread::sleep(2 * SECOND);
            let until = Instant::now();
            for program in &programs {
                let [bare, writes, reads] = [&program.bare, &program.writes, &program.reads]
                    .map(|successes| successes.gap(from, until));
                println!(
                    "{change} via {}: without writes {writes:.1?} (a bare client {bare:.1?}), without reads {reads:.1?}",
                    program.via
                );
                if writes > bare + ADDED || reads > MOST_WITHOUT_READS {
                    too_long.push((change, program.via, bare, writes, reads));
                }
            }
        }
        drop(end);
        let told = writers.map(|kind| {
            let all = kind.into_iter().flat_map(|writer| writer.join().unwrap());
            all.collect::<AllTold>()
        });
        let [keyed, plain] = told;
        (keyed, plain)
    });
    let quotes = "(SELECT customer AS name FROM studio.quotes) AS quotes";
    let mut there = counts(&mut admin(&cluster.leader()), quotes);
    let plain_there = there
        .extract_if(|name, _| name.contains("-plain-"))
        .collect();
    let [done, refused, unknown] = check("with a key", &keyed, there);
    println!("with a key: {done} done, {refused} refused, {unknown} unknown");
    assert_eq!(refused + unknown, 0, "each is repeated until it is done");
    let [done, refused, unknown] = check("without a key", &plain, plain_there);
    println!("without: {done} done, {refused} refused, {unknown} unknown");
    assert!(done >= 500, "too few to say anything");
    assert!(too_long.is_empty(), "{too_long:?}");
}
