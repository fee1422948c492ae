//! What the server said.

use super::kinds::Error;
use postgres::error::DbError;

impl Error {
    /// Returns the server's error, if there is one: severity, code, message, and the names of what
    /// was violated. Its message and detail may quote values: do not show them to people who may
    /// not see those.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let pool = millpond::Pool::builder().database_url("postgresql://localhost").build()?;
    /// if let Err(error) = pool.execute("INSERT INTO guests (mail) VALUES ($1)", &[&"a@b.example"]) {
    ///     match error.constraint() {
    ///         Some("guests_mail_key") => println!("that guest is known already"),
    ///         _ => return Err(error.into()),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn db_error(&self) -> Option<&DbError> {
        match self {
            Error::QueryTimeout { source, .. } | Error::Database { source, .. } => {
                source.as_db_error()
            }
            Error::OutcomeUnknown { source } | Error::GaveUp { source, .. } => source.db_error(),
            Error::Checkout(_)
            | Error::TransactionAborted { .. }
            | Error::KeyInUse
            | Error::NotReplicated
            | Error::Abandoned { .. }
            | Error::Misuse(_)
            | Error::Application(_) => None,
        }
    }

    /// Returns the name of the constraint that was violated, if one was.
    pub fn constraint(&self) -> Option<&str> {
        self.db_error()?.constraint()
    }
}
