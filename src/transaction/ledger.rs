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
//! What is done is called so only when the synchronous standbys have it, too (see `outcome`).
//!
//! **Upkeep.** Rows are deleted when they are older than the ledger's time to live: some at a time, by one pool at a time. How old
//! a row is, the database's clock says. That may be set, or be another server's after a failover: so no row goes that was
//! written in the time that the sweeping process has itself seen go by, as long as this is less than the time to live. (A
//! process that starts after the clock was set ahead cannot know.)

use super::outcome::longest;
use crate::error::{Chain, Error, Result};
use crate::pool::{Finish, Inner, Pool, Session, as_server_ms, first_row};
use crate::retry::RetryPolicy;
use log::{debug, info, warn};
use postgres::SimpleQueryMessage;
use postgres::error::SqlState;
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::sync::{Arc, OnceLock, Weak};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// Rows deleted in one transaction.
const BATCH: i64 = 500;
/// The first sweep comes a while after the first key, so that a start is not the moment for it.
const FIRST_SWEEP: Duration = Duration::from_secs(60);
/// What an answer is waited for where no timeout says it.
const UNLIMITED: Duration = Duration::from_secs(60);
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);
/// The advisory lock of whoever sweeps, beside the table's own number.
const SWEEPING: i32 = 0x6d70_6c64;

/// Somebody else's table has its name.
pub(super) const NOT_OURS: Error = Error::Misuse(
    "the table of the ledger's name is not a ledger; choose another schema (ledger_schema), or rename that table",
);

/// A ledger by its table, and the thread that sweeps it.
pub(crate) struct Ledger {
    schema: String,
    table: String,
    sweeper: OnceLock<Thread>,
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
            sweeper: OnceLock::new(),
        }
    }

    /// Names that need no quoting, so that nobody is surprised by what they mean.
    pub fn is_schema_name(name: &str) -> bool {
        let mut chars = name.chars();
        let first = chars
            .next()
            .is_some_and(|c| c.is_ascii_lowercase() || c == '_');
        first
            && name.len() <= 63
            && !name.starts_with("pg_")
            && chars.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    }

    /// The statements that make the table.
    fn ddl(&self) -> String {
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

    /// Has the table swept from now on.
    pub fn keep_swept(&self, pool: &Arc<Inner>) {
        self.sweeper.get_or_init(|| {
            let pool = Arc::downgrade(pool);
            let sweeper = thread::Builder::new().name("millpond-ledger".into());
            match sweeper.spawn(move || sweep_from_time_to_time(&pool)) {
                Ok(handle) => handle.thread().clone(),
                Err(e) => {
                    warn!("no thread to sweep the ledger: {e}");
                    thread::current()
                }
            }
        });
    }

    /// Lets the sweeper see that the pool is closing, or gone.
    pub fn wake_sweeper(&self) {
        if let Some(sweeper) = self.sweeper.get() {
            sweeper.unpark();
        }
    }
}

fn sweep_from_time_to_time(pool: &Weak<Inner>) {
    let mut longest = FIRST_SWEEP;
    while let Some(inner) = pool.upgrade() {
        let pause = (inner.shared.config.ledger_ttl / 24).clamp(SHORTEST_PAUSE, longest);
        // The pool is held only while there is work, so that dropping it ends this thread.
        drop(inner);
        thread::park_timeout(pause);
        longest = LONGEST_PAUSE;
        let Some(inner) = pool.upgrade() else { return };
        let pool = Pool { inner };
        if pool.is_closed() {
            return;
        }
        match pool.sweep_ledger() {
            Ok(Some(0)) | Ok(None) => {}
            Ok(Some(rows)) => info!("swept the ledger rows={rows}"),
            // The next time will do.
            Err(e) => debug!("the ledger could not be swept: {}", Chain(&e)),
        }
    }
}

impl Pool {
    /// Makes the ledger's schema and table where they are not there yet; it may be called at every start, by several
    /// programs at once. Nothing else makes them.
    ///
    /// # Errors
    /// As [`transaction`](Pool::transaction): the role needs the right to create them. [`Error::Misuse`] where another table has the
    /// ledger's name.
    pub fn create_ledger(&self) -> Result<()> {
        // IF NOT EXISTS does not keep two who come at once apart.
        let lock = format!("SELECT pg_advisory_xact_lock({SWEEPING}, 0)");
        let ddl = self.ledger_ddl();
        let is_a_strangers = self.inner.shared.ledger.is_a_strangers_sql();
        self.transaction(|tx| {
            tx.batch_execute(&lock)?;
            if let Some(row) = tx.query_opt(&is_a_strangers, &[])?
                && row.try_get(0)?
            {
                return Err(NOT_OURS);
            }
            tx.batch_execute(&ddl)
        })
    }

    /// Deletes the keys that are older than [`ledger_ttl`](crate::pool::Builder::ledger_ttl), some at a time, and returns how
    /// many. Their age is told by the database's clock, but none goes that was written within that time by the clock of this
    /// process, as far as that has seen it. `None` where another program is at it. A pool that writes with keys does this by itself, about 24 times in
    /// the life of a key.
    ///
    /// # Errors
    /// As [`transaction`](Pool::transaction), of which it runs several.
    pub fn sweep_ledger(&self) -> Result<Option<u64>> {
        let table = &self.inner.shared.ledger.table;
        let lock = format!(
            "SELECT pg_try_advisory_xact_lock({SWEEPING}, '{table}'::regclass::oid::int), \
             (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
        );
        let delete = format!(
            "DELETE FROM {table} WHERE key IN (SELECT key FROM {table} \
             WHERE at < least(now() - $1::bigint * interval '1 millisecond', \
             timestamptz 'epoch' + $2::bigint * interval '1 microsecond') ORDER BY at LIMIT $3 FOR UPDATE SKIP LOCKED)"
        );
        // A row is there for as long as somebody may ask what became of its COMMIT: an answer waited for in vain, and the
        // question behind that.
        let config = self.config();
        let asked_for = config.query_timeout.unwrap_or(UNLIMITED) + longest(config);
        let age = config.ledger_ttl.max(asked_for + Duration::from_secs(1));
        let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        let clock = &self.inner.shared.database_clock;
        let mut swept = 0;
        loop {
            let some = self.with_policy(RetryPolicy::none()).transaction(|tx| {
                let row = tx.query_one(&lock, &[])?;
                let reading = row.try_get(1)?;
                clock.note(Instant::now(), reading);
                let back_then = clock.back_then().unwrap_or(reading);
                match row.try_get(0)? {
                    true => tx.execute(&delete, &[&age, &back_then, &BATCH]).map(Some),
                    false => Ok(None),
                }
            })?;
            let Some(rows) = some else {
                return Ok(None);
            };
            swept += rows;
            if rows < BATCH.unsigned_abs() {
                return Ok(Some(swept));
            }
        }
    }

    /// The statements by which [`create_ledger`](Pool::create_ledger) makes the table, for those who keep migrations. Each
    /// role that writes with keys needs USAGE of the schema, and SELECT, INSERT, UPDATE and DELETE on the table.
    pub fn ledger_ddl(&self) -> String {
        self.inner.shared.ledger.ddl()
    }
}

/// In lower case.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16);
    text.as_bytes()
        .chunks(2)
        .map(|pair| match *pair {
            [high, low] => u8::try_from(digit(high)? * 16 + digit(low)?).ok(),
            _ => None,
        })
        .collect()
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

    #[test]
    fn bytes_survive_hex() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(unhex(&hex(&all)), Some(all));
        assert_eq!(unhex(""), Some(vec![]));
        for bad in ["a", "0g", "+1"] {
            assert_eq!(unhex(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_schema_is_named_in_plain_letters() {
        for good in ["millpond", "_x1", "studio"] {
            assert!(Ledger::is_schema_name(good), "{good}");
        }
        let long = "x".repeat(64);
        for bad in ["", "1x", "Studio", "a b", "a\"b", "pg_x", "ä", &long] {
            assert!(!Ledger::is_schema_name(bad), "{bad}");
        }
    }
}
