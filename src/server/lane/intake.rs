//! A request on its way from the edge to a route: what the edge keeps of its head, and what comes
//! over the lane.

use crate::server::http::Request;
use crate::server::router::Route;
use log::debug;
use std::io;
use std::net::IpAddr;
use std::time::Instant;

/// The header with a request's number in the dispatch table. Short, since tiny_http reads byte by
/// byte.
pub const NUMBER: &str = "Desk";

/// What the edge knows about a request.
pub struct RequestMeta {
    pub arrived: Instant,
    /// When it must have been answered.
    pub deadline: Instant,
    pub client: IpAddr,
    pub id: String,
    pub headers: Vec<(String, String)>,
    /// The client's `Idempotency-Key`, or a generated one if a write brings none; else empty.
    pub key: String,
    pub key_was_made: bool,
    /// The headers that let another site's page read the answer.
    pub for_pages: Vec<(&'static str, String)>,
}

impl RequestMeta {
    /// The request as its route sees it. Takes the headers out of this.
    pub fn request(
        &mut self,
        method: String,
        path: String,
        query: String,
        body: Vec<u8>,
        route: &Route,
    ) -> Request {
        Request {
            method,
            // The edge has checked that they can be decoded.
            params: route.params(&path).unwrap_or_default(),
            path,
            query,
            headers: std::mem::take(&mut self.headers),
            body,
            client: self.client,
            id: self.id.clone(),
            fallback_key: match self.key_was_made {
                true => self.key.clone(),
                false => String::new(),
            },
            deadline: self.deadline,
        }
    }
}

/// A request as a worker takes it from the lane.
pub struct Incoming {
    raw: tiny_http::Request,
    /// In the dispatch table.
    pub number: u64,
}

impl Incoming {
    /// A request without a number comes from the edge itself, to prove that a thread and a worker
    /// serve the connection. It is answered at once.
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

    /// Reads the body, and adds what the edge knows. tiny_http is then done with the request and
    /// can read the next one, since the answer goes straight to the client's socket.
    pub fn read(mut self, meta: &mut RequestMeta, route: &Route) -> io::Result<Request> {
        let mut body = Vec::new();
        self.raw.as_reader().read_to_end(&mut body)?;
        let url = self.raw.url();
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let method = self.raw.method().as_str().to_owned();
        let request = meta.request(method, path.to_owned(), query.to_owned(), body, route);
        self.discard();
        Ok(request)
    }

    /// Drops the request without an answer over the lane.
    pub fn discard(self) {
        // A dropped tiny_http request is answered with 500, its writer is not. Reads the rest of
        // the body.
        drop(self.raw.into_writer());
    }
}
