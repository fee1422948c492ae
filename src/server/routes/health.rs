//! `/health`, `/health/db`, `/health/live`, `/health/ready`: always answered, whatever the pool
//! does, and without a token.

use crate::health::Health;
use crate::pool::Pool;
use crate::server::checks::{Checks, Report};
use crate::server::database_kind::DatabaseKind;
use crate::server::format::{as_ms, timestamp};
use crate::server::http::Response;
use crate::server::router::{Access, Lane, Router};
use crate::server::shutdown::{Phase, PhaseFlag};
use serde::Serialize;
use serde_json::json;
use std::sync::Arc;

#[derive(Serialize)]
struct Body {
    status: &'static str,
    timestamp: String,
    database: DatabaseBody,
    /// Absent without checks.
    #[serde(skip_serializing_if = "Option::is_none")]
    checks: Option<Report>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    draining: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    paused: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    private: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DatabaseBody {
    healthy: bool,
    total_connections: usize,
    idle_connections: usize,
    active_connections: usize,
    waiting_requests: usize,
    max_connections: usize,
    utilization_percent: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sqlstate: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    probe: Option<&'static str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    failing_fast: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    read_only: bool,
}

pub(super) fn add_to(
    router: Router,
    pool: &Pool,
    checks: Checks,
    phase: &Arc<PhaseFlag>,
    database: DatabaseKind,
) -> Router {
    let answer = {
        let (pool, phase) = (pool.clone(), Arc::clone(phase));
        move |health: Health, checks: Option<Report>| {
            Ok(report(&health, checks, &pool, phase.get(), database))
        }
    };
    let of_all = {
        let (pool, answer) = (pool.clone(), answer.clone());
        move |_: &_| {
            // They run while the database is asked.
            checks.ask();
            let health = pool.health();
            answer(health, checks.report())
        }
    };
    let of_database = {
        let pool = pool.clone();
        move |_: &_| answer(pool.health(), None)
    };
    let ready = {
        let (pool, phase, condition) = (pool.clone(), Arc::clone(phase), router.condition());
        let writes = router.writes();
        move |_: &_| {
            let has_started = pool.has_connected() && condition();
            let database = match pool.is_failing_fast() {
                true => Database::Away,
                false if writes && has_started && pool.was_read_only() => {
                    // Another host may take writes. It is looked for now, and shows at the next
                    // request.
                    pool.look_for_primary();
                    Database::ReadOnly
                }
                false => Database::Serves,
            };
            let (status, word) = readiness(phase.get(), has_started, database);
            let body = match pool.is_paused() {
                true => json!({ "status": word, "paused": true }),
                false => json!({ "status": word }),
            };
            Ok(Response::json(status, &body))
        }
    };
    router
        .route("GET", "/health", Lane::Health, Access::Open, of_all)
        .route("GET", "/health/db", Lane::Health, Access::Open, of_database)
        .instant_route("GET", "/health/live", Access::Open, |_| {
            Ok(Response::json(200, &json!({ "status": "alive" })))
        })
        .instant_route("GET", "/health/ready", Access::Open, ready)
}

fn report(
    health: &Health,
    checks: Option<Report>,
    pool: &Pool,
    phase: Phase,
    database: DatabaseKind,
) -> Response {
    let stats = &health.stats;
    let healthy = health.healthy && checks.as_ref().is_none_or(Report::are_healthy);
    let body = Body {
        status: if healthy { "healthy" } else { "unhealthy" },
        timestamp: timestamp(),
        database: DatabaseBody {
            healthy: health.healthy,
            total_connections: stats.total,
            idle_connections: stats.idle,
            active_connections: stats.active,
            waiting_requests: stats.waiting,
            max_connections: stats.max,
            utilization_percent: stats.utilization_percent(),
            latency_ms: health.latency.map(as_ms),
            error: health.error.map(|e| e.to_string()),
            sqlstate: health.sqlstate.clone(),
            probe: health.probe_refused.then_some("refused"),
            failing_fast: pool.is_failing_fast(),
            read_only: health.read_only,
        },
        checks,
        draining: phase > Phase::Running,
        paused: pool.is_paused(),
        private: database == DatabaseKind::Private,
    };
    Response::json(if healthy { 200 } else { 503 }, &body)
}

/// What lasts of the database's trouble.
#[derive(Clone, Copy)]
enum Database {
    Serves,
    Away,
    ReadOnly,
}

/// Whether requests should be sent to this server.
fn readiness(phase: Phase, has_started: bool, database: Database) -> (u16, &'static str) {
    match (phase, has_started, database) {
        (Phase::Unready | Phase::Draining, _, _) => (503, "draining"),
        (Phase::Running, _, Database::Away) => (503, "database-unavailable"),
        (Phase::Running, false, _) => (503, "starting"),
        (Phase::Running, true, Database::ReadOnly) => (503, "database-read-only"),
        (Phase::Running, true, Database::Serves) => (200, "ready"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_is_about_this_program_and_lasting_trouble_only() {
        let rows = [
            (Phase::Running, false, Database::Serves, (503, "starting")),
            (Phase::Running, true, Database::Serves, (200, "ready")),
            (
                Phase::Running,
                true,
                Database::Away,
                (503, "database-unavailable"),
            ),
            (
                Phase::Running,
                true,
                Database::ReadOnly,
                (503, "database-read-only"),
            ),
            (Phase::Unready, true, Database::Serves, (503, "draining")),
            (Phase::Draining, false, Database::Away, (503, "draining")),
        ];
        for (phase, has_started, database, expected) in rows {
            assert_eq!(readiness(phase, has_started, database), expected);
        }
    }
}
