//! What the text of a statement shows about it. Pure.
//!
//! There are two ways of reading it. The [`Keywords`] at its start tell the kind of statement; they
//! are read for each call. A [scan](Facts::of) of the whole text finds what the statement may leave
//! on its session; it is made once for each text that is kept. Neither knows the grammar. A text
//! does not show what functions, procedures and `EXECUTE` do inside.

use super::tokens::{Token, Tokens, after_blanks, is};

/// Returns whether a statement commits inside, in several steps, or before it is reported complete
/// (`PreventInTransactionBlock`). Such a statement is never retried once it was sent, and must not
/// be put into a transaction. Reads only the first keywords; comments and blanks before them are
/// skipped.
pub(crate) fn commits_inside(sql: &str) -> bool {
    let mut words = Keywords(sql);
    let Some(first) = words.next() else {
        return false;
    };
    if is(
        first,
        &["CALL", "DO", "VACUUM", "ANALYZE", "CLUSTER", "REINDEX"],
    ) {
        return true;
    }
    let second = words.next().unwrap_or_default();
    // Where a name may come first, the word is searched for in the whole text. At worst a statement
    // is not retried although it could be.
    let mentions = |word: &str| {
        sql.split(|c: char| !c.is_ascii_alphabetic())
            .any(|w| w.eq_ignore_ascii_case(word))
    };
    if is(first, &["CREATE", "DROP"]) {
        is(second, &["DATABASE", "TABLESPACE", "SUBSCRIPTION"])
            // CREATE [UNIQUE] INDEX CONCURRENTLY, DROP INDEX CONCURRENTLY
            || (is(second, &["UNIQUE", "INDEX"])
                && words.take(2).any(|w| is(w, &["CONCURRENTLY"])))
    } else if is(first, &["ALTER"]) {
        is(second, &["SYSTEM", "SUBSCRIPTION"])
            || (is(second, &["DATABASE"]) && mentions("TABLESPACE"))
            // ALTER TABLE .. DETACH PARTITION .. CONCURRENTLY
            || (is(second, &["TABLE"]) && mentions("CONCURRENTLY"))
    } else {
        (is(first, &["DISCARD"]) && is(second, &["ALL"]))
            || (is(first, &["COMMIT", "ROLLBACK"]) && is(second, &["PREPARED"]))
    }
}

/// Returns whether a statement's text contains the name of a setting.
pub(crate) fn mentions(sql: &str, setting: &str) -> bool {
    sql.as_bytes()
        .windows(setting.len())
        .any(|w| w.eq_ignore_ascii_case(setting.as_bytes()))
}

/// Returns whether a statement begins or ends a transaction. A rollback to a savepoint counts, too:
/// there is a method of the transaction for it.
pub(crate) fn controls_transaction(sql: &str) -> bool {
    let mut words = Keywords(sql);
    let Some(first) = words.next() else {
        return false;
    };
    let any = |list: &[&str]| list.iter().any(|w| first.eq_ignore_ascii_case(w));
    let mut is_followed = |by: &str| words.next().is_some_and(|w| w.eq_ignore_ascii_case(by));
    any(&["END", "ABORT", "BEGIN"])
        // COMMIT PREPARED and ROLLBACK PREPARED end another transaction, not the current one.
        || (any(&["COMMIT", "ROLLBACK"]) && !is_followed("PREPARED"))
        || (any(&["START", "PREPARE"]) && is_followed("TRANSACTION"))
}

/// Returns whether a text has a word that begins a write. It may stand in a literal or a comment,
/// and functions may write without it.
pub(crate) fn names_a_write(sql: &str) -> bool {
    const WRITES: [&str; 5] = ["INSERT", "UPDATE", "DELETE", "MERGE", "TRUNCATE"];
    sql.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .any(|word| WRITES.iter().any(|write| word.eq_ignore_ascii_case(write)))
}

/// Returns whether a statement is a COPY whose data go through the client; it does not return rows.
pub(crate) fn copies_through_client(sql: &str) -> bool {
    copies_through(sql, "STDIN") || copies_through(sql, "STDOUT")
}

/// Returns whether a statement is a COPY from STDIN, or to STDOUT.
pub(crate) fn copies_through(sql: &str, stream: &str) -> bool {
    let first = Keywords(sql).next();
    first.is_some_and(|word| word.eq_ignore_ascii_case("COPY"))
        && sql
            .split(|c: char| !c.is_ascii_alphabetic())
            .any(|word| word.eq_ignore_ascii_case(stream))
}

/// The words at the start of a statement, without comments.
struct Keywords<'a>(&'a str);

impl<'a> Iterator for Keywords<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        loop {
            self.0 = after_blanks(self.0);
            match self.0.strip_prefix(['(', ';']) {
                Some(rest) => self.0 = rest,
                None => break,
            }
        }
        let end = self
            .0
            .find(|c: char| !c.is_ascii_alphabetic() && c != '_')
            .unwrap_or(self.0.len());
        let (word, rest) = self.0.split_at(end);
        self.0 = rest;
        (!word.is_empty()).then_some(word)
    }
}

/// What remains on a session after a statement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Leaves {
    #[default]
    Nothing,
    /// A setting, a lock, a temporary table, a subscription, a prepared statement, a cursor: a
    /// clean-up can remove it.
    State,
    /// A loaded library, a connection to another server: only the end of the session removes it.
    Traces,
}

/// What a scan of a whole text finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    pub leaves: Leaves,
    pub names_synchronous_commit: bool,
    pub names_client_min_messages: bool,
    /// After it, other texts may mean something else.
    pub names_search_path: bool,
    pub makes_temporary: bool,
    /// It may put the temporary schema first in the path, so that objects created after it may be
    /// temporary.
    pub temporary_path: bool,
    pub creates: bool,
    pub deallocates: bool,
    /// It rolls back to a savepoint.
    pub rolls_back: bool,
    /// It is one query whose rows a cursor can fetch.
    pub fits_a_cursor: bool,
}

impl Facts {
    pub fn of(sql: &str) -> Facts {
        let mut facts = Facts {
            // In literals as well: `set_config('search_path', ..)`.
            names_synchronous_commit: mentions(sql, "synchronous_commit"),
            names_client_min_messages: mentions(sql, "client_min_messages"),
            names_search_path: mentions(sql, "search_path"),
            ..Facts::default()
        };
        // A name with Unicode escapes may be any name.
        if mentions(sql, "u&\"") {
            facts.leave(Leaves::State);
        }
        let names_temp = mentions(sql, "pg_temp");
        let mut tokens = Tokens(sql);
        let (mut statements, mut blank) = (0, false);
        let mut statement = Statement::default();
        while let Some(token) = tokens.next() {
            let (word, keyword) = match token {
                Token::Word(word) => (word, word),
                Token::Quoted(name) => (name, ""),
                Token::Sign(';') => {
                    blank |= statement.first.is_empty();
                    facts.end(&std::mem::take(&mut statement));
                    continue;
                }
                // A query may stand in parentheses.
                Token::Sign('(') if statement.first.is_empty() => continue,
                Token::Sign(_) | Token::Literal(_) => {
                    statement.before = "";
                    continue;
                }
            };
            if statement.first.is_empty() {
                statement.first = if keyword.is_empty() { "?" } else { keyword };
                statements += 1;
                facts.fits_a_cursor = is(keyword, &["SELECT", "VALUES", "TABLE", "WITH"]);
                facts.begin(statement.first, tokens, names_temp);
            } else {
                facts.go_on(&mut statement, word, keyword, tokens, names_temp);
            }
            statement.before = keyword;
        }
        facts.end(&statement);
        facts.fits_a_cursor &= statements == 1 && !blank;
        facts
    }

    fn leave(&mut self, leaves: Leaves) {
        self.leaves = self.leaves.max(leaves);
    }

    /// Evaluates the first word of a statement.
    fn begin(&mut self, first: &str, mut rest: Tokens<'_>, names_temp: bool) {
        let (next, then) = (rest.next(), rest.next());
        let next_is = |list: &[&str]| matches!(next, Some(Token::Word(word)) if is(word, list));
        // `local.tenant` is a name.
        let qualified = then == Some(Token::Sign('.'));
        let literal = matches!(then, Some(Token::Literal(_)));
        let sets = is(first, &["SET"]);
        let ends_with_transaction = !qualified && next_is(&["LOCAL", "TRANSACTION", "CONSTRAINTS"]);
        let stays = is(first, &["RESET", "LISTEN", "DISCARD", "DEALLOCATE", "DO"])
            || (sets && !ends_with_transaction)
            || (is(first, &["PREPARE"]) && !(next_is(&["TRANSACTION"]) && literal));
        if stays {
            self.leave(Leaves::State);
        }
        // This also removes the statements that the driver prepared for itself, and the driver does
        // not notice.
        let takes_all = is(first, &["DISCARD", "DEALLOCATE"]) && next_is(&["ALL", "PREPARE"]);
        if is(first, &["LOAD"]) || takes_all {
            self.leave(Leaves::Traces);
        }
        if sets {
            let either = |list: &[&str]| {
                next_is(list) || matches!(then, Some(Token::Word(word)) if is(word, list))
            };
            // The path may contain the name of the role.
            self.names_search_path |= either(&["SCHEMA", "ROLE", "SESSION", "AUTHORIZATION"]);
            self.temporary_path |= names_temp;
        }
        self.creates |= is(first, &["CREATE"]);
        self.deallocates |= is(first, &["DEALLOCATE", "DISCARD"]);
        self.rolls_back |= is(first, &["ROLLBACK"]);
    }

    /// Evaluates any other word; `keyword` is empty if it is a quoted name.
    fn go_on(
        &mut self,
        statement: &mut Statement<'_>,
        word: &str,
        keyword: &str,
        mut rest: Tokens<'_>,
        names_temp: bool,
    ) {
        let (first, before) = (statement.first, statement.before);
        let next = rest.next();
        // CREATE [LOCAL] TEMP .., CREATE OR REPLACE TEMP VIEW, SELECT .. INTO TEMP; not INSERT INTO
        // temp.
        let temporary = is(keyword, &["TEMP", "TEMPORARY"])
            && match next {
                Some(Token::Word(next)) => {
                    !is(next, &["VALUES", "SELECT", "DEFAULT", "OVERRIDING"])
                }
                Some(Token::Quoted(_)) => true,
                _ => false,
            }
            && (is(before, &["CREATE", "REPLACE", "LOCAL", "GLOBAL"])
                || (is(before, &["INTO"]) && !is(first, &["INSERT", "MERGE"])));
        // `pg_temp.` before a name, not in a search_path.
        if temporary || (is(word, &["pg_temp"]) && next == Some(Token::Sign('.'))) {
            self.makes_temporary = true;
            statement.makes_temporary = true;
        }
        statement.drops_at_commit |= is(keyword, &["DROP"]) && is(before, &["COMMIT"]);
        statement.updates |= is(keyword, &["UPDATE"]);
        if is(keyword, &["INTO", "INSERT", "UPDATE", "DELETE", "MERGE"]) {
            // SELECT .. FOR UPDATE and FOR NO KEY UPDATE do fit a cursor.
            self.fits_a_cursor &= is(before, &["FOR", "KEY"]);
        }
        self.creates |=
            is(keyword, &["CREATE"]) || (is(keyword, &["INTO"]) && is(first, &["SELECT"]));
        // DECLARE .. WITH HOLD; `pg_settings`, a view of the settings that can be updated.
        if (is(keyword, &["HOLD"]) && is(before, &["WITH"]))
            || (is(word, &["pg_settings"]) && (statement.updates || is(first, &["UPDATE"])))
        {
            self.leave(Leaves::State);
        }
        if word.len() < SHORTEST_FUNCTION || next != Some(Token::Sign('(')) {
            return;
        }
        if is(word, &["set_config"]) {
            self.temporary_path |= names_temp;
            self.names_search_path |= may_change_path(rest);
        }
        if is(word, STATEFUL_FUNCTIONS) || (is(word, &["set_config"]) && !is_local(rest)) {
            self.leave(Leaves::State);
        } else if is(word, LASTING_FUNCTIONS) {
            self.leave(Leaves::Traces);
        }
    }

    /// Evaluates the end of a statement.
    fn end(&mut self, statement: &Statement<'_>) {
        if statement.makes_temporary && !statement.drops_at_commit {
            self.leave(Leaves::State);
        }
    }
}

/// The statement that is being scanned.
#[derive(Default)]
struct Statement<'a> {
    first: &'a str,
    /// The word directly before the current one.
    before: &'a str,
    updates: bool,
    makes_temporary: bool,
    drops_at_commit: bool,
}

/// Functions of PostgreSQL and its own extensions that leave state on a session.
const STATEFUL_FUNCTIONS: &[&str] = &[
    "pg_advisory_lock",
    "pg_advisory_lock_shared",
    "pg_try_advisory_lock",
    "pg_try_advisory_lock_shared",
    // pg_trgm's: a setting.
    "set_limit",
];
/// Functions that leave state which only the end of the session removes.
const LASTING_FUNCTIONS: &[&str] = &[
    "dblink_connect",
    "dblink_connect_u",
    "pg_replication_origin_session_setup",
    // The slots may be temporary.
    "pg_create_physical_replication_slot",
    "pg_create_logical_replication_slot",
    "pg_copy_physical_replication_slot",
    "pg_copy_logical_replication_slot",
    // The sequence of random numbers.
    "setseed",
];
const SHORTEST_FUNCTION: usize = "setseed".len();

/// Returns whether the third argument of `set_config` is literally `true`, so that the setting ends
/// with its transaction.
fn is_local(arguments: Tokens<'_>) -> bool {
    let (mut depth, mut commas) = (1, 0);
    let mut third = Vec::new();
    for token in arguments {
        match token {
            Token::Sign('(' | '[') => depth += 1,
            Token::Sign(')' | ']') => depth -= 1,
            Token::Sign(',') if depth == 1 => commas += 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        if commas == 2 && token != Token::Sign(',') {
            third.push(token);
        }
    }
    let (value, cast) = third.split_at(third.len().min(1));
    let plain = match cast {
        [] => true,
        [Token::Sign(':'), Token::Sign(':'), Token::Word(ty)] => is(ty, &["bool", "boolean"]),
        _ => false,
    };
    plain
        && match value {
            [Token::Word(word)] => is(word, &["true"]),
            [Token::Literal(text)] => is(text, &["'t'", "'true'", "'on'", "'yes'", "'1'"]),
            _ => false,
        }
}

/// Returns whether the first argument of `set_config` is a setting that `search_path` depends on,
/// or cannot be read from the text.
fn may_change_path(mut arguments: Tokens<'_>) -> bool {
    match (arguments.next(), arguments.next()) {
        (Some(Token::Literal(name)), Some(Token::Sign(','))) => is(
            name,
            &["'search_path'", "'role'", "'session_authorization'"],
        ),
        _ => true,
    }
}

/// Returns whether a text calls one of the functions that write large objects, which a READ ONLY
/// transaction allows (up to PostgreSQL 15).
pub(crate) fn writes_large_objects(sql: &str) -> bool {
    const WRITERS: [&str; 11] = [
        "lo_creat",
        "lo_create",
        "lo_from_bytea",
        "lo_import",
        "lo_open",
        "lo_put",
        "lo_truncate",
        "lo_truncate64",
        "lo_unlink",
        "lowrite",
        "lo_export",
    ];
    if !mentions(sql, "lo_") && !mentions(sql, "lowrite") {
        return false;
    }
    Tokens(sql).any(|token| match token {
        Token::Word(word) | Token::Quoted(word) => is(word, &WRITERS),
        Token::Sign(_) | Token::Literal(_) => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn statements_that_commit_inside() {
        for sql in [
            "CALL transfer(1, 2)",
            "  do $$ begin end $$",
            "-- nightly\nVACUUM t",
            "/* a /* nested */ note */ reindex table t",
            "CREATE UNIQUE INDEX CONCURRENTLY i ON t (a)",
            "drop index concurrently i",
            "analyze",
            "CREATE DATABASE d",
            "drop database if exists d",
            "ALTER SYSTEM SET work_mem = '1GB'",
            "ALTER DATABASE d SET TABLESPACE s",
            "create tablespace s location '/x'",
            "DROP SUBSCRIPTION s",
            "ALTER TABLE a.\"B\" DETACH PARTITION c CONCURRENTLY",
            "DISCARD ALL",
            "COMMIT PREPARED 'x'",
            "rollback prepared 'x'",
            "-- a comment\rCALL p()",
        ] {
            assert!(commits_inside(sql), "{sql}");
        }
        for sql in [
            "SELECT 1",
            "INSERT INTO calls VALUES (1)",
            "CREATE INDEX i ON t (a)",
            "CREATE TABLE databases (n int)",
            "ALTER TABLE t ADD COLUMN tablespace int",
            "ALTER DATABASE d SET work_mem = '1MB'",
            "DISCARD TEMP",
            "document",
            "",
            "/* open",
            "WITH x AS (SELECT 1) SELECT * FROM x",
        ] {
            assert!(!commits_inside(sql), "{sql}");
        }
    }

    #[test]
    fn statements_that_end_a_transaction() {
        for sql in [
            "COMMIT",
            "rollback",
            "ROLLBACK TO SAVEPOINT a",
            "/* x */ end",
            "abort",
            "BEGIN",
            "start transaction",
            "PREPARE TRANSACTION 'x'",
            "-- a comment\rBEGIN",
        ] {
            assert!(controls_transaction(sql), "{sql}");
        }
        for sql in [
            "SELECT 1",
            "PREPARE p AS SELECT 1",
            "endless",
            "SAVEPOINT a",
            "COMMIT PREPARED 'x'",
            "-- a comment \nSELECT 1",
        ] {
            assert!(!controls_transaction(sql), "{sql}");
        }
    }

    #[test]
    fn what_stays_on_a_session() {
        for sql in [
            "SET work_mem = '1MB'",
            "set session characteristics as transaction read only",
            "SELECT set_config('app.tenant', 'acme', false)",
            "select pg_catalog.set_config($1, $2, $3)",
            "SELECT \"set_config\"('a.b', coalesce(x, 'y, true'), not true) FROM t",
            "WITH s AS (SELECT set_config('a.b', 'c', false)) SELECT 1 FROM s",
            "SELECT pg_advisory_lock(42)",
            "SELECT pg_try_advisory_lock_shared (1, 2)",
            "CREATE TEMP TABLE t (n int)",
            "create or replace local temporary view v as select 1",
            "SELECT 1 AS n INTO TEMP t",
            "CREATE TABLE pg_temp.t (n int)",
            "EXPLAIN ANALYZE CREATE TEMP TABLE t AS SELECT 1",
            "DO $$BEGIN PERFORM 1; END$$",
            "SELECT 1; SET a.b = 'c'",
            "SELECT ';'; /* ; */ LISTEN news",
            "SELECT $q$ $$ ; $q$; RESET ALL",
            "PREPARE p AS SELECT 1",
            "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
            "UPDATE pg_settings SET setting = 'x' WHERE name = 'y'",
            "SELECT E'\\''; SET x.y = 1",
            "SET local.tenant = 'x'",
            "SET transaction.tenant = 'x'",
            "EXPLAIN ANALYZE UPDATE pg_settings SET setting = '1'",
            "SELECT E'x'\n'\\'', set_config('app.tenant', 'c', false)",
            "SELECT U&\"set!005fconfig\" UESCAPE '!' ('app.tenant', 'c', false)",
            "SELECT 1; PREPARE transaction AS SELECT 1",
            "SELECT set_config('a', 'b', $1)",
        ] {
            assert_eq!(Facts::of(sql).leaves, Leaves::State, "{sql}");
        }
        for sql in [
            "DISCARD ALL",
            "DEALLOCATE ALL",
            "SELECT setseed(0.5)",
            "SELECT pg_create_physical_replication_slot('s', false, true)",
            "LOAD 'auto_explain'",
            "SELECT dblink_connect('a', 'b')",
        ] {
            assert_eq!(Facts::of(sql).leaves, Leaves::Traces, "{sql}");
        }
        for sql in [
            "SELECT 1",
            "SET LOCAL work_mem = '1MB'",
            "SET TRANSACTION READ ONLY",
            "SET CONSTRAINTS ALL DEFERRED",
            "SELECT set_config('app.tenant', $1, true)",
            "SELECT set_config('a', (SELECT f('b', false)), TRUE), 1",
            "SELECT pg_advisory_xact_lock(1)",
            "SELECT temp, temporary FROM readings WHERE pg_advisory_lock = 1",
            "INSERT INTO t VALUES ('SET x = 1; SELECT pg_advisory_lock(1)')",
            "SELECT $$; SET x.y = 1$$, $1",
            "SELECT 1 -- ; SET x.y = 1",
            "UPDATE t SET reset = 'x'",
            "CREATE TABLE t (temp int)",
            "CREATE FUNCTION f() RETURNS void LANGUAGE sql SET search_path = a AS 'SELECT pg_advisory_lock(1)'",
            "DECLARE c CURSOR FOR SELECT 1",
            "PREPARE TRANSACTION 'x'",
            "NOTIFY news",
            "SELECT x'1f', 1e5",
            "SET LOCAL search_path = acme, pg_temp",
            "INSERT INTO temp VALUES (1)",
            "INSERT INTO temp SELECT 1",
            "SELECT set_config('a.b', 'x', 't'::bool)",
            "CREATE TEMP TABLE t (n int) ON COMMIT DROP",
            "",
        ] {
            assert_eq!(Facts::of(sql).leaves, Leaves::Nothing, "{sql}");
        }
    }

    #[test]
    fn what_other_texts_mean_may_change_behind_these() {
        for sql in [
            "SET LOCAL search_path = a",
            "SET LOCAL SCHEMA 'a'",
            "SET SCHEMA 'a'",
            "SET LOCAL ROLE a",
            "SET LOCAL SESSION AUTHORIZATION a",
            "SELECT set_config($1, $2, true)",
            "SELECT set_config('role', $1, true)",
            "SELECT set_config(lower('SEARCH_PATH'), 'a', true)",
        ] {
            assert!(Facts::of(sql).names_search_path, "{sql}");
        }
        for sql in [
            "SET LOCAL work_mem = '1MB'",
            "SELECT set_config('app.tenant', $1, true)",
            "SELECT role, schema FROM t",
        ] {
            assert!(!Facts::of(sql).names_search_path, "{sql}");
        }
        let first = Facts::of("SELECT set_config('search_path', 'pg_temp', true)");
        assert!(first.temporary_path && !first.makes_temporary);
        assert!(
            Facts::of("CREATE TABLE t (n int)").creates && Facts::of("SELECT 1 INTO t").creates
        );
    }

    #[test]
    fn queries_for_a_cursor() {
        for sql in [
            "SELECT 1",
            "(SELECT 1) UNION SELECT 2;",
            "-- all\nVALUES (1)",
            "WITH a AS (SELECT 1) SELECT * FROM a",
            "SELECT * FROM t FOR NO KEY UPDATE",
            "SELECT 'INSERT'",
        ] {
            assert!(Facts::of(sql).fits_a_cursor, "{sql}");
        }
        for sql in [
            "INSERT INTO t VALUES (1) RETURNING n",
            "WITH a AS (DELETE FROM t RETURNING n) SELECT * FROM a",
            "SELECT 1 INTO t",
            "SHOW ALL",
            "SELECT 1; SELECT 2",
            "; SELECT 1",
            "",
        ] {
            assert!(!Facts::of(sql).fits_a_cursor, "{sql}");
        }
    }

    #[test]
    fn large_objects_are_written_by_a_few_functions() {
        for sql in [
            "SELECT lo_create(0)",
            "select pg_catalog.LO_PUT(1, 0, 'x')",
            "SELECT lowrite(1, 'x')",
        ] {
            assert!(writes_large_objects(sql), "{sql}");
        }
        for sql in [
            "SELECT 'lo_create'",
            "SELECT lo_get(1)",
            "SELECT hello_world FROM slow_queries",
        ] {
            assert!(!writes_large_objects(sql), "{sql}");
        }
    }

    proptest! {
        #[test]
        fn no_text_stops_the_scan(sql in any::<String>(), also in "[$'\"eE/*;a(\\-]{0,30}") {
            Facts::of(&sql);
            Facts::of(&also);
            Facts::of(&(sql + &also));
        }
    }
}
