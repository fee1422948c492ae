//! Whether a session still works, checked before it is handed out.

use super::checkout::Inner;
use super::session::Session;
use std::time::{Duration, Instant};

/// A session on which the server has not answered for longer than this is validated before it is
/// used.
const TRUSTED_FOR: Duration = Duration::from_millis(500);
/// Least time for making a session ready, even if the caller's deadline has passed: as long as a
/// cancelled statement has to end.
const LEAST_READYING: Duration = Duration::from_millis(500);

impl Inner {
    /// Makes the session ready: validates or cleans it if needed. Returns when it was, which is
    /// `now` if there was nothing to do. Fails if it does not work, or does not answer in time.
    pub(super) fn make_ready(
        &self,
        session: &mut Session,
        deadline: Option<Instant>,
        now: Instant,
    ) -> Result<Instant, ()> {
        if let Some(reason) = session.retire() {
            session.close_for(reason);
            return Err(());
        }
        if session.is_dirty() {
            return match session.clean(least(deadline)) {
                true => Ok(Instant::now()),
                false => Err(()),
            };
        }
        let unheard_for = now.saturating_duration_since(session.heard_at());
        if unheard_for <= TRUSTED_FOR && !self.shared.trouble_since(session.heard_at()) {
            return Ok(now);
        }
        let until = least(deadline);
        let generation = session.generation();
        if session.validate(until).is_ok() {
            return Ok(Instant::now());
        }
        let silent = session.tracked().wire.is_aborted();
        // The other sessions are now validated before they are used, too. But if this one got no
        // answer, which takes the whole time limit, the sessions of its generation are retired
        // without a validation; unless only the caller's deadline has cut the wait short.
        self.shared.note_trouble();
        if silent && until.is_none_or(|at| Instant::now() < at) {
            self.shared.retire_generation(generation);
        }
        Err(())
    }
}

/// Returns the deadline of a validation or clean-up for a caller with this deadline. It allows for
/// a round trip even if the caller is out of time, since otherwise a good connection would be
/// closed.
fn least(deadline: Option<Instant>) -> Option<Instant> {
    deadline.map(|at| at.max(Instant::now() + LEAST_READYING))
}
