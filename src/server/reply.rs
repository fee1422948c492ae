//! A client's socket, and the progress of the answer to its request. Shared by the edge, which
//! watches the client, and the thread that answers.
//!
//! # Has the client gone?
//!
//! A client that hangs up closes its socket. A client that has nothing more to send may close only
//! its own direction (`nc -N`) and wait for the answer. The server sees the same in both cases: the
//! end of the stream. They differ as soon as something is sent to them, since a closed socket
//! responds with a reset. So at the end of the stream, the edge sends the first bytes of the
//! answer, which are the same for every answer. A client that is still there gets the rest later.

use crate::sync::unpoison;
use mio::net::TcpStream;
use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

/// How every answer begins.
const BEGINNING: &[u8] = b"HTTP/1.1 ";

pub(super) struct Reply {
    pub socket: TcpStream,
    /// Set if the loop must be woken when the answer is written: more has come meanwhile.
    attention: AtomicBool,
    progress: Mutex<Progress>,
}

/// How far the answer has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// So many bytes of its beginning are sent.
    Begun(usize),
    Answered,
    /// The client has gone.
    Gone,
}

impl Reply {
    pub fn new(socket: TcpStream) -> Reply {
        Reply {
            socket,
            attention: AtomicBool::new(false),
            progress: Mutex::new(Progress::Begun(0)),
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        unpoison(self.progress.lock())
    }

    /// A new request is to be answered. `has_more`: the client has sent more already.
    pub fn expect(&self, has_more: bool) {
        self.attention.store(has_more, Ordering::SeqCst);
        *self.progress() = Progress::Begun(0);
    }

    /// Something has come from the client: the loop wants to be woken when the answer is written.
    pub fn ask_for_attention(&self) {
        self.attention.store(true, Ordering::SeqCst);
    }

    pub fn wants_attention(&self) -> bool {
        self.attention.load(Ordering::SeqCst)
    }

    /// Begins to answer, unless that was done, so that a client that has gone is noticed. Returns
    /// false if it has.
    pub fn begin(&self) -> bool {
        let mut progress = self.progress();
        match *progress {
            Progress::Begun(0) => match (&self.socket).write(BEGINNING) {
                Ok(written) => {
                    *progress = Progress::Begun(written);
                    true
                }
                Err(e) => matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
            },
            Progress::Begun(_) | Progress::Answered => true,
            Progress::Gone => false,
        }
    }

    /// Notes that the client has gone. Returns whether it was still to be answered.
    pub fn give_up(&self) -> bool {
        let mut progress = self.progress();
        let was_open = matches!(*progress, Progress::Begun(_));
        if was_open {
            *progress = Progress::Gone;
        }
        was_open
    }

    /// Whether the client has gone without an answer.
    pub fn is_given_up(&self) -> bool {
        *self.progress() == Progress::Gone
    }

    /// Sends the answer. Returns the part that the socket did not take.
    ///
    /// # Errors
    /// The client has gone.
    pub fn send(&self, mut answer: Vec<u8>) -> io::Result<Vec<u8>> {
        let mut progress = self.progress();
        let Progress::Begun(mut written) = *progress else {
            return Err(ErrorKind::BrokenPipe.into());
        };
        *progress = Progress::Answered;
        while written < answer.len() {
            match (&self.socket).write(&answer[written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(more) => written += more,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(answer.split_off(written))
    }
}
