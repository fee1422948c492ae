//! Reads: on a standby if there is one that is good enough, else on the primary.

use super::options::Call;
use super::refusals::{Params, refuse_control, refuse_too_many};
use super::rows::scalar;
use super::run::Stop;
use crate::commit::transact;
use crate::error::{Error, Result};
use crate::pool::{After, Begin, INSERTED, Pool, Session};
use crate::retry::{Phase, Repeat, Verdict, commits_inside, names_a_write, writes_large_objects};
use crate::traceparent::traced;
use log::Level;
use postgres::Row;
use postgres::error::SqlState;
use postgres::types::PgLsn;
use std::panic::Location;
use std::time::{Duration, Instant};

impl Pool {
    /// Runs a statement that only reads.
    ///
    /// It is retried even if its answer was lost, and then in a READ ONLY transaction: a write that
    /// is passed by mistake is refused there and reported as [`Error::OutcomeUnknown`], and is
    /// never done twice.
    ///
    /// With [standbys](crate::pool::Builder::read_hosts), it runs on one of them if that has all
    /// that was written for the same [client](Call::client). If a standby fails, for whatever
    /// reason, another one or the primary is asked.
    ///
    /// # Errors
    /// As for [`query`](Pool::query).
    #[track_caller]
    pub fn read(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>> {
        self.call().read(sql, params)
    }

    /// Returns the primary's position in the write-ahead log, for
    /// [`read_after`](Pool::read_after): all that was committed before is before it. Takes a round
    /// trip.
    ///
    /// # Errors
    /// As for [`query`](Pool::query).
    #[track_caller]
    pub fn current_lsn(&self) -> Result<PgLsn> {
        let sql = format!("SELECT '0/0'::pg_lsn + {INSERTED}");
        scalar(self.call().on_primary().read(&sql, &[])?)
    }
}

impl Call<'_> {
    /// Same as [`Pool::read`], with this call's options.
    ///
    /// # Errors
    /// As for [`Pool::query`].
    #[track_caller]
    pub fn read(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>> {
        // READ ONLY does not stop these from taking effect twice.
        if commits_inside(sql) || writes_large_objects(sql) {
            return self.query(sql, params);
        }
        refuse_control(sql)?;
        refuse_too_many(params)?;
        let place = Location::caller();
        let mut lost = false;
        if let Some(done) = self.read_on_standby(sql, params, place, &mut lost) {
            return done;
        }
        let done = self.read_where(sql, params, place, &mut lost, |_| true);
        // A write that is passed by mistake is done here, so its client is to see it.
        if let Some(standbys) = &self.pool.inner.standbys
            && names_a_write(sql)
        {
            standbys.note_write(self.client.as_ref());
        }
        Ok(done?.unwrap_or_default())
    }

    /// Tries the standbys that are good enough, the best first. None if it is the primary's turn.
    fn read_on_standby(
        &self,
        sql: &str,
        params: Params<'_>,
        place: &'static Location<'static>,
        lost: &mut bool,
    ) -> Option<Result<Vec<Row>>> {
        let inner = &self.pool.inner;
        let standbys = inner.standbys.as_ref()?;
        if inner.shared.process.is_another() {
            return None;
        }
        let reads = &inner.shared.metrics.reads;
        let after = After {
            moment: standbys.last_write(self.client.as_ref()),
            position: self.after.map(u64::from),
        };
        // On a connection that this thread has checked out, it may have written.
        let on_primary = self.on_primary || inner.shared.watchdog.held_by_this_thread().is_some();
        let mut tried = Vec::new();
        while !on_primary
            && let Some((nth, pool)) =
                standbys.choose(after, &tried, self.pool, Pool::use_in_thousandths)
        {
            tried.push(nth);
            let call = self.tried_on(pool, self.patience_with_standbys());
            let admits =
                |session: &mut Session| standbys.admits(nth, after, session, self.deadline);
            match call.read_where(sql, params, place, lost, admits) {
                Ok(None) => {}
                Ok(Some(rows)) => {
                    reads.with_label_values(&["standby"]).inc();
                    return Some(Ok(rows));
                }
                Err(error) if self.goes_on_after(&error) => {
                    let code = error.sqlstate().map_or("-", SqlState::code);
                    traced!(
                        Level::Info,
                        self.traceparent,
                        "db.system.name" = "postgresql",
                        "db.response.status_code" = error.sqlstate().map(SqlState::code),
                        "error.type" = error.class();
                        "a read goes on elsewhere, after a try on a standby: sqlstate={code}"
                    );
                }
                Err(error) => {
                    reads.with_label_values(&["standby"]).inc();
                    return Some(Err(error));
                }
            }
        }
        let server = if tried.is_empty() { "primary" } else { "moved" };
        reads.with_label_values(&[server]).inc();
        None
    }

    /// Returns how long to wait for a connection to a standby: no longer than leaves as much time
    /// for the primary.
    fn patience_with_standbys(&self) -> Duration {
        let whole = self.pool.config().connection_timeout;
        let left = self
            .deadline
            .map(|at| at.saturating_duration_since(Instant::now()));
        left.map_or(whole, |left| left.min(whole)) / 2
    }

    /// Returns whether a read that failed on a standby may succeed on another server.
    fn goes_on_after(&self, error: &Error) -> bool {
        // The server has cancelled it at its limit, so it works, and others would take as long.
        let took_too_long = error.sqlstate() == Some(&SqlState::QUERY_CANCELED);
        let is_over = self.deadline.is_some_and(|at| Instant::now() >= at);
        let is_ours = matches!(error, Error::Misuse(_) | Error::Abandoned { .. });
        !took_too_long && !is_over && !is_ours
    }

    /// Runs it on this call's own pool, on a session that `admits` it, else returns None. `lost`:
    /// the answer of an attempt was lost, here or before.
    fn read_where(
        &self,
        sql: &str,
        params: Params<'_>,
        place: &'static Location<'static>,
        lost: &mut bool,
        admits: impl Fn(&mut Session) -> bool,
    ) -> Result<Option<Vec<Row>>> {
        self.run_as(true, place, |session| {
            if !admits(session) {
                return Ok(None);
            }
            let limits = self.limits(session);
            // If it needs a transaction, that is a READ ONLY one: a standby offers no other.
            let begin = Begin {
                read_only: true,
                ..self.begin_with_timeout()
            };
            let answer = if *lost || self.needs_transaction(session) {
                let limits = self.limits_in_transaction(session);
                transact(self.pool, session, &begin, &limits, |s| {
                    s.query(sql, params, Phase::InTransaction, &limits)
                })
            } else {
                session.query(sql, params, Phase::Statement, &limits)
            };
            answer.map(Some).map_err(|error| {
                if *lost && error.sqlstate() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) {
                    // The statement writes, and the attempt whose answer was lost may have done so.
                    return Stop::from(Error::OutcomeUnknown {
                        source: Box::new(error),
                    });
                }
                let verdict = error.verdict();
                match verdict.repeat {
                    // A read that was cut at its deadline has no outcome worth knowing.
                    Repeat::Ambiguous if error.is_timeout() => {
                        *lost = true;
                        Stop {
                            verdict: Verdict {
                                repeat: Repeat::Permanent,
                                ..verdict
                            },
                            refused_write: false,
                            ..Stop::from(error)
                        }
                    }
                    Repeat::Ambiguous => {
                        *lost = true;
                        Stop::from(error.without_effect())
                    }
                    _ => Stop {
                        refused_write: false,
                        ..Stop::from(error)
                    },
                }
            })
        })
    }
}
