//! The words that a transaction begins and ends with.

use crate::error::Error;
use crate::pool::identity::Identity;
use crate::pool::limits::as_server_ms;
use std::time::Duration;

/// A level of `synchronous_commit`: what a commit waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SyncCommit(&'static str);

impl SyncCommit {
    /// The server's default, and the one in force where nobody said.
    pub const ON: SyncCommit = SyncCommit("on");

    pub(super) fn named(name: &str) -> Option<SyncCommit> {
        const ALL: [&str; 5] = ["on", "off", "local", "remote_write", "remote_apply"];
        ALL.into_iter().find(|one| *one == name).map(SyncCommit)
    }

    /// A word of our own, fit for a statement.
    pub fn as_str(self) -> &'static str {
        self.0
    }

    /// A commit of this level waits for synchronous standbys, where there are any.
    pub fn waits_for_standbys(self) -> bool {
        !matches!(self.0, "off" | "local")
    }
}

/// What a transaction begins with.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Begin {
    pub isolation: Option<&'static str>,
    pub read_only: bool,
    /// Replaces `statement_timeout` until the end of the transaction; zero = off.
    pub statement_timeout: Option<Duration>,
    /// How long the transaction may stand still before the server ends it: what a program that stopped in the middle of it
    /// has locked must come free.
    pub idle_timeout: Option<Duration>,
}

impl Begin {
    /// One message. Only words and integers of our own are in it: a simple query has no parameters.
    pub(super) fn sql(&self) -> String {
        let mut sql = String::from("BEGIN");
        if let Some(level) = self.isolation {
            sql += " ISOLATION LEVEL ";
            sql += level;
        }
        if self.read_only {
            sql += " READ ONLY";
        }
        if let Some(limit) = self.statement_timeout {
            sql += &format!("; SET LOCAL statement_timeout = {}", as_server_ms(limit));
        }
        if let Some(limit) = self.idle_timeout {
            sql += &format!(
                "; SET LOCAL idle_in_transaction_session_timeout = {}",
                as_server_ms(limit)
            );
        }
        if self.read_only {
            // Gone with the transaction: a closure that ends it by itself is found out. And behind a query, no transaction can
            // be made to write any more.
            sql += &format!("; SELECT set_config('{READING}', 'yes', true)");
        } else {
            // The number tells later what became of the commit; the process, whether a pooler stands between; and the
            // level, what the commit waits for.
            // A standby gives no numbers, and what begins there writes nothing, also when it is promoted meanwhile.
            sql += "; SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_current_xact_id()::text END AS xid, \
                    pg_backend_pid() AS pid, current_setting('synchronous_commit') AS synchronous_commit, \
                    current_setting('client_min_messages') AS client_min_messages";
        }
        sql
    }
}

/// What the message that commits does before. Of our own words, as that of the begin.
#[derive(Default)]
pub(crate) struct Finish {
    /// What is selected once it is sure that this is the transaction that was begun, each with a comma before.
    pub values: &'static str,
    /// What is run then, each with a semicolon behind.
    pub statements: String,
}

/// What is to be known of a transaction to find out what became of it.
pub(crate) struct LostTransaction {
    pub identity: Identity,
    /// None where a pooler stands between us and the backend.
    pub xid: Option<u64>,
    /// What the commit waits for.
    pub sync_commit: SyncCommit,
}

/// Set in a transaction that is to read only, until its end.
pub(super) const READING: &str = "millpond.reading";

/// A setting that nobody has: asking for it fails with its name, which is how a commit finds itself in another transaction
/// than the one that was begun.
pub(super) const ENDED_INSIDE: &str = "millpond.transaction_ended_inside";

pub(super) fn says_ended_inside(error: &Error) -> bool {
    matches!(error, Error::Database { source, .. }
        if source.as_db_error().is_some_and(|db| db.message().contains(ENDED_INSIDE)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begin_is_one_message_of_our_own_words() {
        let begin = Begin {
            isolation: Some("SERIALIZABLE"),
            read_only: true,
            statement_timeout: Some(Duration::ZERO),
            idle_timeout: Some(Duration::from_secs(2)),
        };
        assert_eq!(
            begin.sql(),
            "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY; SET LOCAL statement_timeout = 0; \
             SET LOCAL idle_in_transaction_session_timeout = 2000; \
             SELECT set_config('millpond.reading', 'yes', true)"
        );
        assert_eq!(
            Begin::default().sql(),
            "BEGIN; SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_current_xact_id()::text END AS xid, \
             pg_backend_pid() AS pid, current_setting('synchronous_commit') AS synchronous_commit, \
             current_setting('client_min_messages') AS client_min_messages"
        );
    }
}
