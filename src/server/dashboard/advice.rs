//! What to do, in plain words: each piece of advice with its reason and the setting to change.
//! Pure.

use super::history::Sample;
use super::statements::MINUTES;
use crate::error::HeldBy;
use crate::metrics::Headroom;
use serde::Serialize;
use std::time::Duration;

/// A connection that is held this long without a statement is one too many.
const LONG_WITHOUT_STATEMENT: Duration = Duration::from_secs(5);
/// Fewer statements than this are no ground for advice.
const ENOUGH: f32 = 500.0;
/// More connections than this for each core of the database's machine only wait for each other.
const MOST_PER_CORE: usize = 4;

pub(super) struct Grounds<'a> {
    /// Of the last minutes.
    pub samples: Vec<&'a Sample>,
    pub max: usize,
    pub headroom: Option<Headroom>,
    /// Connections of this pool.
    pub total: usize,
    pub holders: &'a [HeldBy],
    /// Texts of statements, as they were sent; `None` = more than were counted.
    pub texts: Option<usize>,
    /// Different texts without the values in them.
    pub shown_texts: usize,
    pub statement_cache: usize,
    /// The seconds in which there was a line, and the waits that ended at their deadline, lately
    /// and while the database was there.
    pub in_line: usize,
    pub timeouts: u64,
    pub unknown_commits: u64,
    /// The SQLSTATE for which most attempts were repeated since the start.
    pub retried_for: Option<String>,
    /// The cores of the database's machine, if it is this one.
    pub cores: Option<usize>,
}

#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Advice {
    kind: &'static str,
    text: String,
    reason: String,
    setting: Option<&'static str>,
}

impl Grounds<'_> {
    fn sum(&self, field: &str) -> f32 {
        self.samples.iter().filter_map(|s| s.get(field)).sum()
    }

    /// In which part of the seconds there was a line.
    fn part_in_line(&self) -> f32 {
        self.in_line as f32 / (self.samples.len() as f32).max(60.0)
    }

    fn room(&self) -> usize {
        self.headroom.as_ref().map_or(0, Headroom::available)
    }
}

/// The advice that the grounds give, the most urgent first.
pub(super) fn advice(grounds: &Grounds<'_>) -> Vec<Advice> {
    let rules: [fn(&Grounds<'_>) -> Option<Advice>; 9] = [
        unknown_outcomes,
        held_without_statement,
        too_small,
        too_large_for_the_server,
        too_large_for_the_cores,
        little_headroom,
        retries_that_hide,
        values_in_texts,
        cache_too_small,
    ];
    rules.into_iter().filter_map(|rule| rule(grounds)).collect()
}

fn unknown_outcomes(grounds: &Grounds<'_>) -> Option<Advice> {
    (grounds.unknown_commits > 0).then(|| Advice {
        kind: "unknown-outcomes",
        text:
            "Look in the database whether these writes were done, and give writes a key, so that \
               they can be repeated safely."
                .into(),
        reason: format!(
            "What became of {} commits could not be found out since the start.",
            grounds.unknown_commits
        ),
        setting: None,
    })
}

fn held_without_statement(grounds: &Grounds<'_>) -> Option<Advice> {
    let is_idle = |holder: &&HeldBy| match &holder.statement {
        Some(last) => !last.running && last.since > LONG_WITHOUT_STATEMENT,
        None => holder.held > LONG_WITHOUT_STATEMENT,
    };
    let mut idle = grounds.holders.iter().filter(is_idle);
    let longest = idle.next()?;
    let count = 1 + idle.count();
    Some(Advice {
        kind: "held-without-statement",
        text: "Check connections in before other work is done: calls to other services, files, \
               waiting for a person."
            .into(),
        reason: format!(
            "{count} of the connections are held without a statement; the longest for {:.0?} since {}.",
            longest.held, longest.place
        ),
        setting: Some("DB_LEAK_THRESHOLD_MS"),
    })
}

fn too_small(grounds: &Grounds<'_>) -> Option<Advice> {
    let part = grounds.part_in_line();
    let waits = part >= 0.05 || grounds.timeouts > 0;
    let works = grounds
        .cores
        .is_none_or(|cores| grounds.max < MOST_PER_CORE * cores);
    let has_room = grounds.room() > grounds.max / 2;
    (waits && works && has_room && held_without_statement(grounds).is_none()).then(|| Advice {
        kind: "pool-too-small",
        text: "Raise the most connections, if the statements cannot be made faster.".into(),
        reason: format!(
            "Threads were in line for a connection in {:.0} % of the last {MINUTES} minutes, {} waits ended \
             without one, and the server has room for {} more connections.",
            part * 100.0,
            grounds.timeouts,
            grounds.room()
        ),
        setting: Some("DB_POOL_MAX"),
    })
}

fn too_large_for_the_server(grounds: &Grounds<'_>) -> Option<Advice> {
    let headroom = grounds.headroom.as_ref()?;
    let most = grounds.total + headroom.available();
    (grounds.max > most).then(|| Advice {
        kind: "pool-too-large",
        text: "Lower the most connections, or raise max_connections on the server.".into(),
        reason: format!(
            "The pool may open {} connections, but the server has room for {most} of them.",
            grounds.max
        ),
        setting: Some("DB_POOL_MAX"),
    })
}

fn too_large_for_the_cores(grounds: &Grounds<'_>) -> Option<Advice> {
    let most = MOST_PER_CORE * grounds.cores?;
    let busy = grounds.samples.iter().filter_map(|s| s.get("active"));
    let busy = busy.filter(|active| *active > most as f32).count();
    (busy >= 60).then(|| Advice {
        kind: "pool-too-large-for-cores",
        text: "Try a smaller pool: with fewer statements at once, each is faster, and no fewer are done."
            .into(),
        reason: format!(
            "More than {most} connections were in use for {busy} s of the last {MINUTES} minutes, and the \
             database's machine has {} cores.",
            most / MOST_PER_CORE
        ),
        setting: Some("DB_POOL_MAX"),
    })
}

fn little_headroom(grounds: &Grounds<'_>) -> Option<Advice> {
    let headroom = grounds.headroom.as_ref()?;
    let (most, left) = (
        headroom.max.saturating_sub(headroom.reserved),
        grounds.room(),
    );
    let (name, count) = headroom
        .by_application
        .iter()
        .max_by_key(|(_, count)| *count)?;
    headroom.is_low().then(|| Advice {
        kind: "little-headroom",
        text: "Make room on the server: end what is not needed, or raise max_connections.".into(),
        reason: format!(
            "{left} of {most} connections of the server are left; {name:?} has the most, {count}."
        ),
        setting: None,
    })
}

fn retries_that_hide(grounds: &Grounds<'_>) -> Option<Advice> {
    let (retries, statements) = (grounds.sum("retries"), grounds.sum("statements"));
    (retries >= 10.0 && retries > statements / 100.0).then(|| Advice {
        kind: "retries-hide",
        text: "Find the statements that fail: retries make up for them, but cost time and hide them."
            .into(),
        reason: format!(
            "{retries:.0} attempts were repeated for {statements:.0} statements in the last {MINUTES} minutes{}.",
            match &grounds.retried_for {
                Some(code) if code.is_empty() => {
                    ", most since the start because a connection was lost".to_owned()
                }
                Some(code) => format!(", most since the start for SQLSTATE {code}"),
                None => String::new(),
            }
        ),
        setting: None,
    })
}

fn values_in_texts(grounds: &Grounds<'_>) -> Option<Advice> {
    let texts = grounds.texts;
    let many = texts.is_none_or(|texts| texts > 4 * grounds.shown_texts.max(50));
    (many && grounds.sum("statements") > ENOUGH).then(|| Advice {
        kind: "values-in-texts",
        text: "Pass values as parameters ($1, ..) instead of writing them into the statements."
            .into(),
        reason: match texts {
            Some(texts) => format!("{texts} texts differ by the values in them only."),
            None => {
                "There are thousands of texts, many of which differ by the values in them only."
                    .into()
            }
        },
        setting: None,
    })
}

fn cache_too_small(grounds: &Grounds<'_>) -> Option<Advice> {
    let (texts, kept) = (grounds.texts?, grounds.statement_cache);
    let may_be_due = texts > kept && kept > 0 && values_in_texts(grounds).is_none();
    (may_be_due && grounds.sum("statements") > ENOUGH).then(|| Advice {
        kind: "statement-cache-full",
        text: "Keep more prepared statements on each connection.".into(),
        reason: format!("{texts} different statements are sent, and each connection keeps {kept}."),
        setting: Some("DB_STATEMENT_CACHE"),
    })
}

#[cfg(test)]
mod tests {
    use super::super::history::FIELDS;
    use super::*;
    use crate::error::LastStatement;
    use std::panic::Location;

    fn sample(values: &[(&str, f32)]) -> Sample {
        let mut sample = Sample([0.0; FIELDS.len()]);
        for (field, value) in values {
            let at = FIELDS.iter().position(|one| one == field).unwrap();
            sample.0[at] = *value;
        }
        sample
    }

    fn headroom(max: usize, in_use: usize) -> Headroom {
        Headroom {
            max,
            reserved: 3,
            in_use,
            by_application: vec![("app".into(), in_use)],
        }
    }

    fn calm(samples: &[Sample]) -> Grounds<'_> {
        Grounds {
            samples: samples.iter().collect(),
            max: 20,
            headroom: Some(headroom(100, 30)),
            total: 10,
            holders: &[],
            texts: Some(20),
            shown_texts: 20,
            statement_cache: 256,
            in_line: 0,
            timeouts: 0,
            unknown_commits: 0,
            retried_for: None,
            cores: None,
        }
    }

    fn kinds(grounds: &Grounds<'_>) -> Vec<&'static str> {
        advice(grounds).iter().map(|one| one.kind).collect()
    }

    #[test]
    fn each_piece_of_advice_has_its_reason() {
        let quiet = vec![sample(&[("active", 3.0), ("statements", 100.0)]); 300];
        assert!(kinds(&calm(&quiet)).is_empty());
        let busy = vec![sample(&[("active", 20.0)]); 300];
        let waiting = || Grounds {
            in_line: 30,
            ..calm(&busy)
        };
        assert_eq!(kinds(&waiting()), ["pool-too-small"]);
        // More would only wait for the cores.
        let few_cores = Grounds {
            cores: Some(2),
            ..waiting()
        };
        assert_eq!(kinds(&few_cores), ["pool-too-large-for-cores"]);
        let narrow = Grounds {
            headroom: Some(headroom(100, 92)),
            ..calm(&quiet)
        };
        assert_eq!(kinds(&narrow), ["pool-too-large", "little-headroom"]);
        let retries = vec![sample(&[("retries", 3.0), ("statements", 100.0)]); 300];
        assert_eq!(kinds(&calm(&retries)), ["retries-hide"]);
        let texts = |texts| Grounds {
            texts,
            ..calm(&quiet)
        };
        assert_eq!(kinds(&texts(None)), ["values-in-texts"]);
        assert_eq!(kinds(&texts(Some(300))), ["values-in-texts"]);
        let many = Grounds {
            shown_texts: 250,
            ..texts(Some(300))
        };
        assert_eq!(kinds(&many), ["statement-cache-full"]);
        let unknown = Grounds {
            unknown_commits: 1,
            ..calm(&quiet)
        };
        assert_eq!(kinds(&unknown), ["unknown-outcomes"]);
    }

    #[test]
    fn a_minute_after_the_start_a_moment_in_line_is_no_ground() {
        let once = vec![sample(&[])];
        let once = Grounds {
            in_line: 1,
            ..calm(&once)
        };
        assert!(kinds(&once).is_empty());
    }

    #[test]
    fn who_holds_without_a_statement_is_named_and_not_who_runs_one() {
        let quiet = Vec::new();
        let held = |running, seconds| HeldBy {
            connection: 1,
            place: Location::caller(),
            thread: None,
            held: Duration::from_secs(20),
            statement: Some(LastStatement {
                sql: "SELECT ?".into(),
                running,
                since: Duration::from_secs(seconds),
            }),
        };
        for (running, seconds, count) in [(true, 10, 0), (false, 1, 0), (false, 10, 1)] {
            let holders = [held(running, seconds)];
            let grounds = Grounds {
                holders: &holders,
                ..calm(&quiet)
            };
            assert_eq!(kinds(&grounds).len(), count, "{running} {seconds}");
        }
    }
}
