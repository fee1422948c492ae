//! The database that the variables name: `DATABASE_URL`, and what libpq's variables add to it.

use super::database::Database;
use super::libpq::{self, Origin, Problem, World};
use super::source::Source;
use super::url_file::UrlFile;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Variables that libpq reads besides those of the parameters.
const ALSO: [&str; 3] = ["HOME", "PGREQUIRESSL", "PGSYSCONFDIR"];

/// Returns the names of all variables that libpq reads.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    let all = libpq::KEYWORDS
        .iter()
        .filter_map(|keyword| keyword.variable);
    all.chain(ALSO)
}

/// The variables at one moment: a URL in a file is read again later, and they may have changed.
#[derive(Clone, Default)]
pub(super) struct Variables(BTreeMap<&'static str, (String, Source)>);

impl Variables {
    pub fn of(look_up: impl Fn(&str) -> Option<(String, Source)>) -> Variables {
        Variables(
            names()
                .filter_map(|name| Some((name, look_up(name)?)))
                .collect(),
        )
    }

    fn is_set(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|(value, _)| !value.is_empty())
    }

    /// Returns whether they name a database by themselves.
    fn name_a_database(&self) -> bool {
        ["PGHOST", "PGHOSTADDR", "PGSERVICE"]
            .into_iter()
            .any(|name| self.is_set(name))
    }

    /// Returns the database; none if nothing names one.
    pub fn database(&self, text: Option<&str>) -> Result<Option<Database>, Problem> {
        if text.is_none() && !self.name_a_database() {
            return Ok(None);
        }
        let parameters = libpq::gather(text, self)?;
        let database = Database::of(parameters);
        let name = if text.is_some() {
            "DATABASE_URL"
        } else {
            "PGHOST"
        };
        database.map(Some).map_err(|says| Problem { name, says })
    }

    /// Returns the file of the URL, which is read again when it has changed.
    pub fn url_file(&self, path: &str, text: &str) -> Arc<UrlFile> {
        let own = self.clone();
        let parse = move |text: &str| match own.database(Some(text)) {
            Ok(Some(database)) => Ok(database),
            Ok(None) => Err("names no database".to_owned()),
            Err(problem) => Err(problem.says),
        };
        Arc::new(UrlFile::new(path.into(), text, parse))
    }

    /// Returns the parameters that do not come from the URL: name, value and source.
    pub fn additions(&self, database: &Database) -> Vec<(&'static str, String, Source)> {
        let all = database.parameters().iter();
        let added = all.filter_map(|(name, value, origin)| {
            let shown = if name == "password" { "***" } else { value };
            match origin {
                Origin::Environment(variable) => {
                    let source = self
                        .0
                        .get(variable)
                        .map_or(Source::Environment, |(_, s)| *s);
                    Some((*variable, shown.to_owned(), source))
                }
                Origin::Service => Some((name, shown.to_owned(), Source::Service)),
                Origin::Text | Origin::Default => None,
            }
        });
        added.collect()
    }
}

impl fmt::Debug for Variables {
    /// Shows only their names: one of them is a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl World for Variables {
    fn var(&self, name: &str) -> Option<String> {
        self.0.get(name).map(|(value, _)| value.clone())
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        std::fs::read_to_string(path)
    }
}
