//! The ledger: records which keys are done, so that a write with a key is done once.
//!
//! It is one table, in a schema that the application names, with a row for each key: the attempt
//! that has the key, whether that attempt is *done* or was *aborted*, and the answer that was
//! stored with it. The key is the SHA-256 of the caller's key, in hex: no text of the caller is in
//! a statement.
//!
//! **Claim.** A keyed transaction inserts its key as *done*, under a new attempt number, in the
//! request that begins it. Others see the row once the transaction commits, and never if it does
//! not: the row and the write are committed together. A second transaction with the same key waits
//! on the row until the first has ended; then it either gets the key itself, or finds it done. A
//! row that says *aborted* is taken over.
//!
//! **Resolve.** The answer to COMMIT was lost. On a new session to a server that is not a standby,
//! *aborted* is inserted if the key has no row. This insert waits for any transaction that may
//! still hold the key (with a `lock_timeout`, and repeatedly). Once it has succeeded, there is a
//! row permanently, and its content is final: *done* under our attempt means that ours was
//! committed; *done* under another attempt, that another transaction has done it in the meantime;
//! *aborted*, that ours did not commit and never will, since its own row would collide with this
//! one. The row is as durable as the write, so this holds across crashes and promotions, and also
//! behind poolers, where a transaction id says nothing.
//!
//! A write is reported as done only when the synchronous standbys have it, too (see `resolve`).

use crate::error::{Error, Result};
use crate::hex::{hex, unhex};
use crate::pool::{Finish, Own, OwnRow, Session, Start, first_row};
use postgres::error::SqlState;
use sha2::{Digest, Sha256};
use std::time::{Duration, Instant};

/// The advisory lock that a sweep holds, together with the table's own number.
pub(crate) const SWEEPING: i32 = 0x6d70_6c64;

/// The error if a table of another program has the ledger's name.
pub(crate) const NOT_OURS: Error = Error::Misuse(
    "a table with the ledger's name exists but is not a ledger; choose another schema (ledger_schema), or rename that table",
);

/// What is read of a row.
const COLUMNS: &str = "state, attempt::text AS attempt, encode(answer, 'hex') AS answer";

/// Saves the role in which a key is claimed.
const SAVE: &str = ", set_config('millpond.session_authorization', current_setting('session_authorization'), true), \
     set_config('millpond.role', current_setting('role'), true)";
/// The same, and the `lock_timeout`.
const SAVE_WITH_LIMIT: &str = ", set_config('millpond.session_authorization', current_setting('session_authorization'), true), \
     set_config('millpond.role', current_setting('role'), true), \
     set_config('millpond.lock_timeout', current_setting('lock_timeout'), true)";
/// Takes that role, and saves the closure's. Setting the session authorization resets the role, so
/// it is set first.
const TAKE_BACK_ROLE: &str = ", set_config('millpond.closure_authorization', current_setting('session_authorization'), true), \
     set_config('millpond.closure_role', current_setting('role'), true), \
     set_config('session_authorization', current_setting('millpond.session_authorization'), true), \
     set_config('role', current_setting('millpond.role'), true)";
const RETURN_ROLE: &str = "SELECT set_config('session_authorization', current_setting('millpond.closure_authorization'), true), \
     set_config('role', current_setting('millpond.closure_role'), true)";

/// A ledger, identified by its table.
pub(crate) struct Ledger {
    schema: String,
    pub table: String,
}

/// A key in the form that the table stores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key(String);

impl Key {
    pub fn of(text: &str) -> Key {
        Key(hex(&Sha256::digest(text)))
    }
}

/// A claimed key, and the attempt that has it.
pub(crate) struct Claim {
    pub key: Key,
    attempt: String,
}

/// The result of a claim.
pub(crate) enum Claimed {
    Ours(Claim),
    /// Done before, with the answer that was stored then.
    Done(Option<Vec<u8>>),
}

/// What the row of a key says about a claim.
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

    /// Returns the statements that create the table.
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

    /// Returns a query whose first value is true if the table exists and is not a ledger.
    pub fn belongs_to_another_sql(&self) -> String {
        format!(
            "SELECT count(*) < 5 FROM pg_attribute WHERE attrelid = to_regclass('{}') \
             AND attname IN ('key', 'attempt', 'state', 'answer', 'at') HAVING to_regclass('{0}') IS NOT NULL",
            self.table
        )
    }

    /// Returns what the request that begins the transaction does besides. `wait` limits only the
    /// claim: `lock_timeout` is restored afterwards. The current role is saved for the second write
    /// to the row, since the closure may change its role in between. Few statements, since each is
    /// work for the server.
    pub fn claim(&self, Key(key): &Key, wait: Option<Duration>) -> Start {
        let table = &self.table;
        let (values, restore) = match wait {
            None => (SAVE, ""),
            Some(_) => (
                SAVE_WITH_LIMIT,
                ", set_config('lock_timeout', current_setting('millpond.lock_timeout'), true)",
            ),
        };
        let claim = format!(
            "INSERT INTO {table} AS entry (key, attempt, state) VALUES ($1, gen_random_uuid(), 'done') \
             ON CONFLICT (key) DO UPDATE SET attempt = excluded.attempt, state = 'done', answer = NULL, at = now() \
             WHERE entry.state = 'aborted' RETURNING attempt::text AS claimed"
        );
        // It has a row even if the key has none any more.
        let read = format!(
            "SELECT {COLUMNS}{restore} FROM (VALUES (1)) AS always LEFT JOIN {table} ON key = $1"
        );
        Start {
            values,
            // Zero would be no limit.
            lock_timeout: wait.map(|wait| wait.max(Duration::from_millis(1))),
            statements: [claim, read]
                .map(|text| Own {
                    text: text.into(),
                    params: vec![Some(key.clone())],
                })
                .into(),
            shown: Some(format!("INSERT INTO {table}")),
        }
    }

    fn read_sql(&self, key: &str) -> String {
        format!("SELECT {COLUMNS} FROM {} WHERE key = '{key}'", self.table)
    }

    /// Interprets the rows that [`claim`](Self::claim) returned: the attempt that has claimed the
    /// key, if it is ours; and the row of the key.
    pub fn claimed(key: &Key, rows: &[OwnRow]) -> Result<Claimed> {
        let rows: Vec<_> = rows.iter().map(|row| &row[..]).collect();
        match rows[..] {
            [[Some(attempt)], _] => Ok(Claimed::Ours(Claim {
                key: key.clone(),
                attempt: attempt.clone(),
            })),
            [[Some(_), _, answer, ..]] => Ok(Claimed::Done(answer.as_deref().and_then(unhex))),
            // The row was swept between the two statements: the next attempt finds none.
            _ => Err(Error::TransactionAborted {
                cause: "the key expired while it was being claimed".into(),
                sqlstate: Some(SqlState::T_R_SERIALIZATION_FAILURE),
            }),
        }
    }

    /// Returns what belongs to the commit of a claim. It stores the answer, and sets the row's time
    /// to that of the write's end. This is done in the role that claimed the key, by statements
    /// that mean the same under any setting that the closure may have changed. Then the closure's
    /// own role is restored, since its deferred constraints and triggers run in it at the commit.
    pub fn finish(&self, claim: &Claim, answer: Option<&[u8]>) -> Finish {
        let (table, Key(key), attempt) = (&self.table, &claim.key, &claim.attempt);
        let store = Own {
            text: format!(
                "UPDATE {table} SET answer = decode($1, 'hex'), at = clock_timestamp() \
                 WHERE key = $2 AND attempt = $3::uuid"
            )
            .into(),
            params: vec![answer.map(hex), Some(key.clone()), Some(attempt.clone())],
        };
        Finish {
            values: TAKE_BACK_ROLE,
            statements: vec![store, Own::new(RETURN_ROLE)],
        }
    }

    /// Settles the outcome of a claim whose COMMIT was not answered. `None` = another transaction
    /// still holds the key.
    pub fn settle(
        &self,
        claim: &Claim,
        session: &mut Session,
        deadline: Instant,
    ) -> Result<Option<Entry>, postgres::Error> {
        let (table, Key(key)) = (&self.table, &claim.key);
        // One message is one transaction, with isolation level and access mode set independently of
        // the role's defaults.
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
            let start = ledger.claim(&Key::of(key), Some(Duration::from_secs(1)));
            let sent = format!("{:?}", start.statements);
            assert!(key.is_empty() || !sent.contains(key), "{sent}");
        }
        let Key(abc) = Key::of("abc");
        assert!(abc.starts_with("ba7816bf8f01cfea"), "FIPS 180-2: {abc}");
    }
}
