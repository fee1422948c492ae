//! The tests that need a database, a network or the program itself. One binary, one module for each behaviour.

mod checkout;
mod cli;
mod comeback;
mod commit;
mod docs;
mod edge;
mod failover;
mod frozen;
mod health;
mod http;
mod keyed;
mod logs;
mod models;
mod outage;
mod proxy;
mod retry;
mod servers;
mod sessions;
mod studio;
mod support;
mod torture;
mod wire;
