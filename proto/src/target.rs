//! X in the question: the other end of a connection.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use crate::{flow::Protocol, name::NamePattern};

/// Addresses that may be given with a name.
pub const ADDRESSES_MAX: usize = 1_000;

/// Whom a connection was with: a network (an address is a network of one), or a name with the addresses it is known to
/// stand for; optionally one port and one protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// None: the target is the one network.
    name: Option<NamePattern>,
    /// Sorted, and each once. Shared, since every host of a fleet is asked.
    networks: Arc<[IpNet]>,
    port: Option<u16>,
    protocol: Option<Protocol>,
}

impl Target {
    /// From what an analyst wrote: `10.1.2.3`, `10.1.0.0/16`, `2001:db8::1`, `10.1.2.3:443`, `[2001:db8::1]:443`,
    /// `cloud.example.com`, `cloud.example.com:443`, `*.example.com` (see [`NamePattern::parse`]); `port` and `protocol`
    /// narrow it further.
    ///
    /// # Errors
    /// When the text is no address, network or name, or when the port is 0 or given twice and differently.
    pub fn parse(text: &str, port: Option<u16>, protocol: Option<Protocol>) -> Result<Self, TargetError> {
        let (name, networks, port_in_text) = match text.parse::<SocketAddr>() {
            Ok(endpoint) => (None, vec![IpNet::from(endpoint.ip().to_canonical())], Some(endpoint.port())),
            Err(_) => match parse_network(text) {
                Ok(network) => (None, vec![network], None),
                Err(TargetError::Nonsense(_)) => {
                    let (name, port) = parse_name(text)?;
                    (Some(name), Vec::new(), port)
                }
                Err(error) => return Err(error),
            },
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
        Ok(Self { name, networks: networks.into(), port, protocol })
    }

    /// The same with addresses and networks, as text, that the name is known to stand for.
    ///
    /// # Errors
    /// When one is no address or network, when there are more than [`ADDRESSES_MAX`], or when the target is no name.
    pub fn with_addresses<T: AsRef<str>>(mut self, addresses: &[T]) -> Result<Self, TargetError> {
        if addresses.is_empty() {
            return Ok(self);
        }
        if self.name.is_none() {
            return Err(TargetError::AddressesWithoutName);
        }
        if addresses.len() > ADDRESSES_MAX {
            return Err(TargetError::TooManyAddresses(addresses.len()));
        }
        let mut networks = self.networks.to_vec();
        for address in addresses {
            networks.push(parse_network(address.as_ref())?);
        }
        networks.sort_unstable();
        networks.dedup();
        self.networks = networks.into();
        Ok(self)
    }

    /// The names it stands for; none if it is a network.
    pub const fn name(&self) -> Option<&NamePattern> {
        self.name.as_ref()
    }

    /// The network that it is, or those that were given with its name.
    pub fn networks(&self) -> &[IpNet] {
        &self.networks
    }

    /// The one port it is narrowed to.
    pub const fn port(&self) -> Option<u16> {
        self.port
    }

    /// The one protocol it is narrowed to.
    pub const fn protocol(&self) -> Option<Protocol> {
        self.protocol
    }

    /// Whether a connection with this other end is meant by its address. Of a name, only the addresses given with it
    /// are known here.
    pub fn matches(&self, protocol: Protocol, remote: SocketAddr) -> bool {
        self.admits(protocol, remote.port()) && self.contains(remote.ip())
    }

    /// Whether port and protocol are those it is narrowed to.
    pub fn admits(&self, protocol: Protocol, port: u16) -> bool {
        self.port.is_none_or(|wanted| wanted == port) && self.protocol.is_none_or(|wanted| wanted == protocol)
    }

    /// Whether the address is in one of its networks.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// The name, address or network alone, as [`Target::parse`] reads it.
    pub fn text(&self) -> String {
        match &self.name {
            Some(name) => name.to_string(),
            None => self.addresses().concat(),
        }
    }

    /// Its networks as text, those of one address as an address.
    pub fn addresses(&self) -> Vec<String> {
        self.networks.iter().copied().map(network_text).collect()
    }
}

/// A network as text, that of one address as an address.
pub(crate) fn network_text(network: IpNet) -> String {
    match network.prefix_len() == network.max_prefix_len() {
        true => network.addr().to_string(),
        false => network.to_string(),
    }
}

/// A name, and its port if it has one.
fn parse_name(text: &str) -> Result<(NamePattern, Option<u16>), TargetError> {
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (text, None),
    };
    // What is nearer to an address or a network is not called a bad name.
    let is_address =
        !name.contains('.') || name.contains('/') || name.ends_with(|c: char| c.is_ascii_digit());
    let refused = |reason| match is_address && name.is_ascii() {
        true => TargetError::Nonsense(text.to_owned()),
        false => TargetError::Name { text: text.to_owned(), reason },
    };
    let pattern = NamePattern::parse(name).map_err(refused)?;
    let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    match port {
        None => Ok((pattern, None)),
        Some(port) if is_number(port) => match port.parse() {
            Ok(port) => Ok((pattern, Some(port))),
            Err(_) => Err(TargetError::Port(text.to_owned())),
        },
        Some(_) => Err(TargetError::Port(text.to_owned())),
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
        let brackets = self.name.is_none() && self.networks.iter().any(|network| network.addr().is_ipv6());
        match self.port {
            Some(port) if brackets => write!(f, "[{}]:{port}", self.text())?,
            Some(port) => write!(f, "{}:{port}", self.text())?,
            None => f.write_str(&self.text())?,
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
    /// No address, no network, no name.
    #[error(
        "`{0}` is not a target: give an address such as 203.0.113.7 or 203.0.113.7:443, a network such as 203.0.113.0/24, or a full name such as cloud.example.com or *.example.com"
    )]
    Nonsense(String),
    /// A name that cannot be.
    #[error("`{text}` {reason}")]
    Name {
        /// What was written.
        text: String,
        /// Why it cannot be, and what to write.
        reason: &'static str,
    },
    /// `--address` with an address.
    #[error("addresses are given with a name only: ask about each address or network by itself")]
    AddressesWithoutName,
    /// More than are taken.
    #[error("{0} addresses are given, and at most {ADDRESSES_MAX} are taken: give networks instead")]
    TooManyAddresses(usize),
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
        for text in ["cloud.example.com", "*.example.com", "cloud.example.com:443"] {
            assert_eq!(target(text).to_string(), text);
        }
    }

    #[test]
    fn addresses_are_given_with_a_name_only() {
        let name = target("cloud.example.com:443");
        let given = name.clone().with_addresses(&["198.51.100.7", "10.1.2.3/16", "198.51.100.7"]).unwrap();
        assert_eq!(given.addresses(), ["10.1.0.0/16", "198.51.100.7"]);
        assert!(given.matches(Protocol::Tcp, "10.1.9.9:443".parse().unwrap()));
        assert!(!given.matches(Protocol::Tcp, "10.1.9.9:80".parse().unwrap()));
        assert!(!name.matches(Protocol::Tcp, "10.1.9.9:443".parse().unwrap()));
        assert_eq!(name.clone().with_addresses::<&str>(&[]), Ok(name.clone()));
        assert!(matches!(name.clone().with_addresses(&["x.example"]), Err(TargetError::Nonsense(_))));
        let many = vec!["10.0.0.1"; ADDRESSES_MAX + 1];
        assert_eq!(name.with_addresses(&many), Err(TargetError::TooManyAddresses(ADDRESSES_MAX + 1)));
        let address = target("10.1.2.3").with_addresses(&["10.1.2.4"]);
        assert_eq!(address, Err(TargetError::AddressesWithoutName));
    }

    #[test]
    fn nonsense_is_named() {
        for bad in
            ["", "banana", "10.1.2", "10.1.2.3/x", "10.1.2.3:x", "1.2.3.4/", ":443", "10.1.2.3-10.1.2.9"]
        {
            assert_eq!(Target::parse(bad, None, None), Err(TargetError::Nonsense(bad.into())), "{bad}");
        }
        for bad in ["a..example.com", "a b.example.com", "bücher", "bücher.example", "example.c*m"] {
            let error = Target::parse(bad, None, None).unwrap_err();
            assert!(matches!(error, TargetError::Name { .. }), "{bad}: {error}");
        }
        for bad in ["a.example:99999", "a.example:x", "a.example:"] {
            assert_eq!(Target::parse(bad, None, None), Err(TargetError::Port(bad.into())), "{bad}");
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
