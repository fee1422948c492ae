//! The studios: three are made with the schema.

use super::app::Studio;
use super::fields::Parameters;
use super::pages::{Listed, Page};
use super::shapes;
use crate::error::Result;
use crate::server::{Problem, Request, Response};
use postgres::Row;
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
    params(shapes::PageParameters),
    responses((status = 200, description = "A page of them, newest first", body = Listed<StudioRoom>), shapes::Refusals)
)]
pub(super) fn list(studio: &Studio, request: &Request) -> Result<Response, Problem> {
    let page = Page::of(Parameters::of(request), "studios".into())?;
    let sql = "SELECT id, name, hourly_rate_cents FROM studio.studios \
               WHERE ($1::bigint IS NULL OR id < $1) ORDER BY id DESC LIMIT $2";
    let items = studio.read(request, sql, &[&page.before, &page.rows()], StudioRoom::of)?;
    Ok(page.answer(items, |room| room.id))
}

impl StudioRoom {
    fn of(row: &Row, studio: &Studio) -> Result<StudioRoom> {
        Ok(StudioRoom {
            id: row.try_get("id")?,
            name: row.try_get("name")?,
            hourly_rate_cents: row.try_get("hourly_rate_cents")?,
            currency: studio.currency.to_string(),
        })
    }
}
