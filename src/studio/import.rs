//! Reservations from a CSV file: all of them, or none.
//!
//! The lines are read strictly first. What is left to the database is copied into a table that lives as long as the
//! transaction, where the lines that cannot be reserved are found all at once, and is reserved from there.

use super::fields::{LONGEST_NAME, check_name, expect_type, invalid, time, whole};
use super::refusals::{overlap, refuse};
use super::writes::Answer;
use super::{Studio, openapi};
use crate::error::{Error, Result};
use crate::server::{Problem, Request, Response};
use crate::transaction::Transaction;
use jiff::Timestamp;
use postgres::error::SqlState;
use serde::Serialize;
use serde_json::{Value, json};
use std::io::Write;
use utoipa::ToSchema;

const HEADER: [&str; 4] = ["studioId", "customer", "startsAt", "endsAt"];
/// Bad lines that are listed.
const MOST_LISTED: usize = 100;

/// How many reservations were made.
#[derive(Serialize, ToSchema)]
pub(super) struct Imported {
    imported: u64,
}

struct Line {
    number: u64,
    studio_id: i64,
    customer: String,
    starts_at: Timestamp,
    ends_at: Timestamp,
}

/// Reserves all lines of a CSV file with the columns studioId, customer, startsAt, endsAt, or none.
#[utoipa::path(
    post, path = "/api/reservations/import", tag = "reservations", operation_id = "importReservations",
    params(openapi::WriteHeaders),
    request_body(
        content = String, content_type = "text/csv",
        example = "studioId,customer,startsAt,endsAt\n1,Ada,2030-01-03T10:00:00Z,2030-01-03T12:00:00Z\n"
    ),
    responses((status = 201, body = Imported), openapi::WriteRefusals)
)]
pub(super) fn import(studio: &Studio, request: &Request) -> Result<Response, Problem> {
    expect_type(request, "text/csv")?;
    let content = std::str::from_utf8(&request.body)
        .map_err(|_| Problem::plain(400, "the body is no UTF-8"))?;
    let lines = read(content)?;
    studio.write(request, content, |tx| {
        let imported = reserve(tx, &lines)?;
        Answer::with(201, None, &Imported { imported })
    })
}

/// Reads all lines; those that are wrong are all named.
fn read(content: &str) -> Result<Vec<Line>, Problem> {
    let mut reader = csv::ReaderBuilder::new()
        .flexible(true)
        .from_reader(content.as_bytes());
    let header = reader.headers().cloned().unwrap_or_default();
    if header != HEADER[..] {
        let detail = format!("takes the columns {}, in this order", HEADER.join(","));
        return Err(invalid(vec![wrong_line(1, &detail)]));
    }
    let (mut lines, mut wrong) = (Vec::new(), Vec::new());
    let mut numbers = Numbers {
        content,
        at: 0,
        line: 1,
    };
    for record in reader.records() {
        let read = match &record {
            Ok(record) => {
                let number = numbers.of(record.position());
                read_line(number, record).map_err(|detail| (number, detail))
            }
            Err(e) => Err((numbers.of(e.position()), "cannot be read")),
        };
        match read {
            Ok(line) => lines.push(line),
            Err((number, detail)) => wrong.push(wrong_line(number, detail)),
        }
    }
    if wrong.is_empty() && lines.is_empty() {
        wrong.push(wrong_line(2, "there is no line with a reservation"));
    }
    if wrong.is_empty() {
        Ok(lines)
    } else {
        Err(listed(invalid(Vec::new()), wrong))
    }
}

/// The numbers of lines, as an editor counts them: the reader's own do not know a CR LF from two line ends, and count a
/// record from the end of the one before it.
struct Numbers<'c> {
    content: &'c str,
    at: usize,
    line: u64,
}

impl Numbers<'_> {
    fn of(&mut self, position: Option<&csv::Position>) -> u64 {
        let bytes = self.content.as_bytes();
        let begin = position
            .map_or(self.at, |p| p.byte() as usize)
            .min(bytes.len());
        let blank = bytes[begin..].iter().take_while(|b| b"\r\n".contains(b));
        let begin = begin + blank.count();
        let ends = |at: &usize| {
            bytes[*at] == b'\n' || (bytes[*at] == b'\r' && bytes.get(at + 1) != Some(&b'\n'))
        };
        self.line += (self.at..begin).filter(ends).count() as u64;
        self.at = self.at.max(begin);
        self.line
    }
}

fn read_line(number: u64, record: &csv::StringRecord) -> Result<Line, &'static str> {
    let fields: Vec<_> = record.iter().collect();
    let [studio_id, customer, starts_at, ends_at] = fields[..] else {
        return Err("takes four values");
    };
    let studio_id = whole(studio_id).filter(|id| *id >= 1);
    let line = Line {
        number,
        studio_id: studio_id.ok_or("studioId takes a whole number of at least 1")?,
        customer: customer.to_owned(),
        starts_at: time(starts_at)
            .map_err(|_| "startsAt takes a time with its offset, as 2030-01-02T10:00:00Z")?,
        ends_at: time(ends_at)
            .map_err(|_| "endsAt takes a time with its offset, as 2030-01-02T10:00:00Z")?,
    };
    check_name(customer)
        .map_err(|_| "customer takes 1 to 200 characters, no control characters, no blank first")?;
    if line.starts_at >= line.ends_at {
        return Err("endsAt must be after startsAt");
    }
    Ok(line)
}

fn wrong_line(number: u64, detail: &str) -> Value {
    json!({ "line": number, "detail": detail })
}

/// The first of the lines, and how many there are in all.
fn listed(problem: Problem, mut wrong: Vec<Value>) -> Problem {
    let all = wrong.len();
    wrong.truncate(MOST_LISTED);
    problem.with("errors", wrong).with("badLines", all)
}

fn reserve(tx: &mut Transaction<'_>, lines: &[Line]) -> Result<u64> {
    tx.batch_execute(&format!(
        "CREATE TEMP TABLE import (line bigint, studio_id bigint, customer varchar({LONGEST_NAME}), \
         starts_at timestamptz, ends_at timestamptz) ON COMMIT DROP"
    ))?;
    tx.copy_in("COPY pg_temp.import FROM STDIN (FORMAT csv)", |out| {
        copy(lines, out).map_err(Error::application)
    })?;
    let unknown = "SELECT line FROM pg_temp.import AS i WHERE NOT EXISTS \
                   (SELECT FROM studio.studios WHERE id = i.studio_id) ORDER BY line";
    let unknown = wrong_lines(tx, unknown, "there is no such studio")?;
    if !unknown.is_empty() {
        return Err(refuse(listed(invalid(Vec::new()), unknown)));
    }
    // Within the file, a line overlaps one that starts before it and has not ended by then.
    let taken = "SELECT line FROM (SELECT *, max(ends_at) OVER (PARTITION BY studio_id ORDER BY starts_at, line \
                 ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS busy_until FROM pg_temp.import) AS i \
                 WHERE starts_at < busy_until OR EXISTS (SELECT FROM studio.reservations AS r WHERE status = 'active' \
                 AND numrange(r.studio_id, r.studio_id, '[]') && numrange(i.studio_id, i.studio_id, '[]') \
                 AND tstzrange(r.starts_at, r.ends_at, '[)') && tstzrange(i.starts_at, i.ends_at, '[)')) ORDER BY line";
    let are_taken = |tx: &mut Transaction<'_>| {
        let lines = wrong_lines(tx, taken, "the studio is taken for a part of that time")?;
        match lines.is_empty() {
            true => Ok(()),
            false => Err(refuse(listed(overlap(), lines))),
        }
    };
    are_taken(tx)?;
    let made = tx.savepoint(|tx| {
        let sql = "INSERT INTO studio.reservations (studio_id, customer, starts_at, ends_at) \
                   SELECT studio_id, customer, starts_at, ends_at FROM pg_temp.import ORDER BY line";
        tx.execute(sql, &[])
    });
    if made
        .as_ref()
        .is_err_and(|e| e.sqlstate() == Some(&SqlState::EXCLUSION_VIOLATION))
    {
        // Somebody was faster: now it can be said where.
        are_taken(tx)?;
    }
    made
}

fn copy(lines: &[Line], out: &mut dyn Write) -> csv::Result<()> {
    let mut writer = csv::Writer::from_writer(out);
    for line in lines {
        writer.write_record([
            &line.number.to_string(),
            &line.studio_id.to_string(),
            &line.customer,
            &line.starts_at.to_string(),
            &line.ends_at.to_string(),
        ])?;
    }
    Ok(writer.flush()?)
}

fn wrong_lines(tx: &mut Transaction<'_>, sql: &str, detail: &str) -> Result<Vec<Value>> {
    tx.query(sql, &[])?
        .iter()
        .map(|row| Ok(wrong_line(row.try_get::<_, i64>(0)?.unsigned_abs(), detail)))
        .collect()
}
