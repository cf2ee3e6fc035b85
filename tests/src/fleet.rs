//! `cargo lab fleet`: a fleet whose answers are checked, and not only timed.
//!
//! What happens on the laptops is simulated, seeded and never kept ([`model`]). It goes through the real agents' pipelines,
//! rings and calls home into the real collector ([`drive`]). Questions are asked of that at random, and each answer is held
//! against what truly happened, which is made again from the seed ([`check`]). In three parts: days that are over, told as fast
//! as they are taken, with the collector killed in the midst of it; agents that tell what happens as it does, more and more of
//! them until the collector falls behind ([`report`]); and what remains once all is quiet.

pub mod check;
pub mod drive;
pub mod model;
pub mod report;

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use alibi_agent::sys;
use alibi_proto::time::Timestamp;
use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::{
    agents::watched::Watched,
    capture::{Stop, measure, parse_seconds},
    places::in_places,
    system::{Collector, now},
};
use check::{Answered, Asker, Checked, Questions, check};
use drive::{Order, Pace, crowds::Crowds};
use model::{Plan, World};
use report::{Latency, Past, Quiet, Report, Step};

/// How long anything may take that is not measured.
const PATIENCE: Duration = Duration::from_secs(600);
/// Names of the world.
const SITES: u32 = 4_096;
/// The past that is told ends so long before now.
const PAST_ENDED: Duration = Duration::from_secs(60);
const PAST_LOOK_MS: u64 = 10_000;
const LIVE_LOOK_MS: u64 = 1_000;
/// Nobody's history lasts longer than this.
const LIVE_MAX: Duration = Duration::from_secs(24 * 3_600);
/// New agents have connected, and have told what they had when they did, after so long.
const SETTLED_AFTER: Duration = Duration::from_secs(5);
/// Under load a question is about what is over for so long.
const KNOWN_AFTER: Duration = Duration::from_secs(10);
/// Between two questions under load: those of some analysts, which are not to be most of what the collector does.
const QUESTION_PAUSE: Duration = Duration::from_millis(500);

/// What to run, and how long.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How many agents in the last step
    #[arg(long, default_value_t = 5_000)]
    agents: u32,
    /// With how many before that
    #[arg(long, value_delimiter = ',', default_value = "250,500,1000,2000,3500")]
    steps: Vec<u32>,
    /// Events that each makes in a second
    #[arg(long, default_value_t = 20.0)]
    rate: f64,
    /// How long each step is measured once all are connected
    #[arg(long, default_value = "30s", value_parser = parse_seconds)]
    measured: Duration,
    /// How many laptops have a past that is told first, and checked
    #[arg(long, default_value_t = 100)]
    past_laptops: u32,
    /// How many days of it
    #[arg(long, default_value_t = 2.0)]
    past_days: f64,
    /// Events a second of a laptop that was worked on then
    #[arg(long, default_value_t = 0.2)]
    past_rate: f64,
    /// How many questions are asked of each part
    #[arg(long, default_value_t = 300)]
    questions: usize,
    /// Another history, and other questions, for each
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the collector keeps its data; a temporary directory if nowhere
    #[arg(long)]
    data: Option<PathBuf>,
    /// Where the agents keep theirs, which on laptops are disks of their own: best in memory
    #[arg(long)]
    agents_data: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs it, and prints the report.
///
/// # Errors
/// When it cannot be run, and when an answer was wrong. Bad figures are none.
pub fn fleet(options: &Options) -> Result<()> {
    let places = [(&options.data, "data"), (&options.agents_data, "agents")];
    let report = in_places(places, |[data, agents_data]| all_parts(options, data, agents_data))?;
    match options.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => print!("{report}"),
    }
    let faults = report.faults();
    ensure!(faults == 0, "{faults} answers were wrong; run it again with --seed {}", options.seed);
    Ok(())
}

fn all_parts(options: &Options, data: &Path, agents_data: &Path) -> Result<Report> {
    let stop = Stop::listen();
    let mut report = Report::begin(options.seed)?;
    let lab = std::env::current_exe()?;
    let mut fleet = Fleet::begin(&lab, data, agents_data, options.past_laptops + options.agents, &stop)?;
    if options.past_laptops > 0 {
        let plan = past_plan(options);
        eprintln!("{} laptops, {} days…", options.past_laptops, options.past_days);
        let past = fleet.past(&plan, 0..options.past_laptops, options.questions)?;
        show(options, &past);
        // Whoever asks about what happens now would wait for them.
        fleet.leave(options.past_laptops)?;
        report.past = Some(past);
    }
    for agents in options.steps() {
        eprintln!("{agents} agents…");
        let step = fleet.live(options.past_laptops, agents, options, report.processors)?;
        show(options, &step);
        let is_sustained = step.is_sustained;
        report.steps.push(step);
        if !is_sustained {
            break;
        }
    }
    if !report.steps.is_empty() {
        eprintln!("quiet…");
        let quiet = fleet.quiet(options.seed, options.questions)?;
        show(options, &quiet);
        report.quiet = Some(quiet);
    }
    report.end()?;
    Ok(report)
}

/// As soon as it is known: what comes after it may be more than the machine allows.
fn show(options: &Options, part: &impl std::fmt::Display) {
    if !options.json {
        println!("{part}");
    }
}

fn past_plan(options: &Options) -> Plan {
    let ends = now().saturating_sub(PAST_ENDED);
    let begins = ends.saturating_sub(Duration::from_secs_f64(options.past_days * 24.0 * 3_600.0));
    Plan {
        seed: options.seed,
        begins_ns: begins.as_nanos(),
        ends_ns: ends.as_nanos(),
        events_per_s: options.past_rate,
        look_ms: PAST_LOOK_MS,
        is_eventful: true,
        sites: SITES,
    }
}

impl Options {
    /// In order, each more than the one before it; none without agents.
    fn steps(&self) -> Vec<u32> {
        let mut steps: Vec<u32> = self.steps.iter().copied().filter(|step| *step < self.agents).collect();
        steps.push(self.agents);
        steps.sort_unstable();
        steps.dedup();
        steps.retain(|step| *step > 0);
        steps
    }
}

/// A collector, and those who call it.
pub struct Fleet<'a> {
    stop: &'a Stop,
    data: PathBuf,
    collector: Option<Collector>,
    lab: PathBuf,
    agents_data: PathBuf,
    token: String,
    /// Agents that are there.
    crowds: Crowds,
    /// What was on the collector's disk before them.
    disk_bytes_before: u64,
    /// Those who tell what happens as it does.
    live: Vec<(Range<u32>, Plan)>,
}

impl<'a> Fleet<'a> {
    /// A collector with its data in `data`, and nobody yet; `laptops` may come. `lab` is the program that runs agents.
    ///
    /// # Errors
    /// When a directory cannot be made.
    pub fn begin(lab: &Path, data: &Path, agents_data: &Path, laptops: u32, stop: &'a Stop) -> Result<Self> {
        let data = data.join("collector");
        let collector = Collector::start(&data);
        let (lab, agents_data, token) = (lab.to_owned(), agents_data.to_owned(), collector.token(laptops));
        let crowds = Crowds::new(&lab, &agents_data, token.clone(), 0);
        Ok(Self {
            stop,
            data,
            collector: Some(collector),
            lab,
            agents_data,
            token,
            crowds,
            disk_bytes_before: 0,
            live: Vec::new(),
        })
    }

    /// All that are there leave; those who come have numbers from here on.
    fn leave(&mut self, first: u32) -> Result<()> {
        self.disk_bytes_before = measure::disk_bytes(&self.data)?;
        self.crowds = Crowds::new(&self.lab, &self.agents_data, self.token.clone(), first);
        Ok(())
    }

    fn collector(&self) -> Result<&Collector> {
        self.collector.as_ref().context("the collector is away")
    }

    fn asker(&self) -> Result<Asker> {
        Asker::at(&self.data.join("alibi.sock"))
    }

    /// Laptops of these numbers tell a past that is over; in the midst of it the collector is killed, and comes back. Then it
    /// is asked.
    ///
    /// # Errors
    /// When it does not get there. Wrong answers are none.
    pub fn past(&mut self, plan: &Plan, laptops: Range<u32>, questions: usize) -> Result<Past> {
        let (began, disk_before) = (Instant::now(), measure::disk_bytes(&self.data)?);
        self.tell_past(plan, laptops.clone())?;
        let seconds = began.elapsed().as_secs_f64();
        self.asker()?.await_known(laptops.clone(), plan.ends(), PATIENCE)?;
        let events = self.crowds.told()?.acknowledged;
        let disk_bytes = measure::disk_bytes(&self.data)?.saturating_sub(disk_before);
        let (answers, took) = self.answers(plan, laptops.clone(), questions)?;
        let world = Arc::new(World::new(plan.seed, plan.sites));
        Ok(Past {
            laptops: laptops.end - laptops.start,
            days: plan.ends().since(plan.begins()).as_secs_f64() / 86_400.0,
            events,
            seconds,
            disk_bytes_per_event: disk_bytes as f64 / events.max(1) as f64,
            checked: check(plan, &world, laptops, &sys::host_facts().boot_id, &answers),
            questions: Latency::of(&took),
        })
    }

    fn tell_past(&mut self, plan: &Plan, laptops: Range<u32>) -> Result<()> {
        let Range { start: from, end: to } = laptops;
        self.crowds.enrol_up_to(to, self.stop)?;
        self.crowds.start(&Order { from, to, plan: *plan, pace: Pace::Past })?;
        // Somewhere in it: each has told something, and nobody knows what.
        let some = u64::from(to - from) * 20;
        self.crowds.await_told(PATIENCE, self.stop, |told| told.acknowledged >= some)?;
        self.restart()?;
        let all = (to - from) as usize;
        self.crowds.await_told(PATIENCE, self.stop, |told| told.done == all).map(drop)
    }

    /// Kills the collector, and starts it again where it was.
    ///
    /// # Errors
    /// When it is away already.
    pub fn restart(&mut self) -> Result<()> {
        let collector = self.collector.take().context("the collector is away")?;
        let address = collector.address;
        collector.running.kill();
        self.collector = Some(Collector::start_at(&self.data, &address));
        Ok(())
    }

    /// So many questions about these laptops, answered.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn answers(
        &self,
        plan: &Plan,
        laptops: Range<u32>,
        questions: usize,
    ) -> Result<(Vec<Answered>, Vec<Duration>)> {
        let world = World::new(plan.seed, plan.sites);
        let asker = self.asker()?;
        let (mut answers, mut took) = (Vec::new(), Vec::new());
        for asked in Questions::new(&world, plan.seed, laptops, plan.begins(), plan.ends()).take(questions) {
            self.stop.wait(Duration::ZERO)?;
            let (answer, time) = asker.ask(&asked)?;
            answers.push(Answered { asked, answer });
            took.push(time);
        }
        Ok((answers, took))
    }

    /// So many agents, from the number `first` on, tell what happens as it does.
    fn live(&mut self, first: u32, agents: u32, options: &Options, processors: usize) -> Result<Step> {
        let from = self.live.last().map_or(first, |(laptops, _)| laptops.end);
        self.join(from..first + agents, options)?;
        self.measure(agents, options).map(|step| step.judged(processors))
    }

    /// New ones come.
    fn join(&mut self, laptops: Range<u32>, options: &Options) -> Result<()> {
        self.crowds.enrol_up_to(laptops.end, self.stop)?;
        // From a whole second on, so that all look at whole seconds.
        let begins = Timestamp::from_secs(now().as_nanos() / 1_000_000_000 + 1);
        let plan = Plan {
            seed: options.seed,
            begins_ns: begins.as_nanos(),
            ends_ns: begins.saturating_add(LIVE_MAX).as_nanos(),
            events_per_s: options.rate,
            look_ms: LIVE_LOOK_MS,
            is_eventful: false,
            sites: SITES,
        };
        self.crowds.start(&Order { from: laptops.start, to: laptops.end, plan, pace: Pace::Live })?;
        self.live.push((laptops, plan));
        self.crowds.await_told(PATIENCE, self.stop, |told| told.connected == told.agents)?;
        self.stop.wait(SETTLED_AFTER)?;
        Ok(())
    }

    fn measure(&mut self, agents: u32, options: &Options) -> Result<Step> {
        let pid = self.collector()?.running.pid();
        let (before, agents_cpu_s) = (self.crowds.told()?, self.crowds.cpu_s()?);
        let (watched, system_s) = (Watched::of(pid)?, measure::system_s(pid)?);
        let threads = measure::each_thread_ns(pid)?;
        let machine_ticks = measure::machine_busy_ticks()?;
        let asking = self.ask_meanwhile(options)?;
        self.stop.wait(options.measured)?;
        let after = self.crowds.told()?;
        let seconds = watched.seconds();
        let (taken, recorded) = (after.acknowledged - before.acknowledged, after.recorded - before.recorded);
        let percent = |cpu_s: f64| 100.0 * cpu_s / seconds;
        let cpu_s = watched.cpu_s()?;
        let written_bytes = watched.written_bytes()?;
        Ok(Step {
            agents,
            rate: options.rate,
            seconds,
            recorded_per_s: recorded as f64 / seconds,
            taken_per_s: taken as f64 / seconds,
            lag_p50_ms: after.lag.at(0.5),
            lag_p99_ms: after.lag.at(0.99),
            late_p99_ms: after.late.at(0.99),
            failed: after.failed - before.failed,
            collector_us_per_event: cpu_s * 1e6 / taken.max(1) as f64,
            collector_percent: percent(cpu_s),
            collector_system_percent: percent(measure::system_s(pid)? - system_s),
            threads_percent: watched.threads_percent()?,
            busiest_percent: percent(busiest_s(&threads, &measure::each_thread_ns(pid)?)),
            agents_percent: percent(self.crowds.cpu_s()? - agents_cpu_s),
            machine_percent: (measure::machine_busy_ticks()? - machine_ticks) as f64 / seconds,
            written_bytes_per_event: written_bytes as f64 / taken.max(1) as f64,
            memory_bytes: watched.memory_bytes()?,
            questions: Latency::of(&asking.end()?),
            is_sustained: false,
            bottleneck: String::new(),
        })
    }

    /// Asks one question after the other, of those who tell now, until it is to end.
    fn ask_meanwhile(&self, options: &Options) -> Result<Asking> {
        let (laptops, plan) = self.live.first().context("nobody tells anything")?.clone();
        let (asker, world) = (self.asker()?, World::new(plan.seed, plan.sites));
        let (stop, stopped) = mpsc::channel();
        let seed = options.seed;
        let thread = thread::Builder::new().name("asking".to_owned()).spawn(move || {
            let mut took = Vec::new();
            for number in 0_u64.. {
                if stopped.recv_timeout(QUESTION_PAUSE) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
                let until = now().saturating_sub(KNOWN_AFTER).max(plan.begins().saturating_add(KNOWN_AFTER));
                let mut questions =
                    Questions::new(&world, seed ^ number, laptops.clone(), plan.begins(), until);
                let asked = questions.next().context("questions have no end")?;
                took.push(asker.ask(&asked)?.1);
            }
            Ok(took)
        })?;
        Ok(Asking { stop, thread })
    }

    /// Nothing happens any more: all that did is taken, and then asked about.
    fn quiet(&mut self, seed: u64, questions: usize) -> Result<Quiet> {
        let rests = Timestamp::from_secs(now().as_nanos() / 1_000_000_000 + 2);
        self.crowds.rest(rests)?;
        let began = Instant::now();
        self.stop.wait(rests.since(now()))?;
        let told = self.crowds.await_told(PATIENCE, self.stop, |told| told.done == told.agents)?;
        let drained_s = began.elapsed().as_secs_f64();
        let disk_bytes = measure::disk_bytes(&self.data)?.saturating_sub(self.disk_bytes_before);
        let (mut checked, mut took) = (Checked::default(), Vec::new());
        let boot_id = sys::host_facts().boot_id;
        let each = questions / self.live.len().max(1);
        for (laptops, plan) in &self.live {
            self.asker()?.await_known(laptops.clone(), rests, PATIENCE)?;
            let plan = Plan { ends_ns: rests.as_nanos(), ..*plan };
            let (answers, times) = self.answers(&plan, laptops.clone(), each)?;
            // Everybody is asked, but only those of the same plan have this history.
            let world = Arc::new(World::new(seed, plan.sites));
            checked.join(check(&plan, &world, laptops.clone(), &boot_id, &answers));
            took.extend(times);
        }
        Ok(Quiet {
            drained_s,
            events: told.acknowledged,
            disk_bytes_per_event: disk_bytes as f64 / told.acknowledged.max(1) as f64,
            checked,
            questions: Latency::of(&took),
        })
    }
}

/// Processor time that one thread had since, in seconds: that of the one with most of it.
fn busiest_s(before: &BTreeMap<u32, (String, u64)>, after: &BTreeMap<u32, (String, u64)>) -> f64 {
    let since = |(id, (_, spent)): (&u32, &(String, u64))| {
        spent.saturating_sub(before.get(id).map_or(0, |(_, before)| *before))
    };
    after.iter().map(since).max().unwrap_or(0) as f64 / 1e9
}

/// Somebody asks.
struct Asking {
    stop: mpsc::Sender<()>,
    thread: thread::JoinHandle<Result<Vec<Duration>>>,
}

impl Asking {
    /// Ends it: how long each answer took.
    fn end(self) -> Result<Vec<Duration>> {
        drop(self.stop);
        match self.thread.join() {
            Ok(took) => took,
            Err(_) => bail!(anyhow!("whoever asked has panicked")),
        }
    }
}
