//! Names that stay true: of hosts, of events, of processes, of connections.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Serialize, Serializer};
use uuid::Uuid;

use crate::flow::Protocol;

/// An enrolled machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HostId(Uuid);

impl HostId {
    /// A new one, at random.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// From its 16 bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// Its 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for HostId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(text).map(Self)
    }
}

/// The identity of a ring: a ring made anew has another. 0 names none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// An event's position in its ring, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

impl Seq {
    /// The first position of a ring.
    pub const FIRST: Self = Self(1);

    /// The position after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A place in a host's stream of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cursor {
    /// Which ring.
    pub epoch: Epoch,
    /// Which event in it.
    pub seq: Seq,
}

macro_rules! uid {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 16]);

        impl $name {
            /// From its 16 bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// Its 16 bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

uid! {
    /// A process, for ever: derived from host, boot, pid and start time, so that a reused pid has another uid.
    /// Printed as 32 hexadecimal digits.
    ProcessUid
}

uid! {
    /// A connection, for ever: derived from host, boot, protocol, remote end and the system's identity of its socket.
    /// Printed as 32 hexadecimal digits.
    ConnectionUid
}

/// What uids are derived from besides the thing itself: this host in this boot.
#[derive(Clone, Debug)]
pub struct HostBoot {
    /// The host.
    pub host: HostId,
    /// The system's id of this boot.
    pub boot_id: String,
}

impl HostBoot {
    /// The uid of the process `pid` that started at `start`, in the finest unit that the system keeps for ever
    /// (Linux: clock ticks since boot).
    pub fn process(&self, pid: u32, start: u64) -> ProcessUid {
        let mut hasher = self.hasher("process");
        hasher.update(&pid.to_be_bytes());
        hasher.update(&start.to_be_bytes());
        ProcessUid(first_16(&hasher))
    }

    /// The uid of a connection; `socket` is the system's identity of the socket (Linux: its inode or cookie). The local
    /// end is no part of it: a connection that is only asked for may have none yet.
    pub fn connection(&self, protocol: Protocol, remote: SocketAddr, socket: u64) -> ConnectionUid {
        let mut hasher = self.hasher("connection");
        let address = match remote.ip().to_canonical() {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        hasher.update(&[protocol as u8]);
        hasher.update(&address.octets());
        hasher.update(&remote.port().to_be_bytes());
        hasher.update(&socket.to_be_bytes());
        ConnectionUid(first_16(&hasher))
    }

    fn hasher(&self, kind: &str) -> blake3::Hasher {
        let mut hasher = blake3::Hasher::new();
        for part in [b"alibi uid 1", kind.as_bytes(), self.host.as_bytes(), self.boot_id.as_bytes()] {
            hasher.update(&(part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        hasher
    }
}

fn first_16(hasher: &blake3::Hasher) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_differ_by_every_part() {
        let host = HostId::from_bytes([7; 16]);
        let boot = HostBoot { host, boot_id: "b1".into() };
        let next_boot = HostBoot { host, boot_id: "b2".into() };
        let other_host = HostBoot { host: HostId::from_bytes([8; 16]), boot_id: "b1".into() };
        let uid = boot.process(4711, 99);
        assert_eq!(uid, boot.process(4711, 99));
        for other in [
            boot.process(4712, 99),
            boot.process(4711, 100),
            next_boot.process(4711, 99),
            other_host.process(4711, 99),
        ] {
            assert_ne!(uid, other);
        }

        let (a, b): (SocketAddr, SocketAddr) =
            ("10.0.0.1:80".parse().unwrap(), "10.0.0.2:9".parse().unwrap());
        let connection = boot.connection(Protocol::Tcp, b, 5);
        assert_ne!(connection, boot.connection(Protocol::Tcp, a, 5));
        assert_ne!(connection, boot.connection(Protocol::Udp, b, 5));
        assert_ne!(connection, boot.connection(Protocol::Tcp, b, 6));
        let mapped = "[::ffff:10.0.0.2]:9".parse().unwrap();
        assert_eq!(connection, boot.connection(Protocol::Tcp, mapped, 5));
    }
}
