//! Statements that are refused before they are sent, with a hint about what to do instead.

use crate::error::{Error, Result};
use crate::retry::{controls_transaction, copies_through, copies_through_client};
use postgres::types::ToSql;

pub(crate) type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// Refuses a COPY whose data go through the client: there are separate methods for it.
pub(super) fn refuse_copy(sql: &str) -> Result<()> {
    if copies_through_client(sql) {
        return Err(Error::Misuse(
            "use a transaction's copy_in for COPY FROM STDIN, and its copy_out for COPY TO STDOUT",
        ));
    }
    Ok(())
}

/// Refuses what is no COPY in this direction: the driver would give up the connection over it.
pub(super) fn refuse_unless_copy(sql: &str, stream: &str) -> Result<()> {
    if copies_through(sql, stream) {
        return Ok(());
    }
    Err(Error::Misuse(match stream {
        "STDIN" => "copy_in takes a COPY .. FROM STDIN",
        _ => "copy_out takes a COPY .. TO STDOUT",
    }))
}

/// Refuses more parameters than the protocol can count, which is in 16 bits.
pub(super) fn refuse_too_many(params: Params<'_>) -> Result<()> {
    if params.len() > usize::from(u16::MAX) {
        return Err(Error::Misuse(
            "a statement takes at most 65535 parameters: pass arrays (unnest), or many rows through copy_in",
        ));
    }
    Ok(())
}

/// Refuses a lone BEGIN or COMMIT. A BEGIN would stay on the connection, and the writes of the next
/// caller that gets it would not be committed.
pub(super) fn refuse_control(sql: &str) -> Result<()> {
    refuse_copy(sql)?;
    if controls_transaction(sql) {
        return Err(Error::Misuse(
            "a lone statement cannot begin or end a transaction; use transaction()",
        ));
    }
    Ok(())
}
