//! What is counted and measured, under the names of OpenTelemetry's database conventions.
//!
//! The gauges are not kept: they are taken from [`Stats`] when somebody asks. Every counter exists from the start, at 0.

pub mod prometheus;
mod series;

pub use series::{BUCKETS, CloseReason, Metrics, Stats};
