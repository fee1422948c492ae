//! What an error means: may the work be repeated, and is the connection spent? A pure table.
//!
//! The codes are those of appendix A of PostgreSQL's manual. Two rules carry the table: what was never sent, or was
//! rolled back for certain, may be repeated; what may have taken effect may not.

use postgres::error::{Severity, SqlState};
use std::error::Error as _;
use std::io;

/// How far the work had come when the error struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// A connection was being opened.
    Opening,
    /// Nothing that takes effect had been sent: the statement was being prepared, or a transaction begun.
    Preparing,
    /// A statement of its own was sent, which commits by itself.
    Statement,
    /// A statement of its own was sent that commits inside (`CALL`, `VACUUM`, ..): parts of it may stay done.
    CommitsInside,
    /// A statement inside a transaction, before COMMIT was sent.
    InTransaction,
    /// COMMIT was sent.
    Commit,
}

/// What was seen of the failure.
#[derive(Clone, Debug, PartialEq)]
pub enum Symptom<'a> {
    /// The server answered with this code.
    Server(&'a SqlState),
    /// The server answered with this code and ended the session (FATAL), or all of them (PANIC).
    Fatal(&'a SqlState),
    /// A prepared statement's plan no longer fits ("cached plan must not change result type").
    StalePlan,
    /// The server refused a write because it is a standby now (25006, and it was asked).
    Demoted,
    /// The connection broke without a word from the server.
    Lost,
    /// The call itself was wrong and never left: a parameter of the wrong type, too few of them.
    BadCall,
    /// The answer did not fit: too many rows, bytes that are no message. The statement may be done.
    BadAnswer,
}

impl<'a> Symptom<'a> {
    /// Reads the driver's error.
    pub fn of(error: &'a postgres::Error) -> Symptom<'a> {
        if let Some(db) = error.as_db_error() {
            // 0A000 is also what a plain "not supported" says; the server's routine tells, in every language.
            let stale = db.code() == &SqlState::FEATURE_NOT_SUPPORTED
                && db.routine() == Some("RevalidateCachedQuery");
            return match db.parsed_severity() {
                _ if stale => Symptom::StalePlan,
                Some(Severity::Fatal | Severity::Panic) => Symptom::Fatal(db.code()),
                _ => Symptom::Server(db.code()),
            };
        }
        // The driver keeps its kinds private (tokio-postgres 0.7.18), its texts are all there is to tell them apart.
        // These are raised while a statement is encoded, before anything is sent.
        let text = error.to_string();
        let encoding = ["error serializing parameter", "error encoding message"];
        if encoding.iter().any(|e| text.starts_with(e))
            || (text.starts_with("expected ") && text.contains("parameters"))
        {
            return Symptom::BadCall;
        }
        let lost = error.is_closed()
            || text == "timeout waiting for server"
            || text == "error connecting to server"
            || text == "error communicating with the server"
            || error.source().is_some_and(|cause| cause.is::<io::Error>());
        if lost {
            Symptom::Lost
        } else {
            Symptom::BadAnswer
        }
    }
}

/// May the work be repeated?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// It never reached the server: safe.
    NeverSent,
    /// It took no effect for certain: safe.
    RolledBack,
    /// It may have taken effect.
    Ambiguous,
    /// It would fail again.
    Permanent,
}

impl Repeat {
    /// The word used in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Repeat::NeverSent => "never_sent",
            Repeat::RolledBack => "rolled_back",
            Repeat::Ambiguous => "ambiguous",
            Repeat::Permanent => "permanent",
        }
    }
}

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is as good as before.
    Keep,
    /// It is spent, or cannot be trusted.
    Discard,
}

/// Both answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// May the work be repeated?
    pub repeat: Repeat,
    /// What becomes of the connection.
    pub session: Fate,
}

impl Verdict {
    pub(crate) const NEVER_SENT: Verdict = Verdict::new(Repeat::NeverSent, Fate::Keep);
    pub(crate) const PERMANENT: Verdict = Verdict::new(Repeat::Permanent, Fate::Keep);
    pub(crate) const AMBIGUOUS: Verdict = Verdict::new(Repeat::Ambiguous, Fate::Discard);

    const fn new(repeat: Repeat, session: Fate) -> Verdict {
        Verdict { repeat, session }
    }
}

/// The table.
pub fn verdict(symptom: &Symptom<'_>, phase: Phase) -> Verdict {
    use Fate::{Discard, Keep};
    use Repeat::{Ambiguous, NeverSent, Permanent, RolledBack};
    let (repeat, session) = match symptom {
        Symptom::Server(code) => return server_said(code.code(), phase),
        Symptom::Fatal(code) if phase == Phase::Opening || says_what_ran(code.code()) => {
            return Verdict::new(server_said(code.code(), phase).repeat, Discard);
        }
        // What commits inside may have committed a part before its plan went stale.
        Symptom::StalePlan if phase == Phase::CommitsInside => (Permanent, Keep),
        Symptom::StalePlan => (RolledBack, Keep),
        Symptom::Demoted => (RolledBack, Discard),
        Symptom::BadCall => (Permanent, Keep),
        Symptom::BadAnswer if matches!(phase, Phase::Opening | Phase::Preparing) => {
            (Permanent, Discard)
        }
        // Any other end of the session, and an answer that is none, say nothing about what ran.
        Symptom::Lost | Symptom::Fatal(_) | Symptom::BadAnswer => match phase {
            Phase::Opening | Phase::Preparing => (NeverSent, Discard),
            Phase::InTransaction => (RolledBack, Discard),
            Phase::Statement | Phase::CommitsInside | Phase::Commit => (Ambiguous, Discard),
        },
    };
    Verdict::new(repeat, session)
}

fn server_said(code: &str, phase: Phase) -> Verdict {
    use Fate::{Discard, Keep};
    use Repeat::{Ambiguous, NeverSent, Permanent, RolledBack};
    let (repeat, session) = match (code, phase) {
        // Wrong password, unknown database: asking again helps nobody.
        (c, Phase::Opening) if c.starts_with("28") || c == "3D000" => (Permanent, Discard),
        // Starting up, shutting down, too many connections, a pooler that lost its server.
        ("57P03" | "53300" | "57P01" | "57P02" | "53400", Phase::Opening) => (NeverSent, Discard),
        (c, Phase::Opening) if c.starts_with("08") && c != "08P01" => (NeverSent, Discard),
        (_, Phase::Opening) => (Permanent, Discard),

        // The server says itself that it does not know.
        ("08007" | "40003", Phase::Preparing) => (NeverSent, Discard),
        ("08007" | "40003", _) => (Ambiguous, Discard),

        // The connection is gone. 57P01 (terminated by an administrator), 57P05 and 25P03 (idle too long) come between
        // statements or end the one that runs; 57P02 and 08* say nothing about what ran.
        ("57P01" | "57P02" | "57P03" | "57P05" | "25P03", Phase::Preparing) => (NeverSent, Discard),
        (c, Phase::Preparing) if is_lost(c) => (NeverSent, Discard),
        ("57P01" | "57P05" | "25P03", Phase::Commit) => (Ambiguous, Discard),
        ("57P01" | "57P05" | "25P03", Phase::CommitsInside) => (Ambiguous, Discard),
        ("57P01" | "57P05" | "25P03", _) => (RolledBack, Discard),
        ("57P02" | "57P03", Phase::InTransaction) => (RolledBack, Discard),
        ("57P02" | "57P03", _) => (Ambiguous, Discard),
        (c, Phase::InTransaction) if is_lost(c) => (RolledBack, Discard),
        (c, _) if is_lost(c) => (Ambiguous, Discard),
        (c, _) if c.starts_with("08") => (Permanent, Discard),

        // Serialization failure, deadlock, lock not available, out of resources: the server rolled back and said so. What
        // commits inside may have committed a part before.
        (
            "40001" | "40P01" | "55P03" | "53000" | "53100" | "53200" | "53300" | "53400",
            Phase::CommitsInside,
        ) => (Permanent, Keep),
        ("40001" | "40P01" | "55P03" | "53000" | "53100" | "53200" | "53300" | "53400", _) => {
            (RolledBack, Keep)
        }

        // A prepared statement that is gone: nothing ran, and the repetition prepares it again.
        ("26000", Phase::CommitsInside) => (Permanent, Keep),
        ("26000", _) => (RolledBack, Keep),

        // Internal errors: data corruption among them; nothing on this session is to be trusted.
        ("XX000" | "XX001" | "XX002", _) => (Permanent, Discard),
        _ => (Permanent, Keep),
    };
    Verdict::new(repeat, session)
}

/// FATAL errors that are in the table for what they say of the work.
fn says_what_ran(code: &str) -> bool {
    matches!(code, "57P01" | "57P02" | "57P03" | "57P05" | "25P03") || is_lost(code)
}

fn is_lost(code: &str) -> bool {
    matches!(code, "08000" | "08001" | "08003" | "08004" | "08006")
}

/// Statements that commit inside, or in several steps: never repeated once sent, and not to be put into a transaction.
/// Looks at the first keywords only; comments and blanks before them are skipped.
pub(crate) fn commits_inside(sql: &str) -> bool {
    let mut words = Keywords(sql);
    let Some(first) = words.next() else {
        return false;
    };
    let any = |list: &[&str]| list.iter().any(|w| first.eq_ignore_ascii_case(w));
    if any(&["CALL", "DO", "VACUUM", "ANALYZE", "CLUSTER", "REINDEX"]) {
        return true;
    }
    if any(&["CREATE", "DROP"]) {
        // CREATE [UNIQUE] INDEX CONCURRENTLY, DROP INDEX CONCURRENTLY; ALTER TABLE .. DETACH is not repeated either way.
        return words
            .take(3)
            .any(|w| w.eq_ignore_ascii_case("CONCURRENTLY"));
    }
    false
}

/// True for a statement that leaves something on its session: a setting, a subscription, a cursor.
pub(crate) fn leaves_state(sql: &str) -> bool {
    const WORDS: [&str; 8] = [
        "SET",
        "RESET",
        "LISTEN",
        "PREPARE",
        "DECLARE",
        "DISCARD",
        "DEALLOCATE",
        "LOAD",
    ];
    Keywords(sql)
        .next()
        .is_some_and(|first| WORDS.iter().any(|w| first.eq_ignore_ascii_case(w)))
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
    any(&["COMMIT", "END", "ABORT", "BEGIN", "ROLLBACK"])
        || (any(&["START", "PREPARE"]) && is_followed("TRANSACTION"))
}

/// The words at the start of a statement, comments skipped.
struct Keywords<'a>(&'a str);

impl<'a> Iterator for Keywords<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        loop {
            self.0 = self
                .0
                .trim_start_matches(|c: char| c.is_whitespace() || c == '(' || c == ';');
            if let Some(rest) = self.0.strip_prefix("--") {
                self.0 = rest.split_once('\n').map_or("", |(_, after)| after);
            } else if let Some(rest) = self.0.strip_prefix("/*") {
                self.0 = after_block_comment(rest);
            } else {
                break;
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

#[cfg(test)]
mod tests {
    use super::Fate::*;
    use super::Phase::*;
    use super::Repeat::*;
    use super::*;

    #[test]
    fn the_table() {
        let rows: &[(&str, Phase, Repeat, Fate)] = &[
            // opening
            ("57P03", Opening, NeverSent, Discard),
            ("53300", Opening, NeverSent, Discard),
            ("08006", Opening, NeverSent, Discard),
            ("28P01", Opening, Permanent, Discard),
            ("28000", Opening, Permanent, Discard),
            ("3D000", Opening, Permanent, Discard),
            // gone, and the server said so
            ("57P01", Statement, RolledBack, Discard),
            ("57P01", InTransaction, RolledBack, Discard),
            ("57P01", Commit, Ambiguous, Discard),
            ("57P01", CommitsInside, Ambiguous, Discard),
            ("57P05", Statement, RolledBack, Discard),
            ("25P03", InTransaction, RolledBack, Discard),
            ("57P02", Statement, Ambiguous, Discard),
            ("57P02", InTransaction, RolledBack, Discard),
            ("57P02", Commit, Ambiguous, Discard),
            ("08000", Statement, Ambiguous, Discard),
            ("08003", InTransaction, RolledBack, Discard),
            ("08006", Commit, Ambiguous, Discard),
            ("08006", Preparing, NeverSent, Discard),
            ("57P01", Preparing, NeverSent, Discard),
            // the server does not know
            ("08007", InTransaction, Ambiguous, Discard),
            ("40003", Statement, Ambiguous, Discard),
            // rolled back
            ("40001", Statement, RolledBack, Keep),
            ("40001", Commit, RolledBack, Keep),
            ("40P01", InTransaction, RolledBack, Keep),
            ("55P03", Statement, RolledBack, Keep),
            ("53200", InTransaction, RolledBack, Keep),
            ("53400", Statement, RolledBack, Keep),
            ("40001", CommitsInside, Permanent, Keep),
            ("26000", InTransaction, RolledBack, Keep),
            ("26000", Statement, RolledBack, Keep),
            // for good
            ("42601", Statement, Permanent, Keep),
            ("42601", Preparing, Permanent, Keep),
            ("23505", InTransaction, Permanent, Keep),
            ("57014", Statement, Permanent, Keep),
            ("25006", Statement, Permanent, Keep),
            ("25P02", Commit, Permanent, Keep),
            ("0A000", Statement, Permanent, Keep),
            ("08P01", Statement, Permanent, Discard),
            ("XX000", Statement, Permanent, Discard),
            ("XX001", InTransaction, Permanent, Discard),
        ];
        for &(code, phase, repeat, session) in rows {
            let seen = verdict(&Symptom::Server(&SqlState::from_code(code)), phase);
            assert_eq!(seen, Verdict { repeat, session }, "{code} while {phase:?}");
        }
    }

    #[test]
    fn a_connection_that_broke_without_a_word() {
        for (phase, repeat) in [
            (Opening, NeverSent),
            (Preparing, NeverSent),
            (Statement, Ambiguous),
            (CommitsInside, Ambiguous),
            (InTransaction, RolledBack),
            (Commit, Ambiguous),
        ] {
            assert_eq!(
                verdict(&Symptom::Lost, phase),
                Verdict {
                    repeat,
                    session: Discard
                },
                "{phase:?}"
            );
        }
        assert_eq!(
            verdict(&Symptom::StalePlan, InTransaction).repeat,
            RolledBack
        );
        assert_eq!(verdict(&Symptom::BadCall, Statement), Verdict::PERMANENT);
        assert_eq!(verdict(&Symptom::BadAnswer, Statement).repeat, Ambiguous);
        assert_eq!(verdict(&Symptom::BadAnswer, Commit).repeat, Ambiguous);
        assert_eq!(verdict(&Symptom::BadAnswer, Opening).repeat, Permanent);
        assert_eq!(
            verdict(&Symptom::StalePlan, CommitsInside).repeat,
            Permanent
        );
    }

    #[test]
    fn a_session_that_the_server_ended_is_discarded_whatever_the_code() {
        for (code, phase, repeat) in [
            ("57P01", Statement, RolledBack),
            ("57P01", Commit, Ambiguous),
            ("08P01", Statement, Ambiguous),
            ("25P04", Statement, Ambiguous),
            ("25P04", InTransaction, RolledBack),
            ("53100", Commit, Ambiguous),
            ("XX000", Statement, Ambiguous),
            ("28P01", Opening, Permanent),
            ("53300", Opening, NeverSent),
        ] {
            let seen = verdict(&Symptom::Fatal(&SqlState::from_code(code)), phase);
            assert_eq!(
                seen,
                Verdict {
                    repeat,
                    session: Discard
                },
                "{code} while {phase:?}"
            );
        }
    }

    #[test]
    fn the_users_own_list_is_retryable_where_nothing_can_have_happened() {
        for code in [
            "57P03", "53300", "08000", "08003", "08006", "57P01", "57P02",
        ] {
            let state = SqlState::from_code(code);
            let repeat = verdict(&Symptom::Server(&state), Opening).repeat;
            assert_eq!(repeat, NeverSent, "{code}");
            let repeat = verdict(&Symptom::Server(&state), InTransaction).repeat;
            assert_eq!(repeat, RolledBack, "{code}");
        }
    }

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
        ] {
            assert!(commits_inside(sql), "{sql}");
        }
        for sql in [
            "SELECT 1",
            "INSERT INTO calls VALUES (1)",
            "CREATE INDEX i ON t (a)",
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
        ] {
            assert!(controls_transaction(sql), "{sql}");
        }
        for sql in [
            "SELECT 1",
            "PREPARE p AS SELECT 1",
            "endless",
            "SAVEPOINT a",
        ] {
            assert!(!controls_transaction(sql), "{sql}");
        }
    }
}
