//! A shell, its process group and its pipe, on Unix.

use super::more::More;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub fn shell(line: &str) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(line).process_group(0);
    command
}

pub fn kill_group(child: &mut Child) {
    // Fails only if the group has ended by itself.
    let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
}

/// The groups of commands that have been reaped, and have left processes behind that are ours now.
static LEFT: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Reaps what the command's group, and those before, have left behind and has ended. As process 1
/// of a container the program inherits it; anywhere else there is none. The child itself must have
/// been reaped.
pub fn reap_group(child: &Child) {
    let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    left.push(Pid::from_raw(child.id().cast_signed()));
    left.retain(|group| has_children(*group));
}

/// Reaps those that have ended. True if others are running: then no other group has this number.
fn has_children(group: Pid) -> bool {
    let of_group = Pid::from_raw(-group.as_raw());
    loop {
        match waitpid(of_group, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return true,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}

pub struct Output(ChildStdout);

impl Output {
    pub fn of(child: &mut Child) -> io::Result<Output> {
        let pipe = child.stdout.take();
        pipe.map(Output)
            .ok_or_else(|| io::Error::other("it has no pipe"))
    }

    pub fn read(&mut self, into: &mut Vec<u8>, wait: Duration) -> io::Result<More> {
        let timeout = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) => return Ok(More::NotYet),
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(More::Again),
            Err(e) => return Err(e.into()),
        }
        let mut part = [0; 8192];
        match self.0.read(&mut part) {
            Ok(0) => Ok(More::End),
            Ok(n) => {
                into.extend_from_slice(&part[..n]);
                Ok(More::Again)
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(More::Again),
            Err(e) => Err(e),
        }
    }
}
