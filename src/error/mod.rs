//! What can go wrong, with the evidence.
//!
//! Each error states one fact; its cause is behind [`source`](std::error::Error::source). What a
//! program can do about an error is a question for the predicates ([`Error::is_retryable`],
//! [`Error::is_outcome_unknown`]), not for its text.
//! No error holds a parameter value or a password.

mod conditions;
mod display;
mod evidence;
mod kinds;
mod reasons;
mod text;

pub use kinds::{CheckoutError, Error, OpenError, Result};
pub use reasons::{CheckoutFailure, Effect, GaveUpReason};
pub use text::{Chain, HeldBy};
pub(crate) use text::{excerpt, is_out_of_files};
