//! What the edge and the workers share: which requests are admitted, and the access log with its
//! metrics.

use super::browsers;
use super::dashboard::SignedIn;
use super::http::{Problem, Response, header};
use super::order::OrderReport;
use super::router::{Access, Found, Route, Router};
use super::shutdown::PhaseFlag;
use crate::config::HttpConfig;
use crate::pool::Pool;
use crate::sync::unpoison;
use crate::traceparent::{Traceparent, traced};
use ipnet::IpNet;
use log::Level;
use std::net::IpAddr;
use std::sync::{Arc, RwLock, RwLockReadGuard};
use std::time::Duration;
use subtle::ConstantTimeEq;

/// What the edge and the workers share.
pub(super) struct Service {
    pub router: Router,
    pub phase: Arc<PhaseFlag>,
    pub config: HttpConfig,
    /// The proxies of `config`, which may change while the server runs.
    pub trusted_proxies: RwLock<Vec<IpNet>>,
    pub pool: Pool,
    /// The order of the line for the api lane's workers.
    pub order: Arc<OrderReport>,
    /// Browsers on the dashboard, which count as if they had sent METRICS_TOKEN.
    pub signed_in: Arc<SignedIn>,
}

/// One line of the access log.
pub(super) struct AccessEntry<'a> {
    pub method: &'a str,
    pub path: &'a str,
    /// The route's pattern; empty if no route matched.
    pub route: &'a str,
    pub status: u16,
    pub took: Duration,
    pub id: &'a str,
    pub client: IpAddr,
    pub traceparent: Option<Traceparent>,
}

impl Service {
    /// The proxies that are trusted at this moment.
    pub fn trusted_proxies(&self) -> RwLockReadGuard<'_, Vec<IpNet>> {
        unpoison(self.trusted_proxies.read())
    }

    /// Notes a change of the order of the line for the api lane's workers.
    pub fn note_order(&self, newest_first: bool) {
        self.order.set(newest_first);
        self.pool.metrics().note_order("api", newest_first);
    }

    /// Writes an answered request to the log and to the metrics.
    pub fn record(&self, entry: &AccessEntry<'_>) {
        let AccessEntry {
            method,
            path,
            route,
            status,
            took,
            id,
            client,
            traceparent,
        } = entry;
        let known = known_method(method);
        traced!(
            Level::Debug,
            traceparent,
            "http.request.method" = known,
            "http.request.method_original" = Some(*method).filter(|method| *method != known),
            "http.route" = Some(*route).filter(|route| !route.is_empty()),
            "url.path" = *path,
            "http.response.status_code" = *status,
            "http.server.request.duration" = took.as_secs_f64(),
            "client.address":% = client;
            "{method} {path} status={status} took={took:.1?} id={id} client={client}"
        );
        let labels = [known, route, &status.to_string()];
        self.pool
            .metrics()
            .http
            .with_label_values(&labels)
            .observe(took.as_secs_f64());
    }

    /// The route of a request, decided from its head alone. A refusal comes with the pattern of the
    /// route, which is empty if no route matched.
    pub fn admit(
        &self,
        method: &str,
        path: &str,
        headers: &[(String, String)],
    ) -> Result<Arc<Route>, (&'static str, Problem)> {
        let route = self.router.find(method, path).or_refuse(method, path)?;
        if !self.may_enter(route.access, headers) {
            let told = Problem::plain(401, "a token is required: Authorization: Bearer ..");
            return Err((route.pattern, told.header("WWW-Authenticate", "Bearer")));
        }
        match self.refuses_page(route.access, headers) {
            Some(why) => Err((route.pattern, Problem::plain(403, why))),
            None => Ok(Arc::clone(route)),
        }
    }

    /// Why a request from a web page is refused. Only asked while no token protects the API.
    fn refuses_page(&self, access: Access, headers: &[(String, String)]) -> Option<&'static str> {
        let config = &self.config;
        if access != Access::Api || config.api_token.is_some() {
            return None;
        }
        let only_loopback = config.addr.ip().is_loopback() && !config.allow_anonymous;
        browsers::refuses(headers, &config.cors_origins, only_loopback)
    }

    /// The response to a CORS preflight request; `None` if the request is none.
    pub fn preflight(
        &self,
        method: &str,
        path: &str,
        headers: &[(String, String)],
    ) -> Option<Response> {
        if method != "OPTIONS" {
            return None;
        }
        browsers::named_page(headers, &self.config.cors_origins)?;
        header(headers, "Access-Control-Request-Method")?;
        let Found::OtherMethods(methods) = self.router.find(method, path) else {
            return None;
        };
        let mut response = Response::empty(204);
        response.headers.extend(browsers::may_ask(&methods));
        Some(response)
    }

    fn may_enter(&self, access: Access, headers: &[(String, String)]) -> bool {
        let token = match access {
            Access::Open => None,
            Access::Metrics => self.config.metrics_token.as_deref(),
            Access::Api => self.config.api_token.as_deref(),
        };
        let Some(token) = token else { return true };
        if access == Access::Metrics && self.signed_in.has(headers) {
            return true;
        }
        let given = header(headers, "Authorization").and_then(|value| {
            let (scheme, given) = value.split_once(' ')?;
            scheme
                .eq_ignore_ascii_case("bearer")
                .then_some(given.trim_start())
        });
        given.is_some_and(|given| given.as_bytes().ct_eq(token.as_bytes()).into())
    }
}

/// A method as a metric label. Unknown methods share one, so that clients cannot create metrics.
fn known_method(method: &str) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"];
    KNOWN
        .into_iter()
        .find(|known| *known == method)
        .unwrap_or("_OTHER")
}
