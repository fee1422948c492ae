//! The pool's figures: its connections as a bar, and the last minutes of what it does.

use super::history::{Fold, History, Sample};
use super::look::Look;
use super::reading::{Counts, Server, Standby};
use super::units::{milliseconds, number};
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Sparkline, SparklineBar};

/// Columns of the names at the left.
const NAMES: u16 = 14;
/// Columns of a value.
const VALUES: u16 = 10;
/// A screen that is narrower has no bars for connections, and no highest values.
const NARROW: u16 = 60;
const LONGEST_BAR: u16 = 40;
/// What the highest value of a row is as a bar.
const HIGHEST_BAR: f64 = 10_000.0;

#[derive(Clone, Copy)]
struct Figure {
    name: &'static str,
    of: fn(&Sample) -> Option<f64>,
    fold: Fold,
    shown: fn(Option<f64>) -> String,
    /// More than nothing is worth a look.
    is_trouble: bool,
    /// Where there is no room for all, those of the lowest rank are shown.
    rank: usize,
}

const fn rate(name: &'static str, of: fn(&Sample) -> Option<f64>, rank: usize) -> Figure {
    Figure {
        name,
        of,
        fold: Fold::Mean,
        shown: number,
        is_trouble: false,
        rank,
    }
}

const fn time(name: &'static str, of: fn(&Sample) -> Option<f64>, rank: usize) -> Figure {
    Figure {
        name,
        of,
        fold: Fold::Highest,
        shown: milliseconds,
        is_trouble: false,
        rank,
    }
}

const fn trouble(figure: Figure) -> Figure {
    Figure {
        is_trouble: true,
        ..figure
    }
}

const FIGURES: [Figure; 8] = [
    Figure {
        name: "in line",
        of: |s| s.waiting,
        fold: Fold::Highest,
        shown: number,
        is_trouble: true,
        rank: 0,
    },
    time("wait p99", |s| s.wait_p99, 7),
    rate("statements/s", |s| s.statements, 4),
    time("statement p50", |s| s.statement_p50, 6),
    time("statement p99", |s| s.statement_p99, 1),
    rate("requests/s", |s| s.requests, 2),
    trouble(rate("errors/s", |s| s.errors, 3)),
    trouble(rate("retries/s", |s| s.retries, 5)),
];

/// The connections of the pool; where there is room, those of the server and of some standbys.
pub(super) fn connections(
    history: &History,
    width: u16,
    server: bool,
    standbys: usize,
    look: Look,
) -> Vec<Line<'static>> {
    let last = &history.last;
    let mut lines = vec![pool(last.pool, width, look)];
    if server {
        lines.push(server_line(last.server.as_ref(), width, look));
    }
    lines.extend(last.standbys.iter().take(standbys).map(standby));
    lines
}

fn pool(counts: Counts, width: u16, look: Look) -> Line<'static> {
    let text = format!(
        "{} active, {} opening, {} idle, of {}",
        counts.active, counts.opening, counts.idle, counts.max
    );
    let parts = [
        (counts.active, "█", look.bars()),
        (counts.opening, "▓", look.worth_a_look()),
        (counts.idle, "▒", look.good()),
    ];
    with_bar("connections", &parts, counts.max, text, width)
}

fn server_line(server: Option<&Server>, width: u16, look: Look) -> Line<'static> {
    let Some(server) = server else {
        return with_bar("server", &[], 0, "not seen yet".to_owned(), width);
    };
    let text = format!(
        "{} used, room for {}, of {}",
        server.used_connections, server.available_connections, server.max_connections
    );
    let scarce = server.available_connections < server.max_connections / 10;
    let style = if scarce { look.bad() } else { look.bars() };
    let parts = [(server.used_connections, "█", style)];
    with_bar("server", &parts, server.max_connections, text, width)
}

fn standby(standby: &Standby) -> Line<'static> {
    let mut text = format!("{:<14}{}: {}", "standby", standby.host, standby.state);
    if standby.lag_ms.is_some() {
        text += &format!(", {} behind", milliseconds(standby.lag_ms));
    }
    text += &format!(", {} active of {}", standby.pool.active, standby.pool.max);
    if let Some(error) = &standby.error {
        text += &format!(", {error}");
    }
    Line::from(text)
}

/// A name, a bar of these parts of a whole, and a text.
fn with_bar(
    name: &str,
    parts: &[(u64, &str, Style)],
    whole: u64,
    text: String,
    width: u16,
) -> Line<'static> {
    if width < NARROW {
        return Line::from(text);
    }
    let mut spans = vec![Span::raw(format!("{name:<14}"))];
    let room = width.saturating_sub(NAMES + 2);
    let room = usize::from(room).saturating_sub(Span::raw(&text).width());
    let columns = room.min(LONGEST_BAR.into());
    let mut left = columns;
    for (count, symbol, style) in parts {
        let share = *count as f64 / whole.max(1) as f64 * columns as f64;
        // Even one connection is to be seen.
        let wide = (share.round() as usize).max(usize::from(*count > 0));
        let wide = wide.min(left);
        left -= wide;
        spans.push(Span::styled(symbol.repeat(wide), *style));
    }
    spans.push(Span::raw("·".repeat(left)));
    spans.push(Span::raw(format!("  {text}")));
    Line::from(spans)
}

/// Draws as many figures as there is room for. Returns how many lines they took.
pub(super) fn draw(
    frame: &mut Frame<'_>,
    area: Rect,
    history: &History,
    minutes: u64,
    look: Look,
) -> u16 {
    let all = FIGURES.len() as u16;
    let has_heading = area.height > 4;
    let lines = area.height.saturating_sub(u16::from(has_heading));
    let count = lines.min(all);
    if count == 0 {
        return 0;
    }
    let tall = if lines >= 2 * all { 2 } else { 1 };
    let mut row = Rect { height: 1, ..area };
    if has_heading {
        frame.render_widget(heading(area.width, minutes, look), row);
        row.y += 1;
    }
    row.height = tall;
    let shown = FIGURES
        .iter()
        .filter(|figure| figure.rank < usize::from(count));
    for figure in shown {
        draw_row(frame, row, figure, history, minutes, look);
        row.y += tall;
    }
    row.y - area.y
}

fn heading(width: u16, minutes: u64, look: Look) -> Line<'static> {
    let span = match minutes {
        1 => "── the last minute ".to_owned(),
        minutes => format!("── the last {minutes} minutes "),
    };
    let (now, highest) = match width < NARROW {
        true => (" now", ""),
        false => ("       now", "   highest"),
    };
    let right = format!("{now}{highest}");
    let used = Span::raw(&span).width() + right.len();
    let line = "─".repeat(usize::from(width).saturating_sub(used));
    Line::styled(format!("{span}{line}{right}"), look.quiet())
}

fn draw_row(
    frame: &mut Frame<'_>,
    row: Rect,
    figure: &Figure,
    history: &History,
    minutes: u64,
    look: Look,
) {
    let has_highest = row.width >= NARROW;
    let values = VALUES * (1 + u16::from(has_highest));
    let columns = row.width.saturating_sub(NAMES + values);
    let bars = history.bars(figure.of, figure.fold, columns.into(), minutes * 60);
    let now = history.now(figure.of);
    let highest = bars.iter().flatten().copied().reduce(f64::max);
    let is_trouble = figure.is_trouble && now.is_some_and(|now| now > 0.0);
    let style = match is_trouble {
        true => look.worth_a_look(),
        false => Style::new(),
    };
    let bars_at = Rect {
        x: row.x + NAMES.min(row.width),
        width: columns,
        ..row
    };
    let line = Sparkline::default()
        .data(scaled(&bars, highest, row.height))
        .max(HIGHEST_BAR as u64)
        .style(look.bars());
    frame.render_widget(line, bars_at);
    // The bars stand on the last line of the row, and so does the rest.
    let base = Rect {
        y: row.bottom() - 1,
        height: 1,
        ..row
    };
    frame.render_widget(
        Line::styled(figure.name, style),
        Rect {
            width: NAMES.min(row.width),
            ..base
        },
    );
    let mut text = vec![Span::styled(
        format!("{:>10}", (figure.shown)(now)),
        style.patch(look.strong()),
    )];
    if has_highest {
        let highest = format!("{:>10}", (figure.shown)(highest));
        text.push(Span::styled(highest, look.quiet()));
    }
    let values_at = Rect {
        x: bars_at.right(),
        width: row.right().saturating_sub(bars_at.right()),
        ..base
    };
    frame.render_widget(Line::from(text), values_at);
}

/// Bars of which each that is not zero is to be seen.
fn scaled(bars: &[Option<f64>], highest: Option<f64>, height: u16) -> Vec<SparklineBar> {
    let highest = highest.filter(|highest| highest.is_normal()).unwrap_or(1.0);
    let least = HIGHEST_BAR / f64::from(8 * height);
    let bar = |value: f64| match value > 0.0 {
        true => (value / highest * HIGHEST_BAR).max(least).ceil() as u64,
        false => 0,
    };
    bars.iter()
        .map(|value| SparklineBar::from(value.map(bar)))
        .collect()
}
