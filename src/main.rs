//! The program: see `millpond --help`.

fn main() -> std::process::ExitCode {
    millpond::cli::run()
}
