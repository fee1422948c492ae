//! A private PostgreSQL for development and tests.
//!
//! The server is a child of a small shell that waits for two things: for the server to end, and for a pipe to close that
//! only we hold open. So it is stopped when we end, however we end: by return, panic, signal, or a kill that leaves us no
//! time. Server and shell are a process group of their own, which a Ctrl-C in the terminal does not reach: we drain first.
//!
//! PostgreSQL refuses to run as root; the server's user is `postgres`, or `nobody`, then. One program at a time uses a data
//! directory: it holds a lock on a file, and the server inherits it, so that the lock is free only when the server is gone.
//!
//! It listens on loopback only, on a free port, with a random password (`scram-sha-256`); it has no Unix socket.

mod failure;
mod home;
mod options;
mod programs;
mod server;

pub use failure::EmbeddedError;
pub use options::Options;
pub use server::{PrivateServer, Stop};
