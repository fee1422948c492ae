//! Whether a connection pooler stands between us and the server, by what can be seen of a connection.

use super::identity::Identity;
use crate::retry::Symptom;
use std::time::Duration;

/// What is known of a connection on our side of it.
pub(super) struct Seen {
    /// The process that it was told of; `None` where nobody saw that (Unix sockets).
    pub told: Option<i32>,
    pub over_tcp: bool,
    pub port: Option<u16>,
    pub since: Duration,
}

impl Seen {
    /// Whether a pooler stands between, by what the server sees on its side; a plain relay is none.
    pub fn betrays_pooler(&self, server: &Identity) -> Option<&'static str> {
        /// Two clocks, which may be set right in between by a little.
        const SLACK: Duration = Duration::from_millis(5);
        match self.told {
            Some(process) if process == server.pid => None,
            Some(_) => Some("the process that answers is not the one that cancel requests go to"),
            None if server.age > self.since + SLACK => {
                Some("the process that answers is older than the connection")
            }
            // A relay that looks the same is taken for one; a wrong guess in the other direction would cost more.
            None if server.over_tcp != self.over_tcp || server.port != self.port => {
                Some("the server was reached in another way than we went")
            }
            None => None,
        }
    }
}

/// Poolers that refuse options say so in words only.
pub(super) fn refuses_options(error: &postgres::Error) -> bool {
    error.as_db_error().is_some_and(|db| {
        let said = db.message().to_ascii_lowercase();
        matches!(Symptom::of(error), Symptom::Middleman(_))
            && (said.contains("startup parameter") || said.contains("option"))
    })
}
