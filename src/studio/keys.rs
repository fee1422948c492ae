//! The idempotency keys that requests are at work on. A second request with the same key waits here
//! until the first one has ended, and holds no connection to the database.

use crate::server::Problem;
use crate::sync::unpoison;
use crate::token::Token;
use std::collections::HashSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

/// The keys in use.
#[derive(Default)]
pub(super) struct KeysInUse {
    shared: Arc<Shared>,
    /// Each waiting request occupies a worker; some must be left for the others.
    most_waiting: usize,
}

#[derive(Default)]
struct Shared {
    table: Mutex<Table>,
    ended: Condvar,
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

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        unpoison(self.table.lock())
    }
}

impl KeysInUse {
    pub fn new(most_waiting: usize) -> KeysInUse {
        KeysInUse {
            shared: Arc::default(),
            most_waiting,
        }
    }

    /// Waits until no other request uses the key.
    ///
    /// # Errors
    /// The key is still in use at `give_up`, or too many requests wait already, or nobody needs
    /// this one any more.
    pub fn wait_for(
        &self,
        key: &str,
        give_up: Instant,
        token: &Token,
    ) -> Result<KeyGuard<'_>, Problem> {
        let shared = Arc::clone(&self.shared);
        // Behind the lock, so that a thread that is about to wait does not miss it.
        let _watch = token.watch(move || {
            drop(shared.lock());
            shared.ended.notify_all();
        });
        let mut table = self.shared.lock();
        while table.keys.contains(key) {
            let left = give_up.saturating_duration_since(Instant::now());
            if left.is_zero() || token.is_fired() || table.waiting >= self.most_waiting {
                return Err(key_in_use());
            }
            table.waiting += 1;
            table = unpoison(self.shared.ended.wait_timeout(table, left)).0;
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
        self.keys.shared.lock().keys.remove(&self.key);
        self.keys.shared.ended.notify_all();
    }
}

/// The answer to a request whose key is still in use.
pub(super) fn key_in_use() -> Problem {
    let detail = "a request with this Idempotency-Key is still running";
    Problem::of_kind(409, "key-in-use", detail).header("Retry-After", "1")
}
