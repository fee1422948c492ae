//! A URL in a file, which is read again when the file has changed.

use super::database::Database;
use crate::secrets::Secret;
use log::{info, warn};
use std::fmt;
#[cfg(feature = "env")]
use std::path::PathBuf;
use std::time::Instant;

type Parse = dyn Fn(&str) -> Result<Database, String> + Send + Sync;

/// `DATABASE_URL_FILE`.
pub(crate) struct UrlFile {
    text: Secret,
    /// The text with which the pool was built.
    first: String,
    parse: Box<Parse>,
}

impl UrlFile {
    #[cfg(feature = "env")]
    pub(crate) fn new(
        path: PathBuf,
        first: &str,
        parse: impl Fn(&str) -> Result<Database, String> + Send + Sync + 'static,
    ) -> UrlFile {
        UrlFile {
            text: Secret::file(path),
            first: first.to_owned(),
            parse: Box::new(parse),
        }
    }

    pub fn first_text(&self) -> String {
        self.first.clone()
    }

    /// Returns the database that the file names now, if its text is another than `known`. With
    /// `again`, the file is read even if nothing shows that it has changed. A text that cannot be
    /// used is logged, and counts as no change.
    pub fn newer_than(&self, known: &str, again: bool) -> Option<(String, Option<Database>)> {
        let now = Instant::now();
        let text = match again {
            true => self.text.newer_than(known, now)?,
            false => self.text.current(now).ok()?,
        };
        if *text == *known {
            return None;
        }
        let database = match (self.parse)(&text) {
            Ok(database) => {
                info!(
                    "{} has changed; new connections go to {database}",
                    self.text
                );
                Some(database)
            }
            Err(why) => {
                warn!("{} has changed, but is not used: it {why}", self.text);
                None
            }
        };
        Some(((*text).to_owned(), database))
    }
}

impl fmt::Debug for UrlFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}
