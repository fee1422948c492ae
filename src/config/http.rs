//! What the HTTP server needs to know.

use ipnet::IpNet;
use std::fmt;
use std::time::Duration;

/// What the HTTP server needs to know.
#[derive(Clone)]
#[non_exhaustive]
pub struct HttpConfig {
    /// Listening address. Default `127.0.0.1:3000`; port 0 picks one.
    pub addr: std::net::SocketAddr,
    /// Threads for API requests. `None` is twice `DB_POOL_MAX`.
    pub workers: Option<usize>,
    /// Requests in line for a worker; one more gets 503. Default 1024.
    pub queue: usize,
    /// A larger body gets 413. Default 1 MiB.
    pub max_body_bytes: usize,
    /// The whole budget of one API request. Default 10 s.
    pub request_timeout: Duration,
    /// Most connections of clients; at the limit, the one idle longest makes room. Default 4096, or what the process may
    /// open where that is less.
    pub max_connections: usize,
    /// From the first byte of a request (or the connection's begin) to the end of its head; then 408. Default 5 s.
    pub header_timeout: Duration,
    /// From the end of a request's head to the end of its body; then 408. Default 10 s.
    pub body_timeout: Duration,
    /// A connection without a request is closed after this. Default 75 s.
    pub idle_timeout: Duration,
    /// A client that takes less than 16 KiB of its answer in this time, on the average of four such times, is
    /// left. Default 10 s.
    pub write_timeout: Duration,
    /// Who may say by `Forwarded` or `X-Forwarded-For` on whose behalf a request comes. Default nobody.
    pub trusted_proxies: Vec<IpNet>,
    /// Pages of other sites that may use the API, by their origin (`https://app.example.com`). Default none.
    pub cors_origins: Vec<String>,
    /// The studio's routes ask for this bearer token.
    pub api_token: Option<String>,
    /// `/metrics`, `/api/metrics/*` and `/dashboard` ask for this bearer token.
    pub metrics_token: Option<String>,
    /// The studio's routes may be served without a token on an address that is not loopback.
    pub allow_anonymous: bool,
    /// Time between "not ready" and the drain. Default 0.
    pub shutdown_delay: Duration,
    /// From the signal to the exit, the delay included. Default 8 s.
    pub shutdown_timeout: Duration,
}

impl Default for HttpConfig {
    fn default() -> Self {
        HttpConfig {
            addr: std::net::SocketAddr::from(([127, 0, 0, 1], 3000)),
            workers: None,
            queue: 1024,
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
