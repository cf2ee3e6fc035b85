//! X in the question: the other end of a connection.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use crate::flow::Protocol;

/// Whom a connection was with: a network (an address is a network of one), optionally one port and one protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    network: IpNet,
    port: Option<u16>,
    protocol: Option<Protocol>,
}

impl Target {
    /// From what an analyst wrote: `10.1.2.3`, `10.1.0.0/16`, `2001:db8::1`, `10.1.2.3:443`, `[2001:db8::1]:443`;
    /// `port` and `protocol` narrow it further.
    ///
    /// # Errors
    /// When the text is no address or network, or when the port is 0 or given twice and differently.
    pub fn parse(text: &str, port: Option<u16>, protocol: Option<Protocol>) -> Result<Self, TargetError> {
        let (network, port_in_text) = match text.parse::<SocketAddr>() {
            Ok(endpoint) => (IpNet::from(endpoint.ip().to_canonical()), Some(endpoint.port())),
            Err(_) => (parse_network(text)?, None),
        };
        let port = match (port_in_text, port) {
            (Some(first), Some(second)) if first != second => {
                return Err(TargetError::TwoPorts(first, second));
            }
            (first, second) => first.or(second),
        };
        if port == Some(0) {
            return Err(TargetError::PortZero);
        }
        Ok(Self { network, port, protocol })
    }

    /// The addresses it stands for.
    pub const fn network(&self) -> IpNet {
        self.network
    }

    /// The one port it is narrowed to.
    pub const fn port(&self) -> Option<u16> {
        self.port
    }

    /// The one protocol it is narrowed to.
    pub const fn protocol(&self) -> Option<Protocol> {
        self.protocol
    }

    /// Whether a connection with this other end is meant.
    pub fn matches(&self, protocol: Protocol, remote: SocketAddr) -> bool {
        self.network.contains(&remote.ip().to_canonical())
            && self.port.is_none_or(|port| port == remote.port())
            && self.protocol.is_none_or(|wanted| wanted == protocol)
    }

    /// The address or network alone, as [`Target::parse`] reads it.
    pub fn addresses(&self) -> String {
        if self.network.prefix_len() == self.network.max_prefix_len() {
            self.network.addr().to_string()
        } else {
            self.network.to_string()
        }
    }
}

fn parse_network(text: &str) -> Result<IpNet, TargetError> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address.to_canonical()));
    }
    let network = IpNet::from_str(text).map_err(|_| what_is_wrong(text))?;
    // `::ffff:10.0.0.0/104` is 10.0.0.0/8 written for IPv6 sockets.
    let network = match (network.addr().to_canonical(), network) {
        (IpAddr::V4(address), IpNet::V6(mapped)) if mapped.prefix_len() >= 96 => {
            IpNet::new(IpAddr::V4(address), mapped.prefix_len() - 96)
                .map_err(|_| TargetError::Nonsense(text.to_owned()))?
        }
        _ => network,
    };
    Ok(network.trunc())
}

/// Names the part of a text that keeps it from being a network or an endpoint.
fn what_is_wrong(text: &str) -> TargetError {
    let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if let Some((address, prefix)) = text.split_once('/')
        && let Ok(address) = address.parse::<IpAddr>()
        && is_number(prefix)
    {
        return TargetError::Prefix {
            text: text.to_owned(),
            bits_max: if address.is_ipv4() { 32 } else { 128 },
        };
    }
    if let Some((address, port)) = text.rsplit_once(':')
        && format!("{address}:0").parse::<SocketAddr>().is_ok()
        && is_number(port)
    {
        return TargetError::Port(text.to_owned());
    }
    TargetError::Nonsense(text.to_owned())
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.port, self.network.addr()) {
            (Some(port), IpAddr::V6(_)) => write!(f, "[{}]:{port}", self.addresses())?,
            (Some(port), IpAddr::V4(_)) => write!(f, "{}:{port}", self.addresses())?,
            (None, _) => f.write_str(&self.addresses())?,
        }
        match self.protocol {
            Some(protocol) => write!(f, "/{protocol}"),
            None => Ok(()),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A target that cannot be asked about.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TargetError {
    /// A network whose prefix is longer than an address.
    #[error("`{text}` is not a network: its prefix is a number of bits, at most {bits_max}")]
    Prefix {
        /// What was written.
        text: String,
        /// The bits of such an address.
        bits_max: u8,
    },
    /// An address with a port that cannot be.
    #[error("`{0}` has no port that can be: give one from 1 to 65535")]
    Port(String),
    /// No address, no network.
    #[error(
        "`{0}` is not a target: give an address such as 203.0.113.7 or 203.0.113.7:443, or a network such as 203.0.113.0/24 (names are not recorded yet)"
    )]
    Nonsense(String),
    /// `1.2.3.4:80 --port 443`.
    #[error("two ports: the target says {0}, and --port says {1}: give one of them")]
    TwoPorts(u16, u16),
    /// No connection has it.
    #[error("port 0 is no port: give one from 1 to 65535")]
    PortZero,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Target {
        Target::parse(text, None, None).unwrap()
    }

    #[test]
    fn targets_match_what_they_name() {
        let check = |text: &str, remote: &str, want: bool| {
            assert_eq!(target(text).matches(Protocol::Tcp, remote.parse().unwrap()), want, "{text} {remote}");
        };
        check("10.1.2.3", "10.1.2.3:443", true);
        check("10.1.2.3", "10.1.2.4:443", false);
        check("10.1.2.3", "[::ffff:10.1.2.3]:443", true);
        check("::ffff:10.1.2.3", "10.1.2.3:443", true);
        check("::ffff:10.0.0.0/104", "10.9.9.9:443", true);
        check("10.1.2.3:443", "10.1.2.3:443", true);
        check("10.1.2.3:443", "10.1.2.3:80", false);
        check("10.1.2.3/16", "10.1.99.1:80", true);
        check("10.1.2.3/16", "10.2.0.1:80", false);
        check("2001:db8::/32", "[2001:db8:7::1]:80", true);
        check("[2001:db8::1]:80", "[2001:db8::1]:80", true);
        check("0.0.0.0/0", "[2001:db8::1]:80", false);
        let udp = Target::parse("10.1.2.3", Some(53), Some(Protocol::Udp)).unwrap();
        assert!(udp.matches(Protocol::Udp, "10.1.2.3:53".parse().unwrap()));
        assert!(!udp.matches(Protocol::Tcp, "10.1.2.3:53".parse().unwrap()));
    }

    #[test]
    fn targets_are_printed_as_they_are_read() {
        for text in ["10.1.2.3", "10.1.0.0/16", "2001:db8::1", "[2001:db8::1]:443", "10.1.2.3:443"] {
            assert_eq!(target(text).to_string(), text);
        }
        assert_eq!(target("10.1.2.3/16").to_string(), "10.1.0.0/16");
    }

    #[test]
    fn nonsense_is_named() {
        for bad in
            ["", "banana", "10.1.2", "10.1.2.3/x", "10.1.2.3:x", "1.2.3.4/", ":443", "10.1.2.3-10.1.2.9"]
        {
            assert_eq!(Target::parse(bad, None, None), Err(TargetError::Nonsense(bad.into())), "{bad}");
        }
        for (text, bits_max) in [("10.1.2.3/33", 32), ("10.1.2.3/999", 32), ("2001:db8::/129", 128)] {
            let error = TargetError::Prefix { text: text.into(), bits_max };
            assert_eq!(Target::parse(text, None, None), Err(error), "{text}");
        }
        for bad in ["10.1.2.3:99999", "[2001:db8::1]:65536"] {
            assert_eq!(Target::parse(bad, None, None), Err(TargetError::Port(bad.into())), "{bad}");
        }
        assert_eq!(Target::parse("10.1.2.3:80", Some(443), None), Err(TargetError::TwoPorts(80, 443)));
        assert_eq!(Target::parse("10.1.2.3", Some(0), None), Err(TargetError::PortZero));
    }
}
