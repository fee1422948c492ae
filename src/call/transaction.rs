//! Transactions: the closure runs, the transaction commits, and all of it is retried if that is
//! safe.
//!
//! A transaction takes one request to begin, at most, and one to commit. A failed statement aborts
//! PostgreSQL's transaction. If the closure swallows that error, the commit still fails (see
//! `Session::commit`), and the caller gets the swallowed error. If the answer to COMMIT is lost,
//! `commit` finds out whether it took effect. The outcome is unknown only if that is impossible,
//! and then nothing is retried.

use super::from_row::FromRow;
use super::options::Call;
use super::raised::Raised;
use super::refusals::{Params, refuse_copy, refuse_too_many, refuse_unless_copy};
use super::rows::{at_most_one, exactly_one, mapped, scalar};
use super::run::Stop;
use crate::commit::transact;
use crate::error::{Chain, Error, Result};
use crate::pool::{Limits, Pool, Session};
use crate::retry::{Phase, Repeat, Verdict, controls_transaction};
use postgres::Row;
use postgres::error::SqlState;
use postgres::types::{FromSqlOwned, ToSql};
use std::cell::Cell;
use std::ops::ControlFlow;
use std::panic::Location;

impl Pool {
    /// Runs `work` in a transaction and commits it. An error that the closure returns rolls it
    /// back.
    ///
    /// The closure may run more than once: if the transaction was rolled back for a reason that may
    /// pass (a deadlock, a serialization failure, a lost connection), all of it is retried. So
    /// everything that the closure does outside the database must tolerate repetition.
    ///
    /// # Errors
    /// The closure's error; the database's error, as for [`query`](Pool::query);
    /// [`Error::TransactionAborted`] if the closure returned `Ok` although a statement had failed;
    /// [`Error::OutcomeUnknown`] only if the answer to COMMIT was lost and the server cannot tell
    /// what became of it.
    #[track_caller]
    pub fn transaction<T, E: From<Error> + 'static>(
        &self,
        work: impl FnMut(&mut Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.call().transaction(work)
    }
}

impl Call<'_> {
    /// Same as [`Pool::transaction`], with this call's options. The call's timeout applies to each
    /// statement.
    ///
    /// # Errors
    /// As for [`Pool::transaction`].
    #[track_caller]
    pub fn transaction<T, E: From<Error> + 'static>(
        &self,
        work: impl FnMut(&mut Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.transaction_until(&Cell::new(false), work)
    }

    /// Runs a transaction that is retried only until the closure sets `settled`: what the closure
    /// has done by then must not be done again.
    #[track_caller]
    pub(super) fn transaction_until<T, E: From<Error> + 'static>(
        &self,
        settled: &Cell<bool>,
        mut work: impl FnMut(&mut Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut raised = Raised::none();
        let done = self.run(Location::caller(), |session| {
            let (begin, limits) = (
                self.begin_with_timeout(),
                self.limits_in_transaction(session),
            );
            let mut ended = Ended::default();
            let done = transact(self.pool, session, &begin, &limits, |session| {
                let run = Run::of(&mut work, &mut raised, session, limits, false);
                ended = run.ended;
                run.result
            });
            done.map_err(|error| match Self::judge(error, ended) {
                stop if settled.get() => stop.for_good(),
                stop => stop,
            })
        });
        done.map_err(|error| raised.give_back(error))
    }

    /// Decides whether a failed attempt may be retried. The verdict on the failed statement counts,
    /// even if the closure turned it into an error of its own; but misuse remains misuse, and a
    /// transaction that the closure itself ended is not retried. An error that none of the
    /// transaction's statements caused comes from another call, which has made its own retries.
    pub(super) fn judge(error: Error, ended: Ended) -> Stop {
        let verdict = error.verdict();
        let failure = match ended {
            Ended::ByStatement(failure) if !matches!(error, Error::Misuse(_)) => failure,
            Ended::ByClosure => return Stop::from(error).for_good(),
            _ => return Stop::from(error),
        };
        let repeat = match (verdict.repeat, failure.verdict.repeat) {
            (Repeat::Ambiguous, _) => Repeat::Ambiguous,
            (_, repeat) => repeat,
        };
        Stop {
            refused_write: failure.sqlstate == Some(SqlState::READ_ONLY_SQL_TRANSACTION),
            sqlstate: failure.sqlstate,
            error,
            verdict: Verdict {
                repeat,
                session: failure.verdict.session,
            },
        }
    }
}

/// The result of one run of a closure.
pub(super) struct Run<T> {
    pub result: Result<T>,
    pub ended: Ended,
    pub answer: Option<Vec<u8>>,
}

/// What made a closure fail, if it did.
#[derive(Default)]
pub(super) enum Ended {
    /// It did not fail, or did not run.
    #[default]
    Well,
    ByStatement(Failure),
    /// It returned its own error.
    ByClosure,
}

impl<T> Run<T> {
    pub fn of<E: From<Error> + 'static>(
        work: &mut impl FnMut(&mut Transaction<'_>) -> Result<T, E>,
        raised: &mut Raised<E>,
        session: &mut Session,
        limits: Limits,
        keyed: bool,
    ) -> Run<T> {
        let mut tx = Transaction {
            session,
            limits,
            failure: None,
            savepoints: 0,
            unwound: false,
            keyed,
            answer: None,
        };
        let result = work(&mut tx);
        let Transaction {
            failure,
            answer,
            unwound,
            ..
        } = tx;
        let result = result.map_err(|error| {
            raised.stand_in(error, || match &failure {
                Some(failure) => failure.text.clone(),
                None => "the closure returned its own error".into(),
            })
        });
        let result = match (result, &failure) {
            // A statement failed and the closure continued: none of this can be committed.
            (Ok(_), Some(Failure { text, sqlstate, .. })) => Err(Error::TransactionAborted {
                cause: text.clone(),
                sqlstate: sqlstate.clone(),
            }),
            (Ok(_), None) if unwound => Err(Error::TransactionAborted {
                cause: "a closure inside a savepoint panicked".into(),
                sqlstate: None,
            }),
            (result, _) => result,
        };
        let ended = match failure {
            Some(failure) => Ended::ByStatement(failure),
            None if result.is_err() => Ended::ByClosure,
            None => Ended::Well,
        };
        Run {
            result,
            ended,
            answer,
        }
    }
}

/// The first statement that failed and was not undone by a savepoint.
pub(super) struct Failure {
    verdict: Verdict,
    sqlstate: Option<SqlState>,
    /// For the caller, if the closure swallows the error itself.
    text: Box<str>,
}

/// A running transaction. The closure's result decides whether it is committed or rolled back;
/// COMMIT and ROLLBACK as statements are refused.
pub struct Transaction<'s> {
    session: &'s mut Session,
    limits: Limits,
    failure: Option<Failure>,
    savepoints: u32,
    /// A closure inside a savepoint panicked.
    unwound: bool,
    keyed: bool,
    answer: Option<Vec<u8>>,
}

impl std::fmt::Debug for Transaction<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transaction")
            .field("connection", &self.session.id())
            .finish()
    }
}

impl Transaction<'_> {
    /// Runs a statement and returns its rows.
    ///
    /// # Errors
    /// The database's error. The transaction is then aborted, unless a savepoint encloses the
    /// statement.
    pub fn query(&mut self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        self.run_one(sql, params, |session, limits| {
            session.query(sql, params, Phase::InTransaction, limits)
        })
    }

    /// Runs a statement and returns its only row.
    ///
    /// # Errors
    /// As for [`query`](Self::query); [`Error::Misuse`] if there is no row, or more than one.
    pub fn query_one(&mut self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Row> {
        exactly_one(self.query(sql, params)?)
    }

    /// Runs a statement and returns its row, if there is one.
    ///
    /// # Errors
    /// As for [`query`](Self::query); [`Error::Misuse`] if there is more than one row.
    pub fn query_opt(&mut self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Option<Row>> {
        at_most_one(self.query(sql, params)?)
    }

    /// Runs a statement and converts its rows to values of type `T`.
    ///
    /// # Errors
    /// As for [`query`](Self::query); [`Error::Database`] if a row does not fit the type.
    pub fn query_as<T: FromRow>(
        &mut self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<T>> {
        mapped(&self.query(sql, params)?)
    }

    /// Runs a statement and returns the first column of its only row. `Option<T>` accepts NULL.
    ///
    /// # Errors
    /// As for [`query_one`](Self::query_one); [`Error::Database`] if the column has another type.
    pub fn query_scalar<T: FromSqlOwned>(
        &mut self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<T> {
        scalar(self.query(sql, params)?)
    }

    /// Runs a statement and returns the number of rows that it affected.
    ///
    /// # Errors
    /// As for [`query`](Self::query).
    pub fn execute(&mut self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<u64> {
        self.run_one(sql, params, |session, limits| {
            session.execute(sql, params, Phase::InTransaction, limits)
        })
    }

    /// Runs a statement and passes its rows to `each` as they arrive, until there are no more or
    /// `each` breaks.
    ///
    /// Use it for results that do not fit into memory. The statement's limit covers the whole call,
    /// including the time that `each` takes.
    ///
    /// # Errors
    /// As for [`query`](Self::query); an error of `each` is returned as it is, and does not by
    /// itself fail the transaction. If `each` breaks, what the statement has done until then stays.
    pub fn query_each(
        &mut self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
        mut each: impl FnMut(Row) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let mut refused = None;
        let each = |row| {
            each(row).unwrap_or_else(|error| {
                refused = Some(error);
                ControlFlow::Break(())
            })
        };
        self.run_one(sql, params, |session, limits| {
            session.query_each(sql, params, Phase::InTransaction, limits, each)
        })?;
        refused.map_or(Ok(()), Err)
    }

    /// Runs a `COPY .. FROM STDIN` with the data that `fill` writes, and returns the number of
    /// rows. The statement's limit covers the whole call.
    ///
    /// # Errors
    /// As for [`query`](Self::query), and [`Error::Misuse`] for any other statement. An error of
    /// `fill` is returned as it is; it fails the COPY, and with it the transaction.
    pub fn copy_in(
        &mut self,
        sql: &str,
        fill: impl FnOnce(&mut dyn std::io::Write) -> Result<()>,
    ) -> Result<u64> {
        refuse_unless_copy(sql, "STDIN").map_err(|error| self.note(error))?;
        self.run(sql, |session, limits| {
            session.copy_in(sql, Phase::InTransaction, limits, fill)
        })
    }

    /// Runs a `COPY .. TO STDOUT` and lets `take` read the data. The statement's limit covers the
    /// whole call. Data that `take` leaves unread are skipped; if `take` fails, the connection is
    /// closed instead.
    ///
    /// ```no_run
    /// # let pool = millpond::Pool::builder().build().unwrap();
    /// pool.transaction(|tx| {
    ///     let mut file = std::fs::File::create("studios.csv")?;
    ///     tx.copy_out("COPY studios TO STDOUT (FORMAT csv)", |rows| {
    ///         std::io::copy(rows, &mut file)?;
    ///         Ok(())
    ///     })
    /// })?;
    /// # Ok::<_, millpond::Error>(())
    /// ```
    ///
    /// # Errors
    /// As for [`query`](Self::query), and [`Error::Misuse`] for any other statement. An error of
    /// `take` is returned as it is; since the connection is closed, it fails the transaction, also
    /// inside a savepoint.
    pub fn copy_out<T>(
        &mut self,
        sql: &str,
        take: impl FnOnce(&mut dyn std::io::BufRead) -> Result<T>,
    ) -> Result<T> {
        refuse_unless_copy(sql, "STDOUT").map_err(|error| self.note(error))?;
        self.run(sql, |session, limits| {
            session.copy_out(sql, Phase::InTransaction, limits, take)
        })
    }

    /// Runs several statements without parameters, separated by semicolons. Never build this text
    /// from values.
    ///
    /// # Errors
    /// As for [`query`](Self::query).
    pub fn batch_execute(&mut self, sql: &str) -> Result<()> {
        self.run(sql, |session, limits| {
            session.batch_execute(sql, Phase::InTransaction, limits)
        })
    }

    /// Runs `work` inside a savepoint. If it returns an error, its effects are undone and the
    /// transaction continues.
    ///
    /// # Errors
    /// The closure's error, and the database's.
    pub fn savepoint<T, E: From<Error>>(
        &mut self,
        work: impl FnOnce(&mut Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.savepoints += 1;
        let name = format!("millpond_{}", self.savepoints);
        self.control(&format!("SAVEPOINT {name}"))?;
        let failed_before = self.failure.is_some();
        // If the closure panics, its effects are incomplete and not undone.
        self.unwound = true;
        let result = work(self);
        self.unwound = false;
        let failed_inside = self.failure.is_some() && !failed_before;
        if result.is_ok() && !failed_inside {
            self.control(&format!("RELEASE SAVEPOINT {name}"))?;
            return result;
        }
        let undone = self.control(&format!("ROLLBACK TO SAVEPOINT {name}"));
        match (result, undone) {
            // A failed rollback never hides the first error.
            (Err(first), Err(_)) => Err(first),
            (Ok(_), Err(trouble)) => Err(trouble.into()),
            (result, Ok(())) => {
                if failed_inside {
                    self.failure = None;
                }
                match result {
                    Ok(_) => {
                        let why = "a statement inside the savepoint failed and was undone";
                        Err(Error::Misuse(why).into())
                    }
                    error => error,
                }
            }
        }
    }

    /// Stores an answer with the key, for later calls with the same key, in place of one that was
    /// stored before. It is committed with the transaction.
    ///
    /// # Errors
    /// [`Error::Misuse`] in a transaction without a key.
    pub fn keep_answer(&mut self, answer: impl Into<Vec<u8>>) -> Result<()> {
        if !self.keyed {
            return Err(Error::Misuse(
                "an answer is stored with a key, and this transaction has none",
            ));
        }
        self.answer = Some(answer.into());
        Ok(())
    }

    fn run<T>(
        &mut self,
        sql: &str,
        work: impl FnOnce(&mut Session, &Limits) -> Result<T>,
    ) -> Result<T> {
        if controls_transaction(sql) {
            return Err(self.note(Error::Misuse(
                "a statement cannot end this transaction; the closure's result does",
            )));
        }
        work(self.session, &self.limits).map_err(|error| self.note(error))
    }

    /// Runs a statement that returns rows, or a count of them.
    fn run_one<T>(
        &mut self,
        sql: &str,
        params: Params<'_>,
        work: impl FnOnce(&mut Session, &Limits) -> Result<T>,
    ) -> Result<T> {
        let refused = refuse_copy(sql).and_then(|()| refuse_too_many(params));
        refused.map_err(|error| self.note(error))?;
        self.run(sql, work)
    }

    /// Runs a statement that the pool adds around the closure's. Its text contains only words and
    /// integers of the pool's own.
    fn control(&mut self, sql: &str) -> Result<()> {
        let limits = self.limits;
        self.session
            .batch_execute(sql, Phase::InTransaction, &limits)
            .map_err(|error| self.note(error))
    }

    fn note(&mut self, error: Error) -> Error {
        if self.failure.is_none() {
            self.failure = Some(Failure {
                verdict: error.verdict(),
                sqlstate: error.sqlstate().cloned(),
                text: Chain(&error).to_string().into(),
            });
        }
        error
    }
}
