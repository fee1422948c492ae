//! Transactions with a key: each key is done once, however often it is requested.

use super::ledger_upkeep::keep_swept;
use super::options::Call;
use super::raised::Raised;
use super::transaction::{Ended, Run, Transaction};
use crate::commit::{
    Claimed, Key, Ledger, LostCommit, NOT_OURS, Outcome, roll_back_after, wait_for_standbys,
};
use crate::error::{Error, Result};
use crate::pool::{Begin, Limits, Pool, Session};
use crate::retry::Repeat;
use postgres::error::SqlState;
use postgres::types::ToSql;
use std::panic::Location;
use std::time::{Duration, Instant};

/// The result of a call with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keyed<T, A = Option<Vec<u8>>> {
    /// This call did it.
    Done(T),
    /// Another call with the same key did it before. Contains the answer that was stored with the
    /// key: bytes, or `None` if none was stored; for [`Pool::execute_with_key`], the number of
    /// rows.
    AlreadyDone(A),
}

const NOT_A_COUNT: Error =
    Error::Misuse("the key was used before by a call that stored no number of rows");

impl Pool {
    /// Runs `work` in a transaction that is done once for each `key`.
    ///
    /// If the key was done before, the closure does not run, and the answer that was stored then
    /// ([`Transaction::keep_answer`]) is returned. Otherwise this works like
    /// [`transaction`](Pool::transaction). The write and the key are committed or rolled back
    /// together: a call that fails leaves the key free. The outcome of a lost COMMIT can always be
    /// found out once the database is reachable again, even after a crash. A call that ended as
    /// [`Error::OutcomeUnknown`] may be repeated with its key.
    ///
    /// A key is any text. The application decides which writes are the same, and should include the
    /// name of the operation in the key. Keys are kept for
    /// [`ledger_ttl`](crate::pool::Builder::ledger_ttl), in the table that
    /// [`create_ledger`](Pool::create_ledger) creates. While another transaction holds the key,
    /// this one waits for it, at most for the statement timeout.
    ///
    /// ```no_run
    /// use millpond::{Error, Keyed};
    ///
    /// # let pool = millpond::Pool::builder().build().unwrap();
    /// let paid = pool.transaction_with_key("pay 7f3a", |tx| {
    ///     let rows = tx.execute("UPDATE invoices SET paid_at = now() WHERE id = 1", &[])?;
    ///     tx.keep_answer(format!("{rows} paid"))?;
    ///     Ok::<_, Error>(rows)
    /// })?;
    /// match paid {
    ///     Keyed::Done(rows) => println!("{rows} paid"),
    ///     Keyed::AlreadyDone(Some(answer)) => println!("{}", String::from_utf8_lossy(&answer)),
    ///     Keyed::AlreadyDone(None) => println!("paid before"),
    /// }
    /// # Ok::<_, Error>(())
    /// ```
    ///
    /// # Errors
    /// As for [`transaction`](Pool::transaction); [`Error::Misuse`] if the table does not exist, or
    /// is not a ledger.
    #[track_caller]
    pub fn transaction_with_key<T, E: From<Error> + 'static>(
        &self,
        key: &str,
        work: impl FnMut(&mut Transaction<'_>) -> Result<T, E>,
    ) -> Result<Keyed<T>, E> {
        self.call().transaction_with_key(key, work)
    }

    /// Runs one statement as a [transaction with a key](Pool::transaction_with_key). The number of
    /// rows that it affected is stored, and returned to later calls with the same key.
    ///
    /// # Errors
    /// As for [`transaction_with_key`](Pool::transaction_with_key).
    #[track_caller]
    pub fn execute_with_key(
        &self,
        key: &str,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Keyed<u64, u64>> {
        self.call().execute_with_key(key, sql, params)
    }
}

impl Call<'_> {
    /// Same as [`Pool::transaction_with_key`], with this call's options.
    ///
    /// # Errors
    /// As for [`Pool::transaction_with_key`].
    #[track_caller]
    pub fn transaction_with_key<T, E: From<Error> + 'static>(
        &self,
        key: &str,
        mut work: impl FnMut(&mut Transaction<'_>) -> Result<T, E>,
    ) -> Result<Keyed<T>, E> {
        if self.begin_with_timeout().read_only {
            let why = "a transaction with a key writes, and cannot be read only";
            return Err(Error::Misuse(why).into());
        }
        let mut raised = Raised::none();
        let ledger = &self.pool.ledger();
        keep_swept(&self.pool.inner);
        let key = Key::of(key);
        // Measured from here, so that the time spent waiting for a connection counts as well.
        let until = self.key_wait.map(|wait| Instant::now() + wait);
        let done = self.run(Location::caller(), |session| {
            let wanted = Wanted {
                pool: self.pool,
                ledger,
                key: &key,
                wait: until.map(|until| until.saturating_duration_since(Instant::now())),
                begin: self.begin_with_timeout(),
                limits: self.limits_in_transaction(session),
            };
            let limits = wanted.limits;
            let mut ended = Ended::default();
            let done = wanted.transact(session, |session| {
                let run = Run::of(&mut work, &mut raised, session, limits, true);
                ended = run.ended;
                run.result.map(|value| (value, run.answer))
            });
            done.map_err(|error| Self::judge(error, ended))
        });
        done.map_err(|error| raised.give_back(error))
    }

    /// Same as [`Pool::execute_with_key`], with this call's options.
    ///
    /// # Errors
    /// As for [`Pool::execute_with_key`].
    #[track_caller]
    pub fn execute_with_key(
        &self,
        key: &str,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Keyed<u64, u64>> {
        let done = self.transaction_with_key(key, |tx| {
            let rows = tx.execute(sql, params)?;
            tx.keep_answer(rows.to_string())?;
            Ok::<_, Error>(rows)
        })?;
        match done {
            Keyed::Done(rows) => Ok(Keyed::Done(rows)),
            Keyed::AlreadyDone(answer) => answer
                .and_then(|bytes| String::from_utf8(bytes).ok()?.parse().ok())
                .map(Keyed::AlreadyDone)
                .ok_or(NOT_A_COUNT),
        }
    }
}

/// One attempt at a transaction with a key.
struct Wanted<'a> {
    pool: &'a Pool,
    ledger: &'a Ledger,
    key: &'a Key,
    wait: Option<Duration>,
    begin: Begin,
    limits: Limits,
}

impl Wanted<'_> {
    /// Claims the key, runs `work`, and commits both.
    fn transact<T>(
        &self,
        session: &mut Session,
        work: impl FnOnce(&mut Session) -> Result<(T, Option<Vec<u8>>)>,
    ) -> Result<Keyed<T>> {
        let claim = match self.claim(session)? {
            Claimed::Ours(claim) => claim,
            Claimed::Done(answer) => return self.done_before(session, answer),
        };
        let (value, answer) = match work(session) {
            Ok(done) => done,
            Err(error) => return Err(roll_back_after(session, error)),
        };
        let finish = self.ledger.finish(&claim, answer.as_deref());
        match session.commit(&finish, &self.limits) {
            Ok(()) => Ok(Keyed::Done(value)),
            Err(lost) if lost.verdict().repeat == Repeat::Ambiguous => {
                let claim = Some((self.ledger, &claim));
                match LostCommit::of(self.pool, session, claim, &self.limits).resolve() {
                    Outcome::Committed => Ok(Keyed::Done(value)),
                    Outcome::NotCommitted => Err(lost.without_effect()),
                    Outcome::DoneByAnother(answer) => Ok(Keyed::AlreadyDone(answer)),
                    Outcome::Unknown => Err(lost),
                }
            }
            Err(error) => Err(error),
        }
    }

    fn claim(&self, session: &mut Session) -> Result<Claimed> {
        let claim = self.ledger.claim(self.key, self.wait);
        let answer = session
            .begin_and(&self.begin, &claim, &self.limits)
            .map_err(|error| match error.sqlstate() {
                Some(&SqlState::UNDEFINED_TABLE | &SqlState::INVALID_SCHEMA_NAME) => Error::Misuse(
                    "the ledger's table does not exist; create_ledger creates it, in the schema that ledger_schema names",
                ),
                Some(&SqlState::UNDEFINED_COLUMN) => NOT_OURS,
                Some(&SqlState::LOCK_NOT_AVAILABLE) if self.wait.is_some() => Error::KeyInUse,
                _ => error,
            })?;
        Ledger::claimed(self.key, &answer)
    }

    /// Returns the answer of an earlier call. Its row is visible, so it is committed on this
    /// server; it counts as done only once the synchronous standbys have it, too.
    fn done_before<T>(&self, session: &mut Session, answer: Option<Vec<u8>>) -> Result<Keyed<T>> {
        // The `synchronous_commit` of the earlier call is unknown. A call with the same key most
        // likely uses the same.
        let level = session.sync_commit();
        session.rollback()?;
        let deadline = self.limits.until();
        match wait_for_standbys(session, level, deadline) {
            Ok(true) => Ok(Keyed::AlreadyDone(answer)),
            Ok(false) => Err(Error::NotReplicated),
            Err(_) if Instant::now() >= deadline => Err(Error::NotReplicated),
            Err(source) => Err(Error::before_any_effect(source)),
        }
    }
}
