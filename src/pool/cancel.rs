//! Cancel requests: each uses a connection of its own, and a few helper threads send them.
//!
//! A request is over once the server has closed that connection. The server signals the backend up
//! to twice before that (its process, then its process group), and the backend may have ended the
//! statement, and have been asked for the next one, between the two.

use super::tracked::{Tracked, word};
use super::wire;
use crate::sync::unpoison;
use log::debug;
use postgres::{CancelToken, NoTls};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// The most cancel requests under way at once: each occupies a thread for as long as the server
/// does not answer.
pub(super) const MOST_CANCELS: usize = 4;
/// Limit for one cancel request. A request that has not finished by then never will.
const CANCEL_LIMIT: Duration = Duration::from_secs(5);

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
    let (Some((token, tcp)), id) = (tracked.cancel.get(), tracked.id) else {
        return;
    };
    // The driver unwraps the result of building its runtime, which fails when file descriptors run
    // out.
    match catch_unwind(AssertUnwindSafe(|| cancel(token, *tcp))) {
        Ok(Ok(())) => {
            // Over a Unix socket it is not known whether the server is done with it.
            tracked.cancel_over.store(*tcp, SeqCst);
            debug!("cancel sent for conn={id}");
        }
        Ok(Err(e)) => debug!("cancel failed for conn={id}: {}", crate::error::Chain(&e)),
        Err(_) => debug!("cancel panicked for conn={id}"),
    }
}

fn cancel(token: &CancelToken, tcp: bool) -> Result<(), postgres::Error> {
    if !tcp {
        return token.cancel_query(NoTls);
    }
    // The request has a wire of its own, which a sleeping thread cuts at the limit. Cancels are
    // rare, so a thread for each is cheap. The watchdog cannot do it: it would have to watch
    // itself.
    let wire = Arc::<wire::Handle>::default();
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let cut = Arc::clone(&wire);
    let timer = thread::Builder::new()
        .name("millpond-cancel-timer".into())
        .spawn(move || {
            if wait.recv_timeout(CANCEL_LIMIT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                cut.abort();
            }
        });
    let result = token.cancel_query(wire::CancelConnector(wire));
    drop(done);
    drop(timer);
    result
}
