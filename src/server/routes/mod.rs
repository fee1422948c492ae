//! The routes that every server has.

mod format;
mod health;
mod metrics;
mod start;

use super::router::Router;
use super::shutdown::PhaseFlag;
use crate::pool::Pool;
use std::sync::Arc;

/// Adds health, metrics, and a page with links to them.
pub(super) fn add_to(router: Router, pool: &Pool, phase: &Arc<PhaseFlag>, private: bool) -> Router {
    start::add_to(metrics::add_to(
        health::add_to(router, pool, phase, private),
        pool,
    ))
}
