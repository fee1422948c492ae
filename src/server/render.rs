//! A response as bytes on the wire. Pure, but for the date.

use super::http::{Problem, Response};
use super::reason::reason;
use log::error;
use std::fmt::Write as _;
use std::time::SystemTime;

/// The bytes of a response; without its body if the request was a HEAD.
pub(super) fn render(response: &Response, id: &str, head_only: bool) -> Vec<u8> {
    let status = response.status;
    if !(200..1000).contains(&status) {
        error!("{status} is not a valid response status: sending 500");
        return render(&Problem::internal().into(), id, head_only);
    }
    let has_body = !matches!(status, 204 | 304);
    let mut out = String::with_capacity(512 + response.body.len());
    // Writing to memory does not fail.
    let _ = write!(out, "HTTP/1.1 {status} {}\r\n", reason(status));
    let mut add = |name: &str, value: &str| {
        out += name;
        out += ": ";
        // A header must stay on one line, whatever its value was made from.
        match value.bytes().all(|b| matches!(b, b' '..=b'~')) {
            true => out += value,
            false => out.extend(value.chars().filter(|c| !c.is_control())),
        }
        out += "\r\n";
    };
    add("Server", "millpond");
    add("Date", &httpdate::fmt_http_date(SystemTime::now()));
    for (name, value) in &response.headers {
        if !is_of_the_connection(name) {
            add(name, value);
        }
    }
    add("X-Request-Id", id);
    if has_body {
        add("Content-Length", &response.body.len().to_string());
    }
    out += "\r\n";
    let mut out = out.into_bytes();
    if has_body && !head_only {
        out.extend_from_slice(&response.body);
    }
    out
}

/// Headers that an application must not set.
fn is_of_the_connection(name: &str) -> bool {
    const OURS: [&str; 9] = [
        "connection",
        "content-length",
        "date",
        "keep-alive",
        "server",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-request-id",
    ];
    let is_token = !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
    !is_token || OURS.iter().any(|ours| name.eq_ignore_ascii_case(ours))
}

/// Adds `Connection: close` to a rendered response.
pub(super) fn closing(mut answer: Vec<u8>) -> Vec<u8> {
    let status_line = answer
        .iter()
        .position(|b| *b == b'\n')
        .map_or(0, |at| at + 1);
    let close = b"Connection: close\r\n".iter().copied();
    answer.splice(status_line..status_line, close);
    answer
}
