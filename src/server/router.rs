//! Finds the handler for a method and a path. Pure.
//!
//! Several patterns may match a path. The one with the fewest open parts wins; among equals the
//! method decides, and each method names the open parts as it likes. A tree of routes, as matchit
//! builds it, finds one pattern for a path, and would answer 405 where another one has the method.

use super::http::{Problem, Response};
use super::request::Request;
use crate::class_queue::Share;
use crate::line_rule::LeastTime;
use std::fmt;
use std::sync::Arc;

/// Which worker threads a route runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Never waits behind requests that use the pool.
    Health,
    /// `HTTP_WORKERS` threads.
    Api,
}

/// A value for each lane.
#[derive(Clone, Copy, Default)]
pub(super) struct PerLane<T> {
    pub health: T,
    pub api: T,
}

impl<T> PerLane<T> {
    pub fn of(&self, lane: Lane) -> &T {
        match lane {
            Lane::Health => &self.health,
            Lane::Api => &self.api,
        }
    }

    pub fn of_mut(&mut self, lane: Lane) -> &mut T {
        match lane {
            Lane::Health => &mut self.health,
            Lane::Api => &mut self.api,
        }
    }
}

/// Which token a route asks for, if it is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// None.
    Open,
    /// `METRICS_TOKEN`.
    Metrics,
    /// `API_TOKEN`.
    Api,
}

/// The function that answers a route's requests.
pub type Handler = Arc<dyn Fn(&Request) -> Result<Response, Problem> + Send + Sync>;

/// One route.
pub(crate) struct Route {
    pub method: &'static str,
    /// As `/api/things/{id}`.
    pub pattern: &'static str,
    /// The text before its first open part, which nearly always decides.
    fixed: &'static str,
    open_parts: usize,
    pub lane: Lane,
    pub access: Access,
    pub handler: Handler,
    /// The class of its requests, named after its pattern.
    pub share: Share,
    /// The least time that it takes to answer.
    pub least_time: LeastTime,
    /// The handler never waits, so the edge calls it without a worker.
    pub instant: bool,
}

/// The routes of a server, the conditions for them to be ready, and health checks beside that of
/// the database.
#[derive(Clone, Default)]
#[must_use]
pub struct Router {
    /// Routes with fewer open parts come first.
    routes: Vec<Arc<Route>>,
    conditions: Vec<Condition>,
    checks: Vec<HealthCheck>,
    writes: bool,
    /// What is wrong with the routes.
    problems: Vec<String>,
}

type Condition = Arc<dyn Fn() -> bool + Send + Sync>;

/// A health check of the application's own.
#[derive(Clone)]
pub(super) struct HealthCheck {
    pub name: String,
    pub run: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
}

/// The result of a lookup.
pub(crate) enum Found<'r> {
    Route(&'r Arc<Route>),
    /// The path exists, with these methods.
    OtherMethods(Vec<&'static str>),
    Nothing,
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let routes = self
            .routes
            .iter()
            .map(|route| (route.method, route.pattern));
        f.debug_struct("Router")
            .field("routes", &routes.collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl Router {
    /// A router without routes.
    pub fn new() -> Router {
        Router::default()
    }

    /// Adds a route. The method is in capitals, the pattern begins with a slash, and `{name}` in it
    /// matches one part of the path ([`Request::param`]). A route for GET answers HEAD as well. A
    /// server with a route that could never be reached does not start.
    ///
    /// What the handler needs, such as a [`Pool`](crate::Pool), it captures; many threads call it
    /// at once. If it panics, the client gets a 500, and a write an `outcome-unknown`.
    pub fn route<F>(
        mut self,
        method: &'static str,
        pattern: &'static str,
        lane: Lane,
        access: Access,
        handler: F,
    ) -> Router
    where
        F: Fn(&Request) -> Result<Response, Problem> + Send + Sync + 'static,
    {
        if let Some(why) = self.refuses(method, pattern) {
            self.problems.push(format!("{method} {pattern}: {why}"));
        }
        let open_parts = pattern.split('/').filter(|part| is_open(part)).count();
        let first_open = pattern.find("/{").map_or(0, |at| at + 1);
        let behind = self.routes.partition_point(|r| r.open_parts <= open_parts);
        let route = Route {
            method,
            pattern,
            fixed: match open_parts {
                0 => pattern,
                _ => &pattern[..first_open],
            },
            open_parts,
            lane,
            access,
            handler: Arc::new(handler),
            share: Share {
                class: Some(pattern.into()),
                at_most: None,
            },
            least_time: LeastTime::default(),
            instant: false,
        };
        self.routes.insert(behind, Arc::new(route));
        self
    }

    /// Bounds the workers that a pattern's requests may occupy at once, and the connections that
    /// they hold with [`Request::call`]; at least 1. The other requests of the pattern wait, also
    /// while workers are free.
    ///
    /// Without a bound, requests of one pattern may occupy all workers. One that becomes free goes
    /// to the waiting pattern that occupies the fewest, but until then, the others wait.
    ///
    /// ```
    /// # use millpond::server::{Access, Lane, Response, Router};
    /// let router = Router::new()
    ///     .route("GET", "/api/reports", Lane::Api, Access::Api, |_| Ok(Response::empty(204)))
    ///     .at_most("/api/reports", 5);
    /// ```
    ///
    /// A server does not start if no route has this pattern.
    pub fn at_most(mut self, pattern: &str, requests: usize) -> Router {
        if !self.has(pattern) {
            let why = "at_most bounds a pattern that was added before";
            self.problems.push(format!("{pattern}: {why}"));
        }
        for route in &mut self.routes {
            if route.pattern == pattern {
                *route = Arc::new(route.bounded(requests.max(1)));
            }
        }
        self
    }

    /// Adds a route whose handler never waits for anything.
    pub(super) fn instant_route<F>(
        self,
        method: &'static str,
        pattern: &'static str,
        access: Access,
        handler: F,
    ) -> Router
    where
        F: Fn(&Request) -> Result<Response, Problem> + Send + Sync + 'static,
    {
        let mut router = self.route(method, pattern, Lane::Health, access, handler);
        let added = router
            .routes
            .iter_mut()
            .find(|route| route.pattern == pattern);
        if let Some(route) = added.and_then(Arc::get_mut) {
            route.instant = true;
        }
        router
    }

    /// Why a route could never be reached, or would hide another.
    fn refuses(&self, method: &str, pattern: &str) -> Option<&'static str> {
        let is_name = |name: &str| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        let is_fixed = |part: &str| {
            part.bytes()
                .all(|b| b.is_ascii_graphic() && !b"{}?#\"<>\\^`|".contains(&b))
        };
        let mut names: Vec<_> = pattern.split('/').filter(|part| is_open(part)).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        match () {
            () if method == "HEAD" => Some("HEAD is served by the route of GET"),
            () if method.is_empty()
                || !method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-') =>
            {
                Some("a method is written in capitals")
            }
            () if !pattern.starts_with('/') => Some("a pattern begins with a slash"),
            () if !pattern.split('/').all(|part| match is_open(part) {
                true => is_name(&part[1..part.len() - 1]),
                false => is_fixed(part),
            }) =>
            {
                Some(
                    "a part is either fixed, as a URL has it, or {name}, in letters, digits and underscores",
                )
            }
            () if names.len() < all => Some("it contains a name twice"),
            () if self
                .routes
                .iter()
                .any(|route| route.method == method && same_paths(route.pattern, pattern)) =>
            {
                Some("this route exists already")
            }
            () => None,
        }
    }

    /// What is wrong with the routes; empty if nothing is.
    pub(super) fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Whether there is a route with this pattern.
    pub(super) fn has(&self, pattern: &str) -> bool {
        self.routes.iter().any(|route| route.pattern == pattern)
    }

    /// `/health/ready` answers "starting" until `condition` holds. It must not block.
    pub fn ready_when(mut self, holds: impl Fn() -> bool + Send + Sync + 'static) -> Router {
        self.conditions.push(Arc::new(holds));
        self
    }

    /// Adds a health check to `/health`, which shows it under `checks` by its name. While one
    /// fails, `/health` is 503 and `unhealthy`; `/health/db` and `/health/ready` are as without it.
    ///
    /// The check runs on a thread of its own, once at the start and then whenever somebody asks
    /// `/health`; those who ask within 250 ms share a result. The answer waits for a run for 800
    /// ms; if it takes longer, the check is shown as `late`, with its last result, and fails if it
    /// has none, or once the run takes longer than 10 s. A check that panics fails. The first 200
    /// characters of an error are shown to everybody who asks: leave out hosts, users and secrets.
    ///
    /// A server with two checks of one name, or one without a name, does not start.
    ///
    /// ```
    /// use millpond::server::Router;
    /// use std::net::{Ipv4Addr, TcpStream};
    /// use std::time::Duration;
    ///
    /// let router = Router::new().health_check("smtp", || {
    ///     let relay = (Ipv4Addr::LOCALHOST, 25).into();
    ///     let connected = TcpStream::connect_timeout(&relay, Duration::from_millis(500));
    ///     connected.map(drop).map_err(|_| "the relay takes no connection")
    /// });
    /// ```
    pub fn health_check<E: fmt::Display>(
        mut self,
        name: impl Into<String>,
        check: impl Fn() -> Result<(), E> + Send + Sync + 'static,
    ) -> Router {
        let name = name.into();
        if name.is_empty() || self.checks.iter().any(|check| check.name == name) {
            let why = "a health check has a name of its own";
            self.problems.push(format!("{name:?}: {why}"));
        }
        let run = Arc::new(move || check().map_err(|e| e.to_string()));
        self.checks.push(HealthCheck { name, run });
        self
    }

    pub(super) fn checks(&self) -> &[HealthCheck] {
        &self.checks
    }

    /// Declares that routes write: `/health/ready` answers "database-read-only" while the database
    /// takes no writes.
    pub fn that_writes(mut self) -> Router {
        self.writes = true;
        self
    }

    pub(super) fn writes(&self) -> bool {
        self.writes
    }

    /// All conditions as one.
    pub(super) fn condition(&self) -> impl Fn() -> bool + Send + Sync + 'static {
        let conditions = self.conditions.clone();
        move || conditions.iter().all(|holds| holds())
    }

    /// Answers a request as the server would, on this thread and without sockets: finds the route,
    /// calls its handler, and turns a problem into its response. For tests: it asks for no token,
    /// knows no limits, adds none of the server's own headers, and has none of its own routes. A
    /// handler that panics does so here.
    ///
    /// ```
    /// use millpond::server::{Access, Lane, Request, Response, Router};
    ///
    /// let router = Router::new().route("GET", "/api/notes/{id}", Lane::Api, Access::Api, |request| {
    ///     Ok(Response::json(200, &request.param("id")))
    /// });
    /// let response = router.respond(Request::builder("GET", "/api/notes/7").build());
    /// assert_eq!((response.status, &*response.text()), (200, "\"7\""));
    /// let response = router.respond(Request::builder("POST", "/api/notes/7").build());
    /// assert_eq!((response.status, response.header_value("Allow")), (405, Some("GET, HEAD")));
    /// ```
    pub fn respond(&self, mut request: Request) -> Response {
        let answer = self
            .find(&request.method, &request.path)
            .or_refuse(&request.method, &request.path)
            .map_err(|(_, problem)| problem)
            .and_then(|route| {
                request.params = route.params(&request.path).unwrap_or_default();
                request.share = route.share.clone();
                (route.handler)(&request)
            });
        let mut response =
            answer.unwrap_or_else(|problem| problem.into_response(Some(&request.id)));
        if request.method == "HEAD" {
            response.body.clear();
        }
        response
    }

    /// Finds a route. HEAD takes the route of GET. If several patterns match, the one with the
    /// fewest open parts wins.
    pub(crate) fn find(&self, method: &str, path: &str) -> Found<'_> {
        let method = if method == "HEAD" { "GET" } else { method };
        let mut closest = None;
        let mut others = Vec::new();
        for route in self.routes.iter().filter(|route| route.matches(path)) {
            if *closest.get_or_insert(route.open_parts) < route.open_parts {
                break;
            }
            if route.method == method {
                return Found::Route(route);
            }
            others.push(route.method);
            if route.method == "GET" {
                others.push("HEAD");
            }
        }
        match others.is_empty() {
            true => Found::Nothing,
            false => Found::OtherMethods(others),
        }
    }
}

impl<'r> Found<'r> {
    /// The route, or the problem of a request without one: with the pattern of the route, which is
    /// empty if none matched.
    pub fn or_refuse(
        self,
        method: &str,
        path: &str,
    ) -> Result<&'r Arc<Route>, (&'static str, Problem)> {
        match self {
            Found::Route(route) if path.contains('%') && route.params(path).is_none() => {
                let told = "the percent-encoded path is not UTF-8";
                Err((route.pattern, Problem::plain(400, told)))
            }
            Found::Route(route) => Ok(route),
            Found::OtherMethods(allow) => {
                let told = format!("{method} is not allowed for this path");
                let told = Problem::plain(405, told).header("Allow", allow.join(", "));
                Err(("", told))
            }
            Found::Nothing => Err(("", Problem::plain(404, "there is nothing at this path"))),
        }
    }
}

impl Route {
    fn bounded(&self, requests: usize) -> Route {
        Route {
            share: Share {
                class: self.share.class.clone(),
                at_most: Some(requests),
            },
            handler: Arc::clone(&self.handler),
            least_time: LeastTime::default(),
            ..*self
        }
    }

    /// Whether the pattern matches the path.
    fn matches(&self, path: &str) -> bool {
        let Some(given) = path.strip_prefix(self.fixed) else {
            return false;
        };
        let wanted = &self.pattern[self.fixed.len()..];
        if self.open_parts == 0 {
            return given.is_empty();
        }
        let (mut wanted, mut given) = (wanted.split('/'), given.split('/'));
        loop {
            match (wanted.next(), given.next()) {
                (None, None) => return true,
                (Some(w), Some(g)) if w == g || (is_open(w) && !g.is_empty()) => {}
                _ => return false,
            }
        }
    }

    /// The open parts of a matching path, by name, percent-decoded; `None` if one is not UTF-8.
    pub fn params(&self, path: &str) -> Option<Vec<(&'static str, String)>> {
        let parts = self.pattern.split('/').zip(path.split('/'));
        let open = parts.filter(|(name, _)| is_open(name));
        open.map(|(name, part)| {
            let text = percent_encoding::percent_decode_str(part)
                .decode_utf8()
                .ok()?;
            Some((name.trim_matches(['{', '}']), text.into_owned()))
        })
        .collect()
    }
}

/// Whether both patterns match the same paths.
fn same_paths(one: &str, other: &str) -> bool {
    let mut parts = one.split('/').zip(other.split('/'));
    one.split('/').count() == other.split('/').count()
        && parts.all(|(a, b)| a == b || (is_open(a) && is_open(b)))
}

/// Whether a part of a pattern matches any text.
fn is_open(part: &str) -> bool {
    part.starts_with('{') && part.ends_with('}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router() -> Router {
        let ok = |_: &Request| Ok(Response::bytes(200, "text/plain", ""));
        Router::new()
            .route("GET", "/health", Lane::Health, Access::Open, ok)
            .route("GET", "/things", Lane::Api, Access::Api, ok)
            .route("POST", "/things", Lane::Api, Access::Api, ok)
            .route("GET", "/things/{id}", Lane::Api, Access::Api, ok)
            .route("POST", "/things/import", Lane::Api, Access::Api, ok)
            .route("POST", "/things/{id}/pay", Lane::Api, Access::Api, ok)
    }

    #[test]
    fn paths_lead_to_patterns_with_their_parts() {
        let router = router();
        for (method, path, pattern, part) in [
            ("GET", "/health", "/health", None),
            ("HEAD", "/things", "/things", None),
            ("GET", "/things/7", "/things/{id}", Some("7")),
            ("POST", "/things/import", "/things/import", None),
            ("POST", "/things/7/pay", "/things/{id}/pay", Some("7")),
            // Decoded once.
            (
                "GET",
                "/things/a%2Fb%20%C3%A4",
                "/things/{id}",
                Some("a/b ä"),
            ),
            ("GET", "/things/%252e", "/things/{id}", Some("%2e")),
        ] {
            let Found::Route(route) = router.find(method, path) else {
                panic!("{method} {path}")
            };
            assert_eq!(route.pattern, pattern);
            let params = route.params(path).unwrap();
            assert_eq!(params.first().map(|(_, v)| v.as_str()), part);
        }
        for path in [
            "/",
            "/health/",
            "/things/",
            "/things/7/8",
            "//things",
            "/Health",
        ] {
            assert!(matches!(router.find("GET", path), Found::Nothing), "{path}");
        }
    }

    #[test]
    fn among_patterns_with_as_many_open_parts_the_method_decides() {
        let ok = |_: &Request| Ok(Response::bytes(200, "text/plain", ""));
        let router = Router::new()
            .route("GET", "/a/{x}/c", Lane::Api, Access::Api, ok)
            .route("POST", "/a/b/{y}", Lane::Api, Access::Api, ok)
            .route("POST", "/a/{z}/c", Lane::Api, Access::Api, ok);
        assert!(router.problems().is_empty());
        for (method, path, pattern) in [
            ("GET", "/a/b/c", "/a/{x}/c"),
            ("POST", "/a/b/c", "/a/b/{y}"),
            ("POST", "/a/d/c", "/a/{z}/c"),
        ] {
            let Found::Route(route) = router.find(method, path) else {
                panic!("{method} {path}")
            };
            assert_eq!(route.pattern, pattern);
        }
    }

    #[test]
    fn what_could_never_be_reached_is_refused() {
        let ok = |_: &Request| Ok(Response::bytes(200, "text/plain", ""));
        for (method, pattern, why) in [
            ("get", "/x", "in capitals"),
            ("", "/x", "in capitals"),
            ("HEAD", "/x", "by the route of GET"),
            ("GET", "notes", "begins with a slash"),
            ("GET", "", "begins with a slash"),
            ("GET", "/x/{*rest}", "either fixed"),
            ("GET", "/x/{}", "either fixed"),
            ("GET", "/x/{a}b", "either fixed"),
            ("GET", "/x?y", "either fixed"),
            ("GET", "/x y", "either fixed"),
            ("GET", "/{a}/{a}", "a name twice"),
            ("GET", "/things/{other}", "already"),
        ] {
            let router = router().route(method, pattern, Lane::Api, Access::Open, ok);
            let problems = router.problems();
            assert!(
                problems.len() == 1 && problems[0].contains(why),
                "{method} {pattern}: {problems:?}"
            );
        }
        assert!(router().problems().is_empty());
    }

    #[test]
    fn another_method_is_told_which_lead_somewhere() {
        let router = router();
        let Found::OtherMethods(allow) = router.find("DELETE", "/things") else {
            panic!()
        };
        assert_eq!(allow, ["GET", "HEAD", "POST"]);
        for path in ["/things/7/pay", "/things/import"] {
            let Found::OtherMethods(allow) = router.find("GET", path) else {
                panic!("{path}")
            };
            assert_eq!(allow, ["POST"], "{path}");
        }
    }
}
