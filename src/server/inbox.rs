//! What the other threads tell the event loop: which requests they have answered, and that it must
//! wake up.

use super::in_flight::Ticket;
use super::service::Service;
use crate::sync::unpoison;
use mio::Waker;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Key and serial number of a client's connection.
pub(super) type ClientKey = (usize, u64);

/// The event loop's inbox, shared with all who answer requests.
pub(super) struct Inbox {
    pub service: Arc<Service>,
    waker: Waker,
    /// A wake-up is pending.
    woken: AtomicBool,
    done: Mutex<Vec<Done>>,
}

/// An answered request.
pub(super) struct Done {
    pub client: ClientKey,
    /// The part of the answer that the socket did not take.
    pub rest: Vec<u8>,
    pub close: bool,
    /// The client is gone.
    pub failed: bool,
    /// Counts the request as in flight until the rest is written.
    pub ticket: Option<Ticket>,
}

impl Inbox {
    pub fn new(waker: Waker, service: Arc<Service>) -> Inbox {
        Inbox {
            service,
            waker,
            woken: AtomicBool::new(false),
            done: Mutex::default(),
        }
    }

    /// Wakes the loop, unless a wake-up is pending already.
    pub fn wake(&self) {
        if self.woken.swap(true, Ordering::SeqCst) {
            return;
        }
        if let Err(e) = self.waker.wake() {
            log::warn!("cannot wake the event loop: {e}");
        }
    }

    /// The loop has woken up: from here on it looks at everything, and later changes wake it again.
    pub fn mark_awake(&self) {
        self.woken.store(false, Ordering::SeqCst);
    }

    pub fn put(&self, done: Done) {
        unpoison(self.done.lock()).push(done);
    }

    pub fn take_done(&self) -> Vec<Done> {
        let mut done = unpoison(self.done.lock());
        std::mem::take(&mut done)
    }
}
