//! Random histories of one host, recorded by the real pipeline and ring, delivered late and with losses, and judged by
//! the real question core: no verdict may say more than the plain model knows to be true.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{collections::BTreeMap, ops::Range, path::PathBuf, time::Duration};

use alibi_agent::{
    capture::{ConnectionChange, Fact, Observation, ObservedConnection, ProcessKey, Report, SocketKey},
    ledger::PreviousRun,
    pipeline::{Limits, Pipeline},
    recorder::{Acknowledged, Progress, Recorder, labels_of},
    ring::{Options, Read, Reader, Ring, View},
};
use alibi_lab::reference::Truth;
use alibi_proto::{
    clock::HostClock,
    coverage::{CoverageChange, Facet, Grade, Scope, Timeline},
    event::{Event, EventKind},
    flow::{Attribution, Direction, FlowRecord, FlowState, Protocol, Traffic},
    host::{FacetCoverage, SourceDescription},
    id::{Epoch, HostBoot, HostId, Seq},
    question::{Evidence, Question, Verdict, judge},
    target::Target,
    time::{Moment, Timestamp},
    window::Window,
    wire,
};
use proptest::prelude::*;
use prost::Message as _;
use tokio::sync::watch;

const TARGET: [u8; 4] = [198, 51, 100, 7];
const OTHER: [u8; 4] = [198, 51, 100, 8];

/// So long that losses come while the last one is not paid for.
const RESTATING_INTERVAL: Duration = Duration::from_secs(20);

/// One step of a history.
#[derive(Clone, Debug)]
enum Step {
    /// Time passes, this many seconds.
    Wait(u64),
    Open {
        target: bool,
        after: u64,
    },
    Close {
        after: u64,
    },
    Move,
    /// A connection to somewhere else, over within an instant.
    Short,
    /// The agent syncs, so that what it recorded can be read.
    Sync,
    /// The source loses something, in the last seconds.
    Lose(u64),
    Deliver,
    Stop,
    Crash,
    Start,
    /// The host sleeps for so many seconds, and its clocks prove it.
    Suspend(u64),
    /// The wall clock is set, by so many seconds.
    SetForward(u64),
    SetBack(u64),
    /// A question about a window that ends this long ago and is this long.
    Ask {
        ago: u64,
        length: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1..5_u64).prop_map(Step::Wait),
        1 => (100..2_000_u64).prop_map(Step::Wait),
        6 => (any::<bool>(), 0..2_u64).prop_map(|(target, after)| Step::Open { target, after }),
        4 => (0..2_u64).prop_map(|after| Step::Close { after }),
        3 => Just(Step::Move),
        2 => Just(Step::Short),
        3 => Just(Step::Sync),
        1 => (1..5_u64).prop_map(Step::Lose),
        2 => Just(Step::Deliver),
        1 => Just(Step::Stop),
        1 => Just(Step::Crash),
        2 => Just(Step::Start),
        1 => (1..2_000_u64).prop_map(Step::Suspend),
        1 => (2..2_000_u64).prop_map(Step::SetForward),
        1 => (2..300_u64).prop_map(Step::SetBack),
        6 => (0..400_u64, 1..300_u64).prop_map(|(ago, length)| Step::Ask { ago, length }),
    ]
}

fn at(second: u64) -> Timestamp {
    Timestamp::from_secs(second)
}

/// Where the wall clock stands when a history begins, so that it can be set back.
const BEGUN: u64 = 1_000_000;

struct World {
    directory: PathBuf,
    /// By the wall clock, as all that is told of the history.
    now: u64,
    /// By the clock that nobody sets.
    since_boot: u64,
    next_port: u16,
    /// By port: whether it is to the target, and since when.
    open: BTreeMap<u16, (bool, u64)>,
    truth: Truth,
    agent: Option<Agent>,
    collector: Collector,
    verdicts: BTreeMap<&'static str, u64>,
}

struct Agent {
    recorder: Recorder,
    view: View,
    acknowledged: Acknowledged,
    progress: watch::Receiver<Progress>,
    /// Up to here the checkpoint vouches for the recording.
    synced: u64,
}

#[derive(Default)]
struct Collector {
    next: u64,
    timeline: Timeline,
    flows: Vec<FlowRecord>,
    known_until: Option<Timestamp>,
}

impl World {
    fn new(directory: PathBuf) -> Self {
        let mut world = Self {
            directory,
            now: BEGUN,
            since_boot: 1_000,
            next_port: 1,
            open: BTreeMap::new(),
            truth: Truth { connections: vec![], unrecorded: std::iter::once(0..BEGUN).collect() },
            agent: None,
            collector: Collector { next: 1, ..Collector::default() },
            verdicts: BTreeMap::new(),
        };
        world.start();
        world
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Wait(seconds) => {
                self.pass(seconds);
                self.report(vec![]);
            }
            Step::Open { target, after } => {
                self.pass(after);
                let port = self.next_port;
                self.next_port += 1;
                self.open.insert(port, (target, self.now));
                self.report(vec![opened(port, target, false)]);
            }
            Step::Close { after } => {
                self.pass(after);
                let Some((port, (target, since))) = self.open.pop_first() else { return };
                if target {
                    self.truth.connections.push(since..self.now);
                }
                let socket = socket(port, target);
                self.report(vec![Fact::ConnectionClosed {
                    socket,
                    state: FlowState::Closed,
                    change: ConnectionChange::default(),
                }]);
            }
            Step::Short => {
                let (port, target) = (self.next_port, false);
                self.next_port += 1;
                let socket = socket(port, target);
                let closed = Fact::ConnectionClosed {
                    socket,
                    state: FlowState::Closed,
                    change: ConnectionChange::default(),
                };
                self.report(vec![opened(port, target, false), closed]);
            }
            Step::Move => {
                self.pass(1);
                let Some((&port, &(target, _))) = self.open.last_key_value() else { return };
                let traffic = Some(Traffic { bytes_sent: self.now, ..Traffic::default() });
                let socket = socket(port, target);
                self.report(vec![Fact::ConnectionChanged {
                    socket,
                    change: ConnectionChange { traffic, ..ConnectionChange::default() },
                }]);
            }
            Step::Sync => {
                if let Some(agent) = &mut self.agent {
                    agent.recorder.sync();
                    agent.synced = self.now;
                }
            }
            Step::Lose(seconds) => {
                self.pass(1);
                let from = self.now - seconds;
                if self.agent.is_some() {
                    self.truth.unrecorded.insert(0, from..self.now);
                }
                let grade = Grade::Lost { count: 1, reason: "test".into() };
                let (facet, from, to) = (Facet::Connections, at(from), Some(at(self.now)));
                self.report(vec![Fact::Coverage(CoverageChange {
                    facet,
                    grade,
                    from,
                    to,
                    scope: None,
                    announced_from: None,
                })]);
            }
            Step::Deliver => self.deliver(),
            Step::Stop => {
                if let Some(agent) = self.agent.take() {
                    let now = self.moment();
                    // The collector may be there to hear the last words, or not.
                    if self.now.is_multiple_of(2) {
                        let (view, progress) = (agent.view, agent.progress);
                        agent.recorder.close("stopped", now).unwrap();
                        self.collector.take(&view, &progress.borrow());
                    } else {
                        agent.recorder.close("stopped", now).unwrap();
                    }
                    self.truth.unrecorded.push(self.now..u64::MAX);
                }
            }
            Step::Crash => {
                if let Some(agent) = self.agent.take() {
                    self.truth.unrecorded.push(agent.synced..u64::MAX);
                }
            }
            Step::Start => {
                self.pass(1);
                if self.agent.is_none() {
                    self.start();
                }
            }
            Step::Suspend(seconds) => {
                let from = self.moment();
                self.interrupt(|world| world.pass(seconds));
                let to = self.moment();
                self.report(vec![Fact::Suspended { from, to }]);
            }
            Step::SetForward(seconds) => {
                self.interrupt(|world| world.now += seconds);
                let skipped = self.now - seconds..self.now + 1;
                // Nobody can tell at which instant of the second that passes.
                self.pass(1);
                self.doubt(skipped);
                self.report(vec![]);
            }
            Step::SetBack(seconds) => {
                // An agent that is not running does not notice it.
                if self.agent.is_none() {
                    return;
                }
                let before = self.now;
                self.interrupt(|world| world.now -= seconds);
                let twice = self.now..before + 1;
                self.pass(1);
                self.doubt(twice);
                self.report(vec![]);
                // What was told of this time before is right until it is heard that it happened again.
                self.run(&Step::Sync);
                self.deliver();
            }
            Step::Ask { ago, length } => self.ask(ago, length),
        }
    }

    fn moment(&self) -> Moment {
        Moment { wall: at(self.now), boot_ns: self.since_boot * 1_000_000_000 }
    }

    fn pass(&mut self, seconds: u64) {
        self.now += seconds;
        self.since_boot += seconds;
    }

    /// Something that ends, for what is open, one stretch of its life and begins another.
    fn interrupt(&mut self, what: impl FnOnce(&mut Self)) {
        // As it does each second; what is not known is at which instant between two reports it happened.
        self.report(vec![]);
        let ended = self.now;
        what(self);
        let begins = self.now;
        for (target, since) in self.open.values_mut() {
            if *target {
                self.truth.connections.push(*since..ended);
            }
            *since = begins;
        }
    }

    /// A stretch of which nothing may be ruled out.
    fn doubt(&mut self, seconds: Range<u64>) {
        if self.agent.is_some() {
            self.truth.unrecorded.insert(0, seconds);
        }
    }

    fn start(&mut self) {
        if let Some(last) = self.truth.unrecorded.last_mut() {
            last.end = self.now;
        }
        let options = Options { bytes_max: 6 << 10, segment_bytes: 1 << 10, ..Options::default() };
        let (mut ring, recovery) =
            Ring::open(&self.directory, options, HostId::from_bytes([1; 16]), Epoch(1), labels_of).unwrap();
        // An agent that crashes here does so without its host.
        ring.begin_boot(1);
        let boot = HostBoot::new(HostId::from_bytes([1; 16]), "boot");
        let now = self.moment();
        let pipeline = Pipeline::new(
            boot,
            Limits { restating_interval: RESTATING_INTERVAL, ..Limits::default() },
            source(),
            ring.next_seq(),
            PreviousRun::of(&recovery, 1),
            now,
        );
        let (sender, progress) = watch::channel(Progress::default());
        let (view, acknowledged) = (ring.view(), Acknowledged::default());
        let recorder = Recorder::new(pipeline, ring, recovery.recorded_until, acknowledged.clone(), sender);
        self.agent = Some(Agent { recorder, view, acknowledged, progress, synced: self.now });
        let inventory = self.open.iter().map(|(&port, &(target, _))| opened(port, target, true)).collect();
        self.report(inventory);
        // As the program does it once it runs.
        self.run(&Step::Sync);
    }

    fn report(&mut self, facts: Vec<Fact>) {
        let now = self.moment();
        let observations = facts.into_iter().map(|fact| Observation { at: now, fact }).collect();
        if let Some(agent) = &mut self.agent {
            // What was seen is recorded a little later.
            let recorded = Moment { wall: now.wall.saturating_add(Duration::from_millis(300)), ..now };
            agent.recorder.take(Report { observations, seen_until: now }, recorded);
        }
    }

    fn deliver(&mut self) {
        if let Some(agent) = &self.agent {
            self.collector.take(&agent.view, &agent.progress.borrow());
            agent.acknowledged.up_to(Seq(self.collector.next - 1));
        }
    }

    fn ask(&mut self, ago: u64, length: u64) {
        let to = self.now.saturating_sub(ago);
        let from = to.saturating_sub(length);
        if from >= to {
            return;
        }
        let question = Question {
            target: Target::parse("198.51.100.7", None, None).unwrap(),
            window: Window::new(at(from), at(to)).unwrap(),
        };
        let evidence = Evidence {
            host: None,
            name: "host".into(),
            clock: &HostClock::own(),
            connections: &self.collector.timeline,
            known_until: self.collector.known_until,
            names: None,
            // A store gives them in any order.
            flows: self.collector.flows.iter().rev().cloned().collect(),
            flows_left_out: 0,
        };
        let answer = judge(&question, evidence, |_| None);

        let mut truth = self.truth.clone();
        truth
            .connections
            .extend(self.open.values().filter(|(target, _)| *target).map(|(_, since)| *since..self.now));
        let window = from..to;
        match answer.verdict {
            Verdict::Clear => {
                assert!(!truth.talked(window.clone()), "false clear of {window:?} at {}", self.now);
                assert!(truth.whole(window.clone()), "clear of {window:?}, which was not recorded whole");
            }
            Verdict::Talked => {
                assert!(truth.talked(window.clone()), "false talked of {window:?}: {answer:#?}")
            }
            Verdict::Unknown => assert!(!answer.gaps.is_empty(), "unknown of {window:?} without a reason"),
        }
        *self.verdicts.entry(answer.verdict.word()).or_default() += 1;
    }
}

impl Collector {
    fn take(&mut self, view: &View, progress: &Progress) {
        let mut reader = Reader::new(view.clone(), Seq(self.next));
        while self.next < progress.next_seq.0 {
            match reader.next_records().unwrap() {
                Read::Records(first, columns) => {
                    let records = columns.records();
                    assert_eq!(first.0, self.next);
                    for record in records.iter() {
                        self.next += 1;
                        let event = Event::try_from(wire::Event::decode(record).unwrap()).unwrap();
                        match event.kind {
                            EventKind::CoverageChanged(change) if change.facet == Facet::Connections => {
                                self.timeline.apply(&change);
                            }
                            EventKind::Flow(flow) => self.flows.push(*flow),
                            _ => {}
                        }
                    }
                    assert!(self.next <= progress.next_seq.0, "what is told of is whole frames");
                }
                Read::Hole(hole) => {
                    assert_eq!(hole.first.0, self.next);
                    self.next = hole.last.0 + 1;
                    self.timeline.apply_hole(&hole);
                }
                Read::CaughtUp => break,
            }
        }
        self.known_until = self.known_until.max(progress.watermark);
    }
}

fn source() -> SourceDescription {
    let scope = Scope { source: "test".into(), covers: "all".into(), cannot_see: "nothing".into() };
    let facet = FacetCoverage { facet: Facet::Connections, grade: Grade::Complete, scope };
    SourceDescription { name: "test".into(), facets: vec![facet] }
}

fn socket(port: u16, target: bool) -> SocketKey {
    SocketKey {
        protocol: Protocol::Tcp,
        remote: (if target { TARGET } else { OTHER }, 443).into(),
        socket: port.into(),
    }
}

fn opened(port: u16, target: bool, already_open: bool) -> Fact {
    Fact::ConnectionOpened(Box::new(ObservedConnection {
        socket: socket(port, target),
        local: ([192, 0, 2, 1], port).into(),
        owner: Some(ProcessKey { pid: 7, start: 1 }),
        attribution: Attribution::SocketTable,
        direction: Direction::Outbound,
        state: FlowState::Established,
        already_open,
        traffic: Some(Traffic::default()),
        interface: None,
        network_namespace: None,
    }))
}

fn check(steps: &[Step]) -> BTreeMap<&'static str, u64> {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::new(directory.path().join("ring"));
    for step in steps {
        world.run(step);
    }
    world.verdicts
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_verdict_says_more_than_is_true(steps in proptest::collection::vec(step(), 50..400)) {
        check(&steps);
    }
}

/// The property would hold of a program that always says `unknown`: this one does not.
#[test]
fn histories_meet_every_verdict() {
    let mut steps = Vec::new();
    for round in 0..200_u64 {
        steps.extend([
            Step::Open { target: round % 10 == 0, after: 1 },
            Step::Wait(20),
            Step::Close { after: 1 },
            Step::Sync,
            Step::Deliver,
        ]);
        steps.push(Step::Ask { ago: 0, length: 15 });
        if round % 50 == 49 {
            steps.extend([
                Step::Crash,
                Step::Wait(30),
                Step::Start,
                Step::Wait(40),
                Step::Sync,
                Step::Deliver,
                Step::Ask { ago: 45, length: 20 },
            ]);
        }
    }
    let verdicts = check(&steps);
    for verdict in ["talked", "clear", "unknown"] {
        assert!(verdicts.get(verdict).is_some_and(|count| *count >= 4), "{verdicts:?}");
    }
    assert!(verdicts["clear"] > 100, "{verdicts:?}");
}

/// An idle connection whose only record was overwritten is still not believed away, and belief returns.
#[test]
fn an_overwritten_record_of_an_open_connection_leaves_no_false_clear() {
    let mut steps = vec![Step::Open { target: true, after: 1 }, Step::Wait(3)];
    for _ in 0..150 {
        // The target's connection is the oldest, so closing the newest takes opening and closing at once.
        steps.extend([Step::Short, Step::Wait(1)]);
    }
    steps.extend([Step::Sync, Step::Deliver, Step::Wait(5), Step::Sync, Step::Deliver]);
    steps.extend((0..20).map(|ago| Step::Ask { ago, length: 3 }));
    let verdicts = check(&steps);
    assert!(verdicts.contains_key("talked"), "it is said anew wherever a reader can begin: {verdicts:?}");
}

/// More is open than the ring can hold: saying it anew at each segment begins further segments, and must come to rest.
#[test]
fn more_open_connections_than_the_ring_holds_leave_no_false_clear() {
    let mut steps = vec![Step::Open { target: true, after: 1 }, Step::Wait(3)];
    for _ in 0..300 {
        steps.extend([Step::Open { target: false, after: 1 }, Step::Wait(1)]);
    }
    steps.extend([Step::Sync, Step::Deliver]);
    for _ in 0..50 {
        steps.extend([Step::Wait(1), Step::Sync, Step::Deliver, Step::Ask { ago: 0, length: 3 }]);
    }
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::new(directory.path().join("ring"));
    steps.iter().for_each(|step| world.run(step));
    // 300 connections, each recorded at its opening, and all said anew no oftener than as many other events came.
    assert!(world.collector.next < 3_000, "{}", world.collector.next);
}

/// What a question about each ten seconds of `ago` is answered, after a history and its delivery.
fn asked_after(history: &[Step], ago: Range<u64>) -> BTreeMap<&'static str, u64> {
    let mut steps = history.to_vec();
    steps.extend([Step::Wait(3), Step::Sync, Step::Deliver]);
    steps.extend(ago.step_by(10).map(|ago| Step::Ask { ago, length: 10 }));
    check(&steps)
}

#[test]
fn a_suspend_is_covered_and_nothing_was_open_in_it() {
    let history = [Step::Open { target: true, after: 1 }, Step::Wait(5), Step::Suspend(500)];
    assert_eq!(asked_after(&history, 13..480).get("clear"), Some(&47));
}

#[test]
fn a_suspend_after_the_clock_was_set_back_is_covered_too() {
    let history = [Step::Open { target: true, after: 1 }, Step::SetBack(4), Step::Suspend(500)];
    assert_eq!(asked_after(&history, 13..490).get("talked"), None);
}

#[test]
fn time_that_a_clock_skipped_is_nobodys_and_not_clear() {
    let history = [Step::Open { target: true, after: 1 }, Step::Wait(5), Step::SetForward(500)];
    assert_eq!(asked_after(&history, 13..490).get("unknown"), Some(&48));
}

#[test]
fn time_that_a_clock_skipped_after_it_was_set_back_is_nobodys_either() {
    let history = [Step::Open { target: true, after: 1 }, Step::SetBack(10), Step::SetForward(500)];
    assert_eq!(asked_after(&history, 13..470).get("talked"), None);
}

#[test]
fn time_that_happens_twice_is_never_clear() {
    let history = [Step::Wait(300), Step::SetBack(200), Step::Wait(150)];
    let verdicts = asked_after(&history, 3..150);
    assert_eq!((verdicts.get("unknown"), verdicts.get("clear")), (Some(&15), None), "{verdicts:?}");
}

/// Its predecessor has told how far that time reaches, and no life of what is open is believed past the end of a gap.
#[test]
fn an_agent_that_starts_in_a_time_that_happens_twice_says_anew_what_is_open_when_it_is_over() {
    let mut steps =
        vec![Step::Wait(5), Step::SetBack(200), Step::Open { target: true, after: 1 }, Step::Stop];
    steps.extend([Step::Start, Step::Wait(194), Step::Wait(2), Step::Wait(1), Step::Wait(300)]);
    steps.extend([Step::Sync, Step::Deliver, Step::Ask { ago: 0, length: 1 }]);
    assert_eq!(check(&steps).get("talked"), Some(&1));
}
