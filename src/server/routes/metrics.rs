//! `/metrics` for Prometheus, `/api/metrics/db` as JSON.

use crate::metrics::prometheus::CONTENT_TYPE;
use crate::pool::{Headroom, Pool, Standby, Stats};
use crate::server::format::{as_ms, time_ago, timestamp};
use crate::server::http::Response;
use crate::server::order::OrderReport;
use crate::server::router::{Access, Lane, Router};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

pub(super) fn add_to(router: Router, pool: &Pool, order: &Arc<OrderReport>) -> Router {
    let (for_prometheus, for_json) = (pool.clone(), pool.clone());
    let order = Arc::clone(order);
    router
        .route(
            "GET",
            "/metrics",
            Lane::Health,
            Access::Metrics,
            move |_| {
                // The probe runs first, so that its metrics are fresh.
                for_prometheus.health();
                Ok(Response::bytes(
                    200,
                    CONTENT_TYPE,
                    for_prometheus.metrics_text(),
                ))
            },
        )
        .route(
            "GET",
            "/api/metrics/db",
            Lane::Health,
            Access::Metrics,
            move |_| Ok(as_json(&for_json, &order)),
        )
}

/// Which order is in force in a line, and since when.
fn line(newest_first: bool, lasts: Option<Duration>) -> Value {
    let order = match newest_first {
        true => "newest-first",
        false => "first-come",
    };
    json!({ "order": order, "since": lasts.map(time_ago) })
}

pub(super) fn server(room: &Headroom) -> Value {
    let by_application = room.by_application.iter();
    let by_application: Vec<_> = by_application
        .map(|(name, count)| json!({ "applicationName": name, "connections": count }))
        .collect();
    json!({
        "maxConnections": room.max,
        "reservedConnections": room.reserved,
        "usedConnections": room.in_use,
        "availableConnections": room.available(),
        "byApplication": by_application,
    })
}

pub(super) fn standby(standby: &Standby) -> Value {
    json!({
        "host": standby.host,
        "state": standby.state,
        "lagMs": standby.lag.map(as_ms),
        "error": standby.error,
        "pool": figures(&standby.stats),
    })
}

pub(super) fn figures(stats: &Stats) -> Value {
    json!({
        "total": stats.total,
        "idle": stats.idle,
        "active": stats.active,
        "waiting": stats.waiting,
        "max": stats.max,
    })
}

fn as_json(pool: &Pool, order: &OrderReport) -> Response {
    let health = pool.health();
    let (stats, config) = (&health.stats, pool.config());
    let (api_newest_first, api_for) = order.get();
    let mut figures = figures(stats);
    figures["utilizationPercent"] = json!(stats.utilization_percent());
    Response::json(
        200,
        &json!({
            "timestamp": timestamp(),
            "pool": figures,
            "performance": { "latencyMs": health.latency.map(as_ms) },
            "config": {
                "maxConnections": config.max_size,
                "idleTimeoutMs": config.idle_timeout.map_or(0, |t| t.as_millis() as u64),
                "connectionTimeoutMs": config.connection_timeout.as_millis() as u64,
            },
            "server": pool.headroom().as_ref().map(server),
            "standbys": pool.standbys().iter().map(standby).collect::<Vec<_>>(),
            "failingFast": pool.is_failing_fast(),
            "lines": {
                "api": line(api_newest_first, api_for),
                "pool": line(stats.newest_first, pool.order_for()),
            },
        }),
    )
}
