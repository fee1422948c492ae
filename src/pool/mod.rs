//! The pool: check-out, check-in, housekeeping, close.
//!
//! # r2d2's part and ours
//!
//! r2d2 opens and counts: the most connections there may be, and how long opening one may take. Nobody waits inside it but
//! our opener threads, which give the line what was opened; a waiter takes whatever comes first. A session that comes back
//! stays in the line's own stack (to r2d2 it is still checked out), most recent first. The line asks openers for the idle
//! ones that are kept ready, too, and the housekeeper closes what is dead, too old, or idle for too long: r2d2 keeps its spares
//! beside the stack, of which it knows nothing, so that deaths were made good twice; its reaper ignores the minimum, reopens
//! for ever, and looks every 30 s only (r2d2 0.8.10). Idle = the stack, and what r2d2 has opened for an opener that gave up
//! waiting for it. Only `checkout`, `builder` and
//! `housekeeping` name `r2d2::Pool`.
//!
//! A session is dropped before its place in the line is given free: r2d2 would else lose the wake-up of who opens next.

mod blocking;
mod builder;
mod cancel;
mod checkin;
mod checkout;
mod clock;
mod close;
mod control;
mod demand;
#[cfg(feature = "server")]
mod doors;
mod gate;
mod hedge;
mod housekeeping;
mod identity;
mod limits;
mod line;
mod listener;
mod manager;
mod names;
mod observer;
mod opener;
mod param_types;
mod plain;
mod pooler;
mod probe;
mod process;
mod ready;
mod report;
mod session;
mod shared;
mod startup;
mod texts;
mod tracked;
mod watchdog;
mod wire;

pub use crate::metrics::{CloseReason, Stats};
pub use builder::Builder;
pub use checkout::Pool;
pub use listener::{Heard, Listener, Notification};
pub use observer::{Observer, StatementEvent};
pub use plain::{DetachedConnection, PooledConnection};
pub use probe::ProbeError;
pub use report::Report;

pub(crate) use checkout::{Inner, Lease};
pub(crate) use hedge::Purpose;
pub(crate) use identity::{BACKEND_START, Identity, Incarnation, first_row, first_value};
pub(crate) use limits::{Limits, as_server_ms};
pub(crate) use session::{Begin, Finish, LostTransaction, Session, SyncCommit};
