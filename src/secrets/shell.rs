//! Runs a command, bounded in time and output, and leaves neither a process of its group at the
//! limit nor a zombie. On Unix no thread reads its output, as a grandchild may hold the pipe open
//! long after the command has ended.

use super::more::More;
#[cfg(unix)]
use super::unix::{Output, kill_group, reap_group, shell};
use super::value::{Flaw, LONGEST, SecretError};
#[cfg(windows)]
use super::windows::{Output, kill_group, reap_group, shell};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often a command is looked at that is silent.
const LOOK: Duration = Duration::from_millis(20);
/// How long the rest of the output may take to arrive after the exit. A pipe of Unix has it already.
const AFTER_EXIT: Duration = Duration::from_millis(if cfg!(unix) { 0 } else { 200 });

/// Returns what the command printed if it exited with success. `unwanted` ends it early.
pub(super) fn run(
    line: &str,
    limit: Duration,
    unwanted: impl Fn() -> bool,
) -> Result<Vec<u8>, SecretError> {
    let mut child = shell(line)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // What it complains of is for whoever reads the program's own complaints. No error of ours
        // quotes it: it could quote the secret.
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(SecretError::not_run)?;
    let printed = follow(&mut child, limit, unwanted);
    // The pid is still its own, because it has not been reaped.
    if printed.is_err() && matches!(child.try_wait(), Ok(None)) {
        kill_group(&mut child);
        child.wait().map_err(SecretError::not_run)?;
    }
    reap_group(&child);
    printed
}

fn follow(
    child: &mut Child,
    limit: Duration,
    unwanted: impl Fn() -> bool,
) -> Result<Vec<u8>, SecretError> {
    let started = Instant::now();
    let mut output = Output::of(child).map_err(SecretError::not_run)?;
    let mut bytes = Vec::new();
    loop {
        // Asked before the read: what was printed before the exit is then in the pipe.
        let status = child.try_wait().map_err(SecretError::not_run)?;
        let left = limit.saturating_sub(started.elapsed());
        let wait = status.map_or(LOOK.min(left), |_| AFTER_EXIT);
        match output
            .read(&mut bytes, wait)
            .map_err(SecretError::not_run)?
        {
            More::Again if bytes.len() > LONGEST => {
                return Err(SecretError::printed(Flaw::TooLong));
            }
            More::Again if status.is_some() => continue,
            // Most commands exit at once after the end of their output.
            More::End if status.is_none() => sleep(wait.min(LOOK / 10)),
            _ => {}
        }
        match status {
            Some(status) if status.success() => return Ok(bytes),
            Some(status) => return Err(SecretError::Command { status }),
            None if left.is_zero() || unwanted() => return Err(SecretError::CommandTimeout(limit)),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    const NEVER: Duration = Duration::from_secs(3600);
    const SOON: Duration = Duration::from_millis(200);

    fn printed(line: &str) -> Result<String, SecretError> {
        run(line, NEVER, || false).map(|bytes| String::from_utf8(bytes).unwrap())
    }

    fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
        let started = Instant::now();
        while !holds() {
            assert!(started.elapsed() < Duration::from_secs(60), "never: {what}");
            sleep(Duration::from_millis(5));
        }
    }

    /// The pids in a file, one a line.
    fn pids(file: &Path) -> Vec<String> {
        let text = fs::read_to_string(file).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// A grandchild's zombie is a matter of init, which not every container has.
    fn runs(pid: &str) -> bool {
        fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().starts_with(" Z"))
    }

    fn is_known(pid: &str) -> bool {
        Path::new(&format!("/proc/{pid}")).exists()
    }

    #[test]
    fn what_is_printed_is_returned_whole() {
        assert_eq!(printed("echo a; echo b").unwrap(), "a\nb\n");
        assert_eq!(printed("true").unwrap(), "");
        assert_eq!(
            printed("echo noise >&2; cat").unwrap(),
            "",
            "stdin is empty"
        );
        let much = printed("head -c 65536 /dev/zero | tr '\\0' x").unwrap();
        assert_eq!(much.len(), LONGEST);
        assert_eq!(
            printed("echo a >/dev/stdout; sleep 0.1; echo b").unwrap(),
            "a\nb\n"
        );
    }

    #[test]
    fn output_closed_early_is_not_the_end_of_the_command() {
        let error = printed("echo a; exec >&-; sleep 0.1; exit 3").unwrap_err();
        assert_eq!(
            error.to_string(),
            "the secret's command failed (exit status: 3)"
        );
    }

    #[test]
    fn a_failure_tells_the_status_and_no_output() {
        for (line, status) in [
            ("echo hunter2; echo hunter2 >&2; exit 7", "exit status: 7"),
            ("no-such-program-hunter2", "exit status: 127"),
            ("kill -9 $$ # hunter2", "signal: 9"),
        ] {
            let error = printed(line).unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(text.contains(status) && !text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn endless_output_ends_the_command() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pids");
        for line in ["exec yes", "yes; true", "yes & wait"] {
            let line = format!("cd {}; echo $$ >>pids; {line}", dir.path().display());
            let error = printed(&line).unwrap_err();
            assert!(error.to_string().contains("longer than 64 KiB"), "{error}");
        }
        eventually("all have ended", || {
            !pids(&file).iter().any(|pid| runs(pid))
        });
    }

    #[test]
    fn a_grandchild_that_prints_for_ever_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pids");
        // How much of it is there when the shell exits is a matter of luck.
        let _ = printed(&format!("yes & echo $! >{}", file.display()));
        let pid = pids(&file).remove(0);
        eventually("the closed pipe ends it", || !runs(&pid));
    }

    #[test]
    fn a_grandchild_that_holds_the_pipe_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pids");
        let line = format!("sleep 3600 & echo $! >{}; echo pw", file.display());
        assert_eq!(printed(&line).unwrap(), "pw\n");
        let pid = pids(&file).remove(0);
        assert!(runs(&pid), "what it leaves behind is left alone");
        printed(&format!("kill {pid}")).unwrap();
    }

    #[test]
    fn at_the_limit_the_whole_group_is_killed_and_reaped() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pids");
        let written = file.display();
        for line in [
            "wait",
            "sleep 3600; true",
            "exec >&-; wait",
            "while :; do echo; sleep 0.01; done",
        ] {
            let _ = fs::remove_file(&file);
            let line = format!(
                "trap '' TERM HUP; sleep 3600 & echo $! >{written}.new; sh -c 'sleep 3600 & echo $! >>{written}.new; wait' & \
                 while test $(wc -l <{written}.new) -lt 2; do sleep 0.01; done; echo $$ >>{written}.new; mv {written}.new {written}; {line}"
            );
            // The limit passes once the processes are there, however slow the machine.
            let error = run(&line, NEVER, || file.exists()).unwrap_err();
            assert!(matches!(error, SecretError::CommandTimeout(_)), "{error:?}");
            let pids = pids(&file);
            assert_eq!(pids.len(), 3);
            assert!(!is_known(&pids[2]), "the shell is no zombie");
            eventually("all are gone", || !pids.iter().any(|pid| runs(pid)));
        }
    }

    #[test]
    fn the_limit_is_kept() {
        for line in [
            "sleep 3600",
            "yes | while read a; do echo; sleep 0.01; done",
        ] {
            let started = Instant::now();
            let error = run(line, SOON, || false).unwrap_err();
            assert_eq!(
                error.to_string(),
                "the secret's command was killed after 200ms"
            );
            assert!(started.elapsed() >= SOON);
            assert!(started.elapsed() < Duration::from_secs(60));
        }
    }

    #[test]
    fn a_shell_that_has_ended_leaves_no_zombie() {
        let pid = printed("echo $$").unwrap();
        assert!(!is_known(pid.trim()));
        let pid = printed("sleep 3600 & echo $$; kill $!").unwrap();
        assert!(!is_known(pid.trim()));
    }
}
