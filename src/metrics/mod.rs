//! What is counted and measured, under the names of OpenTelemetry's database conventions.
//!
//! The gauges are not kept: they are taken from [`Stats`] when somebody asks. Every counter exists from the start, at 0.
//! Without the feature `metrics` nothing is counted.

#[cfg(feature = "metrics")]
pub mod prometheus;
#[cfg(feature = "metrics")]
mod series;
#[cfg(not(feature = "metrics"))]
mod silent;
mod stats;

#[cfg(feature = "metrics")]
pub use series::BUCKETS;
#[cfg(feature = "metrics")]
pub(crate) use series::Metrics;
#[cfg(not(feature = "metrics"))]
pub(crate) use silent::Metrics;
pub use stats::{CloseReason, Stats};
