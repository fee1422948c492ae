//! What the text of a statement says about it. Pure.
//!
//! Two ways of looking: the [`Keywords`] at its start tell what kind of statement it is, and are looked at for each call; a
//! [scan](Facts::of) of all of it tells what it may leave on its session, and is made once for each text that is kept.
//! Neither knows the grammar. What a text cannot show is what functions, procedures and `EXECUTE` do inside.

/// Statements that commit inside, in several steps, or before they are called complete (`PreventInTransactionBlock`): never
/// repeated once sent, and not to be put into a transaction. Looks at the first keywords only; comments and blanks before
/// them are skipped.
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
    // Words are looked for in the whole text where names come first: at worst something is not repeated that could be.
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

/// True for a statement whose text holds the name of a setting.
pub(crate) fn mentions(sql: &str, setting: &str) -> bool {
    sql.as_bytes()
        .windows(setting.len())
        .any(|w| w.eq_ignore_ascii_case(setting.as_bytes()))
}

/// True for a statement that ends or begins a transaction by itself; going back to a savepoint is one, too: it is a method
/// of the transaction.
pub(crate) fn controls_transaction(sql: &str) -> bool {
    let mut words = Keywords(sql);
    let Some(first) = words.next() else {
        return false;
    };
    let any = |list: &[&str]| list.iter().any(|w| first.eq_ignore_ascii_case(w));
    let mut is_followed = |by: &str| words.next().is_some_and(|w| w.eq_ignore_ascii_case(by));
    any(&["END", "ABORT", "BEGIN"])
        // What was prepared elsewhere is not the transaction under way.
        || (any(&["COMMIT", "ROLLBACK"]) && !is_followed("PREPARED"))
        || (any(&["START", "PREPARE"]) && is_followed("TRANSACTION"))
}

/// True for a COPY whose data go through the client, which is not a statement with rows.
pub(crate) fn copies_through_client(sql: &str) -> bool {
    let first = Keywords(sql).next();
    first.is_some_and(|word| word.eq_ignore_ascii_case("COPY"))
        && sql
            .split(|c: char| !c.is_ascii_alphabetic())
            .any(|w| w.eq_ignore_ascii_case("STDIN") || w.eq_ignore_ascii_case("STDOUT"))
}

/// The words at the start of a statement, comments skipped.
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

/// What follows blanks and comments.
fn after_blanks(mut text: &str) -> &str {
    loop {
        text = text.trim_start();
        if let Some(rest) = text.strip_prefix("--") {
            // The server ends a comment at either (scan.l).
            text = rest.split_once(['\n', '\r']).map_or("", |(_, after)| after);
        } else if let Some(rest) = text.strip_prefix("/*") {
            text = after_block_comment(rest);
        } else {
            return text;
        }
    }
}

/// Block comments nest in PostgreSQL (manual, section 4.1.5).
fn after_block_comment(mut text: &str) -> &str {
    let mut depth = 1;
    while depth > 0 {
        let Some(at) = text.find(['*', '/']) else {
            return "";
        };
        text = &text[at..];
        if let Some(rest) = text.strip_prefix("*/") {
            depth -= 1;
            text = rest;
        } else if let Some(rest) = text.strip_prefix("/*") {
            depth += 1;
            text = rest;
        } else {
            text = &text[1..];
        }
    }
    text
}

/// What stays on a session after a statement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Leaves {
    #[default]
    Nothing,
    /// A setting, a lock, a temporary table, a subscription, a prepared statement, a cursor: it can be taken away.
    State,
    /// A loaded library, a connection to another server: only the end of the session takes it away.
    Traces,
}

/// What a scan of a whole text finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    pub leaves: Leaves,
    pub names_synchronous_commit: bool,
    pub names_client_min_messages: bool,
    /// What other texts mean may be another thing behind it.
    pub names_search_path: bool,
    pub makes_temporary: bool,
    pub deallocates: bool,
    /// It goes back to a savepoint.
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
        let mut tokens = Tokens(sql);
        let mut statements = 0;
        // The first word of the statement under way, and the word right before this one.
        let (mut first, mut before) = ("", "");
        while let Some(token) = tokens.next() {
            let (word, keyword) = match token {
                Token::Word(word) => (word, word),
                Token::Quoted(name) => (name, ""),
                Token::Sign(';') => {
                    (first, before) = ("", "");
                    continue;
                }
                // A query may stand in parentheses.
                Token::Sign('(') if first.is_empty() => continue,
                Token::Sign(_) | Token::Literal(_) => {
                    before = "";
                    continue;
                }
            };
            if first.is_empty() {
                first = if keyword.is_empty() { "?" } else { keyword };
                statements += 1;
                facts.fits_a_cursor = is(first, &["SELECT", "VALUES", "TABLE", "WITH"]);
                facts.begins(first, tokens);
            } else {
                facts.goes_on(first, before, word, keyword, tokens);
            }
            before = keyword;
        }
        facts.fits_a_cursor &= statements == 1;
        facts
    }

    fn leave(&mut self, leaves: Leaves) {
        self.leaves = self.leaves.max(leaves);
    }

    /// The first word of a statement.
    fn begins(&mut self, first: &str, mut rest: Tokens<'_>) {
        let next = rest.next();
        let next_is = |list: &[&str]| matches!(next, Some(Token::Word(word)) if is(word, list));
        let stays = is(first, &["RESET", "LISTEN", "DISCARD", "DEALLOCATE", "DO"])
            || (is(first, &["SET"]) && !next_is(&["LOCAL", "TRANSACTION", "CONSTRAINTS"]))
            || (is(first, &["PREPARE"]) && !next_is(&["TRANSACTION"]));
        if stays {
            self.leave(Leaves::State);
        }
        if is(first, &["LOAD"]) {
            self.leave(Leaves::Traces);
        }
        self.deallocates |= is(first, &["DEALLOCATE", "DISCARD"]);
        self.rolls_back |= is(first, &["ROLLBACK"]);
    }

    /// Any other word: `keyword` is empty where it is a quoted name.
    fn goes_on(
        &mut self,
        first: &str,
        before: &str,
        word: &str,
        keyword: &str,
        mut rest: Tokens<'_>,
    ) {
        // CREATE [LOCAL] TEMP .., CREATE OR REPLACE TEMP VIEW, SELECT .. INTO TEMP
        let temporary = is(keyword, &["TEMP", "TEMPORARY"])
            && is(before, &["CREATE", "REPLACE", "LOCAL", "GLOBAL", "INTO"]);
        if temporary || is(word, &["pg_temp"]) {
            self.makes_temporary = true;
            self.leave(Leaves::State);
        }
        if is(keyword, &["INTO", "INSERT", "UPDATE", "DELETE", "MERGE"]) {
            // But SELECT .. FOR UPDATE, FOR NO KEY UPDATE.
            self.fits_a_cursor &= is(before, &["FOR", "KEY"]);
        }
        // DECLARE .. WITH HOLD; a view of the settings that can be written to.
        if (is(keyword, &["HOLD"]) && is(before, &["WITH"]))
            || (is(word, &["pg_settings"]) && is(first, &["UPDATE"]))
        {
            self.leave(Leaves::State);
        }
        if word.len() < SHORTEST_FUNCTION || !matches!(rest.next(), Some(Token::Sign('('))) {
            return;
        }
        if is(word, STATEFUL_FUNCTIONS) || (is(word, &["set_config"]) && !is_local(rest)) {
            self.leave(Leaves::State);
        } else if is(word, TRACELESS_NEVER) {
            self.leave(Leaves::Traces);
        }
    }
}

/// Functions of PostgreSQL and its own extensions that leave something on a session.
const STATEFUL_FUNCTIONS: &[&str] = &[
    "pg_advisory_lock",
    "pg_advisory_lock_shared",
    "pg_try_advisory_lock",
    "pg_try_advisory_lock_shared",
    // pg_trgm's: a setting.
    "set_limit",
];
const TRACELESS_NEVER: &[&str] = &[
    "dblink_connect",
    "dblink_connect_u",
    "pg_replication_origin_session_setup",
];
const SHORTEST_FUNCTION: usize = "set_limit".len();

fn is(word: &str, list: &[&str]) -> bool {
    list.iter().any(|one| one.eq_ignore_ascii_case(word))
}

/// Whether the third argument of `set_config` is plainly `true`: the setting ends with its transaction.
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
    match third[..] {
        [Token::Word(word)] => is(word, &["true"]),
        [Token::Literal(text)] => is(text, &["'t'", "'true'", "'on'", "'yes'", "'1'"]),
        _ => false,
    }
}

/// True for a text that calls one of the functions which write large objects: a READ ONLY transaction allows that (up to
/// PostgreSQL 15).
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

/// The tokens of a text, as far as they matter here (manual, section 4.1): what stands in comments is skipped, what stands in
/// literals is one token.
#[derive(Clone, Copy)]
struct Tokens<'a>(&'a str);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    /// A keyword or a name.
    Word(&'a str),
    /// A name in double quotes, without them.
    Quoted(&'a str),
    /// A string with its quotes, or a number.
    Literal(&'a str),
    Sign(char),
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        self.0 = after_blanks(self.0);
        let text = self.0;
        let first = text.chars().next()?;
        let (length, token): (usize, fn(&'a str) -> Token<'a>) = match first {
            '\'' => (quoted_length(text, b'\'', false), Token::Literal),
            '"' => (quoted_length(text, b'"', false), |name| {
                Token::Quoted(name.trim_matches('"'))
            }),
            '$' => match dollar_quoted_length(text) {
                Some(length) => (length, Token::Literal),
                None => (1, |_| Token::Sign('$')),
            },
            '0'..='9' => (word_length(text), Token::Literal),
            _ if is_word(first) => {
                let length = word_length(text);
                let (word, rest) = text.split_at(length);
                if rest.starts_with('\'') && is(word, &["E", "B", "X", "N"]) {
                    let escapes = is(word, &["E"]);
                    (length + quoted_length(rest, b'\'', escapes), Token::Literal)
                } else {
                    (length, Token::Word)
                }
            }
            _ => {
                self.0 = &text[first.len_utf8()..];
                return Some(Token::Sign(first));
            }
        };
        let (found, rest) = text.split_at(length);
        self.0 = rest;
        Some(token(found))
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || !c.is_ascii()
}

fn word_length(text: &str) -> usize {
    text.find(|c: char| !is_word(c) && !c.is_ascii_digit() && c != '$')
        .unwrap_or(text.len())
}

/// A literal that begins with `quote`, its end included; all of the text where it has none.
fn quoted_length(text: &str, quote: u8, escapes: bool) -> usize {
    let bytes = text.as_bytes();
    let mut at = 1;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\\' if escapes => at += 2,
            // Twice, it stands for itself.
            _ if byte == quote && bytes.get(at + 1) == Some(&quote) => at += 2,
            _ if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

fn dollar_quoted_length(text: &str) -> Option<usize> {
    let tag = text[1..].find('$').map(|at| &text[..at + 2])?;
    let name = &tag[1..tag.len() - 1];
    if name.starts_with(|c: char| c.is_ascii_digit()) || word_length(name) != name.len() {
        return None;
    }
    let body = &text[tag.len()..];
    Some(body.find(tag).map_or(text.len(), |at| 2 * tag.len() + at))
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
            "DISCARD ALL",
        ] {
            assert_eq!(Facts::of(sql).leaves, Leaves::State, "{sql}");
        }
        for sql in ["LOAD 'auto_explain'", "SELECT dblink_connect('a', 'b')"] {
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
            "SELECT x'1f', U&\"d\\0061t\", 1e5",
            "",
        ] {
            assert_eq!(Facts::of(sql).leaves, Leaves::Nothing, "{sql}");
        }
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
