//! What was measured, for people and for programs.

use std::{collections::BTreeMap, fmt};

use anyhow::Result;
use serde::Serialize;

use super::{
    crowd::Failures,
    live::{Freshness, Questions},
};
use crate::capture::measure::load_average;

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Processors of the machine, which the collector shares with the agents.
    pub processors: usize,
    /// The load average before and after it.
    pub load: (f64, f64),
    /// In order.
    pub steps: Vec<Step>,
    /// The collector was killed, and came back.
    pub restart: Option<Restart>,
}

/// So many agents.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// How many in all, the real one included.
    pub agents: usize,
    /// Of those that were new.
    pub enrolments_per_s: f64,
    /// How those that were new became connected.
    pub connected: Connected,
    /// When nothing more was to be done.
    pub idle: Idle,
    /// Of the collector, at the end: resident.
    pub memory_bytes: u64,
    /// By so much it has grown since it had none but the real one.
    pub memory_bytes_per_agent: f64,
    /// How long they took.
    pub questions: Questions,
}

/// All that were new called at once.
#[derive(Clone, Debug, Serialize)]
pub struct Connected {
    /// How many.
    pub agents: usize,
    /// Until the last was taken in.
    pub seconds: f64,
    /// Calls that came to nothing.
    pub failed: Failures,
    /// What it cost the collector.
    pub collector_cpu_s: f64,
    /// The real one meanwhile.
    pub live: Freshness,
}

/// Agents that only say that nothing happens.
#[derive(Clone, Debug, Serialize)]
pub struct Idle {
    /// For so long.
    pub seconds: f64,
    /// The collector's processor time, of one processor.
    pub collector_percent: f64,
    /// The same by the names of its threads.
    pub threads_percent: BTreeMap<String, f64>,
    /// That of all simulated agents.
    pub simulator_percent: f64,
    /// What the collector wrote.
    pub written_bytes_per_s: f64,
    /// Connections that broke, and calls that came to nothing then.
    pub failed: Failures,
    /// The real one meanwhile.
    pub live: Freshness,
}

/// The collector was killed, and came back.
#[derive(Clone, Debug, Serialize)]
pub struct Restart {
    /// For so long it was not started.
    pub away_s: f64,
    /// Until it said that it serves.
    pub starting_s: f64,
    /// Since it was started again, until the last agent was taken in.
    pub all_back_s: f64,
    /// Calls that came to nothing since then.
    pub failed: Failures,
    /// What it cost the collector.
    pub collector_cpu_s: f64,
    /// Of the collector, once all are back.
    pub memory_bytes: u64,
    /// Since it was killed, until the real agent was live again.
    pub live_again_s: Option<f64>,
    /// The real one from then on.
    pub live: Freshness,
}

impl Report {
    /// Looks at the machine before anything runs.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn begin() -> Result<Self> {
        let processors = std::thread::available_parallelism()?.get();
        Ok(Self { processors, load: (load_average()?, 0.0), steps: Vec::new(), restart: None })
    }

    /// And once all has run.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn end(&mut self) -> Result<()> {
        self.load.1 = load_average()?;
        Ok(())
    }
}

/// On what it was measured. Steps and restart are told as they come.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, after) = self.load;
        writeln!(
            f,
            "{} processors, which collector and agents share; load {before:.2} before, {after:.2} after",
            self.processors
        )
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Connected { agents, seconds, failed, collector_cpu_s, live } = &self.connected;
        writeln!(f, "{} agents", self.agents)?;
        writeln!(f, "  enrolled       {:.0} a second", self.enrolments_per_s)?;
        writeln!(
            f,
            "  connected      {agents} in {seconds:.1} s, {:.0} a second; {:.2} ms of the collector each; {failed}",
            *agents as f64 / seconds,
            1e3 * collector_cpu_s / (*agents).max(1) as f64
        )?;
        writeln!(f, "                 meanwhile live {live}")?;
        writeln!(
            f,
            "  memory         {:.1} MiB, {:.1} KiB an agent",
            mib(self.memory_bytes),
            self.memory_bytes_per_agent / 1024.0
        )?;
        let Idle { collector_percent, simulator_percent, written_bytes_per_s, failed, live, .. } = &self.idle;
        writeln!(
            f,
            "  idle           {collector_percent:.1} % of a processor ({:.1} µs an agent a second), {:.1} KiB/s \
             written; the agents {simulator_percent:.1} %; {failed}",
            1e4 * collector_percent / self.agents as f64,
            written_bytes_per_s / 1024.0
        )?;
        let threads: Vec<_> = self
            .idle
            .threads_percent
            .iter()
            .map(|(name, percent)| format!("{name} {percent:.1} %"))
            .collect();
        writeln!(f, "                 {}", threads.join(", "))?;
        writeln!(f, "  live           {live}")?;
        let Questions { who_now_ms, who_before_ms, hosts_ms } = &self.questions;
        writeln!(f, "  who, until now {who_now_ms} ms")?;
        writeln!(f, "  who, before    {who_before_ms} ms")?;
        writeln!(f, "  hosts          {hosts_ms} ms")
    }
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the collector was killed, and started again {:.1} s later", self.away_s)?;
        writeln!(f, "  serving after  {:.1} s", self.starting_s)?;
        writeln!(f, "  all back after {:.1} s; {}", self.all_back_s, self.failed)?;
        writeln!(
            f,
            "  collector      {:.1} s of a processor, {:.1} MiB",
            self.collector_cpu_s,
            mib(self.memory_bytes)
        )?;
        match self.live_again_s {
            Some(seconds) => {
                writeln!(f, "  live           again {seconds:.1} s after the kill; {}", self.live)
            }
            None => writeln!(f, "  live           not again; {}", self.live),
        }
    }
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { unreached, handshakes, ended } = self;
        write!(f, "failed: {unreached} not reached, {handshakes} handshakes, {ended} ended")
    }
}

impl fmt::Display for Freshness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |figure: Option<f64>| figure.map_or_else(|| "?".to_owned(), |ms| format!("{ms:.0}"));
        write!(
            f,
            "{} ms behind (99 %: {}), {} looks, {} without an answer",
            ms(self.p50_ms),
            ms(self.p99_ms),
            self.looks,
            self.unanswered
        )
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
