//! What was measured, for people and as JSON.

use std::{fmt, time::Duration};

use anyhow::Result;
use serde::Serialize;

use super::{ask::Kind, fill::Filled};
use crate::capture::measure;

/// All of it.
#[derive(Debug, Serialize)]
pub struct Report {
    seed: u64,
    hosts: u32,
    days: f64,
    processors: usize,
    load_before: f64,
    load_after: f64,
    /// Its version.
    pub duckdb: Option<String>,
    /// Size after size.
    pub sizes: Vec<Size>,
    /// Telling and asking at once.
    pub ingest: Option<Ingest>,
}

impl Report {
    /// Nothing was measured yet.
    ///
    /// # Errors
    /// When the system does not tell how busy it is.
    pub fn begin(seed: u64, hosts: u32, span: Duration) -> Result<Self> {
        Ok(Self {
            seed,
            hosts,
            days: span.as_secs_f64() / 86_400.0,
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            load_before: measure::load_average()?,
            load_after: 0.0,
            duckdb: None,
            sizes: Vec::new(),
            ingest: None,
        })
    }

    /// Nothing more is.
    ///
    /// # Errors
    /// When the system does not tell how busy it is.
    pub fn end(&mut self) -> Result<()> {
        self.load_after = measure::load_average()?;
        Ok(())
    }

    /// How many answers were wrong.
    pub fn faults(&self) -> u64 {
        self.sizes.iter().flat_map(|size| &size.asked).map(|asked| asked.wrong).sum()
    }
}

/// How long something took, in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Figures {
    p50_ms: f64,
    p99_ms: f64,
    least_ms: f64,
    most_ms: f64,
    count: usize,
}

impl Figures {
    /// Of these.
    pub fn of(mut took: Vec<Duration>) -> Self {
        took.sort_unstable();
        let at = |share: f64| {
            let place = ((took.len() as f64 * share).ceil() as usize).clamp(1, took.len().max(1)) - 1;
            took.get(place).map_or(0.0, |time| time.as_secs_f64() * 1e3)
        };
        Self { p50_ms: at(0.5), p99_ms: at(0.99), least_ms: at(0.0), most_ms: at(1.0), count: took.len() }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} ms (99 %: {:.1})", self.p50_ms, self.p99_ms)
    }
}

/// One kind of question, at one size.
#[derive(Debug, Serialize)]
pub struct Asked {
    kind: Kind,
    /// Flows that were meant, in the middle.
    flows: u64,
    /// The collector, warm.
    collector: Figures,
    /// The same, just started, with nothing in memory.
    pub cold: Option<Figures>,
    /// Whoever looks at every row.
    scan: Figures,
    /// DuckDB: rows as they came, and in order.
    duckdb: Option<Figures>,
    duckdb_sorted: Option<Figures>,
    wrong: u64,
    faults: Vec<String>,
    #[serde(skip)]
    taken: Taken,
}

#[derive(Debug, Default)]
struct Taken {
    flows: Vec<u64>,
    collector: Vec<Duration>,
    scan: Vec<Duration>,
    duckdb: [Vec<Duration>; 2],
}

impl Asked {
    /// Of this kind, and nothing yet.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            flows: 0,
            collector: Figures::default(),
            cold: None,
            scan: Figures::default(),
            duckdb: None,
            duckdb_sorted: None,
            wrong: 0,
            faults: Vec::new(),
            taken: Taken::default(),
        }
    }

    /// One more question about so many flows.
    pub fn took(&mut self, flows: u64, collector: Duration, scan: Duration, duckdb: [Option<Duration>; 2]) {
        let taken = &mut self.taken;
        taken.flows.push(flows);
        taken.collector.push(collector);
        taken.scan.push(scan);
        taken.duckdb.iter_mut().zip(duckdb).for_each(|(taken, took)| taken.extend(took));
        let mut flows = taken.flows.clone();
        flows.sort_unstable();
        self.flows = flows[flows.len() / 2];
        let figures = |took: &Vec<Duration>| (!took.is_empty()).then(|| Figures::of(took.clone()));
        self.collector = figures(&taken.collector).unwrap_or_default();
        self.scan = figures(&taken.scan).unwrap_or_default();
        (self.duckdb, self.duckdb_sorted) = (figures(&taken.duckdb[0]), figures(&taken.duckdb[1]));
    }

    /// What was wrong with an answer, if anything was; some of it is kept.
    pub fn faults(&mut self, faults: Vec<String>, kept: usize) {
        self.wrong += u64::from(!faults.is_empty());
        self.faults.extend(faults);
        self.faults.truncate(kept);
    }
}

/// So many rows.
#[derive(Debug, Serialize)]
pub struct Size {
    flows: u64,
    /// Events that were told to come here from the size before.
    events: u64,
    flows_per_s: f64,
    flows_per_cpu_s: f64,
    disk_bytes_per_flow: f64,
    /// Seconds that DuckDB took for the same rows, out of a Parquet file.
    pub duckdb_load_s: Option<f64>,
    /// What it has on the disk, the rows in order with it.
    pub duckdb_bytes: Option<u64>,
    /// How long the collector took to start with nothing in memory.
    #[serde(skip)]
    pub starts: Vec<Duration>,
    /// The questions.
    pub asked: Vec<Asked>,
}

impl Size {
    /// What it cost to get there.
    pub fn new(flows: u64, filled: Filled, disk_bytes: u64) -> Self {
        Self {
            flows,
            events: filled.events,
            flows_per_s: filled.flows as f64 / filled.seconds,
            flows_per_cpu_s: filled.flows as f64 / filled.cpu_s,
            disk_bytes_per_flow: disk_bytes as f64 / flows as f64,
            duckdb_load_s: None,
            duckdb_bytes: None,
            starts: Vec::new(),
            asked: Vec::new(),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n{} flows, {:.1} bytes each on the disk; told at {:.0} a second with all processors, {:.0} for each second of \
             processor time",
            self.flows, self.disk_bytes_per_flow, self.flows_per_s, self.flows_per_cpu_s
        )?;
        if let Some(seconds) = self.duckdb_load_s {
            writeln!(f, "DuckDB took {seconds:.1} s to read the new ones from a Parquet file")?;
        }
        if !self.starts.is_empty() {
            writeln!(f, "started with nothing in memory: {}", Figures::of(self.starts.clone()))?;
        }
        for asked in &self.asked {
            writeln!(f, "{} ({} flows):", asked.kind.words(), asked.flows)?;
            writeln!(f, "    collector      {}", asked.collector)?;
            let others = [
                ("cold", asked.cold),
                ("every row", Some(asked.scan)),
                ("DuckDB", asked.duckdb),
                ("DuckDB, sorted", asked.duckdb_sorted),
            ];
            for (name, figures) in others {
                if let Some(figures) = figures {
                    writeln!(
                        f,
                        "    {name:<14} {figures}, {:.1} times",
                        figures.p50_ms / asked.collector.p50_ms
                    )?;
                }
            }
            for fault in &asked.faults {
                writeln!(f, "    WRONG: {fault}")?;
            }
        }
        Ok(())
    }
}

/// A store that takes in flows, with questions and without.
#[derive(Debug, Serialize)]
pub struct Ingest {
    /// Nobody asks.
    #[serde(serialize_with = "rates")]
    pub alone: Filled,
    /// Somebody asks all the time; without what that costs.
    #[serde(serialize_with = "rates")]
    pub asked: Filled,
    /// Questions when nothing comes.
    pub quiet: Figures,
    /// Questions meanwhile.
    pub busy: Figures,
}

fn rates<S: serde::Serializer>(filled: &Filled, serializer: S) -> Result<S::Ok, S::Error> {
    let Filled { flows, seconds, cpu_s, .. } = *filled;
    serializer.collect_map([
        ("flows", flows as f64),
        ("flows_per_s", flows as f64 / seconds),
        ("flows_per_cpu_s", flows as f64 / cpu_s),
    ])
}

impl fmt::Display for Ingest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (when, filled) in [("nobody asks", self.alone), ("somebody always asks", self.asked)] {
            writeln!(
                f,
                "told while {when}: {:.0} flows a second, {:.0} for each second of processor time",
                filled.flows as f64 / filled.seconds,
                filled.flows as f64 / filled.cpu_s
            )?;
        }
        writeln!(
            f,
            "{}: {} when nothing comes, {} meanwhile: {:.2} times",
            Kind::Address.words(),
            self.quiet,
            self.busy,
            self.busy.p50_ms / self.quiet.p50_ms
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(ingest) = &self.ingest {
            writeln!(f, "\n{ingest}")?;
        }
        writeln!(
            f,
            "{} hosts, {:.1} days, seed {}; {} processors, load {:.1} before and {:.1} after{}",
            self.hosts,
            self.days,
            self.seed,
            self.processors,
            self.load_before,
            self.load_after,
            self.duckdb.as_ref().map_or_else(String::new, |version| format!("; DuckDB {version}"))
        )
    }
}
