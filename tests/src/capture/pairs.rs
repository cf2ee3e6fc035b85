//! What recording costs: a workload without a recorder and with one, in turn.
//!
//! Nobody reads from the recorder while it is measured: whoever asks it, makes it work. What it has recorded is asked for
//! once everything has been counted.

use std::{env, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use super::{
    Stop,
    audit::Auditd,
    measure::{self, Memory, Spread},
    score::Losses,
    stage::Stage,
    watch,
};
use crate::{
    system::{Agent, now},
    workload::{
        Cost, Workload,
        truth::{self, Truth},
    },
};
use alibi_proto::flow::Direction;

/// The source that is none of ours.
pub const AUDITD: &str = "auditd";

/// A workload with a recorder and without, in turn.
#[derive(Debug, Serialize)]
pub struct Pairs {
    /// Which.
    pub workload: String,
    /// What it does.
    pub items: Items,
    /// The workload's processor time, with over without.
    pub cpu_ratio: Spread,
    /// Its duration, with over without.
    pub wall_ratio: Spread,
    /// The recorder's processor time in all, in microseconds.
    pub recorder_us: Spread,
    /// What it wrote, in bytes.
    pub disk_bytes: Spread,
    /// The recorder's memory after the last run, before anything was read from it.
    pub memory: Memory,
    /// What was lost in the worst run.
    pub lost: u64,
}

/// How much a workload does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Items {
    /// Connections: as many as were asked for, whether one end of it is on this host or both.
    pub connections: u64,
    /// Ends of connections on this host.
    pub ends: u64,
    /// Processes.
    pub processes: u64,
}

impl Items {
    /// What there was, as the workload says.
    pub fn of(truths: &[Truth]) -> Self {
        let mut items = Self::default();
        for truth in truths {
            match truth {
                Truth::Process(_) => items.processes += 1,
                Truth::Connection(connection) => {
                    items.ends += 1;
                    items.connections += u64::from(connection.direction == Direction::Outbound);
                }
            }
        }
        items
    }

    /// All that there is to record.
    pub fn all(&self) -> u64 {
        self.ends + self.processes
    }

    /// What the workload is about, and how many of it: its figures are to be had for each of these.
    pub fn kind(&self) -> (&'static str, u64) {
        match self {
            Self { processes: 0, .. } => ("connection", self.connections),
            Self { connections: 0, .. } => ("process", self.processes),
            // A process has a connection, or some; the server is one more process, and of no weight.
            Self { connections, .. } => ("process with a connection", *connections),
        }
    }
}

/// Who records.
enum Recorder {
    Agent(Agent),
    Auditd(Auditd),
}

/// What it has used so far.
struct Used {
    cpu_ns: u64,
    disk_bytes: u64,
}

impl Recorder {
    fn start(stage: &Stage, source: &str, name: &str) -> Result<Self> {
        Ok(match source {
            AUDITD => Self::Auditd(Auditd::start(&stage.directory().join(name))?),
            source => Self::Agent(stage.agent(name, source, &[])),
        })
    }

    /// Waits until all that has happened is recorded.
    fn until_recorded(&self) -> Result<()> {
        match self {
            Self::Agent(agent) => watch::until_recorded(&agent.data, now()),
            Self::Auditd(auditd) => auditd.until_recorded(),
        }
    }

    /// Waits until it records, and has done what it does once at its start: to look at what runs already, and at the files of
    /// that.
    fn until_ready(&self, stop: &Stop) -> Result<()> {
        self.until_recorded()?;
        match self {
            Self::Agent(agent) => measure::until_at_rest(agent.running.pid(), stop),
            Self::Auditd(_) => Ok(()),
        }
    }

    fn used(&self) -> Result<Used> {
        Ok(match self {
            Self::Agent(agent) => Used {
                cpu_ns: measure::cpu_ns(agent.running.pid())?,
                disk_bytes: measure::disk_bytes(&agent.data.join("ring"))?,
            },
            Self::Auditd(auditd) => Used { cpu_ns: auditd.cpu_ns()?, disk_bytes: auditd.disk_bytes()? },
        })
    }

    fn memory(&self) -> Result<Memory> {
        match self {
            Self::Agent(agent) => Memory::of(agent.running.pid()),
            Self::Auditd(auditd) => auditd.memory(),
        }
    }

    /// What it says that it lost. The agent is read from here on.
    fn lost(&self, stage: &Stage) -> Result<u64> {
        match self {
            Self::Agent(agent) => {
                let Losses { processes, connections, overwritten, .. } = stage.findings(agent)?.losses;
                Ok(processes + connections + overwritten)
            }
            Self::Auditd(auditd) => auditd.lost(),
        }
    }
}

/// Runs a workload without a recorder and with one, in turn.
///
/// # Errors
/// When it cannot be run.
pub fn pairs(source: &str, count: u32, workload: &Workload, stop: &Stop) -> Result<Pairs> {
    let stage = Stage::new(&env::current_exe()?)?;
    let (mut cpu, mut wall) = (Vec::new(), Vec::new());
    let (mut recorder_us, mut disk) = (Vec::new(), Vec::new());
    let (mut items, mut memory, mut lost) = (Items::default(), None, 0);
    // The first run finds cold caches.
    stage.run(workload)?;
    for pair in 0..count {
        // Which one is first changes, so that what drifts in the machine favours neither.
        let mut costs: [Option<Cost>; 2] = [None; 2];
        for run in [pair % 2, (pair + 1) % 2] {
            stop.check()?;
            stage.forget()?;
            if run == 0 {
                costs[0] = Some(stage.run(workload)?);
                continue;
            }
            let recorder = Recorder::start(&stage, source, &format!("recorder-{pair}"))?;
            recorder.until_ready(stop)?;
            let before = recorder.used()?;
            costs[1] = Some(stage.run(workload)?);
            recorder.until_recorded()?;
            let after = recorder.used()?;
            memory = Some(recorder.memory()?);
            items = count_items(stage.truth())?;
            recorder_us.push((after.cpu_ns - before.cpu_ns) as f64 / 1e3);
            disk.push(after.disk_bytes.saturating_sub(before.disk_bytes) as f64);
            lost = lost.max(recorder.lost(&stage)?);
        }
        let [Some(without), Some(with)] = costs else { continue };
        cpu.push(with.cpu_ns as f64 / without.cpu_ns as f64);
        wall.push(with.wall_ns as f64 / without.wall_ns as f64);
    }
    let spread = |figures| Spread::of(figures).context("no pairs");
    Ok(Pairs {
        workload: workload.name.to_owned(),
        items,
        cpu_ratio: spread(cpu)?,
        wall_ratio: spread(wall)?,
        recorder_us: spread(recorder_us)?,
        disk_bytes: spread(disk)?,
        memory: memory.context("no pairs")?,
        lost,
    })
}

fn count_items(truth: &Path) -> Result<Items> {
    let items = Items::of(&truth::read(truth)?);
    ensure!(items.all() > 0, "the workload did nothing");
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_for_each_of_what_a_workload_is_about() {
        let both_ends = Items { connections: 20_000, ends: 40_000, processes: 0 };
        assert_eq!(both_ends.kind(), ("connection", 20_000));
        assert_eq!(both_ends.all(), 40_000);
        let processes = Items { processes: 2_000, ..Items::default() };
        assert_eq!(processes.kind(), ("process", 2_000));
        let fresh = Items { connections: 2_000, ends: 4_000, processes: 2_000 };
        assert_eq!(fresh.kind(), ("process with a connection", 2_000));
    }
}
