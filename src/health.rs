//! The health check: whether the database answers, and the pool's figures.

use crate::metrics::Stats;
use crate::pool::{Pool, ProbeError};
use std::time::Duration;

/// The pool's health at one moment.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Health {
    /// The database answered within 800 ms, or had no room for the probe only, while the pool has
    /// working connections ([`probe_refused`](Self::probe_refused)).
    pub healthy: bool,
    /// The time of one round trip; `None` if the database did not answer.
    pub latency: Option<Duration>,
    /// The database answers but takes no writes: it is a standby, or was made read only.
    pub read_only: bool,
    /// What is wrong; `None` if it is healthy.
    pub error: Option<ProbeError>,
    /// The SQLSTATE, if the server sent one.
    pub sqlstate: Option<String>,
    /// The server had no room for the probe, but the pool has working connections. This is healthy.
    pub probe_refused: bool,
    /// The pool's figures.
    pub stats: Stats,
}

impl Pool {
    /// Asks the database for a sign of life, on a connection outside the pool, so that a saturated
    /// pool on a live database is healthy. Returns within 800 ms. All calls within 250 ms share one
    /// answer.
    pub fn health(&self) -> Health {
        let reading = self.probe();
        let stats = self.stats();
        let working = stats.idle + stats.active > 0;
        match reading {
            Ok(pong) => Health {
                healthy: true,
                latency: Some(pong.took),
                read_only: pong.read_only,
                error: None,
                sqlstate: None,
                probe_refused: false,
                stats,
            },
            Err((ProbeError::TooManyConnections, _)) if working => Health {
                healthy: true,
                latency: None,
                read_only: false,
                error: None,
                sqlstate: None,
                probe_refused: true,
                stats,
            },
            Err((error, sqlstate)) => Health {
                healthy: false,
                latency: None,
                read_only: false,
                error: Some(error),
                sqlstate,
                probe_refused: false,
                stats,
            },
        }
    }
}
