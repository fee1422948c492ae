//! What the server says of statements that are not kept on a session: the types of their parameters, and which types of
//! their rows the driver does not know by itself.
//!
//! Where no statement is kept (`DB_STATEMENT_CACHE=0`, or a pooler that gives every transaction another session), the
//! parameters' types must go along with each statement. They are the server's, not guessed from Rust's: a text compared with a
//! `citext` is one, a time for a `timestamp` is no `timestamptz`. A text is described once for the whole pool, and then sent
//! in one round trip like any other.

use super::texts::Texts;
use crate::retry::Facts;
use crate::sync::unpoison;
use postgres::types::{Oid, Type};
use postgres::{Client, SimpleQueryMessage, Statement};
use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Texts that are remembered.
const MOST: NonZeroUsize = NonZeroUsize::MIN.saturating_add(999);

/// Tables change under the pool: after this time a text is described again.
const KEPT_FOR: Duration = Duration::from_secs(60);

/// What is known of one text.
#[derive(Debug)]
pub(crate) struct Described {
    pub params: Vec<Type>,
    pub facts: Facts,
    at: Instant,
    /// Types of its rows that the driver has to look up, each client for itself.
    unusual: Vec<Oid>,
}

/// What is known of the texts that a pool has sent.
pub(crate) struct Descriptions {
    known: Mutex<Texts<Arc<Described>>>,
    /// Texts whose plans did not last for a transaction, and when that was seen.
    unsettled: Mutex<Texts<Instant>>,
    any_unsettled: AtomicBool,
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
    fn lock(&self) -> MutexGuard<'_, Texts<Arc<Described>>> {
        unpoison(self.known.lock())
    }

    /// What was kept of this text failed inside a transaction, where it cannot be tried again: nothing is kept of it for a
    /// while, on no session. So the next attempt does not fail in the same way, be it that a table was changed under all
    /// sessions, or that each transaction makes a temporary one anew.
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
        let fresh = |d: &&Arc<Described>| d.at.elapsed() < KEPT_FOR;
        self.lock().get(sql).filter(fresh).cloned()
    }

    pub fn put(&self, sql: &str, described: &Arc<Described>) {
        self.lock().put(sql, Arc::clone(described));
    }

    /// It failed: perhaps the types have changed.
    pub fn forget(&self, sql: &str) {
        self.lock().forget(sql);
    }
}

/// What one client has looked up.
///
/// The driver looks a type up with prepared statements of its own, which it keeps for good (tokio-postgres 0.7.18,
/// `prepare.rs`). On a session of its own that is well. Behind a pooler the next transaction may meet another session, where
/// those names stand for nothing, or for another program's statements; and what stays behind meets others who prepare under
/// the same names. So there they are made anew before each look-up, and taken away again before the transaction ends.
#[derive(Default)]
pub(crate) struct LookUps {
    known: HashSet<Oid>,
    /// Name and text of the driver's own statements.
    statements: Vec<(String, String)>,
    /// They are there, in the transaction under way.
    present: bool,
    /// Or perhaps not all of them.
    doubtful: bool,
}

impl LookUps {
    /// The rows of such a statement need no look-up by this client.
    pub fn cover(&self, described: &Described) -> bool {
        described.unusual.iter().all(|oid| self.known.contains(oid))
    }

    /// Has the server describe a statement, and the driver look up what it does not know. Behind a pooler this is done in a
    /// transaction, with `shared`; what is left there is to be taken away by [`Self::take_away`].
    pub fn describe(
        &mut self,
        client: &mut Client,
        sql: &str,
        shared: bool,
    ) -> Result<Described, postgres::Error> {
        if shared && !self.present && !self.statements.is_empty() {
            // Should it fail, some may be there.
            (self.present, self.doubtful) = (true, true);
            client.batch_execute(&self.prepare_sql())?;
            self.doubtful = false;
        }
        let statement = client.prepare(sql)?;
        let described = Described {
            params: statement.params().to_vec(),
            facts: Facts::of(sql),
            at: Instant::now(),
            unusual: unusual(&statement),
        };
        let of_params = described.params.iter().any(is_unusual);
        // Closed: the message goes out with the next.
        drop(statement);
        if shared && (of_params || !described.unusual.is_empty()) {
            // What it was asked for is closed.
            let _ = self.note_statements(client)?;
        }
        self.known.extend(&described.unusual);
        Ok(described)
    }

    /// Takes note of what the driver has prepared for itself in the transaction under way, and returns the names of what it was
    /// asked for: that is left in the server where a look-up for it fails half-way (tokio-postgres 0.7.18, `prepare.rs`).
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

    /// The client has forgotten what it knew of types.
    pub fn forget_types(&mut self) {
        self.known.clear();
    }

    /// What ends a transaction begins or ends with, so that nothing of the driver's stays behind.
    pub fn take_away(&mut self) -> String {
        if !std::mem::take(&mut self.present) {
            return String::new();
        }
        let doubtful = std::mem::take(&mut self.doubtful);
        let away = |(name, _): &(String, String)| match doubtful {
            false => format!("DEALLOCATE {name}; "),
            // Never the reason for a failure.
            true => format!(
                "DO $$BEGIN DEALLOCATE {name}; EXCEPTION WHEN invalid_sql_statement_name THEN NULL; END$$; "
            ),
        };
        self.statements.iter().map(away).collect()
    }

    /// The application may have taken some of them away.
    pub fn doubt(&mut self) {
        self.doubtful = self.present;
    }

    fn prepare_sql(&self) -> String {
        let each = self.statements.iter();
        each.map(|(name, text)| format!("PREPARE {name} (oid) AS {text}; "))
            .collect()
    }
}

/// The driver does not know it by itself.
pub(super) fn is_unusual(ty: &Type) -> bool {
    Type::from_oid(ty.oid()).is_none()
}

fn unusual(statement: &Statement) -> Vec<Oid> {
    let types = statement.columns().iter().map(|column| column.type_());
    types.filter(|ty| is_unusual(ty)).map(Type::oid).collect()
}

/// A statement that the driver has prepared.
struct Found {
    name: String,
    text: String,
    /// To look types up, and not because it was asked for it.
    looks_up: bool,
}

/// What the driver has prepared in this transaction. Names and texts of what looks types up are its own: what an application
/// prepares has other texts.
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
