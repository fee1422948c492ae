//! The figures of a pool: what it is doing, and what it has done.

use ::prometheus::core::Collector;
use ::prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry,
};
use std::fmt;

/// Upper bounds of the histograms' buckets, in seconds.
pub const BUCKETS: [f64; 15] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// The pool's figures at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Connections there are or are being opened: `idle + active + opening`.
    pub total: usize,
    /// Connections that wait for work.
    pub idle: usize,
    /// Connections that are checked out.
    pub active: usize,
    /// Connections that are being opened.
    pub opening: usize,
    /// Threads in line for a connection.
    pub waiting: usize,
    /// The most connections there may be.
    pub max: usize,
    /// The idle connections that are kept ready.
    pub min_idle: usize,
}

impl Stats {
    /// Checked-out connections in percent of the most there may be, to two decimals.
    pub fn utilization_percent(&self) -> f64 {
        if self.max == 0 {
            return 0.0;
        }
        (self.active as f64 / self.max as f64 * 10_000.0).round() / 100.0
    }
}

/// Why a connection was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseReason {
    /// Idle beyond the idle timeout, above the minimum.
    IdleTimeout,
    /// Older than its lifetime.
    MaxLifetime,
    /// Checked out as often as allowed.
    MaxUses,
    /// Lost, or not to be trusted after an error.
    Broken,
    /// From before the server was restarted or replaced.
    FailedOver,
    /// The pool was closed.
    Drained,
    /// What its borrower left behind could not be cleaned up.
    LeakedState,
}

impl CloseReason {
    /// All there are.
    pub const ALL: [CloseReason; 7] = [
        CloseReason::IdleTimeout,
        CloseReason::MaxLifetime,
        CloseReason::MaxUses,
        CloseReason::Broken,
        CloseReason::FailedOver,
        CloseReason::Drained,
        CloseReason::LeakedState,
    ];

    /// The word used in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            CloseReason::IdleTimeout => "idle_timeout",
            CloseReason::MaxLifetime => "max_lifetime",
            CloseReason::MaxUses => "max_uses",
            CloseReason::Broken => "broken",
            CloseReason::FailedOver => "failed_over",
            CloseReason::Drained => "drained",
            CloseReason::LeakedState => "leaked_state",
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The counters and histograms of one pool.
pub struct Metrics {
    registry: Registry,
    pub(crate) create_time: Histogram,
    pub(crate) wait_time: Histogram,
    pub(crate) use_time: Histogram,
    pub(crate) operation: Histogram,
    pub(crate) timeouts: IntCounter,
    pub(crate) connect_failures: IntCounterVec,
    pub(crate) retries: IntCounterVec,
    pub(crate) retry_budget_empty: IntCounter,
    pub(crate) closed: IntCounterVec,
    pub(crate) commits: IntCounterVec,
    pub(crate) http: HistogramVec,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let registry = Registry::new();
        let metrics = Metrics {
            create_time: histogram(
                "db_client_connection_create_time_seconds",
                "Time to open a connection.",
            ),
            wait_time: histogram(
                "db_client_connection_wait_time_seconds",
                "Time a thread waited for a connection.",
            ),
            use_time: histogram(
                "db_client_connection_use_time_seconds",
                "Time a connection was checked out.",
            ),
            operation: well_formed(Histogram::with_opts(
                opts(
                    "db_client_operation_duration_seconds",
                    "Duration of one statement.",
                )
                .const_label("db_system_name", "postgresql"),
            )),
            timeouts: well_formed(IntCounter::new(
                "db_client_connection_timeouts_total",
                "Waits for a connection that ended at their deadline.",
            )),
            connect_failures: counters(
                "millpond_connect_failures_total",
                "Attempts to open a connection that failed.",
                &["sqlstate"],
            ),
            retries: counters(
                "millpond_retries_total",
                "Attempts after the first.",
                &["sqlstate", "verdict"],
            ),
            retry_budget_empty: well_formed(IntCounter::new(
                "millpond_retry_budget_empty_total",
                "Retries that were not made because the pool's retry budget was empty.",
            )),
            closed: counters(
                "millpond_connections_closed_total",
                "Connections that were closed.",
                &["reason"],
            ),
            commits: counters(
                "millpond_commit_outcomes_total",
                "Commits whose answer was lost, by what became of them.",
                &["outcome"],
            ),
            http: well_formed(HistogramVec::new(
                opts(
                    "http_server_request_duration_seconds",
                    "Duration of one HTTP request.",
                ),
                &[
                    "http_request_method",
                    "http_route",
                    "http_response_status_code",
                ],
            )),
            registry,
        };
        metrics.start_at_zero();
        metrics.register();
        metrics
    }

    fn start_at_zero(&self) {
        for reason in CloseReason::ALL {
            self.closed.with_label_values(&[reason.as_str()]);
        }
        for outcome in ["committed", "not_committed", "unknown"] {
            self.commits.with_label_values(&[outcome]);
        }
        self.connect_failures.with_label_values(&[""]);
        for verdict in ["never_sent", "rolled_back", "ambiguous"] {
            self.retries.with_label_values(&["", verdict]);
        }
    }

    fn register(&self) {
        let all: [Box<dyn Collector>; 11] = [
            Box::new(self.create_time.clone()),
            Box::new(self.wait_time.clone()),
            Box::new(self.use_time.clone()),
            Box::new(self.operation.clone()),
            Box::new(self.timeouts.clone()),
            Box::new(self.connect_failures.clone()),
            Box::new(self.retries.clone()),
            Box::new(self.retry_budget_empty.clone()),
            Box::new(self.closed.clone()),
            Box::new(self.commits.clone()),
            Box::new(self.http.clone()),
        ];
        for collector in all {
            well_formed(self.registry.register(collector));
        }
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }
}

fn opts(name: &str, help: &str) -> HistogramOpts {
    HistogramOpts::new(name, help).buckets(BUCKETS.to_vec())
}

fn histogram(name: &str, help: &str) -> Histogram {
    well_formed(Histogram::with_opts(opts(name, help)))
}

fn counters(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    well_formed(IntCounterVec::new(Opts::new(name, help), labels))
}

/// Names, labels and buckets are constants of this file; that they are well formed is shown by every test that opens a pool.
fn well_formed<T>(result: ::prometheus::Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(e) => unreachable!("a metric of our own is malformed: {e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utilization_is_active_of_max_to_two_decimals() {
        let stats = |active, max| Stats {
            active,
            max,
            ..Stats::default()
        };
        assert_eq!(stats(1, 20).utilization_percent(), 5.0);
        assert_eq!(stats(1, 3).utilization_percent(), 33.33);
        assert_eq!(stats(3, 3).utilization_percent(), 100.0);
        assert_eq!(stats(0, 0).utilization_percent(), 0.0);
    }

    #[test]
    fn buckets_grow_and_hold_the_two_limits_that_people_alarm_on() {
        assert!(BUCKETS.windows(2).all(|w| w[0] < w[1]));
        assert!(BUCKETS.contains(&0.2) && BUCKETS.contains(&0.5));
    }
}
