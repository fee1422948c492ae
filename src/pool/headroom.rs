//! What the server is asked about its room for more connections, and how the answer is read.

use crate::metrics::Headroom;
use log::warn;
use postgres::{SimpleQueryMessage, SimpleQueryRow};
use std::time::{Duration, Instant};

/// One row for each application: its name, how many sessions it has, and the server's limits. A role
/// without rights sees as much. Background processes, which count apart, have no user or no database,
/// and parallel workers a leader.
pub(super) const SQL: &str = "SELECT a.application_name, count(*), \
     current_setting('max_connections'), \
     current_setting('superuser_reserved_connections')::int \
         + coalesce(current_setting('reserved_connections', true), '0')::int \
     FROM pg_catalog.pg_stat_activity AS a \
     WHERE a.usesysid IS NOT NULL AND a.datid IS NOT NULL AND a.leader_pid IS NULL \
     GROUP BY 1 ORDER BY 2 DESC, 1";

/// How long a warning about little room lasts.
const WARN_AGAIN: Duration = Duration::from_secs(5 * 60);

/// The most applications that are named; the others are counted together.
const MOST_NAMES: usize = 20;

/// The server's room for more connections as it was seen last, and when.
#[derive(Default)]
pub(super) struct Room {
    pub seen: Option<Headroom>,
    looked_at: Option<Instant>,
    warned_at: Option<Instant>,
}

impl Room {
    /// How often it is looked at.
    pub const LOOK_EVERY: Duration = Duration::from_secs(10);

    pub fn is_due(&self) -> bool {
        self.looked_at
            .is_none_or(|at| at.elapsed() >= Room::LOOK_EVERY)
    }

    pub fn note(&mut self, seen: Option<Headroom>) {
        self.looked_at = Some(Instant::now());
        if let Some(room) = seen.as_ref().filter(|room| room.is_low())
            && (self.warned_at).is_none_or(|at| at.elapsed() >= WARN_AGAIN)
        {
            let most = room.by_application.iter().take(3);
            let most: Vec<_> = most.map(|(name, n)| format!("{n} of {name:?}")).collect();
            warn!(
                "the server has room for {} more connections: {} of max_connections={} are in use ({})",
                room.available(),
                room.in_use,
                room.max,
                most.join(", ")
            );
            self.warned_at = Some(Instant::now());
        }
        self.seen = seen;
    }
}

/// Reads the answer to [`SQL`]. None if it is not what was asked for.
pub(super) fn read(answer: &[SimpleQueryMessage]) -> Option<Headroom> {
    let rows = answer.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    of(rows.map(Line::of).collect::<Option<_>>()?)
}

fn of(lines: Vec<Line>) -> Option<Headroom> {
    let first = lines.first()?;
    let mut headroom = Headroom {
        max: first.max,
        reserved: first.reserved,
        ..Headroom::default()
    };
    let mut others = 0;
    for line in lines {
        headroom.in_use += line.count;
        match headroom.by_application.len() < MOST_NAMES {
            true => headroom.by_application.push((line.name, line.count)),
            false => others += line.count,
        }
    }
    if others > 0 {
        headroom.by_application.push(("(others)".into(), others));
    }
    Some(headroom)
}

struct Line {
    name: String,
    count: usize,
    max: usize,
    reserved: usize,
}

impl Line {
    fn of(row: &SimpleQueryRow) -> Option<Line> {
        let text = |column| row.try_get(column).ok().flatten();
        let number = |column| text(column)?.parse().ok();
        Some(Line {
            name: text(0).unwrap_or_default().to_owned(),
            count: number(1)?,
            max: number(2)?,
            reserved: number(3)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_and_who_holds_the_rest_adds_up() {
        let line = |n: usize| Line {
            name: format!("app {n}"),
            count: 3,
            max: 100,
            reserved: 3,
        };
        let seen = of((0..30).map(line).collect()).unwrap();
        assert_eq!((seen.max, seen.reserved, seen.in_use), (100, 3, 90));
        assert_eq!((seen.available(), seen.is_low()), (7, true));
        assert_eq!(seen.by_application.len(), 21);
        assert_eq!(seen.by_application[20], ("(others)".into(), 30));
        let sum: usize = seen.by_application.iter().map(|(_, count)| count).sum();
        assert_eq!(sum, seen.in_use);
        assert_eq!(of(Vec::new()), None);
        // Superusers may use more than is there for others.
        let over = Headroom { in_use: 99, ..seen };
        assert_eq!(over.available(), 0);
    }
}
