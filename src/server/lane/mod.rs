//! The lanes: everything between a whole request and the worker that calls its handler. Nothing
//! outside this folder names tiny_http.
//!
//! ```text
//! lanes.submit(exchange) ──► line ──► a private Unix socket ──► tiny_http ──► worker ──► handler
//!                             │        connection, wire                         │
//!                             └───────────────► table ◄─────────────────────────┘
//! ```
//!
//! The table keeps a request's [`Exchange`](super::exchange::Exchange), with the head and the
//! client's socket, while only method, target, number and body pass through the lane.

mod connection;
mod connections;
mod lanes;
mod table;
mod wire;
mod worker;
mod worker_wakeup;
mod workers;

#[cfg(test)]
pub(super) use wire::to_bytes;
pub(super) use {connections::MOST_LANE_CONNECTIONS, lanes::Lanes, workers::Size};
