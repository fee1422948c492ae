//! What the server says about statements that are not kept on a session: the types of their
//! parameters, and which types of their rows the driver must look up.
//!
//! If no statements are kept (`DB_STATEMENT_CACHE=0`, or a pooler that runs each transaction on
//! another server connection), the parameters' types must be sent along with each statement. They
//! come from the server and are not guessed from the Rust types: a text that is compared with a
//! `citext` is a `citext`, and the time for a `timestamp` is not a `timestamptz`. A text is
//! described once for the whole pool, and after that sent in one round trip like any other: also
//! one that is kept, on each connection that does not know it yet (see `wire::prepare`).

use super::texts::Texts;
use super::wire::Description;
use crate::retry::Facts;
use crate::sync::unpoison;
use postgres::types::{Oid, Type};
use postgres::{Client, SimpleQueryMessage, Statement};
use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// The most texts that are remembered.
const MOST: NonZeroUsize = NonZeroUsize::MIN.saturating_add(999);

/// Tables may be altered at any time, so a text is described again after this time.
const KEPT_FOR: Duration = Duration::from_secs(60);

/// What is known of one text.
#[derive(Debug)]
pub(crate) struct Described {
    pub params: Vec<Type>,
    pub facts: Facts,
    at: Instant,
    /// The types of its rows that each client's driver must look up for itself.
    needs_look_up: Vec<Oid>,
    /// What the driver is told when it prepares the text; None if it would look types up.
    pub description: Option<Description>,
}

impl Described {
    pub fn of(statement: &Statement, facts: Facts) -> Described {
        let params = statement.params().to_vec();
        let needs_look_up = types_to_look_up(statement);
        let is_plain = needs_look_up.is_empty() && !params.iter().any(self::needs_look_up);
        let oids = params.iter().map(Type::oid);
        let description = is_plain.then(|| Description::new(oids, statement.columns()));
        Described {
            params,
            facts,
            at: Instant::now(),
            needs_look_up,
            description,
        }
    }

    fn is_fresh(&self) -> bool {
        self.at.elapsed() < KEPT_FOR
    }
}

/// What is known of the texts that a pool has sent.
pub(crate) struct Descriptions {
    known: Mutex<Texts<Known>>,
    /// Texts whose cached plan or description failed inside a transaction, and when that happened.
    unsettled: Mutex<Texts<Instant>>,
    any_unsettled: AtomicBool,
}

struct Known {
    described: Arc<Described>,
    /// How often it was described: about as often as connections have met the text.
    times: u32,
}

impl Default for Descriptions {
    fn default() -> Self {
        Descriptions {
            known: Mutex::new(Texts::new(MOST)),
            unsettled: Mutex::new(Texts::new(MOST)),
            any_unsettled: AtomicBool::new(false),
        }
    }
}

impl Descriptions {
    fn lock(&self) -> MutexGuard<'_, Texts<Known>> {
        unpoison(self.known.lock())
    }

    /// Stops a text from being kept, on every session, for a while. Called when what was kept of it
    /// failed inside a transaction, where the statement cannot be tried again. This keeps the next
    /// attempt from failing in the same way, whether a table was altered under all sessions or each
    /// transaction creates a temporary table anew.
    pub fn do_not_keep(&self, sql: &str) {
        unpoison(self.unsettled.lock()).put(sql, Instant::now());
        self.any_unsettled.store(true, Ordering::Relaxed);
    }

    pub fn may_keep(&self, sql: &str) -> bool {
        if !self.any_unsettled.load(Ordering::Relaxed) {
            return true;
        }
        let mut unsettled = unpoison(self.unsettled.lock());
        let Some(since) = unsettled.get(sql) else {
            return true;
        };
        let settled = since.elapsed() > KEPT_FOR;
        if settled {
            unsettled.forget(sql);
            self.any_unsettled
                .store(!unsettled.is_empty(), Ordering::Relaxed);
        }
        settled
    }

    pub fn get(&self, sql: &str) -> Option<Arc<Described>> {
        let mut known = self.lock();
        let described = &known.get(sql)?.described;
        described.is_fresh().then(|| Arc::clone(described))
    }

    /// Returns what the driver may be told of a text with so many parameters. However old it is:
    /// what the driver is told is verified.
    pub fn for_prepare(&self, sql: &str, params: usize) -> Option<Arc<Described>> {
        let mut known = self.lock();
        let described = &known.get(sql)?.described;
        let usable = described.params.len() == params && described.description.is_some();
        usable.then(|| Arc::clone(described))
    }

    /// Returns the texts that most connections have met, the best known first, of those that the
    /// driver may be told of.
    pub fn most_used(&self, most: usize) -> Vec<(Box<str>, Arc<Described>)> {
        let known = self.lock();
        // A text under a search path of its own is known under another key.
        let is_met_again = |(text, known): &(&str, &Known)| {
            known.times > 1 && known.described.description.is_some() && !text.contains('\0')
        };
        let mut met: Vec<_> = known.iter().filter(is_met_again).collect();
        met.sort_by_key(|(_, known)| std::cmp::Reverse(known.times));
        let met = met.into_iter().take(most);
        met.map(|(text, known)| (text.into(), Arc::clone(&known.described)))
            .collect()
    }

    pub fn put(&self, sql: &str, described: &Arc<Described>) {
        let mut known = self.lock();
        let before = known.get(sql).map_or(0, |known| known.times);
        let met = Known {
            described: Arc::clone(described),
            times: before.saturating_add(1),
        };
        known.put(sql, met);
    }

    /// Forgets a text whose statement failed: its types may have changed.
    pub fn forget(&self, sql: &str) {
        self.lock().forget(sql);
    }
}

/// The types that one client has looked up.
///
/// The driver looks up a type with prepared statements of its own, which it keeps forever
/// (tokio-postgres 0.7.18, `prepare.rs`). On a direct connection that is fine. Behind a pooler, the
/// next transaction may run on another server connection, where those names are unknown or belong
/// to another program's statements; and statements left on a server connection clash with other
/// clients that prepare under the same names. So behind a pooler they are prepared anew before each
/// look-up, and deallocated before the transaction ends.
#[derive(Default)]
pub(crate) struct LookUps {
    known: HashSet<Oid>,
    /// Name and text of the driver's own statements.
    statements: Vec<(String, String)>,
    /// They exist on the server connection, in the current transaction.
    present: bool,
    /// Some of them may be missing.
    doubtful: bool,
    /// The driver keeps types that it has looked up. They may have been altered since.
    keeps_types: bool,
}

impl LookUps {
    /// Returns whether this client can read the statement's rows without a look-up.
    pub fn cover(&self, described: &Described) -> bool {
        described
            .needs_look_up
            .iter()
            .all(|oid| self.known.contains(oid))
    }

    /// Has the server describe a statement, and the driver look up the types that it does not know.
    /// Behind a pooler (`shared`) this is called in a transaction, and the statements that remain
    /// must be deallocated with [`Self::take_away`].
    pub fn describe(
        &mut self,
        client: &mut Client,
        sql: &str,
        shared: bool,
    ) -> Result<Described, postgres::Error> {
        if shared && !self.present && !self.statements.is_empty() {
            // If this fails, some of the statements may exist.
            (self.present, self.doubtful) = (true, true);
            client.batch_execute(&self.prepare_sql())?;
            self.doubtful = false;
        }
        let statement = client.prepare(sql)?;
        let described = Described::of(&statement, Facts::of(sql));
        let of_params = described.params.iter().any(needs_look_up);
        // The statement is closed: that message is sent with the next one.
        drop(statement);
        if shared && (of_params || !described.needs_look_up.is_empty()) {
            // The returned names are of statements that are closed already.
            let _ = self.note_statements(client)?;
        }
        self.known.extend(&described.needs_look_up);
        Ok(described)
    }

    /// Records which statements the driver has prepared for itself in the current transaction.
    /// Returns the names of the statements that it was asked to prepare: they stay on the server if
    /// a look-up for them fails half-way (tokio-postgres 0.7.18, `prepare.rs`).
    pub fn note_statements(&mut self, client: &mut Client) -> Result<Vec<String>, postgres::Error> {
        let mut asked_for = Vec::new();
        for Found {
            name,
            text,
            looks_up,
        } in of_the_driver(client)?
        {
            if !looks_up {
                asked_for.push(name);
                continue;
            }
            self.present = true;
            if !self.statements.iter().any(|(known, _)| *known == name) {
                self.statements.push((name, text));
            }
        }
        Ok(asked_for)
    }

    /// Forgets the known types, because the client has cleared its type cache.
    pub fn forget_types(&mut self) {
        self.known.clear();
        self.keeps_types = false;
    }

    /// Notes that the driver has looked up types, which it keeps. Returns whether it kept some
    /// before.
    pub fn keep_types(&mut self) -> bool {
        std::mem::replace(&mut self.keeps_types, true)
    }

    /// Returns the statements that remove the driver's. They are sent with the end of a
    /// transaction, before or after the COMMIT or ROLLBACK.
    pub fn take_away(&mut self) -> Vec<String> {
        if !std::mem::take(&mut self.present) {
            return Vec::new();
        }
        let doubtful = std::mem::take(&mut self.doubtful);
        let away = |(name, _): &(String, String)| match doubtful {
            false => format!("DEALLOCATE {name}"),
            // Must never make the transaction fail.
            true => format!(
                "DO $$BEGIN DEALLOCATE {name}; EXCEPTION WHEN invalid_sql_statement_name THEN NULL; END$$"
            ),
        };
        self.statements.iter().map(away).collect()
    }

    /// Notes that the application may have deallocated some of them.
    pub fn doubt(&mut self) {
        self.doubtful = self.present;
    }

    fn prepare_sql(&self) -> String {
        let each = self.statements.iter();
        each.map(|(name, text)| format!("PREPARE {name} (oid) AS {text}; "))
            .collect()
    }
}

/// Returns whether the driver must look up this type.
pub(super) fn needs_look_up(ty: &Type) -> bool {
    Type::from_oid(ty.oid()).is_none()
}

fn types_to_look_up(statement: &Statement) -> Vec<Oid> {
    let types = statement.columns().iter().map(postgres::Column::type_);
    types
        .filter(|ty| needs_look_up(ty))
        .map(Type::oid)
        .collect()
}

/// A statement that the driver has prepared.
struct Found {
    name: String,
    text: String,
    /// True if the driver prepared it to look up types, false if it was asked to prepare it.
    looks_up: bool,
}

/// Returns the statements that the driver has prepared in this transaction. The type look-ups are
/// recognized by their names and texts, which no statement of an application has.
fn of_the_driver(client: &mut Client) -> Result<Vec<Found>, postgres::Error> {
    const SQL: &str = "SELECT name, statement, statement ~ '^SELECT [^;]*[[:space:]]FROM pg_catalog[.]pg_(type|enum|attribute)[^;]*$' \
                       FROM pg_prepared_statements WHERE NOT from_sql AND name ~ '^s[0-9]+$' AND prepare_time >= now()";
    let mut found = Vec::new();
    for message in client.simple_query(SQL)? {
        if let SimpleQueryMessage::Row(row) = message
            && let (Some(name), Some(text)) = (row.get(0), row.get(1))
        {
            found.push(Found {
                name: name.to_owned(),
                text: text.to_owned(),
                looks_up: row.get(2) == Some("t"),
            });
        }
    }
    Ok(found)
}
