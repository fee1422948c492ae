//! A transaction: it begins in the message of its first statement, and commits in one.

use super::resolve::{LostCommit, Outcome};
use crate::error::{Chain, Error, Result};
use crate::pool::{Begin, Finish, Limits, Pool, Session};
use crate::retry::Repeat;
use log::debug;

/// Runs `work` in a transaction. A failed rollback never hides the first error.
pub(crate) fn transact<T>(
    pool: &Pool,
    session: &mut Session,
    begin: &Begin,
    limits: &Limits,
    work: impl FnOnce(&mut Session) -> Result<T>,
) -> Result<T> {
    session.begin(begin, limits)?;
    let value = match work(session) {
        Ok(value) => value,
        Err(error) => return Err(roll_back_after(session, error)),
    };
    match session.commit(&Finish::default(), limits) {
        Ok(()) => Ok(value),
        Err(lost) if lost.verdict().repeat == Repeat::Ambiguous => {
            if begin.read_only || session.began_on_standby() {
                // There was nothing to commit. But only a successful commit proves that the rows
                // read are consistent.
                return Err(lost.without_effect());
            }
            // Only the server knows the outcome, which is asked for on another connection.
            match LostCommit::of(pool, session, None, limits).resolve() {
                Outcome::Committed => Ok(value),
                Outcome::NotCommitted => Err(lost.without_effect()),
                Outcome::DoneByAnother(_) | Outcome::Unknown => Err(lost),
            }
        }
        Err(error) => Err(error),
    }
}

/// Rolls back the transaction in which `error` occurred. Returns the error to report.
pub(crate) fn roll_back_after(session: &mut Session, error: Error) -> Error {
    if session.is_closing() {
        return error;
    }
    match session.rollback() {
        Ok(()) => error,
        // The closure has committed by itself: nothing of it may be repeated.
        Err(ended @ Error::Misuse(_)) => ended,
        Err(trouble) => {
            debug!(
                "rollback failed on conn={}: {}",
                session.id(),
                Chain(&trouble)
            );
            error
        }
    }
}
