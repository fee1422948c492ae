//! Colours, and what stands for them where there are none (`NO_COLOR`). No meaning is in a colour
//! alone.

use ratatui::style::{Color, Modifier, Style};

#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    has_colours: bool,
}

impl Look {
    pub fn new(has_colours: bool) -> Look {
        Look { has_colours }
    }

    /// With colours, unless the environment asks for none: <https://no-color.org>.
    pub fn from_env() -> Look {
        Look::new(std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()))
    }

    fn colour(self, colour: Color, instead: Modifier) -> Style {
        match self.has_colours {
            true => Style::new().fg(colour),
            false => Style::new().add_modifier(instead),
        }
    }

    pub fn good(self) -> Style {
        self.colour(Color::Green, Modifier::empty())
    }

    pub fn worth_a_look(self) -> Style {
        self.colour(Color::Yellow, Modifier::BOLD)
    }

    pub fn bad(self) -> Style {
        self.colour(Color::Red, Modifier::REVERSED)
    }

    pub fn bars(self) -> Style {
        self.colour(Color::Cyan, Modifier::empty())
    }

    pub fn strong(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    pub fn quiet(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    pub fn chosen(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    /// The style of an event's level.
    pub fn level(self, level: &str) -> Style {
        match level {
            "error" => self.bad(),
            "warning" => self.worth_a_look(),
            _ => Style::new(),
        }
    }

    /// The style of the server's state.
    pub fn state(self, name: &str, healthy: bool) -> Style {
        match (name, healthy) {
            ("failing-fast" | "database-away", _) => self.bad(),
            ("ready", true) => self.good(),
            (_, true) => self.worth_a_look(),
            (_, false) => self.bad(),
        }
    }
}
