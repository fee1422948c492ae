//! What is refused before it is sent, with what to do instead.

use crate::error::{Error, Result};
use crate::retry::{controls_transaction, copies_through_client};
use postgres::types::ToSql;

pub(crate) type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// What its data go through the client with has calls of its own.
pub(super) fn refuse_copy(sql: &str) -> Result<()> {
    if copies_through_client(sql) {
        return Err(Error::Misuse(
            "COPY FROM STDIN runs through copy_in of a transaction, COPY TO STDOUT through copy_out",
        ));
    }
    Ok(())
}

/// The protocol counts them in 16 bits.
pub(super) fn refuse_too_many(params: Params<'_>) -> Result<()> {
    if params.len() > usize::from(u16::MAX) {
        return Err(Error::Misuse(
            "a statement takes at most 65535 parameters: pass arrays (unnest), or many rows through copy_in",
        ));
    }
    Ok(())
}

/// A lone BEGIN would stay on a connection that the next caller gets, whose writes it would swallow.
pub(super) fn refuse_control(sql: &str) -> Result<()> {
    refuse_copy(sql)?;
    if controls_transaction(sql) {
        return Err(Error::Misuse(
            "a transaction is not begun or ended by a statement of its own; use transaction()",
        ));
    }
    Ok(())
}
