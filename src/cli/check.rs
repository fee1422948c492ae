//! `millpond check`: asks a running server, for supervisors and container health checks.

use super::{Failure, output};
use crate::config::Config;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Ask whether the process serves, whatever the database does
    #[arg(long, conflicts_with = "ready")]
    live: bool,
    /// Ask whether requests should be sent to it
    #[arg(long)]
    ready: bool,
    /// Where the server is [default: the port of HTTP_ADDR on loopback]
    #[arg(long)]
    url: Option<String>,
    /// How long to wait for the answer
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    timeout_ms: u64,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let path = match (arguments.live, arguments.ready) {
        (true, _) => "/health/live",
        (_, true) => "/health/ready",
        _ => "/health",
    };
    let base = arguments.url.clone().unwrap_or_else(default_url);
    let url = format!("{}{path}", base.trim_end_matches('/'));
    // minreq counts in seconds and nothing smaller: the time is kept here.
    let (sender, answer) = std::sync::mpsc::channel();
    let request = minreq::get(&url).with_max_redirects(0);
    let asker = std::thread::Builder::new().spawn(move || sender.send(request.send()));
    asker.map_err(|e| Failure::because(format!("no thread could be started: {e}")))?;
    let answer = answer
        .recv_timeout(Duration::from_millis(arguments.timeout_ms))
        .map_err(|_| {
            Failure::because(format!(
                "no answer from {url} within {} ms",
                arguments.timeout_ms
            ))
        })?
        .map_err(|e| Failure::because(format!("no answer from {url}: {e}")))?;
    let text = String::from_utf8_lossy(answer.as_bytes());
    output::print(&format!("{}\n", text.trim_end()))?;
    if (200..300).contains(&answer.status_code) {
        Ok(())
    } else {
        Err(Failure::Failed(None))
    }
}

/// A server that listens on all addresses is asked on loopback. Other settings, good or bad, are not this command's business.
fn default_url() -> String {
    let addr = Config::from_env().ok().map(|config| config.http.addr);
    let addr = addr.or_else(|| std::env::var("HTTP_ADDR").ok()?.parse().ok());
    let addr = addr.unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 3000)));
    let ip = match addr.ip() {
        ip if ip.is_loopback() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    format!("http://{}", SocketAddr::new(ip, addr.port()))
}
