//! Runs transactions, and finds out what became of a commit whose answer was lost.
//!
//! `transact` runs work between BEGIN and COMMIT. `resolve` finds out the outcome of a COMMIT that
//! was not answered: by the transaction's id, or by the row that its key has in the `ledger`.

mod ledger;
mod resolve;
mod transact;

pub(crate) use ledger::{Claimed, Key, Ledger, NOT_OURS, SWEEPING};
pub(crate) use resolve::{LostCommit, Outcome, longest, wait_for_standbys};
pub(crate) use transact::{roll_back_after, transact};
