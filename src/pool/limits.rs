//! The limits on the time that one statement may take.

use crate::sync::LONGEST;
use std::time::{Duration, Instant};

/// Margin by which the server's own timeout comes first if both timeouts are about equal.
const SERVER_FIRST: Duration = Duration::from_millis(250);

/// The limits on the time that one statement may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The `statement_timeout` in force on the server, as far as it is known.
    pub server: Option<Duration>,
    /// The pool's own timeout.
    pub client: Option<Duration>,
    /// The caller's deadline for the whole call.
    pub deadline: Option<Instant>,
}

impl Limits {
    /// Returns when the watchdog acts on a statement that starts now; None = never.
    pub(super) fn act_at(&self, now: Instant) -> Option<Instant> {
        let own = self.client.map(|client| match self.server {
            Some(server) if server <= client => now + client.max(server + SERVER_FIRST),
            _ => now + client,
        });
        own.into_iter().chain(self.deadline).min()
    }

    /// Returns the deadline for a query that is made on the caller's behalf.
    pub fn until(&self) -> Instant {
        let now = Instant::now();
        self.act_at(now).unwrap_or(now + LONGEST)
    }

    /// Returns the limit that stopped a statement after `took`, for the text of the error.
    pub(super) fn reached(&self, took: Duration, cut_by_us: bool) -> Option<Duration> {
        let of_server = self
            .server
            .filter(|limit| took + Duration::from_millis(1) >= *limit && !cut_by_us);
        let of_client = self.client.filter(|limit| took >= *limit);
        of_server.or(of_client).or(cut_by_us.then_some(took))
    }
}

/// Converts to milliseconds, the server's unit. Rounds up, since 0 means off.
pub(crate) fn as_server_ms(limit: Duration) -> u128 {
    limit.as_micros().div_ceil(1000).min(i32::MAX as u128)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_own_timeout_goes_first_where_both_are_about_the_same() {
        let now = Instant::now();
        let ms = Duration::from_millis;
        let act = |server: Option<u64>, client: Option<u64>, deadline: Option<u64>| {
            let limits = Limits {
                server: server.map(ms),
                client: client.map(ms),
                deadline: deadline.map(|d| now + ms(d)),
            };
            limits.act_at(now).map(|at| (at - now).as_millis())
        };
        assert_eq!(act(Some(5000), Some(5000), None), Some(5250));
        assert_eq!(act(Some(4900), Some(5000), None), Some(5150));
        assert_eq!(act(Some(3000), Some(5000), None), Some(5000));
        assert_eq!(act(Some(9000), Some(5000), None), Some(5000));
        assert_eq!(act(None, Some(5000), None), Some(5000));
        assert_eq!(act(Some(5000), None, None), None);
        assert_eq!(act(Some(5000), Some(5000), Some(40)), Some(40));
    }
}
