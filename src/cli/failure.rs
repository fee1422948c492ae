//! Why a command failed, and its exit code.

use millpond::BuildError;
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

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Failure {
        match error {
            BuildError::Settings(errors) => errors.into(),
            // Fewer threads may do; the limits that the program fits itself to are settings.
            error => Failure::Settings(Chain(&error).to_string()),
        }
    }
}

impl From<ConfigErrors> for Failure {
    fn from(errors: ConfigErrors) -> Failure {
        Failure::Settings(errors.to_string())
    }
}
