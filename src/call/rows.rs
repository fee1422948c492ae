//! How many rows there are to be.

use crate::error::{Error, Result};
use postgres::Row;

pub(super) fn at_most_one(mut rows: Vec<Row>) -> Result<Option<Row>> {
    if rows.len() > 1 {
        return Err(Error::Misuse(
            "the query returned more than one row where one was expected",
        ));
    }
    Ok(rows.pop())
}

pub(super) fn exactly_one(rows: Vec<Row>) -> Result<Row> {
    at_most_one(rows)?.ok_or(Error::Misuse(
        "the query returned no row where one was expected",
    ))
}
