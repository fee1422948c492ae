//! What the user has chosen with the keys.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// Rows that Page Up and Page Down move by.
const PAGE: usize = 10;
/// The spans of the figures, in minutes.
const SPANS: [u64; 3] = [1, 5, 15];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum List {
    #[default]
    Holders,
    Statements,
    Events,
    Advice,
}

pub(super) const LISTS: [(List, &str); 4] = [
    (List::Holders, "Holders"),
    (List::Statements, "Statements"),
    (List::Events, "Events"),
    (List::Advice, "Advice"),
];

/// What lies over the screen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sheet {
    #[default]
    None,
    Help,
    /// All of the chosen row, from this line on.
    Row(usize),
}

#[derive(Clone, Debug)]
pub(super) struct View {
    pub list: List,
    /// The chosen row of each list; of the advice, the first line that is shown.
    rows: [usize; LISTS.len()],
    pub minutes: u64,
    pub is_paused: bool,
    pub sheet: Sheet,
}

impl Default for View {
    fn default() -> View {
        View {
            list: List::Holders,
            rows: [0; LISTS.len()],
            minutes: SPANS[1],
            is_paused: false,
            sheet: Sheet::None,
        }
    }
}

/// What follows a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Draw,
    Quit,
}

impl View {
    /// The chosen row of the list that is shown, which has so many.
    pub fn row(&self, count: usize) -> usize {
        self.rows[self.list as usize].min(count.saturating_sub(1))
    }

    /// Takes a key; the list that is shown has so many rows.
    pub fn press(&mut self, key: KeyEvent, count: usize) -> Next {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('q') => return Next::Quit,
            KeyCode::Char('c') if control => return Next::Quit,
            _ if control => {}
            KeyCode::Up | KeyCode::Char('k') => self.scroll(|at| at.saturating_sub(1), count),
            KeyCode::Down | KeyCode::Char('j') => self.scroll(|at| at.saturating_add(1), count),
            KeyCode::PageUp => self.scroll(|at| at.saturating_sub(PAGE), count),
            KeyCode::PageDown => self.scroll(|at| at.saturating_add(PAGE), count),
            KeyCode::Home => self.scroll(|_| 0, count),
            KeyCode::End => self.scroll(|_| usize::MAX, count),
            KeyCode::Char('p') => self.is_paused = !self.is_paused,
            // Any other key takes the sheet away.
            _ if self.sheet != Sheet::None => self.sheet = Sheet::None,
            KeyCode::Esc => return Next::Quit,
            KeyCode::Char('?' | 'h') => self.sheet = Sheet::Help,
            KeyCode::Enter if self.list != List::Advice && count > 0 => self.sheet = Sheet::Row(0),
            KeyCode::Tab | KeyCode::Right => self.turn(1),
            KeyCode::BackTab | KeyCode::Left => self.turn(LISTS.len() - 1),
            KeyCode::Char(number @ '1'..='4') => {
                self.list = LISTS[number as usize - '1' as usize].0;
            }
            KeyCode::Char('m') => {
                let next = SPANS.into_iter().find(|span| *span > self.minutes);
                self.minutes = next.unwrap_or(SPANS[0]);
            }
            _ => {}
        }
        Next::Draw
    }

    fn turn(&mut self, by: usize) {
        self.list = LISTS[(self.list as usize + by) % LISTS.len()].0;
    }

    fn scroll(&mut self, to: impl Fn(usize) -> usize, count: usize) {
        match &mut self.sheet {
            Sheet::Help => {}
            // What is drawn ends where the text does.
            Sheet::Row(line) => *line = to(*line).min(9999),
            Sheet::None => {
                let row = self.row(count);
                self.rows[self.list as usize] = to(row).min(count.saturating_sub(1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(view: &mut View, keys: &[KeyCode], count: usize) -> Next {
        let mut next = Next::Draw;
        for key in keys {
            next = view.press(KeyEvent::from(*key), count);
        }
        next
    }

    #[test]
    fn keys_switch_between_the_lists_and_move_in_them() {
        let mut view = View::default();
        press(&mut view, &[KeyCode::Tab, KeyCode::Tab], 0);
        assert_eq!(view.list, List::Events);
        press(
            &mut view,
            &[KeyCode::Tab, KeyCode::Tab, KeyCode::BackTab],
            0,
        );
        assert_eq!(view.list, List::Advice);
        press(
            &mut view,
            &[KeyCode::Char('2'), KeyCode::Up, KeyCode::Down],
            20,
        );
        assert_eq!((view.list, view.row(20)), (List::Statements, 1));
        press(&mut view, &[KeyCode::End, KeyCode::Down], 20);
        assert_eq!(view.row(20), 19);
        // The list has become shorter.
        assert_eq!(view.row(3), 2);
        press(&mut view, &[KeyCode::Up], 3);
        assert_eq!(view.row(20), 1);
        press(&mut view, &[KeyCode::PageUp, KeyCode::Down], 0);
        assert_eq!(view.row(0), 0);
    }

    #[test]
    fn every_way_out_leads_out_and_a_sheet_is_taken_away_first() {
        let mut view = View::default();
        assert_eq!(press(&mut view, &[KeyCode::Char('q')], 1), Next::Quit);
        assert_eq!(press(&mut view, &[KeyCode::Esc], 1), Next::Quit);
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(view.press(interrupt, 1), Next::Quit);
        press(&mut view, &[KeyCode::Enter, KeyCode::Down], 1);
        assert_eq!(view.sheet, Sheet::Row(1));
        assert_eq!(press(&mut view, &[KeyCode::Esc], 1), Next::Draw);
        assert_eq!(view.sheet, Sheet::None);
        press(&mut view, &[KeyCode::Char('?')], 1);
        assert_eq!(view.sheet, Sheet::Help);
        assert_eq!(press(&mut view, &[KeyCode::Char('q')], 1), Next::Quit);
    }

    #[test]
    fn the_span_and_the_pause_go_round() {
        let mut view = View::default();
        let mut spans = Vec::new();
        for _ in 0..3 {
            press(&mut view, &[KeyCode::Char('m')], 1);
            spans.push(view.minutes);
        }
        assert_eq!(spans, [15, 1, 5]);
        press(&mut view, &[KeyCode::Char('p')], 1);
        assert!(view.is_paused);
        press(&mut view, &[KeyCode::Char('p')], 1);
        assert!(!view.is_paused);
    }
}
