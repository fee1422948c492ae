//! The settings of the startup packet.

use super::shared::Shared;
use super::tracked::Tracked;
use log::debug;
use postgres::config::{Host, SslMode, SslNegotiation};
use postgres::error::SqlState;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

impl Shared {
    /// Returns the settings of the startup packet. A later option overrides an earlier one, so the
    /// order is significant.
    pub(super) fn startup(
        &self,
        host: &postgres::Config,
        limit: Duration,
        with_options: bool,
        tracked: &Arc<Tracked>,
    ) -> postgres::Config {
        let mut config = host.clone();
        if is_tcp(host) {
            // This makes the driver use the wire. The TLS mode that the user asked for was checked
            // when the URL was read.
            config
                .ssl_mode(SslMode::Require)
                .ssl_negotiation(SslNegotiation::Direct);
        } else {
            config.ssl_mode(SslMode::Disable);
        }
        let own = host.get_connect_timeout().copied().unwrap_or(limit);
        config.connect_timeout(own.min(limit).max(Duration::from_millis(1)));
        config.application_name(&self.application_name());
        if with_options {
            let ours = format!("-c statement_timeout={}", self.statement_timeout_ms());
            let options = match host.get_options() {
                Some(theirs) if self.config.statement_timeout_wins => {
                    format!("{theirs} {ours}")
                }
                Some(theirs) => format!("{ours} {theirs}"),
                None => ours,
            };
            config.options(&options);
        }
        let (tracked, observers) = (Arc::clone(tracked), self.observers.clone());
        config.notice_callback(move |notice| {
            // The ROLLBACK with which the pool cleans a connection causes this one.
            if *notice.code() != SqlState::NO_ACTIVE_SQL_TRANSACTION {
                observers.tell(|o| o.notice(tracked.id, &notice));
            }
            // A notice may quote values, so its text is not logged. The routine's name is the same
            // in every language.
            debug!("notice from the server: {}", notice.code().code());
            if notice.routine() == Some("SyncRepWaitForLSN") {
                tracked.gave_up_on_standbys.store(true, Ordering::Relaxed);
            }
        });
        config
    }
}

pub(super) fn is_tcp(host: &postgres::Config) -> bool {
    // Windows has no others.
    matches!(host.get_hosts().first(), None | Some(Host::Tcp(_)))
}
