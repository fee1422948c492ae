//! A TCP relay in front of PostgreSQL that records the messages that pass, and can be told to
//! misbehave.

use super::support::{MS, over_tls};
use super::terminator::terminate;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// A message that passed: its tag, and which side sent it. The startup message, which has no tag,
/// is `^`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    Frontend(char),
    Backend(char),
}

/// What the proxy does with new connections, and with bytes that are under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Accepts connections and closes them at once.
    Refuse,
    /// Accepts connections, and lets nothing through in either direction.
    BlackHole,
    /// Accepts connections and never answers them, even after a change of mode.
    Silent,
    /// Refuses options in the startup message, as PgBouncer does.
    RefuseOptions,
}

/// A fault that happens once, to the next bytes that contain `needle`.
struct Fault {
    from_frontend: bool,
    needle: Vec<u8>,
    /// Set if the fault waits for the nth request of a session.
    counted: Option<Counted>,
    act: Act,
}

/// Counts the requests of one session, from the request that contains the needle.
struct Counted {
    /// The session's connection, once it is known.
    session: Option<usize>,
    seen: usize,
    wanted: usize,
}

impl Counted {
    /// True if the wanted request, or its answer, is under way on this connection.
    fn has_come(
        &mut self,
        connection: usize,
        from_frontend: bool,
        named: bool,
        tags: &[char],
    ) -> bool {
        if from_frontend && named && self.session != Some(connection) {
            (self.session, self.seen) = (Some(connection), 1);
        } else if from_frontend && self.session == Some(connection) {
            // Every request ends with one of these two messages.
            self.seen += tags.iter().filter(|tag| matches!(tag, 'Q' | 'S')).count();
        }
        self.session == Some(connection) && self.seen >= self.wanted
    }
}

/// What happens to the bytes that the fault waits for.
pub enum Act {
    /// They are not delivered, and the connection is closed.
    Lose,
    /// The sender loses its connection. The bytes are still delivered after this time; then the
    /// closure runs.
    DeliverLateThen(Duration, Box<dyn FnOnce() + Send>),
    /// They are not delivered. The closure runs, then the connection is closed.
    LoseAfter(Box<dyn FnOnce() + Send>),
    /// They are delivered, but the answer is not; then the closure runs.
    DeliverThen(Box<dyn FnOnce() + Send>),
    /// The closure runs, then they are delivered.
    DeliverAfter(Box<dyn FnOnce() + Send>),
    /// They are delivered together with these bytes, in one piece; then the connection is closed.
    FollowWith(Vec<u8>),
    /// They are delivered with these bytes in place of the final ReadyForQuery; then the connection
    /// is closed.
    BreakOffWith(Vec<u8>),
    /// These bytes are delivered instead; then the connection is closed.
    ReplaceWith(Vec<u8>),
    /// They are delivered with these bytes in place of the needle, which are as many. The connection
    /// goes on.
    Garble(&'static [u8]),
    /// They are not delivered. The sender gets these bytes as an answer; then the connection is
    /// closed.
    AnswerWith(Vec<u8>),
}

pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Log {
    new: Vec<(usize, Passed)>,
    /// How many messages have passed in all, by the connection's number.
    passed: HashMap<usize, usize>,
}

struct Shared {
    upstream: u16,
    mode: Mutex<Mode>,
    log: Mutex<Log>,
    /// Both ends of each open connection, by its number.
    sockets: Mutex<HashMap<usize, Vec<TcpStream>>>,
    accepted: AtomicUsize,
    encrypted: AtomicUsize,
    fault: Mutex<Option<Fault>>,
    stop: AtomicBool,
}

impl Proxy {
    /// The same URL, but through the proxy.
    pub fn url(&self, direct: &str) -> String {
        let there = format!(":{}/", self.shared.upstream);
        assert!(direct.contains(&there), "not what the proxy is in front of");
        direct.replace(&there, &format!(":{}/", self.port))
    }

    pub fn in_front_of(upstream: u16) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            upstream,
            mode: Mutex::new(Mode::Pass),
            log: Mutex::default(),
            sockets: Mutex::default(),
            accepted: AtomicUsize::new(0),
            encrypted: AtomicUsize::new(0),
            fault: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.stop.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(client) = client else { continue };
                let number = accepting.accepted.fetch_add(1, Ordering::SeqCst);
                let relaying = Arc::clone(&accepting);
                match over_tls() {
                    None => relaying.relay(client, number),
                    // A client that is slow to speak must not keep the others waiting.
                    Some(files) => drop(thread::spawn(move || {
                        let mode = *relaying.mode.lock().unwrap();
                        if matches!(mode, Mode::Silent | Mode::Refuse) {
                            return relaying.relay(client, number);
                        }
                        let from = client.peer_addr();
                        if let Ok(plain) = terminate(client, files) {
                            if plain.peer_addr().ok() != from.ok() {
                                relaying.encrypted.fetch_add(1, Ordering::SeqCst);
                            }
                            relaying.relay(plain, number);
                        }
                    })),
                }
            }
        });
        Proxy { port, shared }
    }

    pub fn set(&self, mode: Mode) {
        *self.shared.mode.lock().unwrap() = mode;
    }

    /// A function that sets the mode, for use in a fault's closure.
    pub fn switch(&self) -> impl Fn(Mode) + Send + use<> {
        let shared = Arc::clone(&self.shared);
        move |mode| *shared.mode.lock().unwrap() = mode
    }

    /// Closes all connections.
    pub fn cut(&self) {
        let all = std::mem::take(&mut *self.shared.sockets.lock().unwrap());
        for socket in all.into_values().flatten() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Applies `act` to the next bytes from the server that contain `needle`.
    pub fn on_answer(&self, needle: &[u8], act: Act) {
        self.arm(false, needle, act);
    }

    /// Applies `act` to the next bytes from the client that contain `needle`.
    pub fn on_request(&self, needle: &[u8], act: Act) {
        self.arm(true, needle, act);
    }

    /// Applies `act` to the `nth` request of the session that sends `needle`; the request with
    /// `needle` is the first.
    pub fn on_nth_request(&self, needle: &[u8], nth: usize, act: Act) {
        self.arm_counted(true, needle, nth, act);
    }

    /// The same, but at the answer to that request.
    pub fn on_nth_answer(&self, needle: &[u8], nth: usize, act: Act) {
        self.arm_counted(false, needle, nth, act);
    }

    /// True if the fault has not happened yet.
    pub fn is_armed(&self) -> bool {
        self.shared.fault.lock().unwrap().is_some()
    }

    fn arm(&self, from_frontend: bool, needle: &[u8], act: Act) {
        *self.shared.fault.lock().unwrap() = Some(Fault {
            from_frontend,
            needle: needle.to_vec(),
            counted: None,
            act,
        });
    }

    fn arm_counted(&self, from_frontend: bool, needle: &[u8], nth: usize, act: Act) {
        *self.shared.fault.lock().unwrap() = Some(Fault {
            from_frontend,
            needle: needle.to_vec(),
            counted: Some(Counted {
                session: None,
                seen: 0,
                wanted: nth,
            }),
            act,
        });
    }

    /// The messages that have passed since the last call on the connection that has had the most so
    /// far. On a busy machine a pool opens another one beside the first.
    pub fn take_log(&self) -> Vec<Passed> {
        let mut log = self.shared.log.lock().unwrap();
        let busiest = log.passed.iter().max_by_key(|(_, count)| **count);
        let busiest = busiest.map(|(number, _)| *number);
        let new = std::mem::take(&mut log.new).into_iter();
        new.filter(|(number, _)| Some(*number) == busiest)
            .map(|(_, passed)| passed)
            .collect()
    }

    /// The same for the connection that has had the most since the last call, of those that were
    /// open then.
    pub fn take_newest_log(&self) -> Vec<Passed> {
        let new = std::mem::take(&mut self.shared.log.lock().unwrap().new);
        let mut logs: HashMap<usize, Vec<Passed>> = HashMap::new();
        for (number, passed) in new {
            logs.entry(number).or_default().push(passed);
        }
        let open = logs
            .into_values()
            .filter(|log| log[0] != Passed::Frontend('^'));
        open.max_by_key(Vec::len).unwrap_or_default()
    }

    /// How many connections were encrypted.
    pub fn encrypted(&self) -> usize {
        self.shared.encrypted.load(Ordering::SeqCst)
    }

    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.cut();
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

impl Shared {
    fn relay(self: &Arc<Self>, client: TcpStream, number: usize) {
        let mode = *self.mode.lock().unwrap();
        if mode == Mode::Refuse {
            return;
        }
        if mode == Mode::Silent {
            // The connection stays open until the proxy ends or cuts it.
            self.sockets.lock().unwrap().insert(number, vec![client]);
            return;
        }
        if mode == Mode::RefuseOptions && has_options(&client) {
            let _ = (&client).write_all(&refusal());
            return;
        }
        let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.upstream)) else {
            return;
        };
        for socket in [&client, &server] {
            socket.set_nodelay(true).expect("TCP_NODELAY");
        }
        let clone = |s: &TcpStream| s.try_clone().expect("a second handle");
        let both = vec![clone(&client), clone(&server)];
        self.sockets.lock().unwrap().insert(number, both);
        let (up, down) = (Arc::clone(self), Arc::clone(self));
        let (from_client, to_server) = (clone(&client), clone(&server));
        thread::spawn(move || up.pump(from_client, to_server, true, number));
        thread::spawn(move || {
            down.pump(server, client, false, number);
            down.sockets.lock().unwrap().remove(&number);
        });
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream, frontend: bool, number: usize) {
        let mut framer = Framer {
            startup: frontend,
            first: true,
            rest: Vec::new(),
        };
        let mut buffer = [0; 64 * 1024];
        while let Ok(count) = from.read(&mut buffer) {
            if count == 0 {
                break;
            }
            while *self.mode.lock().unwrap() == Mode::BlackHole {
                if self.stop.load(Ordering::SeqCst) {
                    return;
                }
                thread::sleep(MS);
            }
            let tags = framer.tags(&buffer[..count]);
            let mut needle = Vec::new();
            let fault = self.fault_for(&buffer[..count], &tags, frontend, number);
            match fault.map(|fault| {
                needle = fault.needle;
                fault.act
            }) {
                None => {}
                Some(Act::Garble(other)) => {
                    let mut windows = buffer[..count].windows(needle.len());
                    let at = windows.position(|w| w == needle).expect("it was found");
                    buffer[at..at + other.len()].copy_from_slice(other);
                }
                Some(Act::DeliverAfter(work)) => work(),
                Some(Act::Lose) => break,
                Some(Act::LoseAfter(work)) => {
                    work();
                    break;
                }
                Some(Act::DeliverLateThen(time, work)) => {
                    let _ = from.shutdown(Shutdown::Both);
                    thread::sleep(time);
                    let _ = to.write_all(&buffer[..count]);
                    // The server closes the connection after it has processed the bytes.
                    let _ = to.read(&mut buffer);
                    work();
                    break;
                }
                Some(Act::FollowWith(more)) => {
                    let _ = to.write_all(&[&buffer[..count], &more].concat());
                    break;
                }
                Some(Act::BreakOffWith(more)) => {
                    let ready = b"Z\0\0\0\x05";
                    let end = buffer[..count].windows(5).rposition(|w| w == ready);
                    let kept = &buffer[..end.expect("the end of an answer")];
                    let _ = to.write_all(&[kept, &more].concat());
                    break;
                }
                Some(Act::ReplaceWith(other)) => {
                    let _ = to.write_all(&other);
                    break;
                }
                Some(Act::AnswerWith(answer)) => {
                    let _ = from.write_all(&answer);
                    break;
                }
                Some(Act::DeliverThen(work)) => {
                    let _ = from.shutdown(Shutdown::Both);
                    let _ = to.write_all(&buffer[..count]);
                    work();
                    break;
                }
            }
            let named = |tag| {
                if frontend {
                    Passed::Frontend(tag)
                } else {
                    Passed::Backend(tag)
                }
            };
            let mut log = self.log.lock().unwrap();
            *log.passed.entry(number).or_default() += tags.len();
            log.new
                .extend(tags.into_iter().map(|tag| (number, named(tag))));
            drop(log);
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        for socket in [from, to] {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    fn fault_for(
        &self,
        bytes: &[u8],
        tags: &[char],
        frontend: bool,
        number: usize,
    ) -> Option<Fault> {
        let holds = |fault: &mut Fault| {
            let named = bytes.windows(fault.needle.len()).any(|w| w == fault.needle);
            let come = match &mut fault.counted {
                None => named,
                Some(counted) => counted.has_come(number, frontend, named, tags),
            };
            come && fault.from_frontend == frontend
        };
        self.fault.lock().unwrap().take_if(holds)
    }
}

/// Splits a stream of bytes into messages (PostgreSQL's manual, section 55.7).
struct Framer {
    startup: bool,
    first: bool,
    rest: Vec<u8>,
}

impl Framer {
    fn tags(&mut self, bytes: &[u8]) -> Vec<char> {
        self.rest.extend_from_slice(bytes);
        // The answer to a request for TLS is no message.
        if std::mem::take(&mut self.first) && !self.startup && bytes == b"N" {
            self.rest.clear();
        }
        let mut tags = Vec::new();
        loop {
            let head = if self.startup { 0 } else { 1 };
            let Some(length) = self.rest.get(head..head + 4) else {
                break;
            };
            let length = u32::from_be_bytes(length.try_into().expect("four bytes")) as usize + head;
            if self.rest.len() < length {
                break;
            }
            let is_tls_request = self.startup && length == 8;
            if !is_tls_request {
                tags.push(if self.startup {
                    '^'
                } else {
                    char::from(self.rest[0])
                });
                self.startup = false;
            }
            self.rest.drain(..length);
        }
        tags
    }
}

/// Answers the request for TLS as a server without TLS does, if there is one. The startup message
/// is short, and arrives in one piece over loopback.
fn has_options(client: &TcpStream) -> bool {
    let mut startup = [0; 1024];
    if client.peek(&mut startup).unwrap_or(0) == 8 {
        let mut client = client;
        let _ = client.read_exact(&mut startup[..8]);
        let _ = client.write_all(b"N");
    }
    let count = client.peek(&mut startup).unwrap_or(0);
    let name = b"\0options\0";
    startup[..count].windows(name.len()).any(|w| w == name)
}

/// The refusal of options, in PgBouncer's words.
fn refusal() -> Vec<u8> {
    error_response("SFATAL\0C08P01\0Munsupported startup parameter: options\0\0")
}

/// PostgreSQL's message when it ends a session for this reason.
pub fn fatal(code: &str) -> Vec<u8> {
    error_response(&format!(
        "SFATAL\0VFATAL\0C{code}\0Mterminating connection\0Fpostgres.c\0L3229\0RProcessInterrupts\0\0"
    ))
}

/// A pooler's message about an error of its own.
pub fn pooler_error(severity: &str, code: &str) -> Vec<u8> {
    error_response(&format!("S{severity}\0C{code}\0Mserver conn crashed?\0\0"))
}

fn error_response(fields: &str) -> Vec<u8> {
    let length = (fields.len() as u32 + 4).to_be_bytes();
    [b"E".as_slice(), &length, fields.as_bytes()].concat()
}
