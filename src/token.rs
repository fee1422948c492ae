//! Tokens: one thread ends the work of others that nobody needs any more.

use crate::sync::unpoison;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

/// Tells calls that nobody needs their result any more. Clones are handles to the same token, and
/// any thread may [`fire`](Token::fire) it, once.
///
/// A call with [`abandon_on`](crate::Pool::abandon_on) ends when its token is fired. Code that
/// computes for a long time can check [`is_fired`](Token::is_fired).
///
/// After a call that may write has succeeded with a token, the token ends no further calls, so that
/// work which belongs together is not left half done.
///
/// ```
/// use millpond::Token;
///
/// let token = Token::new();
/// let theirs = token.clone();
/// std::thread::spawn(move || theirs.fire()).join().unwrap();
/// assert!(token.is_fired());
/// ```
#[derive(Clone, Default)]
pub struct Token(Arc<Shared>);

#[derive(Default)]
struct Shared {
    fired: AtomicBool,
    watches: Mutex<Watches>,
    /// Threads in line that leave it when this is fired.
    waiting: AtomicUsize,
    /// A call has ended because of it.
    ended_a_call: AtomicBool,
    /// A call that may write was done.
    has_written: AtomicBool,
}

#[derive(Default)]
struct Watches {
    last: u64,
    all: Vec<(u64, Box<dyn Fn() + Send>)>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("fired", &self.is_fired())
            .finish_non_exhaustive()
    }
}

impl Token {
    /// A token that was not fired.
    pub fn new() -> Token {
        Token::default()
    }

    /// Ends the calls that are made with this token, now and from now on. Does not wait for them.
    pub fn fire(&self) {
        if self.0.fired.swap(true, Ordering::SeqCst) {
            return;
        }
        for (_, act) in &self.watches().all {
            act();
        }
    }

    /// Returns whether it was fired.
    pub fn is_fired(&self) -> bool {
        self.0.fired.load(Ordering::SeqCst)
    }

    /// Sleeps for a time, or until it is fired. Returns whether it was.
    pub fn sleep(&self, time: Duration) -> bool {
        let me = thread::current();
        let _watch = self.watch(move || me.unpark());
        // A time without an end is meant as such.
        let until = Instant::now().checked_add(time);
        while !self.is_fired() {
            match until.map(|at| at.saturating_duration_since(Instant::now())) {
                Some(left) if left.is_zero() => return false,
                Some(left) => thread::park_timeout(left),
                None => thread::park(),
            }
        }
        true
    }

    fn watches(&self) -> MutexGuard<'_, Watches> {
        unpoison(self.0.watches.lock())
    }

    /// Calls `act` when it is fired, unless the guard is dropped before; not if it was fired
    /// already. `act` runs on the thread that fires, must not block, and is never running once the
    /// guard is dropped.
    pub(crate) fn watch(&self, act: impl Fn() + Send + 'static) -> Watch<'_> {
        let mut watches = self.watches();
        watches.last += 1;
        let number = watches.last;
        watches.all.push((number, Box::new(act)));
        drop(watches);
        Watch {
            token: self,
            number,
        }
    }

    /// The flag that is set when it is fired.
    pub(crate) fn flag(&self) -> &AtomicBool {
        &self.0.fired
    }

    /// The number of threads in line that leave it when this is fired.
    pub(crate) fn waiting(&self) -> &AtomicUsize {
        &self.0.waiting
    }

    /// Notes that a call that may write was done: those after it are to be done as well.
    pub(crate) fn note_write(&self) {
        self.0.has_written.store(true, Ordering::SeqCst);
    }

    pub(crate) fn has_written(&self) -> bool {
        self.0.has_written.load(Ordering::SeqCst)
    }

    /// Notes that a call has ended because of it. Returns whether that is the first one.
    pub(crate) fn note_end(&self) -> bool {
        !self.0.ended_a_call.swap(true, Ordering::SeqCst)
    }

    /// Returns whether a call has ended because of it.
    #[cfg(feature = "server")]
    pub(crate) fn has_ended_a_call(&self) -> bool {
        self.0.ended_a_call.load(Ordering::SeqCst)
    }
}

/// A token is watched until this is dropped.
pub(crate) struct Watch<'t> {
    token: &'t Token,
    number: u64,
}

impl Drop for Watch<'_> {
    /// Waits for an action that is running.
    fn drop(&mut self) {
        let mut watches = self.token.watches();
        watches.all.retain(|(number, _)| *number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_watch_acts_once_and_not_after_it_was_dropped() {
        let (sender, acted) = mpsc::channel();
        let token = Token::new();
        let watch = |name: &'static str| {
            let sender = sender.clone();
            token.watch(move || sender.send(name).unwrap())
        };
        let (_kept, dropped) = (watch("kept"), watch("dropped"));
        drop(dropped);
        token.clone().fire();
        token.fire();
        let _too_late = watch("too late");
        drop(sender);
        assert_eq!(acted.try_iter().collect::<Vec<_>>(), ["kept"]);
    }

    #[test]
    fn a_sleep_ends_when_the_token_is_fired() {
        let token = Token::new();
        assert!(!token.sleep(Duration::from_millis(1)));
        let theirs = token.clone();
        let sleeper = thread::spawn(move || theirs.sleep(Duration::MAX));
        while token.watches().all.is_empty() {
            thread::yield_now();
        }
        token.fire();
        assert!(sleeper.join().unwrap());
        assert!(token.sleep(Duration::MAX));
    }
}
