//! Connections, from what the kernel tells of TCP and UDP. Pure.
//!
//! A TCP connection is known by its two ends from when it is established, and before that by the kernel's identity of it
//! (`tcb`), since it may have no end here yet. A UDP flow is what one process exchanges with one other end through one of
//! its own; it is over when nothing has moved for a while.
//!
//! The table of TCP connections is compared with what has been told, now and then and after each loss. What is open there
//! and was not told is a loss since the last time that all was known.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use alibi_proto::{
    flow::{Attribution, Direction, FlowState, Protocol, Traffic},
    time::Moment,
};
use netstat2::TcpState;

use super::event::TcpEvent;
use crate::{
    capture::{
        ConnectionChange, Fact, Observation, ObservedConnection, ProcessKey, SocketKey,
        poll::{owner, state_of},
    },
    sys::TcpSocket,
};

mod status;
#[cfg(test)]
mod tests;

/// A UDP flow that has been silent for so long is over.
const UDP_IDLE: Duration = Duration::from_secs(65);
/// An attempt of which nothing was heard for so long has failed: the system itself gives up after 21 s, unless told otherwise.
const ATTEMPT_MAX: Duration = Duration::from_secs(300);
/// What is still said of a connection after it ended is not a new one's for so long.
const REMEMBERED: Duration = Duration::from_secs(900);
/// Of each kind, so many are followed.
pub(super) const OPEN_MAX: usize = 65_536;

/// This end, and the other.
type Ends = (SocketAddr, SocketAddr);

/// What is open.
#[derive(Debug, Default)]
pub(super) struct Connections {
    tcp: HashMap<Ends, Open>,
    attempts: HashMap<u64, Attempt>,
    /// The attempts to each remote.
    attempts_to: HashMap<SocketAddr, Vec<u64>>,
    /// By the process's number, since whoever shares an end shares none of its peers.
    udp: HashMap<(u32, Ends), Open>,
    /// Those that ended lately, and when, in nanoseconds since boot.
    ended: HashMap<Ends, u64>,
    listeners: BTreeSet<(SocketAddr, Option<ProcessKey>)>,
    /// Addresses at which a socket of this host was: so this end of a datagram is known.
    own_addresses: HashSet<IpAddr>,
    /// The last name that was given: the system numbers no connections.
    named: u64,
    /// What was said of connections that nobody had told, since this was taken last.
    untold: u64,
    /// What began and is not followed, since this was taken last.
    unfollowed: u64,
}

#[derive(Clone, Debug)]
struct Open {
    socket: SocketKey,
    owner: Option<ProcessKey>,
    /// When something was last heard of it, in nanoseconds since boot.
    last: u64,
    traffic: Traffic,
    /// Something moved since that was reported.
    has_moved: bool,
    /// Its beginning was not told: it was found in the table, or something moved in it.
    is_found: bool,
}

#[derive(Clone, Debug)]
struct Attempt {
    socket: SocketKey,
    owner: Option<ProcessKey>,
    local: SocketAddr,
    begun: u64,
}

impl Connections {
    /// Something happened to a TCP connection.
    pub(super) fn tcp(
        &mut self,
        at: Moment,
        what: TcpEvent,
        bytes: u32,
        ends: Ends,
        owner: Option<ProcessKey>,
        facts: &mut Vec<Observation>,
    ) {
        match what {
            TcpEvent::Connected => self.established(at, ends, Direction::Outbound, owner, facts),
            TcpEvent::Accepted => self.established(at, ends, Direction::Inbound, owner, facts),
            TcpEvent::Disconnected => self.disconnected(at, ends, owner, facts),
            TcpEvent::Sent | TcpEvent::Received | TcpEvent::Retransmitted => {
                if !self.tcp.contains_key(&ends) {
                    self.find(at, ends, owner, facts);
                }
                let Some(open) = self.tcp.get_mut(&ends) else { return };
                let bytes = u64::from(bytes);
                match what {
                    TcpEvent::Sent => open.traffic.bytes_sent += bytes,
                    TcpEvent::Received => open.traffic.bytes_received += bytes,
                    _ => open.traffic.packets_retransmitted += 1,
                }
                (open.has_moved, open.last) = (true, at.boot_ns);
            }
        }
    }

    fn established(
        &mut self,
        at: Moment,
        ends: Ends,
        direction: Direction,
        owner: Option<ProcessKey>,
        facts: &mut Vec<Observation>,
    ) {
        self.ended.remove(&ends);
        if let Some(open) = self.tcp.get_mut(&ends).filter(|open| open.is_found) {
            open.is_found = false;
            change_owner(at, open, owner, facts);
            return;
        }
        if self.tcp.contains_key(&ends) {
            // The same two ends, used again: the end of the one before was not told.
            self.end(at, ends, FlowState::Closed, facts);
        }
        let attempt = (direction == Direction::Outbound).then(|| self.take_attempt(ends, owner)).flatten();
        let Some(attempt) = attempt else {
            self.begin(at, ends, direction, owner, false, facts);
            return;
        };
        let change = ConnectionChange {
            state: Some(FlowState::Established),
            local: Some(ends.0),
            owner: owner.filter(|_| attempt.owner != owner).map(|owner| (owner, Attribution::InKernel)),
            ..ConnectionChange::default()
        };
        facts.push(Observation { at, fact: Fact::ConnectionChanged { socket: attempt.socket, change } });
        let owner = owner.or(attempt.owner);
        self.tcp.insert(ends, Open { owner, ..open(attempt.socket, owner, at) });
    }

    fn disconnected(
        &mut self,
        at: Moment,
        ends: Ends,
        owner: Option<ProcessKey>,
        facts: &mut Vec<Observation>,
    ) {
        if !self.tcp.contains_key(&ends) && !self.ended.contains_key(&ends) {
            self.find(at, ends, owner, facts);
        }
        self.end(at, ends, FlowState::Closed, facts);
    }

    /// Something was said of a connection that is not known.
    fn find(&mut self, at: Moment, ends: Ends, owner: Option<ProcessKey>, facts: &mut Vec<Observation>) {
        // One that this end was done with goes on receiving: that is known to have been.
        if self.ended.remove(&ends).is_none() {
            self.untold += 1;
        }
        let direction = self.direction(ends.0);
        self.begin(at, ends, direction, owner, true, facts);
        if let Some(open) = self.tcp.get_mut(&ends) {
            open.is_found = true;
        }
    }

    /// A connection that is told for the first time.
    fn begin(
        &mut self,
        at: Moment,
        ends: Ends,
        direction: Direction,
        owner: Option<ProcessKey>,
        already_open: bool,
        facts: &mut Vec<Observation>,
    ) {
        let is_followed = self.tcp.len() < OPEN_MAX;
        let socket = self.name(Protocol::Tcp, ends.1, at);
        let state = if is_followed { FlowState::Established } else { FlowState::Closed };
        facts.push(opened(at, socket, ends.0, owner, direction, state, already_open));
        if is_followed {
            self.tcp.insert(ends, open(socket, owner, at));
        } else {
            self.unfollowed += 1;
        }
    }

    fn end(&mut self, at: Moment, ends: Ends, state: FlowState, facts: &mut Vec<Observation>) {
        let Some(open) = self.tcp.remove(&ends) else { return };
        facts.push(closed(at, open.socket, state, open.traffic));
        if self.ended.len() < OPEN_MAX {
            self.ended.insert(ends, at.boot_ns);
        }
    }

    /// A program asks for a connection.
    pub(super) fn requested(
        &mut self,
        at: Moment,
        tcb: u64,
        (local, remote): Ends,
        owner: Option<ProcessKey>,
        facts: &mut Vec<Observation>,
    ) {
        // The kernel's identity is used again: the one before is over.
        self.fail(at, tcb, 0, facts);
        let socket = self.name(Protocol::Tcp, remote, at);
        if self.attempts.len() >= OPEN_MAX {
            self.unfollowed += 1;
            let fact = opened(at, socket, local, owner, Direction::Outbound, FlowState::Failed(0), false);
            facts.push(fact);
            return;
        }
        facts.push(opened(at, socket, local, owner, Direction::Outbound, FlowState::Attempted, false));
        self.attempts.insert(tcb, Attempt { socket, owner, local, begun: at.boot_ns });
        self.attempts_to.entry(remote).or_default().push(tcb);
    }

    /// What a program asked for was answered, or failed.
    pub(super) fn request_ended(
        &mut self,
        at: Moment,
        tcb: u64,
        ends: Ends,
        owner: Option<ProcessKey>,
        failure: Option<u32>,
        facts: &mut Vec<Observation>,
    ) {
        let is_known = self.attempts.get(&tcb).is_some_and(|attempt| attempt.socket.remote == ends.1);
        match failure {
            Some(status) if is_known => self.fail(at, tcb, status::errno(status), facts),
            Some(status) => {
                // Whether its beginning was missed or told otherwise, it was tried.
                let socket = self.name(Protocol::Tcp, ends.1, at);
                let state = FlowState::Failed(status::errno(status));
                facts.push(opened(at, socket, ends.0, owner, Direction::Outbound, state, false));
            }
            None if is_known => {
                // The network's own word on it may have come before.
                if let Some(open) = self.tcp.get_mut(&ends) {
                    open.is_found = false;
                    self.fail(at, tcb, 0, facts);
                } else if let Some(attempt) = self.attempts.get_mut(&tcb) {
                    attempt.local = ends.0;
                }
            }
            None => {}
        }
    }

    fn fail(&mut self, at: Moment, tcb: u64, errno: i32, facts: &mut Vec<Observation>) {
        let Some(attempt) = self.attempts.remove(&tcb) else { return };
        self.forget_attempt_to(attempt.socket.remote, tcb);
        facts.push(closed(at, attempt.socket, FlowState::Failed(errno), Traffic::default()));
    }

    /// The attempt that became this connection: with this very end, or else the first by the same process that had none yet.
    fn take_attempt(&mut self, (local, remote): Ends, owner: Option<ProcessKey>) -> Option<Attempt> {
        let attempts = self.attempts_to.get(&remote)?;
        let of = |tcb: &u64| self.attempts.get(tcb);
        let same_end = attempts.iter().find(|tcb| of(tcb).is_some_and(|attempt| attempt.local == local));
        let same_process = || {
            attempts.iter().find(|tcb| {
                of(tcb).is_some_and(|attempt| {
                    let fits = attempt.local.port() == 0 || attempt.local.port() == local.port();
                    let is_known = attempt.owner.is_none() || owner.is_none() || attempt.owner == owner;
                    fits && is_known
                })
            })
        };
        let tcb = *same_end.or_else(same_process)?;
        self.forget_attempt_to(remote, tcb);
        self.attempts.remove(&tcb)
    }

    fn forget_attempt_to(&mut self, remote: SocketAddr, tcb: u64) {
        if let Some(attempts) = self.attempts_to.get_mut(&remote) {
            attempts.retain(|attempt| *attempt != tcb);
            if attempts.is_empty() {
                self.attempts_to.remove(&remote);
            }
        }
    }

    /// A datagram left or arrived.
    pub(super) fn udp(
        &mut self,
        at: Moment,
        is_sent: bool,
        (pid, owner): (u32, Option<ProcessKey>),
        bytes: u32,
        (source, destination): Ends,
        facts: &mut Vec<Observation>,
    ) {
        let is_own = |end: SocketAddr| self.own_addresses.contains(&end.ip());
        let source_is_local = is_sent || is_own(source) && !is_own(destination);
        let ends = if source_is_local { (source, destination) } else { (destination, source) };
        if !self.udp.contains_key(&(pid, ends)) {
            let is_followed = self.udp.len() < OPEN_MAX;
            let socket = self.name(Protocol::Udp, ends.1, at);
            let state = if is_followed { FlowState::Established } else { FlowState::Closed };
            let direction = if is_sent { Direction::Outbound } else { Direction::Inbound };
            facts.push(opened(at, socket, ends.0, owner, direction, state, false));
            if !is_followed {
                self.unfollowed += 1;
                return;
            }
            self.udp.insert((pid, ends), open(socket, owner, at));
        }
        let Some(open) = self.udp.get_mut(&(pid, ends)) else { return };
        if is_sent {
            open.traffic.bytes_sent += u64::from(bytes);
            open.traffic.packets_sent += 1;
        } else {
            open.traffic.bytes_received += u64::from(bytes);
            open.traffic.packets_received += 1;
        }
        (open.has_moved, open.last) = (true, at.boot_ns);
        change_owner(at, open, owner, facts);
    }

    /// Says what has moved, and ends what is over without a word.
    pub(super) fn settle(&mut self, now: Moment, facts: &mut Vec<Observation>) {
        for open in self.tcp.values_mut().chain(self.udp.values_mut()).filter(|open| open.has_moved) {
            open.has_moved = false;
            let change = ConnectionChange { traffic: Some(open.traffic), ..ConnectionChange::default() };
            facts
                .push(Observation { at: now, fact: Fact::ConnectionChanged { socket: open.socket, change } });
        }
        let ago = |then: u64| Duration::from_nanos(now.boot_ns.saturating_sub(then));
        self.udp.retain(|_, open| {
            let is_over = ago(open.last) > UDP_IDLE;
            if is_over {
                let at = super::moment(open.last, now);
                facts.push(closed(at, open.socket, FlowState::Closed, open.traffic));
            }
            !is_over
        });
        let is_old = |attempt: &&Attempt| ago(attempt.begun) > ATTEMPT_MAX;
        let old: Vec<u64> =
            self.attempts.iter().filter(|(_, attempt)| is_old(attempt)).map(|(tcb, _)| *tcb).collect();
        for tcb in old {
            self.fail(now, tcb, 0, facts);
        }
        self.ended.retain(|_, ended| ago(*ended) <= REMEMBERED);
    }

    /// The table of TCP sockets as it was read at `read`, once everything until then, and for some time after, has been told.
    /// `holder` knows the processes.
    pub(super) fn compare(
        &mut self,
        read: Moment,
        rows: &[TcpSocket],
        is_inventory: bool,
        holder: impl Fn(u32) -> Option<ProcessKey>,
        facts: &mut Vec<Observation>,
    ) {
        let owner_of = |row: &TcpSocket| {
            let sharers: Vec<ProcessKey> = row.pids.iter().filter_map(|pid| holder(*pid)).collect();
            owner(&sharers)
        };
        let addresses = rows.iter().filter(|row| state_of(row.state).is_some()).map(|row| row.local.ip());
        self.own_addresses =
            addresses.chain([Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]).collect();
        self.compare_listeners(read, rows, &owner_of, facts);
        let mut present = HashSet::new();
        for row in rows {
            let ends = (row.local, row.remote);
            let Some(state) = state_of(row.state) else { continue };
            present.insert(ends);
            let is_attempt = state == FlowState::Attempted;
            let is_told = self.tcp.contains_key(&ends)
                || (is_attempt && self.attempts_to.contains_key(&row.remote))
                || self.was_told(ends, row.state, read);
            if is_told {
                continue;
            }
            let (owner, attribution) = owner_of(row);
            if !is_inventory {
                self.untold += 1;
            }
            let socket = self.name(Protocol::Tcp, ends.1, read);
            let direction = match row.state {
                TcpState::SynSent => Direction::Outbound,
                TcpState::SynReceived => Direction::Inbound,
                _ => self.direction(ends.0),
            };
            let is_followed = self.tcp.len() < OPEN_MAX;
            let state = if is_followed { state } else { FlowState::Closed };
            let mut found = opened(read, socket, ends.0, owner, direction, state, true);
            if let Fact::ConnectionOpened(connection) = &mut found.fact {
                connection.attribution = attribution;
            }
            facts.push(found);
            if is_followed {
                self.tcp.insert(ends, Open { is_found: true, ..open(socket, owner, read) });
            } else {
                self.unfollowed += 1;
            }
        }
        let is_gone = |ends: &Ends, last: u64| !present.contains(ends) && last < read.boot_ns;
        let mut gone: Vec<Ends> =
            self.tcp.iter().filter(|(ends, open)| is_gone(ends, open.last)).map(|(ends, _)| *ends).collect();
        gone.sort_unstable();
        for ends in gone {
            self.end(read, ends, FlowState::Closed, facts);
        }
    }

    /// Whether a row of the table is what is left of a connection that has ended, or ended since the table was read.
    fn was_told(&self, ends: Ends, state: TcpState, read: Moment) -> bool {
        self.ended.get(&ends).is_some_and(|ended| state != TcpState::Established || *ended >= read.boot_ns)
    }

    fn compare_listeners(
        &mut self,
        at: Moment,
        rows: &[TcpSocket],
        owner_of: &impl Fn(&TcpSocket) -> (Option<ProcessKey>, Attribution),
        facts: &mut Vec<Observation>,
    ) {
        let mut listeners = BTreeSet::new();
        for row in rows.iter().filter(|row| row.state == TcpState::Listen) {
            let (owner, attribution) = owner_of(row);
            let is_new = !self.listeners.contains(&(row.local, owner));
            if listeners.insert((row.local, owner)) && is_new {
                let (protocol, local) = (Protocol::Tcp, row.local);
                facts.push(Observation { at, fact: Fact::Listening { owner, attribution, protocol, local } });
            }
        }
        self.listeners = listeners;
    }

    /// How many connections were found that nobody had told, since the last time.
    pub(super) fn take_untold(&mut self) -> u64 {
        std::mem::take(&mut self.untold)
    }

    /// How many began that are not followed, since the last time.
    pub(super) fn take_unfollowed(&mut self) -> u64 {
        std::mem::take(&mut self.unfollowed)
    }

    fn direction(&self, local: SocketAddr) -> Direction {
        let accepts = |listener: SocketAddr| {
            listener.port() == local.port() && (listener.ip().is_unspecified() || listener.ip() == local.ip())
        };
        let is_accepted = self.listeners.iter().any(|(listener, _)| accepts(*listener));
        if is_accepted { Direction::Inbound } else { Direction::Outbound }
    }

    /// A name that no other connection in this boot has: the instant at which it was first heard of.
    fn name(&mut self, protocol: Protocol, remote: SocketAddr, at: Moment) -> SocketKey {
        self.named = at.boot_ns.max(self.named + 1);
        SocketKey { protocol, remote, socket: self.named }
    }
}

fn open(socket: SocketKey, owner: Option<ProcessKey>, at: Moment) -> Open {
    let traffic = Traffic::default();
    Open { socket, owner, last: at.boot_ns, traffic, has_moved: false, is_found: false }
}

fn change_owner(at: Moment, open: &mut Open, owner: Option<ProcessKey>, facts: &mut Vec<Observation>) {
    let Some(new) = owner.filter(|_| open.owner != owner) else { return };
    open.owner = owner;
    let change =
        ConnectionChange { owner: Some((new, Attribution::InKernel)), ..ConnectionChange::default() };
    facts.push(Observation { at, fact: Fact::ConnectionChanged { socket: open.socket, change } });
}

fn opened(
    at: Moment,
    socket: SocketKey,
    local: SocketAddr,
    owner: Option<ProcessKey>,
    direction: Direction,
    state: FlowState,
    already_open: bool,
) -> Observation {
    let attribution = if owner.is_some() { Attribution::InKernel } else { Attribution::Unknown };
    let connection = ObservedConnection {
        socket,
        local,
        owner,
        attribution,
        direction,
        state,
        already_open,
        traffic: Some(Traffic::default()),
        interface: None,
        network_namespace: None,
    };
    Observation { at, fact: Fact::ConnectionOpened(Box::new(connection)) }
}

fn closed(at: Moment, socket: SocketKey, state: FlowState, traffic: Traffic) -> Observation {
    let change = ConnectionChange { traffic: Some(traffic), ..ConnectionChange::default() };
    Observation { at, fact: Fact::ConnectionClosed { socket, state, change } }
}
