//! All simulated agents, in as many processes as they take.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::crowd::{AGENTS_MAX, Failures, Standing};
use crate::{
    capture::{Stop, measure},
    system::Running,
};

/// Between two looks whether all are connected.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Agents that enrol between two looks whether that is to end.
const ENROLLED_TOGETHER: usize = 500;

/// All of them.
pub struct Crowds {
    directory: PathBuf,
    token: String,
    /// Each has [`AGENTS_MAX`], but for the last.
    processes: Vec<Running>,
    agents: usize,
}

impl Crowds {
    /// Nobody yet. They will enrol with `token`, and keep their data in `directory`.
    pub fn new(directory: &Path, token: String) -> Self {
        Self { directory: directory.to_owned(), token, processes: Vec::new(), agents: 0 }
    }

    /// How many have enrolled.
    pub const fn len(&self) -> usize {
        self.agents
    }

    /// Whether there is nobody.
    pub const fn is_empty(&self) -> bool {
        self.agents == 0
    }

    /// Enrols so many more that they become `agents`. How long it took.
    ///
    /// # Errors
    /// When one does not enrol.
    pub fn enrol_up_to(&mut self, agents: usize, stop: &Stop) -> Result<Duration> {
        let began = Instant::now();
        while self.agents < agents {
            stop.wait(Duration::ZERO)?;
            let (process, from) = (self.agents / AGENTS_MAX, self.agents);
            let to = agents.min(from + ENROLLED_TOGETHER).min((process + 1) * AGENTS_MAX);
            if process == self.processes.len() {
                self.processes.push(self.process()?);
            }
            let answer = self.processes[process].ask(&format!("enrol {from} {to}"));
            ensure!(answer == "enrolled", "{answer}");
            self.agents = to;
        }
        Ok(began.elapsed())
    }

    fn process(&self) -> Result<Running> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("crowd").arg(&self.directory).arg(&self.token);
        Ok(Running::start("a crowd of agents", &mut command))
    }

    /// Starts those that have enrolled since, and waits until all are connected. How long that took.
    ///
    /// # Errors
    /// When it takes longer than `patience`.
    pub fn connect_all(&mut self, patience: Duration, stop: &Stop) -> Result<Duration> {
        let began = Instant::now();
        for process in &mut self.processes {
            let answer = process.ask("start");
            ensure!(answer == "started", "{answer}");
        }
        self.await_connected(patience, stop)?;
        Ok(began.elapsed())
    }

    /// Waits until all are connected.
    ///
    /// # Errors
    /// When it takes longer than `patience`.
    pub fn await_connected(&mut self, patience: Duration, stop: &Stop) -> Result<()> {
        self.await_standing(patience, stop, |connected, agents| connected == agents)
    }

    /// Waits until each has noticed that the collector is gone.
    ///
    /// # Errors
    /// When it takes longer than `patience`.
    pub fn await_lost(&mut self, patience: Duration, stop: &Stop) -> Result<()> {
        self.await_standing(patience, stop, |connected, _| connected == 0)
    }

    fn await_standing(
        &mut self,
        patience: Duration,
        stop: &Stop,
        wanted: fn(usize, usize) -> bool,
    ) -> Result<()> {
        let began = Instant::now();
        loop {
            let connected = self.standing()?.connected;
            if wanted(connected, self.agents) {
                return Ok(());
            }
            ensure!(
                began.elapsed() < patience,
                "after {patience:?}, {connected} of {} are connected",
                self.agents
            );
            stop.wait(LOOK_INTERVAL)?;
        }
    }

    /// How all of them stand.
    ///
    /// # Errors
    /// When a process has ended.
    pub fn standing(&mut self) -> Result<Standing> {
        let mut all = Standing::default();
        for process in &mut self.processes {
            let answer = process.ask("tell");
            let one: Standing =
                serde_json::from_str(&answer).with_context(|| format!("a crowd says `{answer}`"))?;
            all = Standing {
                connected: all.connected + one.connected,
                failures: all.failures.and(&one.failures),
            };
        }
        Ok(all)
    }

    /// How often calls came to nothing until now.
    ///
    /// # Errors
    /// When a process has ended.
    pub fn failures(&mut self) -> Result<Failures> {
        Ok(self.standing()?.failures)
    }

    /// Seconds of processor time that all of them have had.
    ///
    /// # Errors
    /// When a process has ended.
    pub fn cpu_s(&self) -> Result<f64> {
        let mut all_ns = 0;
        for process in &self.processes {
            all_ns += measure::cpu_ns(process.pid())?;
        }
        Ok(all_ns as f64 / 1e9)
    }
}
