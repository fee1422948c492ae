//! The application that the pool was built for: a studio's reservations, quotes and invoices over HTTP.
//!
//! Each resource has a file with its shapes, its routes and its statements. Bodies and queries are read strictly
//! (`fields`), every write goes through one door that gives it a key (`writes`), and what the database refuses is said in
//! words that a person understands (`refusals`). The schema is made and migrated at the start (`schema`).

mod fields;
mod import;
mod invoices;
mod openapi;
mod pages;
mod price;
mod quotes;
mod refusals;
mod reservations;
mod schema;
mod studios;
mod writes;

pub use schema::{SCHEMA, SchemaError};

use crate::pool::Pool;
use crate::retry::Call;
use crate::server::{Access, Lane, Problem, Request, Response, Router};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use writes::Running;

/// The application on a pool, whose ledger must be in the schema [`SCHEMA`]. Cloning is cheap and gives the same.
#[derive(Clone)]
pub struct Studio {
    pool: Pool,
    currency: Arc<str>,
    /// The schema is there.
    ready: Arc<AtomicBool>,
    running: Arc<Running>,
}

type Handler = fn(&Studio, &Request) -> Result<Response, Problem>;

/// Method, path and what it does. The OpenAPI document is made from the handlers' own descriptions.
const ROUTES: [(&str, &str, Handler); 15] = [
    ("GET", "/api/studios", studios::list),
    ("GET", "/api/reservations", reservations::list),
    ("POST", "/api/reservations", reservations::create),
    ("POST", "/api/reservations/import", import::import),
    ("GET", "/api/reservations/{id}", reservations::one),
    ("DELETE", "/api/reservations/{id}", reservations::cancel),
    ("GET", "/api/quotes", quotes::list),
    ("POST", "/api/quotes", quotes::create),
    ("GET", "/api/quotes/{id}", quotes::one),
    ("POST", "/api/quotes/{id}/accept", quotes::accept),
    ("GET", "/api/invoices", invoices::list),
    ("POST", "/api/invoices", invoices::create),
    ("GET", "/api/invoices/{id}", invoices::one),
    ("POST", "/api/invoices/{id}/pay", invoices::pay),
    ("GET", "/openapi.json", openapi::document),
];

impl Studio {
    /// The application on this pool; amounts are answered in `currency`. It answers 503 until its schema is there.
    pub fn new(pool: Pool, currency: &str) -> Studio {
        Studio {
            pool,
            currency: currency.into(),
            ready: Arc::default(),
            running: Arc::default(),
        }
    }

    /// True once the schema is there.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::SeqCst)
    }

    /// Adds its routes, which are ready when its schema is there.
    pub fn routes(&self, router: Router) -> Router {
        let studio = self.clone();
        ROUTES.into_iter().fold(
            router.ready_when(move || studio.is_ready()),
            |router, (method, path, handler)| {
                let studio = self.clone();
                let access = if path.starts_with("/api/") {
                    Access::Api
                } else {
                    Access::Open
                };
                router.route(method, path, Lane::Api, access, move |request| {
                    if access == Access::Api && !studio.is_ready() {
                        return Err(Problem::unavailable(
                            "database-unavailable",
                            "the database is not ready yet",
                        ));
                    }
                    handler(&studio, request)
                })
            },
        )
    }

    /// A call within the request's time, all of which one statement may take. A little of it is kept: a silent server is
    /// given half a second more before its connection is cut.
    fn call(&self, request: &Request) -> Call<'_> {
        let left = request.deadline.saturating_duration_since(Instant::now());
        let kept = (left / 10).min(Duration::from_millis(250));
        self.pool
            .call()
            .with_deadline(request.deadline - kept)
            .with_timeout((left - kept).max(Duration::from_millis(1)))
    }
}

/// The number in the path; what is none leads nowhere.
fn id_in_path(request: &Request) -> Result<i64, Problem> {
    let digits = request.param("id").unwrap_or_default();
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    match digits.parse() {
        Ok(id) if plain => Ok(id),
        _ => Err(nothing_here()),
    }
}

fn nothing_here() -> Problem {
    Problem::plain(404, "there is nothing at this path")
}
