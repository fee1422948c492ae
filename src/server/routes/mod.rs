//! The routes that every server has.

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

/// Now, as RFC 3339 with milliseconds in UTC.
fn timestamp() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%S%.3fZ")
        .to_string()
}

/// Milliseconds to two decimals.
fn as_ms(latency: std::time::Duration) -> f64 {
    (latency.as_secs_f64() * 100_000.0).round() / 100.0
}
