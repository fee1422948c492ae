//! The schema: made and migrated at the start, by whichever of several servers comes first.

use super::Studio;
use crate::error::{Chain, OpenError};
use crate::metrics::CloseReason;
use crate::pool::Pool;
use crate::retry::{Phase, Repeat, Symptom, verdict};
use log::{debug, info, warn};
use postgres::Client;
use std::error::Error as StdError;
use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Where the studio's tables are, and its ledger.
pub const SCHEMA: &str = "studio";

/// The advisory lock of whoever migrates.
const MIGRATING: i64 = 0x6d69_6c6c_706f_6e64;
/// Between two attempts, when the database went away in the middle.
const TRY_AGAIN: Duration = Duration::from_millis(250);

mod migrations {
    refinery::embed_migrations!("src/studio/migrations");
}

/// Why the schema could not be made.
#[derive(Debug)]
#[non_exhaustive]
pub enum SchemaError {
    /// A migration was refused, or those that were run before are not those of this program.
    Migration(Box<dyn StdError + Send + Sync>),
    /// The pool was closed meanwhile.
    Closed,
}

impl fmt::Display for SchemaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SchemaError::Migration(_) => "the studio's schema could not be made",
            SchemaError::Closed => "the pool was closed before the studio's schema was there",
        })
    }
}

impl StdError for SchemaError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            SchemaError::Migration(e) => Some(&**e),
            SchemaError::Closed => None,
        }
    }
}

impl Studio {
    /// Makes the schema, or brings it up to date, and waits for as long as the database is away. Several servers may do
    /// this at once: one runs the migrations, the others find them done.
    ///
    /// # Errors
    /// When a migration is refused, or the pool is closed.
    pub fn migrate(&self) -> Result<(), SchemaError> {
        let shared = &self.pool.inner.shared;
        loop {
            // A session of its own: migrations may take longer than any timeout allows.
            let mut session = match shared.open_when_possible(None) {
                Ok(session) => session,
                Err(OpenError::Closed) => return Err(SchemaError::Closed),
                Err(e) => {
                    debug!("no connection for the migrations: {}", Chain(&e));
                    continue;
                }
            };
            match run(session.client_mut(), &self.pool) {
                Ok(()) => {
                    session.close_for(CloseReason::IdleTimeout);
                    self.ready.store(true, Ordering::SeqCst);
                    return Ok(());
                }
                Err(e) if is_lost(&*e) => {
                    warn!(
                        "the migrations were interrupted and start over: {}",
                        Chain(&*e)
                    );
                    std::thread::sleep(TRY_AGAIN);
                }
                Err(e) => return Err(SchemaError::Migration(e)),
            }
        }
    }
}

fn run(client: &mut Client, pool: &Pool) -> Result<(), Box<dyn StdError + Send + Sync>> {
    client.batch_execute(&format!(
        "SET statement_timeout = 0; SELECT pg_advisory_lock({MIGRATING}); CREATE SCHEMA IF NOT EXISTS {SCHEMA}"
    ))?;
    let mut runner = migrations::migrations::runner();
    runner.set_migration_table_name(format!("{SCHEMA}.schema_history"));
    let report = runner.run(client)?;
    for migration in report.applied_migrations() {
        info!(
            "ran migration version={} name={}",
            migration.version(),
            migration.name()
        );
    }
    if report.applied_migrations().is_empty() {
        info!("the studio's schema is up to date");
    }
    client.batch_execute(&pool.ledger_ddl())?;
    // The lock goes with the session.
    Ok(())
}

/// The connection broke, or the server was shutting down: nothing that a migration did.
fn is_lost(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(driver) = error.downcast_ref::<postgres::Error>() {
            let repeat = verdict(&Symptom::of(driver), Phase::InTransaction).repeat;
            return repeat == Repeat::RolledBack;
        }
        next = error.source();
    }
    false
}
