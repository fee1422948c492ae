//! The handle of one wire, with which other threads can cut it, and which says how far a request has
//! come.

use super::own::{Messages, Names, Own, OwnState};
use super::prepare::{Description, Prepares};
use crate::retry::Progress;
use crate::sync::unpoison;
use postgres::Notification;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Waker};
use std::time::Instant;

/// Ends every call that is blocked on one wire.
#[derive(Default)]
pub(crate) struct Handle {
    aborted: AtomicBool,
    waker: Mutex<Option<Waker>>,
    /// One of the constants of `progress`.
    pub(super) progress: AtomicU8,
    /// What the server gave out for cancel requests: a process number and a key. 0 = none was seen.
    pub(super) cancel_key: AtomicU64,
    /// The stream above the wire is encrypted, or the handshake for it has begun.
    pub(super) encrypted: AtomicBool,
    pub(super) grown: AtomicBool,
    /// One of the constants of `look`.
    pub(super) look: AtomicU8,
    last: Mutex<Option<Last>>,
    own: Mutex<OwnState>,
    names: Mutex<Names>,
    prepares: Mutex<Prepares>,
    /// The answers can no longer be counted exactly.
    pub(super) miscounts: AtomicBool,
}

/// The statement that was sent last.
#[derive(Clone)]
pub(crate) struct Last {
    /// The beginning of its text.
    pub text: Arc<str>,
    /// It has not been answered yet.
    pub is_running: bool,
    /// When it was sent, or answered.
    pub since: Instant,
}

/// States of a look, which reads what the server has sent without a request.
///
/// The driver reports only messages that had arrived when its runtime last polled the socket, which
/// it does while it waits. So a look makes it wait for a notification that the wire itself
/// delivers.
pub(super) mod look {
    pub const NONE: u8 = 0;
    pub const ASKED: u8 = 1;
    /// The runtime has polled the socket since the look was asked for.
    pub const TURNED: u8 = 2;
    /// A NotificationResponse: a length, a process, a channel, no payload.
    pub const MESSAGE: &[u8] = b"A\0\0\0\x17\0\0\0\0millpond_look\0\0";
    pub const CHANNEL: &str = "millpond_look";
}

/// After a message longer than this, the driver keeps buffers of that size for the life of its
/// connection.
pub(super) const HUGE: usize = 16 << 20;

/// How far the current request has come. Only the thread that uses the connection advances it.
pub(super) mod progress {
    pub const NOTHING_SENT: u8 = 0;
    pub const SENT: u8 = 1;
    pub const COMPLETED: u8 = 2;
    /// Completed, then followed by an error.
    pub const FAILED: u8 = 3;
    pub const ANSWERED: u8 = 4;
}

impl Handle {
    /// Cuts the connection permanently. Never blocks.
    pub fn abort(&self) {
        self.aborted.store(true, Ordering::SeqCst);
        let waker = unpoison(self.waker.lock()).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::SeqCst)
    }

    /// Resets the progress: the next request is about to be sent.
    pub fn begin_request(&self) {
        self.progress
            .store(progress::NOTHING_SENT, Ordering::Relaxed);
    }

    /// Returns how far the request has come since [`begin_request`](Self::begin_request).
    pub fn progress(&self) -> Progress {
        match self.progress.load(Ordering::Relaxed) {
            progress::NOTHING_SENT => Progress::NothingSent,
            progress::SENT => Progress::Sent,
            progress::ANSWERED => Progress::Answered,
            _ => Progress::Completed,
        }
    }

    /// Returns the process to be named in a cancel request, as the server gave it out when the
    /// connection was opened.
    pub fn process(&self) -> Option<i32> {
        let process = i32::from_be_bytes(*self.cancel_key().first_chunk()?);
        Some(process).filter(|process| *process != 0)
    }

    /// Returns the process number and the key of a cancel request, as the server gave them out.
    pub fn cancel_key(&self) -> [u8; 8] {
        self.cancel_key.load(Ordering::Relaxed).to_be_bytes()
    }

    pub fn is_encrypted(&self) -> bool {
        self.encrypted.load(Ordering::Relaxed)
    }

    /// Makes the next wait on the wire end at once: with a message from the server if there is one,
    /// otherwise with a notification that the wire makes.
    pub fn ask_for_look(&self) {
        self.look.store(look::ASKED, Ordering::Relaxed);
    }

    /// Returns whether a notification is the one that ends a look.
    pub fn is_look(notification: &Notification) -> bool {
        notification.process_id() == 0 && notification.channel() == look::CHANNEL
    }

    fn last(&self) -> MutexGuard<'_, Option<Last>> {
        unpoison(self.last.lock())
    }

    /// Returns the statement that was sent last, as long as it was not forgotten.
    pub fn last_statement(&self) -> Option<Last> {
        self.last().clone()
    }

    pub fn forget_statement(&self) {
        *self.last() = None;
    }

    pub(super) fn note_sent(&self, text: Arc<str>) {
        *self.last() = Some(Last {
            text,
            is_running: true,
            since: Instant::now(),
        });
    }

    pub(super) fn note_answered(&self) {
        if let Some(last) = self.last().as_mut().filter(|last| last.is_running) {
            last.is_running = false;
            last.since = Instant::now();
        }
    }

    pub(super) fn own(&self) -> MutexGuard<'_, OwnState> {
        unpoison(self.own.lock())
    }

    pub(super) fn names(&self) -> MutexGuard<'_, Names> {
        unpoison(self.names.lock())
    }

    /// Holds back statements of the pool's own until the driver's next request. `named`: they are
    /// prepared once for the connection. Returns false if that is impossible on this connection.
    pub fn hold_own(&self, statements: &[Own], named: bool) -> bool {
        let possible = !self.miscounts.load(Ordering::Relaxed);
        *self.own() = match (possible, named) {
            (true, true) => OwnState::Held(Messages::named(statements, &mut self.names())),
            (true, false) => OwnState::Held(Messages::of(statements)),
            (false, _) => OwnState::None,
        };
        possible
    }

    /// Returns what has become of them, and forgets them if they are neither held nor refused.
    pub fn take_own(&self) -> OwnState {
        let mut own = self.own();
        match *own {
            OwnState::Held(_) => OwnState::Held(Messages::default()),
            OwnState::Refused => OwnState::Refused,
            _ => std::mem::take(&mut *own),
        }
    }

    /// Forgets them. Returns true if they were still held: nothing of them was sent.
    pub fn forget_own(&self) -> bool {
        matches!(std::mem::take(&mut *self.own()), OwnState::Held(_))
    }

    /// Has all statements of the pool's own prepared anew: they may be gone.
    pub fn forget_names(&self) {
        self.names().forget();
    }

    pub(super) fn prepares(&self) -> MutexGuard<'_, Prepares> {
        unpoison(self.prepares.lock())
    }

    /// Answers the driver's next preparation with this description, and holds it back until the
    /// next statement. `checks`: that takes the parameters. Returns false if this is impossible on
    /// this connection.
    pub fn expect_prepare(&self, description: Description, checks: bool) -> bool {
        let possible = !self.miscounts.load(Ordering::Relaxed);
        if possible {
            self.prepares().expect(description, checks);
        }
        possible
    }

    /// Returns whether the driver's last preparation was answered so, and waits.
    pub fn holds_prepare(&self) -> bool {
        self.prepares().holds_last()
    }

    /// Forgets the preparations that wait. Returns, of those that were sent, whether the server has
    /// described them as the driver was told.
    pub fn take_prepares(&self) -> Vec<bool> {
        self.prepares().take()
    }

    /// Returns whether a message longer than [`HUGE`] has passed.
    pub fn has_grown(&self) -> bool {
        self.grown.load(Ordering::Relaxed)
    }

    /// Stores the waker first and reads the flag afterwards, so that an abort between the two is
    /// not missed.
    pub(super) fn check(&self, cx: &Context<'_>) -> io::Result<()> {
        let mut waker = unpoison(self.waker.lock());
        if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        drop(waker);
        if self.is_aborted() {
            Err(io::ErrorKind::TimedOut.into())
        } else {
            Ok(())
        }
    }
}
