//! What pages of other sites may do with a server that asks for no token: nothing, unless their
//! origin is listed.
//!
//! A browser lets any page send requests to a server on the user's own machine. A page whose host
//! name resolves to that machine (DNS rebinding) can even read the answers. Programs send none of
//! these headers, and are not affected. Pure.

use super::http::header;
use std::net::IpAddr;

/// The response headers that listed pages may read, in addition to the safelisted ones.
const READABLE: &str = "Location, Idempotency-Replayed, Retry-After, X-Request-Id";
/// The request headers that they may set.
const SETTABLE: &str = "Authorization, Content-Type, Idempotency-Key, X-Request-Id";

/// Why a request without a token is refused; `None` if it is not.
pub(super) fn refuses(
    headers: &[(String, String)],
    named: &[String],
    only_loopback: bool,
) -> Option<&'static str> {
    let host = header(headers, "Host");
    let all = |name: &'static str| {
        let named = move |(n, _): &&(String, String)| n.eq_ignore_ascii_case(name);
        headers
            .iter()
            .filter(named)
            .map(|(_, value)| value.as_str())
    };
    let is_cross_site = all("Sec-Fetch-Site").any(|site| site.eq_ignore_ascii_case("cross-site"));
    let is_own = |origin: &str| origin.split_once("://").map(|(_, host)| host) == host;
    let is_named = |origin: &str| named.iter().any(|one| one == origin);
    let are_named = all("Origin").next().is_some() && all("Origin").all(is_named);
    match () {
        () if only_loopback && !host.is_none_or(is_loopback) => {
            Some("without API_TOKEN this API serves only requests whose Host is localhost")
        }
        () if are_named => None,
        () if is_cross_site || !all("Origin").all(is_own) => {
            Some("pages of other sites may not use this API unless HTTP_CORS_ORIGINS lists them")
        }
        () => None,
    }
}

/// The origin of the requesting page, if it is listed.
pub(super) fn named_page<'h>(headers: &'h [(String, String)], named: &[String]) -> Option<&'h str> {
    // Usually none is listed.
    let is_named = |origin: &&str| named.iter().any(|one| one == origin);
    match named {
        [] => None,
        _ => header(headers, "Origin").filter(is_named),
    }
}

/// What lets the page of this origin, if it is one of those `named`, read an answer. A cache keeps
/// the answers for each page apart, also for those that are not named (Fetch, "CORS protocol and
/// HTTP caches").
pub(super) fn may_read(page: Option<&str>, named: &[String]) -> Vec<(&'static str, String)> {
    let mut headers = Vec::new();
    if let Some(origin) = page {
        headers.push(("Access-Control-Allow-Origin", origin.to_owned()));
        headers.push(("Access-Control-Expose-Headers", READABLE.to_owned()));
    }
    if !named.is_empty() {
        headers.push(("Vary", "Origin".to_owned()));
    }
    headers
}

/// The headers of the answer to a preflight request, which let a page use these methods.
pub(super) fn may_ask(methods: &[&str]) -> [(&'static str, String); 3] {
    [
        ("Access-Control-Allow-Methods", methods.join(", ")),
        ("Access-Control-Allow-Headers", SETTABLE.to_owned()),
        ("Access-Control-Max-Age", "600".to_owned()),
    ]
}

/// Whether the host is a loopback name or address.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let name = name.to_ascii_lowercase();
    name == "localhost"
        || name.ends_with(".localhost")
        || name
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_other_sites_are_refused_and_programs_are_not() {
        let named = ["https://app.example".to_owned()];
        // Host, Origin, Sec-Fetch-Site; whether it is refused.
        let rows = [
            ("localhost:3000", "", "", false),
            ("127.0.0.1:3000", "", "", false),
            ("[::1]:3000", "", "", false),
            ("studio.localhost", "", "", false),
            (
                "localhost:3000",
                "http://localhost:3000",
                "same-origin",
                false,
            ),
            ("localhost:3000", "", "none", false),
            ("localhost:3000", "https://app.example", "cross-site", false),
            ("localhost:3000", "https://evil.example", "cross-site", true),
            ("localhost:3000", "https://evil.example", "", true),
            ("localhost:3000", "http://localhost:8080", "same-site", true),
            ("localhost:3000", "null", "", true),
            ("localhost:3000", "", "cross-site", true),
            ("evil.example", "", "", true),
            ("evil.example", "http://evil.example", "same-origin", true),
            ("localhost.evil.example", "", "", true),
            ("127.0.0.1.evil.example", "", "", true),
        ];
        for (host, origin, site, refused) in rows {
            let all = [("Host", host), ("Origin", origin), ("Sec-Fetch-Site", site)];
            let given = all.into_iter().filter(|(_, value)| !value.is_empty());
            let headers: Vec<_> = given.map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
            let why = refuses(&headers, &named, true);
            assert_eq!(why.is_some(), refused, "{headers:?}: {why:?}");
        }
        let elsewhere = [("Host".to_owned(), "api.example".to_owned())];
        assert_eq!(refuses(&elsewhere, &named, false), None);
        assert_eq!(refuses(&[], &named, true), None, "HTTP/1.0");
        let two = ["http://localhost", "https://evil.example"];
        let two = two.map(|origin| ("Origin".to_owned(), origin.to_owned()));
        let host = ("Host".to_owned(), "localhost".to_owned());
        let twice = [&two[..], &[host]].concat();
        assert!(refuses(&twice, &named, true).is_some());
    }
}
