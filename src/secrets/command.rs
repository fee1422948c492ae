//! A secret that a command prints. At most one thread runs the command, and it is none of the
//! callers': each waits until its own deadline only, and a run that comes too late for one of them
//! serves the next. What to do next is decided in [`State::step`], which is pure.

use super::shell;
use super::trouble::Trouble;
use super::value::{Flaw, SecretError, fit, without_newline};
use crate::sync::{Arc, Condvar, Mutex, caught, unpoison};
use std::io;
use std::thread;
use std::time::{Duration, Instant};

/// How long a value is cached that says nothing of its life.
const CACHED: Duration = Duration::from_secs(60);
/// The longest time that a value is cached, whatever it says.
const MOST_CACHED: Duration = Duration::from_secs(12 * 60 * 60);
/// The pause between two runs: rejected logins must not become a storm on a service for tokens.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the close of the last pool waits for the end of a run, which is killed.
const LONGEST_END: Duration = Duration::from_millis(500);

pub(super) struct SecretCommand {
    line: String,
    limit: Duration,
    pause: Duration,
    state: Mutex<State>,
    run_ended: Condvar,
    trouble: Trouble,
}

#[derive(Default)]
struct State {
    /// The pools that use it; once the last one has closed, nobody needs what a run prints.
    users: usize,
    is_deserted: bool,
    running: bool,
    last_run: Option<Run>,
    value: Option<Value>,
}

struct Run {
    ended: Instant,
    error: Option<SecretError>,
}

#[derive(Debug)]
struct Value {
    text: Arc<str>,
    fresh_until: Instant,
    /// Until when it may stand in while the command runs, or fails; `None` = no end is known.
    valid_until: Option<Instant>,
    /// It serves one caller.
    once: bool,
}

#[derive(Debug)]
enum Step {
    Give(Arc<str>),
    Fail(SecretError),
    /// The refused value is still the only one.
    Unchanged,
    /// Until the run ends, or until the moment.
    Wait(Option<Instant>),
    Run,
}

impl State {
    fn step(&mut self, now: Instant, pause: Duration, refused: Option<&str>) -> Step {
        if let Some(value) = &self.value
            && now < value.fresh_until
            && refused != Some(&*value.text)
        {
            let text = Arc::clone(&value.text);
            if value.once {
                self.value = None;
            }
            return Step::Give(text);
        }
        if self.running {
            return match &self.value {
                // It spares its users the wait for its successor.
                Some(old) if refused.is_none() && old.valid_until.is_some_and(|end| now < end) => {
                    Step::Give(Arc::clone(&old.text))
                }
                _ => Step::Wait(None),
            };
        }
        let last = self.last_run.as_ref();
        let Some(run) = last.filter(|run| now < run.ended + pause) else {
            return Step::Run;
        };
        match &run.error {
            _ if refused.is_some() => Step::Unchanged,
            // Its value served another caller.
            None => Step::Wait(Some(run.ended + pause)),
            Some(error) => match &self.value {
                Some(old) if old.valid_until.is_none_or(|end| now < end) => {
                    Step::Give(Arc::clone(&old.text))
                }
                _ => Step::Fail(error.clone()),
            },
        }
    }

    fn record(&mut self, ended: Instant, result: Result<Value, SecretError>) {
        self.running = false;
        let error = match result {
            Ok(value) => {
                self.value = Some(value);
                None
            }
            Err(error) => Some(error),
        };
        self.last_run = Some(Run { ended, error });
    }
}

impl SecretCommand {
    pub fn new(line: String, limit: Duration) -> Arc<SecretCommand> {
        SecretCommand::with_pause(line, limit, PAUSE)
    }

    fn with_pause(line: String, limit: Duration, pause: Duration) -> Arc<SecretCommand> {
        Arc::new(SecretCommand {
            line,
            limit,
            pause,
            state: Mutex::default(),
            run_ended: Condvar::new(),
            trouble: Trouble::default(),
        })
    }

    pub fn current(self: &Arc<Self>, until: Instant) -> Result<Arc<str>, SecretError> {
        // Without a refused value, no step is `Unchanged`.
        self.obtain(until, None)?.ok_or(SecretError::Deadline)
    }

    pub fn newer_than(self: &Arc<Self>, refused: &str, until: Instant) -> Option<Arc<str>> {
        self.obtain(until, Some(refused)).ok().flatten()
    }

    pub fn may_have_changed(&self, refused: &str) -> bool {
        let state = unpoison(self.state.lock());
        let other = state.value.as_ref().is_some_and(|v| *v.text != *refused);
        let last = state.last_run.as_ref();
        let rested = last.is_none_or(|run| run.ended.elapsed() >= self.pause);
        other || (rested && !state.running)
    }

    fn obtain(
        self: &Arc<Self>,
        until: Instant,
        refused: Option<&str>,
    ) -> Result<Option<Arc<str>>, SecretError> {
        let mut state = unpoison(self.state.lock());
        loop {
            let now = Instant::now();
            let wake = match state.step(now, self.pause, refused) {
                Step::Give(value) => return Ok(Some(value)),
                Step::Fail(error) => return Err(error),
                Step::Unchanged => return Ok(None),
                _ if now >= until => return Err(SecretError::Deadline),
                Step::Wait(moment) => moment.map_or(until, |moment| moment.min(until)),
                Step::Run => {
                    self.start(&mut state);
                    continue;
                }
            };
            let waited = self.run_ended.wait_timeout(state, wake - now);
            state = unpoison(waited).0;
        }
    }

    fn start(self: &Arc<Self>, state: &mut State) {
        let command = Arc::clone(self);
        let name = "millpond-secret".into();
        let started = thread::Builder::new().name(name).spawn(move || {
            let result = caught(|| command.run());
            let result =
                result.unwrap_or_else(|panic| Err(SecretError::not_run(io::Error::other(panic))));
            match &result {
                _ if command.is_unwanted() => {}
                Ok(_) => command.trouble.ended(),
                Err(error) => command.trouble.began(error),
            }
            unpoison(command.state.lock()).record(Instant::now(), result);
            command.run_ended.notify_all();
        });
        match started {
            Ok(_) => state.running = true,
            Err(e) => state.record(Instant::now(), Err(SecretError::not_run(e))),
        }
    }

    /// Returns whether the pool is gone, so that the thread that runs the command alone holds it, or
    /// has closed.
    fn is_unwanted(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) == 1 || unpoison(self.state.lock()).is_deserted
    }

    pub fn begin_use(&self) {
        let mut state = unpoison(self.state.lock());
        state.users += 1;
        state.is_deserted = false;
    }

    /// Ends a pool's use. After the last one, a run is ended too, and waited for: the program may be
    /// about to exit, and would leave it behind.
    pub fn end_use(&self) {
        let until = Instant::now() + LONGEST_END;
        let mut state = unpoison(self.state.lock());
        state.users = state.users.saturating_sub(1);
        state.is_deserted = state.users == 0;
        while state.is_deserted && state.running {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = unpoison(self.run_ended.wait_timeout(state, left)).0;
        }
    }

    fn run(self: &Arc<Self>) -> Result<Value, SecretError> {
        let output = shell::run(&self.line, self.limit, || self.is_unwanted())?;
        parse(&output, Instant::now()).map_err(SecretError::printed)
    }
}

fn parse(output: &[u8], now: Instant) -> Result<Value, Flaw> {
    let output = fit(without_newline(output))?;
    let (first, second) = match output.split_once('\n') {
        None => (output, None),
        Some((first, rest)) => (first.strip_suffix('\r').unwrap_or(first), Some(rest)),
    };
    fit(first.as_bytes())?;
    let value = |cached: Duration, valid: Option<Duration>| Value {
        text: first.into(),
        fresh_until: now + cached.min(MOST_CACHED),
        valid_until: valid.map(|life| now + life.min(MOST_CACHED)),
        once: false,
    };
    Ok(match (second, life_of_rds_token(first)) {
        (Some(line), _) => match line.strip_prefix("expires_in=").and_then(seconds) {
            None => return Err(Flaw::MoreLines),
            // It waits for its caller no longer than that.
            Some(Duration::ZERO) => Value {
                once: true,
                ..value(PAUSE, Some(Duration::ZERO))
            },
            Some(life) => value(life, Some(life)),
        },
        (None, Some(life)) => value(life.saturating_sub(life / 4), Some(life)),
        (None, None) => value(CACHED, None),
    })
}

fn seconds(digits: &str) -> Option<Duration> {
    // `parse` alone would accept a sign.
    let plain = digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().ok().map(Duration::from_secs))?
}

/// How long a token of AWS RDS is valid: it says so itself, percent-encoded if it is part of a URL.
fn life_of_rds_token(text: &str) -> Option<Duration> {
    let (_, rest) = text.split_once("X-Amz-Expires")?;
    let rest = ["=", "%3D", "%3d"]
        .iter()
        .find_map(|equals| rest.strip_prefix(equals))?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    seconds(digits).filter(|life| !life.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn parsed(output: &str, now: Instant) -> Value {
        parse(output.as_bytes(), now).unwrap()
    }

    #[test]
    fn the_output_says_how_long_it_is_cached() {
        let now = Instant::now();
        let token = "db:5432/?Action=connect&X-Amz-Expires=900&X-Amz-Signature=0a";
        let url = "postgres://a:b%3FX-Amz-Expires%3D900%26c@db/a";
        for (output, cached, valid) in [
            ("pw".to_owned(), 60, None),
            ("pw\n".into(), 60, None),
            ("pw\r\nexpires_in=5\r\n".into(), 5, Some(5)),
            ("pw\nexpires_in=99999999".into(), 12 * 3600, Some(12 * 3600)),
            (format!("{token}\n"), 675, Some(900)),
            (format!("{url}\n"), 675, Some(900)),
            (format!("{token}\nexpires_in=10\n"), 10, Some(10)),
            ("X-Amz-Expires=x".into(), 60, None),
            ("X-Amz-Expires=0".into(), 60, None),
            (
                format!("X-Amz-Expires={}", u64::MAX),
                12 * 3600,
                Some(12 * 3600),
            ),
        ] {
            let value = parsed(&output, now);
            assert_eq!(Some(&*value.text), output.lines().next());
            assert_eq!(value.fresh_until, now + S * cached, "{output}");
            assert_eq!(value.valid_until, valid.map(|s| now + S * s), "{output}");
            assert!(!value.once);
        }
        assert!(parsed("pw\nexpires_in=0\n", now).once);
    }

    #[test]
    fn output_that_is_not_understood_is_refused() {
        for (output, flaw) in [
            ("", Flaw::Empty),
            ("\n", Flaw::Empty),
            ("\nexpires_in=5", Flaw::Empty),
            ("pw\0", Flaw::Nul),
            ("pw\n\n", Flaw::MoreLines),
            ("pw\nexpires_in=", Flaw::MoreLines),
            ("pw\nexpires_in=+5", Flaw::MoreLines),
            ("pw\nexpires_in=5m", Flaw::MoreLines),
            ("pw\nexpires_in=99999999999999999999", Flaw::MoreLines),
            ("pw\nexpires_in=5\nmore", Flaw::MoreLines),
            ("warning: old version\npw", Flaw::MoreLines),
        ] {
            let got = parse(output.as_bytes(), Instant::now()).unwrap_err();
            assert_eq!(got, flaw, "{output:?}");
        }
        let text = SecretError::printed(Flaw::MoreLines).to_string();
        assert!(text.contains("expires_in=SECONDS"), "{text}");
    }

    /// One letter for a step: g(ive), f(ail), u(nchanged), w(ait), W(ait until a moment), r(un).
    fn letter(step: &Step) -> char {
        match step {
            Step::Give(_) => 'g',
            Step::Fail(_) => 'f',
            Step::Unchanged => 'u',
            Step::Wait(None) => 'w',
            Step::Wait(Some(_)) => 'W',
            Step::Run => 'r',
        }
    }

    #[test]
    fn the_steps_are_a_table() {
        let start = Instant::now();
        let failed = Some(SecretError::Deadline);
        let token = "pw?X-Amz-Expires=400";
        // The output of the run at second 0; when another failed; whether one runs; the refused
        // value; then the steps at these seconds.
        for (output, failed_at, running, refused, steps) in [
            ("", None, false, None, &[(0, 'r')][..]),
            ("", None, true, None, &[(0, 'w')]),
            ("", Some(0), false, None, &[(0, 'f'), (1, 'r')]),
            ("", Some(0), false, Some("a"), &[(0, 'u'), (1, 'r')]),
            ("pw", None, false, None, &[(0, 'g'), (59, 'g'), (60, 'r')]),
            ("pw", None, true, None, &[(59, 'g'), (60, 'w')]),
            ("pw", None, false, Some("pw"), &[(0, 'u'), (1, 'r')]),
            ("pw", None, true, Some("pw"), &[(0, 'w')]),
            ("pw", None, false, Some("older"), &[(0, 'g'), (59, 'g')]),
            // A value with no known end stands in for a failure, but not for a run.
            ("pw", Some(90), false, None, &[(90, 'g'), (91, 'r')]),
            ("pw", Some(90), true, None, &[(92, 'w')]),
            // A token does both until its end.
            (token, None, false, None, &[(299, 'g'), (300, 'r')]),
            (token, None, true, None, &[(399, 'g'), (400, 'w')]),
            (token, None, true, Some(token), &[(310, 'w')]),
            (token, Some(398), false, None, &[(398, 'g'), (399, 'r')]),
            (token, Some(400), false, None, &[(400, 'f'), (401, 'r')]),
            (
                "pw\nexpires_in=9",
                Some(9),
                false,
                None,
                &[(8, 'g'), (9, 'f')],
            ),
            // Who comes second waits for a run of its own.
            (
                "pw\nexpires_in=0",
                None,
                false,
                None,
                &[(0, 'g'), (0, 'W'), (1, 'r')],
            ),
            ("pw\nexpires_in=0", None, false, None, &[(1, 'r')]),
            (
                "pw\nexpires_in=0",
                None,
                false,
                Some("pw"),
                &[(0, 'u'), (1, 'r')],
            ),
        ] {
            let mut state = State::default();
            if !output.is_empty() {
                state.record(start, Ok(parsed(output, start)));
            }
            if let Some(at) = failed_at {
                state.record(start + S * at, Err(failed.clone().unwrap()));
            }
            state.running = running;
            for (second, wanted) in steps {
                let step = state.step(start + S * *second, PAUSE, refused);
                assert_eq!(
                    letter(&step),
                    *wanted,
                    "{output:?} {failed_at:?} {running} {refused:?} {second}"
                );
            }
        }
    }
}

#[cfg(all(test, unix))]
mod run_tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;
    use std::sync::Barrier;
    use tempfile::TempDir;

    const NEVER: Duration = Duration::from_secs(3600);

    /// A command that notes each of its runs, and the file of the notes.
    struct Counted {
        dir: TempDir,
        command: Arc<SecretCommand>,
    }

    impl Counted {
        fn new(rest: &str, pause: Duration) -> Counted {
            let dir = tempfile::tempdir().unwrap();
            let line = format!("cd {} && echo >>runs && {rest}", dir.path().display());
            let command = SecretCommand::with_pause(line, NEVER, pause);
            Counted { dir, command }
        }

        fn at(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn runs(&self) -> usize {
            fs::read(self.at("runs")).map_or(0, |notes| notes.len())
        }
    }

    fn late() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
        let end = late();
        while !holds() {
            assert!(Instant::now() < end, "never: {what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn of_twenty_threads_one_runs_the_command() {
        let counted = Counted::new("while test ! -e go; do sleep 0.01; done; echo pw", NEVER);
        let barrier = Barrier::new(21);
        thread::scope(|scope| {
            let ask = || {
                barrier.wait();
                counted.command.current(late()).unwrap()
            };
            let threads: Vec<_> = (0..20).map(|_| scope.spawn(ask)).collect();
            barrier.wait();
            eventually("the command runs", || counted.runs() > 0);
            fs::write(counted.at("go"), "").unwrap();
            for thread in threads {
                assert_eq!(&*thread.join().unwrap(), "pw");
            }
        });
        assert_eq!(counted.runs(), 1);
        let alone = || Arc::strong_count(&counted.command) == 1;
        eventually("the thread has ended", alone);
    }

    #[test]
    fn a_caller_waits_no_longer_than_its_deadline_and_the_run_serves_the_next() {
        let counted = Counted::new("while test ! -e go; do sleep 0.01; done; echo pw", NEVER);
        let short = Instant::now() + Duration::from_millis(50);
        let error = counted.command.current(short).unwrap_err();
        assert!(matches!(error, SecretError::Deadline));
        assert_eq!(counted.command.newer_than("pw", Instant::now()), None);
        fs::write(counted.at("go"), "").unwrap();
        assert_eq!(&*counted.command.current(late()).unwrap(), "pw");
        assert_eq!(counted.runs(), 1);
    }

    #[test]
    fn refused_logins_do_not_run_it_more_than_once_in_the_pause() {
        let counted = Counted::new("echo pw", NEVER);
        assert!(counted.command.may_have_changed("pw"));
        assert_eq!(&*counted.command.current(late()).unwrap(), "pw");
        for _ in 0..100 {
            assert_eq!(counted.command.newer_than("pw", late()), None);
            assert!(!counted.command.may_have_changed("pw"));
        }
        assert_eq!(
            counted.command.newer_than("old", late()).as_deref(),
            Some("pw")
        );
        assert!(counted.command.may_have_changed("old"));
        assert_eq!(counted.runs(), 1);
    }

    #[test]
    fn after_the_pause_a_refused_value_is_replaced() {
        let counted = Counted::new("cat value", Duration::from_millis(50));
        fs::write(counted.at("value"), "old\n").unwrap();
        assert_eq!(&*counted.command.current(late()).unwrap(), "old");
        fs::write(counted.at("value"), "new\n").unwrap();
        eventually("it may have changed", || {
            counted.command.may_have_changed("old")
        });
        assert_eq!(
            counted.command.newer_than("old", late()).as_deref(),
            Some("new")
        );
        assert_eq!(&*counted.command.current(late()).unwrap(), "new");
        assert_eq!(counted.runs(), 2);
    }

    #[test]
    fn a_failure_is_told_to_all_and_not_repeated_within_the_pause() {
        let counted = Counted::new("exit 3", NEVER);
        for _ in 0..20 {
            let error = counted.command.current(late()).unwrap_err();
            assert!(matches!(error, SecretError::Command { .. }), "{error:?}");
        }
        assert_eq!(counted.runs(), 1);
    }

    #[test]
    fn a_value_for_one_caller_is_given_to_one() {
        let counted = Counted::new(
            "wc -l <runs && echo expires_in=0",
            Duration::from_millis(20),
        );
        let ask = || counted.command.current(late()).unwrap().trim().to_owned();
        let mut values: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..5).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        values.sort();
        values.dedup();
        assert_eq!(values.len(), 5);
    }

    #[test]
    fn a_command_whose_pool_is_gone_ends() {
        let Counted { dir, command } = Counted::new("echo $$ >pid; mv pid id; sleep 3600", NEVER);
        assert!(
            command
                .current(Instant::now() + Duration::from_millis(1))
                .is_err()
        );
        eventually("it runs", || dir.path().join("id").exists());
        let gone = Arc::downgrade(&command);
        drop(command);
        eventually("the thread has ended", || gone.strong_count() == 0);
        let pid = fs::read_to_string(dir.path().join("id")).unwrap();
        let signal = format!("kill -0 {}", pid.trim());
        let lives = std::process::Command::new("sh")
            .args(["-c", &signal])
            .output();
        assert!(!lives.unwrap().status.success());
    }
}
