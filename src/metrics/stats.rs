//! The figures of a pool, and the reasons why it closes connections.

use std::fmt;

/// The pool's figures at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Stats {
    /// All connections, open or being opened: `idle + active + opening`.
    pub total: usize,
    /// Connections that are open and not checked out.
    pub idle: usize,
    /// Connections that are checked out.
    pub active: usize,
    /// Connections that are being opened.
    pub opening: usize,
    /// Threads in line for a connection.
    pub waiting: usize,
    /// The maximum number of connections.
    pub max: usize,
    /// The number of connections kept idle.
    pub min_idle: usize,
    /// Many leave the line unserved, so the newest waiters are served first
    /// ([`LineOrder`](crate::config::LineOrder)).
    pub newest_first: bool,
}

impl Stats {
    /// Returns the share of the maximum that is checked out, in percent, to two decimals.
    pub fn utilization_percent(&self) -> f64 {
        if self.max == 0 {
            return 0.0;
        }
        (self.active as f64 / self.max as f64 * 10_000.0).round() / 100.0
    }
}

/// Why a connection was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum CloseReason {
    /// Idle for longer than the idle timeout, above the minimum.
    IdleTimeout,
    /// Older than its lifetime.
    MaxLifetime,
    /// Checked out as often as allowed.
    MaxUses,
    /// Lost, or not to be trusted after an error.
    Broken,
    /// Opened before the server was restarted or replaced.
    FailedOver,
    /// The pool was closed.
    Drained,
    /// State that its user left behind could not be cleaned up.
    LeakedState,
    /// The application asked for it: [`Pool::evict`](crate::Pool::evict) or
    /// [`Pool::resize`](crate::Pool::resize).
    Evicted,
    /// It was taken out of the pool with
    /// [`PooledConnection::detach`](crate::pool::PooledConnection::detach), or belonged to a
    /// [`Listener`](crate::pool::Listener).
    Detached,
}

impl CloseReason {
    /// All reasons.
    pub const ALL: [CloseReason; 9] = [
        CloseReason::IdleTimeout,
        CloseReason::MaxLifetime,
        CloseReason::MaxUses,
        CloseReason::Broken,
        CloseReason::FailedOver,
        CloseReason::Drained,
        CloseReason::LeakedState,
        CloseReason::Evicted,
        CloseReason::Detached,
    ];

    /// Returns the word used in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            CloseReason::IdleTimeout => "idle_timeout",
            CloseReason::MaxLifetime => "max_lifetime",
            CloseReason::MaxUses => "max_uses",
            CloseReason::Broken => "broken",
            CloseReason::FailedOver => "failed_over",
            CloseReason::Drained => "drained",
            CloseReason::LeakedState => "leaked_state",
            CloseReason::Evicted => "evicted",
            CloseReason::Detached => "detached",
        }
    }
}

/// How far a call or a request had come when it was abandoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum AbandonedStage {
    /// It had not begun.
    Queued,
    /// It waited for a connection, or for its next attempt.
    Waiting,
    /// A statement that only reads was running, and was cancelled.
    Running,
}

impl AbandonedStage {
    /// All stages.
    pub const ALL: [AbandonedStage; 3] = [
        AbandonedStage::Queued,
        AbandonedStage::Waiting,
        AbandonedStage::Running,
    ];

    /// Returns the word used in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            AbandonedStage::Queued => "queued",
            AbandonedStage::Waiting => "waiting",
            AbandonedStage::Running => "running",
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utilization_is_active_of_max_to_two_decimals() {
        let stats = |active, max| Stats {
            active,
            max,
            ..Stats::default()
        };
        assert_eq!(stats(1, 20).utilization_percent(), 5.0);
        assert_eq!(stats(1, 3).utilization_percent(), 33.33);
        assert_eq!(stats(3, 3).utilization_percent(), 100.0);
        assert_eq!(stats(0, 0).utilization_percent(), 0.0);
    }
}
