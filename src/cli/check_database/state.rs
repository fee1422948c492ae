//! Rules about the server itself: what it is, what it keeps, and how it is doing.

use super::connections::needed;
use super::facts::{Facts, Plan, ReadHost};
use super::finding::{Finding, Findings};
use millpond::pool::StandbyState;

/// The oldest version of PostgreSQL that the pool works with.
const LEAST_VERSION: i64 = 14;
/// How far apart the two clocks may be, in seconds.
const CLOCK_NOTE: f64 = 1.0;
const CLOCK_WRONG: f64 = 60.0;
/// Ages of transaction ids. The server itself refuses writes at about 2.1 billion, and warns 40
/// million before.
const AGE_NOTE: i64 = 1_500_000_000;
const AGE_WRONG: i64 = 2_000_000_000 - 40_000_000;

pub(super) fn server(_: &Plan, facts: &Facts) -> Vec<Finding> {
    let mut found = Findings::about("server");
    let version = facts.settings.text("server_version");
    // A distribution adds its own version behind it.
    let version = version.split(' ').next().unwrap_or_default();
    let number = facts.settings.number("server_version_num").unwrap_or(0) / 10_000;
    let endpoint = &facts.endpoint;
    if number < LEAST_VERSION {
        found.wrong(format!(
            "PostgreSQL {version} at {} is too old: the pool works with PostgreSQL {LEAST_VERSION} and newer",
            endpoint.place
        ));
    } else {
        let kind = if facts.standby { "standby" } else { "primary" };
        found.ok(format!(
            "PostgreSQL {version}, a {kind}, at {}, {:.1} ms away",
            endpoint.place,
            facts.round_trip.as_secs_f64() * 1000.0
        ));
    }
    found.end()
}

/// Whether reads would go to the standbys that are named for them.
pub(super) fn read_hosts(plan: &Plan, facts: &Facts) -> Vec<Finding> {
    let mut found = Findings::about("standbys");
    let (needed, why) = needed(plan);
    for standby in &facts.read_hosts {
        let ReadHost { host, state, .. } = standby;
        let lag = standby.lag.unwrap_or_default().as_millis();
        match (state, standby.room, &standby.error) {
            (StandbyState::Used, Some(room), _) if room < needed => found.wrong(format!(
                "{host}: {why} are {needed} connections, but it has room for {room} more: raise max_connections there, or \
                 set a lower DB_POOL_MAX"
            )),
            (StandbyState::Used, ..) => found.ok(format!("{host}: {state}; it is at most {lag} ms behind")),
            // In a list of all servers of a cluster, that is so.
            (StandbyState::Primary, ..) => found.note(format!("{host}: {state}")),
            (StandbyState::Silent, _, Some(error)) => found.wrong(format!(
                "{host}: no reads go there, because it could not be asked ({error}; its own log says more): mend that, or \
                 leave it out of DB_READ_HOSTS"
            )),
            _ => found.wrong(format!("{host}: {state}: mend that, or leave it out of DB_READ_HOSTS")),
        }
    }
    found.end()
}

pub(super) fn read_only(plan: &Plan, facts: &Facts) -> Vec<Finding> {
    let mut found = Findings::about("read only");
    let asked = facts.endpoint.asked_for;
    let wants_writes = !matches!(asked, "read-only" | "standby" | "prefer-standby");
    let setting = "default_transaction_read_only";
    let is_on = facts.settings.text(setting) == "on";
    if facts.standby && wants_writes {
        found.wrong(
            "the server is a standby, which refuses every write: name the primary in DATABASE_URL, or all servers with \
             target_session_attrs=read-write; for a program that only reads, target_session_attrs=read-only",
        );
    } else if is_on && wants_writes {
        found.wrong(format!(
            "{setting} is on, so writes are refused: {}",
            match facts.settings.source(setting) {
                "user" => format!("ALTER ROLE .. RESET {setting}"),
                "database" => format!("ALTER DATABASE .. RESET {setting}"),
                "database user" => format!("ALTER ROLE .. IN DATABASE .. RESET {setting}"),
                "client" => "leave it out of the options in DATABASE_URL".into(),
                _ => "turn it off in the server's configuration".into(),
            }
        ));
    } else if (facts.standby || is_on) && plan.studio {
        found.note(format!(
            "the server takes no writes, as target_session_attrs={asked} allows, but the studio's API writes: set STUDIO_API=off"
        ));
    }
    found.or_ok(|| match facts.standby || is_on {
        true => format!("the server takes no writes, as target_session_attrs={asked} allows"),
        false => "the server takes writes".into(),
    })
}

pub(super) fn durability(_: &Plan, facts: &Facts) -> Vec<Finding> {
    let mut found = Findings::about("durability");
    let settings = &facts.settings;
    if settings.text("fsync") == "off" {
        found.wrong(
            "fsync=off: a crash of the machine may lose or destroy the data; set fsync=on in postgresql.conf",
        );
    }
    if settings.text("full_page_writes") == "off" {
        found.wrong(
            "full_page_writes=off: a crash of the machine may leave torn pages; set full_page_writes=on in postgresql.conf",
        );
    }
    let commit = settings.text("synchronous_commit");
    let names = settings.text("synchronous_standby_names");
    if commit == "off" {
        found.note(
            "synchronous_commit=off: a crash may lose the last commits that were reported as done; set synchronous_commit=on",
        );
    }
    let needed = standbys_needed(names);
    if needed > 0 && !facts.standby {
        match facts.standbys {
            _ if matches!(commit, "off" | "local") => found.note(format!(
                "synchronous_commit={commit}: a COMMIT does not wait for the standbys in \
                 synchronous_standby_names, so a failover may lose it; set synchronous_commit=on"
            )),
            Some(standbys) if standbys.all >= needed && standbys.hidden > 0 => found.note(
                "this role may not see whether the standbys are synchronous: GRANT pg_read_all_stats to it, and check again",
            ),
            Some(standbys) if standbys.synchronous < needed => found.wrong(format!(
                "every COMMIT will hang: synchronous_standby_names={names:?} asks for {needed} synchronous {}, and {} connected; \
                 connect it, or set synchronous_standby_names=''",
                if needed == 1 { "standby" } else { "standbys" },
                match standbys.synchronous {
                    0 => "none is".to_owned(),
                    1 => "1 is".to_owned(),
                    n => format!("{n} are"),
                }
            )),
            _ => {}
        }
    }
    found.or_ok(|| {
        let standbys = match (needed, facts.standby) {
            (0, _) | (_, true) => "without synchronous standbys".to_owned(),
            (n, false) => format!("a COMMIT waits for {n} of synchronous_standby_names={names:?}"),
        };
        format!("fsync=on, full_page_writes=on, synchronous_commit={commit}, {standbys}")
    })
}

/// Returns how many standbys a COMMIT waits for, by `synchronous_standby_names`: `a, b`,
/// `2 (a, b)`, `FIRST 2 (a, b)` or `ANY 2 (a, b)`.
fn standbys_needed(names: &str) -> usize {
    let names = names.trim();
    if names.is_empty() {
        return 0;
    }
    let head = names.split_once('(').map_or("", |(head, _)| head);
    let number = head.split_whitespace().last().unwrap_or_default();
    number.parse().unwrap_or(1)
}

pub(super) fn clock(_: &Plan, facts: &Facts) -> Vec<Finding> {
    let mut found = Findings::about("clock");
    let Some((ahead, error)) = facts.clock else {
        return found.end();
    };
    let certain = (ahead.abs() - error).max(0.0);
    if certain > CLOCK_NOTE {
        let way = if ahead > 0.0 { "ahead of" } else { "behind" };
        let text = format!(
            "the server's clock is {certain:.1} s {way} this machine's: synchronize both with NTP"
        );
        match certain > CLOCK_WRONG {
            true => found.wrong(text),
            false => found.note(text),
        }
    }
    found.or_ok(|| {
        format!(
            "the server's and this machine's are at most {:.1} s apart; the time zone of the session is {}",
            (ahead.abs() + error).max(0.1),
            facts.settings.text("TimeZone")
        )
    })
}

pub(super) fn wraparound(_: &Plan, facts: &Facts) -> Vec<Finding> {
    let mut found = Findings::about("wraparound");
    let Some(oldest) = &facts.oldest else {
        return found.end();
    };
    let name = &oldest.database;
    for (what, age) in [
        ("transaction", oldest.age),
        ("multixact", oldest.multixact_age),
    ] {
        let text = format!(
            "the oldest {what} id in the database {name:?} is {} million old; at 2,100 million the server refuses writes: \
             find out what holds VACUUM up (old transactions, prepared transactions, replication slots), and run VACUUM FREEZE there",
            age / 1_000_000
        );
        if age > AGE_WRONG {
            found.wrong(text);
        } else if age > AGE_NOTE {
            found.note(text);
        }
    }
    found.or_ok(|| {
        format!(
            "the oldest transaction id, in the database {name:?}, is {} transactions old; at 2,100 million the server refuses writes",
            oldest.age
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::facts::{Oldest, Standbys};
    use super::super::finding::Level::{Note, Ok, Wrong};
    use super::super::sample::{facts, finds, plan, set};
    use super::*;

    #[test]
    fn a_server_is_new_enough_or_not() {
        for (number, level) in [("130010", Wrong), ("140000", Ok), ("180001", Ok)] {
            let mut facts = facts();
            set(&mut facts, "server_version_num", number);
            finds(&server(&plan(), &facts), level, &["PostgreSQL 17.2"]);
        }
    }

    #[test]
    fn a_server_that_takes_no_writes_is_wrong_unless_it_was_asked_for() {
        for (standby, setting, asked, studio, level, word) in [
            (false, "off", "any", true, Ok, "takes writes"),
            (
                true,
                "off",
                "any",
                false,
                Wrong,
                "target_session_attrs=read-only",
            ),
            (
                true,
                "off",
                "read-only",
                false,
                Ok,
                "as target_session_attrs=read-only",
            ),
            (true, "off", "standby", true, Note, "STUDIO_API=off"),
            (true, "off", "prefer-standby", false, Ok, "no writes"),
            (
                false,
                "on",
                "any",
                false,
                Wrong,
                "in the server's configuration",
            ),
            (false, "on", "read-only", false, Ok, "no writes"),
        ] {
            let (mut plan, mut facts) = (plan(), facts());
            plan.studio = studio;
            facts.standby = standby;
            facts.endpoint.asked_for = asked;
            set(&mut facts, "default_transaction_read_only", setting);
            finds(&read_only(&plan, &facts), level, &[word]);
        }
    }

    #[test]
    fn what_a_crash_may_lose_is_said() {
        for (name, value, level) in [
            ("fsync", "off", Wrong),
            ("full_page_writes", "off", Wrong),
            ("synchronous_commit", "off", Note),
            ("synchronous_commit", "remote_apply", Ok),
        ] {
            let mut facts = facts();
            set(&mut facts, name, value);
            finds(&durability(&plan(), &facts), level, &[name, value]);
        }
    }

    #[test]
    fn standbys_that_commits_wait_for_must_be_there() {
        let there = |all, synchronous, hidden| Standbys {
            all,
            synchronous,
            hidden,
        };
        for (names, commit, standbys, level, word) in [
            ("", "on", there(0, 0, 0), Ok, "without synchronous"),
            ("a", "on", there(0, 0, 0), Wrong, "every COMMIT will hang"),
            ("a", "on", there(2, 0, 0), Wrong, "none is connected"),
            ("a", "on", there(1, 1, 0), Ok, "waits for 1"),
            (
                "ANY 2 (a, b)",
                "on",
                there(1, 1, 0),
                Wrong,
                "and 1 is connected",
            ),
            ("ANY 2 (a, b)", "on", there(2, 2, 0), Ok, "waits for 2"),
            ("a", "on", there(1, 0, 1), Note, "pg_read_all_stats"),
            ("a", "on", there(0, 0, 0), Wrong, "none is"),
            (
                "a",
                "local",
                there(0, 0, 0),
                Note,
                "synchronous_commit=local",
            ),
            ("a", "off", there(1, 1, 0), Note, "does not wait"),
        ] {
            let mut facts = facts();
            set(&mut facts, "synchronous_standby_names", names);
            set(&mut facts, "synchronous_commit", commit);
            facts.standbys = Some(standbys);
            finds(&durability(&plan(), &facts), level, &[word]);
            // A standby's own setting counts for nothing.
            facts.standby = true;
            let on_standby = durability(&plan(), &facts);
            assert!(on_standby.iter().all(|found| !found.text.contains("hang")));
        }
    }

    #[test]
    fn the_number_of_standbys_is_read_as_the_server_reads_it() {
        for (names, needed) in [
            ("", 0),
            ("*", 1),
            ("a, b", 1),
            ("\"2 (x\"", 1),
            ("2 (a, b)", 2),
            ("FIRST 2 (a, b, c)", 2),
            ("any 3(a, b, c)", 3),
        ] {
            assert_eq!(standbys_needed(names), needed, "{names}");
        }
    }

    #[test]
    fn clocks_may_differ_by_what_the_way_takes() {
        for (ahead, error, level, word) in [
            (0.2, 0.1, Ok, "at most 0.3 s"),
            (1.5, 0.6, Ok, "at most 2.1 s"),
            (1.5, 0.1, Note, "1.4 s ahead of"),
            (-59.0, 0.1, Note, "58.9 s behind"),
            (-61.0, 0.1, Wrong, "60.9 s behind"),
        ] {
            let mut facts = facts();
            facts.clock = Some((ahead, error));
            finds(&clock(&plan(), &facts), level, &[word]);
        }
    }

    #[test]
    fn ids_must_not_grow_too_old() {
        for (age, multixact_age, level) in [
            (200_000_000, 0, Ok),
            (1_600_000_000, 0, Note),
            (1_970_000_000, 0, Wrong),
            (0, 1_970_000_000, Wrong),
        ] {
            let mut facts = facts();
            facts.oldest = Some(Oldest {
                database: "old".into(),
                age,
                multixact_age,
            });
            finds(&wraparound(&plan(), &facts), level, &["\"old\""]);
        }
    }

    #[test]
    fn a_standby_that_reads_would_not_use_is_named() {
        let mut facts = facts();
        facts.read_hosts[0].state = StandbyState::Silent;
        finds(
            &read_hosts(&plan(), &facts),
            Wrong,
            &["because it does not answer: mend that"],
        );
        facts.read_hosts[0].state = StandbyState::Primary;
        finds(
            &read_hosts(&plan(), &facts),
            Note,
            &["because it is a primary"],
        );
        facts.read_hosts[0].state = StandbyState::Silent;
        facts.read_hosts[0].error = Some("authentication".into());
        finds(
            &read_hosts(&plan(), &facts),
            Wrong,
            &["it could not be asked (authentication;"],
        );
        facts.read_hosts[0].state = StandbyState::Used;
        facts.read_hosts[0].room = Some(5);
        finds(
            &read_hosts(&plan(), &facts),
            Wrong,
            &["it has room for 5 more"],
        );
    }
}
