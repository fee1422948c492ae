//! What systemd is told: that the server is ready, that it lives, and that it stops. Without
//! systemd nothing is told to anyone. `millpond unit` prints a unit that uses this; the Debian
//! package has it.

use super::failure::Failure;
use super::{output, running_server};
use log::{debug, warn};
use sd_notify::NotifyState;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

/// The units, as the Debian package installs them.
const SERVICE: &str = include_str!("assets/millpond.service");
const SOCKET: &str = include_str!("assets/millpond.socket");
/// Where the package installs the program.
const PACKAGED: &str = "/usr/bin/millpond";

#[derive(clap::Args)]
pub(super) struct Unit {
    /// Print the socket unit, with which a restart refuses no client
    #[arg(long)]
    socket: bool,
}

/// Prints a unit for this program.
pub(super) fn print_unit(which: &Unit) -> Result<(), Failure> {
    if which.socket {
        return output::print(SOCKET);
    }
    let program = std::env::current_exe().map_err(|e| Failure::of(&e))?;
    output::print(&SERVICE.replace(PACKAGED, &program.display().to_string()))
}

/// Says that the server listens. If systemd asks for signs of life, they are sent from now on, as
/// long as the server answers at its own address.
pub(super) fn ready(addr: SocketAddr) {
    let status = format!("listening on http://{addr}");
    tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
    let Some(period) = sd_notify::watchdog_enabled() else {
        return;
    };
    let begun = thread::Builder::new()
        .name("millpond-watchdog".into())
        .spawn(move || keep_alive(addr, period / 3));
    if let Err(e) = begun {
        warn!("systemd gets no signs of life: {e}");
    }
}

/// Says that the server begins to stop.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

fn keep_alive(addr: SocketAddr, each: Duration) {
    let url = format!("{}/health/live", running_server::url_of(addr));
    loop {
        match running_server::ask(&url, each) {
            Ok((status, _)) if status.is_success() => tell(&[NotifyState::Watchdog]),
            Ok((status, _)) => warn!("no sign of life for systemd: {url} answered {status}"),
            Err(e) => warn!("no sign of life for systemd: no answer from {url}: {e}"),
        }
        thread::sleep(each);
    }
}

fn tell(what: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(what) {
        debug!("systemd was not told: {e}");
    }
}
