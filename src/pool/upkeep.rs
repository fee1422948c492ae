//! What a member of a fleet does after each probe: publishes its claim, looks at the others, and fits
//! the pool into its share.

use super::checkout::Inner;
use super::member::{ITS_SESSION, look, read};
use super::session::Session;
use log::{info, warn};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

impl Inner {
    /// Takes up the membership: with one connection, until the others are known.
    pub(super) fn join_fleet(self: &Arc<Self>) {
        self.fit();
        let pool = Arc::downgrade(self);
        let tend = move |session: Option<&mut Session>, until| match (pool.upgrade(), session) {
            (None, _) => Ok(()),
            (Some(pool), Some(session)) => pool.tend(session, until),
            (Some(pool), None) => {
                pool.note_no_look();
                Ok(())
            }
        };
        let _ = self.opener.upkeep.set(Box::new(tend));
    }

    /// Publishes what this pool claims and looks at the others, on the session of the probe.
    fn tend(&self, session: &mut Session, until: Instant) -> Result<(), postgres::Error> {
        let Some(member) = &self.member else {
            return Ok(());
        };
        if self.shared.is_pooled() {
            if !member.is_off.swap(true, Ordering::Relaxed) {
                warn!(
                    "the fleet's budget (DB_FLEET_MAX) is off: behind a pooler, members cannot count themselves"
                );
                self.fit();
            }
            return Ok(());
        }
        let mut state = member.lock();
        let open = self.open_of_the_fleet();
        let id = session.id();
        if state.published.is_some_and(|(holder, _)| holder != id) {
            state.fleet.rejoined(open);
            state.published = None;
        }
        // Health may be asked for more often; but a smaller claim is for the others to use.
        let is_new = state.published != Some((id, state.fleet.claim(open)));
        if !is_new && !state.is_due() {
            return Ok(());
        }
        loop {
            let open = self.open_of_the_fleet();
            let claim = state.fleet.claim(open);
            let before = state.published.map(|(_, claim)| claim);
            let answer = session.ask(&look(member.class, claim, before), until)?;
            state.published = Some((id, claim));
            let now = Instant::now();
            state.note_look(now);
            let Some(seen) = read(&answer) else {
                return Ok(());
            };
            if state.members != seen.members {
                info!("the fleet has {} members", seen.members);
                state.members = seen.members;
            }
            if !state.fleet.saw(seen, self.open_of_the_fleet(), now) {
                break;
            }
        }
        drop(state);
        self.fit();
        Ok(())
    }

    /// Notes that a look was not possible.
    fn note_no_look(&self) {
        if let Some(member) = &self.member {
            let now = Instant::now();
            let mut state = member.lock();
            state.note_look(now);
            state.fleet.failed(self.open_of_the_fleet(), now);
            drop(state);
            self.fit();
        }
    }

    /// Notes that the server has no room for another connection.
    pub(super) fn step_back(&self) {
        if let Some(member) = &self.member {
            let open = self.open_of_the_fleet();
            member.lock().fleet.refused(open, Instant::now());
            self.fit();
        }
    }

    /// Counts the connections that are open or being opened, the probe's with them.
    fn open_of_the_fleet(&self) -> u32 {
        let line = self.line.figures();
        let spares = self.r2d2.state().idle_connections as usize;
        let opening = self.opener.attempts.count();
        (line.active + line.idle + spares + opening) as u32 + ITS_SESSION
    }
}
