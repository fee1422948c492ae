//! Transactions with a key: done once, however often they are asked for.

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

/// What a call with a key came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keyed<T, A = Option<Vec<u8>>> {
    /// Done, by this call.
    Done(T),
    /// Done before, by another call with the same key; what was kept with it.
    AlreadyDone(A),
}

const NOT_A_COUNT: Error =
    Error::Misuse("the key was used before by a call that did not keep a number of rows");

impl Pool {
    /// As [`transaction`](Pool::transaction), and done once for each `key`: when the key was done before, the closure does not
    /// run, and the answer kept then ([`Transaction::keep_answer`]) is returned. The closure's result decides over both, the
    /// write and the key: what fails leaves the key free. What became of a lost COMMIT can always be found out here once the
    /// database is back, also after a crash; a call that ended as [`Error::OutcomeUnknown`] may be repeated with its key.
    ///
    /// Keys are any text; the application decides what makes two writes the same, and should put its name for the
    /// operation into the key. They are kept for [`ledger_ttl`](crate::pool::Builder::ledger_ttl), in the table that
    /// [`create_ledger`](Pool::create_ledger) makes. While another transaction has the key in hand, this one waits for it,
    /// up to the statement timeout.
    ///
    /// # Errors
    /// As [`transaction`](Pool::transaction); [`Error::Misuse`] when the table is not there, or is no ledger.
    #[track_caller]
    pub fn transaction_with_key<T, E: From<Error> + 'static>(
        &self,
        key: &str,
        work: impl FnMut(&mut Transaction<'_>) -> Result<T, E>,
    ) -> Result<Keyed<T>, E> {
        self.call().transaction_with_key(key, work)
    }

    /// Runs one statement as a [transaction with a key](Pool::transaction_with_key). The number of rows that it touched is
    /// kept, and returned to whoever comes with the same key again.
    ///
    /// # Errors
    /// As [`transaction_with_key`](Pool::transaction_with_key).
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
    /// As [`Pool::transaction_with_key`], with this call's options.
    ///
    /// # Errors
    /// As [`Pool::transaction_with_key`].
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
        // From here on: the time that a connection took to come is no longer there.
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

    /// As [`Pool::execute_with_key`], with this call's options.
    ///
    /// # Errors
    /// As [`Pool::execute_with_key`].
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
        let claim = self.ledger.claim_sql(self.key, self.wait);
        let answer = session
            .begin(&self.begin, &claim, &self.limits)
            .map_err(|error| match error.sqlstate() {
                Some(&SqlState::UNDEFINED_TABLE | &SqlState::INVALID_SCHEMA_NAME) => Error::Misuse(
                    "the ledger's table is not there; create_ledger makes it, in the schema that ledger_schema names",
                ),
                Some(&SqlState::UNDEFINED_COLUMN) => NOT_OURS,
                Some(&SqlState::LOCK_NOT_AVAILABLE) if self.wait.is_some() => Error::KeyInUse,
                _ => error,
            })?;
        Ledger::claimed(self.key, &answer)
    }

    /// What can be seen was committed on this server; it counts when the synchronous standbys have it, too.
    fn done_before<T>(&self, session: &mut Session, answer: Option<Vec<u8>>) -> Result<Keyed<T>> {
        // The other's level is not known; whoever writes with the same key most likely has the same.
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
