//! The door that every write goes through: it is done once for its key, and its answer can be had again.
//!
//! The key is the client's `Idempotency-Key`, or one of our own, so that what became of a lost COMMIT can always be found
//! out. With the write, the ledger keeps a digest of the request and the whole answer; whoever comes again with the same
//! request gets that answer, with another request under the same key a refusal. Only what succeeded is kept: a refusal
//! rolls back, and leaves the key free.
//!
//! Those who come while the first is still at it wait here, on a table of running keys, and hold no connection; of
//! several processes one session each may wait in the database.

use super::Studio;
use super::refusals::problem_of;
use crate::call::{Keyed, Transaction};
use crate::error::{Error, Result};
use crate::hex::hex;
use crate::server::{Problem, Request, Response};
use log::error;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What is answered to a write that was done.
#[derive(Serialize, Deserialize)]
pub(super) struct Answer {
    pub status: u16,
    pub location: Option<String>,
    /// JSON.
    pub body: String,
}

/// The same, as the ledger keeps it.
#[derive(Serialize, Deserialize)]
struct Kept {
    request: String,
    #[serde(flatten)]
    answer: Answer,
}

impl Answer {
    /// A thing that was made, and where it is.
    pub fn created(location: String, thing: &impl Serialize) -> Result<Answer> {
        Answer::with(201, Some(location), thing)
    }

    pub fn ok(thing: &impl Serialize) -> Result<Answer> {
        Answer::with(200, None, thing)
    }

    pub fn with(status: u16, location: Option<String>, thing: &impl Serialize) -> Result<Answer> {
        let body = serde_json::to_string(thing).map_err(Error::application)?;
        Ok(Answer {
            status,
            location,
            body,
        })
    }
}

impl From<Answer> for Response {
    fn from(answer: Answer) -> Response {
        let response = Response::bytes(answer.status, "application/json", answer.body);
        match answer.location {
            Some(location) => response.header("Location", location),
            None => response,
        }
    }
}

impl Studio {
    /// Does `work` once. `content` is the body in the form in which equal requests are equal.
    pub(super) fn write(
        &self,
        request: &Request,
        content: &str,
        mut work: impl FnMut(&mut Transaction<'_>) -> Result<Answer>,
    ) -> Result<Response, Problem> {
        let (key, ours) = match key_of(request)? {
            Some(key) => (key, false),
            None => (request.fallback_key.clone(), true),
        };
        // A key is for one method and path.
        let scoped = format!("{} {}\n{key}", request.method, request.path);
        let digest = digest(&scoped, content);
        let give_up = wait_until(request);
        let _turn = if ours {
            None
        } else {
            Some(self.running.wait_for_turn(&scoped, give_up)?)
        };
        let mut about_to_commit = false;
        let done = catch_unwind(AssertUnwindSafe(|| {
            let wait = give_up.saturating_duration_since(Instant::now());
            let by = self.finish_by(request);
            let left = by.saturating_duration_since(Instant::now());
            self.pool
                .call()
                .with_deadline(by)
                // All of it is one statement's, if it likes.
                .with_timeout(left.max(Duration::from_millis(1)))
                .with_key_wait(wait.max(Duration::from_millis(1)))
                .transaction_with_key(&scoped, |tx| {
                    about_to_commit = false;
                    let kept = Kept {
                        request: digest.clone(),
                        answer: work(tx)?,
                    };
                    tx.keep_answer(serde_json::to_vec(&kept).map_err(Error::application)?)?;
                    about_to_commit = true;
                    Ok(kept.answer)
                })
        }));
        match done {
            Ok(Ok(Keyed::Done(answer))) => Ok(answer.into()),
            Ok(Ok(Keyed::AlreadyDone(kept))) => replay(&digest, kept),
            Ok(Err(Error::KeyInUse)) => Err(key_in_use()),
            Ok(Err(e)) if e.is_outcome_unknown() => {
                Err(Problem::from(e).with("idempotencyKey", key))
            }
            Ok(Err(e)) => Err(problem_of(e)),
            Err(_) => {
                error!(
                    "{} {} panicked, id={}",
                    request.method, request.path, request.id
                );
                // Before that, the transaction was rolled back.
                Err(match about_to_commit {
                    true => Problem::outcome_unknown().with("idempotencyKey", key),
                    false => Problem::internal(),
                })
            }
        }
    }
}

fn replay(digest: &str, kept: Option<Vec<u8>>) -> Result<Response, Problem> {
    let kept = kept.and_then(|bytes| serde_json::from_slice::<Kept>(&bytes).ok());
    let Some(kept) = kept else {
        error!("the ledger holds an answer that is none of ours");
        return Err(Problem::internal());
    };
    if kept.request != digest {
        return Err(Problem::of_kind(
            422,
            "key-reused",
            "this Idempotency-Key was used for another request; take a new one",
        ));
    }
    Ok(Response::from(kept.answer).header("Idempotency-Replayed", "true"))
}

/// How long another request with the same key is waited for: less than any call may take, so that there is time left
/// to say that it still runs.
fn wait_until(request: &Request) -> Instant {
    let left = request.deadline.saturating_duration_since(Instant::now());
    request.deadline - (left / 5).min(Duration::from_millis(500))
}

fn key_in_use() -> Problem {
    let detail = "a request with this Idempotency-Key is still running";
    Problem::of_kind(409, "key-in-use", detail).header("Retry-After", "1")
}

/// 1 to 255 printable ASCII characters, bare or in double quotes.
fn key_of(request: &Request) -> Result<Option<String>, Problem> {
    let given = |name: &&(String, String)| name.0.eq_ignore_ascii_case("Idempotency-Key");
    let mut all = request.headers.iter().filter(given);
    let Some((_, key)) = all.next() else {
        return Ok(None);
    };
    let key = key.trim();
    let bare = key
        .strip_prefix('"')
        .and_then(|k| k.strip_suffix('"'))
        .unwrap_or(key);
    let printable = bare.bytes().all(|b| (b' '..=b'~').contains(&b));
    if !(1..=255).contains(&bare.len()) || !printable || all.next().is_some() {
        return Err(Problem::plain(
            400,
            "Idempotency-Key takes 1 to 255 printable ASCII characters, once",
        ));
    }
    Ok(Some(bare.to_owned()))
}

fn digest(scoped: &str, content: &str) -> String {
    hex(&Sha256::digest(format!("{scoped}\n{content}")))
}

/// The keys that are being worked on.
#[derive(Default)]
pub(super) struct Running {
    state: Mutex<State>,
    ended: Condvar,
    /// Each of those who wait has a worker: some must be left for others.
    most_waiting: usize,
}

#[derive(Default)]
struct State {
    keys: HashSet<String>,
    waiting: usize,
}

/// The right to work on a key; the next one's when this is dropped.
struct Turn<'r> {
    running: &'r Running,
    key: String,
}

impl Running {
    pub fn new(most_waiting: usize) -> Running {
        Running {
            state: Mutex::default(),
            ended: Condvar::new(),
            most_waiting,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for_turn(&self, key: &str, give_up: Instant) -> Result<Turn<'_>, Problem> {
        let mut state = self.lock();
        while state.keys.contains(key) {
            let left = give_up.saturating_duration_since(Instant::now());
            if left.is_zero() || state.waiting >= self.most_waiting {
                return Err(key_in_use());
            }
            state.waiting += 1;
            state = self
                .ended
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            state.waiting -= 1;
        }
        state.keys.insert(key.to_owned());
        Ok(Turn {
            running: self,
            key: key.to_owned(),
        })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.running.lock().keys.remove(&self.key);
        self.running.ended.notify_all();
    }
}
