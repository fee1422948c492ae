//! The ledger is made, and swept. Rows are deleted when they are older than the ledger's time to live: some at a time, by one pool at a time. How old
//! a row is, the database's clock says. That may be set, or be another server's after a failover: so no row goes that was
//! written in the time that the sweeping process has itself seen go by, as long as this is less than the time to live. (A
//! process that starts after the clock was set ahead cannot know.)

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
/// The first sweep comes a while after the first key, so that a start is not the moment for it.
const FIRST_SWEEP: Duration = Duration::from_secs(60);
/// What an answer is waited for where no timeout says it.
const UNLIMITED: Duration = Duration::from_secs(60);
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);

/// Has the table swept from now on.
pub(super) fn keep_swept(pool: &Arc<Inner>) {
    pool.sweeper.get_or_init(|| {
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
            Ok(Some(0) | None) => {}
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
    /// As [`transaction`](Pool::transaction): the role needs the right to create them. [`Error::Misuse`](crate::Error::Misuse) where another table has the
    /// ledger's name.
    pub fn create_ledger(&self) -> Result<()> {
        // IF NOT EXISTS does not keep two who come at once apart.
        let lock = format!("SELECT pg_advisory_xact_lock({SWEEPING}, 0)");
        let ddl = self.ledger_ddl();
        let is_a_strangers = self.ledger().is_a_strangers_sql();
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
        self.ledger().ddl()
    }

    pub(crate) fn ledger(&self) -> Ledger {
        Ledger::in_schema(&self.config().ledger_schema)
    }
}
