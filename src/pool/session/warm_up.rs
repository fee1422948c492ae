//! Makes a new connection ready for work before anybody waits for its answers.
//!
//! The process of the server behind it is new: it has seen no table yet, and on a busy machine it
//! is the last in the scheduler's queue. So what the pool uses most is prepared on it, and it
//! answers a few requests that do nothing.

use super::kept::Kept;
use super::life::Session;
use std::time::{Duration, Instant};

/// The most texts that are prepared, all in one round trip.
const TEXTS: usize = 32;
/// To prepare a text, the server locks its tables as a read does. Somebody else's lock is not
/// waited for longer than this: the texts are prepared at their first use instead.
const BEGIN: [&str; 2] = ["BEGIN", "SET LOCAL lock_timeout = 100"];
/// How many requests it answers at most, and for how long new ones are sent.
const RUNS: usize = 20;
const RUNNING: Duration = Duration::from_millis(20);

impl Session {
    /// Warms it up. The wire is cut at the deadline.
    pub fn warm_up(&mut self, deadline: Instant) -> Result<(), postgres::Error> {
        self.bounded(Some(deadline), |session| {
            session.prepare_the_most_used()?;
            let until = Instant::now() + RUNNING;
            for _ in 0..RUNS {
                if Instant::now() >= until {
                    break;
                }
                session.client.batch_execute("")?;
            }
            Ok(())
        })
    }

    fn prepare_the_most_used(&mut self) -> Result<(), postgres::Error> {
        if self.shared.is_pooled() || self.statements.is_none() {
            return Ok(());
        }
        let wire = self.tracked().wire.clone();
        let mut waiting = Vec::new();
        let most = TEXTS.min(self.shared.config.statement_cache);
        for (text, described) in self.shared.descriptions.most_used(most) {
            let Some(description) = described.description.clone() else {
                continue;
            };
            if wire.expect_prepare(description) {
                let statement = self.client.prepare(&text)?;
                if wire.holds_prepare() {
                    waiting.push((text, Kept::new(statement, described.facts)));
                }
            }
        }
        if waiting.is_empty() || !wire.hold_begin(BEGIN) {
            wire.take_prepares();
            return Ok(());
        }
        let done = self.client.execute_typed("ROLLBACK", &[]);
        wire.forget_begin();
        let confirmed = wire.take_prepares();
        if let Some(statements) = &mut self.statements {
            // The least used first, so that they are the first to go.
            for ((text, kept), confirmed) in waiting.into_iter().zip(confirmed).rev() {
                if confirmed {
                    statements.put(&text, kept);
                }
            }
        }
        match done {
            Ok(_) => Ok(()),
            // One of them has failed, and with it the transaction.
            Err(_) => self.client.batch_execute("ROLLBACK"),
        }
    }
}
