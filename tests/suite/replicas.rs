//! Reads on standbys: which of them are used, and who reads what.

use super::cli::{open_dir, run, serve};
use super::http::Client;
use super::servers::{Frozen, Standby};
use super::support::{EndAtDrop, MS, SECOND, admin, counter, eventually, pool, server};
use millpond::embedded::{PrivateServer, Stop};
use millpond::pool::{Builder, StandbyState};
use millpond::{Config, Pool};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const WHERE: &str = "SELECT pg_is_in_recovery()";

fn host(server: &PrivateServer) -> String {
    format!("127.0.0.1:{}", server.port())
}

/// A primary with a table of notes, and its standby.
fn pair() -> (PrivateServer, Standby) {
    let primary = server(&[("wal_level", "replica"), ("max_wal_senders", "5")]);
    admin(&primary.url())
        .batch_execute("CREATE TABLE notes (note text)")
        .unwrap();
    let standby = Standby::of(&primary);
    (primary, standby)
}

fn pool_with(primary: &PrivateServer, hosts: &str, max_lag: Duration) -> Builder {
    pool(&primary.url())
        .max_size(8)
        .read_hosts(hosts)
        .read_max_lag(max_lag)
}

/// Sets a parameter of a running server.
fn set(server: &PrivateServer, name: &str, value: &str) {
    let mut admin = admin(&server.url());
    let sql = format!("ALTER SYSTEM SET {name} = '{value}'");
    admin.batch_execute(&sql).unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").unwrap();
}

/// A standby that receives, but does not replay, until this is dropped.
struct Paused(String);

impl Paused {
    fn of(standby: &Standby) -> Paused {
        let mut admin = admin(&standby.server.url());
        admin.batch_execute("SELECT pg_wal_replay_pause()").unwrap();
        eventually("it replays no more", || {
            let state = "SELECT pg_get_wal_replay_pause_state()";
            admin.query_one(state, &[]).unwrap().get::<_, &str>(0) == "paused"
        });
        Paused(standby.server.url())
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        admin(&self.0)
            .batch_execute("SELECT pg_wal_replay_resume()")
            .unwrap();
    }
}

/// Whether a read, for a client that has written nothing, is answered by a standby.
fn leaves_the_primary(pool: &Pool) -> bool {
    let read = pool.client("someone").read(WHERE, &[]);
    read.is_ok_and(|rows| rows[0].get(0))
}

fn state(pool: &Pool) -> StandbyState {
    pool.standbys()[0].state
}

fn is_used(pool: &Pool) {
    eventually("the standby is used", || leaves_the_primary(pool));
}

fn notes(rows: &[postgres::Row]) -> Vec<String> {
    rows.iter().map(|row| row.get(0)).collect()
}

const NOTES: &str = "SELECT note FROM notes ORDER BY note";

#[test]
fn reads_go_to_a_standby_and_everything_else_to_the_primary() {
    let (primary, standby) = pair();
    let pool = pool_with(&primary, &host(&standby.server), SECOND)
        .build()
        .unwrap();
    is_used(&pool);
    let on_standby = |rows: Vec<postgres::Row>| rows[0].get::<_, bool>(0);
    assert!(!on_standby(pool.query(WHERE, &[]).unwrap()));
    let in_transaction = pool.transaction(|tx| tx.query(WHERE, &[]).map(on_standby));
    assert!(!in_transaction.unwrap());
    let call = pool.client("someone");
    let on_primary = call.clone().on_primary();
    assert!(!on_standby(on_primary.read(WHERE, &[]).unwrap()));
    let limited = call.clone().with_timeout(60 * SECOND);
    for call in [&limited, &call.clone().class("reports").at_most(2), &call] {
        // A standby that answers late is left for a moment.
        eventually("it reads on the standby", || {
            on_standby(call.read(WHERE, &[]).unwrap())
        });
    }
    // A write that is passed by mistake is done, once, as without a standby.
    let wrong = "INSERT INTO notes VALUES ('by mistake') RETURNING note";
    assert_eq!(pool.read(wrong, &[]).unwrap().len(), 1);
    let there = pool.query(NOTES, &[]).unwrap();
    assert_eq!(notes(&there), ["by mistake"]);
    let text = pool.metrics_text();
    assert!(text.contains("millpond_standby_state{"), "{text}");
    assert!(counter(&pool, "millpond_reads_total{server=\"standby\"}") >= 4);
    eventually("its figures are there", || {
        let standby = &pool.standbys()[0];
        let lag = standby.lag.is_some_and(|lag| lag < SECOND);
        standby.state == StandbyState::Used && lag && standby.stats.max == 8
    });
    // The close is of all connections.
    let report = pool.close(SECOND);
    assert!(
        report.drained >= 2 && pool.standbys()[0].stats.total == 0,
        "{report}"
    );
}

#[test]
fn an_idle_primary_does_not_seem_to_be_ahead_of_its_standby() {
    let (primary, standby) = pair();
    let pool = pool_with(&primary, &host(&standby.server), 500 * MS)
        .build()
        .unwrap();
    let mut admin = admin(&primary.url());
    // The next place in the log is behind a header that nobody has written yet.
    admin.batch_execute("SELECT pg_switch_wal()").unwrap();
    let switched = Instant::now();
    is_used(&pool);
    let position = pool.current_lsn().unwrap();
    eventually("the position is reached", || {
        let rows = pool.read_after(position).read(WHERE, &[]).unwrap();
        rows[0].get(0)
    });
    // The server writes something of its own accord after 15 s.
    assert!(switched.elapsed() < 8 * SECOND, "{:?}", switched.elapsed());
}

#[test]
fn who_wrote_reads_what_was_written_and_others_may_read_what_was_before() {
    let (primary, standby) = pair();
    let one = pool_with(&primary, &host(&standby.server), 60 * SECOND)
        .build()
        .unwrap();
    let two = pool_with(&primary, &host(&standby.server), 60 * SECOND)
        .build()
        .unwrap();
    is_used(&one);
    is_used(&two);
    let replay = Paused::of(&standby);
    one.client("ada")
        .execute("INSERT INTO notes VALUES ('a')", &[])
        .unwrap();
    thread::scope(|scope| {
        // The thread counts where no client is named, whichever way it writes.
        let writes: [fn(&Pool); 4] = [
            |pool| _ = pool.execute("INSERT INTO notes VALUES ('b')", &[]).unwrap(),
            |pool| {
                pool.batch_execute("INSERT INTO notes VALUES ('b')")
                    .unwrap();
            },
            |pool| {
                let write = |tx: &mut millpond::Transaction<'_>| {
                    tx.execute("INSERT INTO notes VALUES ('b')", &[])
                };
                _ = pool.transaction(write).unwrap();
            },
            |pool| {
                let mut plain = pool.get().unwrap();
                plain
                    .batch_execute("INSERT INTO notes VALUES ('b')")
                    .unwrap();
            },
        ];
        for write in writes {
            let one = &one;
            scope.spawn(move || {
                write(one);
                let read = notes(&one.read(NOTES, &[]).unwrap());
                assert!(read.contains(&"b".to_owned()), "{read:?}");
            });
        }
    });
    let ada = || notes(&one.client("ada").read(NOTES, &[]).unwrap());
    assert!(ada().contains(&"a".to_owned()));
    // This client of the other pool has it by its position in the log.
    let position = one.current_lsn().unwrap();
    let after = notes(&two.read_after(position).read(NOTES, &[]).unwrap());
    assert_eq!(after.len(), 5, "{after:?}");
    eventually("another client reads on the standby", || {
        notes(&two.client("bob").read(NOTES, &[]).unwrap()).is_empty()
    });
    drop(replay);
    // In the end the standby has all, and those who wrote are back there.
    let back = |call: millpond::Call<'_>| call.read(WHERE, &[]).unwrap()[0].get::<_, bool>(0);
    eventually("the writer is back on the standby", || {
        back(one.client("ada"))
    });
    assert!(ada().contains(&"a".to_owned()));
    eventually("the position is reached", || back(two.read_after(position)));
    assert_eq!(two.read_after(position).read(NOTES, &[]).unwrap().len(), 5);
}

#[test]
fn a_standby_that_is_too_far_behind_is_left_until_it_has_caught_up() {
    let (primary, standby) = pair();
    let pool = pool_with(&primary, &host(&standby.server), 500 * MS)
        .build()
        .unwrap();
    is_used(&pool);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = EndAtDrop(&over);
        scope.spawn(|| {
            let mut admin = admin(&primary.url());
            while !over.load(Ordering::Relaxed) {
                admin
                    .batch_execute("INSERT INTO notes VALUES (now())")
                    .unwrap();
                thread::sleep(10 * MS);
            }
        });
        // Under steady writes, too, it is used.
        thread::sleep(SECOND);
        is_used(&pool);
        set(&standby.server, "recovery_min_apply_delay", "1h");
        let lag = "SELECT extract(epoch FROM now() - max(note::timestamptz))::float8 FROM notes";
        eventually("it is left", || {
            let lag: f64 = pool.client("someone").read(lag, &[]).unwrap()[0].get(0);
            // What is read is never older than what is allowed, which the pool knows a little late.
            assert!(lag < 1.0, "{lag}");
            state(&pool) == StandbyState::Behind
        });
        assert!(!leaves_the_primary(&pool));
        set(&standby.server, "recovery_min_apply_delay", "0");
        is_used(&pool);
        drop(end);
    });
}

/// Reads from several threads until it is over. Returns how many there were, and the longest.
fn read_until(over: &AtomicBool, pool: &Pool, threads: usize) -> (usize, Duration) {
    let count = AtomicUsize::new(0);
    let read = || {
        let mut longest = Duration::ZERO;
        while !over.load(Ordering::Relaxed) {
            let started = Instant::now();
            pool.read("SELECT count(*) FROM notes", &[]).unwrap();
            longest = longest.max(started.elapsed());
            count.fetch_add(1, Ordering::Relaxed);
        }
        longest
    };
    let longest = thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(read)).collect();
        all.into_iter().map(|one| one.join().unwrap()).max()
    });
    (count.into_inner(), longest.unwrap_or_default())
}

#[test]
fn a_frozen_standby_costs_nobody_an_error_and_is_used_again_when_it_answers() {
    let (primary, standby) = pair();
    let pool = pool_with(&primary, &host(&standby.server), SECOND)
        .build()
        .unwrap();
    is_used(&pool);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = EndAtDrop(&over);
        let reads = scope.spawn(|| read_until(&over, &pool, 6));
        for _ in 0..2 {
            is_used(&pool);
            let frozen = Frozen::tree(standby.server.pid().unwrap());
            eventually("it is left", || state(&pool) == StandbyState::Silent);
            assert!(!leaves_the_primary(&pool));
            thread::sleep(SECOND);
            frozen.thaw();
            is_used(&pool);
        }
        drop(end);
        let (count, longest) = reads.join().unwrap();
        // The probe waits 800 ms for its answer; the rest is the machine's.
        assert!(count > 100 && longest < 2500 * MS, "{count} {longest:?}");
    });
    assert!(counter(&pool, "millpond_reads_total{server=\"moved\"}") >= 1);
}

#[test]
fn a_conflict_with_recovery_and_a_statement_that_takes_too_long_there() {
    let (primary, standby) = pair();
    set(&standby.server, "max_standby_streaming_delay", "0");
    set(&standby.server, "hot_standby_feedback", "off");
    let pool = pool_with(&primary, &host(&standby.server), 60 * SECOND)
        .query_timeout(20 * SECOND)
        .statement_timeout(20 * SECOND)
        .build()
        .unwrap();
    is_used(&pool);
    let mut admin = admin(&primary.url());
    admin
        .batch_execute("INSERT INTO notes SELECT 'x' FROM generate_series(1, 1000)")
        .unwrap();
    let seen = "SELECT count(*) FROM notes";
    eventually("the standby has them", || {
        let rows = pool.client("someone").read(seen, &[]).unwrap();
        rows[0].get::<_, i64>(0) == 1000 && leaves_the_primary(&pool)
    });
    let moved = || counter(&pool, "millpond_reads_total{server=\"moved\"}");
    // It begins on the primary if the standby answers late just then.
    eventually("a long read is cancelled by what is replayed", || {
        thread::scope(|scope| {
            let long = scope.spawn(|| {
                let slow =
                    "SELECT count(*), (SELECT pg_is_in_recovery() FROM pg_sleep(3)) FROM notes";
                pool.client("someone").read(slow, &[]).unwrap()
            });
            while moved() == 0 && !long.is_finished() {
                let update = "UPDATE notes SET note = 'y'";
                admin.batch_execute(update).unwrap();
                admin.batch_execute("VACUUM notes").unwrap();
                thread::sleep(20 * MS);
            }
            let rows = long.join().unwrap();
            assert_eq!((rows[0].get(0), rows[0].get(1)), (1000i64, false));
        });
        moved() > 0
    });
    let moved_before = moved();
    // One that is cancelled at its limit would take as long on the primary.
    let limited = pool.client("someone").with_timeout(200 * MS);
    let started = Instant::now();
    let error = limited.read("SELECT pg_sleep(10)", &[]).unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
    assert!(started.elapsed() < 5 * SECOND);
    assert_eq!(moved(), moved_before);
}

#[test]
fn while_there_is_no_primary_reads_go_on_for_as_long_as_the_lag_allows() {
    let (mut primary, standby) = pair();
    let patient = pool_with(&primary, &host(&standby.server), 60 * SECOND)
        .build()
        .unwrap();
    let strict = pool_with(&primary, &host(&standby.server), SECOND)
        .build()
        .unwrap();
    is_used(&patient);
    is_used(&strict);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = EndAtDrop(&over);
        let reads = scope.spawn(|| read_until(&over, &patient, 4));
        primary.stop(Stop::Immediate);
        eventually("the strict one reads no more there", || {
            state(&strict) == StandbyState::Behind
        });
        let once = strict.with_policy(millpond::RetryPolicy::none());
        assert!(once.read(WHERE, &[]).is_err());
        thread::sleep(SECOND);
        eventually("the patient one does", || {
            state(&patient) == StandbyState::Used
        });
        drop(end);
        let (count, longest) = reads.join().unwrap();
        assert!(count > 100 && longest < SECOND, "{count} {longest:?}");
    });
    primary.start_again().unwrap();
    is_used(&strict);
}

#[test]
fn a_standby_that_became_a_primary_of_its_own_is_not_read_from() {
    let (primary, standby) = pair();
    let hosts = format!("{},{}", host(&primary), host(&standby.server));
    let pool = pool_with(&primary, &hosts, 60 * SECOND).build().unwrap();
    eventually("each is known", || {
        let states: Vec<_> = pool.standbys().iter().map(|s| s.state).collect();
        states == [StandbyState::Primary, StandbyState::Used]
    });
    is_used(&pool);
    standby.promote();
    let two = || pool.standbys()[1].state;
    eventually("it is left", || two() == StandbyState::Primary);
    admin(&standby.server.url())
        .batch_execute("INSERT INTO notes VALUES ('of another world')")
        .unwrap();
    assert!(pool.read(NOTES, &[]).unwrap().is_empty());
}

#[test]
fn writes_that_were_lost_at_a_failover_are_not_read() {
    let (mut primary, next) = pair();
    let old = Standby::of(&primary);
    let hosts = format!("{},{}", host(&primary), host(&next.server));
    let url = primary.url().replace(&host(&primary), &hosts);
    let pool = pool(&format!("{url}?target_session_attrs=read-write"))
        .read_hosts(&host(&old.server))
        .read_max_lag(60 * SECOND)
        .connection_timeout(20 * SECOND)
        .build()
        .unwrap();
    is_used(&pool);
    // The standby that becomes the primary does not get what the other one does.
    set(&next.server, "primary_conninfo", "");
    eventually("it receives nothing", || {
        let receives = "SELECT FROM pg_stat_wal_receiver";
        let mut next = admin(&next.server.url());
        next.query(receives, &[]).unwrap().is_empty()
    });
    let lost = "INSERT INTO notes SELECT 'lost' FROM generate_series(1, 10000)";
    admin(&primary.url()).batch_execute(lost).unwrap();
    let mut there = admin(&old.server.url());
    eventually("it has them", || {
        let rows = there.query("SELECT FROM notes", &[]).unwrap();
        rows.len() == 10_000
    });
    primary.stop(Stop::Immediate);
    next.promote();
    pool.execute("INSERT INTO notes VALUES ('kept')", &[])
        .unwrap();
    eventually("it is known", || state(&pool) == StandbyState::Diverged);
    // Also when the new primary has passed it.
    let mut there = admin(&next.server.url());
    for _ in 0..10 {
        there.batch_execute(&lost.replace("lost", "new")).unwrap();
        let read = "SELECT FROM notes WHERE note = 'lost'";
        let rows = pool.client("someone").read(read, &[]).unwrap();
        assert_eq!(rows.len(), 0);
        thread::sleep(100 * MS);
    }
    assert_eq!(state(&pool), StandbyState::Diverged);
}

#[test]
fn a_standby_that_follows_another_one_which_was_promoted_is_not_read_from() {
    let (primary, middle) = pair();
    let last = Standby::of(&primary);
    set(&last.server, "primary_conninfo", &middle.server.url());
    let pool = pool_with(&primary, &host(&last.server), 60 * SECOND)
        .build()
        .unwrap();
    is_used(&pool);
    middle.promote();
    let mut other = admin(&middle.server.url());
    let mut ours = admin(&primary.url());
    eventually("it is known", || {
        other
            .batch_execute("INSERT INTO notes VALUES ('theirs')")
            .unwrap();
        ours.batch_execute("INSERT INTO notes VALUES ('ours'), ('ours')")
            .unwrap();
        state(&pool) == StandbyState::Diverged
    });
    for n in 0..100 {
        let note = format!("{n}");
        let call = pool.client("ada");
        call.execute("INSERT INTO notes VALUES ($1)", &[&note])
            .unwrap();
        let read = call.read("SELECT FROM notes WHERE note = $1", &[&note]);
        assert_eq!(read.unwrap().len(), 1);
    }
}

#[test]
fn what_is_written_by_unusual_ways_is_read_too() {
    let (primary, standby) = pair();
    let pool = pool_with(&primary, &host(&standby.server), 60 * SECOND)
        .build()
        .unwrap();
    is_used(&pool);
    let _replay = Paused::of(&standby);
    let insert = |note: &str| format!("INSERT INTO notes VALUES ('{note}')");
    let reads = |note: &str| {
        let read = pool.read("SELECT FROM notes WHERE note = $1", &[&note]);
        assert_eq!(read.unwrap().len(), 1, "{note}");
    };
    thread::scope(|scope| {
        // Each on a thread that has written nothing before.
        scope.spawn(|| {
            let mut plain = pool.get().unwrap();
            plain.batch_execute(&insert("held")).unwrap();
            reads("held");
        });
        scope.spawn(|| {
            let mut plain = pool.get().unwrap();
            plain.batch_execute(&insert("passed on")).unwrap();
            thread::scope(|scope| scope.spawn(|| drop(plain)).join().unwrap());
            reads("passed on");
        });
        scope.spawn(|| {
            let returning = insert("by read") + " RETURNING note";
            pool.read(&returning, &[]).unwrap();
            reads("by read");
            pool.read(&returning.replace("by", "again by"), &[])
                .unwrap();
            reads("again by read");
        });
    });
    let returning = insert("hers") + " RETURNING note";
    pool.client("ada").read(&returning, &[]).unwrap();
    let hers = pool
        .client("ada")
        .read("SELECT FROM notes WHERE note = 'hers'", &[]);
    assert_eq!(hers.unwrap().len(), 1);
}

#[test]
fn a_standby_that_lets_nobody_in_is_not_asked_all_the_time() {
    let (primary, standby) = pair();
    let hba = standby.server.dir().join("pg/pg_hba.conf");
    std::fs::write(&hba, "host all all 127.0.0.1/32 reject\n").unwrap();
    let mut there = admin(&standby.server.url());
    there.batch_execute("SELECT pg_reload_conf()").unwrap();
    eventually("it lets nobody in", || {
        postgres::Client::connect(&standby.server.url(), postgres::NoTls).is_err()
    });
    let rejected = || standby.server.log().matches("pg_hba.conf rejects").count();
    let before = rejected();
    let pool = pool_with(&primary, &host(&standby.server), 100 * MS)
        .min_idle(0)
        .build()
        .unwrap();
    eventually("it is asked", || rejected() > before);
    assert!(!leaves_the_primary(&pool));
    let (before, started) = (rejected(), Instant::now());
    thread::sleep(4 * SECOND);
    let most = 2 + started.elapsed().as_secs() as usize / 2;
    assert!(rejected() - before <= most, "{}", rejected() - before);
    assert_eq!(pool.standbys()[0].error.as_deref(), Some("authentication"));
}

#[test]
fn a_standby_of_another_primary_is_not_read_from() {
    let ((primary, _standby), (other, theirs)) = (pair(), pair());
    let url: postgres::Config = primary.url().parse().unwrap();
    let password = String::from_utf8(url.get_password().unwrap().to_vec()).unwrap();
    let change = format!("ALTER ROLE postgres PASSWORD '{password}'");
    admin(&other.url()).batch_execute(&change).unwrap();
    let pool = pool_with(&primary, &host(&theirs.server), 60 * SECOND)
        .build()
        .unwrap();
    eventually("it is known", || state(&pool) == StandbyState::Foreign);
    assert!(!leaves_the_primary(&pool));
}

/// An address that leads to each of several servers in turn.
fn in_turn(ports: [u16; 2]) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for (client, port) in listener.incoming().zip(ports.into_iter().cycle()) {
            let client = client.unwrap();
            let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else {
                continue;
            };
            for (mut from, mut to) in [
                (client.try_clone().unwrap(), server.try_clone().unwrap()),
                (server, client),
            ] {
                thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
            }
        }
    });
    port
}

#[test]
fn of_several_standbys_behind_one_address_each_is_known_by_itself() {
    let (primary, one) = pair();
    let two = Standby::of(&primary);
    let both = in_turn([one.server.port(), two.server.port()]);
    let pool = pool_with(&primary, &format!("127.0.0.1:{both}"), 60 * SECOND)
        .min_idle(6)
        .build()
        .unwrap();
    is_used(&pool);
    for late in [&one, &two] {
        let replay = Paused::of(late);
        let note = format!("{}", late.server.port());
        pool.client("ada")
            .execute("INSERT INTO notes VALUES ($1)", &[&note])
            .unwrap();
        let ada_there = AtomicUsize::new(0);
        let read = || {
            pool.client("someone").read(NOTES, &[]).unwrap();
            let sql = "SELECT note, pg_is_in_recovery() FROM notes";
            let rows = pool.client("ada").read(sql, &[]).unwrap();
            let read = notes(&rows);
            assert!(read.contains(&note), "{read:?} without {note}");
            if rows[0].get(1) {
                ada_there.fetch_add(1, Ordering::Relaxed);
            }
        };
        eventually("reads leave the primary again", || {
            // Several at once, so that all connections are used.
            thread::scope(|scope| {
                for _ in 0..6 {
                    scope.spawn(read);
                }
            });
            ada_there.load(Ordering::Relaxed) >= 20
        });
        drop(replay);
    }
}

#[test]
fn a_host_that_is_not_there_delays_nobody() {
    let primary = server(&[]);
    let pool = pool_with(&primary, "127.0.0.1:1,192.0.2.1", SECOND)
        .build()
        .unwrap();
    let started = Instant::now();
    for _ in 0..20 {
        assert!(!leaves_the_primary(&pool));
    }
    assert!(started.elapsed() < 2 * SECOND);
    let states = pool.standbys();
    assert!(
        states
            .iter()
            .all(|standby| standby.state == StandbyState::Silent)
    );
    // Not even when it closes.
    let started = Instant::now();
    pool.close(5 * SECOND);
    assert!(started.elapsed() < 3 * SECOND, "{:?}", started.elapsed());
}

#[test]
fn a_standby_that_has_no_room_delays_nobody() {
    let (primary, standby) = pair();
    let url = standby.server.url();
    let pool = pool_with(&primary, &host(&standby.server), SECOND)
        .min_idle(0)
        .max_uses(1)
        .build()
        .unwrap();
    is_used(&pool);
    let mut others = Vec::new();
    while let Ok(other) = postgres::Client::connect(&url, postgres::NoTls) {
        others.push(other);
    }
    let failures = "millpond_connect_failures_total{sqlstate=\"53300\"}";
    eventually("no connection can be opened there", || {
        leaves_the_primary(&pool);
        // The line is there from the first failure on.
        pool.metrics_text().contains(failures)
    });
    let started = Instant::now();
    for _ in 0..20 {
        pool.read(WHERE, &[]).unwrap();
    }
    assert!(started.elapsed() < 2 * SECOND, "{:?}", started.elapsed());
    drop(others);
    is_used(&pool);
}

#[test]
fn a_pause_is_of_the_standbys_too() {
    let (primary, standby) = pair();
    let pool = pool_with(&primary, &host(&standby.server), 60 * SECOND)
        .application_name("paused")
        .build()
        .unwrap();
    is_used(&pool);
    pool.pause(60 * SECOND);
    let mut there = admin(&standby.server.url());
    eventually("no connection is left, not even the probe's", || {
        super::support::backends(&mut there, "paused").is_empty()
    });
    thread::scope(|scope| {
        let read = scope.spawn(|| pool.read(WHERE, &[]).unwrap());
        thread::sleep(200 * MS);
        assert!(!read.is_finished());
        pool.resume();
        read.join().unwrap();
    });
}

#[test]
fn the_studio_reads_from_a_standby_and_shows_each_client_what_it_wrote() {
    let (primary, standby) = pair();
    let dir = open_dir(0o700);
    let hosts = host(&standby.server);
    let url = primary.url();
    let vars = [
        ("DATABASE_URL", url.as_str()),
        ("DB_READ_HOSTS", &hosts),
        ("DB_READ_MAX_LAG_MS", "60000"),
        ("HTTP_TRUSTED_PROXIES", "127.0.0.1"),
        ("LOG_LEVEL", "info"),
    ];
    let mut serving = serve(dir.path(), &vars);
    eventually("it is ready", || serving.is_ready());
    let addr = SocketAddr::from(([127, 0, 0, 1], serving.port));
    let ask = |method: &str, headers: &str, body: &str| {
        let headers = format!("Content-Type: application/json\r\n{headers}");
        Client::to(addr).ask(method, "/api/reservations", &headers, body.as_bytes())
    };
    let count = |headers: &str| {
        ask("GET", headers, "").json()["items"]
            .as_array()
            .unwrap()
            .len()
    };
    let metrics = || {
        Client::to(addr)
            .ask("GET", "/api/metrics/db", "", b"")
            .json()
    };
    eventually("the standby is used", || {
        metrics()["standbys"][0]["state"] == "used"
    });
    let before = count("");
    eventually("the standby has the schema", || {
        let there = "SELECT to_regclass('studio.reservations') IS NOT NULL";
        let mut standby = admin(&standby.server.url());
        standby.query_one(there, &[]).unwrap().get(0)
    });
    let _replay = Paused::of(&standby);
    let created = ask(
        "POST",
        "X-Forwarded-For: 192.0.2.1\r\n",
        r#"{"studioId":1,"customer":"Ada","startsAt":"2030-01-02T10:00:00Z","endsAt":"2030-01-02T12:00:00Z"}"#,
    );
    assert_eq!(created.status, 201, "{}", created.body);
    for _ in 0..10 {
        assert_eq!(count("X-Forwarded-For: 192.0.2.1\r\n"), before + 1);
        let fresh = "X-Forwarded-For: 192.0.2.2\r\nCache-Control: max-age=0, no-cache\r\n";
        assert_eq!(count(fresh), before + 1);
        // A standby that answers late is left for a moment.
        eventually("another client reads on the standby", || {
            count("X-Forwarded-For: 192.0.2.2\r\n") == before
        });
    }
    assert_eq!(metrics()["standbys"][0]["host"], hosts.as_str());
    serving.signal("TERM");
    assert_eq!(serving.ends(), Some(0), "{}", serving.log());
}

#[test]
fn check_database_says_whether_reads_would_go_to_each_standby() {
    let (primary, standby) = pair();
    let dir = open_dir(0o700);
    let hosts = format!("{},127.0.0.1:1", host(&standby.server));
    let url = primary.url();
    let vars = [("DATABASE_URL", url.as_str()), ("DB_READ_HOSTS", &hosts)];
    let checked = run(dir.path(), &["check", "--database"], &vars);
    let printed = String::from_utf8_lossy(&checked.stdout);
    for line in [
        format!(
            "ok      standbys      {}: reads go there",
            host(&standby.server)
        ),
        "wrong   standbys      127.0.0.1:1: no reads go there, because it could not be asked (refused;".into(),
    ] {
        assert!(printed.contains(&line), "{printed}");
    }
    assert_eq!(checked.status.code(), Some(1));
}

#[test]
fn bad_hosts_and_lags_are_named() {
    for (name, value, why) in [
        ("DB_READ_HOSTS", "db2:x", "port"),
        ("DB_READ_HOSTS", "db2,,db3", "not a host"),
        ("DB_READ_MAX_LAG_MS", "99", "at least 100"),
    ] {
        let vars = [("DATABASE_URL", "postgresql://localhost/x"), (name, value)];
        let error = Config::from_vars(vars).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(why), "{error}");
    }
    let builder = pool("postgresql://localhost/x")
        .read_hosts("a:")
        .read_max_lag(MS);
    let error = builder.build().unwrap_err().to_string();
    assert!(
        error.contains("read_hosts") && error.contains("read_max_lag"),
        "{error}"
    );
}
