//! Databases that are far away, or slow to let anybody in.

use super::support::{MS, SECOND, database, eventually, pool};
use millpond::Error;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A way to the server that takes time.
struct Way {
    port: u16,
    /// The most connections at the same time whose login was not finished.
    most: Arc<AtomicUsize>,
}

/// Relays to a port. Each answer of the server arrives `later`, the first one `login` later.
fn way_to(upstream: u16, later: Duration, login: Duration) -> Way {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let most = Arc::<AtomicUsize>::default();
    let way = Way {
        port,
        most: Arc::clone(&most),
    };
    let now = Arc::<AtomicUsize>::default();
    thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(mut client) = client else { return };
            let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, upstream)).unwrap();
            client.set_nodelay(true).unwrap();
            server.set_nodelay(true).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            let (most, now) = (Arc::clone(&most), Arc::clone(&now));
            thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
            thread::spawn(move || {
                let mut buffer = [0; 16 * 1024];
                let mut first = true;
                while let Ok(count @ 1..) = server.read(&mut buffer) {
                    if std::mem::take(&mut first) && !login.is_zero() {
                        let waiting = now.fetch_add(1, Ordering::SeqCst) + 1;
                        most.fetch_max(waiting, Ordering::SeqCst);
                        thread::sleep(login);
                        now.fetch_sub(1, Ordering::SeqCst);
                    }
                    thread::sleep(later);
                    if client.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
                let _ = client.shutdown(Shutdown::Both);
            });
        }
    });
    way
}

impl Way {
    fn url(&self, direct: &str, port: u16) -> String {
        direct.replace(&format!(":{port}/"), &format!(":{}/", self.port))
    }
}

#[test]
fn a_connection_may_take_longer_to_open_than_a_caller_waits() {
    let db = database();
    let way = way_to(db.port, 300 * MS, Duration::ZERO);
    let pool = pool(&way.url(&db.url, db.port))
        .max_size(2)
        .min_idle(0)
        .connection_timeout(500 * MS)
        .statement_timeout(20 * SECOND)
        .query_timeout(20 * SECOND)
        .build()
        .unwrap();
    let error = pool.get().unwrap_err();
    assert!(matches!(error, Error::Checkout(_)), "{error:?}");
    // It was left to the next.
    eventually("a connection", || pool.stats().idle > 0);
    let started = Instant::now();
    pool.execute("SELECT 1", &[]).unwrap();
    assert!(started.elapsed() >= 300 * MS, "it is not far away");
}

#[test]
fn opening_has_a_limit_of_its_own() {
    let db = database();
    let way = way_to(db.port, Duration::ZERO, 4 * SECOND);
    for (text, limit) in [("", Some(SECOND)), ("?connect_timeout=1", None)] {
        let url = way.url(&db.url, db.port) + text;
        let builder = pool(&url).connection_timeout(3 * SECOND).min_idle(0);
        let builder = match limit {
            Some(limit) => builder.connect_timeout(limit),
            None => builder,
        };
        let pool = builder.fail_fast_after(Duration::ZERO).build().unwrap();
        let started = Instant::now();
        let error = pool.execute("SELECT 1", &[]).unwrap_err();
        let said = millpond::error::Chain(&error).to_string();
        assert!(said.contains("did not complete the login within"), "{said}");
        assert!(started.elapsed() >= 900 * MS, "{:?}", started.elapsed());
    }
}

#[test]
fn health_keeps_its_session_however_long_a_login_takes() {
    let db = database();
    // A login takes more than a second, an answer next to nothing.
    let slow_login = way_to(db.port, Duration::ZERO, 1200 * MS);
    // Each answer takes longer than a caller of the health check waits.
    let far = way_to(db.port, 900 * MS, Duration::ZERO);
    for way in [slow_login, far] {
        let pool = pool(&way.url(&db.url, db.port))
            .max_size(2)
            .connect_timeout(30 * SECOND)
            .build()
            .unwrap();
        eventually("healthy", || pool.health().healthy);
        for n in 0..3 {
            let started = Instant::now();
            let health = pool.health();
            assert!(health.healthy, "{n}: {health:?}");
            assert!(started.elapsed() < 2 * SECOND);
            thread::sleep(300 * MS);
        }
    }
}

#[test]
fn as_many_connections_are_opened_at_once_as_the_line_needs_up_to_ten() {
    let db = database();
    let way = way_to(db.port, Duration::ZERO, SECOND);
    let pool = pool(&way.url(&db.url, db.port))
        .max_size(40)
        .min_idle(0)
        .connection_timeout(30 * SECOND)
        .build()
        .unwrap();
    let started = Instant::now();
    thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| {
                pool.transaction(|tx| tx.execute("SELECT pg_sleep(4)", &[]))
                    .unwrap()
            });
        }
    });
    let took = started.elapsed();
    let most = way.most.load(Ordering::SeqCst);
    // The attempts that are made beside those that wait, before it is known how long a login takes,
    // count as well.
    assert!((8..=15).contains(&most), "{most} at once");
    assert!(took < 12 * SECOND, "{took:?}");
}
