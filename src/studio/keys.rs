//! The idempotency keys that requests are at work on. A second request with the same key waits here
//! until the first one has ended, and holds no connection to the database.

use crate::server::Problem;
use crate::sync::unpoison;
use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Instant;

/// The keys in use.
#[derive(Default)]
pub(super) struct KeysInUse {
    table: Mutex<Table>,
    ended: Condvar,
    /// Each waiting request occupies a worker; some must be left for the others.
    most_waiting: usize,
}

#[derive(Default)]
struct Table {
    keys: HashSet<String>,
    waiting: usize,
}

/// The right to work on a key, until this is dropped.
pub(super) struct KeyGuard<'r> {
    keys: &'r KeysInUse,
    key: String,
}

impl KeysInUse {
    pub fn new(most_waiting: usize) -> KeysInUse {
        KeysInUse {
            table: Mutex::default(),
            ended: Condvar::new(),
            most_waiting,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        unpoison(self.table.lock())
    }

    /// Waits until no other request uses the key.
    ///
    /// # Errors
    /// The key is still in use at `give_up`, or too many requests wait already.
    pub fn wait_for(&self, key: &str, give_up: Instant) -> Result<KeyGuard<'_>, Problem> {
        let mut table = self.lock();
        while table.keys.contains(key) {
            let left = give_up.saturating_duration_since(Instant::now());
            if left.is_zero() || table.waiting >= self.most_waiting {
                return Err(key_in_use());
            }
            table.waiting += 1;
            table = unpoison(self.ended.wait_timeout(table, left)).0;
            table.waiting -= 1;
        }
        table.keys.insert(key.to_owned());
        Ok(KeyGuard {
            keys: self,
            key: key.to_owned(),
        })
    }
}

impl Drop for KeyGuard<'_> {
    fn drop(&mut self) {
        self.keys.lock().keys.remove(&self.key);
        self.keys.ended.notify_all();
    }
}

/// The answer to a request whose key is still in use.
pub(super) fn key_in_use() -> Problem {
    let detail = "a request with this Idempotency-Key is still running";
    Problem::of_kind(409, "key-in-use", detail).header("Retry-After", "1")
}
