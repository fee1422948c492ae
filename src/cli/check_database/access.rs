//! Rules about what passes between, and what the role may do: encryption, rights, encoding.

use super::facts::{Facts, Limits, Plan, Rights, Table};
use super::finding::{Finding, Findings};
use millpond::config::SslMode;

// Indices of `Table::allowed`, and of these words.
const SELECT: usize = 0;
const INSERT: usize = 1;
const UPDATE: usize = 2;
const DELETE: usize = 3;
const WORDS: [&str; 4] = ["SELECT", "INSERT", "UPDATE", "DELETE"];

/// The name of the ledger's table.
const LEDGER: &str = "ledger";

/// What the studio does with its tables.
const STUDIO: [(&str, &[usize]); 7] = [
    ("schema_history", &[SELECT]),
    ("studios", &[SELECT]),
    ("reservations", &[SELECT, INSERT, UPDATE]),
    ("quotes", &[SELECT, INSERT, UPDATE]),
    ("invoice_numbers", &[SELECT, UPDATE]),
    ("invoices", &[SELECT, INSERT, UPDATE]),
    ("invoice_lines", &[SELECT, INSERT]),
];

pub(super) fn encryption(plan: &Plan, facts: &Facts) -> Vec<Finding> {
    let mut found = Findings::about("encryption");
    let endpoint = &facts.endpoint;
    let mode = plan.ssl_mode;
    let leaves = !endpoint.is_local;
    if leaves && !endpoint.is_encrypted {
        found.note(format!(
            "the connection to {} is not encrypted, so all data can be read and changed on the way: turn TLS on at the server \
             (ssl=on), and add sslmode=verify-full and sslrootcert to DATABASE_URL",
            endpoint.place
        ));
    } else if leaves && mode < SslMode::VerifyFull {
        let risk = match mode {
            SslMode::Require if !endpoint.is_verified => {
                "takes any server for the right one".to_owned()
            }
            SslMode::Require | SslMode::VerifyCa => {
                "takes any server with a certificate of the same authority for the right one".into()
            }
            _ => "would go on without encryption, if somebody in between prevents it".into(),
        };
        found.note(format!(
            "the connection is encrypted, but sslmode={mode} {risk}: add sslmode=verify-full and sslrootcert to DATABASE_URL"
        ));
    }
    found.or_ok(|| match (&facts.encryption, endpoint.is_encrypted) {
        // What the server sees is the pooler's connection.
        (_, true) if endpoint.is_pooled => {
            format!("encrypted, as far as the pooler; sslmode={mode}")
        }
        (Some(server), true) => format!("{}, {}; sslmode={mode}", server.version, server.cipher),
        (None, true) => format!("encrypted; sslmode={mode}"),
        (_, false) => "none; the connection does not leave this machine".into(),
    })
}

pub(super) fn rights(plan: &Plan, facts: &Facts) -> Vec<Finding> {
    let mut found = Findings::about("rights");
    let (Some(limits), Some(rights), Some(tables)) = (&facts.limits, &facts.rights, &facts.tables)
    else {
        return found.end();
    };
    let role = &limits.role;
    if limits.superuser {
        found.note(format!(
            "the role {role:?} is a superuser, whom no right and no connection limit stops: let the program log in as an ordinary \
             role (CREATE ROLE .. LOGIN)"
        ));
    } else {
        // A program of its own may do without keyed writes; the studio cannot.
        for text in lacking(plan, limits, rights, tables) {
            match plan.studio {
                true => found.wrong(text),
                false => found.note(format!("{text}; it matters only for writes with a key")),
            }
        }
        if plan.studio && !rights.may_create_temporary_tables {
            found.note(format!(
                "imports of reservations will fail: GRANT TEMP ON DATABASE {:?} TO {role:?}",
                limits.database
            ));
        }
        let sweeps = |table: &&Table| table.name == LEDGER && table.is_ledger;
        if let Some(table) = tables.iter().find(sweeps)
            && !table.allowed[DELETE]
        {
            found.note(format!(
                "the ledger will only grow, since old keys cannot be deleted: GRANT DELETE ON {} TO {role:?}",
                of_schema(plan, LEDGER)
            ));
        }
        if !rights.may_resolve_commits && !facts.endpoint.is_pooled && !facts.standby {
            found.note(format!(
                "the outcome of a lost COMMIT cannot be found out without a key: GRANT EXECUTE ON FUNCTION pg_control_system(), \
                 pg_walfile_name(pg_lsn), pg_stat_get_wal() TO {role:?}"
            ));
        }
    }
    // A table of another program is in the way of any role.
    if let Some(table) = tables.iter().find(|table| table.name == LEDGER)
        && !table.is_ledger
    {
        let text = format!(
            "the table {} exists, but is not a ledger: rename it, or use another database",
            of_schema(plan, LEDGER)
        );
        match plan.studio {
            true => found.wrong(text),
            false => found.note(text),
        }
    }
    found.or_ok(|| {
        let ledger = of_schema(plan, LEDGER);
        match tables.iter().any(|table| table.name == LEDGER) {
            true => format!("the role {role:?} may use the ledger, {ledger}"),
            false => format!("the role {role:?} may create the ledger, {ledger}"),
        }
    })
}

/// Returns what the role may not do and has to.
fn lacking(plan: &Plan, limits: &Limits, rights: &Rights, tables: &[Table]) -> Vec<String> {
    let (role, database) = (&limits.role, &limits.database);
    let schema = &plan.ledger_schema;
    let table = |name: &str| tables.iter().find(|table| table.name == name);
    let history = STUDIO[0].0;
    let is_complete = table(LEDGER).is_some() && (!plan.studio || table(history).is_some());
    let mut lacking = Vec::new();
    if !is_complete {
        // Its DDL asks for the first right even where the schema exists.
        if !rights.may_create_schemas {
            lacking.push(format!(
                "the tables in the schema {schema:?} are missing, and the role {role:?} may not create them: \
                 GRANT CREATE ON DATABASE {database:?} TO {role:?}, or let another role run the program once"
            ));
        } else if rights.schema.is_some_and(|(_, creates)| !creates) {
            lacking.push(format!(
                "tables in the schema {schema:?} are missing, and the role {role:?} may not create them: \
                 GRANT USAGE, CREATE ON SCHEMA {schema:?} TO {role:?}"
            ));
        }
    }
    if let Some((false, _)) = rights.schema {
        lacking.push(format!(
            "the role {role:?} may not use the schema {schema:?}: GRANT USAGE ON SCHEMA {schema:?} TO {role:?}"
        ));
    }
    let ledger: (&str, &[usize]) = (LEDGER, &[SELECT, INSERT, UPDATE]);
    let studio = STUDIO.iter().filter(|_| plan.studio);
    for (name, needed) in std::iter::once(&ledger).chain(studio) {
        let Some(table) = table(name) else { continue };
        let missing = needed.iter().filter(|right| !table.allowed[**right]);
        let missing: Vec<_> = missing.map(|right| WORDS[*right]).collect();
        if !missing.is_empty() {
            lacking.push(format!(
                "the role {role:?} may not do all it has to: GRANT {} ON {} TO {role:?}",
                missing.join(", "),
                of_schema(plan, name)
            ));
        }
    }
    lacking
}

fn of_schema(plan: &Plan, table: &str) -> String {
    format!("{}.{table}", plan.ledger_schema)
}

pub(super) fn encoding(plan: &Plan, facts: &Facts) -> Vec<Finding> {
    let mut found = Findings::about("encoding");
    let encoding = facts.settings.text("server_encoding");
    let mend = "create a database WITH ENCODING 'UTF8' TEMPLATE template0";
    match encoding {
        "UTF8" => {}
        "SQL_ASCII" => found.wrong(format!(
            "the database's encoding is SQL_ASCII, so it takes bytes that are no text, and reading them fails: {mend}"
        )),
        _ if plan.studio => found.wrong(format!(
            "the studio needs a database with the encoding UTF8, but this one has {encoding}: {mend}"
        )),
        _ => found.note(format!(
            "the database's encoding is {encoding}, so a character that it does not have is refused: {mend}"
        )),
    }
    let client = facts.settings.text("client_encoding");
    if client != "UTF8" {
        found.wrong(format!(
            "client_encoding is {client}, but the driver takes only UTF8: do not set it, neither in the URL's options nor in the pooler"
        ));
    }
    found.or_ok(|| "UTF8 on both sides".into())
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level::{Note, Ok, Wrong};
    use super::super::sample::{facts, finds, plan, set};
    use super::*;

    #[test]
    fn what_can_be_read_on_the_way_is_said_unless_there_is_none() {
        for (local, encrypted, verified, mode, level, word) in [
            (
                true,
                false,
                false,
                SslMode::Prefer,
                Ok,
                "does not leave this machine",
            ),
            (true, true, false, SslMode::Prefer, Ok, "TLSv1.3"),
            (
                false,
                false,
                false,
                SslMode::Prefer,
                Note,
                "is not encrypted",
            ),
            (
                false,
                true,
                false,
                SslMode::Prefer,
                Note,
                "without encryption",
            ),
            (
                false,
                true,
                false,
                SslMode::Require,
                Note,
                "takes any server for",
            ),
            (
                false,
                true,
                true,
                SslMode::Require,
                Note,
                "of the same authority",
            ),
            (
                false,
                true,
                true,
                SslMode::VerifyCa,
                Note,
                "of the same authority",
            ),
            (
                false,
                true,
                true,
                SslMode::VerifyFull,
                Ok,
                "TLS_AES_256_GCM_SHA384",
            ),
        ] {
            let (mut plan, mut facts) = (plan(), facts());
            plan.ssl_mode = mode;
            facts.endpoint.is_local = local;
            facts.endpoint.is_encrypted = encrypted;
            facts.endpoint.is_verified = verified;
            finds(&encryption(&plan, &facts), level, &[word]);
            // Behind a pooler, the server's word is about another connection.
            facts.endpoint.is_pooled = true;
            let pooled = encryption(&plan, &facts);
            assert!(pooled.iter().all(|found| !found.text.contains("TLSv1.3")));
        }
    }

    fn table(name: &str, allowed: [bool; 4]) -> Table {
        Table {
            name: name.into(),
            is_ledger: name == LEDGER,
            allowed,
        }
    }

    fn all_tables() -> Vec<Table> {
        let names = STUDIO.iter().map(|(name, _)| *name);
        names
            .chain([LEDGER])
            .map(|name| table(name, [true; 4]))
            .collect()
    }

    #[test]
    fn a_role_may_do_what_the_program_has_to() {
        let (mut own, mut facts) = (plan(), facts());
        finds(
            &rights(&own, &facts),
            Ok,
            &["may create the ledger, studio.ledger"],
        );
        // What is there need not be created.
        let rights_mut = |facts: &mut Facts, schemas, schema| {
            let rights = facts.rights.as_mut().unwrap();
            (rights.may_create_schemas, rights.schema) = (schemas, schema);
        };
        facts.tables = Some(all_tables());
        rights_mut(&mut facts, false, Some((true, false)));
        finds(&rights(&own, &facts), Ok, &["may use the ledger"]);
        rights_mut(&mut facts, false, Some((false, false)));
        finds(
            &rights(&own, &facts),
            Wrong,
            &["GRANT USAGE ON SCHEMA \"studio\" TO \"app\""],
        );

        facts.tables = Some(Vec::new());
        rights_mut(&mut facts, false, None);
        finds(
            &rights(&own, &facts),
            Wrong,
            &["GRANT CREATE ON DATABASE \"shop\" TO \"app\""],
        );
        rights_mut(&mut facts, true, Some((true, false)));
        finds(
            &rights(&own, &facts),
            Wrong,
            &["GRANT USAGE, CREATE ON SCHEMA"],
        );
        // Without the studio it is for the application to say.
        own.studio = false;
        finds(&rights(&own, &facts), Note, &["only for writes with a key"]);
    }

    #[test]
    fn a_right_on_a_table_that_is_missing_is_named() {
        let (own, mut facts) = (plan(), facts());
        let mut with = |name: &str, allowed| {
            let mut tables = all_tables();
            tables.retain(|table| table.name != name);
            tables.push(table(name, allowed));
            facts.tables = Some(tables);
            rights(&own, &facts)
        };
        let reads = [true, false, false, false];
        finds(&with("studios", reads), Ok, &[]);
        finds(
            &with("ledger", reads),
            Wrong,
            &["GRANT INSERT, UPDATE ON studio.ledger TO \"app\""],
        );
        finds(
            &with("ledger", [true, true, true, false]),
            Note,
            &["GRANT DELETE"],
        );
        finds(
            &with("quotes", reads),
            Wrong,
            &["GRANT INSERT, UPDATE ON studio.quotes"],
        );
        finds(
            &with("schema_history", [false; 4]),
            Wrong,
            &["GRANT SELECT ON studio.schema_history"],
        );
    }

    #[test]
    fn a_superuser_a_table_in_the_way_and_smaller_rights_are_said() {
        let (own, mut facts) = (plan(), facts());
        let rights_of = |facts: &Facts| rights(&own, facts);
        facts.rights.as_mut().unwrap().may_create_temporary_tables = false;
        finds(
            &rights_of(&facts),
            Note,
            &["GRANT TEMP ON DATABASE \"shop\""],
        );
        facts.rights.as_mut().unwrap().may_resolve_commits = false;
        finds(&rights_of(&facts), Note, &["pg_control_system()"]);
        facts.limits.as_mut().unwrap().superuser = true;
        finds(&rights_of(&facts), Note, &["superuser"]);
        let mut other = table(LEDGER, [true; 4]);
        other.is_ledger = false;
        facts.tables = Some(vec![other]);
        finds(&rights_of(&facts), Wrong, &["is not a ledger"]);
    }

    #[test]
    fn texts_have_an_encoding_and_it_is_utf8() {
        for (server, client, studio, level) in [
            ("UTF8", "UTF8", true, Ok),
            ("SQL_ASCII", "UTF8", false, Wrong),
            ("LATIN1", "UTF8", false, Note),
            ("LATIN1", "UTF8", true, Wrong),
            ("UTF8", "LATIN1", true, Wrong),
        ] {
            let (mut own, mut facts) = (plan(), facts());
            own.studio = studio;
            set(&mut facts, "server_encoding", server);
            set(&mut facts, "client_encoding", client);
            finds(&encoding(&own, &facts), level, &["UTF8"]);
        }
    }
}
