//! What the database is told of the call that a session serves: a comment behind its statements that
//! names the request (sqlcommenter).
//!
//! Prepared statements are kept by their text, and a comment for each request would make every text
//! a new one. So a statement with a comment is not prepared by name: what is known of it is looked
//! up by its bare text, and it is sent with its comment in one round trip. Everything else, too,
//! goes by the bare text: verdicts, facts, logs, observers.

use super::life::Session;
use crate::retry::has_comment;
use std::borrow::Cow;

impl Session {
    /// Returns whether a text is sent with a comment. One that has a comment of its own is not: so
    /// it is specified, and at its end ours could be a part of that comment.
    pub(super) fn is_commented(&self, sql: &str) -> bool {
        self.serves.traceparent.is_some() && self.shared.config.sqlcommenter && !has_comment(sql)
    }

    /// Returns the text that is sent.
    pub(super) fn with_comment<'t>(&self, sql: &'t str) -> Cow<'t, str> {
        match self.serves.traceparent {
            // Its letters need no encoding.
            Some(parent) if self.is_commented(sql) => {
                Cow::Owned(format!("{sql} /*traceparent='{parent}'*/"))
            }
            _ => Cow::Borrowed(sql),
        }
    }
}
