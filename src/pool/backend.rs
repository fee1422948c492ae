//! What a session records of its backend and its server. `commit::resolve` explains the use.

use postgres::error::{DbError, Severity};
use postgres::{Client, SimpleQueryMessage, SimpleQueryRow};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

#[derive(Clone, Debug)]
pub(crate) struct Backend {
    pub pid: i32,
    /// Microseconds since 1970, by the server's clock.
    pub backend_start: i64,
    pub standby: bool,
    /// None on a standby, and for a role that may not read it.
    pub incarnation: Option<Incarnation>,
    /// How long the backend has existed, by the server's clock.
    pub age: Duration,
    /// The `statement_timeout` with which it began; zero = off.
    pub statement_timeout: Duration,
    /// The server's settings that are off, so that a crash may lose writes that it reported as
    /// committed; empty if none is.
    pub risks: String,
    /// The server sends us no warnings.
    pub hides_warnings: bool,
    /// Transactions are read-only by default, as they are on a standby.
    pub read_only: bool,
    /// Tells the server that runs it from others behind the same address, while it runs.
    pub server: u64,
    /// The role may read the server's timeline.
    pub shows_timeline: bool,
    /// The identifier of the cluster, which a primary and its standbys share. None for a role that
    /// may not read it.
    pub system: Option<u64>,
}

/// A span of a server's life during which its transaction ids only increase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Incarnation {
    pub system_identifier: String,
    pub timeline: String,
    pub stats_reset: String,
}

/// A backend's start in a form that no setting of a session changes.
pub(crate) const BACKEND_START: &str = "(extract(epoch FROM backend_start) * 1000000)::bigint";

impl Backend {
    /// Reads it in one round trip. If the role may not read all of it, a second query omits the
    /// incarnation, so that the session can still be used. The functions under the views are called
    /// directly: a new backend takes 2 ms for them, and 4 ms for the views.
    pub fn read(client: &mut Client) -> Result<Backend, postgres::Error> {
        // As the login role: another role may not even read the entry of its own backend.
        let who = format!(
            "SET LOCAL ROLE NONE; SELECT pid, {BACKEND_START} AS backend_start, pg_is_in_recovery() AS standby, \
             (extract(epoch FROM clock_timestamp() - backend_start) * 1000000)::bigint AS age, \
             (extract(epoch FROM current_setting('statement_timeout')::interval) * 1000)::bigint AS statement_timeout, \
             concat_ws(' and ', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'synchronous_commit=off' END, \
             CASE current_setting('fsync') WHEN 'off' THEN 'fsync=off' END) AS risks, \
             current_setting('client_min_messages') = 'error' AS hides_warnings, \
             current_setting('transaction_read_only') = 'on' AS read_only, \
             concat_ws(' ', inet_server_addr(), inet_server_port(), extract(epoch FROM pg_postmaster_start_time())) AS server"
        );
        let server = "(SELECT system_identifier::text FROM pg_control_system()) AS system_identifier, CASE WHEN NOT pg_is_in_recovery() THEN \
                      left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) END AS timeline, \
                      (SELECT extract(epoch FROM stats_reset)::text FROM pg_stat_get_wal()) AS stats_reset, \
                      (SELECT bool_and(has_function_privilege(function, 'EXECUTE')) FROM unnest('{pg_walfile_name(pg_lsn), \
                      pg_control_checkpoint(), pg_control_recovery(), pg_stat_get_wal_receiver()}'::text[]) AS function) AS shows_timeline";
        let from = "FROM pg_stat_get_activity(pg_backend_pid())";
        let messages = match client.simple_query(&format!("{who}, {server} {from}")) {
            // A FATAL error has ended the connection, and says why.
            Err(e) if is_of_the_statement(&e) => client.simple_query(&format!("{who} {from}"))?,
            other => other?,
        };
        let row = first_row(&messages);
        let text = |column: &str| {
            row.and_then(|row| row.try_get(column).ok().flatten())
                .map(str::to_owned)
        };
        let incarnation = match (
            text("system_identifier"),
            text("timeline"),
            text("stats_reset"),
        ) {
            (Some(system_identifier), Some(timeline), Some(stats_reset)) => Some(Incarnation {
                system_identifier,
                timeline,
                stats_reset,
            }),
            _ => None,
        };
        let mut server = DefaultHasher::new();
        text("server").hash(&mut server);
        let number = |column| text(column).and_then(|t| t.parse::<i64>().ok());
        let is_true = |column| text(column).as_deref() == Some("t");
        let span = |column| number(column).map_or(0, i64::unsigned_abs);
        Ok(Backend {
            pid: number("pid")
                .and_then(|n| i32::try_from(n).ok())
                .unwrap_or(0),
            backend_start: number("backend_start").unwrap_or(0),
            standby: is_true("standby"),
            risks: text("risks").unwrap_or_default(),
            hides_warnings: is_true("hides_warnings"),
            read_only: is_true("read_only"),
            server: server.finish(),
            shows_timeline: is_true("shows_timeline"),
            system: text("system_identifier").and_then(|system| system.parse().ok()),
            incarnation: incarnation.filter(|_| number("backend_start").is_some()),
            age: Duration::from_micros(span("age")),
            statement_timeout: Duration::from_millis(span("statement_timeout")),
        })
    }

    /// Returns what the server's clock showed when this was read, in microseconds since 1970.
    pub fn clock(&self) -> Option<i64> {
        let age = i64::try_from(self.age.as_micros()).ok()?;
        (self.backend_start != 0).then(|| self.backend_start.saturating_add(age))
    }
}

/// Returns the first value of the first row of a simple query's answer.
pub(crate) fn first_value(messages: &[SimpleQueryMessage]) -> Option<&str> {
    first_row(messages)?.try_get(0).ok().flatten()
}

/// Returns the first row of a simple query's answer.
pub(crate) fn first_row(messages: &[SimpleQueryMessage]) -> Option<&SimpleQueryRow> {
    messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    })
}

/// Returns whether the server refused the statement, and goes on.
fn is_of_the_statement(error: &postgres::Error) -> bool {
    let severity = error.as_db_error().and_then(DbError::parsed_severity);
    severity == Some(Severity::Error)
}
