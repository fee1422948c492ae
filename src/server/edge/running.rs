//! The running edge: its start, and its end with that of the lanes.

use super::event_loop::{EventLoop, Shared};
use crate::server::in_flight::InFlight;
use crate::server::lane::Size;
use crate::server::router::{Lane, PerLane};
use crate::server::service::Service;
use crate::temporary::Temporary;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long idle workers may take to end.
const LANES_END: Duration = Duration::from_millis(500);

/// The running edge; it stops when this is dropped.
pub struct Edge {
    addr: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// The directory of the lanes' sockets.
    dir: Arc<Temporary>,
}

impl Edge {
    /// Listens, and serves with lanes of these sizes. `others` file descriptors are reserved for
    /// other uses.
    pub fn start(
        service: Arc<Service>,
        inherited: Option<TcpListener>,
        sizes: PerLane<Size>,
        others: usize,
    ) -> io::Result<Edge> {
        let dir = Arc::new(Temporary::new()?);
        let mut event_loop = EventLoop::new(service, inherited, sizes, &dir, others)?;
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

    /// The requests of a lane that are not answered yet.
    pub fn in_flight(&self, lane: Lane) -> &InFlight {
        self.shared.in_flight.of(lane)
    }

    /// Makes the event loop look at the phase.
    pub fn wake(&self) {
        self.shared.inbox.wake();
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        self.shared.inbox.wake();
        if let Some(thread) = self.thread.take() {
            // A panic has been logged already.
            let _ = thread.join();
        }
        // A lane ends when its workers are done with their requests. A worker that is still busy is
        // not waited for.
        let patience = Instant::now() + LANES_END;
        while Arc::strong_count(&self.dir) > 1 && Instant::now() < patience {
            thread::sleep(Duration::from_millis(1));
        }
        if let Err(e) = std::fs::remove_dir_all(self.dir.path()) {
            log::warn!("cannot remove {}: {e}", self.dir.path().display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HttpConfig;
    use crate::pool::Pool;
    use crate::server::http::Response;
    use crate::server::request::Request;
    use crate::server::router::{Access, Router};
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::sync::mpsc::{self, Sender};
    use std::sync::{Condvar, Mutex};

    /// Holds all callers until it is opened, and counts them.
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

    /// An edge whose lanes are sent one request ahead; the connections to the api lane, for the
    /// test to break; and how many requests wait for a worker.
    fn edge(
        workers: usize,
        gate: &Arc<Gate>,
        dir: &Arc<Temporary>,
    ) -> (
        Edge,
        Vec<std::os::unix::net::UnixStream>,
        impl Fn(Lane) -> usize,
    ) {
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
            trusted_proxies: Default::default(),
            config,
            pool: nowhere.build().unwrap(),
            order: Arc::default(),
            signed_in: Arc::default(),
        });
        let size = Size {
            workers,
            at_once: workers,
            ahead: 1,
            queue: service.config.queue,
            adapts: true,
        };
        let sizes = PerLane {
            health: Size { queue: 1, ..size },
            api: size,
        };
        let mut event_loop = EventLoop::new(Arc::clone(&service), None, sizes, dir, 0).unwrap();
        let waiting = event_loop.waiting();
        let connections = event_loop.api_connections();
        let (addr, shared) = (event_loop.addr().unwrap(), event_loop.shared());
        let thread = Some(thread::spawn(move || event_loop.run()));
        (
            Edge {
                addr,
                shared,
                thread,
                dir: Arc::clone(dir),
            },
            connections,
            waiting,
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
            let (edge, connections, waiting) = edge(workers, &gate, &dir);
            assert_eq!(connections.len(), workers);
            let (sender, answers) = mpsc::channel();
            let soon = Duration::from_secs(10);
            for held in 1..=workers {
                ask(edge.addr(), "POST", &sender);
                gate.wait_for(held);
            }
            ask(edge.addr(), "POST", &sender);
            let patience = Instant::now() + soon;
            while waiting(Lane::Api) == 0 {
                assert!(Instant::now() < patience, "no request is sent ahead");
                thread::yield_now();
            }
            if gone_as_well {
                // Nothing can connect to the lane any more: it is built anew.
                for socket in std::fs::read_dir(dir.path()).unwrap() {
                    std::fs::remove_file(socket.unwrap().path()).unwrap();
                }
            }
            connections[0].shutdown(std::net::Shutdown::Both).unwrap();
            // No worker had the last one; the others are with their workers, who answer in spite of
            // it.
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

    #[test]
    fn what_no_worker_has_taken_at_the_end_is_told_that_it_never_ran() {
        let gate = Arc::<Gate>::default();
        let dir = Arc::new(Temporary::new().unwrap());
        let (edge, _, _) = edge(1, &gate, &dir);
        let (sender, answers) = mpsc::channel();
        let soon = Duration::from_secs(10);
        // One with the worker, one sent ahead, one in line.
        ask(edge.addr(), "POST", &sender);
        gate.wait_for(1);
        ask(edge.addr(), "POST", &sender);
        ask(edge.addr(), "POST", &sender);
        let patience = Instant::now() + soon;
        while edge.in_flight(Lane::Api).count() < 3 {
            assert!(Instant::now() < patience, "three are in flight");
            thread::yield_now();
        }
        drop(edge);
        for _ in 0..2 {
            let answer = answers.recv_timeout(soon).unwrap();
            assert!(
                answer.starts_with("HTTP/1.1 503 ") && answer.contains("urn:millpond:draining"),
                "{answer}"
            );
        }
        gate.open();
        let answer = answers.recv_timeout(soon).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_eq!(
            gate.state.lock().unwrap().1,
            1,
            "what was refused never ran"
        );
    }
}
