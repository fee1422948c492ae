//! The statements that begin and end a transaction.

use crate::error::Error;
use crate::pool::backend::Backend;
use crate::pool::limits::as_server_ms;
use crate::pool::wire::{Own, OwnRow};
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
    /// Returns the statements that begin the transaction, and do what `start` says.
    pub(super) fn statements(&self, start: &Start) -> Vec<Own> {
        let mut begin = String::from("BEGIN");
        if let Some(level) = self.isolation {
            begin += " ISOLATION LEVEL ";
            begin += level;
        }
        if self.read_only {
            begin += " READ ONLY";
        }
        let mut text = match self.read_only {
            // The setting is local to the transaction: its absence at the commit shows that a
            // closure has ended the transaction itself. And after a query, a transaction cannot be
            // changed to READ WRITE any more.
            true => format!("SELECT set_config('{READING}', 'yes', true)"),
            false => EVIDENCE.to_owned(),
        };
        text += start.values;
        let mut select = Own::default();
        let limits = [
            ("statement_timeout", self.statement_timeout),
            ("idle_in_transaction_session_timeout", self.idle_timeout),
            ("lock_timeout", start.lock_timeout),
        ];
        for (setting, limit) in limits {
            if let Some(limit) = limit {
                let value = select.param(as_server_ms(limit).to_string());
                text += &format!(", set_config('{setting}', {value}, true)");
            }
        }
        select.text = text.into();
        let mut all = vec![Own::new(begin), select];
        all.extend_from_slice(&start.statements);
        all
    }
}

/// What the request that begins a transaction does besides.
#[derive(Default)]
pub(crate) struct Start {
    /// Expressions that are selected with the evidence; each begins with a comma.
    pub values: &'static str,
    /// Replaces `lock_timeout` behind them.
    pub lock_timeout: Option<Duration>,
    /// Statements behind that.
    pub statements: Vec<Own>,
    /// What is shown of the request, where it is not BEGIN that may have to wait.
    pub shown: Option<String>,
}

/// The transaction id is needed to find out later what became of the commit; the process number, to
/// detect a pooler; and the level, to know what the commit waits for. A standby assigns no ids, and
/// a transaction begun there never writes, even if the server is promoted meanwhile.
const EVIDENCE: &str = "SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_current_xact_id()::text END AS xid, \
     pg_backend_pid()::text AS pid, current_setting('synchronous_commit') AS synchronous_commit, \
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
    pub fn of(row: &OwnRow) -> Option<Evidence> {
        let [xid, Some(pid), Some(level), Some(messages), ..] = &row[..] else {
            return None;
        };
        Some(Evidence {
            xid: match xid {
                Some(xid) => Some(xid.parse().ok()?),
                None => None,
            },
            pid: pid.parse().ok()?,
            sync_commit: SyncCommit::named(level).unwrap_or(SyncCommit::ON),
            hides_warnings: messages == "error",
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

/// What the request that commits does before the COMMIT.
#[derive(Default)]
pub(crate) struct Finish {
    /// Expressions that are selected in the statement that checks for the right transaction; each
    /// begins with a comma.
    pub values: &'static str,
    /// Statements that run after that check.
    pub statements: Vec<Own>,
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
    fn the_text_of_a_begin_is_the_same_whatever_its_limits() {
        let begin = Begin {
            isolation: Some("SERIALIZABLE"),
            read_only: true,
            statement_timeout: Some(Duration::ZERO),
            idle_timeout: Some(Duration::from_secs(2)),
        };
        let own = |text: &'static str, params: &[&str]| Own {
            text: text.into(),
            params: params.iter().map(|value| Some((*value).into())).collect(),
        };
        let start = Start {
            values: ", 1",
            lock_timeout: Some(Duration::from_millis(7)),
            statements: vec![own("SELECT 2", &[])],
            shown: None,
        };
        let all = [
            own("BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY", &[]),
            own(
                "SELECT set_config('millpond.reading', 'yes', true), 1, \
                 set_config('statement_timeout', $1, true), \
                 set_config('idle_in_transaction_session_timeout', $2, true), \
                 set_config('lock_timeout', $3, true)",
                &["0", "2000", "7"],
            ),
            own("SELECT 2", &[]),
        ];
        assert_eq!(begin.statements(&start), all);
        let all = [own("BEGIN", &[]), own(EVIDENCE, &[])];
        assert_eq!(Begin::default().statements(&Start::default()), all);
    }
}
