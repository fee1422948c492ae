//! Bad settings, which are reported together.

use std::fmt;

/// One bad setting.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// The environment variable, or the option of the builder.
    pub name: &'static str,
    /// Its value; `None` if that could be a secret.
    pub got: Option<String>,
    /// The values that it takes, or what is wrong.
    pub takes: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.got {
            Some(got) => write!(f, "{}: got {got:?}; takes {}", self.name, self.takes),
            None => write!(f, "{}: {}", self.name, self.takes),
        }
    }
}

/// All bad settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<Problem>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.len() == 1 {
            "bad setting"
        } else {
            "bad settings"
        })?;
        for problem in &self.0 {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
