//! A private PostgreSQL for development and tests.
//!
//! The server is a child of a small shell. The shell waits for two things: for the server to end,
//! and for a pipe to close that only this program holds open. So the server is stopped however this
//! program ends: by return, panic, signal, or a kill that leaves it no time. Server and shell form
//! a process group of their own, which a Ctrl-C in the terminal does not reach: this program drains
//! first.
//!
//! PostgreSQL refuses to run as root; then the server's user is `postgres` or `nobody`. One program
//! at a time uses a data directory: it holds a lock on a file, and the server inherits the lock, so
//! that the lock is free only when the server is gone.
//!
//! The server listens on loopback only, on a free port, with a random password (`scram-sha-256`);
//! it has no Unix socket.

mod failure;
mod home;
mod options;
mod programs;
mod server;

pub use failure::EmbeddedError;
pub use options::Options;
pub use server::{PrivateServer, Stop};
