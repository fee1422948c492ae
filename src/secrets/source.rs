//! The sources of a secret.

use super::command::SecretCommand;
use super::file::SecretFile;
use super::trouble::Trouble;
use super::value::{SecretError, fit};
use crate::sync::{Arc, caught};
use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub(crate) type Callback = dyn Fn() -> Result<String, Box<dyn Error + Send + Sync>> + Send + Sync;

/// A source of a secret. Its `Debug` and `Display` name the source and show no value.
pub(crate) struct Secret(Source);

/// How long a command may run.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);

enum Source {
    File(SecretFile),
    Command(Arc<SecretCommand>),
    Callback(Arc<Callback>, Trouble),
}

impl Secret {
    /// The content of a regular file, less one newline at its end. It is read again once the file
    /// has changed or was replaced, also behind a symbolic link. If that fails, the value read
    /// before stays in use.
    pub fn file(path: impl Into<PathBuf>) -> Secret {
        Secret(Source::File(SecretFile::new(path.into())))
    }

    /// The first line that `sh -c line` (on Windows `cmd /C`) prints. A second line
    /// `expires_in=SECONDS` says how long the value may be cached, 12 h at most; with 0, it serves
    /// one caller. Without that line, a token of AWS RDS is cached for three quarters of its life,
    /// anything else for 60 s. Should the command then fail, the value before stays in use unless
    /// its life is known to have ended.
    ///
    /// A command that runs for longer than [`COMMAND_LIMIT`] is killed with its process group. What a command
    /// leaves in the background when it exits is left alone.
    pub fn command(line: impl Into<String>) -> Secret {
        let line = line.into();
        Secret(Source::Command(SecretCommand::new(line, COMMAND_LIMIT)))
    }

    /// What `call` returns, asked anew each time: nothing is cached. It runs in the caller's thread,
    /// where no deadline can interrupt it.
    pub fn callback(call: Arc<Callback>) -> Secret {
        Secret(Source::Callback(call, Trouble::default()))
    }

    /// Notes that a pool uses it from now on.
    pub fn begin_use(&self) {
        if let Source::Command(command) = &self.0 {
            command.begin_use();
        }
    }

    /// Notes that a pool has closed. After the last one, a command that runs is killed.
    pub fn end_use(&self) {
        if let Source::Command(command) = &self.0 {
            command.end_use();
        }
    }

    /// The value as of now. Only a command makes a caller wait, until `until` at most.
    pub fn current(&self, until: Instant) -> Result<Arc<str>, SecretError> {
        match &self.0 {
            Source::File(file) => file.current(),
            Source::Command(command) => command.current(until),
            Source::Callback(call, _) => called(call),
        }
    }

    /// Asks the source again after the server refused a value (28P01). `None`: there is no other
    /// value yet. A command runs at most once in a second, however often it is asked.
    pub fn newer_than(&self, refused: &str, until: Instant) -> Option<Arc<str>> {
        let newer = match &self.0 {
            Source::File(file) => file.read_again().ok(),
            Source::Command(command) => command.newer_than(refused, until),
            Source::Callback(call, trouble) => match called(call) {
                Ok(value) => {
                    trouble.ended();
                    Some(value)
                }
                Err(error) => {
                    trouble.began(&error);
                    None
                }
            },
        };
        newer.filter(|value| **value != *refused)
    }

    /// Whether it is worth calling [`newer_than`](Secret::newer_than). This is cheap: it runs no
    /// command and reads no file.
    pub fn may_have_changed(&self, refused: &str) -> bool {
        match &self.0 {
            Source::File(file) => file.may_have_changed(refused),
            Source::Command(command) => command.may_have_changed(refused),
            Source::Callback(..) => true,
        }
    }
}

fn called(call: &Arc<Callback>) -> Result<Arc<str>, SecretError> {
    let value = caught(|| call())
        .unwrap_or_else(|panic| Err(format!("it panicked: {panic}").into()))
        .map_err(|error| SecretError::Callback(error.into()))?;
    let value = fit(value.as_bytes());
    let value =
        value.map_err(|flaw| SecretError::unfit("what the secret's callback returned", flaw));
    Ok(value?.into())
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::File(file) => write!(f, "the secret's file {}", file.path.display()),
            // Its text may contain a token.
            Source::Command(_) => f.write_str("the secret's command"),
            Source::Callback(..) => f.write_str("the secret's callback"),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::super::value::{Flaw, LONGEST, without_newline};
    use super::*;
    use crate::sync::unpoison;
    use std::fs;
    use std::io;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const SHOWN_NOWHERE: &str = "hunter2";

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn callback(
        call: impl Fn() -> Result<String, Box<dyn Error + Send + Sync>> + Send + Sync + 'static,
    ) -> Secret {
        Secret::callback(Arc::new(call))
    }

    #[test]
    fn a_secret_and_its_errors_can_be_shared_by_threads() {
        fn shared<T: Send + Sync + 'static>() {}
        shared::<Secret>();
        shared::<SecretError>();
    }

    #[test]
    fn neither_debug_nor_display_shows_a_value_or_a_command() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        fs::write(&path, SHOWN_NOWHERE).unwrap();
        for secret in [
            Secret::file(&path),
            Secret::command(format!("echo {SHOWN_NOWHERE}")),
            callback(|| Ok(SHOWN_NOWHERE.into())),
        ] {
            assert_eq!(&*secret.current(soon()).unwrap(), SHOWN_NOWHERE);
            let shown = format!("{secret} {secret:?}");
            assert!(!shown.contains(SHOWN_NOWHERE), "{shown}");
        }
    }

    #[test]
    fn a_callback_is_asked_each_time() {
        let calls = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&calls);
        let secret = callback(move || Ok(counter.fetch_add(1, Ordering::SeqCst).to_string()));
        assert_eq!(&*secret.current(soon()).unwrap(), "0");
        assert_eq!(&*secret.current(soon()).unwrap(), "1");
        assert_eq!(secret.newer_than("2", soon()), None);
        assert_eq!(secret.newer_than("2", soon()).as_deref(), Some("3"));
        assert!(secret.may_have_changed("3"));
    }

    #[test]
    fn a_callback_that_fails_or_panics_is_an_error() {
        let failing = callback(|| Err("vault is sealed".into()));
        let panicking = callback(|| panic!("no vault"));
        for (secret, cause) in [
            (&failing, "vault is sealed"),
            (&panicking, "it panicked: no vault"),
        ] {
            let error = secret.current(soon()).unwrap_err();
            assert_eq!(error.to_string(), "the secret's callback failed");
            assert_eq!(error.source().unwrap().to_string(), cause);
            assert_eq!(secret.newer_than("a", soon()), None);
        }
    }

    #[test]
    fn every_flaw_is_named() {
        for (value, problem) in [
            (String::new(), "is empty"),
            ("a\0b".into(), "NUL byte"),
            ("a".repeat(LONGEST + 1), "longer than 64 KiB"),
        ] {
            let secret = callback(move || Ok(value.clone()));
            let error = secret.current(soon()).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
        assert_eq!(fit(b"a\xff"), Err(Flaw::NotUtf8));
    }

    #[test]
    fn trouble_is_remembered_until_it_ends() {
        let trouble = Trouble::default();
        let seen = || unpoison(trouble.0.lock()).clone();
        trouble.began(&SecretError::not_run(io::Error::other("no shell")));
        let text = "the secret's command could not be run: no shell";
        assert_eq!(seen().as_deref(), Some(text));
        trouble.began(&SecretError::Deadline);
        assert_ne!(seen().as_deref(), Some(text));
        trouble.ended();
        assert_eq!(seen(), None);
    }

    #[test]
    fn one_newline_is_removed() {
        for (text, rest) in [
            ("a", "a"),
            ("a\n", "a"),
            ("a\r\n", "a"),
            ("a\n\n", "a\n"),
            ("a\r\n\r\n", "a\r\n"),
            (" a\r", " a\r"),
            ("\n", ""),
            ("", ""),
        ] {
            assert_eq!(
                without_newline(text.as_bytes()),
                rest.as_bytes(),
                "{text:?}"
            );
        }
    }
}
