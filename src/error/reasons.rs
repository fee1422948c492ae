//! Reasons in one word each.

use std::fmt;

/// Why a call that could have been repeated was not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GaveUpReason {
    /// The policy's retries are used up.
    MaxRetries,
    /// The next pause would have outlived the caller's deadline.
    Deadline,
    /// Too many retries lately: the pool's retry budget is empty, so that a sick database is not beaten by its own clients.
    Budget,
}

impl fmt::Display for GaveUpReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GaveUpReason::MaxRetries => "no retries left",
            GaveUpReason::Deadline => "no time left for another",
            GaveUpReason::Budget => "the pool's retry budget is empty",
        })
    }
}

/// What ended a wait for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CheckoutFailure {
    /// No connection came free in time.
    Timeout,
    /// As many threads as allowed are in line already.
    LineFull,
    /// The database has been away for a while; nobody waits until a connection opens again.
    FailingFast,
    /// The database refuses every connection for a reason that will not pass by itself (a wrong password, an unknown
    /// database), and none is open. Tried again every 3 s.
    Refused,
    /// The pool is closed, or closing.
    Closed,
}
