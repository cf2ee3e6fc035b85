//! Who else finds flow records: DuckDB with the same rows, and a program that looks at every row that there is.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    net::Ipv4Addr,
    ops::Range,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use alibi_proto::flow::RECORD_SPAN_MAX;
use anyhow::{Context as _, Result, bail, ensure};
use parquet::{
    basic::Compression,
    data_type::{ByteArray, ByteArrayType, Int32Type, Int64Type},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use serde::Deserialize;
use serde_json::json;

use super::{
    ask::Case,
    made::{self, Fleet, Made},
};

/// Rows of a part of the file.
const GROUP_ROWS: usize = 1 << 17;
const SCHEMA: &str = "message flow {
    required int32 host; required int64 remote; required int32 port; required int64 first; required int64 last;
    required int64 sent; required int64 received; required int32 pid; required binary name (STRING);
}";
/// What talks to DuckDB.
const SCRIPT: &str = include_str!("duckdb.py");

/// Every flow that was told, column by column, in the order in which it came.
#[derive(Debug, Default)]
pub struct Rows {
    remotes: Vec<u32>,
    hosts: Vec<u16>,
    first: Vec<u64>,
    last: Vec<u64>,
}

impl Rows {
    /// More of each host.
    ///
    /// # Errors
    /// When there are more hosts than it can tell apart.
    pub fn add(&mut self, fleet: &Fleet, flows: Range<u64>) -> Result<()> {
        let hosts = u16::try_from(fleet.plan().hosts).context("more than 65,535 hosts")?;
        for flow in flows {
            for host in 0..hosts {
                let made = fleet.flow(host.into(), flow);
                self.remotes.push(made.remote.into());
                self.hosts.push(host);
                self.first.push(made.first.as_nanos());
                self.last.push(made.last.as_nanos());
            }
        }
        Ok(())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.remotes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.remotes.is_empty()
    }

    /// Looks at each: how many of a host are meant and alive in the window, all hosts together, and how long that took.
    pub fn scan(&self, case: &Case) -> (u64, Duration) {
        let began = Instant::now();
        let (low, high) = (u32::from(case.low), u32::from(case.high));
        let (from, to) = (case.window.from().as_nanos(), case.window.to().as_nanos());
        let mut of_hosts = vec![0_u64; usize::from(u16::MAX) + 1];
        for (place, remote) in self.remotes.iter().enumerate() {
            if (low..=high).contains(remote)
                && self.first[place] < to
                && self.last[place] >= from
                && case.host.is_none_or(|host| u32::from(self.hosts[place]) == host)
            {
                of_hosts[usize::from(self.hosts[place])] += 1;
            }
        }
        (of_hosts.iter().sum(), began.elapsed())
    }
}

/// DuckDB, in a process of its own.
pub struct DuckDb {
    child: Child,
    asking: ChildStdin,
    answering: BufReader<ChildStdout>,
    directory: PathBuf,
    parts: u32,
    /// What it calls its version.
    pub version: String,
}

#[derive(Deserialize)]
struct Said {
    seconds: f64,
    #[serde(default)]
    rows: u64,
    #[serde(default)]
    version: String,
}

impl DuckDb {
    /// Starts it, with its data in `directory`. `python` has its module.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(python: &Path, directory: &Path) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let mut child = Command::new(python)
            .args(["-c", SCRIPT])
            .arg(directory.join("flows.duckdb"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} cannot be run", python.display()))?;
        let (asking, answering) = child.stdin.take().zip(child.stdout.take()).context("no pipes")?;
        let mut duckdb = Self {
            child,
            asking,
            answering: BufReader::new(answering),
            directory: directory.to_owned(),
            parts: 0,
            version: String::new(),
        };
        let hint = "no answer from DuckDB: `pip install duckdb`, or go without by --no-duckdb";
        duckdb.version = duckdb.said().context(hint)?.version;
        Ok(duckdb)
    }

    fn said(&mut self) -> Result<Said> {
        let mut line = String::new();
        self.answering.read_line(&mut line)?;
        ensure!(!line.is_empty(), "it has ended");
        Ok(serde_json::from_str(&line)?)
    }

    fn ask(&mut self, question: &serde_json::Value) -> Result<Said> {
        writeln!(self.asking, "{question}")?;
        self.said()
    }

    /// Takes in more flows of each host: how long that took it.
    ///
    /// # Errors
    /// When it cannot.
    pub fn add(&mut self, fleet: &Fleet, flows: Range<u64>) -> Result<Duration> {
        let path = self.directory.join(format!("part-{}.parquet", self.parts));
        self.parts += 1;
        write_rows(fleet, flows, &path)?;
        let said = self.ask(&json!({ "load": path }))?;
        std::fs::remove_file(&path)?;
        Ok(Duration::from_secs_f64(said.seconds))
    }

    /// The same rows again, in order of remote and time, as nobody has them while they come.
    ///
    /// # Errors
    /// When it cannot.
    pub fn sort(&mut self) -> Result<()> {
        self.ask(&json!({ "sort": true })).map(drop)
    }

    /// How many flows are meant and alive in the window, and how long it took to count them host by host; of those in order if
    /// `sorted`.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn count(&mut self, case: &Case, sorted: bool) -> Result<(u64, Duration)> {
        let from = case.window.from().as_nanos();
        let said = self.ask(&json!({
            "table": if sorted { "sorted" } else { "flows" },
            "low": u32::from(case.low),
            "high": u32::from(case.high),
            "name": case.name,
            "from": from,
            // As the store does: no record is longer.
            "back": from - RECORD_SPAN_MAX.as_nanos() as u64,
            "to": case.window.to().as_nanos(),
            "host": case.host,
        }))?;
        Ok((said.rows, Duration::from_secs_f64(said.seconds)))
    }

    /// Bytes that it has on the disk.
    ///
    /// # Errors
    /// When that cannot be seen.
    pub fn disk_bytes(&mut self) -> Result<u64> {
        self.ask(&json!({ "checkpoint": true }))?;
        Ok(std::fs::metadata(self.directory.join("flows.duckdb"))?.len())
    }
}

impl Drop for DuckDb {
    fn drop(&mut self) {
        // It is our own, and has nothing to lose.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One column of rows.
enum Column {
    I32(Vec<i32>),
    I64(Vec<i64>),
    Text(Vec<ByteArray>),
}

fn write_rows(fleet: &Fleet, flows: Range<u64>, path: &Path) -> Result<()> {
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let schema = Arc::new(parse_message_type(SCHEMA)?);
    let mut file = SerializedFileWriter::new(File::create(path)?, schema, Arc::new(properties))?;
    let mut rows = Vec::with_capacity(GROUP_ROWS);
    for flow in flows {
        for host in 0..fleet.plan().hosts {
            rows.push((host, fleet.flow(host, flow)));
            if rows.len() == GROUP_ROWS {
                write_group(&mut file, &rows)?;
                rows.clear();
            }
        }
    }
    if !rows.is_empty() {
        write_group(&mut file, &rows)?;
    }
    file.close()?;
    Ok(())
}

fn write_group(file: &mut SerializedFileWriter<File>, rows: &[(u32, Made)]) -> Result<()> {
    let name = |(_, made): &(u32, Made)| {
        made.site.map_or_else(|| made::name_at(made.remote), made::name_of).into_bytes().into()
    };
    let i32s =
        |of: fn(&(u32, Made)) -> u32| Column::I32(rows.iter().map(|row| of(row).cast_signed()).collect());
    let i64s =
        |of: fn(&(u32, Made)) -> u64| Column::I64(rows.iter().map(|row| of(row).cast_signed()).collect());
    let columns = [
        i32s(|(host, _)| *host),
        i64s(|(_, made)| u32::from(Ipv4Addr::from(made.remote.octets())).into()),
        i32s(|(_, made)| made.port.into()),
        i64s(|(_, made)| made.first.as_nanos()),
        i64s(|(_, made)| made.last.as_nanos()),
        i64s(|(_, made)| made.sent),
        i64s(|(_, made)| made.received),
        i32s(|(_, made)| made::pid_of(made.day, made.program)),
        Column::Text(rows.iter().map(name).collect()),
    ];
    let mut group = file.next_row_group()?;
    for column in columns {
        let Some(mut writer) = group.next_column()? else { bail!("the schema has fewer columns") };
        match column {
            Column::I32(values) => writer.typed::<Int32Type>().write_batch(&values, None, None)?,
            Column::I64(values) => writer.typed::<Int64Type>().write_batch(&values, None, None)?,
            Column::Text(values) => writer.typed::<ByteArrayType>().write_batch(&values, None, None)?,
        };
        writer.close()?;
    }
    group.close()?;
    Ok(())
}
