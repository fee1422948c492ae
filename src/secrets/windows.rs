//! A shell, its processes and its pipe, on Windows.

use super::more::More;
use std::io::{self, Read};
use std::os::windows::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

pub fn shell(line: &str) -> Command {
    let mut command = Command::new("cmd");
    command.arg("/C").raw_arg(line);
    command
}

pub fn kill_group(child: &mut Child) {
    let mut tree = Command::new("taskkill");
    tree.args(["/T", "/F", "/PID", &child.id().to_string()]);
    let _ = tree.stdout(Stdio::null()).stderr(Stdio::null()).status();
    let _ = child.kill();
}

/// A process of Windows leaves nothing to reap.
pub fn reap_group(_: &Child) {}

/// A pipe of Windows cannot be waited for with a limit, so a thread reads it. The thread ends
/// when the last process that holds the pipe has ended.
pub struct Output(Receiver<io::Result<Vec<u8>>>);

impl Output {
    pub fn of(child: &mut Child) -> io::Result<Output> {
        let pipe = child.stdout.take();
        let mut pipe = pipe.ok_or_else(|| io::Error::other("it has no pipe"))?;
        let (sender, parts) = sync_channel(1);
        let name = "millpond-secret-output".into();
        thread::Builder::new().name(name).spawn(move || {
            let mut part = [0; 8192];
            loop {
                let read = pipe.read(&mut part).map(|n| part[..n].to_vec());
                let end = !matches!(&read, Ok(bytes) if !bytes.is_empty());
                if sender.send(read).is_err() || end {
                    break;
                }
            }
        })?;
        Ok(Output(parts))
    }

    pub fn read(&mut self, into: &mut Vec<u8>, wait: Duration) -> io::Result<More> {
        match self.0.recv_timeout(wait) {
            Ok(part) => {
                into.extend_from_slice(&part?);
                Ok(More::Again)
            }
            Err(RecvTimeoutError::Timeout) => Ok(More::NotYet),
            Err(RecvTimeoutError::Disconnected) => Ok(More::End),
        }
    }
}
