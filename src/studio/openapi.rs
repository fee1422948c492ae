//! The OpenAPI document, made from the handlers' descriptions and the types that they answer.

use super::Studio;
use crate::server;
use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{RefOr, Response};
use utoipa::{IntoParams, IntoResponses, Modify, OpenApi, ToSchema};

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code)]
pub(super) struct PageParameters {
    /// The most items in the answer.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<i64>,
    /// The `nextCursor` of the page before, with the same filters.
    cursor: Option<String>,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code)]
pub(super) struct IdInPath {
    #[param(minimum = 1, example = 1)]
    id: i64,
}

#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code)]
pub(super) struct WriteHeaders {
    /// Makes it safe to send the request again: it is done once, and answered the same.
    #[param(
        rename = "Idempotency-Key",
        min_length = 1,
        max_length = 255,
        pattern = r"^[!-~]([ -~]*[!-~])?$"
    )]
    idempotency_key: Option<String>,
}

/// An error (RFC 9457). Its `type` is stable.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Problem)]
#[allow(dead_code)]
pub(super) struct ProblemShape {
    r#type: String,
    title: String,
    status: u16,
    detail: String,
    request_id: String,
    /// What is wrong, where several things may be.
    #[schema(required = false)]
    errors: Option<Vec<WrongField>>,
    /// How many there are in all, where `errors` lists the first of them.
    #[schema(required = false, nullable = false)]
    error_count: Option<u64>,
    /// Of a file: how many lines are bad, of which `errors` lists the first 100.
    #[schema(required = false, nullable = false)]
    bad_lines: Option<u64>,
    /// With an unknown outcome: repeating the request with this key is safe, and returns the truth.
    #[schema(required = false, nullable = false)]
    idempotency_key: Option<String>,
}

/// A field of the body, a parameter of the query or a line of a file.
#[derive(Serialize, ToSchema)]
#[allow(dead_code)]
struct WrongField {
    #[schema(required = false)]
    pointer: Option<String>,
    #[schema(required = false)]
    parameter: Option<String>,
    #[schema(required = false)]
    line: Option<i64>,
    detail: String,
}

/// What any request may be answered.
#[derive(IntoResponses)]
#[allow(dead_code)]
pub(super) enum Refusals {
    /// The request cannot be read.
    #[response(status = 400, content_type = "application/problem+json")]
    BadRequest(ProblemShape),
    /// A token is missing or wrong.
    #[response(
        status = 401, content_type = "application/problem+json",
        headers(("WWW-Authenticate" = String)),
    )]
    Unauthorized(ProblemShape),
    /// A page of another site asks, which no token keeps out.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(ProblemShape),
    /// There is no such thing.
    #[response(status = 404, content_type = "application/problem+json")]
    NotFound(ProblemShape),
    /// Fields or parameters are missing or wrong.
    #[response(status = 422, content_type = "application/problem+json")]
    Invalid(ProblemShape),
    /// Our fault.
    #[response(status = 500, content_type = "application/problem+json")]
    Internal(ProblemShape),
    /// Not now; nothing was done.
    #[response(
        status = 503, content_type = "application/problem+json",
        headers(("Retry-After" = u64, description = "Seconds")),
    )]
    Unavailable(ProblemShape),
}

/// What a write may be answered.
pub(super) enum WriteRefusals {}

impl IntoResponses for WriteRefusals {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let mut all = Refusals::responses();
        all.extend(OnlyWrites::responses());
        all
    }
}

#[derive(IntoResponses)]
#[allow(dead_code)]
enum OnlyWrites {
    /// It cannot be done as things are.
    #[response(status = 409, content_type = "application/problem+json")]
    Conflict(ProblemShape),
    /// The body is too large.
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(ProblemShape),
    /// The body is of another type.
    #[response(status = 415, content_type = "application/problem+json")]
    WrongType(ProblemShape),
    /// Our fault; only `urn:millpond:outcome-unknown` leaves open whether it was done.
    #[response(status = 500, content_type = "application/problem+json")]
    Internal(ProblemShape),
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "millpond", description = "A studio's reservations, quotes and invoices. Amounts are whole cents.",
        contact(name = "millpond", url = "https://docs.rs/millpond")
    ),
    servers((url = "/", description = "This server")),
    tags(
        (name = "studios", description = "What can be reserved"),
        (name = "reservations", description = "A studio, taken by a customer for a while"),
        (name = "quotes", description = "A price for a reservation, good for 14 days"),
        (name = "invoices", description = "A reservation, to be paid"),
    ),
    modifiers(&Token, &Completed),
    components(schemas(ProblemShape, WrongField)),
    security((), ("token" = [])),
    paths(
        super::studios::list,
        super::reservations::list,
        super::reservations::create,
        super::import::import,
        super::reservations::one,
        super::reservations::cancel,
        super::quotes::list,
        super::quotes::create,
        super::quotes::one,
        super::quotes::accept,
        super::invoices::list,
        super::invoices::create,
        super::invoices::one,
        super::invoices::pay,
    )
)]
struct Document;

/// Asked for where the server has one.
struct Token;

impl Modify for Token {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        document
            .components
            .get_or_insert_default()
            .add_security_scheme("token", SecurityScheme::Http(bearer));
    }
}

/// What the macros leave out, and leave over.
struct Completed;

impl Modify for Completed {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        for item in document.paths.paths.values_mut() {
            let operations = [&mut item.get, &mut item.post, &mut item.delete];
            for operation in operations.into_iter().flatten() {
                operation.description = operation.description.take().or(operation.summary.clone());
            }
        }
        // It stands in the list of them itself, and nowhere else.
        if let Some(components) = &mut document.components {
            components.schemas.remove("StudioRoom");
        }
    }
}

/// The document itself.
pub(super) fn document(
    _: &Studio,
    _: &server::Request,
) -> Result<server::Response, server::Problem> {
    Ok(server::Response::json(200, &Document::openapi()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let document = serde_json::to_value(Document::openapi()).unwrap();
        let mut described: Vec<_> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, item)| {
                let methods = item.as_object().unwrap().keys();
                methods.map(move |method| (method.to_uppercase(), path.clone()))
            })
            .collect();
        let mut served: Vec<_> = super::super::ROUTES
            .iter()
            .filter(|(_, path, _)| path.starts_with("/api/"))
            .map(|(method, path, _)| ((*method).to_owned(), (*path).to_owned()))
            .collect();
        described.sort();
        served.sort();
        assert_eq!(described, served);
        assert_eq!(document["openapi"], "3.1.0");
    }

    #[test]
    fn what_it_refers_to_is_in_it_and_its_names_differ() {
        let document = serde_json::to_value(Document::openapi()).unwrap();
        let (mut references, mut names) = (0, HashSet::new());
        let mut all = vec![&document];
        while let Some(value) = all.pop() {
            if let Some(to) = value["$ref"].as_str() {
                references += 1;
                assert!(document.pointer(&to[1..]).is_some(), "{to}");
            }
            if let Some(name) = value["operationId"].as_str() {
                assert!(names.insert(name), "{name} stands twice");
            }
            all.extend(value.as_array().into_iter().flatten());
            all.extend(value.as_object().into_iter().flat_map(|o| o.values()));
        }
        assert!(references > 50 && names.len() == 14);
    }
}
