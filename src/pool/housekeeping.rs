//! The threads of a pool. Openers open connections on behalf of the waiters, and go. The
//! housekeeper cleans sessions whose raw connection was lent out, closes those that were idle for
//! too long, and logs the holders that have held a connection for too long.

use super::checkout::{Held, Inner};
use super::hedge::Purpose;
use super::line::Line;
use super::manager::Manager;
use super::member::Member;
use super::opener::Opener;
use super::session::Session;
use crate::class_queue::Share;
use crate::metrics::CloseReason;
use crate::sync::{caught, unpoison};
use log::{error, warn};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// How long an opener waits inside r2d2 before it asks again: r2d2 does not wake it when a broken
/// connection makes room.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// How often, at least, idle connections are checked for a close by the server.
const LOOK_AT_IDLE: Duration = Duration::from_millis(500);
/// The most connections that are checked in one pass.
const MOST_LOOKS: usize = 256;

pub(super) fn start(inner: &Arc<Inner>) -> io::Result<()> {
    let pool = Arc::downgrade(inner);
    let housekeeper = thread::Builder::new()
        .name("millpond-keeper".into())
        .spawn(move || keep(&pool))?;
    *unpoison(inner.housekeeper.lock()) = Some(housekeeper.thread().clone());
    Ok(())
}

/// Starts a thread that opens connections until the line wants no more. If the system grants none,
/// the housekeeper opens them, one after the other.
pub(super) fn start_opener(inner: &Arc<Inner>) {
    let opener = &inner.opener;
    if opener.is_short_of_threads() {
        return inner.line.opener_missing();
    }
    let work = {
        let (line, r2d2) = (Arc::clone(&inner.line), inner.r2d2.clone());
        let opener = Arc::clone(opener);
        move || while open_one(&line, &r2d2, &opener) {}
    };
    let name = "millpond-opener".into();
    if let Err(e) = thread::Builder::new().name(name).spawn(work) {
        opener.note_no_thread(&e);
        inner.line.opener_missing();
        inner.wake_housekeeper();
    }
}

/// Does the work of one opener that was hired. Returns whether it is to open another.
fn open_one(line: &Line<Held>, r2d2: &r2d2::Pool<Manager>, opener: &Arc<Opener>) -> bool {
    if let Err(panic) = caught(|| open_soon(line, r2d2, opener)) {
        error!("opening a connection panicked: {panic}");
    }
    line.opener_done()
}

/// Opens a connection, if it is possible soon, and offers it to the line. If not, the line is asked
/// once more whether one is wanted.
fn open_soon(line: &Line<Held>, r2d2: &r2d2::Pool<Manager>, opener: &Arc<Opener>) {
    let closing = &opener.shared.closing;
    let soon = Instant::now() + LOOK_AGAIN;
    let Some(turn) = opener.gate.turn_soon(closing, soon) else {
        return;
    };
    let Ok(session) = opener.open_in_turn(turn, None, Purpose::Use) else {
        return;
    };
    let counted = opener.opened.pass(session, || {
        loop {
            if closing.load(Ordering::SeqCst) {
                return None;
            }
            if let Ok(counted) = r2d2.get_timeout(LOOK_AGAIN) {
                return Some(counted);
            }
        }
    });
    let Some(mut counted) = counted else {
        drop(opener.opened.take());
        return;
    };
    // A thread that waits for it is better served by a new one than by none. Where it takes the
    // place of another, that one serves until then.
    opener.warm_up(&mut counted, || {
        closing.load(Ordering::SeqCst) || line.figures().waiting > 0 && !line.is_full()
    });
    if !counted.is_closing()
        && let Some(mut unwanted) = line.offer(Box::new(counted))
    {
        unwanted.close_for(CloseReason::Drained);
    }
}

fn keep(pool: &Weak<Inner>) {
    let mut next_sweep = Instant::now();
    // The pool is held only while there is work, so that dropping the pool ends this thread.
    while let Some(inner) = pool.upgrade() {
        let pause = pause_between_passes(&inner);
        let due = Instant::now() >= next_sweep;
        let work = caught(|| {
            inner.clean_idle();
            if inner.opener.is_short_of_threads() {
                inner.open_here(next_sweep);
            }
            if due {
                inner.feed_spares();
                inner.line.call_openers();
                inner.close_dead();
                inner.sweep();
                inner.name_leaks();
                let due = inner.member.as_ref().is_some_and(Member::is_due);
                inner.probe.keep_fresh(&inner.opener, due, inner.look_every);
            }
        });
        if let Err(panic) = work {
            error!("the housekeeper panicked and continues: {panic}");
        }
        if due {
            next_sweep = Instant::now() + pause;
        }
        drop(inner);
        thread::park_timeout(next_sweep.saturating_duration_since(Instant::now()));
    }
}

/// Returns the pause between two passes: a quarter of the shortest time that must be kept, at least
/// 10 ms and at most [`LOOK_AT_IDLE`].
fn pause_between_passes(inner: &Inner) -> Duration {
    let config = &inner.shared.config;
    let shortest = [
        config.idle_timeout,
        config.max_lifetime,
        config.leak_threshold,
        inner.look_every,
    ]
    .into_iter()
    .flatten()
    .min();
    let fraction = shortest.map_or(LOOK_AT_IDLE, |time| time / 4);
    fraction.clamp(Duration::from_millis(10), LOOK_AT_IDLE)
}

impl Inner {
    /// Opens what the line wants on this thread, until there is other work to do.
    fn open_here(&self, until: Instant) {
        let mut wanted = self.line.begin_opening();
        while wanted {
            wanted = open_one(&self.line, &self.r2d2, &self.opener);
            if wanted && Instant::now() >= until {
                self.line.opener_missing();
                return;
            }
        }
    }

    /// Cleans sessions whose raw connection was lent out, so that the thread that returned them
    /// does not have to. A session that went straight to a waiter is cleaned by that waiter.
    fn clean_idle(self: &Arc<Self>) {
        while let Some(held) = self.line.check_out_idle(|held| held.is_dirty()) {
            self.lease(held, &Share::default()).clean(None);
        }
    }

    /// Reads what the server has sent to idle sessions, and closes the sessions that it has ended.
    fn close_dead(&self) {
        let first = self.next_look.load(Ordering::Relaxed);
        let in_turn = first..first + MOST_LOOKS;
        let mut nth = 0;
        let dead = self.line.take_idle(usize::MAX, |held| {
            let now = in_turn.contains(&nth);
            nth += 1;
            now && !held.is_dirty() && held.check_for_end()
        });
        let next = if nth > in_turn.end { in_turn.end } else { 0 };
        self.next_look.store(next, Ordering::Relaxed);
        if !dead.is_empty() {
            self.shared.note_trouble();
            self.close_idle(dead, CloseReason::Broken);
        }
    }

    /// Closes idle sessions that must retire or have been replaced, and those above the minimum
    /// that have been idle for too long.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        let retire = |held: &mut Held| held.retire().is_some();
        for held in self.line.take_idle(usize::MAX, retire) {
            let reason = held.retire().unwrap_or(CloseReason::Broken);
            self.close_idle([held], reason);
        }
        self.replace_idle(now);
        let Some(idle_timeout) = self.shared.config.idle_timeout else {
            return;
        };
        let long_idle =
            |session: &Session| session.idle_for(now) >= idle_timeout && !session.is_dirty();
        // Only long-idle sessions are counted against the minimum: a session in use must not make
        // one of those superfluous that are kept idle.
        let min = self.shared.config.effective_min_idle() as usize;
        let count = self.line.count_idle(|held| long_idle(held));
        let surplus = self
            .line
            .take_idle(count.saturating_sub(min), |held| long_idle(held));
        self.close_idle(surplus, CloseReason::IdleTimeout);
    }

    /// Closes idle sessions that are due and have been replaced.
    fn replace_idle(&self, now: Instant) {
        let is_due = |held: &Held| held.due(now).is_some();
        while let Some(held) = self.line.take_replaced(is_due) {
            let reason = held.due(now).unwrap_or(CloseReason::MaxLifetime);
            self.close_idle([held], reason);
        }
    }

    pub(super) fn close_idle(&self, idle: impl IntoIterator<Item = Held>, reason: CloseReason) {
        for held in idle {
            self.discard(held, reason);
            self.line.closed_idle();
        }
    }

    fn name_leaks(&self) {
        let Some(threshold) = self.shared.config.leak_threshold else {
            return;
        };
        for holder in self.shared.watchdog.newly_held_longer_than(threshold) {
            self.shared.metrics.leaks.inc();
            let last = match &holder.statement {
                Some(last) => format!("its last statement is {last}"),
                None => "no statement was sent on it".into(),
            };
            warn!("a connection may have leaked: {holder}; {last}");
            self.shared.observe(|o| o.leaked(&holder));
        }
    }
}
