//! `cargo lab scale`: how fast a collector with a whole fleet's flow records answers, held against what is true, beside DuckDB
//! with the same rows and a program that looks at each.
//!
//! The flows are made from a seed ([`made`]) and told as agents tell them, in order of time, all hosts beside each other
//! ([`fill`]). At each size the collector is started over them and asked on its own socket, as `alibi` asks it, with verdicts of
//! all hosts; the others are asked the same in turn ([`peers`]). What is true is made again from the seed for each question, and
//! every verdict and every connection of each answer is held against it ([`ask`]).

pub mod ask;
pub mod fill;
pub mod made;
pub mod peers;
pub mod report;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use alibi_collector::{
    access::Access,
    api::Service,
    fleet::Fleet as Followed,
    gate::Keyring,
    store::{MAIN_DATABASE, SqliteStore, Store},
    turns::Turns,
};
use alibi_proto::{question::Question, time::parse_duration};
use anyhow::{Result, anyhow, ensure};
use rustix::fs::{Advice, fadvise};

use crate::{
    capture::{
        Stop,
        measure::{self, own_cpu},
    },
    fleet::check::Asker,
    places::in_places,
    system::{Collector, now},
};
use ask::{Case, Kind, Truth};
use fill::Filler;
use made::{Fleet, Plan};
use peers::{DuckDb, Rows};
use report::{Asked, Figures, Ingest, Report, Size};

/// The history ends so long before now.
const ENDED: Duration = Duration::from_secs(600);
/// Questions of a kind that are asked before any is measured.
const WARM: usize = 3;
/// Of all that is told, one in so many is told while questions are asked.
const ASIDE_OF: u64 = 25;
/// How long a collector may take to read again all that it has.
const PATIENCE: Duration = Duration::from_secs(1_800);
/// Wrong answers that are told.
const FAULTS_SHOWN: usize = 5;

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How many flow records there are in the end
    #[arg(long, default_value_t = 50_000_000)]
    pub flows: u64,
    /// Of how many hosts
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub hosts: u32,
    /// In how much time
    #[arg(long, default_value = "7d", value_parser = parse_duration)]
    pub span: Duration,
    /// At which sizes questions are asked before
    #[arg(long, value_delimiter = ',', default_value = "1000000,5000000,20000000")]
    pub sizes: Vec<u64>,
    /// How many questions of each kind
    #[arg(long, default_value_t = 100)]
    pub questions: usize,
    /// How many of each kind of a collector that was just started and has nothing in memory
    #[arg(long, default_value_t = 5)]
    pub cold: usize,
    /// Flow records that an agent tells together
    #[arg(long, default_value_t = 100)]
    pub together: u64,
    /// Agents that tell at the same time
    #[arg(long, default_value_t = 64)]
    pub tellers: usize,
    /// Another history, and other questions, for each
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Where the collector keeps its data; a temporary directory if nowhere
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// A Python that has the module `duckdb`
    #[arg(long, default_value = "python3")]
    pub python: PathBuf,
    /// Without DuckDB
    #[arg(long)]
    pub no_duckdb: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Runs it, and prints the report.
///
/// # Errors
/// When it cannot be run, and when an answer was wrong. Bad figures are none.
pub fn scale(options: &Options) -> Result<()> {
    let report = in_places([(&options.data, "data")], |[directory]| measure_all(options, directory))?;
    match options.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => print!("{report}"),
    }
    let faults = report.faults();
    ensure!(faults == 0, "{faults} answers were wrong; run it again with --seed {}", options.seed);
    Ok(())
}

impl Options {
    /// In order, the whole of it last.
    fn sizes(&self) -> Vec<u64> {
        let mut sizes: Vec<u64> = self.sizes.iter().copied().filter(|size| *size < self.flows).collect();
        sizes.push(self.flows);
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    fn plan(&self) -> Result<Plan> {
        let flows_of_each = self.flows / u64::from(self.hosts);
        ensure!(flows_of_each > 0, "less than a flow for each host");
        let begins = now().saturating_sub(self.span + ENDED);
        Ok(Plan { seed: self.seed, hosts: self.hosts, flows_of_each, begins, span: self.span })
    }
}

/// All sizes, one after the other.
///
/// # Errors
/// When something cannot be started, written or asked.
pub fn measure_all(options: &Options, directory: &Path) -> Result<Report> {
    let fleet = Arc::new(Fleet::new(options.plan()?));
    let mut report = Report::begin(options.seed, options.hosts, options.span)?;
    let mut scene = Scene::begin(options, Arc::clone(&fleet), directory)?;
    report.duckdb = scene.duckdb.as_ref().map(|duckdb| duckdb.version.clone());
    for size in options.sizes() {
        eprintln!("{size} flows…");
        let figures = scene.size(size)?;
        if !options.json {
            println!("{figures}");
        }
        report.sizes.push(figures);
    }
    drop(scene);
    eprintln!("telling and asking at once…");
    report.ingest = Some(both(options, &fleet, directory)?);
    report.end()?;
    Ok(report)
}

/// A collector's data, and everybody who has the same rows.
struct Scene<'a> {
    options: &'a Options,
    fleet: Arc<Fleet>,
    data: PathBuf,
    filler: Filler,
    rows: Rows,
    duckdb: Option<DuckDb>,
    stop: Stop,
}

impl<'a> Scene<'a> {
    /// Nobody has any.
    fn begin(options: &'a Options, fleet: Arc<Fleet>, directory: &Path) -> Result<Self> {
        let data = directory.join("collector");
        // It makes a data directory of it.
        Collector::start(&data).running.interrupt();
        let duckdb = directory.join("duckdb");
        let duckdb = (!options.no_duckdb).then(|| DuckDb::start(&options.python, &duckdb)).transpose()?;
        let (filler, rows) = (Filler::new(&fleet), Rows::default());
        Ok(Self { options, fleet, data, filler, rows, duckdb, stop: Stop::listen() })
    }

    /// Everybody has so many, and is asked.
    fn size(&mut self, flows: u64) -> Result<Size> {
        let is_last = flows == self.options.flows;
        let (before, until) = (self.filler.reached(), (flows / u64::from(self.options.hosts)).max(1));
        let Options { together, tellers, .. } = *self.options;
        let store = SqliteStore::open(&self.data.join(MAIN_DATABASE))?;
        if before == 0 {
            self.filler.introduce(&store, &self.fleet, tellers)?;
        }
        let filled = self.filler.until(&store, &self.fleet, until, together, tellers)?;
        drop(store);
        self.stop.wait(Duration::ZERO)?;
        self.rows.add(&self.fleet, before..until)?;
        let mut figures = Size::new(self.rows.len() as u64, filled, measure::disk_bytes(&self.data)?);
        if let Some(duckdb) = &mut self.duckdb {
            figures.duckdb_load_s = Some(duckdb.add(&self.fleet, before..until)?.as_secs_f64());
            if is_last {
                duckdb.sort()?;
            }
        }
        self.questions(is_last, &mut figures)?;
        if is_last {
            self.cold(&mut figures)?;
            figures.duckdb_bytes = self.duckdb.as_mut().map(DuckDb::disk_bytes).transpose()?;
        }
        Ok(figures)
    }

    fn asker(&self) -> Result<Asker> {
        Asker::at(&self.data.join("alibi.sock"))
    }

    fn cases(&self, kind: Kind, count: usize) -> Result<Vec<Case>> {
        Case::some(&self.fleet, kind, self.fleet.reached(self.filler.reached()), count)
    }

    /// Every kind of question, warm: of the collector, and in turn of everybody else.
    fn questions(&mut self, is_sorted: bool, figures: &mut Size) -> Result<()> {
        let collector = Collector::start(&self.data);
        eprintln!("…until all is read again");
        collector.running.line_within("everything that is stored was read again", PATIENCE);
        let asker = self.asker()?;
        for kind in Kind::ALL {
            let mut asked = Asked::new(kind);
            for (place, case) in self.cases(kind, self.options.questions + WARM)?.iter().enumerate() {
                self.stop.wait(Duration::ZERO)?;
                let truth = Truth::of(&self.fleet, case)?;
                let count = truth.count(case.window);
                let (answer, took) = asker.who(case.to_wire(), case)?;
                asked.faults(truth.faults(&self.fleet, case, &answer), FAULTS_SHOWN);
                let (scanned, scan) = self.rows.scan(case);
                ensure!(scanned == count, "{case}: {scanned} rows are meant, and {count} flows");
                let in_duckdb = self.in_duckdb(case, count, is_sorted)?;
                if place >= WARM {
                    asked.took(count, took, scan, in_duckdb);
                }
            }
            figures.asked.push(asked);
        }
        collector.running.interrupt();
        Ok(())
    }

    /// How long it took there, with the rows as they came, and in order.
    fn in_duckdb(&mut self, case: &Case, count: u64, is_sorted: bool) -> Result<[Option<Duration>; 2]> {
        let Some(duckdb) = &mut self.duckdb else { return Ok([None, None]) };
        let mut ask = |sorted| {
            let (counted, took) = duckdb.count(case, sorted)?;
            ensure!(counted == count, "{case}: DuckDB has {counted}, and there are {count}");
            Ok(took)
        };
        Ok([Some(ask(false)?), is_sorted.then(|| ask(true)).transpose()?])
    }

    /// A collector that was just started, with none of its files in the system's memory, is asked one question.
    fn cold(&self, figures: &mut Size) -> Result<()> {
        for (place, kind) in Kind::ALL.into_iter().enumerate() {
            let mut took = Vec::new();
            for case in self.cases(kind, self.options.cold)? {
                self.stop.wait(Duration::ZERO)?;
                forget_files(&self.data)?;
                let began = Instant::now();
                let collector = Collector::start(&self.data);
                figures.starts.push(began.elapsed());
                let (answer, time) = self.asker()?.who(case.to_wire(), &case)?;
                took.push(time);
                let faults = Truth::of(&self.fleet, &case)?.faults(&self.fleet, &case, &answer);
                figures.asked[place].faults(faults, FAULTS_SHOWN);
                collector.running.interrupt();
            }
            figures.asked[place].cold = Some(Figures::of(took));
        }
        Ok(())
    }
}

/// Takes what is on the disk out of the system's memory.
fn forget_files(directory: &Path) -> Result<()> {
    rustix::fs::sync();
    for entry in fs::read_dir(directory)? {
        let (entry, path) = (entry.as_ref().map_err(|error| anyhow!("{error}"))?.file_type()?, entry?.path());
        if entry.is_dir() {
            forget_files(&path)?;
        } else if entry.is_file() {
            fadvise(fs::File::open(&path)?, 0, None, Advice::DontNeed)?;
        }
    }
    Ok(())
}

/// A store takes in flows, and somebody asks: first nobody else, then both.
fn both(options: &Options, fleet: &Arc<Fleet>, directory: &Path) -> Result<Ingest> {
    let data = directory.join("both");
    fs::create_dir_all(&data)?;
    let flows = (options.flows / u64::from(options.hosts) / ASIDE_OF).max(2);
    let store = Arc::new(SqliteStore::open(&data.join(MAIN_DATABASE))?);
    let mut filler = Filler::new(fleet);
    filler.introduce(&store, fleet, options.tellers)?;
    let first = filler.until(&store, fleet, flows / 2, options.together, options.tellers)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let in_runtime = runtime.enter();
    let access = Arc::new(Access::open(&data, now())?);
    let followed = Arc::clone(&store) as Arc<dyn Store>;
    let keyring = Keyring::new(Arc::clone(&access))?;
    let followed = Followed::start(followed, Arc::clone(&access), keyring, Turns::default())?;
    let service = Service::new(Arc::clone(&store) as Arc<dyn Store>, Arc::new(followed), access, None);
    drop(in_runtime);

    let cases = Case::some(fleet, Kind::Address, fleet.reached(flows / 2), options.questions)?;
    let questions: Vec<Question> =
        cases.iter().map(|case| Question::try_from(case.to_wire().question)).collect::<Result<_, _>>()?;
    let ask = |question: &Question| -> Result<Duration> {
        let began = Instant::now();
        service.who(question.clone(), None).map_err(|status| anyhow!("{status}"))?;
        Ok(began.elapsed())
    };
    questions.iter().take(WARM).try_for_each(|question| ask(question).map(drop))?;
    let quiet: Vec<Duration> = questions.iter().map(ask).collect::<Result<_>>()?;
    let told = AtomicBool::new(false);
    let (filled, busy) = thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let cpu = own_cpu();
            let mut took = Vec::new();
            for question in questions.iter().cycle() {
                if told.load(Ordering::Relaxed) {
                    break;
                }
                took.push(ask(question)?);
            }
            Ok::<_, anyhow::Error>((took, own_cpu() - cpu))
        });
        let filled = filler.until(&store, fleet, flows, options.together, options.tellers);
        told.store(true, Ordering::Relaxed);
        let busy = asking.join().map_err(|_| anyhow!("whoever asked has panicked"))?;
        Ok::<_, anyhow::Error>((filled?, busy?))
    })?;
    let (busy, asked_cpu) = busy;
    drop(service);
    Ok(Ingest {
        alone: first,
        asked: fill::Filled { cpu_s: filled.cpu_s - asked_cpu.as_secs_f64(), ..filled },
        quiet: Figures::of(quiet),
        busy: Figures::of(busy),
    })
}
