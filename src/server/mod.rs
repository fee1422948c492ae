//! A thread-pool HTTP server in front of the pool, without an async runtime.
//!
//! The edge owns every client's socket and hands whole, clean requests to two lanes, each with worker threads of its own:
//! health (health, metrics) and api. A request that waits for the database, or for a worker, is never in front of one that
//! asks how the server is.

mod browsers;
mod edge;
mod http;
mod lane;
mod router;
mod routes;
mod shutdown;
mod turns;

pub use http::{Problem, Request, Response};
pub use router::{Access, Handler, Lane, Router};
pub use shutdown::{DrainReport, Phase, PhaseFlag};

use crate::config::HttpConfig;
use crate::fd_limit;
use crate::pool::Pool;
use crate::sync;
use crate::temporary::Temporary;
use edge::{Desk, Edge, MOST_LINKS};
use http::{Incoming, header, render};
use lane::Plan;
use log::{debug, error, info};
use router::{Found, Route};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq;
use turns::Turns;

/// Enough for balancers and people: those who ask for the database's health wait for the probe, all for the same, and should
/// not hold up those who ask for anything else.
const HEALTH_WORKERS: usize = 4;
const HEALTH_LINE: usize = 1024;
/// Files of this program that belong to nobody here: its log, the loop's own, and so on.
const FILES_BESIDES: usize = 16;
/// A connection between the edge and a lane has two ends, and tiny_http has one more of its own.
const FILES_PER_LINK: usize = 3;

/// A server that runs.
pub struct Server {
    pool: Pool,
    phase: Arc<PhaseFlag>,
    edge: Edge,
}

/// What the edge and the workers share.
struct Service {
    router: Router,
    phase: Arc<PhaseFlag>,
    config: HttpConfig,
    pool: Pool,
}

/// A request that was answered.
struct Seen<'a> {
    method: &'a str,
    path: &'a str,
    /// Its pattern; empty where there is none.
    route: &'a str,
    status: u16,
    took: Duration,
    id: &'a str,
    client: IpAddr,
}

impl Server {
    /// Listens on `config.addr`, with the routes given and those for health and metrics. `private` is shown in `/health`.
    ///
    /// # Errors
    /// When the address cannot be had, or no threads can; when a route could never be reached.
    pub fn start(
        config: HttpConfig,
        pool: Pool,
        router: Router,
        private: bool,
    ) -> io::Result<Server> {
        Server::start_on(None, config, pool, router, private)
    }

    /// As [`start`](Self::start), on a listener that was inherited, where there is one: those who come while the server stops
    /// wait on it for the next.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_on(
        inherited: Option<TcpListener>,
        mut config: HttpConfig,
        pool: Pool,
        router: Router,
        private: bool,
    ) -> io::Result<Server> {
        if let Some(listener) = &inherited {
            config.addr = listener.local_addr()?;
        }
        let phase = Arc::<PhaseFlag>::default();
        let most = pool.config().max_size as usize;
        let workers = config.workers.unwrap_or(2 * most);
        let router = routes::add_to(router, &pool, &phase, private);
        if !router.problems().is_empty() {
            let said = router.problems().join("; ");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, said));
        }
        let service = Arc::new(Service {
            router,
            phase: Arc::clone(&phase),
            config,
            pool: pool.clone(),
        });
        let lanes = |desk: &Arc<Desk>, dir: &Arc<Temporary>| {
            let plan = |name, workers, at_once, ahead, lane| {
                let (service, desk) = (Arc::clone(&service), Arc::clone(desk));
                Plan {
                    name,
                    workers,
                    at_once,
                    ahead,
                    coming: desk.coming(lane),
                    serve: Arc::new(move |incoming, turns| {
                        service.serve(incoming, &desk, turns);
                    }),
                    dir: Arc::clone(dir),
                }
            };
            (
                plan(
                    "health",
                    HEALTH_WORKERS,
                    HEALTH_WORKERS,
                    HEALTH_LINE,
                    Lane::Health,
                ),
                plan("api", workers, most, workers, Lane::Api),
            )
        };
        let others = Server::files(most, workers);
        let edge = Edge::start(Arc::clone(&service), inherited, lanes, others)?;
        info!("listening on http://{}", edge.addr());
        Ok(Server { pool, phase, edge })
    }

    /// The most files that a server has open with these, and without a client.
    pub(crate) fn files(connections: usize, workers: usize) -> usize {
        let links = HEALTH_WORKERS.min(MOST_LINKS) + workers.min(MOST_LINKS);
        FILES_BESIDES
            + (connections + fd_limit::MORE_CONNECTIONS) * fd_limit::PER_CONNECTION
            + FILES_PER_LINK * links
    }

    /// The address in use; the port that was picked where 0 was asked for.
    pub fn addr(&self) -> SocketAddr {
        self.edge.addr()
    }

    /// API requests in line, being served or with their answer on its way.
    pub fn in_flight(&self) -> usize {
        self.edge.in_flight(Lane::Api).count()
    }

    fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.edge.wake();
    }

    /// Stops: not ready at once, still serving for `delay`, then the drain; all within `timeout`, and a little for what must
    /// be cut.
    pub fn shut_down(self, delay: Duration, timeout: Duration) -> DrainReport {
        let deadline = Instant::now() + timeout;
        self.enter(Phase::Unready);
        thread::sleep(delay.min(timeout));
        self.enter(Phase::Draining);
        let api = self.edge.in_flight(Lane::Api);
        // Some of the time is kept for the pool, which cancels what still runs.
        let grace = (timeout / 4).min(Duration::from_secs(2));
        if !api.wait_until_empty(deadline - grace.min(timeout)) {
            info!("requests still in flight: {}", api.count());
        }
        let pool = self
            .pool
            .close(deadline.saturating_duration_since(Instant::now()));
        // Those whose statement was cancelled answer their clients now.
        let last = deadline.max(Instant::now() + Duration::from_millis(100));
        api.wait_until_empty(last);
        let requests_cut = api.count();
        self.edge.in_flight(Lane::Health).wait_until_empty(last);
        DrainReport { requests_cut, pool }
    }
}

impl Service {
    fn serve(&self, incoming: Incoming, desk: &Desk, turns: &Turns) {
        let taken = desk.take(incoming.number);
        turns.call();
        // Nobody waits for one that was given up.
        let Some((mut exchange, route)) = taken else {
            return incoming.discard();
        };
        let request = match incoming.read(exchange.note_mut(), &route) {
            Ok(request) => request,
            Err(e) => {
                debug!("a request was lost on its way: {e}");
                return exchange.give_up(Problem::lost());
            }
        };
        let late = route.lane == Lane::Api && Instant::now() >= request.deadline;
        let answer = match late {
            true => Ok(Err(Problem::no_worker())),
            false => catch_unwind(AssertUnwindSafe(|| (route.handler)(&request))),
        };
        let mut response = match answer {
            Ok(Ok(response)) => response,
            Ok(Err(problem)) => problem.into_response(Some(&request.id)),
            Err(_) => {
                let Route {
                    method, pattern, ..
                } = *route;
                error!(
                    "the handler of {method} {pattern} panicked, id={}",
                    request.id
                );
                // What it may have written before that is not known here.
                return drop(exchange);
            }
        };
        self.note(&Seen {
            method: &request.method,
            path: &request.path,
            route: route.pattern,
            status: response.status,
            took: exchange.note().arrived.elapsed(),
            id: &request.id,
            client: request.client,
        });
        response.headers.extend(exchange.note().for_pages());
        exchange.answer(render(&response, &request.id, request.method == "HEAD"));
    }

    /// Takes note of an answer, in the log and in the metrics.
    fn note(&self, seen: &Seen<'_>) {
        let Seen {
            method,
            path,
            route,
            status,
            took,
            id,
            client,
        } = seen;
        debug!("{method} {path} status={status} took={took:.1?} id={id} client={client}");
        let labels = [known_method(method), route, &status.to_string()];
        let metrics = &self.pool.inner.shared.metrics;
        metrics
            .http
            .with_label_values(&labels)
            .observe(took.as_secs_f64());
    }

    /// The route that a request may take, before its body is asked for; else the pattern, if any, and the answer.
    fn admit(
        &self,
        method: &str,
        path: &str,
        headers: &[(String, String)],
    ) -> Result<Arc<Route>, (&'static str, Problem)> {
        match self.router.find(method, path) {
            Found::Route(route) if path.contains('%') && route.params(path).is_none() => {
                let told = "what is percent-encoded in the path is no UTF-8";
                Err((route.pattern, Problem::plain(400, told)))
            }
            Found::Route(route) if self.may_enter(route.access, headers) => {
                match self.refuses_page(route.access, headers) {
                    Some(why) => Err((route.pattern, Problem::plain(403, why))),
                    None => Ok(Arc::clone(route)),
                }
            }
            Found::Route(route) => {
                let told = Problem::plain(401, "this needs a token: Authorization: Bearer ..");
                Err((route.pattern, told.header("WWW-Authenticate", "Bearer")))
            }
            Found::OtherMethods(allow) => {
                let told = format!("{method} is not for this path");
                let told = Problem::plain(405, told).header("Allow", allow.join(", "));
                Err(("", told))
            }
            Found::Nothing => Err(("", Problem::plain(404, "there is nothing at this path"))),
        }
    }

    /// Why a page may not ask, where no token keeps others out.
    fn refuses_page(&self, access: Access, headers: &[(String, String)]) -> Option<&'static str> {
        let config = &self.config;
        if access != Access::Api || config.api_token.is_some() {
            return None;
        }
        let only_loopback = config.addr.ip().is_loopback() && !config.allow_anonymous;
        browsers::refuses(headers, &config.cors_origins, only_loopback)
    }

    /// The answer to a browser that asks whether a page of another site may ask.
    fn preflight(
        &self,
        method: &str,
        path: &str,
        headers: &[(String, String)],
    ) -> Option<Response> {
        if method != "OPTIONS" {
            return None;
        }
        browsers::named_page(headers, &self.config.cors_origins)?;
        header(headers, "Access-Control-Request-Method")?;
        let Found::OtherMethods(methods) = self.router.find(method, path) else {
            return None;
        };
        let mut response = Response::empty(204);
        response.headers.extend(browsers::may_ask(&methods));
        Some(response)
    }

    fn may_enter(&self, access: Access, headers: &[(String, String)]) -> bool {
        let token = match access {
            Access::Open => None,
            Access::Metrics => self.config.metrics_token.as_deref(),
            Access::Api => self.config.api_token.as_deref(),
        };
        let Some(token) = token else { return true };
        let given = header(headers, "Authorization").and_then(|value| {
            let (scheme, given) = value.split_once(' ')?;
            scheme
                .eq_ignore_ascii_case("bearer")
                .then_some(given.trim_start())
        });
        given.is_some_and(|given| given.as_bytes().ct_eq(token.as_bytes()).into())
    }
}

/// A method as a label: what clients make up must not make up metrics.
fn known_method(method: &str) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"];
    KNOWN
        .into_iter()
        .find(|known| *known == method)
        .unwrap_or("_OTHER")
}
