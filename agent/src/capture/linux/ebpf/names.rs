//! Names, from the packets that the probe picks out at the sockets: each once, in every network namespace, with the owner
//! of its socket.

use std::time::Duration;

use alibi_proto::{flow::Direction, time::Moment};

use super::{
    event::{Header, Packet},
    processes::{key, moment},
};
use crate::capture::{
    Fact, Observation,
    linux::names::{Reader, Sighting},
};

pub(super) const COVERS: &str = "DNS answers over UDP and TCP port 53 that this host asked for, and server names in TLS \
     ClientHellos that programs send, by eBPF";
pub(super) const CANNOT_SEE: &str = "names known before recording began (caches, open connections); hosts files, mDNS and \
     other name services; names that a proxy looks up; DNS on \
     other ports; encrypted DNS, whose use is a gap where its server is known by port 853, name or address; QUIC; the \
     inner name of an encrypted ClientHello (ECH); what virtual machines look up";

/// What is known of the packets so far.
pub(super) struct Names {
    reader: Reader,
}

impl Names {
    pub(super) fn new() -> Self {
        Self { reader: Reader::that_hears_questions() }
    }

    /// Reads a packet.
    pub(super) fn take(
        &mut self,
        header: Header,
        packet: &Packet<'_>,
        now: Moment,
        facts: &mut Vec<Observation>,
    ) {
        let direction = if packet.is_leaving { Direction::Outbound } else { Direction::Inbound };
        let seen = Sighting {
            network_namespace: packet.network_namespace.into(),
            // At a socket it is seen once, wherever it came through.
            interface: 0,
            socket: Some(packet.cookie),
            direction,
            at: moment(header.at, now),
        };
        let before = facts.len();
        self.reader.read(seen, packet.bytes, facts);
        let owner = (header.pid != 0).then(|| key(header.pid, header.start));
        for observation in &mut facts[before..] {
            match &mut observation.fact {
                Fact::NameResolved(resolution) => resolution.process = owner,
                Fact::ServerName(hello) => hello.socket = Some(packet.cookie),
                _ => {}
            }
        }
    }

    /// What is known once everything of a turn has been read. False if something is waited for.
    pub(super) fn settle(&mut self, now: Moment, facts: &mut Vec<Observation>) -> bool {
        self.reader.settle(now, facts)
    }

    /// When it wants to be asked again at the latest.
    pub(super) fn wants_turn_within(&self) -> Option<Duration> {
        self.reader.wants_turn_within()
    }
}

#[cfg(test)]
mod tests;
