//! Packets become facts: answers, server names, and what could not be read. Pure: packets and their times are arguments.

use std::{collections::BTreeMap, time::Duration};

use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade},
    flow::Direction,
    time::{Moment, Timestamp},
};

use super::{
    copies::Copies,
    dns::{self, Framed},
    packet::{Packet, Transport},
    pieces::{Pieces, STREAM_BYTES_MAX, Stream, Way},
    questions::{Asker, Questions},
    tls::{self, Hello},
};
use crate::capture::{Fact, Observation, ObservedResolution, ObservedServerName};

const DNS_PORT: u16 = 53;

/// The rest of a message that came in pieces is waited for so long, and everything else with it: less than the patience
/// with a canary. Pieces of what a program sends follow each other at once, and those of an answer within a round trip.
const WAIT_MAX: Duration = Duration::from_millis(500);

const CUT_ANSWER: &str = "a DNS answer came in fragments";
const STRANGE_ANSWER: &str = "a DNS answer could not be understood, or is too long";
const STRANGE_HELLO: &str = "a TLS ClientHello could not be understood";
const LONG_HELLO: &str = "a TLS ClientHello is too long";
const LONG_STREAM: &str = "a DNS answer over TCP is too long";
const MANY_PIECES: &str = "too many TLS ClientHellos and DNS answers came in pieces at once";
const UNASKED: &str = "a DNS answer came that this host was not heard to ask for: it is not believed";
const LATE_PIECES: &str = "the rest of a TLS ClientHello or DNS answer did not come in time";

/// Where, how and when a packet was seen.
#[derive(Clone, Copy, Debug)]
pub(in crate::capture::linux) struct Sighting {
    pub(in crate::capture::linux) network_namespace: u64,
    pub(in crate::capture::linux) interface: usize,
    /// The cookie of the socket that sent or received it, where it was seen there.
    pub(in crate::capture::linux) socket: Option<u64>,
    /// Who sent it: outbound if this host, or if it was seen on loopback.
    pub(in crate::capture::linux) direction: Direction,
    pub(in crate::capture::linux) at: Moment,
}

/// Remembers what it takes to understand the next packet.
#[derive(Debug, Default)]
pub(in crate::capture::linux) struct Reader {
    copies: Copies,
    pieces: Pieces,
    losses: BTreeMap<&'static str, Loss>,
    /// Of a source that hears questions: only answers to them are believed.
    questions: Option<Questions>,
    /// Since when something is waited for.
    waiting_since: Option<Moment>,
}

#[derive(Clone, Copy, Debug)]
struct Loss {
    count: u64,
    from: Timestamp,
    to: Timestamp,
}

impl Reader {
    /// For a source that hears the questions of this host, too, each before its answer.
    pub(in crate::capture::linux) fn that_hears_questions() -> Self {
        Self { questions: Some(Questions::default()), ..Self::default() }
    }

    /// Reads a packet from its IP header on; `bytes` may end before it does.
    pub(in crate::capture::linux) fn read(
        &mut self,
        seen: Sighting,
        bytes: &[u8],
        facts: &mut Vec<Observation>,
    ) {
        let Some(packet) = Packet::parse(bytes) else { return };
        if self.copies.is_copy(seen.network_namespace, seen.interface, &packet, seen.at) {
            return;
        }
        match packet.transport {
            Transport::Udp if packet.source.port() == DNS_PORT && dns::is_answer(packet.payload) => {
                self.datagram(seen, &packet, facts);
            }
            Transport::Udp => self.ask(seen, &packet, dns::read_question(packet.payload)),
            Transport::Tcp { sequence } if packet.source.port() == DNS_PORT => {
                self.answers(seen, &packet, sequence, facts);
            }
            Transport::Tcp { .. } if packet.destination.port() == DNS_PORT => {
                let asker = asker(seen, packet.source.port());
                if let Some(questions) = &mut self.questions
                    && seen.direction == Direction::Outbound
                    && !packet.payload.is_empty()
                {
                    questions.open(asker, seen.at);
                }
                self.ask(seen, &packet, dns::read_questions(packet.payload));
            }
            Transport::Tcp { sequence } => self.hello(seen, &packet, sequence, facts),
        }
    }

    /// What is known once everything of a turn has been read. What is waited for is given up, all of it, [`WAIT_MAX`]
    /// after the first of it began to be: whoever begins message after message holds back nothing for longer. False if
    /// something is waited for.
    pub(in crate::capture::linux) fn settle(&mut self, now: Moment, facts: &mut Vec<Observation>) -> bool {
        if !self.pieces.is_empty() {
            let since = *self.waiting_since.get_or_insert(now);
            if Duration::from_nanos(now.boot_ns.saturating_sub(since.boot_ns)) >= WAIT_MAX {
                let streams: Vec<_> = self.pieces.give_up().collect();
                for (_, stream) in streams {
                    self.lose(LATE_PIECES, stream.began().wall, now.wall);
                }
            }
        }
        if self.pieces.is_empty() {
            self.waiting_since = None;
        }
        for (reason, loss) in std::mem::take(&mut self.losses) {
            facts.push(lost(loss.count, reason.to_owned(), loss.from, loss.to, now));
        }
        self.pieces.is_empty()
    }

    /// When [`Reader::settle`] wants to be asked again at the latest, though nothing has come.
    pub(in crate::capture::linux) fn wants_turn_within(&self) -> Option<Duration> {
        self.waiting_since.map(|_| WAIT_MAX / 2)
    }

    /// Questions, if it is this host that asks them.
    fn ask(&mut self, seen: Sighting, packet: &Packet<'_>, asked: impl IntoIterator<Item = dns::Asked>) {
        let Some(questions) = self.questions.as_mut().filter(|_| seen.direction == Direction::Outbound)
        else {
            return;
        };
        for dns::Asked { number, name } in asked {
            questions.ask(asker(seen, packet.source.port()), number, &name, seen.at);
        }
    }

    fn datagram(&mut self, seen: Sighting, packet: &Packet<'_>, facts: &mut Vec<Observation>) {
        if packet.is_whole {
            self.answer(seen, packet.payload, packet, facts);
        } else {
            self.lose_at(CUT_ANSWER, seen.at);
        }
    }

    fn answer(&mut self, seen: Sighting, message: &[u8], packet: &Packet<'_>, facts: &mut Vec<Observation>) {
        let (server, local) = (packet.source, packet.destination);
        match dns::read(message) {
            Ok(Some(answer)) => {
                let asker = asker(seen, local.port());
                if let Some(questions) = &self.questions
                    && !questions.is_asked(asker, answer.number, &answer.name, seen.at)
                {
                    return self.lose_at(UNASKED, seen.at);
                }
                let resolution = ObservedResolution {
                    name: answer.name,
                    aliases: answer.aliases,
                    addresses: answer.addresses,
                    ttl_s: answer.ttl_s,
                    server,
                    local,
                    process: None,
                    network_namespace: Some(seen.network_namespace),
                };
                facts.push(Observation { at: seen.at, fact: Fact::NameResolved(Box::new(resolution)) });
            }
            Ok(None) => {}
            Err(dns::Unreadable) => self.lose_at(STRANGE_ANSWER, seen.at),
        }
    }

    /// A segment of DNS over TCP.
    fn answers(&mut self, seen: Sighting, packet: &Packet<'_>, sequence: u32, facts: &mut Vec<Observation>) {
        let asker = asker(seen, packet.destination.port());
        if self.questions.as_ref().is_some_and(|questions| !questions.is_open(asker, seen.at)) {
            // Nor is the rest of it waited for: so that nobody outside can have the agent wait.
            if !packet.payload.is_empty() {
                self.lose_at(UNASKED, seen.at);
            }
            return;
        }
        let way = way(seen, packet);
        let mut stream = match self.pieces.take(&way) {
            Some(mut stream) => match stream.add(sequence, packet.payload) {
                Ok(()) => stream,
                Err(_) => return self.lose(LONG_STREAM, stream.began().wall, after(seen.at)),
            },
            None => Stream::new(sequence, packet.payload, seen.at),
        };
        loop {
            let taken = match dns::first_message(stream.bytes()) {
                Framed::Message(message, taken) => {
                    self.answer(seen, message, packet, facts);
                    taken
                }
                Framed::Unfinished if stream.bytes().is_empty() && packet.is_whole => return,
                Framed::Unfinished if !packet.is_whole || stream.bytes().len() > STREAM_BYTES_MAX => {
                    return self.lose(LONG_STREAM, stream.began().wall, after(seen.at));
                }
                Framed::Unfinished => return self.wait_for(way, stream, seen),
                Framed::Unreadable => return self.lose_at(STRANGE_ANSWER, seen.at),
            };
            stream.advance(taken);
        }
    }

    /// A segment that begins a ClientHello, or goes on with one.
    fn hello(&mut self, seen: Sighting, packet: &Packet<'_>, sequence: u32, facts: &mut Vec<Observation>) {
        let way = way(seen, packet);
        let begins = tls::begins_hello(packet.payload);
        let stream = match self.pieces.take(&way) {
            Some(mut stream) => match stream.add(sequence, packet.payload) {
                Ok(()) => stream,
                Err(_) => {
                    return self.lose_hello(LONG_HELLO, seen, stream.began().wall);
                }
            },
            None if begins => Stream::new(sequence, packet.payload, seen.at),
            None => return,
        };
        let began = stream.began().wall;
        match tls::read(stream.bytes()) {
            Hello::Asks(name) => self.asks(seen, packet, Some(name), facts),
            Hello::AsksForNone => self.asks(seen, packet, None, facts),
            Hello::Unreadable => self.lose_hello(STRANGE_HELLO, seen, began),
            Hello::Unfinished if !packet.is_whole => self.lose_hello(LONG_HELLO, seen, began),
            // What others ask this host for is no name that an address was reached by. The filter lets no later pieces of
            // it through, so that nobody outside can have the agent wait.
            Hello::Unfinished if seen.direction == Direction::Inbound => {}
            Hello::Unfinished => self.wait_for(way, stream, seen),
        }
    }

    fn asks(
        &mut self,
        seen: Sighting,
        packet: &Packet<'_>,
        name: Option<String>,
        facts: &mut Vec<Observation>,
    ) {
        let (local, remote) = match seen.direction {
            Direction::Outbound => (packet.source, packet.destination),
            Direction::Inbound => (packet.destination, packet.source),
        };
        let network_namespace = Some(seen.network_namespace);
        let (direction, socket) = (seen.direction, None);
        let hello = ObservedServerName { name, direction, socket, local, remote, network_namespace };
        facts.push(Observation { at: seen.at, fact: Fact::ServerName(Box::new(hello)) });
    }

    fn wait_for(&mut self, way: Way, stream: Stream, seen: Sighting) {
        if let Some((_, given_up)) = self.pieces.put(way, stream) {
            self.lose(MANY_PIECES, given_up.began().wall, after(seen.at));
        }
    }

    fn lose_hello(&mut self, reason: &'static str, seen: Sighting, from: Timestamp) {
        if seen.direction == Direction::Outbound {
            self.lose(reason, from, after(seen.at));
        }
    }

    fn lose_at(&mut self, reason: &'static str, at: Moment) {
        self.lose(reason, at.wall, after(at));
    }

    fn lose(&mut self, reason: &'static str, from: Timestamp, to: Timestamp) {
        let loss = self.losses.entry(reason).or_insert(Loss { count: 0, from, to });
        loss.count += 1;
        loss.from = loss.from.min(from);
        loss.to = loss.to.max(to);
    }
}

fn way(seen: Sighting, packet: &Packet<'_>) -> Way {
    Way { network_namespace: seen.network_namespace, source: packet.source, destination: packet.destination }
}

/// Who asked, or asks, from this port.
fn asker(seen: Sighting, port: u16) -> Asker {
    seen.socket.map_or(Asker::Port(seen.network_namespace, port), Asker::Socket)
}

/// The first instant after `at`.
fn after(at: Moment) -> Timestamp {
    at.wall.saturating_add(Duration::from_nanos(1))
}

/// Names were lost in `[from, to)`.
pub(super) fn lost(count: u64, reason: String, from: Timestamp, to: Timestamp, now: Moment) -> Observation {
    let grade = Grade::Lost { count, reason };
    let change =
        CoverageChange { facet: Facet::Names, grade, from, to: Some(to), scope: None, announced_from: None };
    Observation { at: now, fact: Fact::Coverage(change) }
}

#[cfg(test)]
mod tests;
