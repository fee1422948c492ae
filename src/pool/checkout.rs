//! The pool, and the check-out of sessions.

use super::line::{Arrival, Line};
use super::manager::Manager;
use super::member::Member;
use super::opener::Opener;
use super::pong::Reading;
use super::probe::{Probe, reading_of};
use super::report::Report;
use super::session::Session;
use super::shared::Shared;
use super::spans::Span;
use super::standbys::Standbys;
use super::waiter::{Outcome, Waiter};
use crate::class_queue::Share;
use crate::config::Reset;
use crate::error::{AbandonedStage, CheckoutError, CheckoutFailure, Error, Result};
use crate::line_rule::LeastTime;
use crate::metrics::Stats;
use crate::retry::Budget;
use crate::sync::{self, Deadline, LONGEST};
use crate::token::Token;
use log::{trace, warn};
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// A session as the line has it. Boxed, because it is moved several times in each check-out.
pub(crate) type Held = Box<r2d2::PooledConnection<Manager>>;

/// A pool of connections to one database. Cloning is cheap and returns a handle to the same pool.
#[derive(Clone)]
pub struct Pool {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub shared: Arc<Shared>,
    pub opener: Arc<Opener>,
    /// The thread that sweeps the ledger. It is woken when the pool closes.
    pub sweeper: OnceLock<Thread>,
    pub budget: Budget,
    pub(super) probe: Probe,
    pub(crate) line: Arc<Line<Held>>,
    pub(super) r2d2: r2d2::Pool<Manager>,
    /// The most connections there may be. A copy of the line's value, which is read without its
    /// lock.
    pub(super) max: AtomicUsize,
    /// The most that the application has asked for.
    pub(super) asked_max: AtomicUsize,
    /// Several instances of the program share a budget.
    pub(super) member: Option<Member>,
    /// The standbys that reads may use.
    pub(crate) standbys: Option<Standbys<Pool>>,
    /// How often the server is asked for its position in the write-ahead log.
    pub(super) look_every: Option<Duration>,
    /// The least time that a session is checked out for.
    pub(super) least_use: LeastTime,
    /// The number of sessions that are checked out, for the warning before none is left.
    pub(super) out: AtomicUsize,
    pub(super) warned_at: AtomicU64,
    /// Where the next check of the idle connections starts; used if there are many.
    pub(super) next_look: AtomicUsize,
    pub(super) start: Instant,
    pub(super) housekeeper: Mutex<Option<Thread>>,
    /// Signalled when a session is closed or checked in, for a drain that waits.
    pub(super) returned: (Mutex<()>, Condvar),
    /// The result of the drain. The first call that closes the pool sets it.
    pub(super) report: OnceLock<Report>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.shared.process.is_another() {
            return;
        }
        self.shut_line();
        self.shared.watchdog.stop();
        self.wake_housekeeper();
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("database", &self.config().database)
            .field("stats", &self.stats())
            .finish()
    }
}

impl Pool {
    /// Returns the settings in force.
    pub fn config(&self) -> &crate::config::PoolConfig {
        &self.inner.shared.config
    }

    /// Returns the pool's figures at this moment. Never waits for the database.
    pub fn stats(&self) -> Stats {
        self.inner.stats()
    }

    /// Returns true while check-outs fail at once because no connection could be opened for a
    /// while.
    pub fn is_failing_fast(&self) -> bool {
        self.inner.hopeless().is_some()
    }

    /// Returns true once a connection has been opened.
    pub fn has_connected(&self) -> bool {
        self.inner.opener.has_connected.load(Ordering::SeqCst)
    }

    /// Returns true from the moment the pool begins to close.
    pub fn is_closed(&self) -> bool {
        self.inner.shared.closing.load(Ordering::SeqCst)
    }

    /// Returns how many of the connections that may be had are checked out, in thousandths. While
    /// none can be opened, those are the open ones.
    pub(crate) fn use_in_thousandths(&self) -> usize {
        let out = self.inner.out.load(Ordering::Relaxed);
        let most = match self.inner.opener.gate.down_since() {
            None => self.inner.max.load(Ordering::Relaxed),
            Some(_) => out + self.inner.line.figures().idle,
        };
        (out * 1000).checked_div(most).unwrap_or(1000)
    }

    /// Checks out a session.
    pub(crate) fn check_out(&self, request: &CheckoutRequest<'_>) -> Result<Lease> {
        let span = Span::check_out();
        let done = self.inner.check_out(request);
        span.end(&done);
        done
    }

    /// Asks the database for a sign of life. Where no call could be answered, because no connection
    /// can be opened, the reason for that is what counts: the probe's own may be from before.
    pub(crate) fn probe(&self) -> Reading {
        let reading = self.inner.probe.ask(&self.inner.opener)?;
        let cause = self
            .inner
            .hopeless()
            .and(self.inner.opener.gate.last_error());
        match cause {
            Some(error) => Err(reading_of(&error)),
            None => Ok(reading),
        }
    }
}

/// Who asks for a session, and how long it may take.
pub(crate) struct CheckoutRequest<'a> {
    /// When it was made, directly before the check-out.
    pub since: Instant,
    pub until: Option<Instant>,
    /// The limit is the pool's own, not the caller's: a pause does not count.
    pub waits_for_pauses: bool,
    pub place: &'static Location<'static>,
    pub share: &'a Share,
    /// Ends the wait when it is fired.
    pub token: Option<&'a Token>,
}

impl CheckoutRequest<'_> {
    /// The request of a caller without options, who asks now.
    pub fn plain(limit: Duration, place: &'static Location<'static>) -> CheckoutRequest<'static> {
        static NO_CLASS: Share = Share {
            class: None,
            at_most: None,
        };
        let since = Instant::now();
        CheckoutRequest {
            since,
            until: Some(since + limit.min(LONGEST)),
            waits_for_pauses: false,
            place,
            share: &NO_CLASS,
            token: None,
        }
    }
}

impl Inner {
    pub(super) fn stats(&self) -> Stats {
        if self.shared.process.is_another() {
            // Its locks may have been held when the process forked.
            return Stats::default();
        }
        let line = self.line.figures();
        let spares = self.r2d2.state().idle_connections as usize;
        let max = line.max;
        // The figures are read one after the other. A connection that changes its state in between
        // must not be counted twice.
        let active = line.active.min(max);
        let idle = (line.idle + spares).min(max - active);
        let warming = self.opener.warming.load(Ordering::Relaxed);
        let opening = (self.opener.attempts.count() + warming).min(max - active - idle);
        Stats {
            total: idle + active + opening,
            idle,
            active,
            opening,
            waiting: line.waiting,
            max,
            min_idle: (self.shared.config.effective_min_idle() as usize).min(max),
            newest_first: line.newest_first,
        }
    }

    fn check_out(self: &Arc<Self>, request: &CheckoutRequest<'_>) -> Result<Lease> {
        self.shared.may_block_here()?;
        let &CheckoutRequest {
            since: started,
            mut until,
            place,
            share,
            ..
        } = request;
        let refuse = |reason| Err(self.refuse(reason, started, place));
        let pause_ends = || {
            let end = self.opener.gate.paused_until();
            end.filter(|_| request.waits_for_pauses)
        };
        let mut spent_before = false;
        // The clock is read again only where something may have taken time.
        let mut first_now = Some(started);
        loop {
            let now = first_now.take();
            let (held, now) = match self.line.arrive(share, spent_before) {
                Arrival::Ready(held) => (held, now.unwrap_or_else(Instant::now)),
                Arrival::Queued { place, room } => {
                    let after =
                        |end: Instant| end.checked_add(self.shared.config.connection_timeout);
                    until = until.max(pause_ends().and_then(after));
                    // If all connections are checked out, the thread can only wait for a check-in.
                    let hopeless = if room {
                        self.fetch_for_the_line()
                    } else {
                        None
                    };
                    let until = if hopeless.is_some() {
                        Some(started)
                    } else {
                        until
                    };
                    let outcome = self.wait_in_line(&place, until, request.token);
                    self.note_wait(&outcome, started, request.token);
                    match outcome {
                        Outcome::Given(held) => (held, Instant::now()),
                        Outcome::Closed => return refuse(CheckoutFailure::Closed),
                        Outcome::TurnedAway => return refuse(CheckoutFailure::Refused),
                        Outcome::Displaced => return refuse(CheckoutFailure::LineFull),
                        Outcome::TimedOut if request.token.is_some_and(Token::is_fired) => {
                            let stage = AbandonedStage::Waiting;
                            return Err(Error::Abandoned { stage });
                        }
                        // It stood in line when the pause began.
                        Outcome::TimedOut if pause_ends().is_some() => continue,
                        Outcome::TimedOut => {
                            return refuse(hopeless.unwrap_or(CheckoutFailure::Timeout));
                        }
                    }
                }
                Arrival::Full => {
                    self.shared.metrics.line_wait_of("pool", "refused", 0.0);
                    return refuse(CheckoutFailure::LineFull);
                }
                Arrival::Closed => return refuse(CheckoutFailure::Closed),
            };
            let mut lease = self.lease(held, share);
            if let Ok(at) = self.make_ready(&mut lease, until, now) {
                let waited = at.saturating_duration_since(started);
                self.hand_out(&mut lease, waited, at, place);
                return Ok(lease);
            }
            // The session was unusable. The next one comes from the head of the line: this thread
            // has waited already.
            drop(lease);
            if until.is_some_and(|at| Instant::now() >= at) {
                return refuse(CheckoutFailure::Timeout);
            }
            spent_before = true;
        }
    }

    fn wait_in_line(
        &self,
        place: &Arc<Waiter<Held>>,
        until: Option<Instant>,
        token: Option<&Token>,
    ) -> Outcome<Held> {
        let deadline = Deadline {
            at: until,
            flag: token.map(Token::flag),
        };
        let wait = || self.line.wait(place, &deadline, self.least_use.get());
        let Some(token) = token else { return wait() };
        let me = std::thread::current();
        let _watch = token.watch(move || me.unpark());
        token.waiting().fetch_add(1, Ordering::Relaxed);
        let outcome = wait();
        token.waiting().fetch_sub(1, Ordering::Relaxed);
        outcome
    }

    fn note_wait(&self, outcome: &Outcome<Held>, started: Instant, token: Option<&Token>) {
        let outcome = match outcome {
            Outcome::Given(_) => "served",
            Outcome::TimedOut if token.is_some_and(Token::is_fired) => "abandoned",
            Outcome::TimedOut => "timeout",
            Outcome::Displaced | Outcome::TurnedAway | Outcome::Closed => "refused",
        };
        let waited = started.elapsed().as_secs_f64();
        self.shared.metrics.line_wait_of("pool", outcome, waited);
    }

    /// Obtains connections for the waiters: takes those that r2d2 has ready, else has an opener
    /// open one. Returns a reason if waiting for it is pointless: the database has been unreachable
    /// for long, or refuses connections while none is checked out that could be returned.
    fn fetch_for_the_line(&self) -> Option<CheckoutFailure> {
        self.feed_spares();
        let hopeless = self.hopeless();
        match hopeless {
            None => self.line.call_openers(),
            // One opener has to find out when the database is reachable again.
            Some(_) => self.line.owe_one(),
        }
        hopeless
    }

    /// Returns why waiting for a connection is pointless while none is idle; None if it is not.
    fn hopeless(&self) -> Option<CheckoutFailure> {
        let refused = || {
            let last_error = self.opener.gate.last_error();
            let line = self.line.figures();
            last_error.is_some_and(|e| e.is_refusal()) && line.active + line.idle == 0
        };
        match () {
            () if self.opener.failing_fast() => Some(CheckoutFailure::FailingFast),
            () if refused() => Some(CheckoutFailure::Refused),
            () => None,
        }
    }

    /// Passes to the line the connections that r2d2 has and no opener waits for. One that waits
    /// takes them itself.
    pub(super) fn feed_spares(&self) {
        while !self.opener.opened.is_awaited()
            && let Some(spare) = self.r2d2.try_get()
        {
            if let Some(unwanted) = self.line.offer(Box::new(spare)) {
                self.discard(unwanted, self.why_unwanted());
            }
        }
    }

    pub(super) fn lease(self: &Arc<Self>, held: Held, share: &Share) -> Lease {
        self.out.fetch_add(1, Ordering::Relaxed);
        Lease {
            inner: Arc::clone(self),
            held: Some(held),
            class: share.class.clone(),
            panicking: std::thread::panicking(),
        }
    }

    pub(super) fn hand_out(
        &self,
        lease: &mut Lease,
        waited: Duration,
        at: Instant,
        place: &'static Location<'static>,
    ) {
        lease.tracked().set_holder(place, at);
        if self.shared.config.reset == Reset::Always {
            lease.clean_afterwards();
        }
        self.shared.metrics.wait_time.observe(waited.as_secs_f64());
        self.shared.observe(|o| o.checked_out(lease.id(), waited));
        trace!("checked out conn={} waited={waited:.1?}", lease.id());
        self.warn_when_short();
    }

    /// Warns, at most once a minute, if more than 80 % of the connections are checked out.
    fn warn_when_short(&self) {
        let (out, max) = (
            self.out.load(Ordering::Relaxed),
            self.max.load(Ordering::Relaxed),
        );
        if out * 5 <= max * 4 {
            return;
        }
        let now = self.start.elapsed().as_secs() + 1;
        let last = self.warned_at.load(Ordering::Relaxed);
        let due = last == 0 || now >= last + 60;
        if due
            && self
                .warned_at
                .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            let s = self.stats();
            warn!(
                "more than 80 % of the connections are in use: active={} idle={} waiting={} max={}; \
                 hold them for less time, or raise DB_POOL_MAX",
                s.active, s.idle, s.waiting, s.max
            );
        }
    }

    pub(crate) fn refuse(
        &self,
        reason: CheckoutFailure,
        started: Instant,
        place: &'static Location<'static>,
    ) -> Error {
        if reason == CheckoutFailure::Timeout {
            self.shared.metrics.timeouts.inc();
        }
        let retry_after = match reason {
            CheckoutFailure::LineFull => self.line.clears_in(),
            _ => None,
        };
        Error::Checkout(Box::new(CheckoutError {
            reason,
            retry_after,
            waited: started.elapsed(),
            place,
            stats: self.stats(),
            longest: self.shared.watchdog.longest_held(),
            held_here: self.shared.watchdog.held_by_this_thread(),
            last_open_error: self.opener.gate.cause(started),
        }))
    }

    pub(super) fn wake_housekeeper(&self) {
        if let Some(housekeeper) = &*sync::unpoison(self.housekeeper.lock()) {
            housekeeper.unpark();
        }
    }
}

/// A checked-out session. Dropping it checks the session in.
pub(crate) struct Lease {
    pub(super) inner: Arc<Inner>,
    pub(super) held: Option<Held>,
    /// In whose share the session counts.
    pub(super) class: Option<Arc<str>>,
    /// The thread was already panicking at the check-out: the session is used to clean up.
    pub(super) panicking: bool,
}

impl Deref for Lease {
    type Target = Session;

    fn deref(&self) -> &Session {
        match &self.held {
            Some(held) => held,
            None => unreachable!("a lease holds its session until it is dropped"),
        }
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Session {
        match &mut self.held {
            Some(held) => held,
            None => unreachable!("a lease holds its session until it is dropped"),
        }
    }
}
