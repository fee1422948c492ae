//! The tests that need a database, a network or the program itself, in one binary with one module
//! for each behaviour. Tests that need more than PostgreSQL on the machine are behind the feature
//! `lab`.

mod answers;
mod authority;
mod begin;
mod callers;
mod changes;
mod check_database;
mod checkout;
mod cli;
#[cfg(feature = "lab")]
mod cluster;
mod comeback;
mod commit;
mod conformance;
mod dashboard;
mod distance;
mod docs;
mod edge;
mod embedders;
mod failover;
mod fleet;
mod fork;
mod frozen;
mod health;
mod health_checks;
mod house;
mod http;
mod interrupted;
mod keyed;
mod logs;
mod models;
mod outage;
mod overload;
#[cfg(feature = "lab")]
mod patroni;
mod pause;
mod peers;
#[cfg(feature = "lab")]
mod pooler;
mod preparing;
mod proxy;
mod replicas;
mod retry;
mod rotation;
mod servers;
mod sessions;
#[cfg(feature = "tracing")]
mod spans;
mod studio;
mod support;
mod terminator;
mod tls;
mod top;
mod torture;
mod traces;
mod wire;
mod writers;

/// The model-checked files of the crate take their locks from `crate::sync`; here those are the
/// model checker's.
use models::{class_queue, line_rule, sync};
