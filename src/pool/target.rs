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
    /// What the server refused last.
    refused: Option<Login>,
}

/// What one login was tried with.
#[derive(Clone)]
pub(crate) struct Login {
    pub database: Arc<Database>,
    pub server: ServerHost,
    pub password: Option<Arc<str>>,
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
            refused: None,
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
        match (&self.password, database.config().get_password()) {
            (Some(source), _) => {
                let found = source.current(until);
                found
                    .map(Some)
                    .map_err(|e| OpenError::Password(Box::new(e)))
            }
            (None, Some(given)) => Ok(Some(String::from_utf8_lossy(given).into())),
            (None, None) => Ok(database.password_from_file(server).map(Into::into)),
        }
    }

    /// Notes that the server refused a login for its password.
    pub fn note_refused(&self, login: Login) {
        unpoison(self.newest.lock()).refused = Some(login);
    }

    /// Returns whether there is another URL or password than what was refused last, as far as that
    /// can be found out in time. Another thread may have found it first, so the comparison is with
    /// what was refused, not with what was used last.
    pub fn has_changed(&self, until: Instant) -> bool {
        self.read_url(true);
        let (database, refused) = {
            let newest = unpoison(self.newest.lock());
            (Arc::clone(&newest.database), newest.refused.clone())
        };
        let Some(refused) = refused else {
            return false;
        };
        if !Arc::ptr_eq(&database, &refused.database) {
            return true;
        }
        let used = refused.password.as_deref();
        match &self.password {
            Some(source) => {
                let used = used.unwrap_or_default();
                source.may_have_changed(used) && source.newer_than(used, until).is_some()
            }
            None if database.config().get_password().is_some() => false,
            None => database.password_from_file(&refused.server).as_deref() != used,
        }
    }

    /// Reads the file of the URL again if it has changed, or in any case.
    fn read_url(&self, again: bool) {
        let Some(file) = &self.url_file else {
            return;
        };
        let known = unpoison(self.newest.lock()).text.clone();
        let Some((text, database)) = file.newer_than(&known, again) else {
            return;
        };
        let mut newest = unpoison(self.newest.lock());
        newest.text = text;
        if let Some(database) = database {
            newest.database = Arc::new(match &self.only_host {
                Some(host) => database.on(host),
                None => database,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    fn login(target: &Target, database: &Arc<Database>) -> Login {
        let server = database.servers()[0].clone();
        let until = Instant::now() + Duration::from_secs(60);
        let password = target.password(database, &server, until).unwrap();
        Login {
            database: Arc::clone(database),
            server,
            password,
        }
    }

    #[test]
    fn what_another_login_uses_meanwhile_is_a_change() {
        let database: Database = "postgresql://app@127.0.0.1/app".parse().unwrap();
        let calls = AtomicUsize::new(0);
        let answers = ["wrong", "right", "right"];
        let password = move || Ok(answers[calls.fetch_add(1, Ordering::Relaxed).min(2)].to_owned());
        let password = Secret::callback(Arc::new(password));
        let target = Target::new(database, None, Some(Arc::new(password)), None);
        let soon = Instant::now() + Duration::from_secs(60);
        let refused = login(&target, &target.database());
        assert!(!target.has_changed(soon), "nothing was refused");
        assert_eq!(
            &**login(&target, &target.database())
                .password
                .as_ref()
                .unwrap(),
            "right"
        );
        target.note_refused(refused);
        assert!(target.has_changed(soon));
    }

    #[cfg(feature = "env")]
    #[test]
    fn a_url_that_another_login_has_read_meanwhile_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("url");
        let [old, new] = [
            "postgresql://app:old@127.0.0.1",
            "postgresql://app:new@127.0.0.1",
        ];
        std::fs::write(&path, old).unwrap();
        let parse = |text: &str| text.parse().map_err(|_| "is wrong".to_owned());
        let file = UrlFile::new(path.clone(), old, parse);
        let target = Target::new(old.parse().unwrap(), Some(Arc::new(file)), None, None);
        let soon = Instant::now() + Duration::from_secs(60);
        let refused = login(&target, &target.database());
        std::fs::write(&path, new).unwrap();
        target.database();
        target.note_refused(refused);
        assert!(target.has_changed(soon));
        target.note_refused(login(&target, &target.database()));
        assert!(!target.has_changed(soon));
    }
}
