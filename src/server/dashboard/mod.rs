//! What the dashboard shows: the last 15 minutes, the slowest statements, what happened, and what
//! to do. The page itself, and the JSON that it reads, are routes (`src/server/routes/dashboard.rs`,
//! `src/server/routes/live.rs`).

mod advice;
mod events;
mod history;
mod sign_in;
mod state;
mod statements;
mod watcher;

pub(super) use sign_in::SignedIn;
pub(super) use statements::MINUTES;
pub(super) use watcher::Watcher;
