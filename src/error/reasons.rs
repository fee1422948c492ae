//! Reasons in one word each.

use crate::retry::Phase;
use std::fmt;

/// Why a call that could have been repeated was not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GaveUpReason {
    /// The policy's retries are used up.
    MaxRetries,
    /// The next pause would have outlived the caller's deadline.
    Deadline,
    /// The pool's retry budget is empty: there were too many retries of late. The budget keeps the
    /// clients of an ailing database from overloading it.
    Budget,
}

impl fmt::Display for GaveUpReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GaveUpReason::MaxRetries => "no retries left",
            GaveUpReason::Deadline => "no time left for another attempt",
            GaveUpReason::Budget => "the pool's retry budget is empty",
        })
    }
}

/// What is known of a failed statement's effect, beyond what its [`Phase`](crate::retry::Phase)
/// and the server's code tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Effect {
    /// Nothing beyond what the phase and the server's code imply.
    ByPhase,
    /// The statement had no effect: the server confirmed it, or its transaction cannot have
    /// committed.
    None,
}

impl Effect {
    /// Returns the phase by which the failure is judged.
    pub(super) fn judged(self, phase: Phase) -> Phase {
        match self {
            Effect::ByPhase => phase,
            Effect::None => Phase::Preparing,
        }
    }
}

/// What ended a wait for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CheckoutFailure {
    /// No connection became available in time.
    Timeout,
    /// As many threads as allowed are waiting already.
    LineFull,
    /// No connection could be opened for a while: check-outs fail at once until one opens.
    FailingFast,
    /// The database refuses every connection for a reason that will not pass by itself (a wrong
    /// password, an unknown database), and none is open. The pool tries again every 3 s.
    Refused,
    /// The pool is closed, or closing.
    Closed,
}
