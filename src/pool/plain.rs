//! Plain connections: the driver's client, on which a caller runs whatever statements it likes.

use super::checkout::{Lease, Pool};
use super::line::{Arrival, Outcome};
use super::session::Session;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::sync::{Deadline, LONGEST};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::time::{Duration, Instant};

impl Pool {
    /// Checks a connection out, waiting up to `connection_timeout`. What runs on it is not retried, and has no deadline but the
    /// server's `statement_timeout`; when it comes back it is rolled back and cleaned of whatever was left on it.
    ///
    /// # Errors
    /// [`Error::Checkout`], with the reason and the pool's figures.
    #[track_caller]
    pub fn get(&self) -> Result<PooledConnection> {
        self.get_timeout(self.config().connection_timeout)
    }

    /// The same, waiting up to `timeout`.
    ///
    /// # Errors
    /// As [`get`](Pool::get).
    #[track_caller]
    pub fn get_timeout(&self, timeout: Duration) -> Result<PooledConnection> {
        self.check_out_at(
            Some(Instant::now() + timeout.min(LONGEST)),
            Location::caller(),
        )
        .map(|lease| PooledConnection { lease })
    }

    /// A connection that is idle now, or none; one is opened then for whoever asks next. Waits for nothing but a sign of life
    /// from a connection that was not heard of for a while, and for the cleaning of one on which something was left.
    #[track_caller]
    pub fn try_get(&self) -> Option<PooledConnection> {
        if self.inner.shared.may_block_here().is_err() {
            return None;
        }
        let deadline = Instant::now() + self.config().connection_timeout;
        loop {
            let held = match self.inner.line.arrive(false) {
                Arrival::Ready(held) => held,
                Arrival::Queued { place, .. } => {
                    self.inner.feed_spares();
                    // For whoever comes next.
                    self.inner.line.owe_one();
                    let now = Deadline(Some(Instant::now()));
                    match self.inner.line.wait(&place, &now) {
                        Outcome::Given(held) => held,
                        Outcome::TimedOut | Outcome::TurnedAway | Outcome::Closed => return None,
                    }
                }
                Arrival::Full | Arrival::Closed => return None,
            };
            let lease = self.inner.lease(held);
            if let Ok(mut lease) = self.inner.make_ready(lease, Some(deadline)) {
                self.inner
                    .hand_out(&mut lease, Instant::now(), Location::caller());
                return Some(PooledConnection { lease });
            }
        }
    }
}

/// A connection that was checked out with [`Pool::get`]; it goes back to the pool when this is dropped.
pub struct PooledConnection {
    lease: Lease,
}

impl PooledConnection {
    /// The connection's number in the log.
    pub fn id(&self) -> u64 {
        self.lease.id()
    }

    /// Takes the connection out of the pool, for work that lasts: it no longer counts, and the pool
    /// may open another in its place. Whatever is set on it stays. It is closed when the result is
    /// dropped; [`Pool::close`] does not wait for it.
    ///
    /// ```no_run
    /// # let pool = millpond::Pool::builder().build().unwrap();
    /// let mut alone = pool.get()?.detach();
    /// alone.batch_execute("SET statement_timeout = 0; VACUUM ANALYZE")?;
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

/// A connection that was taken out of its pool with [`PooledConnection::detach`]; it is closed when
/// this is dropped.
pub struct DetachedConnection {
    session: Session,
}

impl DetachedConnection {
    /// The connection's number in the log.
    pub fn id(&self) -> u64 {
        self.session.id()
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
