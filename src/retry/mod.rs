//! Repeating what may be repeated.
//!
//! `backoff`, `budget`, `sql` and `verdict` are pure. The loop is here: it checks a session out, lets the work run, asks the verdict,
//! pauses the thread, and starts over, until the work is done, the policy says stop, or the caller's deadline would be
//! outlived. What may have taken effect is never repeated: it ends as [`Error::OutcomeUnknown`].

mod backoff;
mod budget;
mod sql;
mod verdict;

pub use backoff::RetryPolicy;
pub(crate) use budget::Budget;
pub(crate) use sql::{
    Facts, Leaves, commits_inside, controls_transaction, copies_through_client,
    writes_large_objects,
};
pub(crate) use verdict::Progress;
pub use verdict::{Fate, Phase, Repeat, Symptom, Verdict, verdict};

use crate::error::{Chain, CheckoutFailure, Error, GaveUpReason, Result};
use crate::pool::{Begin, CloseReason, Lease, Limits, Pool, Session};
use crate::transaction::transact;
use log::{info, warn};
use postgres::error::SqlState;
use postgres::types::ToSql;
use postgres::{IsolationLevel, Row};
use std::panic::Location;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

pub(crate) type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

impl Pool {
    /// Runs any one statement and returns its rows. Repeated only when it provably took no effect.
    ///
    /// A warm call costs one round trip: the statement is prepared once per connection. A parameter `$1` takes a Rust value
    /// that fits the type which the server expects there ([`postgres::types::ToSql`]).
    ///
    /// # Errors
    /// [`Error::OutcomeUnknown`] when it was sent and its answer lost; else the last attempt's error, in
    /// [`Error::GaveUp`] when there was more than one.
    #[track_caller]
    pub fn query(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>> {
        self.call().query(sql, params)
    }

    /// Runs any one statement and returns the number of rows that it touched; else as [`query`](Pool::query).
    ///
    /// # Errors
    /// As [`query`](Pool::query).
    #[track_caller]
    pub fn execute(&self, sql: &str, params: Params<'_>) -> Result<u64> {
        self.call().execute(sql, params)
    }

    /// Runs a statement that only reads. Repeated also when its answer was lost, and then in a READ ONLY transaction: a write
    /// passed by mistake is refused there and reported as [`Error::OutcomeUnknown`], never done twice.
    ///
    /// # Errors
    /// As [`query`](Pool::query).
    #[track_caller]
    pub fn read(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>> {
        self.call().read(sql, params)
    }

    /// For one call: replaces both timeouts of a statement, the server's and ours; zero = off. The server's cannot be replaced
    /// for what commits inside (`CALL`, `VACUUM`, ..): for a long one, `SET statement_timeout` on a [plain
    /// connection](Pool::get), which is cleaned afterwards.
    pub fn with_timeout(&self, limit: Duration) -> Call<'_> {
        self.call().with_timeout(limit)
    }

    /// For one call: replaces the retry policy.
    pub fn with_policy(&self, policy: RetryPolicy) -> Call<'_> {
        self.call().with_policy(policy)
    }

    /// For one call: a moment by which it must have ended, with all its waiting, its attempts and their pauses, to within 550 ms.
    pub fn with_deadline(&self, at: Instant) -> Call<'_> {
        self.call().with_deadline(at)
    }

    /// A call with options.
    pub fn call(&self) -> Call<'_> {
        Call {
            pool: self,
            timeout: None,
            policy: None,
            deadline: None,
            key_wait: None,
            begin: Begin::default(),
        }
    }
}

/// One call on a pool, with options of its own. Made by [`Pool::with_timeout`] and its like; may be used again.
#[derive(Clone)]
#[must_use = "options do nothing before a statement is run with them"]
pub struct Call<'p> {
    pub(crate) pool: &'p Pool,
    pub(crate) timeout: Option<Duration>,
    policy: Option<RetryPolicy>,
    deadline: Option<Instant>,
    pub(crate) key_wait: Option<Duration>,
    pub(crate) begin: Begin,
}

impl Call<'_> {
    /// Replaces both timeouts of a statement, the server's and ours; zero = off.
    pub fn with_timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit.min(LONGEST_TIMEOUT));
        self
    }

    /// Replaces the retry policy.
    pub fn with_policy(mut self, policy: RetryPolicy) -> Self {
        self.policy = Some(policy);
        self
    }

    /// A moment by which the call must have ended, with all its waiting, its attempts and their pauses. It returns 550 ms
    /// after that at the latest, also where the server is frozen: the server is given 500 ms to obey a cancel. In a call with a
    /// deadline, the wait for a connection is bounded by it alone, and no attempt. Together with a timeout, what is left of
    /// the time is the server's timeout of each attempt's transaction, too. A transaction that stands still for longer than
    /// there is time is ended by the server (`idle_in_transaction_session_timeout`), also when this program has stopped.
    pub fn with_deadline(mut self, at: Instant) -> Self {
        self.deadline = Some(at);
        self
    }

    /// How long from the beginning of the call a transaction with a key waits for another that has the key in hand, before it
    /// ends as [`Error::KeyInUse`]. Without this, it waits up to the statement timeout, and ends as [`Error::QueryTimeout`].
    pub fn with_key_wait(mut self, limit: Duration) -> Self {
        self.key_wait = Some(limit.min(LONGEST_TIMEOUT));
        self
    }

    /// The isolation level of its transaction.
    pub fn isolation_level(mut self, level: IsolationLevel) -> Self {
        self.begin.isolation = match level {
            IsolationLevel::ReadUncommitted => Some("READ UNCOMMITTED"),
            IsolationLevel::ReadCommitted => Some("READ COMMITTED"),
            IsolationLevel::RepeatableRead => Some("REPEATABLE READ"),
            IsolationLevel::Serializable => Some("SERIALIZABLE"),
            _ => self.begin.isolation,
        };
        self
    }

    /// Its transaction is READ ONLY.
    pub fn read_only(mut self) -> Self {
        self.begin.read_only = true;
        self
    }

    /// As [`Pool::query`].
    ///
    /// # Errors
    /// As [`Pool::query`].
    #[track_caller]
    pub fn query(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>> {
        refuse_too_many(params)?;
        self.lone(sql, |session, phase, limits| {
            session.query(sql, params, phase, limits)
        })
    }

    /// As [`Pool::execute`].
    ///
    /// # Errors
    /// As [`Pool::query`].
    #[track_caller]
    pub fn execute(&self, sql: &str, params: Params<'_>) -> Result<u64> {
        refuse_too_many(params)?;
        self.lone(sql, |session, phase, limits| {
            session.execute(sql, params, phase, limits)
        })
    }

    /// As [`Pool::read`].
    ///
    /// # Errors
    /// As [`Pool::query`].
    #[track_caller]
    pub fn read(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>> {
        // What READ ONLY does not keep from being done twice.
        if commits_inside(sql) || writes_large_objects(sql) {
            return self.query(sql, params);
        }
        refuse_control(sql)?;
        refuse_too_many(params)?;
        let mut lost = false;
        self.run(Location::caller(), |session| {
            let limits = self.limits(session);
            // Where it needs a transaction it is a READ ONLY one: a standby has no others.
            let begin = Begin {
                read_only: true,
                ..self.begin_with_timeout()
            };
            let answer = if lost || self.needs_transaction(session) {
                let limits = self.limits_in_transaction(session);
                transact(session, &begin, &limits, |s| {
                    s.query(sql, params, Phase::InTransaction, &limits)
                })
            } else {
                session.query(sql, params, Phase::Statement, &limits)
            };
            answer.map_err(|error| {
                if lost && error.sqlstate() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) {
                    // It writes, and the attempt whose answer was lost may have done so.
                    return Stop::from(Error::OutcomeUnknown {
                        source: Box::new(error),
                    });
                }
                let verdict = error.verdict();
                match verdict.repeat {
                    // A read that was cut off at its deadline has no outcome that anybody could want to know.
                    Repeat::Ambiguous if error.is_timeout() => Stop {
                        error,
                        verdict: Verdict {
                            repeat: Repeat::Permanent,
                            ..verdict
                        },
                        refused_write: false,
                    },
                    Repeat::Ambiguous => {
                        lost = true;
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

    #[track_caller]
    fn lone<T>(
        &self,
        sql: &str,
        work: impl Fn(&mut Session, Phase, &Limits) -> Result<T>,
    ) -> Result<T> {
        refuse_control(sql)?;
        let inside = commits_inside(sql);
        self.run(Location::caller(), |session| {
            let limits = self.limits(session);
            let result = if inside {
                // Not for a transaction.
                work(session, Phase::CommitsInside, &limits)
            } else if self.needs_transaction(session) {
                let limits = self.limits_in_transaction(session);
                let begin = self.begin_with_timeout();
                transact(session, &begin, &limits, |s| {
                    work(s, Phase::InTransaction, &limits)
                })
            } else {
                work(session, Phase::Statement, &limits)
            };
            result.map_err(Stop::from)
        })
    }

    /// A limit longer than the server's own needs the server's lifted, for this statement alone: a transaction with SET LOCAL
    /// in the message that begins it, never a SET on the session. A shorter one is kept by us, at no cost.
    fn needs_transaction(&self, session: &Session) -> bool {
        let longer = match (self.timeout, session.server_timeout()) {
            (None, _) => false,
            // Any limit may be in force there.
            (Some(_), None) => true,
            (Some(limit), Some(server)) => !server.is_zero() && (limit.is_zero() || limit > server),
        };
        longer || self.begin.read_only || self.begin.isolation.is_some()
    }

    /// In a transaction of its own, a call's timeout is the server's as well.
    pub(crate) fn limits_in_transaction(&self, session: &Session) -> Limits {
        let own = self
            .timeout_of_attempt()
            .map(|limit| Some(limit).filter(|l| !l.is_zero()));
        let limits = self.limits(session);
        Limits {
            server: own.unwrap_or(limits.server),
            ..limits
        }
    }

    /// The call's timeout, or what its deadline leaves of it.
    fn timeout_of_attempt(&self) -> Option<Duration> {
        let timeout = self.timeout?;
        let Some(deadline) = self.deadline else {
            return Some(timeout);
        };
        // The server's unit; zero would mean no limit.
        let left = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        Some(if timeout.is_zero() {
            left
        } else {
            timeout.min(left)
        })
    }

    pub(crate) fn begin_with_timeout(&self) -> Begin {
        Begin {
            statement_timeout: self.timeout_of_attempt(),
            // Later than our own deadline, which says better what was wrong.
            idle_timeout: self
                .deadline
                .map(|at| at.saturating_duration_since(Instant::now()) + Duration::from_secs(1)),
            // A standby gives out no transaction numbers, and takes no writes.
            read_only: self.begin.read_only || self.pool.config().reads_only(),
            ..self.begin
        }
    }

    /// Outside a transaction of its own, the server's timeout stays as it is.
    pub(crate) fn limits(&self, session: &Session) -> Limits {
        Limits {
            server: session.server_timeout().filter(|limit| !limit.is_zero()),
            client: match self.timeout {
                None => self.pool.config().query_timeout,
                Some(limit) => Some(limit).filter(|l| !l.is_zero()),
            },
            deadline: self.deadline,
        }
    }

    /// The loop.
    pub(crate) fn run<T>(
        &self,
        place: &'static Location<'static>,
        mut attempt: impl FnMut(&mut Session) -> Result<T, Stop>,
    ) -> Result<T> {
        let inner = &self.pool.inner;
        let policy = self.policy.as_ref().unwrap_or(&self.pool.config().retry);
        let mut attempts = 1;
        let mut unfit = 0;
        loop {
            let done = match self.check_out(place) {
                // It may have been had a little behind the deadline.
                Ok(lease) if self.deadline.is_some_and(|at| Instant::now() >= at) => {
                    drop(lease);
                    let started = self.deadline.unwrap_or_else(Instant::now);
                    Err(Stop::from(inner.refuse(
                        CheckoutFailure::Timeout,
                        started,
                        place,
                    )))
                }
                Ok(mut lease) => {
                    let done =
                        attempt(&mut lease).map_err(|stop| self.unless_demoted(stop, &mut lease));
                    // Somebody took away what the driver had prepared there. That is no attempt: another session is had.
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
            let Stop { error, verdict, .. } = match done {
                Ok(value) => {
                    inner.budget.earn();
                    return Ok(value);
                }
                Err(stop) => stop,
            };
            let code = error
                .sqlstate()
                .map_or(String::new(), |s| s.code().to_owned());
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
            info!(
                "retrying attempt={attempts} pause={pause:.1?} sqlstate={} verdict={} error={}",
                if code.is_empty() { "-" } else { &code },
                verdict.repeat.as_str(),
                Chain(&error)
            );
            std::thread::sleep(pause);
            attempts += 1;
        }
    }

    /// After a failover, a session may be on what is a standby now, which refuses writes: then nothing was done, and
    /// another server may do it.
    fn unless_demoted(&self, stop: Stop, session: &mut Session) -> Stop {
        let meant_to_write = !self.begin.read_only && !self.pool.config().reads_only();
        if stop.refused_write && meant_to_write {
            let shared = &self.pool.inner.shared;
            shared.was_refused_a_write.store(true, Ordering::Relaxed);
        }
        // What commits inside may have done so since a promotion: there, only what the server is now tells.
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
            // What new sessions are told of writing is not told to old ones.
            if session.age() > REOPENED_AFTER {
                session.close_for(CloseReason::FailedOver);
            }
            return stop;
        }
        session.close_for(CloseReason::FailedOver);
        let shared = &self.pool.inner.shared;
        // Of a lone server that was a standby from the start, new sessions are no better.
        if !session.identity().standby || shared.may_lead_elsewhere() {
            shared.retire_generation(session.generation());
            shared.look_for_primary();
        }
        Stop {
            verdict: verdict(&Symptom::Demoted, Phase::InTransaction),
            ..stop
        }
    }

    fn check_out(&self, place: &'static Location<'static>) -> Result<Lease> {
        let until = self
            .deadline
            .or_else(|| Instant::now().checked_add(self.pool.config().connection_timeout));
        self.pool.check_out_at(until, place)
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
        // With a deadline, that wait was bounded by it, and it has passed.
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
        // The first retry is free; so is what never reached the server: one opener guards a database that is away.
        let draws = retry > 0 && verdict.repeat != Repeat::NeverSent;
        if draws && !self.pool.inner.budget.spend() {
            warn!("no retry: the retry budget of the pool is empty");
            self.pool.inner.shared.metrics.retry_budget_empty.inc();
            return Next::GiveUp(GaveUpReason::Budget);
        }
        Next::Pause(pause)
    }
}

/// A session that may not write is opened anew after so long: the next may be allowed to, and all at once would be a storm.
const REOPENED_AFTER: Duration = Duration::from_secs(1);
/// More is for ever: the server takes no more, about 24 days.
const LONGEST_TIMEOUT: Duration = Duration::from_millis(i32::MAX as u64);

enum Next {
    Pause(Duration),
    /// Not to be repeated.
    Return,
    /// It could be repeated, and will not be.
    GiveUp(GaveUpReason),
}

/// What its data go through the client with has calls of its own.
pub(crate) fn refuse_copy(sql: &str) -> Result<()> {
    if copies_through_client(sql) {
        return Err(Error::Misuse(
            "COPY FROM STDIN runs through copy_in of a transaction, COPY TO STDOUT on a plain connection from get()",
        ));
    }
    Ok(())
}

/// The protocol counts them in 16 bits.
pub(crate) fn refuse_too_many(params: Params<'_>) -> Result<()> {
    if params.len() > usize::from(u16::MAX) {
        return Err(Error::Misuse(
            "a statement takes at most 65535 parameters: pass arrays (unnest), or many rows through copy_in",
        ));
    }
    Ok(())
}

/// A lone BEGIN would stay on a connection that the next caller gets, whose writes it would swallow.
fn refuse_control(sql: &str) -> Result<()> {
    refuse_copy(sql)?;
    if controls_transaction(sql) {
        return Err(Error::Misuse(
            "a transaction is not begun or ended by a statement of its own; use transaction()",
        ));
    }
    Ok(())
}

/// Why an attempt ended, and what that means for the next.
pub(crate) struct Stop {
    pub error: Error,
    pub verdict: Verdict,
    /// A write was refused where none was declared read only (25006).
    pub refused_write: bool,
}

impl Stop {
    /// A prepared statement was not there (26000), and nothing was done.
    fn is_for_want_of_statements(&self) -> bool {
        let gone = self.error.sqlstate() == Some(&SqlState::INVALID_SQL_STATEMENT_NAME);
        gone && matches!(self.verdict.repeat, Repeat::NeverSent | Repeat::RolledBack)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop {
            verdict: error.verdict(),
            refused_write: error.sqlstate() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION),
            error,
        }
    }
}
