//! The settings in force, for people.

use super::program::Config;
use super::source::Source;
use super::table::shown;

impl Config {
    /// Returns name, value and source of every setting in force, and of what libpq's variables and
    /// its services add to the database. Passwords and tokens are shown as `***`.
    pub fn effective(&self) -> Vec<(&'static str, String, Source)> {
        let ours = shown(self).map(|(name, value)| (name, value, self.source(name)));
        let database = self.pool.database.as_ref();
        let theirs = database.map(|database| self.variables.additions(database));
        ours.chain(theirs.into_iter().flatten()).collect()
    }

    /// Returns the settings that differ from others, by their names; not those that only follow from
    /// others.
    #[cfg(feature = "server")]
    pub fn differences(&self, others: &Config) -> Vec<&'static str> {
        // These are shown as `***`, whatever they are.
        let tokens = |config: &Config| {
            let http = &config.http;
            (http.api_token.clone(), http.metrics_token.clone())
        };
        let (own, theirs) = (tokens(self), tokens(others));
        let hidden = [
            ("API_TOKEN", own.0 != theirs.0),
            ("METRICS_TOKEN", own.1 != theirs.1),
        ];
        let is_set =
            |name: &str| self.sources.contains_key(name) || others.sources.contains_key(name);
        let shown = shown(self)
            .zip(shown(others))
            .map(|((name, own), (_, theirs))| (name, own != theirs))
            .filter(|(name, _)| is_set(name) && !hidden.iter().any(|(hidden, _)| hidden == name));
        shown
            .chain(hidden)
            .filter_map(|(name, differs)| differs.then_some(name))
            .collect()
    }
}
