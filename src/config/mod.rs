//! Every setting: its name, default and range.
//!
//! With the feature `env`, [`Config::from_env`] and [`PoolConfig::from_env`] read the environment
//! and `.env`; a variable of the environment overrides `.env`. A bad value is never replaced by a
//! default: all problems are reported at once ([`ConfigErrors`]), and a value that could be a
//! secret is never printed. Programs that embed the pool set the same options with the same
//! defaults on [`Pool::builder`](crate::Pool::builder).

mod database;
#[cfg(feature = "env")]
mod environment;
#[cfg(feature = "server")]
mod http;
#[cfg(all(feature = "server", feature = "env"))]
mod http_texts;
#[cfg(feature = "env")]
mod in_force;
mod libpq;
#[cfg(feature = "env")]
mod named;
#[cfg(feature = "env")]
mod parse;
mod pool;
mod problem;
#[cfg(feature = "env")]
mod program;
mod server_host;
#[cfg(feature = "env")]
mod source;
#[cfg(feature = "env")]
mod table;
mod tls;
mod url_file;

pub use database::Database;
#[cfg(feature = "server")]
pub use http::HttpConfig;
#[cfg(feature = "server")]
pub use ipnet::IpNet;
pub use pool::{LineOrder, PoolConfig, Pooler, Reset};
pub use problem::{ConfigErrors, Problem};
#[cfg(feature = "env")]
pub use program::{Config, LogFormat, PrivateDatabase};
pub(crate) use server_host::{ServerHost, SessionAttrs, hosts};
#[cfg(feature = "env")]
pub use source::Source;
#[cfg(feature = "env")]
pub use table::names;
pub use tls::SslMode;
#[cfg_attr(not(feature = "tls"), allow(unused_imports))]
pub(crate) use tls::{Roots, TlsSettings, TlsVersion};
pub(crate) use url_file::UrlFile;
