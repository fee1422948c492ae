//! How a drain went.

use std::fmt;

/// How a drain went, in connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Closed at rest, or after their work was done.
    pub drained: usize,
    /// Their statement was cancelled to end it.
    pub cancelled: usize,
    /// Cut, because they did not answer or were not given back.
    pub aborted: usize,
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
