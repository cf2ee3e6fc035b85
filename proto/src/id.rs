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

    /// The position after this one; of the greatest, which no ring has, itself.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
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
    processes: [u8; 16],
    connections: [u8; 16],
}

/// Uids are not random, though they look it: what is the same in all of a boot, and what counts up, keeps its place, so
/// that many of them take little room once they are compressed. The part that differs comes first, so that the first
/// few digits name one; it is masked by the boot, so that hosts that count alike differ there, too.
impl HostBoot {
    /// This host in the boot that the system calls so.
    pub fn new(host: HostId, boot_id: &str) -> Self {
        let of = |kind: &str| {
            let mut hasher = blake3::Hasher::new();
            for part in [b"alibi uid 2", kind.as_bytes(), host.as_bytes(), boot_id.as_bytes()] {
                hasher.update(&(part.len() as u64).to_be_bytes());
                hasher.update(part);
            }
            *hasher.finalize().as_bytes().first_chunk().expect("a hash has more bytes than a uid")
        };
        Self { processes: of("process"), connections: of("connection") }
    }

    /// The uid of the process `pid` that started at `start`, in the finest unit that the system keeps for ever
    /// (Linux: clock ticks since boot).
    ///
    /// ```text
    ///  0   4  pid       little-endian; masked by the boot
    ///  4   6  start     the low 48 bits, little-endian; masked by the boot
    /// 10   6  boot      a hash of host and boot id
    /// ```
    pub fn process(&self, pid: u32, start: u64) -> ProcessUid {
        let mut counted = [0; 10];
        counted[..4].copy_from_slice(&pid.to_le_bytes());
        counted[4..].copy_from_slice(&start.to_le_bytes()[..6]);
        ProcessUid(masked(self.processes, counted))
    }

    /// The uid of a connection; `socket` is the system's identity of the socket (Linux: its inode or cookie). The local
    /// end is no part of it: a connection that is only asked for may have none yet.
    ///
    /// ```text
    ///  0   5  socket    the low 40 bits, little-endian; masked by the boot
    ///  5   5  remote    a hash of protocol, address and port; masked by the boot
    /// 10   6  boot      a hash of host and boot id
    /// ```
    pub fn connection(&self, protocol: Protocol, remote: SocketAddr, socket: u64) -> ConnectionUid {
        let address = match remote.ip().to_canonical() {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let mut hashed = [0; 27];
        hashed[0] = protocol as u8;
        hashed[1..17].copy_from_slice(&address.octets());
        hashed[17..19].copy_from_slice(&remote.port().to_be_bytes());
        // The high bits are in the hash, where a system has them.
        hashed[19..].copy_from_slice(&(socket >> 40).to_be_bytes());
        let mut counted = [0; 10];
        counted[..5].copy_from_slice(&socket.to_le_bytes()[..5]);
        counted[5..].copy_from_slice(&blake3::hash(&hashed).as_bytes()[..5]);
        ConnectionUid(masked(self.connections, counted))
    }
}

fn masked(mut uid: [u8; 16], counted: [u8; 10]) -> [u8; 16] {
    uid.iter_mut().zip(counted).for_each(|(byte, counted)| *byte ^= counted);
    uid
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_differ_by_every_part() {
        let host = HostId::from_bytes([7; 16]);
        let boot = HostBoot::new(host, "b1");
        let next_boot = HostBoot::new(host, "b2");
        let other_host = HostBoot::new(HostId::from_bytes([8; 16]), "b1");
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
        assert_ne!(connection, boot.connection(Protocol::Tcp, b, 5 | 1 << 40), "every bit counts");
        let mapped = "[::ffff:10.0.0.2]:9".parse().unwrap();
        assert_eq!(connection, boot.connection(Protocol::Tcp, mapped, 5));
    }
}
