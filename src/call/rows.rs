//! Conversion of a statement's rows to the results of calls.

use super::from_row::FromRow;
use crate::error::{Error, Result};
use postgres::Row;
use postgres::types::FromSqlOwned;

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

pub(super) fn mapped<T: FromRow>(rows: &[Row]) -> Result<Vec<T>> {
    let values = rows.iter().map(T::from_row);
    Ok(values.collect::<Result<_, _>>()?)
}

/// Returns the first column of the only row.
pub(super) fn scalar<T: FromSqlOwned>(rows: Vec<Row>) -> Result<T> {
    Ok(exactly_one(rows)?.try_get(0)?)
}
