//! Calls: a statement or a transaction, with its options, repeated where that is safe.

mod keyed;
mod ledger_upkeep;
mod options;
mod refusals;
mod rows;
mod run;
mod statements;
mod transaction;

pub use keyed::Keyed;
pub use options::Call;
pub use transaction::Transaction;
