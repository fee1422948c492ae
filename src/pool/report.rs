//! The result of a drain.

use std::fmt;
use std::ops::AddAssign;

/// The result of a drain, as numbers of connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Report {
    /// Closed while idle, or after their work was done.
    pub drained: usize,
    /// Closed after their statement was cancelled.
    pub cancelled: usize,
    /// Cut, because they did not answer or were not checked in.
    pub aborted: usize,
}

impl AddAssign for Report {
    fn add_assign(&mut self, other: Report) {
        self.drained += other.drained;
        self.cancelled += other.cancelled;
        self.aborted += other.aborted;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "drained={} cancelled={} aborted={}",
            self.drained, self.cancelled, self.aborted
        )
    }
}
