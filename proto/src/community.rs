//! Community ID: one name for a flow that every monitor which saw it comes to (Zeek, Suricata, firewalls), so that a
//! connection can be found in their logs. Version 1 of the Community ID Flow Hashing specification
//! (corelight/community-id-spec), with its default seed, 0. Pure.
//!
//! It is no name for ever: who uses the same ports again has the same one, and where an address is translated (NAT), the
//! other side of the translation has another.

use std::net::{IpAddr, SocketAddr};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::flow::{FlowRecord, Protocol};

/// The seed that everybody has who was told no other.
const SEED: u16 = 0;

/// The community id of a flow, as `1:` and 28 characters of base64; the same whichever end is named first.
pub fn community_id(protocol: Protocol, one: SocketAddr, other: SocketAddr) -> String {
    of_numbers(protocol.number(), canonical(one), canonical(other))
}

impl FlowRecord {
    /// Its community id. None where a monitor would not have it: before a port is chosen, and where the packets of a socket
    /// are not known by both their ends.
    pub fn community_id(&self) -> Option<String> {
        let is_known = |end: &SocketAddr| end.port() != 0 && !end.ip().to_canonical().is_unspecified();
        (is_known(&self.local) && is_known(&self.remote))
            .then(|| community_id(self.protocol, self.local, self.remote))
    }
}

impl Protocol {
    /// Its number, as IANA assigns them.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// What a packet has as its ends: an address of IPv4 in a socket of IPv6 is one of IPv4.
fn canonical(end: SocketAddr) -> (IpAddr, u16) {
    (end.ip().to_canonical(), end.port())
}

fn of_numbers(protocol: u8, one: (IpAddr, u16), other: (IpAddr, u16)) -> String {
    let (first, second) = if one <= other { (one, other) } else { (other, one) };
    let mut hashed = Vec::with_capacity(40);
    hashed.extend(SEED.to_be_bytes());
    hashed.extend(octets(first.0));
    hashed.extend(octets(second.0));
    hashed.extend([protocol, 0]);
    hashed.extend(first.1.to_be_bytes());
    hashed.extend(second.1.to_be_bytes());
    // The specification wants SHA-1. Nothing is protected by it.
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, &hashed);
    format!("1:{}", STANDARD.encode(digest))
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The flows that the specification publishes with their ids (`baseline/baseline_deflt.json`). Those of ICMP have type
    /// and code in the place of ports; SCTP has its own number.
    #[test]
    fn the_published_flows_have_the_published_ids() {
        let check = |protocol: u8, one: (&str, u16), other: (&str, u16), id: &str| {
            let end = |(address, port): (&str, u16)| (address.parse::<IpAddr>().unwrap(), port);
            assert_eq!(of_numbers(protocol, end(one), end(other)), id, "{one:?} {other:?}");
            assert_eq!(of_numbers(protocol, end(other), end(one)), id, "{other:?} {one:?}");
        };
        let (tcp, udp) = (Protocol::Tcp.number(), Protocol::Udp.number());
        check(tcp, ("128.232.110.120", 34855), ("66.35.250.204", 80), "1:LQU9qZlK+B5F3KDmev6m5PMibrg=");
        let (client, server) = ("2001:470:e5bf:dead:4957:2174:e82c:4887", "2607:f8b0:400c:c03::1a");
        check(tcp, (client, 63943), (server, 25), "1:/qFaeAR+gFe1KYjMzVDsMv+wgU4=");
        check(udp, ("192.168.1.52", 54585), ("8.8.8.8", 53), "1:d/FP5EW3wiY1vCndhwleRRKHowQ=");
        check(132, ("192.168.170.8", 7), ("192.168.170.56", 7), "1:MP2EtRCAUIZvTw6MxJHLV7N7JDs=");
        check(1, ("192.168.0.89", 8), ("192.168.0.1", 0), "1:X0snYXpgwiv9TZtqg64sgzUn6Dk=");
        let (one, other) = ("fe80::200:86ff:fe05:80da", "fe80::260:97ff:fe07:69ea");
        check(58, (one, 135), (other, 136), "1:dGHyGvjMfljg6Bppwm3bg0LO8TY=");
    }

    #[test]
    fn an_address_that_is_mapped_into_ipv6_is_the_one_of_the_packet() {
        let id = |one: &str, other: &str| {
            community_id(Protocol::Tcp, one.parse().unwrap(), other.parse().unwrap())
        };
        assert_eq!(
            id("[::ffff:128.232.110.120]:34855", "[::ffff:66.35.250.204]:80"),
            "1:LQU9qZlK+B5F3KDmev6m5PMibrg="
        );
    }
}
