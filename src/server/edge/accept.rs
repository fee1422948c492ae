//! Takes in new clients up to a limit, and makes room for them.

use super::clients::Clients;
use super::connection::Connection;
use log::{debug, warn};
use mio::net::TcpStream;
use mio::{Interest, Registry};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Pause before accepting again, while the system has no file for a client and nobody makes room.
pub(super) const ACCEPT_AGAIN: Duration = Duration::from_millis(20);
/// Pause before accepting again after any other error.
const AFTER_ERROR: Duration = Duration::from_millis(100);

impl Clients {
    /// Accepts the next client, which the caller goes on with; `None` once there are no more, or
    /// accepting has to wait. `is_draining` leaves the clients of an inherited listener to the next
    /// server.
    pub fn accept(&mut self, is_draining: bool, registry: &Registry) -> Option<usize> {
        self.accept_at = None;
        loop {
            let next = match self.next_client.take() {
                Some(waiting) => Ok(waiting),
                None if self.listener.is_inherited() && is_draining => return None,
                None => self.listener.accept(),
            };
            match next {
                Ok(next) if self.all.len() >= self.most && !self.make_room(registry) => {
                    debug!(
                        "no room for {}: every connection has a request in flight",
                        next.1
                    );
                    self.next_client = Some(next);
                    self.accept_at = Some(Instant::now() + ACCEPT_AGAIN);
                    return None;
                }
                Ok((socket, peer)) => match self.welcome(socket, peer, registry) {
                    Ok(key) => return Some(key),
                    Err(e) => warn!("cannot watch a client's connection: {e}"),
                },
                Err(e) if e.kind() == ErrorKind::WouldBlock => return None,
                Err(e) if is_lack_of_files(&e) => {
                    if !self.make_room(registry) {
                        debug!("no file descriptor is free for a client: {e}");
                        self.accept_at = Some(Instant::now() + ACCEPT_AGAIN);
                        return None;
                    }
                }
                // The client has gone again.
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::ConnectionAborted | ErrorKind::Interrupted
                    ) =>
                {
                    debug!("a client was not accepted: {e}");
                }
                Err(e) => {
                    warn!("cannot accept clients: {e}");
                    self.accept_at = Some(Instant::now() + AFTER_ERROR);
                    return None;
                }
            }
        }
    }

    /// When to accept again, if accepting has to wait.
    pub fn accept_at(&self) -> Option<Instant> {
        self.accept_at
    }

    fn welcome(
        &mut self,
        mut socket: TcpStream,
        peer: SocketAddr,
        registry: &Registry,
    ) -> io::Result<usize> {
        self.last_serial += 1;
        let (key, serial) = (self.all.vacant_key(), self.last_serial);
        let token = self.token_of(key, serial);
        registry.register(&mut socket, token, Interest::READABLE)?;
        let (config, proxies) = (&self.service.config, self.service.trusted_proxies());
        let connection = Connection::new(socket, peer.ip(), serial, config, &proxies);
        drop(proxies);
        self.all.insert(connection);
        Ok(key)
    }

    /// Closes the connection that has been idle for longest; false if all have a request in flight.
    fn make_room(&mut self, registry: &Registry) -> bool {
        let expendable = self.all.iter().filter(|(_, c)| c.is_expendable());
        // Clients that do not take their answer come last.
        let longest = expendable.min_by_key(|(_, c)| (c.blocked, c.since));
        let longest = longest.map(|(key, _)| key);
        if let Some(key) = longest {
            self.close(key, registry);
        }
        longest.is_some()
    }
}

/// The program or the system has no file left.
fn is_lack_of_files(error: &io::Error) -> bool {
    let codes = [Some(nix::libc::EMFILE), Some(nix::libc::ENFILE)];
    codes.contains(&error.raw_os_error())
}
