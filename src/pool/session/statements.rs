//! What a session knows of the statements that it runs: those that it keeps prepared, what their texts say, and which
//! schemas their names are looked for in.

use crate::pool::param_types::is_unusual;
use crate::retry::Facts;
use postgres::Statement;
use std::borrow::Cow;
use std::time::{Duration, Instant};

/// The application may have changed a type of its own, which neither side notices: looked at again after this time.
const TYPES_KEPT_FOR: Duration = Duration::from_secs(60);

/// A prepared statement.
#[derive(Clone)]
pub(super) struct Kept {
    pub statement: Statement,
    pub facts: Facts,
    /// Where types of the application's own are in it: when they were looked up.
    looked_up: Option<Instant>,
}

impl Kept {
    pub fn new(statement: Statement, facts: Facts) -> Kept {
        let columns = statement.columns().iter().map(|column| column.type_());
        let unusual = statement.params().iter().chain(columns).any(is_unusual);
        Kept {
            looked_up: unusual.then(Instant::now),
            statement,
            facts,
        }
    }

    pub fn has_own_types(&self) -> bool {
        self.looked_up.is_some()
    }

    pub fn is_old(&self) -> bool {
        let old = |at: Instant| at.elapsed() > TYPES_KEPT_FOR;
        self.looked_up.is_some_and(old)
    }
}

/// The `search_path` of the transaction under way: with another one, the same text may mean other tables.
#[derive(Default)]
pub(super) enum SearchPath {
    /// The session's.
    #[default]
    Own,
    /// A statement has named it: the server is asked before the next.
    Doubtful,
    Set(Box<str>),
}

impl SearchPath {
    /// What is to be known about a text, under this path, is kept by this. No text and no setting holds a NUL.
    pub fn key<'t>(&self, sql: &'t str) -> Cow<'t, str> {
        match self {
            SearchPath::Set(path) => Cow::Owned(format!("{path}\0{sql}")),
            SearchPath::Own | SearchPath::Doubtful => Cow::Borrowed(sql),
        }
    }
}
