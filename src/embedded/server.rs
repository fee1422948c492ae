//! A running private server.

use super::failure::{EmbeddedError, Tried};
use super::home::{HANDOVER_LIMIT, Home, new_password};
use super::options::Options;
use super::options::Place;
use super::programs::{Programs, data_version};
use log::{debug, warn};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::{Client, NoTls};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Limit for a start, which may include the recovery from a crash.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A shell script that starts the server, stops it when the pipe on standard input closes, and
/// exits with the server's status. If the pipe has closed, the program is gone, so temporary data
/// are removed. A server that has only just been started does not handle the signal yet, so the
/// signal is sent until the server is gone. SIGHUP is ignored: the system sends it to the whole
/// group if this program ends while the server is suspended.
const KEEPER: &str = r#"
how=$1 remove=$2; shift 2
trap '' HUP
exec 3<&0
"$@" </dev/null 3<&- & server=$!
{
  read -r _ <&3
  trap '' TERM
  while kill -CONT "$server" && kill -"$how" "$server"; do sleep 0.1 || sleep 1; done
  exit 0
} >/dev/null 2>&1 & reader=$!
wait "$server"; status=$?
kill "$reader" 2>/dev/null
if wait "$reader" && [ -n "$remove" ]; then rm -rf "$remove"; fi
exit "$status"
"#;

/// How a server is asked to stop (PostgreSQL's manual, section 19.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Ends all sessions and writes all data.
    Fast,
    /// Stops at once; the next start recovers as after a crash.
    Immediate,
}

impl Stop {
    fn signal(self) -> Signal {
        match self {
            Stop::Fast => Signal::SIGINT,
            Stop::Immediate => Signal::SIGQUIT,
        }
    }
}

/// A running private server; it is stopped when this value is dropped.
pub struct PrivateServer {
    options: Options,
    programs: Programs,
    home: Home,
    password: String,
    port: u16,
    running: Option<Running>,
}

struct Running {
    keeper: Child,
    pid: Pid,
}

impl PrivateServer {
    /// Starts a server. If there is no data directory, creates it first.
    ///
    /// # Errors
    /// If PostgreSQL is not installed, another program uses the directory, or the server does not
    /// start.
    pub fn start(options: Options) -> Result<PrivateServer, EmbeddedError> {
        let home = Home::prepare(&options)?;
        let programs = Programs::find(options.bin_dir.as_deref(), data_version(&home.data()))?;
        let lock = home.take_lock()?;
        home.remove_half_made();
        let there = home.data().join("PG_VERSION").exists();
        let password = match home.kept_password()? {
            Some(password) if there => password,
            _ => {
                let password = new_password()?;
                if there {
                    warn!(
                        "the password file {} is missing: setting a new password",
                        home.password().display()
                    );
                    home.set_password(&password, &programs, &options.settings, &lock)?;
                }
                home.keep_password(&password)?;
                password
            }
        };
        if !there {
            home.init(&programs)?;
        }
        let mut server = PrivateServer {
            options,
            programs,
            home,
            password,
            port: 0,
            running: None,
        };
        server.run(&lock)?;
        Ok(server)
    }

    /// Starts a server for tests: its data are temporary and its commits quick rather than durable.
    /// A server in a `static` ends with the process.
    ///
    /// ```no_run
    /// use millpond::embedded::PrivateServer;
    /// use std::sync::OnceLock;
    ///
    /// /// The URL of an empty database of its own, for each test.
    /// fn database() -> String {
    ///     static SERVER: OnceLock<PrivateServer> = OnceLock::new();
    ///     let server = SERVER.get_or_init(|| PrivateServer::temporary().expect("a PostgreSQL"));
    ///     server.new_database().expect("a database")
    /// }
    ///
    /// # fn main() {
    /// let pool = millpond::Pool::builder().database_url(&database()).build().unwrap();
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn temporary() -> Result<PrivateServer, EmbeddedError> {
        PrivateServer::start(Options::temporary())
    }

    /// Makes an empty database and returns its URL, with the password.
    ///
    /// # Errors
    /// If the server refuses it, or does not run.
    pub fn new_database(&self) -> Result<String, EmbeddedError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // The process tells it from a database of an earlier one, if the data are kept.
        let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let name = format!("db_{process}_{number}");
        let made = Client::connect(&self.url(), NoTls)
            .and_then(|mut client| client.batch_execute(&format!("CREATE DATABASE {name}")));
        made.map_err(|e| EmbeddedError::Failed {
            what: format!("the database {name} could not be made: {e}"),
            printed: e.as_db_error().map(ToString::to_string).unwrap_or_default(),
        })?;
        Ok(url(&self.password, self.port, &name))
    }

    /// Returns the URL of a server in this directory that another program runs; `None` if there is
    /// none.
    ///
    /// # Errors
    /// If another program holds the directory, but its server does not come up in time.
    pub fn url_of_running(dir: &Path) -> Result<Option<String>, EmbeddedError> {
        let home = Home::at(dir)?;
        let Ok(lock) = OpenOptions::new().read(true).write(true).open(home.lock()) else {
            return Ok(None);
        };
        let patience = Instant::now() + HANDOVER_LIMIT;
        loop {
            if lock.try_lock().is_ok() {
                return Ok(None);
            }
            if let (Some((_, port)), Ok(password)) =
                (home.ready_server(), fs::read_to_string(home.password()))
            {
                return Ok(Some(url(&password, port, "postgres")));
            }
            if Instant::now() >= patience {
                return Err(home.in_use());
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Returns the URL of the server, with the password.
    pub fn url(&self) -> String {
        url(&self.password, self.port, "postgres")
    }

    /// Returns the port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the directory that contains the data, the password and the log.
    pub fn dir(&self) -> &Path {
        &self.home.dir
    }

    /// Returns the server's log so far.
    pub fn log(&self) -> String {
        fs::read(self.home.log())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Returns the process id of the postmaster; `None` while it does not run.
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(|r| r.pid.as_raw().unsigned_abs())
    }

    /// Stops the server and waits for it. Sends the signal asked for first and stronger ones later,
    /// so that even a frozen server ends. It can be [started again](Self::start_again).
    pub fn stop(&mut self, how: Stop) {
        let Some(mut running) = self.running.take() else {
            return;
        };
        let _ = kill(running.pid, how.signal());
        for (signal, patience) in [
            (None, 5),
            (Some(Signal::SIGQUIT), 3),
            (Some(Signal::SIGKILL), 5),
        ] {
            if let Some(signal) = signal {
                warn!("the private PostgreSQL does not stop; sending it {signal}");
                let _ = kill(running.pid, Signal::SIGCONT);
                let _ = kill(running.pid, signal);
            }
            if exits_within(&mut running.keeper, Duration::from_secs(patience)) {
                return;
            }
        }
        let _ = running.keeper.kill();
        let _ = running.keeper.wait();
    }

    /// Starts a stopped server on the same data and the same port.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_again(&mut self) -> Result<(), EmbeddedError> {
        self.stop(Stop::Fast);
        let lock = self.home.take_lock()?;
        self.run(&lock)
    }

    /// Starts the server again if it has ended by itself (because its postmaster was killed).
    /// Returns whether it had.
    ///
    /// # Errors
    /// If it does not start. Its remaining processes may need a moment to end, so the call may be
    /// repeated.
    pub fn revive(&mut self) -> Result<bool, EmbeddedError> {
        let ended = match &mut self.running {
            Some(running) => matches!(running.keeper.try_wait(), Ok(Some(_))),
            None => true,
        };
        if ended {
            self.start_again()?;
        }
        Ok(ended)
    }

    fn run(&mut self, lock: &File) -> Result<(), EmbeddedError> {
        // Another program may take the free port before the server listens on it.
        let tries = if self.port == 0 { 5 } else { 1 };
        for last in (0..tries).map(|n| n + 1 == tries) {
            let port = if self.port == 0 {
                free_port().tried(|| "no free port on 127.0.0.1".into())?
            } else {
                self.port
            };
            let lock = lock
                .try_clone()
                .tried(|| "could not pass the lock on to the server".into())?;
            match self.launch(port, lock) {
                Ok(running) => {
                    self.port = port;
                    self.running = Some(running);
                    return Ok(());
                }
                Err(e) if last => return Err(e),
                Err(e) => debug!("the private PostgreSQL did not start on port {port}: {e}"),
            }
        }
        Ok(())
    }

    fn launch(&self, port: u16, lock: File) -> Result<Running, EmbeddedError> {
        let home = &self.home;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(home.log());
        let log = log.tried(|| format!("{} could not be written", home.log().display()))?;
        let logged_before = fs::metadata(home.log()).map_or(0, |m| m.len());
        let remove = if matches!(self.options.place, Place::Temporary) {
            home.dir.as_os_str()
        } else {
            "".as_ref()
        };
        let how = if remove.is_empty() { "INT" } else { "QUIT" };
        let mut command = home.command("/bin/sh");
        command
            .args(["-c", KEEPER, "millpond-private-postgresql", how])
            .arg(remove);
        command
            .arg(self.programs.dir.join("postgres"))
            .arg("-D")
            .arg(home.data());
        let fixed = [
            ("port", port.to_string()),
            ("listen_addresses", "127.0.0.1".into()),
            ("unix_socket_directories", String::new()),
            ("logging_collector", "off".into()),
        ];
        let settings = self.options.settings.iter().cloned();
        for (name, value) in settings.chain(fixed.map(|(n, v)| (n.to_owned(), v))) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        // Its standard output is the lock, which the server thus holds as long as it runs.
        command
            .stdin(Stdio::piped())
            .stdout(lock)
            .stderr(log)
            .process_group(0);
        let mut keeper = command
            .spawn()
            .tried(|| "the private PostgreSQL could not be started".into())?;
        let patience = Instant::now() + START_LIMIT;
        loop {
            if let Some((pid, _)) = home.ready_server() {
                return Ok(Running {
                    keeper,
                    pid: Pid::from_raw(pid),
                });
            }
            let ended = matches!(keeper.try_wait(), Ok(Some(_)));
            if ended || Instant::now() >= patience {
                drop(keeper.stdin.take());
                let _ = keeper.wait();
                let what = format!(
                    "the private PostgreSQL did not start (its log: {})",
                    home.log().display()
                );
                return Err(EmbeddedError::Failed {
                    what,
                    printed: tail(&home.log(), logged_before),
                });
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for PrivateServer {
    fn drop(&mut self) {
        let temporary = matches!(self.options.place, Place::Temporary);
        self.stop(if temporary {
            Stop::Immediate
        } else {
            Stop::Fast
        });
        if temporary {
            let _ = fs::remove_dir_all(&self.home.dir);
        }
    }
}

impl fmt::Debug for PrivateServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateServer")
            .field("dir", &self.home.dir)
            .field("port", &self.port)
            .finish()
    }
}

fn url(password: &str, port: u16, database: &str) -> String {
    format!(
        "postgresql://postgres:{}@127.0.0.1:{port}/{database}",
        password.trim()
    )
}

/// Returns whether the keeper ends within `limit`.
fn exits_within(keeper: &mut Child, limit: Duration) -> bool {
    let patience = Instant::now() + limit;
    while Instant::now() < patience {
        if matches!(keeper.try_wait(), Ok(Some(_))) {
            return true;
        }
        thread::sleep(Duration::from_millis(10));
    }
    false
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

fn tail(path: &Path, from: u64) -> String {
    let text = fs::read(path).unwrap_or_default();
    let new = text.get(from as usize..).unwrap_or(&text);
    let new = String::from_utf8_lossy(new);
    let lines: Vec<_> = new.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}
