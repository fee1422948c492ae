//! The pool's line, model-checked.

use super::check;
use super::class_queue::Share;
use super::line_rule::Rule;
use super::pool_line::{Arrival, Line, Openers};
use super::sync::Deadline;
use super::waiter::Outcome;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::sync::{Condvar, Mutex};
use loom::thread::{self, JoinHandle};
use std::time::Duration;

const NEVER: Deadline = Deadline(None);

fn new_line(max: usize, max_waiting: usize, min_idle: usize) -> Line<usize> {
    hiring_line(max, max_waiting, min_idle, &Arc::default())
}

/// Openers that were hired and have not begun yet.
#[derive(Default)]
struct Hired {
    /// How many, and whether there will be more.
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Hired {
    fn hire(&self) {
        self.state.lock().unwrap().0 += 1;
        self.changed.notify_one();
    }

    fn no_more(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_one();
    }

    /// Begins to work as one of them. Returns false when there is none any more.
    fn begin(&self) -> bool {
        let mut state = self.state.lock().unwrap();
        while state.0 == 0 && !state.1 {
            state = self.changed.wait(state).unwrap();
        }
        let begins = state.0 > 0;
        state.0 -= usize::from(begins);
        begins
    }
}

fn hiring_line(max: usize, max_waiting: usize, min_idle: usize, hired: &Arc<Hired>) -> Line<usize> {
    let hired = Arc::clone(hired);
    let openers = Openers {
        most: 2,
        start: Box::new(move || hired.hire()),
    };
    Line::new(
        max,
        max_waiting,
        min_idle,
        1,
        openers,
        Rule::new(true),
        Box::new(|_, _| {}),
    )
}

/// Opens values as long as they are wanted. Returns how many had no place.
fn open_as_hired(line: Arc<Line<usize>>, hired: Arc<Hired>, value: usize) -> JoinHandle<usize> {
    thread::spawn(move || {
        let mut unwanted = 0;
        while hired.begin() {
            loop {
                unwanted += usize::from(line.offer(value).is_some());
                if !line.opener_done() {
                    break;
                }
            }
        }
        unwanted
    })
}

fn line_with(values: usize, max_waiting: usize) -> Arc<Line<usize>> {
    let line = new_line(values, max_waiting, 0);
    (0..values).for_each(|value| assert!(line.offer(value).is_none()));
    Arc::new(line)
}

/// Gets a value, however long that takes.
fn get(line: &Line<usize>) -> usize {
    match line.arrive(&Share::default(), false) {
        Arrival::Ready(value) => value,
        Arrival::Queued { place, .. } => match line.wait(&place, &NEVER, Duration::ZERO) {
            Outcome::Given(value) => value,
            other => panic!("{other:?}"),
        },
        Arrival::Full | Arrival::Closed => panic!("turned away"),
    }
}

fn is_at_rest(line: &Line<usize>, idle: usize) {
    let figures = line.figures();
    assert_eq!(
        (figures.idle, figures.active, figures.waiting),
        (idle, 0, 0)
    );
}

#[test]
fn no_waiter_is_lost() {
    check(3, || {
        let line = line_with(1, 10);
        let users: Vec<_> = (0..2)
            .map(|_| {
                let line = line.clone();
                thread::spawn(move || {
                    let value = get(&line);
                    assert!(line.give_back(value, None).is_none());
                })
            })
            .collect();
        let value = get(&line);
        assert!(line.give_back(value, None).is_none());
        users.into_iter().for_each(|u| u.join().unwrap());
        is_at_rest(&line, 1);
    });
}

#[test]
fn a_deadline_and_a_hand_off_may_race() {
    check(3, || {
        let line = line_with(1, 10);
        let value = get(&line);
        let (in_line, passed) = (line.clone(), Arc::new(AtomicBool::new(false)));
        let deadline = passed.clone();
        let waiter = thread::spawn(move || {
            let Arrival::Queued { place, .. } = in_line.arrive(&Share::default(), false) else {
                return;
            };
            match in_line.wait(&place, &Deadline(Some(deadline)), Duration::ZERO) {
                // The value was given just as the deadline passed: it counts, and must be given
                // back.
                Outcome::Given(value) => assert!(in_line.give_back(value, None).is_none()),
                Outcome::TimedOut => {}
                Outcome::TurnedAway | Outcome::Displaced | Outcome::Closed => {
                    panic!("nobody closes")
                }
            }
        });
        let clock = {
            let waiter = waiter.thread().clone();
            thread::spawn(move || {
                passed.store(true, Ordering::SeqCst);
                waiter.unpark();
            })
        };
        assert!(line.give_back(value, None).is_none());
        waiter.join().unwrap();
        clock.join().unwrap();
        let figures = line.figures();
        // The thread may also have arrived after the value was returned, and have taken it without
        // a wait.
        assert_eq!((figures.idle + figures.active, figures.waiting), (1, 0));
    });
}

#[test]
fn one_who_gives_up_does_not_take_the_value_from_the_next() {
    check(3, || {
        let line = line_with(1, 10);
        let value = get(&line);
        let Arrival::Queued {
            place: gives_up, ..
        } = line.arrive(&Share::default(), false)
        else {
            panic!("the value is out")
        };
        let in_line = line.clone();
        let next = thread::spawn(move || {
            let value = get(&in_line);
            assert!(in_line.give_back(value, None).is_none());
        });
        let gives_back = line.clone();
        let holder = thread::spawn(move || assert!(gives_back.give_back(value, None).is_none()));
        let at_once = Deadline(Some(Arc::new(AtomicBool::new(true))));
        if let Outcome::Given(value) = line.wait(&gives_up, &at_once, Duration::ZERO) {
            assert!(line.give_back(value, None).is_none());
        }
        next.join().unwrap();
        holder.join().unwrap();
        is_at_rest(&line, 1);
    });
}

#[test]
fn nobody_is_overtaken() {
    check(3, || {
        let line = line_with(1, 10);
        let value = get(&line);
        // One thread takes two places in line, in this order, on behalf of two.
        let Arrival::Queued { place: first, .. } = line.arrive(&Share::default(), false) else {
            panic!("the value is out")
        };
        let in_line = line.clone();
        let later = thread::spawn(move || {
            // This thread is behind the first place whenever it arrives: it can get the value only
            // after that place gave it back.
            let value = get(&in_line);
            assert_eq!(value, 1, "the first in line was overtaken");
            assert!(in_line.give_back(value, None).is_none());
        });
        assert!(line.give_back(value, None).is_none());
        let Outcome::Given(_) = line.wait(&first, &NEVER, Duration::ZERO) else {
            panic!("nobody closes")
        };
        // The first place gives back a 1, as a mark that it had the value.
        assert!(line.give_back(1, None).is_none());
        later.join().unwrap();
        is_at_rest(&line, 1);
    });
}

#[test]
fn one_who_comes_back_for_another_value_keeps_his_turn() {
    check(3, || {
        let line = line_with(1, 10);
        let spent = get(&line);
        let in_line = line.clone();
        let later = thread::spawn(move || {
            let value = get(&in_line);
            assert!(in_line.give_back(value, None).is_none());
        });
        // The value turns out to be unusable: it is discarded, and a new one is opened.
        let _ = spent;
        line.discarded(None);
        let value = match line.arrive(&Share::default(), true) {
            Arrival::Ready(value) => value,
            Arrival::Queued { place, .. } => {
                assert!(line.offer(7).is_none());
                match line.wait(&place, &NEVER, Duration::ZERO) {
                    Outcome::Given(value) => value,
                    other => panic!("{other:?}"),
                }
            }
            Arrival::Full | Arrival::Closed => panic!("turned away"),
        };
        assert_eq!(value, 7);
        assert!(line.give_back(value, None).is_none());
        later.join().unwrap();
        is_at_rest(&line, 1);
    });
}

#[test]
fn an_opener_comes_for_everybody_who_finds_nothing() {
    check(3, || {
        let hired = Arc::default();
        let line = Arc::new(hiring_line(1, 10, 0, &hired));
        let opener = open_as_hired(line.clone(), hired.clone(), 0);
        let in_line = line.clone();
        let user = thread::spawn(move || {
            let Arrival::Queued { place, .. } = in_line.arrive(&Share::default(), false) else {
                panic!("nothing was opened yet")
            };
            in_line.call_openers();
            let Outcome::Given(value) = in_line.wait(&place, &NEVER, Duration::ZERO) else {
                panic!("nobody closes yet")
            };
            assert!(in_line.give_back(value, None).is_none());
        });
        user.join().unwrap();
        hired.no_more();
        assert_eq!(opener.join().unwrap(), 0);
        is_at_rest(&line, 1);
    });
}

#[test]
fn closing_turns_everybody_away_and_loses_nothing() {
    check(3, || {
        let line = line_with(1, 10);
        let value = get(&line);
        let in_line = line.clone();
        let waiter = thread::spawn(move || match in_line.arrive(&Share::default(), false) {
            Arrival::Ready(value) => in_line.give_back(value, None).is_some() as usize,
            Arrival::Queued { place, .. } => match in_line.wait(&place, &NEVER, Duration::ZERO) {
                Outcome::Given(value) => in_line.give_back(value, None).is_some() as usize,
                Outcome::Closed => 0,
                Outcome::TimedOut | Outcome::TurnedAway | Outcome::Displaced => {
                    panic!("there is no deadline")
                }
            },
            Arrival::Closed => 0,
            Arrival::Full => panic!("there is room"),
        });
        let closes = line.clone();
        let closer = thread::spawn(move || closes.close().len());
        let returned = line.give_back(value, None).is_some() as usize;
        let closed = waiter.join().unwrap() + closer.join().unwrap() + returned;
        assert_eq!(closed, 1, "the value is closed by exactly one");
        assert!(matches!(
            line.arrive(&Share::default(), false),
            Arrival::Closed
        ));
        assert_eq!(line.figures().waiting, 0);
    });
}

#[test]
fn the_minimum_is_opened_again_and_nothing_beyond_it() {
    check(3, || {
        let hired = Arc::default();
        let line = Arc::new(hiring_line(2, 10, 1, &hired));
        let opener = open_as_hired(line.clone(), hired.clone(), 7);
        line.call_openers();
        let in_line = line.clone();
        let user = thread::spawn(move || {
            // The value is unusable, and its place is given up.
            let Arrival::Queued { place, .. } = in_line.arrive(&Share::default(), false) else {
                return in_line.discarded(None);
            };
            in_line.call_openers();
            let Outcome::Given(_) = in_line.wait(&place, &NEVER, Duration::ZERO) else {
                panic!("nobody closes")
            };
            in_line.discarded(None);
        });
        user.join().unwrap();
        hired.no_more();
        assert_eq!(opener.join().unwrap(), 0);
        // One that was opened for the thread may be idle besides.
        let figures = line.figures();
        assert!((1..=2).contains(&figures.idle), "{figures:?}");
        assert_eq!((figures.active, figures.waiting), (0, 0));
    });
}

#[test]
fn a_hopeless_wait_ends_and_a_hopeful_one_goes_on() {
    check(3, || {
        let line: Arc<Line<usize>> = Arc::new(new_line(1, 10, 0));
        let in_line = line.clone();
        let waiter = thread::spawn(move || {
            let Arrival::Queued { place, .. } = in_line.arrive(&Share::default(), false) else {
                return;
            };
            match in_line.wait(&place, &NEVER, Duration::ZERO) {
                Outcome::TurnedAway | Outcome::Closed => {}
                Outcome::Given(value) => assert!(in_line.give_back(value, None).is_none()),
                Outcome::TimedOut | Outcome::Displaced => panic!("there is no deadline"),
            }
        });
        line.turn_away();
        let offered = line.offer(1).is_none();
        waiter.join().unwrap();
        assert!(offered && line.figures().waiting == 0);
    });
}

#[test]
fn a_full_line_turns_away() {
    check(3, || {
        let line = line_with(1, 0);
        let value = get(&line);
        assert!(matches!(
            line.arrive(&Share::default(), false),
            Arrival::Full
        ));
        assert!(line.give_back(value, None).is_none());
        is_at_rest(&line, 1);
    });
}

#[test]
fn while_the_newest_go_first_one_who_is_displaced_learns_of_it_and_nothing_is_lost() {
    check(3, || {
        let line = line_with(1, 1);
        let value = get(&line);
        let Arrival::Queued { place: oldest, .. } = line.arrive(&Share::default(), false) else {
            panic!("the value is out")
        };
        for _ in 0..10 {
            assert!(matches!(
                line.arrive(&Share::default(), false),
                Arrival::Full
            ));
        }
        assert!(line.figures().newest_first, "so many were refused");
        let in_line = line.clone();
        let newest = thread::spawn(move || {
            let value = get(&in_line);
            assert!(in_line.give_back(value, None).is_none());
        });
        let gives_back = line.clone();
        let holder = thread::spawn(move || assert!(gives_back.give_back(value, None).is_none()));
        match line.wait(&oldest, &NEVER, Duration::ZERO) {
            Outcome::Given(value) => assert!(line.give_back(value, None).is_none()),
            Outcome::Displaced => {}
            other => panic!("{other:?}"),
        }
        newest.join().unwrap();
        holder.join().unwrap();
        is_at_rest(&line, 1);
        assert!(!line.figures().newest_first, "the line is empty");
    });
}

#[test]
fn a_class_at_its_bound_waits_for_its_own_and_leaves_the_rest_to_others() {
    check(3, || {
        let line = line_with(2, 10);
        let (now, most) = (Arc::new(AtomicUsize::new(0)), 1);
        let bounded = Share {
            class: Some("bounded".into()),
            at_most: Some(most),
        };
        let users: Vec<_> = (0..2)
            .map(|_| {
                let (line, share, now) = (line.clone(), bounded.clone(), now.clone());
                thread::spawn(move || {
                    let value = match line.arrive(&share, false) {
                        Arrival::Ready(value) => value,
                        Arrival::Queued { place, .. } => {
                            match line.wait(&place, &NEVER, Duration::ZERO) {
                                Outcome::Given(value) => value,
                                other => panic!("{other:?}"),
                            }
                        }
                        Arrival::Full | Arrival::Closed => panic!("turned away"),
                    };
                    assert!(now.fetch_add(1, Ordering::SeqCst) < most);
                    now.fetch_sub(1, Ordering::SeqCst);
                    let unwanted = line.give_back(value, share.class.as_ref());
                    assert!(unwanted.is_none());
                })
            })
            .collect();
        // The class never holds both.
        let Arrival::Ready(value) = line.arrive(&Share::default(), false) else {
            panic!("one is left to the others")
        };
        assert!(line.give_back(value, None).is_none());
        users.into_iter().for_each(|u| u.join().unwrap());
        is_at_rest(&line, 2);
    });
}

#[test]
fn while_a_value_is_replaced_there_is_one_more_at_most_and_none_is_lost() {
    check(2, || {
        let hired = Arc::default();
        let line = Arc::new(hiring_line(1, 10, 0, &hired));
        assert!(line.offer(1).is_none());
        let opener = open_as_hired(line.clone(), hired.clone(), 2);
        // Value 1 is due whenever it comes back.
        let in_line = line.clone();
        let use_one = move || {
            let value = get(&in_line);
            if value == 1 && in_line.has_replacement() {
                in_line.discarded(None);
                return 1;
            }
            assert!(in_line.give_back(value, None).is_none());
            let figures = in_line.figures();
            assert!(figures.idle + figures.active <= 2);
            0
        };
        let user = thread::spawn(use_one.clone());
        let closed = use_one() + user.join().unwrap();
        let idle = line.close().len();
        hired.no_more();
        let unwanted = opener.join().unwrap();
        // The first, and the one that was opened for it, if there was time.
        assert!(unwanted <= 1 && (1..=2).contains(&(closed + idle)));
        assert!(closed == 0 || idle == 1, "{closed} {idle}");
    });
}

#[test]
fn a_value_that_is_gone_before_it_was_replaced_leaves_no_wish_behind() {
    check(1, || {
        // Two are out, of which one has no place any more.
        let line = line_with(2, 10);
        let (first, second) = (get(&line), get(&line));
        assert!(line.resize(1).is_empty());
        assert!(!line.has_replacement());
        assert!(line.give_back(first, None).is_some());
        line.forget_replacement();
        assert!(line.give_back(second, None).is_none());
        assert!(line.offer(3).is_some(), "nobody wants one more");

        // One is closed while another is opened in its place, which is not for the next one then.
        let line = line_with(1, 10);
        let _ = get(&line);
        assert!(!line.has_replacement());
        line.forget_replacement();
        line.discarded(None);
        assert!(line.offer(2).is_none());
        let _ = get(&line);
        assert!(!line.has_replacement(), "none is open in its place");
    });
}
