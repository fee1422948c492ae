//! The workers of a lane, model-checked on a queue that behaves as tiny_http's.

use super::check;
use super::sync::time_passes;
use super::worker_wakeup::WorkerWakeup;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use std::collections::VecDeque;

struct Lane {
    wakeup: WorkerWakeup,
    coming: Arc<AtomicUsize>,
    door: Mutex<VecDeque<Message>>,
    knock: Condvar,
    workers: usize,
    to_serve: Mutex<usize>,
    served: Condvar,
}

#[derive(Clone, Copy)]
enum Message {
    Request,
    /// A request that takes until the other message is served.
    Stuck,
    /// Proof that a connection works. The worker that takes it calls no other worker.
    Proof,
    Over,
}

impl Lane {
    fn new(workers: usize, at_once: usize) -> Arc<Lane> {
        let coming = Arc::new(AtomicUsize::new(0));
        Arc::new(Lane {
            wakeup: WorkerWakeup::new(workers, at_once, Arc::clone(&coming)),
            coming,
            door: Mutex::default(),
            knock: Condvar::new(),
            workers,
            to_serve: Mutex::new(2),
            served: Condvar::new(),
        })
    }

    fn push(&self, message: Message) {
        self.door.lock().unwrap().push_back(message);
        self.knock.notify_one();
    }

    fn send(&self, message: Message) {
        self.coming.fetch_add(1, Ordering::SeqCst);
        self.push(message);
        self.wakeup.call();
    }

    fn recv(&self) -> Message {
        let mut door = self.door.lock().unwrap();
        loop {
            match door.pop_front() {
                Some(message) => return message,
                None => door = self.knock.wait(door).unwrap(),
            }
        }
    }

    fn work(&self, me: usize) {
        loop {
            let found = match self.wakeup.done(me) {
                true => self.door.lock().unwrap().pop_front(),
                false => None,
            };
            // As in tiny_http: a worker that does not block does not learn of the end.
            let found = found.filter(|message| !matches!(message, Message::Over));
            let message = match found {
                Some(message) => message,
                None if self.wakeup.rest(me) => self.recv(),
                None => return,
            };
            self.wakeup.took(me);
            if let Message::Request | Message::Stuck = message {
                self.coming.fetch_sub(1, Ordering::SeqCst);
                self.wakeup.call();
            }
            let mut to_serve = self.to_serve.lock().unwrap();
            while *to_serve > 1 && matches!(message, Message::Stuck) {
                to_serve = self.served.wait(to_serve).unwrap();
            }
            if let Message::Over = message {
                continue;
            }
            *to_serve -= 1;
            self.served.notify_one();
            if *to_serve == 0 {
                self.wakeup.close();
                (0..self.workers).for_each(|_| self.push(Message::Over));
            }
        }
    }
}

/// Serves two requests. If one is forgotten, the model deadlocks, and the model checker reports it.
fn serves_all(workers: usize, at_once: usize, send: impl Fn(&Lane) + Send + Sync + 'static) {
    check(2, move || {
        let lane = Lane::new(workers, at_once);
        let threads: Vec<_> = (0..workers)
            .map(|me| {
                let lane = lane.clone();
                thread::spawn(move || lane.work(me))
            })
            .collect();
        send(&lane);
        threads.into_iter().for_each(|t| t.join().unwrap());
    });
}

#[test]
fn no_request_is_forgotten_and_nobody_stays_asleep_when_the_lane_closes() {
    for at_once in [1, 2] {
        serves_all(2, at_once, |lane| {
            lane.send(Message::Request);
            lane.send(Message::Request);
        });
    }
}

#[test]
fn who_is_stuck_holds_up_nobody_else() {
    serves_all(2, 2, |lane| {
        lane.send(Message::Stuck);
        lane.send(Message::Request);
    });
    serves_all(2, 2, |lane| {
        lane.send(Message::Request);
        lane.send(Message::Stuck);
    });
}

#[test]
fn who_is_slow_holds_up_nobody_else_where_only_one_is_to_be_at_work() {
    for (first, second) in [
        (Message::Stuck, Message::Request),
        (Message::Request, Message::Stuck),
    ] {
        serves_all(2, 1, move |lane| {
            lane.send(first);
            lane.send(second);
            // The sender calls again later.
            time_passes();
            lane.wakeup.call();
        });
    }
}

#[test]
fn a_proof_is_answered_beside_one_who_is_stuck() {
    serves_all(2, 2, |lane| {
        lane.send(Message::Stuck);
        lane.send(Message::Proof);
    });
}
