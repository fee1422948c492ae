//! Several instances of a program on one budget of connections.

use super::support::{EndAtDrop, MS, SECOND, admin, backends, eventually, server};
use millpond::Pool;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

fn member(url: &str, name: &str, budget: u32) -> Pool {
    super::support::pool(url)
        .application_name(name)
        .max_size(20)
        .min_idle(0)
        .fleet_max(budget)
        // Connections are replaced all the while, within the budget.
        .max_uses(20)
        .connection_timeout(20 * SECOND)
        .build()
        .unwrap()
}

/// Keeps all connections busy that the pool may have.
fn work(pool: &Pool, over: &AtomicBool) {
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) && !pool.is_closed() {
                    let asked = pool.query("SELECT pg_sleep(0.01)", &[]);
                    assert!(asked.is_ok() || pool.is_closed(), "{asked:?}");
                }
            });
        }
    });
}

#[test]
fn members_share_the_budget_and_take_up_what_others_leave() {
    const BUDGET: usize = 12;
    let server = server(&[]);
    let url = server.url();
    let pools: [OnceLock<Pool>; 3] = Default::default();
    // All members have one name; the server tells them apart by nothing else.
    let start = |nth: usize| pools[nth].get_or_init(|| member(&url, "fleet", BUDGET as u32));
    // One of another name is no member.
    let stranger = member(&url, "strangers", 100);
    let over = AtomicBool::new(false);
    let joined = AtomicUsize::new(0);
    let most = AtomicUsize::new(0);
    thread::scope(|scope| {
        let end = EndAtDrop(&over);
        scope.spawn(|| {
            let mut admin = admin(&url);
            while !over.load(Ordering::SeqCst) {
                let open = backends(&mut admin, "fleet").len();
                most.fetch_max(open, Ordering::SeqCst);
                // A joiner has one connection, and the session that holds its claim.
                let allowed = BUDGET + 2 * joined.load(Ordering::SeqCst);
                assert!(open <= allowed, "{open} of {allowed}");
                thread::sleep(20 * MS);
            }
        });
        let run = |nth: usize| {
            joined.fetch_add(1, Ordering::SeqCst);
            let (pool, over) = (start(nth), &over);
            scope.spawn(move || work(pool, over));
            pool
        };
        let maxima = |expected: &[usize]| {
            eventually("each has its share", || {
                let open = pools.iter().filter_map(|pool| pool.get());
                let open: Vec<_> = open
                    .filter(|pool| !pool.is_closed())
                    .map(|pool| pool.stats().max)
                    .collect();
                open == expected
            });
            eventually("the budget is kept", || {
                backends(&mut admin(&url), "fleet").len() <= BUDGET
            });
        };
        let one = run(0);
        assert_eq!(one.stats().max, 1, "it begins with one");
        maxima(&[11]);
        eventually("it uses all of it", || {
            backends(&mut admin(&url), "fleet").len() == BUDGET
        });
        run(1);
        maxima(&[5, 5]);
        run(2);
        maxima(&[3, 3, 3]);
        one.close(5 * SECOND);
        maxima(&[5, 5]);
        // What the application asks for counts as well.
        pools[1].get().unwrap().resize(2).unwrap();
        maxima(&[2, 5]);
        drop(end);
    });
    println!("at most {} were open", most.load(Ordering::SeqCst));
    eventually("it is alone", || stranger.stats().max == 20);
}

#[test]
fn a_server_without_room_makes_a_member_step_back() {
    let server = server(&[("max_connections", "12")]);
    let url = server.url();
    // The budget is more than the server has: three are reserved for superusers, but the tests' role
    // is one.
    let pool = member(&url, "fleet", 30);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = EndAtDrop(&over);
        scope.spawn(|| work(&pool, &over));
        eventually(
            "it has grown beyond what there is, and has stepped back",
            || server.log().contains("too many clients") && pool.stats().max < 10,
        );
        drop(end);
    });
}

#[test]
#[cfg(feature = "lab")]
fn twelve_instances_are_replaced_one_by_one_under_load_and_no_request_fails() {
    use super::cli::{Serving, serve};
    use super::http;
    use std::net::SocketAddr;
    use std::sync::Mutex;

    let server = server(&[("max_connections", "40")]);
    let url = server.url();
    let dir = tempfile::TempDir::new().unwrap();
    let vars = [
        ("DATABASE_URL", &*url),
        ("DB_APPLICATION_NAME", "fleet"),
        ("DB_FLEET_MAX", "30"),
        ("DB_POOL_MAX", "10"),
        ("SHUTDOWN_DELAY_MS", "500"),
    ];
    let address = |serving: &Serving| SocketAddr::from(([127, 0, 0, 1], serving.port));
    let ready = || {
        let mut serving = serve(dir.path(), &vars);
        eventually("it is ready", || serving.is_ready());
        serving
    };
    let mut instances: Vec<_> = (0..12).map(|_| ready()).collect();
    // What a balancer knows.
    let rotation: Mutex<Vec<_>> = Mutex::new(instances.iter().map(address).collect());
    let (over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let odd = Mutex::new(Vec::new());
    thread::scope(|scope| {
        let end = EndAtDrop(&over);
        for client in 0..24 {
            let (rotation, odd, over, answered) = (&rotation, &odd, &over, &answered);
            scope.spawn(move || {
                for turn in client.. {
                    if over.load(Ordering::SeqCst) {
                        return;
                    }
                    // Thousands of ended connections would only slow the machine.
                    thread::sleep(5 * MS);
                    let to = rotation.lock().unwrap()[turn % 12];
                    let answer = http::get(to, "/api/studios?limit=1");
                    answered.fetch_add(1, Ordering::SeqCst);
                    if answer.status != 200 {
                        odd.lock().unwrap().push(format!("{answer:?}"));
                    }
                }
            });
        }
        let mut most = 0;
        for (nth, instance) in instances.iter_mut().enumerate() {
            let next = ready();
            rotation.lock().unwrap()[nth] = address(&next);
            let mut old = std::mem::replace(instance, next);
            old.signal("TERM");
            assert_eq!(old.ends(), Some(0), "{}", old.log());
            most = most.max(backends(&mut admin(&url), "fleet").len());
        }
        drop(end);
        println!(
            "{} requests, at most {most} connections seen",
            answered.load(Ordering::SeqCst)
        );
    });
    let odd = odd.into_inner().unwrap();
    assert!(odd.is_empty(), "{} failed: {:?}", odd.len(), odd.first());
    assert!(!server.log().contains("too many clients"), "53300");
}
