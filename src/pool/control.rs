//! Control of a running pool: wait until it is ready, replace its connections, change its size, pause
//! it.

use super::checkout::{CheckoutRequest, Inner, Pool};
use super::member::Member;
use super::standbys::Standbys;
use crate::error::{CheckoutFailure, Error, HeldBy, Result};
use crate::metrics::{CloseReason, Headroom, Standby};
use crate::sync::LONGEST;
use log::info;
use std::cmp::Reverse;
use std::panic::Location;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

/// The pause between two checks of whether the pool is ready.
const LOOK: Duration = Duration::from_millis(10);

impl Pool {
    /// Returns who holds the connections that are checked out, also those to standbys: where they
    /// were checked out, by which thread, for how long, and what was sent on them last. The one that
    /// has been held longest comes first. Never waits for the database.
    ///
    /// ```
    /// # let pool = millpond::Pool::builder().database_url("postgresql://localhost/app").build()?;
    /// for holder in pool.holders() {
    ///     let sql = holder.statement.map(|last| last.sql);
    ///     println!("{} {:?} {}", holder.place, holder.held, sql.unwrap_or_default());
    /// }
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn holders(&self) -> Vec<HeldBy> {
        let mut all = self.inner.shared.watchdog.holders();
        if let Some(standbys) = &self.inner.standbys {
            all.extend(standbys.pools().flat_map(Pool::holders));
            all.sort_by_key(|holder| Reverse(holder.held));
        }
        all
    }

    /// Waits until the pool is ready: a connection can be checked out, and as many are open as are
    /// kept ready ([`min_idle`](crate::pool::Builder::min_idle)). Waits at most for `timeout`.
    ///
    /// An application that calls this at its start fails early and with the reason if the database
    /// is unreachable.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// let pool = millpond::Pool::builder().database_url("postgresql://app@db/app").build()?;
    /// pool.wait_ready(Duration::from_secs(30))?;
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Checkout`], with the last reason why no connection could be opened: at once if it
    /// does not pass by itself (a wrong password), else after `timeout`.
    #[track_caller]
    pub fn wait_ready(&self, timeout: Duration) -> Result<()> {
        let (place, started) = (Location::caller(), Instant::now());
        let until = started + timeout.min(LONGEST);
        let left = || until.saturating_duration_since(Instant::now());
        while let Err(mut error) = self.check_out(&CheckoutRequest::plain(left(), place)) {
            if !may_pass(&error) || Instant::now() >= until {
                if let Error::Checkout(refused) = &mut error {
                    refused.waited = started.elapsed();
                }
                return Err(error);
            }
            thread::sleep(LOOK);
        }
        while !self.inner.has_minimum() {
            if self.is_closed() || Instant::now() >= until {
                let reason = match self.is_closed() {
                    true => CheckoutFailure::Closed,
                    false => CheckoutFailure::Timeout,
                };
                return Err(self.inner.refuse(reason, started, place));
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Replaces all connections that are open now. Idle ones are closed at once, those in use at
    /// their check-in.
    ///
    /// Use it for changes that only new connections see: a role's settings, a changed `on_connect`,
    /// another server behind a name. In the log and in the metrics, the reason of these closes is
    /// `evicted`.
    ///
    /// ```no_run
    /// # let pool = millpond::Pool::builder().build().unwrap();
    /// pool.execute("ALTER ROLE app SET work_mem = '64MB'", &[])?;
    /// pool.evict();
    /// # Ok::<_, millpond::Error>(())
    /// ```
    pub fn evict(&self) {
        if !self.inner.shared.process.is_another() {
            self.inner.shared.evict();
            self.inner.sweep();
            for standby in self.standby_pools() {
                standby.evict();
            }
        }
    }

    fn standby_pools(&self) -> impl Iterator<Item = &Pool> {
        self.inner.standbys.iter().flat_map(Standbys::pools)
    }

    /// Returns what is known of the [standbys that reads may
    /// use](crate::pool::Builder::read_hosts), and the figures of their pools. Never waits for a
    /// database.
    pub fn standbys(&self) -> Vec<Standby> {
        match self.inner.shared.process.is_another() {
            true => Vec::new(),
            false => {
                let known = self.inner.standbys.iter().flat_map(Standbys::known);
                let report = known.map(|(host, state, lag, pool)| Standby {
                    host,
                    state,
                    lag,
                    error: pool.inner.probe.last_error().map(|e| e.to_string()),
                    headroom: pool.headroom(),
                    stats: pool.stats(),
                });
                report.collect()
            }
        }
    }

    /// Closes all connections and opens none until [`resume`](Pool::resume), at most for this long:
    /// for a database that is to be moved, or restarted, while its callers wait.
    ///
    /// Idle connections are closed at once, those in use at their check-in; once
    /// [`stats`](Pool::stats) shows none as active, the pool does nothing in the database. Callers
    /// wait in line meanwhile, with their own deadlines; `connection_timeout` does not count. Names
    /// are looked up, and files of URLs and passwords read, when connections are opened again. A
    /// second call sets another end.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # let pool = millpond::Pool::builder().build().unwrap();
    /// pool.pause(Duration::from_secs(60));
    /// while pool.stats().active > 0 {
    ///     std::thread::sleep(Duration::from_millis(10));
    /// }
    /// // The database moves.
    /// pool.resume();
    /// ```
    pub fn pause(&self, at_most: Duration) {
        if self.inner.shared.process.is_another() {
            return;
        }
        let at_most = at_most.min(LONGEST);
        let until = Instant::now() + at_most;
        self.inner.opener.gate.pause(until);
        self.inner.probe.release();
        for standby in self.standby_pools() {
            standby.inner.opener.gate.pause(until);
            standby.inner.probe.release();
        }
        info!("paused for at most {at_most:?}: no connection is opened, callers wait");
        self.evict();
    }

    /// Ends a pause: connections are opened again. Returns false if there was none.
    pub fn resume(&self) -> bool {
        if self.inner.shared.process.is_another() {
            return false;
        }
        let was_paused = self.inner.opener.gate.resume();
        for standby in self.standby_pools() {
            standby.inner.opener.gate.resume();
        }
        if was_paused {
            info!("the pause is over");
        }
        was_paused
    }

    /// Returns how much room the server has for more connections, and who holds them, as the health
    /// probe saw it last: at most 10 s ago, while [`health`](Pool::health) is asked. `None` before
    /// that.
    pub fn headroom(&self) -> Option<Headroom> {
        match self.inner.shared.process.is_another() {
            true => None,
            false => self.inner.probe.headroom(),
        }
    }

    /// Returns whether the pool is paused.
    pub fn is_paused(&self) -> bool {
        !self.inner.shared.process.is_another() && self.inner.opener.gate.is_paused()
    }

    /// Changes the most connections there may be, from 1 to the
    /// [`max_size`](crate::pool::Builder::max_size) that the pool was built with.
    ///
    /// Surplus connections are closed (`evicted`): idle ones at once, those in use at their
    /// check-in. Waiters are served by the remaining connections.
    ///
    /// ```no_run
    /// # let pool = millpond::Pool::builder().build().unwrap();
    /// pool.resize(5)?;
    /// assert_eq!(pool.stats().max, 5);
    /// # Ok::<_, millpond::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Misuse`] for any other size.
    pub fn resize(&self, connections: u32) -> Result<()> {
        if self.inner.shared.process.is_another() {
            return Ok(());
        }
        if !(1..=self.config().max_size).contains(&connections) {
            return Err(Error::Misuse(
                "a pool's size must be between 1 and the max_size that it was built with",
            ));
        }
        let asked = connections as usize;
        self.inner.asked_max.store(asked, Ordering::Relaxed);
        self.inner.fit();
        Ok(())
    }
}

/// Check-outs fail at once now, but the database may be reachable before the timeout.
fn may_pass(error: &Error) -> bool {
    let Error::Checkout(e) = error else {
        return false;
    };
    let cause = e.last_open_error.as_ref();
    e.reason != CheckoutFailure::Closed && !cause.is_some_and(|cause| cause.is_permanent())
}

impl Inner {
    /// Fits the pool into what the application has asked for, and what the fleet leaves it.
    pub(super) fn fit(&self) {
        let asked = self.asked_max.load(Ordering::Relaxed);
        let most = self.member.as_ref().map_or(usize::MAX, Member::most);
        let max = asked.min(most);
        if self.max.swap(max, Ordering::Relaxed) != max {
            let surplus = self.line.resize(max);
            self.close_idle(surplus, CloseReason::Evicted);
        }
    }

    /// Returns whether as many connections are open as are kept ready.
    fn has_minimum(&self) -> bool {
        let stats = self.stats();
        stats.idle + stats.active >= stats.min_idle
    }

    /// Returns why there is no place for a connection that was checked in.
    pub(super) fn why_unwanted(&self) -> CloseReason {
        match self.shared.closing.load(Ordering::SeqCst) {
            true => CloseReason::Drained,
            false => CloseReason::Evicted,
        }
    }
}
