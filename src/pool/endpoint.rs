//! What is known on our side of a connection, for the program's checks.

use super::checkout::Pool;
use super::plain::PooledConnection;
use super::wire::Place;
use crate::config::SslMode;
use crate::tls;

/// Where a connection leads, and by which way.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The address and the port, or the path of a Unix socket.
    pub place: String,
    /// It does not leave this machine.
    pub is_local: bool,
    /// What is sent between this process and the next one cannot be read on the way.
    pub is_encrypted: bool,
    /// The server's certificate was compared with trusted ones.
    pub is_verified: bool,
    /// A pooler stands in between.
    pub is_pooled: bool,
    /// The kind of server that was asked for (`target_session_attrs`).
    pub asked_for: &'static str,
}

impl Endpoint {
    /// Returns what is known of this connection of this pool.
    pub fn of(pool: &Pool, connection: &PooledConnection) -> Endpoint {
        let tracked = connection.tracked();
        let place = tracked.route.get().map(|route| &route.place);
        let database = pool.config().database.as_ref();
        let is_encrypted = tracked.wire.is_encrypted();
        let verifies = database.is_some_and(|database| {
            database.ssl_mode() >= SslMode::VerifyCa || tls::has_roots(database.tls())
        });
        Endpoint {
            place: place.map(ToString::to_string).unwrap_or_default(),
            is_local: place.is_some_and(|place| match place {
                Place::Tcp(address) => address.ip().is_loopback(),
                Place::Unix(_) => true,
            }),
            is_encrypted,
            is_verified: is_encrypted && verifies,
            is_pooled: pool.inner.shared.is_pooled(),
            asked_for: database.map_or("any", |database| database.session_attrs().as_str()),
        }
    }
}
