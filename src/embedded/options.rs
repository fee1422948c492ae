//! The options of a private server.

use std::path::PathBuf;

/// Options of a private server.
#[derive(Clone, Debug)]
#[must_use]
pub struct Options {
    pub(super) place: Place,
    pub(super) bin_dir: Option<PathBuf>,
    pub(super) settings: Vec<(String, String)>,
}

/// Where a private server keeps its data.
#[derive(Clone, Debug)]
pub(super) enum Place {
    Kept(PathBuf),
    Temporary,
}

impl Options {
    /// Options for a server that keeps its data in this directory.
    pub fn kept(dir: impl Into<PathBuf>) -> Options {
        Options {
            place: Place::Kept(dir.into()),
            bin_dir: None,
            settings: Vec::new(),
        }
    }

    /// Options for a server whose data are removed when it stops. It is fast rather than durable.
    pub fn temporary() -> Options {
        let quick = ["fsync", "synchronous_commit", "full_page_writes"];
        let settings = quick
            .iter()
            .map(|name| ((*name).to_owned(), "off".to_owned()))
            .collect();
        Options {
            place: Place::Temporary,
            bin_dir: None,
            settings,
        }
    }

    /// Sets the directory of PostgreSQL's programs; `None` = search for them.
    pub fn bin_dir(mut self, dir: Option<PathBuf>) -> Options {
        self.bin_dir = dir;
        self
    }

    /// Adds a setting of the server, as in `postgresql.conf`; a later one overrides an earlier one.
    pub fn setting(mut self, name: &str, value: &str) -> Options {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }
}
