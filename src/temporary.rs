//! Temporary directories that exist as long as the program runs. A program that was killed leaves
//! its directory behind; the next start removes it.

use log::{debug, warn};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// The prefix of their names.
const PREFIX: &str = "millpond-";
/// The file in each directory that the program holds a lock on.
const LOCK: &str = "lock";
/// The longest path of a directory in which a Unix socket can be named: an address takes 107 bytes,
/// on macOS 103.
const LONGEST: usize = 84;
/// A directory younger than this may not be locked yet.
const NEW: Duration = Duration::from_secs(60);

/// A temporary directory, which is removed when this value is dropped.
#[cfg(feature = "server")]
#[derive(Debug)]
pub(crate) struct Temporary {
    dir: TempDir,
    _lock: File,
}

#[cfg(feature = "server")]
impl Temporary {
    /// Creates a directory below the system's directory for temporary files (TMPDIR), or else in
    /// one of the usual places.
    ///
    /// # Errors
    /// If none of the places can be used; the error names them.
    pub fn new() -> io::Result<Temporary> {
        let dir = make()?;
        let lock = File::create_new(dir.path().join(LOCK))?;
        lock.try_lock()?;
        Ok(Temporary { dir, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Creates a directory like `Temporary::new`, but takes no lock: the caller locks it and removes
/// it.
pub(crate) fn make() -> io::Result<TempDir> {
    let wanted = std::env::temp_dir();
    let mut places = vec![wanted.clone()];
    places.extend(["/tmp", "/var/tmp", "/dev/shm"].map(PathBuf::from));
    places.dedup();
    let mut refused = Vec::new();
    for place in places {
        sweep(&place);
        match make_in(&place) {
            Ok(dir) => {
                if place != wanted {
                    warn!("using {} ({})", place.display(), refused.join(", "));
                }
                return Ok(dir);
            }
            Err(e) => refused.push(format!("{}: {e}", place.display())),
        }
    }
    let what = "cannot create a temporary directory; set TMPDIR to one that is writable, with a short path";
    Err(io::Error::other(format!("{what} ({})", refused.join(", "))))
}

fn make_in(place: &Path) -> io::Result<TempDir> {
    if place.as_os_str().len() + PREFIX.len() + 6 > LONGEST {
        return Err(io::Error::other("its path is too long for a Unix socket"));
    }
    // Other users have no access to it.
    tempfile::Builder::new().prefix(PREFIX).tempdir_in(place)
}

/// Removes what killed programs have left there.
fn sweep(place: &Path) {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let path = entry.path();
        if is_left_over(&path) {
            match fs::remove_dir_all(&path) {
                Ok(()) => debug!(
                    "removed {}, which an earlier run left behind",
                    path.display()
                ),
                Err(e) => debug!(
                    "cannot remove {}, which an earlier run left behind: {e}",
                    path.display()
                ),
            }
        }
    }
}

/// Returns whether the directory is ours and left over: no program holds its lock or is about to.
fn is_left_over(dir: &Path) -> bool {
    let path = dir.join(LOCK);
    // Checked before it is opened: opening a file that another user has made may block forever.
    let is_ours = fs::symlink_metadata(&path)
        .is_ok_and(|found| found.is_file() && found.uid() == nix::unistd::geteuid().as_raw());
    if !is_ours {
        return false;
    }
    let Ok(lock) = File::open(&path) else {
        return false;
    };
    let made = lock.metadata().and_then(|found| found.modified());
    let is_old = made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age > NEW));
    is_old && lock.try_lock().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn what_killed_programs_left_is_taken_away_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let make = |name: &str, age: u64| {
            let dir = place.path().join(name);
            fs::create_dir(&dir).unwrap();
            let lock = File::create_new(dir.join(LOCK)).unwrap();
            let then = SystemTime::now() - Duration::from_secs(age);
            lock.set_modified(then).unwrap();
            lock
        };
        drop(make("millpond-left", 3600));
        let held = make("millpond-held", 3600);
        held.try_lock().unwrap();
        drop(make("millpond-new", 1));
        drop(make("somebody-else", 3600));
        fs::create_dir(place.path().join("millpond-without-lock")).unwrap();
        sweep(place.path());
        let mut left: Vec<_> = fs::read_dir(place.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let kept = [
            "millpond-held",
            "millpond-new",
            "millpond-without-lock",
            "somebody-else",
        ];
        assert_eq!(left, kept);
    }

    #[test]
    fn a_place_that_cannot_be_used_says_why() {
        let long = make_in(Path::new(&"/x".repeat(60)))
            .unwrap_err()
            .to_string();
        assert!(long.contains("too long"), "{long}");
        assert!(make_in(Path::new("/nowhere/at/all")).is_err());
    }
}
