//! The life of a connection: it is opened, kept, retired and cleaned.

use super::proxy::{Mode, Proxy};
use super::support::{
    EndAtDrop, MS, SECOND, admin, backends, counter, database, eventually, pid, pool,
};
use millpond::pool::{CloseReason, Observer};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

#[derive(Default)]
struct Diary(Mutex<Vec<(CloseReason, u64)>>);

impl Observer for Diary {
    fn closed(&self, _: u64, reason: CloseReason, _: Duration, uses: u64) {
        self.0.lock().unwrap().push((reason, uses));
    }
}

impl Diary {
    fn reasons(&self) -> Vec<CloseReason> {
        self.0
            .lock()
            .unwrap()
            .iter()
            .map(|(reason, _)| *reason)
            .collect()
    }
}

#[test]
fn the_minimum_is_opened_ahead_and_kept() {
    let db = database();
    let pool = db
        .pool()
        .min_idle(3)
        .application_name("minimum")
        .build()
        .unwrap();
    eventually("the minimum is idle", || pool.stats().idle == 3);
    assert_eq!(backends(&mut db.admin(), "minimum").len(), 3);
}

#[test]
fn a_burst_shrinks_to_the_minimum_without_reopening() {
    let db = database();
    let pool = db
        .pool()
        .max_size(12)
        .min_idle(2)
        .idle_timeout(400 * MS)
        .application_name("burst")
        .build()
        .unwrap();
    let all: Vec<_> = (0..12)
        .map(|_| pool.get_timeout(20 * SECOND).unwrap())
        .collect();
    drop(all);
    let mut admin = db.admin();
    eventually("the minimum is left", || {
        backends(&mut admin, "burst").len() == 2
    });
    let left = backends(&mut admin, "burst");
    // After several idle timeouts, the same backends are still there.
    for _ in 0..20 {
        thread::sleep(100 * MS);
        assert_eq!(backends(&mut admin, "burst"), left);
    }
    assert_eq!(pool.stats().idle, 2);
}

#[test]
fn a_busy_connection_is_retired_at_its_age() {
    let db = database();
    let diary = Arc::new(Diary::default());
    let pool = db
        .pool()
        .max_size(1)
        .max_lifetime(300 * MS)
        .observer(diary.clone())
        .build()
        .unwrap();
    let first = pid(&pool);
    // The connection is never idle for long, so only a check-in can retire it.
    eventually("another backend serves", || pid(&pool) != first);
    eventually("the first is closed", || {
        diary.reasons().contains(&CloseReason::MaxLifetime)
    });
}

#[test]
fn connections_are_replaced_after_their_uses_and_not_all_at_once() {
    let db = database();
    let diary = Arc::new(Diary::default());
    let pool = db
        .pool()
        .max_size(1)
        .max_uses(100)
        .observer(diary.clone())
        .build()
        .unwrap();
    eventually("several have been replaced", || {
        (0..10).for_each(|_| drop(pool.get().unwrap()));
        diary.reasons().len() >= 8
    });
    let closed = diary.0.lock().unwrap();
    let (reasons, uses): (Vec<_>, Vec<_>) = closed.iter().copied().unzip();
    assert!(
        reasons.iter().all(|r| *r == CloseReason::MaxUses),
        "{reasons:?}"
    );
    assert!(uses.iter().all(|uses| *uses >= 90), "{uses:?}");
}

/// How many connections are open, and how many there were at most.
#[derive(Default)]
struct Census {
    now: AtomicU64,
    most: AtomicU64,
}

impl Observer for Census {
    fn opened(&self, _: u64, _: Duration) {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
    }

    fn closed(&self, _: u64, _: CloseReason, _: Duration, _: u64) {
        self.now.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn nobody_waits_for_a_connection_that_takes_the_place_of_another() {
    for reason in [CloseReason::MaxUses, CloseReason::MaxLifetime] {
        let db = database();
        let (diary, census) = (Arc::new(Diary::default()), Arc::new(Census::default()));
        let pool = match reason {
            CloseReason::MaxUses => db.pool().max_uses(10),
            _ => db.pool().max_lifetime(700 * MS),
        };
        let pool = pool
            .max_size(2)
            .observer(diary.clone())
            .observer(census.clone())
            .on_connect(|client| client.batch_execute("SELECT pg_sleep(0.5)"))
            .build()
            .unwrap();
        eventually("both are open", || pool.stats().idle == 2);
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let _end = EndAtDrop(&over);
            for _ in 0..2 {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        pool.query("SELECT pg_sleep(0.01)", &[]).unwrap();
                    }
                });
            }
            eventually("several have been replaced", || diary.reasons().len() >= 4);
        });
        assert_eq!(counter(&pool, "millpond_line_wait_seconds_count"), 0);
        assert_eq!(census.most.load(Ordering::SeqCst), 3);
        let reasons = diary.reasons();
        assert!(reasons.iter().all(|r| *r == reason), "{reasons:?}");
    }
}

#[test]
fn a_database_that_lets_nobody_in_takes_no_connection_away() {
    for min_idle in [0, 1] {
        let db = database();
        let pool = db.pool().max_size(1).min_idle(min_idle).max_uses(2);
        // The pool looks at idle connections as often as its shortest time requires.
        let pool = pool.leak_threshold(40 * MS).build().unwrap();
        let allow = |allowed: bool| {
            let (base, name) = db.url.rsplit_once('/').unwrap();
            let sql = format!("ALTER DATABASE {name} ALLOW_CONNECTIONS {allowed}");
            admin(&format!("{base}/postgres")).batch_execute(&sql)
        };
        pool.query("SELECT 1", &[]).unwrap();
        allow(false).unwrap();
        // The first two may go to one that was being opened.
        let [.., kept] = [(); 3].map(|()| pid(&pool));
        for _ in 0..50 {
            thread::sleep(15 * MS);
            assert_eq!(pid(&pool), kept);
        }
        allow(true).unwrap();
        eventually("it is replaced", || pid(&pool) != kept);
    }
}

#[test]
fn where_the_server_has_no_room_for_one_more_another_is_closed_first() {
    let db = database();
    let role = format!("two_{}", db.url.rsplit('_').next().unwrap());
    let sql = format!("CREATE ROLE {role} LOGIN PASSWORD 'p' CONNECTION LIMIT 2");
    db.admin().batch_execute(&sql).unwrap();
    let (_, rest) = db.url.split_once('@').unwrap();
    let diary = Arc::new(Diary::default());
    let pool = pool(&format!("postgresql://{role}:p@{rest}"))
        .max_size(2)
        .max_uses(3)
        .observer(diary.clone())
        .build()
        .unwrap();
    eventually("both are open", || pool.stats().idle == 2);
    let after = |replaced| {
        eventually("several have been replaced", || {
            pool.query("SELECT 1", &[]).unwrap();
            diary.reasons().len() >= replaced
        });
        counter(&pool, "millpond_connect_failures_total{sqlstate=\"53300\"}")
    };
    // It is tried once.
    let refused = after(4);
    assert_eq!(after(8), refused);
}

#[test]
fn what_a_raw_borrower_leaves_behind_is_gone() {
    let db = database();
    db.admin()
        .batch_execute("CREATE TABLE left_behind (n int); CREATE SEQUENCE s")
        .unwrap();
    let pool = db
        .pool()
        .max_size(1)
        .statement_timeout(7 * SECOND)
        .build()
        .unwrap();
    {
        let mut client = pool.get().unwrap();
        client
            .batch_execute(
                "SET statement_timeout = 1; RESET statement_timeout; SET search_path = pg_catalog; SET TIME ZONE 'Asia/Tokyo'; \
                 LISTEN news; SELECT pg_advisory_lock(7); CREATE TEMP TABLE mine (n int); SELECT nextval('public.s'); \
                 SET ROLE pg_monitor; BEGIN; SET LOCAL ROLE postgres; INSERT INTO public.left_behind VALUES (1)",
            )
            .unwrap();
    }
    let one = |sql: &str| pool.query(sql, &[]).unwrap()[0].get::<_, String>(0);
    assert_eq!(one("SHOW statement_timeout"), "7s");
    assert_eq!(one("SHOW search_path"), "\"$user\", public");
    assert_ne!(one("SHOW TimeZone"), "Asia/Tokyo");
    assert_eq!(one("SELECT current_user::text"), "postgres");
    assert_eq!(one("SELECT count(*)::text FROM left_behind"), "0");
    assert_eq!(
        one("SELECT count(*)::text FROM pg_locks WHERE locktype = 'advisory'"),
        "0"
    );
    assert_eq!(
        one("SELECT count(*)::text FROM pg_listening_channels()"),
        "0"
    );
    assert_eq!(
        one("SELECT (to_regclass('pg_temp.mine') IS NULL)::text"),
        "true"
    );
    // The connection was cleaned, not replaced.
    let closed = "millpond_connections_closed_total{reason=\"leaked_state\"}";
    assert_eq!(counter(&pool, closed), 0);
}

#[test]
fn statements_stay_prepared_through_a_cleaning_and_are_prepared_again_after_deallocate() {
    let db = database();
    let pool = db.pool().max_size(1).build().unwrap();
    let prepared = || {
        pool.query("SELECT count(*) FROM pg_prepared_statements", &[])
            .unwrap()[0]
            .get::<_, i64>(0)
    };
    let before = prepared();
    pool.get().unwrap().batch_execute("SELECT 1").unwrap();
    assert_eq!(prepared(), before);
    pool.get().unwrap().batch_execute("DEALLOCATE ALL").unwrap();
    assert_eq!(prepared(), 1);
}

#[test]
fn a_changed_table_is_prepared_again() {
    let db = database();
    let mut admin = db.admin();
    admin
        .batch_execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
        .unwrap();
    let pool = db.pool().max_size(1).build().unwrap();
    assert_eq!(pool.query("SELECT * FROM t", &[]).unwrap()[0].len(), 1);
    admin.batch_execute("ALTER TABLE t ADD b int").unwrap();
    assert_eq!(pool.query("SELECT * FROM t", &[]).unwrap()[0].len(), 2);
    admin.batch_execute("ALTER TABLE t ADD c int").unwrap();
    let columns = pool
        .transaction(|tx| Ok::<_, millpond::Error>(tx.query("SELECT * FROM t", &[])?[0].len()))
        .unwrap();
    assert_eq!(columns, 3);
}

#[test]
fn the_statement_cache_is_bounded_and_may_be_off() {
    let db = database();
    let pool = db.pool().max_size(1).statement_cache(5).build().unwrap();
    for n in 0..20 {
        pool.query(&format!("SELECT {n}"), &[]).unwrap();
    }
    let count = |pool: &millpond::Pool| {
        pool.query("SELECT count(*) FROM pg_prepared_statements", &[])
            .unwrap()[0]
            .get::<_, i64>(0)
    };
    assert!(count(&pool) <= 6, "{}", count(&pool));

    let unnamed = db.pool().max_size(1).statement_cache(0).build().unwrap();
    let rows = unnamed.query(
        "SELECT $1::int + 1, $2::text || '!', $3::timestamptz",
        &[&41i32, &"so", &std::time::SystemTime::UNIX_EPOCH],
    );
    let row = &rows.unwrap()[0];
    assert_eq!(
        (row.get::<_, i32>(0), row.get::<_, String>(1)),
        (42, "so!".to_owned())
    );
    assert_eq!(unnamed.execute("SELECT $1::bigint", &[&1i64]).unwrap(), 1);
    assert_eq!(count(&unnamed), 0);
}

#[test]
fn startup_options_are_set_without_a_statement_and_on_connect_runs_once() {
    let db = database();
    let on = Arc::new(Mutex::new(Vec::new()));
    let noted = on.clone();
    let pool = db
        .pool()
        .max_size(1)
        .application_name("named")
        .statement_timeout(1234 * MS)
        .on_connect(move |client| {
            let row = client.query_one("SELECT pg_backend_pid()", &[])?;
            noted.lock().unwrap().push(row.get::<_, i32>(0));
            client.batch_execute("SET search_path = pg_catalog")
        })
        .build()
        .unwrap();
    let one = |sql: &str| pool.query(sql, &[]).unwrap()[0].get::<_, String>(0);
    assert_eq!(one("SHOW statement_timeout"), "1234ms");
    assert_eq!(one("SHOW application_name"), "named");
    assert_eq!(one("SHOW search_path"), "pg_catalog");
    // Where opening takes long, a second attempt is made beside the first.
    let this = pid(&pool);
    let on_this = on.lock().unwrap().iter().filter(|on| **on == this).count();
    assert_eq!(on_this, 1);
    // The reset after a raw borrower also removes the settings of `on_connect`, so `on_connect`
    // runs again.
    pool.get()
        .unwrap()
        .batch_execute("SET search_path = public")
        .unwrap();
    assert_eq!(one("SHOW search_path"), "pg_catalog");
}

#[test]
fn where_opening_takes_its_time_nobody_looks_twice() {
    let started = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&started);
    let pool = database()
        .pool()
        .max_size(1)
        .min_idle(0)
        .on_connect(move |client| {
            counted.fetch_add(1, Ordering::SeqCst);
            client.batch_execute("SELECT pg_sleep(0.15)")
        })
        .build()
        .unwrap();
    for _ in 0..10 {
        pool.query("SELECT 1", &[]).unwrap();
        pool.evict();
    }
    let opened = counter(&pool, "db_client_connection_create_time_seconds_count");
    let started = started.load(Ordering::SeqCst);
    // A second attempt may start once or twice, until the pool knows how long an opening usually
    // takes.
    assert!(opened >= 10 && started <= opened + 3, "{started} {opened}");
}

#[test]
fn options_of_the_url_win_over_a_default_but_not_over_a_setting() {
    let db = database();
    let url = format!(
        "{}?options=-c%20statement_timeout%3D4321%20-c%20work_mem%3D8MB",
        db.url
    );
    let show = |builder: millpond::pool::Builder, name: &str| {
        let pool = builder.build().unwrap();
        pool.query(&format!("SHOW {name}"), &[]).unwrap()[0].get::<_, String>(0)
    };
    assert_eq!(
        show(super::support::pool(&url), "statement_timeout"),
        "4321ms"
    );
    assert_eq!(show(super::support::pool(&url), "work_mem"), "8MB");
    assert_eq!(
        show(
            super::support::pool(&url).statement_timeout(SECOND),
            "statement_timeout"
        ),
        "1s"
    );
}

#[test]
fn where_a_pooler_refuses_startup_options_they_are_set_and_stay_set() {
    let db = database();
    let proxy = Proxy::in_front_of(db.port);
    proxy.set(Mode::RefuseOptions);
    let pool = super::support::pool(&proxy.url(&db.url))
        .max_size(1)
        .statement_timeout(1234 * MS)
        .build()
        .unwrap();
    let show = || pool.query("SHOW statement_timeout", &[]).unwrap()[0].get::<_, String>(0);
    assert_eq!(show(), "1234ms");
    // This also holds after the cleaning behind a raw borrower, which resets the settings to those
    // of the startup packet.
    pool.get()
        .unwrap()
        .batch_execute("SET statement_timeout = 1")
        .unwrap();
    assert_eq!(show(), "1234ms");
}

#[test]
fn a_failing_on_connect_is_named_as_the_cause() {
    let db = database();
    let pool = db
        .pool()
        .connection_timeout(2 * SECOND)
        .on_connect(|client| client.batch_execute("SET nonsense.such = "))
        .build()
        .unwrap();
    let error = pool.get().unwrap_err();
    assert_eq!(
        error.sqlstate().map(postgres::error::SqlState::code),
        Some("42601")
    );
    let chain = millpond::error::Chain(&error).to_string();
    assert!(chain.contains("on_connect failed"), "{chain}");
}

#[test]
fn a_panic_in_on_connect_costs_a_connection_and_nothing_else() {
    let db = database();
    let times = Arc::new(Mutex::new(0));
    let counted = times.clone();
    let pool = db
        .pool()
        .max_size(1)
        .on_connect(move |_| {
            let nth = {
                let mut times = counted.lock().unwrap();
                *times += 1;
                *times
            };
            assert!(
                nth != 1 && nth != 3,
                "an on_connect of the test panics, as it should"
            );
            Ok(())
        })
        .build()
        .unwrap();
    // The first opening panics, the second succeeds; the cleaning after a raw borrower panics, and
    // so on.
    pool.get_timeout(20 * SECOND)
        .unwrap()
        .batch_execute("SELECT 1")
        .unwrap();
    eventually("the clean-up ran", || *times.lock().unwrap() >= 4);
    assert_eq!(pool.query("SELECT 1", &[]).unwrap().len(), 1);
}

#[test]
fn observers_see_every_event_and_their_panics_end_there() {
    #[derive(Default)]
    struct Seen(Mutex<Vec<&'static str>>);
    impl Observer for Seen {
        fn opened(&self, _: u64, _: Duration) {
            self.0.lock().unwrap().push("opened");
        }
        fn checked_out(&self, _: u64, _: Duration) {
            self.0.lock().unwrap().push("checked_out");
        }
        fn checked_in(&self, _: u64, _: Duration) {
            self.0.lock().unwrap().push("checked_in");
        }
        fn closed(&self, _: u64, _: CloseReason, _: Duration, _: u64) {
            self.0.lock().unwrap().push("closed");
        }
    }
    struct Panics;
    impl Observer for Panics {
        fn checked_in(&self, _: u64, _: Duration) {
            panic!("an observer of the test panics, as it should");
        }
    }
    let db = database();
    let seen = Arc::new(Seen::default());
    let pool = db
        .pool()
        .max_size(1)
        .min_idle(0)
        .observer(Arc::new(Panics))
        .observer(seen.clone())
        .build()
        .unwrap();
    pool.query("SELECT 1", &[]).unwrap();
    pool.close(SECOND);
    assert_eq!(
        *seen.0.lock().unwrap(),
        ["opened", "checked_out", "checked_in", "closed"]
    );
}

#[test]
fn a_panic_in_a_transaction_rolls_back_and_the_pool_goes_on() {
    let db = database();
    db.admin().batch_execute("CREATE TABLE t (n int)").unwrap();
    let pool = db.pool().max_size(1).build().unwrap();
    let panicked = thread::scope(|scope| {
        let work = || {
            pool.transaction(|tx| -> millpond::Result<()> {
                tx.execute("INSERT INTO t VALUES (1)", &[])?;
                panic!("a closure of the test panics, as it should");
            })
        };
        scope.spawn(work).join().is_err()
    });
    assert!(panicked);
    assert_eq!(pool.query("SELECT n FROM t", &[]).unwrap().len(), 0);
    assert_eq!(pool.stats().active, 0);
}

#[test]
fn a_borrower_who_takes_all_prepared_statements_away_harms_nobody() {
    let db = database();
    db.admin()
        .batch_execute(
            "CREATE TYPE m1 AS ENUM ('a'); CREATE TABLE t1 (m m1); CREATE TYPE m2 AS ENUM ('a'); CREATE TABLE t2 (m m2)",
        )
        .unwrap();
    for (cache, takes) in [
        (256, "DISCARD ALL"),
        (256, "DEALLOCATE ALL"),
        (0, "DEALLOCATE ALL"),
    ] {
        let pool = db
            .pool()
            .statement_cache(cache)
            .max_size(1)
            .build()
            .unwrap();
        // The driver has looked up one type with statements of its own, and must now look up
        // another.
        pool.query("SELECT m FROM t1", &[]).unwrap();
        pool.get().unwrap().batch_execute(takes).unwrap();
        let before = pool.query("SELECT FROM t2", &[]).unwrap().len();
        pool.query("INSERT INTO t2 VALUES ('a') RETURNING m", &[])
            .unwrap();
        let after = pool.query("SELECT FROM t2", &[]).unwrap().len();
        assert_eq!(after, before + 1, "{takes}, {cache} kept");
    }
}

#[test]
fn a_slow_write_is_a_timeout_also_where_its_rows_are_of_a_type_to_be_looked_up() {
    let db = database();
    db.admin()
        .batch_execute("CREATE TYPE m AS ENUM ('a'); CREATE TABLE t (m m)")
        .unwrap();
    let pool = db
        .pool()
        .statement_cache(0)
        .statement_timeout(200 * MS)
        .build()
        .unwrap();
    let sql = "INSERT INTO t SELECT 'a' FROM pg_sleep(2) RETURNING m";
    let error = pool.query(sql, &[]).unwrap_err();
    assert!(
        error.is_timeout() && !error.is_outcome_unknown(),
        "{error:?}"
    );
}
