//! Whether and when work may be retried. All of it is pure: no connection, no thread, no clock.

mod budget;
mod policy;
mod sql;
mod tokens;
mod verdict;
mod without_values;

pub(crate) use budget::Budget;
pub use policy::RetryPolicy;
pub(crate) use sql::{
    Facts, Leaves, commits_inside, controls_transaction, copies_through, copies_through_client,
    names_a_write, writes_large_objects,
};
pub(crate) use tokens::has_comment;
pub use verdict::Phase;
pub(crate) use verdict::{Fate, Progress, Repeat, Symptom, Verdict, verdict};
pub(crate) use without_values::without_values;
