//! What can go wrong, with the evidence.
//!
//! Each error states one fact; its cause is behind [`source`](std::error::Error::source). Decide
//! what to do with the predicates ([`Error::is_retryable`], [`Error::is_outcome_unknown`]), never
//! by the text. No error holds a parameter value or a password.

mod conditions;
mod display;
mod evidence;
mod kinds;
mod reasons;
mod text;

pub use crate::metrics::AbandonedStage;
pub use kinds::{CheckoutError, Error, OpenError, Result};
pub use reasons::{CheckoutFailure, Effect, GaveUpReason};
pub use text::{Chain, HeldBy, LastStatement};
pub(crate) use text::{excerpt, is_out_of_files, query_text};
