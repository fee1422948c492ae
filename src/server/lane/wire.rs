//! A request on its way through a lane: as the edge sends it, and as a worker takes it.
//!
//! Only method, target, number and body are sent. The client's headers stay in the table of sent
//! requests: tiny_http would read them once more, byte by byte.

use log::debug;
use std::io::{self, Write};

/// The header with a request's number in the table of sent requests. Short, since tiny_http reads
/// byte by byte.
const NUMBER: &str = "Number";

/// A request as it is sent to a lane.
pub fn to_bytes(method: &str, target: &str, number: u64, body: &[u8]) -> Vec<u8> {
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

/// A request as a worker takes it from the lane.
pub(super) struct Incoming {
    raw: tiny_http::Request,
    /// In the table of sent requests.
    pub number: u64,
}

impl Incoming {
    /// A request without a number proves that a thread and a worker serve the connection. It is
    /// answered at once.
    pub fn of(raw: tiny_http::Request) -> Option<Incoming> {
        let number = raw.headers().iter().find(|h| h.field.equiv(NUMBER));
        if let Some(number) = number.and_then(|h| h.value.as_str().parse().ok()) {
            return Some(Incoming { raw, number });
        }
        if let Err(e) = raw.respond(tiny_http::Response::empty(204)) {
            debug!("the answer to a lane's self-test was not delivered: {e}");
        }
        None
    }

    /// Reads the body. tiny_http is then done with the request and can read the next one, since the
    /// answer goes straight to the client's socket.
    pub fn read_body(mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        self.raw.as_reader().read_to_end(&mut body)?;
        self.discard();
        Ok(body)
    }

    /// Drops the request without an answer over the lane.
    pub fn discard(self) {
        // A dropped tiny_http request is answered with 500, its writer is not. Reads the rest of
        // the body.
        drop(self.raw.into_writer());
    }
}
