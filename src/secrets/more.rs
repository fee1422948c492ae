//! What a look at the output of a command found.

pub(super) enum More {
    /// Bytes came, or the wait was interrupted.
    Again,
    NotYet,
    End,
}
