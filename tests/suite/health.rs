//! Health reports, whatever state the pool and the database are in.

use super::proxy::{Mode, Proxy};
use super::support::{MS, SECOND, admin, database, eventually, log_lines, server};
use millpond::pool::ProbeError;
use std::thread;
use std::time::Instant;

#[test]
fn a_live_database_is_healthy_with_the_time_of_a_round_trip() {
    let pool = database().pool().build().unwrap();
    let health = pool.health();
    assert!(health.healthy && health.error.is_none(), "{health:?}");
    assert!(health.latency.unwrap() < SECOND);
}

#[test]
fn the_metrics_say_nothing_of_the_probe_until_somebody_asks() {
    let pool = database().pool().build().unwrap();
    pool.wait_ready(20 * SECOND).unwrap();
    assert!(!pool.metrics_text().contains("millpond_probe_up"));
    eventually("it is healthy", || pool.health().healthy);
    assert!(pool.metrics_text().contains("millpond_probe_up 1\n"));
}

#[test]
fn a_saturated_pool_on_a_live_database_is_healthy_and_shows_its_waiters() {
    let pool = database()
        .pool()
        .max_size(2)
        .connection_timeout(20 * SECOND)
        .build()
        .unwrap();
    let held: Vec<_> = (0..2).map(|_| pool.get().unwrap()).collect();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| drop(pool.get().unwrap()));
        }
        eventually("three are in line", || pool.stats().waiting == 3);
        let health = pool.health();
        assert!(health.healthy, "{health:?}");
        let stats = health.stats;
        assert_eq!(
            (stats.active, stats.waiting, stats.utilization_percent()),
            (2, 3, 100.0)
        );
        drop(held);
    });
}

#[test]
fn those_who_ask_together_share_one_answer() {
    let db = database();
    let proxy = Proxy::in_front_of(db.port);
    let pool = super::support::pool(&proxy.url(&db.url))
        .min_idle(0)
        .build()
        .unwrap();
    eventually("it is healthy", || pool.health().healthy);
    thread::sleep(300 * MS);
    proxy.take_log();
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| assert!(pool.health().healthy));
        }
    });
    let asked = proxy
        .take_log()
        .iter()
        .filter(|p| **p == super::proxy::Passed::Frontend('Q'))
        .count();
    assert!((1..=2).contains(&asked), "{asked} probes");
}

#[test]
fn what_is_wrong_is_named() {
    let db = database();
    let unused = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let wrong_password = {
        let (before, after) = db.url.split_once('@').unwrap();
        format!("{}:wrong@{after}", before.rsplit_once(':').unwrap().0)
    };
    for (url, error, code) in [
        (
            db.url
                .replace(&format!(":{}/", db.port), &format!(":{unused}/")),
            ProbeError::Refused,
            None,
        ),
        (
            db.url.replace("127.0.0.1", "no-such-host.invalid"),
            ProbeError::Unreachable,
            None,
        ),
        (wrong_password, ProbeError::Authentication, Some("28P01")),
        (
            format!("{}_not", db.url),
            ProbeError::UnknownDatabase,
            Some("3D000"),
        ),
    ] {
        let pool = super::support::pool(&url).build().unwrap();
        // On a busy machine the first answers may come too late.
        eventually("the cause is named", || {
            let health = pool.health();
            assert!(!health.healthy && health.latency.is_none());
            (health.error, health.sqlstate.as_deref()) == (Some(error), code)
        });
    }
}

#[test]
fn a_server_that_is_silent_is_a_timeout_and_recovery_is_seen() {
    let db = database();
    let proxy = Proxy::in_front_of(db.port);
    let pool = super::support::pool(&proxy.url(&db.url)).build().unwrap();
    eventually("it is healthy", || pool.health().healthy);
    proxy.set(Mode::BlackHole);
    thread::sleep(300 * MS);
    for _ in 0..2 {
        let started = Instant::now();
        let health = pool.health();
        assert!(
            started.elapsed() < 890 * MS + super::frozen::slack(),
            "{:?}",
            started.elapsed()
        );
        assert_eq!(health.error, Some(ProbeError::Timeout));
        thread::sleep(300 * MS);
    }
    proxy.set(Mode::Pass);
    eventually("it is healthy again", || pool.health().healthy);
}

#[test]
fn the_servers_room_is_known_and_little_of_it_is_a_warning() {
    let server = server(&[("max_connections", "20")]);
    let url = server.url();
    let pool = super::support::pool(&url)
        .application_name("ours")
        .max_size(2)
        .min_idle(2)
        .build()
        .unwrap();
    pool.wait_ready(20 * SECOND).unwrap();
    assert_eq!(pool.headroom(), None);
    let theirs = format!("{url}?application_name=theirs");
    let _theirs: Vec<_> = (0..13).map(|_| admin(&theirs)).collect();
    let warned = log_lines("the server has room for").len();
    eventually("it is seen", || {
        pool.health();
        pool.headroom().is_some()
    });
    let room = pool.headroom().unwrap();
    assert_eq!((room.max, room.reserved), (20, 3));
    // The probe's own connection is one of ours.
    assert_eq!(room.by_application[0], ("theirs".into(), 13));
    assert_eq!(room.by_application[1], ("ours".into(), 3));
    assert_eq!((room.in_use, room.available()), (16, 1));
    assert!(log_lines("the server has room for").len() > warned);
    let text = pool.metrics_text();
    for line in [
        "millpond_server_connections_max 20",
        "millpond_server_connections_available 1",
        "millpond_server_connections_used{application_name=\"theirs\"} 13",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}
