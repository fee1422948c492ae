//! One server connection: the driver's client, its prepared statements, its age and its use.
//!
//! A session is owned by one thread at a time. Whatever waits for the server here does so under a deadline that the
//! watchdog keeps.

mod clean;
mod kept;
mod life;
mod link;
mod prepare;
mod statements;
mod stream;
mod transaction;
mod words;

pub(crate) use life::{Session, UPKEEP};
pub(crate) use words::{Begin, Finish, LostTransaction, SyncCommit};
