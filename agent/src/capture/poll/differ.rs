//! What the difference between two looks means. Pure: no system, no clock.
//!
//! A connection is recognised by its two ends. Its socket's identity can be missing (a connection not accepted yet, or
//! one whose owner has let go of it) and appear later; two different ones mean two connections.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade},
    flow::{Attribution, Direction, FlowState, Protocol},
    process::ProcessImage,
    time::Moment,
};
use netstat2::TcpState;

use super::tables::{ProcessRow, Snapshot};
use crate::{
    capture::{
        ConnectionChange, Fact, Observation, ObservedConnection, ObservedProcess, ProcessKey, Report,
        SocketKey,
    },
    sys::TcpSocket,
};

/// A look that comes later than this many periods after the one before it leaves a gap.
const LATE_AFTER_PERIODS: u32 = 3;

/// This end, and the other.
type Ends = (SocketAddr, SocketAddr);

/// Remembers the last look.
pub(super) struct Differ {
    period: Duration,
    network_namespace: Option<u64>,
    /// When the last look was; none before the first.
    previous: Option<Moment>,
    /// Since the last look the host was suspended from the one to the other in any case.
    asleep: Option<(Moment, Moment)>,
    process_table: Health,
    socket_table: Health,
    /// By pid; true once the process has ended, as long as the table still has it.
    processes: BTreeMap<u32, (ProcessKey, bool)>,
    listeners: BTreeSet<(SocketAddr, Option<ProcessKey>)>,
    connections: BTreeMap<Ends, Tracked>,
    /// Connections that were over when they were first seen, as long as the table still has them.
    lingering: BTreeSet<Ends>,
    /// The last name that was given to a socket without an identity.
    unnamed: u64,
}

/// How it goes with reading one table.
struct Health {
    facet: Facet,
    /// When it was read last.
    read: Option<Moment>,
    failing: bool,
}

struct Tracked {
    socket: SocketKey,
    /// 0 until the system has told one.
    identity: u64,
    owner: Option<ProcessKey>,
    state: FlowState,
}

impl Differ {
    pub(super) fn new(period: Duration, network_namespace: Option<u64>) -> Self {
        let health = |facet| Health { facet, read: None, failing: false };
        Self {
            period,
            network_namespace,
            previous: None,
            asleep: None,
            process_table: health(Facet::Processes),
            socket_table: health(Facet::Connections),
            processes: BTreeMap::new(),
            listeners: BTreeSet::new(),
            connections: BTreeMap::new(),
            lingering: BTreeSet::new(),
            unnamed: 0,
        }
    }

    /// Whether `process` was there at the last look, so that its image need not be read.
    pub(super) fn knows(&self, process: &ProcessKey) -> bool {
        self.processes.get(&process.pid).is_some_and(|(known, _)| known == process)
    }

    /// Since the last look the host was suspended, as is proven: it need not be looked at from `from` until `to`.
    pub(super) fn slept(&mut self, from: Moment, to: Moment) {
        self.asleep = Some((from, to));
    }

    /// What happened since the last look, as far as `snapshot` shows. Starts come before whatever the process did,
    /// ends after it.
    pub(super) fn diff(&mut self, snapshot: Snapshot) -> Report {
        let Snapshot { at, processes, sockets } = snapshot;
        let mut facts = Facts { at, observations: Vec::new() };
        self.note_gap(&mut facts);
        let (processes_read, sockets_read) = (self.process_table.read, self.socket_table.read);
        let mut ended = Vec::new();
        if let Some(rows) = self.process_table.take(processes, self.period, &mut facts) {
            ended = self.diff_processes(rows, processes_read.is_none(), &mut facts);
        }
        if let Some(rows) = self.socket_table.take(sockets, self.period, &mut facts) {
            self.diff_sockets(rows, sockets_read, &mut facts);
        }
        for process in ended {
            facts.push(Fact::ProcessExited { process, exit_code: None });
            if self.knows(&process) && !self.has_ended(&process) {
                self.processes.remove(&process.pid);
            }
        }
        self.previous = Some(at);
        facts.observations.sort_by_key(|observation| observation.at.boot_ns);
        Report { observations: facts.observations, seen_until: at }
    }

    /// The machine stood still, or the agent did. What the host slept through is no gap; how long it was awake without a
    /// look is one, before it slept and after it, since on which side that was is not known.
    fn note_gap(&mut self, facts: &mut Facts) {
        let asleep = self.asleep.take();
        let Some(previous) = self.previous else { return };
        let is_between = |(from, to): &(Moment, Moment)| {
            previous.boot_ns <= from.boot_ns && from.boot_ns <= to.boot_ns && to.boot_ns <= facts.at.boot_ns
        };
        match asleep.filter(is_between) {
            None => self.note_no_look(previous, facts.at, facts),
            Some((from, to)) => {
                self.note_no_look(previous, from, facts);
                self.note_no_look(to, facts.at, facts);
            }
        }
    }

    fn note_no_look(&self, since: Moment, until: Moment, facts: &mut Facts) {
        let apart = Duration::from_nanos(until.boot_ns.saturating_sub(since.boot_ns));
        if apart <= self.period * LATE_AFTER_PERIODS {
            return;
        }
        let reason = format!("no look for {} s", (apart + Duration::from_millis(500)).as_secs());
        // The wall clock may have been set back meanwhile.
        let (from, to) = (since.wall.min(until.wall), since.wall.max(until.wall));
        for facet in [Facet::Processes, Facet::Connections] {
            let grade = Grade::NotRecorded { reason: reason.clone() };
            facts.push(Fact::Coverage(CoverageChange {
                facet,
                grade,
                from,
                to: Some(to),
                scope: None,
                announced_from: None,
            }));
        }
    }

    fn diff_processes(
        &mut self,
        rows: Vec<ProcessRow>,
        already_running: bool,
        facts: &mut Facts,
    ) -> Vec<ProcessKey> {
        let present: BTreeMap<u32, ProcessKey> = rows.iter().map(|row| (row.key.pid, row.key)).collect();
        let parents: BTreeMap<u32, u32> =
            rows.iter().filter_map(|row| Some((row.key.pid, row.parent_pid?))).collect();

        let gone = |(key, has_ended): &(ProcessKey, bool)| {
            (!has_ended && present.get(&key.pid) != Some(key)).then_some(*key)
        };
        // Those gone stay known until their sockets have been looked at.
        let mut ended: Vec<ProcessKey> = self.processes.values().filter_map(gone).collect();
        self.processes.retain(|pid, (key, has_ended)| !*has_ended || present.get(pid) == Some(key));

        let (known, mut new): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| self.knows(&row.key));
        for row in known.into_iter().filter(|row| row.ended) {
            let before = self.processes.insert(row.key.pid, (row.key, true));
            ended.extend(before.filter(|(_, had_ended)| !had_ended).map(|(key, _)| key));
        }
        // Parents before children, also where the start is counted too coarsely to tell them apart.
        new.sort_by_cached_key(|row| (row.key.start, generation(row.key.pid, &parents), row.key.pid));
        for row in new {
            self.processes.insert(row.key.pid, (row.key, row.ended));
            if row.ended && already_running {
                continue;
            }
            if row.ended {
                ended.push(row.key);
            }
            let parent = row.parent_pid.and_then(|pid| present.get(&pid)).copied();
            facts.push(Fact::ProcessStarted(Box::new(ObservedProcess {
                process: row.key,
                // A parent that started later is somebody else with the pid of the parent.
                parent: parent.filter(|parent| parent.start <= row.key.start && *parent != row.key),
                parent_pid: row.parent_pid,
                started: row.started,
                already_running,
                image: row.image.map_or_else(ProcessImage::default, |image| *image),
            })));
        }
        ended
    }

    fn has_ended(&self, process: &ProcessKey) -> bool {
        self.processes.get(&process.pid).is_some_and(|(known, has_ended)| known == process && *has_ended)
    }

    fn diff_sockets(&mut self, rows: Vec<TcpSocket>, read_before: Option<Moment>, facts: &mut Facts) {
        let table = Table::sort(rows, read_before.is_none());
        self.note_ends(&table, read_before.unwrap_or(facts.at), facts);
        self.note_listeners(&table, facts);
        for (ends, row) in &table.live {
            match self.connections.get(ends) {
                Some(_) => self.note_change(*ends, row, facts),
                None => self.note_opening(*ends, row, &table, facts),
            }
        }
        let new: Vec<Ends> = table.lingering.difference(&self.lingering).copied().collect();
        for ends in new {
            if !table.is_inventory && !self.connections.contains_key(&ends) {
                let fact = self.over_when_first_seen(ends, &table, facts.at);
                facts.push(fact);
            }
        }
        self.connections.retain(|ends, _| table.live.contains_key(ends));
        self.lingering = table.lingering;
    }

    /// Ends are told before openings: the same two ends may have been used again. They are dated to when the
    /// connection was last seen, which is all that is known.
    fn note_ends(&mut self, table: &Table, last_seen: Moment, facts: &mut Facts) {
        for (ends, tracked) in &mut self.connections {
            let continued = table.live.get(ends).is_some_and(|row| tracked.continues_as(row));
            if continued {
                continue;
            }
            let failed = tracked.state == FlowState::Attempted && !table.lingering.contains(ends);
            // Errno 0: not known.
            let state = if failed { FlowState::Failed(0) } else { FlowState::Closed };
            let change = ConnectionChange::default();
            facts.push_at(last_seen, Fact::ConnectionClosed { socket: tracked.socket, state, change });
            tracked.state = state;
        }
        // Those whose ends are in use again are forgotten here, so that they are opened below; the others later, so
        // that what lingers of them is not taken for something new.
        self.connections.retain(|ends, tracked| is_open(tracked.state) || !table.live.contains_key(ends));
    }

    fn note_listeners(&mut self, table: &Table, facts: &mut Facts) {
        let mut listeners = BTreeSet::new();
        for row in &table.listening {
            let (owner, attribution) = owner(&self.sharers(row));
            let known_by_owner =
                owner.is_none() && self.listeners.iter().any(|(local, _)| *local == row.local);
            if known_by_owner {
                listeners.extend(self.listeners.iter().filter(|(local, _)| *local == row.local).copied());
                continue;
            }
            if listeners.insert((row.local, owner)) && !self.listeners.contains(&(row.local, owner)) {
                facts.push(Fact::Listening { owner, attribution, protocol: Protocol::Tcp, local: row.local });
            }
        }
        self.listeners = listeners;
    }

    fn note_opening(&mut self, ends: Ends, row: &TcpSocket, table: &Table, facts: &mut Facts) {
        let (owner, attribution) = owner(&self.sharers(row));
        let socket = self.socket_key(ends, row.identity, facts.at);
        let state = state_of(row.state).unwrap_or(FlowState::Established);
        let direction = match row.state {
            TcpState::SynSent => Direction::Outbound,
            TcpState::SynReceived => Direction::Inbound,
            _ => table.direction(ends.0),
        };
        facts.push(Fact::ConnectionOpened(Box::new(ObservedConnection {
            socket,
            local: ends.0,
            owner,
            attribution,
            direction,
            state,
            already_open: table.is_inventory,
            traffic: None,
            interface: None,
            network_namespace: self.network_namespace,
        })));
        self.connections.insert(ends, Tracked { socket, identity: row.identity, owner, state });
    }

    fn note_change(&mut self, ends: Ends, row: &TcpSocket, facts: &mut Facts) {
        let sharers = self.sharers(row);
        let Some(tracked) = self.connections.get_mut(&ends) else { return };
        if row.identity != 0 {
            tracked.identity = row.identity;
        }
        let state = state_of(row.state).filter(|state| *state != tracked.state);
        // An owner that still shares the socket stays the owner: a guess is not made again.
        let stays = tracked.owner.is_some_and(|owner| sharers.contains(&owner));
        let owner = if stays { None } else { owner(&sharers).0 };
        if state.is_none() && owner.is_none() {
            return;
        }
        tracked.state = state.unwrap_or(tracked.state);
        tracked.owner = owner.or(tracked.owner);
        let owner = owner.map(|owner| (owner, Attribution::SocketTable));
        let change = ConnectionChange { state, owner, ..ConnectionChange::default() };
        facts.push(Fact::ConnectionChanged { socket: tracked.socket, change });
    }

    /// A short connection between two looks that this end closed first: only its trace is left, without an owner.
    fn over_when_first_seen(&mut self, ends: Ends, table: &Table, at: Moment) -> Fact {
        Fact::ConnectionOpened(Box::new(ObservedConnection {
            socket: self.socket_key(ends, 0, at),
            local: ends.0,
            owner: None,
            attribution: Attribution::Unknown,
            direction: table.direction(ends.0),
            state: FlowState::Closed,
            already_open: false,
            traffic: None,
            interface: None,
            network_namespace: self.network_namespace,
        }))
    }

    /// A socket that has no identity when it is first seen is named by that instant, which no identity can equal (they have 32
    /// bits, or the topmost): the same two ends may be used again in this boot.
    fn socket_key(&mut self, (_, remote): Ends, identity: u64, at: Moment) -> SocketKey {
        let socket = if identity == 0 {
            self.unnamed = at.boot_ns.max(self.unnamed + 1);
            self.unnamed
        } else {
            identity
        };
        SocketKey { protocol: Protocol::Tcp, remote, socket }
    }

    /// The processes that hold the socket, as far as they are known.
    fn sharers(&self, row: &TcpSocket) -> Vec<ProcessKey> {
        row.pids.iter().filter_map(|pid| self.processes.get(pid)).map(|(key, _)| *key).collect()
    }
}

impl Health {
    /// The rows, if the table could be read; and what that means for the facet.
    fn take<T>(&mut self, rows: Result<T, String>, period: Duration, facts: &mut Facts) -> Option<T> {
        let (failed, grade, from, scope) = match &rows {
            Ok(_) => (false, super::grade(self.facet, period), facts.at.wall, Some(super::scope(self.facet))),
            Err(problem) => {
                let reason = format!("the table of {} cannot be read: {problem}", self.facet);
                // Since the last look that worked nothing is known for sure.
                let since = self.read.unwrap_or(facts.at);
                (true, Grade::NotRecorded { reason }, since.wall.min(facts.at.wall), None)
            }
        };
        if failed != self.failing {
            self.failing = failed;
            facts.push(Fact::Coverage(CoverageChange {
                facet: self.facet,
                grade,
                from,
                to: None,
                scope,
                announced_from: None,
            }));
        }
        if !failed {
            self.read = Some(facts.at);
        }
        rows.ok()
    }
}

impl Tracked {
    fn continues_as(&self, row: &TcpSocket) -> bool {
        let same_socket = self.identity == 0 || row.identity == 0 || self.identity == row.identity;
        let begins_again =
            self.state == FlowState::Established && state_of(row.state) == Some(FlowState::Attempted);
        same_socket && !begins_again
    }
}

/// The socket table, sorted by what the sockets are doing.
#[derive(Default)]
struct Table {
    listening: Vec<TcpSocket>,
    live: BTreeMap<Ends, TcpSocket>,
    lingering: BTreeSet<Ends>,
    /// Nothing was read before it.
    is_inventory: bool,
}

impl Table {
    fn sort(rows: Vec<TcpSocket>, is_inventory: bool) -> Self {
        let mut table = Self { is_inventory, ..Self::default() };
        for row in rows {
            let ends = (row.local, row.remote);
            if row.state == TcpState::Listen {
                table.listening.push(row);
            } else if row.state == TcpState::TimeWait {
                table.lingering.insert(ends);
            } else if state_of(row.state).is_some() {
                table.live.insert(ends, row);
            }
        }
        // The table is not read in one instant: a connection can be met alive and again as a trace.
        table.lingering.retain(|ends| !table.live.contains_key(ends));
        table
    }

    fn direction(&self, local: SocketAddr) -> Direction {
        let accepts = |listener: SocketAddr| {
            listener.port() == local.port() && (listener.ip().is_unspecified() || listener.ip() == local.ip())
        };
        if self.listening.iter().any(|row| accepts(row.local)) {
            Direction::Inbound
        } else {
            Direction::Outbound
        }
    }
}

/// None for what is no connection.
pub(in crate::capture) fn state_of(state: TcpState) -> Option<FlowState> {
    match state {
        TcpState::SynSent | TcpState::SynReceived => Some(FlowState::Attempted),
        TcpState::Established
        | TcpState::FinWait1
        | TcpState::FinWait2
        | TcpState::CloseWait
        | TcpState::Closing
        | TcpState::LastAck => Some(FlowState::Established),
        TcpState::Closed
        | TcpState::Listen
        | TcpState::TimeWait
        | TcpState::DeleteTcb
        | TcpState::Unknown => None,
    }
}

fn is_open(state: FlowState) -> bool {
    matches!(state, FlowState::Attempted | FlowState::Established)
}

/// Of several sharers the one that started first: the others most likely inherited the socket from it.
pub(in crate::capture) fn owner(sharers: &[ProcessKey]) -> (Option<ProcessKey>, Attribution) {
    let first = sharers.iter().min_by_key(|sharer| (sharer.start, sharer.pid)).copied();
    let attribution = match sharers.len() {
        0 => Attribution::Unknown,
        1 => Attribution::SocketTable,
        _ => Attribution::Guessed,
    };
    (first, attribution)
}

/// How many ancestors a process has in the table. A circle, which a torn table can show, ends somewhere.
fn generation(pid: u32, parents: &BTreeMap<u32, u32>) -> usize {
    let parent = |pid: &u32| parents.get(pid).copied();
    std::iter::successors(Some(pid), parent).take(parents.len() + 1).count()
}

struct Facts {
    at: Moment,
    observations: Vec<Observation>,
}

impl Facts {
    fn push(&mut self, fact: Fact) {
        self.push_at(self.at, fact);
    }

    fn push_at(&mut self, at: Moment, fact: Fact) {
        self.observations.push(Observation { at, fact });
    }
}

#[cfg(test)]
mod tests;
