//! What can go wrong, with the evidence.
//!
//! Each error states one fact; the cause is behind [`source`](std::error::Error::source). What may be done about an
//! error is asked with predicates ([`Error::is_retryable`], [`Error::is_outcome_unknown`]), never read out of its text.
//! No error holds a parameter value or a password.

mod evidence;
mod kinds;
mod reasons;
mod text;

pub use kinds::{CheckoutError, Error, OpenError, Result};
pub use reasons::{CheckoutFailure, GaveUpReason};
pub use text::{Chain, HeldBy};
pub(crate) use text::{excerpt, is_out_of_files};
