//! What a session knows about the statements that it runs: those that it keeps prepared, the facts
//! that their texts show, and the search path that their names are resolved with.

use crate::pool::param_types::{Described, needs_look_up};
use crate::retry::Facts;
use postgres::types::{FromSql, Kind, Type};
use postgres::{Row, Statement};
use std::borrow::Cow;
use std::time::{Duration, Instant};

/// A column may have changed to another type that accepts the same values, or a type of the
/// application may have been altered. Neither the server nor the driver notices, so the types are
/// looked up again after this time.
const TYPES_KEPT_FOR: Duration = Duration::from_secs(60);

/// A prepared statement.
#[derive(Clone)]
pub(super) struct Kept {
    pub statement: Statement,
    pub facts: Facts,
    /// When it was prepared; None if its types cannot change.
    looked_up: Option<Instant>,
    has_own_types: bool,
}

impl Kept {
    pub fn new(statement: Statement, facts: Facts) -> Kept {
        let columns = statement.columns().iter().map(postgres::Column::type_);
        let has_own_types = statement.params().iter().chain(columns).any(needs_look_up);
        let may_change = has_own_types || !statement.params().is_empty();
        Kept {
            looked_up: may_change.then(Instant::now),
            has_own_types,
            statement,
            facts,
        }
    }

    /// Returns what another session may be told of it.
    pub fn described(&self) -> Described {
        Described::of(&self.statement, self.facts)
    }

    pub fn has_own_types(&self) -> bool {
        self.has_own_types
    }

    pub fn is_old(&self) -> bool {
        let old = |at: Instant| at.elapsed() > TYPES_KEPT_FOR;
        self.looked_up.is_some_and(old)
    }
}

/// Returns whether the rows have the types that were described. The server does not report that a
/// type of the application was altered, and the driver keeps what it has looked up: without this
/// check, every attempt to read such a row on that connection would fail.
pub(super) fn are_as_described(rows: &[Row]) -> bool {
    let Some(first) = rows.first() else {
        return true;
    };
    let columns = first.columns().iter().map(postgres::Column::type_);
    columns
        .enumerate()
        .filter(|(_, ty)| needs_look_up(ty))
        .all(|(at, ty)| {
            rows.iter().all(|row| match row.try_get(at) {
                Ok(Some(Raw(value))) => is_of(ty, value),
                _ => true,
            })
        })
}

/// The bytes of a value, of any type.
struct Raw<'a>(&'a [u8]);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(
        _: &Type,
        raw: &'a [u8],
    ) -> Result<Raw<'a>, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Raw(raw))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// Returns whether a value is of a type, as far as its binary form shows it (the forms of
/// `array_send`, `record_send` and `enum_send`).
fn is_of(ty: &Type, value: &[u8]) -> bool {
    match ty.kind() {
        Kind::Enum(labels) => labels.iter().any(|label| label.as_bytes() == value),
        Kind::Composite(fields) => number(value, 0) == i32::try_from(fields.len()).ok(),
        Kind::Domain(inner) => is_of(inner, value),
        Kind::Array(inner) if needs_look_up(inner) => {
            elements(value).all(|value| is_of(inner, value))
        }
        _ => true,
    }
}

fn number(value: &[u8], at: usize) -> Option<i32> {
    let bytes = value.get(at..at + 4)?;
    bytes.try_into().ok().map(i32::from_be_bytes)
}

/// Returns the elements of an array in binary form. The form is: number of dimensions, flags,
/// element type; for each dimension its length and its first index; then the elements with their
/// lengths.
fn elements(array: &[u8]) -> impl Iterator<Item = &[u8]> {
    let dimensions = number(array, 0).map_or(0, |n| usize::try_from(n).unwrap_or(0));
    let mut at = dimensions.saturating_mul(8).saturating_add(12);
    std::iter::from_fn(move || {
        loop {
            let length = number(array, at)?;
            at += 4;
            // -1 is a NULL.
            if let Ok(length) = usize::try_from(length) {
                let value = array.get(at..at.checked_add(length)?)?;
                at += length;
                return Some(value);
            }
        }
    })
}

/// The `search_path` of the current transaction: with another path, the same text may mean other
/// tables.
#[derive(Default)]
pub(super) enum SearchPath {
    /// The path of the session.
    #[default]
    Own,
    /// A statement has mentioned `search_path`: the server is asked before the next statement.
    Doubtful,
    Set(Box<str>),
}

impl SearchPath {
    /// Returns the cache key of a text under this path. Neither a text nor a setting can contain a
    /// NUL.
    pub fn key<'t>(&self, sql: &'t str) -> Cow<'t, str> {
        match self {
            SearchPath::Set(path) => Cow::Owned(format!("{path}\0{sql}")),
            SearchPath::Own | SearchPath::Doubtful => Cow::Borrowed(sql),
        }
    }
}
