//! Calls: one statement or transaction each, with its options, retried if that is safe.

mod executor;
mod from_row;
mod keyed;
mod ledger_upkeep;
mod options;
mod raised;
mod read;
mod refusals;
mod rows;
mod run;
mod statements;
mod transaction;

pub use executor::Executor;
pub use from_row::FromRow;
pub use keyed::Keyed;
pub use options::Call;
pub use transaction::Transaction;
