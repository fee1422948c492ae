//! The adapter through which r2d2 counts and checks sessions.
//!
//! When `connect` fails, r2d2 tries again by itself, after a pause that grows, and would be late
//! when the database is back. While `connect` blocks, so does r2d2's thread. So an opener opens the
//! session first, and `connect` only fetches it. It fails if r2d2 has asked for more than there
//! are, which happens if an opener asked twice because the thread was late; r2d2 then tries again
//! after a fraction of a second, and so takes the next session that is opened.

use super::opener::Opener;
use super::session::Session;
use crate::error::OpenError;
use r2d2::ManageConnection;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

pub(crate) struct Manager(pub Arc<Opener>);

/// What r2d2 keeps and counts: a session, until it is taken out of the pool.
pub(crate) struct Slot(Option<Session>);

const DETACHED: &str = "a slot is dropped as soon as its session is taken";

impl Slot {
    pub fn take(&mut self) -> Option<Session> {
        self.0.take()
    }
}

impl Deref for Slot {
    type Target = Session;

    fn deref(&self) -> &Session {
        match &self.0 {
            Some(session) => session,
            None => unreachable!("{DETACHED}"),
        }
    }
}

impl DerefMut for Slot {
    fn deref_mut(&mut self) -> &mut Session {
        match &mut self.0 {
            Some(session) => session,
            None => unreachable!("{DETACHED}"),
        }
    }
}

impl ManageConnection for Manager {
    type Connection = Slot;
    type Error = OpenError;

    fn connect(&self) -> Result<Slot, OpenError> {
        let opened = self.0.opened.take();
        opened
            .map(|session| Slot(Some(session)))
            .ok_or(OpenError::Closed)
    }

    /// Never called by r2d2 (`test_on_check_out` is off): the pool validates sessions itself, and
    /// only those that were idle for a while.
    fn is_valid(&self, session: &mut Slot) -> Result<(), OpenError> {
        session.validate(None).map_err(OpenError::Driver)
    }

    fn has_broken(&self, slot: &mut Slot) -> bool {
        slot.0.as_ref().is_none_or(Session::is_closing)
    }
}
