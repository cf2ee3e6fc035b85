//! Flow records, which are most of what is kept: found by remote and time over all hosts at once, by host, and by owner.
//!
//! What comes is packed as it is committed, and stands with all else of its batch in one transaction of the catalog (the main
//! database), so that it is there exactly when the stream has moved on past it. It is held in memory until there is much of it:
//! then a thread of its own sorts it by remote and time, writes it as a run into the file of the day, and takes it out of the
//! catalog. After a crash between the two the run is there already, which its number tells.
//!
//! Whoever reads takes one [`View`]: what has come and all runs, each record once. Nobody who writes waits for readers.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use alibi_proto::{flow::FlowRecord, wire};
use rusqlite::{Connection, Transaction, params};

use super::{
    StoreError,
    codec::{damaged, decode, unsigned},
    database::{self, Database},
    lock,
};

mod block;
mod day;
mod search;

pub(super) use block::{Remote, Row};
pub(super) use search::{Asked, Found, Span, Spans, Sweep};

use block::{BlockPacker, Columns, Packed};
use day::{Day, Run, Times};

/// So many rows become a run. Few under test, so that there are some.
const RUN_ROWS: usize = if cfg!(test) { 300 } else { 128 << 10 };
/// More than so many rows in memory: whoever writes waits until some are in a run.
const OPEN_ROWS_MAX: usize = 8 * RUN_ROWS;
/// How long after a run could not be written it is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// What has come together, and is in no run yet.
pub(super) struct Chunk {
    /// Its number, which counts up.
    arrived: i64,
    columns: Columns,
    records: Vec<u8>,
    times: Times,
}

/// All that there is at one time.
#[derive(Clone, Default)]
pub(super) struct View {
    /// Those of one file together.
    runs: Vec<Arc<Run>>,
    /// What is in no run yet; many together, so that to add one costs little.
    piles: Vec<Arc<Vec<Arc<Chunk>>>>,
    recent: Vec<Arc<Chunk>>,
    /// What ended before is not shown any more, in nanoseconds, though it may be there still.
    shown_from: u64,
    /// Runs that are missing: their files were, or could not be read.
    lost: Vec<Lost>,
}

/// A part of the records that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lost {
    /// The times of its records.
    pub(super) times: Times,
    pub(super) why: String,
    /// The file that it was in.
    file: String,
}

/// The flow records of a store.
pub(super) struct Flows {
    shared: Arc<Shared>,
    sealing: Option<JoinHandle<()>>,
}

struct Shared {
    directory: PathBuf,
    catalog: Arc<Database>,
    state: Mutex<State>,
    /// Told when there may be enough for a run, when one was written or could not be, and at the end.
    changed: Condvar,
}

struct State {
    view: Arc<View>,
    open_rows: usize,
    is_closing: bool,
    /// The last run could not be written.
    is_stuck: bool,
    /// The file of the day, and of which.
    today: Option<(u64, Arc<Day>)>,
}

/// What was written into the catalog, to be shown once that is committed.
pub(super) struct Staged(Vec<Chunk>);

/// The tables of the catalog, as a version of it made them: another shape is a migration of its own.
///
/// - `arrived`: what is in no run yet; its number is never given again.
/// - `flow_run`: each run, its file and its times, so that it is known what is missing where a file is.
pub(super) const CATALOG: &str = "
    CREATE TABLE arrived (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        rows INTEGER NOT NULL,
        columns BLOB NOT NULL,
        records BLOB NOT NULL
    ) STRICT;

    CREATE TABLE flow_run (
        id INTEGER PRIMARY KEY,
        file TEXT NOT NULL,
        rows INTEGER NOT NULL,
        first INTEGER NOT NULL,
        last INTEGER NOT NULL,
        until INTEGER NOT NULL
    ) STRICT;
";

/// Writes rows into the catalog, as a part of what is committed.
pub(super) fn stage(transaction: &Transaction<'_>, rows: &[Row]) -> Result<Staged, StoreError> {
    let mut statement =
        transaction.prepare_cached("INSERT INTO arrived (rows, columns, records) VALUES (?, ?, ?)")?;
    let rows: Vec<&Row> = rows.iter().collect();
    let mut chunks = Vec::new();
    for (Packed { columns, records }, rows) in BlockPacker::default().pack(&rows) {
        statement.execute(params![rows.len() as i64, columns, records])?;
        let arrived = transaction.last_insert_rowid();
        let columns = Columns::of(rows);
        let times = Times::of(rows.iter().copied()).expect("there is a row");
        chunks.push(Chunk { arrived, columns, records, times });
    }
    Ok(Staged(chunks))
}

fn staged(connection: &Connection) -> Result<Vec<Arc<Chunk>>, StoreError> {
    let mut statement = connection.prepare("SELECT id, columns, records FROM arrived ORDER BY id")?;
    let mut rows = statement.query([])?;
    let mut chunks = Vec::new();
    while let Some(row) = rows.next()? {
        let columns = row.get_ref(1)?.as_blob().map_err(|error| damaged("block of flow records", error))?;
        let columns = unpack(columns)?;
        let Some(times) = columns.times() else { continue };
        chunks.push(Arc::new(Chunk { arrived: row.get(0)?, columns, records: row.get(2)?, times }));
    }
    Ok(chunks)
}

/// How many rows the catalog tells of, in runs or not.
pub(super) fn count(connection: &Connection) -> Result<u64, StoreError> {
    let count =
        "SELECT (SELECT coalesce(sum(rows), 0) FROM arrived) + (SELECT coalesce(sum(rows), 0) FROM flow_run)";
    unsigned("number of flow records", connection.query_row(count, [], |row| row.get(0))?)
}

/// How many chunks are in a pile.
const PILE_CHUNKS: usize = 128;

impl View {
    fn chunks(&self) -> impl Iterator<Item = &Arc<Chunk>> {
        self.piles.iter().flat_map(|pile| pile.iter()).chain(&self.recent)
    }

    fn add(&mut self, chunk: Arc<Chunk>) {
        self.recent.push(chunk);
        if self.recent.len() == PILE_CHUNKS {
            self.piles.push(Arc::new(std::mem::take(&mut self.recent)));
        }
    }

    /// A run in the place of these chunks.
    fn sealed(&self, run: Arc<Run>, chunks: &[Arc<Chunk>]) -> Self {
        let sealed: HashSet<i64> = chunks.iter().map(|chunk| chunk.arrived).collect();
        let (runs, lost) = (self.runs.clone(), self.lost.clone());
        let mut view = Self { runs, lost, shown_from: self.shown_from, ..Self::default() };
        self.chunks()
            .filter(|chunk| !sealed.contains(&chunk.arrived))
            .for_each(|chunk| view.add(Arc::clone(chunk)));
        view.runs.push(run);
        view
    }
}

impl Flows {
    /// Opens the files in `directory`, which is made. What was written into a file and not yet taken out of the catalog, is.
    pub(super) fn open(directory: &Path, catalog: Arc<Database>) -> Result<Self, StoreError> {
        make_directory(directory).map_err(unusable)?;
        let mut runs: Vec<Arc<Run>> = Vec::new();
        let mut paths: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(unusable)? {
            let path = entry.map_err(unusable)?.path();
            if day_of(&path).is_some() {
                paths.push(path);
            }
        }
        paths.sort();
        for path in &paths {
            match Day::open(path).map(Arc::new).and_then(|day| day.runs()) {
                Ok(found) => runs.extend(found.into_iter().map(Arc::new)),
                // What is in it is kept, for whoever can mend it, and out of the way of what comes today.
                Err(error) => {
                    let aside = database::put_aside(path)?;
                    tracing::error!(%error, aside = %aside.display(), "a file of flow records cannot be read");
                }
            }
        }
        settle(&catalog, &runs)?;
        let open = catalog.read(staged)?;
        let lost = catalog.read(|connection| missing(connection, &runs))?;
        let mut view = View { runs, lost, ..View::default() };
        let open_rows = open.iter().map(|chunk| chunk.columns.rows()).sum();
        open.into_iter().for_each(|chunk| view.add(chunk));
        let state =
            State { view: Arc::new(view), open_rows, is_closing: false, is_stuck: false, today: None };
        let shared = Arc::new(Shared {
            directory: directory.to_owned(),
            catalog,
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let sealing = std::thread::Builder::new().name("flow-runs".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.seal_for_ever()
        });
        Ok(Self { shared, sealing: Some(sealing.map_err(unusable)?) })
    }

    /// All that there is now.
    pub(super) fn view(&self) -> Arc<View> {
        Arc::clone(&lock(&self.shared.state).view)
    }

    /// Shows what was committed. Waits where runs are not written as fast as rows come.
    pub(super) fn show(&self, Staged(chunks): Staged) {
        if chunks.is_empty() {
            return;
        }
        let mut state = lock(&self.shared.state);
        let mut view = View::clone(&state.view);
        for chunk in chunks {
            state.open_rows += chunk.columns.rows();
            view.add(Arc::new(chunk));
        }
        state.view = Arc::new(view);
        if state.open_rows >= RUN_ROWS {
            self.shared.changed.notify_all();
        }
        // Where no run can be written, the catalog cannot either before long, which says so.
        while state.open_rows > OPEN_ROWS_MAX && !state.is_stuck {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Shows nothing any more that ended before `before`, in nanoseconds, and removes the files in which there is nothing else.
    pub(super) fn forget(&self, before: u64) -> Result<(), StoreError> {
        let gone = {
            let mut state = lock(&self.shared.state);
            let mut view = View { shown_from: before.max(state.view.shown_from), ..View::clone(&state.view) };
            let today = state.today.as_ref().map(|(_, day)| day.path.clone());
            let runs = std::mem::take(&mut view.runs);
            let mut gone = Vec::new();
            for of_day in runs.chunk_by(|one, other| one.day.path == other.day.path) {
                let path = &of_day[0].day.path;
                let is_over = of_day.iter().all(|run| run.times.until < view.shown_from);
                // The newest may be added to.
                let is_newest =
                    today.as_ref() == Some(path) || runs.last().is_some_and(|run| run.day.path == *path);
                if is_over && !is_newest {
                    gone.push(path.clone());
                } else {
                    view.runs.extend(of_day.iter().cloned());
                }
            }
            let shown_from = view.shown_from;
            let is_over = |lost: &Lost| lost.times.until < shown_from;
            view.lost.retain(|lost| !is_over(lost));
            state.view = Arc::new(view);
            gone
        };
        // What the catalog tells of runs in files that go, and of those that are lost.
        self.shared.catalog.write(|transaction| {
            let shown_from = i64::try_from(before).unwrap_or(i64::MAX);
            let there =
                "DELETE FROM flow_run WHERE until < ? AND file NOT IN (SELECT value FROM json_each(?))";
            let view = lock(&self.shared.state).view.clone();
            let files: HashSet<String> = view.runs.iter().map(|run| run.day.name()).collect();
            let files = serde_json::to_string(&files).map_err(|error| damaged("list of files", error))?;
            Ok(transaction.execute(there, params![shown_from, files])?)
        })?;
        for path in gone.into_iter().chain(self.aside()?) {
            database::remove(&path)?;
        }
        Ok(())
    }

    /// Files that could not be read and were put aside, of which nothing would be shown any more.
    fn aside(&self) -> Result<Vec<PathBuf>, StoreError> {
        let view = self.view();
        let mut aside = Vec::new();
        for entry in std::fs::read_dir(&self.shared.directory).map_err(unusable)? {
            let path = entry.map_err(unusable)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let of = name.split_once(database::ASIDE).filter(|(_, number)| number.parse::<u32>().is_ok());
            if of.is_some_and(|(of, _)| !view.lost.iter().any(|lost| lost.file == of)) {
                aside.push(path);
            }
        }
        Ok(aside)
    }
}

fn unusable(error: std::io::Error) -> StoreError {
    damaged("directory of flow records", error)
}

impl Drop for Flows {
    fn drop(&mut self) {
        lock(&self.shared.state).is_closing = true;
        self.shared.changed.notify_all();
        if let Some(sealing) = self.sealing.take() {
            // One that panicked has been told of.
            let _ = sealing.join();
        }
    }
}

impl Shared {
    fn seal_for_ever(&self) {
        let mut state = lock(&self.state);
        loop {
            let is_enough = state.open_rows >= RUN_ROWS;
            match (state.is_closing, is_enough, state.is_stuck) {
                (true, ..) => return,
                (false, true, false) => {}
                (false, true, true) => {
                    let waited = self.changed.wait_timeout(state, RETRY_AFTER);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                    state.is_stuck = false;
                    continue;
                }
                (false, false, _) => {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
            }
            let chunks = first_rows(&state.view);
            drop(state);
            let sealed = self.seal(&chunks);
            state = lock(&self.state);
            match sealed {
                Ok(run) => {
                    state.open_rows -= chunks.iter().map(|chunk| chunk.columns.rows()).sum::<usize>();
                    state.view = Arc::new(state.view.sealed(Arc::new(run), &chunks));
                }
                Err(error) => {
                    state.is_stuck = true;
                    tracing::error!(%error, "flow records cannot be written into the file of the day; they stay in the catalog");
                }
            }
            self.changed.notify_all();
        }
    }

    /// Writes these chunks as a run, and takes them out of the catalog.
    fn seal(&self, chunks: &[Arc<Chunk>]) -> Result<Run, StoreError> {
        let mut rows = Vec::new();
        for chunk in chunks {
            let records = block::records(&chunk.records, chunk.columns.rows());
            let records = records.map_err(|error| damaged("block of flow records", error))?;
            let records: Vec<&[u8]> = records.iter().collect();
            for (remote, stretch) in chunk.columns.stretches() {
                rows.extend(stretch.map(|at| chunk.columns.row(remote, at, records[at])));
            }
        }
        rows.sort_unstable_by_key(|row| (row.remote, row.first));
        let rows: Vec<&Row> = rows.iter().collect();
        let day = self.today()?;
        let ids: Vec<i64> = chunks.iter().map(|chunk| chunk.arrived).collect();
        let last = self.catalog.read(|connection| {
            Ok(connection
                .query_row("SELECT coalesce(max(id), 0) FROM flow_run", [], |row| row.get::<_, i64>(0))?)
        })?;
        let run = day.add(last + 1, &rows, &ids)?;
        self.catalog.write(|transaction| enter(transaction, &run, &ids))?;
        Ok(run)
    }

    /// The file of today.
    fn today(&self) -> Result<Arc<Day>, StoreError> {
        let today = crate::clock::now().as_nanos() / 1_000_000_000 / DAY_S;
        if let Some((_, day)) = lock(&self.state).today.as_ref().filter(|(day, _)| *day == today) {
            return Ok(Arc::clone(day));
        }
        let day = Arc::new(Day::open(&self.directory.join(file_name(today)))?);
        lock(&self.state).today = Some((today, Arc::clone(&day)));
        Ok(day)
    }
}

/// Which event a record is of.
pub(super) struct Numbers {
    pub(super) host: u32,
    pub(super) ring: u32,
    pub(super) seq: u64,
}

/// Every flow record that is kept, whoever writes meanwhile: those that came, and those of the runs that the catalog tells of
/// then.
pub(super) fn every(catalog: &Database, directory: &Path) -> Result<Vec<(Numbers, FlowRecord)>, StoreError> {
    let (chunks, runs) = catalog.read(|connection| {
        let mut statement = connection.prepare("SELECT file, id FROM flow_run ORDER BY file, id")?;
        let runs = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok((staged(connection)?, runs.collect::<Result<Vec<(String, i64)>, _>>()?))
    })?;
    let mut every = Vec::new();
    let mut take = |columns: &Columns, records: &[u8]| {
        let records = block::records(records, columns.rows());
        for (at, record) in
            records.map_err(|error| damaged("block of flow records", error))?.iter().enumerate()
        {
            let numbers = Numbers { host: columns.host[at], ring: columns.ring[at], seq: columns.seq[at] };
            every.push((numbers, decode::<wire::Flow, _>("flow record", record)?));
        }
        Ok(())
    };
    chunks.iter().try_for_each(|chunk| take(&chunk.columns, &chunk.records))?;
    for of_file in runs.chunk_by(|one, other| one.0 == other.0) {
        let day = Arc::new(Day::open(&directory.join(&of_file[0].0))?);
        let wanted = |run: &Run| of_file.iter().any(|(_, id)| *id == run.id);
        for run in day.runs()?.into_iter().filter(wanted) {
            for block in 0..run.blocks.len() {
                day.read(|reading| {
                    let columns = reading.columns(&run, block, unpack)?;
                    reading.records(&run, block, |records| take(&columns, records))
                })?;
            }
        }
    }
    Ok(every)
}

fn unpack(columns: &[u8]) -> Result<Columns, StoreError> {
    Columns::unpack(columns).map_err(|error| damaged("block of flow records", error))
}

/// The first chunks that are enough for a run.
fn first_rows(view: &View) -> Vec<Arc<Chunk>> {
    let mut rows = 0;
    let enough = view.chunks().take_while(|chunk| {
        let is_wanted = rows < RUN_ROWS;
        rows += chunk.columns.rows();
        is_wanted
    });
    enough.cloned().collect()
}

/// Takes what is in a run out of what came.
fn enter(transaction: &Transaction<'_>, run: &Run, chunks: &[i64]) -> Result<(), StoreError> {
    let file = run.day.name();
    let Times { first, last, until } = run.times;
    let mut statement = transaction.prepare_cached(
        "INSERT OR IGNORE INTO flow_run (id, file, rows, first, last, until) VALUES (?, ?, ?, ?, ?, ?)",
    )?;
    statement.execute(params![run.id, file, run.rows as i64, first as i64, last as i64, until as i64])?;
    let mut statement = transaction.prepare_cached("DELETE FROM arrived WHERE id = ?")?;
    chunks.iter().try_for_each(|id| statement.execute([id]).map(drop))?;
    Ok(())
}

/// Runs of which the catalog tells, and that are not there.
fn missing(connection: &Connection, there: &[Arc<Run>]) -> Result<Vec<Lost>, StoreError> {
    let there: HashSet<i64> = there.iter().map(|run| run.id).collect();
    let mut statement =
        connection.prepare("SELECT id, file, first, last, until FROM flow_run ORDER BY id")?;
    let mut rows = statement.query([])?;
    let mut lost = Vec::new();
    while let Some(row) = rows.next()? {
        if there.contains(&row.get(0)?) {
            continue;
        }
        let (file, time) = (row.get::<_, String>(1)?, |at| unsigned("time", row.get(at)?));
        let times = Times { first: time(2)?, last: time(3)?, until: time(4)? };
        lost.push(Lost { times, why: format!("{file} is missing, or cannot be read"), file });
    }
    Ok(lost)
}

/// After a crash, what is in a run may be among what came still.
fn settle(catalog: &Database, runs: &[Arc<Run>]) -> Result<(), StoreError> {
    let known: HashSet<i64> = catalog.read(|connection| {
        let mut statement = connection.prepare("SELECT id FROM flow_run")?;
        Ok(statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
    })?;
    for run in runs.iter().filter(|run| !known.contains(&run.id)) {
        let chunks = run.day.chunks(run)?;
        catalog.write(|transaction| enter(transaction, run, &chunks))?;
    }
    Ok(())
}

const DAY_S: u64 = 86_400;
const FILE_PREFIX: &str = "flows-";
const FILE_SUFFIX: &str = ".db";

/// The file of a day, which is told in days since 1970.
fn file_name(day: u64) -> String {
    format!("{FILE_PREFIX}{day:06}{FILE_SUFFIX}")
}

fn day_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix(FILE_PREFIX)?.strip_suffix(FILE_SUFFIX)?.parse().ok()
}

fn make_directory(path: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

#[cfg(test)]
mod tests;
