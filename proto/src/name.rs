//! Names of remotes, and where they come from.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{
    flow::words,
    id::{ConnectionUid, ProcessUid},
    time::Timestamp,
};

words! {
    /// Where a name comes from.
    NameSource {
        /// The latest DNS answer with the address that the host had received in the same network namespace.
        Dns = "dns",
        /// What the owner asked for in its TLS ClientHello on this connection.
        Sni = "sni",
    }
}

/// The name by which a connection's owner most likely knew the remote.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RemoteName {
    /// Lowercase, without the final dot.
    pub name: String,
    /// Where it comes from.
    pub source: NameSource,
}

/// A DNS answer that a host received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameResolution {
    /// When it arrived.
    pub at: Timestamp,
    /// What was asked for: lowercase, without the final dot.
    pub name: String,
    /// The names that it turned out to be an alias of (CNAME), in order.
    pub aliases: Vec<String>,
    /// Its addresses; an IPv4 address mapped into IPv6 is IPv4.
    pub addresses: Vec<IpAddr>,
    /// The shortest time to live in the answer, in seconds.
    pub ttl_s: u32,
    /// Who gave the answer.
    pub server: SocketAddr,
    /// Who asked, where known.
    pub process: Option<ProcessUid>,
    /// Network namespace (Linux: its inode), where known.
    pub network_namespace: Option<u64>,
}

/// A TLS ClientHello on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerNameRecord {
    /// When it was sent, or arrived.
    pub at: Timestamp,
    /// The connection, where known.
    pub connection: Option<ConnectionUid>,
    /// What it asks for (server_name, RFC 6066): lowercase, without the final dot. None where it has none or hides it.
    pub name: Option<String>,
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Network namespace (Linux: its inode), where known.
    pub network_namespace: Option<u64>,
}
