//! TLS to the server, as libpq does it, on rustls.
//!
//! `client` makes the settings of a handshake from the user's, `verifier` decides about the
//! server's certificate, and `certificate` reads what it needs of one.

mod certificate;
mod client;
mod files;
mod verifier;

pub(crate) use client::ClientCache;
#[cfg(feature = "cli")]
pub(crate) use client::has_roots;
