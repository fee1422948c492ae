//! Which database a server is in front of.

/// Which database a server is in front of, as `/health` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DatabaseKind {
    /// One that runs by itself.
    External,
    /// A private server for development, which stops with the program: `"private": true`.
    Private,
}
