//! What the pools of a primary and of its standbys have in common.

use crate::metrics::Metrics;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

#[derive(Clone, Default)]
pub(crate) struct Common {
    pub metrics: Metrics,
    /// How many connections were opened so far: the number of a connection in the log.
    pub connections: Arc<AtomicU64>,
}
