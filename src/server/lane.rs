//! Worker threads behind a bounded queue.

use super::http::Incoming;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

/// The queue of one lane. Its workers run until it is closed and empty.
pub(super) struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
    finished: Condvar,
    longest: usize,
}

struct State {
    waiting: VecDeque<Incoming>,
    /// Requests that a worker is at.
    running: usize,
    workers_idle: usize,
    closed: bool,
}

impl Queue {
    /// Starts `workers` threads; each hands every request that it takes to `serve`.
    pub fn start<F>(name: &str, workers: usize, longest: usize, serve: F) -> io::Result<Arc<Queue>>
    where
        F: Fn(Incoming) + Send + Sync + 'static,
    {
        let state = State {
            waiting: VecDeque::new(),
            running: 0,
            workers_idle: 0,
            closed: false,
        };
        let queue = Arc::new(Queue {
            state: Mutex::new(state),
            arrived: Condvar::new(),
            finished: Condvar::new(),
            longest,
        });
        let serve = Arc::new(serve);
        for _ in 0..workers {
            let (queue, serve) = (Arc::clone(&queue), Arc::clone(&serve));
            thread::Builder::new()
                .name(format!("millpond-{name}"))
                .spawn(move || {
                    while let Some(incoming) = queue.take() {
                        // Counted down also when `serve` panics, which it does not: it catches its handlers' panics.
                        let _done = Done(&queue);
                        serve(incoming);
                    }
                })?;
        }
        Ok(queue)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a request, or gives it back when the queue is full or closed. One for whom a worker is idle does not queue.
    #[must_use = "a request that was not taken must be answered"]
    pub fn push(&self, incoming: Incoming) -> Option<Incoming> {
        let mut state = self.lock();
        if state.closed || state.waiting.len() >= self.longest + state.workers_idle {
            return Some(incoming);
        }
        state.waiting.push_back(incoming);
        drop(state);
        self.arrived.notify_one();
        None
    }

    fn take(&self) -> Option<Incoming> {
        let mut state = self.lock();
        loop {
            if let Some(incoming) = state.waiting.pop_front() {
                state.running += 1;
                return Some(incoming);
            }
            if state.closed {
                return None;
            }
            state.workers_idle += 1;
            state = self
                .arrived
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.workers_idle -= 1;
        }
    }

    /// Requests that are queued or being served.
    pub fn in_flight(&self) -> usize {
        let state = self.lock();
        state.waiting.len() + state.running
    }

    /// Waits until nothing is in flight; false when `until` comes first.
    pub fn wait_until_empty(&self, until: Instant) -> bool {
        let mut state = self.lock();
        while state.waiting.len() + state.running > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self
                .finished
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }

    /// Takes no more; the workers end when the queue is empty.
    pub fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
    }
}

struct Done<'q>(&'q Queue);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.lock().running -= 1;
        self.0.finished.notify_all();
    }
}
