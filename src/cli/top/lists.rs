//! The lists below the figures: who holds connections, statements, events, advice.

use super::history::History;
use super::look::Look;
use super::reading::{Advice, Event, Holder, Statement};
use super::text::Text;
use super::units::{milliseconds, number};
use super::view::{LISTS, List, View};
use super::wrap::wrapped;
use jiff::Timestamp;
use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Row, Table};

/// A screen that is narrower has only the columns that matter most.
const NARROW: u16 = 70;

/// The time of day in a server's timestamp.
pub(super) fn clock(at: &Text) -> String {
    match at.as_str().parse::<Timestamp>() {
        Ok(at) => at.strftime("%H:%M:%S").to_string(),
        Err(_) => "?".to_owned(),
    }
}

/// How many rows the list that is shown has, for a screen of this width.
pub(super) fn count(history: &History, list: List, width: u16) -> usize {
    match list {
        List::Holders => history.last.holders.len(),
        List::Statements => history.last.statements.list.len(),
        List::Events => history.events.len(),
        List::Advice => advice(&history.last.advice, width).len(),
    }
}

pub(super) fn draw(
    frame: &mut Frame<'_>,
    mut area: Rect,
    history: &History,
    view: &View,
    look: Look,
) {
    if area.height == 0 {
        return;
    }
    let heading = Rect { height: 1, ..area };
    frame.render_widget(tabs(history, view, area.width, look), heading);
    area.y += 1;
    area.height -= 1;
    let count = count(history, view.list, area.width);
    if count == 0 {
        frame.render_widget(
            Line::styled(nothing(history, view.list), look.quiet()),
            area,
        );
        return;
    }
    let chosen = view.row(count);
    if view.list == List::Advice {
        let lines = advice(&history.last.advice, area.width);
        let from = chosen.min(lines.len().saturating_sub(area.height.into()));
        let lines = lines.into_iter().skip(from).map(|(text, is_first)| {
            let style = match is_first {
                true => look.worth_a_look(),
                false => Style::new(),
            };
            Line::styled(text, style)
        });
        frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), area);
        return;
    }
    // The chosen row stays in the middle, as far as there are rows on both sides.
    let visible = usize::from(area.height.saturating_sub(1));
    let from = chosen.saturating_sub(visible / 2);
    let from = from.min(count.saturating_sub(visible));
    let is_narrow = area.width < NARROW;
    let (widths, titles) = columns(view.list, is_narrow);
    let rows = (from..count).take(visible).map(|index| {
        let (cells, style) = cells(history, view.list, index, is_narrow, look);
        let row = Row::new(cells).style(style);
        match index == chosen {
            true => row.style(style.patch(look.chosen())),
            false => row,
        }
    });
    let table = Table::new(rows, widths)
        .header(Row::new(titles).style(look.quiet()))
        .column_spacing(2);
    frame.render_widget(table, area);
}

/// The names of the lists with their lengths, as a line across the screen.
fn tabs(history: &History, view: &View, width: u16, look: Look) -> Line<'static> {
    let mut spans = vec![Span::styled("──", look.quiet())];
    for (index, (list, name)) in LISTS.into_iter().enumerate() {
        let count = match list {
            List::Advice => history.last.advice.len(),
            list => count(history, list, width),
        };
        let (number, is_shown) = (index + 1, list == view.list);
        // Where there is no room, the other lists have only their numbers.
        let text = match (is_shown, width < NARROW) {
            (true, _) => format!("[{number} {name}: {count}]"),
            (false, true) => format!(" {number}: {count} "),
            (false, false) => format!(" {number} {name}: {count} "),
        };
        let style = match (is_shown, list == List::Advice && count > 0) {
            (_, true) => look.worth_a_look(),
            (true, _) => look.strong(),
            (false, _) => look.quiet(),
        };
        spans.push(Span::styled(text, style));
        spans.push(Span::styled("─", look.quiet()));
    }
    let used: usize = spans.iter().map(Span::width).sum();
    let rest = "─".repeat(usize::from(width).saturating_sub(used));
    spans.push(Span::styled(rest, look.quiet()));
    Line::from(spans)
}

fn nothing(history: &History, list: List) -> String {
    match list {
        List::Holders => "No connection is in use.".to_owned(),
        List::Statements if history.last.texts_hidden => {
            "The server shows texts of statements only with a METRICS_TOKEN.".to_owned()
        }
        List::Statements => format!(
            "No statement has run in the last {} minutes.",
            history.last.statements.minutes
        ),
        List::Events => "Nothing has happened yet.".to_owned(),
        List::Advice => "Nothing needs to be changed.".to_owned(),
    }
}

fn columns(list: List, is_narrow: bool) -> (Vec<Constraint>, Vec<&'static str>) {
    use Constraint::{Length, Min};
    match (list, is_narrow) {
        (List::Holders, true) => (
            vec![Length(10), Length(14), Min(8)],
            vec!["held", "thread", "statement"],
        ),
        (List::Holders, false) => (
            vec![Length(10), Length(14), Length(18), Length(9), Min(12)],
            vec!["held", "thread", "checked out at", "running", "statement"],
        ),
        (List::Statements, true) => (
            vec![Length(5), Length(8), Min(8)],
            vec!["share", "p99", "statement"],
        ),
        (List::Statements, false) => (
            vec![
                Length(6),
                Length(7),
                Length(6),
                Length(8),
                Length(8),
                Min(12),
            ],
            vec!["share", "count", "failed", "mean", "p99", "statement"],
        ),
        (List::Events, true) => (vec![Length(8), Min(8)], vec!["UTC", "event"]),
        (List::Events | List::Advice, false) => (
            vec![Length(8), Length(12), Min(12)],
            vec!["UTC", "kind", "event"],
        ),
        (List::Advice, true) => (vec![Min(8)], vec![""]),
    }
}

fn cells(
    history: &History,
    list: List,
    index: usize,
    is_narrow: bool,
    look: Look,
) -> (Vec<String>, Style) {
    match list {
        List::Holders => match history.last.holders.get(index) {
            Some(holder) => holder_cells(holder, is_narrow, look),
            None => Default::default(),
        },
        List::Statements => match history.last.statements.list.get(index) {
            Some(statement) => statement_cells(statement, is_narrow, look),
            None => Default::default(),
        },
        List::Events | List::Advice => match newest(history, index) {
            Some(event) => event_cells(event, is_narrow, look),
            None => Default::default(),
        },
    }
}

/// Events are listed newest first.
fn newest(history: &History, index: usize) -> Option<&Event> {
    history.events.iter().rev().nth(index)
}

fn holder_cells(holder: &Holder, is_narrow: bool, look: Look) -> (Vec<String>, Style) {
    let held = match holder.leaked {
        true => format!("!{}", milliseconds(Some(holder.held_ms))),
        false => milliseconds(Some(holder.held_ms)),
    };
    let statement = holder.statement.as_ref().map_or("–", Text::as_str);
    let thread = holder.thread.as_str().to_owned();
    let style = match holder.leaked {
        true => look.bad(),
        false => Style::new(),
    };
    let cells = match is_narrow {
        true => vec![held, thread, statement.to_owned()],
        false => vec![
            held,
            thread,
            file_name(holder.place.as_str()).to_owned(),
            match holder.running {
                true => milliseconds(holder.statement_ms),
                false => "idle".to_owned(),
            },
            statement.to_owned(),
        ],
    };
    (cells, style)
}

/// A place in the code without the folders, for which there is no room.
fn file_name(place: &str) -> &str {
    place.rsplit(['/', '\\']).next().unwrap_or(place)
}

fn statement_cells(statement: &Statement, is_narrow: bool, look: Look) -> (Vec<String>, Style) {
    let share = match statement.share_percent {
        Some(share) => format!("{share:>3.0} %"),
        None => "–".to_owned(),
    };
    let (p99, sql) = (milliseconds(statement.p99_ms), statement.sql.as_str());
    let cells = match is_narrow {
        true => vec![share, p99, sql.to_owned()],
        false => vec![
            share,
            number(Some(statement.count as f64)),
            number(Some(statement.failures as f64)),
            milliseconds(statement.mean_ms),
            p99,
            sql.to_owned(),
        ],
    };
    let style = match statement.failures {
        0 => Style::new(),
        _ => look.worth_a_look(),
    };
    (cells, style)
}

fn event_cells(event: &Event, is_narrow: bool, look: Look) -> (Vec<String>, Style) {
    let (at, text) = (clock(&event.at), event.text.as_str().to_owned());
    let cells = match is_narrow {
        true => vec![at, text],
        false => vec![at, event.kind.as_str().to_owned(), text],
    };
    (cells, look.level(event.level.as_str()))
}

/// The advice in lines, each with whether it begins one.
fn advice(advice: &[Advice], width: u16) -> Vec<(String, bool)> {
    let mut lines = Vec::new();
    for one in advice {
        let all = wrapped(one.text.as_str(), width.into());
        lines.extend(all.into_iter().map(|line| (line, true)));
        let mut reason = one.reason.as_ref().map_or("", Text::as_str).to_owned();
        if let Some(setting) = one.setting.as_ref().filter(|name| !name.is_empty()) {
            reason += &format!(" (setting: {setting})");
        }
        let width = usize::from(width).saturating_sub(2);
        let all = wrapped(reason.trim(), width);
        lines.extend(all.into_iter().map(|line| (format!("  {line}"), false)));
    }
    lines
}

/// All that is known of the chosen row.
pub(super) fn all_of_row(history: &History, view: &View) -> Option<Vec<String>> {
    let index = view.row(count(history, view.list, u16::MAX));
    let lines = match view.list {
        List::Holders => {
            let holder = history.last.holders.get(index)?;
            let age = milliseconds(holder.statement_ms);
            let statement = match (&holder.statement, holder.running) {
                (None, _) if holder.statement_ms.is_none() => "no statement yet".to_owned(),
                (None, true) => format!("running for {age}, a statement whose text is not shown"),
                (None, false) => format!("idle for {age}"),
                (Some(sql), true) => format!("running for {age}: {sql}"),
                (Some(sql), false) => format!("idle for {age}, after: {sql}"),
            };
            let held = milliseconds(Some(holder.held_ms));
            let leaked = match holder.leaked {
                true => ", longer than DB_LEAK_THRESHOLD_MS",
                false => "",
            };
            vec![
                format!("connection {}, held for {held}{leaked}", holder.connection),
                format!("by thread {}", holder.thread),
                format!("checked out at {}", holder.place),
                String::new(),
                statement,
            ]
        }
        List::Statements => {
            let statement = history.last.statements.list.get(index)?;
            let share = statement.share_percent.unwrap_or(0.0);
            vec![
                format!(
                    "{share:.1} % of all statement time in the last {} minutes",
                    history.last.statements.minutes
                ),
                format!("{} times, {} failed", statement.count, statement.failures),
                format!(
                    "mean {}, p99 {}, at most {}",
                    milliseconds(statement.mean_ms),
                    milliseconds(statement.p99_ms),
                    milliseconds(statement.max_ms)
                ),
                String::new(),
                statement.sql.to_string(),
            ]
        }
        List::Events => {
            let event = newest(history, index)?;
            vec![
                format!("{} ({}) at {}", event.kind, event.level, event.at),
                String::new(),
                event.text.to_string(),
            ]
        }
        List::Advice => return None,
    };
    Some(lines)
}
