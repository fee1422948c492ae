//! The process that made a pool. A forked child has the pool's memory and its sockets, but none of
//! its threads: both processes would use the same connections, no deadline would be enforced, and a
//! Terminate message from the child would end a connection that the parent uses.

use crate::error::Error;

/// Told apart by a count of forks, which is read without a system call: each check-out asks twice,
/// and with the process's number this was a third of what a check-out takes.
#[derive(Clone, Debug)]
pub(crate) struct Process(forkguard::Guard);

impl Process {
    pub fn this() -> Process {
        Process(forkguard::new())
    }

    pub fn is_another(&self) -> bool {
        // A guard tells of a fork once; each of its copies does.
        self.0.clone().detected_fork()
    }
}

/// The error of a call in another process.
pub(super) const MISUSE: Error = Error::Misuse(
    "this pool belongs to the parent process; build a new pool after the fork (daemonize, then build)",
);
