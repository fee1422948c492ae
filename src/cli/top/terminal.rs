//! The terminal, which is given back as it was found, also after a panic.

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use std::io::{self, Stdout, stdout};
use std::mem::ManuallyDrop;
use std::panic;

/// The whole screen of the terminal, until this is dropped.
pub(super) struct Screen {
    // Its own drop prints to standard error, which panics where the terminal is gone (ratatui-core
    // 0.1.2).
    terminal: ManuallyDrop<Terminal<CrosstermBackend<Stdout>>>,
}

impl Screen {
    pub fn open() -> io::Result<Screen> {
        enable_raw_mode()?;
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panicked| {
            give_back();
            before(panicked);
        }));
        let opened = execute!(stdout(), EnterAlternateScreen)
            .and_then(|()| Terminal::new(CrosstermBackend::new(stdout())));
        match opened {
            Ok(terminal) => Ok(Screen {
                terminal: ManuallyDrop::new(terminal),
            }),
            Err(e) => {
                give_back();
                Err(e)
            }
        }
    }

    pub fn draw(&mut self, draw: impl FnOnce(&mut ratatui::Frame<'_>)) -> io::Result<()> {
        self.terminal.draw(draw).map(drop)
    }

    /// The columns of the screen.
    pub fn width(&self) -> u16 {
        self.terminal.size().map_or(80, |size| size.width)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// If the terminal is gone, nothing has to be given back.
fn give_back() {
    let _ = disable_raw_mode();
    let _ = execute!(stdout(), LeaveAlternateScreen, Show);
}
