//! From what a source saw to numbered events. Pure: every time is an argument or comes with a report.
//!
//! Keeps the connections that are open, cuts their lives into records (see [`FlowRecord`]), and knows the watermark:
//! everything before it is in the events handed out.
//!
//! A record that leaves its connection open stands for it until the next one or until recording is interrupted, so a
//! reader that missed the record, or does not believe it past a loss, would believe the connection away. Therefore every
//! open connection is reported anew after each interruption, and wherever a reader may begin ([`Pipeline::restate`]),
//! before the grades that let a reader believe again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    time::Duration,
};

use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade},
    event::{Event, EventKind, ListenRecord},
    flow::{Attribution, Direction, FlowEndReason, FlowRecord, FlowState, RECORD_SPAN_MAX, Traffic},
    host::SourceDescription,
    id::{ConnectionUid, HostBoot, ProcessUid, Seq},
    name::RemoteName,
    process::{ProcessExecution, ProcessExit, ProcessImage, ProcessRecord, User},
    time::{Moment, Timestamp},
};

use crate::{
    capture::{
        ConnectionChange, Fact, Observation, ObservedConnection, ObservedProcess, ProcessKey, Report,
        SocketKey,
    },
    enrich::redaction::Redactor,
    ledger::{Ledger, Past},
};

mod beside;
mod clocks;
mod encrypted;
mod interruptions;
mod names;
mod sightings;
mod suspend;

use encrypted::Encrypted;
use interruptions::Interruptions;
use names::Names;

/// A connection that lives longer is reported while it lives.
const FIRST_REPORT_AFTER: Duration = Duration::from_secs(1);

/// Timeouts and bounds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A record of a connection in which bytes move is no longer than this.
    pub active_timeout: Duration,
    /// A record of a connection in which nothing moves; at most [`RECORD_SPAN_MAX`].
    pub idle_timeout: Duration,
    /// Connections followed at once. Those beyond are recorded at their opening only, and coverage says so.
    pub connections_max: usize,
    /// Processes whose user is counted.
    pub processes_max: usize,
    /// After a loss a connection is said anew once so much time has passed for each that is open, or another event came. A
    /// thousand in a second fill a ring of 256 MiB in some hours, and are nothing to wait for where few are open.
    pub restating_interval: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            active_timeout: Duration::from_secs(60),
            idle_timeout: RECORD_SPAN_MAX,
            connections_max: 1 << 18,
            processes_max: 1 << 17,
            restating_interval: Duration::from_millis(1),
        }
    }
}

/// The state between what was seen and what is recorded.
#[derive(Debug)]
pub struct Pipeline {
    boot: HostBoot,
    limits: Limits,
    source: SourceDescription,
    /// What the source last said of each facet.
    source_grades: BTreeMap<Facet, CoverageChange>,
    ledger: Ledger,
    next_seq: Seq,
    flows: HashMap<SocketKey, OpenFlow>,
    /// When each open connection's next record is due.
    due: BTreeSet<(Timestamp, SocketKey)>,
    /// Open connections without a record yet, by their opening.
    unreported: BTreeSet<(Timestamp, SocketKey)>,
    /// Open connections that there was no room for.
    unfollowed: u64,
    users: HashMap<ProcessKey, User>,
    redactor: Redactor,
    names: Names,
    encrypted: Encrypted,
    /// The clock was set in this report: what is open is said anew at once, before and after the step.
    clock_was_set: bool,
    interruptions: Interruptions,
    /// In this report the wall clock was set forward, from the one to the other: there was no such time.
    leap: Option<(Timestamp, Timestamp)>,
    seen_until: Option<Moment>,
    watermark: Option<Timestamp>,
    events: Vec<Event>,
}

#[derive(Clone, Debug)]
struct OpenFlow {
    connection: ConnectionUid,
    local: SocketAddr,
    process: Option<ProcessUid>,
    attribution: Attribution,
    direction: Direction,
    opened: Timestamp,
    already_open: bool,
    state: FlowState,
    /// Where the next record begins.
    first: Timestamp,
    record: u32,
    traffic: Option<Traffic>,
    traffic_recorded: Traffic,
    due: Timestamp,
    interface: Option<String>,
    network_namespace: Option<u64>,
    round_trip: Option<Duration>,
    remote_name: Option<RemoteName>,
}

impl Pipeline {
    /// A pipeline whose first event is `next_seq`. The events that it begins with say what became of the time before it.
    pub fn new(
        boot: HostBoot,
        limits: Limits,
        source: SourceDescription,
        next_seq: Seq,
        past: impl Into<Past>,
        now: Moment,
    ) -> Self {
        let mut pipeline = Self {
            boot,
            limits,
            source,
            source_grades: BTreeMap::new(),
            ledger: Ledger::default(),
            next_seq,
            flows: HashMap::new(),
            due: BTreeSet::new(),
            unreported: BTreeSet::new(),
            unfollowed: 0,
            users: HashMap::new(),
            redactor: Redactor::default(),
            names: Names::default(),
            encrypted: Encrypted::default(),
            clock_was_set: false,
            interruptions: Interruptions::default(),
            leap: None,
            seen_until: None,
            watermark: None,
            events: Vec::new(),
        };
        pipeline.begin(past.into(), now);
        pipeline
    }

    /// The same, which redacts by further rules.
    #[must_use]
    pub fn with_redactor(self, redactor: Redactor) -> Self {
        Self { redactor, ..self }
    }

    /// Takes in what a source saw.
    pub fn take(&mut self, report: Report, now: Moment) {
        let Report { observations, seen_until: seen } = report;
        let seen_until = seen.wall;
        match self.seen_until {
            Some(before) => self.compare_clocks(before, seen, now),
            None => self.source_begins(seen_until, now),
        }
        self.renew_encrypted(seen_until, now);
        for observation in observations {
            self.observe(observation, now);
        }
        self.seen_until = Some(seen);
        let must = std::mem::take(&mut self.clock_was_set);
        self.settle(must, seen, now);
        self.report_due(seen_until, now);
        self.leap = None;
    }

    /// The events made since the last call, in order.
    pub fn events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Everything before this is in the events handed out. None until the source has reported.
    pub fn watermark(&mut self) -> Option<Timestamp> {
        let seen_until = self.seen_until?.wall;
        let held_back = self.unreported.first().map_or(Timestamp::MAX, |(opened, _)| *opened);
        let held_back = held_back.min(self.interruptions.holds_at());
        let watermark = self.watermark.unwrap_or_default().max(seen_until.min(held_back));
        self.watermark = Some(watermark);
        self.watermark
    }

    /// Says everything anew that a reader who begins here must know: what is open, and then the grades, which are not for
    /// a reader that begins in between.
    pub fn restate(&mut self, now: Moment) {
        self.restate_since(self.next_seq, now);
    }

    /// The same for readers that begin no later than at `since`; whoever begins after it does not believe the grades.
    pub fn restate_since(&mut self, since: Seq, now: Moment) {
        let announced_from = Some(since);
        if let Some(seen_until) = self.seen_until {
            self.report_all_open(seen_until, now);
        }
        for change in self.ledger.restate() {
            self.push(now, EventKind::CoverageChanged(CoverageChange { announced_from, ..change }));
        }
        self.restate_encrypted(now);
    }

    /// `count` events, from `next_seq` on, that spoke of instants between `from` and `to` could not be kept: their numbers are
    /// given again, and the loss is said.
    pub fn lose(
        &mut self,
        count: u64,
        (from, to): (Timestamp, Timestamp),
        next_seq: Seq,
        reason: &str,
        now: Moment,
    ) {
        self.next_seq = next_seq;
        self.events.clear();
        self.ledger.forget(next_seq);
        let losses = self.ledger.lose(count, reason, from, to);
        self.push_all(now, losses);
        self.restate(now);
    }

    /// Recording ends for `reason`.
    pub fn stop(&mut self, reason: &str, now: Moment) {
        let Some(seen_until) = self.seen_until else { return };
        self.state_losses(now);
        for socket in self.open() {
            if let Some(flow) = self.remove(&socket) {
                self.push_record(flow, &socket, seen_until.wall, FlowEndReason::ForcedEnd, now);
            }
        }
        let changes = self.ledger.stop(reason, seen_until.wall);
        self.push_all(now, changes);
        // Everything has its last record.
        self.interruptions = Interruptions::default();
    }

    /// No event handed out so far speaks of a later instant, but for a loss that says so. None before the first report.
    pub fn seen_until(&self) -> Option<Moment> {
        self.seen_until
    }

    /// What is said of coverage, and what that comes to.
    pub fn ledger(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    /// The open connections, in the order in which their records are due.
    fn open(&self) -> Vec<SocketKey> {
        self.due.iter().map(|(_, socket)| *socket).collect()
    }

    fn source_begins(&mut self, from: Timestamp, now: Moment) {
        for coverage in std::mem::take(&mut self.source.facets) {
            // The inventory that comes with it says what is open.
            let announced_from = Some(self.next_seq);
            let (facet, grade, scope) = (coverage.facet, coverage.grade, Some(coverage.scope));
            self.source_states(CoverageChange { facet, grade, from, to: None, scope, announced_from }, now);
        }
    }

    fn source_states(&mut self, change: CoverageChange, now: Moment) {
        if change.to.is_none() {
            self.source_grades.insert(change.facet, change.clone());
            // As long as there are connections that are not followed, the source's word is not enough.
            if change.facet == Facet::Connections && self.unfollowed > 0 {
                return;
            }
        }
        self.state(change, now);
    }

    fn state(&mut self, change: CoverageChange, now: Moment) {
        if let Some(change) = self.ledger.state(change) {
            self.push(now, EventKind::CoverageChanged(change));
        }
    }

    fn observe(&mut self, observation: Observation, now: Moment) {
        let at = observation.at.wall;
        match observation.fact {
            Fact::ProcessStarted(process) => self.process_started(*process, now),
            Fact::ProcessExecuted { process, image } => self.process_executed(process, *image, at, now),
            Fact::ProcessExited { process, exit_code } => {
                self.users.remove(&process);
                let uid = self.uid(process);
                self.push(now, EventKind::ProcessExited(ProcessExit { uid, exited: at, exit_code }));
            }
            Fact::ConnectionOpened(connection) => self.connection_opened(*connection, at, now),
            Fact::ConnectionChanged { socket, change } => self.connection_changed(socket, change, at, now),
            Fact::ConnectionClosed { socket, state, change } => {
                self.connection_closed(socket, state, &change, at, now);
            }
            Fact::Listening { owner, attribution, protocol, local } => {
                let process = owner.map(|owner| self.uid(owner));
                self.push(
                    now,
                    EventKind::Listen(ListenRecord { process, attribution, protocol, local, since: at }),
                );
            }
            Fact::NameResolved(observed) => self.name_resolved(*observed, at, now),
            Fact::ServerName(observed) => self.server_name(*observed, at, now),
            Fact::ExecutableSeen(observed) => self.executable_seen(*observed, at, now),
            Fact::LinkChanged(link) => self.push(now, EventKind::LinkChanged(link)),
            Fact::Suspended { from, to } => self.suspended(from.wall, to.wall, now),
            Fact::Coverage(change) => self.source_tells(change, now),
        }
    }

    fn process_started(&mut self, observed: ObservedProcess, now: Moment) {
        let image = self.take_image(observed.process, observed.image);
        let record = ProcessRecord {
            uid: self.uid(observed.process),
            pid: observed.process.pid,
            parent: observed.parent.map(|parent| self.uid(parent)),
            parent_pid: observed.parent_pid,
            started: observed.started,
            already_running: observed.already_running,
            image,
        };
        self.push(now, EventKind::ProcessStarted(Box::new(record)));
    }

    fn process_executed(&mut self, process: ProcessKey, image: ProcessImage, at: Timestamp, now: Moment) {
        let image = self.take_image(process, image);
        let execution = ProcessExecution { uid: self.uid(process), executed: at, image };
        self.push(now, EventKind::ProcessExecuted(Box::new(execution)));
    }

    fn take_image(&mut self, process: ProcessKey, mut image: ProcessImage) -> ProcessImage {
        self.redactor.redact(&mut image.arguments);
        if let Some(user) = &image.user
            && (self.users.len() < self.limits.processes_max || self.users.contains_key(&process))
        {
            self.users.insert(process, user.clone());
        }
        image
    }

    fn connection_opened(&mut self, observed: ObservedConnection, at: Timestamp, now: Moment) {
        let socket = observed.socket;
        if self.flows.contains_key(&socket) {
            let change = ConnectionChange {
                state: Some(observed.state),
                owner: observed.owner.map(|owner| (owner, observed.attribution)),
                local: Some(observed.local),
                traffic: observed.traffic,
                round_trip: None,
            };
            match observed.state {
                state @ (FlowState::Closed | FlowState::Failed(_)) => {
                    self.connection_closed(socket, state, &change, at, now);
                }
                _ => self.connection_changed(socket, change, at, now),
            }
            return;
        }
        self.heed_server(socket, observed.direction, observed.state, at, now);
        let SocketKey { protocol, remote, socket: identity } = socket;
        // One that was open already is known at once; there is nothing to wait for.
        let due = if observed.already_open { at } else { at.saturating_add(FIRST_REPORT_AFTER) };
        // Who comes in is not known by a name that was looked up here.
        let remote_name = match observed.direction {
            Direction::Outbound => self.names.of_address(observed.network_namespace, remote.ip()),
            Direction::Inbound => None,
        };
        let flow = OpenFlow {
            connection: self.boot.connection(protocol, remote, identity),
            local: observed.local,
            process: observed.owner.map(|owner| self.uid(owner)),
            attribution: observed.attribution,
            direction: observed.direction,
            opened: at,
            already_open: observed.already_open,
            state: observed.state,
            first: at,
            record: 0,
            traffic: observed.traffic,
            traffic_recorded: Traffic::default(),
            due,
            interface: observed.interface,
            network_namespace: observed.network_namespace,
            round_trip: None,
            remote_name,
        };
        if matches!(flow.state, FlowState::Closed | FlowState::Failed(_)) {
            self.push_record(flow, &socket, at, FlowEndReason::EndOfFlow, now);
        } else if self.flows.len() >= self.limits.connections_max {
            self.push_record(flow, &socket, at, FlowEndReason::LackOfResources, now);
            self.unfollowed_opened(at, now);
        } else {
            self.due.insert((due, socket));
            self.unreported.insert((at, socket));
            self.flows.insert(socket, flow);
        }
    }

    fn connection_closed(
        &mut self,
        socket: SocketKey,
        state: FlowState,
        change: &ConnectionChange,
        at: Timestamp,
        now: Moment,
    ) {
        let owner = change.owner.map(|(owner, attribution)| (self.uid(owner), attribution));
        let Some(mut flow) = self.remove(&socket) else {
            self.unfollowed_closed(at, now);
            return;
        };
        flow.take(change, owner);
        flow.state = state;
        self.heed_server(socket, flow.direction, state, at, now);
        self.push_record(flow, &socket, at, FlowEndReason::EndOfFlow, now);
    }

    fn connection_changed(
        &mut self,
        socket: SocketKey,
        change: ConnectionChange,
        at: Timestamp,
        now: Moment,
    ) {
        let owner = change.owner.map(|(owner, attribution)| (self.uid(owner), attribution));
        let active_timeout = self.limits.active_timeout;
        let Some(flow) = self.flows.get_mut(&socket) else { return };
        let state_changed = change.state.is_some_and(|state| state != flow.state);
        let owner_changed = owner.is_some_and(|(process, _)| Some(process) != flow.process);
        // What it moved until now belongs to the record that ends with the change.
        flow.traffic = change.traffic.or(flow.traffic);
        if (state_changed || owner_changed) && flow.record > 0 {
            // What has been said of it is no longer so: the record before the change ends with it.
            self.report_open(socket, at, at, now);
        }
        let Some(flow) = self.flows.get_mut(&socket) else { return };
        flow.take(&change, owner);
        let (direction, state) = (flow.direction, flow.state);
        let due = if state_changed || owner_changed {
            at.saturating_add(FIRST_REPORT_AFTER)
        } else if flow.moved().is_some_and(|moved| moved.any()) {
            flow.first.saturating_add(active_timeout)
        } else {
            flow.due
        };
        let due = due.min(flow.due);
        self.reschedule(socket, due);
        if state_changed {
            self.heed_server(socket, direction, state, at, now);
        }
    }

    /// There is no room to follow a connection; until none such is open, an end or a byte may go unrecorded.
    fn unfollowed_opened(&mut self, at: Timestamp, now: Moment) {
        self.unfollowed += 1;
        let reason = format!(
            "more than {} connections were open at once: those beyond were recorded at their opening only",
            self.limits.connections_max
        );
        let (facet, grade) = (Facet::Connections, Grade::Lost { count: 1, reason });
        self.state(
            CoverageChange { facet, grade, from: at, to: None, scope: None, announced_from: None },
            now,
        );
    }

    fn unfollowed_closed(&mut self, at: Timestamp, now: Moment) {
        if self.unfollowed == 0 {
            return;
        }
        self.unfollowed -= 1;
        if self.unfollowed == 0
            && let Some(grade) = self.source_grades.get(&Facet::Connections).cloned()
        {
            let from = at.max(self.watermark.unwrap_or_default());
            self.state(CoverageChange { from, ..grade }, now);
            self.interruptions.note(at);
        }
    }

    /// Records every open connection whose time has come.
    fn report_due(&mut self, at: Timestamp, now: Moment) {
        let last = self.witnessed_until(at);
        while let Some(&(due, socket)) = self.due.first()
            && due <= at
        {
            self.report_open(socket, last, at, now);
        }
    }

    /// Up to when the source, which has reported until `at`, would have seen a connection end.
    fn witnessed_until(&self, at: Timestamp) -> Timestamp {
        match self.source_grades.get(&Facet::Connections) {
            Some(CoverageChange { grade: Grade::NotRecorded { .. }, from, .. }) => at.min(*from),
            _ => at,
        }
    }

    /// A record of an open connection, up to `last`; the next is due after `at`.
    fn report_open(&mut self, socket: SocketKey, last: Timestamp, at: Timestamp, now: Moment) {
        let Some(flow) = self.flows.get(&socket).cloned() else { return };
        self.unreported.remove(&(flow.opened, socket));
        let moved = flow.moved().is_some_and(|moved| moved.any());
        let idle = last.since(flow.first) >= self.limits.idle_timeout && !moved;
        let end_reason = if idle { FlowEndReason::IdleTimeout } else { FlowEndReason::ActiveTimeout };
        let mut flow = self.push_record(flow, &socket, last, end_reason, now);
        if let Some((_, to)) = self.leap.filter(|_| last < at) {
            // Nobody saw how far it lived, but it was not in a time that the clock skipped.
            flow.first = flow.first.max(to);
        }
        let due = flow.first.max(at).saturating_add(self.limits.idle_timeout);
        self.flows.insert(socket, flow);
        self.reschedule(socket, due);
    }

    fn reschedule(&mut self, socket: SocketKey, due: Timestamp) {
        if let Some(flow) = self.flows.get_mut(&socket) {
            self.due.remove(&(flow.due, socket));
            flow.due = due;
            self.due.insert((due, socket));
        }
    }

    fn remove(&mut self, socket: &SocketKey) -> Option<OpenFlow> {
        let flow = self.flows.remove(socket)?;
        self.due.remove(&(flow.due, *socket));
        self.unreported.remove(&(flow.opened, *socket));
        Some(flow)
    }

    /// Writes the record that ends at `at` and gives the flow back as it goes on after it. A stretch longer than a
    /// record may span becomes several, whose bytes stand in the last.
    fn push_record(
        &mut self,
        mut flow: OpenFlow,
        socket: &SocketKey,
        at: Timestamp,
        end_reason: FlowEndReason,
        now: Moment,
    ) -> OpenFlow {
        let at = at.max(flow.first);
        if let Some(name) = self.names.take_asked(*socket, flow.network_namespace, flow.local) {
            flow.remote_name = Some(name);
        }
        if let Some((from, to)) = self.leap.filter(|(_, to)| at >= *to) {
            if flow.first <= from {
                self.push_whole_spans(&mut flow, socket, from, now);
                self.push_idle(&mut flow, socket, from, now);
            }
            // After a clock that was set back, the record before may have ended in the time that is skipped.
            flow.first = flow.first.max(to);
        }
        self.push_whole_spans(&mut flow, socket, at, now);
        let record = flow.record(socket, at, flow.state, flow.moved(), end_reason);
        self.push(now, EventKind::Flow(Box::new(record)));
        flow.first = at;
        flow.record += 1;
        flow.traffic_recorded = flow.traffic.unwrap_or_default();
        flow
    }

    /// Writes as many records of the longest span as it takes until one can reach up to `last`.
    fn push_whole_spans(&mut self, flow: &mut OpenFlow, socket: &SocketKey, last: Timestamp, now: Moment) {
        while last.since(flow.first) > RECORD_SPAN_MAX {
            let last = flow.first.saturating_add(RECORD_SPAN_MAX);
            self.push_idle(flow, socket, last, now);
        }
    }

    /// Writes a record up to `last` after which the connection was still open, with nothing moved in it.
    fn push_idle(&mut self, flow: &mut OpenFlow, socket: &SocketKey, last: Timestamp, now: Moment) {
        let state = match flow.state {
            FlowState::Closed | FlowState::Failed(_) => FlowState::Established,
            open => open,
        };
        let nothing = flow.traffic.map(|_| Traffic::default());
        let record = flow.record(socket, last, state, nothing, FlowEndReason::IdleTimeout);
        self.push(now, EventKind::Flow(Box::new(record)));
        flow.first = last;
        flow.record += 1;
    }

    fn push_all(&mut self, now: Moment, changes: Vec<CoverageChange>) {
        for change in changes {
            self.push(now, EventKind::CoverageChanged(change));
        }
    }

    fn push(&mut self, now: Moment, kind: EventKind) {
        if let EventKind::CoverageChanged(change) = &kind {
            self.ledger.said(self.next_seq, change);
            if change.facet == Facet::Connections && change.to.is_some() {
                self.interruptions.note(interruptions::ends(change));
            }
        }
        self.interruptions.events_since += 1;
        self.events.push(Event { seq: self.next_seq, recorded: now, kind });
        self.next_seq = self.next_seq.next();
    }

    fn uid(&self, process: ProcessKey) -> ProcessUid {
        self.boot.process(process.pid, process.start)
    }
}

impl OpenFlow {
    fn take(&mut self, change: &ConnectionChange, owner: Option<(ProcessUid, Attribution)>) {
        self.state = change.state.unwrap_or(self.state);
        self.local = change.local.unwrap_or(self.local);
        self.traffic = change.traffic.or(self.traffic);
        self.round_trip = change.round_trip.or(self.round_trip);
        if let Some((process, attribution)) = owner {
            self.process = Some(process);
            self.attribution = attribution;
        }
    }

    /// What moved since the last record.
    fn moved(&self) -> Option<Traffic> {
        self.traffic.map(|traffic| traffic.since(&self.traffic_recorded))
    }

    fn record(
        &self,
        socket: &SocketKey,
        last: Timestamp,
        state: FlowState,
        traffic: Option<Traffic>,
        end_reason: FlowEndReason,
    ) -> FlowRecord {
        FlowRecord {
            connection: self.connection,
            process: self.process,
            attribution: self.attribution,
            protocol: socket.protocol,
            direction: self.direction,
            local: self.local,
            remote: socket.remote,
            opened: self.opened,
            already_open: self.already_open,
            first: self.first,
            last,
            traffic,
            state,
            end_reason,
            record: self.record,
            interface: self.interface.clone(),
            network_namespace: self.network_namespace,
            round_trip: self.round_trip,
            remote_name: self.remote_name.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
