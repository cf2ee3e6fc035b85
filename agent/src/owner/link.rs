//! How the agent stands to its collector, as it is told.

use alibi_proto::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::link::{LinkState, LinkStatus};

/// How the agent stands to its collector.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectorStatus {
    /// How it is now.
    #[serde(flatten)]
    pub(super) state: State,
    /// Until when the certificate is valid by which the collector knows this host; none where it has none.
    pub(super) certificate_until: Option<Timestamp>,
}

/// Whether they speak with each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(super) enum State {
    /// The agent has none.
    #[default]
    NotEnrolled,
    /// They do.
    Connected { collector: String, since: Timestamp },
    /// They do not, and it is tried again.
    NotConnected { collector: String, reason: String },
    /// The collector does not take this host in.
    Refused { collector: String, reason: String },
}

impl From<&LinkStatus> for CollectorStatus {
    fn from(status: &LinkStatus) -> Self {
        let LinkStatus::Enrolled { collector, certificate_until, state } = status.clone() else {
            return Self::default();
        };
        let state = match state {
            LinkState::Connected { since } => State::Connected { collector, since },
            LinkState::NotConnected { why } => State::NotConnected { collector, reason: why },
            LinkState::Refused { why } => State::Refused { collector, reason: why },
        };
        Self { state, certificate_until: Some(certificate_until) }
    }
}
