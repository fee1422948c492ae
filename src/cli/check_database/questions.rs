//! Asks the server for the facts. A question that is refused is no reason not to ask the next one.
//! All are simple queries, of one statement each, so a pooler may answer them as well.

use super::facts::{
    Encryption, Facts, Limits, Oldest, Plan, Rights, Sessions, Settings, Standbys, Table,
};
use millpond::error::Chain;
use millpond::for_cli::Endpoint;
use millpond::postgres::{Client, SimpleQueryMessage, SimpleQueryRow};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often the round trip is measured; the shortest counts.
const ROUND_TRIPS: usize = 3;

const SETTINGS: &str = "SELECT name, setting, source FROM pg_settings WHERE name IN ('server_version', \
     'server_version_num', 'server_encoding', 'client_encoding', 'TimeZone', 'max_connections', \
     'superuser_reserved_connections', 'reserved_connections', 'statement_timeout', 'lock_timeout', \
     'idle_in_transaction_session_timeout', 'idle_session_timeout', 'transaction_timeout', 'tcp_user_timeout', \
     'tcp_keepalives_idle', 'default_transaction_read_only', 'fsync', 'full_page_writes', 'synchronous_commit', \
     'synchronous_standby_names')";

/// As in the pool's own question: background processes count apart. Sessions under the program's
/// own name belong to instances that are counted anyway.
const SESSIONS: &str = "SELECT a.application_name AS name, count(*) AS sessions, \
     count(*) FILTER (WHERE a.usename = session_user) AS of_role, \
     count(*) FILTER (WHERE a.datname = current_database()) AS of_database FROM pg_stat_activity AS a \
     WHERE a.usesysid IS NOT NULL AND a.datid IS NOT NULL AND a.leader_pid IS NULL AND a.pid <> pg_backend_pid() \
     AND a.application_name IS DISTINCT FROM current_setting('application_name') GROUP BY 1 ORDER BY 2 DESC, 1";

const LIMITS: &str = "SELECT rolname AS role, rolconnlimit AS role_limit, rolsuper AS superuser, datname AS database, \
     datconnlimit AS database_limit FROM pg_roles, pg_database \
     WHERE rolname = session_user AND datname = current_database()";

const ENCRYPTION: &str =
    "SELECT version, cipher FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl";

const STANDBYS: &str = "SELECT count(*) AS everyone, count(*) FILTER (WHERE sync_state IN ('sync', 'quorum')) AS synchronous, \
     count(*) FILTER (WHERE sync_state IS NULL) AS hidden FROM pg_stat_replication";

const CLOCK: &str = "SELECT extract(epoch FROM clock_timestamp())::text AS epoch";

const OLDEST: &str = "SELECT datname AS database, age(datfrozenxid) AS age, mxid_age(datminmxid) AS multixact_age \
     FROM pg_database ORDER BY greatest(age(datfrozenxid), mxid_age(datminmxid)) DESC LIMIT 1";

/// A schema's name consists of letters that need no quoting.
fn rights_sql(schema: &str) -> String {
    let may_call = |function: &str| {
        // A version without the function has no such right either.
        format!("coalesce(has_function_privilege(to_regprocedure('{function}'), 'EXECUTE'), true)")
    };
    format!(
        "SELECT has_database_privilege(current_database(), 'CREATE') AS creates_schemas, \
         has_database_privilege(current_database(), 'TEMP') AS creates_temporary, \
         (SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = '{schema}') AS uses, \
         (SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = '{schema}') AS creates, \
         {} AND {} AND {} AS resolves",
        may_call("pg_control_system()"),
        may_call("pg_walfile_name(pg_lsn)"),
        may_call("pg_stat_get_wal()")
    )
}

fn tables_sql(schema: &str) -> String {
    format!(
        "SELECT c.relname AS name, has_table_privilege(c.oid, 'SELECT') AS selects, \
         has_table_privilege(c.oid, 'INSERT') AS inserts, has_table_privilege(c.oid, 'UPDATE') AS updates, \
         has_table_privilege(c.oid, 'DELETE') AS deletes, (SELECT count(*) = 5 FROM pg_attribute \
         WHERE attrelid = c.oid AND attname IN ('key', 'attempt', 'state', 'answer', 'at')) AS is_ledger \
         FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
         WHERE n.nspname = '{schema}' AND c.relkind IN ('r', 'p')"
    )
}

/// Why the rest was not asked: the connection is gone, or nothing is to be had on it.
pub(super) struct Lost(pub String);

struct Asker<'c> {
    client: &'c mut Client,
    unknown: Vec<(&'static str, String)>,
}

impl Asker<'_> {
    /// Returns the rows of the answer; none if the server refuses to answer.
    fn rows(&mut self, topic: &'static str, sql: &str) -> Result<Vec<SimpleQueryRow>, Lost> {
        let rows = |message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        };
        match self.client.simple_query(sql) {
            Ok(answer) => Ok(answer.into_iter().filter_map(rows).collect()),
            Err(e) if self.client.is_closed() => Err(Lost(Chain(&e).to_string())),
            Err(e) => {
                self.unknown.push((topic, Chain(&e).to_string()));
                Ok(Vec::new())
            }
        }
    }

    fn row(&mut self, topic: &'static str, sql: &str) -> Result<Option<SimpleQueryRow>, Lost> {
        Ok(self.rows(topic, sql)?.into_iter().next())
    }
}

fn text<'r>(row: &'r SimpleQueryRow, column: &str) -> Option<&'r str> {
    row.try_get(column).ok().flatten()
}

fn name(row: &SimpleQueryRow, column: &str) -> String {
    text(row, column).unwrap_or_default().to_owned()
}

fn is_true(row: &SimpleQueryRow, column: &str) -> bool {
    text(row, column) == Some("t")
}

/// Returns a number; `None` also for -1, with which PostgreSQL says that there is no limit.
fn count(row: &SimpleQueryRow, column: &str) -> Option<usize> {
    text(row, column)?.parse().ok()
}

/// Asks everything.
pub(super) fn ask(client: &mut Client, endpoint: Endpoint, plan: &Plan) -> Result<Facts, Lost> {
    let mut asker = Asker {
        client,
        unknown: Vec::new(),
    };
    let round_trip = round_trip(&mut asker)?;
    let standby = asker.row("server", "SELECT pg_is_in_recovery() AS standby")?;
    let settings = asker.rows("server", SETTINGS)?.into_iter();
    // Nothing can be said without them.
    if settings.len() == 0
        && let Some((_, why)) = asker.unknown.pop()
    {
        return Err(Lost(why));
    }
    let settings = settings.map(|row| {
        let (value, source) = (name(&row, "setting"), name(&row, "source"));
        (name(&row, "name"), (value, source))
    });
    Ok(Facts {
        round_trip,
        read_hosts: Vec::new(),
        standby: standby.is_some_and(|row| is_true(&row, "standby")),
        settings: Settings(settings.collect()),
        sessions: sessions(&mut asker)?,
        limits: asker.row("connections", LIMITS)?.map(|row| Limits {
            role: name(&row, "role"),
            role_limit: count(&row, "role_limit"),
            database: name(&row, "database"),
            database_limit: count(&row, "database_limit"),
            superuser: is_true(&row, "superuser"),
        }),
        encryption: asker.row("encryption", ENCRYPTION)?.map(|row| Encryption {
            version: name(&row, "version"),
            cipher: name(&row, "cipher"),
        }),
        rights: asker
            .row("rights", &rights_sql(&plan.ledger_schema))?
            .map(|row| Rights {
                may_create_schemas: is_true(&row, "creates_schemas"),
                may_create_temporary_tables: is_true(&row, "creates_temporary"),
                schema: text(&row, "uses").map(|uses| (uses == "t", is_true(&row, "creates"))),
                may_resolve_commits: is_true(&row, "resolves"),
            }),
        tables: tables(&mut asker, &plan.ledger_schema)?,
        standbys: asker.row("durability", STANDBYS)?.map(|row| Standbys {
            all: count(&row, "everyone").unwrap_or(0),
            synchronous: count(&row, "synchronous").unwrap_or(0),
            hidden: count(&row, "hidden").unwrap_or(0),
        }),
        clock: clock(&mut asker)?,
        oldest: asker.row("wraparound", OLDEST)?.map(|row| {
            let age = |column| text(&row, column).and_then(|text| text.parse().ok());
            Oldest {
                database: name(&row, "database"),
                age: age("age").unwrap_or(0),
                multixact_age: age("multixact_age").unwrap_or(0),
            }
        }),
        endpoint,
        unknown: asker.unknown,
    })
}

fn round_trip(asker: &mut Asker<'_>) -> Result<Duration, Lost> {
    let mut shortest = Duration::MAX;
    for _ in 0..ROUND_TRIPS {
        let asked = Instant::now();
        asker.row("server", "SELECT 1")?;
        shortest = shortest.min(asked.elapsed());
    }
    Ok(shortest)
}

fn sessions(asker: &mut Asker<'_>) -> Result<Option<Sessions>, Lost> {
    let refused = asker.unknown.len();
    let rows = asker.rows("connections", SESSIONS)?;
    if asker.unknown.len() > refused {
        return Ok(None);
    }
    let mut sessions = Sessions::default();
    for row in rows {
        let name = name(&row, "name");
        let count = |column| count(&row, column).unwrap_or(0);
        sessions.all += count("sessions");
        sessions.of_this_role += count("of_role");
        sessions.in_this_database += count("of_database");
        sessions.by_application.push((name, count("sessions")));
    }
    Ok(Some(sessions))
}

fn tables(asker: &mut Asker<'_>, schema: &str) -> Result<Option<Vec<Table>>, Lost> {
    let refused = asker.unknown.len();
    let rows = asker.rows("rights", &tables_sql(schema))?;
    let tables = rows.iter().map(|row| Table {
        name: name(row, "name"),
        is_ledger: is_true(row, "is_ledger"),
        allowed: ["selects", "inserts", "updates", "deletes"].map(|right| is_true(row, right)),
    });
    Ok((asker.unknown.len() == refused).then(|| tables.collect()))
}

/// The server has read its clock at some moment between the question and the answer.
fn clock(asker: &mut Asker<'_>) -> Result<Option<(f64, f64)>, Lost> {
    let ours = SystemTime::now().duration_since(UNIX_EPOCH);
    let asked = Instant::now();
    let row = asker.row("clock", CLOCK)?;
    let half = asked.elapsed().as_secs_f64() / 2.0;
    let theirs = row.and_then(|row| text(&row, "epoch")?.parse::<f64>().ok());
    Ok(theirs.zip(ours.ok()).map(|(theirs, ours)| {
        let ahead = theirs - (ours.as_secs_f64() + half);
        (ahead, half)
    }))
}
