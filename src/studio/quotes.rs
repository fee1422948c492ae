//! Quotes: what a reservation would cost, good for 14 days.

use super::app::{Studio, id_in_path, nothing_here};
use super::fields::{Fields, Parameters};
use super::pages::{Listed, Page};
use super::price;
use super::refusals::{refuse, unknown_studio};
use super::reservations::{NewReservation, Reservation, Wanted};
use super::writes::Answer;
use super::{shapes, times};
use crate::error::Result;
use crate::server::{Problem, Request, Response};
use postgres::Row;
use serde::Serialize;
use utoipa::ToSchema;

/// The price of a reservation that was not made yet.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Quote {
    id: i64,
    studio_id: i64,
    customer: String,
    #[schema(format = DateTime)]
    starts_at: String,
    #[schema(format = DateTime)]
    ends_at: String,
    /// In cents.
    total_cents: i64,
    currency: String,
    #[schema(inline)]
    status: Status,
    #[schema(format = DateTime)]
    valid_until: String,
    reservation_id: Option<i64>,
}

#[derive(Clone, Copy, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
enum Status {
    Open,
    Accepted,
    Expired,
}

const COLUMNS: &str = "id, studio_id, customer, starts_at, ends_at, total_cents, status, valid_until, \
                       reservation_id, valid_until <= now() AS over";

impl Quote {
    fn of(row: &Row, studio: &Studio) -> Result<Quote> {
        let time = |column| times::text(row, column);
        Ok(Quote {
            id: row.try_get("id")?,
            studio_id: row.try_get("studio_id")?,
            customer: row.try_get("customer")?,
            starts_at: time("starts_at")?,
            ends_at: time("ends_at")?,
            total_cents: row.try_get("total_cents")?,
            currency: studio.currency.to_string(),
            status: match (row.try_get("status")?, row.try_get("over")?) {
                ("accepted", _) => Status::Accepted,
                (_, true) => Status::Expired,
                (_, false) => Status::Open,
            },
            valid_until: time("valid_until")?,
            reservation_id: row.try_get("reservation_id")?,
        })
    }
}

/// Makes a quote: the studio's rate times the duration, rounded half up to a cent.
#[utoipa::path(
    post, path = "/api/quotes", tag = "quotes", operation_id = "createQuote",
    params(shapes::WriteHeaders),
    request_body = NewReservation,
    responses((status = 201, description = "Made", body = Quote, headers(("Location" = String), ("Idempotency-Replayed" = Option<bool>))), shapes::WriteRefusals)
)]
pub(super) fn create(studio: &Studio, request: &Request) -> Result<Response, Problem> {
    let (wanted, content) = Wanted::of(request)?;
    studio.write(request, &content, |tx| {
        let rate = "SELECT hourly_rate_cents FROM studio.studios WHERE id = $1";
        let Some(rate) = tx.query_opt(rate, &[&wanted.studio_id])? else {
            return Err(refuse(unknown_studio()));
        };
        let total = price::cents(rate.try_get(0)?, wanted.starts_at, wanted.ends_at);
        let sql = format!(
            "INSERT INTO studio.quotes (studio_id, customer, starts_at, ends_at, total_cents) \
             VALUES ($1, $2, $3, $4, $5) RETURNING {COLUMNS}"
        );
        let row = tx.query_one(
            &sql,
            &[
                &wanted.studio_id,
                &wanted.customer,
                &wanted.starts_at,
                &wanted.ends_at,
                &total,
            ],
        )?;
        let quote = Quote::of(&row, studio)?;
        Answer::created(format!("/api/quotes/{}", quote.id), &quote)
    })
}

/// The quotes, newest first.
#[utoipa::path(
    get, path = "/api/quotes", tag = "quotes", operation_id = "listQuotes",
    params(shapes::PageParameters),
    responses((status = 200, description = "A page of them, newest first", body = Listed<Quote>), shapes::Refusals)
)]
pub(super) fn list(studio: &Studio, request: &Request) -> Result<Response, Problem> {
    let page = Page::of(Parameters::of(request), "quotes".into())?;
    let sql = format!(
        "SELECT {COLUMNS} FROM studio.quotes WHERE ($1::bigint IS NULL OR id < $1) ORDER BY id DESC LIMIT $2"
    );
    let items = studio.read(request, &sql, &[&page.before, &page.rows()], Quote::of)?;
    Ok(page.answer(items, |it| it.id))
}

/// One quote.
#[utoipa::path(
    get, path = "/api/quotes/{id}", tag = "quotes", operation_id = "getQuote",
    params(shapes::IdInPath),
    responses((status = 200, description = "As it is now", body = Quote), shapes::Refusals)
)]
pub(super) fn one(studio: &Studio, request: &Request) -> Result<Response, Problem> {
    let sql = format!("SELECT {COLUMNS} FROM studio.quotes WHERE id = $1");
    studio.read_one(request, &sql, Quote::of)
}

/// Accepts a quote: makes its reservation.
#[utoipa::path(
    post, path = "/api/quotes/{id}/accept", tag = "quotes", operation_id = "acceptQuote",
    params(shapes::IdInPath, shapes::WriteHeaders),
    responses((status = 201, description = "Made", body = Reservation, headers(("Location" = String), ("Idempotency-Replayed" = Option<bool>))), shapes::WriteRefusals)
)]
pub(super) fn accept(studio: &Studio, request: &Request) -> Result<Response, Problem> {
    let id = id_in_path(request)?;
    let content = Fields::none(request)?;
    studio.write(request, &content, |tx| {
        let sql = format!("SELECT {COLUMNS} FROM studio.quotes WHERE id = $1 FOR UPDATE");
        let Some(row) = tx.query_opt(&sql, &[&id])? else {
            return Err(refuse(nothing_here()));
        };
        match Quote::of(&row, studio)?.status {
            Status::Open => {}
            Status::Accepted => return Err(refuse(already_accepted())),
            Status::Expired => return Err(refuse(quote_expired())),
        }
        let wanted = Wanted {
            studio_id: row.try_get("studio_id")?,
            customer: row.try_get("customer")?,
            starts_at: row.try_get("starts_at")?,
            ends_at: row.try_get("ends_at")?,
        };
        let reservation = wanted.reserve(tx, studio)?;
        let sql = "UPDATE studio.quotes SET status = 'accepted', reservation_id = $2 WHERE id = $1";
        tx.execute(sql, &[&id, &reservation.id])?;
        reservation.created()
    })
}

fn already_accepted() -> Problem {
    Problem::of_kind(
        409,
        "already-accepted",
        "this quote has already been accepted",
    )
}

fn quote_expired() -> Problem {
    Problem::of_kind(
        409,
        "quote-expired",
        "this quote has expired; request a new one",
    )
}
