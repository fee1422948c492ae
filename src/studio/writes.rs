//! How every write runs: once for its key, with an answer that can be replayed.
//!
//! The key is the client's `Idempotency-Key`, or a generated one, so that the outcome of a lost
//! COMMIT can always be found out. Together with the write, the ledger stores a digest of the
//! request and the whole answer. The same request gets the same answer again; another request with
//! the same key is refused. Only successful writes are stored: a refusal rolls back, and leaves the
//! key free.
//!
//! While a request is at work on a key, others with that key wait in `keys` and hold no connection.
//! Across processes, one session of each may wait in the database.

use super::app::{Studio, before_deadline, finish_by};
use super::keys::key_in_use;
use super::refusals::problem_of;
use crate::call::{Keyed, Transaction};
use crate::error::{Error, Result};
use crate::hex::hex;
use crate::server::{Problem, Request, Response};
use log::error;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// The answer to a write that was done.
#[derive(Serialize, Deserialize)]
pub(super) struct Answer {
    pub status: u16,
    pub location: Option<String>,
    /// JSON.
    pub body: String,
}

/// An answer as the ledger stores it.
#[derive(Serialize, Deserialize)]
struct Kept {
    request: String,
    #[serde(flatten)]
    answer: Answer,
}

impl Answer {
    /// A thing that was created, and its path.
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
    /// Does `work` once. `content` is the body in its canonical form.
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
        // A key counts for one method and path.
        let scoped = format!("{} {}\n{key}", request.method, request.path);
        let digest = digest(&scoped, content);
        let give_up = wait_until(request);
        let _key_guard = if ours {
            None
        } else {
            Some(self.keys.wait_for(&scoped, give_up, request.token())?)
        };
        let mut about_to_commit = false;
        let done = catch_unwind(AssertUnwindSafe(|| {
            let wait = give_up.saturating_duration_since(Instant::now());
            let by = finish_by(request);
            let left = by.saturating_duration_since(Instant::now());
            request
                .call(&self.pool)
                .with_deadline(by)
                // A single statement may take all of it.
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
                // Otherwise the transaction was rolled back.
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
        error!("the ledger contains an answer in an unknown format");
        return Err(Problem::internal());
    };
    if kept.request != digest {
        return Err(Problem::of_kind(
            422,
            "key-reused",
            "this Idempotency-Key was used for another request; use a new one",
        ));
    }
    Ok(Response::from(kept.answer).header("Idempotency-Replayed", "true"))
}

/// How long to wait for another request with the same key: less than any call may take, so that
/// there is time left to say that it still runs.
fn wait_until(request: &Request) -> Instant {
    before_deadline(request, 5, Duration::from_millis(500))
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
            "Idempotency-Key must be sent once, with 1 to 255 printable ASCII characters",
        ));
    }
    Ok(Some(bare.to_owned()))
}

fn digest(scoped: &str, content: &str) -> String {
    hex(&Sha256::digest(format!("{scoped}\n{content}")))
}
