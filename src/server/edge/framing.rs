//! Where a request begins and ends, and which are none. Pure.
//!
//! Everything that two parsers could understand in two ways is refused, and so is whatever the server behind the edge
//! cannot bear (tiny_http 0.12: it runs out of memory over a large `Content-Length`, never lets go of `HTTP/2.0`, takes what
//! follows a bad length or a chunked body for the next request, and reads heads of any size).
//! Rules: RFC 9112, sections 2.2, 3, 5 and 6.

use super::forwarded;
use crate::server::lane::NUMBER;
use std::io::Write;
use std::net::IpAddr;
use std::str;

/// The longest head, from the method to the empty line.
pub const LONGEST_HEAD: usize = 16 * 1024;
const MOST_HEADERS: usize = 100;

/// Why a request is refused; the connection is closed after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    pub detail: &'static str,
}

const fn refusal(status: u16, detail: &'static str) -> Refusal {
    Refusal { status, detail }
}

const LINE_ENDS: Refusal = refusal(400, "lines end with CR LF, and hold no control characters");
const HEAD_TOO_LARGE: Refusal = refusal(
    431,
    "the head of a request takes 16 KiB and 100 headers at most",
);

/// The head of a request that may be handed on.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    /// Bytes, with the empty line.
    pub length: usize,
    /// Bytes of the body that follows.
    pub body: usize,
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Names and values of those that are handed on.
    pub headers: Vec<(String, String)>,
    /// Nothing else is wanted on this connection.
    pub close: bool,
    /// The client waits for a 100 before it sends the body.
    pub expects_continue: bool,
    /// The client's own, as it came.
    pub request_id: Option<String>,
    /// As it came.
    pub idempotency_key: Option<String>,
    /// On whose behalf, by `Forwarded` or `X-Forwarded-For`: nearest last.
    pub forwarded_for: Vec<Option<IpAddr>>,
}

impl Head {
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The request as a lane is sent it, under its number at the desk. The client's headers stay at the desk as well:
    /// tiny_http would read them once more, byte by byte.
    pub fn for_lane(&self, number: u64, body: &[u8]) -> Vec<u8> {
        let (method, target) = (&self.method, &self.target);
        let mut bytes = Vec::with_capacity(method.len() + target.len() + body.len() + 96);
        // Writing to memory does not fail.
        let _ = write!(
            bytes,
            "{method} {target} HTTP/1.1\r\n{NUMBER}: {number}\r\n"
        );
        if !body.is_empty() {
            let _ = write!(bytes, "Content-Length: {}\r\n", body.len());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(body);
        bytes
    }

    /// Its method may change something.
    pub fn writes(&self) -> bool {
        !matches!(&*self.method, "GET" | "HEAD" | "OPTIONS" | "TRACE")
    }
}

/// Reads the head of a request, once all of it is there. `seen` bytes were looked at before, and are no whole head.
pub fn head(input: &[u8], seen: usize, longest_body: usize) -> Result<Option<Head>, Refusal> {
    match end_of_head(input, seen)? {
        Some(end) => parse(&input[..end], longest_body).map(Some),
        None if input.len() >= LONGEST_HEAD => Err(HEAD_TOO_LARGE),
        None => Ok(None),
    }
}

/// How many empty lines stand before the request; clients of long ago sent one.
pub fn blank_lines(input: &[u8]) -> usize {
    input
        .chunks_exact(2)
        .take_while(|two| two == b"\r\n")
        .count()
        * 2
}

fn end_of_head(input: &[u8], seen: usize) -> Result<Option<usize>, Refusal> {
    let within = &input[..input.len().min(LONGEST_HEAD)];
    for (at, &byte) in within.iter().enumerate().skip(seen.saturating_sub(3)) {
        match byte {
            b'\n' if at == 0 || within[at - 1] != b'\r' => return Err(LINE_ENDS),
            b'\n' if within[..at].ends_with(b"\r\n\r") => return Ok(Some(at + 1)),
            b'\r' if within.get(at + 1).is_some_and(|next| *next != b'\n') => {
                return Err(LINE_ENDS);
            }
            b'\n' | b'\r' | b'\t' => {}
            0..0x20 | 0x7f => return Err(LINE_ENDS),
            _ => {}
        }
    }
    Ok(None)
}

fn parse(head: &[u8], longest_body: usize) -> Result<Head, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err(HEAD_TOO_LARGE),
        Err(httparse::Error::Version) if names_a_version(head) => {
            return Err(refusal(505, "this server speaks HTTP/1.1 and HTTP/1.0"));
        }
        _ => return Err(refusal(400, "this is no HTTP request")),
    }
    let old = request.version == Some(0);
    let mut framing = Framing::default();
    let mut read = Head {
        length: head.len(),
        body: 0,
        method: request.method.unwrap_or_default().to_owned(),
        target: target(request.method, request.path)?,
        headers: Vec::with_capacity(request.headers.len()),
        close: old,
        expects_continue: false,
        request_id: None,
        idempotency_key: None,
        forwarded_for: Vec::new(),
    };
    let mut forwarded = Vec::new();
    for header in request.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        let value = str::from_utf8(header.value)
            .ok()
            .filter(|text| text.is_ascii())
            .map(str::trim);
        if is("Host") {
            framing.hosts += 1;
            if !value.is_some_and(is_host) {
                return Err(refusal(400, "Host takes a name or an address, and a port"));
            }
        } else if is("Content-Length") {
            framing.length(value)?;
            continue;
        } else if is("Transfer-Encoding") {
            framing.encoded = true;
        } else if is("Connection") {
            let says = |what: &str| {
                value.is_some_and(|v| v.split(',').any(|t| t.trim().eq_ignore_ascii_case(what)))
            };
            read.close |= says("close");
            continue;
        } else if is("Expect") {
            if !value.is_some_and(|v| v.eq_ignore_ascii_case("100-continue")) {
                return Err(refusal(417, "Expect takes 100-continue"));
            }
            read.expects_continue = !old;
            continue;
        } else if is("X-Request-Id") {
            read.request_id = value.map(str::to_owned);
            continue;
        } else if is("Idempotency-Key") {
            // One that was left out would let a write be done twice.
            let key = value.ok_or(refusal(
                400,
                "Idempotency-Key takes 1 to 255 printable ASCII characters, once",
            ))?;
            read.idempotency_key = Some(key.to_owned());
        } else if is("Forwarded") {
            forwarded.extend(
                value
                    .into_iter()
                    .flat_map(|v| v.split(','))
                    .map(forwarded::element),
            );
        } else if is("X-Forwarded-For") {
            let addresses = value.into_iter().flat_map(|v| v.split(','));
            read.forwarded_for.extend(addresses.map(forwarded::address));
        }
        let hop_by_hop = ["Keep-Alive", "Proxy-Connection", "TE", "Trailer", "Upgrade"];
        // One that is not ASCII is left out: nobody can say what it was meant to be.
        if let Some(value) = value
            && !hop_by_hop.iter().any(|name| is(name))
        {
            read.headers
                .push((header.name.to_owned(), value.to_owned()));
        }
    }
    if !forwarded.is_empty() {
        read.forwarded_for = forwarded;
    }
    read.body = framing.body(old, longest_body)?;
    read.expects_continue &= read.body > 0;
    Ok(read)
}

/// Its first line ends as one of HTTP does, of whatever version.
fn names_a_version(head: &[u8]) -> bool {
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    let parts: Vec<_> = line.split(|b| *b == b' ').collect();
    matches!(
        parts[..],
        [
            _,
            _,
            [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9']
        ]
    )
}

/// What decides where the body ends.
#[derive(Default)]
struct Framing {
    hosts: usize,
    encoded: bool,
    length: Option<u64>,
}

impl Framing {
    fn length(&mut self, value: Option<&str>) -> Result<(), Refusal> {
        let digits = value.filter(|v| !v.is_empty() && v.bytes().all(|b| b.is_ascii_digit()));
        match (digits, self.length) {
            (Some(digits), None) => {
                // More than that many bytes is too large in any case.
                self.length = Some(digits.parse().unwrap_or(u64::MAX));
                Ok(())
            }
            _ => Err(refusal(400, "Content-Length takes a whole number, once")),
        }
    }

    fn body(&self, old: bool, longest: usize) -> Result<usize, Refusal> {
        if self.hosts > 1 || (self.hosts == 0 && !old) {
            return Err(refusal(400, "a request names its Host, once"));
        }
        if self.encoded {
            return Err(match self.length {
                None if !old => refusal(
                    411,
                    "a body needs a Content-Length; Transfer-Encoding is not taken",
                ),
                _ => refusal(400, "Transfer-Encoding is not taken, least of all here"),
            });
        }
        match usize::try_from(self.length.unwrap_or(0)) {
            Ok(length) if length <= longest => Ok(length),
            _ => Err(refusal(413, "the body is too large")),
        }
    }
}

/// Path and query of what was asked for, also where it was asked for by a whole URL.
fn target(method: Option<&str>, target: Option<&str>) -> Result<String, Refusal> {
    let bad = refusal(400, "the target of a request is a path, as /health");
    let target = target.unwrap_or_default();
    let scheme = |name: &str| {
        let start = target.get(..name.len())?;
        start
            .eq_ignore_ascii_case(name)
            .then(|| &target[name.len()..])
    };
    let path = match scheme("http://").or_else(|| scheme("https://")) {
        Some(rest) => rest.find(['/', '?']).map_or("/", |at| &rest[at..]),
        None => target,
    };
    let asterisk = method == Some("OPTIONS") && path == "*";
    let plain = path.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
    match path.strip_prefix('?') {
        Some(query) if plain => Ok(format!("/?{query}")),
        _ if plain && (path.starts_with('/') || asterisk) => Ok(path.to_owned()),
        _ => Err(bad),
    }
}

fn is_host(value: &str) -> bool {
    value
        .bytes()
        .all(|b| b.is_ascii_graphic() && !b"/\\?#@,".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: &str) -> Result<Option<Head>, u16> {
        head(input.as_bytes(), 0, 1000).map_err(|refusal| refusal.status)
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let rows: &[(&str, u16)] = &[
            ("GET / HTTP/1.1\nHost: a\n\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\x7fb\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n folded\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\n: a\r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", 400),
            ("GET /\r\n\r\n", 400),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET / x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET /#a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET /é HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("G(T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET / http/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
            ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
            ("PRI * HTTP/2.0\r\n\r\n", 505),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
                400,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\n",
                400,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
                400,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
                400,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1 1\r\n\r\n",
                400,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\n",
                400,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1,1\r\n\r\n",
                400,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
                400,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                400,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
                400,
            ),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
                411,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: identity\r\n\r\n",
                411,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n",
                411,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n",
                413,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 30000000000\r\n\r\n",
                413,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999999\r\n\r\n",
                413,
            ),
            ("POST / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\n\r\n", 417),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nIdempotency-Key: é\r\n\r\n",
                400,
            ),
        ];
        for (input, status) in rows {
            assert_eq!(read(input), Err(*status), "{input:?}");
        }
        let headers = |n: usize| {
            format!(
                "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
                "X: y\r\n".repeat(n - 1)
            )
        };
        assert!(read(&headers(100)).is_ok_and(|head| head.is_some()));
        assert_eq!(read(&headers(101)), Err(431));
        let long = |n: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(n));
        let rest = long(0).len();
        assert!(read(&long(LONGEST_HEAD - rest)).is_ok_and(|head| head.is_some()));
        assert_eq!(read(&long(LONGEST_HEAD - rest + 1)), Err(431));
        assert_eq!(read(&"x".repeat(LONGEST_HEAD)), Err(431));
    }

    #[test]
    fn what_is_good_is_handed_on_without_what_is_the_connections() {
        let head = read(
            "POST /a?b=c HTTP/1.1\r\nhost: a:80\r\nContent-Length: 12\r\nConnection: Keep-Alive, Close\r\n\
             Expect: 100-Continue\r\nUpgrade: h2c\r\nDesk: 1\r\nUser-Agent: Zoë\r\nx-request-id: r1\r\n\
             Idempotency-Key:  \"k\" \r\nAccept: a\r\n\r\n",
        );
        let head = head.unwrap().unwrap();
        assert_eq!(
            (&*head.method, &*head.target, head.path()),
            ("POST", "/a?b=c", "/a")
        );
        assert_eq!(
            (head.body, head.close, head.expects_continue),
            (12, true, true)
        );
        assert_eq!(head.request_id.as_deref(), Some("r1"));
        assert_eq!(head.idempotency_key.as_deref(), Some("\"k\""));
        let headers = [
            ("host", "a:80"),
            ("Desk", "1"),
            ("Idempotency-Key", "\"k\""),
            ("Accept", "a"),
        ];
        assert_eq!(
            head.headers,
            headers.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
        // To a lane, none of them: what a client calls its number is not taken for one.
        assert_eq!(
            String::from_utf8(head.for_lane(7, b"abcdefghijkl")).unwrap(),
            "POST /a?b=c HTTP/1.1\r\nDesk: 7\r\nContent-Length: 12\r\n\r\nabcdefghijkl"
        );
        for (target, path) in [
            ("http://a", "/"),
            ("HTTP://a:80/b?c", "/b?c"),
            ("https://a?b", "/?b"),
            ("//a", "//a"),
        ] {
            let head = read(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
            assert_eq!(head.unwrap().unwrap().target, path, "{target}");
        }
        let old = read("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        assert!(
            old.unwrap().unwrap().close,
            "a connection of HTTP/1.0 is for one request"
        );
        assert!(
            read("OPTIONS * HTTP/1.1\r\nHost:\r\n\r\n")
                .unwrap()
                .is_some()
        );
    }

    #[test]
    fn a_head_may_come_in_pieces_of_any_size() {
        let whole = b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\nmore";
        for size in 1..whole.len() {
            let (mut seen, mut got) = (0, None);
            while got.is_none() {
                let now = (seen + size).min(whole.len());
                got = head(&whole[..now], seen, 0).unwrap();
                seen = now;
            }
            assert_eq!(got.unwrap().length, whole.len() - 4, "{size}");
        }
        assert_eq!(blank_lines(b"\r\n\r\nGET"), 4);
        assert_eq!(blank_lines(b"\rGET"), 0);
    }

    /// Pieces that requests are made of, and some that they should not be.
    const PIECES: &[&str] = &[
        "GET ",
        "POST ",
        "OPTIONS * ",
        "/a",
        "/b?c=d",
        "http://a/c",
        " HTTP/1.1\r\n",
        " HTTP/1.0\r\n",
        " HTTP/2.0\r\n",
        "GET /x HTTP/1.1\r\nHost: a\r\n",
        "POST /y HTTP/1.1\r\nHost: a\r\n",
        "GET /z HTTP/1.1\r\nHost: a\r\n\r\n",
        "Host: a\r\n",
        "Content-Length: 5\r\n",
        "Content-Length: 0\r\n",
        "Content-Length: 2000\r\n",
        "content-length:3\r\n",
        "Content-Length: 5, 5\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Connection: close\r\n",
        "Connection: upgrade\r\n",
        "Expect: 100-continue\r\n",
        "Desk: 1 2 3\r\n",
        "User-Agent: Zo\u{eb}\r\n",
        "Idempotency-Key: k\r\n",
        "X:\r\n",
        "X: a:b, c\r\n",
        "X : a\r\n",
        " folded\r\n",
        "\r\n",
        "\r\n\r\n",
        "\n",
        "\r",
        "\0",
        "\t",
        " ",
        ":",
        "abcde",
        "5\r\nabcde\r\n0\r\n\r\n",
    ];

    /// Method, target, body.
    type SeenRequest = (String, String, Vec<u8>);

    /// What the edge would hand on of these bytes: as it reads them, and as it sends them.
    fn handed_on(mut input: &[u8]) -> Vec<(SeenRequest, Vec<u8>)> {
        let mut all = Vec::new();
        loop {
            input = &input[blank_lines(input)..];
            let Ok(Some(read)) = head(input, 0, 3000) else {
                return all;
            };
            let rest = &input[read.length..];
            if rest.len() < read.body {
                return all;
            }
            let (body, next) = rest.split_at(read.body);
            let seen = (read.method.clone(), read.target.clone(), body.to_vec());
            all.push((seen, read.for_lane(1, body)));
            if read.close {
                return all;
            }
            input = next;
        }
    }

    #[test]
    fn what_is_handed_on_is_what_tiny_http_then_sees() {
        use proptest::prelude::*;
        use std::io::Write;
        use std::os::unix::net::UnixStream;

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lane");
        let server = tiny_http::Server::http_unix(&path).unwrap();
        let next = || {
            let request = server.recv_timeout(std::time::Duration::from_secs(10));
            let mut request = request.unwrap().expect("a request that was handed on");
            let mut body = Vec::new();
            request.as_reader().read_to_end(&mut body).unwrap();
            let (method, url) = (request.method().to_string(), request.url().to_owned());
            let seen: SeenRequest = (method, url, body);
            drop(request.into_writer());
            seen
        };
        let piece = prop_oneof![
            8 => proptest::sample::select(PIECES).prop_map(|piece| piece.as_bytes().to_vec()),
            1 => proptest::collection::vec(any::<u8>(), 0..4),
            1 => Just(vec![b'x'; 2000]),
        ];
        let line = proptest::sample::select(&["GET /a", "POST /b?c=d", "GET http://a/c"][..]);
        let end = proptest::sample::select(&["", "abcde", "\r\n"][..]);
        let request = (line, proptest::collection::vec(piece.clone(), 0..3), end);
        let request = request.prop_map(|(line, pieces, end)| {
            let begin = format!("{line} HTTP/1.1\r\nHost: a\r\n").into_bytes();
            [
                begin,
                pieces.concat(),
                b"\r\n".to_vec(),
                end.as_bytes().to_vec(),
            ]
            .concat()
        });
        let part = prop_oneof![4 => request, 1 => piece];
        let input = proptest::collection::vec(part, 0..6).prop_map(|parts| parts.concat());
        let cases = ProptestConfig {
            cases: 3000,
            failure_persistence: None,
            ..ProptestConfig::default()
        };
        let handed = std::cell::Cell::new(0);
        let mut runner = proptest::test_runner::TestRunner::new(cases);
        let outcome = runner.run(&input, |input| {
            let all = handed_on(&input);
            handed.set(handed.get() + all.len());
            let mut stream = UnixStream::connect(&path).unwrap();
            for (seen, bytes) in all {
                stream.write_all(&bytes).unwrap();
                prop_assert_eq!(next(), seen);
            }
            // Nothing else was seen, and the next request is where it should be.
            stream.write_all(b"GET /end HTTP/1.1\r\n\r\n").unwrap();
            prop_assert_eq!(next(), ("GET".into(), "/end".into(), vec![]));
            Ok(())
        });
        outcome.unwrap();
        assert!(
            handed.get() > 300,
            "only {} requests were handed on",
            handed.get()
        );
    }
}
