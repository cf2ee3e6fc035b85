//! A packet is seen at each interface that it crosses: at a bridge and its port, at a VLAN and its card. It counts once.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use alibi_proto::time::Moment;

use super::packet::{Packet, Transport};

/// Copies come within microseconds; a segment of TCP that is sent again, within a second.
const REMEMBERED_FOR: Duration = Duration::from_secs(2);
/// Packets that are remembered; the oldest are forgotten first, and a copy of one that is forgotten counts again.
const REMEMBERED_MAX: usize = 1_024;

/// The packets of late.
#[derive(Debug, Default)]
pub(super) struct Copies {
    // Seeded at random, so that nobody can make a packet that is taken for another.
    hasher: RandomState,
    seen: HashMap<u64, Seen>,
    order: VecDeque<(u64, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    interface: usize,
    boot_ns: u64,
}

impl Copies {
    /// Whether `packet` has been seen already: of UDP, at another interface; of TCP, whose bytes are numbered, anywhere.
    pub(super) fn is_copy(
        &mut self,
        network_namespace: u64,
        interface: usize,
        packet: &Packet<'_>,
        at: Moment,
    ) -> bool {
        let sequence = if let Transport::Tcp { sequence } = packet.transport { Some(sequence) } else { None };
        let identity = (network_namespace, packet.source, packet.destination, sequence, packet.payload);
        let digest = self.hasher.hash_one(identity);
        let age_max = u64::try_from(REMEMBERED_FOR.as_nanos()).unwrap_or(u64::MAX);
        while self.order.len() >= REMEMBERED_MAX
            || self.order.front().is_some_and(|(_, since)| at.boot_ns.saturating_sub(*since) > age_max)
        {
            let Some((digest, since)) = self.order.pop_front() else { break };
            if self.seen.get(&digest).is_some_and(|seen| seen.boot_ns == since) {
                self.seen.remove(&digest);
            }
        }
        if let Some(seen) = self.seen.get(&digest)
            && (sequence.is_some() || seen.interface != interface)
        {
            return true;
        }
        self.seen.insert(digest, Seen { interface, boot_ns: at.boot_ns });
        self.order.push_back((digest, at.boot_ns));
        false
    }
}

#[cfg(test)]
mod tests {
    use alibi_proto::time::Timestamp;

    use super::*;

    fn at(boot_ms: u64) -> Moment {
        Moment { wall: Timestamp::from_secs(1_764_000_000), boot_ns: boot_ms * 1_000_000 }
    }

    fn packet(transport: Transport, payload: &[u8]) -> Packet<'_> {
        let end = |port| std::net::SocketAddr::from(([192, 0, 2, 1], port));
        Packet { source: end(53), destination: end(4000), transport, payload, is_whole: true }
    }

    #[test]
    fn a_copy_at_another_interface_is_one_and_a_repeat_is_none() {
        let mut copies = Copies::default();
        let answer = packet(Transport::Udp, b"answer");
        assert!(!copies.is_copy(1, 2, &answer, at(0)));
        assert!(copies.is_copy(1, 3, &answer, at(0)));
        assert!(!copies.is_copy(9, 3, &answer, at(0)));
        assert!(!copies.is_copy(1, 2, &answer, at(1)));
        assert!(copies.is_copy(1, 3, &answer, at(1)));
        assert!(!copies.is_copy(1, 3, &packet(Transport::Udp, b"another"), at(1)));
        assert!(!copies.is_copy(1, 3, &answer, at(5_000)));
    }

    #[test]
    fn a_segment_sent_again_is_a_copy() {
        let mut copies = Copies::default();
        let segment = |sequence| packet(Transport::Tcp { sequence }, b"hello");
        assert!(!copies.is_copy(1, 2, &segment(5), at(0)));
        assert!(copies.is_copy(1, 2, &segment(5), at(900)));
        assert!(!copies.is_copy(1, 2, &segment(10), at(900)));
    }

    #[test]
    fn no_more_are_remembered_than_the_bound() {
        let mut copies = Copies::default();
        for sequence in 0..3_000 {
            assert!(!copies.is_copy(1, 2, &packet(Transport::Tcp { sequence }, b"x"), at(0)));
            assert!(copies.order.len() <= REMEMBERED_MAX && copies.seen.len() <= REMEMBERED_MAX);
        }
    }
}
