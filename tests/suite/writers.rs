//! Writers of every kind: what each was told of its writes must match what is in the table
//! afterwards.

use super::support::{EndAtDrop, MS, SECOND, admin, pool, server};
use millpond::embedded::PrivateServer;
use millpond::{Pool, RetryPolicy};
use postgres::Client;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

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

/// A server that loses nothing in a crash, and whose commits take a while, so that many faults hit
/// a commit.
pub fn server_for_writers() -> PrivateServer {
    server(&[
        ("fsync", "on"),
        ("synchronous_commit", "on"),
        ("full_page_writes", "on"),
        ("commit_delay", "2000"),
        ("commit_siblings", "0"),
    ])
}

/// A pool with a ledger, whose retries outlast a restart of the server.
pub fn lasting_pool(url: &str, connections: u32) -> Pool {
    let policy = RetryPolicy::default()
        .initial_delay(10 * MS)
        .max_delay(200 * MS);
    let pool = pool(url)
        .max_size(connections)
        .connection_timeout(15 * SECOND)
        .application_name("writers")
        .retry_policy(policy)
        .build()
        .unwrap();
    pool.create_ledger().unwrap();
    pool
}

/// A pool for writers, and the table that they write to.
pub fn pool_for_writers(direct: &str, url: &str, connections: u32) -> Pool {
    admin(direct)
        .batch_execute("CREATE TABLE IF NOT EXISTS written (name text)")
        .unwrap();
    lasting_pool(url, connections)
}

/// What the writers were told, by the name of each write.
pub type AllTold = HashMap<String, Told>;

/// Runs `each` writers for each way and pool while `faults` runs, which can see how many writes are
/// done so far. Returns what the writers were told, and the result of `faults`.
pub fn write_during<T: Send>(
    pools: &[(&str, &Pool)],
    ways: &[Way],
    each: usize,
    faults: impl FnOnce(&AtomicUsize) -> T,
) -> (AllTold, T) {
    let (over, written) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let end = EndAtDrop(&over);
        let (over, written) = (&over, &written);
        let one_of_each = pools
            .iter()
            .flat_map(|pool| ways.iter().map(move |way| (pool, way)));
        let writers: Vec<_> = one_of_each
            .flat_map(|who| (0..each).map(move |writer| (who, writer)))
            .map(|(((via, pool), way), writer)| {
                scope.spawn(move || {
                    let mut told = AllTold::new();
                    for n in 0.. {
                        if over.load(Ordering::Relaxed) {
                            break;
                        }
                        let name = format!("{via}-{way:?}-{writer}-{n}");
                        let one = way.write(pool, &name);
                        told.insert(name, one);
                        match one {
                            Told::Done => _ = written.fetch_add(1, Ordering::Relaxed),
                            // While the pool fails fast, the writer would be refused a million
                            // times.
                            Told::Refused => thread::sleep(20 * MS),
                            Told::Unknown => {}
                        }
                    }
                    told
                })
            })
            .collect();
        let done = faults(written);
        drop(end);
        let all = writers.into_iter().flat_map(|w| w.join().unwrap());
        (all.collect(), done)
    })
}

/// How often each name is in the table.
pub fn counts(admin: &mut Client, table: &str) -> HashMap<String, i64> {
    let sql = format!("SELECT name, count(*) FROM {table} GROUP BY name");
    let rows = admin.query(&sql, &[]).unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Checks that each write is in the table as often as its writer was told. Returns how many were
/// done, refused and unknown.
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

/// Checks all that was told against the table, and prints the figures by route and way of writing.
pub fn check_all(what: &str, told: &AllTold, direct: &str) -> [usize; 3] {
    let there = counts(&mut admin(direct), "written");
    let all = check(what, told, there);
    let mut figures: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
    for (name, told) in told {
        let who = name.rsplitn(3, '-').last().unwrap();
        figures.entry(who).or_default()[*told as usize] += 1;
    }
    for (who, [done, refused, unknown]) in figures {
        println!("{what}: {who} {done} done, {refused} refused, {unknown} unknown");
    }
    all
}

/// Makes faults for as long as `lasts`, and after that until there were `enough`, which is told how
/// many there were. How many a machine has time for is its own affair, but four times as long is
/// the limit. `fault` is told how many came before it, and returns how many it made.
pub fn repeat(
    lasts: Duration,
    enough: impl Fn(usize) -> bool,
    mut fault: impl FnMut(usize) -> usize,
) -> usize {
    let started = Instant::now();
    let mut made = 0;
    while started.elapsed() < lasts || (!enough(made) && started.elapsed() < 4 * lasts) {
        made += fault(made);
    }
    made
}

/// Ends random backends of the writers for as long as [`repeat`] says. Returns how many.
pub fn terminate_for(direct: &str, lasts: Duration, enough: impl Fn(usize) -> bool) -> usize {
    let mut admin = admin(direct);
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
               WHERE application_name = 'writers' AND state <> 'idle' ORDER BY random() LIMIT 1";
    repeat(lasts, enough, |_| {
        thread::sleep(10 * MS);
        admin.query(sql, &[]).unwrap().len()
    })
}
