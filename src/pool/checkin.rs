//! Check-in: a session goes back into the line or is closed.

use super::checkout::{Held, Inner, Lease};
use super::session::Session;
use crate::metrics::CloseReason;
use log::{info, trace};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

impl Inner {
    /// Checks a session in. `unwound`: the thread that used it panicked.
    fn check_in(&self, mut held: Held, class: Option<&Arc<str>>, unwound: bool) {
        let now = Instant::now();
        let session: &mut Session = &mut held;
        // Whatever ran on a connection that was lent out may have written.
        if let Some(standbys) = self.standbys.as_ref().filter(|_| session.is_dirty()) {
            standbys.note_write(None);
            let borrower = session.tracked().holder().as_ref().map(|h| h.thread.id());
            borrower.iter().for_each(|id| standbys.note_write_on(*id));
        }
        self.end_use(session, now);
        if unwound {
            // The driver's buffers still hold a part of an unfinished exchange.
            session.close_for(CloseReason::Broken);
        }
        session.settle(now);
        let dirty = session.is_dirty();
        if session.is_lost() {
            self.shared.note_trouble();
        }
        let replaced = || session.due(now).filter(|_| self.line.has_replacement());
        match session.retire().or_else(replaced) {
            Some(reason) => {
                self.discard(held, reason);
                self.line.discarded(class);
            }
            None => {
                if session.take_heard() {
                    self.shared.note_answer();
                }
                match self.line.give_back(held, class) {
                    Some(unwanted) => self.discard(unwanted, self.why_unwanted()),
                    None if dirty => self.wake_housekeeper(),
                    None => {}
                }
            }
        }
        if self.shared.closing.load(Ordering::SeqCst) {
            self.tell_returned();
        }
    }

    fn end_use(&self, session: &mut Session, now: Instant) {
        self.out.fetch_sub(1, Ordering::Relaxed);
        if let Some(held) = session.tracked().take_hold() {
            let used = now.saturating_duration_since(held.since);
            session.count_use();
            self.least_use.observe(used);
            self.shared.metrics.use_time.observe(used.as_secs_f64());
            self.shared.observe(|o| o.checked_in(session.id(), used));
            trace!("checked in conn={} used={used:.1?}", session.id());
            if held.warned {
                info!(
                    "a connection that may have leaked is back: conn={} held for {used:.1?} since {}",
                    session.id(),
                    held.place
                );
                self.shared.observe(|o| o.leak_ended(session.id(), used));
            }
        }
    }

    /// A session that is due leaves the pool before another is open in its place.
    fn note_gone(&self, session: &Session) {
        if session.due(Instant::now()).is_some() {
            self.line.forget_replacement();
        }
    }

    /// Closes a session, which r2d2 then no longer counts.
    pub(super) fn discard(&self, mut held: Held, reason: CloseReason) {
        self.note_gone(&held);
        held.close_for(reason);
        drop(held);
    }
}

impl Lease {
    /// Takes the session out of the pool, whose place there is free from now on.
    pub(super) fn detach(mut self) -> Session {
        let Some(mut held) = self.held.take() else {
            unreachable!("a lease holds its session until it is dropped")
        };
        let Some(mut session) = held.take() else {
            unreachable!("a slot holds its session until it is taken")
        };
        if self.inner.shared.process.is_another() {
            std::mem::forget(held);
            return session;
        }
        self.inner.end_use(&mut session, Instant::now());
        self.inner.note_gone(&session);
        session.close_for(CloseReason::Detached);
        drop(held);
        self.inner.line.discarded(self.class.as_ref());
        if self.inner.shared.closing.load(Ordering::SeqCst) {
            self.inner.tell_returned();
        }
        session
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            if self.inner.shared.process.is_another() {
                std::mem::forget(held);
                return;
            }
            let unwound = std::thread::panicking() && !self.panicking;
            self.inner.check_in(held, self.class.as_ref(), unwound);
        }
    }
}
