//! The agent: records what a host does, keeps it in a bounded ring, and serves it.
//!
//! One event's way: [`capture`] sees it, the pipeline numbers it and accounts for loss, the [`ring`] keeps it, the
//! server sends it.

pub mod capture;
pub mod enrich;
pub mod ring;
pub mod sys;
