//! Connection parameters as libpq reads them: the text, services, the environment, defaults.
//!
//! The files below are pure. Environment variables and files come through [`World`], so that tests
//! need neither. What libpq would do and we cannot is refused by name, never dropped; no error
//! holds a value, since a value may be a part of a password.
//!
//! Follows PostgreSQL 17, manual section 34.1.2 (parameters), 34.15 (variables), 34.16 (password
//! file) and 34.17 (services).

// Without the environment, only the text is read.
#![cfg_attr(not(feature = "env"), allow(dead_code))]

mod conninfo;
#[cfg(feature = "env")]
mod gather;
mod keywords;
mod parameters;
pub(super) mod passfile;
#[cfg(feature = "env")]
mod service;

#[cfg(feature = "env")]
pub(super) use gather::{World, gather};
#[cfg(feature = "env")]
pub(super) use keywords::KEYWORDS;
#[cfg(feature = "env")]
pub(super) use parameters::Problem;
pub(super) use parameters::{Origin, Parameters, only};
