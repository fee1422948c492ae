//! Imports reservations from a CSV file: all of them, or none.
//!
//! The lines are checked first, and read again on their way to the database, so that none is kept
//! in memory. They are copied into a temporary table of the transaction. One query finds all lines
//! that cannot be reserved; another reserves the lines.

use super::app::Studio;
use super::fields::{LONGEST_NAME, check_name, expect_type, invalid, time, whole};
use super::refusals::{overlap, refuse};
use super::shapes;
use super::writes::Answer;
use super::wrong::{MOST_NAMED, Wrong};
use crate::call::Transaction;
use crate::error::{Error, Result};
use crate::server::{Problem, Request, Response};
use jiff::Timestamp;
use postgres::error::SqlState;
use serde::Serialize;
use std::io::Write;
use utoipa::ToSchema;

const HEADER: [&str; 4] = ["studioId", "customer", "startsAt", "endsAt"];
const FOUR: &str = "takes four values";
/// The longest line in bytes. No valid line is longer, and the CSV reader stores the position of
/// each comma.
const LONGEST_LINE: usize = 8192;

/// How many reservations were made.
#[derive(Serialize, ToSchema)]
pub(super) struct Imported {
    imported: u64,
}

struct Line<'r> {
    number: u64,
    studio_id: i64,
    customer: &'r str,
    starts_at: Timestamp,
    ends_at: Timestamp,
}

/// Reserves all lines of a CSV file with the columns studioId, customer, startsAt, endsAt, or none.
#[utoipa::path(
    post, path = "/api/reservations/import", tag = "reservations", operation_id = "importReservations",
    params(shapes::WriteHeaders),
    request_body(
        content = String, content_type = "text/csv",
        example = "studioId,customer,startsAt,endsAt\n1,Ada,2030-01-03T10:00:00Z,2030-01-03T12:00:00Z\n"
    ),
    responses((status = 201, description = "Made", body = Imported), shapes::WriteRefusals)
)]
pub(super) fn import(studio: &Studio, request: &Request) -> Result<Response, Problem> {
    expect_type(request, "text/csv")?;
    let content = std::str::from_utf8(&request.body)
        .map_err(|_| Problem::plain(400, "the body is not UTF-8"))?;
    check(content)?;
    studio.write(request, content, |tx| {
        let imported = reserve(tx, content)?;
        Answer::with(201, None, &Imported { imported })
    })
}

/// Checks whether all lines can be read. Counts all that cannot.
fn check(content: &str) -> Result<(), Problem> {
    let mut wrong = Wrong::default();
    let mut lines = Lines::of(content);
    let by_line = content.split(['\n', '\r']);
    if let Some(long) = by_line.into_iter().find(|line| line.len() > LONGEST_LINE) {
        let at = long.as_ptr() as usize - content.as_ptr() as usize;
        wrong.add_line(lines.numbers.of(Some(at)), "is longer than 8192 bytes");
        return Err(listed(invalid_lines(), wrong));
    }
    if lines
        .reader
        .headers()
        .ok()
        .is_none_or(|header| header != HEADER[..])
    {
        let detail = format!("takes the columns {}, in this order", HEADER.join(","));
        wrong.add_line(1, &detail);
        return Err(listed(invalid_lines(), wrong));
    }
    let mut good = false;
    while let Some(line) = lines.next() {
        match line {
            Ok(_) => good = true,
            Err((number, detail)) => wrong.add_line(number, detail),
        }
    }
    match (good, wrong.count()) {
        (true, 0) => return Ok(()),
        (false, 0) => wrong.add_line(2, "there is no line with a reservation"),
        _ => {}
    }
    Err(listed(invalid_lines(), wrong))
}

/// The lines of a file, read one by one.
struct Lines<'c> {
    reader: csv::Reader<&'c [u8]>,
    record: csv::StringRecord,
    numbers: Numbers<'c>,
}

impl Lines<'_> {
    fn of(content: &str) -> Lines<'_> {
        Lines {
            reader: csv::ReaderBuilder::new()
                .flexible(true)
                .from_reader(content.as_bytes()),
            record: csv::StringRecord::new(),
            numbers: Numbers {
                content,
                at: 0,
                line: 1,
            },
        }
    }

    fn next(&mut self) -> Option<Result<Line<'_>, (u64, &'static str)>> {
        match self.reader.read_record(&mut self.record) {
            Ok(false) => None,
            Ok(true) => {
                let number = self.numbers.of(byte(self.record.position()));
                Some(read_line(number, &self.record).map_err(|detail| (number, detail)))
            }
            Err(e) => Some(Err((self.numbers.of(byte(e.position())), "cannot be read"))),
        }
    }
}

fn byte(position: Option<&csv::Position>) -> Option<usize> {
    position.map(|position| position.byte() as usize)
}

/// Line numbers, as an editor counts them. The CSV reader counts CR LF as two line ends, and a
/// record from the end of the one before it.
struct Numbers<'c> {
    content: &'c str,
    at: usize,
    line: u64,
}

impl Numbers<'_> {
    /// The number of the line that holds this byte, or the first byte behind it that is not a line
    /// end.
    fn of(&mut self, at: Option<usize>) -> u64 {
        let bytes = self.content.as_bytes();
        let begin = at.unwrap_or(self.at).min(bytes.len());
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

fn read_line(number: u64, record: &csv::StringRecord) -> Result<Line<'_>, &'static str> {
    let mut fields = record.iter();
    let mut next = || fields.next().ok_or(FOUR);
    let (studio_id, customer, starts_at, ends_at) = (next()?, next()?, next()?, next()?);
    if record.len() != HEADER.len() {
        return Err(FOUR);
    }
    let studio_id = whole(studio_id).filter(|id| *id >= 1);
    let line = Line {
        number,
        studio_id: studio_id.ok_or("studioId takes a whole number of at least 1")?,
        customer,
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

fn invalid_lines() -> Problem {
    invalid(Wrong::default())
}

/// A problem with the first bad lines, and the number of all.
fn listed(problem: Problem, wrong: Wrong) -> Problem {
    let all = wrong.count();
    problem
        .with("errors", wrong.into_named())
        .with("badLines", all)
}

fn reserve(tx: &mut Transaction<'_>, content: &str) -> Result<u64> {
    tx.batch_execute(&format!(
        "CREATE TEMP TABLE import (line bigint, studio_id bigint, customer varchar({LONGEST_NAME}), \
         starts_at timestamptz, ends_at timestamptz) ON COMMIT DROP"
    ))?;
    tx.copy_in("COPY pg_temp.import FROM STDIN (FORMAT csv)", |out| {
        copy(content, out).map_err(Error::application)
    })?;
    let unknown = "SELECT line FROM pg_temp.import AS i WHERE NOT EXISTS \
                   (SELECT FROM studio.studios WHERE id = i.studio_id)";
    let unknown = wrong_lines(tx, unknown, "there is no such studio")?;
    if unknown.count() > 0 {
        return Err(refuse(listed(invalid_lines(), unknown)));
    }
    // Within the file, a line overlaps an earlier one if that has not ended when it starts.
    let taken = "SELECT line FROM (SELECT *, max(ends_at) OVER (PARTITION BY studio_id ORDER BY starts_at, line \
                 ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS busy_until FROM pg_temp.import) AS i \
                 WHERE starts_at < busy_until OR EXISTS (SELECT FROM studio.reservations AS r WHERE status = 'active' \
                 AND numrange(r.studio_id, r.studio_id, '[]') && numrange(i.studio_id, i.studio_id, '[]') \
                 AND tstzrange(r.starts_at, r.ends_at, '[)') && tstzrange(i.starts_at, i.ends_at, '[)'))";
    let are_taken = |tx: &mut Transaction<'_>| {
        let lines = wrong_lines(
            tx,
            taken,
            "the studio is already reserved for part of that time",
        )?;
        match lines.count() {
            0 => Ok(()),
            _ => Err(refuse(listed(overlap(), lines))),
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
        // Another request was faster. Now the overlap can be found.
        are_taken(tx)?;
    }
    made
}

fn copy(content: &str, out: &mut dyn Write) -> csv::Result<()> {
    let mut writer = csv::Writer::from_writer(out);
    let mut lines = Lines::of(content);
    // All lines were checked before.
    while let Some(Ok(line)) = lines.next() {
        writer.write_record([
            &line.number.to_string(),
            &line.studio_id.to_string(),
            line.customer,
            &line.starts_at.to_string(),
            &line.ends_at.to_string(),
        ])?;
    }
    Ok(writer.flush()?)
}

/// The lines that a query finds.
fn wrong_lines(tx: &mut Transaction<'_>, lines: &str, detail: &str) -> Result<Wrong> {
    let sql = format!(
        "SELECT line, count(*) OVER () FROM ({lines}) AS wrong ORDER BY line LIMIT {MOST_NAMED}"
    );
    let (mut wrong, mut all) = (Wrong::default(), 0);
    for row in tx.query(&sql, &[])? {
        wrong.add_line(row.try_get::<_, i64>(0)?.unsigned_abs(), detail);
        all = row.try_get::<_, i64>(1)?.unsigned_abs() as usize;
    }
    wrong.add_unnamed(all - wrong.count());
    Ok(wrong)
}
