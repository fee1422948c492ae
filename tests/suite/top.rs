//! `millpond top`, against a server that says what the test has it say.

use super::cli::{millpond, run, stderr};
use super::support::eventually;
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::termios::{Termios, tcgetattr};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread;

/// Answers every request with a status and a body. Keeps the heads of the requests.
struct Fake {
    addr: SocketAddr,
    answer: Arc<Mutex<(&'static str, String)>>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    fn says(status: &'static str, body: &str) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let answer = Arc::new(Mutex::new((status, body.to_owned())));
        let (kept, given) = (Arc::clone(&heads), Arc::clone(&answer));
        // Ends with the tests.
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (status, body) = given.lock().unwrap().clone();
                let _ = reply(stream, status, &body, &kept);
            }
        });
        Fake {
            addr,
            answer,
            heads,
        }
    }

    fn now_says(&self, status: &'static str, body: &str) {
        *self.answer.lock().unwrap() = (status, body.to_owned());
    }

    fn url(&self) -> String {
        format!("http://{}", self.addr)
    }
}

fn reply(
    mut stream: TcpStream,
    status: &str,
    body: &str,
    heads: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let lines = BufReader::new(stream.try_clone()?).lines();
    let head = lines
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("\n");
    heads.lock().unwrap().push(head);
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn figures() -> Value {
    json!({
        "version": 1,
        "timestamp": "2026-11-29T18:37:02.906Z",
        "startedAt": "2026-11-29T18:30:00.000Z",
        "sequence": 422,
        "application": "millpond", "release": "0.1.0",
        "state": {"name": "ready", "healthy": true, "sentence": "Ready: statements are answered; 19 of 20 connections are free."},
        "pool": {"total": 5, "idle": 4, "active": 1, "opening": 0, "waiting": 0, "max": 20, "minIdle": 5, "utilizationPercent": 5.0},
        "server": null,
        "standbys": [],
        "totals": {"statements": 1200},
        "history": {
            "stepMs": 1000, "first": 1,
            "fields": ["active", "idle", "opening", "max", "waiting", "waitP50Ms", "waitP99Ms", "operationP50Ms", "operationP99Ms", "statements", "requests", "errors", "retries", "added"],
            "samples": [[1, 4, 0, 20, 0, null, null, 0.4, 0.9, 12, 10, 0, 0, 7]]
        },
        "holders": [{"connection": 5, "place": "src/studio/quotes.rs:12:5", "thread": "millpond\u{1b}[2J-api", "heldMs": 1234.5, "statement": "SELECT\n1", "running": true, "statementMs": 12.0, "leaked": false, "added": 1}],
        "statements": {"minutes": 5, "list": []},
        "events": [],
        "advice": [],
        "added": {}
    })
}

const TOKEN: (&str, &str) = ("METRICS_TOKEN", "s3cret-of-the-metrics");

#[test]
fn top_prints_a_snapshot_where_there_is_no_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::says("200 OK", &figures().to_string());
    for arguments in [&["--once"][..], &[]] {
        let url = fake.url();
        let arguments = [&["top", "--url", &url], arguments].concat();
        let output = run(dir.path(), &arguments, &[TOKEN]);
        let printed = String::from_utf8(output.stdout.clone()).unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        for line in [
            "state        ready: Ready: statements are answered; 19 of 20 connections are free.",
            "statements   12/s, p50 0.40 ms, p99 0.90 ms",
            "holder       1.23 s, millpond·[2J-api at src/studio/quotes.rs:12:5, running for 12.0 ms: SELECT 1",
        ] {
            assert!(
                printed.lines().any(|have| have == line),
                "{line}\n{printed}"
            );
        }
    }
    let heads = fake.heads.lock().unwrap();
    assert_eq!(heads.len(), 2);
    for head in &*heads {
        assert!(
            head.starts_with("GET /api/metrics/live?after=0 HTTP/1.1"),
            "{head}"
        );
        assert!(!head.contains(TOKEN.1), "nobody asked: {head}");
    }
}

#[test]
fn top_sends_its_token_to_a_server_that_asks_for_one() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::says("401 Unauthorized\r\nWWW-Authenticate: Bearer", "{}");
    let output = run(
        dir.path(),
        &["top", "--once", "--url", &fake.url()],
        &[TOKEN],
    );
    assert_eq!(output.status.code(), Some(1));
    let heads = fake.heads.lock().unwrap();
    let token = format!("authorization: bearer {}", TOKEN.1);
    let has_token = |head: &String| head.to_lowercase().contains(&token);
    assert_eq!(
        heads.iter().map(has_token).collect::<Vec<_>>(),
        [false, true]
    );
}

#[test]
fn top_says_in_one_line_why_there_are_no_figures() {
    let dir = tempfile::tempdir().unwrap();
    let mut other = figures();
    other["version"] = json!(2);
    let lacking = json!({"version": 1}).to_string();
    for (status, body, vars, words) in [
        (
            "401 Unauthorized",
            "{}",
            &[][..],
            "set METRICS_TOKEN to the server's",
        ),
        (
            "401 Unauthorized",
            "{}",
            &[TOKEN],
            "does not accept this METRICS_TOKEN",
        ),
        (
            "404 Not Found",
            "{}",
            &[],
            "another program, or a millpond of an older release",
        ),
        ("302 Found", "", &[], "answered 302 Found"),
        (
            "503 Service Unavailable",
            "{}",
            &[],
            "the server answered 503",
        ),
        (
            "200 OK",
            &other.to_string(),
            &[],
            "answers with version 2 of its figures",
        ),
        (
            "200 OK",
            "<html>\u{1b}[2J",
            &[],
            "did not answer with a millpond's figures",
        ),
        (
            "200 OK",
            "{\"status\":\"healthy\"}",
            &[],
            "did not answer with a millpond's figures",
        ),
        (
            "200 OK",
            &lacking,
            &[],
            "did not answer with a millpond's figures",
        ),
    ] {
        let fake = Fake::says(status, body);
        let output = run(dir.path(), &["top", "--once", "--url", &fake.url()], vars);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{status} {body}: {said}");
        assert!(output.stdout.is_empty());
        assert!(
            said.contains(words) && said.lines().count() == 1,
            "{words}: {said}"
        );
        assert!(
            !said.contains(TOKEN.1) && !said.contains('\u{1b}'),
            "{said}"
        );
    }
}

#[test]
fn top_without_a_server_fails_once_and_bad_arguments_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    // The address of the settings, as for `check`.
    let vars = [("HTTP_ADDR", &*nobody.to_string())];
    let output = run(dir.path(), &["top"], &vars);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(
        said.contains(&format!("http://{nobody}: no answer")),
        "{said}"
    );
    for url in ["localhost:3000", "https://h", "http://u:s3cret@h"] {
        let output = run(dir.path(), &["top", "--url", url], &[]);
        assert_eq!(output.status.code(), Some(2), "{url}");
        assert!(!stderr(&output).contains("s3cret"), "{}", stderr(&output));
    }
    assert_eq!(
        run(dir.path(), &["top", "--twice"], &[]).status.code(),
        Some(2)
    );
}

/// The program on a terminal of its own.
struct OnTerminal {
    child: Child,
    terminal: OpenptyResult,
    before: Termios,
    output: Arc<Mutex<String>>,
}

impl OnTerminal {
    fn start(fake: &Fake) -> OnTerminal {
        let size = Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let terminal = openpty(Some(&size), None).unwrap();
        let before = tcgetattr(&terminal.slave).unwrap();
        let slave = || terminal.slave.try_clone().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let child = millpond(dir.path(), &["top", "--url", &fake.url()])
            .env(TOKEN.0, TOKEN.1)
            .env("TERM", "xterm")
            .stdin(slave())
            .stdout(slave())
            .stderr(slave())
            .spawn()
            .unwrap();
        let output = Arc::new(Mutex::new(String::new()));
        let (mut from, to) = (
            File::from(terminal.master.try_clone().unwrap()),
            Arc::clone(&output),
        );
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..count]);
                to.lock().unwrap().push_str(&text);
            }
        });
        OnTerminal {
            child,
            terminal,
            before,
            output,
        }
    }

    fn keys(&self, keys: &str) {
        let mut to = File::from(self.terminal.master.try_clone().unwrap());
        to.write_all(keys.as_bytes()).unwrap();
    }

    fn shows(&self, text: &str) {
        eventually(text, || screen(&self.output.lock().unwrap()).contains(text));
    }

    fn wrote(&self, text: &str) {
        eventually(text, || self.output.lock().unwrap().contains(text));
    }

    /// It ends with this code, and leaves the terminal as it found it.
    #[track_caller]
    fn ends(&mut self, code: i32) {
        eventually("it ends", || self.child.try_wait().unwrap().is_some());
        assert_eq!(self.child.wait().unwrap().code(), Some(code));
        assert_eq!(tcgetattr(&self.terminal.slave).unwrap(), self.before);
        // The other screen is left, and the cursor is seen again.
        self.wrote("\x1b[?1049l");
        self.wrote("\x1b[?25h");
        let output = self.output.lock().unwrap();
        assert!(
            !output.contains(TOKEN.1) && !output.contains("\x1b]"),
            "{output:?}"
        );
    }
}

/// What is on a terminal to which this was written, of characters of one column.
fn screen(output: &str) -> String {
    let mut cells = vec![vec![' '; 80]; 24];
    let (mut row, mut column) = (0, 0);
    let mut left = output.chars();
    while let Some(c) = left.next() {
        if c != '\x1b' {
            if let Some(cell) = cells.get_mut(row).and_then(|row| row.get_mut(column)) {
                *cell = c;
            }
            column += 1;
            continue;
        }
        let mut sequence: String = left.by_ref().take(1).collect();
        let is_end = |c: char| c.is_ascii_alphabetic();
        while sequence.starts_with('[') && !sequence.ends_with(is_end) {
            let Some(next) = left.next() else { break };
            sequence.push(next);
        }
        match sequence.strip_prefix('[').and_then(|s| s.strip_suffix('H')) {
            Some(place) => {
                let (r, c) = place.split_once(';').unwrap_or(("1", "1"));
                (row, column) = (r.parse().unwrap_or(1) - 1, c.parse().unwrap_or(1) - 1);
            }
            None if sequence == "[2J" => cells = vec![vec![' '; 80]; 24],
            // Colours, and the like.
            None => {}
        }
    }
    let lines = cells.into_iter().map(|row| row.into_iter().collect());
    lines.collect::<Vec<String>>().join("\n")
}

#[test]
fn top_gives_the_terminal_back_however_it_ends() {
    let mut evil = figures();
    evil["holders"][0]["statement"] = json!("SELECT '\u{1b}]0;owned\u{7}'");
    let fake = Fake::says("200 OK", &evil.to_string());
    for end in ["q", "\u{1b}", "\u{3}", "TERM", "HUP", "INT"] {
        let mut top = OnTerminal::start(&fake);
        top.shows("[1 Holders: 1]");
        top.shows("SELECT '·]0;owned·'");
        assert_ne!(tcgetattr(&top.terminal.slave).unwrap(), top.before);
        match end {
            "TERM" | "HUP" | "INT" => {
                let id = top.child.id().to_string();
                let sent = Command::new("kill").args(["-s", end, &id]).status();
                assert!(sent.unwrap().success());
            }
            key => top.keys(key),
        }
        top.ends(0);
    }
}

#[test]
fn top_says_that_the_server_is_away_and_goes_on_when_it_is_back() {
    let fake = Fake::says("503 Service Unavailable", "");
    let mut top = OnTerminal::start(&fake);
    top.shows("Away since ");
    top.shows("the server answered 503");
    fake.now_says("200 OK", &figures().to_string());
    top.shows("[1 Holders: 1]");
    top.keys("4");
    top.shows("Nothing needs to be changed.");
    // It asks for what it does not have yet.
    eventually("it goes on", || {
        let heads = fake.heads.lock().unwrap();
        heads.iter().any(|head| head.contains("?after=422 "))
    });
    fake.now_says("401 Unauthorized", "");
    top.ends(1);
    top.wrote("does not accept this METRICS_TOKEN");
}
