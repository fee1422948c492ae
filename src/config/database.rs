//! Where the database is: a `postgresql://` URL or a `key=value` string, with what libpq's
//! environment, services and defaults add to it.

use super::libpq::{self, Origin, Parameters, passfile};
use super::server_host::{ServerHost, SessionAttrs};
use super::tls::{SslMode, TlsSettings};
use log::warn;
use postgres::config::{ChannelBinding, Host, LoadBalanceHosts, SslNegotiation};
use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// A database to connect to. Its `Debug` and `Display` show no password.
#[derive(Clone)]
pub struct Database {
    config: postgres::Config,
    servers: Vec<ServerHost>,
    pooler: Option<bool>,
    tls: TlsSettings,
    session_attrs: SessionAttrs,
    passfile: Option<(PathBuf, Origin)>,
    #[cfg_attr(not(feature = "env"), allow(dead_code))]
    parameters: Parameters,
}

impl Database {
    /// Returns the driver's settings. Those of TLS are left out: the pool sees to it.
    pub fn config(&self) -> &postgres::Config {
        &self.config
    }

    /// Returns whether the connection is encrypted, and what is verified of the server.
    pub fn ssl_mode(&self) -> SslMode {
        self.tls.mode
    }

    /// Returns whether a pooler stands in front of it, according to `pgbouncer=`; `None` without
    /// that parameter.
    pub fn pooler(&self) -> Option<bool> {
        self.pooler
    }

    pub(crate) fn tls(&self) -> &TlsSettings {
        &self.tls
    }

    pub(crate) fn session_attrs(&self) -> SessionAttrs {
        self.session_attrs
    }

    /// Returns the parameters with their origins; none if it was made from the driver's settings.
    #[cfg(feature = "env")]
    pub(super) fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Returns the hosts in the order given. The pool tries them itself, since the driver would
    /// spend the whole time limit on a host that accepts and then stays silent.
    pub(crate) fn servers(&self) -> &[ServerHost] {
        &self.servers
    }

    /// Returns the same database on another server alone, whatever that is.
    pub(crate) fn on(&self, server: &ServerHost) -> Database {
        let mut server = server.clone();
        if server.port == 0 {
            server.port = self.servers.first().map_or(5432, |first| first.port);
        }
        Database {
            servers: vec![server],
            session_attrs: SessionAttrs::Any,
            ..self.clone()
        }
    }

    /// Returns the settings of a connection, without its host. TLS and the kind of server are left
    /// out as well: the pool sees to them.
    pub(crate) fn without_hosts(&self) -> postgres::Config {
        let from = &self.config;
        let mut one = postgres::Config::new();
        if let Some(user) = from.get_user() {
            one.user(user);
        }
        if let Some(password) = from.get_password() {
            one.password(password);
        }
        if let Some(dbname) = from.get_dbname() {
            one.dbname(dbname);
        }
        if let Some(options) = from.get_options() {
            one.options(options);
        }
        if let Some(name) = from.get_application_name() {
            one.application_name(name);
        }
        // Keepalives detect a peer that is gone while we wait for it, tcp_user_timeout one that is
        // gone while we send. Without both, one of these waits would never end.
        one.tcp_user_timeout(
            from.get_tcp_user_timeout()
                .copied()
                .unwrap_or(Duration::from_secs(60)),
        );
        one.keepalives(from.get_keepalives());
        let unset = Duration::from_secs(2 * 60 * 60);
        let idle = from.get_keepalives_idle();
        one.keepalives_idle(if idle == unset {
            Duration::from_secs(30)
        } else {
            idle
        });
        one.keepalives_interval(
            from.get_keepalives_interval()
                .unwrap_or(Duration::from_secs(10)),
        );
        one.keepalives_retries(from.get_keepalives_retries().unwrap_or(3));
        one.channel_binding(from.get_channel_binding());
        one.load_balance_hosts(from.get_load_balance_hosts());
        one
    }

    /// Returns the password that the password file has for this server. The file is read each time,
    /// so that a change is seen.
    pub(crate) fn password_from_file(&self, server: &ServerHost) -> Option<String> {
        let (path, origin) = self.passfile.as_ref()?;
        let named = *origin != Origin::Default;
        let found = match fs::metadata(path) {
            Ok(found) => found,
            // libpq ignores it, too.
            Err(e) => {
                if named {
                    warn!("the password file {} cannot be read: {e}", path.display());
                }
                return None;
            }
        };
        if let Err(why) = passfile::is_private(&found) {
            warn!("the password file {} is not used: {why}", path.display());
            return None;
        }
        let text = fs::read_to_string(path).ok()?;
        let user = self.config.get_user().map(str::to_owned);
        let user = user.or_else(|| std::env::var("USER").ok())?;
        let dbname = self.config.get_dbname().unwrap_or(&user);
        let host = match &server.host {
            Host::Tcp(name) => name.clone(),
            #[cfg(unix)]
            Host::Unix(directory) => directory.display().to_string(),
        };
        passfile::find(&text, &host, &server.port.to_string(), dbname, &user)
    }

    /// Makes it from parameters whose words were checked.
    pub(super) fn of(parameters: Parameters) -> Result<Database, String> {
        let given = |name| parameters.get(name).filter(|value| !value.is_empty());
        let number = |name| given(name).and_then(|text| text.parse::<u32>().ok());
        let seconds = |name| {
            let time = number(name).filter(|seconds| *seconds > 0)?;
            Some(Duration::from_secs(time.into()))
        };
        let servers = servers(&parameters)?;
        let mut config = postgres::Config::new();
        for server in &servers {
            match &server.host {
                Host::Tcp(name) => config.host(name),
                #[cfg(unix)]
                Host::Unix(directory) => config.host_path(directory),
            };
            config.port(server.port);
        }
        if servers.iter().all(|server| server.address.is_some()) {
            let addresses = servers.iter().filter_map(|server| server.address);
            addresses.for_each(|address| {
                config.hostaddr(address);
            });
        }
        if let Some(user) = given("user") {
            config.user(user);
        }
        if let Some(password) = given("password") {
            config.password(password);
        }
        if let Some(dbname) = given("dbname") {
            config.dbname(dbname);
        }
        if let Some(options) = given("options") {
            config.options(options);
        }
        let name = parameters.get("application_name");
        let name = name.or(parameters.get("fallback_application_name"));
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            config.application_name(name);
        }
        if let Some(limit) = seconds("connect_timeout") {
            config.connect_timeout(limit);
        }
        if let Some(ms) = number("tcp_user_timeout").filter(|ms| *ms > 0) {
            config.tcp_user_timeout(Duration::from_millis(ms.into()));
        }
        config.keepalives(given("keepalives") != Some("0"));
        if let Some(idle) = seconds("keepalives_idle") {
            config.keepalives_idle(idle);
        }
        if let Some(interval) = seconds("keepalives_interval") {
            config.keepalives_interval(interval);
        }
        if let Some(count) = number("keepalives_count").filter(|count| *count > 0) {
            config.keepalives_retries(count);
        }
        config.channel_binding(match given("channel_binding") {
            Some("disable") => ChannelBinding::Disable,
            Some("require") => ChannelBinding::Require,
            _ => ChannelBinding::Prefer,
        });
        if given("load_balance_hosts") == Some("random") {
            config.load_balance_hosts(LoadBalanceHosts::Random);
        }
        let pooler = given("pgbouncer")
            .map(|switch| matches!(switch.to_ascii_lowercase().as_str(), "true" | "on" | "1"));
        let origin = parameters.origin("passfile").cloned();
        let tls = TlsSettings::of(&parameters)?;
        let attrs = given("target_session_attrs").and_then(SessionAttrs::parse);
        let passfile = given("passfile").map(PathBuf::from).zip(origin);
        Database {
            config,
            servers,
            pooler,
            tls,
            session_attrs: attrs.unwrap_or_default(),
            passfile,
            parameters,
        }
        .checked()
    }

    /// Refuses what cannot be had without TLS, where that is not built in.
    fn checked(self) -> Result<Database, String> {
        match self.lacks() {
            None => Ok(self),
            Some(what) => Err(format!(
                "asks for {what}, but TLS is not built in (the feature `tls`); takes sslmode=disable, allow or prefer"
            )),
        }
    }

    #[cfg(feature = "tls")]
    fn lacks(&self) -> Option<String> {
        None
    }

    #[cfg(not(feature = "tls"))]
    fn lacks(&self) -> Option<String> {
        let binding = self.config.get_channel_binding() == ChannelBinding::Require;
        let binding = binding.then(|| "channel_binding=require".to_owned());
        self.tls.needs_tls().or(binding)
    }
}

fn servers(parameters: &Parameters) -> Result<Vec<ServerHost>, String> {
    let list = |name| match parameters.get(name) {
        None | Some("") => Vec::new(),
        Some(list) => list.split(',').collect::<Vec<_>>(),
    };
    let (hosts, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    let count = hosts.len().max(addresses.len());
    if count == 0 {
        return Err("names no host".into());
    }
    let server = |i: usize| {
        let address = match addresses.get(i) {
            None | Some(&"") => None,
            Some(text) => {
                let address = text.parse::<IpAddr>();
                Some(address.map_err(|_| "has a bad value for hostaddr")?)
            }
        };
        let host = match (hosts.get(i).copied().unwrap_or_default(), address) {
            #[cfg(unix)]
            (name, _) if name.starts_with('/') => Host::Unix(name.into()),
            (name, _) if name.starts_with('@') => {
                return Err("names an abstract Unix socket (host=@..): takes a directory");
            }
            ("", None) => return Err("names an empty host"),
            // The driver needs a host name, and an address is one.
            ("", Some(address)) => Host::Tcp(address.to_string()),
            (name, _) => Host::Tcp(name.to_owned()),
        };
        let port = ports.get(i).or(ports.first()).copied().unwrap_or_default();
        Ok(ServerHost {
            host,
            address,
            port: port.parse().unwrap_or(5432),
        })
    };
    let all: Result<_, &str> = (0..count).map(server).collect();
    all.map_err(str::to_owned)
}

/// Parses a URL or a `key=value` string, without libpq's environment. The error says what is wrong,
/// but never quotes the text.
impl FromStr for Database {
    type Err = String;

    fn from_str(text: &str) -> Result<Database, String> {
        Database::of(libpq::only(text)?)
    }
}

/// For settings that a program has in the driver's form.
impl TryFrom<postgres::Config> for Database {
    type Error = String;

    fn try_from(config: postgres::Config) -> Result<Database, String> {
        let (hosts, addresses) = (config.get_hosts(), config.get_hostaddrs());
        let ports = config.get_ports();
        let count = hosts.len().max(addresses.len());
        if count == 0 {
            return Err("names no host".into());
        }
        if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
            return Err(format!(
                "names {} hosts but {} addresses (hostaddr)",
                hosts.len(),
                addresses.len()
            ));
        }
        if ports.len() > 1 && ports.len() != count {
            return Err(format!("names {count} hosts but {} ports", ports.len()));
        }
        let is_empty = |host: &Host| matches!(host, Host::Tcp(name) if name.is_empty());
        if hosts.iter().any(is_empty) {
            return Err("names an empty host".into());
        }
        let names = [
            config.get_user(),
            config.get_dbname(),
            config.get_application_name(),
        ];
        let is_odd = |name: &str| name.bytes().any(|byte| byte.is_ascii_control());
        let odd_password = config.get_password().is_some_and(|p| p.contains(&0));
        if names.into_iter().flatten().any(is_odd) || odd_password {
            return Err("has a control character in a name".into());
        }
        let server = |i: usize| ServerHost {
            host: (hosts.get(i).cloned()).unwrap_or_else(|| Host::Tcp(addresses[i].to_string())),
            address: addresses.get(i).copied(),
            port: *ports.get(i).or(ports.first()).unwrap_or(&5432),
        };
        let tls = TlsSettings {
            mode: match config.get_ssl_mode() {
                postgres::config::SslMode::Disable => SslMode::Disable,
                postgres::config::SslMode::Require => SslMode::Require,
                _ => SslMode::Prefer,
            },
            direct: config.get_ssl_negotiation() == SslNegotiation::Direct,
            ..TlsSettings::default()
        };
        if tls.direct && tls.mode != SslMode::Require {
            return Err("asks for direct negotiation of TLS, which needs sslmode=require".into());
        }
        let session_attrs = config.get_target_session_attrs().into();
        Database {
            servers: (0..count).map(server).collect(),
            config,
            pooler: None,
            tls,
            session_attrs,
            passfile: None,
            parameters: Parameters::default(),
        }
        .checked()
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("postgresql://")?;
        if let Some(user) = self.config.get_user() {
            f.write_str(user)?;
            if self.config.get_password().is_some() {
                f.write_str(":***")?;
            }
            f.write_str("@")?;
        }
        for (i, one) in self.servers.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let port = one.port;
            match &one.host {
                Host::Tcp(name) if name.contains(':') => write!(f, "{comma}[{name}]:{port}")?,
                Host::Tcp(name) => write!(f, "{comma}{name}:{port}")?,
                #[cfg(unix)]
                Host::Unix(path) => write!(f, "{comma}{}:{port}", path.display())?,
            }
        }
        if let Some(dbname) = self.config.get_dbname() {
            write!(f, "/{dbname}")?;
        }
        // Above all, what is asked for of TLS.
        let shown = ["host", "hostaddr", "port", "user", "password", "dbname"];
        let others = (self.parameters.iter())
            .filter(|(name, _, origin)| **origin == Origin::Text && !shown.contains(name));
        for (i, (name, value, _)) in others.enumerate() {
            let mark = if i == 0 { '?' } else { '&' };
            let is_secret = name.contains("password") || name.contains("secret");
            let value = match is_secret {
                true => "***".to_owned(),
                false => percent_encoded(value),
            };
            write!(f, "{mark}{name}={value}")?;
        }
        Ok(())
    }
}

/// Encodes what would end a value of a URL's parameter.
fn percent_encoded(value: &str) -> String {
    [("%", "%25"), (" ", "%20"), ("&", "%26"), ("#", "%23")]
        .iter()
        .fold(value.to_owned(), |value, (plain, encoded)| {
            value.replace(plain, encoded)
        })
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        text.parse::<Database>().unwrap().to_string()
    }

    #[test]
    fn both_forms_are_read_and_shown_without_the_password() {
        assert_eq!(
            shown("postgresql://ada:s3cret@db.example:6432/app"),
            "postgresql://ada:***@db.example:6432/app"
        );
        assert_eq!(
            shown("host=a,b port=1,2 user=ada password=s3cret dbname=app"),
            "postgresql://ada:***@a:1,b:2/app"
        );
        assert_eq!(shown("postgres://[::1]/x"), "postgresql://[::1]:5432/x");
        assert_eq!(shown("host=/run/pg user=u"), "postgresql://u@/run/pg:5432");
        assert_eq!(
            shown("host=h options='-c x=1 & 5%' sslmode=verify-full sslrootcert=/ca"),
            "postgresql://h:5432?options=-c%20x=1%20%26%205%25&sslmode=verify-full&sslrootcert=/ca"
        );
        let debug = format!(
            "{:?}",
            "postgresql://u:s3cret@h/d".parse::<Database>().unwrap()
        );
        assert!(!debug.contains("s3cret"), "{debug}");
    }

    #[test]
    fn what_would_be_weakened_or_leaked_is_refused_by_name_and_without_values() {
        for (text, says) in [
            ("", "empty"),
            ("mysql://u:s3cret@h/d", "postgresql://"),
            ("justaword", "neither"),
            ("postgresql://u:s3@cret@h/d", "%40"),
            (
                "postgresql://u:s3cret@h/d?sslnegotiation=direct&sslmode=prefer",
                "sslnegotiation=direct",
            ),
            (
                "postgresql://u:s3cret@h/d?sslrootcert=system&sslmode=require",
                "verify-full",
            ),
            (
                "host=h ssl_max_protocol_version=TLSv1.1",
                "takes TLSv1.2 or TLSv1.3",
            ),
            (
                "host=h ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2",
                "no less than ssl_min_protocol_version",
            ),
            ("host=h hostaddr=s3cret", "bad value for hostaddr"),
            ("host=h colour=red", "colour"),
            ("host=h password=s3 cret", "a value with blanks"),
            ("host=h password=s3 cret=1", "unknown parameter (a value"),
            ("user=u", "no host"),
            ("host=a,b,c port=1,2", "3 hosts but 2 ports"),
            ("host=h port=many", "bad value for port"),
            (
                "host=h connect_timeout=soon",
                "bad value for connect_timeout",
            ),
        ] {
            let said = text.parse::<Database>().unwrap_err();
            assert!(said.contains(says), "{text}: {said}");
            assert!(
                !said.contains("s3") && !said.contains("cret"),
                "{text}: {said}"
            );
        }
    }

    #[test]
    fn a_pooler_is_named_by_a_parameter_that_the_driver_does_not_know() {
        for (text, pooler, left) in [
            ("postgresql://u@h/d?pgbouncer=true", Some(true), "d"),
            (
                "postgresql://u@h/d?application_name=a&pgbouncer=false&sslmode=disable",
                Some(false),
                "d",
            ),
            (
                "postgresql://u@h/d?pgbouncer=1&sslmode=disable",
                Some(true),
                "d",
            ),
            ("host=h dbname=d pgbouncer=on user=u", Some(true), "d"),
            // In quotes it is part of another value.
            (
                "host=h dbname='d pgbouncer=true x' user=u",
                None,
                "d pgbouncer=true x",
            ),
            ("postgresql://u@h/d", None, "d"),
        ] {
            let db: Database = text.parse().unwrap();
            assert_eq!(db.pooler(), pooler, "{text}");
            assert_eq!(db.config().get_dbname(), Some(left), "{text}");
        }
        let said = "postgresql://u@h/d?pgbouncer=maybe".parse::<Database>();
        assert!(said.unwrap_err().contains("bad value for pgbouncer"));
    }

    #[test]
    fn each_host_has_its_own_port_and_all_else_in_common() {
        let db: Database = "host=a,b port=1,2 user=u password=p dbname=d options='-c x=1'"
            .parse()
            .unwrap();
        let each = db.servers().iter().map(|one| (one.host_name(), one.port));
        assert_eq!(each.collect::<Vec<_>>(), [("a", 1), ("b", 2)]);
        let common = db.without_hosts();
        assert!(common.get_hosts().is_empty());
        assert_eq!(common.get_password(), Some(&b"p"[..]));
        assert_eq!(common.get_options(), Some("-c x=1"));
        let one: Database = "hostaddr=127.0.0.1 user=u".parse().unwrap();
        assert_eq!(one.servers()[0].host_name(), "127.0.0.1");
    }
    #[cfg(not(feature = "tls"))]
    #[test]
    fn what_needs_tls_is_refused_where_it_is_not_built_in() {
        for asks in [
            "sslmode=require",
            "sslmode=verify-full",
            "sslmode=require sslnegotiation=direct",
            "channel_binding=require",
            "sslcert=/x",
        ] {
            let said = format!("host=h {asks}").parse::<Database>().unwrap_err();
            assert!(said.contains("TLS is not built in"), "{asks}: {said}");
        }
        for takes in ["sslmode=disable", "sslmode=allow", "sslmode=prefer"] {
            assert!(format!("host=h {takes}").parse::<Database>().is_ok());
        }
    }
}
