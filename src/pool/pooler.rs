//! Detects a connection pooler between the pool and the server, from what is known of a connection.

use super::backend::Backend;
use crate::retry::Symptom;
use std::time::Duration;

/// What is known of a connection on our side.
pub(super) struct Seen {
    /// The process number that we were given.
    pub told: Option<i32>,
    pub since: Duration,
}

impl Seen {
    /// Returns how a pooler shows itself, by a comparison with what the server sees on its side;
    /// None if there is none. A plain relay is not a pooler.
    pub fn betrays_pooler(&self, server: &Backend) -> Option<&'static str> {
        /// Tolerance for two clocks, which may be adjusted slightly in between.
        const SLACK: Duration = Duration::from_millis(5);
        match self.told {
            Some(process) if process == server.pid => None,
            Some(_) => Some("the process that answers is not the one that cancel requests go to"),
            None if server.age > self.since + SLACK => {
                Some("the process that answers is older than the connection")
            }
            None => None,
        }
    }
}

/// Returns whether a pooler refused the startup options. Poolers say so only in the error's text.
pub(super) fn refuses_options(error: &postgres::Error) -> bool {
    error.as_db_error().is_some_and(|db| {
        let said = db.message().to_ascii_lowercase();
        matches!(Symptom::of(error), Symptom::Middleman(_))
            && (said.contains("startup parameter") || said.contains("option"))
    })
}
