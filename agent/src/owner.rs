//! The owner's view: what the owner of this machine can see of the agent on it.

mod asked;

pub use asked::{Entry, KEPT_MAX, SHOWN_MAX, Told, WhoAsked};
