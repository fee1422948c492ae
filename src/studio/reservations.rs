//! Reservations: a studio, a customer and a time range that overlaps no other active reservation of
//! the studio.

use super::app::{Studio, id_in_path, nothing_here};
use super::fields::{Fields, Parameters};
use super::pages::{Listed, Page};
use super::refusals::{already_invoiced, refuse};
use super::writes::Answer;
use super::{shapes, times};
use crate::call::Transaction;
use crate::error::Result;
use crate::server::{Problem, Request, Response};
use jiff::Timestamp;
use postgres::Row;
use postgres::types::ToSql;
use serde::Serialize;
use utoipa::ToSchema;

/// A reservation of a studio for a time range.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Reservation {
    pub id: i64,
    pub studio_id: i64,
    pub customer: String,
    #[schema(format = DateTime)]
    pub starts_at: String,
    #[schema(format = DateTime)]
    pub ends_at: String,
    #[schema(inline)]
    status: Status,
    #[schema(format = DateTime)]
    created_at: String,
}

#[derive(Clone, Copy, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
enum Status {
    Active,
    Cancelled,
}

/// A request for a reservation or a quote.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[allow(dead_code)] // Read by hand, to name all that is wrong; here for the OpenAPI document.
pub(super) struct NewReservation {
    #[schema(minimum = 1, example = 1)]
    studio_id: i64,
    #[schema(
        min_length = 1,
        max_length = 200,
        example = "Ada",
        pattern = r"^[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$"
    )]
    customer: String,
    #[schema(format = DateTime, example = "2030-01-02T10:00:00Z")]
    starts_at: String,
    /// After `startsAt`; the reservation ends just before it.
    #[schema(format = DateTime, example = "2030-01-02T12:00:00Z")]
    ends_at: String,
}

/// The columns that [`Reservation::of`] reads.
pub(super) const COLUMNS: &str = "id, studio_id, customer, starts_at, ends_at, status, created_at";

impl Reservation {
    pub fn of(row: &Row, _: &Studio) -> Result<Reservation> {
        let time = |column| times::text(row, column);
        Ok(Reservation {
            id: row.try_get("id")?,
            studio_id: row.try_get("studio_id")?,
            customer: row.try_get("customer")?,
            starts_at: time("starts_at")?,
            ends_at: time("ends_at")?,
            status: match row.try_get("status")? {
                "cancelled" => Status::Cancelled,
                _ => Status::Active,
            },
            created_at: time("created_at")?,
        })
    }

    pub fn created(&self) -> Result<Answer> {
        Answer::created(format!("/api/reservations/{}", self.id), self)
    }
}

/// The fields of a request for a reservation or a quote.
pub(super) struct Wanted {
    pub studio_id: i64,
    pub customer: String,
    pub starts_at: Timestamp,
    pub ends_at: Timestamp,
}

impl Wanted {
    /// Reads the body. Also returns it in its canonical form.
    pub fn of(request: &Request) -> Result<(Wanted, String), Problem> {
        let known = ["studioId", "customer", "startsAt", "endsAt"];
        let (mut fields, content) = Fields::of(request, &known)?;
        let (studio_id, customer) = (fields.id("studioId"), fields.name("customer"));
        let (starts_at, ends_at) = fields.range();
        fields.finish()?;
        Ok((
            Wanted {
                studio_id,
                customer,
                starts_at,
                ends_at,
            },
            content,
        ))
    }

    pub fn reserve(&self, tx: &mut Transaction<'_>, studio: &Studio) -> Result<Reservation> {
        let sql = format!(
            "INSERT INTO studio.reservations (studio_id, customer, starts_at, ends_at) \
             VALUES ($1, $2, $3, $4) RETURNING {COLUMNS}"
        );
        let row = tx.query_one(
            &sql,
            &[
                &self.studio_id,
                &self.customer,
                &self.starts_at,
                &self.ends_at,
            ],
        )?;
        Reservation::of(&row, studio)
    }
}

/// Reserves a studio.
#[utoipa::path(
    post, path = "/api/reservations", tag = "reservations", operation_id = "createReservation",
    params(shapes::WriteHeaders),
    request_body = NewReservation,
    responses((status = 201, description = "Made", body = Reservation, headers(("Location" = String), ("Idempotency-Replayed" = Option<bool>))), shapes::WriteRefusals)
)]
pub(super) fn create(studio: &Studio, request: &Request) -> Result<Response, Problem> {
    let (wanted, content) = Wanted::of(request)?;
    studio.write(request, &content, |tx| {
        wanted.reserve(tx, studio)?.created()
    })
}

/// The reservations, newest first; includes cancelled ones.
#[utoipa::path(
    get, path = "/api/reservations", tag = "reservations", operation_id = "listReservations",
    params(
        ("studioId" = Option<i64>, Query, minimum = 1, description = "Only this studio's"),
        ("from" = Option<String>, Query, format = DateTime, description = "Only those that overlap [from, to)"),
        ("to" = Option<String>, Query, format = DateTime),
        shapes::PageParameters,
    ),
    responses((status = 200, description = "A page of them, newest first", body = Listed<Reservation>), shapes::Refusals)
)]
pub(super) fn list(studio: &Studio, request: &Request) -> Result<Response, Problem> {
    let mut parameters = Parameters::of(request);
    let studio_id = parameters.whole("studioId", 1, i64::MAX);
    let (from, to) = (parameters.time("from"), parameters.time("to"));
    if let (Some(from), Some(to)) = (from, to)
        && from >= to
    {
        parameters.wrong("to", "must be after from");
    }
    let filters = format!("reservations {studio_id:?} {from:?} {to:?}");
    let page = Page::of(parameters, filters)?;
    let mut sql = format!(
        "SELECT {COLUMNS} FROM studio.reservations WHERE ($1::bigint IS NULL OR studio_id = $1) \
         AND ($2::bigint IS NULL OR id < $2)"
    );
    let rows = page.rows();
    let mut params: Vec<&(dyn ToSql + Sync)> = vec![&studio_id, &page.before, &rows];
    // The same expression as in the index, and only if a range is given: without it, the newest are
    // found by their ids.
    if from.is_some() || to.is_some() {
        sql += " AND tstzrange(starts_at, ends_at, '[)') && tstzrange($4, $5, '[)')";
        params.extend([&from as &(dyn ToSql + Sync), &to]);
    }
    sql += " ORDER BY id DESC LIMIT $3";
    let items = studio.read(request, &sql, &params, Reservation::of)?;
    Ok(page.answer(items, |it| it.id))
}

/// One reservation.
#[utoipa::path(
    get, path = "/api/reservations/{id}", tag = "reservations", operation_id = "getReservation",
    params(shapes::IdInPath),
    responses((status = 200, description = "As it is now", body = Reservation), shapes::Refusals)
)]
pub(super) fn one(studio: &Studio, request: &Request) -> Result<Response, Problem> {
    let sql = format!("SELECT {COLUMNS} FROM studio.reservations WHERE id = $1");
    studio.read_one(request, &sql, Reservation::of)
}

/// Locks a reservation, if it exists: from then on, its status and its invoice do not change. A
/// statement sees only what was committed before it began, so whatever depends on the lock must be
/// read by a later one.
pub(super) fn lock_reservation(tx: &mut Transaction<'_>, id: i64) -> Result<Option<()>> {
    let sql = "SELECT FROM studio.reservations WHERE id = $1 FOR UPDATE";
    Ok(tx.query_opt(sql, &[&id])?.map(|_| ()))
}

/// Cancels a reservation; to repeat this changes nothing.
#[utoipa::path(
    delete, path = "/api/reservations/{id}", tag = "reservations", operation_id = "cancelReservation",
    params(shapes::IdInPath, shapes::WriteHeaders),
    responses((status = 200, description = "As it is now", body = Reservation), shapes::WriteRefusals)
)]
pub(super) fn cancel(studio: &Studio, request: &Request) -> Result<Response, Problem> {
    let id = id_in_path(request)?;
    let content = Fields::none(request)?;
    studio.write(request, &content, |tx| {
        lock_reservation(tx, id)?.ok_or_else(|| refuse(nothing_here()))?;
        let invoiced = "SELECT FROM studio.invoices WHERE reservation_id = $1";
        if tx.query_opt(invoiced, &[&id])?.is_some() {
            return Err(refuse(already_invoiced()));
        }
        let sql = format!(
            "UPDATE studio.reservations SET status = 'cancelled' WHERE id = $1 RETURNING {COLUMNS}"
        );
        Answer::ok(&Reservation::of(&tx.query_one(&sql, &[&id])?, studio)?)
    })
}
