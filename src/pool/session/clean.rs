//! Removes the state that a user of the raw connection left on a session.

use super::life::{Session, housekeeping_until};
use crate::error::{Chain, Error};
use crate::metrics::CloseReason;
use crate::pool::watchdog::Plan;
use crate::sync::caught;
use log::{debug, warn};
use postgres::SimpleQueryMessage;
use std::time::Instant;

/// Restores a session to the state in which it was opened. DISCARD ALL would also drop the prepared
/// statements of the pool and of the driver, so it is not used; the statements that the session's
/// user has prepared are returned as rows, to be deallocated one by one. `RESET ALL` goes back to
/// the options of the startup packet.
const CLEAN: &str = "ROLLBACK; CLOSE ALL; RESET SESSION AUTHORIZATION; RESET ALL; UNLISTEN *; \
                     SELECT pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES; \
                     SELECT 'DEALLOCATE ' || quote_ident(name) AS prepared FROM pg_prepared_statements WHERE from_sql; \
                     SELECT count(*) AS looks_up FROM pg_prepared_statements \
                     WHERE NOT from_sql AND statement ~ 'FROM pg_catalog[.]pg_type'";

impl Session {
    /// Removes what a user of the raw connection left behind, and applies `on_connect` again.
    /// Behind a pooler that would change a server session that others use as well: there the
    /// connection is closed instead, and the pooler cleans up in its own way.
    pub fn clean(&mut self, deadline: Option<Instant>) -> bool {
        if self.shared.is_pooled() {
            // A transaction left open would end together with the client connection, and the pooler
            // would close its server connection, too.
            let until = Some(housekeeping_until(deadline));
            if let Err(e) = self.bounded(until, |s| s.client.batch_execute("ROLLBACK")) {
                debug!("conn={} could not be rolled back: {}", self.id(), Chain(&e));
            }
            self.close_for(CloseReason::LeakedState);
            return false;
        }
        let until = housekeeping_until(deadline);
        let cleaned = self.clean_up(until).and_then(|()| self.restore(until));
        if let Err(e) = cleaned {
            debug!("conn={} could not be cleaned up: {}", self.id(), Chain(&e));
            self.close_for(match self.is_lost() {
                true => CloseReason::Broken,
                false => CloseReason::LeakedState,
            });
        } else if !self.check_for_end() {
            self.dirty = false;
        }
        !self.is_closing() && !self.dirty
    }

    fn clean_up(&mut self, until: Instant) -> Result<(), Error> {
        let cleaned = self.bounded(Some(until), |s| {
            s.tracked().wire.forget_names();
            let mut prepared = Vec::new();
            for message in s.client.simple_query(CLEAN)? {
                let SimpleQueryMessage::Row(row) = message else {
                    continue;
                };
                if let Ok(Some(deallocate)) = row.try_get("prepared") {
                    prepared.push(deallocate.to_owned());
                }
                if let Ok(Some(count)) = row.try_get("looks_up") {
                    // The statements that the driver prepared to look up types have been removed,
                    // and the driver does not notice.
                    if count == "0" && s.driver_looks_up {
                        s.close_for(CloseReason::LeakedState);
                    }
                    s.driver_looks_up = count != "0";
                }
            }
            match prepared.is_empty() {
                true => Ok(()),
                false => s.client.batch_execute(&prepared.join("; ")),
            }
        });
        cleaned.map_err(Error::before_any_effect)
    }

    /// Applies the session's settings and runs `on_connect`: after a reset, or on a session that
    /// was opened for the pool's own queries, for which this was not done.
    pub fn restore(&mut self, until: Instant) -> Result<(), Error> {
        let armed = self.client.registration().arm(Some(until), Plan::Abort);
        let restored = caught(|| self.shared.restore(&mut self.client));
        if armed.disarm() {
            self.close_for(CloseReason::Broken);
        }
        restored.unwrap_or_else(|panic| {
            warn!("on_connect panicked: {panic}");
            self.close_for(CloseReason::LeakedState);
            Ok(())
        })
    }
}
