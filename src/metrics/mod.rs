//! The pool's counters and histograms, named after OpenTelemetry's database conventions.
//!
//! Gauges are not stored: they are computed from [`Stats`] when they are read. Every counter exists
//! from the start, at 0. Without the feature `metrics` nothing is counted.

mod headroom;
#[cfg(feature = "metrics")]
pub mod prometheus;
#[cfg(feature = "metrics")]
mod series;
#[cfg(not(feature = "metrics"))]
mod silent;
#[cfg(feature = "server")]
mod snapshot;
mod standby;
mod stats;

pub use headroom::Headroom;
#[cfg(feature = "metrics")]
pub use series::BUCKETS;
#[cfg(feature = "metrics")]
pub(crate) use series::Metrics;
#[cfg(not(feature = "metrics"))]
pub(crate) use silent::Metrics;
#[cfg(feature = "server")]
pub(crate) use snapshot::{Labelled, Snapshot};
pub use standby::{Standby, StandbyState};
pub use stats::{AbandonedStage, CloseReason, Stats};
