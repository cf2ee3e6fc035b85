//! The words of Alibi, shared by agent, collector and lab.
//!
//! The vocabulary (`id`, `time`, `clock`, `window`, `target`, `flow`, `community`, `process`, `executable`, `name`, `link`, `coverage`, `event`, `host`,
//! `prevalence`, `question`) is
//! pure: no files, no sockets, no clocks, no operating system; `now` is an argument. [`convert`] is the only place
//! where wire types become words and back. [`tls`], [`dial`], [`transport`], [`data_directory`] and [`configuration`] are the
//! rooms with I/O, here because both programs need the same.

pub mod address;
pub mod backoff;
pub mod chain;
pub mod clock;
pub mod command_line;
pub mod community;
pub mod configuration;
pub mod convert;
pub mod coverage;
pub mod data_directory;
pub mod dial;
pub mod event;
pub mod executable;
pub mod flow;
pub mod frame;
pub mod host;
pub mod id;
pub mod json;
pub mod link;
pub mod name;
pub mod prevalence;
pub mod process;
pub mod question;
pub mod report;
pub mod target;
pub mod time;
pub mod tls;
pub mod token;
pub mod transport;
pub mod window;

/// Generated from `schema/`; a test proves it fresh.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod wire {
    include!("gen/alibi.v1.rs");
}
