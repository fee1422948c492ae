//! A PostgreSQL pool that stays calm, for synchronous Rust.
//!
//! Threads check connections out of a [`Pool`], and waiting threads are served in order. Statements
//! are retried only if that is safe. A call with a deadline ends at most 550 ms after it, even if
//! the server does not answer (not on a plain connection).
//! [`Pool::builder`] has every option with its default; [`Error`] says what went wrong and what can
//! be done about it; the page `recipes` has whole programs, [`coming_from_r2d2`] what changes in
//! one on r2d2.
//!
//! The pool works with PostgreSQL 14 and newer, over TLS with the feature `tls`; without it, a URL
//! that insists on TLS is refused. A call blocks its thread: from asynchronous code, make it on a
//! thread for blocking work (tokio: `spawn_blocking`); on a thread that drives a runtime, it is
//! [`Error::Misuse`].
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pool = millpond::Pool::builder().database_url("postgresql://app:secret@localhost/studio").build()?;
//! let rows = pool.read("SELECT name FROM studios WHERE id = $1", &[&1i64])?;
//! # Ok(())
//! # }
//! ```
//!
//! # The life of a connection
//!
//! ```text
//!               an opener asks r2d2               no waiters
//!   (nothing) ───────────────────────► opening ─────────────────► idle
//!                                         │                       │  ▲
//!                               a thread waits         check-out  │  │ check-in
//!                                         │                       ▼  │ (straight to the longest waiter)
//!                                         └────────────────────► active
//!   idle    ──► closed: idle_timeout (above the minimum), broken, failed_over, evicted, drained
//!   active  ──► closed at check-in: broken, failed_over, leaked_state, evicted, drained
//!   both    ──► closed when another is open in its place: max_lifetime, max_uses
//!   active  ──► taken out: detached
//! ```
//!
//! A connection is validated before it is used if it was idle for more than 500 ms, or if another
//! connection has broken since the server last answered on it. If the validation fails, all
//! connections of that age are retired.
//!
//! # The shutdown
//!
//! ```text
//!   Pool::close(timeout)
//!   │ check-outs are refused, waiters are turned away
//!   │ idle connections are closed, with a Terminate message
//!   │ connections in use are waited for .......................... drained
//!   ▼ half of the time before the end (at most 2 s)
//!   │ statements that still run are cancelled, but never a COMMIT . cancelled
//!   ▼ the end
//!     connections that have not come back are cut ................. aborted
//! ```
//!
//! # Words
//!
//! *Open* and *close* refer to a server connection; *check out* and *check in* to the pool.
//! *Discard* is a check-in that closes the connection. *Drain* means to refuse new check-outs and
//! let connections in use finish. *Waiters* are threads in line. An *attempt* is one try of a call;
//! the *verdict* on an error says whether there may be another. A *deadline* is a moment, a
//! *timeout* a duration, and the *budget* limits the retries of a pool.
//!
//! # Features
//!
//! By default, this is the whole program. With `default-features = false`, it is only the pool;
//! `env` reads its settings from the environment, `metrics` adds counters and histograms for
//! Prometheus, `serde` writes its figures, `tracing` opens spans for a subscriber of the
//! application's, `chrono`, `jiff`, `serde_json` and `uuid` allow values of these crates as
//! parameters and in rows, `server` adds the HTTP server, `embedded` a private PostgreSQL for
//! development and tests, `studio` the application that the pool was built for, and
//! `cli` the program.

#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod call;
mod class_queue;
mod commit;
pub mod config;
#[cfg(feature = "embedded")]
pub mod embedded;
pub mod error;
mod fd_limit;
pub mod health;
mod hex;
mod line_rule;
pub mod metrics;
pub mod pool;
pub mod retry;
mod secrets;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "studio")]
pub mod studio;
mod sync;
#[cfg(any(feature = "server", feature = "embedded"))]
mod temporary;
#[cfg(feature = "tls")]
mod tls;
mod token;
mod traceparent;

pub use call::{Call, Executor, FromRow, Keyed, Transaction};
#[cfg(feature = "env")]
#[doc(inline)]
pub use config::Config;
pub use config::ConfigErrors;
pub use error::{Error, Result};
pub use pool::{BuildError, Pool};
pub use postgres;
pub use retry::RetryPolicy;
pub use token::Token;
pub use traceparent::{BadTraceparent, Traceparent};

/// What this package's program needs in addition to the public API. Not for other crates.
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod for_cli {
    pub use crate::pool::Endpoint;
    use crate::{fd_limit, server};

    /// The number of database connections that a pool may open in addition to its own.
    pub const MORE_CONNECTIONS: usize = fd_limit::MORE_CONNECTIONS;

    /// Returns the most files that this process may have open; `None` if there is no limit.
    pub fn max_open_files() -> Option<usize> {
        fd_limit::limit()
    }

    /// Returns the most files that a server without clients has open.
    pub fn files_needed(connections: usize, workers: usize) -> usize {
        server::Server::files(connections, workers)
    }
}

/// These stay what threads may share, or at least hand over.
const _: () = {
    const fn are_shared<T: Send + Sync>() {}
    const fn are_sent<T: Send>() {}
    are_shared::<Pool>();
    are_shared::<Error>();
    are_shared::<BuildError>();
    are_shared::<pool::Builder>();
    are_shared::<RetryPolicy>();
    are_sent::<pool::PooledConnection>();
    are_sent::<pool::DetachedConnection>();
    are_sent::<pool::Listener>();
};

/// Compiles the README's code as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

// The recipes link to the server and the private database.
#[cfg(all(feature = "server", feature = "embedded"))]
#[doc = include_str!("RECIPES.md")]
pub mod recipes {}

#[doc = include_str!("COMING_FROM_R2D2.md")]
pub mod coming_from_r2d2 {}

#[doc = include_str!("ARCHITECTURE.md")]
pub mod architecture {}
