//! The application itself: its pool, its reads, and how much of a request's time they may take.

use super::fields::whole;
use super::keys::KeysInUse;
use super::refusals::problem_of;
use crate::error::Result;
use crate::pool::Pool;
use crate::server::{Problem, Request, Response};
use postgres::Row;
use postgres::types::ToSql;
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The application on a pool, whose ledger must be in the schema [`SCHEMA`](crate::studio::SCHEMA).
/// Cloning is cheap, and all clones share their state.
#[derive(Clone)]
#[must_use]
pub struct Studio {
    pub(super) pool: Pool,
    pub(super) currency: Arc<str>,
    /// Set while the schema is there.
    pub(super) ready: Arc<AtomicBool>,
    pub(super) keys: Arc<KeysInUse>,
}

impl std::fmt::Debug for Studio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Studio")
            .field("pool", &self.pool)
            .field("currency", &self.currency)
            .finish_non_exhaustive()
    }
}

impl Studio {
    /// The application on this pool. Amounts are in `currency`. It answers 503 until its schema is
    /// there.
    pub fn new(pool: Pool, currency: &str) -> Studio {
        // The server's default.
        let workers = 2 * pool.config().max_size as usize;
        Studio {
            pool,
            currency: currency.into(),
            ready: Arc::default(),
            keys: Arc::default(),
        }
        .with_workers(workers)
    }

    /// Sets how many workers the server has. Default: twice the pool's connections. A request that
    /// waits for another one with the same key occupies a worker, so only three quarters of them
    /// may wait at once.
    pub fn with_workers(mut self, workers: usize) -> Studio {
        let most_waiting = (workers * 3 / 4).saturating_sub(1);
        self.keys = Arc::new(KeysInUse::new(most_waiting));
        self
    }

    /// True once the schema is there.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::SeqCst)
    }

    /// Runs a statement that only reads, and converts its rows with `of`.
    pub(super) fn read<T>(
        &self,
        request: &Request,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
        of: impl Fn(&Row, &Studio) -> Result<T>,
    ) -> Result<Vec<T>, Problem> {
        let call = request.call(&self.pool).with_deadline(finish_by(request));
        let rows = call.read(sql, params).map_err(problem_of)?;
        let all: Result<_> = rows.iter().map(|row| of(row, self)).collect();
        all.map_err(problem_of)
    }

    /// Answers with the one row of a statement that only reads, chosen by the id in the path; 404
    /// if there is none.
    pub(super) fn read_one<T: Serialize>(
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
}

/// The deadline for calls on the pool. It leaves some of the request's time, since the connection
/// to a silent server is cut only half a second after the deadline.
pub(super) fn finish_by(request: &Request) -> Instant {
    before_deadline(request, 10, Duration::from_millis(250))
}

/// A moment that leaves a part of the request's time, and at most `most` of it.
pub(super) fn before_deadline(request: &Request, part: u32, most: Duration) -> Instant {
    let now = Instant::now();
    let left = request.deadline.saturating_duration_since(now);
    now + left.saturating_sub((left / part).min(most))
}

/// The id in the path; 404 if it is not a number.
pub(super) fn id_in_path(request: &Request) -> Result<i64, Problem> {
    let digits = request.param("id").unwrap_or_default();
    // Without leading zeros, each id has exactly one path.
    let plain = !digits.starts_with('0');
    whole(digits).filter(|_| plain).ok_or_else(nothing_here)
}

pub(super) fn nothing_here() -> Problem {
    Problem::plain(404, "there is nothing at this path")
}
