//! A pool's metrics, as Prometheus reads them.

use super::checkout::Pool;
use crate::metrics::prometheus::Gauges;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use std::collections::HashMap;

impl Pool {
    /// Returns the counters, histograms and gauges in the text format of Prometheus
    /// ([`CONTENT_TYPE`](crate::metrics::prometheus::CONTENT_TYPE)).
    pub fn metrics_text(&self) -> String {
        let metrics = &self.inner.shared.metrics;
        metrics.text(&self.inner.shared.application_name(), &self.gauges())
    }

    /// Returns a collector of the same metrics for a registry of the application (crate
    /// `prometheus`, 0.14). There, each series has the label `db_client_connection_pool_name` with
    /// this name, so that a registry takes several pools.
    ///
    /// ```
    /// # let pool = millpond::Pool::builder().database_url("postgresql://localhost/app").build()?;
    /// let registry = prometheus::Registry::new();
    /// registry.register(Box::new(pool.collector("app")))?;
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// The collector keeps the pool: it is closed with [`Pool::close`], not by being dropped.
    pub fn collector(&self, pool_name: &str) -> impl Collector + use<> {
        let name = pool_name.to_owned();
        let labels = HashMap::from([("pool".to_owned(), name.clone())]);
        let help = "A pool of connections.".to_owned();
        let desc = Desc::new("millpond_pool".into(), help, Vec::new(), labels);
        PoolCollector {
            pool: self.clone(),
            name,
            // Its name is valid, and a label's value may be any text.
            desc: desc.ok(),
        }
    }

    fn gauges(&self) -> Gauges {
        Gauges {
            stats: self.stats(),
            failing_fast: self.is_failing_fast(),
            probe_up: self.inner.probe.last_was_up(),
            headroom: self.headroom(),
            standbys: self.standbys(),
        }
    }
}

struct PoolCollector {
    pool: Pool,
    name: String,
    /// Tells the registry one pool from another; not a series of its own.
    desc: Option<Desc>,
}

impl Collector for PoolCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.desc.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let metrics = &self.pool.inner.shared.metrics;
        metrics.named_families(&self.name, &self.pool.gauges())
    }
}
