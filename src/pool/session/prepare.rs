//! What a session learns about a text before it runs it: it prepares or describes it, and notes
//! what state it may leave.

use super::kept::{Kept, SearchPath};
use super::life::Session;
use crate::metrics::CloseReason;
use crate::pool::backend::first_value;
use crate::pool::param_types::{Described, needs_look_up};
use crate::retry::{Facts, Leaves, Phase};
use postgres::error::SqlState;
use postgres::types::Type;
use std::sync::Arc;

/// The search path as it is set, and as the server resolves it for the current role.
const PATH: &str = "SELECT current_setting('search_path') || ' ' || current_schemas(true)::text";

/// A prepared statement that is about to be run.
pub(super) struct Prepared {
    pub kept: Kept,
    /// It, or what the driver knows of its types, is from an earlier use.
    pub known: bool,
    /// The server knows nothing of it yet: its preparation waits for a run with the text. Contains
    /// the key that it is kept under.
    pub waits: Option<Box<str>>,
}

impl Session {
    /// Returns the prepared statement for this text; None if this session keeps no statements, or
    /// sends this one with a comment. A statement that is newly prepared takes one more round trip,
    /// unless the pool knows the text and it is to be run now, with so many parameters.
    pub(super) fn prepared(
        &mut self,
        sql: &str,
        run_with: Option<usize>,
    ) -> Result<Option<Prepared>, postgres::Error> {
        // Behind a pooler the next transaction may run on another server connection, where the name
        // is unknown or belongs to another client's statement.
        if self.statements.is_none() || self.shared.is_pooled() || self.is_commented(sql) {
            return Ok(None);
        }
        self.ask_for_search_path()?;
        let key = self.search_path.key(sql);
        let may_keep = self.may_keep(&key);
        let Some(statements) = &mut self.statements else {
            return Ok(None);
        };
        match statements.get(&key) {
            Some(kept) if may_keep && !kept.is_old() => {
                return Ok(Some(Prepared {
                    kept: kept.clone(),
                    known: true,
                    waits: None,
                }));
            }
            Some(kept) if kept.has_own_types() => {
                self.client.clear_type_cache();
                self.look_ups.forget_types();
            }
            _ => {}
        }
        let descriptions = &self.shared.descriptions;
        let described = run_with
            .filter(|_| may_keep)
            .and_then(|params| descriptions.for_prepare(&key, params));
        let description = described.and_then(|described| described.description.clone());
        let wire = Arc::clone(&self.client.registration().tracked.wire);
        let told = description.is_some_and(|description| wire.expect_prepare(description, true));
        let statement = self.client.prepare(sql)?;
        let waits = told && wire.holds_prepare();
        let kept = Kept::new(statement, Facts::of(sql));
        self.driver_looks_up |= kept.has_own_types();
        let has_old_types = kept.has_own_types() && self.look_ups.keep_types();
        if may_keep {
            statements.put(&key, kept.clone());
            if !waits {
                descriptions.put(&key, &Arc::new(kept.described()));
            }
        }
        Ok(Some(Prepared {
            kept,
            known: waits || has_old_types,
            waits: waits.then(|| key.into()),
        }))
    }

    /// Keeps a statement whose preparation left with its first run if the server has described it
    /// as the driver was told, else forgets it.
    pub(super) fn settle_prepare(&mut self, key: &str, kept: &Kept) {
        match self.tracked().wire.take_prepares()[..] {
            [true] => (self.shared.descriptions).put(key, &Arc::new(kept.described())),
            _ => self.forget_key(key),
        }
    }

    /// Forgets what was prepared or described for this text, because it does not match what the
    /// server expects any more.
    pub(super) fn forget(&mut self, sql: &str) {
        let key = self.search_path.key(sql).into_owned();
        self.forget_key(&key);
    }

    fn forget_key(&mut self, key: &str) {
        if let Some(statements) = &mut self.statements {
            statements.forget(key);
        }
        self.shared.descriptions.forget(key);
        self.client.clear_type_cache();
        self.look_ups.forget_types();
    }

    /// Returns whether the prepared form or the description of a text may be kept.
    ///
    /// A temporary table hides another table of the same name within this transaction. A statement
    /// that was prepared before still uses the other one: the server does not check whether a table
    /// that did not exist then now comes first.
    pub(super) fn may_keep(&self, key: &str) -> bool {
        !(self.in_transaction && self.own_meanings) && self.shared.descriptions.may_keep(key)
    }

    /// Stops this text from being kept, on every session, for a while.
    pub(super) fn do_not_keep(&self, sql: &str) {
        let key = self.search_path.key(sql);
        self.shared.descriptions.do_not_keep(&key);
    }

    /// Asks for the current `search_path` if a statement of this transaction has mentioned that
    /// setting.
    pub(super) fn ask_for_search_path(&mut self) -> Result<(), postgres::Error> {
        if let SearchPath::Doubtful = self.search_path {
            self.begin_first()?;
            let answer = self.client.simple_query(PATH)?;
            let path = first_value(&answer);
            self.search_path = SearchPath::Set(path.unwrap_or_default().into());
        }
        Ok(())
    }

    /// Notes what a statement may leave behind, before it is sent.
    pub(super) fn take_note(&mut self, facts: &Facts) {
        self.dirty |= facts.leaves > Leaves::Nothing;
        self.leaves_traces |= facts.leaves == Leaves::Traces;
        if !self.in_transaction {
            return;
        }
        self.sync_commit_touched |= facts.names_synchronous_commit;
        self.hides_warnings |= facts.names_client_min_messages;
        // In a transaction, the meaning of a text may depend on the statements before it.
        self.temporary_path |= facts.temporary_path;
        let by_path = facts.creates && self.temporary_path;
        self.own_meanings |= facts.makes_temporary || by_path;
        self.dirty |= by_path;
        let path_was_set = !matches!(self.search_path, SearchPath::Own);
        if facts.names_search_path || (facts.rolls_back && path_was_set) {
            self.search_path = SearchPath::Doubtful;
        }
        if facts.deallocates {
            self.look_ups.doubt();
            self.tracked().wire.forget_names();
        }
    }

    /// Returns what the server says about a statement that is not kept prepared, and whether that,
    /// or what the driver knows of its types, was known already. When this returns, the client
    /// knows all types of the statement's rows. A description that was not known takes one more
    /// round trip, or three if a transaction must be begun for it.
    pub(super) fn described(
        &mut self,
        sql: &str,
    ) -> Result<(Arc<Described>, bool), postgres::Error> {
        self.ask_for_search_path()?;
        let key = self.search_path.key(sql);
        let may_keep = self.may_keep(&key);
        if may_keep
            && let Some(described) = self.shared.descriptions.get(&key)
            && self.look_ups.cover(&described)
        {
            return Ok((described, true));
        }
        // It may wait for a lock, too.
        let text = self.with_comment(sql);
        let described = match self.shared.is_pooled() {
            true => self.describe_past_others(&text)?,
            false => self.look_ups.describe(&mut self.client, &text, false)?,
        };
        let described = Arc::new(described);
        let has_old_types =
            described.params.iter().any(needs_look_up) && self.look_ups.keep_types();
        if may_keep {
            self.shared.descriptions.put(&key, &described);
        }
        Ok((described, has_old_types))
    }

    /// Describes a statement behind a pooler, inside a transaction: the current one, or a new one
    /// if there is none. A name that another program has left on the server connection causes at
    /// most one failure, since the driver takes another name for the next try.
    pub(super) fn describe_past_others(&mut self, sql: &str) -> Result<Described, postgres::Error> {
        const MOST_NAMES: u32 = 100;
        if self.in_transaction {
            self.begin_first()?;
        }
        let begin = match self.in_transaction {
            true => "SAVEPOINT millpond_describe",
            false => "BEGIN; SAVEPOINT millpond_describe",
        };
        let mut names = 0;
        loop {
            self.client.batch_execute(begin)?;
            let described = self.look_ups.describe(&mut self.client, sql, true);
            names += 1;
            let taken = described
                .as_ref()
                .is_err_and(|e| names < MOST_NAMES && is_name_taken(e));
            if self.in_transaction && described.is_err() && !taken {
                // The transaction has failed for good, as it would have without the look-up.
                return described;
            }
            let undone = self.undo_describing(described.is_err());
            if undone.is_err() {
                self.close_for(CloseReason::Broken);
            }
            match described {
                Err(_) if taken && undone.is_ok() => {}
                // The first error says more than that of the undo.
                Err(e) => return Err(e),
                Ok(described) => return undone.map(|()| described),
            }
        }
    }

    /// Undoes the description. A rollback does not remove prepared statements, so they are
    /// deallocated here, or at the end of the current transaction.
    fn undo_describing(&mut self, failed: bool) -> Result<(), postgres::Error> {
        const BACK: &str = "ROLLBACK TO SAVEPOINT millpond_describe; ";
        let mut undo = String::from(BACK);
        if failed {
            self.client.batch_execute(BACK)?;
            for name in self.look_ups.note_statements(&mut self.client)? {
                undo += &format!("DEALLOCATE {name}; ");
            }
        }
        undo += &match self.in_transaction {
            true => "RELEASE SAVEPOINT millpond_describe".to_owned(),
            false => "ROLLBACK; ".to_owned() + &self.look_ups.take_away().join("; "),
        };
        self.client.batch_execute(&undo)
    }

    /// Returns whether the text, prepared or described anew, still takes values of these types.
    pub(super) fn expects_still(&mut self, sql: &str, types: &[Type]) -> bool {
        match self.prepared(sql, None) {
            Ok(Some(prepared)) => prepared.kept.statement.params() == types,
            Ok(None) => self.described(sql).is_ok_and(|(d, _)| d.params == types),
            Err(_) => true,
        }
    }

    /// Handles the failure to prepare or describe a statement, no part of which has run.
    pub(super) fn not_prepared(
        &mut self,
        error: postgres::Error,
        phase: Phase,
    ) -> (postgres::Error, Phase) {
        if error.code() == Some(&SqlState::INVALID_SQL_STATEMENT_NAME) && self.has_begun() {
            // The statements that the driver prepared for its own look-ups are gone, and the driver
            // does not notice.
            self.close_for(CloseReason::LeakedState);
        }
        (error, Phase::Preparing.or_inside(phase))
    }
}

fn is_name_taken(error: &postgres::Error) -> bool {
    error.code() == Some(&SqlState::DUPLICATE_PSTATEMENT)
}

impl Phase {
    /// Returns the phase of a preparation. Inside a transaction it is that of the statement: losing
    /// the connection loses the transaction.
    fn or_inside(self, statement: Phase) -> Phase {
        if statement == Phase::InTransaction {
            statement
        } else {
            self
        }
    }
}
