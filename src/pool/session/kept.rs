//! What a session knows of the statements that it runs: those that it keeps prepared, what their texts say, and which
//! schemas their names are looked for in.

use crate::pool::param_types::is_unusual;
use crate::retry::Facts;
use postgres::types::{FromSql, Kind, Type};
use postgres::{Row, Statement};
use std::borrow::Cow;
use std::time::{Duration, Instant};

/// A column may have become of another type that takes the same value, or a type of the application's own have changed, which
/// neither side notices: looked at again after this time.
const TYPES_KEPT_FOR: Duration = Duration::from_secs(60);

/// A prepared statement.
#[derive(Clone)]
pub(super) struct Kept {
    pub statement: Statement,
    pub facts: Facts,
    /// When it was prepared, where its types may change.
    looked_up: Option<Instant>,
    has_own_types: bool,
}

impl Kept {
    pub fn new(statement: Statement, facts: Facts) -> Kept {
        let columns = statement.columns().iter().map(|column| column.type_());
        let unusual = statement.params().iter().chain(columns).any(is_unusual);
        let may_change = unusual || !statement.params().is_empty();
        Kept {
            looked_up: may_change.then(Instant::now),
            has_own_types: unusual,
            statement,
            facts,
        }
    }

    pub fn has_own_types(&self) -> bool {
        self.has_own_types
    }

    pub fn is_old(&self) -> bool {
        let old = |at: Instant| at.elapsed() > TYPES_KEPT_FOR;
        self.looked_up.is_some_and(old)
    }
}

/// Whether rows are of the types that they are said to be. The server does not tell when a type of the application's own has
/// changed, and the driver keeps what it has looked up: whoever reads such a row gets an error, on that connection for good.
pub(super) fn are_as_described(rows: &[Row]) -> bool {
    let Some(first) = rows.first() else {
        return true;
    };
    let columns = first.columns().iter().map(|column| column.type_());
    columns
        .enumerate()
        .filter(|(_, ty)| is_unusual(ty))
        .all(|(at, ty)| {
            rows.iter().all(|row| match row.try_get(at) {
                Ok(Some(Raw(value))) => is_of(ty, value),
                _ => true,
            })
        })
}

/// Any value, as it came.
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

/// As far as it can be seen from outside (the binary forms of `array_send`, `record_send` and `enum_send`).
fn is_of(ty: &Type, value: &[u8]) -> bool {
    match ty.kind() {
        Kind::Enum(labels) => labels.iter().any(|label| label.as_bytes() == value),
        Kind::Composite(fields) => number(value, 0) == i32::try_from(fields.len()).ok(),
        Kind::Domain(inner) => is_of(inner, value),
        Kind::Array(inner) if is_unusual(inner) => elements(value).all(|value| is_of(inner, value)),
        _ => true,
    }
}

fn number(value: &[u8], at: usize) -> Option<i32> {
    let bytes = value.get(at..at + 4)?;
    bytes.try_into().ok().map(i32::from_be_bytes)
}

/// Dimensions, flags, the type; for each dimension its length and its first index; then the elements with their lengths.
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

/// The `search_path` of the transaction under way: with another one, the same text may mean other tables.
#[derive(Default)]
pub(super) enum SearchPath {
    /// The session's.
    #[default]
    Own,
    /// A statement has named it: the server is asked before the next.
    Doubtful,
    Set(Box<str>),
}

impl SearchPath {
    /// What is to be known about a text, under this path, is kept by this. No text and no setting holds a NUL.
    pub fn key<'t>(&self, sql: &'t str) -> Cow<'t, str> {
        match self {
            SearchPath::Set(path) => Cow::Owned(format!("{path}\0{sql}")),
            SearchPath::Own | SearchPath::Doubtful => Cow::Borrowed(sql),
        }
    }
}
