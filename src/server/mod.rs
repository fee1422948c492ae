//! A thread-pool HTTP server in front of the pool, without an async runtime.
//!
//! Two lanes, each with worker threads of its own: health (health, metrics) and api. A request that waits for the
//! database, or for a worker, is never in front of one that asks how the server is.

mod http;
mod lane;
mod router;
mod routes;
mod shutdown;

pub use http::{Problem, Request, Response};
pub use router::{Access, Handler, Lane, Router};
pub use shutdown::{DrainReport, Phase, PhaseFlag};

use crate::config::HttpConfig;
use crate::pool::Pool;
use http::{Incoming, Unreadable};
use lane::Queue;
use log::{debug, error, info};
use router::Found;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq;

/// Enough for balancers and people; no request here waits longer than the probe.
const HEALTH_WORKERS: usize = 2;
const HEALTH_QUEUE: usize = 1024;

/// A server that runs.
pub struct Server {
    addr: SocketAddr,
    pool: Pool,
    phase: Arc<PhaseFlag>,
    http: Arc<tiny_http::Server>,
    health: Arc<Queue>,
    api: Arc<Queue>,
}

/// What the workers share.
struct Service {
    router: Router,
    phase: Arc<PhaseFlag>,
    config: HttpConfig,
    pool: Pool,
}

impl Server {
    /// Listens on `config.addr`, with the routes given and those for health and metrics. `private` is shown in `/health`.
    ///
    /// # Errors
    /// When the address cannot be had, or no threads can.
    pub fn start(
        config: HttpConfig,
        pool: Pool,
        router: Router,
        private: bool,
    ) -> io::Result<Server> {
        let listener = TcpListener::bind(config.addr)?;
        // Accepted sockets inherit it: an answer is one write, and must not wait for the acknowledgement of the last.
        socket2::SockRef::from(&listener).set_tcp_nodelay(true)?;
        let addr = listener.local_addr()?;
        let http = tiny_http::Server::from_listener(listener, None).map_err(io::Error::other)?;
        let http = Arc::new(http);
        let phase = Arc::<PhaseFlag>::default();
        let workers = config
            .workers
            .unwrap_or(2 * pool.config().max_size as usize);
        let longest = config.queue;
        let router = routes::add_to(router, &pool, &phase, private);
        let service = Arc::new(Service {
            router,
            phase: Arc::clone(&phase),
            config,
            pool: pool.clone(),
        });
        let serve = |lane: Lane| {
            let service = Arc::clone(&service);
            move |incoming| service.serve(incoming, lane)
        };
        let health = Queue::start("health", HEALTH_WORKERS, HEALTH_QUEUE, serve(Lane::Health))?;
        let api = Queue::start("api", workers, longest, serve(Lane::Api))?;
        let server = Server {
            addr,
            pool,
            phase,
            http,
            health,
            api,
        };
        server.start_dispatcher(service)?;
        info!("listening on http://{addr}");
        Ok(server)
    }

    /// One thread that puts each request on its lane.
    fn start_dispatcher(&self, service: Arc<Service>) -> io::Result<()> {
        let (http, health, api) = (
            Arc::clone(&self.http),
            Arc::clone(&self.health),
            Arc::clone(&self.api),
        );
        thread::Builder::new()
            .name("millpond-http".into())
            .spawn(move || {
                for raw in http.incoming_requests() {
                    let incoming = Incoming::new(raw);
                    let lane = service.router.lane(incoming.path());
                    let queue = if lane == Lane::Health { &health } else { &api };
                    if lane == Lane::Api && service.phase.get() == Phase::Draining {
                        service.refuse(
                            incoming,
                            Problem::unavailable("draining", "the server is shutting down"),
                        );
                    } else if let Some(incoming) = queue.push(incoming) {
                        service.refuse(
                            incoming,
                            Problem::unavailable("overloaded", "too many requests are in line"),
                        );
                    }
                }
            })?;
        Ok(())
    }

    /// The address in use; the port that was picked where 0 was asked for.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// API requests in line or being served.
    pub fn in_flight(&self) -> usize {
        self.api.in_flight()
    }

    /// Stops: not ready at once, still serving for `delay`, then the drain; all within `timeout`, and a little for what must
    /// be cut.
    pub fn shut_down(self, delay: Duration, timeout: Duration) -> DrainReport {
        let deadline = Instant::now() + timeout;
        self.phase.set(Phase::Unready);
        thread::sleep(delay.min(timeout));
        self.phase.set(Phase::Draining);
        // Some of the time is kept for the pool, which cancels what still runs.
        let grace = (timeout / 4).min(Duration::from_secs(2));
        let finished = self.api.wait_until_empty(deadline - grace.min(timeout));
        if !finished {
            info!("requests still in flight: {}", self.api.in_flight());
        }
        let pool = self
            .pool
            .close(deadline.saturating_duration_since(Instant::now()));
        // Those whose statement was cancelled answer their clients now.
        self.api
            .wait_until_empty(deadline.max(Instant::now() + Duration::from_millis(100)));
        DrainReport {
            requests_cut: self.api.in_flight(),
            pool,
        }
    }
}

impl Drop for Server {
    /// Ends the threads; what they are at is not waited for.
    fn drop(&mut self) {
        self.http.unblock();
        self.health.close();
        self.api.close();
    }
}

impl Service {
    fn serve(self: &Arc<Self>, mut incoming: Incoming, lane: Lane) {
        let id = incoming.id();
        if lane == Lane::Health && incoming.has_body() {
            // A body that never comes must not keep one of the two threads.
            return self.refuse(incoming, Problem::plain(413, "no body is taken here"));
        }
        let read = incoming.read(
            id.clone(),
            self.config.request_timeout,
            self.config.max_body_bytes,
        );
        let (route, response) = match read {
            Ok(mut request) => {
                let late = lane == Lane::Api && Instant::now() >= request.deadline;
                if late {
                    (
                        "",
                        Problem::unavailable("timeout", "the request waited too long for a worker")
                            .into_response(Some(&id)),
                    )
                } else {
                    self.answer(&mut request)
                }
            }
            Err(Unreadable::Problem(problem)) => return self.refuse(incoming, problem),
            Err(Unreadable::Gone(e)) => {
                debug!("request id={id} was not read to its end: {e}");
                return;
            }
        };
        self.send(incoming, &id, route, response, false);
    }

    /// Answers a request that is not read to its end. tiny_http 0.12 swallows the rest of a body before it lets go of a
    /// request, and answers in the order of the requests: that may take as long as the client likes, on a thread of its own.
    fn refuse(self: &Arc<Self>, incoming: Incoming, problem: Problem) {
        let service = Arc::clone(self);
        let refusal = thread::Builder::new()
            .name("millpond-refusal".into())
            .spawn(move || {
                let id = incoming.id();
                let close = incoming.has_body();
                service.send(incoming, &id, "", problem.into_response(Some(&id)), close);
            });
        if let Err(e) = refusal {
            debug!("no thread for a refusal: {e}");
        }
    }

    fn send(&self, incoming: Incoming, id: &str, route: &str, response: Response, close: bool) {
        let (status, method) = (response.status, known_method(incoming.method()));
        let took = incoming.arrived.elapsed();
        debug!(
            "{} {} status={status} took={took:.1?} id={id} remote={}",
            incoming.method(),
            incoming.path(),
            incoming.remote().map_or("-".into(), |a| a.to_string())
        );
        let labels = [method, route, &status.to_string()];
        self.pool
            .inner
            .shared
            .metrics
            .http
            .with_label_values(&labels)
            .observe(took.as_secs_f64());
        let close = close || self.phase.get() > Phase::Running;
        if let Err(e) = incoming.answer(response, id, close) {
            debug!("the answer to id={id} was not delivered: {e}");
        }
    }

    /// The route's pattern, and its answer.
    fn answer(&self, request: &mut Request) -> (&'static str, Response) {
        let problem = |problem: Problem| problem.into_response(Some(&request.id));
        let (route, params) = match self.router.find(&request.method, &request.path) {
            Found::Route(route, params) => (route, params),
            Found::OtherMethods(allow) => {
                let told = Problem::plain(
                    405,
                    format!("{} is not for this path", known_method(&request.method)),
                );
                return ("", problem(told.header("Allow", allow.join(", "))));
            }
            Found::Nothing => {
                return (
                    "",
                    problem(Problem::plain(404, "there is nothing at this path")),
                );
            }
        };
        if !self.may_enter(route.access, request) {
            let told = Problem::plain(401, "this needs a token: Authorization: Bearer ..");
            return (
                route.pattern,
                problem(told.header("WWW-Authenticate", "Bearer")),
            );
        }
        request.params = params;
        let result = catch_unwind(AssertUnwindSafe(|| (route.handler)(request)));
        let response = match result {
            Ok(Ok(response)) => response,
            Ok(Err(problem)) => problem.into_response(Some(&request.id)),
            Err(_) => {
                error!(
                    "the handler of {} {} panicked, id={}",
                    route.method, route.pattern, request.id
                );
                Problem::internal().into_response(Some(&request.id))
            }
        };
        (route.pattern, response)
    }

    fn may_enter(&self, access: Access, request: &Request) -> bool {
        let token = match access {
            Access::Open => None,
            Access::Metrics => self.config.metrics_token.as_deref(),
            Access::Api => self.config.api_token.as_deref(),
        };
        let Some(token) = token else { return true };
        let given = request.header("Authorization").and_then(|value| {
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
