//! IP, UDP and TCP headers, read from bytes that anybody may have sent: whatever they are, reading them ends and never
//! panics.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What is in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet<'a> {
    /// Where it comes from; an IPv4 address mapped into IPv6 is IPv4.
    pub(super) source: SocketAddr,
    /// Where it goes; the same.
    pub(super) destination: SocketAddr,
    pub(super) transport: Transport,
    /// As much of it as has been captured.
    pub(super) payload: &'a [u8],
    /// All of the payload is there.
    pub(super) is_whole: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp {
        /// Of the first byte of the payload.
        sequence: u32,
    },
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const IPV6_FRAGMENT: u8 = 44;
const SYN: u8 = 0x02;

impl<'a> Packet<'a> {
    /// Reads a packet from its IP header on. None if it is neither UDP nor TCP over IP, or too short to say of whom.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => Self::ipv4(bytes),
            6 => Self::ipv6(bytes),
            _ => None,
        }
    }

    fn ipv4(bytes: &'a [u8]) -> Option<Self> {
        let header_bytes = usize::from(bytes.first()? & 0xf) * 4;
        if header_bytes < 20 {
            return None;
        }
        let total_bytes = usize::from(half(bytes, 2)?);
        let fragment = half(bytes, 6)?;
        if fragment & 0x1fff != 0 {
            return None;
        }
        let source = IpAddr::from(Ipv4Addr::from(array::<4>(bytes, 12)?));
        let destination = IpAddr::from(Ipv4Addr::from(array::<4>(bytes, 16)?));
        let is_fragment = fragment & 0x2000 != 0;
        // A large packet that the network card will cut (TSO) may state no length, or one that has overflowed.
        let stated = (total_bytes >= header_bytes).then_some(total_bytes);
        let rest = Rest::new(bytes, header_bytes, stated, is_fragment)?;
        rest.transport(*bytes.get(9)?, source, destination)
    }

    fn ipv6(bytes: &'a [u8]) -> Option<Self> {
        let payload_bytes = usize::from(half(bytes, 4)?);
        let source = IpAddr::from(Ipv6Addr::from(array::<16>(bytes, 8)?)).to_canonical();
        let destination = IpAddr::from(Ipv6Addr::from(array::<16>(bytes, 24)?)).to_canonical();
        let stated = (payload_bytes > 0).then_some(payload_bytes + 40);
        match *bytes.get(6)? {
            IPV6_FRAGMENT => {
                let fragment = half(bytes, 42)?;
                if fragment & 0xfff8 != 0 {
                    return None;
                }
                let rest = Rest::new(bytes, 48, stated, fragment & 1 != 0)?;
                rest.transport(*bytes.get(40)?, source, destination)
            }
            next => Rest::new(bytes, 40, stated, false)?.transport(next, source, destination),
        }
    }
}

/// What comes after the IP header.
struct Rest<'a> {
    bytes: &'a [u8],
    is_whole: bool,
}

impl<'a> Rest<'a> {
    /// `stated` is the packet's length as it says itself: what comes after it is padding.
    fn new(packet: &'a [u8], header_bytes: usize, stated: Option<usize>, is_fragment: bool) -> Option<Self> {
        let end = stated.unwrap_or(packet.len());
        let bytes = packet.get(header_bytes..end.min(packet.len()))?;
        Some(Self { bytes, is_whole: !is_fragment && end <= packet.len() })
    }

    fn transport(self, protocol: u8, source: IpAddr, destination: IpAddr) -> Option<Packet<'a>> {
        let (source_port, destination_port) = (half(self.bytes, 0)?, half(self.bytes, 2)?);
        let (transport, header_bytes) = match protocol {
            UDP => (Transport::Udp, 8),
            TCP => {
                let first = u32::from_be_bytes(array(self.bytes, 4)?);
                let is_syn = self.bytes.get(13)? & SYN != 0;
                let header_bytes = usize::from(self.bytes.get(12)? >> 4) * 4;
                if header_bytes < 20 {
                    return None;
                }
                // Data that come with the SYN (TCP Fast Open) follow it in the sequence.
                (Transport::Tcp { sequence: first.wrapping_add(u32::from(is_syn)) }, header_bytes)
            }
            _ => return None,
        };
        Some(Packet {
            source: SocketAddr::new(source, source_port),
            destination: SocketAddr::new(destination, destination_port),
            transport,
            payload: self.bytes.get(header_bytes..)?,
            is_whole: self.is_whole,
        })
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::{
        super::filter::tests::{ipv4, ipv6, tcp, udp},
        *,
    };

    #[test]
    fn headers_are_read() {
        let bytes = ipv4(17, 0, &udp(53, 4000, b"answer"));
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!(
            (packet.source, packet.destination),
            ("192.0.2.1:53".parse().unwrap(), "198.51.100.7:4000".parse().unwrap())
        );
        assert_eq!(
            (packet.transport, packet.payload, packet.is_whole),
            (Transport::Udp, &b"answer"[..], true)
        );
        let bytes = ipv6(6, &tcp(5000, 443, 7, 0x18, b"hello"));
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!(
            (packet.source, packet.destination),
            ("[2001:db8::1]:5000".parse().unwrap(), "[2001:db8::2]:443".parse().unwrap())
        );
        assert_eq!((packet.transport, packet.payload), (Transport::Tcp { sequence: 7 }, &b"hello"[..]));
        let bytes = ipv6(6, &tcp(5000, 443, u32::MAX, 0x02, b"early"));
        assert_eq!(Packet::parse(&bytes).unwrap().transport, Transport::Tcp { sequence: 0 });
    }

    #[test]
    fn padding_is_left_out_and_what_is_missing_is_said() {
        let mut bytes = ipv4(17, 0, &udp(53, 4000, b"answer"));
        bytes.extend([0; 9]);
        assert_eq!(
            Packet::parse(&bytes).map(|packet| (packet.payload, packet.is_whole)),
            Some((&b"answer"[..], true))
        );
        bytes.truncate(bytes.len() - 12);
        assert_eq!(
            Packet::parse(&bytes).map(|packet| (packet.payload, packet.is_whole)),
            Some((&b"ans"[..], false))
        );
        let fragment = ipv4(17, 0x2000, &udp(53, 4000, b"answer"));
        assert_eq!(Packet::parse(&fragment).map(|packet| packet.is_whole), Some(false));
        assert_eq!(Packet::parse(&ipv4(17, 1, &udp(53, 4000, b"answer"))), None);
    }

    #[test]
    fn mapped_addresses_are_canonical() {
        let mut bytes = ipv6(17, &udp(53, 4000, b""));
        bytes[8..24].copy_from_slice(&Ipv4Addr::new(192, 0, 2, 9).to_ipv6_mapped().octets());
        assert_eq!(Packet::parse(&bytes).unwrap().source, "192.0.2.9:53".parse().unwrap());
    }

    proptest::proptest! {
        #[test]
        fn reading_ends(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            if let Some(packet) = Packet::parse(&bytes) {
                proptest::prop_assert!(packet.payload.len() + 28 <= bytes.len());
            }
        }

        #[test]
        fn reading_what_is_nearly_right_ends(
            mut bytes in proptest::sample::select(vec![
                ipv4(6, 0, &tcp(1, 2, 3, 0x18, b"data")), ipv6(44, &[6, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
            ]),
            changes in proptest::collection::vec((0usize..70, proptest::num::u8::ANY), 0..6),
            length in 0usize..80,
        ) {
            for (at, byte) in changes {
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            bytes.truncate(length);
            let _ = Packet::parse(&bytes);
        }
    }
}
