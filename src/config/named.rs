//! The database that the settings name, and what it says about the other settings.

use super::libpq::Origin;
use super::problem::Problem;
use super::program::{Config, Url};
use super::source::Source;
use std::time::Duration;

/// Finds the database that the URL and libpq's variables name.
pub(super) fn name_database(config: &mut Config) -> Option<Problem> {
    let Url { text, file } = &config.url;
    let database = match config.variables.database(text.as_deref()) {
        Ok(database) => database,
        Err(problem) => {
            let name = match (problem.name, file) {
                ("DATABASE_URL", Some(_)) => "DATABASE_URL_FILE",
                (name, _) => name,
            };
            return Some(Problem {
                name,
                got: None,
                takes: problem.says,
            });
        }
    };
    if let (Some(path), Some(text)) = (file, text) {
        config
            .sources
            .insert("DATABASE_URL", Source::DatabaseUrlFile);
        config.pool.url_file = Some(config.variables.url_file(path, text));
    }
    if text.is_none() && database.is_some() {
        config.sources.insert("DATABASE_URL", Source::Libpq);
    }
    let has_password = (database.as_ref())
        .map(|database| database.parameters().origin("password") == Some(&Origin::Text));
    config.pool.database = database;
    let password = ["DB_PASSWORD_FILE", "DB_PASSWORD_COMMAND"];
    let name = password
        .into_iter()
        .find(|name| config.sources.contains_key(name))?;
    let takes = match has_password {
        None => "belongs to a database, and none is named; set DATABASE_URL as well",
        Some(true) => "DATABASE_URL holds a password, too; take it out there",
        Some(false) => return None,
    };
    Some(Problem {
        name,
        got: None,
        takes: takes.to_owned(),
    })
}

/// Takes over parameters of the database that are settings of ours. They override defaults;
/// variables override them.
pub(super) fn take_over(config: &mut Config) {
    let Some(database) = &config.pool.database else {
        return;
    };
    let given = |names: &[&str]| {
        let parameters = database.parameters();
        names
            .iter()
            .find_map(|name| parameters.origin(name))
            .map(|origin| match origin {
                Origin::Environment(_) => Source::Libpq,
                Origin::Service => Source::Service,
                Origin::Text | Origin::Default if config.url.file.is_some() => {
                    Source::DatabaseUrlFile
                }
                Origin::Text | Origin::Default => Source::DatabaseUrl,
            })
    };
    let mut found = Vec::new();
    config.pool.application_name_follows = !config.sources.contains_key("DB_APPLICATION_NAME");
    if let (Some(name), Some(source)) = (
        database.config().get_application_name(),
        given(&["application_name", "fallback_application_name"]),
    ) && !config.sources.contains_key("DB_APPLICATION_NAME")
    {
        config.pool.application_name = Some(name.to_owned());
        found.push(("DB_APPLICATION_NAME", source));
    }
    if config.pool.pooler.is_none() {
        found.extend(given(&["pgbouncer"]).map(|source| ("DB_POOLER", source)));
    }
    if config.pool.connect_timeout.is_none() && database.config().get_connect_timeout().is_some() {
        let source = given(&["connect_timeout"]);
        found.extend(source.map(|source| ("DB_CONNECT_TIMEOUT_MS", source)));
    }
    if !config.pool.statement_timeout_wins
        && let Some(options) = database.config().get_options()
        && let Some(limit) = timeout_in(options)
    {
        config.pool.statement_timeout = Some(limit).filter(|limit| !limit.is_zero());
        found.extend(given(&["options"]).map(|source| ("DB_STATEMENT_TIMEOUT_MS", source)));
    }
    config.sources.extend(found);
}

/// Returns the `statement_timeout` that options set, as in `-c statement_timeout=5s`; None if they
/// set none, or it is not understood.
fn timeout_in(options: &str) -> Option<Duration> {
    let (_, value) = options.rsplit_once("statement_timeout=")?;
    let value = value.split_whitespace().next()?.trim_matches('\'');
    let digits = value.len() - value.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = value.split_at(digits);
    let ms = match unit {
        "" | "ms" => 1,
        "s" => 1000,
        "min" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        _ => return None,
    };
    let number: u64 = number.parse().ok()?;
    Some(Duration::from_millis(number.checked_mul(ms)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_of_options_is_understood_as_the_server_does() {
        let ms = |options| timeout_in(options).map(|limit| limit.as_millis());
        assert_eq!(ms("-c statement_timeout=700"), Some(700));
        assert_eq!(
            ms("-c statement_timeout=1 --statement_timeout=5s -c x=y"),
            Some(5000)
        );
        assert_eq!(ms("-cstatement_timeout=2min"), Some(120_000));
        assert_eq!(ms("-c statement_timeout=0"), Some(0));
        assert_eq!(ms("-c lock_timeout=3"), None);
        assert_eq!(ms("-c statement_timeout=1.5s"), None);
    }
}
