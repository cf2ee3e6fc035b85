//! Network interfaces as they come, go and change.

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// A network interface after a change, or as it was found when recording began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkRecord {
    /// When.
    pub at: Timestamp,
    /// Its name.
    pub interface: String,
    /// Its index.
    pub index: u32,
    /// It exists: false for one that is gone.
    pub present: bool,
    /// An administrator has set it up.
    pub up: bool,
    /// It can carry traffic: there is a cable with somebody at its other end.
    pub running: bool,
    /// Its addresses with their prefix lengths, as text.
    pub addresses: Vec<String>,
    /// The gateways of default routes through it, as text; `on-link` for one without a gateway.
    pub default_gateways: Vec<String>,
    /// Network namespace (Linux: its inode), where known.
    pub network_namespace: Option<u64>,
}
