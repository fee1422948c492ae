//! Listening to notifications (`LISTEN`, `NOTIFY`; PostgreSQL's manual, chapter "Asynchronous
//! Notification"), on a connection outside the pool that is reopened when it is lost.

use super::checkout::{Inner, Pool};
use super::hedge::Purpose;
use super::session::{HOUSEKEEPING, Session};
use crate::error::{CheckoutFailure, Error, Result};
use crate::metrics::CloseReason;
use crate::sync::LONGEST;
use log::warn;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

pub use postgres::Notification;

/// The length of one wait for the server. Between two waits, the listener checks whether the pool
/// is closing.
const SLICE: Duration = Duration::from_millis(250);
/// After this much silence, the connection is validated.
const ASK_AFTER: Duration = Duration::from_secs(10);
/// The longest name of a channel, in bytes (`NAMEDATALEN` - 1).
const LONGEST_NAME: usize = 63;

/// What [`Listener::next`] returns.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Heard {
    /// A notification: its channel, its payload, and the process that sent it.
    Notification(Notification),
    /// The connection was lost and reopened: notifications may have been missed. Read again the
    /// data that they stand for.
    Gap,
}

/// Listens to channels. Created by [`Pool::listen`].
///
/// It has its own connection, which does not count in the pool. If that is lost, it is reopened,
/// and [`Heard::Gap`] says that notifications may have been missed. The server stores nothing for
/// disconnected listeners. So data that must not be lost belong in a table, and the notification
/// only says that they are there.
///
/// A listener keeps its pool: [`Pool::close`] ends it, dropping the pool does not.
pub struct Listener {
    inner: Arc<Inner>,
    place: &'static Location<'static>,
    /// The statements that begin listening.
    sql: String,
    session: Option<Session>,
}

impl Pool {
    /// Listens to these channels, named as in `pg_notify`: letters keep their case. Returns once
    /// the server has begun to listen, within `connection_timeout`.
    ///
    /// ```no_run
    /// use millpond::pool::Heard;
    /// use std::time::Duration;
    ///
    /// # let pool = millpond::Pool::builder().build().unwrap();
    /// # fn work_off_the_queue(_: &millpond::Pool) -> millpond::Result<()> { Ok(()) }
    /// let mut listener = pool.listen(["jobs"])?;
    /// // What was queued before.
    /// work_off_the_queue(&pool)?;
    /// loop {
    ///     match listener.next(Duration::from_secs(60))? {
    ///         Some(Heard::Notification(job)) => println!("queued: {}", job.payload()),
    ///         Some(Heard::Gap) => println!("something may have been missed"),
    ///         Some(_) | None => {}
    ///     }
    ///     work_off_the_queue(&pool)?;
    /// }
    /// # #[allow(unreachable_code)]
    /// # Ok::<_, millpond::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Checkout`] if no connection could be opened; [`Error::Database`] if the server
    /// refuses to listen, as a standby does; [`Error::Misuse`] behind a pooler, where a connection
    /// is not a session, and for a name that is empty, longer than 63 bytes, or contains a zero
    /// byte.
    #[track_caller]
    pub fn listen<I>(&self, channels: I) -> Result<Listener>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let mut sql = String::new();
        for channel in channels {
            let name = channel.as_ref();
            if name.is_empty() || name.len() > LONGEST_NAME || name.contains('\0') {
                return Err(Error::Misuse(
                    "a channel's name has 1 to 63 bytes, none of them zero",
                ));
            }
            sql.push_str(&format!("LISTEN \"{}\"; ", name.replace('"', "\"\"")));
        }
        if sql.is_empty() {
            return Err(Error::Misuse("name a channel to listen to"));
        }
        let mut listener = Listener {
            inner: Arc::clone(&self.inner),
            place: Location::caller(),
            sql,
            session: None,
        };
        listener.inner.shared.may_block_here()?;
        let started = Instant::now();
        let until = started + self.config().connection_timeout;
        match listener.connect(until, Some(until))? {
            true => Ok(listener),
            false => Err(listener.refuse(CheckoutFailure::Timeout, started)),
        }
    }
}

impl Listener {
    /// Waits for the next notification, at most for `timeout`. Zero returns only what has arrived
    /// already.
    ///
    /// Returns `None` after the timeout, even if the database was unreachable all the time. An
    /// attempt to reopen the connection that gets no answer may take `connection_timeout` longer,
    /// and asking a silent server whether it is there a second longer.
    ///
    /// # Errors
    /// [`Error::Checkout`] once the pool is closed, or if the database refuses the connection for a
    /// reason that does not pass by itself; [`Error::Database`] if the server refuses to listen.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<Heard>> {
        self.inner.shared.may_block_here()?;
        let started = Instant::now();
        let until = started + timeout.min(LONGEST);
        loop {
            if self.inner.shared.closing.load(Ordering::SeqCst) {
                self.session = None;
                return Err(self.refuse(CheckoutFailure::Closed, started));
            }
            let left = until.saturating_duration_since(Instant::now());
            let Some(session) = &mut self.session else {
                match self.connect(until, None)? {
                    true => return Ok(Some(Heard::Gap)),
                    false if left.is_zero() => return Ok(None),
                    false => continue,
                }
            };
            if let Some(notification) = session.next_notification(left.min(SLICE)) {
                return Ok(Some(Heard::Notification(notification)));
            }
            let silent = session.heard_at().elapsed() >= ASK_AFTER;
            if session.is_lost() || silent && session.validate(None).is_err() {
                warn!("lost a listener's connection: conn={}", session.id());
                session.close_for(CloseReason::Broken);
                self.inner.shared.note_trouble();
                self.session = None;
            } else if left.is_zero() {
                return Ok(None);
            }
        }
    }

    /// Opens the connection and begins to listen. Returns false if the database was not there until
    /// then; an attempt under way may take until `attempt`, or as long as opening one may.
    fn connect(&mut self, until: Instant, attempt: Option<Instant>) -> Result<bool> {
        let started = Instant::now();
        let (shared, opener) = (&self.inner.shared, &self.inner.opener);
        let mut session = loop {
            // A turn that is free now is taken even if there is no time left.
            let at_once = Instant::now() + Duration::from_millis(1);
            // What will not pass by itself is not waited for.
            let refused = opener.gate.last_error().is_some_and(|e| e.is_permanent());
            let wait = if refused { at_once } else { until.max(at_once) };
            let turn = opener.gate.turn(&shared.closing, Some(wait));
            if shared.closing.load(Ordering::SeqCst) {
                return Err(self.refuse(CheckoutFailure::Closed, started));
            }
            let Some(turn) = turn else {
                return match refused {
                    true => Err(self.refuse(CheckoutFailure::Refused, started)),
                    false => Ok(false),
                };
            };
            match opener.open_in_turn(turn, attempt, Purpose::Use) {
                Ok(session) => break session,
                Err(e) if e.is_permanent() => {
                    return Err(self.refuse(CheckoutFailure::Refused, started));
                }
                Err(_) if Instant::now() >= until => return Ok(false),
                Err(_) => {}
            }
        };
        let listening = match shared.is_pooled() {
            true => Err(Error::Misuse(
                "LISTEN does not work behind a pooler: connect to the server itself",
            )),
            false => match session.ask(&self.sql, Instant::now() + HOUSEKEEPING) {
                Ok(_) => Ok(true),
                Err(e) if e.code().is_some() && !session.is_lost() => {
                    Err(Error::before_any_effect(e))
                }
                Err(_) => {
                    session.close_for(CloseReason::Broken);
                    Ok(false)
                }
            },
        };
        match listening {
            Ok(true) => self.session = Some(session),
            // Closed for no fault of its own, unless it broke.
            _ => session.close_for(CloseReason::Detached),
        }
        listening
    }

    fn refuse(&self, reason: CheckoutFailure, started: Instant) -> Error {
        self.inner.refuse(reason, started, self.place)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(session) = &mut self.session {
            session.close_for(CloseReason::Detached);
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener")
            .field("listens", &self.sql)
            .field("connected", &self.session.is_some())
            .finish()
    }
}
