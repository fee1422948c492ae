//! Cancelling the statement on a plain connection.

use super::cancel::CANCEL_LIMIT;
use super::tracked::Tracked;
use super::wire;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

/// Cancels the statement that runs on a connection, from any thread.
///
/// It takes the place of the driver's token, which cannot reach the server: the pool sees to the
/// encryption of the request, and to Unix sockets.
#[derive(Clone)]
pub struct CancelToken(Arc<Tracked>);

impl CancelToken {
    pub(super) fn of(tracked: &Arc<Tracked>) -> CancelToken {
        CancelToken(Arc::clone(tracked))
    }

    /// Asks the server to cancel the statement, on a connection of its own, which is encrypted if
    /// the statement's is. Returns once the server has passed the request on, at most after 5 s;
    /// whether it came in time, only the statement's result shows. `tls` is not needed: it is there
    /// so that calls of the driver's method compile.
    ///
    /// # Errors
    /// If the server could not be reached.
    pub fn cancel_query<T>(&self, _tls: T) -> io::Result<()> {
        let Some(route) = self.0.route.get() else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let until = Instant::now() + CANCEL_LIMIT;
        wire::cancel(route, self.0.wire.cancel_key(), until)
    }
}

impl fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CancelToken").field(&self.0.id).finish()
    }
}
