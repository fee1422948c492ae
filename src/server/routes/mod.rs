//! The routes that every server has.

mod format;
mod health;
mod metrics;
mod start;

use super::router::Router;
use super::shutdown::PhaseFlag;
use crate::pool::Pool;
use std::sync::Arc;

/// Adds health and metrics, and a page that leads to them.
pub(super) fn add_to(router: Router, pool: &Pool, phase: &Arc<PhaseFlag>, private: bool) -> Router {
    start::add_to(metrics::add_to(
        health::add_to(router, pool, phase, private),
        pool,
    ))
}
