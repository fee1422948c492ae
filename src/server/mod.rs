//! A thread-pool HTTP server in front of the pool, without an async runtime.
//!
//! The edge owns every client's socket and hands complete, valid requests to two lanes: health
//! (health, metrics) and api. Each lane has its own worker threads, so a request that asks how the
//! server is never waits behind one that needs the database.

mod browsers;
mod edge;
mod exchange;
mod handle;
mod http;
mod in_flight;
mod inbox;
mod lane;
mod reason;
mod render;
mod router;
mod routes;
mod service;
mod shutdown;

pub use handle::Server;
pub use http::{Problem, Request, Response};
pub use router::{Access, Handler, Lane, Router};
pub use shutdown::DrainReport;
