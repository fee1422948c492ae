//! `millpond check`: asks a running server for its health, for supervisors and containers. With
//! `--database` it asks the database: see `check_database`.

use super::failure::Failure;
use super::output;
use millpond::config::Config;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use ureq::Agent;
use ureq::http::{StatusCode, Uri};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Ask whether the process serves, whatever the database does
    #[arg(long, conflicts_with = "ready")]
    live: bool,
    /// Ask whether requests should be sent to it
    #[arg(long)]
    ready: bool,
    /// Where the server is [default: at HTTP_ADDR, on loopback if that is every address]
    #[arg(long)]
    url: Option<String>,
    /// Ask the database instead, with the settings of `serve`: what to know about it before going
    /// live
    #[arg(long, conflicts_with_all = ["live", "ready", "url"])]
    pub database: bool,
    /// How many instances of the program are to use the database [default: 1]
    #[arg(long, requires = "database", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub instances: Option<u32>,
    /// How long to wait for the answer [default: 2000; with --database, 10000]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    timeout_ms: Option<u64>,
}

impl Arguments {
    /// How long to wait for the answer.
    pub fn limit(&self) -> Duration {
        let usual = if self.database { 10_000 } else { 2000 };
        Duration::from_millis(self.timeout_ms.unwrap_or(usual))
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let path = match (arguments.live, arguments.ready) {
        (true, _) => "/health/live",
        (_, true) => "/health/ready",
        _ => "/health",
    };
    let base = arguments.url.clone().unwrap_or_else(default_url);
    let url = health_url(&base, path)?;
    let answered = ask(&url, arguments.limit());
    let (status, text) =
        answered.map_err(|e| Failure::because(format!("no answer from {url}: {e}")))?;
    output::print(&format!("{}\n", text.trim_end()))?;
    if status.is_success() {
        Ok(())
    } else {
        Err(Failure::Failed(None))
    }
}

/// Returns the status and the body of the answer.
pub(super) fn ask(url: &str, limit: Duration) -> Result<(StatusCode, String), ureq::Error> {
    let agent: Agent = Agent::config_builder()
        .timeout_global(Some(limit))
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .build()
        .into();
    let mut answer = agent.get(url).call()?;
    let status = answer.status();
    let text = answer.body_mut().read_to_string()?;
    Ok((status, text))
}

/// The URL to ask: `given` with `path` added, unless it leads to the health already.
fn health_url(given: &str, path: &str) -> Result<String, Failure> {
    let takes = "takes http://HOST:PORT, or such a URL that ends with /health, /health/live or /health/ready";
    // A password that stands where none is taken is not repeated.
    let got = if given.contains('@') {
        "a URL with a user".to_owned()
    } else {
        format!("{given:?}")
    };
    let refuse = || Failure::Settings(format!("--url: got {got}; {takes}"));
    let url: Uri = given.parse().map_err(|_| refuse())?;
    let host = url.authority().is_some_and(|authority| {
        let alone = authority.as_str() == authority.host();
        !authority.host().is_empty() && (alone || authority.port_u16().is_some())
    });
    let plain = url.scheme_str() == Some("http") && url.query().is_none();
    if !host || !plain || given.contains('@') {
        return Err(refuse());
    }
    let whole = given.trim_end_matches('/');
    let leads_there = ["/health", "/health/live", "/health/ready"]
        .iter()
        .any(|end| whole.ends_with(end));
    Ok(match leads_there {
        true => whole.to_owned(),
        false => format!("{whole}{path}"),
    })
}

/// The server's address. Other settings, valid or not, do not matter to those who ask it.
pub(super) fn default_addr() -> SocketAddr {
    let addr = Config::from_env().ok().map(|config| config.http.addr);
    let addr = addr.or_else(|| std::env::var("HTTP_ADDR").ok()?.parse().ok());
    addr.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 3000)))
}

fn default_url() -> String {
    url_of(default_addr())
}

/// The URL of a server with this address, on loopback if it listens everywhere.
pub(super) fn url_of(addr: SocketAddr) -> String {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    format!("http://{}", SocketAddr::new(ip, addr.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_or_a_health_url_is_asked_and_nothing_else() {
        let url = |given: &str| health_url(given, "/health").ok();
        for (given, asked) in [
            ("http://127.0.0.1:3000", "http://127.0.0.1:3000/health"),
            ("http://[::1]:3000/", "http://[::1]:3000/health"),
            ("http://h/app", "http://h/app/health"),
            ("http://h:1/health/ready", "http://h:1/health/ready"),
            ("http://h:1/health/", "http://h:1/health"),
        ] {
            assert_eq!(url(given).as_deref(), Some(asked), "{given}");
        }
        for given in [
            "",
            "localhost:3000",
            "https://h",
            "http://",
            "ftp://h",
            "http://h:port",
            "http://h/?x",
            "/health",
            "http://u:p@h",
        ] {
            assert_eq!(url(given), None, "{given}");
        }
    }
}
