//! Questions, and what is true.

use std::{collections::BTreeMap, ops::Range, sync::LazyLock};

use alibi_proto::{
    clock::HostClock,
    coverage::{Facet, Gap, Grade, Timeline},
    flow::FlowRecord,
    id::HostId,
    question::{Evidence, HostAnswer, Question, Verdict, judge},
    target::Target,
    time::Timestamp,
    window::Window,
};

use crate::world::{World, at};

/// Questions at once.
const QUESTIONS: usize = 160;
/// Of these, so many are put to the agent as well, which reads its whole ring for each.
const ASKED_OF_THE_AGENT: usize = 2;

/// What came of all questions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) verdicts: BTreeMap<&'static str, u64>,
    /// `unknown` of a window in which nobody talked and all was recorded: by the first reason that was given.
    pub(crate) avoidable: BTreeMap<String, u64>,
    pub(crate) of_the_agent: u64,
    pub(crate) of_few_intervals: u64,
    pub(crate) of_names: u64,
    /// How often the ledger of the agent and what the collector heard were compared, and equal.
    pub(crate) equal_ledgers: u64,
}

impl Tally {
    pub(crate) fn judged(&self) -> u64 {
        self.verdicts.values().sum()
    }

    pub(crate) fn add(&mut self, other: &Self) {
        let add = |one: &mut u64, other: u64| *one += other;
        other.verdicts.iter().for_each(|(word, count)| add(self.verdicts.entry(word).or_default(), *count));
        other.avoidable.iter().for_each(|(reason, count)| {
            add(self.avoidable.entry(reason.clone()).or_default(), *count);
        });
        self.of_the_agent += other.of_the_agent;
        self.of_few_intervals += other.of_few_intervals;
        self.of_names += other.of_names;
        self.equal_ledgers += other.equal_ledgers;
    }
}

static TARGET: LazyLock<Target> = LazyLock::new(|| Target::parse("198.51.100.7", None, None).unwrap());

fn question(seconds: &Range<u64>) -> Question {
    let window = Window::new(at(seconds.start), at(seconds.end)).unwrap();
    Question { target: TARGET.clone(), window }
}

impl World {
    /// About a window that ends this long ago and is this long.
    pub(crate) fn ask(&mut self, ago: u64, length: u64) {
        let to = self.now.saturating_sub(ago);
        let window = to.saturating_sub(length)..to;
        if !window.is_empty() {
            self.ask_collector(&window);
        }
    }

    pub(crate) fn ask_many(&mut self, seed: u64) {
        if self.is_unheard {
            return;
        }
        let mut random = fastrand::Rng::with_seed(seed);
        for number in 0..QUESTIONS {
            let window = self.any_window(&mut random);
            if number < ASKED_OF_THE_AGENT {
                self.ask_agent(&window);
            }
            self.ask_collector(&window);
        }
    }

    /// One that has begun, in most cases with an edge near where something happened.
    fn any_window(&self, random: &mut fastrand::Rng) -> Range<u64> {
        let near = |random: &mut fastrand::Rng| {
            let recent = self.instants.len().saturating_sub(30);
            let from = if random.bool() { recent } else { 0 };
            let instant = self.instants.get(random.usize(from..self.instants.len().max(from + 1)));
            (instant.copied().unwrap_or(self.now) + random.u64(0..5)).saturating_sub(2)
        };
        let length = match random.u8(0..4) {
            0 => 1,
            1 => random.u64(1..5),
            2 => random.u64(1..60),
            _ => random.u64(1..400),
        };
        let from = match random.u8(0..8) {
            0 => random.u64(self.now.saturating_sub(3_000)..self.now + 2),
            1..5 => near(random),
            _ => near(random).saturating_sub(length),
        };
        from..from + length
    }

    fn ask_collector(&mut self, window: &Range<u64>) {
        let collector = &self.collector;
        let timeline = collector.summary.timelines().get(&Facet::Connections);
        let nothing = Timeline::default();
        let answer = answer(window, timeline.unwrap_or(&nothing), &collector.flows, collector.known_until);
        self.check(window, &answer);
        if answer.verdict == Verdict::Unknown {
            self.count_if_avoidable(window, &answer.gaps);
        }

        // One that keeps little rules out no more.
        if answer.verdict != Verdict::Unknown {
            let collector = &self.collector;
            let coarse = collector.coarse.timelines().get(&Facet::Connections);
            let coarse = crate::asking::answer(
                window,
                coarse.unwrap_or(&nothing),
                &collector.flows,
                collector.known_until,
            );
            self.check(window, &coarse);
            let is_unknown = coarse.verdict == Verdict::Unknown;
            assert!(is_unknown || coarse.verdict == answer.verdict, "{:?} of {window:?}", coarse.verdict);
            self.tally.of_few_intervals += 1;
        }
        *self.tally.verdicts.entry(answer.verdict.word()).or_default() += 1;

        let names = self.collector.summary.timelines().get(&Facet::Names);
        let gaps =
            names.map(|names| names.gaps(Facet::Names, question(window).window, self.collector.known_until));
        if gaps.is_some_and(|gaps| gaps.is_empty()) {
            let is_whole = !self.truth.any(window.clone(), |second| second.names_unrecorded);
            assert!(is_whole, "names of {window:?} were not recorded whole, by now {}", self.now);
            self.tally.of_names += 1;
        }
    }

    fn ask_agent(&mut self, window: &Range<u64>) {
        let Some(agent) = self.agent.as_ref().filter(|_| window.start >= self.forgotten_until) else {
            return;
        };
        let known_until = agent.progress.borrow().watermark;
        let host = HostId::from_bytes([1; 16]);
        let asked =
            alibi_agent::query::answer(&agent.view, &question(window), host, "host".into(), known_until);
        let (answer, _) = asked.unwrap();
        self.check(window, &answer);
        self.tally.of_the_agent += 1;
    }

    /// No verdict says more than is true.
    fn check(&self, window: &Range<u64>, answer: &HostAnswer) {
        let now = self.now;
        let talked = || self.truth.any(window.clone(), |second| second.talked);
        match answer.verdict {
            Verdict::Clear => {
                assert!(!talked(), "false clear of {window:?} at {now}");
                let is_whole = !self.truth.any(window.clone(), |second| second.connections_unrecorded);
                assert!(is_whole, "clear of {window:?}, which was not recorded whole, at {now}");
            }
            Verdict::Talked => assert!(talked(), "false talked of {window:?} at {now}: {answer:#?}"),
            Verdict::Unknown => assert!(!answer.gaps.is_empty(), "unknown of {window:?} without a reason"),
        }
    }

    fn count_if_avoidable(&mut self, window: &Range<u64>, gaps: &[Gap]) {
        let is_doubtful =
            |second: &alibi_lab::reference::Second| second.talked || second.connections_unrecorded;
        if !self.truth.any(window.clone(), is_doubtful) {
            let reason = match &gaps[0].grade {
                Grade::NotRecorded { reason } | Grade::Lost { reason, .. } => reason.clone(),
                other => other.to_string(),
            };
            *self.tally.avoidable.entry(reason).or_default() += 1;
        }
    }
}

fn answer(
    seconds: &Range<u64>,
    timeline: &Timeline,
    flows: &[FlowRecord],
    known_until: Option<Timestamp>,
) -> HostAnswer {
    let question = question(seconds);
    // As a store finds them, and in any order.
    let near =
        |flow: &&FlowRecord| flow.first < question.window.to() && flow.last >= question.looks_back_to();
    let clock = HostClock::own();
    let evidence = Evidence {
        host: None,
        name: "host".into(),
        clock: &clock,
        connections: timeline,
        known_until,
        names: None,
        flows: flows.iter().rev().filter(near).cloned().collect(),
        flows_left_out: 0,
    };
    judge(&question, evidence, |_| None)
}
