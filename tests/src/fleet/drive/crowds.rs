//! All agents, in as many processes as they take.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use alibi_proto::time::Timestamp;
use anyhow::{Context as _, Result, ensure};

use super::{
    Order,
    crowd::{AGENTS_MAX, Told},
};
use crate::{
    capture::{Stop, measure},
    system::Running,
};

/// Between two looks how they stand.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Agents that enrol between two looks whether that is to end.
const ENROLLED_TOGETHER: u32 = 200;

/// All of them.
pub struct Crowds {
    /// The program that runs some of them: `lab`.
    lab: PathBuf,
    directory: PathBuf,
    token: String,
    /// Each has as many as fit, but for the last.
    processes: Vec<Running>,
    /// The number of the first laptop, and the one after the last that has enrolled.
    first: u32,
    next: u32,
}

impl Crowds {
    /// Nobody yet. They will enrol with `token`, and keep their data in `directory`; the first laptop has this number.
    pub fn new(lab: &Path, directory: &Path, token: String, first: u32) -> Self {
        let (lab, directory) = (lab.to_owned(), directory.to_owned());
        Self { lab, directory, token, processes: Vec::new(), first, next: first }
    }

    /// Enrols as many more as it takes until the next has the number `to`.
    ///
    /// # Errors
    /// When it is to end.
    pub fn enrol_up_to(&mut self, to: u32, stop: &Stop) -> Result<()> {
        while self.next < to {
            stop.wait(Duration::ZERO)?;
            let (process, from) = ((self.next - self.first) / AGENTS_MAX, self.next);
            let full = self.first + (process + 1) * AGENTS_MAX;
            let to = to.min(from + ENROLLED_TOGETHER).min(full);
            if process as usize == self.processes.len() {
                let mut command = Command::new(&self.lab);
                command.arg("fleet-crowd").arg(&self.directory).arg(&self.token);
                self.processes.push(Running::start("a crowd of agents", &mut command));
            }
            let answer = self.processes[process as usize].ask(&format!("enrol {from} {to}"));
            ensure!(answer == "enrolled", "{answer}");
            self.next = to;
        }
        Ok(())
    }

    /// Starts those of an order that have enrolled.
    ///
    /// # Errors
    /// When a crowd does not know how.
    pub fn start(&mut self, order: &Order) -> Result<()> {
        let order = serde_json::to_string(order)?;
        self.tell_all(&format!("start {order}"), "started")
    }

    /// From this instant on nothing happens on any laptop; they stay connected.
    ///
    /// # Errors
    /// When a crowd does not know how.
    pub fn rest(&mut self, from: Timestamp) -> Result<()> {
        self.tell_all(&format!("rest {}", from.as_nanos()), "rests")
    }

    fn tell_all(&mut self, line: &str, expected: &str) -> Result<()> {
        for process in &mut self.processes {
            let answer = process.ask(line);
            ensure!(answer == expected, "{answer}");
        }
        Ok(())
    }

    /// Waits until they stand as wanted; how they stand then.
    ///
    /// # Errors
    /// When it takes longer than `patience`.
    pub fn await_told(
        &mut self,
        patience: Duration,
        stop: &Stop,
        wanted: impl Fn(&Told) -> bool,
    ) -> Result<Told> {
        let began = Instant::now();
        loop {
            let told = self.told()?;
            if wanted(&told) {
                return Ok(told);
            }
            let Told { agents, connected, done, recorded, acknowledged, failed, .. } = told;
            let said = self.processes.iter().flat_map(Running::said);
            let ended: Option<String> = said.into_iter().find(|line| line.contains("has ended"));
            ensure!(ended.is_none(), "{}", ended.unwrap_or_default());
            ensure!(
                began.elapsed() < patience,
                "after {patience:?}, of {agents} agents {connected} are connected and {done} are done; of {recorded} \
                 events {acknowledged} are acknowledged; {failed} calls came to nothing"
            );
            stop.wait(LOOK_INTERVAL)?;
        }
    }

    /// How all of them stand.
    ///
    /// # Errors
    /// When what a crowd says cannot be read.
    pub fn told(&mut self) -> Result<Told> {
        let mut all = Told::default();
        for process in &mut self.processes {
            let answer = process.ask("tell");
            all.join(&serde_json::from_str(&answer).with_context(|| format!("a crowd says `{answer}`"))?);
        }
        Ok(all)
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
