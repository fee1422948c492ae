//! The retry loop: checks out a session, lets the work run, asks for the verdict on an error,
//! pauses, and starts over, until the work is done, the policy says stop, or the next attempt would
//! be after the caller's deadline. A call that may have taken effect is never retried: it ends as
//! [`Error::OutcomeUnknown`].

use super::options::Call;
use crate::error::{AbandonedStage, Chain, CheckoutFailure, Error, GaveUpReason, Result};
use crate::pool::{CheckoutRequest, CloseReason, EndsWithPool, Lease, Served, Session, Span};
use crate::retry::{Phase, Repeat, RetryPolicy, Symptom, Verdict, verdict};
use crate::token::Token;
use crate::traceparent::traced;
use log::Level;
use postgres::error::SqlState;
use std::panic::Location;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A session on a server that refuses writes is replaced once it is this old: a new one may be
/// allowed to write. Replacing all at once would be a connection storm.
const REOPENED_AFTER: Duration = Duration::from_secs(1);

impl Call<'_> {
    /// Runs attempts until one succeeds or must not be followed by another.
    pub(super) fn run<T>(
        &self,
        place: &'static Location<'static>,
        attempt: impl FnMut(&mut Session) -> Result<T, Stop>,
    ) -> Result<T> {
        self.run_as(self.begin.read_only, place, attempt)
    }

    /// The same for an attempt that reads only, or not.
    pub(super) fn run_as<T>(
        &self,
        reads_only: bool,
        place: &'static Location<'static>,
        attempt: impl FnMut(&mut Session) -> Result<T, Stop>,
    ) -> Result<T> {
        let done = self.attempts(reads_only, place, attempt);
        let may_be_done = done.as_ref().err().is_none_or(Error::is_outcome_unknown);
        if let Some(standbys) = &self.pool.inner.standbys
            && !reads_only
            && may_be_done
        {
            standbys.note_write(self.client.as_ref());
        }
        if let Some(token) = self.token.as_ref().filter(|_| may_be_done && !reads_only) {
            token.note_write();
        }
        if let Err(error) = &done {
            self.note_lateness(error);
        }
        done
    }

    /// Tells the line, and the metrics, of a call that has ended too late for its caller.
    fn note_lateness(&self, error: &Error) {
        let inner = &self.pool.inner;
        if let (Error::Abandoned { stage }, Some(token)) = (error, &self.token) {
            if token.note_end() {
                let counters = &inner.shared.metrics.abandoned;
                counters.with_label_values(&[stage.as_str()]).inc();
            }
            if *stage == AbandonedStage::Running {
                inner.line.served_too_late();
            }
        }
        let is_over = |at: Instant| error.is_timeout() && Instant::now() >= at;
        if !matches!(error, Error::Checkout(_)) && self.deadline.is_some_and(is_over) {
            inner.line.served_too_late();
        }
    }

    /// The token that may end this call.
    fn token(&self) -> Option<&Token> {
        self.token.as_ref().filter(|token| !token.has_written())
    }

    fn is_abandoned(&self) -> bool {
        self.token().is_some_and(Token::is_fired)
    }

    fn attempts<T>(
        &self,
        reads_only: bool,
        place: &'static Location<'static>,
        mut attempt: impl FnMut(&mut Session) -> Result<T, Stop>,
    ) -> Result<T> {
        let inner = &self.pool.inner;
        let policy = self.policy.as_ref().unwrap_or(&self.pool.config().retry);
        let mut attempts = 1;
        let mut unfit = 0;
        loop {
            if self.is_abandoned() {
                let stage = match attempts {
                    1 => AbandonedStage::Queued,
                    _ => AbandonedStage::Waiting,
                };
                return Err(Error::Abandoned { stage });
            }
            let asked = Instant::now();
            let span = Span::attempt(attempts);
            let done = match self.check_out(asked, place) {
                // The connection may have arrived a little after the deadline.
                Ok(lease) if self.deadline.is_some_and(|at| Instant::now() >= at) => {
                    drop(lease);
                    Err(Stop::from(inner.refuse(
                        CheckoutFailure::Timeout,
                        asked,
                        place,
                    )))
                }
                Ok(lease) if self.is_abandoned() => {
                    drop(lease);
                    let stage = AbandonedStage::Waiting;
                    return Err(Error::Abandoned { stage });
                }
                Ok(mut lease) => {
                    lease.serves = Served {
                        attempt: attempts,
                        traceparent: self.traceparent,
                    };
                    let _mark = self
                        .ends_with_pool
                        .then(|| EndsWithPool::mark(lease.tracked()));
                    if self.ends_with_pool && self.pool.is_closed() {
                        let closed = CheckoutFailure::Closed;
                        return Err(inner.refuse(closed, asked, place));
                    }
                    // Ends before the lease, so that no later use of the session is cancelled.
                    let token = self.token().filter(|_| reads_only);
                    let _watch = token.map(|token| lease.cancel_on(token));
                    let done =
                        attempt(&mut lease).map_err(|stop| self.unless_demoted(stop, &mut lease));
                    // The statements that the driver had prepared there were deallocated. This does
                    // not count as an attempt: the next session is tried at once.
                    if done.as_ref().is_err_and(Stop::is_for_want_of_statements)
                        && lease.is_closing()
                        && unfit < self.pool.config().max_size
                    {
                        unfit += 1;
                        continue;
                    }
                    done
                }
                Err(error) => Err(Stop::from(error)),
            };
            let Stop {
                error,
                verdict,
                sqlstate,
                ..
            } = match done {
                Ok(value) => {
                    inner.budget.earn();
                    return Ok(value);
                }
                Err(stop) => stop,
            };
            span.failed(&error);
            let code = sqlstate.map_or(String::new(), |s| s.code().to_owned());
            let outcome = |error: Error| -> Error {
                match (verdict.repeat, &error) {
                    (Repeat::Ambiguous, Error::OutcomeUnknown { .. }) => error,
                    (Repeat::Ambiguous, _) => Error::OutcomeUnknown {
                        source: Box::new(error),
                    },
                    _ => error,
                }
            };
            let next = self.next_attempt(policy, attempts, &error, verdict);
            let pause = match next {
                Next::Pause(pause) => pause,
                Next::Return => return Err(outcome(error)),
                Next::GiveUp(GaveUpReason::MaxRetries) if policy.max_retries == 0 => {
                    return Err(outcome(error));
                }
                Next::GiveUp(reason) => {
                    return Err(Error::GaveUp {
                        attempts,
                        reason,
                        source: Box::new(outcome(error)),
                    });
                }
            };
            inner
                .shared
                .metrics
                .retries
                .with_label_values(&[code.as_str(), verdict.repeat.as_str()])
                .inc();
            traced!(
                Level::Info,
                self.traceparent,
                "db.system.name" = "postgresql",
                "db.response.status_code" = Some(&*code).filter(|code| !code.is_empty()),
                "error.type" = error.class();
                "retrying attempt={attempts} pause={pause:.1?} sqlstate={} verdict={} error={}",
                if code.is_empty() { "-" } else { &code },
                verdict.repeat.as_str(),
                Chain(&error)
            );
            let shared = &inner.shared;
            shared.observe(|o| o.retried(attempts, &error, pause));
            match self.token() {
                Some(token) => drop(token.sleep(pause)),
                None => std::thread::sleep(pause),
            }
            attempts += 1;
        }
    }

    /// After a failover, a session's server may now be a standby, which refuses writes. Then
    /// nothing was done, and another server may do it.
    fn unless_demoted(&self, stop: Stop, session: &mut Session) -> Stop {
        let meant_to_write = !self.begin.read_only && !self.pool.config().reads_only();
        if stop.refused_write && meant_to_write {
            let shared = &self.pool.inner.shared;
            shared.was_refused_a_write.store(true, Ordering::Relaxed);
        }
        // A statement that commits inside may have committed before the refusal, if there was a
        // promotion in between. So for it, only the server's present role counts.
        let inside = matches!(
            stop.error,
            Error::Database {
                phase: Phase::CommitsInside,
                ..
            }
        );
        if !(stop.refused_write && meant_to_write) {
            return stop;
        }
        if !session.is_on_standby(!inside) {
            // A change of `default_transaction_read_only` may reach new sessions only.
            if session.age() > REOPENED_AFTER {
                session.close_for(CloseReason::FailedOver);
            }
            return stop;
        }
        session.close_for(CloseReason::FailedOver);
        let opener = &self.pool.inner.opener;
        // If there is only one server, and it was a standby from the start, new sessions would not
        // help.
        if !session.backend().standby || opener.may_lead_elsewhere() {
            opener.leave_server(session.generation());
        }
        Stop {
            verdict: verdict(&Symptom::Demoted, Phase::InTransaction),
            ..stop
        }
    }

    fn check_out(&self, since: Instant, place: &'static Location<'static>) -> Result<Lease> {
        let until = self
            .deadline
            .or_else(|| since.checked_add(self.pool.config().connection_timeout));
        let impatient = self.patience.and_then(|time| since.checked_add(time));
        let until = until.into_iter().chain(impatient).min();
        self.pool.check_out(&CheckoutRequest {
            since,
            until,
            waits_for_pauses: self.deadline.is_none() && self.patience.is_none(),
            place,
            share: &self.share,
            token: self.token(),
        })
    }

    fn next_attempt(
        &self,
        policy: &RetryPolicy,
        attempts: u32,
        error: &Error,
        verdict: Verdict,
    ) -> Next {
        if !matches!(verdict.repeat, Repeat::NeverSent | Repeat::RolledBack) {
            return Next::Return;
        }
        // With a deadline, that wait lasted until the deadline.
        let waited_to_the_end =
            matches!(error, Error::Checkout(e) if e.reason == CheckoutFailure::Timeout);
        if waited_to_the_end && self.deadline.is_some() {
            return Next::Return;
        }
        let retry = attempts - 1;
        if retry >= policy.max_retries {
            return Next::GiveUp(GaveUpReason::MaxRetries);
        }
        let pause = policy.pause(retry, fastrand::f64());
        if self.deadline.is_some_and(|at| Instant::now() + pause >= at) {
            return Next::GiveUp(GaveUpReason::Deadline);
        }
        // The first retry is free. So is a retry of an attempt that never reached the server: while
        // the database is down, the opener limits the attempts to connect.
        let draws = retry > 0 && verdict.repeat != Repeat::NeverSent;
        if draws && !self.pool.inner.budget.spend() {
            let of = self.traceparent;
            traced!(
                Level::Warn,
                of,
                "db.system.name" = "postgresql";
                "no retry: the retry budget of the pool is empty"
            );
            self.pool.inner.shared.metrics.retry_budget_empty.inc();
            return Next::GiveUp(GaveUpReason::Budget);
        }
        Next::Pause(pause)
    }
}

enum Next {
    Pause(Duration),
    /// The call must not be retried.
    Return,
    /// The call could be retried, but will not be.
    GiveUp(GaveUpReason),
}

/// Why an attempt ended, and what follows for the next one.
pub(super) struct Stop {
    pub error: Error,
    pub verdict: Verdict,
    /// The SQLSTATE that the server sent.
    pub sqlstate: Option<SqlState>,
    /// A write was refused (25006) in a transaction that was not declared read only.
    pub refused_write: bool,
}

impl Stop {
    /// Stops the call from being retried, regardless of the error. An unknown outcome remains one.
    pub fn for_good(mut self) -> Stop {
        if self.verdict.repeat != Repeat::Ambiguous {
            self.verdict.repeat = Repeat::Permanent;
            self.refused_write = false;
        }
        self
    }

    /// Returns whether a prepared statement was missing (26000) and nothing was done.
    fn is_for_want_of_statements(&self) -> bool {
        let gone = self.error.sqlstate() == Some(&SqlState::INVALID_SQL_STATEMENT_NAME);
        gone && matches!(self.verdict.repeat, Repeat::NeverSent | Repeat::RolledBack)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop {
            verdict: error.verdict(),
            sqlstate: error.sqlstate().cloned(),
            refused_write: error.sqlstate() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION),
            error,
        }
    }
}
