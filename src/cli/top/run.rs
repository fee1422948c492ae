//! Asks the server once a second, and shows what it says until a key or a signal ends it.

use super::client::{Client, Trouble};
use super::history::History;
use super::look::Look;
use super::reading::Reading;
use super::screen::{self, Shown};
use super::terminal::Screen;
use super::text::Text;
use super::view::{Next, View};
use super::{lines, lists};
use crate::cli::failure::Failure;
use crate::cli::{output, running_server, signals};
use jiff::Timestamp;
use ratatui::crossterm::event::{self, Event, KeyEvent, KeyEventKind};
use std::io::{IsTerminal, stdout};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

/// The time between two questions.
const EACH: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub struct Arguments {
    /// Where the server is [default: at HTTP_ADDR, on loopback if that is every address]
    #[arg(long)]
    url: Option<String>,
    /// Print the figures once, as lines of text; so does any output that is not a terminal
    #[arg(long)]
    once: bool,
}

/// What the loop is told by the threads around it.
enum Told {
    Answer(Box<Result<Reading, Trouble>>),
    Key(KeyEvent),
    /// The terminal has another size.
    Resized,
    Stop,
    /// A thread has ended that never should.
    Broken(&'static str),
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let url = arguments.url.clone();
    let url = url.unwrap_or_else(running_server::default_url);
    let mut client = Client::new(&url, running_server::metrics_token())?;
    let server = client.server();
    let first = client.next();
    if let Err(Trouble::Lasting(text)) = first {
        return Err(Failure::because(text.to_string()));
    }
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    if arguments.once || is_dumb || !stdout().is_terminal() {
        return match first {
            Ok(reading) => output::print(&lines::lines(&History::begin(reading))),
            Err(Trouble::Passing(text) | Trouble::Lasting(text)) => {
                Err(Failure::because(format!("{url}: {text}")))
            }
        };
    }
    let (tell, told) = mpsc::channel();
    let stop = tell.clone();
    signals::listen(move || drop(stop.send(Told::Stop)))?;
    let cannot = |e| Failure::because(format!("the terminal cannot be used: {e}"));
    let mut screen = Screen::open().map_err(cannot)?;
    let (answers, keys) = (tell.clone(), tell);
    start(
        "millpond-top-asks",
        "asking the server",
        answers,
        move |to| {
            ask(&mut client, to);
        },
    )?;
    start("millpond-top-keys", "reading keys", keys, read_keys)?;
    let mut state = Showing::new(server);
    state.answer(first);
    loop {
        screen
            .draw(|frame| screen::draw(frame, &state.shown()))
            .map_err(cannot)?;
        let Ok(first) = told.recv() else {
            return Ok(());
        };
        // What has come meanwhile is drawn at once.
        for told in std::iter::once(first).chain(told.try_iter()) {
            match told {
                Told::Answer(answer) => match *answer {
                    Err(Trouble::Lasting(text)) => return Err(Failure::because(text.to_string())),
                    answer => state.answer(answer),
                },
                Told::Key(key) => {
                    let count = state.count(screen.width());
                    if state.press(key, count) == Next::Quit {
                        return Ok(());
                    }
                }
                Told::Resized => {}
                Told::Stop => return Ok(()),
                Told::Broken(what) => {
                    return Err(Failure::because(format!("{what} has ended by a mistake")));
                }
            }
        }
    }
}

/// What is shown, and what was chosen.
struct Showing {
    server: Text,
    view: View,
    history: Option<History>,
    /// What is shown during a pause, in which the history goes on.
    paused: Option<History>,
    trouble: Option<(Text, Timestamp)>,
    look: Look,
}

impl Showing {
    fn new(server: Text) -> Showing {
        Showing {
            server,
            view: View::default(),
            history: None,
            paused: None,
            trouble: None,
            look: Look::from_env(),
        }
    }

    fn answer(&mut self, answer: Result<Reading, Trouble>) {
        match (answer, &mut self.history) {
            (Ok(reading), Some(history)) => history.take(reading),
            (Ok(reading), none) => *none = Some(History::begin(reading)),
            (Err(Trouble::Passing(why) | Trouble::Lasting(why)), _) => {
                let since = self.trouble.take().map(|(_, since)| since);
                self.trouble = Some((why, since.unwrap_or_else(Timestamp::now)));
                return;
            }
        }
        self.trouble = None;
    }

    fn press(&mut self, key: KeyEvent, count: usize) -> Next {
        let was_paused = self.view.is_paused;
        let next = self.view.press(key, count);
        if was_paused != self.view.is_paused {
            self.paused = self.history.clone().filter(|_| self.view.is_paused);
        }
        next
    }

    fn in_view(&self) -> Option<&History> {
        self.paused.as_ref().or(self.history.as_ref())
    }

    /// How many rows the list has that is shown.
    fn count(&self, width: u16) -> usize {
        self.in_view()
            .map_or(0, |history| lists::count(history, self.view.list, width))
    }

    fn shown(&self) -> Shown<'_> {
        Shown {
            server: &self.server,
            history: self.in_view(),
            view: &self.view,
            trouble: self.trouble.as_ref().map(|(why, since)| (why, *since)),
            now: Timestamp::now(),
            look: self.look,
        }
    }
}

/// Starts a thread, whose end is told.
fn start(
    name: &str,
    does: &'static str,
    tell: Sender<Told>,
    work: impl FnOnce(&Sender<Told>) + Send + 'static,
) -> Result<(), Failure> {
    struct End(Sender<Told>, &'static str);
    impl Drop for End {
        fn drop(&mut self) {
            let _ = self.0.send(Told::Broken(self.1));
        }
    }
    let end = End(tell, does);
    let begun = thread::Builder::new()
        .name(name.into())
        .spawn(move || work(&end.0));
    begun
        .map(drop)
        .map_err(|e| Failure::because(format!("no thread for {does}: {e}")))
}

fn ask(client: &mut Client, tell: &Sender<Told>) {
    let mut next = Instant::now() + EACH;
    loop {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        next = Instant::now() + EACH;
        if tell.send(Told::Answer(Box::new(client.next()))).is_err() {
            return;
        }
    }
}

/// Blocks for keys in a thread of its own: where the terminal is gone, crossterm 0.29 looks for
/// them without end.
fn read_keys(tell: &Sender<Told>) {
    while let Ok(event) = event::read() {
        let told = match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => Told::Key(key),
            Event::Resize(..) => Told::Resized,
            _ => continue,
        };
        if tell.send(told).is_err() {
            return;
        }
    }
}
