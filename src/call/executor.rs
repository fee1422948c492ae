//! One trait for running statements, inside and outside a transaction.

use super::from_row::FromRow;
use super::options::Call;
use super::refusals::Params;
use super::rows::{at_most_one, exactly_one, mapped, scalar};
use super::transaction::Transaction;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::pool::{DetachedConnection, Pool, PooledConnection};
use postgres::Row;
use postgres::fallible_iterator::FallibleIterator;
use postgres::types::FromSqlOwned;
use std::ops::ControlFlow;

/// Runs statements. Implemented by [`Pool`], [`Call`], [`Transaction`], [`PooledConnection`] and
/// [`DetachedConnection`], and by the driver's own client and transaction.
///
/// A function that takes an executor can be called inside and outside a transaction. Whether its
/// statements are retried, and which deadline applies, depends on the type that is passed: see the
/// methods of the same names there.
///
/// ```no_run
/// use millpond::{Executor, Pool, Result};
///
/// fn book(db: &mut impl Executor, studio: i64) -> Result<i64> {
///     db.query_scalar("INSERT INTO reservations (studio_id) VALUES ($1) RETURNING id", &[&studio])
/// }
///
/// # fn main() -> Result<()> {
/// # let mut pool = Pool::builder().build().unwrap();
/// let alone = book(&mut pool, 1)?;
/// let together = pool.transaction(|tx| {
///     book(tx, 2)?;
///     book(tx, 3)
/// })?;
/// let on_a_client = book(&mut *pool.get()?, 4)?;
/// # Ok(())
/// # }
/// ```
///
/// The trait is dyn compatible: `&mut dyn Executor` runs everything except `query_as` and
/// `query_scalar`.
pub trait Executor {
    /// Runs a statement and returns its rows.
    ///
    /// # Errors
    /// As for the method of the same name on the underlying type.
    #[track_caller]
    fn query(&mut self, sql: &str, params: Params<'_>) -> Result<Vec<Row>>;

    /// Runs a statement and returns the number of rows that it affected.
    ///
    /// # Errors
    /// As for the method of the same name on the underlying type.
    #[track_caller]
    fn execute(&mut self, sql: &str, params: Params<'_>) -> Result<u64>;

    /// Runs several statements without parameters, separated by semicolons. Never build this text
    /// from values.
    ///
    /// # Errors
    /// As for the method of the same name on the underlying type.
    #[track_caller]
    fn batch_execute(&mut self, sql: &str) -> Result<()>;

    /// Runs a statement and passes its rows to `each` as they arrive, until there are no more or
    /// `each` breaks.
    ///
    /// # Errors
    /// As for the method of the same name on the underlying type; an error of `each` is returned as
    /// it is.
    #[track_caller]
    fn query_each(
        &mut self,
        sql: &str,
        params: Params<'_>,
        each: &mut dyn FnMut(Row) -> Result<ControlFlow<()>>,
    ) -> Result<()>;

    /// Runs a statement and returns its only row.
    ///
    /// # Errors
    /// As for [`query`](Self::query); [`Error::Misuse`] if there is no row, or more than one.
    #[track_caller]
    fn query_one(&mut self, sql: &str, params: Params<'_>) -> Result<Row> {
        exactly_one(self.query(sql, params)?)
    }

    /// Runs a statement and returns its row, if there is one.
    ///
    /// # Errors
    /// As for [`query`](Self::query); [`Error::Misuse`] if there is more than one row.
    #[track_caller]
    fn query_opt(&mut self, sql: &str, params: Params<'_>) -> Result<Option<Row>> {
        at_most_one(self.query(sql, params)?)
    }

    /// Runs a statement and converts its rows to values of type `T`.
    ///
    /// # Errors
    /// As for [`query`](Self::query); [`Error::Database`] if a row does not fit the type.
    #[track_caller]
    fn query_as<T: FromRow>(&mut self, sql: &str, params: Params<'_>) -> Result<Vec<T>>
    where
        Self: Sized,
    {
        mapped(&self.query(sql, params)?)
    }

    /// Runs a statement and returns the first column of its only row. `Option<T>` accepts NULL.
    ///
    /// # Errors
    /// As for [`query_one`](Self::query_one); [`Error::Database`] if the column has another type.
    #[track_caller]
    fn query_scalar<T: FromSqlOwned>(&mut self, sql: &str, params: Params<'_>) -> Result<T>
    where
        Self: Sized,
    {
        scalar(self.query(sql, params)?)
    }
}

/// For types that have methods of these names.
macro_rules! by_own_methods {
    ($($type:ty),+) => {$(
        impl Executor for $type {
            #[track_caller]
            fn query(&mut self, sql: &str, params: Params<'_>) -> Result<Vec<Row>> {
                <$type>::query(self, sql, params)
            }

            #[track_caller]
            fn execute(&mut self, sql: &str, params: Params<'_>) -> Result<u64> {
                <$type>::execute(self, sql, params)
            }

            #[track_caller]
            fn batch_execute(&mut self, sql: &str) -> Result<()> {
                <$type>::batch_execute(self, sql)
            }

            #[track_caller]
            fn query_each(
                &mut self,
                sql: &str,
                params: Params<'_>,
                each: &mut dyn FnMut(Row) -> Result<ControlFlow<()>>,
            ) -> Result<()> {
                <$type>::query_each(self, sql, params, each)
            }
        }
    )+};
}

by_own_methods!(Pool, Call<'_>, Transaction<'_>);

/// For the driver's own types.
macro_rules! by_the_driver {
    ($($type:ty),+) => {$(
        impl Executor for $type {
            fn query(&mut self, sql: &str, params: Params<'_>) -> Result<Vec<Row>> {
                Ok(<$type>::query(self, sql, params)?)
            }

            fn execute(&mut self, sql: &str, params: Params<'_>) -> Result<u64> {
                Ok(<$type>::execute(self, sql, params)?)
            }

            fn batch_execute(&mut self, sql: &str) -> Result<()> {
                Ok(<$type>::batch_execute(self, sql)?)
            }

            fn query_each(
                &mut self,
                sql: &str,
                params: Params<'_>,
                each: &mut dyn FnMut(Row) -> Result<ControlFlow<()>>,
            ) -> Result<()> {
                let mut rows = self.query_raw(sql, params.iter().copied())?;
                while let Some(row) = rows.next()? {
                    if each(row)?.is_break() {
                        break;
                    }
                }
                Ok(())
            }
        }
    )+};
}

by_the_driver!(postgres::Client, postgres::Transaction<'_>);

/// For references to an executor, such as `&mut dyn Executor`, and for types that dereference to
/// one.
macro_rules! by_what_is_behind {
    ($([$($generics:tt)*] $type:ty),+) => {$(
        impl<$($generics)*> Executor for $type {
            #[track_caller]
            fn query(&mut self, sql: &str, params: Params<'_>) -> Result<Vec<Row>> {
                Executor::query(&mut **self, sql, params)
            }

            #[track_caller]
            fn execute(&mut self, sql: &str, params: Params<'_>) -> Result<u64> {
                Executor::execute(&mut **self, sql, params)
            }

            #[track_caller]
            fn batch_execute(&mut self, sql: &str) -> Result<()> {
                Executor::batch_execute(&mut **self, sql)
            }

            #[track_caller]
            fn query_each(
                &mut self,
                sql: &str,
                params: Params<'_>,
                each: &mut dyn FnMut(Row) -> Result<ControlFlow<()>>,
            ) -> Result<()> {
                Executor::query_each(&mut **self, sql, params, each)
            }
        }
    )+};
}

by_what_is_behind!(
    [E: Executor + ?Sized] &mut E,
    [] PooledConnection,
    [] DetachedConnection
);
