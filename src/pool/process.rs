//! The process that made a pool. A child that was forked has the pool's memory and its sockets, but none of its threads: both
//! would speak on the same connections, no deadline would be kept, and a goodbye would end what the parent uses.

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

/// What a call in another process ends as.
pub(super) const MISUSE: Error = Error::Misuse(
    "the pool was made by another process, whose connections these are: build one after the fork (daemonize, then build)",
);
