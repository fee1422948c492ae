//! The program: see `millpond --help`.

mod cli;

fn main() -> std::process::ExitCode {
    cli::run()
}
