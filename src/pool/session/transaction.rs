//! Begin, commit, roll back: one message each.

use super::kept::SearchPath;
use super::life::Session;
use super::words::{
    Begin, ENDED_INSIDE, Finish, LostTransaction, READING, SyncCommit, says_ended_inside,
};
use crate::error::Error;
use crate::metrics::CloseReason;
use crate::pool::backend::{first_row, first_value};
use crate::pool::limits::Limits;
use crate::pool::watchdog::CANCEL_GRACE;
use crate::retry::Phase;
use postgres::SimpleQueryMessage;
use std::time::{Duration, Instant};

/// Limit for a rollback, which may begin after the caller's deadline. It is the time after which a
/// cancelled statement is cut.
const ROLLBACK: Duration = CANCEL_GRACE;

impl Session {
    /// Begins a transaction in one message, which also contains our own statements in `and_then`.
    /// Returns the server's answers.
    pub fn begin(
        &mut self,
        begin: &Begin,
        and_then: &str,
        limits: &Limits,
    ) -> Result<Vec<SimpleQueryMessage>, Error> {
        // Set before sending: if the answer is lost, a transaction may have begun.
        self.in_transaction = true;
        (self.xid, self.reads_only) = (None, begin.read_only);
        (self.sync_commit, self.sync_commit_touched) = (SyncCommit::ON, false);
        (self.own_meanings, self.temporary_path) = (false, false);
        self.search_path = SearchPath::Own;
        let begin = Begin {
            // If it cannot be set on the session, it is at least set for this transaction.
            statement_timeout: begin
                .statement_timeout
                .or_else(|| self.shared.timeout_of_transactions()),
            ..*begin
        };
        let sql = begin.sql() + and_then;
        let answer = self.timed("BEGIN", Phase::Preparing, limits, |session| {
            let text = session.with_comment(&sql);
            let answer = session.client.simple_query(&text);
            answer.map_err(|e| (e, Phase::Preparing))
        })?;
        let row = first_row(&answer);
        let text = |column: &str| row?.try_get(column).ok().flatten();
        self.xid = text("xid").and_then(|xid| xid.parse().ok());
        if let Some(level) = text("synchronous_commit").and_then(SyncCommit::named) {
            self.sync_commit = level;
        }
        self.hides_warnings = text("client_min_messages") == Some("error");
        let pid = text("pid").and_then(|pid| pid.parse::<i32>().ok());
        self.in_own_backend = pid == Some(self.backend.pid);
        if pid.is_some() && !self.in_own_backend {
            self.shared
                .note_pooler("a different server process answers than before");
        }
        // Only a primary assigns transaction ids.
        self.backend.standby &= self.xid.is_none();
        Ok(answer)
    }

    /// Commits in one message. In a transaction that the server has aborted, a plain COMMIT would
    /// roll back and be answered as a success; the statement before it makes the message fail with
    /// 25P02. That statement also fails if the current transaction is not the one that was begun,
    /// because the closure has ended that one itself. A commit on the wire is never cancelled (see
    /// the watchdog). The statements in `finish` are our own and belong to the transaction.
    pub fn commit(&mut self, finish: &Finish, limits: &Limits) -> Result<(), Error> {
        if std::mem::take(&mut self.sync_commit_touched) {
            self.ask_what_commit_waits_for(limits)?;
        }
        let check = match self.xid {
            Some(xid) => format!(
                "CASE WHEN pg_current_xact_id_if_assigned() IS DISTINCT FROM '{xid}'::xid8 \
                 THEN current_setting('{ENDED_INSIDE}') END"
            ),
            None if self.reads_only => format!(
                "CASE WHEN current_setting('{READING}', true) IS DISTINCT FROM 'yes' \
                 THEN current_setting('{ENDED_INSIDE}') END"
            ),
            None => "1".to_owned(),
        };
        let Finish { values, statements } = finish;
        // The server reports only in a warning that it gave up the wait for a standby.
        let warn = match self.hides_warnings {
            true => "SET LOCAL client_min_messages = warning; ",
            false => "",
        };
        let take_away = self.look_ups.take_away();
        let sql = format!("SELECT {check}{values}; {statements}{take_away}{warn}COMMIT");
        let result = self.timed("COMMIT", Phase::Commit, limits, |session| {
            let text = session.with_comment(&sql);
            let done = session.client.batch_execute(&text);
            done.map_err(|e| (e, Phase::Commit))
        });
        match result {
            Err(e) if says_ended_inside(&e) => Err(self.ended_inside()),
            Ok(()) => {
                self.in_transaction = false;
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    /// Asks for the current `synchronous_commit`. Once the COMMIT is lost, it is too late to ask.
    fn ask_what_commit_waits_for(&mut self, limits: &Limits) -> Result<(), Error> {
        const SQL: &str = "SELECT current_setting('synchronous_commit')";
        let answer = self.timed(SQL, Phase::InTransaction, limits, |session| {
            let answer = session.client.simple_query(SQL);
            answer.map_err(|e| (e, Phase::InTransaction))
        })?;
        let level = first_value(&answer);
        self.sync_commit = level.and_then(SyncCommit::named).unwrap_or(SyncCommit::ON);
        Ok(())
    }

    fn ended_inside(&mut self) -> Error {
        self.close_for(CloseReason::LeakedState);
        Error::Misuse(
            "a statement in the closure ended the transaction; what it committed stays committed",
        )
    }

    /// Rolls back within [`ROLLBACK`], and checks that the transaction had not been committed.
    pub fn rollback(&mut self) -> Result<(), Error> {
        let sql = match self.xid {
            Some(xid) => format!("ROLLBACK; SELECT pg_xact_status('{xid}'::xid8); "),
            None => "ROLLBACK; ".to_owned(),
        };
        let sql = sql + &self.look_ups.take_away();
        let until = Some(Instant::now() + ROLLBACK);
        match self.bounded(until, |s| s.client.simple_query(&sql)) {
            Ok(answer) => {
                self.in_transaction = false;
                let status = first_value(&answer);
                if status == Some("committed") {
                    Err(self.ended_inside())
                } else {
                    self.search_path = SearchPath::Own;
                    Ok(())
                }
            }
            Err(source) => {
                self.close_for(CloseReason::Broken);
                Err(Error::in_phase(Phase::InTransaction, source))
            }
        }
    }

    /// Returns what is known of the current transaction, whose COMMIT was sent and not answered.
    pub fn lost_transaction(&self) -> LostTransaction {
        LostTransaction {
            backend: self.backend.clone(),
            // Behind a pooler, the process number and the transaction id may belong to another
            // client by now.
            xid: self
                .xid
                .filter(|_| self.in_own_backend && !self.shared.is_pooled()),
            sync_commit: self.sync_commit,
        }
    }

    /// Returns whether the current transaction cannot write.
    pub fn began_on_standby(&self) -> bool {
        self.xid.is_none()
    }

    /// Returns what the commit of the last transaction waits for.
    pub fn sync_commit(&self) -> SyncCommit {
        self.sync_commit
    }
}
