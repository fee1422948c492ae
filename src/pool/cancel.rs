//! Cancel requests: each uses a connection of its own, and a few helper threads send them.
//!
//! A request is over once the server has closed that connection. The server signals the backend up
//! to twice before that (its process, then its process group), and the backend may have ended the
//! statement, and have been asked for the next one, between the two.

use super::tracked::{Tracked, word};
use super::wire;
use crate::sync::unpoison;
use log::debug;
use std::collections::VecDeque;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The most cancel requests under way at once: each occupies a thread for as long as the server
/// does not answer.
pub(super) const MOST_CANCELS: usize = 4;
/// Limit for one cancel request. A request that has not finished by then never will.
pub(super) const CANCEL_LIMIT: Duration = Duration::from_secs(5);

/// Cancel requests that wait for a helper, and the number of helpers.
#[derive(Default)]
pub(super) struct Cancels {
    pub waiting: VecDeque<Arc<Tracked>>,
    pub helpers: usize,
}

pub(super) fn next_cancel(queue: &Mutex<Cancels>) -> Option<Arc<Tracked>> {
    let mut cancels = unpoison(queue.lock());
    let next = cancels.waiting.pop_front();
    if next.is_none() {
        cancels.helpers -= 1;
    }
    next
}

pub(super) fn cancel_one(tracked: &Tracked) {
    // A statement that has ended in the meantime needs no cancel.
    if word::unpack(tracked.word.load(SeqCst)).1 != word::CANCELLED {
        tracked.cancel_over.store(true, SeqCst);
        return;
    }
    if tracked.wire.is_aborted() {
        return;
    }
    let (Some(route), id) = (tracked.route.get(), tracked.id) else {
        return;
    };
    let until = Instant::now() + CANCEL_LIMIT;
    match wire::cancel(route, tracked.wire.cancel_key(), until) {
        Ok(()) => {
            tracked.cancel_over.store(true, SeqCst);
            debug!("cancel sent for conn={id}");
        }
        Err(e) => debug!("cancel failed for conn={id}: {e}"),
    }
}
