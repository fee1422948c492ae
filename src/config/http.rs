//! The settings of the HTTP server.

use ipnet::IpNet;
use std::fmt;
use std::time::Duration;

/// The settings of the HTTP server.
#[derive(Clone)]
#[non_exhaustive]
pub struct HttpConfig {
    /// Listening address. Default `127.0.0.1:3000`; port 0 picks a free port.
    pub addr: std::net::SocketAddr,
    /// Threads for API requests. `None` is twice `DB_POOL_MAX`.
    pub workers: Option<usize>,
    /// Requests that may wait for a worker; a further one gets 503. Default 1024.
    pub queue: usize,
    /// Longest wait for a worker; then 503. `None` is `request_timeout`, which limits it in any
    /// case.
    pub queue_timeout: Option<Duration>,
    /// A larger body gets 413. Default 1 MiB.
    pub max_body_bytes: usize,
    /// The time limit of one API request as a whole. Default 10 s.
    pub request_timeout: Duration,
    /// The most connections of clients; at the limit, the connection that has been idle longest is
    /// closed. Default 4096, or as many as the process may open if that is less.
    pub max_connections: usize,
    /// Limit from the first byte of a request (or the start of the connection) to the end of its
    /// head; then 408. Default 5 s.
    pub header_timeout: Duration,
    /// Limit from the end of a request's head to the end of its body; then 408. Default 10 s.
    pub body_timeout: Duration,
    /// A connection without a request is closed after this. Default 75 s.
    pub idle_timeout: Duration,
    /// A connection is closed if its client takes less than 16 KiB of its answer in this time,
    /// averaged over four such times. Default 10 s.
    pub write_timeout: Duration,
    /// Proxies that may name the client of a request with `Forwarded` or `X-Forwarded-For`. Default
    /// none.
    pub trusted_proxies: Vec<IpNet>,
    /// Other sites whose pages may use the API, by their origin (`https://app.example.com`).
    /// Default none.
    pub cors_origins: Vec<String>,
    /// The bearer token that the studio's routes require; `None` = no token.
    pub api_token: Option<String>,
    /// The bearer token that `/metrics` and `/api/metrics/*` require; `None` = no
    /// token.
    pub metrics_token: Option<String>,
    /// Whether the program may serve routes without a token on an address that is not loopback. A
    /// [`Server`](crate::server::Server) does not read it: without `api_token`, it serves them to
    /// everybody who reaches it.
    pub allow_anonymous: bool,
    /// Time between "not ready" and the drain. Default 0. For the program; a
    /// [`Server`](crate::server::Server) takes it as an argument of its `shut_down`.
    pub shutdown_delay: Duration,
    /// Limit from the signal to the exit, including the delay. Default 8 s. For the program, as
    /// above.
    pub shutdown_timeout: Duration,
}

impl Default for HttpConfig {
    fn default() -> Self {
        HttpConfig {
            addr: std::net::SocketAddr::from(([127, 0, 0, 1], 3000)),
            workers: None,
            queue: 1024,
            queue_timeout: None,
            max_body_bytes: 1 << 20,
            request_timeout: Duration::from_secs(10),
            max_connections: 4096,
            header_timeout: Duration::from_secs(5),
            body_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(10),
            trusted_proxies: Vec::new(),
            cors_origins: Vec::new(),
            api_token: None,
            metrics_token: None,
            allow_anonymous: false,
            shutdown_delay: Duration::ZERO,
            shutdown_timeout: Duration::from_secs(8),
        }
    }
}

impl HttpConfig {
    /// The longest wait for a worker that is in force.
    pub fn effective_queue_timeout(&self) -> Duration {
        let own = self.queue_timeout.unwrap_or(self.request_timeout);
        own.min(self.request_timeout)
    }
}

/// Shows no token.
impl fmt::Debug for HttpConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = |token: &Option<String>| token.as_ref().map(|_| "***");
        f.debug_struct("HttpConfig")
            .field("addr", &self.addr)
            .field("workers", &self.workers)
            .field("queue", &self.queue)
            .field("max_body_bytes", &self.max_body_bytes)
            .field("request_timeout", &self.request_timeout)
            .field("max_connections", &self.max_connections)
            .field("queue_timeout", &self.queue_timeout)
            .field("header_timeout", &self.header_timeout)
            .field("body_timeout", &self.body_timeout)
            .field("idle_timeout", &self.idle_timeout)
            .field("write_timeout", &self.write_timeout)
            .field("trusted_proxies", &self.trusted_proxies)
            .field("cors_origins", &self.cors_origins)
            .field("api_token", &hidden(&self.api_token))
            .field("metrics_token", &hidden(&self.metrics_token))
            .field("allow_anonymous", &self.allow_anonymous)
            .field("shutdown_delay", &self.shutdown_delay)
            .field("shutdown_timeout", &self.shutdown_timeout)
            .finish()
    }
}
