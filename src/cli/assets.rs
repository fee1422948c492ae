//! `millpond assets`: files for the programs that watch millpond, made for the names of its metrics.
//! `tests/monitoring.sh` tests them with a real Prometheus.

use super::failure::Failure;
use super::output;
use clap::ValueEnum;

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[arg(value_enum, value_name = "alerts|grafana")]
    which: Asset,
}

#[derive(Clone, Copy, ValueEnum)]
enum Asset {
    /// Alert rules for Prometheus
    Alerts,
    /// A dashboard for Grafana, which reads from Prometheus
    Grafana,
}

pub(super) fn print(arguments: &Arguments) -> Result<(), Failure> {
    output::print(match arguments.which {
        Asset::Alerts => include_str!("assets/alerts.yml"),
        Asset::Grafana => include_str!("assets/grafana.json"),
    })
}
