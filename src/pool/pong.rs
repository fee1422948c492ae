//! The health probe's question, and what is said of its answer.

use super::backend::first_row;
use super::session::Session;
use postgres::SimpleQueryMessage;
use postgres::error::SqlState;
use std::fmt;
use std::time::{Duration, Instant};

const QUESTION: &str = "SELECT current_setting('transaction_read_only')";

/// The end of what a primary has inserted into its write-ahead log, in bytes. Not only of what it
/// has written to disk: with `synchronous_commit=off`, a commit that was acknowledged may not have
/// been written yet. The server names the place of the next record. At the start of a page that is
/// behind the page's header (40 bytes in the first page of a segment, else 24), which no standby
/// reaches before there is a record.
pub(crate) const INSERTED: &str = "(SELECT CASE WHEN at % segment = 40 THEN at - 40 \
     WHEN at % page = 24 THEN at - 24 ELSE at END FROM (SELECT pg_current_wal_insert_lsn() - '0/0' AS at, \
     pg_size_bytes(current_setting('wal_segment_size')) AS segment, \
     current_setting('wal_block_size')::int AS page) AS log)";

/// The timeline that a server writes, or replays. What a standby receives is shown to roles with
/// `pg_read_all_stats`; its control file shows the timeline somewhat later.
const TIMELINE: &str = "CASE WHEN pg_is_in_recovery() THEN \
     coalesce((SELECT received_tli FROM pg_stat_get_wal_receiver()), \
     greatest((SELECT timeline_id FROM pg_control_checkpoint()), \
     (SELECT min_recovery_end_timeline FROM pg_control_recovery()))) \
     ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int END";

/// Why the database did not answer. The texts are stable; host names, user names and the server's
/// own texts appear only in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum ProbeError {
    /// The host cannot be reached, or the connection broke.
    Unreachable,
    /// Nothing listens at the port.
    Refused,
    /// No answer in time.
    Timeout,
    /// Wrong user or password, or access denied.
    Authentication,
    /// The encryption that the URL asks for is not to be had, or the server's certificate is wrong.
    Tls,
    /// The database does not exist.
    UnknownDatabase,
    /// The server has no room for another connection.
    TooManyConnections,
    /// The server is starting up or shutting down.
    StartingUp,
    /// Any other error.
    Other,
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProbeError::Unreachable => "unreachable",
            ProbeError::Refused => "refused",
            ProbeError::Timeout => "timeout",
            ProbeError::Authentication => "authentication",
            ProbeError::Tls => "tls",
            ProbeError::UnknownDatabase => "unknown database",
            ProbeError::TooManyConnections => "too many connections",
            ProbeError::StartingUp => "starting up",
            ProbeError::Other => "other",
        })
    }
}

/// The result of one probe: an answer, or an error with its SQLSTATE if the server sent one.
pub(crate) type Reading = Result<Pong, (ProbeError, Option<String>)>;

/// The answer of a database that is up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pong {
    pub asked_at: Instant,
    /// The time of one round trip.
    pub took: Duration,
    /// New transactions are read-only: the server is a standby, or an administrator has set it so.
    pub read_only: bool,
    /// How far the server has come, if that was asked.
    pub position: Option<Position>,
}

/// How far a server has come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position {
    pub is_standby: bool,
    /// The end of what it has replayed, or inserted, in bytes.
    pub at: u64,
    /// Which server that is, as [`Session::server`] tells it.
    pub server: Option<u64>,
    /// None if the role may not read it.
    pub timeline: Option<u32>,
    /// The cluster's identifier, if it is known.
    pub system: Option<u64>,
}

impl Pong {
    /// Asks the server, and for its position if that is `located`.
    pub(super) fn of(
        session: &mut Session,
        located: bool,
        until: Instant,
    ) -> Result<Pong, postgres::Error> {
        let asked_at = Instant::now();
        let answer = match located {
            false => session.ask(QUESTION, until)?,
            true => locate(session, until)?,
        };
        let field = |nth| first_row(&answer)?.try_get(nth).ok().flatten();
        let position = match (field(1), field(2).and_then(|text: &str| text.parse().ok())) {
            (Some(is_standby), Some(at)) if located => Some(Position {
                is_standby: is_standby == "t",
                at,
                server: session.server(),
                timeline: field(3).and_then(|text| text.parse().ok()),
                system: session.backend().system,
            }),
            _ => None,
        };
        Ok(Pong {
            asked_at,
            took: asked_at.elapsed(),
            read_only: field(0) == Some("on"),
            position,
        })
    }
}

/// Asks a server how far it has come; without its timeline if the role may not read that.
fn locate(
    session: &mut Session,
    until: Instant,
) -> Result<Vec<SimpleQueryMessage>, postgres::Error> {
    let at = format!(
        "CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() - '0/0' ELSE {INSERTED} END"
    );
    let question = format!("{QUESTION}, pg_is_in_recovery(), {at}");
    let is_hidden = |e: &postgres::Error| e.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE);
    if session.backend().shows_timeline {
        match session.ask(&format!("{question}, {TIMELINE}"), until) {
            // Another role than at the login may not.
            Err(e) if is_hidden(&e) => {}
            other => return other,
        }
    }
    session.ask(&question, until)
}
