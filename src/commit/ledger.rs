//! The ledger: which keys are done, so that a write with a key is done once.
//!
//! One table, in a schema that the application names, with a row for each key: the attempt that has it, whether that
//! attempt is *done* or was *aborted*, and the answer that was kept with it. The key is the SHA-256 of the caller's, in
//! hex: nothing of the caller's is in the text of a statement.
//!
//! **Claim.** A keyed transaction inserts its key as *done*, under a new attempt number, in the message that begins it. The
//! row is seen by others when the transaction commits, and never when it does not: the row and the write are one. Who
//! comes second waits on the row until the first has ended; then he has it himself, or finds it done. A row that says
//! *aborted* is taken over.
//!
//! **Resolve.** The answer to COMMIT was lost. On a new session to a server that is no standby, *aborted* is inserted where
//! the key has no row. That waits for whoever may still have the key in hand (`lock_timeout`, and again), so once it is
//! through, there is a row for good and what it says is final: *done* under our attempt means committed; *done* under
//! another's, that another did it in the meantime; *aborted*, that ours did not commit and never will, for its own row
//! would collide with this one. The row is as durable as the write, so this holds across crashes and promotions, and
//! behind poolers, where the number of a transaction says nothing.
//!
//! What is done is called so only when the synchronous standbys have it, too (see `resolve`).

use crate::error::{Error, Result};
use crate::hex::{hex, unhex};
use crate::pool::{Finish, Session, as_server_ms, first_row};
use postgres::SimpleQueryMessage;
use postgres::error::SqlState;
use sha2::{Digest, Sha256};
use std::time::{Duration, Instant};

/// The advisory lock of whoever sweeps, beside the table's own number.
pub(crate) const SWEEPING: i32 = 0x6d70_6c64;

/// Somebody else's table has its name.
pub(crate) const NOT_OURS: Error = Error::Misuse(
    "the table of the ledger's name is not a ledger; choose another schema (ledger_schema), or rename that table",
);

/// A ledger, by its table.
pub(crate) struct Ledger {
    schema: String,
    pub table: String,
}

/// A key as the table has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key(String);

impl Key {
    pub fn of(text: &str) -> Key {
        Key(hex(&Sha256::digest(text)))
    }
}

/// A key that was claimed, by the attempt that has it.
pub(crate) struct Claim {
    pub key: Key,
    attempt: String,
}

/// What the claim of a key found.
pub(crate) enum Claimed {
    Ours(Claim),
    /// Done before, with the answer kept then.
    Done(Option<Vec<u8>>),
}

/// What the row of a key says of a claim.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Committed,
    DoneByAnother(Option<Vec<u8>>),
    NotCommitted,
}

impl Ledger {
    pub fn in_schema(schema: &str) -> Ledger {
        Ledger {
            schema: schema.to_owned(),
            table: format!("\"{schema}\".ledger"),
        }
    }

    /// The statements that make the table.
    pub fn ddl(&self) -> String {
        let Ledger { schema, table, .. } = self;
        format!(
            "CREATE SCHEMA IF NOT EXISTS \"{schema}\";\n\
             CREATE TABLE IF NOT EXISTS {table} (\n    \
             key text PRIMARY KEY CHECK (key ~ '^[0-9a-f]{{64}}$'),\n    \
             attempt uuid NOT NULL,\n    \
             state text NOT NULL CHECK (state IN ('done', 'aborted')),\n    \
             answer bytea,\n    \
             at timestamptz NOT NULL DEFAULT now()\n);\n\
             CREATE INDEX IF NOT EXISTS ledger_at ON {table} (at);\n"
        )
    }

    /// Whether the table is there, and is none of ours: the first column of the first row.
    pub fn is_a_strangers_sql(&self) -> String {
        format!(
            "SELECT count(*) < 5 FROM pg_attribute WHERE attrelid = to_regclass('{}') \
             AND attname IN ('key', 'attempt', 'state', 'answer', 'at') HAVING to_regclass('{0}') IS NOT NULL",
            self.table
        )
    }

    /// What follows BEGIN in its message. `wait` is for the claim alone: what `lock_timeout` was, it is again afterwards. The
    /// role is kept, for the row's second writing: the closure may change its own in between.
    pub fn claim_sql(&self, key: &Key, wait: Option<Duration>) -> String {
        let (table, Key(key)) = (&self.table, key);
        let (before, after) = match wait {
            None => (String::new(), ""),
            Some(wait) => (
                format!(
                    "; SELECT set_config('millpond.lock_timeout', current_setting('lock_timeout'), true); \
                     SET LOCAL lock_timeout = {}",
                    as_server_ms(wait).max(1)
                ),
                "; SELECT set_config('lock_timeout', current_setting('millpond.lock_timeout'), true)",
            ),
        };
        format!(
            "{before}; INSERT INTO {table} AS entry (key, attempt, state) VALUES ('{key}', gen_random_uuid(), 'done') \
             ON CONFLICT (key) DO UPDATE SET attempt = excluded.attempt, state = 'done', answer = NULL, at = now() \
             WHERE entry.state = 'aborted' RETURNING attempt::text AS claimed{after}; \
             SELECT set_config('millpond.session_authorization', current_setting('session_authorization'), true), \
             set_config('millpond.role', current_setting('role'), true); {}",
            self.read_sql(key)
        )
    }

    fn read_sql(&self, key: &str) -> String {
        format!(
            "SELECT state, attempt::text AS attempt, encode(answer, 'hex') AS answer FROM {} WHERE key = '{key}'",
            self.table
        )
    }

    /// Reads what [`claim_sql`](Self::claim_sql) was answered.
    pub fn claimed(key: &Key, messages: &[SimpleQueryMessage]) -> Result<Claimed> {
        let value = |name: &str| {
            messages.iter().find_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.try_get(name).ok().flatten(),
                _ => None,
            })
        };
        match (value("claimed"), value("attempt")) {
            (Some(attempt), _) => Ok(Claimed::Ours(Claim {
                key: key.clone(),
                attempt: attempt.to_owned(),
            })),
            (None, Some(_)) => Ok(Claimed::Done(value("answer").and_then(unhex))),
            // Between the two statements it was swept away: whoever comes next finds no row.
            (None, None) => Err(Error::TransactionAborted {
                cause: "the key expired in this moment".into(),
                sqlstate: Some(SqlState::T_R_SERIALIZATION_FAILURE),
            }),
        }
    }

    /// What belongs to the commit of a claim: the answer is kept, and the row's time is that of the write's end. It is done in
    /// the role that claimed the key, and in words that mean the same under every setting of the closure's; then the
    /// closure's own role is put back, since what it deferred to the commit runs in that.
    pub fn finish(&self, claim: &Claim, answer: Option<&[u8]>) -> Finish {
        let (table, Key(key), attempt) = (&self.table, &claim.key, &claim.attempt);
        let answer = answer.map_or("NULL".into(), |a| format!("decode('{}', 'hex')", hex(a)));
        // A session authorization takes the role along, so it is set first.
        let values = ", set_config('millpond.closure_authorization', current_setting('session_authorization'), true), \
                      set_config('millpond.closure_role', current_setting('role'), true), \
                      set_config('session_authorization', current_setting('millpond.session_authorization'), true), \
                      set_config('role', current_setting('millpond.role'), true)";
        let statements = format!(
            "UPDATE {table} SET answer = {answer}, at = clock_timestamp() WHERE key = '{key}' AND attempt = '{attempt}'; \
             SELECT set_config('session_authorization', current_setting('millpond.closure_authorization'), true), \
             set_config('role', current_setting('millpond.closure_role'), true); "
        );
        Finish { values, statements }
    }

    /// Settles what became of a claim whose COMMIT was not answered. `None` = somebody still has the key in hand.
    pub fn settle(
        &self,
        claim: &Claim,
        session: &mut Session,
        deadline: Instant,
    ) -> Result<Option<Entry>, postgres::Error> {
        let (table, Key(key)) = (&self.table, &claim.key);
        // One message, and so one transaction, whatever the role's defaults for those are.
        let settle = format!(
            "SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE; SET LOCAL statement_timeout = 0; \
             SET LOCAL lock_timeout = 500; INSERT INTO {table} (key, attempt, state) \
             VALUES ('{key}', gen_random_uuid(), 'aborted') ON CONFLICT (key) DO NOTHING"
        );
        match session.ask(&settle, deadline) {
            Ok(_) => {}
            Err(e) if e.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => return Ok(None),
            Err(e) => return Err(e),
        }
        let messages = session.ask(&self.read_sql(key), deadline)?;
        let value = |name| first_row(&messages).and_then(|row| row.try_get(name).ok().flatten());
        Ok(match (value("state"), value("attempt")) {
            (Some("done"), Some(attempt)) if attempt == claim.attempt => Some(Entry::Committed),
            (Some("done"), _) => Some(Entry::DoneByAnother(value("answer").and_then(unhex))),
            (Some(_), _) => Some(Entry::NotCommitted),
            (None, _) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_callers_key_is_in_a_statement() {
        let ledger = Ledger::in_schema("app");
        for key in ["", "'; DROP TABLE t; --", "\\x00\u{0}", "schlüssel"] {
            let Key(hashed) = Key::of(key);
            assert!(hashed.len() == 64 && hashed.bytes().all(|b| b.is_ascii_hexdigit()));
            let sql = ledger.claim_sql(&Key::of(key), Some(Duration::from_secs(1)));
            assert!(key.is_empty() || !sql.contains(key), "{sql}");
        }
        let Key(abc) = Key::of("abc");
        assert!(abc.starts_with("ba7816bf8f01cfea"), "FIPS 180-2: {abc}");
    }
}
