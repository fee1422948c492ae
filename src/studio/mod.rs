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
mod times;
mod writes;
mod wrong;

pub use schema::{SCHEMA, SchemaError};

use crate::error::Result;
use crate::pool::Pool;
use crate::server::{Access, Lane, Problem, Request, Response, Router};
use fields::{Parameters, whole};
use postgres::Row;
use postgres::types::ToSql;
use refusals::problem_of;
use serde::Serialize;
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
        // As many workers as there are unless somebody wants more or fewer.
        let workers = 2 * pool.config().max_size as usize;
        Studio {
            pool,
            currency: currency.into(),
            ready: Arc::default(),
            running: Arc::default(),
        }
        .with_workers(workers)
    }

    /// The workers of its server, where they are not twice the pool's connections. Of requests with the same key, those that
    /// wait for the first have a worker each, and must leave some to others.
    pub fn with_workers(mut self, workers: usize) -> Studio {
        let most_waiting = (workers * 3 / 4).saturating_sub(1);
        self.running = Arc::new(Running::new(most_waiting));
        self
    }

    /// True once the schema is there.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::SeqCst)
    }

    /// Adds its routes, which are ready when its schema is there.
    pub fn routes(&self, router: Router) -> Router {
        let studio = self.clone();
        ROUTES.into_iter().fold(
            router.that_writes().ready_when(move || studio.is_ready()),
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
                    // Lists read theirs.
                    if method != "GET" || path.contains('{') {
                        Parameters::of(request).finish()?;
                    }
                    handler(&studio, request)
                })
            },
        )
    }

    /// The rows of a statement that only reads, each as what `of` makes of it.
    fn read<T>(
        &self,
        request: &Request,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
        of: impl Fn(&Row, &Studio) -> Result<T>,
    ) -> Result<Vec<T>, Problem> {
        let call = self.pool.call().with_deadline(self.finish_by(request));
        let rows = call.read(sql, params).map_err(problem_of)?;
        let all: Result<_> = rows.iter().map(|row| of(row, self)).collect();
        all.map_err(problem_of)
    }

    /// The one row of a statement that only reads.
    fn read_one<T: Serialize>(
        &self,
        request: &Request,
        sql: &str,
        of: impl Fn(&Row, &Studio) -> Result<T>,
    ) -> Result<Response, Problem> {
        let id = id_in_path(request)?;
        let found = self.read(request, sql, &[&id], of)?;
        let one = found.first().ok_or_else(nothing_here)?;
        Ok(Response::json(200, one))
    }

    /// A little of a request's time is kept: a silent server is given half a second more before its connection is cut.
    fn finish_by(&self, request: &Request) -> Instant {
        let left = request.deadline.saturating_duration_since(Instant::now());
        request.deadline - (left / 10).min(Duration::from_millis(250))
    }
}

/// The number in the path; what is none leads nowhere.
fn id_in_path(request: &Request) -> Result<i64, Problem> {
    let digits = request.param("id").unwrap_or_default();
    // One number has one path.
    let plain = !digits.starts_with('0');
    whole(digits).filter(|_| plain).ok_or_else(nothing_here)
}

fn nothing_here() -> Problem {
    Problem::plain(404, "there is nothing at this path")
}
