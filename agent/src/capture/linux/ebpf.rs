//! Events from the kernel by BPF: every connection and every process, at the call, with its owner.
//!
//! [`probe`] loads and reads the program in `bpf/`, [`event`] understands its words; [`processes`] and [`connections`]
//! turn them into facts.

use std::{collections::HashSet, os::fd::BorrowedFd, time::Duration};

use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade, Scope},
    host::FacetCoverage,
    time::Moment,
};

use super::{Sensor, netlink};
use crate::capture::{CaptureError, Fact, Observation, poll};

mod connections;
mod event;
mod names;
mod probe;
mod processes;

use connections::{Connections, LISTINGS};
use event::Event;
use names::Names;
use probe::{Lost, Probe};
use processes::Processes;

pub(super) const NAME: &str = "ebpf";

/// Of the buffer between kernel and agent: some 16,000 events on connections. It is mapped twice in a row, so that it counts
/// twice in the agent's memory. With eight busy programs on two processors, 20,000 connections as fast as possible did not
/// fill half of it.
pub(super) const BUFFER_BYTES: u32 = 2 << 20;

/// Why something was lost.
const UNTOLD: &str = "the kernel could not tell: the buffer to the agent was full, there was no memory at a socket, or a datagram could not be read";
const SKIPPED: &str = "the kernel left out a hook in an interrupt, because it was running already";
/// What moves in a connection that has just been opened is looked at so soon: before its first record is due, which is after
/// a second.
const FRESH_LOOK_AFTER: Duration = Duration::from_millis(500);
/// A turn takes at most so much. More comes only if events come as fast as they are taken.
const TAKEN_BYTES_MAX: usize = 8 << 20;
/// Of the place for what a turn takes, so much is kept for the next one.
const TAKEN_BYTES_KEPT: usize = 256 << 10;
/// What moves in open connections is looked at so often.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// After losses, what is there is looked at as often at most.
const RECONCILE_INTERVAL: Duration = Duration::from_millis(250);
/// Whether what is taken to be open still is, is looked at so often, whatever has been told: the kernel has more ways to end a
/// connection than anybody knows.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// The sensor.
pub(super) struct Ebpf {
    probe: Probe,
    processes: Processes,
    connections: Connections,
    names: Names,
    /// When connections were looked at last.
    looked: Option<Moment>,
    /// When the kernel's count of what was lost was read last, and what it was.
    counted: Option<(Moment, Lost)>,
    /// When it was last looked whether all is known that is open.
    reconciled: Option<Moment>,
    /// Losses after which nobody has looked yet, and when that was last done.
    doubted: Doubted,
    resolved: Option<Moment>,
    has_begun: bool,
    adopted: Adopted,
    /// Place for events that have been taken, and where each ends.
    taken: (Vec<u8>, Vec<usize>),
}

/// When losses were first counted.
#[derive(Clone, Copy, Default)]
struct Doubted {
    processes: Option<Moment>,
    connections: Option<Moment>,
    /// Changes of connections that a tracepoint was left out of, since when and how many. All that began while the probe was
    /// there have a second hook: something was lost only if one of the others changed.
    changes: Option<(Moment, u64)>,
}

impl Doubted {
    fn is_any(&self) -> bool {
        self.processes.is_some() || self.connections.is_some() || self.changes.is_some()
    }
}

/// Whether the connections that no process holds have been taken over.
enum Adopted {
    NotYet,
    /// Not those of all network namespaces.
    Some {
        tried: Moment,
    },
    All,
}

/// So many of a facet were lost in between, or an unknown number (0).
fn loss(facet: Facet, count: u64, reason: &str, (from, to): (Moment, Moment), now: Moment) -> Observation {
    let change = CoverageChange {
        facet,
        grade: Grade::Lost { count, reason: reason.to_owned() },
        from: from.wall,
        to: Some(to.wall),
        scope: None,
        announced_from: None,
    };
    Observation { at: now, fact: Fact::Coverage(change) }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Ebpf {
    /// Loads the probe. With `only`, connections of other network namespaces are left out.
    ///
    /// # Errors
    /// When the kernel refuses the probe.
    pub(super) fn open(buffer_bytes: u32, only: Option<u64>) -> Result<Self, CaptureError> {
        Ok(Self {
            probe: Probe::load(buffer_bytes)?,
            processes: Processes::default(),
            connections: Connections::of(only),
            names: Names::new(),
            looked: None,
            counted: None,
            reconciled: None,
            doubted: Doubted::default(),
            resolved: None,
            has_begun: false,
            adopted: Adopted::NotYet,
            taken: Default::default(),
        })
    }

    /// What runs and what is open. The probe is in place already: what happens meanwhile waits in its buffer.
    fn begin(&mut self, now: Moment, facts: &mut Vec<Observation>) -> Result<(), CaptureError> {
        for observation in poll::running_processes()? {
            if let Fact::ProcessStarted(process) = &observation.fact {
                self.processes.found(process);
            }
            facts.push(Observation { at: now, ..observation });
        }
        let found = self.probe.find()?;
        facts.extend(self.connections.find(now, &found));
        Ok(())
    }

    /// Connections that were open before the probe was there and are in no process's hands: what their last holder left to
    /// the kernel, what waits to be accepted, what belongs to the kernel itself or to another protocol above it.
    fn adopt(&mut self, now: Moment, facts: &mut Vec<Observation>) {
        match self.adopted {
            Adopted::All => return,
            Adopted::Some { tried } if now.boot_ns.saturating_sub(tried.boot_ns) < nanos(SWEEP_INTERVAL) => {
                return;
            }
            _ => {}
        }
        let (open, unseen) = self.open_now();
        open.iter().for_each(|connection| facts.extend(self.connections.adopt(connection, now)));
        let was_partial = matches!(self.adopted, Adopted::Some { .. });
        self.adopted = if unseen > 0 { Adopted::Some { tried: now } } else { Adopted::All };
        // As long as they may live, nothing is proven.
        let stands = if unseen > 0 && !was_partial {
            let reason = format!(
                "what was open before in {unseen} network namespaces, and in no process's hands, is not known"
            );
            Some((Grade::Lost { count: 0, reason }, None))
        } else if unseen == 0 && was_partial {
            let connections = self.facets().into_iter().find(|facet| facet.facet == Facet::Connections);
            connections.map(|facet| (facet.grade, Some(facet.scope)))
        } else {
            None
        };
        if let Some((grade, scope)) = stands {
            let (facet, from) = (Facet::Connections, now.wall);
            let change = CoverageChange { facet, grade, from, to: None, scope, announced_from: None };
            facts.push(Observation { at: now, fact: Fact::Coverage(change) });
        }
    }

    /// False if there is more that could not be taken yet.
    fn take_events(&mut self, now: Moment, facts: &mut Vec<Observation>) -> bool {
        // They lie in the probe's buffer, and what they mean can make the probe be asked: so they are copied, one after the
        // other, and the place is used again.
        let (mut bytes, mut ends) = std::mem::take(&mut self.taken);
        let has_all = self.probe.drain(TAKEN_BYTES_MAX, |event| {
            bytes.extend_from_slice(event);
            ends.push(bytes.len());
        });
        let mut begin = 0;
        for &end in &ends {
            self.take_event(&bytes[begin..end], now, facts);
            begin = end;
        }
        bytes.clear();
        ends.clear();
        bytes.shrink_to(TAKEN_BYTES_KEPT);
        ends.shrink_to(TAKEN_BYTES_KEPT / 128);
        self.taken = (bytes, ends);
        has_all
    }

    fn take_event(&mut self, bytes: &[u8], now: Moment, facts: &mut Vec<Observation>) {
        match Event::parse(bytes) {
            Some(Event::Fork(header, fork)) => self.processes.fork(header, fork, now),
            Some(Event::Exec(header, exec)) => self.processes.exec(header, &exec, now, facts),
            Some(Event::Exit(header, status)) => self.processes.exit(header, status, now, facts),
            Some(Event::Connection(header, kind, connection)) => {
                let event = (header, kind, connection);
                self.connections.take(event, now, &mut self.probe, &mut self.processes, facts);
            }
            Some(Event::Packet(header, packet)) => {
                if !self.connections.leaves_out(packet.network_namespace) {
                    self.names.take(header, &packet, now, facts);
                }
            }
            None => {
                tracing::error!(bytes = bytes.len(), "the probe wrote what is no event: please report it")
            }
        }
    }

    /// The kernel's count of what it could not tell, as coverage.
    fn count_losses(&mut self, now: Moment, facts: &mut Vec<Observation>) {
        // What is lost between reading the clock and reading the count is in both intervals.
        let counting_from = crate::sys::now();
        let lost = self.probe.lost();
        let counted_at = crate::sys::now();
        let (since, before) = self.counted.replace((counting_from, lost)).unwrap_or((now, Lost::default()));
        let skipped = [0, 1, 2].map(|kind| lost.skipped[kind].saturating_sub(before.skipped[kind]));
        let [processes, changes, owners] = skipped;
        let (connections, may_be_none) =
            if self.probe.sees_changes_twice { (owners, changes) } else { (owners + changes, 0) };
        let counts = [
            (Facet::Processes, lost.processes - before.processes, UNTOLD),
            (Facet::Connections, lost.connections - before.connections, UNTOLD),
            (Facet::Names, lost.names - before.names, UNTOLD),
            (Facet::Processes, processes, SKIPPED),
            (Facet::Connections, connections, SKIPPED),
        ];
        for (facet, count, reason) in counts.into_iter().filter(|(_, count, _)| *count > 0) {
            facts.push(loss(facet, count, reason, (since, counted_at), now));
        }
        if lost.processes > before.processes || processes > 0 {
            self.doubted.processes.get_or_insert(counted_at);
        }
        if lost.connections > before.connections || connections > 0 {
            self.doubted.connections.get_or_insert(counted_at);
        }
        if may_be_none > 0 {
            self.doubted.changes.get_or_insert((since, 0)).1 += may_be_none;
        }
    }

    /// After losses, looks what is there. Not at once if that has just been done: somebody may make losses on purpose. Until
    /// then nothing more is known. False if it is still to be done.
    fn resolve_doubts(&mut self, now: Moment, facts: &mut Vec<Observation>) -> Result<bool, CaptureError> {
        let is_recent = |done: Moment| now.boot_ns.saturating_sub(done.boot_ns) < nanos(RECONCILE_INTERVAL);
        if !self.doubted.is_any() {
            return Ok(true);
        }
        if self.resolved.is_some_and(is_recent) {
            return Ok(false);
        }
        self.resolved = Some(now);
        if self.doubted.processes.is_some() {
            self.processes.reconcile(now, facts)?;
        }
        let Doubted { connections, changes, .. } = self.doubted;
        if connections.is_some() || changes.is_some() {
            let Some(is_as_told) = self.reconcile(now, connections.is_some(), facts)? else {
                return Ok(false);
            };
            if let Some((since, count)) = changes.filter(|_| !is_as_told) {
                facts.push(loss(Facet::Connections, count, SKIPPED, (since, now), now));
            }
        }
        let doubted = std::mem::take(&mut self.doubted);
        // What came between the losses and this look is found as of now only.
        let since = [(Facet::Processes, doubted.processes), (Facet::Connections, doubted.connections)];
        for (facet, since) in since.into_iter().filter_map(|(facet, since)| Some((facet, since?))) {
            if since.boot_ns < now.boot_ns {
                facts.push(loss(facet, 0, UNTOLD, (since, now), now));
            }
        }
        Ok(true)
    }

    /// Looks whether all is known that is open, and nothing more; whether it was. None if that cannot be told yet. What was
    /// not told may have been counted as lost already.
    fn reconcile(
        &mut self,
        now: Moment,
        is_counted: bool,
        facts: &mut Vec<Observation>,
    ) -> Result<Option<bool>, CaptureError> {
        self.reconciled = Some(now);
        let (probe, processes) = (&mut self.probe, &mut self.processes);
        let (untold, mut missing) = self.connections.begin_reconciling(now, probe, processes, facts)?;
        facts.extend(untold.loss(now, if is_counted { 0 } else { untold.count }));
        let has_all = self.take_events(now, facts);
        self.connections.keep_open(&mut missing);
        if missing.is_empty() {
            return Ok(Some(untold.count == 0));
        }
        if !has_all {
            return Ok(None);
        }
        // As the other listing, it can jump over what is beside something that ends meanwhile.
        let (mut alive, mut is_whole) = (HashSet::new(), true);
        for _ in 0..LISTINGS {
            let (open, unseen) = self.open_now();
            alive.extend(open.iter().map(|connection| connection.cookie));
            is_whole &= unseen == 0;
            if missing.is_subset(&alive) {
                break;
            }
        }
        let are_alive = missing.is_subset(&alive);
        self.connections.end_reconciling(missing, &alive, is_whole, now, facts);
        Ok(Some(untold.count == 0 && are_alive))
    }

    /// What is open by the kernel's own list, and in how many network namespaces that cannot be seen.
    fn open_now(&self) -> (Vec<netlink::OpenConnection>, usize) {
        netlink::open_now(self.connections.is_of_own_only()).unwrap_or_else(|problem| {
            tracing::warn!(%problem, "the open connections cannot be listed");
            (Vec::new(), 1)
        })
    }

    fn look(&mut self, now: Moment, facts: &mut Vec<Observation>) -> Result<(), CaptureError> {
        let (is_fresh, is_any) = self.connections.wants_look();
        let since =
            self.looked.map(|looked| Duration::from_nanos(now.boot_ns.saturating_sub(looked.boot_ns)));
        let interval = if is_fresh { FRESH_LOOK_AFTER } else { LOOK_INTERVAL };
        if is_any && since.is_none_or(|since| since >= interval) {
            self.looked = Some(now);
            self.connections.look(now, &mut self.probe, &mut self.processes, facts)?;
        }
        let interval = if self.connections.is_full() { LOOK_INTERVAL } else { SWEEP_INTERVAL };
        let reconciled = *self.reconciled.get_or_insert(now);
        if now.boot_ns.saturating_sub(reconciled.boot_ns) >= nanos(interval) {
            self.reconcile(now, false, facts)?;
        }
        Ok(())
    }
}

impl Sensor for Ebpf {
    fn facets(&self) -> Vec<FacetCoverage> {
        let lacks = &self.probe.lacks;
        let connections = if lacks.connections.is_empty() {
            Grade::Complete
        } else {
            Grade::Lost {
                count: 0,
                reason: format!("this kernel does not show {}", lacks.connections.join("; ")),
            }
        };
        let cannot_see = |words: &str, lacks: &[String]| {
            lacks.iter().fold(words.to_owned(), |text, lack| format!("{text}; {lack}"))
        };
        let scope = |covers: &str, cannot_see| Scope {
            source: NAME.to_owned(),
            covers: covers.to_owned(),
            cannot_see,
        };
        let mut facets = vec![
            FacetCoverage {
                facet: Facet::Processes,
                grade: Grade::Complete,
                scope: scope(
                    "every fork, exec and exit, by eBPF, in all containers",
                    "a change of user or directory after the exec".to_owned(),
                ),
            },
            FacetCoverage {
                facet: Facet::Connections,
                grade: connections,
                scope: scope(
                    self.connections.covers(),
                    cannot_see(
                        "other protocols; raw and packet sockets; the own traffic of virtual machines; tunnels made by the \
                         kernel; what a program sends past the kernel; by which other address this host or the network translated one (NAT)",
                        &lacks.words,
                    ),
                ),
            },
        ];
        // Without the hooks at the sockets, others listen.
        if lacks.connections.is_empty() {
            let (covers, cannot_see) = (names::COVERS, names::CANNOT_SEE.to_owned());
            facets.push(FacetCoverage {
                facet: Facet::Names,
                grade: Grade::Complete,
                scope: scope(covers, cannot_see),
            });
        }
        facets
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.probe.descriptor()
    }

    fn wants_turn_within(&self) -> Option<Duration> {
        let (is_fresh, _) = self.connections.wants_look();
        let looks = is_fresh.then_some(FRESH_LOOK_AFTER / 2);
        let doubts = self.doubted.is_any().then_some(RECONCILE_INTERVAL);
        looks.into_iter().chain(doubts).chain(self.names.wants_turn_within()).min()
    }

    fn take(&mut self, now: Moment, facts: &mut Vec<Observation>) -> Result<bool, CaptureError> {
        if !std::mem::replace(&mut self.has_begun, true) {
            self.begin(now, facts)?;
        }
        let has_all = self.take_events(now, facts);
        self.adopt(now, facts);
        self.count_losses(now, facts);
        // While events come faster than they are taken, what is open cannot be held against what was told.
        let is_certain = has_all && self.resolve_doubts(now, facts)?;
        if has_all {
            self.look(now, facts)?;
        }
        self.processes.tell_waiting(now, facts);
        let is_settled = self.names.settle(now, facts);
        Ok(has_all && is_certain && is_settled)
    }
}
