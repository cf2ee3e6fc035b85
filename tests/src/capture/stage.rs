//! A laptop in a network namespace of its own, the workloads on it, and an agent that watches.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use alibi_proto::event::{Event, EventKind};
use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use super::{
    score::{self, Losses, Score},
    tail::Tail,
};
use crate::{
    network::Network,
    programs::programs,
    system::{Agent, Running, now, outcome},
    workload::{self, Cost, EARLY, Workload, truth},
};

/// The place where it all happens. Taken away when dropped.
#[derive(Debug)]
pub struct Stage {
    /// The network; the laptop is its first.
    pub network: Network,
    /// The laptop's network namespace, by inode.
    namespace: u64,
    lab: PathBuf,
    truth: PathBuf,
    directory: tempfile::TempDir,
}

/// What an agent has made of the workloads.
#[derive(Clone, Debug, Serialize)]
pub struct Findings {
    /// One for each workload.
    pub scores: Vec<Score>,
    /// What the agent says that it lost.
    pub losses: Losses,
    /// Events that the agent has recorded in all.
    pub events: u64,
}

impl Stage {
    /// A stage without an agent; `lab` is the lab's program.
    ///
    /// # Errors
    /// When the system refuses. Needs root.
    pub fn new(lab: &Path) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let network = Network::new(1);
        workload::prepare(network.on_laptop(0, "laptop", "sh"))?;
        let namespace = namespace_of(network.on_laptop(0, "laptop", "readlink"))?;
        let truth = directory.path().join("truth.jsonl");
        fs::write(&truth, "")?;
        Ok(Self { network, namespace, lab: lab.to_owned(), truth, directory })
    }

    /// Starts an agent on the laptop, over the data of this name. The kernel tells of processes by netlink in the first
    /// network namespace alone, so an agent that hears of them so is there, and looks into the laptop's and all others.
    pub fn agent(&self, name: &str, source: &str, words: &[&str]) -> Agent {
        let data = self.directory.path().join(name);
        let listen = format!("unix:{}.sock", data.display());
        let words = [&["--source", source], words].concat();
        if source == "netlink" {
            return Agent::start_with(Command::new(&programs().agent), &data, &listen, &words);
        }
        // Of its own network namespace only, so that others on this machine do not count.
        let words = [&*words, &["--own-network-namespace"]].concat();
        let program = programs().agent.to_string_lossy().into_owned();
        let command = self.network.on_laptop(0, "laptop", &program);
        Agent::start_with(command, &data, &listen, &words)
    }

    /// Where things may be kept as long as it stands.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Where the workloads say what happened.
    pub fn truth(&self) -> &Path {
        &self.truth
    }

    /// The lab's program, on the laptop.
    pub fn lab(&self) -> Command {
        self.network.on_laptop(0, "laptop", &self.lab.to_string_lossy())
    }

    fn workload(&self, name: &str) -> Command {
        let mut command = self.lab();
        command.args(["workload", name, "--truth"]).arg(&self.truth);
        command
    }

    /// Begins the workload that begins before the agent.
    pub fn begin_early(&self) -> Running {
        let early = Running::start(EARLY, &mut self.workload(EARLY));
        early.line_with("ready", 0);
        early
    }

    /// Lets it go on to its end.
    ///
    /// # Errors
    /// When it fails.
    pub fn end_early(&self, mut early: Running) -> Result<Cost> {
        cost(EARLY, &early.ask("go"))
    }

    /// Runs a workload to its end.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, workload: &Workload) -> Result<Cost> {
        let output = outcome(&mut self.workload(workload.name));
        let (said, complaint) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{}: {complaint}", workload.name);
        cost(workload.name, said.lines().last().unwrap_or_default())
    }

    /// Forgets what happened so far.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn forget(&self) -> Result<()> {
        Ok(fs::write(&self.truth, "")?)
    }

    /// Waits until the agent has told everything up to now, and holds it against what happened.
    ///
    /// # Errors
    /// When the agent does not tell.
    pub fn findings(&self, agent: &Agent) -> Result<Findings> {
        let truths = truth::read(&self.truth)?;
        let mut tail = Tail::open(&agent.address)?;
        tail.until_known(now())?;
        // An agent that sees other network namespaces has seen what others do at such addresses, too.
        let is_elsewhere = |event: &Event| match &event.kind {
            EventKind::Flow(flow) => flow.network_namespace.is_some_and(|inode| inode != self.namespace),
            _ => false,
        };
        let here: Vec<Event> = tail.events.iter().filter(|event| !is_elsewhere(event)).cloned().collect();
        let scores = score::score(&truths, &tail.boot(), &here);
        let losses = score::losses(&tail.events, &tail.holes);
        Ok(Findings { scores, losses, events: tail.events.last().map_or(0, |event| event.seq.0) })
    }
}

fn namespace_of(mut readlink: Command) -> Result<u64> {
    let output = readlink.arg("/proc/self/ns/net").output().context("`readlink` can be run")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let inode = said.trim().strip_prefix("net:[").and_then(|said| said.strip_suffix(']')?.parse().ok());
    inode.with_context(|| format!("no network namespace in `{said}`"))
}

fn cost(name: &str, line: &str) -> Result<Cost> {
    serde_json::from_str(line).with_context(|| format!("{name} said `{line}` for its cost"))
}
