//! The pool: check-out, check-in, housekeeping, close.
//!
//! # r2d2's part and ours
//!
//! r2d2 counts the connections, and enforces their maximum number. The line hires a thread, an
//! opener, for each connection that is wanted. It opens one, has r2d2 count it, and passes it to
//! the line, where a waiter takes whichever connection comes first. A session that is checked in
//! stays in the line's own stack, most recent first (for r2d2 it is still checked out). The line
//! also hires openers for the sessions that are kept idle, and the housekeeper closes those that
//! are dead, too old, or idle for too long. r2d2 cannot do this: it keeps its spares beside the
//! stack and does not know the stack, so that each dead connection was replaced twice; and its
//! reaper ignores the minimum, reopens endlessly, and runs only every 30 s (r2d2 0.8.10). Idle
//! sessions are those in the stack plus those that r2d2 has and no opener waits for. Only
//! `checkout`, `build` and `housekeeping` name `r2d2::Pool`.
//!
//! At rest a pool has two threads, the housekeeper and the watchdog. All pools of a process share
//! the one on which r2d2 works (see `scheduler`).
//!
//! A session is dropped before its place in the line is freed: otherwise r2d2 would lose the
//! wake-up for the next thread that opens a connection.

mod after_probe;
mod backend;
mod blocking;
mod build;
mod build_error;
mod builder;
mod cancel;
mod cancel_token;
mod checkin;
mod checkout;
mod clock;
mod close;
mod common;
mod control;
mod dial;
#[cfg(feature = "server")]
mod doors;
#[cfg(feature = "cli")]
mod endpoint;
mod fleet;
mod gate;
mod headroom;
mod hedge;
mod housekeeping;
mod lag;
mod limits;
mod line;
mod line_state;
mod listener;
mod manager;
#[cfg(feature = "metrics")]
mod measured;
mod member;
mod names;
mod observer;
mod opened;
mod opener;
mod param_types;
mod plain;
mod pong;
mod pooler;
mod probe;
mod process;
mod ready;
mod recent_writes;
mod renewal;
mod report;
mod scheduler;
mod session;
mod shared;
mod spans;
mod standbys;
mod startup;
mod target;
mod texts;
mod tracked;
mod upkeep;
mod waiter;
mod warnings;
mod watchdog;
mod wire;

pub use crate::metrics::{CloseReason, Headroom, Standby, StandbyState, Stats};
pub use build_error::BuildError;
pub use builder::Builder;
pub use cancel_token::CancelToken;
pub use checkout::Pool;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub use endpoint::Endpoint;
pub use listener::{Heard, Listener, Notification};
pub use observer::{Observer, StatementEvent};
pub use plain::{DetachedConnection, PooledConnection};
pub use pong::ProbeError;
pub use report::Report;

pub(crate) use backend::{BACKEND_START, Backend, Incarnation, first_row, first_value};
pub(crate) use checkout::{CheckoutRequest, Inner, Lease};
pub(crate) use hedge::Purpose;
pub(crate) use limits::Limits;
pub(crate) use pong::INSERTED;
pub(crate) use session::{Begin, Finish, LostTransaction, Served, Session, Start, SyncCommit};
pub(crate) use spans::Span;
pub(crate) use standbys::After;
pub(crate) use tracked::EndsWithPool;
pub(crate) use wire::{Own, OwnRow};
