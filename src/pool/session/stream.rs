//! Statements whose rows or data are passed on one by one. Their limit covers the whole call,
//! including the time that the caller takes, as the server's own statement timeout does.

use super::life::Session;
use super::statements::{Typed, WRONG_COUNT, with_types};
use crate::error::Error;
use crate::metrics::CloseReason;
use crate::pool::limits::Limits;
use crate::pool::wire::CURSOR;
use crate::retry::Phase;
use postgres::fallible_iterator::FallibleIterator;
use postgres::types::ToSql;
use postgres::{CopyInWriter, Row};
use std::io::{self, BufRead, Read, Write};
use std::ops::ControlFlow;

/// The number of rows fetched at first, and at most. It doubles with each fetch, which takes a
/// round trip: so hardly more unwanted rows are computed than there were wanted ones.
const FETCHED_FIRST: usize = 256;
const MOST_AT_ONCE: usize = 16_384;

impl Session {
    /// Runs a statement and passes its rows to `each` as they arrive, until there are no more or
    /// `each` breaks.
    pub fn query_each(
        &mut self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
        phase: Phase,
        limits: &Limits,
        mut each: impl FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let mut count = 0;
        self.timed(sql, phase, limits, |session| {
            let mut each = |row| {
                count += 1;
                each(row)
            };
            let mut pass = || {
                let (described, _) = session.described(sql)?;
                if described.params.len() != params.len() {
                    return Ok(None);
                }
                session.take_note(&described.facts);
                let typed = with_types(params, &described.params);
                let text = session.with_comment(sql);
                session.begin_request();
                match described.facts.fits_a_cursor {
                    true => session.fetch_each(&text, &typed, &mut each)?,
                    false => {
                        let mut rows = session.client.query_typed_raw(&text, typed)?;
                        while let Some(row) = rows.next()? {
                            if each(row).is_break() {
                                break;
                            }
                        }
                    }
                }
                Ok(Some(()))
            };
            let passed = pass();
            session.rows = Some(count);
            passed.map_err(|e| {
                // What is known of the text may be stale.
                session.forget(sql);
                (e, phase)
            })
        })?
        .ok_or(WRONG_COUNT)
    }

    /// Fetches the rows through a cursor, so that rows that `each` does not want are neither
    /// computed nor waited for. Takes three round trips if there are few rows.
    fn fetch_each(
        &mut self,
        sql: &str,
        params: &[Typed<'_>],
        each: &mut impl FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), postgres::Error> {
        let declare = format!("DECLARE {CURSOR} NO SCROLL CURSOR FOR {sql}");
        self.client.execute_typed(&declare, params)?;
        let mut at_once = FETCHED_FIRST;
        loop {
            let fetch = format!("FETCH {at_once} FROM {CURSOR}");
            let fetch = self.with_comment(&fetch);
            let mut count = 0;
            let mut rows = self
                .client
                .query_typed_raw::<&(dyn ToSql + Sync), _>(&fetch, [])?;
            let mut enough = false;
            while let Some(row) = rows.next()? {
                count += 1;
                enough = enough || each(row).is_break();
            }
            drop(rows);
            if enough || count < at_once {
                return self.client.batch_execute(&format!("CLOSE {CURSOR}"));
            }
            at_once = MOST_AT_ONCE.min(2 * at_once);
        }
    }

    /// Runs a COPY FROM STDIN with the data that `fill` writes. Returns the number of rows.
    pub fn copy_in(
        &mut self,
        sql: &str,
        phase: Phase,
        limits: &Limits,
        fill: impl FnOnce(&mut dyn Write) -> Result<(), Error>,
    ) -> Result<u64, Error> {
        let mut refused = None;
        let rows = self.timed(sql, phase, limits, |session| {
            let text = session.with_comment(sql);
            let copy = || {
                let mut copying = Copying {
                    writer: session.client.copy_in(&*text)?,
                    lost: None,
                };
                let filled = fill(&mut copying);
                let Copying { writer, lost } = copying;
                match (lost, filled) {
                    (Some(lost), _) => Err(lost),
                    // A COPY that is not finished is undone when the writer is dropped.
                    (None, Err(error)) => {
                        refused = Some(error);
                        Ok(0)
                    }
                    (None, Ok(())) => writer.finish(),
                }
            };
            let copied = copy();
            session.rows = copied.as_ref().ok().copied();
            copied.map_err(|e| (e, phase))
        })?;
        refused.map_or(Ok(rows), Err)
    }

    /// Runs a COPY TO STDOUT and lets `take` read the data.
    pub fn copy_out<T>(
        &mut self,
        sql: &str,
        phase: Phase,
        limits: &Limits,
        take: impl FnOnce(&mut dyn BufRead) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let taken = self.timed(sql, phase, limits, |session| {
            let text = session.with_comment(sql);
            let copied = session.client.copy_out(&*text);
            let mut copied = copied.map_err(|e| (e, phase))?;
            let mut reading = Reading {
                reader: &mut copied,
                ended: false,
                lost: None,
            };
            let mut taken = take(&mut reading);
            if taken.is_ok()
                && let Err(error) = io::copy(&mut reading, &mut io::sink())
            {
                taken = Err(error.into());
            }
            match reading.lost {
                Some(lost) => Err((lost, phase)),
                None => Ok(taken),
            }
        })?;
        if taken.is_err() {
            // The remaining rows are still on their way.
            self.close_for(CloseReason::Broken);
        }
        taken
    }
}

/// The reader of a COPY. Keeps the driver's error; the caller sees an I/O error of the read.
struct Reading<'r, R> {
    reader: &'r mut R,
    /// The data have ended: the driver's reader fails if it is read beyond its end (postgres
    /// 0.19.14).
    ended: bool,
    lost: Option<postgres::Error>,
}

impl<R: BufRead> Read for Reading<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

impl<R: BufRead> BufRead for Reading<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.ended {
            return Ok(&[]);
        }
        match self.reader.fill_buf() {
            Ok(bytes) => {
                self.ended = bytes.is_empty();
                Ok(bytes)
            }
            Err(error) => {
                self.ended = true;
                Err(driver_error(&mut self.lost, error))
            }
        }
    }

    fn consume(&mut self, amount: usize) {
        self.reader.consume(amount);
    }
}

/// Moves the driver's error out of an I/O error into `lost`. Returns an I/O error in its place.
fn driver_error(lost: &mut Option<postgres::Error>, error: io::Error) -> io::Error {
    match error.downcast::<postgres::Error>() {
        Ok(error) => {
            lost.get_or_insert(error);
            io::Error::other("the COPY failed")
        }
        Err(other) => other,
    }
}

/// The writer of a COPY. Keeps the driver's error; the caller sees an I/O error of the write.
struct Copying<'c> {
    writer: CopyInWriter<'c>,
    lost: Option<postgres::Error>,
}

impl Copying<'_> {
    fn keep(&mut self, error: io::Error) -> io::Error {
        driver_error(&mut self.lost, error)
    }
}

impl Write for Copying<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.writer.write(data).map_err(|e| self.keep(e))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush().map_err(|e| self.keep(e))
    }
}
