//! Counters and histograms of a pool's work.

use super::stats::{AbandonedStage, CloseReason};
use ::prometheus::core::Collector;
use ::prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry,
};

/// The lines: of threads for a connection, of requests for a worker.
#[cfg(feature = "server")]
const LINES: [&str; 2] = ["pool", "api"];
#[cfg(not(feature = "server"))]
const LINES: [&str; 1] = ["pool"];

/// Upper bounds of the histograms' buckets, in seconds.
pub const BUCKETS: [f64; 15] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// The counters and histograms of one pool. Clones count into the same.
#[derive(Clone)]
pub(crate) struct Metrics {
    registry: Registry,
    pub create_time: Histogram,
    pub wait_time: Histogram,
    pub use_time: Histogram,
    pub operation: Histogram,
    pub failed_statements: IntCounterVec,
    pub timeouts: IntCounter,
    pub connect_failures: IntCounterVec,
    pub retries: IntCounterVec,
    pub retry_budget_empty: IntCounter,
    pub leaks: IntCounter,
    pub closed: IntCounterVec,
    pub commits: IntCounterVec,
    pub abandoned: IntCounterVec,
    pub reads: IntCounterVec,
    newest_first: IntGaugeVec,
    line_wait: HistogramVec,
    #[cfg(feature = "server")]
    pub http: HistogramVec,
}

impl Default for Metrics {
    fn default() -> Metrics {
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
            failed_statements: counters(
                "millpond_statement_failures_total",
                "Statements that failed, by the server's code; empty if the connection failed.",
                &["sqlstate"],
            ),
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
            leaks: well_formed(IntCounter::new(
                "millpond_leaks_total",
                "Connections that were checked out for longer than the leak threshold.",
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
            abandoned: counters(
                "millpond_requests_abandoned_total",
                "Requests that ended early because nobody waited for them any more, by how far they had come.",
                &["stage"],
            ),
            reads: counters(
                "millpond_reads_total",
                "Reads, where standbys may be used, by where they were answered; moved: on the primary, after a try on a standby.",
                &["server"],
            ),
            newest_first: well_formed(IntGaugeVec::new(
                Opts::new(
                    "millpond_line_newest_first",
                    "1 while the newest in line are served first, because many leave it unserved.",
                ),
                &["line"],
            )),
            line_wait: well_formed(HistogramVec::new(
                opts(
                    "millpond_line_wait_seconds",
                    "Time in line, of those who had to wait, by how it ended.",
                ),
                &["line", "outcome"],
            )),
            #[cfg(feature = "server")]
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
}

impl Metrics {
    fn start_at_zero(&self) {
        for reason in CloseReason::ALL {
            self.closed.with_label_values(&[reason.as_str()]);
        }
        for outcome in ["committed", "not_committed", "unknown"] {
            self.commits.with_label_values(&[outcome]);
        }
        for stage in AbandonedStage::ALL {
            self.abandoned.with_label_values(&[stage.as_str()]);
        }
        for line in LINES {
            self.newest_first.with_label_values(&[line]);
            for outcome in ["served", "timeout", "abandoned", "refused"] {
                self.line_wait.with_label_values(&[line, outcome]);
            }
        }
        self.connect_failures.with_label_values(&[""]);
        self.failed_statements.with_label_values(&[""]);
        for verdict in ["never_sent", "rolled_back", "ambiguous"] {
            self.retries.with_label_values(&["", verdict]);
        }
    }

    /// From now on, it is counted where reads are answered.
    pub fn count_reads(&self) {
        for server in ["standby", "primary", "moved"] {
            self.reads.with_label_values(&[server]);
        }
    }

    fn register(&self) {
        let all: Vec<Box<dyn Collector>> = vec![
            Box::new(self.create_time.clone()),
            Box::new(self.wait_time.clone()),
            Box::new(self.use_time.clone()),
            Box::new(self.operation.clone()),
            Box::new(self.failed_statements.clone()),
            Box::new(self.timeouts.clone()),
            Box::new(self.connect_failures.clone()),
            Box::new(self.retries.clone()),
            Box::new(self.retry_budget_empty.clone()),
            Box::new(self.leaks.clone()),
            Box::new(self.closed.clone()),
            Box::new(self.commits.clone()),
            Box::new(self.abandoned.clone()),
            Box::new(self.reads.clone()),
            Box::new(self.newest_first.clone()),
            Box::new(self.line_wait.clone()),
            #[cfg(feature = "server")]
            Box::new(self.http.clone()),
        ];
        for collector in all {
            well_formed(self.registry.register(collector));
        }
    }

    /// Notes how long somebody was in a line, and how that ended.
    pub fn line_wait_of(&self, line: &str, outcome: &str, seconds: f64) {
        self.line_wait
            .with_label_values(&[line, outcome])
            .observe(seconds);
    }

    /// Notes a change of a line's order.
    pub fn note_order(&self, line: &str, newest_first: bool) {
        let gauge = self.newest_first.with_label_values(&[line]);
        gauge.set(newest_first.into());
    }

    pub fn registry(&self) -> &Registry {
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

/// Unwraps a metric. Names, labels and buckets are constants of this file, and every test that
/// opens a pool shows that they are well formed.
fn well_formed<T>(result: ::prometheus::Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(e) => unreachable!("a metric of our own is malformed: {e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::BUCKETS;

    #[test]
    fn buckets_grow_and_hold_the_two_limits_that_people_alarm_on() {
        assert!(BUCKETS.windows(2).all(|w| w[0] < w[1]));
        assert!(BUCKETS.contains(&0.2) && BUCKETS.contains(&0.5));
    }
}
