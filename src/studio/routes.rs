//! The list of the application's routes.

use super::app::Studio;
use super::fields::Parameters;
use super::{import, invoices, openapi, quotes, reservations, studios};
use crate::server::{Access, Lane, Problem, Request, Response, Router};

type Handler = fn(&Studio, &Request) -> Result<Response, Problem>;

/// Method, path and handler. The OpenAPI document is made from the handlers' own descriptions.
pub(super) const ROUTES: [(&str, &str, Handler); 15] = [
    ("GET", "/api/studios", studios::list),
    ("GET", "/api/reservations", reservations::list),
    ("POST", "/api/reservations", reservations::create),
    ("POST", "/api/reservations/import", import::import),
    ("GET", "/api/reservations/{id}", reservations::one),
    ("DELETE", "/api/reservations/{id}", reservations::cancel),
    ("GET", "/api/quotes", quotes::list),
    ("POST", "/api/quotes", quotes::create),
    ("GET", "/api/quotes/{id}", quotes::one),
    ("POST", "/api/quotes/{id}/accept", quotes::accept),
    ("GET", "/api/invoices", invoices::list),
    ("POST", "/api/invoices", invoices::create),
    ("GET", "/api/invoices/{id}", invoices::one),
    ("POST", "/api/invoices/{id}/pay", invoices::pay),
    ("GET", "/openapi.json", openapi::document),
];

impl Studio {
    /// Adds the application's routes, which are ready once its schema is there.
    pub fn routes(&self, router: Router) -> Router {
        let studio = self.clone();
        ROUTES.into_iter().fold(
            router.that_writes().ready_when(move || studio.is_ready()),
            |router, (method, path, handler)| {
                let studio = self.clone();
                let access = if path.starts_with("/api/") {
                    Access::Api
                } else {
                    Access::Open
                };
                router.route(method, path, Lane::Api, access, move |request| {
                    if access == Access::Api && !studio.is_ready() {
                        return Err(Problem::unavailable(
                            "database-unavailable",
                            "the database is not ready yet",
                        ));
                    }
                    // Lists read their query parameters themselves; all others take none.
                    if method != "GET" || path.contains('{') {
                        Parameters::of(request).finish()?;
                    }
                    handler(&studio, request)
                })
            },
        )
    }
}
