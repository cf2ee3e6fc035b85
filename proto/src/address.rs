//! Where something listens, as a person writes it.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

/// Characters of a host name (RFC 1035).
const HOST_NAME_MAX: usize = 253;

/// `127.0.0.1:8440`, `[::1]:8440`, `collector.example:8440` or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// An address or name, and a port.
    Tcp(HostPort),
    /// A socket in the file system.
    Unix(PathBuf),
}

/// An address or name, and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// An IP address without brackets, or a name in lowercase.
    pub host: String,
    /// From 0, which asks for any, to 65,535.
    pub port: u16,
}

impl Address {
    /// Whether what is said there stays on this machine: there, both ends may do without proof.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl HostPort {
    /// The IP address, where it is not a name.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// Whether it cannot leave this machine.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.ip().is_some_and(|ip| ip.to_canonical().is_loopback())
    }

    /// Whether it stands for all addresses of this machine: somewhere to listen, and nowhere to dial.
    pub fn is_unspecified(&self) -> bool {
        self.ip().is_some_and(|ip| ip.to_canonical().is_unspecified())
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let nonsense = || AddressError(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            // Not `is_absolute`, which takes a drive on Windows: analysts there read the same instructions.
            return if path.has_root() { Ok(Self::Unix(path)) } else { Err(nonsense()) };
        }
        let bare = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
        bare.trim_end_matches('/').parse().map(Self::Tcp).map_err(|_| nonsense())
    }
}

impl FromStr for HostPort {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let nonsense = || AddressError(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(nonsense)?;
        if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(nonsense());
        }
        let port = port.parse().map_err(|_| nonsense())?;
        let host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(inside) => inside.parse::<Ipv6Addr>().map_err(|_| nonsense())?.to_string(),
            None if host.parse::<std::net::Ipv4Addr>().is_ok() || is_host_name(host) => {
                host.to_ascii_lowercase()
            }
            None => return Err(nonsense()),
        };
        Ok(Self { host, port })
    }
}

/// Labels of letters, digits and hyphens, of which the last does not begin with a digit: nobody takes `10.0.0.256` for a name.
fn is_host_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    let last_is_number =
        name.rsplit('.').next().is_some_and(|last| last.starts_with(|c: char| c.is_ascii_digit()));
    name.len() <= HOST_NAME_MAX && !last_is_number && name.split('.').all(is_label)
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip() {
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            _ => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// It is no address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not an address: write 127.0.0.1:8440, [::1]:8440, collector.example:8440 or unix:/path")]
pub struct AddressError(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_in_one_way() {
        for (text, want, is_local) in [
            ("127.0.0.1:8440", "127.0.0.1:8440", true),
            ("http://127.0.0.1:8440/", "127.0.0.1:8440", true),
            ("127.9.9.9:1", "127.9.9.9:1", true),
            ("[::1]:8440", "[::1]:8440", true),
            ("[::ffff:127.0.0.1]:8440", "[::ffff:127.0.0.1]:8440", true),
            ("localhost:8440", "localhost:8440", true),
            ("unix:/run/alibi.sock", "unix:/run/alibi.sock", true),
            ("10.0.0.1:8440", "10.0.0.1:8440", false),
            ("0.0.0.0:8440", "0.0.0.0:8440", false),
            ("[::]:0", "[::]:0", false),
            ("[2001:DB8:0::1]:1", "[2001:db8::1]:1", false),
            ("https://Collector.Example:8440", "collector.example:8440", false),
            ("localhost.example:1", "localhost.example:1", false),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), want);
            assert_eq!(address.is_local(), is_local, "{text}");
            assert_eq!(want.parse::<Address>().unwrap(), address);
        }
    }

    #[test]
    fn what_is_no_address_is_said() {
        for text in [
            "",
            "8440",
            ":8440",
            "127.0.0.1",
            "127.0.0.1:99999",
            "127.0.0.1:+1",
            "10.0.0.256:1",
            "unix:relative",
            "https://x",
            "::1:8440",
            "[::1:8440",
            "a b:1",
            "a..b:1",
            "-a:1",
            "user@collector:1",
            "collector:8440/path",
        ] {
            assert_eq!(text.parse::<Address>(), Err(AddressError(text.into())), "{text}");
        }
    }
}
