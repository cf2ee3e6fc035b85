//! Connections, from what happens to sockets.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade},
    flow::{Attribution, Direction as FlowDirection, FlowState, Protocol, Traffic},
    time::Moment,
};

use super::{
    event::{Connection, ConnectionKind, Direction, Event, Header, Known, tcp_state},
    probe::{Peer, PeerKey, Probe},
    processes::{Processes, key, moment},
};
use crate::capture::{
    CaptureError, ConnectionChange, Fact, Observation, ObservedConnection, ProcessKey, SocketKey,
    linux::netlink::OpenConnection,
};

/// A UDP peer that has been silent for so long is done. The kernel tells it anew if it speaks after 60 s, so this one
/// must be longer.
const UDP_IDLE: Duration = Duration::from_secs(65);
/// The kernel tells a peer anew that has been silent for longer.
const UDP_SILENT: Duration = Duration::from_secs(60);
/// What was told so long before a turn has been taken in it.
const TOLD_WITHIN: Duration = Duration::from_millis(100);
/// Instead of when it was opened, for a connection of which the probe knows nothing.
const ADOPTED: u64 = u64::MAX;
/// What is open is listed so often before something is taken to be closed.
pub(super) const LISTINGS: u32 = 4;
/// UDP peers that are followed; as many as the kernel's map holds.
const PEERS_MAX: usize = 65_536;
/// TCP connections that are followed.
const OPEN_MAX: usize = 262_144;

/// The program gave an attempt up before it was answered. No system call returns this for a connect.
const ECANCELED: i32 = 125;

/// What is open.
#[derive(Default)]
pub(super) struct Connections {
    /// TCP connections that have been told and not ended, by cookie: the other end, and when the kernel saw it asked for.
    open: HashMap<u64, (SocketAddr, u64)>,
    peers: HashMap<(u64, SocketAddr), OpenPeer>,
    /// The peers of each UDP socket.
    peers_of: HashMap<u64, HashSet<SocketAddr>>,
    /// Those of other network namespaces are left out.
    only: Option<u64>,
    /// Something was opened since connections were looked at.
    has_fresh: bool,
    /// A look showed something that was opened just before, and may yet be told: the next one shows all.
    has_passed_over: bool,
}

/// What looks showed, and had not been told.
#[derive(Default)]
pub(super) struct Untold {
    pub(super) count: u64,
    /// When the first of them was opened, as far as that is known, in nanoseconds since boot.
    opened: Option<u64>,
}

impl Untold {
    /// What is lost with it, as so many.
    pub(super) fn loss(&self, now: Moment, count: u64) -> Option<Observation> {
        let reason = "connections were found open that had not been told".to_owned();
        let from = moment(self.opened?, now);
        Some(Observation { at: now, fact: lost(count, from, now, reason) })
    }
}

struct OpenPeer {
    /// What the kernel had counted when this flow began.
    before: Peer,
    last: u64,
    moved: Traffic,
}

impl Connections {
    /// Those of one network namespace, or all.
    pub(super) fn of(only: Option<u64>) -> Self {
        Self { only, ..Self::default() }
    }

    /// What is covered, in words for the scope.
    pub(super) fn covers(&self) -> &'static str {
        match self.only {
            None => "TCP and UDP over IPv4 and IPv6 by eBPF, in all network namespaces",
            Some(_) => "TCP and UDP over IPv4 and IPv6 by eBPF, in the agent's own network namespace",
        }
    }

    /// Whether a network namespace is none of ours.
    pub(super) fn leaves_out(&self, network_namespace: u32) -> bool {
        self.only.is_some_and(|only| only != u64::from(network_namespace))
    }

    /// Whether only those of the agent's own network namespace are told.
    pub(super) fn is_of_own_only(&self) -> bool {
        self.only.is_some()
    }

    /// A connection that nobody was found to hold, if it has not been told.
    pub(super) fn adopt(&mut self, found: &OpenConnection, now: Moment) -> Option<Observation> {
        if self.open.contains_key(&found.cookie) {
            return None;
        }
        self.open.insert(found.cookie, (found.remote, ADOPTED));
        let observed = ObservedConnection {
            socket: SocketKey { protocol: Protocol::Tcp, remote: found.remote, socket: found.cookie },
            local: found.local,
            owner: None,
            attribution: Attribution::Unknown,
            direction: if found.is_at_listener { FlowDirection::Inbound } else { FlowDirection::Outbound },
            state: if found.is_established { FlowState::Established } else { FlowState::Attempted },
            already_open: true,
            traffic: found.traffic,
            interface: None,
            network_namespace: Some(found.network_namespace),
        };
        Some(Observation { at: now, fact: Fact::ConnectionOpened(Box::new(observed)) })
    }

    /// Takes in one event.
    pub(super) fn take(
        &mut self,
        (header, kind, connection): (Header, ConnectionKind, Connection),
        now: Moment,
        probe: &mut Probe,
        processes: &mut Processes,
        facts: &mut Vec<Observation>,
    ) {
        if self.leaves_out(connection.network_namespace) {
            return;
        }
        let at = moment(header.at, now);
        if header.pid != 0 {
            processes.acts(key(header.pid, header.start), at, facts);
        }
        let mut push = |fact| facts.push(Observation { at, fact });
        match kind {
            ConnectionKind::Listen => {
                if let Some((remote, _)) = self.open.remove(&connection.cookie) {
                    push(given_up(connection.cookie, remote, connection.error));
                }
                push(listening(header, &connection));
            }
            ConnectionKind::Attempt | ConnectionKind::Accepted => {
                let connection = if kind == ConnectionKind::Accepted {
                    // Nothing is kept with one for which there was no memory.
                    Connection { direction: Direction::Inbound, ..connection }
                } else {
                    connection
                };
                let known = self.open.get(&connection.cookie).copied();
                // A look at what is open can come before the event.
                if known == Some((connection.remote, connection.opened)) {
                    return;
                }
                if known.is_some_and(|(remote, opened)| {
                    remote == connection.remote && [0, ADOPTED].contains(&opened)
                }) {
                    // It was listed while its event was on its way.
                    self.open.insert(connection.cookie, (connection.remote, connection.opened));
                    push(Fact::ConnectionChanged {
                        socket: socket(&connection),
                        change: change(header, &connection),
                    });
                    return;
                }
                if let Some((remote, _)) = known {
                    // The socket is used anew: what it was used for before came to nothing.
                    push(given_up(connection.cookie, remote, connection.error));
                    self.open.remove(&connection.cookie);
                }
                let is_attempt = kind == ConnectionKind::Attempt;
                let state = if is_attempt { FlowState::Attempted } else { FlowState::Established };
                self.begin(header, &connection, state, false, at, facts);
            }
            ConnectionKind::Established => {
                if self.is_open(&connection) {
                    let change = ConnectionChange {
                        state: Some(FlowState::Established),
                        local: Some(connection.local),
                        ..ConnectionChange::default()
                    };
                    push(Fact::ConnectionChanged { socket: socket(&connection), change });
                } else {
                    self.begin(header, &connection, FlowState::Established, false, at, facts);
                }
            }
            ConnectionKind::Owner if connection.is_udp => {
                // What it has moved is the kernel's count, which is not this flow's alone.
                if self.peers.contains_key(&(connection.cookie, connection.remote)) {
                    let owner = owner(header, connection.known);
                    let change = ConnectionChange { owner, ..ConnectionChange::default() };
                    push(Fact::ConnectionChanged { socket: socket(&connection), change });
                }
            }
            ConnectionKind::Owner | ConnectionKind::Sample if self.is_open(&connection) => {
                let change = change(header, &connection);
                push(Fact::ConnectionChanged { socket: socket(&connection), change });
            }
            ConnectionKind::Owner | ConnectionKind::Sample => {
                self.begin(header, &connection, open_state(connection.state), true, at, facts);
            }
            ConnectionKind::Closed => {
                let state = outcome(&connection);
                if self.is_open(&connection) {
                    self.open.remove(&connection.cookie);
                    let change = change(header, &connection);
                    push(Fact::ConnectionClosed { socket: socket(&connection), state, change });
                } else {
                    if let Some((remote, _)) = self.open.remove(&connection.cookie) {
                        push(given_up(connection.cookie, remote, 0));
                    }
                    // An attempt that never got a route, or something older than the probe that nobody held any more.
                    push(opened(header, &connection, state));
                }
            }
            ConnectionKind::Peer => self.peer(header, &connection, at, facts),
            ConnectionKind::Released => {
                for remote in self.peers_of.remove(&connection.cookie).unwrap_or_default() {
                    self.end_peer(connection.cookie, remote, at, probe, facts);
                }
            }
            ConnectionKind::Found => {}
        }
    }

    /// Whether it has been told, with this other end.
    fn is_open(&self, connection: &Connection) -> bool {
        self.open.get(&connection.cookie).is_some_and(|(remote, _)| *remote == connection.remote)
    }

    /// Something is open that was not; with `already_open` it has been for some time.
    fn begin(
        &mut self,
        header: Header,
        connection: &Connection,
        state: FlowState,
        already_open: bool,
        at: Moment,
        facts: &mut Vec<Observation>,
    ) {
        let mut push = |fact| facts.push(Observation { at, fact });
        let is_full = self.open.len() >= OPEN_MAX && !self.open.contains_key(&connection.cookie);
        let state = if is_full { FlowState::Closed } else { state };
        let Fact::ConnectionOpened(mut observed) = opened(header, connection, state) else { return };
        observed.already_open = already_open;
        if already_open && connection.direction == Direction::Unknown {
            // It waited to be accepted when the open files were looked through.
            observed.direction = FlowDirection::Inbound;
        }
        if is_full {
            push(Fact::ConnectionOpened(observed));
            let reason = format!(
                "more than {OPEN_MAX} TCP connections at once: those beyond were recorded as they began only"
            );
            push(lost(1, at, at, reason));
            return;
        }
        let before = self.open.insert(connection.cookie, (connection.remote, connection.opened));
        if let Some((remote, _)) = before.filter(|(remote, _)| *remote != connection.remote) {
            push(given_up(connection.cookie, remote, 0));
        }
        self.has_fresh = true;
        push(Fact::ConnectionOpened(observed));
    }

    /// A UDP peer that is new, or was silent for long.
    fn peer(&mut self, header: Header, connection: &Connection, at: Moment, facts: &mut Vec<Observation>) {
        let place = (connection.cookie, connection.remote);
        let before = Peer {
            last: header.at,
            sent: connection.sent,
            received: connection.received,
            packets_sent: connection.packets_sent,
            packets_received: connection.packets_received,
        };
        let (heard, idle_ns) = (connection.opened, nanos(UDP_SILENT));
        match self.peers.get_mut(&place) {
            // Two processors have told the same.
            Some(open) if header.at.saturating_sub(heard.max(open.last)) <= idle_ns => return,
            Some(silent) => {
                // It was about to be ended.
                let moved = since(&before, &silent.before);
                let last = moment(heard.max(silent.last), at);
                facts.push(Observation { at: last, fact: peer_closed(place, moved) });
                self.peers.remove(&place);
            }
            None => {}
        }
        let nothing_yet =
            Connection { sent: 0, received: 0, packets_sent: 0, packets_received: 0, ..*connection };
        if self.peers.len() >= PEERS_MAX {
            facts.push(Observation { at, fact: opened(header, &nothing_yet, FlowState::Closed) });
            let reason = format!(
                "more than {PEERS_MAX} UDP peers at once: those beyond were recorded at a datagram only"
            );
            facts.push(Observation { at, fact: lost(1, at, at, reason) });
            return;
        }
        self.peers.insert(place, OpenPeer { before, last: header.at, moved: Traffic::default() });
        self.peers_of.entry(connection.cookie).or_default().insert(connection.remote);
        self.has_fresh = true;
        facts.push(Observation { at, fact: opened(header, &nothing_yet, FlowState::Established) });
    }

    fn end_peer(
        &mut self,
        cookie: u64,
        remote: SocketAddr,
        at: Moment,
        probe: &mut Probe,
        facts: &mut Vec<Observation>,
    ) {
        let Some(open) = self.peers.remove(&(cookie, remote)) else { return };
        let kernel_key = peer_key(cookie, remote);
        let moved = probe.peer(&kernel_key).map_or(open.moved, |peer| since(&peer, &open.before));
        probe.forget_peer(&kernel_key);
        facts.push(Observation { at, fact: peer_closed((cookie, remote), moved) });
    }

    /// How it stands with what is open; ends the UDP peers that are silent.
    pub(super) fn look(
        &mut self,
        now: Moment,
        probe: &mut Probe,
        processes: &mut Processes,
        facts: &mut Vec<Observation>,
    ) -> Result<(), CaptureError> {
        let is_whole = std::mem::take(&mut self.has_passed_over);
        let mut untold = Untold::default();
        if is_whole || !self.open.is_empty() {
            let bytes = probe.sample(is_whole)?;
            for event in Event::parse_all(&bytes) {
                self.see(event, now, probe, processes, &mut untold, facts);
            }
        }
        facts.extend(untold.loss(now, untold.count));
        self.look_at_peers(now, probe, facts);
        self.has_fresh = self.has_passed_over;
        Ok(())
    }

    /// Takes in what a look shows. Gives the connection's cookie.
    fn see(
        &mut self,
        event: Event<'_>,
        now: Moment,
        probe: &mut Probe,
        processes: &mut Processes,
        untold: &mut Untold,
        facts: &mut Vec<Observation>,
    ) -> Option<u64> {
        let Event::Connection(header, kind, connection) = event else { return None };
        let is_untold = kind == ConnectionKind::Sample
            && !self.open.contains_key(&connection.cookie)
            && !self.leaves_out(connection.network_namespace);
        if is_untold && connection.opened.saturating_add(nanos(TOLD_WITHIN)) > now.boot_ns {
            self.has_passed_over = true;
            return None;
        }
        if is_untold {
            untold.count += 1;
            let opened =
                if connection.opened == 0 { now.boot_ns } else { connection.opened.min(now.boot_ns) };
            untold.opened = Some(untold.opened.map_or(opened, |earliest| earliest.min(opened)));
        }
        self.take((header, kind, connection), now, probe, processes, facts);
        Some(connection.cookie)
    }

    fn look_at_peers(&mut self, now: Moment, probe: &mut Probe, facts: &mut Vec<Observation>) {
        let idle_ns = nanos(UDP_IDLE);
        let mut silent = Vec::new();
        for (place, open) in &mut self.peers {
            let Some(peer) = probe.peer(&peer_key(place.0, place.1)) else {
                silent.push(*place);
                continue;
            };
            let moved = since(&peer, &open.before);
            open.last = peer.last.max(open.last);
            if now.boot_ns.saturating_sub(open.last) > idle_ns {
                silent.push(*place);
            } else if moved != open.moved {
                let change = ConnectionChange { traffic: Some(moved), ..ConnectionChange::default() };
                facts.push(Observation {
                    at: now,
                    fact: Fact::ConnectionChanged { socket: peer_socket(*place), change },
                });
            }
            open.moved = moved;
        }
        for (cookie, remote) in silent {
            if let Some(peers) = self.peers_of.get_mut(&cookie) {
                peers.remove(&remote);
                if peers.is_empty() {
                    self.peers_of.remove(&cookie);
                }
            }
            let last = self.peers.get(&(cookie, remote)).map_or(now, |open| moment(open.last, now));
            self.end_peer(cookie, remote, last, probe, facts);
        }
    }

    /// Whether a look soon would show what moves in a connection that has just been opened; or any, for a look at times.
    pub(super) fn wants_look(&self) -> (bool, bool) {
        (self.has_fresh, !self.open.is_empty() || !self.peers.is_empty())
    }

    /// The sockets that were open before the probe was there.
    pub(super) fn find(&mut self, now: Moment, bytes: &[u8]) -> Vec<Observation> {
        let mut found: BTreeMap<u64, (Header, Connection, HashSet<ProcessKey>)> = BTreeMap::new();
        for event in Event::parse_all(bytes) {
            let Event::Connection(header, ConnectionKind::Found, connection) = event else { continue };
            if self.leaves_out(connection.network_namespace) {
                continue;
            }
            let holder = key(header.pid, header.start);
            let entry =
                found.entry(connection.cookie).or_insert_with(|| (header, connection, HashSet::new()));
            entry.2.insert(holder);
            // The one that started first: the others most likely inherited the socket from it.
            if (header.start, header.pid) < (entry.0.start, entry.0.pid) {
                entry.0 = header;
            }
        }
        let is_listening =
            |connection: &Connection| !connection.is_udp && connection.state == tcp_state::LISTEN;
        let listeners: HashSet<(u32, u16)> = found
            .values()
            .filter(|(_, connection, _)| is_listening(connection))
            .map(|(_, connection, _)| (connection.network_namespace, connection.local.port()))
            .collect();
        let mut facts = Vec::new();
        for (header, connection, holders) in found.into_values() {
            let shared = holders.len() > 1;
            let attribution = if shared { Attribution::Guessed } else { Attribution::SocketTable };
            if is_listening(&connection) {
                facts.extend(holders.into_iter().map(|holder| Fact::Listening {
                    owner: Some(holder),
                    attribution: Attribution::SocketTable,
                    protocol: Protocol::Tcp,
                    local: connection.local,
                }));
            } else if !connection.is_udp
                && !matches!(connection.state, tcp_state::CLOSE | tcp_state::TIME_WAIT)
            {
                let state = open_state(connection.state);
                let Fact::ConnectionOpened(mut observed) = opened(header, &connection, state) else {
                    continue;
                };
                self.open.insert(connection.cookie, (connection.remote, connection.opened));
                observed.already_open = true;
                observed.attribution = attribution;
                let accepted = listeners.contains(&(connection.network_namespace, connection.local.port()));
                observed.direction = if accepted { FlowDirection::Inbound } else { FlowDirection::Outbound };
                facts.push(Fact::ConnectionOpened(observed));
            }
        }
        self.has_fresh |= !self.open.is_empty();
        facts.into_iter().map(|fact| Observation { at: now, fact }).collect()
    }

    /// Looks whether all is known that is open, the first half: begins what is open and was not told, and gives what that was.
    /// Also gives the connections that were open before and that the probe does not list: `probe` must be drained before the
    /// second half, since the ends of some may be on their way.
    pub(super) fn begin_reconciling(
        &mut self,
        now: Moment,
        probe: &mut Probe,
        processes: &mut Processes,
        facts: &mut Vec<Observation>,
    ) -> Result<(Untold, HashSet<u64>), CaptureError> {
        let mut missing: HashSet<u64> = self.open.keys().copied().collect();
        let mut untold = Untold::default();
        // A listing jumps over what is beside something that ends meanwhile: only what is in none of several is missing.
        for _ in 0..LISTINGS {
            let bytes = probe.sample(true)?;
            for event in Event::parse_all(&bytes) {
                if let Some(cookie) = self.see(event, now, probe, processes, &mut untold, facts) {
                    missing.remove(&cookie);
                }
            }
            if missing.is_empty() {
                break;
            }
        }
        Ok((untold, missing))
    }

    /// Leaves in `missing` what is still open.
    pub(super) fn keep_open(&self, missing: &mut HashSet<u64>) {
        missing.retain(|cookie| self.open.contains_key(cookie));
    }

    /// The second half: ends those of `missing` that are not `alive` either by the kernel's own list, in which all are, with
    /// something kept by the probe or not. While that list may not be whole, none is ended.
    pub(super) fn end_reconciling(
        &mut self,
        missing: HashSet<u64>,
        alive: &HashSet<u64>,
        is_whole: bool,
        now: Moment,
        facts: &mut Vec<Observation>,
    ) {
        for cookie in missing {
            if alive.contains(&cookie) || !is_whole {
                // Nothing is kept with it.
                if let Some((_, opened)) = self.open.get_mut(&cookie) {
                    *opened = ADOPTED;
                }
                continue;
            }
            let Some((remote, _)) = self.open.remove(&cookie) else { continue };
            let socket = SocketKey { protocol: Protocol::Tcp, remote, socket: cookie };
            let change = ConnectionChange::default();
            facts.push(Observation {
                at: now,
                fact: Fact::ConnectionClosed { socket, state: FlowState::Closed, change },
            });
        }
    }

    /// Whether there is no more room.
    pub(super) fn is_full(&self) -> bool {
        self.open.len() >= OPEN_MAX
    }
}

fn socket(connection: &Connection) -> SocketKey {
    let protocol = if connection.is_udp { Protocol::Udp } else { Protocol::Tcp };
    SocketKey { protocol, remote: connection.remote, socket: connection.cookie }
}

fn peer_socket((cookie, remote): (u64, SocketAddr)) -> SocketKey {
    SocketKey { protocol: Protocol::Udp, remote, socket: cookie }
}

fn peer_closed(place: (u64, SocketAddr), moved: Traffic) -> Fact {
    let change = ConnectionChange { traffic: Some(moved), ..ConnectionChange::default() };
    Fact::ConnectionClosed { socket: peer_socket(place), state: FlowState::Closed, change }
}

/// `struct peer_key`.
fn peer_key(cookie: u64, remote: SocketAddr) -> PeerKey {
    let address = match remote.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let mut key = [0; 32];
    key[..8].copy_from_slice(&cookie.to_ne_bytes());
    key[8..24].copy_from_slice(&address.octets());
    key[24..28].copy_from_slice(&u32::from(remote.port()).to_ne_bytes());
    key
}

fn since(peer: &Peer, before: &Peer) -> Traffic {
    Traffic {
        bytes_sent: peer.sent.saturating_sub(before.sent),
        bytes_received: peer.received.saturating_sub(before.received),
        packets_sent: peer.packets_sent.saturating_sub(before.packets_sent).into(),
        packets_received: peer.packets_received.saturating_sub(before.packets_received).into(),
        packets_retransmitted: 0,
    }
}

/// The program gave it up, or the kernel did: nothing came of it.
fn given_up(cookie: u64, remote: SocketAddr, error: i32) -> Fact {
    let socket = SocketKey { protocol: Protocol::Tcp, remote, socket: cookie };
    Fact::ConnectionClosed { socket, state: FlowState::Failed(error), change: ConnectionChange::default() }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Connections of which something was not told.
fn lost(count: u64, from: Moment, to: Moment, reason: String) -> Fact {
    Fact::Coverage(CoverageChange {
        facet: Facet::Connections,
        grade: Grade::Lost { count, reason },
        from: from.wall,
        to: Some(to.wall),
        scope: None,
        announced_from: None,
    })
}

fn owner(header: Header, known: Known) -> Option<(ProcessKey, Attribution)> {
    let attribution = match known {
        Known::Not => return None,
        Known::Inherited => Attribution::Guessed,
        Known::Table => Attribution::SocketTable,
        Known::Call => Attribution::InKernel,
    };
    (header.pid != 0).then(|| (key(header.pid, header.start), attribution))
}

fn traffic(connection: &Connection) -> Traffic {
    Traffic {
        bytes_sent: connection.sent,
        bytes_received: connection.received,
        packets_sent: connection.packets_sent.into(),
        packets_received: connection.packets_received.into(),
        packets_retransmitted: connection.retransmitted.into(),
    }
}

fn listening(header: Header, connection: &Connection) -> Fact {
    let owner = owner(header, connection.known);
    Fact::Listening {
        owner: owner.map(|(process, _)| process),
        attribution: owner.map_or(Attribution::Unknown, |(_, attribution)| attribution),
        protocol: if connection.is_udp { Protocol::Udp } else { Protocol::Tcp },
        local: connection.local,
    }
}

fn opened(header: Header, connection: &Connection, state: FlowState) -> Fact {
    let owner = owner(header, connection.known);
    Fact::ConnectionOpened(Box::new(ObservedConnection {
        socket: socket(connection),
        local: connection.local,
        owner: owner.map(|(process, _)| process),
        attribution: owner.map_or(Attribution::Unknown, |(_, attribution)| attribution),
        direction: match connection.direction {
            // One that ended before it was established still has what its listener had.
            Direction::Inbound | Direction::Listening => FlowDirection::Inbound,
            Direction::Outbound | Direction::Unknown => FlowDirection::Outbound,
        },
        state,
        already_open: false,
        traffic: Some(traffic(connection)),
        interface: None,
        network_namespace: Some(connection.network_namespace.into()),
    }))
}

fn change(header: Header, connection: &Connection) -> ConnectionChange {
    ConnectionChange {
        state: None,
        owner: owner(header, connection.known),
        local: Some(connection.local).filter(|local| local.port() != 0),
        traffic: Some(traffic(connection)),
        round_trip: (connection.round_trip_us != 0)
            .then(|| Duration::from_micros(connection.round_trip_us.into())),
    }
}

fn open_state(state: u8) -> FlowState {
    match state {
        tcp_state::SYN_SENT | tcp_state::SYN_RECEIVED => FlowState::Attempted,
        _ => FlowState::Established,
    }
}

/// How a connection ended. Errno 0 is one that is not known.
fn outcome(connection: &Connection) -> FlowState {
    let was_attempt = connection.state == tcp_state::SYN_SENT;
    match connection.error {
        0 if !was_attempt => FlowState::Closed,
        0 if connection.packets_sent > 0 => FlowState::Failed(ECANCELED),
        error => FlowState::Failed(error),
    }
}
