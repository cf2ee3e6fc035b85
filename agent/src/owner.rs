//! The owner's view: what the owner of this machine can see of the agent on it, without rights and without a collector.
//!
//! What is recorded and how well, what was redacted, who asked about this host, and how the agent is: the running agent
//! writes it into a small file ([`Publisher`]) that everybody on the machine may read. No secrets stand in it, no
//! arguments, and nothing of what was recorded.

mod asked;
mod health;
mod link;
mod publisher;
mod report;
mod status;

pub use asked::{Entry, KEPT_MAX, SHOWN_MAX, Told, WhoAsked};
pub use link::CollectorStatus;
pub use publisher::{FILE, Publisher, Seen, WRITTEN_AT_LEAST};
pub use report::in_words;
pub use status::{Facts, Now, RingRoom, Status, StatusError};
