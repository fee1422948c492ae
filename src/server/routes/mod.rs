//! The routes that every server has.

mod format;
mod health;
mod metrics;
mod start;

use super::checks::Checks;
use super::order::OrderReport;
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
) -> Router {
    let router = health::add_to(router, pool, checks, phase, database);
    start::add_to(metrics::add_to(router, pool, order))
}
