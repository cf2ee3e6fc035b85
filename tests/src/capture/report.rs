//! What `cargo lab capture` has found, in words.

use std::{collections::BTreeMap, fmt, fs, thread};

use anyhow::Result;
use serde::Serialize;

use super::{
    measure::{self, Memory, Spread},
    pairs::Pairs,
    stage::Findings,
};

/// Above this load, or this much of a processor used by others, figures are not to be trusted.
const QUIET_LOAD_MAX: f64 = 0.5;
const QUIET_OTHERS_PERCENT_MAX: f64 = 5.0;

/// All of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// How the agent captured.
    pub source: String,
    /// Where.
    pub machine: Machine,
    /// What was recorded, of a source that is scored.
    pub findings: Option<Findings>,
    /// What it cost, by workload.
    pub pairs: Vec<Pairs>,
    /// What it costs to do nothing.
    pub idle: Option<Idle>,
    /// The agent's memory after all workloads, and after everything has been read from it.
    pub memory: Option<(Memory, Memory)>,
}

/// The machine.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// Processors.
    pub processors: usize,
    /// Its kernel.
    pub kernel: String,
    /// Whether programs were built with optimisation.
    pub is_release: bool,
    /// The load average before and after.
    pub load_before: f64,
    /// The load average after; the workloads themselves are in it.
    pub load_after: Option<f64>,
}

/// An agent with nothing to do.
#[derive(Debug, Serialize)]
pub struct Idle {
    /// How long.
    pub seconds: f64,
    /// Of one processor, by the agent.
    pub agent_percent: f64,
    /// Of that, by the agent's threads that are still there, by name: microseconds each second.
    pub threads_us_per_s: BTreeMap<String, f64>,
    /// Of one processor, by everything else.
    pub others_percent: f64,
}

impl Machine {
    /// This one, now.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn look() -> Result<Self> {
        Ok(Self {
            processors: thread::available_parallelism()?.get(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            is_release: !cfg!(debug_assertions),
            load_before: measure::load_average()?,
            load_after: None,
        })
    }
}

impl Report {
    /// One without anything in it yet.
    pub fn of_cost(source: &str, machine: Machine) -> Self {
        let source = source.to_owned();
        Self { source, machine, findings: None, pairs: Vec::new(), idle: None, memory: None }
    }

    /// Notes how busy the machine is at the end.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn look_again(&mut self) -> Result<()> {
        self.machine.load_after = Some(measure::load_average()?);
        Ok(())
    }

    fn is_quiet(&self) -> bool {
        self.machine.load_before <= QUIET_LOAD_MAX
            && self.idle.as_ref().is_none_or(|idle| idle.others_percent <= QUIET_OTHERS_PERCENT_MAX)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = &self.machine;
        writeln!(
            f,
            "Source {}, {} processors, kernel {}, {} build.",
            self.source,
            machine.processors,
            machine.kernel,
            if machine.is_release { "release" } else { "debug" },
        )?;
        let quiet = if self.is_quiet() { "quiet" } else { "NOT QUIET: believe no time below" };
        let after = machine.load_after.unwrap_or_default();
        writeln!(f, "The machine was {quiet} (load {:.2} before, {after:.2} after).", machine.load_before)?;
        if let Some(findings) = &self.findings {
            write_findings(f, findings)?;
        }
        if !self.pairs.is_empty() {
            writeln!(f, "\nMedian (least to most); an item is an end of a connection, or a process.")?;
        }
        for pairs in &self.pairs {
            write_pairs(f, pairs)?;
        }
        if let Some(idle) = &self.idle {
            writeln!(
                f,
                "\nIdle for {:.0} s: agent {:.3} % of a processor, everything else {:.1} %.",
                idle.seconds, idle.agent_percent, idle.others_percent
            )?;
            for (thread, us_per_s) in &idle.threads_us_per_s {
                writeln!(f, "  {thread:<18} {us_per_s:>8.0} µs each second")?;
            }
        }
        if let Some((recorded, read)) = &self.memory {
            writeln!(f, "\nAgent's memory after all workloads: {recorded}.")?;
            writeln!(f, "After all of it was read: {read}.")?;
        }
        Ok(())
    }
}

fn write_findings(f: &mut fmt::Formatter<'_>, findings: &Findings) -> fmt::Result {
    writeln!(f)?;
    let head = ["workload", "expected", "seen", "owner", "ends", "outcome", "bytes", "again", "never were"];
    row(f, &head.map(str::to_owned))?;
    for score in &findings.scores {
        let counts = [
            score.expected,
            score.seen,
            score.owner,
            score.ends,
            score.outcome,
            score.bytes,
            score.duplicates,
            score.unexpected,
        ];
        let cells: Vec<String> =
            std::iter::once(score.workload.clone()).chain(counts.map(|count| count.to_string())).collect();
        row(f, &cells)?;
    }
    let losses = &findings.losses;
    writeln!(
        f,
        "\nLost, as the agent says: {} processes, {} connections, {} events overwritten. {} events in all.",
        losses.processes, losses.connections, losses.overwritten, findings.events
    )?;
    for reason in &losses.reasons {
        writeln!(f, "  {reason}")?;
    }
    for score in findings.scores.iter().filter(|score| !score.faults.is_empty()) {
        writeln!(f, "\n{}:", score.workload)?;
        for fault in &score.faults {
            writeln!(f, "  {fault}")?;
        }
        if score.further_faults > 0 {
            writeln!(f, "  and {} more", score.further_faults)?;
        }
    }
    Ok(())
}

fn write_pairs(f: &mut fmt::Formatter<'_>, pairs: &Pairs) -> fmt::Result {
    let items = pairs.items;
    let (kind, kinds) = items.kind();
    let each = |spread: Spread, count: u64| spread.over(count as f64);
    writeln!(
        f,
        "{} ({} connections with {} ends here, {} processes):",
        pairs.workload, items.connections, items.ends, items.processes
    )?;
    let mut line = |what: &str, figures: Spread| writeln!(f, "  {what:<48} {figures}");
    line("workload's CPU, with over without", pairs.cpu_ratio)?;
    line("workload's time, with over without", pairs.wall_ratio)?;
    line(&format!("recorder's CPU per {kind}, µs"), each(pairs.recorder_us, kinds))?;
    line(&format!("disk per {kind}, bytes"), each(pairs.disk_bytes, kinds))?;
    line("recorder's CPU per item, µs", each(pairs.recorder_us, items.all()))?;
    line("disk per item, bytes", each(pairs.disk_bytes, items.all()))?;
    writeln!(f, "  recorder's memory: {}", pairs.memory)?;
    writeln!(f, "  lost, at most: {}", pairs.lost)
}

fn row(f: &mut fmt::Formatter<'_>, cells: &[String]) -> fmt::Result {
    for (index, cell) in cells.iter().enumerate() {
        if index == 0 { write!(f, "{cell:<14}")? } else { write!(f, "{cell:>11}")? }
    }
    writeln!(f)
}
