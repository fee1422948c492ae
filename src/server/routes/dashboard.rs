//! `/dashboard`: the page for people, and the way in where METRICS_TOKEN is set.

use crate::server::browsers;
use crate::server::dashboard::SignedIn;
use crate::server::http::{Problem, Response};
use crate::server::request::Request;
use crate::server::router::{Access, Lane, Router};
use std::sync::Arc;
use subtle::ConstantTimeEq;

const PAGE: &str = include_str!("../dashboard/page.html");
const SIGN_IN: &str = include_str!("../dashboard/sign_in.html");
const SCRIPT: &str = include_str!("../dashboard/dashboard.js");
const STYLE: &str = include_str!("../dashboard/dashboard.css");
/// Nothing but what this server serves. The page draws with the script, and needs no inline styles.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

pub(super) fn add_to(router: Router, token: Option<String>, signed_in: &Arc<SignedIn>) -> Router {
    let page = {
        let (needs_token, signed_in) = (token.is_some(), Arc::clone(signed_in));
        move |request: &Request| {
            let is_signed_in = signed_in.has(&request.headers);
            Ok(match needs_token && !is_signed_in {
                true => sign_in(200, ""),
                false => html(200, PAGE, &[("{{signed_in}}", yes(is_signed_in))]),
            })
        }
    };
    let enter = {
        let signed_in = Arc::clone(signed_in);
        move |request: &Request| enter(request, token.as_deref(), &signed_in)
    };
    let leave = {
        let signed_in = Arc::clone(signed_in);
        move |request: &Request| {
            refuse_other_sites(request)?;
            let cookie = signed_in.remove(&request.headers);
            Ok(to_the_page().header("Set-Cookie", cookie))
        }
    };
    let script = asset("text/javascript; charset=utf-8", SCRIPT);
    let style = asset("text/css; charset=utf-8", STYLE);
    let (lane, open) = (Lane::Health, Access::Open);
    router
        .route("GET", "/dashboard", lane, open, page)
        .route("POST", "/dashboard/sign-in", lane, open, enter)
        // Where a browser is after a wrong token.
        .route("GET", "/dashboard/sign-in", lane, open, |_| {
            Ok(to_the_page())
        })
        .route("POST", "/dashboard/sign-out", lane, open, leave)
        .route("GET", "/dashboard/dashboard.js", lane, open, move |_| {
            Ok(script.clone())
        })
        .route("GET", "/dashboard/dashboard.css", lane, open, move |_| {
            Ok(style.clone())
        })
}

fn enter(
    request: &Request,
    token: Option<&str>,
    signed_in: &SignedIn,
) -> Result<Response, Problem> {
    refuse_other_sites(request)?;
    let Some(token) = token else {
        return Ok(to_the_page());
    };
    let mut fields = form_urlencoded::parse(&request.body);
    let given = fields.find(|(name, _)| name == "token");
    let fits = given.is_some_and(|(_, given)| given.as_bytes().ct_eq(token.as_bytes()).into());
    if !fits {
        return Ok(sign_in(403, "This is not the token."));
    }
    match signed_in.add(is_encrypted(request)) {
        Some(cookie) => Ok(to_the_page().header("Set-Cookie", cookie)),
        None => Err(Problem::internal()),
    }
}

/// Whether a proxy says that the browser speaks to it over TLS. Anybody may say so: it makes the
/// cookie stricter.
fn is_encrypted(request: &Request) -> bool {
    let has = |name: &str, text: &str| {
        let value = request
            .header(name)
            .unwrap_or_default()
            .to_ascii_lowercase();
        value.split([',', ';']).any(|part| part.trim() == text)
    };
    has("X-Forwarded-Proto", "https") || has("Forwarded", "proto=https")
}

/// A page of another site could otherwise sign a browser out.
fn refuse_other_sites(request: &Request) -> Result<(), Problem> {
    match browsers::refuses(&request.headers, &[], false) {
        Some(_) => Err(Problem::plain(403, "pages of other sites may not do this")),
        None => Ok(()),
    }
}

fn to_the_page() -> Response {
    Response::empty(303).header("Location", "/dashboard")
}

fn yes(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}

fn sign_in(status: u16, message: &str) -> Response {
    html(status, SIGN_IN, &[("{{message}}", message)])
}

fn html(status: u16, page: &str, filled: &[(&str, &str)]) -> Response {
    let fill = |page: String, (name, value): &(&str, &str)| page.replace(name, value);
    let page = filled.iter().fold(page.to_owned(), fill);
    Response::bytes(status, "text/html; charset=utf-8", page)
        .header("Content-Security-Policy", POLICY)
        .header("Cache-Control", "no-store")
        // Without any referrer, a browser would hide the page's origin when its forms are sent.
        .header("Referrer-Policy", "same-origin")
        .header("X-Content-Type-Options", "nosniff")
}

fn asset(content_type: &str, text: &str) -> Response {
    Response::bytes(200, content_type, text)
        .header("Cache-Control", "no-cache")
        .header("X-Content-Type-Options", "nosniff")
}
