//! How soon reads succeed again after an outage. The test prints its figures; as in `frozen`, it
//! checks them against strict bounds only if `MILLPOND_TEST_FIGURES` is set. The bounds are for a
//! release build on an idle machine.

use super::support::{EndAtDrop, SECOND, eventually, server};
use millpond::Pool;
use millpond::embedded::{PrivateServer, Stop};
use millpond::error::OpenError;
use millpond::pool::Observer;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const READERS: usize = 50;
/// The rate of reads is measured over this time.
const WINDOW: Duration = Duration::from_millis(100);

/// Counts failed attempts to connect.
#[derive(Default)]
struct Attempts(AtomicUsize);

impl Observer for Attempts {
    fn open_failed(&self, _error: &OpenError) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct Comeback {
    first: Duration,
    /// `None` if the rate was not reached within two seconds.
    at_rate: Option<Duration>,
    attempts_per_second: f64,
    errors: usize,
}

fn after_an_outage_of(outage: Duration, server: &mut PrivateServer) -> Comeback {
    let attempts = Arc::new(Attempts::default());
    let pool = Pool::builder()
        .database_url(&server.url())
        .fail_fast_after(outage + 10 * SECOND)
        .observer(Arc::clone(&attempts) as Arc<dyn Observer>)
        .build()
        .unwrap();
    let (over, reads) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (mut reads_at, errors, down, accepting) = thread::scope(|scope| {
        let end = EndAtDrop(&over);
        let readers: Vec<_> = (0..READERS)
            .map(|_| {
                scope.spawn(|| {
                    let (mut at, mut errors) = (Vec::new(), 0);
                    while !over.load(Ordering::Relaxed) {
                        let by = Instant::now() + outage + 5 * SECOND;
                        match pool.call().with_deadline(by).read("SELECT 1", &[]) {
                            Ok(_) => at.push(Instant::now()),
                            Err(_) => errors += 1,
                        }
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                    (at, errors)
                })
            })
            .collect();
        eventually("they read", || reads.load(Ordering::Relaxed) > 1000);
        thread::sleep(SECOND);
        server.stop(Stop::Fast);
        let (down, before) = (Instant::now(), attempts.0.load(Ordering::Relaxed));
        thread::sleep(outage);
        let tried = attempts.0.load(Ordering::Relaxed) - before;
        server.start_again().unwrap();
        let accepting = said_ready(server);
        thread::sleep(2 * SECOND);
        drop(end);
        let (mut reads_at, mut errors) = (Vec::new(), 0);
        for reader in readers {
            let (at, failed) = reader.join().unwrap();
            reads_at.extend(at);
            errors += failed;
        }
        (reads_at, errors, (down, tried), accepting)
    });
    reads_at.sort_unstable();
    let (down, tried) = down;
    let in_window = |from: Instant| {
        let until = from + WINDOW;
        reads_at.partition_point(|at| *at < until) - reads_at.partition_point(|at| *at < from)
    };
    // The second before the outage, without the moment in which the server was already stopping.
    let before = (4..10)
        .map(|n| in_window(down.checked_sub(n * WINDOW).unwrap()))
        .sum::<usize>() as f64
        / 6.0;
    let first = reads_at[reads_at.partition_point(|at| *at < accepting.min(down + outage))..][0];
    let step = WINDOW / 10;
    let at_rate = (0..200)
        .map(|n| n * step)
        .find(|since| in_window(accepting + *since) as f64 >= 0.9 * before);
    Comeback {
        first: first.saturating_duration_since(accepting),
        at_rate,
        attempts_per_second: tried as f64 / outage.as_secs_f64(),
        errors,
    }
}

/// When the server logged that it was ready; the test notices the start slightly later.
fn said_ready(server: &PrivateServer) -> Instant {
    let log = server.log();
    let line = log
        .lines()
        .rfind(|line| line.contains("ready to accept connections"))
        .expect("a start in the log");
    // Of a log line `2030-01-02 03:04:05.678 UTC [..`, only the time within the minute matters.
    let seconds: f64 = line[17..23].parse().expect("seconds");
    let since_epoch = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let now = since_epoch.as_secs_f64() % 60.0;
    Instant::now()
        .checked_sub(Duration::from_secs_f64((now - seconds).rem_euclid(60.0)))
        .unwrap()
}

#[test]
fn reading_goes_on_at_once_and_nobody_gets_an_error() {
    // Timings on such machines are noisy: of three runs, the median counts.
    let strict = std::env::var_os("MILLPOND_TEST_FIGURES").is_some();
    let times = if strict { 3 } else { 1 };
    let mut server = server(&[]);
    let outages: &[f64] = match strict {
        true => &[0.2, 1.0, 5.0, 15.0],
        false => &[0.2, 3.0],
    };
    for outage in outages.iter().copied().map(Duration::from_secs_f64) {
        let all: Vec<_> = (0..times)
            .map(|_| after_an_outage_of(outage, &mut server))
            .collect();
        for it in &all {
            println!(
                "outage {outage:?}: first success {:.1?}, 90 % of the rate {:?}, {:.0} attempts/s, {} errors",
                it.first, it.at_rate, it.attempts_per_second, it.errors
            );
            assert_eq!(it.errors, 0, "{outage:?}");
            // Thread scheduling may move one attempt into a short outage.
            let most = 60.0 + 1.0 / outage.as_secs_f64();
            assert!(it.attempts_per_second <= most, "{}", it.attempts_per_second);
        }
        if strict {
            let late = Duration::MAX;
            let first = middle(all.iter().map(|it| it.first));
            let at_rate = middle(all.iter().map(|it| it.at_rate.unwrap_or(late)));
            assert!(first <= Duration::from_millis(100), "{first:?}");
            assert!(at_rate <= Duration::from_millis(300), "{at_rate:?}");
        }
    }
}

fn middle(times: impl Iterator<Item = Duration>) -> Duration {
    let mut times: Vec<_> = times.collect();
    times.sort_unstable();
    times[times.len() / 2]
}
