//! `millpond check`: asks a running server for its health, for supervisors and containers. With
//! `--database` it asks the database: see `check_database`.

use super::failure::Failure;
use super::{output, running_server};
use std::time::Duration;

const PATHS: [&str; 3] = ["/health", "/health/live", "/health/ready"];

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
    let base = arguments.url.clone();
    let base = base.unwrap_or_else(running_server::default_url);
    let url = running_server::url_to_ask(&base, path, &PATHS)?;
    let answered = running_server::ask(&url, arguments.limit());
    let (status, text) =
        answered.map_err(|e| Failure::because(format!("no answer from {url}: {e}")))?;
    output::print(&format!("{}\n", text.trim_end()))?;
    if status.is_success() {
        Ok(())
    } else {
        Err(Failure::Failed(None))
    }
}
