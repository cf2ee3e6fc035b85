//! Flow records, which are most of what is kept: found by remote and time over all hosts at once, by host, and by owner.
//!
//! What comes is packed as it is committed, and stands with all else of its batch in one transaction of the catalog (the main
//! database), so that it is there exactly when the stream has moved on past it. It is held in memory until there is much of it:
//! then a thread of its own sorts it by remote and time, writes it as a run into the file of the day, and takes it out of the
//! catalog. After a crash between the two the run is there already, which its number tells.
//!
//! Whoever reads takes one [`View`]: what has come and all runs, each record once. Nobody who writes waits for readers.

use std::{
    cell::RefCell,
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
mod lookup;
pub(super) mod opening;
mod search;

pub(super) use block::{Remote, Row};
pub(super) use day::Day;
pub(super) use search::{Asked, Found, Listed, Owner, Span, Spans, Sweep, Which};

use block::{BlockPacker, Columns, Packed, PackedRows};
use day::{Run, Times};
use lookup::Lookups;
use opening::{Opened, day_of, enter, file_name, sums_of_arrived};

/// So many rows become a run. Few under test, so that there are some.
const RUN_ROWS: usize = if cfg!(test) { 300 } else { 128 << 10 };
/// More than so many rows in memory: whoever writes waits until some are in a run.
const OPEN_ROWS_MAX: usize = 8 * RUN_ROWS;
/// Files of one day: where one is damaged, another one is begun.
const FILES_OF_DAY_MAX: u32 = 8;
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
    lookups: Arc<Lookups>,
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
    /// Files to which nothing can be added, because they are damaged.
    full: Vec<PathBuf>,
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

/// What tells damage from what was written. Of `arrived`: `checksum` is that of what is packed, `seal` that of all else; and the
/// times of its rows are beside them, so that it is known what is missing where they cannot be unpacked. Of `flow_run`: of all
/// of it. Rows of older versions have none.
pub(super) const CHECKSUMS: &str = "
    ALTER TABLE arrived ADD COLUMN first INTEGER;
    ALTER TABLE arrived ADD COLUMN last INTEGER;
    ALTER TABLE arrived ADD COLUMN until INTEGER;
    ALTER TABLE arrived ADD COLUMN checksum INTEGER;
    ALTER TABLE arrived ADD COLUMN seal INTEGER;
    ALTER TABLE flow_run ADD COLUMN seal INTEGER;
";

thread_local! {
    /// To make one costs as much as to pack what an agent tells in a second.
    static PACKER: RefCell<BlockPacker> = RefCell::default();
}

/// Writes rows into the catalog, as a part of what is committed.
pub(super) fn stage(transaction: &Transaction<'_>, rows: &[Row]) -> Result<Staged, StoreError> {
    let mut statement = transaction.prepare_cached(
        "INSERT INTO arrived (rows, columns, records, first, last, until, checksum, seal) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )?;
    // Those with one remote together, which are packed and searched as one.
    let mut rows: Vec<&Row> = rows.iter().collect();
    rows.sort_unstable_by_key(|row| (row.remote, row.first));
    let mut chunks = Vec::new();
    let packed: Vec<_> = PACKER.with_borrow_mut(|packer| packer.pack(&rows).collect());
    for block in packed {
        let (columns, PackedRows { packed: Packed { columns: packed, records }, rows, .. }) =
            (block.columns(), block);
        let times = Times::of(rows.iter().copied()).expect("there is a row");
        let Times { first, last, until } = times;
        let [checksum, seal] = sums_of_arrived(&packed, &records, rows.len() as i64, times);
        let (first, last, until) = (first as i64, last as i64, until as i64);
        statement.execute(params![rows.len() as i64, packed, records, first, last, until, checksum, seal])?;
        let arrived = transaction.last_insert_rowid();
        chunks.push(Chunk { arrived, columns, records, times });
    }
    Ok(Staged(chunks))
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
        let Opened { runs, chunks: open, lost } = opening::open(directory, &catalog)?;
        let mut view = View { runs, lost, ..View::default() };
        let open_rows = open.iter().map(|chunk| chunk.columns.rows()).sum();
        open.into_iter().for_each(|chunk| view.add(chunk));
        let state = State {
            view: Arc::new(view),
            open_rows,
            is_closing: false,
            is_stuck: false,
            today: None,
            full: Vec::new(),
        };
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

    /// Shows what was committed.
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
    }

    /// Waits where runs are not written as fast as rows come; not for whoever writes.
    pub(super) fn wait_for_room(&self) {
        let mut state = lock(&self.shared.state);
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

    /// Reads all runs, however long that takes, and tells what is damaged in them: nothing that is not found by whoever asks, but
    /// before anybody does. Goes on after each block only if `go_on`, which is told how many bytes it had.
    pub(super) fn check(&self, mut go_on: impl FnMut(u64) -> bool, mut found: impl FnMut(String)) {
        let runs = self.view().runs.clone();
        for run in runs {
            if let Err(error) = run.day.check_run(&run)
                && self.view().runs.iter().any(|there| there.id == run.id)
            {
                found(format!("{}: {error}", run.day.name()));
            }
            for block in 0..run.blocks.len() {
                let checked = run.day.check(&run, block);
                let bytes = checked.as_ref().copied().unwrap_or_default();
                // One that was forgotten meanwhile is not damaged.
                if let Err(error) = checked.map(drop)
                    && self.view().runs.iter().any(|there| there.id == run.id)
                {
                    found(format!("{}: {error}", run.day.name()));
                }
                if !go_on(bytes) {
                    return;
                }
            }
        }
    }

    /// The days of which there are files, in days since 1970; in order.
    pub(super) fn days(&self) -> Result<Vec<u64>, StoreError> {
        let mut days: Vec<u64> =
            opening::files(&self.shared.directory)?.iter().filter_map(|path| day_of(path)).collect();
        days.dedup();
        Ok(days)
    }

    /// Files that could not be read, put aside or not, of which nothing would be shown any more.
    fn aside(&self) -> Result<Vec<PathBuf>, StoreError> {
        let view = self.view();
        let today = crate::clock::now().as_nanos() / 1_000_000_000 / DAY_S;
        let mut aside = Vec::new();
        for entry in std::fs::read_dir(&self.shared.directory).map_err(unusable)? {
            let path = entry.map_err(unusable)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let aside_of =
                name.split_once(database::ASIDE).filter(|(_, number)| number.parse::<u32>().is_ok());
            let is_over = |day| day < today && !view.runs.iter().any(|run| run.day.path == path);
            let of = match aside_of {
                Some((of, _)) => Some(of),
                None => day_of(&path).is_some_and(is_over).then_some(&*name),
            };
            if of.is_some_and(|of| !view.lost.iter().any(|lost| lost.file == of)) {
                aside.push(path.clone());
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
        let ids: Vec<i64> = chunks.iter().map(|chunk| chunk.arrived).collect();
        let last = self.catalog.read(|connection| {
            Ok(connection
                .query_row("SELECT coalesce(max(id), 0) FROM flow_run", [], |row| row.get::<_, i64>(0))?)
        })?;
        let run = self.add(last + 1, &rows, &ids)?;
        self.catalog.write(|transaction| enter(transaction, &run, &ids))?;
        Ok(run)
    }

    /// Adds a run to the file of today; where that is damaged, to another one.
    fn add(&self, id: i64, rows: &[&Row], chunks: &[i64]) -> Result<Run, StoreError> {
        let today = crate::clock::now().as_nanos() / 1_000_000_000 / DAY_S;
        for nth in 0..FILES_OF_DAY_MAX {
            let path = self.directory.join(file_name(today, nth));
            if lock(&self.state).full.contains(&path) {
                continue;
            }
            match self.day(today, &path).and_then(|day| day.add(id, rows, chunks)) {
                Err(error) if opening::is_damage(&error) => {
                    tracing::error!(%error, "nothing can be added to a file of flow records; another one is begun");
                    let mut state = lock(&self.state);
                    state.today = None;
                    state.full.push(path);
                }
                added => return added,
            }
        }
        Err(damaged("day of flow records", format!("each of its {FILES_OF_DAY_MAX} files is damaged")))
    }

    /// The file at a path, which is one of today.
    fn day(&self, today: u64, path: &Path) -> Result<Arc<Day>, StoreError> {
        let open = lock(&self.state).today.clone();
        if let Some((_, day)) = open.filter(|(day, file)| *day == today && file.path == path) {
            return Ok(day);
        }
        let day = Arc::new(Day::open(path)?);
        let mut state = lock(&self.state);
        // Of a day that is over, nothing is added to any more.
        state.full.retain(|path| day_of(path) == Some(today));
        state.today = Some((today, Arc::clone(&day)));
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
        let opening::Staged { chunks, unread } = opening::staged(connection)?;
        match unread.first() {
            Some((id, ..)) => Err(damaged("block of flow records", format!("what came as {id}"))),
            None => Ok((chunks, runs.collect::<Result<Vec<(String, i64)>, _>>()?)),
        }
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
        for run in day.runs()?.0.into_iter().filter(wanted) {
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

/// What is damaged or missing in the files of which a catalog tells, though another program may be writing there.
pub(super) fn check(catalog: &Database, directory: &Path) -> Result<Vec<String>, StoreError> {
    let (entries, staged) =
        catalog.read(|connection| Ok((opening::entries(connection)?, opening::staged(connection)?)))?;
    let arrived = |(id, ..): &(i64, i64, _)| format!("what came as {id}, and is in no file yet, is damaged");
    let mut problems: Vec<String> = staged.unread.iter().map(arrived).collect();
    for of_file in entries.chunk_by(|one, other| one.file == other.file) {
        let name = &of_file[0].file;
        let opened =
            Day::open_to_read(&directory.join(name)).map(Arc::new).and_then(|day| Ok((day.runs()?.0, day)));
        let (runs, day) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                problems.push(format!("{name}: {error}"));
                continue;
            }
        };
        for entry in of_file {
            let Some(run) = runs.iter().find(|run| run.id == entry.id) else {
                problems.push(format!("{name}: run {} is missing, or cannot be read", entry.id));
                continue;
            };
            let blocks = (0..run.blocks.len()).filter_map(|block| day.check(run, block).err());
            problems.extend(blocks.map(|error| format!("{name}: run {}: {error}", run.id)));
        }
    }
    Ok(problems)
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

const DAY_S: u64 = 86_400;

fn make_directory(path: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

#[cfg(test)]
mod tests;
