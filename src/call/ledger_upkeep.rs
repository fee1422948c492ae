//! Creates and sweeps the ledger.
//!
//! Rows older than the ledger's time to live are deleted, in batches, by one pool at a time. A
//! row's age is measured by the database's clock. That clock may be changed, or after a failover be
//! the clock of another server. So a row is also kept if it was written during the time that the
//! sweeping process has itself seen pass, as long as that is less than the time to live. (A process
//! that starts after the clock was set ahead cannot know this.)

use crate::commit::{Ledger, NOT_OURS, SWEEPING, longest};
use crate::error::{Chain, Result};
use crate::pool::{Inner, Pool};
use crate::retry::RetryPolicy;
use log::{debug, info, warn};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// Rows deleted in one transaction.
const BATCH: i64 = 500;
/// The first sweep is this long after the first key, so that it does not burden the start.
const FIRST_SWEEP: Duration = Duration::from_secs(60);
/// The longest wait for an answer if there is no query timeout.
const UNLIMITED: Duration = Duration::from_secs(60);
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);

/// Starts the thread that sweeps the table, unless it runs already.
pub(super) fn keep_swept(pool: &Arc<Inner>) {
    pool.sweeper.get_or_init(|| {
        let pool = Arc::downgrade(pool);
        let sweeper = thread::Builder::new().name("millpond-ledger".into());
        match sweeper.spawn(move || sweep_from_time_to_time(&pool)) {
            Ok(handle) => handle.thread().clone(),
            Err(e) => {
                warn!("cannot start a thread to sweep the ledger: {e}");
                thread::current()
            }
        }
    });
}

fn sweep_from_time_to_time(pool: &Weak<Inner>) {
    let mut longest = FIRST_SWEEP;
    while let Some(inner) = pool.upgrade() {
        let pause = (inner.shared.config.ledger_ttl / 24).clamp(SHORTEST_PAUSE, longest);
        // The pool is held only during a sweep, so that dropping the pool ends this thread.
        drop(inner);
        thread::park_timeout(pause);
        longest = LONGEST_PAUSE;
        let Some(inner) = pool.upgrade() else { return };
        let pool = Pool { inner };
        if pool.is_closed() {
            return;
        }
        match pool.sweep_ledger() {
            Ok(Some(0) | None) => {}
            Ok(Some(rows)) => info!("swept the ledger rows={rows}"),
            // The next sweep tries again.
            Err(e) => debug!("cannot sweep the ledger: {}", Chain(&e)),
        }
    }
}

impl Pool {
    /// Creates the ledger's schema and table if they do not exist. Safe to call at every start,
    /// from several programs at once. Nothing else creates them.
    ///
    /// # Errors
    /// As for [`transaction`](Pool::transaction): the role needs the right to create them.
    /// [`Error::Misuse`](crate::Error::Misuse) if another table has the ledger's name.
    pub fn create_ledger(&self) -> Result<()> {
        // IF NOT EXISTS does not protect two concurrent calls from each other.
        let lock = format!("SELECT pg_advisory_xact_lock({SWEEPING}, 0)");
        let ddl = self.ledger_ddl();
        let belongs_to_another = self.ledger().belongs_to_another_sql();
        self.transaction(|tx| {
            tx.batch_execute(&lock)?;
            if let Some(row) = tx.query_opt(&belongs_to_another, &[])?
                && row.try_get(0)?
            {
                return Err(NOT_OURS);
            }
            tx.batch_execute(&ddl)
        })
    }

    /// Deletes the keys that are older than [`ledger_ttl`](crate::pool::Builder::ledger_ttl), in
    /// batches, and returns how many.
    ///
    /// Returns `None` if another program is sweeping. The age of a key is measured by the
    /// database's clock; but no key is deleted that, by the clock of this process and as far as it
    /// has seen, was written within that time. A pool that writes with keys sweeps by itself, about
    /// 24 times in the life of a key. A close does not wait for a sweep.
    ///
    /// # Errors
    /// As for [`transaction`](Pool::transaction); a sweep runs several of them.
    pub fn sweep_ledger(&self) -> Result<Option<u64>> {
        let Ledger { table, .. } = self.ledger();
        let lock = format!(
            "SELECT pg_try_advisory_xact_lock({SWEEPING}, '{table}'::regclass::oid::int), \
             (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
        );
        let delete = format!(
            "DELETE FROM {table} WHERE key IN (SELECT key FROM {table} \
             WHERE at < least(now() - $1::bigint * interval '1 millisecond', \
             timestamptz 'epoch' + $2::bigint * interval '1 microsecond') ORDER BY at LIMIT $3 FOR UPDATE SKIP LOCKED)"
        );
        // A row must outlast the time in which the outcome of its COMMIT may be looked up: the
        // longest wait for the COMMIT's answer, and then the look-up itself.
        let config = self.config();
        let asked_for = config.query_timeout.unwrap_or(UNLIMITED) + longest(config);
        let age = config.ledger_ttl.max(asked_for + Duration::from_secs(1));
        let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        let clock = &self.inner.shared.database_clock;
        let mut swept = 0;
        loop {
            let call = self.with_policy(RetryPolicy::none()).ends_with_pool();
            let some = call.transaction(|tx| {
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

    /// Returns the statements with which [`create_ledger`](Pool::create_ledger) creates the table,
    /// for use in migrations. Each role that writes with keys needs USAGE on the schema, and
    /// SELECT, INSERT, UPDATE and DELETE on the table.
    pub fn ledger_ddl(&self) -> String {
        self.ledger().ddl()
    }

    pub(crate) fn ledger(&self) -> Ledger {
        Ledger::in_schema(&self.config().ledger_schema)
    }
}
