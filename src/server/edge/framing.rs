//! Where a request begins and ends, and what is not a valid request. Pure.
//!
//! Refuses everything that two parsers could understand differently, and everything that the server
//! behind the edge cannot handle: tiny_http 0.12 runs out of memory over a large `Content-Length`,
//! never lets go of `HTTP/2.0`, takes the bytes behind a bad length for the next request, and reads
//! heads of any size. Rules: RFC 9112, sections 2.2, 3, 5 and 6.

use super::forwarded;
use crate::server::http::may_write;
use std::borrow::Cow;
use std::net::{IpAddr, Ipv6Addr};
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

pub const fn refusal(status: u16, detail: &'static str) -> Refusal {
    Refusal { status, detail }
}

const LINE_ENDS: Refusal = refusal(400, "lines end with CR LF, and hold no control characters");
const HEAD_TOO_LARGE: Refusal = refusal(
    431,
    "the head of a request takes 16 KiB and 100 headers at most",
);

/// The head of a valid request.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    /// Its bytes, including the empty line.
    pub length: usize,
    /// Bytes of the body that follows, unless that is chunked.
    pub body: usize,
    /// The body comes in chunks.
    pub chunked: bool,
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Names and values of the headers that are handed on.
    pub headers: Vec<(String, String)>,
    /// The client sends nothing else on this connection.
    pub close: bool,
    /// The client waits for a 100 before it sends the body.
    pub expects_continue: bool,
    /// The client's `X-Request-Id`, as it came.
    pub request_id: Option<String>,
    /// The client's `Idempotency-Key`, as it came.
    pub idempotency_key: Option<String>,
    /// The clients named by `Forwarded` or `X-Forwarded-For`, the nearest last.
    pub forwarded_for: Vec<Option<IpAddr>>,
}

impl Head {
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// A body follows.
    pub fn has_body(&self) -> bool {
        self.body > 0 || self.chunked
    }

    /// The method may change something.
    pub fn writes(&self) -> bool {
        may_write(&self.method)
    }
}

/// Reads the head of a request, once all of it is there. The first `seen` bytes were read before,
/// and are not a whole head.
pub fn head(input: &[u8], seen: usize, longest_body: usize) -> Result<Option<Head>, Refusal> {
    match end_of_head(input, seen)? {
        Some(end) => parse(&input[..end], longest_body).map(Some),
        None if input.len() >= LONGEST_HEAD && !input[..LONGEST_HEAD].contains(&b'\r') => Err(
            refusal(414, "the target of a request is shorter than 16 KiB"),
        ),
        None if input.len() >= LONGEST_HEAD => Err(HEAD_TOO_LARGE),
        None => Ok(None),
    }
}

/// The length of the empty lines before the request; old clients sent one.
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
    // A later minor version is to be read as the latest that is known (RFC 9110, section 2.5).
    let later = later_minor_version(head).map(|at| {
        let mut known = head.to_vec();
        known[at] = b'1';
        known
    });
    let head = later.as_deref().unwrap_or(head);
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err(HEAD_TOO_LARGE),
        Err(httparse::Error::Version) if names_a_version(head) => {
            return Err(refusal(505, "this server speaks HTTP/1.1 and HTTP/1.0"));
        }
        _ => return Err(refusal(400, "this is not an HTTP request")),
    }
    let old = request.version == Some(0);
    let mut framing = Framing::default();
    let (target, host) = target(request.method, request.path)?;
    let mut read = Head {
        length: head.len(),
        body: 0,
        chunked: false,
        method: request.method.unwrap_or_default().to_owned(),
        target,
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
            framing.encodings(value);
            continue;
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
            // If it was left out, a write could be done twice.
            let key = value.ok_or(refusal(
                400,
                "Idempotency-Key must be sent once, with 1 to 255 printable ASCII characters",
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
        // A header that is not ASCII is left out, since its encoding is unknown. A whole URL in the
        // request line takes precedence over `Host` (RFC 9112, section 3.2.2).
        let value = host.as_deref().filter(|_| is("Host")).or(value);
        if let Some(value) = value
            && !hop_by_hop.iter().any(|name| is(name))
        {
            read.headers
                .push((header.name.to_owned(), value.to_owned()));
        }
    }
    // Most proxies write X-Forwarded-For, and pass a Forwarded of the client's own on.
    if read.forwarded_for.is_empty() {
        read.forwarded_for = forwarded;
    }
    (read.body, read.chunked) = framing.body(old, longest_body)?;
    read.expects_continue &= read.has_body();
    Ok(read)
}

/// Whether the first line ends with an HTTP version, whichever.
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

/// The position of the minor version in an HTTP/1.2 or later.
fn later_minor_version(head: &[u8]) -> Option<usize> {
    let end = head.windows(2).position(|two| two == b"\r\n")?;
    let is_later = head[..end]
        .last()
        .is_some_and(|digit| (b'2'..=b'9').contains(digit));
    (is_later && head[..end - 1].ends_with(b" HTTP/1.")).then(|| end - 1)
}

/// The headers that decide where the body ends.
#[derive(Default)]
struct Framing {
    hosts: usize,
    /// The transfer codings, in lower case.
    codings: Vec<String>,
    length: Option<u64>,
}

impl Framing {
    fn length(&mut self, value: Option<&str>) -> Result<(), Refusal> {
        let digits = value.filter(|v| !v.is_empty() && v.bytes().all(|b| b.is_ascii_digit()));
        match (digits, self.length) {
            (Some(digits), None) => {
                // A number that does not fit is too large in any case.
                self.length = Some(digits.parse().unwrap_or(u64::MAX));
                Ok(())
            }
            _ => Err(refusal(400, "Content-Length takes a whole number, once")),
        }
    }

    fn encodings(&mut self, value: Option<&str>) {
        // A coding that is not text is an unknown one.
        let names = value.unwrap_or("?").split(',');
        self.codings
            .extend(names.map(|name| name.trim().to_ascii_lowercase()));
    }

    /// The length of the body, and whether it comes in chunks.
    fn body(&self, old: bool, longest: usize) -> Result<(usize, bool), Refusal> {
        if self.hosts > 1 || (self.hosts == 0 && !old) {
            return Err(refusal(400, "a request must have exactly one Host"));
        }
        let codings: Vec<_> = self.codings.iter().map(String::as_str).collect();
        match codings[..] {
            [] => {}
            _ if old || self.length.is_some() => {
                let why = "Transfer-Encoding is not allowed in HTTP/1.0, nor with a Content-Length";
                return Err(refusal(400, why));
            }
            ["chunked"] => return Ok((0, true)),
            [ref before @ .., "chunked"] if !before.contains(&"chunked") => {
                return Err(refusal(
                    501,
                    "Transfer-Encoding takes chunked, and nothing before it",
                ));
            }
            _ => {
                return Err(refusal(
                    400,
                    "Transfer-Encoding takes chunked, once and last",
                ));
            }
        }
        match usize::try_from(self.length.unwrap_or(0)) {
            Ok(length) if length <= longest => Ok((length, false)),
            _ => Err(refusal(413, "the body is too large")),
        }
    }
}

/// Path and query of the target; and the host, if the target is a whole URL.
fn target(method: Option<&str>, target: Option<&str>) -> Result<(String, Option<String>), Refusal> {
    let bad = refusal(400, "the target of a request is a path, as /health");
    let target = target.unwrap_or_default();
    let scheme = |name: &str| {
        let start = target.get(..name.len())?;
        start
            .eq_ignore_ascii_case(name)
            .then(|| &target[name.len()..])
    };
    let mut named = None;
    let path = match scheme("http://").or_else(|| scheme("https://")) {
        Some(rest) => {
            let (host, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
            if host.is_empty() || !is_host(host) {
                return Err(refusal(400, "a whole URL names its host"));
            }
            named = Some(host.to_owned());
            // A URL may have no path.
            match path.starts_with('/') {
                true => Cow::Borrowed(path),
                false => Cow::Owned(format!("/{path}")),
            }
        }
        None => Cow::Borrowed(target),
    };
    let asterisk = method == Some("OPTIONS") && path == "*";
    let plain = path.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
    match plain && (path.starts_with('/') || asterisk) {
        true => Ok((path.into_owned(), named)),
        false => Err(bad),
    }
}

/// Whether this is a name or an address, with or without a port (RFC 9110, section 7.2), or empty.
/// A comma is legal in a name, but is taken to separate two hosts.
fn is_host(value: &str) -> bool {
    let (is_name, port) = match value.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) => (address.parse::<Ipv6Addr>().is_ok(), port),
            None => return false,
        },
        None => {
            let (name, port) = value.split_at(value.find(':').unwrap_or(value.len()));
            (is_name(name), port)
        }
    };
    let digits = port.strip_prefix(':').unwrap_or(port);
    let has_colon = port.is_empty() || port.starts_with(':');
    is_name && has_colon && digits.len() <= 5 && digits.bytes().all(|b| b.is_ascii_digit())
}

fn is_name(name: &str) -> bool {
    let mut parts = name.split('%');
    let is_plain = |part: &str| {
        part.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._~!$&'()*+;=".contains(&b))
    };
    let is_encoded = |part: &str| {
        part.get(..2)
            .is_some_and(|two| two.bytes().all(|b| b.is_ascii_hexdigit()))
            && is_plain(&part[2..])
    };
    parts.next().is_none_or(is_plain) && parts.all(is_encoded)
}

#[cfg(test)]
mod tests {
    use super::super::chunked::Chunked;
    use super::*;
    use crate::server::lane::to_bytes;

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
            ("GET / HTTP/1.x\r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/3.1\r\nHost: a\r\n\r\n", 505),
            ("GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: [::1]a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: [a]\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a:port\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a:80:80\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: <script>\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: %zz\r\n\r\n", 400),
            ("GET http:///a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET http://?a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
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
                "POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: identity\r\n\r\n",
                400,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n",
                400,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
                400,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n",
                400,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
                501,
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
            ("\r\n\r\n", 400),
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
        assert_eq!(
            read(&format!("GET /{}", "x".repeat(LONGEST_HEAD))),
            Err(414)
        );
    }

    #[test]
    fn what_is_good_is_handed_on_without_what_is_the_connections() {
        let head = read(
            "POST /a?b=c HTTP/1.1\r\nhost: a:80\r\nContent-Length: 12\r\nConnection: Keep-Alive, Close\r\n\
             Expect: 100-Continue\r\nUpgrade: h2c\r\nNumber: 1\r\nUser-Agent: Zoë\r\nx-request-id: r1\r\n\
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
            ("Number", "1"),
            ("Idempotency-Key", "\"k\""),
            ("Accept", "a"),
        ];
        assert_eq!(
            head.headers,
            headers.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
        // To a lane, none of them: what a client calls its number is not taken for one.
        assert_eq!(
            String::from_utf8(to_bytes(&head.method, &head.target, 7, b"abcdefghijkl")).unwrap(),
            "POST /a?b=c HTTP/1.1\r\nNumber: 7\r\nContent-Length: 12\r\n\r\nabcdefghijkl"
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
        let other = read("GET http://b:80/ HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(other.unwrap().unwrap().headers[0].1, "b:80");
        for host in [
            "a",
            "a:80",
            "a:",
            "1.2.3.4:5",
            "[::1]",
            "[::1]:80",
            "%41b",
            "a_b",
        ] {
            let head = read(&format!("GET / HTTP/1.2\r\nHost: {host}\r\n\r\n"));
            assert!(head.unwrap().is_some_and(|head| !head.close), "{host}");
        }
        let chunked = read(
            "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\nExpect: 100-continue\r\n\r\n",
        );
        let chunked = chunked.unwrap().unwrap();
        assert!(chunked.chunked && chunked.has_body() && chunked.expects_continue);
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
        "Number: 1 2 3\r\n",
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
            let (body, next) = if read.chunked {
                let mut left = rest.to_vec();
                match Chunked::default().take(&mut left, 3000) {
                    Ok(Some(body)) => (body, &rest[rest.len() - left.len()..]),
                    _ => return all,
                }
            } else if rest.len() < read.body {
                return all;
            } else {
                (rest[..read.body].to_vec(), &rest[read.body..])
            };
            let seen = (read.method.clone(), read.target.clone(), body.clone());
            all.push((seen, to_bytes(&read.method, &read.target, 1, &body)));
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
