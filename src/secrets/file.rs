//! A secret in a file. No lock is held while the file is read.

use super::trouble::Trouble;
use super::value::{Flaw, LONGEST, SecretError, fit, without_newline};
use crate::sync::{Arc, Mutex, unpoison};
use log::info;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
#[cfg(unix)]
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
#[cfg(unix)]
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

/// File systems may count time this coarsely: a second write in that time can leave a file's times
/// as they were.
const COARSEST_CLOCK: Duration = Duration::from_secs(2);

pub(super) struct SecretFile {
    pub path: PathBuf,
    kept: Mutex<Option<Kept>>,
    trouble: Trouble,
    #[cfg(unix)]
    told_mode: AtomicBool,
}

/// The last good read.
#[derive(Clone)]
struct Kept {
    value: Arc<str>,
    stamp: Stamp,
    /// The file was old enough when it was read that any later write changes its stamp.
    settled: bool,
}

#[derive(Clone, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    /// Device, inode, and the time of the last change to the inode, which sees a file that was
    /// copied over with its old times.
    #[cfg(unix)]
    inode: (u64, u64, i64, i64),
}

impl Stamp {
    fn of(found: &Metadata) -> Stamp {
        Stamp {
            modified: found.modified().ok(),
            length: found.len(),
            #[cfg(unix)]
            inode: (found.dev(), found.ino(), found.ctime(), found.ctime_nsec()),
        }
    }

    fn settled(&self, now: SystemTime) -> bool {
        let age = self.modified.and_then(|at| now.duration_since(at).ok());
        age.is_some_and(|age| age > COARSEST_CLOCK)
    }
}

impl SecretFile {
    pub fn new(path: PathBuf) -> SecretFile {
        SecretFile {
            path,
            kept: Mutex::default(),
            trouble: Trouble::default(),
            #[cfg(unix)]
            told_mode: AtomicBool::new(false),
        }
    }

    pub fn current(&self) -> Result<Arc<str>, SecretError> {
        match self.kept() {
            Some(kept) if kept.settled && self.stamp().is_ok_and(|now| now == kept.stamp) => {
                self.trouble.ended();
                Ok(kept.value)
            }
            _ => self.read_again(),
        }
    }

    /// Reads the file; if that fails, the last good value is returned.
    pub fn read_again(&self) -> Result<Arc<str>, SecretError> {
        match self.read() {
            Ok(new) => {
                self.trouble.ended();
                let value = Arc::clone(&new.value);
                let old = unpoison(self.kept.lock()).replace(new);
                if old.is_some_and(|old| old.value != value) {
                    info!("the secret in {} has changed", self.path.display());
                }
                Ok(value)
            }
            Err(error) => match self.kept() {
                Some(kept) => {
                    self.trouble.began(&error);
                    Ok(kept.value)
                }
                None => Err(error),
            },
        }
    }

    pub fn may_have_changed(&self, refused: &str) -> bool {
        let Some(kept) = self.kept() else { return true };
        let written = || {
            self.stamp()
                .is_ok_and(|now| !kept.settled || now != kept.stamp)
        };
        *kept.value != *refused || written()
    }

    fn kept(&self) -> Option<Kept> {
        unpoison(self.kept.lock()).clone()
    }

    fn stamp(&self) -> io::Result<Stamp> {
        fs::metadata(&self.path).map(|found| Stamp::of(&found))
    }

    fn read(&self) -> Result<Kept, SecretError> {
        let now = SystemTime::now();
        let (stamp, bytes) = self.read_bytes().map_err(|e| SecretError::Read {
            path: self.path.clone(),
            source: Arc::new(e),
        })?;
        let value = match bytes.len() > LONGEST {
            true => Err(Flaw::TooLong),
            false => fit(without_newline(&bytes)),
        };
        let value = value.map_err(|flaw| {
            SecretError::unfit(format!("the secret in {}", self.path.display()), flaw)
        })?;
        Ok(Kept {
            value: value.into(),
            settled: stamp.settled(now),
            stamp,
        })
    }

    fn read_bytes(&self) -> io::Result<(Stamp, Vec<u8>)> {
        // Opening a pipe could block for ever.
        if !fs::metadata(&self.path)?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let file = File::open(&self.path)?;
        // Taken from the open file and before the read: a link that is turned, or a write, in
        // between is seen next time.
        let found = file.metadata()?;
        #[cfg(unix)]
        self.tell_mode(&found);
        let mut bytes = Vec::new();
        file.take(LONGEST as u64 + 1).read_to_end(&mut bytes)?;
        Ok((Stamp::of(&found), bytes))
    }

    #[cfg(unix)]
    fn tell_mode(&self, found: &Metadata) {
        let mode = found.mode() & 0o777;
        if mode & 0o007 == 0 || self.told_mode.swap(true, Ordering::Relaxed) {
            return;
        }
        // Containers mount secrets with mode 0444 or 0644, where there are no other users.
        let level = match mode & 0o002 {
            0 => log::Level::Info,
            _ => log::Level::Warn,
        };
        let path = self.path.display();
        log::log!(
            level,
            "other users of this machine have access to the secret in {path} (mode {mode:04o}): \
             use chmod o-rwx"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    /// A directory with the file `password` of this content, written an hour ago.
    fn written(content: impl AsRef<[u8]>) -> (TempDir, SecretFile) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        write_an_hour_ago(&path, content);
        (dir, SecretFile::new(path))
    }

    fn write_an_hour_ago(path: &std::path::Path, content: impl AsRef<[u8]>) {
        fs::write(path, content).unwrap();
        let file = File::options().write(true).open(path).unwrap();
        let then = SystemTime::now() - Duration::from_secs(3600);
        file.set_modified(then).unwrap();
    }

    fn value(file: &SecretFile) -> String {
        file.current().unwrap().to_string()
    }

    fn in_trouble(file: &SecretFile) -> bool {
        unpoison(file.trouble.0.lock()).is_some()
    }

    #[test]
    fn only_what_can_be_a_password_is_read() {
        let most = "a".repeat(LONGEST);
        for (content, wanted) in [
            (&b"secret\n"[..], Ok("secret")),
            (b"two\r\nlines\n", Ok("two\r\nlines")),
            (b"", Err("is empty")),
            (b"\n", Err("is empty")),
            (b"se\0cret", Err("NUL byte")),
            (b"s\xffcret", Err("not UTF-8")),
            (most.as_bytes(), Ok(&*most)),
            (format!("{most}\n").as_bytes(), Err("longer than 64 KiB")),
        ] {
            let (_dir, file) = written(content);
            match (file.current(), wanted) {
                (Ok(value), Ok(wanted)) => assert_eq!(&*value, wanted),
                (Err(error), Err(problem)) => {
                    let text = format!("{error} {error:?}");
                    assert!(
                        text.contains(problem) && text.contains("password"),
                        "{text}"
                    );
                    assert!(!text.contains("cret\0") && !text.contains("aaa"), "{text}");
                }
                (got, wanted) => panic!("{got:?} instead of {wanted:?}"),
            }
        }
    }

    #[test]
    fn a_missing_file_and_a_directory_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let missing = SecretFile::new(dir.path().join("none"));
        assert!(matches!(missing.current(), Err(SecretError::Read { .. })));
        assert!(missing.may_have_changed("a"));
        let directory = SecretFile::new(dir.path().into());
        assert!(matches!(directory.current(), Err(SecretError::Read { .. })));
    }

    #[test]
    fn a_file_that_is_written_is_read_again() {
        let (_dir, file) = written("old");
        assert_eq!(value(&file), "old");
        assert!(!file.may_have_changed("old"));
        assert!(file.may_have_changed("another"));
        // Of the same length.
        fs::write(&file.path, "new").unwrap();
        assert!(file.may_have_changed("old"));
        assert_eq!(value(&file), "new");
    }

    #[test]
    fn a_file_that_has_not_changed_is_not_read() {
        let (_dir, file) = written("value");
        let first = file.current().unwrap();
        assert!(Arc::ptr_eq(&first, &file.current().unwrap()));
        assert!(!Arc::ptr_eq(&first, &file.read_again().unwrap()));
    }

    #[test]
    fn a_file_written_just_before_it_was_read_is_read_again() {
        let (_dir, file) = written("value");
        fs::write(&file.path, "value").unwrap();
        let first = file.current().unwrap();
        let unsettled = !file.kept().unwrap().settled;
        assert!(!unsettled || !Arc::ptr_eq(&first, &file.current().unwrap()));

        let at = SystemTime::now();
        let stamp = Stamp {
            modified: Some(at),
            ..file.stamp().unwrap()
        };
        for (now, settled) in [
            (at + Duration::from_secs(3), true),
            (at + Duration::from_secs(2), false),
            (at, false),
            // The server of a network file system may have a clock of its own.
            (at - Duration::from_secs(60), false),
        ] {
            assert_eq!(stamp.settled(now), settled);
        }
    }

    #[test]
    fn a_failed_read_keeps_the_value_and_ends_when_the_file_is_back() {
        let (dir, file) = written("old");
        assert_eq!(value(&file), "old");
        let aside = dir.path().join("aside");
        fs::rename(&file.path, &aside).unwrap();
        assert_eq!(value(&file), "old");
        assert!(in_trouble(&file) && !file.may_have_changed("old"));
        fs::rename(&aside, &file.path).unwrap();
        assert_eq!(value(&file), "old");
        assert!(!in_trouble(&file));
        for bad in [&b""[..], b"\0", b"\xff"] {
            fs::write(&file.path, bad).unwrap();
            assert_eq!(value(&file), "old");
            assert!(in_trouble(&file));
        }
        fs::write(&file.path, "new").unwrap();
        assert_eq!(value(&file), "new");
        assert!(!in_trouble(&file));
    }

    #[cfg(unix)]
    #[test]
    fn a_turned_symbolic_link_is_seen() {
        use std::os::unix::fs::symlink;
        // As Kubernetes does it: password -> ..data/password, ..data -> ..2026_01.
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (version, content) in [("..2026_01", "old"), ("..2026_02", "new")] {
            fs::create_dir(at(version)).unwrap();
            write_an_hour_ago(&at(version).join("password"), content);
        }
        symlink("..2026_01", at("..data")).unwrap();
        symlink("..data/password", at("password")).unwrap();
        let file = SecretFile::new(at("password"));
        assert_eq!(value(&file), "old");
        assert!(!file.may_have_changed("old"));
        symlink("..2026_02", at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        assert!(file.may_have_changed("old"));
        assert_eq!(value(&file), "new");
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_is_refused_instead_of_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        let error = SecretFile::new(path).current().unwrap_err();
        let SecretError::Read { source, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!(source.to_string(), "it is not a regular file");
    }
}
