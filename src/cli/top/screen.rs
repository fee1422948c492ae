//! The whole screen, drawn from values alone.

use super::history::History;
use super::look::Look;
use super::text::Text;
use super::view::{Sheet, View};
use super::wrap::wrapped;
use super::{figures, lists, units};
use jiff::Timestamp;
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph};

/// Everything that is on the screen.
pub(super) struct Shown<'a> {
    pub server: &'a Text,
    /// None until the server has answered once.
    pub history: Option<&'a History>,
    pub view: &'a View,
    /// Why there is no new reading, and since when.
    pub trouble: Option<(&'a Text, Timestamp)>,
    pub now: Timestamp,
    pub look: Look,
}

const HELP: [(&str, &str); 11] = [
    ("q, Esc, Ctrl-C", "quit"),
    ("Tab, 1 to 4", "another list"),
    ("↑ ↓", "another row"),
    ("PgUp PgDn", "ten rows on"),
    ("Home End", "the first row, the last"),
    ("Enter", "all of a row"),
    ("m", "1, 5 or 15 minutes"),
    ("p", "stop here, and go on"),
    ("?", "this help"),
    ("█ ▓ ▒ ·", "active, opening, idle, not open"),
    ("!", "held for too long"),
];
const KEYS: &str = "q quit  ? help  Tab list  ↑↓ row  Enter all of it  m minutes  p pause";

pub(super) fn draw(frame: &mut Frame<'_>, shown: &Shown<'_>) {
    let mut page = Page {
        left: frame.area(),
        frame,
    };
    page.line(title(shown, page.left.width));
    let keys = page.last_line();
    page.frame.render_widget(footer(shown), keys);
    if let Some((why, since)) = shown.trouble {
        let most = if page.left.height >= 10 { 2 } else { 1 };
        for line in sentence(&trouble(shown, why, since), page.left.width, most) {
            page.line(Line::styled(line, shown.look.bad()));
        }
    }
    if let Some(history) = shown.history {
        body(page, history, shown);
    }
    match (shown.view.sheet, shown.history) {
        (Sheet::Help, _) => help(frame, shown.look),
        (Sheet::Row(from), Some(history)) => {
            if let Some(lines) = lists::all_of_row(history, shown.view) {
                let title = " any other key goes back ";
                sheet(frame, title, &lines, from, shown.look);
            }
        }
        (Sheet::Row(_), None) | (Sheet::None, _) => {}
    }
}

/// What the server has told.
fn body(mut page: Page<'_, '_>, history: &History, shown: &Shown<'_>) {
    let (whole, look) = (page.left.height, shown.look);
    let state = &history.last.state;
    let style = look.state(state.name.as_str(), state.healthy);
    let most = if whole >= 18 { 2 } else { 1 };
    for line in sentence(state.sentence.as_str(), page.left.width, most) {
        page.line(Line::styled(line, style));
    }
    let standbys = usize::from(whole.saturating_sub(20) / 2).min(3);
    for line in figures::connections(history, page.left.width, whole >= 16, standbys, look) {
        page.line(line);
    }
    // The list is given a third of the screen at least.
    let for_list = (whole / 3).max(4);
    let room = page.left.height.saturating_sub(for_list);
    let room = page.left.resize_height(room);
    let used = figures::draw(page.frame, room, history, shown.view.minutes, look);
    page.skip(used);
    lists::draw(page.frame, page.left, history, shown.view, look);
}

/// What is left of the screen, from the top.
struct Page<'a, 'b> {
    frame: &'a mut Frame<'b>,
    left: Rect,
}

/// A rectangle that is no higher than this.
trait ResizeHeight {
    fn resize_height(self, height: u16) -> Rect;
}

impl ResizeHeight for Rect {
    fn resize_height(mut self, height: u16) -> Rect {
        self.height = self.height.min(height);
        self
    }
}

impl Page<'_, '_> {
    fn line(&mut self, line: Line<'_>) {
        if self.left.height > 0 {
            let area = self.left.resize_height(1);
            self.frame.render_widget(line, area);
            self.skip(1);
        }
    }

    fn skip(&mut self, lines: u16) {
        let lines = lines.min(self.left.height);
        self.left.y += lines;
        self.left.height -= lines;
    }

    fn last_line(&mut self) -> Rect {
        let mut line = self.left.resize_height(1);
        line.y = self.left.bottom() - line.height;
        self.left.height -= line.height;
        line
    }
}

/// Two texts at the ends of a line; the first one is cut where there is no room.
fn ends<'a>(left: String, right: String, width: u16, style: Style) -> Line<'a> {
    let (left, right) = (Span::styled(left, style), Span::raw(right));
    let room = usize::from(width).saturating_sub(left.width() + right.width());
    if room == 0 {
        return Line::from(left);
    }
    Line::from(vec![left, Span::raw(" ".repeat(room)), right])
}

/// The sentence in no more lines than these.
fn sentence(text: &str, width: u16, most: usize) -> Vec<String> {
    let mut lines = wrapped(text, width.into());
    if lines.len() > most {
        // Broken again with room for the dots.
        lines = wrapped(text, usize::from(width).saturating_sub(2));
        lines.truncate(most);
        if let Some(last) = lines.last_mut() {
            last.push('…');
        }
    }
    lines
}

fn title<'a>(shown: &Shown<'_>, width: u16) -> Line<'a> {
    let Some(history) = shown.history else {
        let left = format!("millpond top at {}", shown.server);
        return ends(left, String::new(), width, shown.look.strong());
    };
    let last = &history.last;
    let left = format!("{} {} at {}", last.application, last.release, shown.server);
    let clock = lists::clock(&last.timestamp);
    let run: (Result<Timestamp, _>, Result<Timestamp, _>) = (
        last.timestamp.as_str().parse(),
        last.started_at.as_str().parse(),
    );
    let right = match run {
        (Ok(now), Ok(start)) => {
            let up = now.duration_since(start).as_secs_f64();
            format!("up {}  {clock} UTC", units::duration(up))
        }
        _ => String::new(),
    };
    ends(left, right, width, shown.look.strong())
}

fn trouble(shown: &Shown<'_>, why: &Text, since: Timestamp) -> String {
    let lasted = shown.now.duration_since(since).as_secs_f64();
    format!(
        "Away since {} UTC, for {}: {why}",
        since.strftime("%H:%M:%S"),
        units::duration(lasted)
    )
}

fn footer<'a>(shown: &Shown<'_>) -> Line<'a> {
    let mut spans = Vec::new();
    if shown.view.is_paused {
        spans.push(Span::styled("paused: p goes on", shown.look.chosen()));
        spans.push(Span::raw("  "));
    }
    spans.push(Span::styled(KEYS, shown.look.quiet()));
    Line::from(spans)
}

fn help(frame: &mut Frame<'_>, look: Look) {
    let lines = HELP.map(|(key, does)| (key.to_owned(), does.to_owned()));
    let lines: Vec<_> = lines
        .iter()
        .map(|(key, does)| format!("{key:<16}{does}"))
        .collect();
    sheet(frame, " keys ", &lines, 0, look);
}

/// Lines in a frame over the middle of the screen.
fn sheet(frame: &mut Frame<'_>, title: &str, lines: &[String], from: usize, look: Look) {
    let whole = frame.area();
    let margin = if whole.width >= 60 { 4 } else { 0 };
    let width = whole.width.saturating_sub(2 * margin);
    let lines: Vec<_> = lines
        .iter()
        .flat_map(|line| wrapped(line, usize::from(width.saturating_sub(4))))
        .collect();
    let height = u16::try_from(lines.len()).unwrap_or(u16::MAX);
    let height = height.saturating_add(2).min(whole.height);
    let area = Rect {
        x: margin,
        y: (whole.height - height) / 2,
        width,
        height,
    };
    let visible = usize::from(height.saturating_sub(2));
    let from = from.min(lines.len().saturating_sub(visible));
    let text: Vec<_> = lines.into_iter().skip(from).map(Line::from).collect();
    let block = Block::bordered()
        .title(title.to_owned())
        .title_style(look.strong())
        .padding(ratatui::widgets::Padding::horizontal(1));
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(text).block(block), area);
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::buffer::Buffer;
    use ratatui::crossterm::event::{KeyCode, KeyEvent};
    use ratatui::style::Color;

    fn buffer(shown: &Shown<'_>, width: u16, height: u16) -> Buffer {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, shown)).unwrap();
        terminal.backend().buffer().clone()
    }

    /// The text on the screen, as its reader sees it.
    fn text(buffer: &Buffer) -> String {
        let mut all = String::new();
        for line in buffer.content.chunks(buffer.area.width.into()) {
            let mut cells = line.iter();
            let mut text = String::new();
            while let Some(cell) = cells.next() {
                text.push_str(cell.symbol());
                // A wide character covers the next cell as well.
                for _ in 1..Span::raw(cell.symbol()).width() {
                    cells.next();
                }
            }
            all.push_str(text.trim_end());
            all.push('\n');
        }
        all
    }

    fn view(keys: &[KeyCode]) -> View {
        let mut view = View::default();
        for key in keys {
            view.press(KeyEvent::from(*key), 1);
        }
        view
    }

    fn picture(history: &History, view: &View, (width, height): (u16, u16)) -> String {
        let server = Text::from("127.0.0.1:3000");
        let shown = Shown {
            server: &server,
            history: Some(history),
            view,
            trouble: None,
            now: Timestamp::UNIX_EPOCH,
            look: Look::new(true),
        };
        text(&buffer(&shown, width, height))
    }

    #[track_caller]
    fn has(picture: &str, all: &[&str]) {
        for line in all {
            assert!(picture.contains(line), "{line:?} is not in\n{picture}");
        }
    }

    fn busy() -> History {
        History::begin(sample::busy())
    }

    #[test]
    fn the_picture_in_the_readme_is_what_is_drawn() {
        let readme = include_str!("../../../README.md");
        let place = "<!-- The picture of millpond top is checked by a test, which prints the right one. -->\n\n```text\n";
        let (_, after) = readme.split_once(place).unwrap();
        let (there, _) = after.split_once("```").unwrap();
        let drawn = picture(&busy(), &View::default(), (100, 24));
        assert!(there == drawn, "the README's picture should be:\n{drawn}");
    }

    #[test]
    fn a_screen_of_80_by_24_has_all_figures_and_a_list() {
        let drawn = picture(&busy(), &View::default(), (80, 24));
        has(
            &drawn,
            &[
                "millpond 0.1.0 at 127.0.0.1:3000",
                "up 7 min 2 s  18:37:02 UTC",
                "Ready: statements are answered; 13 of 20 connections are free.",
                "7 active, 1 opening, 4 idle, of 20",
                "12 used, room for 85, of 100",
                "in line",
                "wait p99",
                "statements/s",
                "statement p50",
                "statement p99",
                "requests/s",
                "errors/s",
                "retries/s",
                "[1 Holders: 4]",
                "2 Statements: 2",
                "3 Events: 3",
                "4 Advice: 1",
                "!1 min 4 s",
                "millpond-api-3",
                "quotes.rs:112:17",
                "q quit",
            ],
        );
        assert_eq!(drawn.lines().count(), 24, "{drawn}");
    }

    #[test]
    fn a_large_screen_has_the_standbys_and_taller_bars() {
        let drawn = picture(&busy(), &View::default(), (120, 40));
        has(
            &drawn,
            &[
                "standby       10.0.0.2:5432: used, 3.10 ms behind, 1 active of 20",
                "UPDATE studio.quotes SET status = $1 WHERE id",
            ],
        );
    }

    #[test]
    fn a_small_screen_has_what_matters_most() {
        let drawn = picture(&busy(), &View::default(), (40, 12));
        has(
            &drawn,
            &[
                "millpond 0.1.0 at 127.0.0.1:3000",
                "Ready: statements are answered;",
                "7 active, 1 opening, 4 idle, of 20",
                "in line",
                "statement p99",
                "requests/s",
                "[1 Holders: 4]",
                "!1 min 4 s",
                "q quit",
            ],
        );
        assert!(!drawn.contains("wait p99"), "{drawn}");
    }

    #[test]
    fn each_list_is_shown_and_all_of_a_row_where_that_is_asked_for() {
        let statements = view(&[KeyCode::Char('2')]);
        has(
            &picture(&busy(), &statements, (100, 30)),
            &["share", "count", " 61 %", "5210", "48.0 ms"],
        );
        let events = view(&[KeyCode::Char('3')]);
        let drawn = picture(&busy(), &events, (100, 30));
        has(&drawn, &["18:35:58  leak", "18:30:00  started"]);
        // The newest first.
        assert!(drawn.find("18:35:58") < drawn.find("18:30:00"), "{drawn}");
        let advice = view(&[KeyCode::Char('4')]);
        has(
            &picture(&busy(), &advice, (100, 30)),
            &[
                "raise DB_POOL_MAX.",
                "  In the last 5 minutes",
                "(setting: DB_POOL_MAX)",
            ],
        );
        let row = view(&[KeyCode::Enter]);
        has(
            &picture(&busy(), &row, (80, 24)),
            &[
                "connection 5, held for 1 min 4 s, longer than DB_LEAK_THRESHOLD_MS",
                "checked out at src/reports/monthly.rs:88:21",
                "GROUP BY 1, 2",
            ],
        );
        let help = view(&[KeyCode::Char('?')]);
        has(
            &picture(&busy(), &help, (80, 24)),
            &["Ctrl-C", "1, 5 or 15 minutes"],
        );
        let paused = view(&[KeyCode::Char('p')]);
        has(&picture(&busy(), &paused, (40, 12)), &["paused: p goes on"]);
    }

    #[test]
    fn a_server_that_has_done_nothing_has_no_figures_and_no_fault() {
        for size in [(80, 24), (120, 40), (40, 12)] {
            let drawn = picture(&sample::empty(), &View::default(), size);
            has(&drawn, &["in line", "–", "No connection is in use."]);
            assert!(!drawn.contains('█'), "{drawn}");
        }
        has(
            &picture(&sample::empty(), &View::default(), (80, 24)),
            &["not seen yet"],
        );
    }

    #[test]
    fn a_server_that_is_away_is_said_to_be_and_what_was_known_stays() {
        let (server, why) = (Text::from("h:1"), Text::from("no answer: refused"));
        let (view, history) = (View::default(), busy());
        let since = "2026-11-29T18:37:03Z".parse::<Timestamp>().unwrap();
        let mut shown = Shown {
            server: &server,
            history: None,
            view: &view,
            trouble: Some((&why, since)),
            now: since + std::time::Duration::from_secs(12),
            look: Look::new(false),
        };
        let away = "Away since 18:37:03 UTC, for 12 s: no answer: refused";
        has(
            &text(&buffer(&shown, 80, 24)),
            &["millpond top at h:1", away],
        );
        shown.history = Some(&history);
        has(&text(&buffer(&shown, 80, 24)), &[away, "[1 Holders: 4]"]);
    }

    #[test]
    fn no_size_and_no_reading_is_too_much() {
        let (server, why) = (Text::from("\u{1b}[2J"), Text::from("\u{1b}c"));
        let hostile = History::begin(sample::hostile());
        let sheets = [KeyCode::Esc, KeyCode::Enter, KeyCode::Char('?')];
        for history in [&hostile, &busy(), &sample::empty()] {
            for (width, height) in [
                (1, 1),
                (2, 30),
                (9, 3),
                (13, 7),
                (25, 9),
                (40, 12),
                (59, 15),
                (60, 16),
                (69, 17),
                (80, 24),
                (120, 40),
                (400, 3),
                (400, 120),
            ] {
                for (number, sheet) in "1234".chars().flat_map(|n| sheets.map(|s| (n, s))) {
                    let view = view(&[KeyCode::Char(number), sheet, KeyCode::End]);
                    let shown = Shown {
                        server: &server,
                        history: Some(history),
                        view: &view,
                        trouble: Some((&why, Timestamp::MAX)),
                        now: Timestamp::MIN,
                        look: Look::new(true),
                    };
                    let buffer = buffer(&shown, width, height);
                    let control = |symbol: &str| symbol.chars().any(char::is_control);
                    assert!(!buffer.content.iter().any(|cell| control(cell.symbol())));
                }
            }
        }
        let events = view(&[KeyCode::Char('3')]);
        has(&picture(&hostile, &events, (80, 24)), &["日本語", "DROP"]);
    }

    #[test]
    fn without_colours_there_is_none() {
        let server = Text::from("h:1");
        let history = busy();
        for number in "1234".chars() {
            let view = view(&[KeyCode::Char(number)]);
            let mut shown = Shown {
                server: &server,
                history: Some(&history),
                view: &view,
                trouble: None,
                now: Timestamp::UNIX_EPOCH,
                look: Look::new(false),
            };
            let is_plain = |buffer: &Buffer| {
                let mut cells = buffer.content.iter();
                cells.all(|cell| (cell.fg, cell.bg) == (Color::Reset, Color::Reset))
            };
            assert!(is_plain(&buffer(&shown, 80, 24)), "{number}");
            shown.look = Look::new(true);
            assert!(!is_plain(&buffer(&shown, 80, 24)), "{number}");
        }
    }
}
