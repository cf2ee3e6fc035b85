//! `cargo lab agents`: how many agents one collector carries, what each costs, and what becomes of them when it returns.
//!
//! All agents but one are simulated, many in one process: each is the real agent's link, service and ring, so what goes
//! over its connection is what a real one sends; only who writes into the ring is another ([`simulated`]). The last is a
//! real agent, which records all the time: how fresh it is tells what the others cost it ([`live`]).

pub mod crowd;
pub mod crowds;
pub mod live;
pub mod report;
pub mod simulated;
pub mod watched;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    capture::{Stop, parse_seconds},
    places::in_places,
    system::{Collector, outcome},
};
use crowds::Crowds;
use live::LiveAgent;
use report::{Connected, Idle, Report, Restart, Step};
use watched::Watched;

/// How long all may take to be connected, in each step and after a restart.
const PATIENCE: Duration = Duration::from_secs(300);
/// What a new connection leaves to be done, above all the second look at the host, is over after so long.
const SETTLED_AFTER: Duration = Duration::from_secs(5);

/// What to run, and how long.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How many agents in the last step, one of them real
    #[arg(long, default_value_t = 10_000)]
    agents: usize,
    /// With how many before that
    #[arg(long, value_delimiter = ',', default_value = "100,1000")]
    steps: Vec<usize>,
    /// How long each step is measured once all are connected
    #[arg(long, default_value = "60s", value_parser = parse_seconds)]
    idle: Duration,
    /// How long the collector is away before it returns
    #[arg(long, default_value = "10s", value_parser = parse_seconds)]
    away: Duration,
    /// Where the collector keeps its data; a temporary directory if nowhere
    #[arg(long)]
    data: Option<PathBuf>,
    /// Where the simulated agents keep theirs, which on laptops are disks of their own: best in memory
    #[arg(long)]
    agents_data: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Options {
    /// In order, each more than the one before it.
    fn steps(&self) -> Vec<usize> {
        let mut steps: Vec<usize> = self.steps.iter().copied().filter(|step| *step < self.agents).collect();
        steps.push(self.agents);
        steps.sort_unstable();
        steps.dedup();
        steps
    }
}

/// Runs it, and prints the report.
///
/// # Errors
/// When it cannot be run. Bad figures are none.
pub fn agents(options: &Options) -> Result<()> {
    ensure!(options.agents > 1, "one agent is the real one: there must be another");
    let places = [(&options.data, "data"), (&options.agents_data, "agents")];
    let report = in_places(places, |[data, agents_data]| measure_all(options, data, agents_data))?;
    match options.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => print!("{report}"),
    }
    Ok(())
}

fn measure_all(options: &Options, data: &Path, agents_data: &Path) -> Result<Report> {
    let stop = Stop::listen();
    let mut report = Report::begin()?;
    let of_collector = data.join("collector");
    let collector = Collector::start(&of_collector);
    let live = LiveAgent::start(data, &collector.token(1))?;
    let socket = of_collector.join("alibi.sock");
    let mut crowds = Crowds::new(agents_data, collector.token(u32::try_from(options.agents)?));
    let alone_bytes = Watched::of(collector.running.pid())?.memory_bytes()?;
    let stage = Stage { options, live: &live, socket: &socket, stop: &stop, alone_bytes };
    for agents in options.steps() {
        eprintln!("{agents} agents…");
        let step = stage.step(&collector, &mut crowds, agents)?;
        // What comes after it may be more than the machine allows.
        if !options.json {
            println!("{step}");
        }
        report.steps.push(step);
    }
    eprintln!("the collector restarts…");
    let restart = stage.restart(collector, &of_collector, &mut crowds)?;
    if !options.json {
        println!("{restart}");
    }
    report.restart = Some(restart);
    report.end()?;
    Ok(report)
}

/// What stands while the agents come and go.
struct Stage<'a> {
    options: &'a Options,
    live: &'a LiveAgent,
    /// The collector's own.
    socket: &'a Path,
    stop: &'a Stop,
    /// The collector's memory with the real agent alone.
    alone_bytes: u64,
}

impl Stage<'_> {
    /// With so many agents.
    fn step(&self, collector: &Collector, crowds: &mut Crowds, agents: usize) -> Result<Step> {
        // The real one is among them.
        let simulated = agents - 1;
        let before = crowds.len();
        let enrolment = crowds.enrol_up_to(simulated, self.stop)?;
        let watched = Watched::of(collector.running.pid())?;
        let failed_before = crowds.failures()?;
        let fresh = self.live.watch(self.socket)?;
        let connecting = crowds.connect_all(PATIENCE, self.stop)?;
        let cpu_s = watched.cpu_s()?;
        let connected = Connected {
            agents: simulated - before,
            seconds: connecting.as_secs_f64(),
            failed: crowds.failures()?.since(&failed_before),
            collector_cpu_s: cpu_s,
            live: fresh.end(),
        };
        self.stop.wait(SETTLED_AFTER)?;

        let (crowds_before_s, failed_before) = (crowds.cpu_s()?, crowds.failures()?);
        let watched = Watched::of(collector.running.pid())?;
        let fresh = self.live.watch(self.socket)?;
        self.stop.wait(self.options.idle)?;
        let seconds = watched.seconds();
        let idle = Idle {
            seconds,
            collector_percent: 100.0 * watched.cpu_s()? / seconds,
            threads_percent: watched.threads_percent()?,
            simulator_percent: 100.0 * (crowds.cpu_s()? - crowds_before_s) / seconds,
            written_bytes_per_s: watched.written_bytes()? as f64 / seconds,
            failed: crowds.failures()?.since(&failed_before),
            live: fresh.end(),
        };
        let memory_bytes = watched.memory_bytes()?;
        let questions = self.live.questions(collector)?;
        Ok(Step {
            agents,
            enrolments_per_s: (simulated - before) as f64 / enrolment.as_secs_f64(),
            connected,
            idle,
            memory_bytes,
            memory_bytes_per_agent: memory_bytes.saturating_sub(self.alone_bytes) as f64 / agents as f64,
            questions,
        })
    }

    /// Kills the collector, lets it return, and waits until all are back.
    fn restart(&self, collector: Collector, of_collector: &Path, crowds: &mut Crowds) -> Result<Restart> {
        let (killed, address) = (Instant::now(), collector.address);
        collector.running.kill();
        crowds.await_lost(PATIENCE, self.stop)?;
        self.stop.wait(self.options.away)?;
        let failed_before = crowds.failures()?;
        let returned = Instant::now();
        let collector = Collector::start_at(of_collector, &address);
        let starting_s = returned.elapsed().as_secs_f64();
        let watched = Watched::of(collector.running.pid())?;
        let fresh = self.live.watch(self.socket)?;
        crowds.await_connected(PATIENCE, self.stop)?;
        let all_back_s = returned.elapsed().as_secs_f64();
        let cpu_s = watched.cpu_s()?;
        self.stop.wait(SETTLED_AFTER)?;
        let live_again_s = fresh.live_again_after(killed).map(|again| again.as_secs_f64());
        Ok(Restart {
            away_s: returned.duration_since(killed).as_secs_f64(),
            starting_s,
            all_back_s,
            failed: crowds.failures()?.since(&failed_before),
            collector_cpu_s: cpu_s,
            memory_bytes: watched.memory_bytes()?,
            live_again_s,
            live: fresh.end(),
        })
    }
}

/// Lets this process have so many files open.
pub(crate) fn raise_files(files: u64) -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= files) {
        return Ok(());
    }
    let maximum = limit.maximum.map(|maximum| maximum.max(files));
    setrlimit(Resource::Nofile, Rlimit { current: Some(files), maximum }).with_context(|| {
        format!("{files} files cannot be open at once: run it as root, or raise `ulimit -n`")
    })
}

/// Asks a program for the time that each of several questions takes, in milliseconds.
fn asked(collector: &Collector, words: &[&str], times: usize) -> Result<Vec<f64>> {
    let mut took = Vec::new();
    for _ in 0..times {
        let began = Instant::now();
        let output = outcome(&mut collector.command(words));
        if !matches!(output.status.code(), Some(0 | 1 | 3)) {
            bail!("{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        took.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(took)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_go_up_to_all() {
        let steps = |agents, steps: &[usize]| {
            let (idle, away) = (Duration::ZERO, Duration::ZERO);
            let steps = steps.to_vec();
            Options { agents, steps, idle, away, data: None, agents_data: None, json: false }.steps()
        };
        assert_eq!(steps(10_000, &[1_000, 100]), [100, 1_000, 10_000]);
        assert_eq!(steps(500, &[100, 500, 1_000]), [100, 500]);
        assert_eq!(steps(2, &[]), [2]);
    }
}
