//! Sockets as sock_diag shows them, as bytes (linux/inet_diag.h, `struct tcp_info` in linux/tcp.h). Pure.
//!
//! What the kernel says when a socket goes, as found on Linux 6.18:
//! - It is said of every full TCP and UDP socket, also of listeners and of those that were never connected; of a TCP socket
//!   when it goes or becomes a mere TIME_WAIT (or orphaned FIN_WAIT_2), whichever is first, with all its counters.
//! - A socket that was disconnected before (connect(2) failed while somebody waited for it, or this end reset it) has lost
//!   its remote port, its local address and its counters; the remote address is still there.
//! - Who had it, its inode and its user, are never there.
//! - A connect that was never answered and given up goes only when the neighbour is given up too, some seconds later.
//! - `bytes_received` counts the FIN; `bytes_acked` the SYN of a connection that was asked for here, and the FIN. Whether
//!   there was a FIN is not told: there is none after a reset, nor where this end closed first and its socket went before
//!   the other end closed too. There the last byte received is missing.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use alibi_proto::flow::{Protocol, Traffic};

use crate::capture::linux::netlink::message::{attributes, bytes_at, u32_at, u64_at};

/// `SOCK_DIAG_BY_FAMILY`
pub(super) const BY_FAMILY: u16 = 20;
/// The groups that are told when a socket goes: `SKNLGRP_INET_TCP_DESTROY`, of UDP, and of both over IPv6.
pub(super) const DESTROYED: u32 = 0xf;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
/// `INET_DIAG_INFO`
const INFO: u16 = 2;
/// `INET_DIAG_PROTOCOL`
const PROTOCOL: u16 = 10;
/// `struct inet_diag_msg`
const LENGTH: usize = 72;

/// `TCP_ESTABLISHED` and so on.
pub(super) mod tcp_state {
    pub(in super::super) const ESTABLISHED: u8 = 1;
    pub(in super::super) const SYN_SENT: u8 = 2;
    pub(super) const FIN_WAIT_1: u8 = 4;
    pub(super) const FIN_WAIT_2: u8 = 5;
    pub(super) const CLOSE: u8 = 7;
    pub(super) const CLOSE_WAIT: u8 = 8;
    pub(super) const LAST_ACK: u8 = 9;
    pub(in super::super) const LISTEN: u8 = 10;
    pub(super) const CLOSING: u8 = 11;
}

/// A socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) protocol: Protocol,
    /// One of [`tcp_state`], of UDP too.
    pub(super) state: u8,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    /// Names it in this boot; the same that BPF sees.
    pub(super) cookie: u64,
    /// 0 where it has none, as after its owner has let go of it.
    pub(super) inode: u64,
    /// None of UDP, and of what is only the trace of a connection.
    pub(super) tcp: Option<Tcp>,
}

/// What TCP counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tcp {
    pub(super) traffic: Traffic,
    pub(super) round_trip: Option<Duration>,
    /// The other end has answered at some time.
    pub(super) was_established: bool,
}

/// The bodies of the four requests for the sockets that are connections, or listeners, of this network namespace.
pub(super) fn requests() -> [(Protocol, Vec<u8>); 4] {
    use tcp_state::{CLOSE_WAIT, CLOSING, ESTABLISHED, FIN_WAIT_1, FIN_WAIT_2, LAST_ACK, LISTEN, SYN_SENT};
    let tcp = [ESTABLISHED, SYN_SENT, FIN_WAIT_1, FIN_WAIT_2, CLOSE_WAIT, LAST_ACK, LISTEN, CLOSING];
    let tcp: u32 = tcp.iter().map(|state| 1 << state).sum();
    // `struct inet_diag_req_v2`: family, protocol, extensions, padding, states, and a socket to look for, which is none.
    let request = |family: u8, protocol: u8, states: u32| {
        let mut body = vec![family, protocol, 1 << (INFO - 1), 0];
        body.extend(states.to_ne_bytes());
        body.resize(56, 0);
        body
    };
    [
        (Protocol::Tcp, request(AF_INET, IPPROTO_TCP, tcp)),
        (Protocol::Tcp, request(AF_INET6, IPPROTO_TCP, tcp)),
        (Protocol::Udp, request(AF_INET, IPPROTO_UDP, 1 << ESTABLISHED)),
        (Protocol::Udp, request(AF_INET6, IPPROTO_UDP, 1 << ESTABLISHED)),
    ]
}

/// A row of the answer to a request for sockets of `protocol`; of one that goes, which tells its own, none.
///
/// Family, state, timer, retransmits; ports at 4 in the byte order of networks, addresses at 8 and 24, interface, cookie
/// at 44, expiry, queues, user, inode at 68.
pub(super) fn parse(body: &[u8], protocol: Option<Protocol>) -> Option<Row> {
    let (family, state) = (*body.first()?, *body.get(1)?);
    let port = |offset: usize| bytes_at(body, offset).map(u16::from_be_bytes);
    let address = |offset: usize| match family {
        AF_INET => bytes_at(body, offset).map(|bytes: [u8; 4]| IpAddr::V4(Ipv4Addr::from(bytes))),
        AF_INET6 => {
            bytes_at(body, offset).map(|bytes: [u8; 16]| IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical())
        }
        _ => None,
    };
    let find =
        |wanted: u16| attributes(body, LENGTH).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let told = || match find(PROTOCOL)? {
        [IPPROTO_TCP] => Some(Protocol::Tcp),
        [IPPROTO_UDP] => Some(Protocol::Udp),
        _ => None,
    };
    let cookie = u64::from(u32_at(body, 44)?) | u64::from(u32_at(body, 48)?) << 32;
    let protocol = protocol.or_else(told)?;
    Some(Row {
        protocol,
        state,
        local: SocketAddr::new(address(8)?, port(4)?),
        remote: SocketAddr::new(address(24)?, port(6)?),
        cookie,
        inode: u32_at(body, 68)?.into(),
        tcp: find(INFO).filter(|_| protocol == Protocol::Tcp).and_then(|info| tcp(info, state)),
    })
}

/// `struct tcp_info`. Newer kernels append to it.
fn tcp(info: &[u8], state: u8) -> Option<Tcp> {
    use tcp_state::{CLOSE, CLOSE_WAIT, CLOSING, LAST_ACK};
    let (acknowledged, received) = (u64_at(info, 120)?, u64_at(info, 128)?);
    let round_trip_us = u32_at(info, 68)?;
    // Since Linux 4.19: bytes sent, and of them those sent again. Before, what has been acknowledged must do.
    let sent = u64_at(info, 200).zip(u64_at(info, 208)).map(|(sent, again)| sent.saturating_sub(again));
    // Of one that has gone, most likely.
    let has_fin = matches!(state, CLOSE | CLOSE_WAIT | CLOSING | LAST_ACK) && received > 0;
    Some(Tcp {
        traffic: Traffic {
            bytes_sent: sent.unwrap_or(acknowledged),
            bytes_received: received - u64::from(has_fin),
            packets_sent: u32_at(info, 136)?.into(),
            packets_received: u32_at(info, 140)?.into(),
            packets_retransmitted: u32_at(info, 100)?.into(),
        },
        round_trip: (round_trip_us > 0).then(|| Duration::from_micros(round_trip_us.into())),
        was_established: round_trip_us > 0 || acknowledged > 0 || received > 0,
    })
}

impl Row {
    /// Established, or asked for by this host, and not over.
    pub(super) fn is_open(&self) -> bool {
        const SYN_RECEIVED: u8 = 3;
        const FIN_WAIT_2: u8 = 5;
        const TIME_WAIT: u8 = 6;
        const NEW_SYN_RECEIVED: u8 = 12;
        let is_other = [SYN_RECEIVED, TIME_WAIT, tcp_state::CLOSE, NEW_SYN_RECEIVED].contains(&self.state);
        // Nobody holds what is left of one that waits for the other end to close: the kernel does not even tell its end.
        let is_remnant = self.state == FIN_WAIT_2 && self.tcp.is_none();
        self.is_connection() && !is_other && !is_remnant
    }

    /// Somebody is, or was, at its other end.
    pub(super) fn is_connection(&self) -> bool {
        self.state != tcp_state::LISTEN && !self.remote.ip().is_unspecified()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(family: u8, state: u8, attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let mut body = vec![0; LENGTH];
        body[0] = family;
        body[1] = state;
        body[4..6].copy_from_slice(&40_000_u16.to_be_bytes());
        body[6..8].copy_from_slice(&443_u16.to_be_bytes());
        body[8..12].copy_from_slice(&[192, 0, 2, 1]);
        body[24..28].copy_from_slice(&[198, 51, 100, 7]);
        body[44..48].copy_from_slice(&7_u32.to_ne_bytes());
        body[48..52].copy_from_slice(&1_u32.to_ne_bytes());
        body[68..72].copy_from_slice(&99_u32.to_ne_bytes());
        for (kind, value) in attributes {
            let length = u16::try_from(4 + value.len()).unwrap();
            body.extend([length.to_ne_bytes(), kind.to_ne_bytes()].concat());
            body.extend(value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        body
    }

    fn info(length: usize) -> Vec<u8> {
        let mut info = vec![0; length];
        let mut put = |offset: usize, value: u64, bytes: usize| {
            if offset + bytes <= length {
                info[offset..offset + bytes].copy_from_slice(&value.to_ne_bytes()[..bytes]);
            }
        };
        put(68, 1500, 4);
        put(100, 1, 4);
        put(120, 12, 8);
        put(128, 8, 8);
        put(136, 5, 4);
        put(140, 4, 4);
        put(200, 15, 8);
        put(208, 5, 8);
        info
    }

    #[test]
    fn a_socket_is_read_with_what_it_moved() {
        let row = parse(&message(AF_INET, 7, &[(PROTOCOL, vec![6]), (INFO, info(280))]), None).unwrap();
        assert_eq!(row.protocol, Protocol::Tcp);
        assert_eq!(row.local, "192.0.2.1:40000".parse().unwrap());
        assert_eq!(row.remote, "198.51.100.7:443".parse().unwrap());
        assert_eq!((row.cookie, row.inode), (1 << 32 | 7, 99));
        let tcp = row.tcp.unwrap();
        let traffic = Traffic {
            bytes_sent: 10,
            bytes_received: 7,
            packets_sent: 5,
            packets_received: 4,
            packets_retransmitted: 1,
        };
        assert_eq!((tcp.traffic, tcp.was_established), (traffic, true));
        assert_eq!(tcp.round_trip, Some(Duration::from_micros(1500)));
        // An open one has no FIN; an older kernel tells what was acknowledged.
        let row = parse(&message(AF_INET, 1, &[(INFO, info(192))]), Some(Protocol::Tcp)).unwrap();
        let moved = row.tcp.unwrap().traffic;
        assert_eq!((moved.bytes_sent, moved.bytes_received), (12, 8));
    }

    #[test]
    fn addresses_of_both_families_and_both_protocols_are_read() {
        let mut mapped = message(AF_INET6, 1, &[(PROTOCOL, vec![17])]);
        mapped[24..40].copy_from_slice(&"::ffff:198.51.100.7".parse::<Ipv6Addr>().unwrap().octets());
        let row = parse(&mapped, None).unwrap();
        assert_eq!((row.protocol, row.remote), (Protocol::Udp, "198.51.100.7:443".parse().unwrap()));
        assert!(row.tcp.is_none() && row.is_connection());
        assert_eq!(parse(&message(AF_INET, 7, &[(PROTOCOL, vec![132])]), None), None);
        assert_eq!(parse(&message(1, 7, &[]), Some(Protocol::Tcp)), None);
        let whole = message(AF_INET, 1, &[]);
        (0..LENGTH).for_each(|length| assert_eq!(parse(&whole[..length], Some(Protocol::Tcp)), None));
    }
}
