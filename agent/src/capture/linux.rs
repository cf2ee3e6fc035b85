//! Linux: several [`Sensor`]s, each with an ear at one place in the kernel, made one [`Source`].
//!
//! One thread waits for all of them, takes what each has, and puts it in the order in which it happened. What happened
//! before a turn began has reached some sensor by the time that the turn is over; what is younger waits for the next one,
//! since an older fact could still come from a sensor that was asked before it. So reports are in order across sensors,
//! and `seen_until` is the instant at which a turn began.

use std::{os::fd::BorrowedFd, time::Duration};

use alibi_proto::{
    coverage::Facet,
    host::{FacetCoverage, SourceDescription},
    time::Moment,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{CaptureError, Fact, Observation, Options, Outlet, Report, Source, canary::Canary};
use crate::sys;

mod clock;
mod ebpf;
mod links;
mod names;
mod namespaces;
mod netlink;
mod surroundings;
mod users;
mod written;

use names::Names;
pub(super) use surroundings::Surroundings;

/// A report comes at least so often, so that the watermark goes on.
const TURN_MAX: Duration = Duration::from_secs(1);
/// After something has been heard, more is let come, so that a burst is taken in few turns: each costs a write to the disk.
const GATHER: Duration = Duration::from_millis(20);

/// So many facts take more memory than is to be kept for the next ones; and a turn with so few is a quiet one.
const BURST_FACTS: usize = 10_000;
const QUIET_FACTS_MAX: usize = 16;

/// The source of first choice: events by BPF.
///
/// # Errors
/// When the kernel refuses it.
pub(super) fn ebpf(options: &Options) -> Result<Linux, CaptureError> {
    let only = options.own_network_namespace.then(sys::network_namespace).flatten();
    let probe = ebpf::Ebpf::open(options.buffer_bytes.unwrap_or(ebpf::BUFFER_BYTES), only)?;
    let hears_names = probe.facets().iter().any(|facet| facet.facet == Facet::Names);
    let source = Linux::new(ebpf::NAME, vec![Box::new(probe)]);
    let source = if hears_names { source } else { source.with_names(options) };
    Ok(source.with_links_and_clock().with_canary())
}

/// The fallback where the kernel refuses BPF: its messages on processes and sockets, and a look at the sockets each period.
///
/// # Errors
/// When the agent lacks the right, or the kernel the feature.
pub(super) fn netlink(options: &Options) -> Result<Linux, CaptureError> {
    let sensors = netlink::open(options)?;
    Ok(Linux::new(netlink::NAME, sensors).with_names(options).with_links_and_clock())
}

/// An ear at one place in the kernel. All are called from one thread, and must not block.
pub(super) trait Sensor: Send {
    /// What it is worth, facet by facet; empty for one that only adds to what others see.
    fn facets(&self) -> Vec<FacetCoverage> {
        Vec::new()
    }

    /// Readable when there is something to take. One that watches several gives an epoll.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// When it wants to be asked again at the latest, though there is nothing to read.
    fn wants_turn_within(&self) -> Option<Duration> {
        None
    }

    /// Takes everything that has come until `now`, in bounded memory, in any order; the first time, also what is there
    /// already. What was lost in between is a [`super::Fact::Coverage`] with its exact count.
    ///
    /// False if something may have happened before `now` that could not be taken yet.
    ///
    /// # Errors
    /// When it can hear no longer.
    fn take(&mut self, now: Moment, facts: &mut Vec<Observation>) -> Result<bool, CaptureError>;
}

/// The source made of sensors.
pub(super) struct Linux {
    name: &'static str,
    sensors: Vec<Box<dyn Sensor>>,
    /// Facts that are younger than the last turn.
    held: Vec<Observation>,
    /// Everything before this has been reported.
    seen_until: Option<Moment>,
    names: Option<Names>,
    canary: Option<Canary>,
}

impl Linux {
    pub(super) fn new(name: &'static str, sensors: Vec<Box<dyn Sensor>>) -> Self {
        Self { name, sensors, held: Vec::new(), seen_until: None, names: None, canary: None }
    }

    /// With the names that are looked up and asked for.
    fn with_names(mut self, options: &Options) -> Self {
        match Names::open(options.own_network_namespace) {
            Ok(names) => self.names = Some(names),
            Err(problem) => tracing::warn!(%problem, "recording without names"),
        }
        self
    }

    /// With what every source on this system can tell beside processes and connections. What cannot be told is said in
    /// the log: no answer about connections depends on it.
    fn with_links_and_clock(mut self) -> Self {
        self.sensors.extend(surroundings::sensors());
        self
    }

    /// With a canary, for a source that claims to see every connection.
    fn with_canary(mut self) -> Self {
        let connections = self.describe().facets.into_iter().find(|facet| facet.facet == Facet::Connections);
        self.canary = connections.and_then(|facet| Canary::open(facet.grade, facet.scope));
        self
    }

    fn sensors(&self) -> impl Iterator<Item = &dyn Sensor> {
        let names = self.names.as_ref().map(|names| names as &dyn Sensor);
        self.sensors.iter().map(|sensor| &**sensor).chain(names)
    }

    /// Waits until a sensor has something, or it is time for a report.
    fn listen(&self) -> Result<(), CaptureError> {
        let mut descriptors: Vec<PollFd<'_>> = self
            .sensors()
            .map(|sensor| PollFd::from_borrowed_fd(sensor.descriptor(), PollFlags::IN))
            .collect();
        let wishes = self.sensors().filter_map(Sensor::wants_turn_within);
        let timeout = wishes.fold(TURN_MAX, Duration::min);
        let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
        let timeout = Timespec { tv_sec: seconds, tv_nsec: timeout.subsec_nanos().into() };
        match poll(&mut descriptors, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(problem) => Err(CaptureError::Wait(problem.into())),
        }
    }

    fn turn(&mut self) -> Result<Report, CaptureError> {
        let now = sys::now();
        let mut facts = std::mem::take(&mut self.held);
        let mut has_all = true;
        for sensor in &mut self.sensors {
            has_all &= sensor.take(now, &mut facts)?;
        }
        if let Some(names) = &mut self.names {
            for (namespace, pid) in facts.iter().filter_map(|observation| place(&observation.fact)) {
                names.meet(namespace, pid);
            }
            has_all &= names.take(now, &mut facts)?;
        }
        let seen_until = if has_all { now } else { self.seen_until.unwrap_or(now) };
        self.seen_until = Some(seen_until);
        facts.sort_by_key(|observation| observation.at.boot_ns);
        let younger = facts.partition_point(|observation| observation.at.boot_ns <= seen_until.boot_ns);
        self.held = facts.split_off(younger);
        if let Some(canary) = &mut self.canary {
            canary.turn(now, &mut facts);
        }
        Ok(Report { observations: facts, seen_until })
    }
}

impl Source for Linux {
    fn describe(&self) -> SourceDescription {
        let facets = self.sensors().flat_map(Sensor::facets).collect();
        SourceDescription { name: self.name.to_owned(), facets, caveat: None }
    }

    fn run(mut self: Box<Self>, outlet: Outlet) -> Result<(), CaptureError> {
        match outlet.writers().map(written::Written::open) {
            Some(Ok(written)) => self.sensors.push(Box::new(written)),
            Some(Err(problem)) => tracing::warn!(%problem, "executables that are written are not told"),
            None => {}
        }
        let mut burst = Burst::default();
        loop {
            let report = self.turn()?;
            burst.turn(report.observations.len());
            if outlet.report(report).is_err() || outlet.wait(GATHER).is_err() {
                return Ok(());
            }
            self.listen()?;
        }
    }
}

/// Whether much has happened, and is over: then what it took in memory is given back.
#[derive(Default)]
struct Burst {
    facts: usize,
}

impl Burst {
    fn turn(&mut self, facts: usize) {
        self.facts = self.facts.saturating_add(facts);
        if facts <= QUIET_FACTS_MAX && self.facts >= BURST_FACTS {
            self.facts = 0;
            sys::linux::give_memory_back();
        }
    }
}

/// In which network namespace somebody has opened a connection, and who.
fn place(fact: &Fact) -> Option<(u64, u32)> {
    let Fact::ConnectionOpened(connection) = fact else { return None };
    Some((connection.network_namespace?, connection.owner?.pid))
}
