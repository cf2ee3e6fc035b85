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

/// The rest of a message that came in pieces is waited for so long, and everything else with it.
const WAIT_MAX: Duration = Duration::from_secs(1);

pub(super) const COVERS: &str =
    "DNS answers over UDP and TCP port 53, and server names in TLS ClientHellos that programs send, by eBPF";
pub(super) const CANNOT_SEE: &str = "names known before recording began (caches, open connections); hosts files, mDNS and other name services; DNS on \
     other ports; encrypted DNS, whose use is a gap where its server is known by port 853, name or address; QUIC; the \
     inner name of an encrypted ClientHello (ECH); what virtual machines look up";

/// What is known of the packets so far.
pub(super) struct Names {
    reader: Reader,
    /// Everything before this has been understood, or told as lost.
    heard_until: Option<Moment>,
}

impl Names {
    pub(super) fn new() -> Self {
        Self { reader: Reader::default(), heard_until: None }
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
        let may_wait = self.heard_until.is_some_and(|heard| since(heard, now) < WAIT_MAX);
        let is_settled = self.reader.settle(now, may_wait, facts);
        if is_settled || self.heard_until.is_none() {
            self.heard_until = Some(now);
        }
        is_settled
    }
}

fn since(earlier: Moment, now: Moment) -> Duration {
    Duration::from_nanos(now.boot_ns.saturating_sub(earlier.boot_ns))
}
