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

/// How far a server is on its way down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It serves.
    Running,
    /// It serves, and says that it is about to stop.
    Unready,
    /// It finishes what is in flight.
    Draining,
}

/// The phase, for all threads to see.
#[derive(Default)]
pub struct PhaseFlag(AtomicU8);

impl PhaseFlag {
    /// The phase at this moment.
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

/// How a shutdown went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainReport {
    /// Requests that were still in flight when the time was up.
    pub requests_cut: usize,
    /// What became of the pool's connections.
    pub pool: crate::pool::Report,
}

impl DrainReport {
    /// Nothing was cut short.
    pub fn is_clean(&self) -> bool {
        self.requests_cut == 0 && self.pool.cancelled == 0 && self.pool.aborted == 0
    }
}

impl fmt::Display for DrainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "requests_cut={} {}", self.requests_cut, self.pool)
    }
}
