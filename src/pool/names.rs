//! Look-up of host names. The system's resolver has no time limit, so each look-up runs on a thread
//! of its own, which a caller can leave behind at its deadline. Callers that want the same name at
//! the same time share one look-up.

use crate::sync::unpoison;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

type LookUp = fn(&str) -> io::Result<Vec<IpAddr>>;

pub(super) struct Names {
    pending: Arc<Mutex<HashMap<String, Arc<Pending>>>>,
    look_up: LookUp,
}

/// An error is kept as its kind and its text, so that each waiting thread can get a copy.
type Answer = Result<Vec<IpAddr>, (io::ErrorKind, String)>;

#[derive(Default)]
struct Pending {
    answer: Mutex<Option<Answer>>,
    answered: Condvar,
}

impl Default for Names {
    fn default() -> Self {
        Names::with(|name| {
            // The port is not used.
            let found = (name, 0).to_socket_addrs()?;
            Ok(found.map(|found: SocketAddr| found.ip()).collect())
        })
    }
}

impl Names {
    fn with(look_up: LookUp) -> Names {
        Names {
            pending: Arc::default(),
            look_up,
        }
    }

    /// Returns the addresses of a host, within `limit`.
    pub fn addresses(&self, name: &str, limit: Duration) -> io::Result<Vec<IpAddr>> {
        if let Ok(address) = name.parse() {
            return Ok(vec![address]);
        }
        let until = Instant::now() + limit;
        let pending = self.ask(name)?;
        let mut answer = unpoison(pending.answer.lock());
        loop {
            match &*answer {
                Some(Ok(found)) => return Ok(found.clone()),
                Some(Err((kind, what))) => return Err(io::Error::new(*kind, what.clone())),
                None => {}
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let what = format!("the system's resolver has no answer for {name:?} yet");
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
            answer = unpoison(pending.answered.wait_timeout(answer, left)).0;
        }
    }

    /// Returns the look-up under way for this name, or starts one.
    fn ask(&self, name: &str) -> io::Result<Arc<Pending>> {
        let mut all = unpoison(self.pending.lock());
        if let Some(pending) = all.get(name) {
            return Ok(Arc::clone(pending));
        }
        let pending = Arc::<Pending>::default();
        let (questions, asked, owned) = (
            Arc::clone(&self.pending),
            Arc::clone(&pending),
            name.to_owned(),
        );
        let look_up = self.look_up;
        thread::Builder::new()
            .name("millpond-resolver".into())
            .spawn(move || {
                let answer = look_up(&owned).map_err(|e| (e.kind(), format!("{owned:?}: {e}")));
                // From now on, the next caller starts a new look-up.
                unpoison(questions.lock()).remove(&owned);
                *unpoison(asked.answer.lock()) = Some(answer);
                asked.answered.notify_all();
            })?;
        all.insert(name.to_owned(), Arc::clone(&pending));
        Ok(pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_resolver_that_hangs_holds_one_thread_and_nobody_else() {
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        static GATE: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());
        let names = Names::with(|_| {
            ASKED.fetch_add(1, Ordering::SeqCst);
            let open = GATE.0.lock().unwrap();
            drop(GATE.1.wait_while(open, |open| !*open).unwrap());
            Ok(vec![IpAddr::from([127, 0, 0, 1])])
        });
        for _ in 0..20 {
            let error = names.addresses("db.example", 2 * MS).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(error.to_string().contains("db.example"), "{error}");
        }
        assert_eq!(ASKED.load(Ordering::SeqCst), 1);
        thread::scope(|scope| {
            let waits = scope.spawn(|| names.addresses("db.example", 20_000 * MS));
            *GATE.0.lock().unwrap() = true;
            GATE.1.notify_all();
            assert_eq!(waits.join().unwrap().unwrap().len(), 1);
        });
        // After the answer, the next call starts a new look-up.
        assert_eq!(names.addresses("db.example", 20_000 * MS).unwrap().len(), 1);
        assert!(names.pending.lock().unwrap().is_empty());
    }

    #[test]
    fn an_address_is_its_own_answer_and_an_unknown_name_is_named() {
        let names = Names::default();
        assert_eq!(
            names.addresses("::1", MS).unwrap(),
            [IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])]
        );
        let error = names
            .addresses("no.such.host.invalid", 20_000 * MS)
            .unwrap_err();
        assert!(
            error.to_string().contains("no.such.host.invalid"),
            "{error}"
        );
    }
}
