//! `/api/metrics/live`: all that the dashboard shows, as JSON.

use super::metrics::{figures, server, standby};
use crate::error::HeldBy;
use crate::metrics::{Labelled, Snapshot};
use crate::pool::Pool;
use crate::server::browsers;
use crate::server::dashboard::{MINUTES, Watcher};
use crate::server::format::{as_ms, text, timestamp};
use crate::server::http::{Problem, Response};
use crate::server::request::Request;
use crate::server::router::{Access, Lane, Router};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Changes when a field is removed or gets another meaning; not when one is added.
const VERSION: u32 = 1;

pub(super) fn add_to(
    router: Router,
    pool: &Pool,
    watcher: &Arc<Watcher>,
    shows_texts: impl Fn(&Request) -> bool + Send + Sync + 'static,
) -> Router {
    let (pool, watcher) = (pool.clone(), Arc::clone(watcher));
    let live = move |request: &Request| {
        let after = match request.query_param("after") {
            None => 0,
            Some(text) => text.parse().map_err(|_| {
                Problem::plain(
                    422,
                    "after takes the number of a sample, a whole number from 0",
                )
            })?,
        };
        let body = live(&pool, &watcher, after, shows_texts(request));
        // What a page shows each second is not to be kept by anybody.
        Ok(Response::json(200, &body).header("Cache-Control", "no-store"))
    };
    let path = "/api/metrics/live";
    router.route("GET", path, Lane::Health, Access::Metrics, live)
}

/// Whether statements' texts may be shown to a request that needed no token: only on this machine,
/// not through a proxy there, and not to a page of another site in a browser there.
pub(super) fn is_from_here(request: &Request) -> bool {
    const BY_PROXIES: [&str; 6] = [
        "Forwarded",
        "Via",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X-Real-IP",
    ];
    request.client.is_loopback()
        && BY_PROXIES.iter().all(|name| request.header(name).is_none())
        && browsers::refuses(&request.headers, &[], true).is_none()
}

fn live(pool: &Pool, watcher: &Watcher, after: u64, shows_texts: bool) -> Value {
    // The reason of a failure may name roles and hosts.
    let (state, stats) = (watcher.state(shows_texts), pool.stats());
    let now = pool.metrics().snapshot();
    let holders = pool.holders();
    let advice = watcher.advice(&holders, &now);
    let mut pool_figures = figures(&stats);
    pool_figures["opening"] = json!(stats.opening);
    pool_figures["minIdle"] = json!(stats.min_idle);
    pool_figures["utilizationPercent"] = json!(stats.utilization_percent());
    let threshold = pool.config().leak_threshold;
    let holders: Vec<_> = holders
        .iter()
        .map(|one| {
            holder(
                one,
                threshold.is_some_and(|most| one.held > most),
                shows_texts,
            )
        })
        .collect();
    let slowest = match shows_texts {
        true => watcher.slowest(),
        false => Vec::new(),
    };
    // The newest sample and event may be younger than this: they are sent again.
    let sequence = watcher.newest();
    json!({
        "version": VERSION,
        "timestamp": timestamp(),
        "startedAt": text(watcher.started_at),
        "sequence": sequence,
        "application": pool.config().application_name,
        "release": env!("CARGO_PKG_VERSION"),
        "state": state,
        "pool": pool_figures,
        "server": pool.headroom().as_ref().map(server),
        "standbys": pool.standbys().iter().map(standby).collect::<Vec<_>>(),
        "totals": totals(&now),
        "history": watcher.samples_after(after),
        "holders": holders,
        "statements": { "minutes": MINUTES, "list": slowest },
        "textsHidden": !shows_texts,
        "events": watcher.events_after(after),
        "advice": advice,
    })
}

fn holder(holder: &HeldBy, leaked: bool, shows_texts: bool) -> Value {
    let last = holder.statement.as_ref();
    json!({
        "connection": holder.connection,
        "place": holder.place.to_string(),
        "thread": holder.thread,
        "heldMs": as_ms(holder.held),
        "statement": last.filter(|_| shows_texts).map(|last| &last.sql),
        "running": last.is_some_and(|last| last.running),
        "statementMs": last.map(|last| as_ms(last.since)),
        "leaked": leaked,
    })
}

fn totals(now: &Snapshot) -> Value {
    let classes = ["", "1xx", "2xx", "3xx", "4xx", "5xx"];
    let requests: Vec<_> = classes
        .into_iter()
        .zip(now.requests)
        .filter(|(_, count)| *count > 0)
        .map(|(class, count)| json!({ "status": class, "count": count }))
        .collect();
    json!({
        "statements": now.operation.count(),
        "checkoutTimeouts": now.timeouts,
        "retryBudgetEmpty": now.retry_budget_empty,
        "leaks": now.leaks,
        "statementFailures": labelled(&["sqlstate"], &now.statement_failures),
        "connectFailures": labelled(&["sqlstate"], &now.connect_failures),
        "retries": labelled(&["sqlstate", "verdict"], &now.retries),
        "closed": labelled(&["reason"], &now.closed),
        "commitOutcomes": labelled(&["outcome"], &now.commits),
        "requests": requests,
    })
}

fn labelled(names: &[&str], series: &[Labelled]) -> Vec<Value> {
    let one = |(values, count): &Labelled| {
        let labels = names.iter().zip(values);
        let mut fields: Map<_, _> = labels
            .map(|(name, value)| ((*name).to_owned(), json!(value)))
            .collect();
        fields.insert("count".into(), json!(count));
        Value::Object(fields)
    };
    series.iter().map(one).collect()
}
