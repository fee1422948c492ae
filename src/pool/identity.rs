//! Which backend of which server a session is; what that is good for is told in `transaction::outcome`.

use postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub pid: i32,
    /// Microseconds since 1970, by the server's clock.
    pub backend_start: i64,
    pub standby: bool,
    /// None on a standby, and for a role that may not read it.
    pub incarnation: Option<Incarnation>,
}

/// A span of a server's life in which the numbers of its transactions only go up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Incarnation {
    pub system_identifier: String,
    pub timeline: String,
    pub stats_reset: String,
}

/// A backend's start in a form that no setting of a session changes.
pub(crate) const BACKEND_START: &str = "(extract(epoch FROM backend_start) * 1000000)::bigint";

impl Identity {
    /// Reads it in one round trip. What a role may not read costs it the incarnation, not the session. The functions below
    /// the views are asked: a new backend takes 2 ms for them, and 4 ms for the views.
    pub fn read(client: &mut Client) -> Result<Identity, postgres::Error> {
        let who = format!(
            "SELECT pid, {BACKEND_START}, pg_is_in_recovery() FROM pg_stat_get_activity(pg_backend_pid())"
        );
        let full = format!(
            "SELECT pid, {BACKEND_START}, pg_is_in_recovery(), CASE WHEN NOT pg_is_in_recovery() THEN \
             (SELECT system_identifier::text FROM pg_control_system()) END, CASE WHEN NOT pg_is_in_recovery() THEN \
             left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) END, (SELECT extract(epoch FROM stats_reset)::text \
             FROM pg_stat_get_wal()) FROM pg_stat_get_activity(pg_backend_pid())"
        );
        let messages = match client.simple_query(&full) {
            Err(e) if e.as_db_error().is_some() => client.simple_query(&who)?,
            other => other?,
        };
        let row = first_row(&messages);
        let text = |column| {
            row.and_then(|row| row.try_get(column).ok().flatten())
                .map(str::to_owned)
        };
        let incarnation = match (text(3), text(4), text(5)) {
            (Some(system_identifier), Some(timeline), Some(stats_reset)) => Some(Incarnation {
                system_identifier,
                timeline,
                stats_reset,
            }),
            _ => None,
        };
        let number = |column| text(column).and_then(|t| t.parse::<i64>().ok());
        Ok(Identity {
            pid: number(0).and_then(|n| i32::try_from(n).ok()).unwrap_or(0),
            backend_start: number(1).unwrap_or(0),
            standby: text(2).as_deref() == Some("t"),
            incarnation: incarnation.filter(|_| number(1).is_some()),
        })
    }
}

/// The first row of what a simple query was answered.
pub(crate) fn first_row(messages: &[SimpleQueryMessage]) -> Option<&SimpleQueryRow> {
    messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    })
}
