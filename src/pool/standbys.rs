//! The standbys that reads may use: a pool `P` for each, and which of them is good enough for a
//! read.

use super::lag::{Fitness, History, Look, Sample, Track};
use super::pong::{Pong, Position, Reading};
use super::recent_writes::{RecentWrites, Who};
use super::session::Session;
use crate::metrics::{CloseReason, StandbyState};
use crate::sync::unpoison;
use log::{debug, info};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

/// How much longer than between two looks a standby may take to answer before no further read is
/// sent there.
const PATIENCE: Duration = Duration::from_millis(200);
/// A session's server has this long to say how far it has come.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
/// For how long a server that no longer answers is remembered as one of several behind an address,
/// and how many are.
const REMEMBERED_FOR: Duration = Duration::from_secs(60);
const MOST_SERVERS: usize = 16;
/// How often the probe is led to whichever server behind an address comes next: where there are
/// several, or the one is not used; and where only one is known.
const MOVE_EVERY: Duration = Duration::from_secs(1);
const EXPLORE_EVERY: Duration = Duration::from_secs(10);
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
    hosts: Vec<Watched>,
}

#[derive(Default)]
struct Watched {
    /// What each server behind the address has answered last, the newest at the end. A name or a
    /// proxy may lead to several.
    tracks: Vec<(Option<u64>, Track)>,
    /// When the probe was last led to whichever server comes next.
    moved_at: Option<Instant>,
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
            && let Some(position) = pong.position
            && !position.is_standby
        {
            let sample = Sample {
                asked_at: pong.asked_at,
                position: position.at,
                timeline: position.timeline,
            };
            let mut state = self.lock();
            state.history.note(sample, position.system);
            let tracks = state.hosts.iter_mut().flat_map(|host| &mut host.tracks);
            tracks.for_each(|(_, track)| track.compare(&sample));
        }
    }

    /// Notes what a standby has answered to a probe, if it has. Returns false if the next probe is
    /// to ask whichever server its address leads to then.
    fn note_standby(&self, nth: usize, host: &str, reading: &Reading) -> bool {
        let now = Instant::now();
        let mut state = self.lock();
        if let Ok(Pong {
            asked_at,
            took,
            position: Some(position),
            ..
        }) = *reading
        {
            state.hosts[nth].note(position, asked_at + took);
        }
        let (is, _) = state.best(nth, now, self);
        let logged = &mut state.hosts[nth].logged;
        if logged.is_none_or(|(was, _)| was != is) {
            if logged.is_none_or(|(_, at)| now - at >= LOG_EVERY) {
                info!("standby {host}: {is}");
                *logged = Some((is, now));
            } else {
                debug!("standby {host}: {is}");
            }
        }
        let watched = &mut state.hosts[nth];
        let is_settled = is == StandbyState::Used && watched.tracks.len() == 1;
        let every = if is_settled {
            EXPLORE_EVERY
        } else {
            MOVE_EVERY
        };
        let is_due = now - *watched.moved_at.get_or_insert(now) >= every;
        if is_due {
            watched.moved_at = Some(now);
        }
        !is_due
    }
}

impl Watched {
    fn note(&mut self, position: Position, answered_at: Instant) {
        let look = Look {
            answered_at,
            is_standby: position.is_standby,
            position: position.at,
            timeline: position.timeline,
            system: position.system,
        };
        let known = self
            .tracks
            .iter()
            .position(|(of, _)| *of == position.server);
        let track = match known {
            Some(at) => {
                let (_, mut track) = self.tracks.remove(at);
                track.note(look);
                track
            }
            None => Track::of(look),
        };
        self.tracks
            .retain(|(_, track)| answered_at - track.answered_at() < REMEMBERED_FOR);
        if self.tracks.len() >= MOST_SERVERS {
            self.tracks.remove(0);
        }
        self.tracks.push((position.server, track));
    }

    fn at(&self, server: u64) -> Option<&Track> {
        let mut tracks = self.tracks.iter();
        let found = tracks.find(|(of, _)| *of == Some(server));
        found.map(|(_, track)| track)
    }
}

impl State {
    /// Returns whether a standby has all that a read must see, by what it has answered.
    fn is_good(&self, track: &Track, after: After, now: Instant, seen: &Seen) -> bool {
        let (StandbyState::Used, Some(moment)) = self.of(track, now, seen) else {
            return false;
        };
        after.moment.is_none_or(|after| moment >= after) && track.position() >= after.position
    }

    /// Returns the state of the best server behind an address, or else of the one that has answered
    /// last, and as of which moment its data is known to be whole.
    fn best(&self, nth: usize, now: Instant, seen: &Seen) -> (StandbyState, Option<Instant>) {
        let tracks = self.hosts[nth].tracks.iter().rev();
        let mut states = tracks.map(|(_, track)| self.of(track, now, seen));
        let newest = states.next().unwrap_or((StandbyState::Silent, None));
        let is_used = |(is, _): &(StandbyState, Option<Instant>)| *is == StandbyState::Used;
        match is_used(&newest) {
            true => newest,
            false => states.find(is_used).unwrap_or(newest),
        }
    }

    fn of(&self, track: &Track, now: Instant, seen: &Seen) -> (StandbyState, Option<Instant>) {
        match self.history.fitness(track, now, seen.silent_after()) {
            Fitness::AsOf(moment) if now - moment <= seen.max_lag => {
                (StandbyState::Used, Some(moment))
            }
            Fitness::AsOf(moment) => (StandbyState::Behind, Some(moment)),
            Fitness::Behind => (StandbyState::Behind, None),
            Fitness::Silent => (StandbyState::Silent, None),
            Fitness::Primary => (StandbyState::Primary, None),
            Fitness::Diverged => (StandbyState::Diverged, None),
            Fitness::Foreign => (StandbyState::Foreign, None),
        }
    }
}

impl<P> Standbys<P> {
    /// Takes the pools of the standbys, with the hosts that they are for.
    pub fn new(pools: Vec<(String, P)>, max_lag: Duration) -> Standbys<P> {
        let seen = Arc::new(Seen {
            max_lag,
            state: Mutex::new(State {
                history: History::up_to(max_lag),
                hosts: pools.iter().map(|_| Watched::default()).collect(),
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

    /// Returns, for each pool, what is to be called with each reading of its probe, and returns
    /// whether that keeps its session.
    pub fn on_standbys(
        &self,
    ) -> impl Iterator<Item = (&P, impl Fn(&Reading) -> bool + Send + Sync + use<P>)> {
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

    /// Notes the same for another thread.
    pub fn note_write_on(&self, thread: ThreadId) {
        self.writes.note(Who::Thread(thread), Instant::now());
    }

    /// Returns the moment of the last write for a client, else on this thread.
    pub fn last_write(&self, client: Option<&Arc<str>>) -> Option<Instant> {
        self.writes.last(&Who::of(client))
    }

    /// Returns the standby that is best for a read: of those that have all that it must see, and
    /// that were not `tried`, the one that is least in use, in thousandths. None if all are in use
    /// up to the last connection, and the `primary` is not.
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
            let tracks = || state.hosts[nth].tracks.iter().rev().map(|(_, track)| track);
            let is_silent = |track| state.of(track, now, &self.seen).0 == StandbyState::Silent;
            if tracks().next().is_none_or(is_silent) {
                return false;
            }
            // Of several servers, those that have not been asked of late will be asked.
            tracks().any(|track| is_silent(track) || state.is_good(track, after, now, &self.seen))
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

    /// Returns whether a read that was sent to the standby of this number may run on this session.
    /// Its address may lead to several servers, so what counts is what this one has answered; if
    /// that is not known, or old, it is asked.
    pub fn admits(
        &self,
        nth: usize,
        after: After,
        session: &mut Session,
        deadline: Option<Instant>,
    ) -> bool {
        let Some(server) = session.server() else {
            return true;
        };
        let known = || {
            let (state, now) = (self.seen.lock(), Instant::now());
            let track = state.hosts[nth].at(server)?;
            let is_silent = state.of(track, now, &self.seen).0 == StandbyState::Silent;
            (!is_silent).then(|| state.is_good(track, after, now, &self.seen))
        };
        if let Some(is_good) = known() {
            return is_good;
        }
        let limit = Instant::now() + ANSWER_LIMIT;
        let limit = deadline.map_or(limit, |at| at.min(limit));
        match Pong::of(session, true, limit) {
            Ok(pong) => {
                let host = &self.all[nth].host;
                self.seen.note_standby(nth, host, &Ok(pong));
                known() == Some(true)
            }
            Err(_) => {
                session.close_for(CloseReason::Broken);
                false
            }
        }
    }

    /// Returns the pools.
    pub fn pools(&self) -> impl Iterator<Item = &P> {
        self.all.iter().map(|standby| &standby.pool)
    }

    /// Returns what is known of each: its host, whether it is used, how old its data may be, and
    /// its pool.
    pub fn known(&self) -> Vec<(String, StandbyState, Option<Duration>, &P)> {
        let now = Instant::now();
        let state = self.seen.lock();
        let known = |(nth, standby): (usize, &'_ Standby<P>)| {
            let (is, moment) = state.best(nth, now, &self.seen);
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
