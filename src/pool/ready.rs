//! Whether a session is still good, before it is handed out.

use super::checkout::{Inner, Lease};
use super::session::Session;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// A session that was not heard of for longer is asked for a sign of life before it is used.
const TRUSTED_FOR: Duration = Duration::from_millis(500);
/// What making a session ready may take, also for a caller who is out of time: no longer than a statement has to end in.
const LEAST_READYING: Duration = Duration::from_millis(500);

impl Inner {
    /// Looks whether the session is still good; gives it away when it is not.
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
        // The others are asked before they are used, too; where one was silent, which takes its time, they are not. Unless
        // it is only that its borrower had none.
        self.shared.note_trouble();
        if silent && until.is_none_or(|at| Instant::now() < at) {
            self.shared.retire_generation(generation);
        }
        Err(())
    }
}

/// A validation, or a cleaning, for a caller with this deadline takes a round trip also where there is no time for it: it is
/// the connection that would have to pay.
fn least(deadline: Option<Instant>) -> Option<Instant> {
    deadline.map(|at| at.max(Instant::now() + LEAST_READYING))
}

/// Runs `work` on a session before it is handed out. Where nothing can cut its wire, as on a Unix socket, that is done on a
/// thread which is left behind at the deadline, and gives the session back when the server answers.
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
        // Not taken any more, it goes back to the pool.
        let _ = sender.send((lease, done));
    };
    worker.spawn(look).map_err(|_| ())?;
    receiver
        .recv_timeout(until.saturating_duration_since(Instant::now()))
        .map_err(|_| ())
}
