//! The statements that begin and end a transaction.

use crate::error::Error;
use crate::pool::backend::Backend;
use crate::pool::limits::as_server_ms;
use std::time::Duration;

/// A level of `synchronous_commit`: what a commit waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SyncCommit(&'static str);

impl SyncCommit {
    /// The server's default, used if the level is not known.
    pub const ON: SyncCommit = SyncCommit("on");

    pub(super) fn named(name: &str) -> Option<SyncCommit> {
        const ALL: [&str; 5] = ["on", "off", "local", "remote_write", "remote_apply"];
        ALL.into_iter().find(|one| *one == name).map(SyncCommit)
    }

    /// Returns the level as one of our own constants, which may stand in a statement's text.
    pub fn as_str(self) -> &'static str {
        self.0
    }

    /// Returns whether a commit of this level waits for synchronous standbys, if there are any.
    pub fn waits_for_standbys(self) -> bool {
        !matches!(self.0, "off" | "local")
    }
}

/// The options with which a transaction begins.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Begin {
    pub isolation: Option<&'static str>,
    pub read_only: bool,
    /// Replaces `statement_timeout` until the end of the transaction; zero = off.
    pub statement_timeout: Option<Duration>,
    /// How long the transaction may be idle before the server ends it, so that the locks of a
    /// program that has stopped in the middle of it are released.
    pub idle_timeout: Option<Duration>,
}

impl Begin {
    /// Returns the statements. They contain only our own words and integers, since a simple query
    /// has no parameters.
    pub(super) fn statements(&self) -> [String; 2] {
        let mut begin = String::from("BEGIN");
        if let Some(level) = self.isolation {
            begin += " ISOLATION LEVEL ";
            begin += level;
        }
        if self.read_only {
            begin += " READ ONLY";
        }
        let mut select = match self.read_only {
            // The setting is local to the transaction: its absence at the commit shows that a
            // closure has ended the transaction itself. And after a query, a transaction cannot be
            // changed to READ WRITE any more.
            true => format!("SELECT set_config('{READING}', 'yes', true)"),
            false => EVIDENCE.to_owned(),
        };
        let mut set_local = |setting: &str, limit: Option<Duration>| {
            if let Some(limit) = limit {
                let value = as_server_ms(limit);
                select += &format!(", set_config('{setting}', '{value}', true)");
            }
        };
        set_local("statement_timeout", self.statement_timeout);
        set_local("idle_in_transaction_session_timeout", self.idle_timeout);
        [begin, select]
    }

    /// Returns them as one message.
    pub(super) fn sql(&self, start: &Start) -> String {
        let [begin, select] = self.statements();
        let Start { values, statements } = start;
        format!("{begin}; {select}{values}{statements}")
    }
}

/// What the message that begins a transaction does besides. Its text is our own, too.
#[derive(Default)]
pub(crate) struct Start {
    /// Expressions that are selected with the evidence; each begins with a comma.
    pub values: String,
    /// Statements behind that; each begins with a semicolon.
    pub statements: String,
}

/// The transaction id is needed to find out later what became of the commit; the process number, to
/// detect a pooler; and the level, to know what the commit waits for. A standby assigns no ids, and
/// a transaction begun there never writes, even if the server is promoted meanwhile.
const EVIDENCE: &str = "SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_current_xact_id()::text END AS xid, \
     pg_backend_pid() AS pid, current_setting('synchronous_commit') AS synchronous_commit, \
     current_setting('client_min_messages') AS client_min_messages";

/// What a transaction that may write says of itself at its beginning, in the order of [`EVIDENCE`]
/// and before whatever else is selected.
pub(super) struct Evidence {
    /// None on a standby.
    pub xid: Option<u64>,
    pub pid: i32,
    pub sync_commit: SyncCommit,
    pub hides_warnings: bool,
}

impl Evidence {
    /// Reads the row. Returns None if it is not the one that was asked for.
    pub fn of(row: &[Option<impl AsRef<str>>]) -> Option<Evidence> {
        let [xid, pid, level, messages, ..] = row else {
            return None;
        };
        let text = |value: &Option<_>| value.as_ref().map(AsRef::as_ref).map(str::to_owned);
        Some(Evidence {
            xid: match text(xid) {
                Some(xid) => Some(xid.parse().ok()?),
                None => None,
            },
            pid: text(pid)?.parse().ok()?,
            sync_commit: SyncCommit::named(&text(level)?).unwrap_or(SyncCommit::ON),
            hides_warnings: text(messages)? == "error",
        })
    }
}

/// How the current transaction has begun.
#[derive(Clone, Copy)]
pub(crate) enum Opening {
    /// It has; or there is none.
    Begun,
    /// Its BEGIN waits for the first statement. Nothing was sent, or the answer is not known yet.
    Held(Begin),
    /// The server refused its BEGIN, and did nothing that was sent behind it.
    Refused,
    /// The answer to its BEGIN was lost.
    Lost,
}

/// What the commit message does before the COMMIT. Like that of the begin, its text is our own.
#[derive(Default)]
pub(crate) struct Finish {
    /// Expressions that are selected in the statement that checks for the right transaction; each
    /// begins with a comma.
    pub values: &'static str,
    /// Statements that run after that check; each ends with a semicolon.
    pub statements: String,
}

/// What must be known of a transaction to find out what became of it.
pub(crate) struct LostTransaction {
    pub backend: Backend,
    /// None behind a pooler.
    pub xid: Option<u64>,
    /// What the commit waits for.
    pub sync_commit: SyncCommit,
}

/// A setting that is set in a read-only transaction, until its end.
pub(super) const READING: &str = "millpond.reading";

/// A setting that does not exist: reading it fails with an error that contains its name. So a
/// commit detects that the current transaction is not the one that was begun.
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
            begin.sql(&Start::default()),
            "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY; \
             SELECT set_config('millpond.reading', 'yes', true), \
             set_config('statement_timeout', '0', true), \
             set_config('idle_in_transaction_session_timeout', '2000', true)"
        );
        assert_eq!(
            Begin::default().sql(&Start::default()),
            "BEGIN; SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_current_xact_id()::text END AS xid, \
             pg_backend_pid() AS pid, current_setting('synchronous_commit') AS synchronous_commit, \
             current_setting('client_min_messages') AS client_min_messages"
        );
    }
}
