//! What the routes have in common in the OpenAPI document: parameters, headers and problems.

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
pub(super) struct WrongField {
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
