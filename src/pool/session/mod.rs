//! One server connection: the driver's client, its prepared statements, its age and its number of
//! uses.
//!
//! A session is owned by one thread at a time. Every wait for the server in this folder has a
//! deadline, which the watchdog enforces.

mod clean;
mod comment;
mod kept;
mod life;
mod link;
mod prepare;
mod served;
mod statements;
mod stream;
mod transaction;
mod warm_up;
mod words;

pub(crate) use life::{HOUSEKEEPING, Session};
pub(crate) use served::Served;
pub(crate) use words::{Begin, Finish, LostTransaction, Start, SyncCommit};
