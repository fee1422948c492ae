//! The program's commands. Exit codes: 0 done, 1 failed, 2 bad settings or arguments.

mod check;
mod config;
mod database;
mod limits;
mod load_test;
mod logger;
mod output;
mod serve;
mod signals;

use crate::config::{Config, ConfigErrors};
use crate::error::Chain;
use clap::{Parser, Subcommand};
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
    /// Ask a running server for its health; exits with 0 when it is well
    Check(check::Arguments),
    /// Run queries from many threads and report how long they took
    LoadTest(load_test::Arguments),
    /// Show the settings in force and where each came from
    Config,
}

/// Why a command ended without success.
enum Failure {
    /// 2: somebody has to change a setting.
    Settings(String),
    /// 1: with what to say, if anything.
    Failed(Option<String>),
}

impl Failure {
    fn because(text: impl Into<String>) -> Failure {
        Failure::Failed(Some(text.into()))
    }

    fn of(error: &(dyn std::error::Error + 'static)) -> Failure {
        Failure::because(Chain(error).to_string())
    }
}

impl From<ConfigErrors> for Failure {
    fn from(errors: ConfigErrors) -> Failure {
        Failure::Settings(errors.to_string())
    }
}

/// What looks like a setting and is none, each with a word about it.
fn unknown_settings(config: &Config) -> Vec<String> {
    let told = config.unknown.iter().map(|(name, meant)| match meant {
        Some(meant) => format!("{name} is no setting; is {meant} meant?"),
        None => format!("{name} is no setting"),
    });
    told.collect()
}

/// Runs the command that the arguments name.
pub fn run() -> ExitCode {
    let result = match Arguments::parse().command.unwrap_or(Command::Serve) {
        Command::Serve => Config::from_env()
            .map_err(Failure::from)
            .and_then(serve::run),
        Command::Check(arguments) => check::run(&arguments),
        Command::LoadTest(arguments) => Config::from_env()
            .map_err(Failure::from)
            .and_then(|c| load_test::run(c, &arguments)),
        Command::Config => Config::from_env()
            .map_err(Failure::from)
            .and_then(|config| config::print(&config)),
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
