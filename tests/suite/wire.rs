//! Traffic on the wire: no more round trips than needed.

use super::proxy::{Passed, Proxy};
use super::support::database;
use Passed::{Backend, Frontend};

/// Frontend messages by flight: a flight holds the messages that were sent before an answer came.
pub fn flights(log: &[Passed]) -> Vec<String> {
    let mut flights: Vec<String> = Vec::new();
    let mut answered = true;
    for passed in log {
        match passed {
            Frontend(tag) => {
                if std::mem::take(&mut answered) {
                    flights.push(String::new());
                }
                flights.last_mut().expect("just pushed").push(*tag);
            }
            Backend(_) => answered = true,
        }
    }
    flights
}

#[test]
fn a_warm_query_is_one_round_trip() {
    let db = database();
    let proxy = Proxy::in_front_of(db.port);
    let pool = super::support::pool(&proxy.url(&db.url))
        .max_size(1)
        .build()
        .unwrap();
    let query = |n: i32| {
        assert_eq!(
            pool.query("SELECT $1::int", &[&n]).unwrap()[0].get::<_, i32>(0),
            n
        );
    };
    query(0);
    proxy.take_log();
    for n in 1..=5 {
        query(n);
    }
    // Bind, Execute, Sync; the answer is BindComplete, DataRow, CommandComplete, ReadyForQuery.
    let log = proxy.take_log();
    assert_eq!(flights(&log), ["BES"; 5]);
    assert_eq!(log.iter().filter(|p| **p == Backend('Z')).count(), 5);
}

#[test]
fn a_check_out_that_is_not_used_sends_nothing() {
    let db = database();
    let proxy = Proxy::in_front_of(db.port);
    let pool = super::support::pool(&proxy.url(&db.url))
        .max_size(1)
        .build()
        .unwrap();
    drop(pool.get().unwrap());
    proxy.take_log();
    for _ in 0..5 {
        drop(pool.get().unwrap());
    }
    assert_eq!(proxy.take_log(), []);
}
