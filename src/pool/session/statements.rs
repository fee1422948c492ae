//! Runs statements within their limits.

use super::kept::{Kept, are_as_described};
use super::life::Session;
use super::prepare::Prepared;
use super::words::Opening;
use crate::error::{AbandonedStage, Effect, Error, excerpt};
use crate::metrics::CloseReason;
use crate::pool::limits::Limits;
use crate::pool::observer::StatementEvent;
use crate::pool::param_types::Described;
use crate::pool::spans::Span;
use crate::pool::watchdog::Plan;
use crate::pool::wire::OWN_NAMES;
use crate::retry::{Facts, Fate, Phase, Progress, Symptom, verdict};
use postgres::error::SqlState;
use postgres::types::{ToSql, Type};
use postgres::{Client, Row, Statement};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The error for a wrong number of parameters. The driver itself checks the number if a statement
/// is prepared by name.
pub(super) const WRONG_COUNT: Error =
    Error::Misuse("the number of parameters does not match the statement");

/// The error of a statement that nobody needs any more.
const ABANDONED: Error = Error::Abandoned {
    stage: AbandonedStage::Running,
};

impl Session {
    /// Runs a statement and returns its rows. `phase` says what a lost answer means.
    pub fn query(
        &mut self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
        phase: Phase,
        limits: &Limits,
    ) -> Result<Vec<Row>, Error> {
        let rows = self
            .timed(sql, phase, limits, |session| {
                let text = session.with_comment(sql);
                session.with_statement(
                    sql,
                    params,
                    phase,
                    |client, statement| client.query(statement, params),
                    |client, typed| client.query_typed(&text, typed),
                    Vec::len,
                )
            })?
            .ok_or(WRONG_COUNT)?;
        if !are_as_described(&rows) {
            // Too late for these rows. The next call looks the types up again, on any session.
            self.do_not_keep(sql);
            self.forget(sql);
        }
        Ok(rows)
    }

    /// Runs a statement and returns the number of rows that it affected.
    pub fn execute(
        &mut self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
        phase: Phase,
        limits: &Limits,
    ) -> Result<u64, Error> {
        self.timed(sql, phase, limits, |session| {
            let text = session.with_comment(sql);
            session.with_statement(
                sql,
                params,
                phase,
                |client, statement| client.execute(statement, params),
                |client, typed| client.execute_typed(&text, typed),
                |touched| *touched as usize,
            )
        })?
        .ok_or(WRONG_COUNT)
    }

    /// Runs statements without parameters, separated by semicolons.
    pub fn batch_execute(&mut self, sql: &str, phase: Phase, limits: &Limits) -> Result<(), Error> {
        self.begin_alone(limits)?;
        self.timed(sql, phase, limits, |session| {
            session.take_note(&Facts::of(sql));
            let text = session.with_comment(sql);
            session.client.batch_execute(&text).map_err(|e| (e, phase))
        })
    }

    /// Runs `named` with the prepared statement, or `unnamed` if this session keeps none. Returns
    /// None if the unnamed statement takes another number of parameters.
    ///
    /// What was known of the text may be stale: a table or a type was changed, or DEALLOCATE
    /// removed the statement. Then the statement is prepared once more. Inside a transaction, which
    /// the failure has aborted, the next attempt does that.
    fn with_statement<T>(
        &mut self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
        phase: Phase,
        mut named: impl FnMut(&mut Client, &Statement) -> Result<T, postgres::Error>,
        unnamed: impl Fn(&mut Client, &[Typed<'_>]) -> Result<T, postgres::Error>,
        count: impl Fn(&T) -> usize,
    ) -> Result<Option<T>, (postgres::Error, Phase)> {
        let mut again = false;
        loop {
            let prepared = self.prepared(sql, Some(params.len()));
            let prepared = prepared.map_err(|e| self.not_prepared(e, phase))?;
            let (result, text, known) = if let Some(prepared) = prepared {
                let Prepared { kept, known, waits } = prepared;
                self.take_note(&kept.facts);
                // The preparation may have looked types up, with statements that completed.
                self.begin_request();
                let result = match waits {
                    None => named(&mut self.client, &kept.statement),
                    Some(key) => {
                        let typed = with_types(params, kept.statement.params());
                        let result = unnamed(&mut self.client, &typed);
                        self.settle_prepare(&key, &kept);
                        result
                    }
                };
                (result, Text::Prepared(kept), known)
            } else {
                let described = self.described(sql);
                let (described, known) = described.map_err(|e| self.not_prepared(e, phase))?;
                if described.params.len() != params.len() {
                    self.forget(sql);
                    return Ok(None);
                }
                self.take_note(&described.facts);
                let typed = with_types(params, &described.params);
                self.begin_request();
                let result = unnamed(&mut self.client, &typed);
                (result, Text::Described(described), known)
            };
            let error = match result {
                Ok(value) => {
                    self.rows = Some(count(&value) as u64);
                    return Ok(Some(value));
                }
                Err(e) => e,
            };
            if !self.has_begun() {
                // It says nothing about the statement.
                return Err((error, phase));
            }
            let symptom = Symptom::of(&error);
            let never_sent = symptom == Symptom::BadCall;
            let stale_plan = symptom == Symptom::StalePlan;
            if !may_be_stale(&symptom, known) {
                if again {
                    // The cause was not stale knowledge. The next call with this text prepares it
                    // anew and runs it once.
                    self.do_not_keep(sql);
                }
                return Err((error, phase));
            }
            let undone = match self.tracked().wire.progress() {
                _ if never_sent => true,
                Progress::NothingSent | Progress::Sent => true,
                // The statement was done, or may have been; the error comes from what the driver
                // did after it.
                Progress::Completed | Progress::Answered => false,
            };
            self.forget(sql);
            if !undone {
                return Err((error, phase));
            }
            if error.code() == Some(&SqlState::INVALID_SQL_STATEMENT_NAME)
                && let Some(statements) = &mut self.statements
            {
                // If one statement is gone, the others most likely are, too.
                statements.forget_all();
            }
            let inside = matches!(phase, Phase::InTransaction | Phase::CommitsInside);
            if inside && !never_sent {
                self.do_not_keep(sql);
            }
            if again {
                if stale_plan {
                    // The session's cached plan cannot be repaired.
                    self.close_for(CloseReason::Broken);
                }
                return Err((error, phase));
            }
            if inside && !never_sent {
                let outdated = known && phase == Phase::InTransaction;
                return Err((error, if outdated { Phase::Outdated } else { phase }));
            }
            if never_sent {
                let mistaken = self.expects_still(sql, text.params());
                // Nothing of the request itself was sent.
                self.begin_request();
                if mistaken {
                    return Err((error, phase));
                }
            }
            again = true;
        }
    }

    /// Runs `work` within the limits, measures it, and acts on a failure.
    pub(super) fn timed<T>(
        &mut self,
        sql: &str,
        phase: Phase,
        limits: &Limits,
        work: impl FnOnce(&mut Session) -> Result<T, (postgres::Error, Phase)>,
    ) -> Result<T, Error> {
        self.shared.may_block_here()?;
        if self.in_call {
            return Err(Error::TransactionAborted {
                cause: "a call on its connection panicked".into(),
                sqlstate: None,
            });
        }
        if self.is_closing() {
            // A cancel request is on its way, or the deadline passed just as the last answer came.
            let at_deadline = self.was_cancelled || self.tracked().wire.is_aborted();
            return Err(match at_deadline {
                true => Error::TransactionAborted {
                    cause: "its connection was cut at a deadline".into(),
                    sqlstate: Some(SqlState::QUERY_CANCELED),
                },
                false => Error::TransactionAborted {
                    cause: "its connection was given up after an earlier error".into(),
                    sqlstate: None,
                },
            });
        }
        if phase != Phase::Preparing && !self.has_begun() {
            // The statement would run outside of the transaction.
            return Err(Error::TransactionAborted {
                cause: "the transaction could not be begun".into(),
                sqlstate: None,
            });
        }
        if phase != Phase::Commit && self.is_abandoned() {
            return Err(ABANDONED);
        }
        // Clears a warning that belongs to an earlier statement.
        self.gave_up_on_standbys();
        self.begin_request();
        let started = Instant::now();
        let plan = if phase == Phase::Commit {
            Plan::Abort
        } else {
            Plan::Cancel
        };
        let armed = self.client.registration().arm(limits.act_at(started), plan);
        // Looked at again: from here on, the token's cancel finds something to cancel.
        if plan == Plan::Cancel && self.is_abandoned() {
            if armed.disarm() && !self.cancel_is_over() {
                self.close_for(CloseReason::Broken);
            }
            return Err(ABANDONED);
        }
        let span = match phase {
            Phase::Commit => Span::commit(&self.shared.config),
            _ => Span::statement(&self.shared.config, sql),
        };
        self.in_call = true;
        self.rows = None;
        let result = work(self);
        self.in_call = false;
        self.settle_begin();
        // Otherwise it has run outside of the transaction.
        debug_assert!(
            result.is_err()
                || phase != Phase::InTransaction
                || matches!(self.opening, Opening::Begun),
            "BEGIN left before or with each statement that was done"
        );
        let cancelled = armed.disarm();
        let took = started.elapsed();
        self.shared.metrics.operation.observe(took.as_secs_f64());
        if self
            .shared
            .config
            .slow_query
            .is_some_and(|limit| took > limit)
        {
            let code = result.as_ref().err().and_then(|(error, _)| error.code());
            let of = self.serves.traceparent;
            self.shared.note_slow(sql, took, code, of);
        }
        if result.is_ok() {
            self.hear(started + took);
        }
        if cancelled && !self.cancel_is_over() {
            self.was_cancelled = true;
            // The cancel signal may still arrive, and would hit the next statement.
            self.close_for(CloseReason::Broken);
        }
        let result = match result {
            Ok(_) if self.gave_up_on_standbys() => Err(Error::NotReplicated),
            Ok(value) => Ok(value),
            Err((error, phase)) => Err(self.failed(sql, error, phase, cancelled, took, limits)),
        };
        span.end(&result);
        let event = StatementEvent {
            connection: self.id(),
            sql,
            took,
            rows: self.rows.filter(|_| result.is_ok()),
            attempt: self.serves.attempt,
            error: result.as_ref().err(),
        };
        self.shared.observe(|o| o.statement(&event));
        result
    }

    /// Returns whether a cancel request that was sent because nobody needs the result any more
    /// cannot hit a later statement. Behind a pooler that is never known.
    fn cancel_is_over(&self) -> bool {
        self.is_abandoned()
            && !self.shared.is_pooled()
            && !self.tracked().wire.is_aborted()
            && self.tracked().await_cancel()
    }

    fn failed(
        &mut self,
        sql: &str,
        source: postgres::Error,
        phase: Phase,
        cancelled: bool,
        took: Duration,
        limits: &Limits,
    ) -> Error {
        let (asked, progress) = (phase, self.tracked().wire.progress());
        let phase = match self.opening {
            // Nothing that the transaction is for was done.
            Opening::Held(_) | Opening::Refused if phase == Phase::InTransaction => {
                Phase::Preparing
            }
            _ => phase.once_seen(progress),
        };
        let code = source.code().map_or("", SqlState::code);
        let failures = &self.shared.metrics.failed_statements;
        failures.with_label_values(&[code]).inc();
        let symptom = Symptom::of(&source);
        if symptom == Symptom::StalePlan
            || symptom == Symptom::Server(&SqlState::INVALID_SQL_STATEMENT_NAME)
        {
            self.tracked().wire.forget_names();
            let message = source.as_db_error().map_or("", |db| db.message());
            if message.contains(OWN_NAMES) {
                self.shared.note_lost_names();
            }
        }
        if verdict(&symptom, phase).session == Fate::Discard {
            self.close_for(CloseReason::Broken);
            self.shared.note_trouble();
        }
        if cancelled && self.is_abandoned() {
            return ABANDONED;
        }
        let cut_by_us = cancelled || self.tracked().wire.is_aborted();
        let stopped =
            source.code() == Some(&SqlState::QUERY_CANCELED) || self.tracked().wire.is_aborted();
        let error = match limits.reached(took, cut_by_us).filter(|_| stopped) {
            Some(limit) => Error::QueryTimeout {
                limit,
                sql: excerpt(sql),
                source,
                phase,
                effect: Effect::ByPhase,
            },
            None => Error::in_phase(phase, source),
        };
        // The statement was done, but its rows are lost: the driver failed in a request of its own
        // after it.
        let lone = matches!(asked, Phase::Statement | Phase::CommitsInside);
        if lone && progress == Progress::Answered {
            self.close_for(CloseReason::Broken);
            return Error::OutcomeUnknown {
                source: Box::new(error),
            };
        }
        error
    }
}

/// What is known of a text.
enum Text {
    Prepared(Kept),
    Described(Arc<Described>),
}

impl Text {
    fn params(&self) -> &[Type] {
        match self {
            Text::Prepared(kept) => kept.statement.params(),
            Text::Described(described) => &described.params,
        }
    }
}

/// Returns whether an error may be caused by stale knowledge of a text, instead of by the text.
/// `known` says that the knowledge is from before this call.
fn may_be_stale(symptom: &Symptom<'_>, known: bool) -> bool {
    match symptom {
        Symptom::StalePlan => true,
        Symptom::BadCall => known,
        Symptom::Server(code) => {
            **code == SqlState::INVALID_SQL_STATEMENT_NAME
                // These were correct when the text was prepared: the names, the types and their
                // operations; or the form of a value.
                || known
                    && ((code.code().starts_with("42") && **code != SqlState::INSUFFICIENT_PRIVILEGE)
                        || **code == SqlState::INVALID_BINARY_REPRESENTATION
                        || **code == SqlState::INTERNAL_ERROR)
        }
        _ => false,
    }
}

/// A parameter, and the type that the server expects there.
pub(super) type Typed<'p> = (&'p (dyn ToSql + Sync), Type);

pub(super) fn with_types<'p>(params: &[&'p (dyn ToSql + Sync)], types: &[Type]) -> Vec<Typed<'p>> {
    let params = params.iter().copied();
    params.zip(types.iter().cloned()).collect()
}
