//! One statement in a call.

use super::from_row::FromRow;
use super::options::Call;
use super::refusals::{Params, refuse_control, refuse_too_many};
use super::rows::{at_most_one, exactly_one, mapped, scalar};
use super::run::Stop;
use crate::commit::transact;
use crate::error::{Error, Result};
use crate::pool::{Begin, Limits, Pool, Session};
use crate::retry::{Phase, Repeat, Verdict, commits_inside, writes_large_objects};
use postgres::Row;
use postgres::error::SqlState;
use postgres::types::FromSqlOwned;
use std::cell::Cell;
use std::ops::ControlFlow;
use std::panic::Location;

impl Pool {
    /// Runs any one statement and returns its rows. Repeated only when it provably took no effect.
    ///
    /// A warm call costs one round trip: the statement is prepared once per connection. A parameter `$1` takes a Rust value
    /// that fits the type which the server expects there ([`postgres::types::ToSql`]).
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`] when it was sent and its answer lost; else the last attempt's error, in
    /// [`Error::GaveUp`] when there was more than one.
    #[track_caller]
    pub fn query(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>> {
        self.call().query(sql, params)
    }

    /// Runs any one statement and returns its only row; else as [`query`](Pool::query).
    ///
    /// # Errors
    /// As [`query`](Pool::query); [`Error::Misuse`] when there is no row or more than one, and then a write was done all the same.
    #[track_caller]
    pub fn query_one(&self, sql: &str, params: Params<'_>) -> Result<Row> {
        self.call().query_one(sql, params)
    }

    /// Runs any one statement and returns its row, if there is one; else as [`query`](Pool::query).
    ///
    /// # Errors
    /// As [`query`](Pool::query); [`Error::Misuse`] when there is more than one row, and then a write was done all the same.
    #[track_caller]
    pub fn query_opt(&self, sql: &str, params: Params<'_>) -> Result<Option<Row>> {
        self.call().query_opt(sql, params)
    }

    /// Runs any one statement and returns its rows as values; else as [`query`](Pool::query).
    ///
    /// ```no_run
    /// # let pool = millpond::Pool::builder().build().unwrap();
    /// let studios: Vec<(i64, String)> = pool.query_as("SELECT id, name FROM studios", &[])?;
    /// # Ok::<_, millpond::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`query`](Pool::query); [`Error::Database`] if a row does not fit the type, and then a
    /// write was done all the same.
    #[track_caller]
    pub fn query_as<T: FromRow>(&self, sql: &str, params: Params<'_>) -> Result<Vec<T>> {
        self.call().query_as(sql, params)
    }

    /// Runs any one statement and returns the first column of its only row; `Option<T>` takes NULL.
    ///
    /// ```no_run
    /// # let pool = millpond::Pool::builder().build().unwrap();
    /// let count: i64 = pool.query_scalar("SELECT count(*) FROM studios", &[])?;
    /// # Ok::<_, millpond::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`query_one`](Pool::query_one); [`Error::Database`] if the column is of another type,
    /// and then a write was done all the same.
    #[track_caller]
    pub fn query_scalar<T: FromSqlOwned>(&self, sql: &str, params: Params<'_>) -> Result<T> {
        self.call().query_scalar(sql, params)
    }

    /// Runs a statement in a transaction of its own and passes its rows to `each` as they come,
    /// until there are no more or `each` breaks off: for more rows than fit into memory. The
    /// statement's limit covers all of it, including the time that `each` takes.
    ///
    /// It is repeated like [`query`](Pool::query), but only until the first row was passed on: no
    /// row is passed on twice.
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
    /// As [`query`](Pool::query), and what `each` returns; then the statement is rolled back.
    #[track_caller]
    pub fn query_each(
        &self,
        sql: &str,
        params: Params<'_>,
        each: impl FnMut(Row) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        self.call().query_each(sql, params, each)
    }

    /// Runs several statements without parameters, separated by semicolons, in one [transaction](Pool::transaction). Never build
    /// this text from values.
    ///
    /// # Errors
    /// As [`transaction`](Pool::transaction).
    #[track_caller]
    pub fn batch_execute(&self, sql: &str) -> Result<()> {
        self.call().batch_execute(sql)
    }

    /// Runs any one statement and returns the number of rows that it touched; else as [`query`](Pool::query).
    ///
    /// # Errors
    /// As [`query`](Pool::query).
    #[track_caller]
    pub fn execute(&self, sql: &str, params: Params<'_>) -> Result<u64> {
        self.call().execute(sql, params)
    }

    /// Runs a statement that only reads. Repeated also when its answer was lost, and then in a READ ONLY transaction: a write
    /// passed by mistake is refused there and reported as [`Error::OutcomeUnknown`], never done twice.
    ///
    /// # Errors
    /// As [`query`](Pool::query).
    #[track_caller]
    pub fn read(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>> {
        self.call().read(sql, params)
    }
}

impl Call<'_> {
    /// As [`Pool::query`].
    ///
    /// # Errors
    /// As [`Pool::query`].
    #[track_caller]
    pub fn query(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>> {
        refuse_too_many(params)?;
        self.lone(sql, |session, phase, limits| {
            session.query(sql, params, phase, limits)
        })
    }

    /// As [`Pool::query_one`].
    ///
    /// # Errors
    /// As [`Pool::query_one`].
    #[track_caller]
    pub fn query_one(&self, sql: &str, params: Params<'_>) -> Result<Row> {
        exactly_one(self.query(sql, params)?)
    }

    /// As [`Pool::query_opt`].
    ///
    /// # Errors
    /// As [`Pool::query_opt`].
    #[track_caller]
    pub fn query_opt(&self, sql: &str, params: Params<'_>) -> Result<Option<Row>> {
        at_most_one(self.query(sql, params)?)
    }

    /// As [`Pool::query_as`].
    ///
    /// # Errors
    /// As [`Pool::query_as`].
    #[track_caller]
    pub fn query_as<T: FromRow>(&self, sql: &str, params: Params<'_>) -> Result<Vec<T>> {
        mapped(&self.query(sql, params)?)
    }

    /// As [`Pool::query_scalar`].
    ///
    /// # Errors
    /// As [`Pool::query_scalar`].
    #[track_caller]
    pub fn query_scalar<T: FromSqlOwned>(&self, sql: &str, params: Params<'_>) -> Result<T> {
        scalar(self.query(sql, params)?)
    }

    /// As [`Pool::query_each`].
    ///
    /// # Errors
    /// As [`Pool::query_each`].
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

    /// As [`Pool::batch_execute`].
    ///
    /// # Errors
    /// As [`Pool::transaction`].
    #[track_caller]
    pub fn batch_execute(&self, sql: &str) -> Result<()> {
        self.transaction(|tx| tx.batch_execute(sql))
    }

    /// As [`Pool::execute`].
    ///
    /// # Errors
    /// As [`Pool::query`].
    #[track_caller]
    pub fn execute(&self, sql: &str, params: Params<'_>) -> Result<u64> {
        refuse_too_many(params)?;
        self.lone(sql, |session, phase, limits| {
            session.execute(sql, params, phase, limits)
        })
    }

    /// As [`Pool::read`].
    ///
    /// # Errors
    /// As [`Pool::query`].
    #[track_caller]
    pub fn read(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>> {
        // What READ ONLY does not keep from being done twice.
        if commits_inside(sql) || writes_large_objects(sql) {
            return self.query(sql, params);
        }
        refuse_control(sql)?;
        refuse_too_many(params)?;
        let mut lost = false;
        self.run(Location::caller(), |session| {
            let limits = self.limits(session);
            // Where it needs a transaction it is a READ ONLY one: a standby has no others.
            let begin = Begin {
                read_only: true,
                ..self.begin_with_timeout()
            };
            let answer = if lost || self.needs_transaction(session) {
                let limits = self.limits_in_transaction(session);
                transact(self.pool, session, &begin, &limits, |s| {
                    s.query(sql, params, Phase::InTransaction, &limits)
                })
            } else {
                session.query(sql, params, Phase::Statement, &limits)
            };
            answer.map_err(|error| {
                if lost && error.sqlstate() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) {
                    // It writes, and the attempt whose answer was lost may have done so.
                    return Stop::from(Error::OutcomeUnknown {
                        source: Box::new(error),
                    });
                }
                let verdict = error.verdict();
                match verdict.repeat {
                    // A read that was cut off at its deadline has no outcome that anybody could want to know.
                    Repeat::Ambiguous if error.is_timeout() => Stop {
                        verdict: Verdict {
                            repeat: Repeat::Permanent,
                            ..verdict
                        },
                        refused_write: false,
                        ..Stop::from(error)
                    },
                    Repeat::Ambiguous => {
                        lost = true;
                        Stop::from(error.without_effect())
                    }
                    _ => Stop {
                        refused_write: false,
                        ..Stop::from(error)
                    },
                }
            })
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
                // Not for a transaction.
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
