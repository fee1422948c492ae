//! The standbys that reads may use: a pool `P` for each, and which of them is good enough for a read.

use super::lag::{Fitness, History, Look};
use super::pong::Reading;
use super::recent_writes::{RecentWrites, Who};
use crate::metrics::StandbyState;
use crate::sync::unpoison;
use log::{debug, info};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How much longer than between two looks a standby may take to answer before no further read is
/// sent there.
const PATIENCE: Duration = Duration::from_millis(200);
/// A standby whose state changes back and forth is logged at most this often.
const LOG_EVERY: Duration = Duration::from_secs(10);

pub(crate) struct Standbys<P> {
    all: Vec<Standby<P>>,
    seen: Arc<Seen>,
    writes: RecentWrites,
    /// Where the choice among equals begins.
    next: AtomicUsize,
}

struct Standby<P> {
    host: String,
    pool: P,
}

/// What was seen of the servers, for all pools that tell of theirs.
struct Seen {
    max_lag: Duration,
    state: Mutex<State>,
}

struct State {
    history: History,
    looks: Vec<Watched>,
}

#[derive(Default)]
struct Watched {
    look: Option<Look>,
    /// The state that was logged last, and when.
    logged: Option<(StandbyState, Instant)>,
}

/// What a read must see.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct After {
    /// All that was done before this moment.
    pub moment: Option<Instant>,
    /// All up to this position of the write-ahead log.
    pub position: Option<u64>,
}

/// Returns how often the servers are asked for their positions.
pub(super) fn look_every(max_lag: Duration) -> Duration {
    (max_lag / 8).clamp(Duration::from_millis(20), Duration::from_millis(500))
}

impl Seen {
    fn lock(&self) -> MutexGuard<'_, State> {
        unpoison(self.state.lock())
    }

    fn silent_after(&self) -> Duration {
        2 * look_every(self.max_lag) + PATIENCE
    }

    fn note_primary(&self, reading: &Reading) {
        if let Ok(pong) = reading
            && let Some((false, position)) = pong.position
        {
            self.lock().history.note(pong.asked_at, position);
        }
    }

    /// Notes what a standby has answered, if it has.
    fn note_standby(&self, nth: usize, host: &str, reading: &Reading) {
        let now = Instant::now();
        let mut state = self.lock();
        let seen = reading.as_ref().ok().and_then(|pong| {
            let (is_standby, position) = pong.position?;
            Some(Look {
                answered_at: pong.asked_at + pong.took,
                is_standby,
                position,
            })
        });
        if seen.is_some() {
            state.looks[nth].look = seen;
        }
        let (is, _) = state.of(nth, now, self);
        let logged = &mut state.looks[nth].logged;
        if logged.is_none_or(|(was, _)| was != is) {
            if logged.is_none_or(|(_, at)| now - at >= LOG_EVERY) {
                info!("standby {host}: {is}");
                *logged = Some((is, now));
            } else {
                debug!("standby {host}: {is}");
            }
        }
    }
}

impl State {
    /// Returns the state of a standby, and as of which moment its data is known to be whole.
    fn of(&self, nth: usize, now: Instant, seen: &Seen) -> (StandbyState, Option<Instant>) {
        let look = self.looks[nth].look.as_ref();
        match self.history.fitness(look, now, seen.silent_after()) {
            Fitness::AsOf(moment) if now - moment <= seen.max_lag => {
                (StandbyState::Used, Some(moment))
            }
            Fitness::AsOf(moment) => (StandbyState::Behind, Some(moment)),
            Fitness::Behind => (StandbyState::Behind, None),
            Fitness::Silent => (StandbyState::Silent, None),
            Fitness::Primary => (StandbyState::Primary, None),
            Fitness::Diverged => (StandbyState::Diverged, None),
        }
    }
}

impl<P> Standbys<P> {
    /// Takes the pools of the standbys, with the hosts that they are for.
    pub fn new(pools: Vec<(String, P)>, max_lag: Duration) -> Standbys<P> {
        let seen = Arc::new(Seen {
            max_lag,
            state: Mutex::new(State {
                history: History::default(),
                looks: pools.iter().map(|_| Watched::default()).collect(),
            }),
        });
        let pools = pools.into_iter();
        Standbys {
            all: pools.map(|(host, pool)| Standby { host, pool }).collect(),
            seen,
            writes: RecentWrites::kept_for(max_lag),
            next: AtomicUsize::new(0),
        }
    }

    /// Returns what is to be called with each reading of the primary's probe.
    pub fn on_primary(&self) -> impl Fn(&Reading) + Send + Sync + use<P> {
        let seen = Arc::clone(&self.seen);
        move |reading| seen.note_primary(reading)
    }

    /// Returns, for each pool, what is to be called with each reading of its probe.
    pub fn on_standbys(
        &self,
    ) -> impl Iterator<Item = (&P, impl Fn(&Reading) + Send + Sync + use<P>)> {
        self.all.iter().enumerate().map(|(nth, standby)| {
            let (seen, host) = (Arc::clone(&self.seen), standby.host.clone());
            let tell = move |reading: &Reading| seen.note_standby(nth, &host, reading);
            (&standby.pool, tell)
        })
    }

    /// Notes that a call that may write has ended, for a client, else for this thread.
    pub fn note_write(&self, client: Option<&Arc<str>>) {
        self.writes.note(Who::of(client), Instant::now());
    }

    /// Returns the moment of the last write for a client, else on this thread.
    pub fn last_write(&self, client: Option<&Arc<str>>) -> Option<Instant> {
        self.writes.last(&Who::of(client))
    }

    /// Returns the standby that is best for a read: of those that have all that it must see, and
    /// that were not `tried`, the one that is least in use, in thousandths. None if all are in use up
    /// to the last connection, and the `primary` is not.
    pub fn choose(
        &self,
        after: After,
        tried: &[usize],
        primary: &P,
        use_of: impl Fn(&P) -> usize,
    ) -> Option<(usize, &P)> {
        let now = Instant::now();
        let state = self.seen.lock();
        let is_good = |nth: usize| {
            let (StandbyState::Used, Some(moment)) = state.of(nth, now, &self.seen) else {
                return false;
            };
            let position = state.looks[nth].look.map(|look| look.position);
            after.moment.is_none_or(|after| moment >= after) && position >= after.position
        };
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let count = self.all.len();
        let in_turn = (0..count).map(|n| (first + n) % count);
        let good: Vec<_> = in_turn
            .filter(|nth| !tried.contains(nth) && is_good(*nth))
            .collect();
        drop(state);
        let best = good
            .into_iter()
            .min_by_key(|nth| use_of(&self.all[*nth].pool))?;
        let pool = &self.all[best].pool;
        let is_full = use_of(pool) >= 1000;
        (!is_full || use_of(primary) >= 1000).then_some((best, pool))
    }

    /// Returns the pools.
    pub fn pools(&self) -> impl Iterator<Item = &P> {
        self.all.iter().map(|standby| &standby.pool)
    }

    /// Returns what is known of each: its host, whether it is used, how old its data may be, and its
    /// pool.
    pub fn known(&self) -> Vec<(String, StandbyState, Option<Duration>, &P)> {
        let now = Instant::now();
        let state = self.seen.lock();
        let known = |(nth, standby): (usize, &'_ Standby<P>)| {
            let (is, moment) = state.of(nth, now, &self.seen);
            let lag = moment.map(|moment| now.saturating_duration_since(moment));
            (standby.host.clone(), is, lag)
        };
        let known: Vec<_> = self.all.iter().enumerate().map(known).collect();
        drop(state);
        let with_pools = known.into_iter().zip(self.pools());
        with_pools
            .map(|((host, is, lag), pool)| (host, is, lag, pool))
            .collect()
    }
}
