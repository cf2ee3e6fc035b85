//! Names of remotes, and where they come from.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

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

/// The longest name in bytes (RFC 1035, section 2.3.4, without the final dot).
pub const NAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// A name as it is compared: lowercase, without the final dot.
pub fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Names that are asked for: one, or all that are below one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamePattern {
    /// Normal, without `*.`.
    name: String,
    below: bool,
}

impl NamePattern {
    /// From `cloud.example.com`, or `*.example.com`, which means every name below it, at any depth, and not
    /// `example.com` itself. Neither case nor a final dot matters.
    ///
    /// # Errors
    /// When it cannot be a name of at least two labels, in a fragment that says why.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (name, below) = text.strip_prefix("*.").map_or((text, false), |name| (name, true));
        if !name.is_ascii() {
            return Err("has letters beyond ASCII: write the name in its DNS form, which begins with xn--");
        }
        let name = normal(name);
        let is_label = |label: &str| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            (1..=LABEL_BYTES_MAX).contains(&label.len()) && label.bytes().all(plain)
        };
        let mut labels = name.split('.');
        // What ends in a number is an address that was mistyped, as for browsers (WHATWG URL, section 3.5).
        let numeric = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
        if name.len() > NAME_BYTES_MAX
            || !labels.clone().all(is_label)
            || labels.next_back().is_none_or(numeric)
        {
            return Err("cannot be a DNS name");
        }
        if labels.next().is_none() && !below {
            return Err("is one label only: write the full name, such as nas.example.com");
        }
        Ok(Self { name, below })
    }

    /// Whether the name is meant.
    pub fn matches(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name);
        let Some(before) = name.len().checked_sub(self.name.len()) else { return false };
        let ends = name.as_bytes()[before..].eq_ignore_ascii_case(self.name.as_bytes());
        match self.below {
            true => ends && before > 1 && name.as_bytes()[before - 1] == b'.',
            false => ends && before == 0,
        }
    }

    /// The name that is meant, or that all are below.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name that all are below; none if it is one name alone.
    pub fn suffix(&self) -> Option<&str> {
        self.below.then_some(self.name.as_str())
    }

    /// The one name; none if it is all below one.
    pub fn exact(&self) -> Option<&str> {
        (!self.below).then_some(self.name.as_str())
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.below { "*." } else { "" }, self.name)
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
    /// The shortest time to live in the answer, in seconds; 0 where the system did not tell.
    pub ttl_s: u32,
    /// Who gave the answer; unspecified where the system did not tell.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_what_they_name() {
        let check = |pattern: &str, name: &str, want: bool| {
            assert_eq!(NamePattern::parse(pattern).unwrap().matches(name), want, "{pattern} {name}");
        };
        check("cloud.example.com", "cloud.example.com", true);
        check("Cloud.Example.com.", "cloud.EXAMPLE.com.", true);
        check("cloud.example.com", "a.cloud.example.com", false);
        check("cloud.example.com", "xcloud.example.com", false);
        check("*.example.com", "cloud.example.com", true);
        check("*.example.com", "a.b.c.example.com", true);
        check("*.example.com", "example.com", false);
        check("*.example.com", ".example.com", false);
        check("*.example.com", "badexample.com", false);
        check("*.example.com", "ä.example.com", true);
        check("*.example.com", "com", false);
        check("*.com", "example.com", true);
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = format!("{}com", "a.".repeat(126));
        let label = format!("{}.com", "a".repeat(64));
        for bad in
            ["", ".", "*.", "*", "a..b", "a.*.b", "10.1.2", "1.2.3.4", "a b.c", long.as_str(), label.as_str()]
        {
            assert!(NamePattern::parse(bad).is_err(), "{bad}");
        }
        assert!(NamePattern::parse("bücher.example").unwrap_err().contains("xn--"));
        assert!(NamePattern::parse("nas").unwrap_err().contains("full name"));
        for good in ["xn--bcher-kva.example", "_dmarc.example.com", "*.internal", "a.b"] {
            assert_eq!(NamePattern::parse(good).unwrap().to_string(), good);
        }
    }
}
