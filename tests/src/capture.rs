//! `cargo lab capture`: an agent under every kind of load, held against what really happened.

pub mod measure;
pub mod report;
pub mod score;
pub mod stage;
pub mod tail;

use std::{
    env,
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use alibi_proto::{time::parse_duration, transport};
use anyhow::{Context as _, Result, bail, ensure};

use crate::workload::{self, Cost, EARLY, Workload};
use measure::Spread;
use report::{Machine, Pairs, Report};
use stage::Stage;

/// The workloads that are measured: each is one kind of event, many times.
const MEASURED: &[&str] = &["fresh", "many", "exec"];

/// What to run, and how long.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How the agent captures; netlink cannot, since the proc connector is heard in the first network namespace alone
    #[arg(long, default_value = "ebpf", value_parser = ["ebpf", "poll"])]
    source: String,
    /// Only this workload; may be given several times
    #[arg(long = "workload", value_parser = parse_workload)]
    workloads: Vec<&'static Workload>,
    /// Runs with and without an agent in turn, so many of each; 0 measures no slow-down
    #[arg(long, default_value_t = 5)]
    pairs: u32,
    /// How long an agent is measured with nothing to do; 0 not at all
    #[arg(long, default_value = "30s", value_parser = parse_seconds)]
    idle: Duration,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn parse_workload(name: &str) -> Result<&'static Workload, String> {
    workload::named(name).ok_or_else(|| {
        let names: Vec<&str> = workload::ALL.iter().map(|workload| workload.name).collect();
        format!("there is no workload `{name}`: there are {}", names.join(", "))
    })
}

/// Seconds, with or without the unit.
fn parse_seconds(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    parse_duration(text).map_err(|error| error.to_string())
}

/// Runs it, and prints the report.
///
/// # Errors
/// When it cannot be run. A bad score is none.
pub fn capture(options: &Options) -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "`cargo lab capture` makes network namespaces: run it as root"
    );
    let workloads: Vec<&Workload> = match options.workloads.as_slice() {
        [] => workload::ALL.iter().collect(),
        chosen => chosen.to_vec(),
    };
    let stop = Stop::listen();
    let machine = Machine::look()?;
    let mut report = scores(options, &workloads, machine, &stop)?;
    for workload in workloads.iter().filter(|workload| MEASURED.contains(&workload.name)) {
        if options.pairs > 0 {
            report.pairs.push(pairs(options, workload, &stop)?);
        }
    }
    report.look_again()?;
    if options.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}

/// Hears that it is to end, so that it does in order: network namespaces and agents do not go by themselves.
struct Stop(Receiver<()>);

impl Stop {
    fn listen() -> Self {
        let (told, stop) = mpsc::channel();
        thread::spawn(move || {
            if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
                runtime.block_on(async { transport::stop_signal().await });
                // Nobody listens any more at the end.
                let _ = told.send(());
            }
        });
        Self(stop)
    }

    /// Waits for `duration`.
    ///
    /// # Errors
    /// When it is to end.
    fn wait(&self, duration: Duration) -> Result<()> {
        match self.0.recv_timeout(duration) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Ok(()) => bail!("interrupted"),
            Err(RecvTimeoutError::Disconnected) => bail!("cannot hear when it is to end"),
        }
    }
}

/// One agent over all workloads; before them, over nothing.
fn scores(options: &Options, workloads: &[&Workload], machine: Machine, stop: &Stop) -> Result<Report> {
    let stage = Stage::new(&env::current_exe()?)?;
    let is_early = workloads.iter().any(|workload| workload.name == EARLY);
    let early = is_early.then(|| stage.begin_early());
    let agent = stage.agent("agent", &options.source, &[]);
    // Once it answers, its first look is over.
    tail::Tail::open(&agent.address)?.until("a watermark", |tail| tail.watermark.is_some())?;
    let idle =
        if options.idle.is_zero() { None } else { Some(idle(agent.running.pid(), options.idle, stop)?) };
    for workload in workloads.iter().filter(|workload| workload.name != EARLY) {
        stop.wait(Duration::ZERO)?;
        stage.run(workload)?;
    }
    if let Some(early) = early {
        stage.end_early(early)?;
    }
    let findings = stage.findings(&agent)?;
    let (memory_bytes_max, memory_bytes) = measure::memory_bytes(agent.running.pid())?;
    Ok(Report {
        source: options.source.clone(),
        machine,
        findings,
        pairs: Vec::new(),
        idle,
        memory_bytes_max,
        memory_bytes,
    })
}

/// Measures an agent that has nothing to do.
fn idle(agent: u32, duration: Duration, stop: &Stop) -> Result<report::Idle> {
    let (cpu, busy) = (measure::cpu_ns(agent)?, measure::machine_busy_ticks()?);
    let began = Instant::now();
    // Nothing else is awaited: the time itself is what is measured over.
    stop.wait(duration)?;
    let seconds = began.elapsed().as_secs_f64();
    let agent_s = (measure::cpu_ns(agent)? - cpu) as f64 / 1e9;
    let all_s = (measure::machine_busy_ticks()? - busy) as f64 / 100.0;
    Ok(report::Idle {
        seconds,
        agent_percent: 100.0 * agent_s / seconds,
        others_percent: 100.0 * (all_s - agent_s).max(0.0) / seconds,
    })
}

/// Runs a workload without an agent and with one, in turn.
fn pairs(options: &Options, workload: &Workload, stop: &Stop) -> Result<Pairs> {
    let stage = Stage::new(&env::current_exe()?)?;
    let (mut cpu, mut wall) = (Vec::new(), Vec::new());
    let (mut agent_us, mut disk) = (Vec::new(), Vec::new());
    let mut items = 0;
    // The first run finds cold caches.
    stage.run(workload)?;
    for pair in 0..options.pairs {
        // Which one is first changes, so that what drifts in the machine favours neither.
        let mut costs: [Option<Cost>; 2] = [None; 2];
        for run in [pair % 2, (pair + 1) % 2] {
            stop.wait(Duration::ZERO)?;
            stage.forget()?;
            if run == 0 {
                costs[0] = Some(stage.run(workload)?);
                continue;
            }
            let agent = stage.agent(&format!("agent-{pair}"), &options.source, &[]);
            let mut tail = tail::Tail::open(&agent.address)?;
            tail.until("a watermark", |tail| tail.watermark.is_some())?;
            drop(tail);
            let before =
                (measure::cpu_ns(agent.running.pid())?, measure::disk_bytes(&agent.data.join("ring"))?);
            costs[1] = Some(stage.run(workload)?);
            let findings = stage.findings(&agent)?;
            items = findings.scores.iter().map(|score| score.expected).sum();
            let cpu_ns = measure::cpu_ns(agent.running.pid())? - before.0;
            let bytes = measure::disk_bytes(&agent.data.join("ring"))?.saturating_sub(before.1);
            // What is seen of it may be little: per item that there was, not per event that was recorded.
            agent_us.push(cpu_ns as f64 / 1e3 / items as f64);
            disk.push(bytes as f64 / items as f64);
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
        agent_us_per_item: spread(agent_us)?,
        disk_bytes_per_item: spread(disk)?,
    })
}
