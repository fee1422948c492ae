//! Responses and problems, as the routes return them.

use super::current_span;
use super::reason::reason;
use crate::error::{Chain, CheckoutFailure, Error, GaveUpReason};
use crate::traceparent::{Traceparent, traced};
use log::{Level, error};
use postgres::error::SqlState;
use serde::Serialize;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::time::Duration;

/// The longest time after which a refused client is told to come back, in seconds, before it is
/// spread.
const LONGEST_RETRY: f64 = 60.0;

/// A response.
#[derive(Clone, Debug)]
#[must_use]
#[non_exhaustive]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// All headers except those of the connection (`Content-Length`, `Transfer-Encoding`,
    /// `Connection` and so on), which are ignored here.
    pub headers: Vec<(&'static str, String)>,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Response {
    /// A JSON body.
    pub fn json(status: u16, body: &impl Serialize) -> Response {
        Response::json_as("application/json", status, body)
    }

    fn json_as(content_type: &str, status: u16, body: &impl Serialize) -> Response {
        // Enough for most answers without growing.
        let mut text = Vec::with_capacity(512);
        match serde_json::to_writer(&mut text, body) {
            Ok(()) => Response::bytes(status, content_type, text),
            Err(e) => {
                error!("cannot serialize a response as JSON: {e}");
                Problem::internal().into()
            }
        }
    }

    /// A body of the given type.
    pub fn bytes(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Response {
        Response {
            status,
            headers: vec![("Content-Type", content_type.to_owned())],
            body: body.into(),
        }
    }

    /// No body.
    pub fn empty(status: u16) -> Response {
        Response {
            status,
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    /// Adds a header.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Response {
        self.headers.push((name, value.into()));
        self
    }

    /// A header by name, in upper or lower case; the first if there are several.
    pub fn header_value(&self, name: &str) -> Option<&str> {
        let mut all = self.headers.iter();
        all.find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The body as text, as tests read it; what is no UTF-8 in it is replaced by U+FFFD.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }
}

/// An error in the format of RFC 9457.
#[derive(Clone, Debug)]
#[must_use]
pub struct Problem {
    status: u16,
    /// The part of the type behind `urn:millpond:`; `None` is `about:blank`.
    kind: Option<&'static str>,
    detail: String,
    headers: Vec<(&'static str, String)>,
    more: Map<String, Value>,
}

impl Problem {
    /// A problem without a type of its own, described by its status.
    pub fn plain(status: u16, detail: impl Into<String>) -> Problem {
        Problem {
            status,
            kind: None,
            detail: detail.into(),
            headers: Vec::new(),
            more: Map::new(),
        }
    }

    /// A problem of the stable type `urn:millpond:` + `kind`.
    pub fn of_kind(status: u16, kind: &'static str, detail: impl Into<String>) -> Problem {
        Problem {
            kind: Some(kind),
            ..Problem::plain(status, detail)
        }
    }

    /// 500, without a reason: that is in the log.
    pub fn internal() -> Problem {
        Problem::plain(500, "an internal error occurred")
    }

    /// 500: a write may have been done, or not.
    pub fn outcome_unknown() -> Problem {
        Problem::of_kind(
            500,
            "outcome-unknown",
            "it is not known whether this was done",
        )
    }

    /// 502: the request was lost before a worker had it.
    pub(crate) fn lost() -> Problem {
        Problem::plain(502, "an internal error lost the request; nothing was done")
    }

    /// 503: no worker had the request.
    pub(crate) fn no_worker() -> Problem {
        Problem::unavailable("timeout", "the request waited too long for a worker")
    }

    /// 503: the line for a worker is full.
    pub(crate) fn line_full() -> Problem {
        Problem::unavailable("overloaded", "too many requests are in line")
    }

    /// 503: the client has closed its direction of the connection, or all of it, and the request
    /// had not begun.
    pub(crate) fn not_begun() -> Problem {
        Problem::unavailable(
            "overloaded",
            "the client had closed its connection, and others were waiting",
        )
    }

    /// 503: the server stops, and has not begun with the request.
    pub(crate) fn draining() -> Problem {
        Problem::unavailable("draining", "the server is shutting down")
    }

    /// 503: all clients together send too much.
    pub(crate) fn too_much() -> Problem {
        Problem::unavailable(
            "overloaded",
            "the server is receiving too much data at once",
        )
    }

    /// 503, to be tried again after a second.
    pub fn unavailable(kind: &'static str, detail: impl Into<String>) -> Problem {
        Problem::of_kind(503, kind, detail).header("Retry-After", "1")
    }

    /// The same, to be tried again after about this time, if it is known. Spread a little, so that
    /// not all come back at once.
    pub(crate) fn retry_after(mut self, time: Option<Duration>) -> Problem {
        let Some(time) = time else { return self };
        let seconds = time.as_secs_f64().ceil().clamp(1.0, LONGEST_RETRY) as u64;
        let seconds = seconds + fastrand::u64(0..=seconds / 2 + 1);
        self.headers.retain(|(name, _)| *name != "Retry-After");
        self.header("Retry-After", seconds.to_string())
    }

    /// The status code of the answer.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Adds a header to the answer.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Problem {
        self.headers.push((name, value.into()));
        self
    }

    /// Adds a member to the body.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Problem {
        self.more.insert(name.to_owned(), value.into());
        self
    }

    pub(crate) fn into_response(self, request_id: Option<&str>) -> Response {
        let kind = self.kind.map_or("about:blank".to_owned(), |kind| {
            format!("urn:millpond:{kind}")
        });
        let body = ProblemBody {
            r#type: &kind,
            title: reason(self.status),
            status: self.status,
            detail: &self.detail,
            request_id,
            more: &self.more,
        };
        let mut response = Response::json_as("application/problem+json", self.status, &body);
        response.headers.extend(self.headers);
        response
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProblemBody<'a> {
    r#type: &'a str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    #[serde(flatten)]
    more: &'a Map<String, Value>,
}

impl From<Problem> for Response {
    fn from(problem: Problem) -> Response {
        problem.into_response(None)
    }
}

/// What a failed call on the pool means to the client. The database's own message stays in the log.
impl From<Error> for Problem {
    fn from(error: Error) -> Problem {
        let problem = problem_for(&error);
        let (level, what) = match problem.status {
            // Nobody reads the answer.
            _ if matches!(error, Error::Abandoned { .. }) => (Level::Debug, "request ended"),
            500 => (Level::Error, "request failed"),
            // The pool itself says that it fails fast, and not for each request.
            _ if is_of_failing_fast(&error) => (Level::Debug, "request failed"),
            _ => (Level::Warn, "request failed"),
        };
        traced!(
            level,
            current_span::get(),
            "db.system.name" = "postgresql",
            "db.response.status_code" = error.sqlstate().map(SqlState::code),
            "error.type" = error.class();
            "{what}: {}",
            Chain(&error)
        );
        problem
    }
}

fn is_of_failing_fast(error: &Error) -> bool {
    match error {
        Error::GaveUp { source, .. } => is_of_failing_fast(source),
        Error::Checkout(e) => e.reason == CheckoutFailure::FailingFast,
        _ => false,
    }
}

fn is_of_the_servers_limits(error: &Error) -> bool {
    let code = error.sqlstate();
    code == Some(&SqlState::QUERY_CANCELED) || code == Some(&SqlState::LOCK_NOT_AVAILABLE)
}

fn problem_for(error: &Error) -> Problem {
    let timeout = |detail| Problem::unavailable("timeout", detail);
    match error {
        _ if error.is_outcome_unknown() => Problem::outcome_unknown(),
        // A standby, or a database that is read-only for the time being.
        _ if error.sqlstate() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) => {
            Problem::unavailable("database-read-only", "the database takes no writes now")
        }
        Error::GaveUp {
            reason: GaveUpReason::Deadline,
            ..
        } => timeout("the request exceeded its time limit"),
        Error::GaveUp { source, .. } => problem_for(source),
        Error::QueryTimeout { .. } | Error::TransactionAborted { .. } if error.is_timeout() => {
            timeout("the database did not answer in time")
        }
        // The server's own limits, which a role or a database may have.
        _ if is_of_the_servers_limits(error) => timeout("the database did not answer in time"),
        Error::Checkout(e) => match (e.reason, &e.last_open_error) {
            (CheckoutFailure::LineFull, _) => {
                Problem::unavailable("overloaded", "too many requests wait for the database")
                    .retry_after(e.retry_after)
            }
            (CheckoutFailure::Closed, _) => {
                Problem::unavailable("draining", "the server is shutting down")
            }
            // The database is there, but all connections were in use for as long as the request
            // could wait.
            (CheckoutFailure::Timeout, None) => {
                timeout("no connection to the database came free in time")
            }
            _ => Problem::unavailable("database-unavailable", "the database cannot be reached"),
        },
        Error::Abandoned { .. } => Problem::not_begun(),
        _ if error.is_retryable() => {
            Problem::unavailable("database-unavailable", "the database could not do this now")
        }
        _ => Problem::internal(),
    }
}

/// The first header of a name, in upper or lower case.
pub(super) fn header<'h>(headers: &'h [(String, String)], name: &str) -> Option<&'h str> {
    let mut all = headers.iter();
    let (_, value) = all.find(|(n, _)| n.eq_ignore_ascii_case(name))?;
    Some(value)
}

/// The span of a request, if it has one header `traceparent` that is well formed.
pub(super) fn traceparent(headers: &[(String, String)]) -> Option<Traceparent> {
    let is_it = |name: &str| name.eq_ignore_ascii_case("traceparent");
    let mut all = headers.iter().filter(|(name, _)| is_it(name));
    match (all.next(), all.next()) {
        (Some((_, value)), None) => value.parse().ok(),
        _ => None,
    }
}

/// Whether a request with this method may write (RFC 9110, section 9.2.1).
pub(super) fn may_write(method: &str) -> bool {
    !matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE")
}

/// The client's `X-Request-Id` if it is 1 to 128 of `[A-Za-z0-9._-]`, else a generated one.
pub(super) fn request_id(given: Option<&str>) -> String {
    let good = |id: &&str| {
        (1..=128).contains(&id.len())
            && id
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    match given.filter(good) {
        Some(id) => id.to_owned(),
        None => format!("{:016x}", fastrand::u64(..)),
    }
}
