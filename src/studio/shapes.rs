//! The shapes that all routes share in the OpenAPI document: parameters, headers and problems.

use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::openapi::{RefOr, Response};
use utoipa::{IntoParams, IntoResponses, ToSchema};

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code)]
pub(super) struct PageParameters {
    /// The most items in the answer.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<i64>,
    /// The `nextCursor` of the previous page, with the same filters.
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
    /// Makes it safe to repeat the request: it is done once, and each repetition gets the same
    /// answer.
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
    /// The single errors, if there can be several.
    #[schema(required = false)]
    errors: Option<Vec<WrongField>>,
    /// The number of errors, if `errors` lists only the first of them.
    #[schema(required = false, nullable = false)]
    error_count: Option<u64>,
    /// For a file: the number of bad lines, of which `errors` lists the first 100.
    #[schema(required = false, nullable = false)]
    bad_lines: Option<u64>,
    /// If the outcome is unknown: repeat the request with this key, which is safe and tells it.
    #[schema(required = false, nullable = false)]
    idempotency_key: Option<String>,
}

/// A field of the body, a parameter of the query or a line of a file.
#[derive(Serialize, ToSchema)]
#[allow(dead_code)]
pub(super) struct WrongField {
    #[schema(required = false)]
    pointer: Option<String>,
    #[schema(required = false)]
    parameter: Option<String>,
    #[schema(required = false)]
    line: Option<i64>,
    detail: String,
}

/// The errors that any request may get.
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
    /// A page of another site sent the request, and there is no token to keep it out.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(ProblemShape),
    /// The resource does not exist.
    #[response(status = 404, content_type = "application/problem+json")]
    NotFound(ProblemShape),
    /// Fields or parameters are missing or wrong.
    #[response(status = 422, content_type = "application/problem+json")]
    Invalid(ProblemShape),
    /// An error in the server.
    #[response(status = 500, content_type = "application/problem+json")]
    Internal(ProblemShape),
    /// Not possible at present; nothing was done.
    #[response(
        status = 503, content_type = "application/problem+json",
        headers(("Retry-After" = u64, description = "Seconds")),
    )]
    Unavailable(ProblemShape),
}

/// The errors that a write may get.
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
    /// The request conflicts with the present state.
    #[response(status = 409, content_type = "application/problem+json")]
    Conflict(ProblemShape),
    /// The body is too large.
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(ProblemShape),
    /// The body has the wrong content type.
    #[response(status = 415, content_type = "application/problem+json")]
    WrongType(ProblemShape),
    /// An error in the server. Only with `urn:millpond:outcome-unknown` may the write have been
    /// done.
    #[response(status = 500, content_type = "application/problem+json")]
    Internal(ProblemShape),
}
