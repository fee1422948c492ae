//! What else the probe's session is used for, once it has its answer.

use super::headroom::{SQL, read};
use super::opener::Opener;
use super::session::Session;
use crate::metrics::{CloseReason, Headroom};
use std::sync::Arc;
use std::time::Instant;

/// Looks at the server's room, if that `looks`, and sees to the fleet. Returns whether the server
/// still answers, and its room. A session that has failed is closed.
pub(super) fn look_round(
    opener: &Arc<Opener>,
    session: &mut Option<Session>,
    looks: bool,
    until: impl Fn() -> Instant,
) -> (bool, Option<Headroom>) {
    let mut work = || -> Result<_, postgres::Error> {
        let seen = match session.as_mut().filter(|_| looks) {
            Some(session) => read(&session.ask(SQL, until())?),
            None => None,
        };
        if let Some(tend) = opener.upkeep.get() {
            tend(session.as_mut(), until())?;
        }
        Ok(seen)
    };
    let result = work();
    if result.is_err()
        && let Some(mut failed) = session.take()
    {
        failed.close_for(CloseReason::Broken);
    }
    match result {
        Ok(seen) => (true, seen),
        Err(e) => (e.as_db_error().is_some(), None),
    }
}
