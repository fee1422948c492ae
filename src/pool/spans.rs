//! Spans of a call, for the subscriber of an application that uses the crate `tracing`: its
//! attempts, their check-outs, statements and commits. The current span of the thread is the parent.
//! The fields have the names of OpenTelemetry's stable conventions for databases; a subscriber of
//! tracing-opentelemetry reads those that begin with `otel`.
//!
//! Without the feature `tracing`, a span is empty, and so is all that is done with it.

pub(crate) use told::Span;

#[cfg(feature = "tracing")]
mod told {
    use crate::config::PoolConfig;
    use crate::error::{Error, query_text};
    use postgres::error::SqlState;
    use tracing::field::Empty;
    use tracing::span::EnteredSpan;

    /// A span, until it is dropped.
    #[must_use]
    pub(crate) struct Span(EnteredSpan);

    /// A span with these fields, and those that a failure fills in.
    macro_rules! span {
        ($name:literal, $kind:literal, $($field:literal = $value:expr),*) => {
            Span(
                tracing::info_span!(
                    target: "millpond",
                    $name,
                    "otel.kind" = $kind,
                    "otel.status_code" = Empty,
                    "db.system.name" = "postgresql",
                    "db.response.status_code" = Empty,
                    "error.type" = Empty,
                    $($field = $value),*
                )
                .entered(),
            )
        };
    }

    impl Span {
        /// One attempt of a call, from 1: its check-out, and what is done on the connection.
        pub fn attempt(number: u32) -> Span {
            span!("attempt", "internal", "millpond.attempt" = number)
        }

        pub fn check_out() -> Span {
            span!("check-out", "internal",)
        }

        /// A statement, sent and answered.
        pub fn statement(config: &PoolConfig, sql: &str) -> Span {
            span!(
                "statement",
                "client",
                "otel.name" = "postgresql",
                "db.namespace" = namespace(config),
                "db.query.text" = query_text(sql).as_str()
            )
        }

        /// A COMMIT, sent and answered.
        pub fn commit(config: &PoolConfig) -> Span {
            span!(
                "commit",
                "client",
                "otel.name" = "COMMIT",
                "db.namespace" = namespace(config),
                "db.operation.name" = "COMMIT"
            )
        }

        /// Ends it as failed.
        pub fn failed(self, error: &Error) {
            self.0.record("otel.status_code", "ERROR");
            self.0.record("error.type", error.class());
            if let Some(code) = error.sqlstate() {
                self.0
                    .record("db.response.status_code", SqlState::code(code));
            }
        }

        /// Ends it with this result.
        pub fn end<T>(self, result: &Result<T, Error>) {
            if let Err(error) = result {
                self.failed(error);
            }
        }
    }

    /// The database that the settings name.
    fn namespace(config: &PoolConfig) -> Option<&str> {
        config.database.as_ref()?.config().get_dbname()
    }
}

#[cfg(not(feature = "tracing"))]
mod told {
    use crate::config::PoolConfig;
    use crate::error::Error;

    #[must_use]
    pub(crate) struct Span;

    impl Span {
        pub fn attempt(_number: u32) -> Span {
            Span
        }

        pub fn check_out() -> Span {
            Span
        }

        pub fn statement(_config: &PoolConfig, _sql: &str) -> Span {
            Span
        }

        pub fn commit(_config: &PoolConfig) -> Span {
            Span
        }

        pub fn failed(self, _error: &Error) {}

        pub fn end<T>(self, _result: &Result<T, Error>) {}
    }
}
