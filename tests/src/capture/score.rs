//! Holds what an agent recorded against what really happened. Pure.
//!
//! A recorded connection belongs to a workload if one of its ends has an address of that workload, a recorded process if
//! it is one that a workload made. Everything else on the machine is nobody's business here.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
};

use alibi_proto::{
    coverage::{Facet, Grade, Hole},
    event::{Event, EventKind},
    flow::{Direction, FlowRecord, FlowState, Protocol, Traffic},
    id::{ConnectionUid, HostBoot, ProcessUid},
};
use serde::Serialize;

use crate::workload::{
    self,
    truth::{Connection, Outcome, Process, Truth},
};

/// The errno of an attempt that the program gave up: what a source records, since no system call returns it.
pub const ECANCELED: i32 = 125;
/// Faults that are told one by one, for each workload.
const FAULTS_MAX: usize = 10;

/// How much of a workload was recorded, and how well. A process has a parent where a connection has an owner, and an
/// exit code and arguments where that has an outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Score {
    /// Which.
    pub workload: String,
    /// Ends of connections, and processes, that there were.
    pub expected: u64,
    /// Of these, recorded at all.
    pub seen: u64,
    /// With the right owner, or parent.
    pub owner: u64,
    /// With the right direction, and both ends right.
    pub ends: u64,
    /// With the right outcome and errno.
    pub outcome: u64,
    /// With the right bytes each way.
    pub bytes: u64,
    /// Recorded once too often.
    pub duplicates: u64,
    /// Recorded, and never were.
    pub unexpected: u64,
    /// What is wrong, the first of it: which item, what was expected, what was recorded.
    pub faults: Vec<String>,
    /// Faults that are not in that list.
    pub further_faults: u64,
}

impl Score {
    /// Whether everything is as it was.
    pub fn is_perfect(&self) -> bool {
        let all = [self.seen, self.owner, self.ends, self.outcome, self.bytes];
        all.iter().all(|count| *count == self.expected) && self.duplicates == 0 && self.unexpected == 0
    }

    fn fault(&mut self, fault: impl FnOnce() -> String) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(fault());
        } else {
            self.further_faults += 1;
        }
    }

    /// Counts one that is right, or notes what is wrong.
    fn check(&mut self, column: fn(&mut Self) -> &mut u64, is_right: bool, fault: impl FnOnce() -> String) {
        if is_right {
            *column(self) += 1;
        } else {
            self.fault(fault);
        }
    }
}

/// What the agent says that it lost itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Losses {
    /// Processes.
    pub processes: u64,
    /// Connections.
    pub connections: u64,
    /// Events overwritten in the ring.
    pub overwritten: u64,
    /// Why, each once.
    pub reasons: Vec<String>,
}

impl Losses {
    /// Whether there was none.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// What is said to be lost.
pub fn losses(events: &[Event], holes: &[Hole]) -> Losses {
    let mut losses = Losses::default();
    let mut note = |reason: &String| {
        if !losses.reasons.contains(reason) {
            losses.reasons.push(reason.clone());
        }
    };
    for event in events {
        let EventKind::CoverageChanged(change) = &event.kind else { continue };
        let Grade::Lost { count, reason } = &change.grade else { continue };
        note(&format!("{}: {count}: {reason}", change.facet));
        match change.facet {
            Facet::Processes => losses.processes += count,
            Facet::Connections => losses.connections += count,
            Facet::Names => {}
        }
    }
    for hole in holes {
        note(&hole.reason);
        losses.overwritten += hole.count();
    }
    losses
}

/// Where a connection is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Place {
    protocol: Protocol,
    direction: Direction,
    /// The end that no other connection has.
    address: SocketAddr,
}

/// All records of a connection.
#[derive(Debug)]
struct Flow<'a> {
    last: &'a FlowRecord,
    traffic: Option<Traffic>,
    /// Records that end it.
    ends: u32,
}

/// The score of each workload that there is truth of, in the order of [`workload::ALL`].
pub fn score(truths: &[Truth], host: &HostBoot, events: &[Event]) -> Vec<Score> {
    let mut scores = Scores::default();
    connections(truths, host, events, &mut scores);
    processes(truths, host, events, &mut scores);
    scores.in_order()
}

#[derive(Default)]
struct Scores(HashMap<String, Score>);

impl Scores {
    fn of(&mut self, workload: &str) -> &mut Score {
        let new = || Score { workload: workload.to_owned(), ..Score::default() };
        self.0.entry(workload.to_owned()).or_insert_with(new)
    }

    fn in_order(mut self) -> Vec<Score> {
        workload::ALL.iter().filter_map(|workload| self.0.remove(workload.name)).collect()
    }
}

fn connections(truths: &[Truth], host: &HostBoot, events: &[Event], scores: &mut Scores) {
    let mut expected: HashMap<Place, &Connection> = HashMap::new();
    for truth in truths {
        let Truth::Connection(connection) = truth else { continue };
        let score = scores.of(&connection.workload);
        score.expected += 1;
        match place_of(connection) {
            Some(place) if expected.insert(place, connection).is_none() => {}
            place => score.fault(|| format!("a fault of the workload: no place of its own: {place:?}")),
        }
    }
    let run: HashSet<&str> = expected.values().map(|connection| connection.workload.as_str()).collect();

    let mut found: HashMap<Place, ConnectionUid> = HashMap::new();
    for (uid, flow) in flows(events) {
        let Some((workload, place)) = place_in(flow.last, &run) else { continue };
        let score = scores.of(workload);
        let Some(connection) = expected.get(&place) else {
            score.unexpected += 1;
            score.fault(|| format!("never was: {}", in_words(&flow)));
            continue;
        };
        if let Some(other) = found.insert(place, uid) {
            score.duplicates += 1;
            score.fault(|| format!("again, first as {other}: {}", in_words(&flow)));
            continue;
        }
        compare(connection, host, &flow, score);
    }
    for (place, connection) in expected {
        if !found.contains_key(&place) {
            scores
                .of(&connection.workload)
                .fault(|| format!("not recorded: {} {} {}", place.protocol, place.direction, place.address));
        }
    }
}

fn compare(connection: &Connection, host: &HostBoot, flow: &Flow<'_>, score: &mut Score) {
    let last = flow.last;
    score.seen += 1;
    let owner = host.process(connection.owner.pid, connection.owner.start_ticks);
    score.check(
        |score| &mut score.owner,
        last.process == Some(owner),
        || format!("owner: expected {owner} (pid {}), got {}", connection.owner.pid, in_words(flow)),
    );
    let is =
        |got: SocketAddr, want: Option<SocketAddr>| want.is_none_or(|want| canonical(got) == canonical(want));
    let are_right = last.direction == connection.direction
        && is(last.local, connection.local)
        && is(last.remote, connection.remote);
    score.check(
        |score| &mut score.ends,
        are_right,
        || {
            let (local, remote) = (connection.local, connection.remote);
            format!("ends: expected {} {local:?} {remote:?}, got {}", connection.direction, in_words(flow))
        },
    );
    let outcome = match last.state {
        FlowState::Failed(ECANCELED) => Outcome::GivenUp,
        FlowState::Failed(errno) => Outcome::Failed(errno),
        FlowState::Closed => Outcome::Closed,
        FlowState::Attempted | FlowState::Established => Outcome::Open,
    };
    let ends = u32::from(connection.outcome != Outcome::Open);
    score.check(
        |score| &mut score.outcome,
        outcome == connection.outcome && flow.ends == ends,
        || {
            format!(
                "outcome: expected {:?}, got {}, ended {} times",
                connection.outcome,
                in_words(flow),
                flow.ends
            )
        },
    );
    let is = |got: fn(&Traffic) -> u64, want: Option<u64>| {
        want.is_none_or(|want| flow.traffic.as_ref().map_or(want == 0, |traffic| got(traffic) == want))
    };
    let are_right = is(|traffic| traffic.bytes_sent, connection.bytes_sent)
        && is(|traffic| traffic.bytes_received, connection.bytes_received);
    score.check(
        |score| &mut score.bytes,
        are_right,
        || {
            let (sent, received) = (connection.bytes_sent, connection.bytes_received);
            format!("bytes: expected {sent:?} sent, {received:?} received, got {}", in_words(flow))
        },
    );
}

fn canonical(address: SocketAddr) -> SocketAddr {
    (address.ip().to_canonical(), address.port()).into()
}

fn place_of(connection: &Connection) -> Option<Place> {
    let address = match connection.direction {
        Direction::Outbound => connection.remote,
        Direction::Inbound => connection.local,
    };
    let (protocol, direction) = (connection.protocol, connection.direction);
    Some(Place { protocol, direction, address: canonical(address?) })
}

/// The workload that a record is of, if that was run, and its place: by the end that is one of the workload's, whatever
/// direction was recorded.
fn place_in(flow: &FlowRecord, run: &HashSet<&str>) -> Option<(&'static str, Place)> {
    let ends = [(Direction::Outbound, flow.remote), (Direction::Inbound, flow.local)];
    ends.into_iter().find_map(|(direction, address)| {
        // A client may be given an address of the workload too, but never a server's port. Nobody has port 0: what is told
        // with it, is told of something that is no connection.
        let is_servers = workload::PORTS.contains(&address.port()) || address.port() == 0;
        let workload = workload::of_address(address.ip()).filter(|_| is_servers)?;
        let place = Place { protocol: flow.protocol, direction, address: canonical(address) };
        run.contains(workload.name).then_some((workload.name, place))
    })
}

fn flows(events: &[Event]) -> BTreeMap<ConnectionUid, Flow<'_>> {
    let mut flows: BTreeMap<ConnectionUid, Flow<'_>> = BTreeMap::new();
    for event in events {
        let EventKind::Flow(record) = &event.kind else { continue };
        let ends = u32::from(matches!(record.state, FlowState::Closed | FlowState::Failed(_)));
        let flow = flows.entry(record.connection).or_insert(Flow { last: record, traffic: None, ends: 0 });
        flow.last = record;
        flow.ends += ends;
        flow.traffic = match (flow.traffic, record.traffic) {
            (Some(before), Some(traffic)) => Some(before.plus(&traffic)),
            (before, traffic) => before.or(traffic),
        };
    }
    flows
}

fn in_words(flow: &Flow<'_>) -> String {
    let record = flow.last;
    let owner = record.process.map_or("nobody".to_owned(), |process| process.to_string());
    let bytes = flow.traffic.map_or("unknown".to_owned(), |traffic| {
        format!("{} sent, {} received", traffic.bytes_sent, traffic.bytes_received)
    });
    format!(
        "{} {} {} -> {}, {}({}), of {owner} ({}), bytes {bytes}, record {}",
        record.protocol,
        record.direction,
        record.local,
        record.remote,
        record.state.word(),
        record.state.errno(),
        record.attribution,
        record.record,
    )
}

/// What was recorded of a process.
#[derive(Default)]
struct Life<'a> {
    starts: u32,
    parent: Option<ProcessUid>,
    arguments: Vec<&'a [String]>,
    exits: Vec<Option<i32>>,
}

fn processes(truths: &[Truth], host: &HostBoot, events: &[Event], scores: &mut Scores) {
    let truths = truths.iter().filter_map(|truth| match truth {
        Truth::Process(process) => Some((host.process(process.who.pid, process.who.start_ticks), process)),
        Truth::Connection(_) => None,
    });
    let expected: Vec<(ProcessUid, &Process)> = truths.collect();
    let wanted: HashSet<ProcessUid> = expected.iter().map(|(uid, _)| *uid).collect();
    let mut lives: HashMap<ProcessUid, Life<'_>> = HashMap::new();
    // A process with a token is one of ours, even under a uid that is none.
    let tokens: HashMap<&str, &str> = expected
        .iter()
        .filter_map(|(_, process)| Some((process.token.as_deref()?, process.workload.as_str())))
        .collect();
    for event in events {
        match &event.kind {
            EventKind::ProcessStarted(record) => {
                let arguments = record.image.arguments.as_slice();
                if wanted.contains(&record.uid) {
                    let life = lives.entry(record.uid).or_default();
                    life.starts += 1;
                    life.parent = record.parent;
                    life.arguments.push(arguments);
                } else if let Some(workload) = arguments.iter().find_map(|word| tokens.get(word.as_str())) {
                    let score = scores.of(workload);
                    score.unexpected += 1;
                    score.fault(|| {
                        format!("never was: process {} (pid {}): {arguments:?}", record.uid, record.pid)
                    });
                }
            }
            EventKind::ProcessExecuted(execution) if wanted.contains(&execution.uid) => {
                lives.entry(execution.uid).or_default().arguments.push(&execution.image.arguments);
            }
            EventKind::ProcessExited(exit) if wanted.contains(&exit.uid) => {
                lives.entry(exit.uid).or_default().exits.push(exit.exit_code);
            }
            _ => {}
        }
    }
    for (uid, process) in expected {
        let score = scores.of(&process.workload);
        score.expected += 1;
        let name = || format!("process {uid} (pid {}, {:?})", process.who.pid, process.token);
        let Some(life) = lives.get(&uid).filter(|life| life.starts > 0) else {
            score.fault(|| format!("not recorded: {}", name()));
            continue;
        };
        score.seen += 1;
        // What a process has none of cannot be wrong.
        score.bytes += 1;
        score.ends += 1;
        let parent = host.process(process.parent.pid, process.parent.start_ticks);
        score.check(
            |score| &mut score.owner,
            life.parent == Some(parent),
            || format!("parent: expected {parent}, got {:?}: {}", life.parent, name()),
        );
        let is_token = |token: &String| life.arguments.iter().any(|words| words.contains(token));
        let is_right = process.token.as_ref().is_none_or(is_token)
            && match process.exit_code {
                Some(code) => life.exits == [Some(code)],
                None => life.exits.len() == 1,
            };
        score.check(
            |score| &mut score.outcome,
            is_right,
            || {
                let (exit, got) = (process.exit_code, &life.exits);
                format!("exit {exit:?} expected, got {got:?} with arguments {:?}: {}", life.arguments, name())
            },
        );
        let again = u64::from(life.starts - 1);
        score.duplicates += again;
        if again > 0 {
            score.fault(|| format!("started {} times: {}", life.starts, name()));
        }
    }
}

#[cfg(test)]
mod tests;
