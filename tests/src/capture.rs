//! `cargo lab capture`: an agent under every kind of load, held against what really happened.

pub mod audit;
pub mod measure;
pub mod pairs;
pub mod report;
pub mod score;
pub mod stage;
pub mod tail;
pub mod watch;

use std::{
    env,
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use alibi_proto::{time::parse_duration, transport};
use anyhow::{Result, bail, ensure};

use crate::{
    system::now,
    workload::{self, EARLY, Workload},
};
use measure::Memory;
use pairs::{AUDITD, pairs};
use report::{Machine, Report};
use stage::Stage;

/// The workloads that are measured: each is one kind of event, many times.
const MEASURED: &[&str] = &["fresh", "many", "exec"];

/// What to run, and how long.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How the agent captures. auditd, to compare with, has a cost and no score, and leaves its mark on the system until
    /// the next boot: measure it last
    #[arg(long, default_value = "ebpf", value_parser = ["ebpf", "netlink", "poll", AUDITD])]
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
pub(crate) fn parse_seconds(text: &str) -> Result<Duration, String> {
    // No time at all is none elsewhere.
    if let Ok(seconds) = text.strip_suffix('s').unwrap_or(text).parse() {
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
    let mut report = match options.source.as_str() {
        AUDITD => Report::of_cost(AUDITD, machine),
        _ => scores(options, &workloads, machine, &stop)?,
    };
    for workload in workloads.iter().filter(|workload| MEASURED.contains(&workload.name)) {
        if options.pairs > 0 {
            report.pairs.push(pairs(&options.source, options.pairs, workload, &stop)?);
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
pub struct Stop(Receiver<()>);

impl Stop {
    /// From now on, to Ctrl-C and to being asked to stop.
    pub fn listen() -> Self {
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

    /// Goes on.
    ///
    /// # Errors
    /// When it is to end.
    pub(crate) fn check(&self) -> Result<()> {
        self.wait(Duration::ZERO)
    }

    /// Waits for `duration`.
    ///
    /// # Errors
    /// When it is to end.
    pub(crate) fn wait(&self, duration: Duration) -> Result<()> {
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
    // Once it has caught up with now, its first look is over.
    watch::until_recorded(&agent.data, now())?;
    let idle =
        if options.idle.is_zero() { None } else { Some(idle(agent.running.pid(), options.idle, stop)?) };
    for workload in workloads.iter().filter(|workload| workload.name != EARLY) {
        stop.check()?;
        stage.run(workload)?;
    }
    if let Some(early) = early {
        stage.end_early(early)?;
    }
    watch::until_recorded(&agent.data, now())?;
    let memory = Memory::of(agent.running.pid())?;
    let findings = stage.findings(&agent)?;
    let memory = Some((memory, Memory::of(agent.running.pid())?));
    Ok(Report { findings: Some(findings), idle, memory, ..Report::of_cost(&options.source, machine) })
}

/// Measures an agent that has nothing to do.
fn idle(agent: u32, duration: Duration, stop: &Stop) -> Result<report::Idle> {
    let (cpu, busy) = (measure::cpu_ns(agent)?, measure::machine_busy_ticks()?);
    let threads_before = measure::threads_ns(agent)?;
    let began = Instant::now();
    // Nothing else is awaited: the time itself is what is measured over.
    stop.wait(duration)?;
    let seconds = began.elapsed().as_secs_f64();
    let agent_s = (measure::cpu_ns(agent)? - cpu) as f64 / 1e9;
    let threads = measure::threads_ns(agent)?.into_iter().map(|(name, spent)| {
        let spent = spent.saturating_sub(threads_before.get(&name).copied().unwrap_or(0));
        (name, spent as f64 / 1e3 / seconds)
    });
    let threads_us_per_s = threads.collect();
    let all_s = (measure::machine_busy_ticks()? - busy) as f64 / 100.0;
    Ok(report::Idle {
        seconds,
        agent_percent: 100.0 * agent_s / seconds,
        threads_us_per_s,
        others_percent: 100.0 * (all_s - agent_s).max(0.0) / seconds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_has_a_unit_or_none_and_may_be_none() {
        for (text, seconds) in [("0s", 0), ("0", 0), ("300s", 300), ("300", 300), ("5m", 300)] {
            assert_eq!(parse_seconds(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert!(parse_seconds("soon").is_err());
    }
}
