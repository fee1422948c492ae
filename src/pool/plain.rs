//! Plain connections: the driver's client, on which the caller runs any statements.

use super::cancel_token::CancelToken;
use super::checkout::{CheckoutRequest, Lease, Pool};
use super::line::Arrival;
use super::session::Session;
#[cfg(feature = "cli")]
use super::tracked::Tracked;
use super::waiter::Outcome;
use crate::class_queue::Share;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::sync::Deadline;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::time::{Duration, Instant};

impl Pool {
    /// Checks out a connection, waiting up to `connection_timeout`.
    ///
    /// Statements on it are not retried, and have no deadline other than the server's
    /// `statement_timeout`. At the check-in, an open transaction is rolled back, and the state that
    /// was left on the connection is removed.
    ///
    /// # Errors
    /// [`Error::Checkout`], with the reason and the pool's figures.
    #[track_caller]
    pub fn get(&self) -> Result<PooledConnection> {
        let limit = self.config().connection_timeout;
        self.get_plain(&CheckoutRequest {
            waits_for_pauses: true,
            ..CheckoutRequest::plain(limit, Location::caller())
        })
    }

    /// Checks out a connection, waiting up to `timeout`. Otherwise like [`get`](Pool::get).
    ///
    /// # Errors
    /// As for [`get`](Pool::get).
    #[track_caller]
    pub fn get_timeout(&self, timeout: Duration) -> Result<PooledConnection> {
        self.get_plain(&CheckoutRequest::plain(timeout, Location::caller()))
    }

    fn get_plain(&self, request: &CheckoutRequest<'_>) -> Result<PooledConnection> {
        self.check_out(request)
            .map(|lease| PooledConnection { lease })
    }

    /// Checks out a connection that is idle now. Returns `None` if there is none, in which
    /// case one is opened for the next call, and where [`get`](Pool::get) would fail at once.
    ///
    /// This waits only for the validation of a connection on which the server has not answered for
    /// a while, and for the clean-up of one on which state was left.
    #[track_caller]
    pub fn try_get(&self) -> Option<PooledConnection> {
        if self.inner.shared.may_block_here().is_err() {
            return None;
        }
        let deadline = Instant::now() + self.config().connection_timeout;
        let share = Share::default();
        loop {
            let held = match self.inner.line.arrive(&share, false) {
                Arrival::Ready(held) => held,
                Arrival::Queued { place, .. } => {
                    self.inner.feed_spares();
                    // For the next call.
                    self.inner.line.owe_one();
                    let now = Deadline {
                        at: Some(Instant::now()),
                        flag: None,
                    };
                    match self.inner.line.wait(&place, &now, Duration::ZERO) {
                        Outcome::Given(held) => held,
                        _ => return None,
                    }
                }
                Arrival::Full | Arrival::Closed => return None,
            };
            let mut lease = self.inner.lease(held, &share);
            let now = Instant::now();
            if let Ok(at) = self.inner.make_ready(&mut lease, Some(deadline), now) {
                self.inner
                    .hand_out(&mut lease, Duration::ZERO, at, Location::caller());
                return Some(PooledConnection { lease });
            }
        }
    }
}

/// A connection that was checked out with [`Pool::get`]. Dropping it checks it in.
pub struct PooledConnection {
    lease: Lease,
}

impl PooledConnection {
    /// Returns the connection's number in the log.
    pub fn id(&self) -> u64 {
        self.lease.id()
    }

    /// Returns a token that cancels the statement on this connection, from any thread.
    pub fn cancel_token(&self) -> CancelToken {
        CancelToken::of(self.lease.tracked())
    }

    #[cfg(feature = "cli")]
    pub(super) fn tracked(&self) -> &Tracked {
        self.lease.tracked()
    }

    /// Takes the connection out of the pool, for long work.
    ///
    /// It no longer counts in the pool, which may open another in its place. Its settings stay as
    /// they are. It is closed when the result is dropped; [`Pool::close`] does not wait for it.
    ///
    /// ```no_run
    /// # let pool = millpond::Pool::builder().build().unwrap();
    /// let mut alone = pool.get()?.detach();
    /// alone.batch_execute("SET statement_timeout = 0")?;
    /// alone.batch_execute("VACUUM ANALYZE")?;
    /// # Ok::<_, millpond::Error>(())
    /// ```
    pub fn detach(self) -> DetachedConnection {
        DetachedConnection {
            session: self.lease.detach(),
        }
    }
}

impl fmt::Debug for PooledConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PooledConnection")
            .field("id", &self.id())
            .finish()
    }
}

impl Deref for PooledConnection {
    type Target = postgres::Client;

    fn deref(&self) -> &postgres::Client {
        self.lease.client()
    }
}

impl DerefMut for PooledConnection {
    fn deref_mut(&mut self) -> &mut postgres::Client {
        self.lease.client_mut()
    }
}

/// A connection that was taken out of its pool with [`PooledConnection::detach`]. Dropping it
/// closes it.
pub struct DetachedConnection {
    session: Session,
}

impl DetachedConnection {
    /// Returns the connection's number in the log.
    pub fn id(&self) -> u64 {
        self.session.id()
    }

    /// Returns a token that cancels the statement on this connection, from any thread.
    pub fn cancel_token(&self) -> CancelToken {
        CancelToken::of(self.session.tracked())
    }
}

impl fmt::Debug for DetachedConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DetachedConnection")
            .field("id", &self.id())
            .finish()
    }
}

impl Deref for DetachedConnection {
    type Target = postgres::Client;

    fn deref(&self) -> &postgres::Client {
        self.session.client()
    }
}

impl DerefMut for DetachedConnection {
    fn deref_mut(&mut self) -> &mut postgres::Client {
        self.session.client_mut()
    }
}
