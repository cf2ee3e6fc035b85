//! What was checked and measured, for people and for programs.

use std::{collections::BTreeMap, fmt, time::Duration};

use anyhow::Result;
use serde::Serialize;

use super::check::Checked;
use crate::capture::measure::load_average;

/// A collector keeps up with its agents as long as all but one in a hundred have what they recorded acknowledged after so long.
const LAG_MAX_MS: f64 = 5_000.0;
/// And the agents are no measure any more once they are themselves so late.
const LATE_MAX_MS: f64 = 2_000.0;
/// Of what was recorded, so much must have been acknowledged meanwhile.
const TAKEN_MIN: f64 = 0.97;
/// A processor or a thread that is busy so much of the time has no more to give.
const BUSY_PERCENT: f64 = 90.0;

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What the histories are made of.
    pub seed: u64,
    /// Processors of the machine, which the collector shares with the agents.
    pub processors: usize,
    /// The load average before and after it. Others may be at work.
    pub load: (f64, f64),
    /// Days that were over.
    pub past: Option<Past>,
    /// Agents that tell what happens as it does, in steps.
    pub steps: Vec<Step>,
    /// Once nothing happened any more.
    pub quiet: Option<Quiet>,
}

/// Days of the past, told as fast as they were taken, with the collector killed in the midst of it.
#[derive(Clone, Debug, Serialize)]
pub struct Past {
    /// How many laptops.
    pub laptops: u32,
    /// How many days.
    pub days: f64,
    /// Events of all of them.
    pub events: u64,
    /// How long it took.
    pub seconds: f64,
    /// What the collector wrote to its disk for each, all files together.
    pub disk_bytes_per_event: f64,
    /// The answers.
    pub checked: Checked,
    /// How long they took.
    pub questions: Latency,
}

/// So many agents at a time.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// How many.
    pub agents: u32,
    /// Events that each is to make in a second.
    pub rate: f64,
    /// For so long.
    pub seconds: f64,
    /// Events that they recorded, in a second.
    pub recorded_per_s: f64,
    /// Events that the collector acknowledged, in a second.
    pub taken_per_s: f64,
    /// How old the oldest event of an agent is that is not acknowledged, at the end: of half of them, and all but one in a
    /// hundred.
    pub lag_p50_ms: f64,
    /// The same.
    pub lag_p99_ms: f64,
    /// How far agents are themselves behind, all but one in a hundred.
    pub late_p99_ms: f64,
    /// Connections that were lost, and calls that came to nothing.
    pub failed: u64,
    /// The collector's processor time for an event.
    pub collector_us_per_event: f64,
    /// The collector's processor time, of one processor.
    pub collector_percent: f64,
    /// Of that, in the kernel.
    pub collector_system_percent: f64,
    /// The same by the names of its threads.
    pub threads_percent: BTreeMap<String, f64>,
    /// The same of the one thread that had most of it.
    pub busiest_percent: f64,
    /// That of the agents.
    pub agents_percent: f64,
    /// That of all that runs on the machine.
    pub machine_percent: f64,
    /// What the collector wrote for an event, to whatever disk.
    pub written_bytes_per_event: f64,
    /// Of the collector, at the end: resident.
    pub memory_bytes: u64,
    /// Questions that were asked meanwhile.
    pub questions: Latency,
    /// Whether the collector kept up.
    pub is_sustained: bool,
    /// What there was no more of, or the least left.
    pub bottleneck: String,
}

/// Everything has come, and no more comes.
#[derive(Clone, Debug, Serialize)]
pub struct Quiet {
    /// How long it took from the last event until all were acknowledged.
    pub drained_s: f64,
    /// Events of all steps.
    pub events: u64,
    /// What came upon the collector's disk for each event, since the first of them.
    pub disk_bytes_per_event: f64,
    /// Answers about the agents of the steps.
    pub checked: Checked,
    /// How long they took.
    pub questions: Latency,
}

/// How long answers took to come, in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Latency {
    /// How many.
    pub answers: usize,
    /// Half of them.
    pub p50_ms: f64,
    /// All but one in a hundred.
    pub p99_ms: f64,
    /// All.
    pub most_ms: f64,
}

impl Latency {
    /// Of so many answers.
    pub fn of(took: &[Duration]) -> Self {
        let mut ms: Vec<f64> = took.iter().map(|took| took.as_secs_f64() * 1e3).collect();
        ms.sort_by(f64::total_cmp);
        let at = |part: usize| {
            ms.get((ms.len() * part / 100).min(ms.len().saturating_sub(1))).copied().unwrap_or(0.0)
        };
        Self { answers: ms.len(), p50_ms: at(50), p99_ms: at(99), most_ms: at(100) }
    }
}

impl Report {
    /// Looks at the machine before anything runs.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn begin(seed: u64) -> Result<Self> {
        let processors = std::thread::available_parallelism()?.get();
        Ok(Self {
            seed,
            processors,
            load: (load_average()?, 0.0),
            past: None,
            steps: Vec::new(),
            quiet: None,
        })
    }

    /// And once all has run.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn end(&mut self) -> Result<()> {
        self.load.1 = load_average()?;
        Ok(())
    }

    /// All faults of all answers.
    pub fn faults(&self) -> usize {
        let past = self.past.as_ref().map_or(0, |past| past.checked.faults);
        past + self.quiet.as_ref().map_or(0, |quiet| quiet.checked.faults)
    }
}

impl Step {
    /// Decides whether the collector kept up, and what there was least left of, on so many processors.
    #[must_use]
    pub fn judged(self, processors: usize) -> Self {
        let is_sustained = self.keeps_up();
        let bottleneck = self.bottleneck(processors as f64);
        Self { is_sustained, bottleneck, ..self }
    }

    fn keeps_up(&self) -> bool {
        self.taken_per_s >= TAKEN_MIN * self.recorded_per_s
            && self.lag_p99_ms <= LAG_MAX_MS
            && self.late_p99_ms <= LATE_MAX_MS
    }

    fn bottleneck(&self, processors: f64) -> String {
        let busiest = self.threads_percent.iter().max_by(|one, other| one.1.total_cmp(other.1));
        let (name, percent) = busiest.map_or(("?", 0.0), |(name, percent)| (name.as_str(), *percent));
        let Self { collector_percent, agents_percent, machine_percent, busiest_percent, .. } = self;
        let others = (machine_percent - collector_percent - agents_percent).max(0.0);
        if *machine_percent >= BUSY_PERCENT * processors {
            let most = if agents_percent > collector_percent {
                "the agents' own work, which is on the same machine"
            } else {
                "the collector's work"
            };
            format!(
                "the machine's processors: {most}; collector {collector_percent:.0} %, agents {agents_percent:.0} %, others \
                 {others:.0} % of {:.0} %; in the collector most in `{name}`, {percent:.0} %",
                100.0 * processors
            )
        } else if *busiest_percent >= BUSY_PERCENT {
            format!(
                "one thread of the collector, {busiest_percent:.0} % of a processor; most is in `{name}`, {percent:.0} %"
            )
        } else if !self.keeps_up() {
            format!(
                "neither processors (the machine is busy for {machine_percent:.0} % of {:.0} %) nor a thread of the collector \
                 (the busiest for {busiest_percent:.0} %): it waits for its disk, {:.1} MiB/s written, or for its own locks",
                100.0 * processors,
                self.written_bytes_per_event * self.taken_per_s / f64::from(1 << 20)
            )
        } else {
            format!(
                "none is exhausted: the machine is busy for {machine_percent:.0} % of {:.0} %; in the collector most in \
                 `{name}`, {percent:.0} %",
                100.0 * processors
            )
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, after) = self.load;
        writeln!(
            f,
            "seed {}; {} processors, which collector and agents share; load {before:.2} before, {after:.2} after",
            self.seed, self.processors
        )?;
        let sustained = self.steps.iter().filter(|step| step.is_sustained);
        if let Some(most) = sustained.max_by(|one, other| one.taken_per_s.total_cmp(&other.taken_per_s)) {
            writeln!(
                f,
                "sustained: {} agents, {:.0} events/s, {:.1} µs of the collector for each",
                most.agents, most.taken_per_s, most.collector_us_per_event
            )?;
        }
        if let Some(first) = self.steps.iter().find(|step| !step.is_sustained) {
            writeln!(f, "not sustained: {} agents: {}", first.agents, first.bottleneck)?;
        }
        Ok(())
    }
}

impl fmt::Display for Past {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} laptops, {} days: {} events in {:.0} s ({:.0}/s), the collector killed and started again in between; {:.1} bytes \
             on disk an event",
            self.laptops,
            self.days,
            self.events,
            self.seconds,
            self.events as f64 / self.seconds,
            self.disk_bytes_per_event
        )?;
        writeln!(f, "  answers after  {}", self.questions)?;
        write!(f, "{}", self.checked)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept_up = if self.is_sustained { "sustained" } else { "NOT sustained" };
        writeln!(
            f,
            "{} agents at {} events/s each: {kept_up}, {:.0} s\n  events         {:.0}/s recorded, {:.0}/s taken",
            self.agents, self.rate, self.seconds, self.recorded_per_s, self.taken_per_s
        )?;
        writeln!(
            f,
            "  lag            {:.0} ms (99 %: {:.0}); the agents themselves late by {:.0} ms (99 %); {} calls failed",
            self.lag_p50_ms, self.lag_p99_ms, self.late_p99_ms, self.failed
        )?;
        writeln!(
            f,
            "  collector      {:.1} µs an event, {:.0} % of a processor ({:.0} in the kernel), {:.1} MiB, {:.0} bytes written an \
             event",
            self.collector_us_per_event,
            self.collector_percent,
            self.collector_system_percent,
            self.memory_bytes as f64 / f64::from(1 << 20),
            self.written_bytes_per_event
        )?;
        let threads: Vec<_> =
            self.threads_percent.iter().map(|(name, percent)| format!("{name} {percent:.1} %")).collect();
        writeln!(f, "  its threads    {}; the busiest {:.0} %", threads.join(", "), self.busiest_percent)?;
        writeln!(
            f,
            "  machine        {:.0} %, of which the agents {:.0} %",
            self.machine_percent, self.agents_percent
        )?;
        writeln!(f, "  answers after  {}", self.questions)?;
        writeln!(f, "  bottleneck     {}", self.bottleneck)
    }
}

impl fmt::Display for Quiet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "quiet: all taken {:.1} s after the last; {} events, {:.1} bytes on disk each",
            self.drained_s, self.events, self.disk_bytes_per_event
        )?;
        writeln!(f, "  answers after  {}", self.questions)?;
        write!(f, "{}", self.checked)
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { answers, p50_ms, p99_ms, most_ms } = self;
        write!(f, "{p50_ms:.1} ms (99 %: {p99_ms:.1}, most {most_ms:.1}), {answers} of them")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step() -> Step {
        Step {
            agents: 100,
            rate: 20.0,
            seconds: 10.0,
            recorded_per_s: 2_000.0,
            taken_per_s: 2_000.0,
            lag_p50_ms: 900.0,
            lag_p99_ms: 1_500.0,
            late_p99_ms: 0.0,
            failed: 0,
            collector_us_per_event: 10.0,
            collector_percent: 50.0,
            collector_system_percent: 10.0,
            threads_percent: BTreeMap::from([("store".to_owned(), 40.0), ("worker".to_owned(), 10.0)]),
            busiest_percent: 40.0,
            agents_percent: 40.0,
            machine_percent: 100.0,
            written_bytes_per_event: 50.0,
            memory_bytes: 1 << 24,
            questions: Latency::default(),
            is_sustained: false,
            bottleneck: String::new(),
        }
    }

    #[test]
    fn who_falls_behind_does_not_sustain() {
        assert!(step().judged(2).is_sustained);
        for step in [
            Step { taken_per_s: 1_900.0, ..step() },
            Step { lag_p99_ms: 6_000.0, ..step() },
            Step { late_p99_ms: 3_000.0, ..step() },
        ] {
            assert!(!step.judged(2).is_sustained);
        }
    }

    #[test]
    fn the_bottleneck_is_what_there_is_no_more_of() {
        let named = |step: Step| step.judged(2).bottleneck;
        assert!(named(step()).starts_with("none is exhausted"));
        assert!(
            named(Step { busiest_percent: 97.0, ..step() }).starts_with("one thread of the collector, 97 %")
        );
        let behind = Step { taken_per_s: 1_000.0, machine_percent: 90.0, ..step() };
        assert!(named(behind).starts_with("neither processors"));
        let all = Step { machine_percent: 195.0, agents_percent: 120.0, collector_percent: 70.0, ..step() };
        assert!(named(all.clone()).starts_with("the machine's processors: the agents' own work"));
        let all = Step { agents_percent: 60.0, collector_percent: 130.0, ..all };
        assert!(named(all).starts_with("the machine's processors: the collector's work"));
    }

    #[test]
    fn latencies_are_those_of_all_answers() {
        let took: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        let latency = Latency::of(&took);
        assert_eq!(
            (latency.answers, latency.p50_ms, latency.p99_ms, latency.most_ms),
            (200, 101.0, 199.0, 200.0)
        );
        assert_eq!(Latency::of(&[]).answers, 0);
    }
}
