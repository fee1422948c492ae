//! The application that the pool was built for: a studio's reservations, quotes and invoices over
//! HTTP.
//!
//! Each resource has a file with its shapes, its handlers and its statements. Bodies and queries
//! are read strictly (`fields`), every write is done once for its key (`writes`), and what the
//! database refuses is explained in plain words (`refusals`). The schema is created and migrated at
//! the start (`schema`).

mod app;
mod fields;
mod import;
mod invoices;
mod keys;
mod openapi;
mod pages;
mod price;
mod quotes;
mod refusals;
mod reservations;
mod routes;
mod schema;
mod shapes;
mod studios;
mod times;
mod writes;
mod wrong;

pub use app::Studio;
pub use schema::{SCHEMA, SchemaError};
