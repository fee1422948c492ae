//! `millpond check --database`: what one should know about the database before going live.
//!
//! `run` opens one connection, as the pool would, and prints the findings. `questions` asks the
//! server for the facts. What is to be said of them is decided by the rules in `connections`,
//! `access` and `state`, which ask nothing.

mod access;
mod connections;
mod facts;
mod finding;
mod questions;
mod rules;
mod run;
#[cfg(test)]
mod sample;
mod state;

pub(super) use run::run;
