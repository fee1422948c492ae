//! Running, then unready, then draining, then stopped.
//!
//! ```text
//! signal ──► unready ───────────────► draining ──────────────────────► stopped
//!            /health/ready is 503     new API requests get 503          report, exit
//!            requests are served,     those in flight finish
//!            Connection: close        the pool closes (cancel, then cut)
//!            for SHUTDOWN_DELAY_MS    until SHUTDOWN_TIMEOUT_MS is over
//! ```

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

/// How far a server's shutdown has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Serves.
    Running,
    /// Serves, and reports that it is about to stop.
    Unready,
    /// Finishes the requests in flight.
    Draining,
}

/// The phase, shared by all threads.
#[derive(Default)]
pub(super) struct PhaseFlag(AtomicU8);

impl PhaseFlag {
    /// The current phase.
    pub fn get(&self) -> Phase {
        match self.0.load(Ordering::SeqCst) {
            0 => Phase::Running,
            1 => Phase::Unready,
            _ => Phase::Draining,
        }
    }

    pub(super) fn set(&self, phase: Phase) {
        let to = match phase {
            Phase::Running => 0,
            Phase::Unready => 1,
            Phase::Draining => 2,
        };
        self.0.fetch_max(to, Ordering::SeqCst);
    }
}

/// The result of a shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainReport {
    /// Requests that were still in flight when the time was up.
    pub requests_cut: usize,
    /// The pool's own report.
    pub pool: crate::pool::Report,
}

impl DrainReport {
    /// Whether nothing was cut short.
    pub fn is_clean(&self) -> bool {
        self.requests_cut == 0 && self.pool.cancelled == 0 && self.pool.aborted == 0
    }
}

impl fmt::Display for DrainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "requests_cut={} {}", self.requests_cut, self.pool)
    }
}
