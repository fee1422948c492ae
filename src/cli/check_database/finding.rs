//! One line of the report.

use std::fmt;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Ok,
    /// Worth knowing, and perhaps worth a change.
    Note,
    /// The program would not work, or would lose data.
    Wrong,
}

/// What was found out about a topic.
#[derive(Clone, Debug)]
pub(super) struct Finding {
    pub level: Level,
    pub topic: &'static str,
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Wrong => "wrong",
        };
        // What names of the server's may contain must not break the line.
        let text = self.text.replace(char::is_control, " ");
        write!(f, "{level:<8}{:<14}{text}", self.topic)
    }
}

/// The findings about one topic.
pub(super) struct Findings {
    topic: &'static str,
    found: Vec<Finding>,
}

impl Findings {
    pub fn about(topic: &'static str) -> Findings {
        Findings {
            topic,
            found: Vec::new(),
        }
    }

    fn add(&mut self, level: Level, text: String) {
        let topic = self.topic;
        self.found.push(Finding { level, topic, text });
    }

    pub fn ok(&mut self, text: impl Into<String>) {
        self.add(Level::Ok, text.into());
    }

    pub fn note(&mut self, text: impl Into<String>) {
        self.add(Level::Note, text.into());
    }

    pub fn wrong(&mut self, text: impl Into<String>) {
        self.add(Level::Wrong, text.into());
    }

    /// Ends the topic. If nothing is amiss, that is said.
    pub fn or_ok(mut self, text: impl FnOnce() -> String) -> Vec<Finding> {
        if self.found.is_empty() {
            self.ok(text());
        }
        self.found
    }

    pub fn end(self) -> Vec<Finding> {
        self.found
    }
}
