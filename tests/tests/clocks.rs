//! Random histories of one host whose clock drifts, is set, and is wrong from boot to boot, recorded by the real pipeline,
//! measured over lopsided ways, and judged by the real question core in the collector's time: no verdict may say more than
//! is true.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{collections::BTreeMap, ops::Range};

use alibi_agent::{
    capture::{Fact, Observation, Report},
    ledger::PreviousRun,
    pipeline::{Limits, Pipeline},
};
use alibi_lab::history::{closed, opened, source};
use alibi_proto::{
    clock::{BootBegin, ClockHistory, ClockReading, Difference},
    coverage::{Facet, Timeline},
    event::{Event, EventKind},
    flow::FlowRecord,
    id::{Epoch, HostBoot, HostId, Seq},
    question::{Evidence, HostAnswer, Question, Verdict, judge},
    target::Target,
    time::{Moment, Timestamp},
    window::Window,
};
use proptest::prelude::*;

const MS: i64 = 1_000_000;
const EPOCH: Epoch = Epoch(1);
/// When a history begins, by the collector's clock.
const BEGUN: i64 = 1_000_000_000 * MS;

/// One step of a history. Times are in milliseconds.
#[derive(Clone, Debug)]
enum Step {
    /// Time passes, while the clock drifts by so many parts of a million. The source looks each second, or when it is over.
    Wait {
        ms: i64,
        drift_ppm: i64,
    },
    Open {
        target: bool,
    },
    Close,
    /// The wall clock is set.
    Set {
        ms: i64,
    },
    /// The agent stops or is killed, and starts again after a while.
    Restart {
        clean: bool,
        after_ms: i64,
    },
    /// The host is off for a while, and its wall clock is so far ahead after it.
    Reboot {
        off_ms: i64,
        ahead_ms: i64,
    },
    /// The collector reads the clock, with these delays, and gets all that there is.
    Connect {
        there_ms: i64,
        back_ms: i64,
    },
    /// A question about a window that ended so long ago.
    Ask {
        ago_ms: i64,
        length_ms: i64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let wait = |ms: Range<i64>| (ms, -450..450_i64).prop_map(|(ms, drift_ppm)| Step::Wait { ms, drift_ppm });
    prop_oneof![
        8 => wait(1..5_000),
        1 => wait(5_000..200_000),
        5 => any::<bool>().prop_map(|target| Step::Open { target }),
        4 => Just(Step::Close),
        1 => prop_oneof![-900..900_i64, -400_000..400_000_i64].prop_map(|ms| Step::Set { ms }),
        1 => (any::<bool>(), 0..30_000_i64).prop_map(|(clean, after_ms)| Step::Restart { clean, after_ms }),
        1 => (1..100_000_i64, prop_oneof![Just(0), -300_000..300_000_i64])
            .prop_map(|(off_ms, ahead_ms)| Step::Reboot { off_ms, ahead_ms }),
        4 => (0..3_000_i64, 0..3_000_i64).prop_map(|(there_ms, back_ms)| Step::Connect { there_ms, back_ms }),
        6 => (0..300_000_i64, 1..60_000_i64).prop_map(|(ago_ms, length_ms)| Step::Ask { ago_ms, length_ms }),
    ]
}

fn at(nanos: i64) -> Timestamp {
    Timestamp::from_nanos(u64::try_from(nanos).unwrap())
}

/// Times are nanoseconds, by the collector's clock unless it is said otherwise.
struct World {
    now: i64,
    /// By the host's clocks.
    wall: i64,
    since_boot: i64,
    boots: Vec<BootBegin>,
    next_port: u16,
    /// By port: whether it is to the target, and since when.
    open: BTreeMap<u16, (bool, i64)>,
    /// The life of each connection to the target, both ends included.
    lives: Vec<(i64, i64)>,
    /// When nobody recorded.
    unrecorded: Vec<Range<i64>>,
    /// Up to when the agent has looked.
    looked: i64,
    pipeline: Pipeline,
    recorded_until: Timestamp,
    stream: Vec<Event>,
    collector: Collector,
    verdicts: BTreeMap<&'static str, u64>,
}

#[derive(Default)]
struct Collector {
    next: usize,
    history: ClockHistory,
    timeline: Timeline,
    flows: Vec<FlowRecord>,
    known_until: Option<Timestamp>,
}

impl World {
    fn new(ahead_ms: i64) -> Self {
        let boots = vec![BootBegin { boot_id: "boot 1".into(), first: Seq(1) }];
        let now = Moment { wall: at(BEGUN + ahead_ms * MS), boot_ns: 5_000_000_000 };
        let mut world = Self {
            now: BEGUN,
            wall: BEGUN + ahead_ms * MS,
            since_boot: 5_000 * MS,
            next_port: 1,
            open: BTreeMap::new(),
            lives: Vec::new(),
            unrecorded: Vec::from([Range { start: 0, end: BEGUN }]),
            looked: BEGUN,
            pipeline: pipeline("boot 1", Seq(1), PreviousRun::None, now),
            recorded_until: Timestamp::ZERO,
            boots,
            stream: Vec::new(),
            collector: Collector::default(),
            verdicts: BTreeMap::new(),
        };
        world.look(vec![]);
        world
    }

    fn moment(&self) -> Moment {
        Moment { wall: at(self.wall), boot_ns: u64::try_from(self.since_boot).unwrap() }
    }

    fn pass(&mut self, nanos: i64, drift_ppm: i64) {
        let counted = nanos + nanos / 1_000_000 * drift_ppm;
        self.now += nanos;
        self.wall += counted;
        self.since_boot += counted;
    }

    fn look(&mut self, facts: Vec<Fact>) {
        let now = self.moment();
        let observations = facts.into_iter().map(|fact| Observation { at: now, fact }).collect();
        self.pipeline.take(Report { observations, seen_until: now }, now);
        self.stream.extend(self.pipeline.events());
        self.looked = self.now;
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Wait { ms, drift_ppm } => {
                let mut left = ms;
                while left > 0 {
                    let piece = left.min(if ms > 5_000 { 10_000 } else { 1_000 });
                    self.pass(piece * MS, drift_ppm);
                    self.look(vec![]);
                    left -= piece;
                }
            }
            Step::Open { target } => {
                let port = self.next_port;
                self.next_port += 1;
                self.open.insert(port, (target, self.now));
                self.look(vec![opened(port, target, false)]);
            }
            Step::Close => {
                let Some((port, (target, since))) = self.open.pop_last() else { return };
                if target {
                    self.lives.push((since, self.now));
                }
                self.look(vec![closed(port, target)]);
            }
            Step::Set { ms } => {
                self.look(vec![]);
                self.wall = (self.wall + ms * MS).max(BEGUN / 2);
                // At which instant of the second that passes it was, the agent cannot know.
                self.pass(1_000 * MS, 0);
                self.look(vec![]);
            }
            Step::Restart { clean, after_ms } => {
                let previous = self.end(clean, true);
                self.pass(after_ms * MS, 0);
                self.start(previous);
            }
            Step::Reboot { off_ms, ahead_ms } => {
                let previous = self.end(true, false);
                for (_, (target, since)) in std::mem::take(&mut self.open) {
                    if target {
                        self.lives.push((since, self.now));
                    }
                }
                self.now += off_ms * MS;
                self.wall = self.now + ahead_ms * MS;
                self.since_boot = 0;
                let first = self.next_seq();
                self.boots.retain(|begin| begin.first != first);
                self.boots.push(BootBegin { boot_id: format!("boot at {}", self.now), first });
                self.start(previous);
            }
            Step::Connect { there_ms, back_ms } => self.connect(there_ms * MS, back_ms * MS),
            Step::Ask { ago_ms, length_ms } => {
                self.ask(self.now - ago_ms * MS - length_ms * MS, self.now - ago_ms * MS);
            }
        }
    }

    fn next_seq(&self) -> Seq {
        Seq(self.stream.len() as u64 + 1)
    }

    fn end(&mut self, clean: bool, same_boot: bool) -> PreviousRun {
        // As a ring remembers it, from run to run.
        self.recorded_until = self.recorded_until.max(self.pipeline.watermark().unwrap());
        let recorded_until = self.recorded_until;
        self.unrecorded.push(self.looked..i64::MAX);
        if clean {
            self.pipeline.stop("stopped", self.moment());
            self.stream.extend(self.pipeline.events());
            PreviousRun::Stopped { recorded_until }
        } else if same_boot {
            PreviousRun::Killed { recorded_until }
        } else {
            PreviousRun::Ended { recorded_until, told_until: recorded_until }
        }
    }

    fn start(&mut self, previous: PreviousRun) {
        let boot = &self.boots.last().unwrap().boot_id;
        self.pipeline = pipeline(boot, self.next_seq(), previous, self.moment());
        self.stream.extend(self.pipeline.events());
        let inventory = self.open.iter().map(|(&port, &(target, _))| opened(port, target, true)).collect();
        self.look(inventory);
        self.unrecorded.last_mut().unwrap().end = self.now;
    }

    fn connect(&mut self, there: i64, back: i64) {
        let asked = self.now;
        self.pass(there, 0);
        let boot = self.since_boot;
        self.pass(back, 0);
        self.look(vec![]);
        let collector = &mut self.collector;
        collector.history.measured(&ClockReading {
            boot_id: self.boots.last().unwrap().boot_id.clone(),
            boot_ns: u64::try_from(boot).unwrap(),
            difference: Difference::between(asked - boot, self.now - boot),
            measured: at(self.now),
            shared: None,
            epoch: EPOCH,
            begins: Some(self.boots.clone()),
        });
        for event in &self.stream[collector.next..] {
            collector.history.saw(EPOCH, Some(event.seq), event.recorded);
            match &event.kind {
                EventKind::CoverageChanged(change) if change.facet == Facet::Connections => {
                    collector.timeline.apply(change);
                }
                EventKind::Flow(flow) => collector.flows.push((**flow).clone()),
                _ => {}
            }
        }
        collector.next = self.stream.len();
        let moment = Moment { wall: at(self.wall), boot_ns: u64::try_from(self.since_boot).unwrap() };
        collector.history.saw(EPOCH, None, moment);
        let told = self.pipeline.watermark().map(|watermark| watermark.min(moment.wall));
        collector.known_until = collector.known_until.max(told);
    }

    fn answer(&self, from: i64, to: i64) -> HostAnswer {
        let clock = self.collector.history.clock(at(self.now));
        let question = Question {
            target: Target::parse("198.51.100.7", None, None).unwrap(),
            window: Window::new(at(from), at(to)).unwrap(),
        };
        let asked = question.asked_of(&clock).question;
        let near = |flow: &&FlowRecord| flow.first < asked.window.to() && flow.last >= asked.looks_back_to();
        let evidence = Evidence {
            host: None,
            name: "host".into(),
            clock: &clock,
            connections: &self.collector.timeline,
            known_until: self.collector.known_until,
            names: None,
            flows: self.collector.flows.iter().filter(near).cloned().collect(),
            flows_left_out: 0,
        };
        judge(&question, evidence, |_| None)
    }

    fn ask(&mut self, from: i64, to: i64) {
        let answer = self.answer(from, to);
        let open = self.open.values().filter(|(target, _)| *target).map(|(_, since)| (*since, self.now));
        let mut lives = self.lives.iter().copied().chain(open);
        let talked = lives.any(|(first, last)| first < to && last >= from);
        let mut lost = self.unrecorded.iter().filter(|lost| !lost.is_empty());
        let whole = lost.all(|lost| lost.start >= to || lost.end <= from);
        match answer.verdict {
            Verdict::Clear => {
                assert!(!talked, "false clear of {from}..{to} at {}: {answer:#?}", self.now);
                // While a host is off nothing happens; what its agent does not see while it is on, nobody knows.
                assert!(
                    whole || self.boots.len() > 1,
                    "clear of {from}..{to}, not recorded whole: {answer:#?}"
                );
            }
            Verdict::Talked => assert!(talked, "false talked of {from}..{to}: {answer:#?}"),
            Verdict::Unknown => assert!(!answer.gaps.is_empty(), "unknown of {from}..{to} without a reason"),
        }
        *self.verdicts.entry(answer.verdict.word()).or_default() += 1;
    }
}

fn pipeline(boot: &str, next: Seq, previous: PreviousRun, now: Moment) -> Pipeline {
    let host = HostBoot::new(HostId::from_bytes([1; 16]), boot);
    Pipeline::new(host, Limits::default(), source(&[Facet::Connections]), next, previous, now)
}

fn check(ahead_ms: i64, steps: &[Step]) -> BTreeMap<&'static str, u64> {
    let mut world = World::new(ahead_ms);
    for step in steps {
        world.run(step);
    }
    world.verdicts
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_verdict_says_more_than_is_true_by_whatever_clock(
        ahead_ms in prop_oneof![Just(0), -400_000_000..400_000_000_i64],
        steps in proptest::collection::vec(step(), 1..200),
    ) {
        check(ahead_ms, &steps);
    }
}

/// The property would hold of a program that always says `unknown`: this one does not, by a clock that is three days ahead
/// and is set and booted now and then.
#[test]
fn histories_meet_every_verdict() {
    let mut steps = Vec::new();
    for round in 0..200_i64 {
        steps.extend([
            Step::Open { target: round % 10 == 0 },
            Step::Wait { ms: 20_000, drift_ppm: 100 },
            Step::Close,
            Step::Wait { ms: 1_000, drift_ppm: -100 },
            Step::Connect { there_ms: 3, back_ms: 30 },
            Step::Ask { ago_ms: 2_000, length_ms: 15_000 },
        ]);
        match round % 50 {
            20 => steps.push(Step::Set { ms: 5_000_000 }),
            30 => steps.push(Step::Restart { clean: true, after_ms: 5_000 }),
            40 => steps.push(Step::Reboot { off_ms: 60_000, ahead_ms: 270_000_000 + 10_000_000 * round }),
            _ => {}
        }
    }
    let verdicts = check(259_200_000, &steps);
    assert!(verdicts["clear"] > 130 && verdicts["talked"] >= 15, "{verdicts:?}");
}

/// A connection that stays open, and a question about the millisecond before the last connect but so many.
fn asked_of_an_open_connection(steps: Vec<Step>, waited_ms: i64) -> Verdict {
    let mut world = World::new(0);
    for step in &steps {
        world.run(step);
    }
    world.run(&Step::Wait { ms: waited_ms, drift_ppm: 0 });
    world.run(&Step::Connect { there_ms: 0, back_ms: 0 });
    let asked = world.now - 5_000 * MS;
    world.answer(asked - MS, asked).verdict
}

/// The first to start in that time knew that it would be over ten seconds later than the second did, and the connection is
/// not believed to live on past the end of a gap.
#[test]
fn the_second_agent_that_starts_in_a_time_that_happens_twice_knows_how_far_it_reaches_too() {
    let steps = vec![
        Step::Set { ms: -40_000 },
        Step::Restart { clean: false, after_ms: 0 },
        Step::Open { target: true },
        Step::Restart { clean: true, after_ms: 0 },
    ];
    assert_eq!(asked_of_an_open_connection(steps, 120_000), Verdict::Talked);
}

/// A record from before the clock was set back is later by it than the one that an agent began after that.
#[test]
fn a_record_from_before_the_clock_was_set_back_does_not_end_the_one_after_it() {
    let steps = vec![
        Step::Open { target: true },
        Step::Wait { ms: 3_000, drift_ppm: 0 },
        Step::Set { ms: -8_000 },
        Step::Restart { clean: false, after_ms: 0 },
    ];
    assert_eq!(asked_of_an_open_connection(steps, 120_000), Verdict::Talked);
}
