//! The edge: the public listener. It owns every client's socket, reads whole requests under limits, refuses what is no
//! clean request, and hands the others to the lanes.
//!
//! tiny_http 0.12 never meets a stranger: one request with `Content-Length: 30000000000` aborts a process, `GET / HTTP/2.0`
//! keeps a thread for ever, a burst of connections leaves most of them unserved, a lack of file descriptors ends accepting
//! for good, heads may be of any size, and nothing has a time limit. Here all of that ends:
//!
//! ```text
//!  clients ──► one thread, one event loop ──► health lane: 4 workers
//!              (framing, limits, deadlines)   api lane: HTTP_WORKERS, behind a line of HTTP_QUEUE
//! ```
//!
//! A slow client costs a buffer, not a thread. Where a request leads, and whether it may, is seen from its head: what leads
//! nowhere costs neither a body nor a worker. One request more than the line takes is refused at once. The event loop never
//! waits for anything but its sockets.

mod chunked;
mod connection;
mod desk;
mod event_loop;
mod forwarded;
mod framing;
mod in_flight;
mod links;
mod newcomers;
mod proxied;

use super::Service;
use super::lane::Plan;
use super::router::{Lane, PerLane};
use crate::temporary::Temporary;
pub(super) use desk::Desk;
use event_loop::EventLoop;
use in_flight::InFlight;
pub(super) use links::MOST_LINKS;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long idle workers take to go.
const LANES_END: Duration = Duration::from_millis(500);

/// The running edge; it ends when this is dropped.
pub(super) struct Edge {
    addr: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Of the lanes' sockets.
    dir: Arc<Temporary>,
}

/// What the loop's thread shares with others.
struct Shared {
    desk: Arc<Desk>,
    over: AtomicBool,
    in_flight: PerLane<Arc<InFlight>>,
}

impl Edge {
    /// Listens, and serves with the lanes (health, api), whose workers answer at the desk. `others` file descriptors
    /// are not for clients.
    pub fn start(
        service: Arc<Service>,
        inherited: Option<TcpListener>,
        lanes: impl FnOnce(&Arc<Desk>, &Arc<Temporary>) -> (Plan, Plan),
        others: usize,
    ) -> io::Result<Edge> {
        let dir = Arc::new(Temporary::new()?);
        let lanes = |desk: &_| lanes(desk, &dir);
        let mut event_loop = EventLoop::new(service, inherited, lanes, others)?;
        let (addr, shared) = (event_loop.addr()?, event_loop.shared());
        let thread = thread::Builder::new()
            .name("millpond-edge".into())
            .spawn(move || event_loop.run())?;
        Ok(Edge {
            addr,
            shared,
            thread: Some(thread),
            dir,
        })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Requests of a lane that are not answered yet.
    pub fn in_flight(&self, lane: Lane) -> &InFlight {
        self.shared.in_flight.of(lane)
    }

    /// Has it look at the phase.
    pub fn wake(&self) {
        self.shared.desk.wake();
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        self.shared.desk.wake();
        if let Some(thread) = self.thread.take() {
            // It panicked, and said so.
            let _ = thread.join();
        }
        // The lanes end when their workers are through with what they have; one that is not, is not waited for.
        let patience = Instant::now() + LANES_END;
        while Arc::strong_count(&self.dir) > 1 && Instant::now() < patience {
            thread::sleep(Duration::from_millis(1));
        }
        if let Err(e) = std::fs::remove_dir_all(self.dir.path()) {
            log::warn!("{} is left: {e}", self.dir.path().display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::event_loop::EventLoop;
    use super::*;
    use crate::config::HttpConfig;
    use crate::pool::Pool;
    use crate::server::http::{Request, Response};
    use crate::server::router::{Access, Router};
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::sync::mpsc::{self, Sender};
    use std::sync::{Condvar, Mutex};

    /// Holds whoever comes until it is opened; counts them.
    #[derive(Default)]
    struct Gate {
        state: Mutex<(bool, usize)>,
        changed: Condvar,
    }

    impl Gate {
        fn pass(&self) {
            let mut state = self.state.lock().unwrap();
            state.1 += 1;
            self.changed.notify_all();
            drop(self.changed.wait_while(state, |state| !state.0).unwrap());
        }

        fn wait_for(&self, come: usize) {
            let state = self.state.lock().unwrap();
            drop(
                self.changed
                    .wait_while(state, |state| state.1 < come)
                    .unwrap(),
            );
        }

        fn open(&self) {
            self.state.lock().unwrap().0 = true;
            self.changed.notify_all();
        }
    }

    /// An edge whose lanes are sent one request ahead; with the links to the api lane that may be broken.
    fn edge(
        workers: usize,
        gate: &Arc<Gate>,
        dir: &Arc<Temporary>,
    ) -> (Edge, Vec<std::os::unix::net::UnixStream>) {
        let held = Arc::clone(gate);
        let handler = move |_: &Request| {
            held.pass();
            Ok(Response::bytes(200, "text/plain", "done"))
        };
        let router = Router::new()
            .route("GET", "/gate", Lane::Api, Access::Open, handler.clone())
            .route("POST", "/gate", Lane::Api, Access::Open, handler);
        let nowhere = Pool::builder().database_url("postgresql://u:p@127.0.0.1:1/d");
        let config = HttpConfig {
            addr: ([127, 0, 0, 1], 0).into(),
            ..HttpConfig::default()
        };
        let service = Arc::new(Service {
            router,
            phase: Arc::default(),
            config,
            pool: nowhere.build().unwrap(),
        });
        let lanes = |desk: &Arc<Desk>| {
            let plan = |name, lane| {
                let (service, desk) = (Arc::clone(&service), Arc::clone(desk));
                Plan {
                    name,
                    workers,
                    at_once: workers,
                    ahead: 1,
                    coming: desk.coming(lane),
                    serve: Arc::new(move |incoming, turns| {
                        service.serve(incoming, &desk, turns);
                    }),
                    dir: Arc::clone(dir),
                }
            };
            (plan("health", Lane::Health), plan("api", Lane::Api))
        };
        let mut event_loop = EventLoop::new(Arc::clone(&service), None, lanes, 0).unwrap();
        let links = event_loop.api_links();
        let (addr, shared) = (event_loop.addr().unwrap(), event_loop.shared());
        let thread = Some(thread::spawn(move || event_loop.run()));
        (
            Edge {
                addr,
                shared,
                thread,
                dir: Arc::clone(dir),
            },
            links,
        )
    }

    fn ask(addr: SocketAddr, method: &'static str, answers: &Sender<String>) {
        let answers = answers.clone();
        thread::spawn(move || {
            let mut stream = TcpStream::connect(addr).unwrap();
            let request =
                format!("{method} /gate HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answers.send(answer).unwrap();
        });
    }

    #[test]
    fn what_a_lost_connection_to_a_lane_held_is_answered_and_the_lane_goes_on() {
        // One connection or four; the first of them lost, and the lane as well or not.
        for (workers, gone_as_well) in [(1, false), (1, true), (4, false), (4, true)] {
            let gate = Arc::<Gate>::default();
            let dir = Arc::new(Temporary::new().unwrap());
            let (edge, links) = edge(workers, &gate, &dir);
            assert_eq!(links.len(), workers);
            let (sender, answers) = mpsc::channel();
            let soon = Duration::from_secs(10);
            for held in 1..=workers {
                ask(edge.addr(), "POST", &sender);
                gate.wait_for(held);
            }
            ask(edge.addr(), "POST", &sender);
            let patience = Instant::now() + soon;
            while edge.shared.desk.waiting(Lane::Api) == 0 {
                assert!(Instant::now() < patience, "no request is sent ahead");
                thread::yield_now();
            }
            if gone_as_well {
                // Nothing can connect to the lane any more: it is built anew.
                for socket in std::fs::read_dir(dir.path()).unwrap() {
                    std::fs::remove_file(socket.unwrap().path()).unwrap();
                }
            }
            links[0].shutdown(std::net::Shutdown::Both).unwrap();
            // No worker had the last one; the others are with their workers, who answer in spite of it.
            let lost = answers.recv_timeout(soon).unwrap();
            assert!(
                lost.starts_with("HTTP/1.1 502 ") && lost.contains("nothing was done"),
                "{lost}"
            );
            gate.open();
            for _ in 0..workers {
                let answer = answers.recv_timeout(soon).unwrap();
                assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            }
            let mut served = 0;
            while served < 3 * workers {
                ask(edge.addr(), "GET", &sender);
                let answer = answers.recv_timeout(soon).unwrap();
                // Until the loop hears of the new lane, what it sends to the old one is lost.
                let lost = gone_as_well && answer.starts_with("HTTP/1.1 502 ");
                assert!(answer.starts_with("HTTP/1.1 200 ") || lost, "{answer}");
                served += usize::from(!lost);
            }
            let ran = gate.state.lock().unwrap().1;
            assert_eq!(ran, 4 * workers, "what was lost never ran");
            let empty = edge
                .in_flight(Lane::Api)
                .wait_until_empty(Instant::now() + soon);
            assert!(empty);
        }
    }
}
