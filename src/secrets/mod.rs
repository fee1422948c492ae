//! A password, or a whole connection URL, that may change while the pool runs. It comes from a
//! file, a command, or a callback of the application.
//!
//! A value is never logged and is part of no error: those name the source and what was wrong.

mod command;
mod file;
mod more;
mod shell;
mod source;
mod trouble;
#[cfg(unix)]
mod unix;
mod value;
#[cfg(windows)]
mod windows;

pub(crate) use source::Secret;
