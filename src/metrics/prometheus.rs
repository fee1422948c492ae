//! The metrics as text for Prometheus (exposition format 0.0.4).

use super::headroom::Headroom;
use super::series::Metrics;
use super::standby::{Standby, StandbyState};
use super::stats::Stats;
use prometheus::core::Collector;
use prometheus::proto::{LabelPair, MetricFamily};
use prometheus::{Encoder, GaugeVec, IntGauge, IntGaugeVec, Opts, TextEncoder};

/// The content type of that text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The values of the gauges.
#[derive(Clone, Debug)]
pub(crate) struct Gauges {
    /// The pool's figures.
    pub stats: Stats,
    /// Check-outs fail at once, because the database has been down for a long time.
    pub failing_fast: bool,
    /// Whether the database answered the last probe. `None` if it was not asked of late.
    pub probe_up: Option<bool>,
    /// The server's connections, if they are known.
    pub headroom: Option<Headroom>,
    /// The standbys that reads may use.
    pub standbys: Vec<Standby>,
}

const POOL_NAME: &str = "db_client_connection_pool_name";

impl Metrics {
    /// Returns all counters and histograms, and the gauges given.
    pub fn text(&self, pool_name: &str, gauges: &Gauges) -> String {
        let mut families = self.families(pool_name, gauges);
        families.sort_by(|a, b| a.name().cmp(b.name()));
        let mut out = Vec::new();
        // Writing to memory fails only for a family without a metric, and none of these is one.
        if let Err(e) = TextEncoder::new().encode(&families, &mut out) {
            log::error!("metrics could not be written: {e}");
        }
        String::from_utf8_lossy(&out).into_owned()
    }

    fn families(&self, pool_name: &str, gauges: &Gauges) -> Vec<MetricFamily> {
        let mut families = self.registry().gather();
        for gauge in collectors(pool_name, gauges) {
            families.extend(gauge.collect());
        }
        // The encoder stops at a family without a metric: that of the lags, while none is known.
        families.retain(|family| !family.get_metric().is_empty());
        families
    }

    /// Returns the pool's own series, each with the pool's name: an application's registry may hold
    /// those of several pools.
    pub fn named_families(&self, pool_name: &str, gauges: &Gauges) -> Vec<MetricFamily> {
        let mut families = self.families(pool_name, gauges);
        families.retain(|family| !family.name().starts_with("http_"));
        for metric in families.iter_mut().flat_map(MetricFamily::mut_metric) {
            let mut labels = metric.take_label();
            if !labels.iter().any(|label| label.name() == POOL_NAME) {
                let mut label = LabelPair::default();
                label.set_name(POOL_NAME.to_owned());
                label.set_value(pool_name.to_owned());
                labels.push(label);
                labels.sort();
            }
            metric.set_label(labels);
        }
        families
    }
}

fn collectors(pool_name: &str, gauges: &Gauges) -> Vec<Box<dyn Collector>> {
    let stats = gauges.stats;
    let pool = |name: &str, help: &str| Opts::new(name, help).const_label(POOL_NAME, pool_name);
    let mut all: Vec<Box<dyn Collector>> = Vec::new();
    let count = pool("db_client_connection_count", "Connections by state.");
    if let Ok(by_state) = IntGaugeVec::new(count, &["db_client_connection_state"]) {
        by_state.with_label_values(&["idle"]).set(stats.idle as i64);
        by_state
            .with_label_values(&["used"])
            .set(stats.active as i64);
        all.push(Box::new(by_state));
    }
    let plain = [
        (
            pool(
                "db_client_connection_max",
                "The most connections there may be.",
            ),
            stats.max as i64,
        ),
        (
            pool(
                "db_client_connection_idle_min",
                "Idle connections kept ready.",
            ),
            stats.min_idle as i64,
        ),
        (
            pool(
                "db_client_connection_pending_requests",
                "Threads in line for a connection.",
            ),
            stats.waiting as i64,
        ),
        (
            Opts::new("millpond_failing_fast", "1 while check-outs fail at once."),
            i64::from(gauges.failing_fast),
        ),
        (
            Opts::new("millpond_build_info", "The version.")
                .const_label("version", env!("CARGO_PKG_VERSION")),
            1,
        ),
    ];
    let probe_up = gauges.probe_up.map(|is_up| {
        let help = "1 while the database answers the probe.";
        (Opts::new("millpond_probe_up", help), i64::from(is_up))
    });
    for (opts, value) in plain.into_iter().chain(probe_up) {
        if let Ok(gauge) = IntGauge::with_opts(opts) {
            gauge.set(value);
            all.push(Box::new(gauge));
        }
    }
    all.extend(gauges.headroom.iter().flat_map(of_the_server));
    all.extend(of_standbys(&gauges.standbys));
    all
}

fn of_the_server(room: &Headroom) -> Vec<Box<dyn Collector>> {
    let mut all: Vec<Box<dyn Collector>> = Vec::new();
    let plain = [
        (
            "millpond_server_connections_max",
            "The most connections that the server takes.",
            room.max,
        ),
        (
            "millpond_server_connections_available",
            "How many more connections ordinary roles may open.",
            room.available(),
        ),
    ];
    for (name, help, value) in plain {
        if let Ok(gauge) = IntGauge::new(name, help) {
            gauge.set(value as i64);
            all.push(Box::new(gauge));
        }
    }
    let used = Opts::new(
        "millpond_server_connections_used",
        "The server's sessions, by application_name.",
    );
    if let Ok(by_application) = IntGaugeVec::new(used, &["application_name"]) {
        for (name, count) in &room.by_application {
            by_application.with_label_values(&[name]).set(*count as i64);
        }
        all.push(Box::new(by_application));
    }
    all
}

fn of_standbys(standbys: &[Standby]) -> Vec<Box<dyn Collector>> {
    if standbys.is_empty() {
        return Vec::new();
    }
    let mut all: Vec<Box<dyn Collector>> = Vec::new();
    let state = Opts::new(
        "millpond_standby_state",
        "1 for the state that a standby is in; reads go there in the state used.",
    );
    if let Ok(states) = IntGaugeVec::new(state, &["host", "state"]) {
        for standby in standbys {
            for state in StandbyState::ALL {
                let gauge = states.with_label_values(&[standby.host.as_str(), state.as_str()]);
                gauge.set((standby.state == state).into());
            }
        }
        all.push(Box::new(states));
    }
    let lag = Opts::new(
        "millpond_standby_lag_seconds",
        "How old the data of a standby may be; none if that is unknown.",
    );
    if let Ok(lags) = GaugeVec::new(lag, &["host"]) {
        for standby in standbys {
            if let Some(lag) = standby.lag {
                lags.with_label_values(&[&standby.host])
                    .set(lag.as_secs_f64());
            }
        }
        all.push(Box::new(lags));
    }
    let count = Opts::new(
        "millpond_standby_connections",
        "Connections to a standby by state.",
    );
    if let Ok(by_state) = IntGaugeVec::new(count, &["host", "state"]) {
        for standby in standbys {
            for (state, count) in [("idle", standby.stats.idle), ("used", standby.stats.active)] {
                let gauge = by_state.with_label_values(&[standby.host.as_str(), state]);
                gauge.set(count as i64);
            }
        }
        all.push(Box::new(by_state));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;
    use super::*;

    #[test]
    fn counters_exist_at_zero_and_gauges_show_the_figures() {
        let stats = Stats {
            total: 5,
            idle: 4,
            active: 1,
            max: 20,
            min_idle: 2,
            ..Stats::default()
        };
        let text = Metrics::default().text(
            "app",
            &Gauges {
                stats,
                failing_fast: false,
                probe_up: Some(true),
                headroom: Some(Headroom {
                    max: 100,
                    reserved: 3,
                    in_use: 6,
                    by_application: vec![("mine".into(), 5), (String::new(), 1)],
                }),
                standbys: vec![Standby {
                    host: "db2:5433".into(),
                    state: StandbyState::Used,
                    lag: Some(std::time::Duration::from_millis(250)),
                    error: None,
                    headroom: None,
                    stats,
                }],
            },
        );
        for line in [
            r#"db_client_connection_count{db_client_connection_pool_name="app",db_client_connection_state="idle"} 4"#,
            r#"db_client_connection_count{db_client_connection_pool_name="app",db_client_connection_state="used"} 1"#,
            r#"db_client_connection_max{db_client_connection_pool_name="app"} 20"#,
            r#"db_client_connection_idle_min{db_client_connection_pool_name="app"} 2"#,
            r#"db_client_connection_pending_requests{db_client_connection_pool_name="app"} 0"#,
            "db_client_connection_timeouts_total 0",
            r#"millpond_connections_closed_total{reason="max_uses"} 0"#,
            r#"millpond_commit_outcomes_total{outcome="unknown"} 0"#,
            r#"millpond_retries_total{sqlstate="",verdict="rolled_back"} 0"#,
            r#"millpond_connect_failures_total{sqlstate=""} 0"#,
            "millpond_failing_fast 0",
            "millpond_server_connections_max 100",
            "millpond_server_connections_available 91",
            r#"millpond_server_connections_used{application_name="mine"} 5"#,
            "millpond_probe_up 1",
            r#"millpond_standby_state{host="db2:5433",state="used"} 1"#,
            r#"millpond_standby_state{host="db2:5433",state="primary"} 0"#,
            r#"millpond_standby_lag_seconds{host="db2:5433"} 0.25"#,
            r#"millpond_standby_connections{host="db2:5433",state="idle"} 4"#,
            r#"db_client_operation_duration_seconds_bucket{db_system_name="postgresql",le="0.2"} 0"#,
            r#"db_client_connection_wait_time_seconds_bucket{le="0.0005"} 0"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }

    #[test]
    fn what_is_not_known_is_left_out_and_the_rest_is_there() {
        let text = Metrics::default().text(
            "app",
            &Gauges {
                stats: Stats::default(),
                failing_fast: false,
                probe_up: None,
                headroom: None,
                standbys: vec![Standby {
                    host: "db2".into(),
                    state: StandbyState::Silent,
                    lag: None,
                    error: None,
                    headroom: None,
                    stats: Stats::default(),
                }],
            },
        );
        for name in ["probe_up", "server_connections", "standby_lag"] {
            assert!(!text.contains(name), "{name}\n{text}");
        }
        for line in [
            r#"millpond_standby_state{host="db2",state="silent"} 1"#,
            r#"millpond_statement_failures_total{sqlstate=""} 0"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
