//! A running server, as other processes find it and ask it: its address, its URL, one request.

use super::failure::Failure;
use millpond::config::Config;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use ureq::Agent;
use ureq::http::{StatusCode, Uri};

/// Asks without redirects and proxies; any status is an answer.
pub(super) fn agent(limit: Duration) -> Agent {
    Agent::config_builder()
        .timeout_global(Some(limit))
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .build()
        .into()
}

/// Returns the status and the body of the answer.
pub(super) fn ask(url: &str, limit: Duration) -> Result<(StatusCode, String), ureq::Error> {
    let mut answer = agent(limit).get(url).call()?;
    let status = answer.status();
    let text = answer.body_mut().read_to_string()?;
    Ok((status, text))
}

/// The URL to ask: `given` with `path` added, unless it leads to one of `paths` already.
pub(super) fn url_to_ask(given: &str, path: &str, paths: &[&str]) -> Result<String, Failure> {
    // A password that stands where none is taken is not repeated.
    let got = if given.contains('@') {
        "a URL with a user".to_owned()
    } else {
        format!("{given:?}")
    };
    let refuse = || {
        let mut ends = paths.join(", ");
        if let Some(last) = ends.rfind(", ") {
            ends.replace_range(last..last + 1, " or");
        }
        Failure::Settings(format!(
            "--url: got {got}; takes http://HOST:PORT, or such a URL that ends with {ends}"
        ))
    };
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
    Ok(match paths.iter().any(|end| whole.ends_with(end)) {
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

pub(super) fn default_url() -> String {
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

/// The token that the server's figures ask for, if the settings have one.
pub(super) fn metrics_token() -> Option<String> {
    match Config::from_env() {
        Ok(config) => config.http.metrics_token,
        Err(_) => std::env::var("METRICS_TOKEN")
            .ok()
            .filter(|t| !t.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_or_a_url_that_leads_there_is_asked_and_nothing_else() {
        let paths = ["/health", "/health/live", "/health/ready"];
        let url = |given: &str| url_to_ask(given, "/health", &paths).ok();
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

    #[test]
    fn a_url_that_is_refused_is_told_what_is_taken() {
        let refused = |paths: &[&str]| match url_to_ask("h", paths[0], paths) {
            Err(Failure::Settings(text)) => text,
            _ => panic!("it was taken"),
        };
        let one = refused(&["/a"]);
        assert!(one.ends_with("that ends with /a"), "{one}");
        let three = refused(&["/a", "/b", "/c"]);
        assert!(three.ends_with("that ends with /a, /b or /c"), "{three}");
    }
}
