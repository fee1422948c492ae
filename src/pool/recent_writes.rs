//! Which clients and threads wrote last, and when: each is to read what it has written.

use crate::sync::unpoison;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

/// With more writers than this within the time that they are remembered, all count as one.
const MOST_WRITERS: usize = 100_000;

/// For whom a call is made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Who {
    Client(Arc<str>),
    Thread(ThreadId),
}

impl Who {
    /// The client that is named, else the thread that calls.
    pub fn of(client: Option<&Arc<str>>) -> Who {
        match client {
            Some(name) => Who::Client(Arc::clone(name)),
            None => Who::Thread(thread::current().id()),
        }
    }
}

pub(super) struct RecentWrites {
    /// No standby that is further behind is used, so an older write needs no memory.
    kept_for: Duration,
    writes: Mutex<Writes>,
}

#[derive(Default)]
struct Writes {
    by_writer: HashMap<Who, Instant>,
    /// When a client or thread wrote that was forgotten too early.
    forgotten: Option<Instant>,
    prune_at: usize,
}

impl RecentWrites {
    pub fn kept_for(time: Duration) -> RecentWrites {
        RecentWrites {
            kept_for: time,
            writes: Mutex::default(),
        }
    }

    /// Notes that a write was done, or may have been, before this moment.
    pub fn note(&self, who: Who, now: Instant) {
        let mut writes = unpoison(self.writes.lock());
        if writes.by_writer.len() >= writes.prune_at {
            let is_needed = |at: &Instant| now.saturating_duration_since(*at) <= self.kept_for;
            writes.by_writer.retain(|_, at| is_needed(at));
            if writes.by_writer.len() >= MOST_WRITERS {
                writes.by_writer.clear();
                writes.forgotten = Some(now);
            }
            writes.prune_at = (2 * writes.by_writer.len()).clamp(64, MOST_WRITERS);
        }
        writes.by_writer.insert(who, now);
    }

    /// Returns the moment before which all of somebody's writes were done.
    pub fn last(&self, who: &Who) -> Option<Instant> {
        let writes = unpoison(self.writes.lock());
        writes.by_writer.get(who).copied().max(writes.forgotten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(n: usize) -> Who {
        Who::Client(n.to_string().into())
    }

    #[test]
    fn each_writer_is_remembered_for_as_long_as_it_matters() {
        let start = Instant::now();
        let writes = RecentWrites::kept_for(Duration::from_secs(1));
        for n in 0..10_000 {
            let now = start + Duration::from_millis(10 * n as u64);
            writes.note(client(n), now);
            assert_eq!(writes.last(&client(n)), Some(now));
            let earlier = client(n.saturating_sub(99));
            assert!(writes.last(&earlier).is_some(), "{n}");
        }
        assert!(unpoison(writes.writes.lock()).by_writer.len() < 500);
        assert_eq!(writes.last(&client(10_001)), None);
    }

    #[test]
    fn with_too_many_writers_everyone_counts_as_one_of_them() {
        let now = Instant::now();
        let writes = RecentWrites::kept_for(Duration::from_secs(1));
        for n in 0..=MOST_WRITERS {
            writes.note(client(n), now);
        }
        assert_eq!(writes.last(&client(1)), Some(now));
        assert_eq!(writes.last(&Who::of(None)), Some(now));
    }
}
