//! The table of variables: how each is read, what it takes, and how it is shown.

use super::environment::{self, Variables};
#[cfg(feature = "server")]
use super::http_texts::{delay_beyond_the_end, hidden, networks, origins, token};
use super::named;
use super::parse::{
    as_ms, currency, filled, line_order, log_format, ms, number, off_at_zero, on_off, optional_ms,
    parsed, password_command, password_file, pooler, private, read_file, reset, switch,
};
use super::pool::{LEAST_LAG, MOST_CONNECTIONS, MOST_STATEMENTS, PoolConfig};
use super::problem::{ConfigErrors, Problem};
use super::program::Config;
use super::server_host::hosts;
use super::source::Source;
use std::collections::BTreeMap;
use std::path::Path;

/// One variable.
struct Setting {
    name: &'static str,
    /// The values that it takes, as text for people.
    takes: &'static str,
    /// Its value is never printed.
    secret: bool,
    /// Stores the value. An error says what is wrong; it is empty if `takes` says enough.
    set: fn(&mut Config, &str) -> Result<(), String>,
    /// Returns the value in force.
    show: fn(&Config) -> String,
}

const fn plain(
    name: &'static str,
    takes: &'static str,
    set: fn(&mut Config, &str) -> Result<(), String>,
    show: fn(&Config) -> String,
) -> Setting {
    Setting {
        name,
        takes,
        secret: false,
        set,
        show,
    }
}

const fn secret(
    name: &'static str,
    takes: &'static str,
    set: fn(&mut Config, &str) -> Result<(), String>,
    show: fn(&Config) -> String,
) -> Setting {
    Setting {
        name,
        takes,
        secret: true,
        set,
        show,
    }
}

#[rustfmt::skip]
const SETTINGS: &[Setting] = &[
    secret("DATABASE_URL", "a postgresql:// URL or a key=value string", |c, v| { c.url.text = Some(v.to_owned()); Ok(()) },
        |c| c.pool.database.as_ref().map(ToString::to_string).unwrap_or_default()),
    secret("DATABASE_URL_FILE", "the path of a file that holds what DATABASE_URL takes", |c, v| { c.url.text = Some(read_file(v)?); c.url.file = Some(v.to_owned()); Ok(()) },
        |c| c.url.file.clone().unwrap_or_default()),
    secret("DB_PASSWORD_FILE", "the path of a file that holds the password", |c, v| { c.pool.password = Some(password_file(v)?); Ok(()) },
        |_| String::new()),
    secret("DB_PASSWORD_COMMAND", "a command whose first line of output is the password", |c, v| { c.pool.password = Some(password_command(v)?); Ok(()) },
        |_| String::new()),
    plain("PRIVATE_DATABASE", "on, off or auto", |c, v| { c.private_database = private(v)?; Ok(()) },
        |c| format!("{:?}", c.private_database).to_lowercase()),
    plain("PG_BIN_DIR", "a directory with PostgreSQL's programs", |c, v| { c.pg_bin_dir = Some(filled(v)?.into()); Ok(()) },
        |c| c.pg_bin_dir.as_ref().map(|p| p.display().to_string()).unwrap_or_default()),
    plain("DB_POOL_MAX", "a whole number from 1 to 10000", |c, v| { c.pool.max_size = number(v, 1..=MOST_CONNECTIONS)?; Ok(()) },
        |c| c.pool.max_size.to_string()),
    plain("DB_POOL_MIN", "a whole number from 0 to DB_POOL_MAX", |c, v| { c.pool.min_idle = Some(number(v, 0..=MOST_CONNECTIONS)?); Ok(()) },
        |c| c.pool.effective_min_idle().to_string()),
    plain("DB_FLEET_MAX", "a whole number up to 1000000, 0 = off", |c, v| { c.pool.fleet_max = number(v, 0..=1_000_000)?; Ok(()) },
        |c| c.pool.fleet_max.to_string()),
    plain("DB_READ_HOSTS", "hosts, as in db2,db3:5433", |c, v| { c.pool.read_hosts = hosts(v)?; Ok(()) },
        |c| c.pool.read_hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")),
    plain("DB_READ_MAX_LAG_MS", "milliseconds, at least 100", |c, v| { c.pool.read_max_lag = ms(v, LEAST_LAG.as_millis() as u64)?; Ok(()) },
        |c| as_ms(c.pool.read_max_lag)),
    plain("DB_IDLE_TIMEOUT_MS", "milliseconds, 0 = never", |c, v| { c.pool.idle_timeout = off_at_zero(v)?; Ok(()) },
        |c| optional_ms(c.pool.idle_timeout)),
    plain("DB_CONNECTION_TIMEOUT_MS", "milliseconds, at least 1", |c, v| { c.pool.connection_timeout = ms(v, 1)?; Ok(()) },
        |c| as_ms(c.pool.connection_timeout)),
    plain("DB_CONNECT_TIMEOUT_MS", "milliseconds, at least 1", |c, v| { c.pool.connect_timeout = Some(ms(v, 1)?); Ok(()) },
        |c| as_ms(c.pool.effective_connect_timeout())),
    plain("DB_MAX_LIFETIME_MS", "milliseconds, 0 = never", |c, v| { c.pool.max_lifetime = off_at_zero(v)?; Ok(()) },
        |c| optional_ms(c.pool.max_lifetime)),
    plain("DB_MAX_USES", "a whole number, 0 = never", |c, v| { c.pool.max_uses = number(v, 0..=u64::MAX)?; Ok(()) },
        |c| c.pool.max_uses.to_string()),
    plain("DB_MAX_WAITING", "a whole number from 0 to 1000000", |c, v| { c.pool.max_waiting = number(v, 0..=1_000_000)?; Ok(()) },
        |c| c.pool.max_waiting.to_string()),
    plain("DB_LINE_ORDER", "auto or fifo", |c, v| { c.pool.line_order = line_order(v)?; Ok(()) },
        |c| format!("{:?}", c.pool.line_order).to_lowercase()),
    plain("DB_STATEMENT_TIMEOUT_MS", "milliseconds up to 2147483647, 0 = off", |c, v| { c.pool.statement_timeout = off_at_zero(v)?; c.pool.statement_timeout_wins = true; Ok(()) },
        |c| optional_ms(c.pool.statement_timeout)),
    plain("DB_QUERY_TIMEOUT_MS", "milliseconds, 0 = off", |c, v| { c.pool.query_timeout = off_at_zero(v)?; Ok(()) },
        |c| optional_ms(c.pool.query_timeout)),
    plain("DB_STATEMENT_CACHE", "a whole number from 0 to 100000, 0 = unnamed statements only", |c, v| { c.pool.statement_cache = number(v, 0..=MOST_STATEMENTS)?; Ok(()) },
        |c| c.pool.statement_cache.to_string()),
    plain("DB_RESET", "auto or always", |c, v| { c.pool.reset = reset(v)?; Ok(()) },
        |c| format!("{:?}", c.pool.reset).to_lowercase()),
    plain("DB_POOLER", "auto, on or off", |c, v| { c.pool.pooler = Some(pooler(v)?); Ok(()) },
        |c| format!("{:?}", c.pool.effective_pooler()).to_lowercase()),
    plain("DB_APPLICATION_NAME", "a name", |c, v| { c.pool.application_name = Some(filled(v)?); Ok(()) },
        |c| c.pool.application_name.clone().unwrap_or_default()),
    plain("DB_SQLCOMMENTER", "on or off", |c, v| { c.pool.sqlcommenter = switch(v)?; Ok(()) },
        |c| on_off(c.pool.sqlcommenter)),
    plain("DB_MAX_RETRIES", "a whole number from 0 to 1000", |c, v| { c.pool.retry.max_retries = number(v, 0..=1000)?; Ok(()) },
        |c| c.pool.retry.max_retries.to_string()),
    plain("DB_RETRY_INITIAL_DELAY_MS", "milliseconds up to DB_RETRY_MAX_DELAY_MS", |c, v| { c.pool.retry.initial_delay = Some(ms(v, 0)?); Ok(()) },
        |c| as_ms(c.pool.retry.first_delay())),
    plain("DB_RETRY_MAX_DELAY_MS", "milliseconds", |c, v| { c.pool.retry.max_delay = ms(v, 0)?; Ok(()) },
        |c| as_ms(c.pool.retry.max_delay)),
    plain("DB_RETRY_MULTIPLIER", "a number from 1 to 1000", |c, v| { c.pool.retry.multiplier = number(v, 1.0..=1000.0)?; Ok(()) },
        |c| c.pool.retry.multiplier.to_string()),
    plain("DB_FAIL_FAST_AFTER_MS", "milliseconds, 0 = at the first failure", |c, v| { c.pool.fail_fast_after = ms(v, 0)?; Ok(()) },
        |c| as_ms(c.pool.fail_fast_after)),
    plain("DB_SLOW_QUERY_MS", "milliseconds, 0 = off", |c, v| { c.pool.slow_query = off_at_zero(v)?; Ok(()) },
        |c| optional_ms(c.pool.slow_query)),
    plain("DB_LEAK_THRESHOLD_MS", "milliseconds, 0 = off", |c, v| { c.pool.leak_threshold = off_at_zero(v)?; Ok(()) },
        |c| optional_ms(c.pool.leak_threshold)),
    #[cfg(feature = "server")]
    plain("HTTP_ADDR", "an address and a port, as 127.0.0.1:3000 or [::1]:3000", |c, v| { c.http.addr = parsed(v)?; Ok(()) },
        |c| c.http.addr.to_string()),
    #[cfg(feature = "server")]
    plain("HTTP_WORKERS", "a whole number from 1 to 10000", |c, v| { c.http.workers = Some(number(v, 1..=10_000)?); Ok(()) },
        |c| c.http_workers().to_string()),
    #[cfg(feature = "server")]
    plain("HTTP_QUEUE", "a whole number from 0 to 1000000", |c, v| { c.http.queue = number(v, 0..=1_000_000)?; Ok(()) },
        |c| c.http.queue.to_string()),
    #[cfg(feature = "server")]
    plain("HTTP_QUEUE_TIMEOUT_MS", "milliseconds, at least 1", |c, v| { c.http.queue_timeout = Some(ms(v, 1)?); Ok(()) },
        |c| as_ms(c.http.effective_queue_timeout())),
    #[cfg(feature = "server")]
    plain("HTTP_MAX_BODY_BYTES", "a whole number up to 1073741824", |c, v| { c.http.max_body_bytes = number(v, 0..=1 << 30)?; Ok(()) },
        |c| c.http.max_body_bytes.to_string()),
    #[cfg(feature = "server")]
    plain("HTTP_REQUEST_TIMEOUT_MS", "milliseconds, at least 1", |c, v| { c.http.request_timeout = ms(v, 1)?; Ok(()) },
        |c| as_ms(c.http.request_timeout)),
    #[cfg(feature = "server")]
    plain("HTTP_MAX_CONNECTIONS", "a whole number from 1 to 1000000", |c, v| { c.http.max_connections = number(v, 1..=1_000_000)?; Ok(()) },
        |c| c.http.max_connections.to_string()),
    #[cfg(feature = "server")]
    plain("HTTP_HEADER_TIMEOUT_MS", "milliseconds, at least 1", |c, v| { c.http.header_timeout = ms(v, 1)?; Ok(()) },
        |c| as_ms(c.http.header_timeout)),
    #[cfg(feature = "server")]
    plain("HTTP_BODY_TIMEOUT_MS", "milliseconds, at least 1", |c, v| { c.http.body_timeout = ms(v, 1)?; Ok(()) },
        |c| as_ms(c.http.body_timeout)),
    #[cfg(feature = "server")]
    plain("HTTP_IDLE_TIMEOUT_MS", "milliseconds, at least 1", |c, v| { c.http.idle_timeout = ms(v, 1)?; Ok(()) },
        |c| as_ms(c.http.idle_timeout)),
    #[cfg(feature = "server")]
    plain("HTTP_WRITE_TIMEOUT_MS", "milliseconds, at least 1", |c, v| { c.http.write_timeout = ms(v, 1)?; Ok(()) },
        |c| as_ms(c.http.write_timeout)),
    #[cfg(feature = "server")]
    plain("HTTP_TRUSTED_PROXIES", "addresses or networks, as 10.0.0.1 or 10.0.0.0/8, with commas between", |c, v| { c.http.trusted_proxies = networks(v)?; Ok(()) },
        |c| c.http.trusted_proxies.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")),
    #[cfg(feature = "server")]
    plain("HTTP_CORS_ORIGINS", "origins of pages, as https://app.example.com, with commas between", |c, v| { c.http.cors_origins = origins(v)?; Ok(()) },
        |c| c.http.cors_origins.join(",")),
    plain("STUDIO_API", "on or off", |c, v| { c.studio_api = switch(v)?; Ok(()) },
        |c| on_off(c.studio_api)),
    plain("STUDIO_CURRENCY", "three capital letters (ISO 4217)", |c, v| { c.studio_currency = currency(v)?; Ok(()) },
        |c| c.studio_currency.clone()),
    #[cfg(feature = "server")]
    secret("API_TOKEN", "a token of printable ASCII without blanks", |c, v| { c.http.api_token = Some(token(v)?); Ok(()) },
        |c| hidden(c.http.api_token.as_ref())),
    #[cfg(feature = "server")]
    secret("API_TOKEN_FILE", "the path of a file that holds what API_TOKEN takes", |c, v| { c.http.api_token = Some(token(read_file(v)?.trim())?); Ok(()) },
        |_| String::new()),
    #[cfg(feature = "server")]
    secret("METRICS_TOKEN", "a token of printable ASCII without blanks", |c, v| { c.http.metrics_token = Some(token(v)?); Ok(()) },
        |c| hidden(c.http.metrics_token.as_ref())),
    #[cfg(feature = "server")]
    plain("API_ALLOW_ANONYMOUS", "on or off", |c, v| { c.http.allow_anonymous = switch(v)?; Ok(()) },
        |c| on_off(c.http.allow_anonymous)),
    #[cfg(feature = "server")]
    plain("SHUTDOWN_DELAY_MS", "milliseconds up to SHUTDOWN_TIMEOUT_MS", |c, v| { c.http.shutdown_delay = ms(v, 0)?; Ok(()) },
        |c| as_ms(c.http.shutdown_delay)),
    #[cfg(feature = "server")]
    plain("SHUTDOWN_TIMEOUT_MS", "milliseconds", |c, v| { c.http.shutdown_timeout = ms(v, 0)?; Ok(()) },
        |c| as_ms(c.http.shutdown_timeout)),
    plain("LOG_LEVEL", "off, error, warn, info, debug or trace", |c, v| { c.log_level = parsed(v)?; Ok(()) },
        |c| c.log_level.to_string().to_lowercase()),
    plain("LOG_FORMAT", "text or json", |c, v| { c.log_format = log_format(v)?; Ok(()) },
        |c| format!("{:?}", c.log_format).to_lowercase()),
];

/// Returns the names of all variables, in the order of the documentation.
pub fn names() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().map(|s| s.name)
}

/// A variable's value and source; an error if it exists but cannot be read.
type Lookup = Option<Result<(String, Source), ()>>;

/// Reads only the settings that are `wanted`.
fn read_environment(wanted: impl Fn(&str) -> bool) -> Result<Config, ConfigErrors> {
    let mut problems = Vec::new();
    let file = match read_dot_env(Path::new(".env"), &mut problems) {
        Ok(file) => file,
        Err(what) => {
            problems.push(Problem {
                name: ".env",
                got: None,
                takes: what,
            });
            BTreeMap::new()
        }
    };
    let look_up = |name: &str| -> Lookup {
        if !wanted(name) {
            return None;
        }
        match std::env::var(name) {
            Ok(value) => Some(Ok((value, Source::Environment))),
            Err(std::env::VarError::NotUnicode(_)) => Some(Err(())),
            Err(std::env::VarError::NotPresent) => {
                file.get(name).map(|v| Ok((v.clone(), Source::DotEnv)))
            }
        }
    };
    let mut config = read(look_up, problems)?;
    let named = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    config.unknown = unknown_names(named.chain(file.into_keys()));
    Ok(config)
}

/// Reads the file. It is loaded as a whole first, because the parser goes on after a read error:
/// endlessly, if the path is a directory (dotenvy 0.15.7).
fn read_dot_env(
    path: &Path,
    problems: &mut Vec<Problem>,
) -> Result<BTreeMap<String, String>, String> {
    if is_device(path) {
        return Err("is a device".into());
    }
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return match path.is_symlink() {
                true => Err("is a link to a missing file".into()),
                false => Ok(BTreeMap::new()),
            };
        }
        Err(e) => return Err(format!("cannot be read: {e}")),
    };
    let text = String::from_utf8(text).map_err(|_| "is not valid UTF-8")?;
    // Some editors begin a file with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let mut file = BTreeMap::new();
    for (number, entry) in dotenvy::from_read_iter(text.as_bytes()).enumerate() {
        match entry {
            Ok((name, value)) => {
                file.entry(name).or_insert(value);
            }
            // The parser's error quotes the line, which may contain a password.
            Err(_) => problems.push(Problem {
                name: ".env",
                got: None,
                takes: format!("its entry {} is not of the form NAME=value", number + 1),
            }),
        }
    }
    Ok(file)
}

/// Returns whether the path is a device, which might never end.
fn is_device(path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = std::fs::metadata(path).map(|found| found.file_type());
        kind.is_ok_and(|kind| kind.is_char_device() || kind.is_block_device())
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        false
    }
}

/// Returns the names that look like a setting but are none, each with the setting that may be
/// meant.
fn unknown_names(names: impl Iterator<Item = String>) -> Vec<(String, Option<&'static str>)> {
    const OURS: [&str; 2] = ["DB_", "HTTP_"];
    // By convention, these belong to other programs.
    const THEIRS: [&str; 1] = ["HTTP_PROXY"];
    let known: Vec<_> = SETTINGS.iter().map(|s| s.name).collect();
    // A long name that differs in one letter.
    let is_slip =
        |name: &str| name.len() > 8 && known.iter().any(|known| distance(name, known) == 1);
    let mut unknown: Vec<_> = names
        .filter(|name| OURS.iter().any(|prefix| name.starts_with(prefix)) || is_slip(name))
        .filter(|name| !known.contains(&name.as_str()) && !THEIRS.contains(&name.as_str()))
        .collect();
    unknown.sort();
    unknown.dedup();
    let nearest = |name: &str| {
        let near = known.iter().map(|known| (distance(name, known), *known));
        near.filter(|(far, _)| *far <= name.len() / 4)
            .min()
            .map(|(_, known)| known)
    };
    unknown
        .into_iter()
        .map(|name| {
            let meant = nearest(&name);
            (name, meant)
        })
        .collect()
}

/// Returns how many letters must be changed, added or removed (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.bytes().enumerate() {
            let changed = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

fn read(
    look_up: impl Fn(&str) -> Lookup,
    mut problems: Vec<Problem>,
) -> Result<Config, ConfigErrors> {
    let mut config = Config::default();
    for setting in SETTINGS {
        match look_up(setting.name) {
            None => {}
            Some(Err(())) => {
                problems.push(Problem {
                    name: setting.name,
                    got: None,
                    takes: "is not valid UTF-8".into(),
                });
            }
            Some(Ok((value, source))) => match (setting.set)(&mut config, &value) {
                Ok(()) => {
                    config.sources.insert(setting.name, source);
                }
                Err(why) => problems.push(problem(setting, &value, why)),
            },
        }
    }
    for (one, other) in [
        ("DATABASE_URL", "DATABASE_URL_FILE"),
        ("DB_PASSWORD_FILE", "DB_PASSWORD_COMMAND"),
        ("API_TOKEN", "API_TOKEN_FILE"),
    ] {
        if config.sources.contains_key(one) && config.sources.contains_key(other) {
            problems.push(Problem {
                name: other,
                got: None,
                takes: format!("{one} is set too; set one of the two"),
            });
        }
    }
    #[cfg(feature = "server")]
    problems.extend(delay_beyond_the_end(&config.http));
    config.variables = Variables::of(|name| look_up(name)?.ok());
    problems.extend(named::name_database(&mut config));
    named::take_over(&mut config);
    let broken: Vec<_> = problems.iter().map(|p| p.name).collect();
    problems.extend(
        config
            .pool
            .problems(|_option, variable| variable)
            .into_iter()
            .filter(|p| !broken.contains(&p.name)),
    );
    if problems.is_empty() {
        Ok(config)
    } else {
        Err(ConfigErrors(problems))
    }
}

fn problem(setting: &Setting, value: &str, why: String) -> Problem {
    match (setting.secret, why.is_empty()) {
        (true, true) => Problem {
            name: setting.name,
            got: None,
            takes: format!("takes {}", setting.takes),
        },
        (true, false) => Problem {
            name: setting.name,
            got: None,
            takes: why,
        },
        (false, _) => {
            let got = value.chars().take(60).collect();
            let takes = match why.as_str() {
                "" => setting.takes.to_owned(),
                why => format!("{}: {why}", setting.takes),
            };
            Problem {
                name: setting.name,
                got: Some(got),
                takes,
            }
        }
    }
}

fn is_of_the_pool(name: &str) -> bool {
    let is_ours = name.starts_with("DB_") || name.starts_with("DATABASE_URL");
    is_ours || environment::names().any(|theirs| theirs == name)
}

/// Removes the program's own name, which is not that of programs that embed the pool.
fn pool_alone(mut config: Config) -> PoolConfig {
    if !config.sources.contains_key("DB_APPLICATION_NAME") {
        config.pool.application_name = None;
    }
    config.pool
}

impl PoolConfig {
    /// Reads `DATABASE_URL`, `DATABASE_URL_FILE`, the variables that begin with `DB_`, and those of
    /// libpq (`PGHOST` and others), from the environment and from the file `.env` in the current
    /// directory; the environment overrides the file. Other variables may have any value.
    ///
    /// ```no_run
    /// use millpond::config::PoolConfig;
    /// use millpond::pool::Builder;
    ///
    /// let pool = Builder::from(PoolConfig::from_env()?).build()?;
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// All variables with a bad value, at once.
    pub fn from_env() -> Result<PoolConfig, ConfigErrors> {
        Ok(pool_alone(read_environment(is_of_the_pool)?))
    }
}

impl Config {
    /// Reads the environment and the file `.env` in the current directory; the environment
    /// overrides the file.
    ///
    /// # Errors
    /// All variables with a bad value, at once.
    pub fn from_env() -> Result<Config, ConfigErrors> {
        read_environment(|_| true)
    }

    /// Reads the variables given instead of the environment.
    ///
    /// # Errors
    /// All variables with a bad value, at once.
    pub fn from_vars<'a>(
        vars: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Config, ConfigErrors> {
        let vars: BTreeMap<_, _> = vars.into_iter().collect();
        read(
            |name| {
                vars.get(name)
                    .map(|v| Ok(((*v).to_owned(), Source::Environment)))
            },
            Vec::new(),
        )
    }
}

/// Returns name and value of each setting in force.
pub(super) fn shown(config: &Config) -> impl Iterator<Item = (&'static str, String)> {
    SETTINGS.iter().map(|s| (s.name, (s.show)(config)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Pooler, PrivateDatabase};
    use std::time::Duration;

    fn refused(vars: &[(&str, &str)]) -> Vec<(&'static str, String)> {
        let errors = Config::from_vars(vars.iter().copied()).unwrap_err();
        errors.0.iter().map(|p| (p.name, p.to_string())).collect()
    }

    #[test]
    fn a_name_that_is_no_settings_is_told_with_the_one_that_may_be_meant() {
        let names = [
            "DB_POOL_MXA",
            "DB_HOST",
            "HTTP_PROXY",
            "HTTP_ADR",
            "DB_POOL_MAX",
            "HOME",
        ];
        let unknown = unknown_names(names.iter().map(|name| (*name).to_owned()));
        assert_eq!(
            unknown,
            [
                ("DB_HOST".to_owned(), None),
                ("DB_POOL_MXA".to_owned(), Some("DB_POOL_MAX")),
                ("HTTP_ADR".to_owned(), Some("HTTP_ADDR")),
            ]
        );
    }

    #[test]
    fn a_dot_env_that_is_a_directory_or_begins_with_a_mark() {
        let dir = std::env::temp_dir().join(format!("millpond-dot-env-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut problems = Vec::new();
        let why = read_dot_env(&dir, &mut problems).unwrap_err();
        assert!(why.contains("directory"), "{why}");
        let file = dir.join("marked");
        std::fs::write(&file, "\u{feff}DB_POOL_MAX=7\nDB_POOL_MIN=1\n").unwrap();
        let read = read_dot_env(&file, &mut problems).unwrap();
        assert_eq!(read.get("DB_POOL_MAX").map(String::as_str), Some("7"));
        assert!(
            problems.is_empty()
                && read_dot_env(&dir.join("none"), &mut problems)
                    .unwrap()
                    .is_empty()
        );
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn every_problem_is_named_at_once_with_what_it_got_and_takes() {
        let found = refused(&[
            ("DB_POOL_MAX", "many"),
            ("DB_POOL_MIN", "-1"),
            ("LOG_LEVEL", "loud"),
            ("STUDIO_API", "maybe"),
        ]);
        let names: Vec<_> = found.iter().map(|(name, _)| *name).collect();
        assert_eq!(
            names,
            ["DB_POOL_MAX", "DB_POOL_MIN", "STUDIO_API", "LOG_LEVEL"]
        );
        assert_eq!(
            found[0].1,
            r#"DB_POOL_MAX: got "many"; takes a whole number from 1 to 10000"#
        );
    }

    #[test]
    fn bounds_are_kept() {
        for (name, bad) in [
            ("DB_POOL_MAX", "0"),
            ("DB_POOL_MAX", "10001"),
            ("DB_POOL_MIN", "21"),
            ("DB_CONNECTION_TIMEOUT_MS", "0"),
            ("DB_CONNECTION_TIMEOUT_MS", ""),
            ("DB_STATEMENT_TIMEOUT_MS", "2147483648"),
            ("DB_RETRY_MULTIPLIER", "0.5"),
            ("DB_RETRY_MULTIPLIER", "NaN"),
            ("DB_RETRY_INITIAL_DELAY_MS", "5001"),
            ("DB_IDLE_TIMEOUT_MS", "-1"),
            ("DB_IDLE_TIMEOUT_MS", "1.5"),
            ("HTTP_ADDR", "localhost"),
            ("HTTP_WORKERS", "0"),
            ("STUDIO_CURRENCY", "euro"),
            ("DATABASE_URL", ""),
            ("DATABASE_URL_FILE", "/does/not/exist"),
            ("API_TOKEN", ""),
            ("API_TOKEN", "two words"),
            ("DB_APPLICATION_NAME", " "),
            ("DB_POOLER", "maybe"),
            ("HTTP_CORS_ORIGINS", "*"),
            ("HTTP_CORS_ORIGINS", "https://a.example/"),
            ("DATABASE_URL", "postgresql://u:100%@h/d"),
            ("DATABASE_URL", "postgresql://u@h/d%00"),
            ("DATABASE_URL", "postgresql://u@h/d%0ae"),
        ] {
            let found = refused(&[(name, bad)]);
            assert_eq!(found.len(), 1, "{name}={bad}: {found:?}");
            assert_eq!(found[0].0, name);
        }
    }

    #[test]
    fn good_values_are_taken() {
        let config = Config::from_vars([
            ("DB_POOL_MAX", "5"),
            ("DB_POOL_MIN", "0"),
            ("DB_IDLE_TIMEOUT_MS", "0"),
            ("DB_RETRY_MULTIPLIER", "1.5"),
            ("STUDIO_API", "FALSE"),
            ("PRIVATE_DATABASE", "1"),
            ("HTTP_ADDR", "[::1]:0"),
            ("DATABASE_URL", "postgresql://u:p@h/d?application_name=url"),
        ])
        .unwrap();
        assert_eq!(config.pool.max_size, 5);
        assert_eq!(config.pool.effective_min_idle(), 0);
        assert_eq!(config.pool.idle_timeout, None);
        assert_eq!(config.http_workers(), 10);
        assert!(!config.studio_api);
        assert_eq!(config.private_database, PrivateDatabase::On);
        assert_eq!(config.pool.application_name.as_deref(), Some("url"));
        assert_eq!(config.source("DB_APPLICATION_NAME"), Source::DatabaseUrl);
    }

    #[test]
    fn derived_defaults_follow_what_they_derive_from() {
        let config =
            Config::from_vars([("DB_POOL_MAX", "1"), ("DB_RETRY_MAX_DELAY_MS", "30")]).unwrap();
        assert_eq!(config.pool.effective_min_idle(), 1);
        assert_eq!(config.pool.retry.first_delay(), Duration::from_millis(30));
    }

    #[test]
    fn a_variable_wins_over_the_url() {
        let url = "host=h application_name=url";
        let config =
            Config::from_vars([("DATABASE_URL", url), ("DB_APPLICATION_NAME", "var")]).unwrap();
        assert_eq!(config.pool.application_name.as_deref(), Some("var"));
        let by_url = ("DATABASE_URL", "postgresql://u@h/d?pgbouncer=true");
        let config = Config::from_vars([by_url]).unwrap();
        assert_eq!(config.pool.effective_pooler(), Pooler::On);
        assert_eq!(config.source("DB_POOLER"), Source::DatabaseUrl);
        let config = Config::from_vars([by_url, ("DB_POOLER", "auto")]).unwrap();
        assert_eq!(config.pool.effective_pooler(), Pooler::Auto);
        assert_eq!(config.source("DB_POOLER"), Source::Environment);
    }

    #[test]
    fn no_secret_is_shown() {
        let vars = [
            ("DATABASE_URL", "postgresql://u:s3cret@h/d"),
            ("API_TOKEN", "s3cret"),
            ("METRICS_TOKEN", "s3cret"),
        ];
        let config = Config::from_vars(vars).unwrap();
        assert!(!format!("{config:?}").contains("s3cret"));
        assert!(!format!("{:?}", config.effective()).contains("s3cret"));
        let text = ConfigErrors(vec![problem(&SETTINGS[0], "s3cret", String::new())]).to_string();
        assert!(!text.contains("s3cret"), "{text}");
        for (_, said) in refused(&[
            ("DATABASE_URL", "s3cret"),
            ("API_TOKEN", "s3 cret"),
            ("DB_POOL_MAX", "x"),
        ]) {
            assert!(!said.contains("s3"), "{said}");
        }
    }

    #[test]
    fn the_pools_settings_can_be_had_alone() {
        let ours: Vec<_> = names().filter(|name| is_of_the_pool(name)).collect();
        assert!(ours.contains(&"DATABASE_URL_FILE") && ours.contains(&"DB_POOL_MAX"));
        assert!(!ours.contains(&"HTTP_ADDR") && !ours.contains(&"LOG_LEVEL"));
        let name = |vars: &[(&str, &str)]| {
            let vars = vars.iter().copied();
            pool_alone(Config::from_vars(vars).unwrap()).application_name
        };
        assert_eq!(name(&[("DB_POOL_MAX", "3")]), None);
        assert_eq!(
            name(&[("DB_APPLICATION_NAME", "mine")]).as_deref(),
            Some("mine")
        );
        let url = "postgresql://a@h/d?application_name=theirs";
        assert_eq!(name(&[("DATABASE_URL", url)]).as_deref(), Some("theirs"));
    }

    #[test]
    fn a_file_may_hold_the_url_but_not_both() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "postgresql://u:p@h/d\n").unwrap();
        let path = file.path().to_str().unwrap();
        assert!(
            Config::from_vars([("DATABASE_URL_FILE", path)])
                .unwrap()
                .pool
                .database
                .is_some()
        );
        let both = refused(&[("DATABASE_URL_FILE", path), ("DATABASE_URL", "host=h")]);
        assert!(both[0].1.contains("set one of the two"), "{both:?}");
        std::fs::write(file.path(), "postgresql://u:p@h/d\n# secret\n").unwrap();
        let two = refused(&[("DATABASE_URL_FILE", path)]);
        assert!(two[0].1.contains("more than one line"), "{two:?}");
    }
}
