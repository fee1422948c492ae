//! Whether a session still works, checked before it is handed out.

use super::checkout::{Inner, Lease};
use super::session::Session;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// A session on which the server has not answered for longer than this is validated before it is
/// used.
const TRUSTED_FOR: Duration = Duration::from_millis(500);
/// Least time for making a session ready, even if the caller's deadline has passed: as long as a
/// cancelled statement has to end.
const LEAST_READYING: Duration = Duration::from_millis(500);

impl Inner {
    /// Makes the session ready: validates or cleans it if needed. Fails if it does not work, or
    /// does not answer in time.
    pub(super) fn make_ready(
        &self,
        mut lease: Lease,
        deadline: Option<Instant>,
    ) -> Result<Lease, ()> {
        let now = Instant::now();
        let session: &mut Session = &mut lease;
        if let Some(reason) = session.retire(now) {
            session.close_for(reason);
            return Err(());
        }
        if session.is_dirty() {
            let until = least(deadline);
            return match aside(lease, until, move |session| session.clean(until))? {
                (lease, true) => Ok(lease),
                (_, false) => Err(()),
            };
        }
        let unheard_for = now.saturating_duration_since(session.heard_at());
        if unheard_for <= TRUSTED_FOR && !self.shared.trouble_since(session.heard_at()) {
            return Ok(lease);
        }
        let until = least(deadline);
        let generation = session.generation();
        let validate = move |session: &mut Session| session.validate(until).is_ok();
        let silent = match aside(lease, until, validate) {
            Ok((lease, true)) => return Ok(lease),
            Ok((lease, false)) => lease.tracked().wire.is_aborted(),
            Err(()) => true,
        };
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

/// Runs `work` on a session before it is handed out. If nothing can cut its wire, as on a Unix
/// socket, this is done on another thread, which is left behind at the deadline and gives the
/// session back when the server answers.
pub(super) fn aside(
    mut lease: Lease,
    until: Option<Instant>,
    work: impl FnOnce(&mut Session) -> bool + Send + 'static,
) -> Result<(Lease, bool), ()> {
    let (Some(until), false) = (until, lease.can_be_cut()) else {
        let done = work(&mut lease);
        return Ok((lease, done));
    };
    let (sender, receiver) = mpsc::sync_channel(0);
    let worker = std::thread::Builder::new().name("millpond-look".into());
    let look = move || {
        let done = work(&mut lease);
        // If the receiver is gone, the lease goes back to the pool.
        let _ = sender.send((lease, done));
    };
    worker.spawn(look).map_err(|_| ())?;
    receiver
        .recv_timeout(until.saturating_duration_since(Instant::now()))
        .map_err(|_| ())
}
