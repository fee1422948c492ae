//! Makes a new connection ready for work before a thread waits for its answers.
//!
//! The process of the server behind it is new: it has seen no table yet, and on a busy machine it
//! is the last in the scheduler's queue. So what the pool uses most is prepared on it, and it
//! answers a few requests that do nothing.

use super::kept::Kept;
use super::life::Session;
use crate::pool::wire::Own;
use std::time::{Duration, Instant};

/// The most texts that are prepared, all in one round trip.
const TEXTS: usize = 32;
/// To prepare a text, the server locks its tables as a read does. A lock of another session is not
/// waited for: the text is prepared at its first use instead.
const BEGIN: [&str; 2] = ["BEGIN", "SET LOCAL lock_timeout = 10"];
/// How many texts may fail. Each takes the ones behind it with it, for which another round trip is
/// made.
const FAILURES: usize = 3;
/// How many requests it answers at most, and for how long new ones are sent.
const RUNS: usize = 20;
const RUNNING: Duration = Duration::from_millis(20);

impl Session {
    /// Warms it up, as long as no thread `is_waiting` for it. The wire is cut at the deadline.
    pub fn warm_up(
        &mut self,
        deadline: Instant,
        is_waiting: impl Fn() -> bool,
    ) -> Result<(), postgres::Error> {
        self.bounded(Some(deadline), |session| {
            for _ in 0..=FAILURES {
                if is_waiting() || session.prepare_the_most_used()? {
                    break;
                }
            }
            let until = Instant::now() + RUNNING;
            for _ in 0..RUNS {
                if is_waiting() || Instant::now() >= until {
                    break;
                }
                session.client.batch_execute("")?;
            }
            Ok(())
        })
    }

    /// Returns whether all of them are prepared. One that fails is forgotten.
    fn prepare_the_most_used(&mut self) -> Result<bool, postgres::Error> {
        let Some(statements) = &mut self.statements else {
            return Ok(true);
        };
        if self.shared.is_pooled() {
            return Ok(true);
        }
        let wire = &self.client.registration().tracked.wire.clone();
        let descriptions = &self.shared.descriptions;
        let most = TEXTS.min(self.shared.config.statement_cache);
        let mut waiting = Vec::new();
        for (text, described) in descriptions.most_used(most) {
            if statements.get(&text).is_none()
                && let Some(description) = described.description.clone()
                && wire.expect_prepare(description, false)
            {
                let statement = self.client.prepare(&text)?;
                if wire.holds_prepare() {
                    waiting.push((text, Kept::new(statement, described.facts)));
                }
            }
        }
        if waiting.is_empty() || !wire.hold_own(&BEGIN.map(Own::new), false) {
            wire.take_prepares();
            return Ok(true);
        }
        let done = self.client.execute_typed("ROLLBACK", &[]);
        wire.forget_own();
        let confirmed = wire.take_prepares();
        if let Some((text, _)) = waiting.get(confirmed.len()) {
            descriptions.forget(text);
        }
        // The least used first, so that they are the first to go.
        for ((text, kept), confirmed) in waiting.into_iter().zip(confirmed).rev() {
            match confirmed {
                true => statements.put(&text, kept),
                false => descriptions.forget(&text),
            }
        }
        match done {
            Ok(_) => Ok(true),
            // One of them has failed, and with it the transaction.
            Err(_) => self.client.batch_execute("ROLLBACK").map(|()| false),
        }
    }
}
