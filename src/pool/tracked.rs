//! The state of a connection that other threads may read and change.

use super::wire;
use crate::error::HeldBy;
use crate::sync::unpoison;
use postgres::CancelToken;
use std::panic::Location;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long the sender of a cancel request may take to note that it has sent it.
const LONGEST_NOTE: Duration = Duration::from_millis(200);

/// The deadline of one connection in one word: nanoseconds since the watchdog's start, and in the
/// two lowest bits the action to take then. 0 = nothing is on the wire.
pub(super) mod word {
    pub const CANCEL: u64 = 1;
    pub const ABORT: u64 = 2;
    pub const CANCELLED: u64 = 3;
    /// Work is on the wire, without a deadline.
    pub const NEVER: u64 = u64::MAX >> 2;

    pub fn pack(nanos: u64, stage: u64) -> u64 {
        (nanos.min(NEVER) << 2) | stage
    }

    pub fn unpack(word: u64) -> (u64, u64) {
        (word >> 2, word & 3)
    }
}

/// The state of a connection that other threads may read and change.
pub(crate) struct Tracked {
    pub id: u64,
    pub wire: Arc<wire::Handle>,
    pub(super) word: AtomicU64,
    /// Set once the server has accepted the connection; the flag says whether it uses TCP (and so a
    /// wire).
    pub(super) cancel: OnceLock<(CancelToken, bool)>,
    pub(super) holder: Mutex<Option<Holder>>,
    /// The server reported in a warning that it gave up the wait for a synchronous standby.
    pub gave_up_on_standbys: AtomicBool,
    /// The cancel request that was asked for last has been sent.
    pub(super) cancel_sent: AtomicBool,
    /// Its work is cancelled as soon as the pool closes.
    pub ends_with_pool: AtomicBool,
}

pub(super) struct Holder {
    pub place: &'static Location<'static>,
    pub thread: Thread,
    pub since: Instant,
    /// It has been named in a warning.
    pub warned: bool,
}

impl Tracked {
    pub fn set_cancel(&self, token: CancelToken, tcp: bool) {
        // Set once, right after opening; a second call would set the same token.
        let _ = self.cancel.set((token, tcp));
    }

    /// Returns whether the cancel request that was asked for last has been sent. Waits a moment:
    /// the server may have obeyed it before its sender has noted that.
    pub fn cancel_was_sent(&self) -> bool {
        let until = Instant::now() + LONGEST_NOTE;
        while !self.cancel_sent.load(Ordering::SeqCst) {
            if Instant::now() >= until {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        true
    }

    pub(super) fn holder(&self) -> MutexGuard<'_, Option<Holder>> {
        unpoison(self.holder.lock())
    }

    pub fn set_holder(&self, place: &'static Location<'static>) {
        *self.holder() = Some(Holder {
            place,
            thread: thread::current(),
            since: Instant::now(),
            warned: false,
        });
    }

    /// Ends the hold and returns how long it was.
    pub fn take_hold(&self) -> Option<Duration> {
        self.holder().take().map(|h| h.since.elapsed())
    }

    pub(super) fn describe_holder(&self, holder: &Holder) -> HeldBy {
        HeldBy {
            connection: self.id,
            place: holder.place,
            thread: holder.thread.name().map(str::to_owned),
            held: holder.since.elapsed(),
        }
    }
}
