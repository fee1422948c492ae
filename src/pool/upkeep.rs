//! The threads of a pool: openers, which ask r2d2 on behalf of those in line, and the keeper, which cleans what was lent
//! out raw, closes what has been idle for too long, and names who holds a connection for too long.

use super::admission::Line;
use super::manager::caught;
use super::sync::unpoison;
use super::{CloseReason, Held, Inner, Manager, Session};
use log::{error, warn};
use std::io;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// As many as r2d2 has threads to open with.
const OPENERS: usize = 3;
/// How long an opener waits inside r2d2 before it asks anew: r2d2 does not wake it when a broken connection makes room.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

pub(super) fn start(inner: &Arc<Inner>) -> io::Result<()> {
    for _ in 0..OPENERS {
        let (line, r2d2) = (Arc::clone(&inner.line), inner.r2d2.clone());
        thread::Builder::new()
            .name("millpond-opener".into())
            .spawn(move || open_on_demand(&line, &r2d2))?;
    }
    let pool = Arc::downgrade(inner);
    let keeper = thread::Builder::new()
        .name("millpond-keeper".into())
        .spawn(move || keep(&pool))?;
    *unpoison(inner.keeper.lock()) = Some(keeper.thread().clone());
    Ok(())
}

fn open_on_demand(line: &Line<Held>, r2d2: &r2d2::Pool<Manager>) {
    while line.await_demand() {
        if let Ok(opened) = r2d2.get_timeout(LOOK_AGAIN)
            && let Some(mut unwanted) = line.offer(opened)
        {
            unwanted.close_for(CloseReason::Drained);
        }
        line.opener_done();
    }
}

fn keep(pool: &Weak<Inner>) {
    let mut next_sweep = Instant::now();
    // The pool is held only while there is work, so that dropping it ends this thread.
    while let Some(inner) = pool.upgrade() {
        let pause = tick(&inner);
        let due = Instant::now() >= next_sweep;
        let work = caught(|| {
            inner.clean_idle();
            if due {
                inner.sweep();
                inner.name_leaks();
            }
        });
        if let Err(panic) = work {
            error!("the pool's upkeep panicked and goes on: {panic}");
        }
        if due {
            next_sweep = Instant::now() + pause;
        }
        drop(inner);
        thread::park_timeout(next_sweep.saturating_duration_since(Instant::now()));
    }
}

/// Often enough for the shortest of the times that are kept.
fn tick(inner: &Inner) -> Duration {
    let config = &inner.shared.config;
    let shortest = [
        config.idle_timeout,
        config.max_lifetime,
        config.leak_threshold,
    ]
    .into_iter()
    .flatten()
    .min();
    let fraction = shortest.map_or(Duration::from_secs(1), |time| time / 4);
    fraction.clamp(Duration::from_millis(10), Duration::from_secs(1))
}

impl Inner {
    /// Cleans sessions that came back from a raw borrower, off his path. Those that went straight to a waiter are cleaned
    /// by him.
    fn clean_idle(self: &Arc<Self>) {
        while let Some(held) = self.line.check_out_idle(|held| held.is_dirty()) {
            let mut lease = self.lease(held);
            lease.clean(None);
        }
    }

    /// Closes idle sessions that are past their time, and those idle for too long above the minimum.
    fn sweep(&self) {
        let now = Instant::now();
        for mut held in self
            .line
            .take_idle(usize::MAX, |held| held.retire(now).is_some())
        {
            let reason = held.retire(now).unwrap_or(CloseReason::MaxLifetime);
            held.close_for(reason);
        }
        self.sweep_spares(now);
        let Some(idle_timeout) = self.shared.config.idle_timeout else {
            return;
        };
        let min = self.shared.config.effective_min_idle() as usize;
        let spares = self.r2d2.state().idle_connections as usize;
        let surplus = (self.line.figures().idle + spares).saturating_sub(min);
        if surplus == 0 {
            return;
        }
        // r2d2 opens new spares when it has less than the minimum, which would be churn: it gets some of these first. Dropped
        // in good order, a session is a spare of r2d2's from then on.
        let wanted = min.saturating_sub(spares);
        let long_idle =
            |session: &Session| session.idle_for(now) >= idle_timeout && !session.is_dirty();
        let mut idle = self
            .line
            .take_idle(surplus + wanted, |held| long_idle(held));
        let given = wanted.min(idle.len());
        drop(idle.drain(..given));
        for held in idle {
            self.discard(held, CloseReason::IdleTimeout);
        }
    }

    /// r2d2 may have more spares than the minimum: those that nobody fetched any more after an outage.
    fn sweep_spares(&self, now: Instant) {
        let Some(idle_timeout) = self.shared.config.idle_timeout else {
            return;
        };
        let min = self.shared.config.effective_min_idle() as usize;
        let spares = self.r2d2.state().idle_connections as usize;
        let taken: Vec<_> = (min..spares).map_while(|_| self.r2d2.try_get()).collect();
        for held in taken {
            if held.idle_for(now) >= idle_timeout {
                self.discard(held, CloseReason::IdleTimeout);
            }
        }
    }

    fn name_leaks(&self) {
        let Some(threshold) = self.shared.config.leak_threshold else {
            return;
        };
        for holder in self.shared.watchdog.newly_held_longer_than(threshold) {
            warn!("a connection may have leaked: {holder}");
        }
    }
}
