//! Where connections are opened to, and with which password. Both may change while the pool runs:
//! a URL in a file, a password in a file or from a command.

use crate::config::{Database, ServerHost, UrlFile};
use crate::error::OpenError;
use crate::secrets::Secret;
use crate::sync::unpoison;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

pub(crate) struct Target {
    newest: Mutex<Newest>,
    url_file: Option<Arc<UrlFile>>,
    password: Option<Arc<Secret>>,
    /// The only host that is used, whichever the URL names.
    only_host: Option<ServerHost>,
    is_closed: AtomicBool,
}

impl Drop for Target {
    fn drop(&mut self) {
        self.close();
    }
}

struct Newest {
    database: Arc<Database>,
    /// The text that the URL's file had.
    text: String,
    /// The password that was used last, and for which server.
    used: Option<(ServerHost, Option<Arc<str>>)>,
}

impl Target {
    pub fn new(
        database: Database,
        url_file: Option<Arc<UrlFile>>,
        password: Option<Arc<Secret>>,
        only_host: Option<ServerHost>,
    ) -> Target {
        let database = match &only_host {
            Some(host) => database.on(host),
            None => database,
        };
        let newest = Newest {
            database: Arc::new(database),
            text: url_file
                .as_ref()
                .map(|file| file.first_text())
                .unwrap_or_default(),
            used: None,
        };
        if let Some(password) = &password {
            password.begin_use();
        }
        Target {
            newest: Mutex::new(newest),
            url_file,
            password,
            only_host,
            is_closed: AtomicBool::new(false),
        }
    }

    /// To be called when nothing is opened any more.
    pub fn close(&self) {
        if let Some(password) = &self.password
            && !self.is_closed.swap(true, Ordering::SeqCst)
        {
            password.end_use();
        }
    }

    /// Returns the database as it is known, without asking whether it has changed.
    pub fn known(&self) -> Arc<Database> {
        Arc::clone(&unpoison(self.newest.lock()).database)
    }

    /// Returns the database as it is now.
    pub fn database(&self) -> Arc<Database> {
        self.read_url(false);
        self.known()
    }

    /// Returns the password for a server, as it is now.
    pub fn password(
        &self,
        database: &Database,
        server: &ServerHost,
        until: Instant,
    ) -> Result<Option<Arc<str>>, OpenError> {
        let found = match (&self.password, database.config().get_password()) {
            (Some(source), _) => {
                let found = source.current(until);
                Some(found.map_err(|e| OpenError::Password(Box::new(e)))?)
            }
            (None, Some(given)) => Some(String::from_utf8_lossy(given).into()),
            (None, None) => database.password_from_file(server).map(Into::into),
        };
        unpoison(self.newest.lock()).used = Some((server.clone(), found.clone()));
        Ok(found)
    }

    /// Returns whether there is another URL or password than the one that was refused, as far as
    /// that can be found out in time.
    pub fn has_changed(&self, until: Instant) -> bool {
        if self.read_url(true) {
            return true;
        }
        let (database, used) = {
            let newest = unpoison(self.newest.lock());
            (Arc::clone(&newest.database), newest.used.clone())
        };
        let Some((server, used)) = used else {
            return false;
        };
        match &self.password {
            Some(source) => {
                let refused = used.as_deref().unwrap_or_default();
                source.may_have_changed(refused) && source.newer_than(refused, until).is_some()
            }
            None if database.config().get_password().is_some() => false,
            None => database.password_from_file(&server).as_deref() != used.as_deref(),
        }
    }

    /// Reads the file of the URL again if it has changed, or in any case. Returns whether it names
    /// another database now.
    fn read_url(&self, again: bool) -> bool {
        let Some(file) = &self.url_file else {
            return false;
        };
        let known = unpoison(self.newest.lock()).text.clone();
        let Some((text, database)) = file.newer_than(&known, again) else {
            return false;
        };
        let mut newest = unpoison(self.newest.lock());
        newest.text = text;
        match database {
            Some(database) => {
                newest.database = Arc::new(match &self.only_host {
                    Some(host) => database.on(host),
                    None => database,
                });
                true
            }
            None => false,
        }
    }
}
