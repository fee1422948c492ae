//! Calls of one statement.

use super::from_row::FromRow;
use super::options::Call;
use super::refusals::{Params, refuse_control, refuse_too_many};
use super::rows::{at_most_one, exactly_one, mapped, scalar};
use super::run::Stop;
use crate::commit::transact;
use crate::error::Result;
use crate::pool::{Limits, Pool, Session};
use crate::retry::{Phase, commits_inside};
use postgres::Row;
use postgres::types::FromSqlOwned;
use std::cell::Cell;
use std::ops::ControlFlow;
use std::panic::Location;

impl Pool {
    /// Runs one statement of any kind and returns its rows. It is retried only if it is certain
    /// that it had no effect.
    ///
    /// A statement costs one round trip, and one more when the pool first meets its text. A
    /// parameter `$1` takes a Rust value that fits the type that the server expects there
    /// ([`postgres::types::ToSql`]).
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`](crate::Error::OutcomeUnknown) if the statement was sent and its
    /// answer was lost; else the last attempt's error, within
    /// [`Error::GaveUp`](crate::Error::GaveUp) if there was more than one attempt.
    #[track_caller]
    pub fn query(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>> {
        self.call().query(sql, params)
    }

    /// Runs one statement of any kind and returns its only row. Otherwise like
    /// [`query`](Pool::query).
    ///
    /// # Errors
    /// As for [`query`](Pool::query); [`Error::Misuse`](crate::Error::Misuse) if there is no row,
    /// or more than one. A write has been done in that case.
    #[track_caller]
    pub fn query_one(&self, sql: &str, params: Params<'_>) -> Result<Row> {
        self.call().query_one(sql, params)
    }

    /// Runs one statement of any kind and returns its row, if there is one. Otherwise like
    /// [`query`](Pool::query).
    ///
    /// # Errors
    /// As for [`query`](Pool::query); [`Error::Misuse`](crate::Error::Misuse) if there is more than
    /// one row. A write has been done in that case.
    #[track_caller]
    pub fn query_opt(&self, sql: &str, params: Params<'_>) -> Result<Option<Row>> {
        self.call().query_opt(sql, params)
    }

    /// Runs one statement of any kind and converts its rows to values of type `T`. Otherwise like
    /// [`query`](Pool::query).
    ///
    /// ```no_run
    /// # let pool = millpond::Pool::builder().build().unwrap();
    /// let studios: Vec<(i64, String)> = pool.query_as("SELECT id, name FROM studios", &[])?;
    /// # Ok::<_, millpond::Error>(())
    /// ```
    ///
    /// # Errors
    /// As for [`query`](Pool::query); [`Error::Database`](crate::Error::Database) if a row does not
    /// fit the type. A write has been done in that case.
    #[track_caller]
    pub fn query_as<T: FromRow>(&self, sql: &str, params: Params<'_>) -> Result<Vec<T>> {
        self.call().query_as(sql, params)
    }

    /// Runs one statement of any kind and returns the first column of its only row. `Option<T>`
    /// accepts NULL.
    ///
    /// ```no_run
    /// # let pool = millpond::Pool::builder().build().unwrap();
    /// let count: i64 = pool.query_scalar("SELECT count(*) FROM studios", &[])?;
    /// # Ok::<_, millpond::Error>(())
    /// ```
    ///
    /// # Errors
    /// As for [`query_one`](Pool::query_one); [`Error::Database`](crate::Error::Database) if the
    /// column has another type. A write has been done in that case.
    #[track_caller]
    pub fn query_scalar<T: FromSqlOwned>(&self, sql: &str, params: Params<'_>) -> Result<T> {
        self.call().query_scalar(sql, params)
    }

    /// Runs a statement in its own transaction and passes its rows to `each` as they arrive, until
    /// there are no more or `each` breaks.
    ///
    /// Use it for results that do not fit into memory. The statement's limit covers the whole call,
    /// including the time that `each` takes. The statement is retried like [`query`](Pool::query),
    /// but only until the first row was passed on: no row is passed on twice.
    ///
    /// ```no_run
    /// use std::ops::ControlFlow;
    /// # let pool = millpond::Pool::builder().build().unwrap();
    /// let mut total = 0;
    /// pool.query_each("SELECT cents FROM invoices", &[], |row| {
    ///     total += row.try_get::<_, i64>(0)?;
    ///     Ok(ControlFlow::Continue(()))
    /// })?;
    /// # Ok::<_, millpond::Error>(())
    /// ```
    ///
    /// # Errors
    /// As for [`query`](Pool::query); an error of `each` is returned as it is, and the statement is
    /// rolled back.
    #[track_caller]
    pub fn query_each(
        &self,
        sql: &str,
        params: Params<'_>,
        each: impl FnMut(Row) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        self.call().query_each(sql, params, each)
    }

    /// Runs several statements without parameters, separated by semicolons, in one
    /// [transaction](Pool::transaction). Never build this text from values.
    ///
    /// # Errors
    /// As for [`transaction`](Pool::transaction).
    #[track_caller]
    pub fn batch_execute(&self, sql: &str) -> Result<()> {
        self.call().batch_execute(sql)
    }

    /// Runs one statement of any kind and returns the number of rows that it affected. Otherwise
    /// like [`query`](Pool::query).
    ///
    /// # Errors
    /// As for [`query`](Pool::query).
    #[track_caller]
    pub fn execute(&self, sql: &str, params: Params<'_>) -> Result<u64> {
        self.call().execute(sql, params)
    }
}

impl Call<'_> {
    /// Same as [`Pool::query`], with this call's options.
    ///
    /// # Errors
    /// As for [`Pool::query`].
    #[track_caller]
    pub fn query(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>> {
        refuse_too_many(params)?;
        self.lone(sql, |session, phase, limits| {
            session.query(sql, params, phase, limits)
        })
    }

    /// Same as [`Pool::query_one`], with this call's options.
    ///
    /// # Errors
    /// As for [`Pool::query_one`].
    #[track_caller]
    pub fn query_one(&self, sql: &str, params: Params<'_>) -> Result<Row> {
        exactly_one(self.query(sql, params)?)
    }

    /// Same as [`Pool::query_opt`], with this call's options.
    ///
    /// # Errors
    /// As for [`Pool::query_opt`].
    #[track_caller]
    pub fn query_opt(&self, sql: &str, params: Params<'_>) -> Result<Option<Row>> {
        at_most_one(self.query(sql, params)?)
    }

    /// Same as [`Pool::query_as`], with this call's options.
    ///
    /// # Errors
    /// As for [`Pool::query_as`].
    #[track_caller]
    pub fn query_as<T: FromRow>(&self, sql: &str, params: Params<'_>) -> Result<Vec<T>> {
        mapped(&self.query(sql, params)?)
    }

    /// Same as [`Pool::query_scalar`], with this call's options.
    ///
    /// # Errors
    /// As for [`Pool::query_scalar`].
    #[track_caller]
    pub fn query_scalar<T: FromSqlOwned>(&self, sql: &str, params: Params<'_>) -> Result<T> {
        scalar(self.query(sql, params)?)
    }

    /// Same as [`Pool::query_each`], with this call's options.
    ///
    /// # Errors
    /// As for [`Pool::query_each`].
    #[track_caller]
    pub fn query_each(
        &self,
        sql: &str,
        params: Params<'_>,
        mut each: impl FnMut(Row) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let passed_on = Cell::new(false);
        self.transaction_until(&passed_on, |tx| {
            tx.query_each(sql, params, |row| {
                passed_on.set(true);
                each(row)
            })
        })
    }

    /// Same as [`Pool::batch_execute`], with this call's options.
    ///
    /// # Errors
    /// As for [`Pool::transaction`].
    #[track_caller]
    pub fn batch_execute(&self, sql: &str) -> Result<()> {
        self.transaction(|tx| tx.batch_execute(sql))
    }

    /// Same as [`Pool::execute`], with this call's options.
    ///
    /// # Errors
    /// As for [`Pool::query`].
    #[track_caller]
    pub fn execute(&self, sql: &str, params: Params<'_>) -> Result<u64> {
        refuse_too_many(params)?;
        self.lone(sql, |session, phase, limits| {
            session.execute(sql, params, phase, limits)
        })
    }

    #[track_caller]
    fn lone<T>(
        &self,
        sql: &str,
        work: impl Fn(&mut Session, Phase, &Limits) -> Result<T>,
    ) -> Result<T> {
        refuse_control(sql)?;
        let inside = commits_inside(sql);
        self.run(Location::caller(), |session| {
            let limits = self.limits(session);
            let result = if inside {
                // It cannot run inside a transaction.
                work(session, Phase::CommitsInside, &limits)
            } else if self.needs_transaction(session) {
                let limits = self.limits_in_transaction(session);
                let begin = self.begin_with_timeout();
                transact(self.pool, session, &begin, &limits, |s| {
                    work(s, Phase::InTransaction, &limits)
                })
            } else {
                work(session, Phase::Statement, &limits)
            };
            result.map_err(Stop::from)
        })
    }
}
