//! What an error means: may the work be repeated, and can the connection still be used? A pure
//! table.
//!
//! There are two rules: work that was never sent, or was certainly rolled back, may be repeated;
//! work that may have taken effect may not. What is certain follows from the order in which a
//! server does its work (the functions named are PostgreSQL's own, versions 14 to 18; the codes are
//! those of appendix A of its manual):
//!
//! - In the **extended protocol** a lone statement is committed at Sync: `exec_execute_message`
//!   queues CommandComplete, and only the Sync after it reaches `finish_xact_command`. Without
//!   CommandComplete there was no commit ([`Phase::Executing`]); with it there may have been one
//!   ([`Phase::Commit`]). A statement that commits by itself ([`Phase::CommitsInside`]) is
//!   recognized by its text.
//! - In the **simple protocol** `exec_simple_query` commits first and queues CommandComplete
//!   afterwards. So a missing CommandComplete proves nothing, and an error may arise in between: a
//!   message that commits is [`Phase::Commit`] from the start. So is a COMMIT in the extended
//!   protocol: `exec_execute_message` commits a statement that ends a transaction (`is_xact_command`)
//!   in the same order. But if the server raises an error in a statement in front of the COMMIT, in
//!   the same request, it skips the COMMIT: that is [`Phase::InTransaction`].
//! - Between the commit record and the end of `CommitTransaction` interrupts are held, so no error
//!   is raised there. Every error after that comes from `CHECK_FOR_INTERRUPTS`, which `errfinish`
//!   calls after each message that is not an error; a log line is enough (`check_log_duration` with
//!   `log_min_duration_statement`, `log_duration`, a debug level for the log or for the client). So
//!   the errors of `ProcessInterrupts`, and those of any other code that runs then (memory, files,
//!   internal errors), may follow a commit; the errors of constraints, triggers and serialization
//!   come before it.
//! - It matters who raised the error. Since 9.6 `send_message_to_frontend` puts the fields `V`
//!   (severity) and `R` (routine) into every error. An error that lacks one of them comes from a
//!   middleman and concerns its own trouble (the errors of PgBouncer 1.18 and pgpool-II 4.3 lack
//!   both). About the work it says only that the connection is lost.
//!
//! The columns are the phases: *executing* is the extended protocol with its answers read,
//! *statement* the same without; *commit* includes the simple protocol.
//!
//! | code | opening | preparing | executing | statement | in a transaction | commit |
//! |---|---|---|---|---|---|---|
//! | FATAL 57P01, 57P05, 25P03, 25P04 | again | again | again | ? | again | ? |
//! | ERROR of those | again | again | again | again | again | ? |
//! | 57P02, 57P03 | again | again | ? | ? | again | ? |
//! | 08000, 08001, 08003, 08004, 08006 | again | again | ? | ? | again | ? |
//! | any other FATAL, every PANIC | by its code | again | ? | ? | again | ? |
//! | end of the stream, no error | again | again | ? | ? | again | ? |
//! | an error without `V` or `R` | again; no (28\*, 3D000) | again | ? | ? | again | ? |
//! | 57014 | no | no | no | no | no | ? |
//! | XX000 "cache lookup failed" | | again | again | again | again | ? |
//! | any other XX\*, 58\* | no | no | no | no | no | ? |
//! | 53\* | no (53300, 53400: again) | again | again | again | again | ? |
//! | 40001, 40P01 | no | again | again | again | again | again |
//! | 55P03 of a timeout | no | again | again | again | again | again |
//! | 55P03 of NOWAIT | no | no | no | no | no | no |
//! | 08007, 40003 | no | again | ? | ? | ? | ? |
//! | 26000, 0A000 of a plan | | again | again | again | again | ? |
//! | 28\*, 3D000 | no | no | no | no | no | no |
//! | 42\*, 22P03 of a kept statement | | | once more | once more | again | |
//! | the rest | no | no | no | no | no | no |
//!
//! *again*: it may be repeated; *no*: it would fail again; *?*: it may have taken effect, so the
//! outcome is found out, or reported as unknown. A statement that commits inside is never *again*
//! once it was sent.
//!
//! The rows in detail, and where their errors are raised:
//!
//! - FATAL 57P01, 57P05, 25P03, 25P04: `ProcessInterrupts`. As an ERROR, they come from a `RAISE`
//!   of the application.
//! - 57P02, 57P03: `quickdie`, `ProcessStartupPacket`.
//! - 08000, 08001, 08003, 08004, 08006: `ProcessInterrupts` (client lost), foreign servers.
//! - any other FATAL, every PANIC: `proc_exit` follows.
//! - an error without `V` or `R`: a middleman.
//! - 57014: `ProcessInterrupts`.
//! - XX000 "cache lookup failed": a type that was dropped and created again. Any other XX\*, 58\*:
//!   `elog`, `mdwrite` and others.
//! - 53\*: `palloc`, `mdextend`, `InitProcess` and others.
//! - 40001, 40P01: `PreCommit_CheckForSerializationFailure`, `DeadLockReport`.
//! - 55P03: `ProcessInterrupts` if `lock_timeout` has passed; otherwise NOWAIT or a `RAISE`.
//! - 08007, 40003: `RAISE`, foreign servers; the server itself does not know the outcome.
//! - 26000: `FetchPreparedStatement`. 0A000: that of `RevalidateCachedQuery`.
//! - 28\*, 3D000: `auth_failed`, `InitPostgres`.
//! - 42\*, 22P03 of a statement that was prepared before: a type, a table or a schema that has
//!   changed since.
//! - the rest: constraints, syntax, rights, `RAISE`.

use postgres::error::{Severity, SqlState};
use std::error::Error as _;
use std::io;

/// How far the work had come when the error occurred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// A connection was being opened.
    Opening,
    /// Nothing with an effect had been sent: the statement was being prepared, or a transaction
    /// begun.
    Preparing,
    /// A lone statement was sent, which commits by itself; how far the server came with it is not
    /// known.
    Statement,
    /// A lone statement was sent in the extended protocol, and the server has not reported it
    /// complete: it is not committed before that.
    Executing,
    /// A lone statement that commits inside (`CALL`, `VACUUM`, ..) was sent: parts of it may be
    /// committed.
    CommitsInside,
    /// A statement inside a transaction, before COMMIT was sent.
    InTransaction,
    /// Like [`InTransaction`](Phase::InTransaction), for a statement that was prepared earlier and
    /// may have been refused because of a later change: the next attempt prepares it again.
    Outdated,
    /// COMMIT was sent; or a lone statement is complete, and its commit under way.
    Commit,
}

/// How far a request had come when it failed, as the bytes on the wire show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// No byte of it had been written: the connection was found broken before.
    NothingSent,
    /// Some of it had been written, and the server had reported no statement complete.
    Sent,
    /// The server had reported a statement of it complete.
    Completed,
    /// Its answer was complete and successful: what failed was something that the driver did after
    /// it.
    Answered,
}

impl Phase {
    /// Returns the phase of a failed request, once it is known how far it had come.
    pub(crate) fn once_seen(self, progress: Progress) -> Phase {
        match (self, progress) {
            (Phase::Statement | Phase::CommitsInside, Progress::NothingSent) => Phase::Preparing,
            (Phase::Commit, Progress::NothingSent) => Phase::InTransaction,
            (Phase::Statement, Progress::Sent) => Phase::Executing,
            (Phase::Statement, Progress::Completed | Progress::Answered) => Phase::Commit,
            (phase, _) => phase,
        }
    }
}

/// What was seen of the failure.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Symptom<'a> {
    /// The server answered with this code.
    Server(&'a SqlState),
    /// The server answered with this code and ended the session (FATAL).
    Fatal(&'a SqlState),
    /// A middleman between us and the server answered with this code, about its own trouble.
    Middleman(&'a SqlState),
    /// A prepared statement's plan no longer fits ("cached plan must not change result type"), or
    /// one of its types or functions is gone ("cache lookup failed").
    StalePlan,
    /// A lock was not free, and the statement does not wait for it (NOWAIT).
    NoWait,
    /// The server refused a write because it is a standby now (code 25006; it was asked whether it
    /// is one).
    Demoted,
    /// The connection broke without an error from the server.
    Lost,
    /// The call itself was wrong and was not sent: a parameter of the wrong type, or too few
    /// parameters.
    BadCall,
    /// An answer was read in a way that does not fit it: a missing column, a value of another type,
    /// a NULL.
    BadRead,
    /// The answer is invalid: bytes that are not a message, or a message out of place. The
    /// statement may have been executed.
    BadAnswer,
}

impl<'a> Symptom<'a> {
    /// Returns whether it is an ERROR of the server, and no end of the session, nor a middleman's
    /// word.
    pub fn is_an_error_of_the_server(&self) -> bool {
        matches!(
            self,
            Symptom::Server(_) | Symptom::StalePlan | Symptom::NoWait | Symptom::Demoted
        )
    }

    /// Interprets the driver's error.
    pub fn of(error: &'a postgres::Error) -> Symptom<'a> {
        if let Some(db) = error.as_db_error() {
            // 0A000 is also the code of a plain "not supported". The routine tells them apart, in
            // every language.
            let stale = db.code() == &SqlState::FEATURE_NOT_SUPPORTED
                && db.routine() == Some("RevalidateCachedQuery");
            // Raised with elog, so it is never translated.
            let gone = db.code() == &SqlState::INTERNAL_ERROR
                && db.message().starts_with("cache lookup failed for ");
            // A lock_timeout is raised in ProcessInterrupts; after it, a retry may get the lock.
            let no_wait = db.code() == &SqlState::LOCK_NOT_AVAILABLE
                && db
                    .routine()
                    .is_some_and(|routine| routine != "ProcessInterrupts");
            return match db.parsed_severity() {
                Some(Severity::Error) if stale || gone => Symptom::StalePlan,
                Some(Severity::Error) if no_wait => Symptom::NoWait,
                None => Symptom::Middleman(db.code()),
                _ if db.routine().is_none() => Symptom::Middleman(db.code()),
                Some(Severity::Panic) => Symptom::Lost,
                Some(Severity::Fatal) => Symptom::Fatal(db.code()),
                _ => Symptom::Server(db.code()),
            };
        }
        // The driver keeps its error kinds private (tokio-postgres 0.7.18), so only the texts tell
        // them apart. These errors are raised while a statement is encoded, before anything is
        // sent.
        let text = error.to_string();
        let encoding = ["error serializing parameter", "error encoding message"];
        if encoding.iter().any(|e| text.starts_with(e))
            || (text.starts_with("expected ") && text.contains("parameters"))
        {
            return Symptom::BadCall;
        }
        let reading = [
            "error deserializing column",
            "invalid column",
            "query returned an unexpected number",
        ];
        if reading.iter().any(|e| text.starts_with(e)) {
            return Symptom::BadRead;
        }
        let lost = error.is_closed()
            || text == "timeout waiting for server"
            || text == "error connecting to server"
            || text == "error communicating with the server"
            || matches!(error.source(), Some(cause) if cause.is::<io::Error>());
        if lost {
            Symptom::Lost
        } else {
            Symptom::BadAnswer
        }
    }
}

/// May the work be repeated?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It never reached the server: safe.
    NeverSent,
    /// It certainly took no effect: safe.
    RolledBack,
    /// It may have taken effect.
    Ambiguous,
    /// It would fail again.
    Permanent,
}

impl Repeat {
    /// Returns the word used in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Repeat::NeverSent => "never_sent",
            Repeat::RolledBack => "rolled_back",
            Repeat::Ambiguous => "ambiguous",
            Repeat::Permanent => "permanent",
        }
    }
}

/// What happens to the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is used again.
    Keep,
    /// It is closed: it cannot be used any more, or cannot be trusted.
    Discard,
}

/// Both answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// May the work be repeated?
    pub repeat: Repeat,
    /// What happens to the connection.
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

/// Returns the entry of the table.
pub(crate) fn verdict(symptom: &Symptom<'_>, phase: Phase) -> Verdict {
    use Fate::{Discard, Keep};
    use Repeat::{NeverSent, Permanent, RolledBack};
    let (repeat, session) = match (symptom, phase) {
        (Symptom::Server(code), Phase::Outdated) if !code.code().starts_with("08") => {
            (RolledBack, Keep)
        }
        (Symptom::Server(code), _) => server_said(code.code(), phase),
        (Symptom::Fatal(code) | Symptom::Middleman(code), Phase::Opening)
            if is_refused(code.code()) =>
        {
            (Permanent, Discard)
        }
        // It lets others in: this session was ended while it was made ready.
        (Symptom::Fatal(code), Phase::Opening) if ends_session(code.code()) => (NeverSent, Discard),
        (Symptom::Fatal(code), Phase::Opening) => (server_said(code.code(), phase).0, Discard),
        // The server ended the session in an orderly way, before it reported the statement
        // complete; and the commit of a lone statement comes after that report.
        (Symptom::Fatal(code), Phase::Executing) if ends_session(code.code()) => {
            (RolledBack, Discard)
        }
        // A statement that commits inside may have committed a part before its plan became stale.
        (Symptom::StalePlan, Phase::CommitsInside) => (Permanent, Keep),
        (Symptom::StalePlan, Phase::Commit) => (Repeat::Ambiguous, Discard),
        (Symptom::StalePlan, _) => (RolledBack, Keep),
        (Symptom::NoWait, _) => (Permanent, Keep),
        (Symptom::Demoted, _) => (RolledBack, Discard),
        (Symptom::BadCall | Symptom::BadRead, _) => (Permanent, Keep),
        (
            Symptom::BadAnswer,
            Phase::Opening | Phase::Preparing | Phase::InTransaction | Phase::Outdated,
        ) => (Permanent, Discard),
        (Symptom::Middleman(_), Phase::Opening) => (NeverSent, Discard),
        // Any other end of the session, and an invalid answer, say nothing about the work.
        (Symptom::Lost | Symptom::Fatal(_) | Symptom::Middleman(_) | Symptom::BadAnswer, _) => {
            (lost(phase), Discard)
        }
    };
    Verdict::new(repeat, session)
}

/// Returns whether work may be repeated after the connection was lost.
fn lost(phase: Phase) -> Repeat {
    match phase {
        Phase::Opening | Phase::Preparing => Repeat::NeverSent,
        Phase::InTransaction | Phase::Outdated => Repeat::RolledBack,
        Phase::Statement | Phase::Executing | Phase::CommitsInside | Phase::Commit => {
            Repeat::Ambiguous
        }
    }
}

/// Returns the entry for an error of the server after which its session goes on.
fn server_said(code: &str, phase: Phase) -> (Repeat, Fate) {
    use Fate::{Discard, Keep};
    use Repeat::{Ambiguous, NeverSent, Permanent, RolledBack};
    match (code, phase) {
        // Another attempt would be refused, too.
        (c, Phase::Opening) if is_refused(c) => (Permanent, Discard),
        // Starting up, shutting down, too many connections, a pooler that lost its server.
        ("57P03" | "53300" | "57P01" | "57P02" | "53400", Phase::Opening) => (NeverSent, Discard),
        (c, Phase::Opening) if c.starts_with("08") && c != "08P01" => (NeverSent, Discard),
        (_, Phase::Opening) => (Permanent, Discard),

        // The transaction may be committed: the error may have come after its commit.
        (c, Phase::Commit) if may_follow_commit(c) => (Ambiguous, Discard),

        // The server itself does not know the outcome.
        ("08007" | "40003", Phase::Preparing) => (NeverSent, Discard),
        ("08007" | "40003", _) => (Ambiguous, Discard),

        (c, Phase::Preparing) if ends_session(c) => (NeverSent, Discard),
        (c, Phase::CommitsInside) if ends_session(c) => (Ambiguous, Discard),
        (c, _) if ends_session(c) => (RolledBack, Discard),
        // 57P02 and 08* say nothing about the work.
        (c, _) if is_lost(c) => (lost(phase), Discard),
        (c, _) if c.starts_with("08") => (Permanent, Discard),

        // Serialization failure, deadlock, lock not available, out of resources: the server has
        // rolled back and said so. But a statement that commits inside may have committed a part
        // before.
        (
            "40001" | "40P01" | "55P03" | "53000" | "53100" | "53200" | "53300" | "53400",
            Phase::CommitsInside,
        ) => (Permanent, Keep),
        ("40001" | "40P01" | "55P03" | "53000" | "53100" | "53200" | "53300" | "53400", _) => {
            (RolledBack, Keep)
        }

        // The prepared statement is gone: nothing was executed, and the next attempt prepares it
        // again.
        ("26000", Phase::CommitsInside) => (Permanent, Keep),
        ("26000", _) => (RolledBack, Keep),
        // Behind a pooler another program's statement has this name; the driver's next name is
        // another.
        ("42P05", Phase::Preparing | Phase::InTransaction) => (RolledBack, Keep),

        // Internal errors, data corruption among them: the session cannot be trusted.
        (c, _) if c.starts_with("XX") => (Permanent, Discard),
        _ => (Permanent, Keep),
    }
}

/// Returns whether the code means a wrong password or an unknown database.
fn is_refused(code: &str) -> bool {
    code.starts_with("28") || code == "3D000"
}

/// Returns whether the code means that an administrator terminated the session, or that the session
/// or its transaction exceeded a time limit: the session as such was in order.
fn ends_session(code: &str) -> bool {
    matches!(code, "57P01" | "57P05" | "25P03" | "25P04")
}

fn is_lost(code: &str) -> bool {
    matches!(
        code,
        "57P02" | "57P03" | "08000" | "08001" | "08003" | "08004" | "08006"
    )
}

/// Returns whether the code may come after a commit record: codes that `CHECK_FOR_INTERRUPTS`
/// raises, and errors that may happen at any moment.
fn may_follow_commit(code: &str) -> bool {
    let classes = ["08", "53", "57", "58", "XX"];
    classes.iter().any(|class| code.starts_with(class))
        || ends_session(code)
        // The last two concern prepared statements, which are used before a commit; but the
        // driver's own statements may fail after it.
        || matches!(code, "40003" | "26000" | "42P05")
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
            // gone, with an error from the server
            ("57P01", Statement, RolledBack, Discard),
            ("57P01", InTransaction, RolledBack, Discard),
            ("57P01", Commit, Ambiguous, Discard),
            ("57P01", CommitsInside, Ambiguous, Discard),
            ("57P01", Executing, RolledBack, Discard),
            ("57P05", Statement, RolledBack, Discard),
            ("25P04", InTransaction, RolledBack, Discard),
            ("25P04", Commit, Ambiguous, Discard),
            ("25P03", InTransaction, RolledBack, Discard),
            ("57P02", Statement, Ambiguous, Discard),
            ("57P02", Executing, Ambiguous, Discard),
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
            ("40P01", Commit, RolledBack, Keep),
            ("55P03", Commit, RolledBack, Keep),
            ("40P01", InTransaction, RolledBack, Keep),
            ("55P03", Statement, RolledBack, Keep),
            ("53200", InTransaction, RolledBack, Keep),
            ("53400", Statement, RolledBack, Keep),
            ("40001", CommitsInside, Permanent, Keep),
            ("26000", InTransaction, RolledBack, Keep),
            ("26000", Statement, RolledBack, Keep),
            ("26000", Commit, Ambiguous, Discard),
            ("42P05", Commit, Ambiguous, Discard),
            ("42P05", Preparing, RolledBack, Keep),
            // perhaps after the commit record
            ("57014", Commit, Ambiguous, Discard),
            ("53100", Commit, Ambiguous, Discard),
            ("53200", Commit, Ambiguous, Discard),
            ("58030", Commit, Ambiguous, Discard),
            ("XX000", Commit, Ambiguous, Discard),
            ("08P01", Commit, Ambiguous, Discard),
            ("40003", Commit, Ambiguous, Discard),
            ("25P03", Commit, Ambiguous, Discard),
            // certainly before it
            ("23505", Commit, Permanent, Keep),
            ("23503", Commit, Permanent, Keep),
            ("P0001", Commit, Permanent, Keep),
            // permanent
            ("42601", Statement, Permanent, Keep),
            ("42601", Preparing, Permanent, Keep),
            ("23505", InTransaction, Permanent, Keep),
            ("57014", Statement, Permanent, Keep),
            ("57014", Executing, Permanent, Keep),
            ("57014", InTransaction, Permanent, Keep),
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
            (Executing, Ambiguous),
            (CommitsInside, Ambiguous),
            (InTransaction, RolledBack),
            (Commit, Ambiguous),
        ] {
            let expected = Verdict {
                repeat,
                session: Discard,
            };
            assert_eq!(verdict(&Symptom::Lost, phase), expected, "{phase:?}");
            // Whatever code a middleman uses.
            for code in ["08P01", "XX000", "57P01", "40001"] {
                let code = SqlState::from_code(code);
                let seen = verdict(&Symptom::Middleman(&code), phase);
                assert_eq!(seen, expected, "{code:?} while {phase:?}");
            }
        }
        for code in ["57P01", "57P05", "25P03", "25P04"] {
            let code = SqlState::from_code(code);
            let seen = verdict(&Symptom::Fatal(&code), Opening);
            assert_eq!(seen.repeat, NeverSent, "{code:?}");
        }
        for code in ["28P01", "3D000"] {
            let code = SqlState::from_code(code);
            let seen = verdict(&Symptom::Middleman(&code), Opening);
            assert_eq!(seen.repeat, Permanent, "{code:?}");
        }
        assert_eq!(
            verdict(&Symptom::StalePlan, InTransaction).repeat,
            RolledBack
        );
        let changed = SqlState::DATATYPE_MISMATCH;
        for (phase, repeat) in [(Outdated, RolledBack), (InTransaction, Permanent)] {
            assert_eq!(verdict(&Symptom::Server(&changed), phase).repeat, repeat);
        }
        assert_eq!(verdict(&Symptom::BadCall, Statement), Verdict::PERMANENT);
        assert_eq!(verdict(&Symptom::BadAnswer, Statement).repeat, Ambiguous);
        assert_eq!(verdict(&Symptom::BadAnswer, Commit).repeat, Ambiguous);
        assert_eq!(verdict(&Symptom::BadAnswer, Opening).repeat, Permanent);
        assert_eq!(
            verdict(&Symptom::BadAnswer, InTransaction).repeat,
            Permanent
        );
        for phase in [Statement, Executing, InTransaction, Commit] {
            assert_eq!(verdict(&Symptom::BadRead, phase), Verdict::PERMANENT);
        }
        assert_eq!(
            verdict(&Symptom::StalePlan, CommitsInside).repeat,
            Permanent
        );
    }

    #[test]
    fn what_was_seen_on_the_wire_says_how_far_a_request_had_come() {
        for (phase, progress, seen) in [
            (Statement, Progress::NothingSent, Preparing),
            (Statement, Progress::Sent, Executing),
            (Statement, Progress::Completed, Phase::Commit),
            (CommitsInside, Progress::NothingSent, Preparing),
            (CommitsInside, Progress::Sent, CommitsInside),
            (CommitsInside, Progress::Completed, CommitsInside),
            (InTransaction, Progress::NothingSent, InTransaction),
            (InTransaction, Progress::Completed, InTransaction),
            (Phase::Commit, Progress::NothingSent, InTransaction),
            (Phase::Commit, Progress::Sent, Phase::Commit),
            (Phase::Commit, Progress::Completed, Phase::Commit),
            (Preparing, Progress::Sent, Preparing),
        ] {
            assert_eq!(phase.once_seen(progress), seen, "{phase:?} {progress:?}");
        }
    }

    #[test]
    fn a_session_that_the_server_ended_is_discarded_whatever_the_code() {
        for (code, phase, repeat) in [
            // It ended before the statement was complete; in the other phases it may have been
            // executed.
            ("57P01", Executing, RolledBack),
            ("57P05", Executing, RolledBack),
            ("25P03", Executing, RolledBack),
            ("25P04", Executing, RolledBack),
            ("57P01", Statement, Ambiguous),
            ("57P05", Statement, Ambiguous),
            ("25P04", Commit, Ambiguous),
            ("57P01", CommitsInside, Ambiguous),
            ("57P01", InTransaction, RolledBack),
            ("57P01", Preparing, NeverSent),
            ("57P02", Executing, Ambiguous),
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
}
