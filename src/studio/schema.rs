//! The schema: created and migrated at the start, by the first of several servers.

use super::app::Studio;
use crate::error::{Chain, OpenError};
use crate::metrics::CloseReason;
use crate::pool::{Pool, Session};
use crate::retry::{Phase, Repeat, Symptom, verdict};
use log::{debug, info, warn};
use postgres::Client;
use postgres::error::SqlState;
use refinery::Migration;
use std::collections::HashSet;
use std::error::Error as StdError;
use std::fmt;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

/// The schema of the studio's tables and its ledger.
pub const SCHEMA: &str = "studio";

/// Whether the table of migrations and the ledger exist: the first records the other tables, and
/// the second is created besides them.
const IS_THERE: &str = "SELECT to_regclass($1 || '.schema_history') IS NOT NULL AND to_regclass($1 || '.ledger') IS NOT NULL";

/// The tables of the first migration.
const TABLES: [&str; 6] = [
    "studios",
    "reservations",
    "quotes",
    "invoice_numbers",
    "invoices",
    "invoice_lines",
];

/// The advisory lock that a migration holds.
const MIGRATING: i64 = 0x6d69_6c6c_706f_6e64;
/// How often the schema is checked.
const LOOK_AFTER: Duration = Duration::from_secs(5);
/// How often migrations that were refused behind a pooler are tried again.
const MOST_REFUSED: u32 = 3;
/// Pause between two checks of another server's migration.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Pause between two attempts to migrate.
const TRY_AGAIN: Duration = Duration::from_millis(250);

mod migrations {
    refinery::embed_migrations!("src/studio/migrations");
}

/// Why the schema could not be created.
#[derive(Debug)]
#[non_exhaustive]
pub enum SchemaError {
    /// A migration was refused, or the migrations that ran before are not those of this program.
    Migration(Box<dyn StdError + Send + Sync>),
    /// A newer program has migrated the schema: this program does not know what it would write
    /// into.
    Newer {
        /// The newest version in the database.
        found: i64,
        /// The newest version that this program knows.
        known: i64,
    },
    /// The database's encoding is not UTF8: it could not hold every name, and might count bytes as
    /// characters.
    Encoding(String),
    /// A table with a name that the schema needs exists, and was not created by this program.
    NotOurs {
        /// Its name, including the schema's.
        table: String,
    },
    /// A table that a migration had created is gone.
    Incomplete {
        /// Its name, including the schema's.
        table: String,
    },
    /// The pool was closed in the meantime.
    Closed,
}

impl fmt::Display for SchemaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SchemaError::Migration(_) => f.write_str("the studio's schema could not be created"),
            SchemaError::Newer { found, known } => write!(
                f,
                "the studio's schema has version {found}, but this program supports versions up to {known}: \
                 run a newer millpond"
            ),
            SchemaError::Encoding(found) => write!(
                f,
                "the studio needs a database with the encoding UTF8, but this one has {found}: \
                 CREATE DATABASE .. ENCODING 'UTF8' TEMPLATE template0"
            ),
            SchemaError::NotOurs { table } => write!(
                f,
                "the table {table} exists but was not created by the studio: rename it, or use a database without one"
            ),
            SchemaError::Incomplete { table } => write!(
                f,
                "the table {table} and its data are missing: restore it from a backup"
            ),
            SchemaError::Closed => {
                f.write_str("the pool was closed before the studio's schema was ready")
            }
        }
    }
}

impl StdError for SchemaError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            SchemaError::Migration(e) => Some(&**e),
            SchemaError::Newer { .. }
            | SchemaError::Encoding(_)
            | SchemaError::NotOurs { .. }
            | SchemaError::Incomplete { .. }
            | SchemaError::Closed => None,
        }
    }
}

impl Studio {
    /// Runs [`migrate`](Self::migrate), and repeats it as long as the pool is open: if the schema
    /// is gone, because the database was dropped and created again, the schema is created again.
    ///
    /// # Errors
    /// Those of [`migrate`](Self::migrate).
    pub fn keep_migrated(&self) -> Result<(), SchemaError> {
        loop {
            self.migrate()?;
            while self.is_there() {
                if self.pool.is_closed() {
                    return Ok(());
                }
                thread::sleep(LOOK_AFTER);
            }
            warn!("the studio's schema is missing: creating it again");
            self.ready.store(false, Ordering::SeqCst);
        }
    }

    /// Returns whether the schema exists. If the database does not answer, it is assumed to exist.
    fn is_there(&self) -> bool {
        let there = self.pool.call().ends_with_pool().on_primary();
        let there = there.read(IS_THERE, &[&SCHEMA]);
        there.map_or(true, |rows| {
            rows.first()
                .is_none_or(|row| row.try_get(0).unwrap_or(true))
        })
    }

    /// Creates the schema or brings it up to date, and waits for as long as the database is down.
    /// Several servers may do this at once: one runs the migrations, the others find them done.
    ///
    /// # Errors
    /// If a migration is refused, the database cannot hold the schema, or the pool is closed.
    pub fn migrate(&self) -> Result<(), SchemaError> {
        let (mut refused, mut told) = (0, false);
        loop {
            // A session of its own: migrations may take longer than any timeout allows.
            let mut session = match self.pool.open_dedicated() {
                Ok(session) => session,
                Err(OpenError::Closed) => return Err(SchemaError::Closed),
                Err(e) => {
                    debug!("no connection for the migrations: {}", Chain(&e));
                    continue;
                }
            };
            let generation = session.generation();
            // Set before `is_closed` is read: a close sets its flag first, and cancels the sessions
            // that end with the pool afterwards.
            session.end_with_pool();
            let outcome = match self.pool.is_closed() {
                true => Err(SchemaError::Closed.into()),
                false => run(&mut session, &self.pool),
            };
            if outcome.is_ok() {
                session.close_for(CloseReason::Drained);
            }
            drop(session);
            match outcome {
                Ok(()) => {
                    self.ready.store(true, Ordering::SeqCst);
                    return Ok(());
                }
                Err(e) if e.is::<SchemaError>() => {
                    return Err(e.downcast().map_or(SchemaError::Closed, |e| *e));
                }
                // The close of the pool has cancelled or cut the migration.
                Err(_) if self.pool.is_closed() => return Err(SchemaError::Closed),
                Err(e) if is_lost(&*e) => {
                    warn!(
                        "the migrations were interrupted and start over: {}",
                        Chain(&*e)
                    );
                    thread::sleep(TRY_AGAIN);
                }
                Err(e) if takes_no_writes(&*e) => {
                    if !std::mem::replace(&mut told, true) {
                        warn!(
                            "the database takes no writes: the studio's schema will be created once it does"
                        );
                    }
                    // The open connections lead to a standby, which will get the schema a little
                    // later.
                    self.pool.leave_standby(generation);
                    thread::sleep(TRY_AGAIN);
                }
                // Without a lock between the servers, another one may have been faster.
                Err(e) if self.pool.is_pooled() && refused < MOST_REFUSED => {
                    debug!("the migrations were refused: {}", Chain(&*e));
                    refused += 1;
                    thread::sleep(TRY_AGAIN);
                }
                Err(e) => return Err(SchemaError::Migration(e)),
            }
        }
    }
}

/// Runs the migrations; only one of several servers does so at a time. If there is nothing to do,
/// the role needs no right to do it.
fn run(session: &mut Session, pool: &Pool) -> Result<(), Box<dyn StdError + Send + Sync>> {
    let client = session.client_mut();
    // Creates the tables and records them in one transaction.
    let mut runner = migrations::migrations::runner().set_grouped(true);
    runner.set_migration_table_name(format!("{SCHEMA}.schema_history"));
    // Behind a pooler, a session is shared: nothing may be set or locked on it. There the second
    // server's migration fails, and its next attempt finds the work done.
    let own_session = !pool.is_pooled();
    if own_session {
        client.batch_execute("SET statement_timeout = 0")?;
    }
    loop {
        refuse_what_is_not_ours(client, pool)?;
        match compare(client, runner.get_migrations())? {
            State::UpToDate => {
                look_for_what_is_missing(client)?;
                info!("the studio's schema is up to date");
                return Ok(());
            }
            State::Newer { found, known } => {
                return Err(Box::new(SchemaError::Newer { found, known }));
            }
            State::Older => {}
        }
        // The lock is tried repeatedly: a waiting statement would stay in the database even after
        // this program has ended.
        let sql = "SELECT pg_try_advisory_lock($1)";
        if !own_session || client.query_one(sql, &[&MIGRATING])?.try_get(0)? {
            break;
        }
        if pool.is_closed() {
            return Err(Box::new(SchemaError::Closed));
        }
        thread::sleep(LOOK_AGAIN);
    }
    let mut tx = client.transaction()?;
    let there: bool = tx
        .query_one("SELECT to_regnamespace($1) IS NOT NULL", &[&SCHEMA])?
        .try_get(0)?;
    if !there {
        tx.batch_execute(&format!("CREATE SCHEMA {SCHEMA}"))?;
    }
    tx.commit()?;
    let report = runner.run(client)?;
    for migration in report.applied_migrations() {
        info!(
            "ran migration version={} name={}",
            migration.version(),
            migration.name()
        );
    }
    client.batch_execute(&pool.ledger_ddl())?;
    look_for_what_is_missing(client)?;
    // The lock is released when the session closes.
    Ok(())
}

/// Fails if tables of another program have the names that the schema needs, or the encoding is not
/// UTF8.
fn refuse_what_is_not_ours(
    client: &mut Client,
    pool: &Pool,
) -> Result<(), Box<dyn StdError + Send + Sync>> {
    // In one transaction, for poolers.
    let mut tx = client.transaction()?;
    let encoding = tx.query_one("SELECT current_setting('server_encoding')", &[])?;
    let encoding: String = encoding.try_get(0)?;
    if encoding != "UTF8" {
        return Err(SchemaError::Encoding(encoding).into());
    }
    // The studio's tables come with their history, which shows what created them.
    let named = "SELECT relname::text FROM pg_class AS it WHERE relnamespace = to_regnamespace($1) AND CASE relname \
                 WHEN 'schema_history' THEN (SELECT count(*) FROM pg_attribute \
                 WHERE attrelid = it.oid AND attname IN ('version', 'checksum')) < 2 \
                 ELSE relname = ANY ($2) AND to_regclass($1 || '.schema_history') IS NULL END";
    let not_ours = tx.query(named, &[&SCHEMA, &&TABLES[..]])?;
    let mut not_ours = match not_ours.first() {
        Some(row) => Some(row.try_get(0)?),
        None => None,
    };
    let ledger = tx.query_opt(&pool.ledger().belongs_to_another_sql(), &[])?;
    if let Some(row) = ledger
        && row.try_get(0)?
    {
        not_ours = Some("ledger".to_owned());
    }
    tx.commit()?;
    match not_ours {
        Some(name) => Err(SchemaError::NotOurs {
            table: format!("{SCHEMA}.{name}"),
        }
        .into()),
        None => Ok(()),
    }
}

/// Fails if a table of the migrations is missing, and warns if the import lacks a privilege.
fn look_for_what_is_missing(client: &mut Client) -> Result<(), Box<dyn StdError + Send + Sync>> {
    let sql = "SELECT (SELECT name FROM unnest($2::text[]) AS name WHERE to_regclass($1 || '.' || name) IS NULL LIMIT 1), \
               has_database_privilege(current_database(), 'TEMP')";
    let mut tx = client.transaction()?;
    let row = tx.query_one(sql, &[&SCHEMA, &&TABLES[..]])?;
    let missing: Option<String> = row.try_get(0)?;
    let may_import: bool = row.try_get(1)?;
    // Closes its statement before the transaction ends, so that the COMMIT is the last message.
    drop(row);
    tx.commit()?;
    if let Some(name) = missing {
        let table = format!("{SCHEMA}.{name}");
        return Err(SchemaError::Incomplete { table }.into());
    }
    if !may_import {
        warn!(
            "this role may not create temporary tables, which the import of reservations needs: GRANT TEMP ON DATABASE"
        );
    }
    Ok(())
}

/// The state of the schema, compared with the migrations of this program.
enum State {
    /// All of them have run unchanged, and the ledger exists.
    UpToDate,
    Older,
    /// A newer program has run more migrations.
    Newer {
        found: i64,
        known: i64,
    },
}

fn compare(client: &mut Client, migrations: &[Migration]) -> Result<State, postgres::Error> {
    // In one transaction, for which a pooler assigns one session: the statement is prepared in it
    // and then run.
    let mut tx = client.transaction()?;
    if !tx.query_one(IS_THERE, &[&SCHEMA])?.try_get(0)? {
        return Ok(State::Older);
    }
    let sql = format!("SELECT version::bigint, checksum FROM {SCHEMA}.schema_history");
    let rows = tx.query(&sql, &[])?;
    let ran = rows
        .iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect::<Result<HashSet<(i64, String)>, postgres::Error>>()?;
    let known = migrations
        .iter()
        .map(|m| i64::from(m.version()))
        .max()
        .unwrap_or(0);
    let found = ran.iter().map(|(version, _)| *version).max().unwrap_or(0);
    if found > known {
        return Ok(State::Newer { found, known });
    }
    let mark = |m: &Migration| (i64::from(m.version()), m.checksum().to_string());
    Ok(match migrations.iter().all(|m| ran.contains(&mark(m))) {
        true => State::UpToDate,
        false => State::Older,
    })
}

/// Returns whether the connection broke or the server was shutting down, so that the migration is
/// not to blame.
fn is_lost(error: &(dyn StdError + 'static)) -> bool {
    of_driver(error).is_some_and(|driver| {
        verdict(&Symptom::of(driver), Phase::InTransaction).repeat == Repeat::RolledBack
    })
}

/// Returns whether the database is read-only at present: it is a standby, or an administrator has
/// set it so.
fn takes_no_writes(error: &(dyn StdError + 'static)) -> bool {
    of_driver(error).and_then(postgres::Error::code) == Some(&SqlState::READ_ONLY_SQL_TRANSACTION)
}

fn of_driver<'e>(error: &'e (dyn StdError + 'static)) -> Option<&'e postgres::Error> {
    match error.downcast_ref() {
        Some(driver) => Some(driver),
        None => of_driver(error.source()?),
    }
}
