//! A thread-pool HTTP server in front of the pool, without an async runtime.
//!
//! The edge owns every client's socket and hands complete, valid requests to two lanes: health
//! (health, metrics) and api. Each lane has its own worker threads, so a request that asks how the
//! server is never waits behind one that needs the database.
//!
//! # Your own routes
//!
//! A handler takes a [`Request`] and returns a [`Response`], or a [`Problem`] in its place; an
//! error of the pool becomes one by `?`. What it needs it captures. [`Request::call`] makes a call
//! on the pool that keeps the request's time, and ends when its client hangs up.
//!
//! ```
//! use millpond::config::HttpConfig;
//! use millpond::server::{Access, DatabaseKind, Lane, Problem, Request, Response, Router, Server};
//! use millpond::{Pool, postgres};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Deserialize)]
//! struct NewNote {
//!     text: String,
//! }
//!
//! #[derive(Serialize)]
//! struct Note {
//!     id: i64,
//!     text: String,
//! }
//!
//! fn list(pool: &Pool, request: &Request) -> Result<Response, Problem> {
//!     let limit = match request.query_param("limit") {
//!         None => 50,
//!         Some(text) => match text.parse::<i64>() {
//!             Ok(limit @ 1..=200) => limit,
//!             _ => return Err(Problem::plain(422, "limit takes a whole number from 1 to 200")),
//!         },
//!     };
//!     let of = |row: &postgres::Row| Note { id: row.get(0), text: row.get(1) };
//!     let rows = request
//!         .call(pool)
//!         .read("SELECT id, text FROM notes ORDER BY id DESC LIMIT $1", &[&limit])?;
//!     Ok(Response::json(200, &rows.iter().map(of).collect::<Vec<_>>()))
//! }
//!
//! fn create(pool: &Pool, request: &Request) -> Result<Response, Problem> {
//!     let NewNote { text } = request.json()?;
//!     if text.is_empty() {
//!         return Err(Problem::plain(422, "a note has a text"));
//!     }
//!     let rows = request
//!         .call(pool)
//!         .query("INSERT INTO notes (text) VALUES ($1) RETURNING id", &[&text])?;
//!     let note = Note { id: rows[0].get(0), text };
//!     Ok(Response::json(201, &note).header("Location", format!("/api/notes/{}", note.id)))
//! }
//!
//! fn routes(pool: &Pool) -> Router {
//!     let (for_list, for_create) = (pool.clone(), pool.clone());
//!     Router::new()
//!         .that_writes()
//!         .route("GET", "/api/notes", Lane::Api, Access::Api, move |r| list(&for_list, r))
//!         .route("POST", "/api/notes", Lane::Api, Access::Api, move |r| create(&for_create, r))
//! }
//!
//! fn serve(pool: Pool) -> std::io::Result<Server> {
//!     let router = routes(&pool);
//!     Server::start(HttpConfig::default(), pool, router, DatabaseKind::External)
//! }
//!
//! // A test of the handlers needs neither a socket nor, for what they refuse, a database.
//! let nowhere = Pool::builder().database_url("postgresql://u:p@127.0.0.1:1/d").build()?;
//! let router = routes(&nowhere);
//! let too_many = Request::builder("GET", "/api/notes?limit=1000").build();
//! assert_eq!(router.respond(too_many).status, 422);
//! let empty = Request::builder("POST", "/api/notes").json_body(r#"{"text":""}"#).build();
//! let refused = create(&nowhere, &empty).unwrap_err();
//! assert_eq!(refused.status(), 422);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod browsers;
mod checks;
mod current_span;
mod dashboard;
mod database_kind;
mod edge;
mod exchange;
mod format;
mod handle;
mod http;
mod in_flight;
mod inbox;
mod lane;
mod order;
mod reason;
mod render;
mod reply;
mod request;
mod router;
mod routes;
mod service;
mod shutdown;

pub use database_kind::DatabaseKind;
pub use handle::Server;
pub use http::{Problem, Response};
pub use request::{Request, RequestBuilder};
pub use router::{Access, Handler, Lane, Router};
pub use shutdown::DrainReport;
