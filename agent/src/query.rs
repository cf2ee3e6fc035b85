//! The question, answered from the ring alone.
//!
//! Only what the question needs is read: a segment whose seal says that nothing of it is in there is passed over, and so
//! is a frame of other kinds of events. What is damaged where nothing is looked for takes nothing away.

use std::{
    collections::{BTreeMap, HashMap, HashSet, btree_map::Entry},
    net::IpAddr,
    ops::RangeInclusive,
};

use alibi_proto::{
    clock::HostClock,
    convert::ConvertError,
    coverage::{CoverageChange, Facet, Hole, Timeline, unrecognised},
    event::{Event, EventKind},
    executable::{ExecutableRecord, ExecutableSighting, FileIdentity},
    flow::FlowRecord,
    id::{HostId, ProcessUid, Seq},
    name::NamePattern,
    process::{ProcessExecution, ProcessExit, ProcessLife},
    question::{
        Evidence, HostAnswer, NAME_ADDRESSES_MAX, NameEvidence, NamedRemotes, Question, judge, unnamed_since,
    },
    time::Timestamp,
};

use self::{
    glimpse::Glimpse,
    reading::{Read, read},
};
use crate::{
    labels,
    ring::{RingError, Selection, View},
};

mod glimpse;
mod reading;

const ALWAYS: RangeInclusive<Timestamp> = Timestamp::ZERO..=Timestamp::MAX;

/// Records that one answer is made of. Few under test, so that the bound is met.
const RECORDS_MAX: usize = if cfg!(test) { 8 } else { 10_000 };
/// Holes that are kept apart; the last stands for those that follow it. Few under test, so that the bound is met.
const HOLES_MAX: usize = if cfg!(test) { 4 } else { 4096 };

/// Owners of connections whose starts are looked up for one answer. A connection of one that is beyond may have been meant
/// for any name.
const OWNERS_MAX: usize = if cfg!(test) { 4 } else { 16_384 };

/// Executions that are told of one process, those before them being counted.
const EXECUTIONS_MAX: usize = if cfg!(test) { 4 } else { 64 };

/// The answer of this host, from everything that the ring holds, and the addresses that the target stood for.
///
/// # Errors
/// When the ring cannot be read.
pub fn answer(
    view: &View,
    question: &Question,
    host: HostId,
    name: String,
    known_until: Option<Timestamp>,
) -> Result<(HostAnswer, Vec<String>), QueryError> {
    answer_with(view, question, host, name, known_until, &[])
}

/// The same, where this is to be said of coverage besides.
///
/// # Errors
/// When the ring cannot be read.
pub fn answer_with(
    view: &View,
    question: &Question,
    host: HostId,
    name: String,
    known_until: Option<Timestamp>,
    besides: &[CoverageChange],
) -> Result<(HostAnswer, Vec<String>), QueryError> {
    let mut holes = Holes::default();
    let remotes = match question.target.name() {
        Some(pattern) => remotes(view, question, pattern, &mut holes)?,
        None => NamedRemotes::default(),
    };
    let found = find(view, question, &remotes, &mut holes)?;
    let mut coverage = Coverage::read(view, holes)?;
    besides.iter().for_each(|change| coverage.apply(change));
    let unnamed_since = found.unnamed.since(view)?;
    let flows: Vec<FlowRecord> = found.flows.into_values().collect();
    let lives = lives(view, &flows, question.window.to())?;
    let names = NameEvidence { coverage: &coverage.names, remotes: &remotes, unnamed_since };
    let clock = HostClock::own();
    let evidence = Evidence {
        host: Some(host),
        name,
        clock: &clock,
        connections: &coverage.connections,
        known_until,
        names: question.target.name().map(|_| names),
        flows,
        flows_left_out: found.flows_left_out,
    };
    let answer = judge(question, evidence, |uid| lives.get(&uid).cloned());
    Ok((answer, remotes.used(question)))
}

/// What the ring knows of a name. A record may stand before the answer that tells its name, so this comes first.
fn remotes(
    view: &View,
    question: &Question,
    pattern: &NamePattern,
    holes: &mut Holes,
) -> Result<NamedRemotes, QueryError> {
    let mut remotes = NamedRemotes::default();
    let NamedRemotes { addresses, left_out, hellos } = &mut remotes;
    let until = question.window.to();
    let keys = Some(vec![labels::of_pattern(pattern)]);
    let is_meant = |glimpse: &Glimpse<'_>| glimpse.may_name(|name| pattern.matches(name));
    let selection = Selection { kinds: labels::NAMES, keys, times: Timestamp::ZERO..=until };
    read(view, &selection, is_meant, |item| match item {
        Read::Hole(hole) => holes.add(hole),
        Read::Event(event) => match event.kind {
            EventKind::NameResolved(resolution) if resolution.at < until => {
                let mut asked = std::iter::once(&resolution.name).chain(&resolution.aliases);
                if asked.any(|name| pattern.matches(name)) {
                    addresses.extend(resolution.addresses.iter().map(IpAddr::to_canonical));
                    while addresses.len() > NAME_ADDRESSES_MAX {
                        addresses.pop_last();
                        *left_out = true;
                    }
                }
            }
            EventKind::ServerName(hello)
                if hello.at < until && hello.name.as_deref().is_some_and(|name| pattern.matches(name)) =>
            {
                if hellos.len() == NAME_ADDRESSES_MAX {
                    *left_out = true;
                } else {
                    hellos.push(*hello);
                }
            }
            _ => {}
        },
    })?;
    Ok(remotes)
}

/// Holes that were met where something was looked for, by their first position.
#[derive(Default)]
struct Holes(BTreeMap<Seq, Hole>);

impl Holes {
    fn add(&mut self, hole: Hole) {
        if self.0.len() >= HOLES_MAX
            && !self.0.contains_key(&hole.first)
            && let Some(mut last) = self.0.last_entry()
        {
            unite(last.get_mut(), hole);
            return;
        }
        match self.0.entry(hole.first) {
            Entry::Vacant(place) => {
                place.insert(hole);
            }
            Entry::Occupied(mut met) => unite(met.get_mut(), hole),
        }
    }

    /// Takes out the one that begins with this one, and makes of both what is missing by either: who passes over other frames
    /// may see another end.
    fn united(&mut self, mut hole: Hole) -> Hole {
        if let Some(met) = self.0.remove(&hole.first) {
            unite(&mut hole, met);
        }
        hole
    }

    /// Takes out those that begin before `seq`.
    fn before(&mut self, seq: Seq) -> BTreeMap<Seq, Hole> {
        let after = self.0.split_off(&seq);
        std::mem::replace(&mut self.0, after)
    }
}

/// Makes one hole reach as far as another does as well.
fn unite(hole: &mut Hole, other: Hole) {
    hole.first = hole.first.min(other.first);
    hole.last = hole.last.max(other.last);
    hole.from = hole.from.min(other.from);
    hole.to = hole.to.max(other.to);
}

/// What was said of coverage.
#[derive(Default)]
struct Coverage {
    connections: Timeline,
    names: Timeline,
}

impl Coverage {
    /// From the ring, and from the holes that were met elsewhere in it.
    fn read(view: &View, mut holes: Holes) -> Result<Self, QueryError> {
        let mut coverage = Self::default();
        let kinds = labels::COVERAGE | labels::UNKNOWN;
        read(
            view,
            &Selection { kinds, keys: None, times: ALWAYS },
            |_| true,
            |item| match item {
                Read::Hole(hole) => {
                    coverage.lose(holes.before(hole.first));
                    coverage.lose([(hole.first, holes.united(hole))]);
                }
                Read::Event(Event { seq, kind: EventKind::CoverageChanged(change), .. }) => {
                    coverage.lose(holes.before(seq));
                    coverage.apply(&change);
                }
                Read::Event(event) if event.kind == EventKind::Unrecognised => {
                    coverage.lose(holes.before(event.seq));
                    let (hole, doubts) = unrecognised(&event, None);
                    coverage.lose([(hole.first, hole)]);
                    doubts.for_each(|doubt| coverage.apply(&doubt));
                }
                Read::Event(_) => {}
            },
        )?;
        coverage.lose(holes.0);
        Ok(coverage)
    }

    fn apply(&mut self, change: &CoverageChange) {
        match change.facet {
            Facet::Connections => self.connections.apply(change),
            Facet::Names => self.names.apply(change),
            Facet::Processes => {}
        }
    }

    fn lose(&mut self, holes: impl IntoIterator<Item = (Seq, Hole)>) {
        for (_, hole) in holes {
            self.connections.apply_hole(&hole);
            self.names.apply_hole(&hole);
        }
    }
}

#[derive(Default)]
struct Found {
    /// By whether they overlap the window, and by their end: the first are those that are needed least. What is left out
    /// is then never what came after a record that is kept, and ended its connection.
    flows: BTreeMap<(bool, Timestamp, Seq), FlowRecord>,
    flows_left_out: u64,
    unnamed: Unnamed,
}

/// Since when the connections that a question admits may have been meant for any name.
#[derive(Default)]
struct Unnamed {
    /// The earliest that is known already.
    since: Option<Timestamp>,
    /// Of the others, by owner: the first that was opened. It tells of all, once it is known when the owner started.
    first_of: HashMap<ProcessUid, FlowRecord>,
}

impl Unnamed {
    fn add(&mut self, flow: &FlowRecord) {
        let without_owner = unnamed_since(flow, None);
        // Where the owner's start can make it later than with none, it is waited for.
        let waits = without_owner != unnamed_since(flow, Some(flow.opened));
        match flow.process.filter(|_| waits) {
            Some(owner) if self.first_of.len() < OWNERS_MAX || self.first_of.contains_key(&owner) => {
                let first = self.first_of.entry(owner).or_insert_with(|| flow.clone());
                if flow.opened < first.opened {
                    *first = flow.clone();
                }
            }
            _ => self.since = [self.since, without_owner].into_iter().flatten().min(),
        }
    }

    fn since(self, view: &View) -> Result<Option<Timestamp>, QueryError> {
        if self.first_of.is_empty() || self.since == Some(Timestamp::ZERO) {
            return Ok(self.since);
        }
        let mut started: HashMap<ProcessUid, Timestamp> = HashMap::new();
        read_processes(view, self.first_of.keys(), |item| {
            if let Read::Event(Event { kind: EventKind::ProcessStarted(process), .. }) = item
                && self.first_of.contains_key(&process.uid)
            {
                started.entry(process.uid).or_insert(process.started);
            }
        })?;
        let owned = self.first_of.iter();
        let owned = owned.filter_map(|(owner, flow)| unnamed_since(flow, started.get(owner).copied()));
        Ok(owned.chain(self.since).min())
    }
}

fn find(
    view: &View,
    question: &Question,
    remotes: &NamedRemotes,
    holes: &mut Holes,
) -> Result<Found, QueryError> {
    let mut found = Found::default();
    let (target, window) = (&question.target, question.window);
    let by_name = target.name().is_some();
    let near = |flow: &FlowRecord| {
        flow.first < window.to()
            && flow.last >= question.looks_back_to()
            && target.admits(flow.protocol, flow.remote.port())
    };
    // By name, any connection may have been meant.
    let keys = if by_name { None } else { labels::of_target(target) };
    let times = question.looks_back_to()..=window.to();
    let may_be_meant = |glimpse: &Glimpse<'_>| {
        glimpse.flow().is_none_or(|(remote, first, last)| {
            first < window.to() && last >= question.looks_back_to() && (by_name || target.contains(remote))
        })
    };
    read(view, &Selection { kinds: labels::FLOWS, keys, times }, may_be_meant, |item| match item {
        Read::Hole(hole) => holes.add(hole),
        Read::Event(event) => match event.kind {
            EventKind::Flow(flow) if near(&flow) => {
                if by_name {
                    found.unnamed.add(&flow);
                }
                if !remotes.may_match(question, &flow) {
                    return;
                }
                let overlaps = window.overlaps(flow.first, flow.last);
                found.flows.insert((overlaps, flow.last, event.seq), *flow);
                if found.flows.len() > RECORDS_MAX {
                    found.flows.pop_first();
                    found.flows_left_out += 1;
                }
            }
            _ => {}
        },
    })?;
    Ok(found)
}

/// The lives of the flows' owners, as far as they became what they were before `until`.
fn lives(
    view: &View,
    flows: &[FlowRecord],
    until: Timestamp,
) -> Result<HashMap<ProcessUid, ProcessLife>, QueryError> {
    let owners: HashSet<ProcessUid> = flows.iter().filter_map(|flow| flow.process).collect();
    let mut lives: HashMap<ProcessUid, ProcessLife> = HashMap::new();
    if owners.is_empty() {
        return Ok(lives);
    }
    let mut exits: HashMap<ProcessUid, ProcessExit> = HashMap::new();
    let mut executions: HashMap<ProcessUid, (Vec<ProcessExecution>, u64)> = HashMap::new();
    read_processes(view, &owners, |item| match item {
        Read::Event(Event { kind: EventKind::ProcessStarted(process), .. })
            if owners.contains(&process.uid) =>
        {
            // The first record of a process is from nearest its start.
            lives.entry(process.uid).or_insert_with(|| ProcessLife::new(*process, None));
        }
        Read::Event(Event { kind: EventKind::ProcessExited(exit), .. }) if owners.contains(&exit.uid) => {
            exits.insert(exit.uid, exit);
        }
        Read::Event(Event { kind: EventKind::ProcessExecuted(execution), .. })
            if owners.contains(&execution.uid) && execution.executed < until =>
        {
            let (kept, left_out) = executions.entry(execution.uid).or_default();
            kept.push(*execution);
            if kept.len() > EXECUTIONS_MAX {
                kept.remove(0);
                *left_out += 1;
            }
        }
        _ => {}
    })?;
    for (uid, life) in &mut lives {
        life.exit = exits.get(uid).copied();
        if let Some((kept, left_out)) = executions.remove(uid) {
            life.executions = kept;
            life.executions_left_out = left_out;
        }
    }
    add_executables(view, &mut lives)?;
    Ok(lives)
}

/// What the ring has of the executable files that the processes ran.
fn add_executables(view: &View, lives: &mut HashMap<ProcessUid, ProcessLife>) -> Result<(), QueryError> {
    let files: HashSet<FileIdentity> =
        lives.values_mut().flat_map(ProcessLife::images_mut).filter_map(|image| image.file).collect();
    if files.is_empty() {
        return Ok(());
    }
    let mut seen: BTreeMap<(FileIdentity, ExecutableSighting), ExecutableRecord> = BTreeMap::new();
    let keys = Some(files.iter().map(labels::of_file).collect());
    read(
        view,
        &Selection { kinds: labels::EXECUTABLES, keys, times: ALWAYS },
        |_| true,
        |item| {
            if let Read::Event(Event { kind: EventKind::ExecutableSeen(executable), .. }) = item
                && let Some(file) = executable.file.filter(|file| files.contains(file))
            {
                let kept = seen.entry((file, executable.sighting)).or_insert_with(|| (*executable).clone());
                if kept.sha256.is_none() && executable.sha256.is_some() {
                    *kept = *executable;
                }
            }
        },
    )?;
    let of = |file: FileIdentity| {
        let sightings = [ExecutableSighting::Run, ExecutableSighting::Written];
        sightings.into_iter().filter_map(|sighting| seen.get(&(file, sighting))).cloned().collect::<Vec<_>>()
    };
    for life in lives.values_mut() {
        for image in life.images_mut().filter(|image| image.sha256.is_none()) {
            image.sha256 = image.file.and_then(|file| of(file).iter().find_map(|seen| seen.sha256));
        }
        life.executable = life.image().file.map(of).unwrap_or_default();
    }
    Ok(())
}

/// Reads what is said of these processes.
fn read_processes<'a>(
    view: &View,
    owners: impl IntoIterator<Item = &'a ProcessUid>,
    take: impl FnMut(Read),
) -> Result<(), QueryError> {
    let owners: HashSet<[u8; 16]> = owners.into_iter().map(|uid| *uid.as_bytes()).collect();
    let keys = owners.iter().map(|uid| labels::of_owner(ProcessUid::from_bytes(*uid))).collect();
    let is_meant = |glimpse: &Glimpse<'_>| glimpse.uid().is_none_or(|uid| owners.contains(&uid));
    read(view, &Selection { kinds: labels::PROCESSES, keys: Some(keys), times: ALWAYS }, is_meant, take)
}

/// The ring cannot answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// It cannot be read.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// A record is no event.
    #[error("a recorded event cannot be read: {0}")]
    Decode(#[from] prost::DecodeError),
    /// The system has no thread to read it with.
    #[error("cannot start a thread to read the ring: {0}")]
    Thread(#[source] std::io::Error),
    /// An event breaks the contract.
    #[error("a recorded event cannot be read: {0}")]
    Convert(#[from] ConvertError),
}

#[cfg(test)]
mod tests;
