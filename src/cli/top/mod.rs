//! `millpond top`: a running server's figures in a terminal, or once as lines of text.
//!
//! `client` asks the server for a `reading`; `history` keeps what readings tell one after another.
//! What is shown of it is drawn by `screen`, `figures` and `lists`, from values alone, and printed by
//! `lines`. `view` is what the user has chosen with the keys. `terminal` is the only part that
//! changes the terminal, and `run` puts them together. Whatever came from outside is `Text`, in
//! which nothing is left that a terminal would obey.

mod client;
mod figures;
mod history;
mod lines;
mod lists;
mod look;
mod reading;
mod run;
#[cfg(test)]
mod sample;
mod screen;
mod terminal;
mod text;
mod units;
mod view;
mod wrap;

pub(super) use run::{Arguments, run};
