//! The driver's client together with the registration that keeps its deadlines until it is closed.

use crate::pool::blocking;
use crate::pool::process::Process;
use crate::pool::watchdog::Registration;
use crate::sync::unpoison;
use log::warn;
use postgres::Client;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};
use std::thread;

/// A client that is closed on another thread if the current one must not block: closing sends a
/// Terminate message, which blocks.
pub(super) struct Link {
    held: Option<(Client, Registration)>,
    process: Process,
}

impl Link {
    pub fn new(client: Client, registration: Registration) -> Link {
        Link {
            held: Some((client, registration)),
            process: Process::this(),
        }
    }

    pub fn registration(&self) -> &Registration {
        match &self.held {
            Some((_, registration)) => registration,
            None => unreachable!("{HELD}"),
        }
    }
}

const HELD: &str = "a link holds its client until it is dropped";

impl Deref for Link {
    type Target = Client;

    fn deref(&self) -> &Client {
        match &self.held {
            Some((client, _)) => client,
            None => unreachable!("{HELD}"),
        }
    }
}

impl DerefMut for Link {
    fn deref_mut(&mut self) -> &mut Client {
        match &mut self.held {
            Some((client, _)) => client,
            None => unreachable!("{HELD}"),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The client is dropped first, while the watchdog still watches it.
        let both = self.held.take();
        if self.process.is_another() {
            // The connection belongs to the parent process: a Terminate message would end a
            // connection that the parent uses.
            std::mem::forget(both);
            return;
        }
        if !blocking::is_forbidden() {
            return;
        }
        let both = Arc::new(Mutex::new(both));
        let theirs = Arc::clone(&both);
        let closer = thread::Builder::new().name("millpond-closer".into());
        let take = |both: &Mutex<Option<_>>| unpoison(both.lock()).take();
        if let Err(e) = closer.spawn(move || drop(take(&theirs))) {
            // The server ends the connection when this process ends.
            warn!("cannot start a thread to close a connection: {e}");
            std::mem::forget(take(&both));
        }
    }
}
