//! Hosts, batches and events to store. Times are in seconds.

use std::time::Duration;

use alibi_proto::{
    clock::{BootBegin, ClockReading, Difference},
    coverage::{CoverageChange, Facet, Grade, Hole},
    event::{Batch, Event, EventKind},
    flow::{Attribution, Direction, FlowEndReason, FlowRecord, FlowState, Protocol, Traffic},
    host::HostDescription,
    id::{ConnectionUid, Epoch, HostId, ProcessUid, Seq},
    process::{ProcessExit, ProcessImage, ProcessRecord},
    question::{NamedRemotes, Question},
    target::Target,
    time::{Moment, Timestamp},
    window::Window,
};

use crate::store::Store;

pub(super) const HOST: HostId = HostId::from_bytes([7; 16]);
pub(super) const EPOCH: u64 = 1_764_000_000_000_000_000;

pub(super) fn at(secs: u64) -> Timestamp {
    Timestamp::from_secs(secs)
}

pub(in crate::store) fn description(host: HostId) -> HostDescription {
    HostDescription {
        host,
        name: "laptop".into(),
        os: "linux".into(),
        os_version: "12".into(),
        machine_id: None,
        boot_id: "boot".into(),
        booted: at(1),
        agent_version: "0.1.0".into(),
        users: vec![],
        sources: vec![],
        epoch: Epoch(EPOCH),
        first_seq: Seq(1),
        next_seq: Seq(1),
    }
}

/// Follows an agent and lets it describe [`HOST`], whose clock is the collector's.
pub(super) fn follow(store: &impl Store) {
    assert!(store.add_agent("one:1").unwrap());
    store.describe("one:1", &description(HOST), Some(&same_clock()), at(1)).unwrap();
}

pub(super) fn same_clock() -> ClockReading {
    ClockReading {
        boot_id: "boot".into(),
        boot_ns: 5,
        difference: Difference::ZERO,
        measured: at(1),
        shared: Some(1_000_000_000_000),
        epoch: Epoch(EPOCH),
        begins: Some(vec![BootBegin { boot_id: "boot".into(), first: Seq(1) }]),
    }
}

/// A batch that begins at `first_seq`; each event is recorded at second 1,000.
pub(super) fn batch(epoch: u64, first_seq: u64, kinds: Vec<EventKind>) -> Batch {
    let recorded = Moment { wall: at(1_000), boot_ns: 5 };
    let events =
        (first_seq..).zip(kinds).map(|(seq, kind)| Event { seq: Seq(seq), recorded, kind }).collect();
    Batch { epoch: Epoch(epoch), hole: None, events, link: None, watermark: None, clock: None }
}

/// The same, of the ring of [`EPOCH`].
pub(in crate::store) fn batch_from(first_seq: u64, kinds: Vec<EventKind>) -> Batch {
    batch(EPOCH, first_seq, kinds)
}

/// The same, from its first event on.
pub(in crate::store) fn batch_of(kinds: Vec<EventKind>) -> Batch {
    batch_from(1, kinds)
}

pub(super) fn watermark(epoch: u64, secs: u64) -> Batch {
    Batch { watermark: Some(at(secs)), ..batch(epoch, 1, vec![]) }
}

pub(super) fn hole(first: u64, last: u64, from: u64, to: u64) -> Option<Hole> {
    Some(Hole { first: Seq(first), last: Seq(last), from: at(from), to: at(to), reason: "evicted".into() })
}

pub(in crate::store) fn flow(remote: &str, first: u64, last: u64) -> FlowRecord {
    FlowRecord {
        connection: ConnectionUid::from_bytes([1; 16]),
        process: Some(ProcessUid::from_bytes([2; 16])),
        attribution: Attribution::InKernel,
        protocol: Protocol::Tcp,
        direction: Direction::Outbound,
        local: "192.0.2.1:5000".parse().unwrap(),
        remote: remote.parse().unwrap(),
        opened: at(first),
        already_open: false,
        first: at(first),
        last: at(last),
        traffic: Some(Traffic { bytes_sent: 5, ..Traffic::default() }),
        state: FlowState::Closed,
        end_reason: FlowEndReason::EndOfFlow,
        record: 0,
        interface: Some("eth0".into()),
        network_namespace: Some(4_026_531_840),
        round_trip: None,
        remote_name: None,
    }
}

pub(super) fn flows(flows: &[FlowRecord]) -> Vec<EventKind> {
    flows.iter().map(|flow| EventKind::Flow(Box::new(flow.clone()))).collect()
}

/// `count` flows with one remote end, one each second.
pub(super) fn some_flows(count: u64) -> Vec<EventKind> {
    flows(&(0..count).map(|second| flow("198.51.100.7:443", second, second)).collect::<Vec<_>>())
}

pub(super) fn complete(facet: Facet, from: u64) -> EventKind {
    EventKind::CoverageChanged(CoverageChange {
        facet,
        grade: Grade::Complete,
        from: at(from),
        to: None,
        scope: None,
        announced_from: None,
    })
}

/// The same grades, said after everything open was recorded anew from `seq` on.
pub(super) fn announced(seq: u64, mut kinds: Vec<EventKind>) -> Vec<EventKind> {
    for kind in &mut kinds {
        if let EventKind::CoverageChanged(change) = kind {
            change.announced_from = Some(Seq(seq));
        }
    }
    kinds
}

pub(super) fn all_complete(from: u64) -> Vec<EventKind> {
    Facet::ALL.into_iter().map(|facet| complete(facet, from)).collect()
}

pub(in crate::store) fn no_names() -> NamedRemotes {
    NamedRemotes::default()
}

pub(in crate::store) fn question(target: &str, from: u64, to: u64) -> Question {
    question_of(Target::parse(target, None, None).unwrap(), from, to)
}

pub(super) fn question_of(target: Target, from: u64, to: u64) -> Question {
    Question { target, window: Window::new(at(from), at(to)).unwrap() }
}

pub(super) fn process(uid: u8, parent: Option<u8>, started: u64) -> ProcessRecord {
    ProcessRecord {
        uid: ProcessUid::from_bytes([uid; 16]),
        pid: uid.into(),
        parent: parent.map(|uid| ProcessUid::from_bytes([uid; 16])),
        parent_pid: parent.map(Into::into),
        started: at(started),
        already_running: false,
        image: ProcessImage { name: format!("process {uid}"), ..ProcessImage::default() },
    }
}

pub(super) fn start(process: &ProcessRecord) -> EventKind {
    EventKind::ProcessStarted(Box::new(process.clone()))
}

pub(super) fn exit(uid: u8, exited: u64, exit_code: Option<i32>) -> ProcessExit {
    ProcessExit { uid: ProcessUid::from_bytes([uid; 16]), exited: at(exited), exit_code }
}

/// The gaps of a facet in seconds `[0, 10,000)`, with all of it received, as `grade from..to`.
pub(super) fn gaps(store: &impl Store, facet: Facet) -> Vec<String> {
    let seconds = |time: Timestamp| Duration::from_nanos(time.as_nanos()).as_secs_f64();
    let window = Window::new(at(0), at(10_000)).unwrap();
    let timeline = store.coverage(HOST, facet).unwrap();
    let gaps = timeline.gaps(facet, window, Some(at(10_000)));
    gaps.iter().map(|gap| format!("{} {}..{}", gap.grade, seconds(gap.from), seconds(gap.to))).collect()
}

/// What is said of the time after one that two streams have told of.
pub(super) const NOT_TOLD_AGAIN: &str = "doubtful(what was open before may not have been told of again yet)";
