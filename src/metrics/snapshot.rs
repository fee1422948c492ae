//! The counters and histograms at one moment, as numbers.

use super::series::{BUCKETS, Metrics};
use ::prometheus::core::{Collector, Metric};
use ::prometheus::{Histogram, IntCounterVec, proto};

/// The counters and two histograms at one moment.
#[derive(Clone, Default)]
pub(crate) struct Snapshot {
    pub wait: Buckets,
    pub operation: Buckets,
    pub statement_failures: Vec<Labelled>,
    pub connect_failures: Vec<Labelled>,
    pub retries: Vec<Labelled>,
    pub closed: Vec<Labelled>,
    pub commits: Vec<Labelled>,
    pub timeouts: u64,
    pub retry_budget_empty: u64,
    pub leaks: u64,
    /// HTTP requests, by the first digit of their status.
    pub requests: [u64; 6],
}

/// One series of a counter: its labels' values, in the order of their names, and its value.
pub(crate) type Labelled = (Vec<String>, u64);

/// How many observations fell into each bucket of a histogram.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Buckets {
    /// Below each of [`BUCKETS`], and not below the bound before it; at last, those above all.
    counts: [u64; BUCKETS.len() + 1],
}

impl Buckets {
    fn of(histogram: &Histogram) -> Buckets {
        Buckets::of_proto(&histogram.metric())
    }

    fn of_proto(metric: &proto::Metric) -> Buckets {
        let histogram = metric.get_histogram();
        let mut counts = [0; BUCKETS.len() + 1];
        let mut below = 0;
        for (count, bucket) in counts.iter_mut().zip(histogram.get_bucket()) {
            *count = bucket.cumulative_count() - below;
            below = bucket.cumulative_count();
        }
        counts[BUCKETS.len()] = histogram.get_sample_count().saturating_sub(below);
        Buckets { counts }
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What was observed since an earlier moment.
    pub fn since(&self, earlier: &Buckets) -> Buckets {
        let mut counts = self.counts;
        for (count, before) in counts.iter_mut().zip(earlier.counts) {
            *count = count.saturating_sub(before);
        }
        Buckets { counts }
    }

    /// The value, in seconds, below which this part of the observations lies, as evenly as they may
    /// be spread within their bucket; `None` without observations.
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let all = self.count();
        let rank = all as f64 * part;
        let mut seen = 0;
        for (nth, count) in self.counts.iter().enumerate() {
            if *count > 0 && (seen + count) as f64 >= rank {
                let low = if nth == 0 { 0.0 } else { BUCKETS[nth - 1] };
                let high = BUCKETS.get(nth).copied().unwrap_or(low);
                return Some(low + (high - low) * (rank - seen as f64) / *count as f64);
            }
            seen += count;
        }
        None
    }
}

fn labelled(counters: &IntCounterVec) -> Vec<Labelled> {
    let families = counters.collect();
    let mut all: Vec<Labelled> = families
        .iter()
        .flat_map(proto::MetricFamily::get_metric)
        .map(|metric| {
            let values = metric.get_label().iter();
            let values = values.map(|label| label.value().to_owned()).collect();
            (values, metric.get_counter().get_value() as u64)
        })
        .filter(|(_, count)| *count > 0)
        .collect();
    all.sort();
    all
}

impl Metrics {
    pub fn snapshot(&self) -> Snapshot {
        let mut requests = [0; 6];
        for family in self.http.collect() {
            for metric in family.get_metric() {
                let mut labels = metric.get_label().iter();
                let status = labels.find(|label| label.name() == "http_response_status_code");
                let digit = status.and_then(|label| label.value().chars().next()?.to_digit(10));
                let class = digit.unwrap_or_default().min(5) as usize;
                requests[class] += metric.get_histogram().get_sample_count();
            }
        }
        Snapshot {
            wait: Buckets::of(&self.wait_time),
            operation: Buckets::of(&self.operation),
            statement_failures: labelled(&self.failed_statements),
            connect_failures: labelled(&self.connect_failures),
            retries: labelled(&self.retries),
            closed: labelled(&self.closed),
            commits: labelled(&self.commits),
            timeouts: self.timeouts.get(),
            retry_budget_empty: self.retry_budget_empty.get(),
            leaks: self.leaks.get(),
            requests,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_within_their_buckets() {
        let metrics = Metrics::default();
        assert_eq!(metrics.snapshot().operation.quantile(0.5), None);
        for _ in 0..98 {
            metrics.operation.observe(0.000_3);
        }
        metrics.operation.observe(0.3);
        metrics.operation.observe(99.0);
        let now = metrics.snapshot().operation;
        assert_eq!(now.count(), 100);
        let [p50, p99, all] = [0.5, 0.99, 1.0].map(|part| now.quantile(part).unwrap());
        assert!(p50 > 0.0 && p50 < 0.000_5, "{p50}");
        assert!(p99 > 0.25 && p99 <= 0.5, "{p99}");
        assert_eq!(all, 10.0, "the last bound is the most that is known");
        metrics.operation.observe(0.04);
        let newest = metrics.snapshot().operation.since(&now);
        assert_eq!(newest.count(), 1);
        assert!((0.025..=0.05).contains(&newest.quantile(0.5).unwrap()));
    }

    #[test]
    fn only_what_has_occurred_is_counted() {
        let metrics = Metrics::default();
        metrics
            .retries
            .with_label_values(&["40001", "rolled_back"])
            .inc();
        let labels = ["GET", "/", "503"];
        metrics.http.with_label_values(&labels).observe(0.1);
        let now = metrics.snapshot();
        let labels = vec!["40001".to_owned(), "rolled_back".to_owned()];
        assert_eq!(now.retries, [(labels, 1)]);
        assert!(now.closed.is_empty());
        assert_eq!(now.requests, [0, 0, 0, 0, 0, 1]);
    }
}
