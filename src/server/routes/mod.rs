//! The routes that every server has.

mod format;
mod health;
mod metrics;
mod start;

use super::checks::Checks;
use super::router::Router;
use super::shutdown::PhaseFlag;
use crate::pool::Pool;
use std::sync::Arc;

/// Adds health, metrics, and a page with links to them.
pub(super) fn add_to(
    router: Router,
    pool: &Pool,
    checks: Checks,
    phase: &Arc<PhaseFlag>,
    private: bool,
) -> Router {
    let router = health::add_to(router, pool, checks, phase, private);
    start::add_to(metrics::add_to(router, pool))
}
