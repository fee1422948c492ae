//! `/`: shows what the server serves to somebody who has just started it.

use crate::server::http::Response;
use crate::server::router::{Access, Lane, Router};

/// Adds the page, unless the application has its own.
pub(super) fn add_to(router: Router) -> Router {
    if router.has("/") {
        return router;
    }
    let links = [
        ("/dashboard", "Dashboard"),
        ("/health", "Health"),
        ("/health/ready", "Ready for requests?"),
        ("/metrics", "Metrics, for Prometheus"),
        ("/api/metrics/db", "Metrics, as JSON"),
        ("/openapi.json", "The API, as OpenAPI"),
        ("/api/studios", "The studios"),
    ];
    let items: String = links
        .into_iter()
        .filter(|(path, _)| router.has(path))
        .map(|(path, text)| format!("<li><a href=\"{path}\">{text}</a></li>\n"))
        .collect();
    let page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>millpond</title>\n\
         <h1>millpond</h1>\n<ul>\n{items}</ul>\n</html>\n"
    );
    let answer = Response::bytes(200, "text/html; charset=utf-8", page)
        .header("Content-Security-Policy", "default-src 'none'");
    router.route("GET", "/", Lane::Health, Access::Open, move |_| {
        Ok(answer.clone())
    })
}
