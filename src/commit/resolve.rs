//! Finds out what became of a COMMIT whose answer was lost.
//!
//! A transaction with a key has a row in the ledger, which shows the outcome (see `ledger`). Any
//! other transaction has only its id. PostgreSQL can be asked for the status of an id
//! (`pg_xact_status`), but after a crash that answer alone may be wrong: ids are not durable before
//! the commit is, so the recovered server may give the same id to another transaction. When a
//! session is opened, it therefore records its backend (process and start time) and its server's
//! *incarnation*: the cluster's identifier, the timeline, and the time of the last reset of the WAL
//! statistics, which a crash recovery resets. A standby has no usable incarnation, and neither has
//! a role that may not read one: the session works, but its lost commits stay unknown.
//!
//! The outcome is looked up on a new connection to a server that is not a standby:
//!
//! 1. While the old backend exists, terminate it and check again: it might still commit. (Its start
//!    time tells it apart from a later process with the same number.)
//! 2. With a key: settle its row. Without one: ask for the status of the id.
//!    - The same incarnation: *committed* and *aborted* are final, since the ids have only
//!      increased.
//!    - Another incarnation of the same cluster: the server has crashed, was restarted or promoted,
//!      or the statistics were reset. *aborted*, or an id that was never assigned (22023), mean
//!      that ours did not commit; so does *in progress*, since our backend is dead and that cannot
//!      be its transaction. *committed* may concern another transaction: unknown.
//!    - Another cluster, or a status that is no longer kept: unknown.
//! 3. On a server with synchronous replication, *committed* counts only once the standby has the
//!    commit, too: the unanswered COMMIT may have been waiting for it. So something that writes WAL
//!    is committed after it, and waited for, at the transaction's own `synchronous_commit`. That is
//!    the level that it began with; or, if one of its statements mentions the setting, the level
//!    that was in force before COMMIT was sent. (A function that changes the level inside is not
//!    noticed.)
//!
//! The connection is opened without the application's `on_connect`, as the login role: only that
//! role may certainly terminate the old backend. If the login role may not use the ledger,
//! `on_connect` is run then. Nothing is set on the session, which may be shared: each query is one
//! message, with SET LOCAL in the transaction that the message forms.
//!
//! Behind a pooler, process numbers and transaction ids may belong to others by now: the process
//! may serve another client of the pooler, and the id may be of that client's work. So no backend
//! is terminated and no id is looked up; only the ledger can show the outcome.
//!
//! The order matters: the old backend is gone before the status is read, so the status cannot
//! change afterwards. Every step may be repeated, so the loss of this connection does no harm. If
//! there is no answer in time, the outcome is reported as unknown.

use super::ledger::{Claim, Entry, Ledger};
use crate::config::PoolConfig;
use crate::error::{Chain, Error};
use crate::pool::{
    BACKEND_START, Backend, Incarnation, Limits, LostTransaction, Pool, Purpose, Session,
    SyncCommit, first_value,
};
use crate::retry::Symptom;
use crate::traceparent::{Traceparent, traced};
use log::{Level, debug, warn};
use postgres::error::SqlState;
use std::time::{Duration, Instant};

/// Pause between two queries to a server that cannot answer yet.
const LOOK_AGAIN: Duration = Duration::from_millis(25);
/// The least time that is spent on finding the outcome, if the caller's deadline allows it.
const LEAST: Duration = Duration::from_secs(4);

/// Returns the longest time that is spent on finding the outcome.
pub(crate) fn longest(config: &PoolConfig) -> Duration {
    LEAST.max(2 * config.connection_timeout)
}

/// The outcome of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Committed,
    NotCommitted,
    /// Not committed; but another attempt has done the work of the key, and stored this answer.
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
    /// The caller's deadline for the whole call.
    deadline: Option<Instant>,
    traceparent: Option<Traceparent>,
}

/// What the server says about a transaction id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Committed,
    Aborted,
    InProgress,
    /// Too old to be known.
    Forgotten,
    /// Never assigned (22023).
    InTheFuture,
}

/// Returns the outcome that follows from a status, once the old backend is gone. `None` = ask
/// again.
fn judge(same_incarnation: bool, status: Status) -> Option<Outcome> {
    match (same_incarnation, status) {
        (true, Status::Committed) => Some(Outcome::Committed),
        (true, Status::Aborted) => Some(Outcome::NotCommitted),
        // The backend is gone, but its transaction was not cleaned up yet.
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
            traceparent: session.serves.traceparent,
        }
    }

    /// Finds out the outcome. Takes at most twice the time that opening a connection may take, but
    /// at least 4 s; and does not exceed the caller's deadline.
    pub fn resolve(&self) -> Outcome {
        let started = Instant::now();
        let worth = started + longest(self.pool.config());
        let deadline = self.deadline.map_or(worth, |at| at.min(worth));
        let may_be_known = self.claim.is_some()
            || (self.transaction.xid.is_some() && self.transaction.backend.incarnation.is_some());
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
        let level = match outcome {
            Outcome::Unknown => Level::Warn,
            _ => Level::Info,
        };
        traced!(
            level,
            self.traceparent,
            "db.system.name" = "postgresql",
            "db.operation.name" = "COMMIT",
            "millpond.commit.outcome" = word;
            "lost commit outcome={word} xid={xid} took={took:.1?}"
        );
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
            // A standby may be promoted in a moment, or another host may be the primary by now:
            // open a new connection.
            while !session.backend().standby && !session.is_closing() {
                match self.ask(&mut session, deadline) {
                    Ok(Some(outcome)) => return outcome,
                    Ok(None) => {}
                    Err(e) if e.as_db_error().is_none() || is_over(&e) => {
                        debug!(
                            "the connection that looks up a lost COMMIT broke: {}",
                            Chain(&e)
                        );
                        break;
                    }
                    // The next attempt would get the same error.
                    Err(e) if is_forbidden(&e) => {
                        warn!(
                            "the role may not look up the outcome of a lost COMMIT: {}",
                            Chain(&e)
                        );
                        return Outcome::Unknown;
                    }
                    Err(e) => debug!(
                        "looking up the outcome of a lost COMMIT failed: {}",
                        Chain(&e)
                    ),
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

    /// Makes one attempt; `None` = not known yet.
    fn ask(
        &self,
        session: &mut Session,
        deadline: Instant,
    ) -> Result<Option<Outcome>, postgres::Error> {
        if self.transaction.xid.is_some() {
            match self.end_old_backend(session, deadline) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                // With a key, the insert of its row waits for the old backend in any case.
                Err(e) if self.claim.is_some() && is_forbidden(&e) => {}
                Err(e) => return Err(e),
            }
        }
        let outcome = match (
            self.claim,
            self.transaction.xid,
            &self.transaction.backend.incarnation,
        ) {
            (Some((ledger, claim)), _, _) => {
                let entry = match ledger.settle(claim, session, deadline) {
                    Err(e) if is_forbidden(&e) => match session.restore(deadline) {
                        Ok(()) => ledger.settle(claim, session, deadline)?,
                        Err(Error::Database { source, .. }) => return Err(source),
                        Err(other) => {
                            warn!(
                                "cannot look up the outcome of a lost COMMIT: {}",
                                Chain(&other)
                            );
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

    /// Terminates the old backend. Returns true if there is none any more.
    fn end_old_backend(
        &self,
        session: &mut Session,
        deadline: Instant,
    ) -> Result<bool, postgres::Error> {
        let Backend {
            pid, backend_start, ..
        } = self.transaction.backend;
        // If a role may not see the start time of another role's backend, that backend counts as
        // ours: at worst the outcome stays unknown.
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

/// Pauses before the next query. Returns false if there is no time for one.
fn pause_before(deadline: Instant) -> bool {
    let time = Instant::now() + LOOK_AGAIN < deadline;
    if time {
        std::thread::sleep(LOOK_AGAIN);
    }
    time
}

/// Returns whether the server has ended the session.
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
    let Some(now) = session.backend().incarnation.clone() else {
        // The role has lost the right to read the incarnation.
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

/// Waits until the synchronous standbys have everything that is committed so far, as far as the
/// transaction was to wait for them. It commits a write of WAL, which comes after the transaction
/// in question; its answer means that the standbys have both. Assigning a transaction id alone
/// would not wait; the function used here writes WAL, and any role may call it. Returns false if
/// the server gave up the wait.
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

/// Returns the first value of the first row. These statements contain only our own words and
/// integers.
fn ask(
    session: &mut Session,
    sql: &str,
    deadline: Instant,
) -> Result<Option<String>, postgres::Error> {
    // As the login role, whatever its default role is. Only our own deadline counts, because the
    // end of the old backend, or a standby, may have to be waited for; and a wait that was given up
    // is reported only in a warning.
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
