//! What is said once of a server: where it does not do what the pool relies on.

use super::backend::Backend;
use super::opener::Opener;
use log::warn;
use std::sync::atomic::Ordering;
use std::time::Duration;

impl Opener {
    /// Warns once if the server's own timeout is not the one that was asked for: poolers drop or
    /// refuse it.
    pub(super) fn note_timeout(&self, backend: &Backend) {
        let in_force = backend.statement_timeout;
        let asked_for = match self.shared.asked_for_timeout() {
            Some(asked_for) if asked_for != in_force => asked_for,
            _ => return,
        };
        if self.warned_of_timeout.swap(true, Ordering::Relaxed) {
            return;
        }
        let shown = |limit: Duration| match limit.is_zero() {
            true => "off".to_owned(),
            false => format!("{limit:?}"),
        };
        warn!(
            "statement_timeout is {} on the server instead of {}: a pooler dropped it, or the server overrides it; \
             outside transactions only DB_QUERY_TIMEOUT_MS limits a statement",
            shown(in_force),
            shown(asked_for)
        );
    }

    /// Warns once if the outcome of a lost commit cannot be found out on this server, unless the
    /// URL asks for a server that takes no writes.
    pub(super) fn note_incarnation(&self, backend: &Backend) {
        if backend.incarnation.is_none()
            && !self.shared.is_pooled()
            && !self.shared.config.reads_only()
            && !self.warned_of_incarnation.swap(true, Ordering::Relaxed)
        {
            warn!(
                "the outcome of a lost COMMIT cannot be determined on this server: \
                 it is a standby, or the role may not read pg_control_system, pg_walfile_name and pg_stat_wal"
            );
        }
    }

    /// Warns once if a write that was reported as committed may be lost in a crash.
    pub(super) fn note_risks(&self, backend: &Backend) {
        let risks = &backend.risks;
        if !risks.is_empty()
            && !backend.standby
            && !self.warned_of_risks.swap(true, Ordering::Relaxed)
        {
            warn!(
                "the server runs with {risks}: a server crash may lose the last writes that were reported as committed"
            );
        }
    }
}
