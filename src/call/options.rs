//! A call on a pool, its options, and the limits that follow from them.

use crate::class_queue::Share;
use crate::pool::{Begin, Limits, Pool, Session};
use crate::retry::RetryPolicy;
use crate::token::Token;
use crate::traceparent::Traceparent;
use postgres::IsolationLevel;
use postgres::types::PgLsn;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A longer timeout means no limit: the server accepts no larger one (about 24 days).
const LONGEST_TIMEOUT: Duration = Duration::from_millis(i32::MAX as u64);

impl Pool {
    /// Replaces, for one call, both timeouts of a statement, the server's and the pool's. Zero =
    /// off. Fails as [`Error::QueryTimeout`](crate::Error::QueryTimeout).
    ///
    /// The server's timeout cannot be replaced for statements that commit inside (`CALL`, `VACUUM`,
    /// ..). If such a statement takes long, run `SET statement_timeout` on a [plain
    /// connection](Pool::get), which is cleaned afterwards.
    pub fn with_timeout(&self, limit: Duration) -> Call<'_> {
        self.call().with_timeout(limit)
    }

    /// Replaces the retry policy for one call.
    pub fn with_policy(&self, policy: RetryPolicy) -> Call<'_> {
        self.call().with_policy(policy)
    }

    /// Sets the moment by which one call must have ended, including all its waiting, its attempts
    /// and the pauses between them, to within 550 ms. See [`Call::with_deadline`].
    pub fn with_deadline(&self, at: Instant) -> Call<'_> {
        self.call().with_deadline(at)
    }

    /// Ends one call when a token is fired. See [`Call::abandon_on`].
    pub fn abandon_on(&self, token: &Token) -> Call<'_> {
        self.call().abandon_on(token)
    }

    /// Sets the class of one call, whose share of the connections it counts in. See
    /// [`Call::class`].
    pub fn class(&self, name: impl Into<Arc<str>>) -> Call<'_> {
        self.call().class(name)
    }

    /// Sets for whom one call is made, whose reads see what was written for the same client. See
    /// [`Call::client`].
    pub fn client(&self, name: impl Into<Arc<str>>) -> Call<'_> {
        self.call().client(name)
    }

    /// Makes a read see everything up to this position of the primary's write-ahead log, wherever
    /// it is answered: what another process, say, has written and then read from
    /// [`current_lsn`](Pool::current_lsn).
    ///
    /// ```no_run
    /// # let pool = millpond::Pool::builder().build().unwrap();
    /// # let other = millpond::Pool::builder().build().unwrap();
    /// pool.execute("INSERT INTO notes VALUES ('tuned')", &[])?;
    /// let written = pool.current_lsn()?;
    /// // In another process.
    /// let rows = other.read_after(written).read("SELECT * FROM notes", &[])?;
    /// # Ok::<_, millpond::Error>(())
    /// ```
    pub fn read_after(&self, position: PgLsn) -> Call<'_> {
        self.call().read_after(position)
    }

    /// Starts a call with options.
    pub fn call(&self) -> Call<'_> {
        Call {
            pool: self,
            timeout: None,
            policy: None,
            deadline: None,
            key_wait: None,
            begin: Begin::default(),
            share: Share::default(),
            token: None,
            client: None,
            after: None,
            on_primary: false,
            patience: None,
            traceparent: None,
            ends_with_pool: false,
        }
    }
}

/// One call on a pool, with its own options. Created by [`Pool::with_timeout`] and similar methods;
/// may be used more than once.
#[derive(Clone)]
#[must_use = "options do nothing before a statement is run with them"]
pub struct Call<'p> {
    pub(super) pool: &'p Pool,
    timeout: Option<Duration>,
    pub(super) policy: Option<RetryPolicy>,
    pub(super) deadline: Option<Instant>,
    pub(super) key_wait: Option<Duration>,
    pub(super) begin: Begin,
    pub(super) share: Share,
    pub(super) token: Option<Token>,
    /// For whom it is made.
    pub(super) client: Option<Arc<str>>,
    pub(super) after: Option<PgLsn>,
    pub(super) on_primary: bool,
    /// The longest wait for a connection where another pool may have one.
    pub(super) patience: Option<Duration>,
    /// The span that it is made for.
    pub(super) traceparent: Option<Traceparent>,
    pub(super) ends_with_pool: bool,
}

impl fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("timeout", &self.timeout)
            .field("policy", &self.policy)
            .field("deadline", &self.deadline)
            .field("key_wait", &self.key_wait)
            .field("class", &self.share.class)
            .field("token", &self.token)
            .field("client", &self.client)
            .field("after", &self.after)
            .field("on_primary", &self.on_primary)
            .field("traceparent", &self.traceparent)
            .finish_non_exhaustive()
    }
}

impl Call<'_> {
    /// Replaces both timeouts of a statement, the server's and the pool's. Zero = off; see
    /// [`Pool::with_timeout`].
    pub fn with_timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit.min(LONGEST_TIMEOUT));
        self
    }

    /// Replaces the retry policy.
    pub fn with_policy(mut self, policy: RetryPolicy) -> Self {
        self.policy = Some(policy);
        self
    }

    /// Sets the moment by which the call must have ended, including all its waiting, its attempts
    /// and the pauses between them.
    ///
    /// The call returns at most 550 ms after the deadline, even if the server is frozen: the server
    /// has 500 ms to obey a cancel request. In a call with a deadline, only the deadline limits the
    /// wait for a connection, and that wait does not count as an attempt. In a call that also has a
    /// timeout, the remaining time is also the server's timeout for the transaction of each
    /// attempt. The server ends a transaction that is idle for longer than the remaining time
    /// (`idle_in_transaction_session_timeout`), even if this program has stopped.
    pub fn with_deadline(mut self, at: Instant) -> Self {
        self.deadline = Some(at);
        self
    }

    /// Sets how long a transaction with a key waits, from the beginning of the call, for another
    /// transaction that holds the key. Then it ends as [`Error::KeyInUse`](crate::Error::KeyInUse).
    /// Without this option it waits for at most the statement timeout, and ends as
    /// [`Error::QueryTimeout`](crate::Error::QueryTimeout).
    pub fn with_key_wait(mut self, limit: Duration) -> Self {
        self.key_wait = Some(limit.min(LONGEST_TIMEOUT));
        self
    }

    /// Ends the call when the token is fired, as [`Error::Abandoned`](crate::Error::Abandoned):
    /// nobody needs its result any more.
    ///
    /// A call that waits for a connection, or for its next attempt, ends at once. A running
    /// statement of [`read`](Call::read), or of a [READ ONLY](Call::read_only) transaction, is
    /// cancelled, and its connection stays in the pool. A call that may write is finished once it
    /// has begun (a COMMIT is never cancelled), and so are later calls with the same token.
    ///
    /// ```no_run
    /// use millpond::Token;
    ///
    /// # let pool = millpond::Pool::builder().build().unwrap();
    /// let token = Token::new();
    /// let theirs = token.clone();
    /// // On another thread: the client hangs up, a button is pressed, ..
    /// std::thread::spawn(move || theirs.fire());
    /// let rows = pool.abandon_on(&token).read("SELECT * FROM revenue_by_day", &[])?;
    /// # Ok::<_, millpond::Error>(())
    /// ```
    pub fn abandon_on(mut self, token: &Token) -> Self {
        self.token = Some(token.clone());
        self
    }

    /// Sets the class of the call. A connection that becomes free goes to the waiting class that
    /// holds the fewest, so that one kind of work does not keep the others waiting. All calls
    /// without a class share one.
    ///
    /// ```no_run
    /// # let pool = millpond::Pool::builder().build().unwrap();
    /// // However many reports wait: other calls find the rest of the connections.
    /// let rows = pool.class("reports").at_most(5).read("SELECT * FROM revenue_by_day", &[])?;
    /// # Ok::<_, millpond::Error>(())
    /// ```
    pub fn class(mut self, name: impl Into<Arc<str>>) -> Self {
        self.share.class = Some(name.into());
        self
    }

    /// Sets the most connections that the calls of this [class](Call::class) may hold at once, at
    /// least 1. Further calls of the class wait, also while connections are idle. If the calls of a
    /// class say different numbers, the newest counts. Without a class, this has no effect.
    pub fn at_most(mut self, connections: usize) -> Self {
        self.share.at_most = Some(connections.max(1));
        self
    }

    /// Sets for whom the call is made: the name of a user, the token of a session. A
    /// [`read`](Call::read) for a client sees all that was written for the same client before,
    /// through this pool, also where [standbys](crate::pool::Builder::read_hosts) are used. Without
    /// this option, the thread that calls is the client.
    ///
    /// ```no_run
    /// # let pool = millpond::Pool::builder().build().unwrap();
    /// let user = "user 42";
    /// pool.call().client(user).execute("UPDATE users SET name = 'Ada' WHERE id = 42", &[])?;
    /// // On another thread, later: it is Ada.
    /// let rows = pool.call().client(user).read("SELECT name FROM users WHERE id = 42", &[])?;
    /// # Ok::<_, millpond::Error>(())
    /// ```
    pub fn client(mut self, name: impl Into<Arc<str>>) -> Self {
        self.client = Some(name.into());
        self
    }

    /// Makes a [`read`](Call::read) see everything up to this position of the write-ahead log. See
    /// [`Pool::read_after`].
    pub fn read_after(mut self, position: PgLsn) -> Self {
        self.after = Some(position);
        self
    }

    /// Makes a [`read`](Call::read) use the primary, never a
    /// [standby](crate::pool::Builder::read_hosts).
    pub fn on_primary(mut self) -> Self {
        self.on_primary = true;
        self
    }

    /// Sets the span that the call is made for, or that of none: usually what came in the request's
    /// header `traceparent`. It is in the log lines about the call, and with
    /// [`sqlcommenter`](crate::pool::Builder::sqlcommenter) behind its statements. Default none.
    ///
    /// ```no_run
    /// # let pool = millpond::Pool::builder().build().unwrap();
    /// # let header = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    /// // A header that is malformed counts as none.
    /// let parent = header.and_then(|value| value.parse().ok());
    /// pool.call().traceparent(parent).execute("UPDATE users SET seen_at = now()", &[])?;
    /// # Ok::<_, millpond::Error>(())
    /// ```
    pub fn traceparent(mut self, parent: impl Into<Option<Traceparent>>) -> Self {
        self.traceparent = parent.into();
        self
    }

    /// For work of the program's own, which may as well be done by the next program: a drain does
    /// not wait for it, but cancels it.
    pub(crate) fn ends_with_pool(mut self) -> Self {
        self.ends_with_pool = true;
        self
    }

    #[cfg(feature = "server")]
    pub(crate) fn with_share(mut self, share: Share) -> Self {
        self.share = share;
        self
    }

    /// Sets the isolation level of the call's transaction.
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

    /// Makes the call's transaction READ ONLY.
    pub fn read_only(mut self) -> Self {
        self.begin.read_only = true;
        self
    }

    /// Returns the same call on another pool, where it is tried once, and waits for a connection no
    /// longer than this.
    pub(super) fn tried_on<'q>(&self, pool: &'q Pool, patience: Duration) -> Call<'q>
    where
        Self: 'q,
    {
        Call {
            pool,
            policy: Some(RetryPolicy::none()),
            patience: Some(patience),
            ..self.clone()
        }
    }

    /// Returns whether the statement needs a transaction of its own. If its limit is longer than
    /// the server's, the server's must be raised for this statement alone: for the transaction, in
    /// the request that begins it, never by SET on the session. A shorter limit is enforced by the
    /// pool, at no cost.
    pub(super) fn needs_transaction(&self, session: &Session) -> bool {
        let longer = match (self.timeout, session.server_timeout()) {
            (None, _) => false,
            // The server's timeout is unknown: any limit may be in force.
            (Some(_), None) => true,
            (Some(limit), Some(server)) => !server.is_zero() && (limit.is_zero() || limit > server),
        };
        longer || self.begin.read_only || self.begin.isolation.is_some()
    }

    /// Returns the limits for a transaction of the call's own. There, the call's timeout is also
    /// the server's.
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

    /// Returns the call's timeout, or the time left until its deadline if that is shorter.
    fn timeout_of_attempt(&self) -> Option<Duration> {
        let timeout = self.timeout?;
        let Some(deadline) = self.deadline else {
            return Some(timeout);
        };
        // The server counts in milliseconds, and zero would mean no limit.
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
            // Later than the call's own deadline, whose error is more specific.
            idle_timeout: self
                .deadline
                .map(|at| at.saturating_duration_since(Instant::now()) + Duration::from_secs(1)),
            // A standby assigns no transaction ids and takes no writes.
            read_only: self.begin.read_only || self.pool.config().reads_only(),
            ..self.begin
        }
    }

    /// Returns the limits outside a transaction. The server's timeout stays as it is.
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
