//! The life of one server connection, from opening to close.
//!
//! A session is owned by one thread at a time. Every wait for the server here has a deadline, which
//! the watchdog enforces.

use super::kept::{Kept, SearchPath};
use super::link::Link;
use super::served::Served;
use super::words::{Opening, SyncCommit};
use crate::metrics::CloseReason;
use crate::pool::backend::Backend;
use crate::pool::param_types::LookUps;
use crate::pool::shared::Shared;
use crate::pool::texts::Texts;
use crate::pool::tracked::Tracked;
use crate::pool::watchdog::{Plan, Registration};
use crate::pool::wire;
use crate::token::{Token, Watch};
use log::{info, warn};
use postgres::fallible_iterator::FallibleIterator;
use postgres::{Client, Notification, SimpleQueryMessage};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Limit for the Terminate message that closes a connection. It is only written into a socket
/// buffer, so a longer wait would not help.
const CLOSE_LIMIT: Duration = Duration::from_millis(100);
/// Limit for a request that the pool makes on its own behalf: a validation, a clean-up.
pub(crate) const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// Limit for a look (see [`Session::check_for_end`]), which does not normally wait.
const LONGEST_LOOK: Duration = Duration::from_secs(5);

/// Least lifetime of a connection: with a shorter one it could expire before it is used.
const LEAST_AGE: Duration = Duration::from_millis(100);

pub(crate) struct Session {
    pub(super) client: Link,
    pub(super) statements: Option<Texts<Kept>>,
    pub(super) look_ups: LookUps,
    pub(super) shared: Arc<Shared>,
    pub(super) opened_at: Instant,
    /// When opening it began.
    pub(super) began_at: Instant,
    /// How long opening it took.
    pub(super) took: Duration,
    /// The log and the observers were told of it. This is not done for a session that was opened
    /// beside another and not needed.
    pub(super) announced: bool,
    pub(super) expires_at: Option<Instant>,
    /// When it was last checked in, or opened.
    pub(super) last_used: Instant,
    /// When the server last answered on it.
    pub(super) heard_at: Instant,
    /// The server has answered on it since [`Session::take_heard`] was last called.
    pub(super) heard: bool,
    pub serves: Served,
    /// The rows that the statement under way returned or touched, once they are counted.
    pub(super) rows: Option<u64>,
    pub(super) uses: u64,
    /// After how many uses it is due to be replaced.
    pub(super) most_uses: u64,
    pub(super) generation: u64,
    /// Why it is to be closed; None while it is not.
    pub(super) closing: Option<CloseReason>,
    /// Session state may have been left on it and not been cleaned up yet.
    pub(super) dirty: bool,
    /// A statement left state that a clean-up does not remove.
    pub(super) leaves_traces: bool,
    /// A call is running on it, or has unwound.
    pub(super) in_call: bool,
    /// A deadline has passed on it.
    pub(super) was_cancelled: bool,
    /// What runs on it is cancelled when this is fired.
    pub(super) token: Option<Token>,
    pub(super) in_transaction: bool,
    pub(super) opening: Opening,
    pub(super) backend: Backend,
    /// The id of the current transaction, if it may write.
    pub(super) xid: Option<u64>,
    /// The driver has its own prepared statements on this connection.
    pub(super) driver_looks_up: bool,
    /// The current transaction was begun as read only.
    pub(super) reads_only: bool,
    /// The current transaction runs in the backend to which the session was opened.
    pub(super) in_own_backend: bool,
    /// What the commit of the current transaction waits for.
    pub(super) sync_commit: SyncCommit,
    /// A statement of the current transaction may have changed `sync_commit`.
    pub(super) sync_commit_touched: bool,
    /// The server may not send us the warnings of the commit.
    pub(super) hides_warnings: bool,
    /// A statement's text may mean something else in the current transaction than elsewhere,
    /// because it has temporary tables.
    pub(super) own_meanings: bool,
    /// Objects that the current transaction creates may be temporary.
    pub(super) temporary_path: bool,
    pub(super) search_path: SearchPath,
}

impl Session {
    pub fn new(
        client: Client,
        backend: Backend,
        registration: Registration,
        shared: Arc<Shared>,
        generation: u64,
        took: Duration,
    ) -> Session {
        let now = Instant::now();
        let config = &shared.config;
        // Both up to a tenth earlier, so that those opened together are not replaced together.
        let expires_at = config
            .max_lifetime
            .map(|age| now + age.max(LEAST_AGE).mul_f64(1.0 - 0.1 * fastrand::f64()));
        let most_uses = match config.max_uses {
            0 => u64::MAX,
            most => most - fastrand::u64(..=most / 10),
        };
        let statements = NonZeroUsize::new(config.statement_cache).map(Texts::new);
        Session {
            client: Link::new(client, registration),
            statements,
            look_ups: LookUps::default(),
            opened_at: now,
            began_at: now.checked_sub(took).unwrap_or(now),
            took,
            announced: false,
            expires_at,
            last_used: now,
            heard_at: now,
            heard: false,
            serves: Served::NONE,
            rows: None,
            uses: 0,
            most_uses,
            generation,
            closing: None,
            dirty: false,
            leaves_traces: false,
            in_call: false,
            was_cancelled: false,
            token: None,
            in_transaction: false,
            opening: Opening::Begun,
            backend,
            xid: None,
            driver_looks_up: false,
            reads_only: false,
            in_own_backend: false,
            sync_commit: SyncCommit::ON,
            sync_commit_touched: false,
            hides_warnings: false,
            own_meanings: false,
            temporary_path: false,
            search_path: SearchPath::Own,
            shared,
        }
    }

    pub fn id(&self) -> u64 {
        self.tracked().id
    }

    pub fn tracked(&self) -> &Arc<Tracked> {
        &self.client.registration().tracked
    }

    /// Reports the connection to the log and the observers, once it has a place in the pool.
    pub fn announce(&mut self) {
        if std::mem::replace(&mut self.announced, true) {
            return;
        }
        let (id, took) = (self.id(), self.took);
        self.shared.metrics.create_time.observe(took.as_secs_f64());
        info!("opened conn={id}{} took={took:.1?}", self.shared.at());
        self.shared.observe(|o| o.opened(id, took));
    }

    /// Returns how long opening it took.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// Returns the driver's client, for a caller that may use it freely.
    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn client_mut(&mut self) -> &mut Client {
        self.dirty = true;
        &mut self.client
    }

    pub fn is_dirty(&self) -> bool {
        self.dirty
    }

    pub fn idle_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last_used)
    }

    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Returns when the server last answered on it.
    pub fn heard_at(&self) -> Instant {
        self.heard_at
    }

    /// Returns whether the server has answered on it since the previous call.
    pub fn take_heard(&mut self) -> bool {
        std::mem::take(&mut self.heard)
    }

    pub(super) fn hear(&mut self, at: Instant) {
        (self.heard_at, self.heard) = (at, true);
    }

    /// Returns whether its connection is gone.
    pub fn is_lost(&self) -> bool {
        self.client.is_closed() || self.tracked().wire.is_aborted()
    }

    /// Reads what the server has sent without a request, and does not wait for more. Returns true
    /// if the server has ended the connection. Notifications are discarded.
    pub fn check_for_end(&mut self) -> bool {
        self.tracked().wire.ask_for_look();
        // A look does not block; but if it did, only this deadline would end it. It is long, since
        // a thread that is not scheduled for a while is no sign of a broken connection.
        let limit = Instant::now() + LONGEST_LOOK;
        let armed = self.client.registration().arm(Some(limit), Plan::Abort);
        let mut pending = self.client.notifications();
        let mut iter = pending.blocking_iter();
        let goes_on = loop {
            match iter.next() {
                Ok(Some(notification)) if wire::Handle::is_look(&notification) => break true,
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break false,
            }
        };
        armed.disarm() || !goes_on
    }

    /// Waits for a notification, at most for this long. Also returns `None` if the connection is
    /// lost.
    pub fn next_notification(&mut self, wait: Duration) -> Option<Notification> {
        let mut pending = self.client.notifications();
        let mut iter = pending.timeout_iter(wait);
        let heard = loop {
            match iter.next() {
                Ok(Some(notification)) if wire::Handle::is_look(&notification) => {}
                heard => break heard.ok().flatten(),
            }
        };
        drop(iter);
        drop(pending);
        if heard.is_some() {
            self.hear(Instant::now());
        }
        heard
    }

    /// Marks it to be cleaned at check-in, whatever happens on it.
    pub fn clean_afterwards(&mut self) {
        self.dirty = true;
    }

    /// Cancels what runs on it once the token is fired, as long as the result is kept. Only for
    /// work that reads.
    pub fn cancel_on<'t>(&mut self, token: &'t Token) -> Watch<'t> {
        self.token = Some(token.clone());
        let cancel = self.client.registration().canceller();
        token.watch(cancel)
    }

    /// Returns whether nobody needs the result of what runs on it.
    pub(super) fn is_abandoned(&self) -> bool {
        self.token.as_ref().is_some_and(Token::is_fired)
    }

    pub fn count_use(&mut self) {
        self.uses += 1;
    }

    /// Returns why this session must not be used again; None if it may.
    pub fn retire(&self) -> Option<CloseReason> {
        Wear {
            closing: self.closing,
            broken: self.is_lost() || self.in_call,
            draining: self.shared.closing.load(Ordering::Relaxed),
            outlived: self.generation < self.shared.generation.load(Ordering::Relaxed),
            evicted: self.shared.is_evicted(self.began_at),
        }
        .reason()
    }

    /// Returns why another session is to be opened in place of this one, which goes on serving
    /// until then; None while there is no need.
    pub fn due(&self, now: Instant) -> Option<CloseReason> {
        if self.expires_at.is_some_and(|at| now >= at) {
            return Some(CloseReason::MaxLifetime);
        }
        let worn_out = self.uses >= self.most_uses || self.tracked().wire.has_grown();
        worn_out.then_some(CloseReason::MaxUses)
    }

    /// Marks it to be closed; the first reason is kept.
    pub fn close_for(&mut self, reason: CloseReason) {
        self.closing.get_or_insert(reason);
    }

    /// Marks it as used for work of the pool itself, which has no deadline and is cancelled when
    /// the pool closes.
    #[cfg(feature = "studio")]
    pub fn end_with_pool(&mut self) {
        self.tracked().ends_with_pool.store(true, Ordering::SeqCst);
        self.client.registration().arm_for_good(None, Plan::Cancel);
    }

    pub fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    pub fn age(&self) -> Duration {
        self.opened_at.elapsed()
    }

    /// Prepares it for its next use: rolls back a transaction that is still open. Called at
    /// check-in.
    pub fn settle(&mut self, now: Instant) {
        self.last_used = now;
        (self.token, self.serves) = (None, Served::NONE);
        self.search_path = SearchPath::Own;
        if self.leaves_traces {
            self.close_for(CloseReason::LeakedState);
        }
        if self.in_transaction && self.closing.is_none() && self.rollback().is_err() {
            self.close_for(CloseReason::Broken);
        }
    }

    /// Runs `work` on the wire, which is cut at the deadline. If the deadline fired, the session is
    /// closed even if the answer arrived at the same moment: the cut would hit its next user.
    pub(super) fn bounded<T>(
        &mut self,
        at: Option<Instant>,
        work: impl FnOnce(&mut Session) -> Result<T, postgres::Error>,
    ) -> Result<T, postgres::Error> {
        let armed = self.client.registration().arm(at, Plan::Abort);
        // If the work unwinds, the driver's buffers still hold a part of an unfinished exchange.
        self.in_call = true;
        let result = work(self);
        self.in_call = false;
        if armed.disarm() {
            self.close_for(CloseReason::Broken);
        } else if result.is_ok() {
            self.hear(Instant::now());
        }
        result
    }

    /// Validates the connection with an empty query, at most until `deadline`.
    pub fn validate(&mut self, deadline: Option<Instant>) -> Result<(), postgres::Error> {
        let result = self.bounded(Some(housekeeping_until(deadline)), |s| {
            s.client.batch_execute("")
        });
        if result.is_err() {
            self.close_for(CloseReason::Broken);
        }
        result
    }

    /// Returns the server's own `statement_timeout` for a statement on this session; zero = off,
    /// `None` = not known.
    pub fn server_timeout(&self) -> Option<Duration> {
        (!self.shared.is_pooled()).then_some(self.backend.statement_timeout)
    }

    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Returns what tells its server from others at its address; None where a pooler may change it.
    pub fn server(&self) -> Option<u64> {
        (!self.shared.is_pooled()).then_some(self.backend.server)
    }

    /// Returns whether, since the previous call, the server gave up a commit's wait for a
    /// synchronous standby.
    pub fn gave_up_on_standbys(&self) -> bool {
        let said = &self.tracked().gave_up_on_standbys;
        said.load(Ordering::Relaxed) && said.swap(false, Ordering::Relaxed)
    }

    /// Sends a query that the pool makes itself, with a text of its own. The wire is cut at the
    /// deadline.
    pub fn ask(
        &mut self,
        sql: &str,
        deadline: Instant,
    ) -> Result<Vec<SimpleQueryMessage>, postgres::Error> {
        self.bounded(Some(deadline), |s| s.client.simple_query(sql))
    }

    pub(super) fn begin_request(&self) {
        self.tracked().wire.begin_request();
    }
}

pub(super) fn housekeeping_until(deadline: Option<Instant>) -> Instant {
    let own = Instant::now() + HOUSEKEEPING;
    deadline.map_or(own, |at| at.min(own))
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.shared.process.is_another() {
            return;
        }
        // r2d2 drops idle connections of its own that have exceeded their lifetime, without
        // reporting it.
        let unsaid = if self.shared.closing.load(Ordering::Relaxed) {
            CloseReason::Drained
        } else {
            CloseReason::MaxLifetime
        };
        let reason = self.closing.unwrap_or(unsaid);
        if reason == CloseReason::Broken {
            self.tracked().wire.abort();
        } else {
            // Stays armed until the client, which is dropped next, has sent Terminate; the
            // registration is dropped after it.
            self.client
                .registration()
                .arm_for_good(Some(Instant::now() + CLOSE_LIMIT), Plan::Abort);
        }
        if !self.announced {
            return;
        }
        let (id, age, uses) = (self.id(), self.opened_at.elapsed(), self.uses);
        match reason {
            // Behind a pooler, this is the usual end of a connection whose client was lent out.
            CloseReason::LeakedState if self.shared.is_pooled() => {
                info!("closed conn={id} reason={reason} age={age:.1?} uses={uses}");
            }
            CloseReason::Broken | CloseReason::LeakedState => {
                warn!("closed conn={id} reason={reason} age={age:.1?} uses={uses}");
            }
            _ => info!("closed conn={id} reason={reason} age={age:.1?} uses={uses}"),
        }
        self.shared
            .metrics
            .closed
            .with_label_values(&[reason.as_str()])
            .inc();
        self.shared.observe(|o| o.closed(id, reason, age, uses));
    }
}

/// The reasons to close a session, in the order of their precedence.
#[derive(Clone, Copy, Default)]
struct Wear {
    closing: Option<CloseReason>,
    broken: bool,
    draining: bool,
    outlived: bool,
    evicted: bool,
}

impl Wear {
    fn reason(self) -> Option<CloseReason> {
        match self {
            Wear {
                closing: Some(reason),
                ..
            } => Some(reason),
            Wear { broken: true, .. } => Some(CloseReason::Broken),
            Wear { draining: true, .. } => Some(CloseReason::Drained),
            Wear { outlived: true, .. } => Some(CloseReason::FailedOver),
            Wear { evicted: true, .. } => Some(CloseReason::Evicted),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_closed_for_the_gravest_reason() {
        let fresh = Wear::default();
        let rows = [
            (fresh, None),
            (
                Wear {
                    evicted: true,
                    ..fresh
                },
                Some(CloseReason::Evicted),
            ),
            (
                Wear {
                    outlived: true,
                    evicted: true,
                    ..fresh
                },
                Some(CloseReason::FailedOver),
            ),
            (
                Wear {
                    draining: true,
                    outlived: true,
                    ..fresh
                },
                Some(CloseReason::Drained),
            ),
            (
                Wear {
                    broken: true,
                    draining: true,
                    ..fresh
                },
                Some(CloseReason::Broken),
            ),
            (
                Wear {
                    closing: Some(CloseReason::LeakedState),
                    broken: true,
                    ..fresh
                },
                Some(CloseReason::LeakedState),
            ),
        ];
        for (wear, reason) in rows {
            assert_eq!(wear.reason(), reason);
        }
    }
}
