//! Connections, in records after IPFIX (RFC 7011, RFC 5102).

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    id::{ConnectionUid, ProcessUid},
    name::RemoteName,
    time::Timestamp,
};

/// No record spans more, so that an overlap query that looks back this far is exact. Also the idle timeout.
pub const RECORD_SPAN_MAX: Duration = Duration::from_secs(15 * 60);

/// One record of one connection. The records of a connection tile its life: each begins where the one before it
/// ended. A record that leaves the connection open is continued, silently if nothing moves, until the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowRecord {
    /// The connection.
    pub connection: ConnectionUid,
    /// Its owner, where known.
    pub process: Option<ProcessUid>,
    /// How the owner was found.
    pub attribution: Attribution,
    /// The transport.
    pub protocol: Protocol,
    /// Who asked for it.
    pub direction: Direction,
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// When the connection was opened; if `already_open`, when it was found.
    pub opened: Timestamp,
    /// The connection was open before recording began.
    pub already_open: bool,
    /// Where this record begins.
    pub first: Timestamp,
    /// Where this record ends; not before `first`.
    pub last: Timestamp,
    /// What moved in this record; none where the source cannot measure it.
    pub traffic: Option<Traffic>,
    /// What is known of the connection at `last`.
    pub state: FlowState,
    /// Why this record ends.
    pub end_reason: FlowEndReason,
    /// Position within the connection, from 0 in each run of the recorder.
    pub record: u32,
    /// Network interface, where known.
    pub interface: Option<String>,
    /// Network namespace (Linux: its inode), where known.
    pub network_namespace: Option<u64>,
    /// Smoothed round-trip time, as the system last had it (TCP).
    pub round_trip: Option<Duration>,
    /// The name by which the owner most likely knew the remote.
    pub remote_name: Option<RemoteName>,
}

impl FlowRecord {
    /// Whether the connection is open after this record, so that its life goes on until told otherwise.
    pub fn leaves_open(&self) -> bool {
        matches!(self.state, FlowState::Attempted | FlowState::Established)
            && matches!(self.end_reason, FlowEndReason::IdleTimeout | FlowEndReason::ActiveTimeout)
    }
}

/// Bytes and packets each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Payload bytes from here.
    pub bytes_sent: u64,
    /// Payload bytes from there.
    pub bytes_received: u64,
    /// Packets from here.
    pub packets_sent: u64,
    /// Packets from there.
    pub packets_received: u64,
    /// Of the packets from here, those sent again (TCP).
    #[serde(default)]
    pub packets_retransmitted: u64,
}

impl Traffic {
    /// What was added since `earlier`, counter by counter, never negative.
    pub fn since(&self, earlier: &Self) -> Self {
        self.combine(earlier, u64::saturating_sub)
    }

    /// Both together.
    pub fn plus(&self, other: &Self) -> Self {
        self.combine(other, u64::saturating_add)
    }

    /// Whether a byte of payload moved. Packets without any, as those that open and end a connection, do not count.
    pub fn any(&self) -> bool {
        self.bytes_sent > 0 || self.bytes_received > 0
    }

    fn combine(&self, other: &Self, with: fn(u64, u64) -> u64) -> Self {
        Self {
            bytes_sent: with(self.bytes_sent, other.bytes_sent),
            bytes_received: with(self.bytes_received, other.bytes_received),
            packets_sent: with(self.packets_sent, other.packets_sent),
            packets_received: with(self.packets_received, other.packets_received),
            packets_retransmitted: with(self.packets_retransmitted, other.packets_retransmitted),
        }
    }
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }

        impl $name {
            /// The word for it, as in JSON and tables.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.word())
            }
        }
    };
}
pub(crate) use words;

words! {
    /// Transport protocol.
    Protocol {
        /// TCP.
        Tcp = "tcp",
        /// UDP.
        Udp = "udp",
    }
}

impl std::str::FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            other => Err(format!("`{other}` is not a protocol: write tcp or udp")),
        }
    }
}

words! {
    /// Who asked for the connection.
    Direction {
        /// This host did.
        Outbound = "outbound",
        /// The other end did.
        Inbound = "inbound",
    }
}

words! {
    /// How the owner of a connection was found.
    Attribution {
        /// In the kernel, at the call.
        InKernel = "in_kernel",
        /// In the system's socket table, afterwards.
        SocketTable = "socket_table",
        /// By inference.
        Guessed = "guessed",
        /// Not at all.
        Unknown = "unknown",
    }
}

words! {
    /// Why a record ends: IPFIX flowEndReason (information element 136).
    FlowEndReason {
        /// Nothing moved for the idle timeout; the connection is open.
        IdleTimeout = "idle_timeout",
        /// The active timeout, or the first second; the connection is open.
        ActiveTimeout = "active_timeout",
        /// The connection ended.
        EndOfFlow = "end_of_flow",
        /// Recording ended.
        ForcedEnd = "forced_end",
        /// The recorder had no room to follow it further.
        LackOfResources = "lack_of_resources",
    }
}

/// What is known of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlowState {
    /// Asked for, not answered yet.
    Attempted,
    /// Open.
    Established,
    /// Ended.
    Closed,
    /// Failed, with the system's errno.
    Failed(i32),
}

impl FlowState {
    /// The word for it, as in JSON and tables.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Attempted => "attempted",
            Self::Established => "established",
            Self::Closed => "closed",
            Self::Failed(_) => "failed",
        }
    }

    /// The errno of a failure, else 0.
    pub const fn errno(self) -> i32 {
        if let Self::Failed(errno) = self { errno } else { 0 }
    }
}
