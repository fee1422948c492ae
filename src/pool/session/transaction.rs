//! Begin, commit, roll back: one round trip each, or less.
//!
//! BEGIN waits for the first statement and leaves with it, so it takes no round trip of its own; a
//! transaction without statements sends nothing at all. It is sent alone if the claim of a key
//! belongs to it, and before a request of the simple protocol. What is checked before a COMMIT
//! leaves in front of that. How this is safe, and that the server parses and plans these
//! statements only once, is said in `wire::own`.
//!
//! If BEGIN fails, the first statement does, and reports its error. The session then takes no more
//! statements in that transaction, since there is none that they could run in.

use super::kept::SearchPath;
use super::life::{Session, housekeeping_until};
use super::words::{
    Begin, ENDED_INSIDE, Evidence, Finish, LostTransaction, Opening, READING, Start, SyncCommit,
    says_ended_inside,
};
use crate::error::Error;
use crate::metrics::CloseReason;
use crate::pool::backend::first_value;
use crate::pool::limits::Limits;
use crate::pool::watchdog::CANCEL_GRACE;
use crate::pool::wire::{Own, OwnRow, OwnState, behind};
use crate::retry::{Phase, Symptom};
use postgres::Row;
use postgres::fallible_iterator::FallibleIterator;
use postgres::types::Type;
use std::borrow::Cow;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Limit for a rollback, which may begin after the caller's deadline. It is the time after which a
/// cancelled statement is cut.
const ROLLBACK: Duration = CANCEL_GRACE;

impl Session {
    /// Begins a transaction. Its BEGIN waits for the first statement.
    pub fn begin(&mut self, begin: &Begin, limits: &Limits) -> Result<(), Error> {
        let begin = self.prepare_to_begin(begin);
        match self.hold_own(begin.statements(&Start::default())) {
            Ok(()) => Ok(()),
            Err(_) => self.begin_alone(limits),
        }
    }

    /// Begins a transaction in a round trip of its own, which also does what `start` says. Returns
    /// the rows of the statements there.
    pub fn begin_and(
        &mut self,
        begin: &Begin,
        start: &Start,
        limits: &Limits,
    ) -> Result<Vec<OwnRow>, Error> {
        self.prepare_to_begin(begin);
        self.timed("BEGIN", Phase::Preparing, limits, |session| {
            let answer = session.send_begin(start);
            answer.map_err(|e| (e, Phase::Preparing))
        })
    }

    /// Returns what is held back, with the limits of this session.
    fn prepare_to_begin(&mut self, begin: &Begin) -> Begin {
        self.tracked().wire.forget_own();
        // Set before sending: if the answer is lost, a transaction may have begun.
        self.in_transaction = true;
        (self.xid, self.reads_only) = (None, begin.read_only);
        (self.sync_commit, self.sync_commit_touched) = (SyncCommit::ON, false);
        (self.in_own_backend, self.hides_warnings) = (false, false);
        (self.own_meanings, self.temporary_path) = (false, false);
        self.search_path = SearchPath::Own;
        let begin = Begin {
            // If it cannot be set on the session, it is at least set for this transaction.
            statement_timeout: begin
                .statement_timeout
                .or_else(|| self.shared.timeout_of_transactions()),
            ..*begin
        };
        self.opening = Opening::Held(begin);
        begin
    }

    /// Sends a BEGIN that waits in a round trip of its own: a statement of the simple protocol
    /// follows.
    pub(super) fn begin_alone(&mut self, limits: &Limits) -> Result<(), Error> {
        let Opening::Held(_) = self.opening else {
            return Ok(());
        };
        self.timed("BEGIN", Phase::Preparing, limits, |session| {
            let answer = session.send_begin(&Start::default());
            answer.map(drop).map_err(|e| (e, Phase::Preparing))
        })
    }

    /// Same as [`begin_alone`](Self::begin_alone), inside a call, which may have sent it already.
    pub(super) fn begin_first(&mut self) -> Result<(), postgres::Error> {
        self.settle_begin();
        if let Opening::Held(_) = self.opening {
            self.send_begin(&Start::default())?;
        }
        Ok(())
    }

    fn send_begin(&mut self, start: &Start) -> Result<Vec<OwnRow>, postgres::Error> {
        let Opening::Held(begin) = self.opening else {
            return Ok(Vec::new());
        };
        // The answer to this request ends before anything else is sent.
        self.opening = Opening::Refused;
        let last = behind(start.shown.as_deref().unwrap_or("BEGIN"));
        let sent = self.send_own(begin.statements(start), &last);
        let mut rows = sent.map_err(|(error, _)| error)?;
        self.note_begun(&rows);
        Ok(rows.split_off(rows.len().min(1)))
    }

    /// Holds statements of our own back until the next request. Returns them where that is
    /// impossible.
    fn hold_own(&self, mut statements: Vec<Own>) -> Result<(), Vec<Own>> {
        for own in &mut statements {
            if let Cow::Owned(commented) = self.with_comment(&own.text) {
                own.text = commented.into();
            }
        }
        // Behind a pooler the next transaction may run on another server connection, and with a
        // comment each text is a new one.
        let named = self.statements.is_some()
            && !self.shared.is_pooled()
            && !self.is_commented("")
            && !self.shared.loses_names.load(Ordering::Relaxed);
        match self.tracked().wire.hold_own(&statements, named) {
            true => Ok(()),
            false => Err(statements),
        }
    }

    /// Sends statements of our own, and behind them the `last` one, which has no rows. Returns the
    /// rows of the others. Nothing behind one that fails is done; with an error, returns whether
    /// the server has refused one of those in front of the last.
    fn send_own(
        &mut self,
        statements: Vec<Own>,
        last: &str,
    ) -> Result<Vec<OwnRow>, (postgres::Error, bool)> {
        let mut rows = Vec::new();
        if let Err(statements) = self.hold_own(statements) {
            for own in &statements {
                let answer = self.ask_own(own).map_err(|e| (e, true))?;
                rows.extend(answer);
            }
        }
        let last = self.with_comment(last).into_owned();
        let done = self.client.execute_typed(&last, &[]);
        let wire = &self.tracked().wire;
        let refused = match wire.take_own() {
            OwnState::Done(done) => {
                rows = done;
                false
            }
            state => state == OwnState::Refused,
        };
        wire.forget_own();
        done.map(|_| rows).map_err(|e| (e, refused))
    }

    /// Sends one of them alone.
    fn ask_own(&mut self, Own { text, params }: &Own) -> Result<Vec<OwnRow>, postgres::Error> {
        let typed: Vec<_> = params.iter().map(|value| (value, Type::TEXT)).collect();
        let rows = self.client.query_typed_raw(text, typed)?;
        let read = |row: Row| {
            let value = |at| row.try_get(at).ok().flatten();
            Ok((0..row.len()).map(value).collect())
        };
        rows.map(read).collect()
    }

    /// Takes note of what became of a BEGIN that waited for the first statement.
    pub(super) fn settle_begin(&mut self) {
        if !matches!(self.opening, Opening::Held(_)) {
            return;
        }
        match self.tracked().wire.take_own() {
            OwnState::Held(_) => {}
            OwnState::Done(rows) => self.note_begun(&rows),
            OwnState::Refused => self.opening = Opening::Refused,
            OwnState::Sent | OwnState::None => self.opening = Opening::Lost,
        }
    }

    /// Reads the evidence, which is the first row.
    fn note_begun(&mut self, rows: &[OwnRow]) {
        if self.reads_only {
            self.opening = Opening::Begun;
            return;
        }
        let Some(evidence) = rows.first().and_then(Evidence::of) else {
            // Nothing may be committed of which nothing can be found out later.
            self.opening = Opening::Lost;
            return;
        };
        self.opening = Opening::Begun;
        self.xid = evidence.xid;
        self.sync_commit = evidence.sync_commit;
        self.hides_warnings |= evidence.hides_warnings;
        self.in_own_backend = evidence.pid == self.backend.pid;
        if !self.in_own_backend {
            self.shared
                .note_pooler("a different server process answers than before");
        }
        // Only a primary assigns transaction ids.
        self.backend.standby &= self.xid.is_none();
    }

    /// Returns false if the server did not begin the current transaction, or may not have.
    pub(super) fn has_begun(&mut self) -> bool {
        self.settle_begin();
        matches!(self.opening, Opening::Begun | Opening::Held(_))
    }

    /// Ends a transaction whose BEGIN still waits: the server knows nothing of it. Returns false if
    /// there is none.
    fn end_unsent(&mut self) -> bool {
        self.settle_begin();
        let unsent = matches!(self.opening, Opening::Held(_));
        if unsent {
            self.tracked().wire.forget_own();
            self.opening = Opening::Begun;
            self.in_transaction = false;
            self.search_path = SearchPath::Own;
        }
        unsent
    }

    /// Commits in one round trip. In a transaction that the server has aborted, a plain COMMIT would
    /// roll back and be answered as a success; the statement before it fails with 25P02, and the
    /// COMMIT does not run. That statement also fails if the current transaction is not the one
    /// that was begun, because the closure has ended that one itself. A commit on the wire is never
    /// cancelled (see the watchdog). The statements in `finish` belong to the transaction.
    pub fn commit(&mut self, finish: &Finish, limits: &Limits) -> Result<(), Error> {
        if self.end_unsent() {
            return Ok(());
        }
        if std::mem::take(&mut self.sync_commit_touched) {
            self.ask_what_commit_waits_for(limits)?;
        }
        let mut check = Own::default();
        let text = match self.xid {
            Some(xid) => format!(
                "CASE WHEN pg_current_xact_id_if_assigned() IS DISTINCT FROM {}::xid8 \
                 THEN current_setting('{ENDED_INSIDE}') END",
                check.param(xid.to_string())
            ),
            None if self.reads_only => format!(
                "CASE WHEN current_setting('{READING}', true) IS DISTINCT FROM 'yes' \
                 THEN current_setting('{ENDED_INSIDE}') END"
            ),
            None => "1".to_owned(),
        };
        let Finish { values, statements } = finish;
        check.text = format!("SELECT {text}{values}").into();
        let mut all = vec![check];
        all.extend_from_slice(statements);
        all.extend(self.look_ups.take_away().into_iter().map(Own::new));
        // The server reports only in a warning that it gave up the wait for a standby.
        if self.hides_warnings {
            all.push(Own::new("SET LOCAL client_min_messages = warning"));
        }
        let result = self.timed("COMMIT", Phase::Commit, limits, |session| {
            let done = session.send_own(all, "COMMIT");
            done.map(drop).map_err(|(error, refused)| {
                // The server itself says that it did not come as far as the COMMIT.
                let phase = match refused && Symptom::of(&error).is_an_error_of_the_server() {
                    true => Phase::InTransaction,
                    false => Phase::Commit,
                };
                (error, phase)
            })
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
        if self.end_unsent() {
            return Ok(());
        }
        self.tracked().wire.forget_own();
        self.opening = Opening::Begun;
        let sql = match self.xid {
            Some(xid) => format!("ROLLBACK; SELECT pg_xact_status('{xid}'::xid8); "),
            None => "ROLLBACK; ".to_owned(),
        };
        let sql = sql + &self.look_ups.take_away().join("; ");
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

    /// Returns true if the server is a standby. An open transaction is rolled back first. With
    /// `or_was`, also returns true if the server was a standby when this session last saw: it may
    /// have been promoted since the refusal that is the reason for the question.
    pub fn is_on_standby(&mut self, or_was: bool) -> bool {
        if self.is_closing() || (self.in_transaction && self.rollback().is_err()) {
            return false;
        }
        if or_was && self.backend.standby {
            return true;
        }
        let answer = self.ask("SELECT pg_is_in_recovery()", housekeeping_until(None));
        answer.is_ok_and(|messages| first_value(&messages) == Some("t"))
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
