//! A private server's directory: where it is, which program may use it, and what it contains.

use super::failure::{EmbeddedError, Tried};
use super::options::{Options, Place};
use super::programs::Programs;
use crate::hex::hex;
use crate::temporary;
use log::{info, warn};
use nix::sys::signal::kill;
use nix::unistd::{Pid, User};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long a server may take to stop after its program was killed: it first writes all its data to
/// a disk that may be busy.
pub(super) const HANDOVER_LIMIT: Duration = Duration::from_secs(30);

/// The prefix of data directories that are not complete yet.
const HALF_MADE: &str = "pg.new-";

/// The paths below a server's directory.
#[derive(Clone)]
pub(super) struct Home {
    pub dir: PathBuf,
    user: Option<ServerUser>,
}

impl Home {
    pub fn data(&self) -> PathBuf {
        self.dir.join("pg")
    }
    pub fn log(&self) -> PathBuf {
        self.dir.join("postgres.log")
    }
    pub fn password(&self) -> PathBuf {
        self.dir.join("password")
    }
    pub fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }
    pub fn pid_file(&self) -> PathBuf {
        self.data().join("postmaster.pid")
    }
}

/// The user that the server runs as if this program runs as root.
#[derive(Clone)]
struct ServerUser {
    uid: u32,
    gid: u32,
}

fn server_user() -> Result<Option<ServerUser>, EmbeddedError> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Ok(Some(user)) = User::from_name(name) {
            return Ok(Some(ServerUser {
                uid: user.uid.as_raw(),
                gid: user.gid.as_raw(),
            }));
        }
    }
    Err(EmbeddedError::NotInstalled(
        "PostgreSQL does not run as root, and there is no user postgres or nobody".into(),
    ))
}

impl Home {
    pub fn prepare(options: &Options) -> Result<Home, EmbeddedError> {
        match &options.place {
            Place::Temporary => {
                let dir =
                    temporary::make().tried(|| "no directory for the private server".into())?;
                let home = Home {
                    dir: dir.keep(),
                    user: server_user()?,
                };
                home.give_to_server(&home.dir)?;
                Ok(home)
            }
            Place::Kept(dir) => {
                let home = Home::at(dir)?;
                if home.dir != absolute(dir)? {
                    warn!(
                        "the private database is in {}: the server's user cannot reach {}",
                        home.dir.display(),
                        dir.display()
                    );
                }
                home.make_dir()?;
                Ok(home)
            }
        }
    }

    /// Returns the place of a kept directory: the directory named, or one below /var/lib if the
    /// server's user cannot reach that.
    pub fn at(dir: &Path) -> Result<Home, EmbeddedError> {
        let (dir, user) = (absolute(dir)?, server_user()?);
        let named = Home {
            dir: dir.clone(),
            user,
        };
        let reaches = |path: &Path| {
            named
                .command("/bin/sh")
                .args(["-c", ":"])
                .current_dir(path)
                .status()
                .is_ok()
        };
        let parent = dir.parent().unwrap_or(Path::new("/"));
        if named.user.is_none() || reaches(if dir.exists() { &dir } else { parent }) {
            return Ok(named);
        }
        let hash = dir
            .as_os_str()
            .as_encoded_bytes()
            .iter()
            .fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
                (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3)
            });
        Ok(Home {
            dir: Path::new("/var/lib/millpond").join(format!("{hash:016x}")),
            user: named.user,
        })
    }

    fn make_dir(&self) -> Result<(), EmbeddedError> {
        // The server's user must be able to reach its own directory below that of root.
        let mode = if self.user.is_some() { 0o755 } else { 0o700 };
        let made = DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(&self.dir);
        made.tried(|| format!("{} could not be created", self.dir.display()))?;
        if self.user.is_some() {
            let open = fs::set_permissions(&self.dir, Permissions::from_mode(mode));
            open.tried(|| {
                format!(
                    "could not make {} accessible to the server's user",
                    self.dir.display()
                )
            })?;
        }
        Ok(())
    }

    /// Returns a command that runs as the server's user.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        if let Some(user) = &self.user {
            command.gid(user.gid).uid(user.uid);
        }
        // The server would take a client's settings for its own.
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"PG") {
                command.env_remove(name);
            }
        }
        command.env("LC_ALL", "C").current_dir("/");
        command
    }

    fn give_to_server(&self, path: &Path) -> Result<(), EmbeddedError> {
        let Some(user) = &self.user else {
            return Ok(());
        };
        chown(path, Some(user.uid), Some(user.gid)).tried(|| {
            format!(
                "could not make the server's user the owner of {}",
                path.display()
            )
        })
    }

    /// Locks the directory, which one program at a time may use. If a killed program has left its
    /// server behind, waits for the server to stop.
    pub fn take_lock(&self) -> Result<File, EmbeddedError> {
        let what = || format!("{} could not be locked", self.lock().display());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.lock());
        let mut file = file.tried(what)?;
        let patience = Instant::now() + HANDOVER_LIMIT;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(e)) => return Err(e).tried(what),
                // A program that is alive will not release the lock, so waiting would be useless; a
                // server that was left behind will end.
                Err(TryLockError::WouldBlock)
                    if self.has_other_owner() || Instant::now() >= patience =>
                {
                    return Err(self.in_use());
                }
                Err(TryLockError::WouldBlock) => {
                    if !std::mem::replace(&mut told, true) {
                        info!(
                            "waiting for the server in {} to stop; the program that started it has ended",
                            self.dir.display()
                        );
                    }
                    thread::sleep(Duration::from_millis(50));
                }
            }
        }
        file.set_len(0)
            .and_then(|()| write!(file, "{}", std::process::id()))
            .tried(what)?;
        // The server that wrote the file is gone, since otherwise the lock would not be free. Its
        // process number may belong to another process by now, which PostgreSQL would take for a
        // running server.
        match fs::remove_file(self.pid_file()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).tried(what)?,
            _ => {}
        }
        Ok(file)
    }

    fn has_other_owner(&self) -> bool {
        self.owner()
            .is_some_and(|pid| pid != std::process::id() && is_alive(pid))
    }

    /// Returns the process id of the program that took the lock last.
    fn owner(&self) -> Option<u32> {
        fs::read_to_string(self.lock()).ok()?.trim().parse().ok()
    }

    pub fn in_use(&self) -> EmbeddedError {
        EmbeddedError::InUse {
            dir: self.dir.clone(),
            pid: self.owner(),
        }
    }

    /// Returns the password that is stored in the directory; None if there is none.
    pub fn kept_password(&self) -> Result<Option<String>, EmbeddedError> {
        let path = self.password();
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned()).filter(|p| !p.is_empty())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).tried(|| format!("{} could not be read", path.display())),
        }
    }

    /// Stores the password. It is written under another name first, and renamed when it is
    /// complete.
    pub fn keep_password(&self, password: &str) -> Result<(), EmbeddedError> {
        let (path, fresh) = (self.password(), self.dir.join("password.new"));
        let what = || format!("{} could not be written", path.display());
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)
            .tried(what)?;
        writeln!(file, "{password}")
            .and_then(|()| file.sync_all())
            .tried(what)?;
        self.give_to_server(&fresh)?;
        fs::rename(&fresh, &path).tried(what)
    }

    /// Sets a new password on existing data whose password is lost. This uses single-user mode,
    /// which asks for no password.
    pub fn set_password(
        &self,
        password: &str,
        programs: &Programs,
        settings: &[(String, String)],
        lock: &File,
    ) -> Result<(), EmbeddedError> {
        let what = || {
            format!(
                "could not set a new password for the data in {}",
                self.data().display()
            )
        };
        // This process inherits the lock like the server does, so that no other start can come in
        // between if this program is killed.
        let holding_the_lock = r#"exec "$@" 3>&1 >&2"#;
        let mut command = self.command("/bin/sh");
        command
            .args(["-c", holding_the_lock, "millpond-private-postgresql"])
            .arg(programs.dir.join("postgres"))
            .args(["--single", "-D"])
            .arg(self.data());
        let own = [
            ("exit_on_error", "on"),
            ("password_encryption", "scram-sha-256"),
        ];
        let settings = settings.iter().map(|(n, v)| (n.as_str(), v.as_str()));
        for (name, value) in settings.chain(own) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let mut child = command
            .arg("postgres")
            .stdin(Stdio::piped())
            .stdout(lock.try_clone().tried(what)?)
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .tried(what)?;
        // Our own hexadecimal digits need no quoting.
        let statement = format!("ALTER ROLE postgres PASSWORD '{password}'\n");
        if let Some(mut input) = child.stdin.take() {
            // If the process has ended, its exit code and output say more than this error.
            let _ = input.write_all(statement.as_bytes());
        }
        let output = child.wait_with_output().tried(what)?;
        match output.status.success() {
            true => Ok(()),
            false => Err(EmbeddedError::Failed {
                what: format!("{} ({})", what(), output.status),
                printed: String::from_utf8_lossy(&output.stderr).into_owned(),
            }),
        }
    }

    /// Creates the data directory. It has another name until it is complete.
    pub fn init(&self, programs: &Programs) -> Result<(), EmbeddedError> {
        // A unique name, because the initdb of a start that was killed may still be running in its
        // own directory.
        let fresh = self
            .dir
            .join(format!("{HALF_MADE}{:08x}", fastrand::u32(..)));
        let what = || format!("{} could not be created", fresh.display());
        DirBuilder::new().mode(0o700).create(&fresh).tried(what)?;
        self.give_to_server(&fresh)?;
        info!("creating a private database in {}", self.data().display());
        let mut command = self.command(programs.dir.join("initdb"));
        command
            .arg("-D")
            .arg(&fresh)
            .arg(format!("--pwfile={}", self.password().display()));
        command.args([
            "-U",
            "postgres",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--no-locale",
            "--no-sync",
        ]);
        let output = command
            .stdin(Stdio::null())
            // Ctrl-C must not reach initdb: this program acts on it when the data directory is
            // complete.
            .process_group(0)
            .output()
            .tried(|| "initdb could not be run".into())?;
        if !output.status.success() {
            let printed = String::from_utf8_lossy(&output.stderr).into_owned();
            let _ = fs::remove_dir_all(&fresh);
            return Err(EmbeddedError::Failed {
                what: format!(
                    "initdb failed ({}): no private database was created; the next start tries again",
                    output.status
                ),
                printed,
            });
        }
        fs::rename(&fresh, self.data()).tried(what)
    }

    /// Removes the directories that killed starts have left behind. A directory in which initdb
    /// still runs is left to a later start.
    pub fn remove_half_made(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return;
        };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(HALF_MADE) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// Returns process and port of a server that accepts connections here, according to its own
    /// file (which the manual calls the lock file).
    pub fn ready_server(&self) -> Option<(i32, u16)> {
        let text = fs::read_to_string(self.pid_file()).ok()?;
        let mut lines = text.lines();
        let pid: i32 = lines.next()?.trim().parse().ok()?;
        let port: u16 = lines.nth(2)?.trim().parse().ok()?;
        let status = lines.nth(3)?.trim();
        (status == "ready" && is_alive(pid.unsigned_abs())).then_some((pid, port))
    }
}

/// Returns a new password for the server's role.
pub(super) fn new_password() -> Result<String, EmbeddedError> {
    let mut random = [0u8; 16];
    getrandom::fill(&mut random).tried(|| "cannot read random numbers".into())?;
    Ok(hex(&random))
}

fn absolute(dir: &Path) -> Result<PathBuf, EmbeddedError> {
    std::path::absolute(dir).tried(|| format!("{} is not a valid path", dir.display()))
}

/// Returns whether a process exists. This includes processes of other users, which we may not
/// signal.
fn is_alive(pid: u32) -> bool {
    let Ok(pid) = i32::try_from(pid) else {
        return false;
    };
    !matches!(
        kill(Pid::from_raw(pid), None),
        Err(nix::errno::Errno::ESRCH)
    )
}
