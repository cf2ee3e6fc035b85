//! The use of encrypted DNS, whose answers nobody can hear: while a connection to such a server is open, names may be
//! resolved that are not told.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use alibi_proto::time::Timestamp;

/// A use is told for so long at once, and not told again before that is over.
pub(super) const TOLD_FOR: Duration = Duration::from_secs(60);
/// So long before what has been told is over, a connection that is still open has it told anew.
const RENEWED_BEFORE: Duration = Duration::from_secs(15);
/// Servers that are told by name at the same time; the others are told as one.
const SERVERS_MAX: usize = 64;
/// Connections that are looked after.
const CONNECTIONS_MAX: usize = 256;

/// Of DNS over TLS (RFC 7858) and over QUIC (RFC 9250).
const PORT: u16 = 853;
const HTTPS_PORT: u16 = 443;

/// Public servers of DNS over HTTPS, as names that browsers and systems are set up with.
const NAMES: &[&str] = &[
    "1dot1dot1dot1.cloudflare-dns.com",
    "chrome.cloudflare-dns.com",
    "cloudflare-dns.com",
    "dns.adguard-dns.com",
    "dns.adguard.com",
    "dns.alidns.com",
    "dns.cloudflare.com",
    "dns.controld.com",
    "dns.google",
    "dns.google.com",
    "dns.mullvad.net",
    "dns.nextdns.io",
    "dns.quad9.net",
    "dns.sb",
    "dns.switch.ch",
    "dns0.eu",
    "dns9.quad9.net",
    "dns10.quad9.net",
    "dns11.quad9.net",
    "doh.cleanbrowsing.org",
    "doh.dns.apple.com",
    "doh.dns.sb",
    "doh.familyshield.opendns.com",
    "doh.opendns.com",
    "doh.pub",
    "doh.umbrella.com",
    "doh.xfinity.com",
    "dns.umbrella.com",
    "firefox.dns.nextdns.io",
    "freedns.controld.com",
    "mozilla.cloudflare-dns.com",
    "odoh.cloudflare-dns.com",
    "one.one.one.one",
    "private.canadianshield.cira.ca",
    "unfiltered.adguard-dns.com",
];

/// Names under which each customer of such a server has one of their own.
const DOMAINS: &[&str] = &[
    ".adguard-dns.com",
    ".cloudflare-gateway.com",
    ".dns.controld.com",
    ".dns.nextdns.io",
    ".doh.opendns.com",
    ".mullvad.net",
];

/// The outer names of encrypted ClientHellos: who asks for one of them asks for another that cannot be heard.
const OUTER_NAMES: &[&str] = &["cloudflare-ech.com", "encryptedsni.com"];

const ADDRESSES: &[IpAddr] = &[
    IpAddr::V4(Ipv4Addr::new(1, 0, 0, 1)),
    IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1)),
    IpAddr::V4(Ipv4Addr::new(8, 8, 4, 4)),
    IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)),
    IpAddr::V4(Ipv4Addr::new(9, 9, 9, 9)),
    IpAddr::V4(Ipv4Addr::new(149, 112, 112, 112)),
    IpAddr::V4(Ipv4Addr::new(208, 67, 220, 220)),
    IpAddr::V4(Ipv4Addr::new(208, 67, 222, 222)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8844)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8888)),
    IpAddr::V6(Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1001)),
    IpAddr::V6(Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1111)),
    IpAddr::V6(Ipv6Addr::new(0x2620, 0xfe, 0, 0, 0, 0, 0, 0xfe)),
];

/// What a connection to `remote` hides, where its ClientHello asked for `name`: the words for the reason, if it does.
pub(super) fn hidden(name: Option<&str>, remote: SocketAddr) -> Option<String> {
    match name {
        Some(name) if remote.port() == PORT => Some(format!("encrypted DNS to {name} was used")),
        None if remote.port() == PORT => Some(format!("encrypted DNS to {} was used", remote.ip())),
        Some(name) if NAMES.contains(&name) || DOMAINS.iter().any(|domain| name.ends_with(domain)) => {
            Some(format!("encrypted DNS to {name} was used"))
        }
        Some(name) if OUTER_NAMES.contains(&name) => {
            Some(format!("a server name was encrypted, under the outer name {name}"))
        }
        _ if remote.port() == HTTPS_PORT && ADDRESSES.contains(&remote.ip()) => {
            Some(format!("encrypted DNS to {} was used", remote.ip()))
        }
        _ => None,
    }
}

/// A connection to such a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::capture::linux) struct Connection {
    pub(in crate::capture::linux) network_namespace: u64,
    pub(in crate::capture::linux) local: SocketAddr,
    pub(in crate::capture::linux) remote: SocketAddr,
}

/// A stretch of time in which names may have been resolved unheard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hidden {
    pub(super) reason: String,
    pub(super) from: Timestamp,
    pub(super) to: Timestamp,
}

/// What is used, and what has been told of it.
#[derive(Debug, Default)]
pub(super) struct Encrypted {
    uses: HashMap<String, Use>,
    /// More connections than can be looked after: the uses are taken to go on until none is left.
    has_more: bool,
}

#[derive(Debug)]
struct Use {
    /// It has been told up to then.
    until: Timestamp,
    /// Known to be open.
    connections: HashSet<Connection>,
}

impl Encrypted {
    /// A server is used from `at` on. What is to be told, if that has not been told already.
    pub(super) fn is_used(
        &mut self,
        reason: String,
        at: Timestamp,
        connection: Option<Connection>,
    ) -> Option<Hidden> {
        let reason = if self.uses.len() < SERVERS_MAX || self.uses.contains_key(&reason) {
            reason
        } else {
            format!("encrypted DNS to more than {SERVERS_MAX} servers was used")
        };
        let connections: usize = self.uses.values().map(|known| known.connections.len()).sum();
        let known = self
            .uses
            .entry(reason.clone())
            .or_insert(Use { until: Timestamp::ZERO, connections: HashSet::new() });
        if connections < CONNECTIONS_MAX {
            known.connections.extend(connection);
        } else {
            self.has_more |= connection.is_some();
        }
        if at < known.until {
            return None;
        }
        known.until = at.saturating_add(TOLD_FOR);
        Some(Hidden { reason, from: at, to: known.until })
    }

    /// The network namespaces with connections that are looked after.
    pub(super) fn network_namespaces(&self) -> HashSet<u64> {
        let connections = self.uses.values().flat_map(|known| &known.connections);
        connections.map(|connection| connection.network_namespace).collect()
    }

    /// What is to be told at `now` of the uses that go on; at least each [`RENEWED_BEFORE`].
    pub(super) fn renew(&mut self, now: Timestamp, is_open: impl Fn(&Connection) -> bool) -> Vec<Hidden> {
        let mut told = Vec::new();
        for known in self.uses.values_mut() {
            known.connections.retain(&is_open);
        }
        self.has_more &= self.uses.values().any(|known| !known.connections.is_empty());
        for (reason, known) in &mut self.uses {
            let goes_on = self.has_more || !known.connections.is_empty();
            if goes_on && known.until <= now.saturating_add(RENEWED_BEFORE) {
                let from = known.until;
                known.until = now.max(from).saturating_add(TOLD_FOR);
                told.push(Hidden { reason: reason.clone(), from, to: known.until });
            }
        }
        self.uses.retain(|_, known| known.until > now || !known.connections.is_empty());
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn connection(port: u16) -> Connection {
        let local = SocketAddr::from(([192, 0, 2, 1], port));
        Connection { network_namespace: 1, local, remote: end("8.8.8.8:443") }
    }

    const fn at(secs: u64) -> Timestamp {
        Timestamp::from_secs(secs)
    }

    #[test]
    fn servers_are_known_by_name_port_or_address() {
        for (name, remote, reason) in [
            (Some("dns.google"), "192.0.2.7:443", Some("encrypted DNS to dns.google was used")),
            (
                Some("abc123.dns.nextdns.io"),
                "192.0.2.7:443",
                Some("encrypted DNS to abc123.dns.nextdns.io was used"),
            ),
            (Some("a.example"), "192.0.2.7:853", Some("encrypted DNS to a.example was used")),
            (None, "192.0.2.7:853", Some("encrypted DNS to 192.0.2.7 was used")),
            (None, "1.1.1.1:443", Some("encrypted DNS to 1.1.1.1 was used")),
            (
                Some("cloudflare-ech.com"),
                "192.0.2.7:443",
                Some("a server name was encrypted, under the outer name cloudflare-ech.com"),
            ),
            (Some("notdns.google"), "192.0.2.7:443", None),
            (None, "1.1.1.1:8443", None),
            (None, "192.0.2.7:443", None),
        ] {
            assert_eq!(hidden(name, end(remote)).as_deref(), reason);
        }
    }

    #[test]
    fn a_use_is_told_once_a_minute() {
        let mut encrypted = Encrypted::default();
        let mut used = |secs| encrypted.is_used("it".into(), at(secs), None).map(|told| (told.from, told.to));
        assert_eq!(used(100), Some((at(100), at(160))));
        assert_eq!(used(100), None);
        assert_eq!(used(159), None);
        assert_eq!(used(160), Some((at(160), at(220))));
    }

    #[test]
    fn a_use_goes_on_while_its_connection_is_open() {
        let mut encrypted = Encrypted::default();
        encrypted.is_used("it".into(), at(100), Some(connection(1))).unwrap();
        assert_eq!(encrypted.renew(at(110), |_| true), []);
        let told = encrypted.renew(at(150), |_| true);
        assert_eq!(told, [Hidden { reason: "it".into(), from: at(160), to: at(220) }]);
        assert_eq!(encrypted.network_namespaces(), HashSet::from([1]));
        assert_eq!(encrypted.renew(at(215), |_| false), []);
        assert!(encrypted.network_namespaces().is_empty());
        // The machine slept through: what lies between is told too.
        encrypted.is_used("it".into(), at(300), Some(connection(1))).unwrap();
        let told = encrypted.renew(at(1_000), |_| true);
        assert_eq!(told, [Hidden { reason: "it".into(), from: at(360), to: at(1_060) }]);
    }

    #[test]
    fn beyond_the_bounds_more_is_told_never_less() {
        let mut encrypted = Encrypted::default();
        for port in 0..300u16 {
            encrypted.is_used(format!("server {}", port % 100), at(100), Some(connection(port)));
        }
        assert!(encrypted.uses.len() <= SERVERS_MAX + 1 && encrypted.has_more);
        let others = "encrypted DNS to more than 64 servers was used";
        assert!(encrypted.uses.contains_key(others));
        // One that is looked after is open: so may be any of the others.
        assert_eq!(encrypted.renew(at(150), |open| open.local.port() == 7).len(), SERVERS_MAX + 1);
        assert_eq!(encrypted.renew(at(210), |_| false), []);
    }
}
