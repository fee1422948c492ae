//! Rules about connections: whether there is room for them, how long they last, and who stands in
//! between.

use super::facts::{Facts, Plan};
use super::finding::{Finding, Findings};
use millpond::config::Pooler;
use millpond::for_cli::MORE_CONNECTIONS;
use std::time::Duration;

/// Something that limits the number of connections.
struct Limit {
    /// As it is written, with its value.
    name: String,
    /// What sets it to this many, for the role or the database of this name.
    raise: fn(&str, usize) -> String,
    of: String,
    most: usize,
    /// What of it is kept for privileged roles.
    reserved: usize,
    /// The sessions of other programs that count in it.
    others: usize,
}

impl Limit {
    fn room(&self) -> usize {
        self.most
            .saturating_sub(self.reserved)
            .saturating_sub(self.others)
    }
}

pub(super) fn connections(plan: &Plan, facts: &Facts) -> Vec<Finding> {
    let mut found = Findings::about("connections");
    let (needed, why) = needed(plan);
    if facts.endpoint.is_pooled {
        found.note(format!(
            "a pooler stands in between, and its limits cannot be seen from here: it has to take {needed} clients ({why}), \
             which is max_client_conn in PgBouncer"
        ));
        return found.end();
    }
    let instances = plan.instances as usize;
    if plan.fleet_max > 0 && plan.fleet_max < plan.instances {
        found.note(format!(
            "DB_FLEET_MAX={} is less than one connection for each of {instances} instances, so they will exceed it: \
             set DB_FLEET_MAX={instances} at least",
            plan.fleet_max
        ));
    }
    let (Some(sessions), limits) = (&facts.sessions, limits(facts)) else {
        return found.end();
    };
    let mut tightest: Option<(usize, &Limit)> = None;
    for limit in &limits {
        let room = limit.room();
        if tightest.is_none_or(|(least, _)| room < least) {
            tightest = Some((room, limit));
        }
        if needed > room {
            let raise = (limit.raise)(&limit.of, limit.reserved + limit.others + needed);
            found.wrong(format!(
                "{why} are {needed} connections, but {} leaves room for {room}{}: {}",
                limit.name,
                held(limit.others, &sessions.by_application),
                match fitting(plan, room) {
                    Some(setting) => format!("set {setting}, or {raise}"),
                    None => format!("no DB_POOL_MAX would fit; {raise}"),
                }
            ));
        }
    }
    let Some((room, limit)) = tightest.filter(|(room, _)| needed <= *room) else {
        return found.end();
    };
    // While instances are replaced, old and new ones are there.
    if plan.fleet_max > 0 && needed + instances > room {
        found.note(format!(
            "{} leaves room for {room}, which is {needed} for DB_FLEET_MAX and less than one more for each of {instances} \
             instances while they are replaced: set DB_FLEET_MAX={}",
            limit.name,
            room.saturating_sub(instances).max(1)
        ));
    }
    // A limit of the role's or the database's may be as low as it can, the server's may not.
    if let Some(server) = limits.first()
        && plan.fleet_max == 0
        && (server.room() - needed) * 10 < server.most
    {
        found.note(format!(
            "{why} are {needed} connections, and {} leaves room for {}{}: only {} would be left for all other programs",
            server.name,
            server.room(),
            held(server.others, &sessions.by_application),
            server.room() - needed
        ));
    }
    found.or_ok(|| {
        format!(
            "{why} are {needed} connections, and {} leaves room for {room}{}",
            limit.name,
            held(limit.others, &sessions.by_application)
        )
    })
}

/// Returns how many connections all instances need, and why.
pub(super) fn needed(plan: &Plan) -> (usize, String) {
    let instances = plan.instances as usize;
    if plan.fleet_max > 0 {
        let needed = plan.fleet_max as usize;
        return (needed, format!("DB_FLEET_MAX={needed}"));
    }
    let each = plan.max_size as usize + MORE_CONNECTIONS;
    let why = format!("DB_POOL_MAX={} and {MORE_CONNECTIONS} more", plan.max_size);
    match instances {
        1 => (each, why),
        n => (each * n, format!("{why} for each of {n} instances")),
    }
}

/// Returns the setting that would fit.
fn fitting(plan: &Plan, room: usize) -> Option<String> {
    if plan.fleet_max > 0 {
        return (room > 0).then(|| format!("DB_FLEET_MAX={room}"));
    }
    let each = room / plan.instances.max(1) as usize;
    let fits = each
        .checked_sub(MORE_CONNECTIONS)
        .filter(|fits| *fits > 0)?;
    Some(format!("DB_POOL_MAX={fits}"))
}

fn limits(facts: &Facts) -> Vec<Limit> {
    let sessions = facts.sessions.clone().unwrap_or_default();
    let number = |name| {
        let number = facts.settings.number(name).unwrap_or(0);
        usize::try_from(number).unwrap_or(0)
    };
    let most = number("max_connections");
    let reserved = number("superuser_reserved_connections") + number("reserved_connections");
    let mut limits = vec![Limit {
        name: format!("max_connections={most} less {reserved} reserved"),
        raise: |_, more| format!("max_connections={more} at the server"),
        of: String::new(),
        most,
        reserved,
        others: sessions.all,
    }];
    // They do not hold for a superuser.
    let Some(of) = facts.limits.as_ref().filter(|of| !of.superuser) else {
        return limits;
    };
    if let Some(most) = of.role_limit {
        limits.push(Limit {
            name: format!("the limit of the role {:?}, {most},", of.role),
            raise: |role, more| format!("ALTER ROLE {role:?} CONNECTION LIMIT {more}"),
            of: of.role.clone(),
            most,
            reserved: 0,
            others: sessions.of_this_role,
        });
    }
    if let Some(most) = of.database_limit {
        limits.push(Limit {
            name: format!("the limit of the database {:?}, {most},", of.database),
            raise: |database, more| format!("ALTER DATABASE {database:?} CONNECTION LIMIT {more}"),
            of: of.database.clone(),
            most,
            reserved: 0,
            others: sessions.in_this_database,
        });
    }
    limits
}

/// Returns who holds the others, for a sentence that goes on.
fn held(others: usize, by_application: &[(String, usize)]) -> String {
    if others == 0 {
        return String::new();
    }
    let most = by_application.iter().take(3);
    let most: Vec<_> = most.map(|(name, n)| format!("{n} of {name:?}")).collect();
    format!(
        " beside the {others} of other programs (the most of all: {})",
        most.join(", ")
    )
}

pub(super) fn timeouts(plan: &Plan, facts: &Facts) -> Vec<Finding> {
    let mut found = Findings::about("timeouts");
    let server = |name| facts.settings.timeout(name);
    let statement = server("statement_timeout");
    let is_pooled = facts.endpoint.is_pooled;
    if !is_pooled && statement != plan.statement_timeout {
        found.note(format!(
            "statement_timeout is {} on the server, not DB_STATEMENT_TIMEOUT_MS={}: the URL's options set it (leave it out there, \
             or set DB_STATEMENT_TIMEOUT_MS)",
            shown(statement),
            plan.statement_timeout.unwrap_or_default().as_millis()
        ));
    }
    match (plan.query_timeout, statement) {
        (None, _) => found.note(
            "DB_QUERY_TIMEOUT_MS=0: if the server is frozen or out of reach, a statement blocks its thread; \
             set DB_QUERY_TIMEOUT_MS=5000, say",
        ),
        (Some(query), statement) if statement.is_none_or(|statement| statement > query) => {
            let text = format!(
                "statement_timeout is {} on the server, and the pool gives up after DB_QUERY_TIMEOUT_MS={}: a statement whose cancel \
                 request is lost runs on",
                shown(statement),
                query.as_millis()
            );
            let ms = query.as_millis();
            match is_pooled {
                true => found.note(format!(
                    "{text} outside transactions; ALTER ROLE .. SET statement_timeout = {ms}"
                )),
                false => found.note(format!("{text}; set DB_STATEMENT_TIMEOUT_MS={ms}")),
            }
        }
        _ => {}
    }
    // The minimum of idle connections stays until the end of its life.
    let longest_idle = match plan.min_idle {
        0 => plan.idle_timeout,
        _ => plan.max_lifetime,
    };
    if let Some(limit) = server("idle_session_timeout").filter(|_| !is_pooled)
        && longest_idle.is_none_or(|idle| idle > limit)
    {
        let (ms, setting) = match plan.min_idle {
            0 => (limit.as_millis(), "DB_IDLE_TIMEOUT_MS"),
            _ => (limit.as_millis(), "DB_MAX_LIFETIME_MS"),
        };
        found.note(format!(
            "idle_session_timeout={limit:?}: the server closes connections that the pool keeps idle, and they are opened again and \
             again; set {setting}={ms}, or ALTER ROLE .. SET idle_session_timeout = 0"
        ));
    }
    let longest = plan.query_timeout.into_iter().chain(statement).min();
    for name in ["idle_in_transaction_session_timeout", "transaction_timeout"] {
        if let (Some(limit), Some(longest)) = (server(name), longest)
            && limit < longest
        {
            found.note(format!(
                "{name}={limit:?} is less than a statement may take, {longest:?}: transactions lose their connection and \
                 start over; ALTER ROLE .. SET {name} = {}",
                2 * longest.as_millis()
            ));
        }
    }
    let keepalive = facts.settings.number("tcp_keepalives_idle").unwrap_or(0);
    if plan.fleet_max > 0 && keepalive > LONGEST_KEEPALIVE && !is_pooled {
        found.note(format!(
            "tcp_keepalives_idle={keepalive}: the connections of a machine that is gone count in DB_FLEET_MAX for so many seconds; \
             set tcp_keepalives_idle=60 at the server"
        ));
    }
    found.or_ok(|| {
        let names = [
            "lock_timeout",
            "idle_in_transaction_session_timeout",
            "idle_session_timeout",
            "tcp_user_timeout",
        ];
        let others = names.map(|name| format!("{name} {}", shown(server(name))));
        format!(
            "statement_timeout {}, DB_QUERY_TIMEOUT_MS {}, {}",
            shown(statement),
            shown(plan.query_timeout),
            others.join(", ")
        )
    })
}

/// In seconds.
const LONGEST_KEEPALIVE: i64 = 600;

fn shown(limit: Option<Duration>) -> String {
    limit.map_or("off".to_owned(), |limit| format!("{limit:?}"))
}

pub(super) fn pooler(plan: &Plan, facts: &Facts) -> Vec<Finding> {
    let mut found = Findings::about("pooler");
    match (plan.pooler, facts.endpoint.is_pooled) {
        (Pooler::Off, true) => found.wrong(
            "a pooler stands in between, but DB_POOLER=off: prepared statements and settings would reach the connections of others; \
             set DB_POOLER=auto",
        ),
        (Pooler::On, false) => found.note(
            "DB_POOLER is on (or pgbouncer=true in the URL), but none was detected: without one, the outcome of a lost COMMIT is given \
             up for nothing; set DB_POOLER=auto, unless it is one that hides (pgpool-II)",
        ),
        _ => {}
    }
    let is_pooled = facts.endpoint.is_pooled || plan.pooler == Pooler::On;
    if is_pooled && plan.fleet_max > 0 {
        found.note(format!(
            "DB_FLEET_MAX={} has no effect behind a pooler: limit the connections there (default_pool_size in PgBouncer), and unset it",
            plan.fleet_max
        ));
    }
    found.or_ok(|| match facts.endpoint.is_pooled {
        true => "one stands in between, and the pool takes that into account".into(),
        false => "none stands in between".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::facts::Sessions;
    use super::super::finding::Level::{Note, Ok, Wrong};
    use super::super::sample::{SECOND, facts, finds, plan, set};
    use super::*;

    fn used(all: usize) -> Sessions {
        let names = [("psql", 5), ("cron", 3), ("web", 2), ("other", 1)];
        Sessions {
            all,
            of_this_role: 2,
            in_this_database: 4,
            by_application: names.map(|(name, n)| (name.to_owned(), n)).into(),
        }
    }

    #[test]
    fn all_instances_must_fit_beside_the_others() {
        // 97 for ordinary roles.
        for (instances, max_size, others, level, words) in [
            (
                1,
                20,
                0,
                Ok,
                &["DB_POOL_MAX=20 and 3 more are 23", "room for 97"][..],
            ),
            (
                4,
                20,
                0,
                Note,
                &["for each of 4 instances are 92", "only 5 would be left"],
            ),
            (
                5,
                20,
                0,
                Wrong,
                &["are 115", "set DB_POOL_MAX=16", "max_connections=118"],
            ),
            (
                1,
                20,
                77,
                Wrong,
                &[
                    "room for 20",
                    "5 of \"psql\", 3 of \"cron\", 2 of \"web\"",
                    "DB_POOL_MAX=17",
                ],
            ),
            (1, 95, 0, Wrong, &["DB_POOL_MAX=94"]),
            (50, 20, 0, Wrong, &["no DB_POOL_MAX would fit"]),
            (1, 1, 97, Wrong, &["room for 0", "no DB_POOL_MAX would fit"]),
        ] {
            let (mut plan, mut facts) = (plan(), facts());
            (plan.instances, plan.max_size) = (instances, max_size);
            facts.sessions = Some(used(others));
            finds(&connections(&plan, &facts), level, words);
        }
    }

    #[test]
    fn what_is_reserved_is_no_room() {
        let mut facts = facts();
        set(&mut facts, "max_connections", "35");
        finds(&connections(&plan(), &facts), Ok, &["less 3 reserved"]);
        set(&mut facts, "reserved_connections", "10");
        finds(
            &connections(&plan(), &facts),
            Wrong,
            &["less 13 reserved", "DB_POOL_MAX=19"],
        );
    }

    #[test]
    fn the_limits_of_the_role_and_of_the_database_count_too() {
        let mut facts = facts();
        facts.sessions = Some(used(10));
        let limits = facts.limits.as_mut().unwrap();
        limits.role_limit = Some(10);
        let found = connections(&plan(), &facts);
        finds(
            &found,
            Wrong,
            &[
                "the limit of the role \"app\", 10, leaves room for 8",
                "DB_POOL_MAX=5",
                "ALTER ROLE \"app\" CONNECTION LIMIT 25",
            ],
        );
        let limits = facts.limits.as_mut().unwrap();
        (limits.role_limit, limits.database_limit) = (Some(25), None);
        finds(
            &connections(&plan(), &facts),
            Ok,
            &["the limit of the role"],
        );
        let limits = facts.limits.as_mut().unwrap();
        (limits.role_limit, limits.database_limit) = (None, Some(24));
        let found = connections(&plan(), &facts);
        finds(
            &found,
            Wrong,
            &["ALTER DATABASE \"shop\" CONNECTION LIMIT 27"],
        );
        facts.limits.as_mut().unwrap().superuser = true;
        finds(&connections(&plan(), &facts), Ok, &["max_connections"]);
    }

    #[test]
    fn a_budget_is_for_all_instances_together() {
        let (mut plan, mut facts) = (plan(), facts());
        (plan.instances, plan.fleet_max) = (10, 80);
        finds(&connections(&plan, &facts), Ok, &["DB_FLEET_MAX=80 are 80"]);
        plan.fleet_max = 90;
        finds(
            &connections(&plan, &facts),
            Note,
            &["while they are replaced", "DB_FLEET_MAX=87"],
        );
        plan.fleet_max = 100;
        finds(&connections(&plan, &facts), Wrong, &["set DB_FLEET_MAX=97"]);
        plan.fleet_max = 5;
        finds(
            &connections(&plan, &facts),
            Note,
            &["set DB_FLEET_MAX=10 at least"],
        );
        // Behind a pooler, the server's limits are the pooler's.
        facts.endpoint.is_pooled = true;
        plan.fleet_max = 0;
        finds(
            &connections(&plan, &facts),
            Note,
            &["230 clients", "max_client_conn"],
        );
    }

    #[test]
    fn timeouts_that_do_not_fit_each_other_are_said() {
        let with = |change: fn(&mut Plan, &mut Facts)| {
            let (mut plan, mut facts) = (plan(), facts());
            change(&mut plan, &mut facts);
            timeouts(&plan, &facts)
        };
        finds(
            &with(|_, _| {}),
            Ok,
            &["statement_timeout 5s", "lock_timeout off"],
        );
        let found = with(|_, f| set(f, "statement_timeout", "30000"));
        finds(
            &found,
            Note,
            &[
                "30s on the server, not DB_STATEMENT_TIMEOUT_MS=5000",
                "set DB_STATEMENT_TIMEOUT_MS=5000",
            ],
        );
        let found = with(|p, _| p.query_timeout = None);
        finds(&found, Note, &["DB_QUERY_TIMEOUT_MS=0"]);
        let found = with(|p, f| {
            p.statement_timeout = None;
            set(f, "statement_timeout", "0");
        });
        finds(
            &found,
            Note,
            &["statement_timeout is off", "DB_STATEMENT_TIMEOUT_MS=5000"],
        );
        // The server ends it first.
        finds(&with(|p, _| p.query_timeout = Some(60 * SECOND)), Ok, &[]);
        let found = with(|_, f| {
            f.endpoint.is_pooled = true;
            set(f, "statement_timeout", "0");
        });
        finds(
            &found,
            Note,
            &["outside transactions; ALTER ROLE .. SET statement_timeout = 5000"],
        );
    }

    #[test]
    fn a_server_that_ends_sessions_early_is_said() {
        for (min_idle, limit, level, word) in [
            (2, "60000", Note, "DB_MAX_LIFETIME_MS=60000"),
            (2, "1800000", Ok, "idle_session_timeout 1800s"),
            (0, "60000", Ok, "idle_session_timeout 60s"),
            (0, "10000", Note, "DB_IDLE_TIMEOUT_MS=10000"),
        ] {
            let (mut plan, mut facts) = (plan(), facts());
            plan.min_idle = min_idle;
            set(&mut facts, "idle_session_timeout", limit);
            finds(&timeouts(&plan, &facts), level, &[word]);
        }
        for name in ["idle_in_transaction_session_timeout", "transaction_timeout"] {
            let mut facts = facts();
            set(&mut facts, name, "1000");
            finds(&timeouts(&plan(), &facts), Note, &[name, "= 10000"]);
            set(&mut facts, name, "60000");
            finds(&timeouts(&plan(), &facts), Ok, &[]);
        }
        let (mut plan, facts) = (plan(), facts());
        plan.fleet_max = 50;
        finds(&timeouts(&plan, &facts), Note, &["tcp_keepalives_idle=60"]);
    }

    #[test]
    fn a_pooler_and_its_setting_must_agree() {
        for (setting, detected, fleet_max, level, word) in [
            (Pooler::Auto, false, 0, Ok, "none stands in between"),
            (Pooler::Auto, true, 0, Ok, "one stands in between"),
            (Pooler::On, true, 0, Ok, "one stands in between"),
            (Pooler::Off, false, 0, Ok, "none"),
            (Pooler::Off, true, 0, Wrong, "set DB_POOLER=auto"),
            (Pooler::On, false, 0, Note, "pgpool-II"),
            (Pooler::Auto, true, 9, Note, "DB_FLEET_MAX=9 has no effect"),
            (Pooler::Auto, false, 9, Ok, "none"),
        ] {
            let (mut plan, mut facts) = (plan(), facts());
            (plan.pooler, plan.fleet_max) = (setting, fleet_max);
            facts.endpoint.is_pooled = detected;
            finds(&pooler(&plan, &facts), level, &[word]);
        }
    }
}
