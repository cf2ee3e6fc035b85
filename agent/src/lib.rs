//! The agent: records what a host does, keeps it in a bounded ring, and serves it.
//!
//! One event's way: [`capture`] sees it, [`pipeline`] numbers it and accounts for loss, [`recorder`] puts it into the
//! [`ring`], [`server`] sends it, on the connection that [`link`] has made.

// Standard output may be closed by whoever reads it: `alibi_proto::command_line::say`.
#![warn(clippy::print_stdout)]

pub mod boots;
pub mod capture;
pub mod cli;
pub mod enrich;
pub mod enrolment;
pub mod identity;
pub mod labels;
pub mod ledger;
pub mod link;
pub mod log;
pub mod owner;
pub mod pipeline;
pub mod query;
pub mod recorder;
pub mod ring;
pub mod selftest;
pub mod server;
pub mod sys;
