//! A shell, its process group and its pipe, on Unix.

use super::more::More;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command};
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
