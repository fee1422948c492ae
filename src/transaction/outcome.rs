//! What became of a COMMIT whose answer was lost.
//!
//! PostgreSQL can be asked for the fate of a transaction by its number (`pg_xact_status`), but the answer alone lies after a
//! crash: numbers are not durable before the commit is, so the recovered server may hand the same number to another
//! transaction. Each session therefore takes note, when it is opened, of its backend (process and start time) and of its
//! server's *incarnation*: the cluster's identifier, the timeline, and the moment of the last reset of the WAL statistics,
//! which a crash recovery resets. A standby has no incarnation to speak of, and a role that may not read one has none: the
//! session works, and its lost commits stay unknown.
//!
//! The question is asked on a new connection to a server that is no standby:
//!
//! 1. While our old backend exists, end it and look again: it might still commit. (It is told apart from a later process of
//!    the same number by its start time.)
//! 2. Ask for the status of the number.
//!    - The same incarnation: *committed* and *aborted* are final, since the numbers went on from there.
//!    - Another incarnation of the same cluster: the server crashed, was restarted or promoted, or somebody reset the
//!      statistics. *aborted*, or a number that was never given out (22023), mean that ours did not commit; so does *in
//!      progress*, for no transaction of our dead backend is. *committed* may speak of another transaction: unknown.
//!    - Another cluster, or no status any more: unknown.
//! 3. "Committed" on a server that replicates synchronously is true only when it is so on the standby: the COMMIT that was
//!    not answered may have been waiting for it. Something that writes WAL is committed behind it, and waited for.
//!
//! The order matters: the old backend is gone before the status is read, so the status cannot change afterwards. Every step
//! may be repeated, so the loss of the connection that asks is no harm. Where no answer can be had in time, the outcome is
//! unknown, and is reported as that.

use crate::pool::{BACKEND_START, Identity, Incarnation, Session, Shared};
use log::{debug, info, warn};
use postgres::SimpleQueryMessage;
use postgres::error::SqlState;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two looks at a server that cannot answer yet.
const LOOK_AGAIN: Duration = Duration::from_millis(25);
/// The least time that is spent on an answer.
const LEAST: Duration = Duration::from_secs(4);

/// The fate of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Committed,
    NotCommitted,
    Unknown,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Outcome::Committed => "committed",
            Outcome::NotCommitted => "not_committed",
            Outcome::Unknown => "unknown",
        }
    }
}

/// A transaction whose COMMIT was sent and not answered.
pub(crate) struct LostCommit {
    pub shared: Arc<Shared>,
    pub identity: Identity,
    /// None where a pooler stands between us and the backend.
    pub xid: Option<u64>,
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

impl LostCommit {
    /// Finds out, for as long as that is worth: twice the time that opening a connection may take, and at least 4 s.
    pub fn resolve(&self) -> Outcome {
        let started = Instant::now();
        let deadline = started + LEAST.max(2 * self.shared.config.connection_timeout);
        let outcome = match (self.xid, &self.identity.incarnation) {
            (Some(xid), Some(before)) => self.ask_until(xid, before, deadline),
            _ => Outcome::Unknown,
        };
        self.shared
            .metrics
            .commits
            .with_label_values(&[outcome.as_str()])
            .inc();
        let (word, took) = (outcome.as_str(), started.elapsed());
        let xid = self.xid.map_or("-".to_owned(), |xid| xid.to_string());
        match outcome {
            Outcome::Unknown => warn!("lost commit outcome={word} xid={xid} took={took:.1?}"),
            _ => info!("lost commit outcome={word} xid={xid} took={took:.1?}"),
        }
        outcome
    }

    fn ask_until(&self, xid: u64, before: &Incarnation, deadline: Instant) -> Outcome {
        while let Ok(mut session) = self.shared.open_when_possible(Some(deadline)) {
            match self.ask(&mut session, xid, before, deadline) {
                Ok(Some(outcome)) => return outcome,
                Ok(None) => {}
                Err(e) => debug!(
                    "asking for a lost commit failed: {}",
                    crate::error::Chain(&e)
                ),
            }
            if Instant::now() + LOOK_AGAIN >= deadline {
                break;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Outcome::Unknown
    }

    /// One attempt; `None` = not yet.
    fn ask(
        &self,
        session: &mut Session,
        xid: u64,
        before: &Incarnation,
        deadline: Instant,
    ) -> Result<Option<Outcome>, postgres::Error> {
        let Some(now) = session.identity().incarnation.clone() else {
            // A standby, which may be promoted in a moment; or a role that lost the right to look.
            return Ok(None);
        };
        if now.system_identifier != before.system_identifier {
            return Ok(Some(Outcome::Unknown));
        }
        // A timeout of the server's would end the wait for a standby with a mere warning: ours alone counts.
        ask(session, "SET statement_timeout = 0", deadline)?;
        let Identity {
            pid, backend_start, ..
        } = self.identity;
        // Where a role may not see the start of another's backend, that one counts as ours: at worst nothing is found out.
        let old = format!(
            "FROM pg_stat_activity WHERE pid = {pid} AND coalesce({BACKEND_START} = {backend_start}, true)"
        );
        ask(
            session,
            &format!("SELECT pg_terminate_backend(pid, 5000) {old}"),
            deadline,
        )?;
        if ask(session, &format!("SELECT 1 {old}"), deadline)?.is_some() {
            return Ok(None);
        }
        let same = now == *before;
        let status = match ask(
            session,
            &format!("SELECT pg_xact_status('{xid}'::xid8)"),
            deadline,
        ) {
            Ok(Some(text)) => match text.as_str() {
                "committed" => Status::Committed,
                "aborted" => Status::Aborted,
                _ => Status::InProgress,
            },
            Ok(None) => Status::Forgotten,
            Err(e) if e.code() == Some(&SqlState::INVALID_PARAMETER_VALUE) => Status::InTheFuture,
            Err(e) => return Err(e),
        };
        let outcome = judge(same, status);
        if outcome == Some(Outcome::Committed) {
            wait_for_standbys(session, deadline)?;
        }
        Ok(outcome)
    }
}

/// What is committed now is behind the transaction in question, and is answered only when the standbys have both. A number
/// alone would not wait: it takes something that writes WAL, which an ordinary role may do.
pub(super) fn wait_for_standbys(
    session: &mut Session,
    deadline: Instant,
) -> Result<(), postgres::Error> {
    let standbys = ask(session, "SHOW synchronous_standby_names", deadline)?;
    if standbys.is_some_and(|names| !names.is_empty()) {
        ask(
            session,
            "SELECT pg_logical_emit_message(true, 'millpond', '')",
            deadline,
        )?;
    }
    Ok(())
}

/// The first value of the first row. Only our own words and integers are in these statements.
pub(super) fn ask(
    session: &mut Session,
    sql: &str,
    deadline: Instant,
) -> Result<Option<String>, postgres::Error> {
    let messages = session.ask(sql, deadline)?;
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    Ok(row
        .and_then(|row| row.try_get(0).ok().flatten())
        .map(str::to_owned))
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
