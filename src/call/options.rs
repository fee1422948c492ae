//! A call on a pool, its options, and the limits that follow from them.

use crate::pool::{Begin, Limits, Pool, Session};
use crate::retry::RetryPolicy;
use postgres::IsolationLevel;
use std::fmt;
use std::time::{Duration, Instant};

/// More is for ever: the server takes no more, about 24 days.
const LONGEST_TIMEOUT: Duration = Duration::from_millis(i32::MAX as u64);

impl Pool {
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
    pub(super) pool: &'p Pool,
    timeout: Option<Duration>,
    pub(super) policy: Option<RetryPolicy>,
    pub(super) deadline: Option<Instant>,
    pub(super) key_wait: Option<Duration>,
    pub(super) begin: Begin,
}

impl fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("timeout", &self.timeout)
            .field("policy", &self.policy)
            .field("deadline", &self.deadline)
            .field("key_wait", &self.key_wait)
            .finish_non_exhaustive()
    }
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
    /// ends as [`Error::KeyInUse`](crate::Error::KeyInUse). Without this, it waits up to the statement timeout, and ends as [`Error::QueryTimeout`](crate::Error::QueryTimeout).
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

    /// A limit longer than the server's own needs the server's lifted, for this statement alone: a transaction with SET LOCAL
    /// in the message that begins it, never a SET on the session. A shorter one is kept by us, at no cost.
    pub(super) fn needs_transaction(&self, session: &Session) -> bool {
        let longer = match (self.timeout, session.server_timeout()) {
            (None, _) => false,
            // Any limit may be in force there.
            (Some(_), None) => true,
            (Some(limit), Some(server)) => !server.is_zero() && (limit.is_zero() || limit > server),
        };
        longer || self.begin.read_only || self.begin.isolation.is_some()
    }

    /// In a transaction of its own, a call's timeout is the server's as well.
    pub(super) fn limits_in_transaction(&self, session: &Session) -> Limits {
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

    pub(super) fn begin_with_timeout(&self) -> Begin {
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
    pub(super) fn limits(&self, session: &Session) -> Limits {
        Limits {
            server: session.server_timeout().filter(|limit| !limit.is_zero()),
            client: match self.timeout {
                None => self.pool.config().query_timeout,
                Some(limit) => Some(limit).filter(|l| !l.is_zero()),
            },
            deadline: self.deadline,
        }
    }
}
