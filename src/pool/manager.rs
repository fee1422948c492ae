//! The adapter through which r2d2 opens and checks sessions.
//!
//! When `connect` fails, r2d2 backs off by itself, for up to many seconds, and would be late when
//! the database is back. `connect` therefore does not fail while the pool is open: it retries. A
//! panic in `connect` would leak r2d2's pending slot forever (r2d2 0.8.10), so panics are caught.
//!
//! Each time a caller of r2d2 gives up before a connection is opened, one more connection stays
//! pending there, up to the maximum size (r2d2 0.8.10, `get_timeout`). So that all of them are not
//! opened at the end of an outage, a pending connection is opened only while an opener waits for it
//! (see `demand`).

use super::hedge::Purpose;
use super::opener::Opener;
use super::session::Session;
use crate::error::OpenError;
use crate::sync::caught;
use log::error;
use r2d2::ManageConnection;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub(crate) struct Manager(pub Arc<Opener>);

/// What r2d2 keeps and counts: a session, until it is taken out of the pool. Boxed, because it is
/// moved several times in each check-out.
pub(crate) struct Slot(Option<Box<Session>>);

const DETACHED: &str = "a slot is dropped as soon as its session is taken";

impl Slot {
    pub fn take(&mut self) -> Option<Session> {
        self.0.take().map(|session| *session)
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
        let opener = &self.0;
        let closing = &opener.shared.closing;
        while opener.demand.serve(closing) {
            let opened = caught(|| opener.open_when_possible(None, Purpose::Use));
            match opened {
                Ok(Ok(session)) if !closing.load(Ordering::SeqCst) => {
                    return Ok(Slot(Some(Box::new(session))));
                }
                Ok(_) => {}
                Err(panic) => error!("opening a connection panicked: {panic}"),
            }
            opener.demand.taken();
        }
        Err(OpenError::Closed)
    }

    /// Never called by r2d2 (`test_on_check_out` is off): the pool validates sessions itself, and
    /// only those that were idle for a while.
    fn is_valid(&self, session: &mut Slot) -> Result<(), OpenError> {
        session.validate(None).map_err(OpenError::Driver)
    }

    fn has_broken(&self, slot: &mut Slot) -> bool {
        slot.0.as_ref().is_none_or(|session| session.is_closing())
    }
}
