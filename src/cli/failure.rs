//! Why a command failed, and its exit code.

use millpond::config::ConfigErrors;
use millpond::error::Chain;

/// Why a command failed.
pub(super) enum Failure {
    /// Exit code 2: a setting or an argument must be changed.
    Settings(String),
    /// Exit code 1, with a message unless the command has printed one.
    Failed(Option<String>),
}

impl Failure {
    pub fn because(text: impl Into<String>) -> Failure {
        Failure::Failed(Some(text.into()))
    }

    pub fn of(error: &(dyn std::error::Error + 'static)) -> Failure {
        Failure::because(Chain(error).to_string())
    }
}

impl From<ConfigErrors> for Failure {
    fn from(errors: ConfigErrors) -> Failure {
        Failure::Settings(errors.to_string())
    }
}
