//! What `cargo lab capture` has found, in words.

use std::{fmt, fs, process::Command, thread};

use anyhow::Result;
use serde::Serialize;

use super::{
    measure::{self, Spread},
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
    /// What was recorded.
    pub findings: Findings,
    /// What it cost, by workload.
    pub pairs: Vec<Pairs>,
    /// What it costs to do nothing.
    pub idle: Option<Idle>,
    /// The most memory that the agent had over all workloads.
    pub memory_bytes_max: u64,
    /// What it has after them.
    pub memory_bytes: u64,
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
    /// auditd, to compare with.
    pub auditd: &'static str,
}

/// A workload with an agent and without, in turn.
#[derive(Debug, Serialize)]
pub struct Pairs {
    /// Which.
    pub workload: String,
    /// Ends of connections, and processes.
    pub items: u64,
    /// The workload's processor time, with over without.
    pub cpu_ratio: Spread,
    /// Its duration, with over without.
    pub wall_ratio: Spread,
    /// The agent's processor time for each item, in microseconds.
    pub agent_us_per_item: Spread,
    /// What the ring grew by for each item.
    pub disk_bytes_per_item: Spread,
}

/// An agent with nothing to do.
#[derive(Debug, Serialize)]
pub struct Idle {
    /// How long.
    pub seconds: f64,
    /// Of one processor, by the agent.
    pub agent_percent: f64,
    /// Of one processor, by everything else.
    pub others_percent: f64,
}

impl Machine {
    /// This one, now.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn look() -> Result<Self> {
        let is_there = |program| Command::new(program).arg("-v").output().is_ok();
        Ok(Self {
            processors: thread::available_parallelism()?.get(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            is_release: !cfg!(debug_assertions),
            load_before: measure::load_average()?,
            load_after: None,
            auditd: if is_there("auditctl") { "installed, not measured" } else { "not installed" },
        })
    }
}

impl Report {
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
            "Source {}, {} processors, kernel {}, {} build, auditd {}.",
            self.source,
            machine.processors,
            machine.kernel,
            if machine.is_release { "release" } else { "debug" },
            machine.auditd
        )?;
        let quiet = if self.is_quiet() { "quiet" } else { "NOT QUIET: believe no time below" };
        let after = machine.load_after.unwrap_or_default();
        writeln!(f, "The machine was {quiet} (load {:.2} before, {after:.2} after).\n", machine.load_before)?;
        let head =
            ["workload", "expected", "seen", "owner", "ends", "outcome", "bytes", "again", "never were"];
        row(f, &head.map(str::to_owned))?;
        for score in &self.findings.scores {
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
            let cells: Vec<String> = std::iter::once(score.workload.clone())
                .chain(counts.map(|count| count.to_string()))
                .collect();
            row(f, &cells)?;
        }
        let losses = &self.findings.losses;
        writeln!(
            f,
            "\nLost, as the agent says: {} processes, {} connections, {} events overwritten. {} events in all.",
            losses.processes, losses.connections, losses.overwritten, self.findings.events
        )?;
        for reason in &losses.reasons {
            writeln!(f, "  {reason}")?;
        }
        for score in self.findings.scores.iter().filter(|score| !score.faults.is_empty()) {
            writeln!(f, "\n{}:", score.workload)?;
            for fault in &score.faults {
                writeln!(f, "  {fault}")?;
            }
            if score.further_faults > 0 {
                writeln!(f, "  and {} more", score.further_faults)?;
            }
        }
        if !self.pairs.is_empty() {
            writeln!(f, "\nMedian (least to most); an item is an end of a connection, or a process.")?;
        }
        for pairs in &self.pairs {
            writeln!(f, "{} ({} items):", pairs.workload, pairs.items)?;
            writeln!(f, "  workload's CPU, with over without   {}", pairs.cpu_ratio)?;
            writeln!(f, "  workload's time, with over without  {}", pairs.wall_ratio)?;
            writeln!(f, "  agent's CPU per item, µs            {}", pairs.agent_us_per_item)?;
            writeln!(f, "  disk per item, bytes                {}", pairs.disk_bytes_per_item)?;
        }
        if let Some(idle) = &self.idle {
            writeln!(
                f,
                "\nIdle for {:.0} s: agent {:.3} % of a processor, everything else {:.1} %.",
                idle.seconds, idle.agent_percent, idle.others_percent
            )?;
        }
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(
            f,
            "Agent's memory: {:.1} MiB at most, {:.1} MiB at the end.",
            mib(self.memory_bytes_max),
            mib(self.memory_bytes)
        )
    }
}

fn row(f: &mut fmt::Formatter<'_>, cells: &[String]) -> fmt::Result {
    for (index, cell) in cells.iter().enumerate() {
        if index == 0 { write!(f, "{cell:<14}")? } else { write!(f, "{cell:>11}")? }
    }
    writeln!(f)
}
