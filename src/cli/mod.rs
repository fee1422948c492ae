//! The program's commands. Exit codes: 0 done, 1 failed, 2 bad settings or arguments.

mod assets;
mod check;
mod check_database;
mod config;
mod control;
mod database;
mod failure;
mod limits;
mod load_test;
mod logger;
mod output;
mod reload;
mod running_server;
mod serve;
mod signals;
mod supervisor;
mod top;

use clap::{Parser, Subcommand};
use failure::Failure;
use millpond::config::Config;
use std::process::ExitCode;

/// A PostgreSQL pool that stays calm, for synchronous Rust.
#[derive(Parser)]
#[command(version, about, long_about = None)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve HTTP (also without a command); settings come from the environment and .env
    Serve,
    /// Ask a running server for its health, or the database; exits with 0 when all is well
    Check(check::Arguments),
    /// Run queries from many threads and report how long they took
    LoadTest(load_test::Arguments),
    /// Show a running server's figures in the terminal
    Top(top::Arguments),
    /// Show the settings in force and where each came from
    Config,
    /// Print a systemd unit for this program
    Unit(supervisor::Unit),
    /// Print alert rules for Prometheus, or a dashboard for Grafana
    Assets(assets::Arguments),
    /// Close a running server's connections and let its callers wait, to move or restart the database
    Pause(control::Pause),
    /// End a pause
    Resume(control::Which),
}

/// Runs the command that the arguments name.
pub(super) fn run() -> ExitCode {
    let result = match Arguments::parse().command.unwrap_or(Command::Serve) {
        Command::Serve => Config::from_env()
            .map_err(Failure::from)
            .and_then(serve::run),
        Command::Check(arguments) if arguments.database => Config::from_env()
            .map_err(Failure::from)
            .and_then(|c| check_database::run(&c, arguments.instances, arguments.limit())),
        Command::Check(arguments) => check::run(&arguments),
        Command::LoadTest(arguments) => Config::from_env()
            .map_err(Failure::from)
            .and_then(|c| load_test::run(c, &arguments)),
        Command::Top(arguments) => top::run(&arguments),
        Command::Config => Config::from_env()
            .map_err(Failure::from)
            .and_then(|config| config::print(&config)),
        Command::Unit(which) => supervisor::print_unit(&which),
        Command::Assets(arguments) => assets::print(&arguments),
        Command::Pause(arguments) => control::pause(&arguments),
        Command::Resume(which) => control::resume(&which),
    };
    logger::finish();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Settings(text)) => {
            output::complain(&format!("millpond: {text}"));
            ExitCode::from(2)
        }
        Err(Failure::Failed(text)) => {
            if let Some(text) = text {
                output::complain(&format!("millpond: {text}"));
            }
            ExitCode::FAILURE
        }
    }
}
