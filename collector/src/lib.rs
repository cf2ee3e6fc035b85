//! The collector: follows the agents, keeps what they recorded, and answers.
//!
//! One event's way: it comes in by the [`gate`], the [`fleet`] receives it, the [`store`] keeps it, [`api`] answers from it,
//! [`cli`] prints, for programs as [`export`] has it. Who may send and ask, [`access`] decides.

// Standard output may be closed by whoever reads it: `alibi_proto::command_line::say`.
#![warn(clippy::print_stdout)]

pub mod access;
pub mod allocator;
pub mod api;
pub mod backup;
pub mod cli;
pub mod clock;
pub mod export;
pub mod fleet;
pub mod gate;
pub mod open_files;
pub mod rooms;
pub mod search;
pub mod store;
pub mod totals;
pub mod turns;
pub mod visits;

/// How files lie in the collector's data directory.
const DATA_FORMAT: u32 = 1;
