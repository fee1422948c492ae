//! The application's own error type, on its way from a closure through the retry loop.

use crate::error::Error;
use std::any::Any;
use std::fmt;

/// Keeps a closure's error while the loop works with an [`Error`] in its place.
pub(super) struct Raised<E>(Option<E>);

impl<E: From<Error> + 'static> Raised<E> {
    pub fn none() -> Raised<E> {
        Raised(None)
    }

    /// Returns the error that the loop judges: the closure's own if it is an [`Error`], else a
    /// stand-in with the text `why`.
    pub fn stand_in(&mut self, error: E, why: impl FnOnce() -> Box<str>) -> Error {
        let mut slot = Some(error);
        let ours = (&mut slot as &mut dyn Any).downcast_mut::<Option<Error>>();
        if let Some(error) = ours.and_then(Option::take) {
            return error;
        }
        self.0 = slot;
        Error::application(StandIn(why()))
    }

    /// Returns the closure's own error if the call ended with it, else the loop's error.
    pub fn give_back(self, error: Error) -> E {
        match self.0 {
            Some(own) if is_stand_in(&error) => own,
            _ => E::from(error),
        }
    }
}

/// Returns whether an error is a stand-in, alone or within [`Error::GaveUp`]. An unknown outcome is
/// not: it says more than the closure's error.
fn is_stand_in(error: &Error) -> bool {
    match error {
        Error::Application(inner) => inner.is::<StandIn>(),
        Error::GaveUp { source, .. } => is_stand_in(source),
        _ => false,
    }
}

#[derive(Debug)]
struct StandIn(Box<str>);

impl fmt::Display for StandIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StandIn {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::GaveUpReason;

    #[derive(Debug)]
    enum Own {
        Full,
        Ours(Error),
    }

    impl From<Error> for Own {
        fn from(error: Error) -> Own {
            Own::Ours(error)
        }
    }

    #[test]
    fn what_goes_in_comes_out() {
        let mut raised = Raised::none();
        let error = raised.stand_in(Own::Full, || "full".into());
        assert_eq!(error.to_string(), "full");
        let gave_up = Error::GaveUp {
            attempts: 3,
            reason: GaveUpReason::MaxRetries,
            source: Box::new(error),
        };
        assert!(matches!(raised.give_back(gave_up), Own::Full));
    }

    #[test]
    fn an_error_of_the_pool_is_not_hidden_by_an_earlier_one_of_the_closure() {
        let mut raised = Raised::none();
        let error = raised.stand_in(Own::Full, || "full".into());
        let unknown = Error::OutcomeUnknown {
            source: Box::new(error),
        };
        let out = raised.give_back(unknown);
        assert!(matches!(out, Own::Ours(e) if e.is_outcome_unknown()));
    }

    #[test]
    fn an_error_of_the_pools_type_is_judged_as_it_is() {
        let mut raised = Raised::<Error>::none();
        let error = raised.stand_in(Error::KeyInUse, || unreachable!("it is no stand-in"));
        assert!(matches!(error, Error::KeyInUse));
    }
}
