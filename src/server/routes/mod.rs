//! The routes that every server has.

mod dashboard;
mod health;
mod live;
mod metrics;
mod start;

use super::checks::Checks;
use super::dashboard::{SignedIn, Watcher};
use super::order::OrderReport;
use super::request::Request;
use super::router::Router;
use super::shutdown::PhaseFlag;
use crate::pool::Pool;
use crate::server::database_kind::DatabaseKind;
use std::sync::Arc;

/// Adds health, metrics, and a page with links to them.
pub(super) fn add_to(
    router: Router,
    pool: &Pool,
    checks: Checks,
    phase: &Arc<PhaseFlag>,
    order: &Arc<OrderReport>,
    database: DatabaseKind,
    eyes: Eyes,
) -> Router {
    let Eyes {
        watcher,
        signed_in,
        token,
    } = eyes;
    let router = health::add_to(router, pool, checks, phase, database);
    let router = metrics::add_to(router, pool, order);
    let has_token = token.is_some();
    let shows_texts = move |request: &Request| has_token || live::is_from_here(request);
    let router = live::add_to(router, pool, &watcher, shows_texts);
    start::add_to(dashboard::add_to(router, token, &signed_in))
}

/// What the dashboard needs.
pub(super) struct Eyes {
    pub watcher: Arc<Watcher>,
    pub signed_in: Arc<SignedIn>,
    /// `METRICS_TOKEN`.
    pub token: Option<String>,
}
