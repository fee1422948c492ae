//! How several processes ("members") share one budget of database connections.
//!
//! # The rule
//!
//! Every member holds one advisory lock whose key is its *claim*: the most connections it holds or
//! may open. Every [`INTERVAL`] it looks at all those locks in one query and learns how many
//! members there are and what they claim together. Its fair share is `max(1, budget / members)`, or
//! its own maximum if that is less.
//!
//! * Who has more than its fair share shrinks at once: it opens nothing more, closes idle
//!   connections now and busy ones at check-in, and lowers its claim as they close.
//! * Who has less first raises its claim to what the budget has room for (it *asks*), then looks
//!   again at once. It opens more only if that second look shows its own raised claim and no more
//!   than the budget claimed in all. Otherwise it takes its claim back and asks at its next look.
//! * A joiner starts with a claim of one. It asks from its second look on, so that members who
//!   start together do not each take the whole budget for a moment.
//! * Growth goes by the smaller share of the last two looks, so that a member that restarts
//!   within one interval does not make the others grow and shrink.
//!
//! # Why neither waiting nor counting open connections is enough
//!
//! The others look up to one interval after a joiner has come, close busy connections only at
//! check-in, and may be stopped. So no fixed number of looks tells a joiner that there is room.
//! Nor does the number of open connections (`pg_stat_activity`): a member may be allowed ten, have
//! two open, and open eight in the next moment; and two members may see the same room and both
//! take it. What must be counted is what all may open, claimed before it is used. The lock table
//! is read as one snapshot, so of two members that ask for the same room the later look sees both.
//!
//! # What is guaranteed
//!
//! A *joiner* is a living member that has joined since the look which granted the latest growth
//! anywhere. It holds at most one connection.
//!
//! 1. At every moment all members together hold at most `budget + joiners` connections, whatever
//!    the check-ins, the phases of the looks, the members stopped or killed, and late answers.
//! 2. While nobody is stopped and all looks succeed, the excess is at most the number of members
//!    that joined within the longest interval plus the longest check-in; with check-ins of at most
//!    3 s, those are members within their first three looks. This is for at most as many members as
//!    budget. If there are more, each holds one as soon as that time has passed without a change.
//! 3. Each member that is not stopped is allowed its fair share within 5 s plus the longest
//!    check-in of the last change, unless a stopped member keeps more than its share, its own looks
//!    fail, or the server has refused it. No rule can be faster than the check-ins without
//!    exceeding the budget, for a joiner can only get what others have returned.
//!
//! The guarantee needs the lock: while its session is lost, what that member holds is not counted
//! and comes on top, until [`Fleet::rejoined`]. The rest of `budget / members`, and what a member
//! leaves because its own maximum is smaller, stay unused: with a budget of 40, 12 members use 36.

use std::time::{Duration, Instant};

/// The time between two looks. Callers should vary it by up to a tenth, so that two members that
/// ask at the same moment do not do so for ever.
pub const INTERVAL: Duration = Duration::from_secs(2);

/// Without a good look for this long a member no longer knows anything about the others.
const STALE: Duration = Duration::from_secs(10);

/// What one look has shown.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// How many members hold a claim, this one included.
    pub members: u32,
    /// The sum of all claims, this one included.
    pub claimed: u64,
    /// This member's own claim as it stood in the same look.
    pub own: u32,
}

/// One member's view of the fleet. It decides and remembers, but neither queries nor reads a clock.
///
/// In all methods `open` counts the connections that are open or being opened.
#[derive(Debug)]
pub struct Fleet {
    budget: u32,
    own_max: u32,
    allowed: u32,
    /// A size that is claimed but may not be used until a look has confirmed it.
    asked: Option<u32>,
    /// The shares by the look before the latest and by the latest.
    shares: [u32; 2],
    last_look: Instant,
    last_refusal: Option<Instant>,
    grows_slowly: bool,
    stale: bool,
}

impl Fleet {
    /// A member that is about to join.
    pub fn new(budget: u32, own_max: u32, now: Instant) -> Self {
        let own_max = own_max.max(1);
        Self {
            budget,
            own_max,
            allowed: 1,
            asked: None,
            shares: [1, 1],
            last_look: now,
            last_refusal: None,
            grows_slowly: false,
            stale: false,
        }
    }

    /// The most connections that may be open now. Who has more open closes idle ones at once and
    /// busy ones at check-in.
    pub fn allowed(&self) -> u32 {
        self.allowed
    }

    /// The claim to publish: before every look, and as soon as it has changed. It covers what is
    /// still open, so it must be read in the same critical section as `open`.
    pub fn claim(&self, open: u32) -> u32 {
        self.allowed.max(self.asked.unwrap_or(0)).max(open)
    }

    /// Takes in a look. Returns whether to publish the claim and look again at once, because this
    /// member now asks for more.
    #[must_use]
    pub fn saw(&mut self, look: Look, open: u32, now: Instant) -> bool {
        self.remember_share(look.members, now);
        let asked = self.asked.take();
        if let Some(size) = asked.filter(|&size| self.is_granted(size, look)) {
            self.allowed = size;
        }
        let target = self.target();
        self.allowed = self.allowed.min(target);
        self.grows_slowly &= self.allowed < target;
        // One request a look: a refused one would only meet the same rivals again.
        if asked.is_none() {
            self.asked = self.request(look, open);
        }
        self.asked.is_some()
    }

    /// Takes in that a look has failed. For a while that changes nothing except that an open
    /// request is dropped. A stale member keeps what it has open: it may not grow, because its
    /// claim may be gone and its room be used by others; and it does not close anything, because
    /// its connections may well work, and closing them all over one failing query would turn a
    /// small failure into a large one.
    pub fn failed(&mut self, open: u32, now: Instant) {
        self.asked = None;
        if !self.stale && now.saturating_duration_since(self.last_look) >= STALE {
            // Only once: otherwise each idle connection that times out would lower the size.
            self.stale = true;
            self.keep_only(open);
        }
    }

    /// Takes in that the session with the claim was lost. To be called before the claim is
    /// published again. The others may have used the room that was not open, so only what is open
    /// is claimed again; the rest has to be asked for.
    pub fn rejoined(&mut self, open: u32) {
        self.asked = None;
        self.keep_only(open);
    }

    /// Takes in that the server has refused a connection (SQLSTATE 53300), with `open` others open.
    /// The member steps back to half of those and then grows by one a look.
    pub fn refused(&mut self, open: u32, now: Instant) {
        // Several threads are often refused together; that is one event and halves only once.
        let is_same_event = self
            .last_refusal
            .is_some_and(|last| now.saturating_duration_since(last) < INTERVAL / 2);
        if is_same_event {
            return;
        }
        self.last_refusal = Some(now);
        self.asked = None;
        self.grows_slowly = true;
        self.allowed = self.allowed.min(open / 2).max(1);
    }

    fn keep_only(&mut self, open: u32) {
        self.allowed = self.allowed.min(open).max(1);
    }

    fn remember_share(&mut self, members: u32, now: Instant) {
        // A second look to confirm a request comes at once and says nothing about lasting change.
        if now.saturating_duration_since(self.last_look) >= INTERVAL / 2 {
            self.shares[0] = self.shares[1];
        }
        self.shares[1] = (self.budget / members.max(1)).max(1);
        self.last_look = now;
        self.stale = false;
    }

    fn target(&self) -> u32 {
        self.shares[0].min(self.shares[1]).min(self.own_max)
    }

    fn is_granted(&self, size: u32, look: Look) -> bool {
        look.own >= size && look.claimed <= u64::from(self.budget)
    }

    /// The size to ask for, if it is more than the present one.
    fn request(&self, look: Look, open: u32) -> Option<u32> {
        let others = look.claimed.saturating_sub(u64::from(look.own));
        let held = u64::from(self.claim(open));
        let room = u64::from(self.budget).saturating_sub(others.saturating_add(held));
        let room = u32::try_from(room).unwrap_or(u32::MAX);
        let step = if self.grows_slowly { room.min(1) } else { room };
        let size = self.allowed.saturating_add(step).min(self.target());
        (size > self.allowed).then_some(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(members: u32, claimed: u64, own: u32) -> Look {
        Look {
            members,
            claimed,
            own,
        }
    }

    /// A lone member with a budget of 40 that has grown to its share.
    fn grown(now: Instant) -> Fleet {
        let mut fleet = Fleet::new(40, 100, now);
        assert!(!fleet.saw(look(1, 1, 1), 1, now));
        assert!(fleet.saw(look(1, 1, 1), 1, now + INTERVAL));
        assert!(!fleet.saw(look(1, 40, 40), 1, now + INTERVAL));
        assert_eq!(fleet.allowed(), 40);
        fleet
    }

    #[test]
    fn a_joiner_grows_after_the_others_have_given_back() {
        let now = Instant::now();
        let mut fleet = Fleet::new(40, 100, now);
        assert_eq!((fleet.allowed(), fleet.claim(0)), (1, 1));
        assert!(!fleet.saw(look(2, 41, 1), 1, now));
        assert!(!fleet.saw(look(2, 41, 1), 1, now + INTERVAL));
        assert!(fleet.saw(look(2, 26, 1), 1, now + INTERVAL * 2));
        assert_eq!((fleet.allowed(), fleet.claim(1)), (1, 15));
        assert!(!fleet.saw(look(2, 40, 15), 1, now + INTERVAL * 2));
        assert_eq!(fleet.allowed(), 15);
    }

    #[test]
    fn a_request_is_taken_back_when_another_asked_for_the_same_room() {
        let now = Instant::now();
        let mut fleet = Fleet::new(40, 100, now);
        assert!(!fleet.saw(look(2, 2, 1), 1, now));
        assert!(fleet.saw(look(2, 2, 1), 1, now + INTERVAL));
        assert!(!fleet.saw(look(2, 41, 20), 1, now + INTERVAL));
        assert_eq!((fleet.allowed(), fleet.claim(1)), (1, 1));
    }

    #[test]
    fn a_look_that_does_not_show_the_raised_claim_grants_nothing() {
        let now = Instant::now();
        let mut fleet = Fleet::new(40, 100, now);
        assert!(!fleet.saw(look(2, 2, 1), 1, now));
        assert!(fleet.saw(look(2, 2, 1), 1, now + INTERVAL));
        assert!(!fleet.saw(look(2, 2, 1), 1, now + INTERVAL));
        assert_eq!(fleet.allowed(), 1);
    }

    #[test]
    fn who_must_shrink_claims_what_is_still_open() {
        let now = Instant::now();
        let mut fleet = grown(now);
        assert!(!fleet.saw(look(4, 43, 40), 30, now + INTERVAL * 2));
        assert_eq!((fleet.allowed(), fleet.claim(30)), (10, 30));
        assert_eq!(fleet.claim(7), 10);
    }

    #[test]
    fn a_restart_within_one_interval_changes_nothing() {
        let now = Instant::now();
        let mut fleet = grown(now);
        for (turn, members) in (2..).zip([4, 3, 4, 3, 4]) {
            assert!(!fleet.saw(look(members, 40, 10), 10, now + INTERVAL * turn));
            assert_eq!(fleet.allowed(), 10);
        }
    }

    #[test]
    fn a_refused_member_halves_once_and_grows_by_one_a_look() {
        let now = Instant::now();
        let mut fleet = grown(now);
        let later = now + INTERVAL * 2;
        fleet.refused(20, later);
        fleet.refused(9, later + Duration::from_millis(50));
        assert_eq!(fleet.allowed(), 10);
        assert!(fleet.saw(look(1, 10, 10), 10, later + INTERVAL));
        assert!(!fleet.saw(look(1, 11, 11), 10, later + INTERVAL));
        assert_eq!(fleet.allowed(), 11);
        fleet.refused(1, later + INTERVAL);
        assert_eq!(fleet.allowed(), 1);
    }

    #[test]
    fn a_stale_member_keeps_its_size_and_a_lost_claim_only_what_is_open() {
        let now = Instant::now();
        let mut fleet = grown(now);
        fleet.failed(12, now + INTERVAL * 2);
        assert_eq!(fleet.allowed(), 40);
        fleet.failed(12, now + INTERVAL + STALE);
        fleet.failed(3, now + INTERVAL + STALE * 2);
        assert_eq!(fleet.allowed(), 12);
        fleet.rejoined(0);
        assert_eq!(fleet.allowed(), 1);
    }
}
