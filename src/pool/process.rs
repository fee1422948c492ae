//! The process that made a pool. A forked child has the pool's memory and its sockets, but none of
//! its threads: both processes would use the same connections, no deadline would be enforced, and a
//! Terminate message from the child would end a connection that the parent uses.

use crate::error::Error;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Process(u32);

impl Process {
    pub fn this() -> Process {
        Process(std::process::id())
    }

    pub fn is_another(self) -> bool {
        std::process::id() != self.0
    }
}

/// The error of a call in another process.
pub(super) const MISUSE: Error = Error::Misuse(
    "this pool belongs to the parent process; build a new pool after the fork (daemonize, then build)",
);
