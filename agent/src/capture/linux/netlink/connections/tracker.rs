//! What the looks and the ends of sockets in one network namespace mean. Pure.
//!
//! A connection is recognised by its socket's cookie. One that was never there at a look is known from its end alone: all
//! that it did, but not when it began, and not who had it.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
};

use alibi_proto::{
    flow::{Attribution, Direction, FlowState, Protocol, Traffic},
    time::Moment,
};

use super::diag::{Row, tcp_state};
use crate::capture::{
    ConnectionChange, Fact, Observation, ObservedConnection, ProcessKey, SocketKey, poll::owner,
};

/// Connections of one network namespace that are followed.
pub(super) const OPEN_MAX: usize = 1 << 17;

/// What is open in a network namespace.
pub(super) struct Tracker {
    network_namespace: u64,
    has_looked: bool,
    open: HashMap<u64, Open>,
    /// Open at the last look but one, gone at the last, and their ends have not been heard.
    missing: Vec<u64>,
    listeners: HashMap<u64, (SocketAddr, Option<ProcessKey>)>,
    /// How many at the last look had no room.
    pub(super) unfollowed: u64,
    /// Somebody held a socket at the last look.
    pub(super) is_used: bool,
}

struct Open {
    socket: SocketKey,
    state: FlowState,
    owner: Option<ProcessKey>,
    /// As it was told last.
    row: Row,
}

/// The processes that hold a socket, by its inode.
pub(super) type Holders<'a> = &'a dyn Fn(u64) -> Vec<ProcessKey>;

impl Tracker {
    pub(super) fn new(network_namespace: u64) -> Self {
        Self {
            network_namespace,
            has_looked: false,
            open: HashMap::new(),
            missing: Vec::new(),
            listeners: HashMap::new(),
            unfollowed: 0,
            is_used: false,
        }
    }

    /// Takes in a look. `is_fresh`: owners have been looked up anew, so that they may have changed.
    pub(super) fn look(
        &mut self,
        rows: &[Row],
        holders: Holders<'_>,
        is_fresh: bool,
        at: Moment,
        facts: &mut Vec<Observation>,
    ) {
        self.is_used = rows.iter().any(|row| row.inode != 0);
        self.note_listeners(rows, holders, is_fresh, at, facts);
        let already_open = !std::mem::replace(&mut self.has_looked, true);
        self.unfollowed = 0;
        let mut seen = HashSet::new();
        // What is only the trace of a TCP connection is told by its end.
        let is_open =
            |row: &&Row| row.is_connection() && (row.protocol == Protocol::Udp || row.tcp.is_some());
        for row in rows.iter().filter(is_open) {
            seen.insert(row.cookie);
            match self.open.get(&row.cookie) {
                Some(open) if open.socket.remote == row.remote => {
                    self.note_change(row, holders, is_fresh, at, facts);
                }
                known => {
                    if known.is_some() {
                        // The same socket, for another connection.
                        self.close(row.cookie, ConnectionChange::default(), at, facts);
                    }
                    self.note_opening(row, holders, already_open, at, facts);
                }
            }
        }
        self.missing = self.open.keys().filter(|cookie| !seen.contains(cookie)).copied().collect();
    }

    /// Takes in the end of a socket.
    pub(super) fn destroyed(&mut self, row: &Row, at: Moment, facts: &mut Vec<Observation>) {
        self.listeners.remove(&row.cookie);
        // Its remote port and what it counted are gone if it was disconnected before.
        let was_disconnected = row.remote.port() == 0;
        if let Some(open) = self.open.get(&row.cookie) {
            let is_other = !was_disconnected && open.socket.remote != row.remote;
            let change = if was_disconnected || is_other {
                ConnectionChange::default()
            } else {
                // What was received before is known exactly; of the end, only with or without a FIN.
                let before = open.row.tcp.map_or(0, |tcp| tcp.traffic.bytes_received);
                let whole =
                    |moved: Traffic| Traffic { bytes_received: moved.bytes_received.max(before), ..moved };
                ConnectionChange {
                    traffic: row.tcp.map(|tcp| whole(tcp.traffic)),
                    round_trip: row.tcp.and_then(|tcp| tcp.round_trip),
                    ..ConnectionChange::default()
                }
            };
            self.close(row.cookie, change, at, facts);
            if !is_other {
                return;
            }
        }
        if !row.is_connection() {
            return;
        }
        let was_established = row.tcp.is_none_or(|tcp| tcp.was_established) && !was_disconnected;
        let state = if was_established { FlowState::Closed } else { FlowState::Failed(0) };
        let mut observed = self.observed(row, state);
        if was_disconnected {
            observed.traffic = None;
        }
        facts.push(Observation { at, fact: Fact::ConnectionOpened(Box::new(observed)) });
    }

    /// All ends have been heard that were told before the last look: what was gone then and is still open here has ended
    /// without a word.
    pub(super) fn settle(&mut self, at: Moment, facts: &mut Vec<Observation>) {
        for cookie in std::mem::take(&mut self.missing) {
            self.close(cookie, ConnectionChange::default(), at, facts);
        }
    }

    /// The network namespace is gone, or can be seen no longer.
    pub(super) fn end(&mut self, at: Moment, facts: &mut Vec<Observation>) {
        self.missing = self.open.keys().copied().collect();
        self.settle(at, facts);
    }

    fn note_listeners(
        &mut self,
        rows: &[Row],
        holders: Holders<'_>,
        is_fresh: bool,
        at: Moment,
        facts: &mut Vec<Observation>,
    ) {
        let mut listeners = HashMap::new();
        for row in rows.iter().filter(|row| row.state == tcp_state::LISTEN) {
            let known = self.listeners.get(&row.cookie).copied();
            if let Some(known) = known.filter(|_| !is_fresh) {
                listeners.insert(row.cookie, known);
                continue;
            }
            let (owner, attribution) = owner(&holders(row.inode));
            let owner_now = owner.or_else(|| known.and_then(|(_, owner)| owner));
            listeners.insert(row.cookie, (row.local, owner_now));
            if known.is_none_or(|(_, before)| before != owner_now) {
                let (protocol, local) = (row.protocol, row.local);
                let fact = Fact::Listening { owner, attribution, protocol, local };
                facts.push(Observation { at, fact });
            }
        }
        self.listeners = listeners;
    }

    fn note_opening(
        &mut self,
        row: &Row,
        holders: Holders<'_>,
        already_open: bool,
        at: Moment,
        facts: &mut Vec<Observation>,
    ) {
        if self.open.len() >= OPEN_MAX {
            self.unfollowed += 1;
            return;
        }
        let mut observed = self.observed(row, state(row));
        (observed.owner, observed.attribution) = owner(&holders(row.inode));
        observed.already_open = already_open;
        let open = Open { socket: observed.socket, state: observed.state, owner: observed.owner, row: *row };
        self.open.insert(row.cookie, open);
        facts.push(Observation { at, fact: Fact::ConnectionOpened(Box::new(observed)) });
    }

    fn note_change(
        &mut self,
        row: &Row,
        holders: Holders<'_>,
        is_fresh: bool,
        at: Moment,
        facts: &mut Vec<Observation>,
    ) {
        let Some(open) = self.open.get_mut(&row.cookie) else { return };
        let before = std::mem::replace(&mut open.row, *row);
        let mut change = ConnectionChange::default();
        if before.tcp.map(|tcp| tcp.traffic) != row.tcp.map(|tcp| tcp.traffic) {
            change.traffic = row.tcp.map(|tcp| tcp.traffic);
            change.round_trip = row.tcp.and_then(|tcp| tcp.round_trip);
        }
        change.state = Some(state(row)).filter(|state| *state != open.state);
        change.local = Some(row.local).filter(|local| *local != before.local);
        // Closed by its owner but not over yet, it has no inode, and stays his.
        if row.inode != 0 && (is_fresh || open.owner.is_none()) {
            let holders = holders(row.inode);
            let stays = open.owner.is_some_and(|owner| holders.contains(&owner));
            if let (Some(owner), attribution) = owner(&holders)
                && !stays
            {
                open.owner = Some(owner);
                change.owner = Some((owner, attribution));
            }
        }
        open.state = state(row);
        if change != ConnectionChange::default() {
            let socket = open.socket;
            facts.push(Observation { at, fact: Fact::ConnectionChanged { socket, change } });
        }
    }

    fn close(&mut self, cookie: u64, change: ConnectionChange, at: Moment, facts: &mut Vec<Observation>) {
        let Some(open) = self.open.remove(&cookie) else { return };
        // Errno 0: not known.
        let state = match open.state {
            FlowState::Attempted if change.traffic.is_none_or(|moved| moved.packets_received == 0) => {
                FlowState::Failed(0)
            }
            _ => FlowState::Closed,
        };
        facts.push(Observation { at, fact: Fact::ConnectionClosed { socket: open.socket, state, change } });
    }

    fn observed(&self, row: &Row, state: FlowState) -> ObservedConnection {
        let accepts = |(listener, _): &(SocketAddr, Option<ProcessKey>)| {
            let is_here = listener.ip().is_unspecified() || listener.ip() == row.local.ip();
            listener.port() == row.local.port() && is_here
        };
        let is_inbound = row.protocol == Protocol::Tcp && self.listeners.values().any(accepts);
        ObservedConnection {
            socket: SocketKey { protocol: row.protocol, remote: row.remote, socket: row.cookie },
            local: row.local,
            owner: None,
            attribution: Attribution::Unknown,
            direction: if is_inbound { Direction::Inbound } else { Direction::Outbound },
            state,
            already_open: false,
            traffic: row.tcp.map(|tcp| tcp.traffic),
            interface: None,
            network_namespace: Some(self.network_namespace),
        }
    }
}

fn state(row: &Row) -> FlowState {
    if row.state == tcp_state::SYN_SENT { FlowState::Attempted } else { FlowState::Established }
}

#[cfg(test)]
mod tests;
