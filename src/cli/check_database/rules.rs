//! All findings: the rules of each topic, in the order in which they are printed.

use super::facts::{Facts, Plan};
use super::finding::{Finding, Findings};
use super::{access, connections, state};

/// The rules of a topic.
type Rule = fn(&Plan, &Facts) -> Vec<Finding>;

const RULES: [(&str, Rule); 12] = [
    ("server", state::server),
    ("connections", connections::connections),
    ("timeouts", connections::timeouts),
    ("pooler", connections::pooler),
    ("encryption", access::encryption),
    ("rights", access::rights),
    ("encoding", access::encoding),
    ("durability", state::durability),
    ("standbys", state::read_hosts),
    ("read only", state::read_only),
    ("clock", state::clock),
    ("wraparound", state::wraparound),
];

/// Returns what is to be said of the database, topic by topic.
pub(super) fn findings(plan: &Plan, facts: &Facts) -> Vec<Finding> {
    let mut all = Vec::new();
    for (topic, rule) in RULES {
        all.extend(rule(plan, facts));
        let unknown = facts.unknown.iter().filter(|(of, _)| *of == topic);
        let mut notes = Findings::about(topic);
        unknown.for_each(|(_, why)| notes.note(format!("not all could be found out: {why}")));
        all.extend(notes.end());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::super::sample::{facts, plan, said};
    use super::*;

    #[test]
    fn where_nothing_is_amiss_each_topic_has_one_line_that_says_so() {
        let found = findings(&plan(), &facts());
        let (worst, text) = said(&found);
        assert_eq!(worst, Level::Ok, "{text}");
        assert_eq!(found.len(), RULES.len(), "{text}");
        // Without DB_READ_HOSTS there is nothing to say of standbys.
        let mut facts = facts();
        facts.read_hosts.clear();
        assert_eq!(findings(&plan(), &facts).len(), RULES.len() - 1);
        assert!(text.starts_with(
            "ok      server        PostgreSQL 17.2, a primary, at 10.0.0.5:5432, 1.0 ms away"
        ));
    }

    #[test]
    fn what_could_not_be_found_out_is_a_note_and_nothing_is_made_up() {
        let mut facts = facts();
        facts.sessions = None;
        facts.limits = None;
        facts.encryption = None;
        facts.rights = None;
        facts.tables = None;
        facts.standbys = None;
        facts.clock = None;
        facts.oldest = None;
        facts.unknown = vec![("clock", "permission denied".into())];
        let (worst, text) = said(&findings(&plan(), &facts));
        assert_eq!(worst, Level::Note, "{text}");
        assert!(
            text.contains("note    clock         not all could be found out: permission denied")
        );
        assert_eq!(text.matches("note").count(), 1, "{text}");
    }
}
