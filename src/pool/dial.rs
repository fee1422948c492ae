//! Opens one connection, at one address: encrypted or not as `sslmode` says, with the settings of
//! the startup packet, prepared for use.

use super::backend::Backend;
use super::hedge::{Attempt, Purpose};
use super::opener::Opener;
use super::pooler::{Seen, refuses_options};
use super::session::Session;
use super::startup;
use super::target::Login;
use super::watchdog::Plan;
use super::wire::{Connector, Failure, Handle, Handshake, Place, Route};
use crate::config::{Database, ServerHost, SslMode, TlsSettings};
use crate::error::{Chain, OpenError, is_out_of_files};
use crate::sync::caught;
use log::{debug, info, warn};
use postgres::Client;
use r2d2::ManageConnection;
use r2d2_postgres::PostgresConnectionManager;
#[cfg(feature = "tls")]
use std::error::Error as StdError;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

impl Opener {
    /// Opens a connection at one address, within `limit`.
    pub(super) fn open_at(
        self: &Arc<Self>,
        (database, server): (&Arc<Database>, &ServerHost),
        place: &Place,
        limit: Duration,
        purpose: Purpose,
        attempt: Option<&Attempt<Session>>,
    ) -> Result<Session, OpenError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed) + 1;
        let generation = self.shared.generation.load(Ordering::Relaxed);
        let started = Instant::now();
        let registration = self.shared.watchdog.register(id);
        let armed = registration.arm(Some(started + limit), Plan::Abort);
        let tracked = &registration.tracked;
        let wire = Arc::clone(&tracked.wire);
        if let Some(attempt) = attempt {
            attempt.set_wire(&wire);
            // The close sets `closing` before it cuts the wires, and this thread has registered its
            // wire before it reads `closing`: so either the close is seen here, or the close sees
            // this wire.
            if purpose == Purpose::Use && self.shared.closing.load(Ordering::SeqCst) {
                return Err(OpenError::Closed);
            }
        }
        let password = self.target.password(database, server, started + limit)?;
        let parameters = database.without_hosts();
        self.shared.follow(&parameters);
        if let Some(e) = out_of_files() {
            return Err(OpenError::Files(e));
        }
        let late = |error| match wire.is_aborted() {
            true => OpenError::Timeout(limit),
            false => error,
        };
        let connect = |tls: Option<Handshake>, with_options: bool| {
            let (address, _listener) = startup::led_to(place).map_err(OpenError::Connect)?;
            let mut config = self.shared.startup(&parameters, with_options, tracked);
            config
                .host(server.host_name())
                .hostaddr(address.ip())
                .port(address.port())
                .connect_timeout(limit.max(Duration::from_millis(1)));
            if let Some(password) = &password {
                config.password(password.as_bytes());
            }
            let route = Route {
                place: place.clone(),
                tls: tls.clone(),
            };
            let connector = Connector {
                handle: Arc::clone(&wire),
                route,
            };
            let opened = PostgresConnectionManager::new(config, connector).connect();
            opened.map(|client| (client, tls)).map_err(of_driver)
        };
        let (mut client, tls) = self
            .dial((database, server), place, &wire, connect)
            .map_err(late)
            .inspect_err(|error| {
                if error.is_wrong_password() {
                    self.target.note_refused(Login {
                        database: Arc::clone(database),
                        server: server.clone(),
                        password: password.clone(),
                    });
                }
            })?;
        let mut backend = Backend::read(&mut client).map_err(|e| late(OpenError::Driver(e)))?;
        let seen = Seen {
            told: wire.process(),
            since: started.elapsed(),
        };
        if let Some(how) = seen.betrays_pooler(&backend) {
            self.shared.note_pooler(how);
        } else if self.shared.sends_options()
            && self.shared.asked_for_timeout() != Some(backend.statement_timeout)
        {
            self.shared.note_pooler("it drops startup options");
        }
        if !backend.standby {
            self.primary_at.store(self.shared.now(), Ordering::Relaxed);
        }
        self.note_incarnation(&backend);
        self.note_risks(&backend);
        if let Some(reading) = backend.clock() {
            self.shared.database_clock.note(Instant::now(), reading);
        }
        if self.shared.sets_timeout() {
            backend.statement_timeout = self.shared.config.statement_timeout.unwrap_or_default();
        }
        self.note_timeout(&backend);
        self.shared
            .hides_warnings
            .fetch_or(backend.hides_warnings, Ordering::Relaxed);
        // A cancel request is encrypted exactly if the connection is.
        tracked.set_route(Route {
            place: place.clone(),
            tls: tls.filter(|_| wire.is_encrypted()),
        });
        let restored = match purpose {
            Purpose::Use => caught(|| self.shared.restore(&mut client)),
            Purpose::Resolve => Ok(Ok(())),
        };
        // Whatever the result says, the attempt has used all of its time, and the wire may be cut
        // at any moment.
        if armed.disarm() {
            return Err(match purpose {
                Purpose::Use if self.shared.on_connect.is_some() => {
                    OpenError::OnConnectTimeout(limit)
                }
                _ => OpenError::Timeout(limit),
            });
        }
        match restored {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return Err(OpenError::OnConnect(Box::new(e))),
            Err(panic) => return Err(OpenError::Panicked(panic)),
        }
        let took = started.elapsed();
        self.attempts.note_opened(took);
        Ok(Session::new(
            client,
            backend,
            registration,
            Arc::clone(&self.shared),
            generation,
            took,
        ))
    }

    /// Connects in each of the ways that `sslmode` allows, until one succeeds.
    fn dial(
        &self,
        (database, server): (&Database, &ServerHost),
        place: &Place,
        wire: &Handle,
        connect: impl Fn(Option<Handshake>, bool) -> Result<(Client, Option<Handshake>), OpenError>,
    ) -> Result<(Client, Option<Handshake>), OpenError> {
        let tls = database.tls();
        let mode = tls.mode;
        let ways: &[bool] = match mode {
            // libpq does not encrypt a Unix socket either.
            _ if !place.is_tcp() => &[false],
            SslMode::Disable => &[false],
            SslMode::Allow => &[false, true],
            SslMode::Prefer if cfg!(feature = "tls") => &[true, false],
            SslMode::Prefer => &[false],
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[true],
        };
        let mut first = None;
        for (nth, encrypted) in ways.iter().enumerate() {
            let handshake = match encrypted {
                true => self.handshake(tls, server).map(Some),
                false => Ok(None),
            };
            let theirs = database.config().get_options().is_some();
            let opened = handshake.and_then(|handshake| {
                self.with_or_without_options(handshake, theirs, place, &connect)
            });
            match opened {
                Ok(opened) => return Ok(opened),
                Err(e) if wire.is_aborted() => return Err(e),
                Err(e) if nth + 1 < ways.len() && may_succeed_otherwise(&e, *encrypted, wire) => {
                    self.note_other_way(&e, mode);
                    first = Some(e);
                }
                // Why the preferred way failed says more than what came of the other.
                Err(e) => return Err(first.filter(|_| mode == SslMode::Prefer).unwrap_or(e)),
            }
        }
        Err(first.unwrap_or(OpenError::Closed))
    }

    /// Says once that connections go on in the clear although the server offers TLS.
    fn note_other_way(&self, error: &OpenError, mode: SslMode) {
        let in_the_clear = matches!(error, OpenError::Tls(_)) && mode == SslMode::Prefer;
        if in_the_clear && !self.warned_of_plain.swap(true, Ordering::Relaxed) {
            let cause = Chain(error);
            warn!("sslmode=prefer: going on in the clear, since the encryption failed: {cause}");
        } else {
            debug!(
                "sslmode={mode}: trying the other way after: {}",
                Chain(error)
            );
        }
    }

    #[cfg(feature = "tls")]
    fn handshake(&self, tls: &TlsSettings, server: &ServerHost) -> Result<Handshake, OpenError> {
        let client = self.tls_clients.client(tls, server.host_name());
        let client = client.map_err(OpenError::Tls)?;
        Ok(Handshake {
            config: client.config,
            name: client.name,
            direct: tls.direct,
            required: (tls.mode != SslMode::Prefer).then(|| tls.mode.to_string()),
        })
    }

    /// Never called: settings that ask for TLS are refused where it is not built in.
    #[cfg(not(feature = "tls"))]
    fn handshake(&self, _: &TlsSettings, _: &ServerHost) -> Result<Handshake, OpenError> {
        Err(OpenError::Tls("TLS is not built in".into()))
    }

    /// Connects, without our startup options once the server has refused them, unless the URL has
    /// some of its own.
    fn with_or_without_options(
        &self,
        tls: Option<Handshake>,
        theirs: bool,
        place: &Place,
        connect: impl Fn(Option<Handshake>, bool) -> Result<(Client, Option<Handshake>), OpenError>,
    ) -> Result<(Client, Option<Handshake>), OpenError> {
        let opened = caught(|| {
            if self.shared.without_options.load(Ordering::Relaxed) {
                return connect(tls, false);
            }
            let refused = match connect(tls.clone(), true) {
                Err(OpenError::Driver(e)) if !theirs && refuses_options(&e) => e,
                other => return other,
            };
            let opened = connect(tls, false)?;
            info!(
                "the server refuses startup options, as poolers do; connected without them: {}",
                Chain(&refused)
            );
            self.shared.without_options.store(true, Ordering::Relaxed);
            if !place.is_tcp() {
                self.shared.note_pooler("it refuses startup options");
            }
            Ok(opened)
        });
        // The driver unwraps the result of building its runtime.
        opened.unwrap_or_else(|panic| {
            Err(out_of_files().map_or(OpenError::Panicked(panic), OpenError::Files))
        })
    }
}

/// Returns whether a server that failed so may let in a connection that is encrypted where this one
/// was not, or the other way round.
fn may_succeed_otherwise(error: &OpenError, asked: bool, wire: &Handle) -> bool {
    match error {
        OpenError::Tls(_) => true,
        // The handshake was cut short.
        OpenError::Connect(_) => wire.is_encrypted(),
        // It is the rules of access that may differ (pg_hba.conf). A server that offered no
        // encryption has seen the other way already. A pooler that insists on encryption says so
        // with a code of its own.
        OpenError::Driver(e) => e.code().is_some_and(|code| match (asked, code.code()) {
            (true, code) => wire.is_encrypted() && code.starts_with("28"),
            (false, code) => code.starts_with("28") || code.starts_with("08"),
        }),
        _ => false,
    }
}

/// The connector's failures reach us as failed handshakes, whatever they are.
fn of_driver(error: postgres::Error) -> OpenError {
    match Failure::behind(&error) {
        Some(Failure::Io(e)) => OpenError::Connect(std::io::Error::new(e.kind(), e.to_string())),
        Some(Failure::Tls(what)) => OpenError::Tls(what.clone()),
        None => match alert_behind(&error) {
            Some(what) => OpenError::Tls(what),
            None => OpenError::Driver(error),
        },
    }
}

/// Returns what is wrong if the server ended the encryption with an alert: in TLS 1.3 the client
/// learns only after its handshake that its certificate is refused.
#[cfg(feature = "tls")]
fn alert_behind(error: &postgres::Error) -> Option<String> {
    let io = error.source()?.downcast_ref::<std::io::Error>()?;
    match io.get_ref()?.downcast_ref()? {
        rustls::Error::AlertReceived(alert) => Some(format!(
            "the server refuses the certificate of this client (sslcert): {alert:?}"
        )),
        _ => None,
    }
}

#[cfg(not(feature = "tls"))]
fn alert_behind(_: &postgres::Error) -> Option<String> {
    None
}

/// Returns the error if no more files can be opened. The driver needs three file descriptors for a
/// connection and panics if it gets none for its runtime. This is checked beforehand, since each
/// panic would be printed.
fn out_of_files() -> Option<std::io::Error> {
    let spare: Result<Vec<_>, _> = (0..3).map(|_| std::fs::File::open("/dev/null")).collect();
    spare.err().filter(is_out_of_files)
}
