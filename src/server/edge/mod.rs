//! The edge: the public listener. It owns every client's socket, reads whole requests under limits,
//! refuses whatever is not a valid request, and hands the others to the lanes.
//!
//! tiny_http 0.12 must not face the network: one request with `Content-Length: 30000000000` aborts
//! the process, `GET / HTTP/2.0` keeps a thread forever, a burst of connections leaves most of them
//! unserved, a lack of file descriptors ends accepting for good, heads may be of any size, and
//! nothing has a time limit. The edge stands in front of it:
//!
//! ```text
//!  clients ──► one thread, one event loop ──► health lane: 4 workers
//!              (framing, limits, deadlines)   api lane: HTTP_WORKERS, behind a line of HTTP_QUEUE
//! ```
//!
//! A slow client costs a buffer, not a thread. A request is routed and authorized by its head
//! alone, so one that is refused costs neither a body nor a worker. A request that the line has no
//! room for is refused at once. The event loop never blocks on anything but its sockets.

mod accept;
mod admission;
mod chunked;
mod clients;
mod connection;
mod event_loop;
mod forwarded;
mod framing;
mod listener;
mod newcomers;
mod output;
mod proxied;
mod running;

pub(super) use {event_loop::LAST_CLIENTS, running::Edge};
