//! What became of a COMMIT whose answer was lost.
//!
//! A transaction with a key has a row in the ledger, which tells (`ledger`). Any other has only its number: PostgreSQL can be
//! asked for the fate of a transaction by it (`pg_xact_status`), but the answer alone lies after a crash: numbers are not
//! durable before the commit is, so the recovered server may hand the same number to another transaction. Each session
//! therefore takes note, when it is opened, of its backend (process and start time) and of its server's *incarnation*: the
//! cluster's identifier, the timeline, and the moment of the last reset of the WAL statistics, which a crash recovery
//! resets. A standby has no incarnation to speak of, and a role that may not read one has none: the session works, and its
//! lost commits stay unknown.
//!
//! The question is asked on a new connection to a server that is no standby:
//!
//! 1. While our old backend exists, end it and look again: it might still commit. (It is told apart from a later process of
//!    the same number by its start time.)
//! 2. With a key: settle its row. Without: ask for the status of the number.
//!    - The same incarnation: *committed* and *aborted* are final, since the numbers went on from there.
//!    - Another incarnation of the same cluster: the server crashed, was restarted or promoted, or somebody reset the
//!      statistics. *aborted*, or a number that was never given out (22023), mean that ours did not commit; so does *in
//!      progress*, for no transaction of our dead backend is. *committed* may speak of another transaction: unknown.
//!    - Another cluster, or no status any more: unknown.
//! 3. "Committed" on a server that replicates synchronously is true only when it is so on the standby: the COMMIT that was
//!    not answered may have been waiting for it. Something that writes WAL is committed behind it, and waited for, at the
//!    transaction's own `synchronous_commit`: the one that it began with, or, where a statement of it names the setting,
//!    the one that was in force before COMMIT was sent. (A function that sets it on the quiet is not seen.)
//!
//! The connection is opened without the application's `on_connect`, as the role that logged in: only that one may end the
//! old backend for certain. Where the ledger is closed to it, `on_connect` runs then. Nothing is set on the session, which
//! may be shared: each question is one message, with SET LOCAL in the transaction that the message is.
//!
//! Behind a pooler the numbers of processes and transactions are somebody else's: no backend is ended, and no number asked
//! for. A backend's number may belong to an innocent client of the pooler by now, and a transaction's to its work. The
//! ledger alone tells there.
//!
//! The order matters: the old backend is gone before the status is read, so the status cannot change afterwards. Every step
//! may be repeated, so the loss of the connection that asks is no harm. Where no answer can be had in time, the outcome is
//! unknown, and is reported as that.

use super::ledger::{Claim, Entry, Ledger};
use crate::config::PoolConfig;
use crate::error::{Chain, Error};
use crate::pool::{
    BACKEND_START, Identity, Incarnation, Limits, LostTransaction, Pool, Purpose, Session,
    SyncCommit, first_value,
};
use crate::retry::Symptom;
use log::{debug, info, warn};
use postgres::error::SqlState;
use std::time::{Duration, Instant};

/// Between two looks at a server that cannot answer yet.
const LOOK_AGAIN: Duration = Duration::from_millis(25);
/// The least time that is spent on an answer, where the caller has it.
const LEAST: Duration = Duration::from_secs(4);

/// For how long an answer is looked for at the most.
pub(crate) fn longest(config: &PoolConfig) -> Duration {
    LEAST.max(2 * config.connection_timeout)
}

/// The fate of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Committed,
    NotCommitted,
    /// Not committed either, but another has done what its key stands for, and kept this answer.
    DoneByAnother(Option<Vec<u8>>),
    Unknown,
}

impl Outcome {
    fn as_str(&self) -> &'static str {
        match self {
            Outcome::Committed => "committed",
            Outcome::NotCommitted | Outcome::DoneByAnother(_) => "not_committed",
            Outcome::Unknown => "unknown",
        }
    }
}

/// A transaction whose COMMIT was sent and not answered.
pub(crate) struct LostCommit<'c> {
    pool: &'c Pool,
    transaction: LostTransaction,
    claim: Option<(&'c Ledger, &'c Claim)>,
    /// The caller's, for everything.
    deadline: Option<Instant>,
}

/// What the server says of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Committed,
    Aborted,
    InProgress,
    /// Too old to be known.
    Forgotten,
    /// Never given out (22023).
    InTheFuture,
}

/// What follows from a status, once the old backend is gone. `None` = ask again.
fn judge(same_incarnation: bool, status: Status) -> Option<Outcome> {
    match (same_incarnation, status) {
        (true, Status::Committed) => Some(Outcome::Committed),
        (true, Status::Aborted) => Some(Outcome::NotCommitted),
        // The backend is gone and its transaction not yet cleaned up.
        (true, Status::InProgress) => None,
        (true, Status::InTheFuture) => Some(Outcome::Unknown),
        (false, Status::Aborted | Status::InTheFuture | Status::InProgress) => {
            Some(Outcome::NotCommitted)
        }
        (false, Status::Committed) => Some(Outcome::Unknown),
        (_, Status::Forgotten) => Some(Outcome::Unknown),
    }
}

impl<'c> LostCommit<'c> {
    pub fn of(
        pool: &'c Pool,
        session: &Session,
        claim: Option<(&'c Ledger, &'c Claim)>,
        limits: &Limits,
    ) -> LostCommit<'c> {
        LostCommit {
            pool,
            transaction: session.lost_transaction(),
            claim,
            deadline: limits.deadline,
        }
    }

    /// Finds out, for as long as that is worth: twice the time that opening a connection may take, and at least 4 s; but
    /// not beyond the caller's deadline.
    pub fn resolve(&self) -> Outcome {
        let started = Instant::now();
        let worth = started + longest(self.pool.config());
        let deadline = self.deadline.map_or(worth, |at| at.min(worth));
        let may_be_known = self.claim.is_some()
            || (self.transaction.xid.is_some() && self.transaction.identity.incarnation.is_some());
        let outcome = if may_be_known {
            self.ask_until(deadline)
        } else {
            Outcome::Unknown
        };
        self.pool
            .inner
            .shared
            .metrics
            .commits
            .with_label_values(&[outcome.as_str()])
            .inc();
        let (word, took) = (outcome.as_str(), started.elapsed());
        let xid = self
            .transaction
            .xid
            .map_or("-".to_owned(), |xid| xid.to_string());
        match outcome {
            Outcome::Unknown => warn!("lost commit outcome={word} xid={xid} took={took:.1?}"),
            _ => info!("lost commit outcome={word} xid={xid} took={took:.1?}"),
        }
        outcome
    }

    fn ask_until(&self, deadline: Instant) -> Outcome {
        let open = || {
            self.pool
                .inner
                .opener
                .open_when_possible(Some(deadline), Purpose::Resolve)
        };
        while let Ok(mut session) = open() {
            // A standby may be promoted in a moment, or another host be the primary by now: looked for anew.
            while !session.identity().standby && !session.is_closing() {
                match self.ask(&mut session, deadline) {
                    Ok(Some(outcome)) => return outcome,
                    Ok(None) => {}
                    Err(e) if e.as_db_error().is_none() || is_over(&e) => {
                        debug!(
                            "the connection that asks for a lost commit broke: {}",
                            Chain(&e)
                        );
                        break;
                    }
                    // It will say the same again.
                    Err(e) if is_forbidden(&e) => {
                        warn!("a lost commit may not be asked for: {}", Chain(&e));
                        return Outcome::Unknown;
                    }
                    Err(e) => debug!("asking for a lost commit failed: {}", Chain(&e)),
                }
                if !pause_before(deadline) {
                    return Outcome::Unknown;
                }
            }
            if !pause_before(deadline) {
                break;
            }
        }
        Outcome::Unknown
    }

    /// One attempt; `None` = not yet.
    fn ask(
        &self,
        session: &mut Session,
        deadline: Instant,
    ) -> Result<Option<Outcome>, postgres::Error> {
        if self.transaction.xid.is_some() {
            match self.end_old_backend(session, deadline) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                // With a key, its row waits for the old backend in any case.
                Err(e) if self.claim.is_some() && is_forbidden(&e) => {}
                Err(e) => return Err(e),
            }
        }
        let outcome = match (
            self.claim,
            self.transaction.xid,
            &self.transaction.identity.incarnation,
        ) {
            (Some((ledger, claim)), _, _) => {
                let entry = match ledger.settle(claim, session, deadline) {
                    Err(e) if is_forbidden(&e) => match session.restore(deadline) {
                        Ok(()) => ledger.settle(claim, session, deadline)?,
                        Err(Error::Database { source, .. }) => return Err(source),
                        Err(other) => {
                            warn!("a lost commit cannot be asked for: {}", Chain(&other));
                            return Ok(Some(Outcome::Unknown));
                        }
                    },
                    settled => settled?,
                };
                entry.map(|entry| match entry {
                    Entry::Committed => Outcome::Committed,
                    Entry::NotCommitted => Outcome::NotCommitted,
                    Entry::DoneByAnother(answer) => Outcome::DoneByAnother(answer),
                })
            }
            (None, Some(xid), Some(before)) => ask_by_number(session, xid, before, deadline)?,
            _ => Some(Outcome::Unknown),
        };
        let done = matches!(
            outcome,
            Some(Outcome::Committed | Outcome::DoneByAnother(_))
        );
        if done && !wait_for_standbys(session, self.transaction.sync_commit, deadline)? {
            return Ok(Some(Outcome::Unknown));
        }
        Ok(outcome)
    }

    /// True when there is none any more.
    fn end_old_backend(
        &self,
        session: &mut Session,
        deadline: Instant,
    ) -> Result<bool, postgres::Error> {
        let Identity {
            pid, backend_start, ..
        } = self.transaction.identity;
        // Where a role may not see the start of another's backend, that one counts as ours: at worst nothing is found out.
        let old = format!(
            "FROM pg_stat_get_activity({pid}) WHERE coalesce({BACKEND_START} = {backend_start}, true)"
        );
        ask(
            session,
            &format!("SELECT pg_terminate_backend(pid, 5000) {old}"),
            deadline,
        )?;
        Ok(ask(session, &format!("SELECT 1 {old}"), deadline)?.is_none())
    }
}

/// False when there is no time for another look.
fn pause_before(deadline: Instant) -> bool {
    let time = Instant::now() + LOOK_AGAIN < deadline;
    if time {
        std::thread::sleep(LOOK_AGAIN);
    }
    time
}

/// The server ended the session.
fn is_over(error: &postgres::Error) -> bool {
    matches!(
        Symptom::of(error),
        Symptom::Lost | Symptom::Fatal(_) | Symptom::Middleman(_)
    )
}

fn is_forbidden(error: &postgres::Error) -> bool {
    error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE)
}

fn ask_by_number(
    session: &mut Session,
    xid: u64,
    before: &Incarnation,
    deadline: Instant,
) -> Result<Option<Outcome>, postgres::Error> {
    let Some(now) = session.identity().incarnation.clone() else {
        // A role that lost the right to look.
        return Ok(Some(Outcome::Unknown));
    };
    if now.system_identifier != before.system_identifier {
        return Ok(Some(Outcome::Unknown));
    }
    let status = format!("SELECT pg_xact_status('{xid}'::xid8)");
    let status = match ask(session, &status, deadline) {
        Ok(Some(text)) => match text.as_str() {
            "committed" => Status::Committed,
            "aborted" => Status::Aborted,
            _ => Status::InProgress,
        },
        Ok(None) => Status::Forgotten,
        Err(e) if e.code() == Some(&SqlState::INVALID_PARAMETER_VALUE) => Status::InTheFuture,
        Err(e) => return Err(e),
    };
    Ok(judge(now == *before, status))
}

/// What is committed now is behind the transaction in question, and is answered only when the standbys have both, as far as
/// that one was to wait for them. A number alone would not wait: it takes something that writes WAL, which an ordinary role
/// may do. False when the server gave the wait up.
pub(crate) fn wait_for_standbys(
    session: &mut Session,
    sync_commit: SyncCommit,
    deadline: Instant,
) -> Result<bool, postgres::Error> {
    if !sync_commit.waits_for_standbys() {
        return Ok(true);
    }
    let standbys = ask(session, "SHOW synchronous_standby_names", deadline)?;
    if standbys.is_some_and(|names| !names.is_empty()) {
        let level = sync_commit.as_str();
        let write = format!(
            "SET LOCAL synchronous_commit = {level}; SELECT pg_logical_emit_message(true, 'millpond', '')"
        );
        ask(session, &write, deadline)?;
    }
    Ok(!session.gave_up_on_standbys())
}

/// The first value of the first row. Only our own words and integers are in these statements.
fn ask(
    session: &mut Session,
    sql: &str,
    deadline: Instant,
) -> Result<Option<String>, postgres::Error> {
    // As the role that logged in, whatever its own default is. Our deadline alone counts: the end of the old backend, or a
    // standby, may be waited for; and that such a wait was given up is said in a warning.
    let sql = format!(
        "SET LOCAL ROLE NONE; SET LOCAL statement_timeout = 0; SET LOCAL client_min_messages = warning; {sql}"
    );
    let messages = session.ask(&sql, deadline)?;
    Ok(first_value(&messages).map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_believed_only_where_it_cannot_speak_of_another_transaction() {
        let rows = [
            (true, Status::Committed, Some(Outcome::Committed)),
            (true, Status::Aborted, Some(Outcome::NotCommitted)),
            (true, Status::InProgress, None),
            (true, Status::Forgotten, Some(Outcome::Unknown)),
            (true, Status::InTheFuture, Some(Outcome::Unknown)),
            (false, Status::Committed, Some(Outcome::Unknown)),
            (false, Status::Aborted, Some(Outcome::NotCommitted)),
            (false, Status::InProgress, Some(Outcome::NotCommitted)),
            (false, Status::InTheFuture, Some(Outcome::NotCommitted)),
            (false, Status::Forgotten, Some(Outcome::Unknown)),
        ];
        for (same, status, outcome) in rows {
            assert_eq!(judge(same, status), outcome, "{same} {status:?}");
        }
    }
}
