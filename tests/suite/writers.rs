//! Writers of every kind, and what they were told held against what is in the table afterwards.

use super::support::{MS, SECOND, admin, pool};
use millpond::{Pool, RetryPolicy};
use postgres::Client;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// What a writer was told of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Done,
    Refused,
    Unknown,
}

impl Told {
    pub fn of<T>(result: &millpond::Result<T>) -> Told {
        match result {
            Ok(_) => Told::Done,
            Err(e) if e.is_outcome_unknown() => Told::Unknown,
            Err(_) => Told::Refused,
        }
    }
}

/// How a row is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Execute,
    Query,
    Transaction,
    Keyed,
}

pub const EVERY_WAY: [Way; 4] = [Way::Execute, Way::Query, Way::Transaction, Way::Keyed];

impl Way {
    fn write(self, pool: &Pool, name: &str) -> Told {
        const INSERT: &str = "INSERT INTO written VALUES ($1)";
        match self {
            Way::Execute => Told::of(&pool.execute(INSERT, &[&name])),
            Way::Query => {
                let sql = format!("{INSERT} RETURNING name");
                Told::of(&pool.query(&sql, &[&name]))
            }
            Way::Transaction => Told::of(&pool.transaction(|tx| tx.execute(INSERT, &[&name]))),
            Way::Keyed => Told::of(&pool.execute_with_key(name, INSERT, &[&name])),
        }
    }
}

/// A pool for writers, and the table that they write to.
pub fn pool_for_writers(direct: &str, url: &str, connections: u32) -> Pool {
    admin(direct)
        .batch_execute("CREATE TABLE written (name text)")
        .unwrap();
    let pool = pool(url)
        .max_size(connections)
        .connection_timeout(15 * SECOND)
        .application_name("writers")
        .retry_policy(
            RetryPolicy::default()
                .initial_delay(10 * MS)
                .max_delay(200 * MS),
        )
        .build()
        .unwrap();
    pool.create_ledger().unwrap();
    pool
}

/// All that was told, by the name of the write.
pub type AllTold = HashMap<String, Told>;

/// Has `each` writers write in each of the ways for as long as `faults` runs, and hold what they were told.
pub fn write_during<T: Send>(
    pool: &Pool,
    ways: &[Way],
    each: usize,
    faults: impl FnOnce() -> T + Send,
) -> (AllTold, T) {
    let over = AtomicBool::new(false);
    let acknowledged = AtomicUsize::new(0);
    thread::scope(|scope| {
        let writers: Vec<_> = ways
            .iter()
            .flat_map(|way| (0..each).map(move |writer| (*way, writer)))
            .map(|(way, writer)| {
                let (over, acknowledged) = (&over, &acknowledged);
                scope.spawn(move || {
                    let mut told = AllTold::new();
                    for n in 0.. {
                        if over.load(Ordering::Relaxed) {
                            break;
                        }
                        let name = format!("{way:?}-{writer}-{n}");
                        let one = way.write(pool, &name);
                        if one == Told::Done {
                            acknowledged.fetch_add(1, Ordering::Relaxed);
                        }
                        told.insert(name, one);
                    }
                    told
                })
            })
            .collect();
        // Caught, so that the writers learn of a failure as well.
        let done = catch_unwind(AssertUnwindSafe(faults));
        over.store(true, Ordering::Relaxed);
        let done = done.unwrap_or_else(|panic| resume_unwind(panic));
        let all = writers.into_iter().flat_map(|w| w.join().unwrap());
        (all.collect(), done)
    })
}

/// How often each name is in a table.
pub fn counts(admin: &mut Client, table: &str) -> HashMap<String, i64> {
    let sql = format!("SELECT name, count(*) FROM {table} GROUP BY name");
    let rows = admin.query(&sql, &[]).unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Each write is there as often as its writer was told. Returns how many were done, refused and unknown.
pub fn check(what: &str, told: &AllTold, mut there: HashMap<String, i64>) -> [usize; 3] {
    let mut figures = [0; 3];
    let mut wrong = Vec::new();
    for (name, told) in told {
        let times = there.remove(name).unwrap_or(0);
        let (right, figure) = match told {
            Told::Done => (times == 1, 0),
            Told::Refused => (times == 0, 1),
            Told::Unknown => (times <= 1, 2),
        };
        if !right {
            wrong.push(format!("{name}: told {told:?}, there {times} times"));
        }
        figures[figure] += 1;
    }
    wrong.sort();
    let some = &wrong[..wrong.len().min(20)];
    assert!(
        wrong.is_empty(),
        "{what}: {} of {} wrong, such as {some:#?}",
        wrong.len(),
        told.len()
    );
    assert!(there.is_empty(), "{what}: nobody wrote {there:?}");
    figures
}

/// Holds all that was told against the table, and prints the figures by way.
pub fn check_all(what: &str, told: &AllTold, direct: &str) -> [usize; 3] {
    let there = counts(&mut admin(direct), "written");
    let all = check(what, told, there);
    for way in EVERY_WAY {
        let prefix = format!("{way:?}-");
        let of = |kind: Told| {
            let told = told.iter();
            told.filter(|(name, one)| name.starts_with(&prefix) && **one == kind)
                .count()
        };
        println!(
            "{what}: {way:?} {} done, {} refused, {} unknown",
            of(Told::Done),
            of(Told::Refused),
            of(Told::Unknown)
        );
    }
    all
}

/// Ends backends of the writers at random, until the time is over. Returns how many.
pub fn terminate_for(direct: &str, time: Duration) -> usize {
    let mut admin = admin(direct);
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
               WHERE application_name = 'writers' AND state <> 'idle' ORDER BY random() LIMIT 1";
    let until = std::time::Instant::now() + time;
    let mut ended = 0;
    while std::time::Instant::now() < until {
        ended += admin.query(sql, &[]).unwrap().len();
        thread::sleep(10 * MS);
    }
    ended
}
