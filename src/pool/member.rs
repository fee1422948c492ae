//! A pool as a member of a fleet: what it has published and seen, and how the database is asked. The
//! rule is in `fleet`; `upkeep` brings both together.
//!
//! The claim is an advisory lock, shared, whose first key names the fleet and whose second is the
//! claim. It is held by the session of the health probe, which counts in the claim: so a member that
//! is killed is gone with its session, and the fleet costs no connection of its own. An idle session
//! may have any number of such locks, and nobody waits for them.
//!
//! A budget must not be exceeded while members come and go, so at its end a member closes its
//! connections first and this session last (`close`).

use super::fleet::{Fleet, INTERVAL, Look};
use crate::sync::unpoison;
use postgres::{SimpleQueryMessage, SimpleQueryRow};
use sha2::{Digest, Sha256};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// The session that holds the claim.
pub(super) const ITS_SESSION: u32 = 1;

pub(super) struct Member {
    /// Names the fleet among the advisory locks of its database.
    pub class: i32,
    state: Mutex<State>,
    /// Behind a pooler a lock has no owner, and the fleet is off.
    pub is_off: AtomicBool,
}

pub(super) struct State {
    pub fleet: Fleet,
    /// The session that holds the claim, by its number, and the claim.
    pub published: Option<(u64, u32)>,
    /// How many members there were at the last look.
    pub members: u32,
    looked_at: Option<Instant>,
    /// The time between two looks, somewhat different each time.
    pause: Duration,
}

impl Member {
    /// A member of the fleet of this name, which has so many connections in all.
    pub fn new(name: &str, budget: u32, most: u32) -> Member {
        let hash = Sha256::digest(name);
        let class = i32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
        let own_most = most.saturating_add(ITS_SESSION);
        Member {
            class,
            state: Mutex::new(State {
                fleet: Fleet::new(budget, own_most, Instant::now()),
                published: None,
                members: 0,
                looked_at: None,
                pause: Duration::ZERO,
            }),
            is_off: AtomicBool::new(false),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        unpoison(self.state.lock())
    }

    /// Returns how many connections the pool may have, beside the session that holds the claim.
    pub fn most(&self) -> usize {
        match self.is_off.load(Ordering::Relaxed) {
            true => usize::MAX,
            false => self.lock().most(),
        }
    }

    /// Returns whether it is time for a look.
    pub fn is_due(&self) -> bool {
        !self.is_off.load(Ordering::Relaxed) && self.lock().is_due()
    }
}

impl State {
    fn most(&self) -> usize {
        self.fleet.allowed().saturating_sub(ITS_SESSION).max(1) as usize
    }

    pub fn is_due(&self) -> bool {
        self.looked_at.is_none_or(|at| at.elapsed() >= self.pause)
    }

    pub fn note_look(&mut self, now: Instant) {
        self.looked_at = Some(now);
        self.pause = INTERVAL.mul_f64(0.9 + 0.2 * fastrand::f64());
    }
}

/// Publishes a claim in place of another, and looks at all claims. While a claim is replaced its
/// holder has both, of which the larger counts.
pub(super) fn look(class: i32, claim: u32, before: Option<u32>) -> String {
    let raise = match before {
        Some(old) if old == claim => String::new(),
        Some(old) => format!(
            "SELECT pg_advisory_lock_shared({class}, {claim}); SELECT pg_advisory_unlock_shared({class}, {old}); "
        ),
        None => format!("SELECT pg_advisory_lock_shared({class}, {claim}); "),
    };
    // The columns of pg_locks have no sign.
    let class = class as u32;
    format!(
        "{raise}SELECT count(*) AS members, sum(claim)::text AS claimed, \
         max(claim) FILTER (WHERE pid = pg_backend_pid()) AS own FROM \
         (SELECT pid, max(objid::bigint) AS claim FROM pg_catalog.pg_locks \
          WHERE locktype = 'advisory' AND granted AND objsubid = 2 AND classid = {class} \
          AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()) \
          GROUP BY pid) AS claims"
    )
}

pub(super) fn read(answer: &[SimpleQueryMessage]) -> Option<Look> {
    let row: &SimpleQueryRow = answer.iter().rev().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    })?;
    let text = |column: &str| row.try_get(column).ok().flatten();
    Some(Look {
        members: text("members")?.parse().ok()?,
        claimed: text("claimed")?.parse().ok()?,
        own: text("own")?.parse().ok()?,
    })
}
