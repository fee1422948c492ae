//! Requests as the routes see them, and as tests make them.

use super::http::{Problem, header, may_write, request_id, traceparent};
use crate::call::Call;
use crate::class_queue::Share;
use crate::pool::Pool;
use crate::token::Token;
use crate::traceparent::Traceparent;
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use serde_json::json;
use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

/// The longest part of a message about a body that is told, in characters: it may quote the body.
const LONGEST_DETAIL: usize = 200;

/// A complete request.
#[derive(Debug)]
#[non_exhaustive]
pub struct Request {
    /// In capitals.
    pub method: String,
    /// Without the query.
    pub path: String,
    /// The text behind the question mark; empty if there is none.
    pub query: String,
    /// In the order in which they came.
    pub headers: Vec<(String, String)>,
    /// At most `HTTP_MAX_BODY_BYTES`.
    pub body: Vec<u8>,
    /// The client's address; behind a trusted proxy, the one that the proxy names.
    pub client: IpAddr,
    /// The client's `X-Request-Id` if it is well formed, else a generated one.
    pub id: String,
    /// A generated idempotency key; empty if the request cannot write, or brings its own key.
    pub fallback_key: String,
    /// When it must have been answered.
    pub deadline: Instant,
    pub(crate) params: Vec<(&'static str, String)>,
    pub(crate) token: Token,
    pub(crate) share: Share,
    pub(crate) traceparent: Option<Traceparent>,
}

impl Request {
    /// A request for a test of a handler or a [`Router`](super::Router). `method` is in capitals,
    /// `target` is path and query, as `/api/notes?limit=5`.
    ///
    /// ```
    /// use millpond::server::Request;
    ///
    /// let request = Request::builder("POST", "/api/notes?draft=1")
    ///     .header("Content-Type", "application/json")
    ///     .body(r#"{"text":"hello"}"#)
    ///     .build();
    /// assert_eq!(request.path, "/api/notes");
    /// assert_eq!(request.query_param("draft").as_deref(), Some("1"));
    /// ```
    pub fn builder(method: &str, target: &str) -> RequestBuilder {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        RequestBuilder(Request {
            method: method.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
            client: Ipv4Addr::LOCALHOST.into(),
            id: request_id(None),
            fallback_key: String::new(),
            deadline: Instant::now() + Duration::from_secs(10),
            params: Vec::new(),
            token: Token::new(),
            share: Share::default(),
            traceparent: None,
        })
    }

    /// A call on a pool for this request: within its time, in the class of its route
    /// ([`Router::at_most`](super::Router::at_most)), abandoned when its client hangs up, and with
    /// its [span](Self::traceparent). Where reads may use standbys, it is for the
    /// [client](Call::client) of this address, and on the primary if the request says
    /// `Cache-Control: no-cache`. All of that can be set otherwise.
    ///
    /// ```no_run
    /// # use millpond::server::{Problem, Request, Response};
    /// fn count(pool: &millpond::Pool, request: &Request) -> Result<Response, Problem> {
    ///     let rows = request.call(pool).read("SELECT count(*) FROM notes", &[])?;
    ///     Ok(Response::json(200, &rows[0].get::<_, i64>(0)))
    /// }
    /// ```
    pub fn call<'p>(&self, pool: &'p Pool) -> Call<'p> {
        let call = pool.call().with_deadline(self.deadline);
        let call = call.abandon_on(&self.token).with_share(self.share.clone());
        let call = call.traceparent(self.traceparent);
        if !pool.has_standbys() {
            return call;
        }
        let call = call.client(self.client.to_string());
        let directives = self.header("cache-control").unwrap_or_default().split(',');
        let is_fresh = |directive: &str| directive.trim().eq_ignore_ascii_case("no-cache");
        match directives.into_iter().any(is_fresh) {
            true => call.on_primary(),
            false => call,
        }
    }

    /// The token that is fired when nobody waits for the answer any more, so that a handler that
    /// takes long may stop: the client has closed its connection. It is also fired if the client
    /// has closed its own direction only, and others wait for a worker or a connection.
    pub fn token(&self) -> &Token {
        &self.token
    }

    /// The span that the request is made for, from its header `traceparent`; `None` if that is
    /// missing or malformed, or comes more than once.
    pub fn traceparent(&self) -> Option<Traceparent> {
        self.traceparent
    }

    /// A header by name, in upper or lower case; the first if there are several.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// The part of the path that `{name}` in the route's pattern matches, percent-decoded.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, v)| v.as_str())
    }

    /// Names and values of the query's parameters, in the order in which they came, decoded as a
    /// form is (WHATWG URL, section 5.1): percent-encoding, a plus sign for a blank, U+FFFD for
    /// what is no UTF-8.
    ///
    /// ```
    /// # use millpond::server::Request;
    /// let request = Request::builder("GET", "/api/notes?tag=a&tag=b+c%21").build();
    /// let tags: Vec<_> = request.query_pairs().filter(|(name, _)| name == "tag").collect();
    /// assert_eq!(tags[1].1, "b c!");
    /// ```
    pub fn query_pairs(&self) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
        form_urlencoded::parse(self.query.as_bytes())
    }

    /// A parameter of the query by name, decoded as by [`query_pairs`](Self::query_pairs); the
    /// first if there are several. A parameter without a value is empty.
    pub fn query_param(&self, name: &str) -> Option<Cow<'_, str>> {
        let mut pairs = self.query_pairs();
        pairs.find(|(n, _)| n == name).map(|(_, value)| value)
    }

    /// The type of the body from `Content-Type`, without its parameters; empty if there is none.
    pub fn media_type(&self) -> &str {
        let given = self.header("Content-Type").unwrap_or_default();
        given.split(';').next().unwrap_or_default().trim()
    }

    /// The body, from JSON.
    ///
    /// ```
    /// # use millpond::server::Request;
    /// #[derive(serde::Deserialize)]
    /// struct NewNote {
    ///     text: String,
    /// }
    /// let request = Request::builder("POST", "/api/notes").json_body(r#"{"text":"hello"}"#).build();
    /// let note: NewNote = request.json()?;
    /// assert_eq!(note.text, "hello");
    ///
    /// let request = Request::builder("POST", "/api/notes").json_body("{}").build();
    /// assert_eq!(request.json::<NewNote>().err().map(|problem| problem.status()), Some(422));
    /// # Ok::<(), millpond::server::Problem>(())
    /// ```
    ///
    /// # Errors
    /// 415 if `Content-Type` is neither `application/json` nor a type that ends with `+json`; 400
    /// if the body is no JSON; 422 `invalid-fields` if it is, and does not fit `T`. The details
    /// tell where, and at most 200 characters of what, which may quote the body.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        let given = self.media_type().to_ascii_lowercase();
        if given != "application/json" && !given.ends_with("+json") {
            let told = "the body must be application/json, and its Content-Type say so";
            return Err(Problem::plain(415, told));
        }
        serde_json::from_slice(&self.body).map_err(|e| {
            let detail = shortened(&e.to_string());
            match e.classify() {
                Category::Data => {
                    Problem::of_kind(422, "invalid-fields", "some fields are missing or wrong")
                        .with("errors", json!([{ "pointer": "#", "detail": detail }]))
                }
                _ => Problem::plain(
                    400,
                    format!("the body is no JSON that is taken here: {detail}"),
                ),
            }
        })
    }
}

/// The beginning of a message and its end, which tells line and column.
fn shortened(message: &str) -> String {
    let count = message.chars().count();
    if count <= LONGEST_DETAIL {
        return message.to_owned();
    }
    let place = message
        .rfind(" at line ")
        .filter(|at| message.len() - at < 60);
    let place = place.map_or("", |at| &message[at..]);
    let begin = LONGEST_DETAIL - place.len() - 2;
    let begin: String = message.chars().take(begin).collect();
    format!("{begin}..{place}")
}

/// Makes a [`Request`] for a test; see [`Request::builder`].
#[derive(Debug)]
#[must_use]
pub struct RequestBuilder(Request);

impl RequestBuilder {
    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> RequestBuilder {
        self.0.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the body. Default: empty.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> RequestBuilder {
        self.0.body = body.into();
        self
    }

    /// Sets the body, and says that it is `application/json`.
    pub fn json_body(self, text: impl Into<Vec<u8>>) -> RequestBuilder {
        self.header("Content-Type", "application/json").body(text)
    }

    /// Sets a part of the path, for a handler that is called without a router: it takes the parts
    /// from the route's pattern.
    pub fn param(mut self, name: &'static str, value: &str) -> RequestBuilder {
        self.0.params.push((name, value.to_owned()));
        self
    }

    /// Sets the client's address. Default: 127.0.0.1.
    pub fn client(mut self, address: IpAddr) -> RequestBuilder {
        self.0.client = address;
        self
    }

    /// Sets when it must have been answered. Default: 10 s after the builder was made.
    pub fn deadline(mut self, at: Instant) -> RequestBuilder {
        self.0.deadline = at;
        self
    }

    /// The request. As from the server, it has the id of its `X-Request-Id`, and a fallback key if
    /// it writes without an `Idempotency-Key`; this one can be guessed.
    pub fn build(self) -> Request {
        let mut request = self.0;
        request.id = request_id(request.header("X-Request-Id"));
        request.traceparent = traceparent(&request.headers);
        if may_write(&request.method) && request.header("Idempotency-Key").is_none() {
            request.fallback_key = format!("{:032x}", fastrand::u128(..));
        }
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::http::Response;
    use serde::Deserialize;
    use serde_json::Value;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Note {
        #[serde(rename = "text")]
        _text: String,
    }

    fn read(content_type: &str, body: &str) -> Result<Note, Problem> {
        let request = Request::builder("POST", "/notes").header("Content-Type", content_type);
        request.body(body).build().json()
    }

    #[test]
    fn a_json_body_is_read_or_refused_by_what_is_wrong() {
        let good = r#"{"text":"a"}"#;
        for (content_type, body, status) in [
            ("application/json", good, 200),
            ("Application/JSON; charset=utf-8", good, 200),
            ("application/merge-patch+json", good, 200),
            ("", good, 415),
            ("text/plain", good, 415),
            ("application/jsonp", good, 415),
            ("text/plain", "{", 415),
            ("application/json", "", 400),
            ("application/json", "{", 400),
            ("application/json", "{\"text\":\"a\"} x", 400),
            ("application/json", "{\"text\":\"\u{1}\"}", 400),
            ("application/json", "{}", 422),
            ("application/json", "[]", 422),
            ("application/json", r#"{"text":1}"#, 422),
            ("application/json", r#"{"text":"a","more":1}"#, 422),
        ] {
            let got = read(content_type, body).map_or_else(|problem| problem.status(), |_| 200);
            assert_eq!(got, status, "{content_type} {body}");
        }
    }

    #[test]
    fn a_detail_tells_where_and_does_not_repeat_a_large_body() {
        let large = "ä".repeat(100_000);
        for body in [format!("{{\"{large}\":1}}"), format!("\"{large}\"")] {
            let problem = read("application/json", &body).unwrap_err();
            let body: Value = serde_json::from_str(&Response::from(problem).text()).unwrap();
            assert_eq!(body["type"], "urn:millpond:invalid-fields");
            let detail = body["errors"][0]["detail"].as_str().unwrap();
            assert!(detail.chars().count() <= LONGEST_DETAIL, "{detail}");
            assert!(detail.contains("at line 1 column"), "{detail}");
        }
    }

    #[test]
    fn a_query_is_decoded_as_a_form() {
        let request = Request::builder("GET", "/x?a=1&b=%C3%A4+%2B&c&a=2&=d&%ff=e").build();
        let pairs: Vec<_> = request.query_pairs().collect();
        let pairs: Vec<_> = pairs.iter().map(|(n, v)| (&**n, &**v)).collect();
        let expected = [
            ("a", "1"),
            ("b", "ä +"),
            ("c", ""),
            ("a", "2"),
            ("", "d"),
            ("\u{fffd}", "e"),
        ];
        assert_eq!(pairs, expected);
        assert_eq!(request.query_param("a").as_deref(), Some("1"));
        assert_eq!(request.query_param("c").as_deref(), Some(""));
        assert_eq!(request.query_param("d"), None);
    }

    #[test]
    fn a_made_request_is_as_one_from_the_server() {
        let request = Request::builder("POST", "/x")
            .header("x-request-id", "r1")
            .build();
        assert_eq!((&*request.id, request.fallback_key.len()), ("r1", 32));
        let request = Request::builder("POST", "/x")
            .header("idempotency-key", "k")
            .build();
        assert_eq!((request.id.len(), &*request.fallback_key), (16, ""));
        assert_eq!(Request::builder("GET", "/x?").build().fallback_key, "");
    }
}
