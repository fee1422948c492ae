//! Conversion of rows to the application's own types.

use postgres::Row;
use postgres::types::FromSqlOwned;

/// A type that can be built from a row.
///
/// It is implemented for tuples of up to twelve values. They take the row's first columns in order,
/// and ignore any further columns. Implement it by hand for types of your own:
///
/// ```
/// use millpond::FromRow;
/// use millpond::postgres::Row;
///
/// struct Studio {
///     id: i64,
///     name: String,
/// }
///
/// impl FromRow for Studio {
///     fn from_row(row: &Row) -> Result<Studio, millpond::postgres::Error> {
///         Ok(Studio {
///             id: row.try_get("id")?,
///             name: row.try_get("name")?,
///         })
///     }
/// }
///
/// # fn main() {}
/// fn studios(pool: &millpond::Pool) -> millpond::Result<Vec<Studio>> {
///     pool.query_as("SELECT id, name FROM studios", &[])
/// }
/// ```
pub trait FromRow: Sized {
    /// Builds a value from a row. Use [`Row::try_get`], which does not panic.
    ///
    /// # Errors
    /// If a column is missing, or has another type.
    fn from_row(row: &Row) -> Result<Self, postgres::Error>;
}

macro_rules! tuples {
    ($($name:ident)+) => {
        tuples!(@one [] $($name)+);
    };
    (@one [$($done:ident)*]) => {};
    (@one [$($done:ident)*] $next:ident $($rest:ident)*) => {
        tuples!(@impl $($done)* $next);
        tuples!(@one [$($done)* $next] $($rest)*);
    };
    (@impl $($name:ident)+) => {
        impl<$($name: FromSqlOwned),+> FromRow for ($($name,)+) {
            fn from_row(row: &Row) -> Result<Self, postgres::Error> {
                let mut columns = 0..;
                Ok(($({
                    let column: usize = columns.next().unwrap_or(usize::MAX);
                    row.try_get::<_, $name>(column)?
                },)+))
            }
        }
    };
}

tuples!(A B C D E F G H I J K L);
