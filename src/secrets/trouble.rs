//! Failures that are logged, since no caller is told of them.

use super::value::SecretError;
use crate::sync::{Mutex, unpoison};
use log::{info, warn};
use std::error::Error;

/// Logs failures that no caller is told of: each once, until it is another one or is over.
#[derive(Default)]
pub(super) struct Trouble(pub(super) Mutex<Option<String>>);

impl Trouble {
    pub(super) fn began(&self, error: &SecretError) {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        let mut last = unpoison(self.0.lock());
        if last.as_ref() != Some(&text) {
            warn!("no new value of the secret: {text}");
            *last = Some(text);
        }
    }

    pub(super) fn ended(&self) {
        if let Some(text) = unpoison(self.0.lock()).take() {
            info!("the secret is available again, after: {text}");
        }
    }
}
