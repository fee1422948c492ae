//! How errors are put into words, and what is left out.

use super::conditions::condition;
use crate::retry::without_values;
use postgres::error::DbError;
use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::panic::Location;
use std::time::Duration;

/// Prints an error and all of its causes in one line, for logs. The driver's own `Display` omits
/// its cause (tokio-postgres 0.7.18 prints "db error" for any error of the server). Of a server
/// error, only the message, the condition and the code are printed, never the detail, which holds
/// row values.
#[derive(Clone, Copy, Debug)]
pub struct Chain<'a>(pub &'a (dyn StdError + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut next = Some(self.0);
        let mut first = true;
        while let Some(error) = next {
            if !first {
                f.write_str(": ")?;
            }
            first = false;
            match error.downcast_ref::<DbError>() {
                Some(db) => server_said(db, f)?,
                None => write!(f, "{error}")?,
            }
            next = error.source();
        }
        Ok(())
    }
}

/// Returns whether it is EMFILE (the process) or ENFILE (the system), which have the same numbers
/// on Linux and the BSDs.
pub(crate) fn is_out_of_files(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(23 | 24))
}

/// Returns the beginning of a statement, without the values in it, for errors and logs.
pub(crate) fn excerpt(sql: &str) -> Box<str> {
    without_values(sql, 100).into()
}

/// Returns the beginning of a statement, without the values in it, for a field of a log line, which
/// is longer than what people read in its message: as much as the server keeps in
/// `pg_stat_activity` by default.
pub(crate) fn query_text(sql: &str) -> String {
    without_values(sql, 1024)
}

/// Prints the server's message, the name of the condition, and the code. Never the detail, which
/// holds row values; nor the message of a data exception (class 22), which quotes the value that
/// did not fit; nor the constants in that of a syntax error, which quotes where it is.
pub(super) fn server_said(db: &DbError, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let code = db.code().code();
    match db.routine() {
        Some(routine) if code.starts_with("22") => write!(f, "data exception in {routine}")?,
        _ if code.starts_with("22") => f.write_str("data exception")?,
        routine if code == "42601" => {
            // Where the text is not a statement's, it is a value: a tsquery, a JSON path.
            let of_sql = matches!(routine, Some("scanner_yyerror" | "plpgsql_yyerror"));
            f.write_str(&without_quoted(db.message(), of_sql))?;
        }
        _ => f.write_str(db.message())?,
    }
    if let Some(name) = condition(code) {
        write!(f, ", {name}")?;
    }
    write!(f, " ({code})")
}

/// Returns the message of a syntax error with `?` for each constant in what it quotes, or for all of
/// that if it is not a statement's text. Quotation marks depend on the server's language.
fn without_quoted(message: &str, of_sql: bool) -> Cow<'_, str> {
    let is_mark = |c| matches!(c, '"' | '«' | '»' | '„' | '“' | '”' | '「' | '」');
    let mut marks = message.match_indices(is_mark);
    let Some((first, mark)) = marks.next() else {
        return message.into();
    };
    let start = first + mark.len();
    let end = marks.next_back().map_or(message.len(), |(last, _)| last);
    let shown = match of_sql {
        true => without_values(&message[start..end], 100),
        false => "?".into(),
    };
    format!("{}{shown}{}", &message[..start], &message[end..]).into()
}

/// A connection that is checked out, and by which thread.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HeldBy {
    /// The connection's number in the log.
    pub connection: u64,
    /// Where it was checked out.
    pub place: &'static Location<'static>,
    /// The name of the thread that checked it out, if it has one.
    pub thread: Option<String>,
    /// How long it has been checked out.
    pub held: Duration,
    /// What was sent on it last since its check-out.
    pub statement: Option<LastStatement>,
}

/// The statement that was sent last on a connection.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LastStatement {
    /// The beginning of its text, with `?` for each constant in it.
    pub sql: String,
    /// It has not been answered yet.
    pub running: bool,
    /// How long it has been running, or for how long it has been over.
    pub since: Duration,
}

impl fmt::Display for LastStatement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.running {
            true => "running",
            false => "over",
        };
        write!(f, "{state} for {:.1?}: {:?}", self.since, self.sql)
    }
}

impl fmt::Display for HeldBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let thread = self.thread.as_deref().unwrap_or("unnamed");
        write!(
            f,
            "conn={} held for {:.1?} by thread {thread} since {}",
            self.connection, self.held, self.place
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_syntax_error_shows_words_and_no_constants() {
        for (message, of_sql, expected) in [
            (
                "syntax error at end of input",
                true,
                "syntax error at end of input",
            ),
            (
                r#"syntax error at or near "FORM""#,
                true,
                r#"syntax error at or near "FORM""#,
            ),
            (
                r#"syntax error at or near "$1""#,
                true,
                r#"syntax error at or near "$1""#,
            ),
            (
                r#"syntax error at or near "'secret'""#,
                true,
                r#"syntax error at or near "?""#,
            ),
            (
                r#"unterminated quoted string at or near "'a "secret""#,
                true,
                r#"unterminated quoted string at or near "?""#,
            ),
            (
                "Syntaxfehler bei »$$secret$$«",
                true,
                "Syntaxfehler bei »?«",
            ),
            ("Syntaxfehler bei »FORM«", true, "Syntaxfehler bei »FORM«"),
            (
                r#"syntax error in tsquery: "secret & ""#,
                false,
                r#"syntax error in tsquery: "?""#,
            ),
            (
                r#"syntax error at or near "secret" of jsonpath input"#,
                false,
                r#"syntax error at or near "?" of jsonpath input"#,
            ),
            (r#"near "secret"#, false, r#"near "?"#),
        ] {
            assert_eq!(without_quoted(message, of_sql), expected, "{message}");
        }
    }
}
