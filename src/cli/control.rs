//! Commands to a running server, over a Unix socket in a directory that only its user may enter:
//! `millpond pause` and `millpond resume`.
//!
//! One line asks (`pause MILLISECONDS` or `resume`), one line answers: `done: ..` or `failed: ..`.

use super::failure::Failure;
use super::output;
use log::{debug, warn};
use millpond::pool::Pool;
use nix::unistd::geteuid;
use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// A client that says nothing is left after this time.
const PATIENCE: Duration = Duration::from_secs(5);
/// The pause between two looks whether a connection is still in use.
const LOOK: Duration = Duration::from_millis(10);

#[derive(clap::Args)]
pub(super) struct Pause {
    /// The pause ends by itself after this time
    #[arg(long, default_value_t = 60_000, value_parser = clap::value_parser!(u64).range(1..=86_400_000))]
    at_most_ms: u64,
    #[command(flatten)]
    which: Which,
}

#[derive(clap::Args)]
pub(super) struct Which {
    /// The port of the server [default: that of HTTP_ADDR]
    #[arg(long)]
    port: Option<u16>,
}

pub(super) fn pause(arguments: &Pause) -> Result<(), Failure> {
    let asked = format!("pause {}", arguments.at_most_ms);
    ask(&arguments.which, &asked, arguments.at_most_ms)
}

pub(super) fn resume(which: &Which) -> Result<(), Failure> {
    ask(which, "resume", 0)
}

fn ask(which: &Which, command: &str, takes_ms: u64) -> Result<(), Failure> {
    let port = which
        .port
        .unwrap_or_else(|| super::running_server::default_addr().port());
    let path = directory().join(format!("{port}.sock"));
    let answer = exchange(&path, command, PATIENCE + Duration::from_millis(takes_ms));
    let answer = answer.map_err(|e| {
        Failure::because(format!(
            "no server of this user on port {port} takes commands ({}: {e}); --port names another",
            path.display()
        ))
    })?;
    match answer.strip_prefix("done: ") {
        Some(text) => output::print(&format!("{text}\n")),
        None => Err(Failure::because(
            answer.trim_start_matches("failed: ").to_owned(),
        )),
    }
}

fn exchange(path: &Path, command: &str, limit: Duration) -> io::Result<String> {
    let mut server = UnixStream::connect(path)?;
    server.set_read_timeout(Some(limit))?;
    writeln!(server, "{command}")?;
    let mut answer = String::new();
    BufReader::new(server).read_line(&mut answer)?;
    match answer.trim_end() {
        "" => Err(ErrorKind::UnexpectedEof.into()),
        answer => Ok(answer.to_owned()),
    }
}

/// The socket of a running server. It is removed when this is dropped.
pub(super) struct Control {
    path: PathBuf,
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Control {
    /// Takes commands from now on. A server that cannot is as good as any other: that is logged.
    pub fn listen(pool: &Pool, port: u16) -> Option<Control> {
        let begun = bind(port).and_then(|(path, listener)| {
            let control = Control { path };
            let pool = pool.clone();
            thread::Builder::new()
                .name("millpond-control".into())
                .spawn(move || serve(&listener, &pool))
                .map(|_| control)
        });
        begun
            .inspect_err(|e| warn!("`millpond pause` will not reach this server: {e}"))
            .ok()
    }
}

/// Where the sockets of this user's servers are: the same place for all of them, whatever TMPDIR is.
fn directory() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(place) if !place.is_empty() => Path::new(&place).join("millpond"),
        _ => PathBuf::from(format!("/tmp/millpond-control-{}", geteuid())),
    }
}

fn bind(port: u16) -> io::Result<(PathBuf, UnixListener)> {
    let directory = directory();
    match fs::DirBuilder::new().mode(0o700).create(&directory) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    // Another user may have made it first.
    let found = fs::symlink_metadata(&directory)?;
    if !found.is_dir() || found.uid() != geteuid().as_raw() || found.mode() & 0o077 != 0 {
        return Err(io::Error::other(format!(
            "{} is not a directory of this user alone",
            directory.display()
        )));
    }
    let path = directory.join(format!("{port}.sock"));
    // Only one process listens on the port, so this is of one that is gone.
    let _ = fs::remove_file(&path);
    Ok((path.clone(), UnixListener::bind(path)?))
}

fn serve(listener: &UnixListener, pool: &Pool) {
    for client in listener.incoming() {
        let pool = pool.clone();
        // Each in a thread of its own: a pause may wait for long, and is ended by another command.
        let begun = client.and_then(|client| {
            thread::Builder::new()
                .name("millpond-control".into())
                .spawn(move || answer(&client, &pool))
        });
        if let Err(e) = begun {
            debug!("a command was not answered: {e}");
        }
    }
}

fn answer(mut client: &UnixStream, pool: &Pool) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut asked = String::new();
    BufReader::new(client).read_line(&mut asked)?;
    let said = match asked.trim_end().split_once(' ') {
        Some(("pause", ms)) => match ms.parse() {
            Ok(ms) => pause_until_idle(pool, Duration::from_millis(ms)),
            Err(_) => "failed: pause takes milliseconds".to_owned(),
        },
        None if asked.trim_end() == "resume" => match pool.resume() {
            true => "done: connections are opened again".to_owned(),
            false => "failed: there was no pause".to_owned(),
        },
        _ => "failed: the commands are pause MILLISECONDS and resume".to_owned(),
    };
    writeln!(client, "{said}")
}

/// Pauses the pool, and waits until nothing of it runs in the database.
fn pause_until_idle(pool: &Pool, at_most: Duration) -> String {
    let until = Instant::now() + at_most;
    pool.pause(at_most);
    let in_use = || {
        let standbys = pool.standbys();
        let theirs = standbys.iter().map(|standby| standby.stats.active);
        pool.stats().active + theirs.sum::<usize>()
    };
    while in_use() > 0 {
        if Instant::now() >= until || !pool.is_paused() {
            let active = in_use();
            return format!("failed: {active} connections were in use until the pause was over");
        }
        thread::sleep(LOOK);
    }
    format!(
        "done: paused, no connection is in use; ends by itself in {:.0?}",
        until - Instant::now()
    )
}
