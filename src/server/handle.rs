//! The running server: starts the edge with its lanes, and shuts both down.

use super::checks::Checks;
use super::dashboard::{SignedIn, Watcher};
use super::database_kind::DatabaseKind;
use super::edge::{Edge, LAST_CLIENTS};
use super::lane::{MOST_LANE_CONNECTIONS, Size};
use super::order::OrderReport;
use super::router::{Lane, PerLane, Router};
use super::routes::{self, Eyes};
use super::service::Service;
use super::shutdown::{DrainReport, Phase, PhaseFlag};
use crate::config::{HttpConfig, LineOrder};
use crate::fd_limit;
use crate::pool::Pool;
use crate::sync::unpoison;
use log::info;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, RwLock};
use std::thread;
use std::time::{Duration, Instant};

/// Enough for balancers and people. Requests for the database's health all wait for the same probe,
/// and must not hold up the others.
const HEALTH_WORKERS: usize = 4;
const HEALTH_LINE: usize = 1024;
/// Files that are neither a client's, a lane's nor the database's: the log, the event loop's own.
const FILES_BESIDES: usize = 16;
/// Both ends of a connection between the edge and a lane, and one more that tiny_http opens.
const FILES_PER_LANE_CONNECTION: usize = 3;

/// A running server.
pub struct Server {
    pool: Pool,
    phase: Arc<PhaseFlag>,
    service: Arc<Service>,
    edge: Edge,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("addr", &self.addr())
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Listens on `config.addr`, with the given routes and those for health and metrics.
    ///
    /// # Errors
    /// The address cannot be bound, a thread cannot be started, a route could never be reached, or
    /// two health checks have one name.
    pub fn start(
        config: HttpConfig,
        pool: Pool,
        router: Router,
        database: DatabaseKind,
    ) -> io::Result<Server> {
        Server::start_on(None, config, pool, router, database)
    }

    /// Like [`start`](Self::start), but on an inherited listener, if there is one: clients that
    /// connect while this server stops wait on it for the next server.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_on(
        inherited: Option<TcpListener>,
        mut config: HttpConfig,
        pool: Pool,
        router: Router,
        database: DatabaseKind,
    ) -> io::Result<Server> {
        if let Some(listener) = &inherited {
            config.addr = listener.local_addr()?;
        }
        let phase = Arc::<PhaseFlag>::default();
        let most = pool.config().max_size as usize;
        let workers = config.workers.unwrap_or(2 * most);
        let checks = Checks::start(router.checks())?;
        let order = Arc::<OrderReport>::default();
        let signed_in = Arc::<SignedIn>::default();
        let eyes = Eyes {
            watcher: Watcher::start(&pool, &phase, Arc::new(router.condition()))?,
            signed_in: Arc::clone(&signed_in),
            token: config.metrics_token.clone(),
        };
        let router = routes::add_to(router, &pool, checks, &phase, &order, database, eyes);
        if !router.problems().is_empty() {
            let said = router.problems().join("; ");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, said));
        }
        let sizes = PerLane {
            // Requests never wait for a health worker for long, so all of them may be sent ahead.
            health: Size {
                workers: HEALTH_WORKERS,
                at_once: HEALTH_WORKERS,
                ahead: HEALTH_LINE,
                queue: HEALTH_LINE,
                adapts: false,
            },
            api: Size {
                workers,
                at_once: most,
                ahead: workers,
                queue: config.queue,
                adapts: pool.config().line_order == LineOrder::Auto,
            },
        };
        let service = Arc::new(Service {
            router,
            phase: Arc::clone(&phase),
            trusted_proxies: RwLock::new(config.trusted_proxies.clone()),
            config,
            pool: pool.clone(),
            order,
            signed_in,
        });
        pool.watch();
        let others = Server::files(most, workers);
        let edge = Edge::start(Arc::clone(&service), inherited, sizes, others)?;
        info!("listening on http://{}", edge.addr());
        Ok(Server {
            pool,
            phase,
            service,
            edge,
        })
    }

    /// The most files that a server without clients has open.
    pub(crate) fn files(connections: usize, workers: usize) -> usize {
        let lane_connections =
            HEALTH_WORKERS.min(MOST_LANE_CONNECTIONS) + workers.min(MOST_LANE_CONNECTIONS);
        FILES_BESIDES
            + (connections + fd_limit::MORE_CONNECTIONS) * fd_limit::PER_CONNECTION
            + FILES_PER_LANE_CONNECTION * lane_connections
    }

    /// Replaces the proxies that may name the client of a request
    /// ([`HttpConfig::trusted_proxies`]), for connections and requests from now on.
    pub fn set_trusted_proxies(&self, proxies: Vec<ipnet::IpNet>) {
        *unpoison(self.service.trusted_proxies.write()) = proxies;
    }

    /// The address in use; if port 0 was configured, with the port that the system picked.
    pub fn addr(&self) -> SocketAddr {
        self.edge.addr()
    }

    /// API requests that wait in line, are being served, or have their answer on its way.
    pub fn in_flight(&self) -> usize {
        self.edge.in_flight(Lane::Api).count()
    }

    fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.edge.wake();
    }

    /// Stops the server: reports unready at once, serves for another `delay`, then drains, and
    /// closes the pool for all its handles. Takes at most `timeout`, and a moment more if requests
    /// must be cut.
    pub fn shut_down(self, delay: Duration, timeout: Duration) -> DrainReport {
        // The edge's own end comes behind it.
        let started = Instant::now();
        let time = timeout.saturating_sub(LAST_CLIENTS.min(timeout / 4));
        let deadline = started + time;
        self.enter(Phase::Unready);
        thread::sleep(delay.min(timeout));
        self.enter(Phase::Draining);
        let api = self.edge.in_flight(Lane::Api);
        // The pool needs the rest of the time to cancel what still runs.
        let grace = (timeout / 4).min(Duration::from_secs(2));
        if !api.wait_until_empty(started + time.saturating_sub(grace)) {
            info!("requests still in flight: {}", api.count());
        }
        let pool = self
            .pool
            .close(deadline.saturating_duration_since(Instant::now()));
        // Requests whose statement was cancelled are answered now.
        let last = deadline.max(Instant::now() + Duration::from_millis(100));
        api.wait_until_empty(last);
        let requests_cut = api.count();
        self.edge.in_flight(Lane::Health).wait_until_empty(last);
        DrainReport { requests_cut, pool }
    }
}
