//! Invoices: one for a reservation, numbered without gaps.

use super::app::{Studio, id_in_path, nothing_here};
use super::fields::{Fields, Parameters, invalid};
use super::pages::{Listed, Page};
use super::price;
use super::refusals::{already_invoiced, refuse};
use super::reservations::lock_reservation;
use super::writes::Answer;
use super::wrong::Wrong;
use super::{shapes, times};
use crate::call::Transaction;
use crate::error::{Error, Result};
use crate::server::{Problem, Request, Response};
use postgres::Row;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The invoice for a reservation.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Invoice {
    id: i64,
    /// Numbered without gaps.
    #[schema(example = "INV-000001")]
    number: String,
    reservation_id: i64,
    customer: String,
    lines: Vec<Line>,
    /// In cents.
    total_cents: i64,
    currency: String,
    #[schema(inline)]
    status: Status,
    #[schema(format = DateTime)]
    issued_at: String,
    #[schema(format = DateTime)]
    paid_at: Option<String>,
}

#[derive(Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Line {
    description: String,
    quantity_minutes: i64,
    /// In cents.
    amount_cents: i64,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
enum Status {
    Issued,
    Paid,
}

/// A request for an invoice.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[allow(dead_code)] // As with NewReservation.
struct NewInvoice {
    #[schema(minimum = 1, example = 1)]
    reservation_id: i64,
}

const SELECT: &str = "SELECT id, number, reservation_id, customer, total_cents, status, issued_at, paid_at, \
     (SELECT json_agg(json_build_object('description', description, 'quantityMinutes', quantity_minutes, \
     'amountCents', amount_cents) ORDER BY position)::text FROM studio.invoice_lines WHERE invoice_id = i.id) AS lines \
     FROM studio.invoices AS i";

impl Invoice {
    fn of(row: &Row, studio: &Studio) -> Result<Invoice> {
        let time = |column| times::optional(row, column);
        let lines: Option<&str> = row.try_get("lines")?;
        Ok(Invoice {
            id: row.try_get("id")?,
            number: format!("INV-{:06}", row.try_get::<_, i64>("number")?),
            reservation_id: row.try_get("reservation_id")?,
            customer: row.try_get("customer")?,
            lines: serde_json::from_str(lines.unwrap_or("[]")).map_err(Error::application)?,
            total_cents: row.try_get("total_cents")?,
            currency: studio.currency.to_string(),
            status: match row.try_get("status")? {
                "paid" => Status::Paid,
                _ => Status::Issued,
            },
            issued_at: time("issued_at")?.unwrap_or_default(),
            paid_at: time("paid_at")?,
        })
    }

    fn with_id(tx: &mut Transaction<'_>, id: i64, studio: &Studio) -> Result<Invoice> {
        Invoice::of(
            &tx.query_one(&format!("{SELECT} WHERE id = $1"), &[&id])?,
            studio,
        )
    }
}

/// Makes the invoice for a reservation.
///
/// The price is that of its quote if it has one, or else the studio's rate.
#[utoipa::path(
    post, path = "/api/invoices", tag = "invoices", operation_id = "createInvoice",
    params(shapes::WriteHeaders),
    request_body = inline(NewInvoice),
    responses((status = 201, description = "Made", body = Invoice, headers(("Location" = String), ("Idempotency-Replayed" = Option<bool>))), shapes::WriteRefusals)
)]
pub(super) fn create(studio: &Studio, request: &Request) -> Result<Response, Problem> {
    let known = ["reservationId"];
    let (mut fields, content) = Fields::of(request, &known)?;
    let reservation = fields.id("reservationId");
    fields.finish()?;
    studio.write(request, &content, |tx| {
        lock_reservation(tx, reservation)?.ok_or_else(|| {
            let unknown = Wrong::field("reservationId", "there is no such reservation");
            refuse(invalid(unknown))
        })?;
        let sql = "SELECT r.customer, r.starts_at, r.ends_at, r.status, s.name, s.hourly_rate_cents, \
             (SELECT total_cents FROM studio.quotes WHERE reservation_id = r.id) AS quoted, \
             EXISTS (SELECT FROM studio.invoices WHERE reservation_id = r.id) AS invoiced \
             FROM studio.reservations AS r JOIN studio.studios AS s ON s.id = r.studio_id WHERE r.id = $1";
        let row = tx.query_one(sql, &[&reservation])?;
        if row.try_get("invoiced")? {
            return Err(refuse(already_invoiced()));
        }
        if row.try_get::<_, &str>("status")? == "cancelled" {
            return Err(refuse(cancelled()));
        }
        let (starts_at, ends_at) = (row.try_get("starts_at")?, row.try_get("ends_at")?);
        let total = match row.try_get("quoted")? {
            Some(total) => total,
            None => price::cents(row.try_get("hourly_rate_cents")?, starts_at, ends_at),
        };
        // Every other request for an invoice waits for the row of invoice numbers until this
        // commits. So it is locked last, and a single statement does all that needs it.
        let sql = "WITH number AS (UPDATE studio.invoice_numbers SET last = last + 1 RETURNING last), \
             invoice AS (INSERT INTO studio.invoices (number, reservation_id, customer, total_cents) \
             SELECT last, $1, $2, $3 FROM number RETURNING id) \
             INSERT INTO studio.invoice_lines SELECT id, 1, $4, $5, $3 FROM invoice RETURNING invoice_id";
        let customer: &str = row.try_get("customer")?;
        let (name, minutes): (&str, _) = (row.try_get("name")?, price::minutes(starts_at, ends_at));
        let made = tx.query_one(sql, &[&reservation, &customer, &total, &name, &minutes])?;
        let id = made.try_get(0)?;
        Answer::created(format!("/api/invoices/{id}"), &Invoice::with_id(tx, id, studio)?)
    })
}

/// The invoices, newest first.
#[utoipa::path(
    get, path = "/api/invoices", tag = "invoices", operation_id = "listInvoices",
    params(shapes::PageParameters),
    responses((status = 200, description = "A page of them, newest first", body = Listed<Invoice>), shapes::Refusals)
)]
pub(super) fn list(studio: &Studio, request: &Request) -> Result<Response, Problem> {
    let page = Page::of(Parameters::of(request), "invoices".into())?;
    let sql = format!("{SELECT} WHERE ($1::bigint IS NULL OR id < $1) ORDER BY id DESC LIMIT $2");
    let items = studio.read(request, &sql, &[&page.before, &page.rows()], Invoice::of)?;
    Ok(page.answer(items, |it| it.id))
}

/// One invoice.
#[utoipa::path(
    get, path = "/api/invoices/{id}", tag = "invoices", operation_id = "getInvoice",
    params(shapes::IdInPath),
    responses((status = 200, description = "As it is now", body = Invoice), shapes::Refusals)
)]
pub(super) fn one(studio: &Studio, request: &Request) -> Result<Response, Problem> {
    let sql = format!("{SELECT} WHERE id = $1");
    studio.read_one(request, &sql, Invoice::of)
}

/// Marks an invoice as paid.
#[utoipa::path(
    post, path = "/api/invoices/{id}/pay", tag = "invoices", operation_id = "payInvoice",
    params(shapes::IdInPath, shapes::WriteHeaders),
    responses((status = 200, description = "As it is now", body = Invoice), shapes::WriteRefusals)
)]
pub(super) fn pay(studio: &Studio, request: &Request) -> Result<Response, Problem> {
    let id = id_in_path(request)?;
    let content = Fields::none(request)?;
    studio.write(request, &content, |tx| {
        let pay = "UPDATE studio.invoices SET status = 'paid', paid_at = now() WHERE id = $1 AND status = 'issued'";
        if tx.execute(pay, &[&id])? == 0 {
            let there = tx.query_opt("SELECT FROM studio.invoices WHERE id = $1", &[&id])?;
            return Err(refuse(there.map_or_else(nothing_here, |_| already_paid())));
        }
        Answer::ok(&Invoice::with_id(tx, id, studio)?)
    })
}

fn already_paid() -> Problem {
    Problem::of_kind(409, "already-paid", "this invoice has already been paid")
}

fn cancelled() -> Problem {
    Problem::of_kind(409, "cancelled", "this reservation was cancelled")
}
