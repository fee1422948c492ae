//! The health probe: a connection of its own that checks whether the database answers, independent
//! of the state of the pool.
//!
//! Callers within 250 ms share one answer, and no caller waits longer than 800 ms: the probe runs
//! on a thread that can be left behind.

use super::after_probe::look_round;
use super::headroom::Room;
use super::hedge::Purpose;
use super::opener::Opener;
use super::pong::{Pong, ProbeError, Reading};
use super::session::Session;
use crate::error::{Chain, OpenError};
use crate::metrics::{CloseReason, Headroom};
use crate::retry::Symptom;
use crate::sync::{caught, unpoison};
use log::{error, info, warn};
use std::error::Error as StdError;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

/// The longest that a caller waits for an answer.
const LIMIT: Duration = Duration::from_millis(800);
/// How much longer than usual a login or an answer may take before it counts as missing. To a
/// database that is far away, both may take longer than a caller waits.
const SLACK: u32 = 3;
/// Balancers that ask for the newest answer at all ask more often than this.
#[cfg(feature = "server")]
const WANTED_FOR: Duration = Duration::from_secs(60);
/// How long an answer is news in the metrics. The server has a new one every ten seconds.
#[cfg(feature = "metrics")]
const NEWS_FOR: Duration = Duration::from_secs(60);
/// How long an answer is reused for other callers.
const SHARED_FOR: Duration = Duration::from_millis(250);

#[derive(Default)]
pub(crate) struct Probe {
    state: Arc<State>,
    #[cfg(feature = "server")]
    watches: AtomicBool,
}

#[derive(Default)]
struct State {
    inner: Mutex<Inner>,
    answered: Condvar,
    closed: AtomicBool,
}

#[derive(Default)]
struct Inner {
    last: Option<(Instant, Reading)>,
    /// A probe is out: since when, and how long it may take.
    out: Option<(Instant, Duration)>,
    session: Option<Session>,
    room: Room,
    /// When the newest answer was last asked for, without waiting for another.
    #[cfg(feature = "server")]
    wanted_at: Option<Instant>,
    /// How many logins in a row did not end in time: each may take twice as long as the one before.
    late_logins: u32,
}

impl Inner {
    /// Returns the last answer if it was good, and the probe that is out takes no longer than it
    /// may at this distance.
    fn presumed(&self) -> Option<Reading> {
        let (since, limit) = self.out?;
        let (_, last) = self.last.as_ref()?;
        let is_far = limit > LIMIT && since.elapsed() < limit;
        (is_far && last.is_ok()).then(|| last.clone())
    }

    /// Returns how long an answer may take, and how long a login.
    fn limits(&self, opener: &Opener) -> (Duration, Duration) {
        let answer = match &self.last {
            Some((_, Ok(pong))) => SLACK * pong.took,
            _ => Duration::ZERO,
        };
        let usual = opener.attempts.usual().unwrap_or_default();
        let login = LIMIT.max(SLACK * usual) * (1 << self.late_logins.min(8));
        let most = opener.shared.config.effective_connect_timeout();
        (LIMIT.max(answer), login.min(most.max(LIMIT)))
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        unpoison(self.inner.lock())
    }
}

impl Probe {
    /// Probes the database, or reuses an answer that is younger than 250 ms. Returns within 800 ms.
    pub fn ask(&self, opener: &Arc<Opener>) -> Reading {
        if opener.shared.process.is_another() {
            return Err((ProbeError::Other, None));
        }
        let until = Instant::now() + LIMIT;
        let mut inner = self.state.lock();
        if let Some((at, reading)) = &inner.last
            && at.elapsed() < SHARED_FOR
        {
            return reading.clone();
        }
        // In a pause nothing is opened, and the last answer is all that is known.
        let is_paused = opener.gate.is_paused();
        if is_paused || self.state.closed.load(Ordering::SeqCst) {
            return inner
                .last
                .as_ref()
                .map_or(Err((ProbeError::Other, None)), |(_, last)| last.clone());
        }
        let asked_at = Instant::now();
        if inner.out.is_none() {
            inner.out = Some((asked_at, LIMIT));
            if let Err(e) = self.send(opener) {
                // The lack of a thread says nothing about the database: probe on this thread, whose
                // wire is cut in time.
                warn!("cannot start a thread for the health probe: {e}");
                drop(inner);
                self.state.ask_now(opener, Some(until));
                inner = self.state.lock();
            }
        }
        loop {
            if let Some((at, reading)) = &inner.last
                && *at >= asked_at
            {
                return reading.clone();
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return inner.presumed().unwrap_or(Err((ProbeError::Timeout, None)));
            }
            inner = unpoison(self.state.answered.wait_timeout(inner, left)).0;
        }
    }

    /// Returns the newest answer, however old. If it is not fresh, a new probe is sent.
    #[cfg(feature = "server")]
    pub fn newest(&self, opener: &Arc<Opener>) -> Option<Reading> {
        let mut inner = self.state.lock();
        inner.wanted_at = Some(Instant::now());
        let newest = inner.last.clone();
        self.refresh(&mut inner, opener, SHARED_FOR);
        newest.map(|(_, reading)| reading)
    }

    /// From now on, the database is asked every ten seconds, also if nobody wants to know.
    #[cfg(feature = "server")]
    pub fn watch(&self) {
        self.watches.store(true, Ordering::Relaxed);
    }

    /// Sends a probe if one is `due`, if the last is older than `every`, and now and then while the
    /// newest answer is asked for now and then, so that it is no older than a second. To be called
    /// several times a second.
    pub fn keep_fresh(&self, opener: &Arc<Opener>, due: bool, every: Option<Duration>) {
        let mut inner = self.state.lock();
        #[cfg(feature = "server")]
        if inner.wanted_at.is_some_and(|at| at.elapsed() < WANTED_FOR) {
            self.refresh(&mut inner, opener, Duration::from_millis(700));
        } else if self.watches.load(Ordering::Relaxed) {
            self.refresh(&mut inner, opener, Room::LOOK_EVERY);
        }
        if due {
            self.refresh(&mut inner, opener, Duration::ZERO);
        }
        if let Some(every) = every {
            let pause = match &inner.last {
                Some((_, Err((error, _)))) => every.max(pause_after(*error)),
                _ => every,
            };
            self.refresh(&mut inner, opener, pause);
        }
    }

    fn refresh(&self, inner: &mut Inner, opener: &Arc<Opener>, age: Duration) {
        let is_fresh = matches!(&inner.last, Some((at, _)) if at.elapsed() < age);
        let is_paused = opener.gate.is_paused();
        if !is_fresh
            && !is_paused
            && inner.out.is_none()
            && !self.state.closed.load(Ordering::SeqCst)
        {
            inner.out = self.send(opener).is_ok().then(|| (Instant::now(), LIMIT));
        }
    }

    /// Starts a thread that probes and can be left behind.
    fn send(&self, opener: &Arc<Opener>) -> io::Result<()> {
        let (state, theirs) = (Arc::clone(&self.state), Arc::clone(opener));
        let asker = thread::Builder::new().name("millpond-probe".into());
        asker.spawn(move || state.ask_now(&theirs, None))?;
        Ok(())
    }

    /// Returns whether the last answer was good. `None` if there was none within a minute: without
    /// the server, the database is asked only when the application wants to know.
    #[cfg(feature = "metrics")]
    pub fn last_was_up(&self) -> Option<bool> {
        let inner = self.state.lock();
        let last = inner.last.as_ref()?;
        (last.0.elapsed() < NEWS_FOR).then_some(last.1.is_ok())
    }

    /// Returns the server's room for more connections, as it was seen last.
    pub fn headroom(&self) -> Option<Headroom> {
        self.state.lock().room.seen.clone()
    }

    /// Closes the connection, and opens no other.
    pub fn close(&self) {
        self.state.closed.store(true, Ordering::SeqCst);
        self.release();
    }

    /// Returns why the last probe failed, if it did.
    pub fn last_error(&self) -> Option<ProbeError> {
        match self.state.lock().last {
            Some((_, Err((error, _)))) => Some(error),
            _ => None,
        }
    }

    /// Closes the connection.
    pub fn release(&self) {
        let session = self.state.lock().session.take();
        if let Some(mut session) = session {
            session.close_for(CloseReason::Drained);
        }
    }
}

impl State {
    /// Probes the database, until this moment, or for as long as that may take.
    fn ask_now(&self, opener: &Arc<Opener>, until: Option<Instant>) {
        // An old session does not see a setting that applies to new sessions only. So a new session
        // is opened if a write was refused since the last probe, and as long as the database is
        // read-only and should not be.
        let refused = opener
            .shared
            .was_refused_a_write
            .swap(false, Ordering::Relaxed);
        let mut inner = self.lock();
        let was_read_only = matches!(&inner.last, Some((_, Ok(pong))) if pong.read_only);
        let should_not = !opener.shared.config.reads_only();
        let mut session = inner.session.take();
        if (refused || (was_read_only && should_not))
            && let Some(mut old) = session.take()
        {
            old.close_for(CloseReason::FailedOver);
        }
        let (answer, login) = inner.limits(opener);
        let whole = if session.is_some() {
            answer
        } else {
            login + answer
        };
        inner.out = Some((Instant::now(), whole));
        drop(inner);
        let end = |limit| {
            let own = Instant::now() + limit;
            until.map_or(own, |until| until.min(own))
        };
        let result = caught(|| read(opener, session, || end(answer), || end(login)));
        let (mut session, reading) = result.unwrap_or_else(|panic| {
            error!("the health probe panicked: {panic}");
            (None, Err((ProbeError::Other, None)))
        });
        if let Some(tell) = opener.on_reading.get()
            && !tell(&reading)
            && let Some(mut unwanted) = session.take()
        {
            unwanted.close_for(CloseReason::Evicted);
        }
        let mut inner = self.lock();
        inner.late_logins = match (&session, &reading) {
            (None, Err((ProbeError::Timeout, _))) => inner.late_logins + 1,
            _ => 0,
        };
        let was_up = inner.last.as_ref().is_none_or(|(_, last)| last.is_ok());
        match &reading {
            Ok(_) if !was_up => info!("the health probe succeeds again{}", opener.shared.at()),
            Err((what, _)) if was_up => {
                warn!("the health probe fails{}: {what}", opener.shared.at());
            }
            _ => {}
        }
        inner.last = Some((Instant::now(), reading));
        let looks = session.is_some() && inner.room.is_due();
        if looks || opener.upkeep.get().is_some() {
            // Those who wait for the answer have it now. How far away the database is, is known.
            let (answer, _) = inner.limits(opener);
            inner.out = Some((Instant::now(), answer));
            drop(inner);
            self.answered.notify_all();
            let looked = caught(|| look_round(opener, &mut session, looks, || end(answer)));
            let (answers, seen) = looked.unwrap_or_else(|panic| {
                error!("the health probe panicked: {panic}");
                (false, None)
            });
            inner = self.lock();
            if looks {
                inner.room.note(seen);
            }
            // For those who have asked meanwhile.
            if let Some((at, last)) = &mut inner.last {
                *at = Instant::now();
                if !answers {
                    *last = Err((ProbeError::Timeout, None));
                }
            }
        }
        inner.out = None;
        let is_paused = opener.gate.is_paused();
        let unwanted = if is_paused || self.closed.load(Ordering::SeqCst) {
            session
        } else {
            std::mem::replace(&mut inner.session, session)
        };
        drop(inner);
        self.answered.notify_all();
        if let Some(mut session) = unwanted {
            session.close_for(CloseReason::Drained);
        }
    }
}

fn read(
    opener: &Arc<Opener>,
    session: Option<Session>,
    answer_until: impl Fn() -> Instant,
    login_until: impl Fn() -> Instant,
) -> (Option<Session>, Reading) {
    let located = opener.on_reading.get().is_some();
    if let Some(mut session) = session {
        let until = answer_until();
        match Pong::of(&mut session, located, until) {
            Ok(pong) => return (Some(session), Ok(pong)),
            Err(_) => session.close_for(CloseReason::Broken),
        }
        if Instant::now() >= until {
            return (None, Err((ProbeError::Timeout, None)));
        }
        // The server may have been restarted since: a new connection shows whether it is up.
    }
    let opened = opener.open(login_until(), Duration::MAX, Purpose::Use, None);
    let mut session = match opened {
        Ok(mut session) => {
            session.announce();
            session
        }
        Err(e) => {
            log::debug!("the health probe could not connect: {}", Chain(&e));
            return (None, Err(reading_of(&e)));
        }
    };
    // How far away the database is, is not known yet; a login takes several answers.
    let until = answer_until().max(Instant::now() + session.took());
    let result = Pong::of(&mut session, located, until);
    if result.is_err() {
        session.close_for(CloseReason::Broken);
    }
    match result {
        Ok(pong) => (Some(session), Ok(pong)),
        Err(_) if Instant::now() >= until => (None, Err((ProbeError::Timeout, None))),
        Err(e) => (
            None,
            Err((
                ProbeError::Unreachable,
                e.code().map(|s| s.code().to_owned()),
            )),
        ),
    }
}

/// Returns how long to wait after a probe that failed before one that no caller waits for. What
/// does not let us in will hardly do so at once, and logs each attempt.
fn pause_after(error: ProbeError) -> Duration {
    match error {
        ProbeError::Authentication
        | ProbeError::Tls
        | ProbeError::UnknownDatabase
        | ProbeError::Other => Duration::from_secs(3),
        ProbeError::TooManyConnections | ProbeError::StartingUp => Duration::from_millis(500),
        ProbeError::Unreachable | ProbeError::Refused | ProbeError::Timeout => {
            Duration::from_millis(250)
        }
    }
}

/// Returns what is said of the database if a connection could not be opened.
pub(super) fn reading_of(error: &OpenError) -> (ProbeError, Option<String>) {
    let code = error.sqlstate().map(|code| code.code().to_owned());
    (classify(error), code)
}

fn classify(error: &OpenError) -> ProbeError {
    match error.meant().map(postgres::error::SqlState::code) {
        Some(code) if code.starts_with("28") => ProbeError::Authentication,
        Some("3D000") => ProbeError::UnknownDatabase,
        Some("53300") => ProbeError::TooManyConnections,
        Some("57P03" | "57P01" | "57P02") => ProbeError::StartingUp,
        Some(_) => ProbeError::Other,
        None => match error {
            OpenError::Timeout(_) | OpenError::OnConnectTimeout(_) => ProbeError::Timeout,
            OpenError::Resolve(e) if e.kind() == io::ErrorKind::TimedOut => ProbeError::Timeout,
            OpenError::Resolve(_) => ProbeError::Unreachable,
            OpenError::Connect(e) => by_kind(e),
            OpenError::Tls(_) => ProbeError::Tls,
            OpenError::Password(_) => ProbeError::Authentication,
            OpenError::Driver(e) => by_cause(e),
            _ => ProbeError::Other,
        },
    }
}

/// The driver says so in its texts only.
fn is_for_want_of_password(error: &postgres::Error) -> bool {
    let said = Chain(error).to_string();
    said.starts_with("authentication error") || said.contains("password missing")
}

fn by_kind(error: &io::Error) -> ProbeError {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => ProbeError::Refused,
        io::ErrorKind::TimedOut => ProbeError::Timeout,
        _ => ProbeError::Unreachable,
    }
}

fn by_cause(error: &postgres::Error) -> ProbeError {
    let cause = error.source().and_then(|c| c.downcast_ref::<io::Error>());
    match cause {
        Some(e) => by_kind(e),
        None if Symptom::of(error) == Symptom::Lost => ProbeError::Unreachable,
        None if is_for_want_of_password(error) => ProbeError::Authentication,
        None => ProbeError::Other,
    }
}
