//! Stands in for the counters without the feature `metrics`: counts nothing.

/// A counter or a histogram, with or without labels.
#[derive(Clone, Default)]
pub(crate) struct Silent;

impl Silent {
    pub fn inc(&self) {}

    pub fn observe(&self, _value: f64) {}

    pub fn with_label_values(&self, _labels: &[&str]) -> &Silent {
        self
    }
}

/// The same fields as with the feature.
#[derive(Clone, Default)]
pub(crate) struct Metrics {
    pub create_time: Silent,
    pub wait_time: Silent,
    pub use_time: Silent,
    pub operation: Silent,
    pub failed_statements: Silent,
    pub timeouts: Silent,
    pub connect_failures: Silent,
    pub retries: Silent,
    pub retry_budget_empty: Silent,
    pub leaks: Silent,
    pub closed: Silent,
    pub commits: Silent,
    pub abandoned: Silent,
    pub reads: Silent,
}

impl Metrics {
    pub fn count_reads(&self) {}

    pub fn note_order(&self, _line: &str, _newest_first: bool) {}

    pub fn line_wait_of(&self, _line: &str, _outcome: &str, _seconds: f64) {}
}
