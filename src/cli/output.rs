//! The program's output. A full pipe does not block the server, and a closed one causes no panic.

use super::failure::Failure;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::thread;
use std::time::Duration;

/// The most lines that wait to be written.
const MOST_LINES: usize = 2048;
/// A longer line is cut.
pub(super) const LONGEST_LINE: usize = 8192;
/// How long the program waits at its end for its lines to be written.
const FLUSH_LIMIT: Duration = Duration::from_millis(500);

/// Lines for standard error, written by a thread of their own. Lines that do not fit are dropped
/// and counted in a later line.
pub(super) struct Lines {
    line: Vec<u8>,
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

enum Message {
    Line(Vec<u8>),
    Done(SyncSender<()>),
}

/// Waits for the lines to be written.
pub(super) struct Waiter(SyncSender<Message>);

impl Lines {
    /// # Errors
    /// Where the system refuses a thread.
    pub fn start() -> io::Result<(Lines, Waiter)> {
        let (queue, messages) = mpsc::sync_channel(MOST_LINES);
        let dropped = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&dropped);
        thread::Builder::new()
            .name("millpond-log".into())
            .spawn(move || write_lines(&messages, &counted, io::stderr()))?;
        let waiter = Waiter(queue.clone());
        let line = Vec::new();
        Ok((
            Lines {
                line,
                queue,
                dropped,
            },
            waiter,
        ))
    }

    fn send(&mut self) {
        let line = std::mem::take(&mut self.line);
        if let Err(TrySendError::Full(_)) = self.queue.try_send(Message::Line(line)) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Write for Lines {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            let room = LONGEST_LINE.saturating_sub(self.line.len());
            let whole = piece.ends_with(b"\n");
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            if whole {
                self.line.push(b'\n');
                self.send();
            }
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Waiter {
    /// Waits a moment until everything so far is written.
    pub fn wait(&self) {
        let (done, is_done) = mpsc::sync_channel(1);
        if self.0.try_send(Message::Done(done)).is_ok() {
            let _ = is_done.recv_timeout(FLUSH_LIMIT);
        }
    }
}

fn write_lines(messages: &Receiver<Message>, dropped: &AtomicU64, mut to: impl Write) {
    for message in messages {
        match message {
            // If standard error cannot be written, that cannot be reported either.
            Message::Line(line) => drop(to.write_all(&line)),
            Message::Done(done) => drop(done.try_send(())),
        }
        match dropped.swap(0, Ordering::Relaxed) {
            0 => {}
            count => {
                let _ = writeln!(
                    to,
                    "[{count} log lines were dropped: standard error was not read in time]"
                );
            }
        }
    }
}

/// Writes to standard output.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|e| match e.kind() {
        // The reader has closed the pipe: it has seen enough.
        io::ErrorKind::BrokenPipe => Failure::Failed(None),
        _ => Failure::because(format!("standard output cannot be written to: {e}")),
    })
}

/// Writes a line to standard error, and waits a moment at most until it is written.
pub(super) fn complain(text: &str) {
    let line = format!("{text}\n");
    let (done, is_done) = mpsc::channel();
    let to_write = line.clone();
    let write = move || {
        let _ = io::stderr().write_all(to_write.as_bytes());
        let _ = done.send(());
    };
    match thread::Builder::new().spawn(write) {
        Ok(_) => {
            let _ = is_done.recv_timeout(FLUSH_LIMIT);
        }
        // Without a thread: the line may be about just that.
        Err(_) => drop(io::stderr().write_all(line.as_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Condvar, Mutex};

    /// A writer that blocks until it is opened.
    #[derive(Clone, Default)]
    struct Slow(Arc<State>);

    #[derive(Default)]
    struct State {
        is_open: Mutex<bool>,
        opened: Condvar,
        text: Mutex<Vec<u8>>,
    }

    impl Write for Slow {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            let open = self.0.is_open.lock().unwrap();
            drop(self.0.opened.wait_while(open, |open| !*open).unwrap());
            self.0.text.lock().unwrap().extend_from_slice(data);
            Ok(data.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted_and_nothing_waits() {
        let (queue, messages) = mpsc::sync_channel(4);
        let dropped = Arc::new(AtomicU64::new(0));
        let reader = Slow::default();
        let (counted, to) = (Arc::clone(&dropped), reader.clone());
        let writer = thread::spawn(move || write_lines(&messages, &counted, to));
        let line = Vec::new();
        let mut lines = Lines {
            line,
            queue,
            dropped: Arc::clone(&dropped),
        };
        for n in 0..100 {
            write!(lines, "line").unwrap();
            writeln!(lines, " {n}").unwrap();
        }
        // The writer may have taken one line.
        let lost = dropped.load(Ordering::Relaxed);
        assert!((95..=96).contains(&lost), "{lost}");
        *reader.0.is_open.lock().unwrap() = true;
        reader.0.opened.notify_all();
        write!(lines, "{}\nlast\n", "x".repeat(2 * LONGEST_LINE)).unwrap();
        drop(lines);
        writer.join().unwrap();
        let text = String::from_utf8(reader.0.text.lock().unwrap().clone()).unwrap();
        assert!(
            text.starts_with("line 0\n") && text.contains("log lines were dropped"),
            "{text:.200}"
        );
        assert!(text.lines().all(|l| l.len() <= LONGEST_LINE));
    }
}
