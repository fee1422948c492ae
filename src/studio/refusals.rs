//! Explains in plain words why the database refused a request, without quoting the database.

use super::fields::invalid;
use super::wrong::Wrong;
use crate::error::Error;
use crate::server::Problem;
use postgres::error::{DbError, SqlState};
use std::fmt;

/// A problem as an error, which rolls back the transaction.
#[derive(Debug)]
pub(super) struct Refused(pub Problem);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request was refused")
    }
}

impl std::error::Error for Refused {}

/// Rolls a transaction back and answers with this problem.
pub(super) fn refuse(problem: Problem) -> Error {
    Error::application(Refused(problem))
}

pub(super) fn overlap() -> Problem {
    Problem::of_kind(
        409,
        "overlap",
        "the studio is already reserved for part of that time; choose another time or another studio",
    )
}

pub(super) fn unknown_studio() -> Problem {
    invalid(Wrong::field("studioId", "there is no such studio"))
}

/// What a failed call means to the client.
pub(super) fn problem_of(error: Error) -> Problem {
    let error = match error.downcast::<Refused>() {
        Ok(Refused(problem)) => return problem,
        Err(error) => error,
    };
    match db_error(&error).map(|db| (db.code(), db.constraint())) {
        Some((&SqlState::EXCLUSION_VIOLATION, Some("reservations_do_not_overlap"))) => overlap(),
        Some((&SqlState::FOREIGN_KEY_VIOLATION, Some("reservations_studio" | "quotes_studio"))) => {
            unknown_studio()
        }
        Some((&SqlState::UNIQUE_VIOLATION, Some("invoices_once_per_reservation"))) => {
            already_invoiced()
        }
        _ => error.into(),
    }
}

pub(super) fn already_invoiced() -> Problem {
    Problem::of_kind(
        409,
        "already-invoiced",
        "this reservation already has an invoice",
    )
}

fn db_error(error: &Error) -> Option<&DbError> {
    match error {
        Error::Database { source, .. } => source.as_db_error(),
        Error::GaveUp { source, .. } => db_error(source),
        _ => None,
    }
}
