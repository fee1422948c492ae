//! Every setting: its name, default and range.
//!
//! [`Config::from_env`] reads the environment and `.env`; a real variable wins. A bad value is never replaced by a default:
//! all problems are reported at once ([`ConfigErrors`]), and what could be a secret is never echoed. Those who embed the
//! pool set the same things with the same defaults on [`Pool::builder`](crate::Pool::builder).

mod database;
mod http;
mod parse;
mod pool;
mod problem;
mod program;
mod source;
mod table;

pub use database::Database;
pub use http::HttpConfig;
pub use ipnet::IpNet;
pub use pool::{PoolConfig, Pooler, Reset};
pub use problem::{ConfigErrors, Problem};
pub use program::{Config, PrivateDatabase};
pub use source::Source;
pub use table::names;
