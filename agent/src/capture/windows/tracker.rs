//! What the trace delivered becomes facts, in order. Pure: what the system is asked for is an argument.
//!
//! The agent writes markers into its own trace. What was told before a marker has been delivered before it, since all
//! processors write into one buffer. So once a marker has come back, everything until shortly before it was written has been
//! seen; what is younger waits for the next one. A marker, of which both times are known, ties the trace's clock to the
//! agent's, whatever the wall clock does.

use std::collections::{HashMap, HashSet};

use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade},
    process::ProcessImage,
    time::{Moment, Timestamp},
};

use super::{
    connections::{Connections, OPEN_MAX},
    event::{Event, Started, Unreadable, What, Why},
    moment, names,
    processes::Processes,
};
use crate::{
    capture::{Fact, Observation, ProcessKey, Report, poll::ProcessRow},
    sys::TcpSocket,
};

#[cfg(test)]
mod tests;

/// What happened so long before a marker was written may have been put into the buffer after it. Therefore as much is not
/// vouched for.
const SETTLES_WITHIN_NS: u64 = 100_000_000;

/// What was delivered until a marker came back.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// In the order of delivery.
    pub(super) events: Vec<Event>,
    /// Those that are not as they should be, and how many.
    pub(super) unreadable: HashMap<Unreadable, u64>,
    /// What there was no room for, since the batch before.
    pub(super) lost: Lost,
}

/// What there was no room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lost {
    /// Events.
    pub(super) events: u64,
    /// Buffers full of events.
    pub(super) buffers: u64,
}

/// A marker that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Marker {
    /// Before it was written.
    pub(super) written: Moment,
    /// The trace's own time of it, 100 ns since 1601.
    pub(super) file_time: u64,
}

/// The tables of the system, as they were read at one instant.
#[derive(Debug)]
pub(super) struct Look {
    /// Before they were read.
    pub(super) at: Moment,
    pub(super) processes: Vec<ProcessRow>,
    pub(super) sockets: Vec<TcpSocket>,
}

/// Something that was lost, at some time until `to_ns`, in nanoseconds since boot.
#[derive(Debug)]
struct Loss {
    facet: Facet,
    /// 0 once it was told.
    count: u64,
    reason: String,
    to_ns: u64,
}

/// What becomes of what is told.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    processes: Processes,
    connections: Connections,
    /// When recording began, in nanoseconds since boot, until the first marker has come back: what was told before that
    /// happened is in the tables. Later nothing is as old, and what seems so was told across a step of the clock.
    begun_ns: Option<u64>,
    /// Everything before this has been reported.
    seen_until: Option<Moment>,
    /// What is younger, by the agent's clock.
    held: Vec<(u64, What)>,
    /// What was read of processes whose start is among those.
    images: HashMap<ProcessKey, ProcessImage>,
    /// What was lost until later than everything was reported.
    losses: Vec<Loss>,
    /// Tables that have been read, and are compared once the next marker has come back.
    look: Option<Look>,
    /// Processes that started or ended since those were read.
    since_look: HashSet<ProcessKey>,
    /// Until then all was known.
    compared: Option<Moment>,
    /// What this version of Windows tells otherwise.
    unknown: HashSet<Unreadable>,
}

impl Tracker {
    /// What is there when recording begins. From then on events are taken.
    pub(super) fn begin(&mut self, look: Look) -> Report {
        let mut facts = Vec::new();
        let at = look.at;
        self.processes.compare(at, look.processes, &HashSet::new(), true, &mut facts);
        let processes = &self.processes;
        self.connections.compare(at, &look.sockets, true, |pid| processes.of(pid), &mut facts);
        (self.begun_ns, self.seen_until, self.compared) = (Some(at.boot_ns), Some(at), Some(at));
        Report { observations: facts, seen_until: at }
    }

    /// Whether a process is known to run.
    pub(super) fn runs(&self, process: ProcessKey) -> bool {
        self.processes.runs(process)
    }

    /// Tables that were read after the last turn.
    pub(super) fn look(&mut self, look: Look) {
        self.look = Some(look);
        self.since_look.clear();
    }

    /// A marker has come back, with everything before it. `images` tells what processes run, as far as they are still there;
    /// `now` is this instant.
    pub(super) fn turn(
        &mut self,
        marker: Marker,
        batch: Batch,
        images: impl FnOnce(&[ProcessKey]) -> HashMap<ProcessKey, ProcessImage>,
        now: Moment,
    ) -> Report {
        let before = self.seen_until.unwrap_or(marker.written);
        let settled = marker.written.boot_ns.saturating_sub(SETTLES_WITHIN_NS).max(before.boot_ns);
        let until = moment(settled, now);
        let mut facts = Vec::new();
        self.note_lost(batch.lost, now);
        self.note_unreadable(&batch.unreadable, before, marker.written, &mut facts);
        self.tell_losses(before, until, &mut facts);
        self.arrive(marker, batch.events, images);

        let settled = self.held.partition_point(|(at, _)| *at <= until.boot_ns);
        let younger = self.held.split_off(settled);
        let mut late = Late::default();
        for (at, what) in std::mem::replace(&mut self.held, younger) {
            late.note(at, before, facet(&what));
            self.take(moment(at.max(before.boot_ns), now), what, &mut facts);
        }
        facts.extend(late.losses(before, now));
        self.compare(until, &mut facts);
        self.connections.settle(until, &mut facts);
        self.note_shortcomings(until, &mut facts);
        facts.sort_by_key(|observation| observation.at.boot_ns);
        self.seen_until = Some(until);
        Report { observations: facts, seen_until: until }
    }

    /// Puts what was delivered among what waits, in the order in which it happened.
    fn arrive(
        &mut self,
        marker: Marker,
        events: Vec<Event>,
        images: impl FnOnce(&[ProcessKey]) -> HashMap<ProcessKey, ProcessImage>,
    ) {
        let started = |event: &Event| match &event.what {
            What::ProcessStarted(Started { pid, created, .. }) => {
                Some(ProcessKey { pid: *pid, start: *created })
            }
            _ => None,
        };
        // By how much it is older than the marker, by the trace's clock; the same by the agent's.
        let at = |event: &Event| {
            let ago = marker.file_time.saturating_sub(event.file_time).saturating_mul(100);
            marker.written.boot_ns.saturating_sub(ago)
        };
        let mut events: Vec<(u64, Event)> = events.into_iter().map(|event| (at(&event), event)).collect();
        if let Some(begun_ns) = self.begun_ns.take() {
            events.retain(|(at, _)| *at >= begun_ns);
        }
        let new: Vec<ProcessKey> = events.iter().filter_map(|(_, event)| started(event)).collect();
        if !new.is_empty() {
            self.images.extend(images(&new));
        }
        self.held.extend(events.into_iter().map(|(at, event)| (at, event.what)));
        self.held.sort_by_key(|(at, _)| *at);
    }

    fn take(&mut self, at: Moment, what: What, facts: &mut Vec<Observation>) {
        match what {
            What::ProcessStarted(started) => {
                let key = ProcessKey { pid: started.pid, start: started.created };
                self.note_since_look(key);
                let image = self.images.remove(&key);
                self.processes.started(at, &started, image, facts);
            }
            What::ProcessStopped { pid, created, exit_code } => {
                let key = ProcessKey { pid, start: created };
                self.note_since_look(key);
                self.processes.stopped(at, key, Some(exit_code.cast_signed()), facts);
            }
            What::Tcp { what, pid, bytes, local, remote } => {
                self.connections.tcp(at, what, bytes, (local, remote), self.processes.of(pid), facts);
            }
            What::Udp { is_sent, pid, bytes, source, destination } => {
                let owner = (pid, self.processes.of(pid));
                self.connections.udp(at, is_sent, owner, bytes, (source, destination), facts);
            }
            What::ConnectRequested { tcb, pid, local, remote } => {
                self.connections.requested(at, tcb, (local, remote), self.processes.of(pid), facts);
            }
            What::ConnectEnded { tcb, pid, local, remote, failure } => {
                self.connections.request_ended(
                    at,
                    tcb,
                    (local, remote),
                    self.processes.of(pid),
                    failure,
                    facts,
                );
            }
            What::Resolved { pid, name, query_type, status, results } => {
                let found = names::resolution(&name, query_type, status, &results, self.processes.of(pid));
                facts
                    .extend(found.map(|found| Observation { at, fact: Fact::NameResolved(Box::new(found)) }));
            }
            What::Marker(_) => {}
        }
    }

    fn note_since_look(&mut self, key: ProcessKey) {
        if self.look.is_some() {
            self.since_look.insert(key);
        }
    }

    /// Compares the tables that were read, once everything until then has been told.
    fn compare(&mut self, until: Moment, facts: &mut Vec<Observation>) {
        let is_due = |look: &mut Look| until.boot_ns >= look.at.boot_ns;
        let Some(look) = self.look.take_if(is_due) else { return };
        let (at, known) = (look.at, self.compared.unwrap_or(look.at));
        let untold = self.processes.compare(at, look.processes, &self.since_look, false, facts);
        if untold > 0 {
            let reason = "processes were found running that had not been told".to_owned();
            facts.push(lost(Facet::Processes, untold, (known.wall, until.wall), until, reason));
        }
        let processes = &self.processes;
        self.connections.compare(at, &look.sockets, false, |pid| processes.of(pid), facts);
        let untold = self.connections.take_untold();
        if untold > 0 {
            facts.push(untold_connections(untold, known, until));
        }
        self.compared = Some(at);
        self.since_look.clear();
    }

    fn note_shortcomings(&mut self, until: Moment, facts: &mut Vec<Observation>) {
        let untold = self.connections.take_untold();
        if untold > 0 {
            facts.push(untold_connections(untold, self.compared.unwrap_or(until), until));
        }
        let unfollowed = self.connections.take_unfollowed();
        if unfollowed > 0 {
            let reason = format!(
                "more than {OPEN_MAX} connections of a kind at once: those beyond were recorded as they began only"
            );
            facts.push(lost(Facet::Connections, unfollowed, (until.wall, until.wall), until, reason));
        }
    }

    fn note_lost(&mut self, lost: Lost, now: Moment) {
        let Lost { events, buffers } = lost;
        if events == 0 && buffers == 0 {
            return;
        }
        let reason = match buffers {
            0 => "the trace had no room for events".to_owned(),
            _ => format!("{buffers} buffers of the trace were not taken in time"),
        };
        // Nobody knows of what they were, nor how many were in a buffer, nor that none was after the marker.
        let count = if buffers == 0 { events } else { 0 };
        let each = |facet| Loss { facet, count, reason: reason.clone(), to_ns: now.boot_ns };
        self.losses.extend(Facet::ALL.map(each));
    }

    /// Tells of each loss as much as falls into the time that is told.
    fn tell_losses(&mut self, before: Moment, until: Moment, facts: &mut Vec<Observation>) {
        for loss in &mut self.losses {
            let count = std::mem::take(&mut loss.count);
            facts.push(lost(loss.facet, count, (before.wall, until.wall), until, loss.reason.clone()));
        }
        self.losses.retain(|loss| loss.to_ns > until.boot_ns);
    }

    fn note_unreadable(
        &mut self,
        unreadable: &HashMap<Unreadable, u64>,
        before: Moment,
        written: Moment,
        facts: &mut Vec<Observation>,
    ) {
        for (unreadable, count) in unreadable {
            let (provider, facet) = (unreadable.provider, unreadable.provider.facet());
            match unreadable.why {
                Why::Torn { id } => {
                    let reason = format!("events of {} ({id}) could not be read", provider.name());
                    self.losses.push(Loss { facet, count: *count, reason, to_ns: written.boot_ns });
                }
                Why::UnknownVersion { id, version } => {
                    if !self.unknown.insert(*unreadable) {
                        continue;
                    }
                    let reason = format!(
                        "this version of Windows tells events of {} ({id}) in version {version}, which this agent cannot \
                         read: it needs a newer one",
                        provider.name()
                    );
                    tracing::error!(reason, "a part of the trace is not recorded");
                    facts.push(coverage(facet, Grade::NotRecorded { reason }, (before.wall, None), before));
                }
            }
        }
    }

    /// Whether something was lost, so that the tables should be looked at.
    pub(super) fn wants_look(report: &Report) -> bool {
        report.observations.iter().any(|observation| {
            matches!(&observation.fact, Fact::Coverage(CoverageChange { grade: Grade::Lost { .. }, .. }))
        })
    }
}

/// Events that came so late that their time had been vouched for.
#[derive(Default)]
struct Late {
    /// How many, and the time of the first in nanoseconds since boot.
    by_facet: HashMap<Facet, (u64, u64)>,
}

impl Late {
    fn note(&mut self, at: u64, before: Moment, facet: Option<Facet>) {
        let Some(facet) = facet.filter(|_| at < before.boot_ns) else { return };
        let (count, first) = self.by_facet.entry(facet).or_insert((0, at));
        *count += 1;
        *first = at.min(*first);
    }

    fn losses(self, before: Moment, now: Moment) -> impl Iterator<Item = Observation> {
        self.by_facet.into_iter().map(move |(facet, (count, first))| {
            let reason = "events came later than the trace promises: their time is not exact".to_owned();
            lost(facet, count, (moment(first, now).wall.min(before.wall), before.wall), before, reason)
        })
    }
}

fn facet(what: &What) -> Option<Facet> {
    match what {
        What::ProcessStarted(_) | What::ProcessStopped { .. } => Some(Facet::Processes),
        What::Tcp { .. } | What::Udp { .. } | What::ConnectRequested { .. } | What::ConnectEnded { .. } => {
            Some(Facet::Connections)
        }
        What::Resolved { .. } => Some(Facet::Names),
        What::Marker(_) => None,
    }
}

fn untold_connections(count: u64, known: Moment, until: Moment) -> Observation {
    let reason = "connections were found open that had not been told".to_owned();
    lost(Facet::Connections, count, (known.wall, until.wall), until, reason)
}

fn lost(
    facet: Facet,
    count: u64,
    (from, to): (Timestamp, Timestamp),
    at: Moment,
    reason: String,
) -> Observation {
    // The wall clock may have been set meanwhile.
    coverage(facet, Grade::Lost { count, reason }, (from.min(to), Some(from.max(to))), at)
}

fn coverage(
    facet: Facet,
    grade: Grade,
    (from, to): (Timestamp, Option<Timestamp>),
    at: Moment,
) -> Observation {
    let change = CoverageChange { facet, grade, from, to, scope: None, announced_from: None };
    Observation { at, fact: Fact::Coverage(change) }
}
