//! The studios: three are made with the schema.

use super::fields::Parameters;
use super::pages::Page;
use super::refusals::problem_of;
use super::{Studio, openapi};
use crate::server::{Problem, Request, Response};
use serde::Serialize;
use utoipa::ToSchema;

/// A room to play in, and what an hour in it costs.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct StudioRoom {
    id: i64,
    name: String,
    /// In cents.
    hourly_rate_cents: i64,
    currency: String,
}

/// The studios, newest first.
#[utoipa::path(
    get, path = "/api/studios", tag = "studios", operation_id = "listStudios",
    params(openapi::PageParameters),
    responses((status = 200, body = openapi::Listed<StudioRoom>), openapi::Refusals)
)]
pub(super) fn list(studio: &Studio, request: &Request) -> Result<Response, Problem> {
    let page = Page::of(Parameters::of(request), "studios".into())?;
    let sql = "SELECT id, name, hourly_rate_cents FROM studio.studios \
               WHERE ($1::bigint IS NULL OR id < $1) ORDER BY id DESC LIMIT $2";
    let rows = studio
        .call(request)
        .read(sql, &[&page.before, &page.rows()]);
    let rows = rows.map_err(problem_of)?;
    let rooms = rows.iter().map(|row| {
        Ok(StudioRoom {
            id: row.try_get(0)?,
            name: row.try_get(1)?,
            hourly_rate_cents: row.try_get(2)?,
            currency: studio.currency.to_string(),
        })
    });
    let rooms: crate::Result<Vec<_>> = rooms.collect();
    Ok(page.answer(rooms.map_err(problem_of)?, |room| room.id))
}
