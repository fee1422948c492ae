//! The settings with which the driver connects: the startup packet, and where it is led.

use super::shared::Shared;
use super::tracked::Tracked;
use super::wire::Place;
use log::debug;
use postgres::config::{SslMode, SslNegotiation};
use postgres::error::SqlState;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Shared {
    /// Returns the settings of the startup packet. A later option overrides an earlier one, so the
    /// order is significant.
    pub(super) fn startup(
        &self,
        parameters: &postgres::Config,
        with_options: bool,
        tracked: &Arc<Tracked>,
    ) -> postgres::Config {
        let mut config = parameters.clone();
        // This makes the driver use the wire, which does what the user asked for (`dial`).
        config
            .ssl_mode(SslMode::Require)
            .ssl_negotiation(SslNegotiation::Direct);
        if !self.config.application_name_follows || config.get_application_name().is_none() {
            config.application_name(&self.application_name());
        }
        if with_options {
            let ours = format!("-c statement_timeout={}", self.statement_timeout_ms());
            let options = match parameters.get_options() {
                Some(theirs) if self.config.statement_timeout_wins => {
                    format!("{theirs} {ours}")
                }
                Some(theirs) => format!("{ours} {theirs}"),
                None => ours,
            };
            config.options(&options);
        }
        let (tracked, observers) = (Arc::clone(tracked), Arc::clone(&self.observers));
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

/// Returns the address that the driver connects to. For a Unix socket, which the connector opens
/// itself, it is that of a listener to be kept until then: nobody accepts what comes there, and
/// nothing is sent.
pub(super) fn led_to(place: &Place) -> io::Result<(SocketAddr, Option<TcpListener>)> {
    if let Place::Tcp(address) = place {
        return Ok((*address, None));
    }
    let explain = |e: io::Error| {
        let what = format!("a Unix socket needs the loopback interface as well: {e}");
        io::Error::new(e.kind(), what)
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(explain)?;
    Ok((listener.local_addr()?, Some(listener)))
}
