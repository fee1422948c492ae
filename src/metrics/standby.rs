//! What is known of a standby that reads may use.

use super::headroom::Headroom;
use super::stats::Stats;
use std::fmt;
use std::time::Duration;

/// A standby that reads may use, with its pool.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Standby {
    /// Its host and port, as they were given.
    pub host: String,
    /// Whether reads go there, and if not, why.
    pub state: StandbyState,
    /// How old its data may be: all that was committed before that is there. `None` if it is
    /// unknown.
    pub lag: Option<Duration>,
    /// Why it could not be asked last, in the words of [`ProbeError`](crate::pool::ProbeError).
    pub error: Option<String>,
    /// Its room for more connections, as it was seen last.
    pub headroom: Option<Headroom>,
    /// The figures of its pool.
    pub stats: Stats,
}

/// Whether reads go to a standby, and if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum StandbyState {
    /// Reads go there.
    Used,
    /// It is further behind than is allowed, or the primary's position is not known.
    Behind,
    /// It has not answered of late.
    Silent,
    /// It is a primary.
    Primary,
    /// It has writes that its primary does not have: they were lost at a failover.
    Diverged,
    /// It belongs to another database cluster.
    Foreign,
}

impl StandbyState {
    /// All states.
    #[cfg(feature = "metrics")]
    pub(crate) const ALL: [StandbyState; 6] = [
        StandbyState::Used,
        StandbyState::Behind,
        StandbyState::Silent,
        StandbyState::Primary,
        StandbyState::Diverged,
        StandbyState::Foreign,
    ];

    /// Returns its name in figures.
    pub fn as_str(self) -> &'static str {
        match self {
            StandbyState::Used => "used",
            StandbyState::Behind => "behind",
            StandbyState::Silent => "silent",
            StandbyState::Primary => "primary",
            StandbyState::Diverged => "diverged",
            StandbyState::Foreign => "foreign",
        }
    }
}

impl fmt::Display for StandbyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StandbyState::Used => "reads go there",
            StandbyState::Behind => "no reads go there, because it is too far behind the primary",
            StandbyState::Silent => "no reads go there, because it does not answer",
            StandbyState::Primary => "no reads go there, because it is a primary",
            StandbyState::Diverged => {
                "no reads go there, because it has writes that the primary does not have"
            }
            StandbyState::Foreign => {
                "no reads go there, because it is no standby of this primary, but of another"
            }
        })
    }
}
