//! The byte stream under a server connection, and the handle that frees a thread blocked on it.
//!
//! The driver is asked for TLS with direct negotiation (`ssl_mode(Require)`,
//! `ssl_negotiation(Direct)`): it then passes the raw socket to our connector at once and speaks
//! the plain protocol over the stream that the connector returns (tokio-postgres 0.7.18). The
//! connector returns the socket inside a [`Wire`](stream::Wire), with the encryption that the user
//! asked for above it (see `handshake`), or none. This has four uses:
//!
//! - [`Handle::abort`](handle::Handle::abort) works from any thread: a call blocked on the wire fails with `TimedOut` at
//!   once. This includes a query whose packets are silently dropped, a handshake that hangs, and
//!   the close that follows.
//! - A finished answer is always delivered. The driver polls the connection before it looks for its
//!   answer, and reports the connection's error in place of the answer (tokio-postgres 0.7.18,
//!   `poll_block_on` of postgres 0.19.14). If the end of the stream, or the FATAL of a server that
//!   shuts down, follows closely after an answer, the caller would be told that its statement
//!   failed although it succeeded. [`Answers`](answers::Answers) therefore delivers nothing more
//!   between the end of an answer and the next poll.
//! - It reports what the driver does not: whether any part of a request had been sent, or reported
//!   as complete, when its connection was lost; the process number that the server gave out, which
//!   reveals a pooler; and which statement was sent last, also by a caller who has the driver's
//!   client.
//! - A transaction's BEGIN takes no round trip of its own (see `own`), nor does the preparation of a
//!   text that the pool knows (see `prepare`).
//!
//! `Answers` reads the protocol in plain text, so it stands above any encryption. This is the only
//! room with async traits.
//!
//! The driver negotiates nothing over a Unix socket, since it has no host name there. So it is led
//! to a listener on the loopback interface that is dropped at once, and the connector opens the
//! Unix socket itself.

mod answers;
#[cfg(feature = "tls")]
mod binding;
mod cancel;
mod connector;
mod failure;
mod frame;
mod handle;
mod handshake;
mod own;
mod prepare;
mod route;
mod sent;
mod stream;

pub(crate) use cancel::cancel;
pub(crate) use connector::Connector;
pub(crate) use failure::Failure;
pub(crate) use handle::Handle;
pub(crate) use handshake::Handshake;
pub(crate) use own::{OWN_NAMES, Own, OwnRow, OwnState};
pub(crate) use prepare::Description;
pub(crate) use route::{Place, Route};
pub(crate) use sent::{CURSOR, behind};
