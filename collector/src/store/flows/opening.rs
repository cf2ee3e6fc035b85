//! What there is when a store is opened: the runs in the files of the days, what came and is in no run yet, and what is missing
//! or damaged, which is lost from then on and told of until its time is forgotten.
//!
//! A file that cannot be read is put aside, for whoever can mend it; one that this program has no business with (it is of a newer
//! version, or may not be opened) stays where it is. Its runs are lost either way, and only they.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
};

use rusqlite::{Connection, ErrorCode, Transaction, params};

use super::{
    Chunk, Lost, block,
    day::{self, Day, Run, Times},
    unpack, unusable,
};
use crate::store::{
    StoreError,
    checksum::Checksum,
    codec::{damaged, unsigned},
    database::{self, Database},
};

const FILE_PREFIX: &str = "flows-";
const FILE_SUFFIX: &str = ".db";
/// What stands as the file of what came and was damaged before it was in one.
const IN_NO_FILE: &str = "the main database";

/// All that was found.
pub(super) struct Opened {
    pub(super) runs: Vec<Arc<Run>>,
    pub(super) chunks: Vec<Arc<Chunk>>,
    pub(super) lost: Vec<Lost>,
}

/// Reads all of it, and ends what a crash has left undone.
pub(super) fn open(directory: &Path, catalog: &Database) -> Result<Opened, StoreError> {
    let known = catalog.read(known)?;
    let (mut runs, mut why) = (Vec::new(), HashMap::new());
    for path in files(directory)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match Day::open(&path).map(Arc::new).and_then(|day| day.runs()) {
            Ok((found, unread)) => {
                // One that the catalog has in another file was tried again there.
                let is_here = |run: &Run| known.files.get(&run.id).is_none_or(|file| *file == name);
                runs.extend(found.into_iter().filter(is_here).map(Arc::new));
                for (run, error) in unread {
                    tracing::error!(%error, file = name, run, "a part of a file of flow records is damaged");
                }
            }
            Err(error) if is_damage(&error) && !day::is_newer(&path) && File::open(&path).is_ok() => {
                let aside = database::put_aside(&path)?;
                tracing::error!(%error, aside = %aside.display(), "a file of flow records cannot be read");
            }
            Err(error) => {
                tracing::error!(%error, "a file of flow records cannot be opened");
                why.insert(name, error.to_string());
            }
        }
    }
    settle(catalog, &runs, &known)?;
    let Staged { chunks, unread } = catalog.read(staged)?;
    if !unread.is_empty() {
        catalog.write(|transaction| bury(transaction, &unread))?;
    }
    let lost = catalog.read(|connection| missing(connection, &runs, &why))?;
    Ok(Opened { runs, chunks, lost })
}

/// The files of the days in a directory, the oldest first.
pub(super) fn files(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(unusable)? {
        let path = entry.map_err(unusable)?.path();
        if day_of(&path).is_some() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The file of a day, which is told in days since 1970. One to which nothing can be added any more has others behind it.
pub(super) fn file_name(day: u64, nth: u32) -> String {
    match nth {
        0 => format!("{FILE_PREFIX}{day:06}{FILE_SUFFIX}"),
        nth => format!("{FILE_PREFIX}{day:06}-{nth}{FILE_SUFFIX}"),
    }
}

/// Whether the name is that of a file of a day, and no way to any other.
pub(in crate::store) fn is_of_a_day(name: &str) -> bool {
    day_of(Path::new(name)).is_some() && !name.contains(['/', '\\'])
}

/// Of which day a file is, in days since 1970.
pub(super) fn day_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_prefix(FILE_PREFIX)?.strip_suffix(FILE_SUFFIX)?;
    let (day, nth) = name.split_once('-').unwrap_or((name, "0"));
    nth.parse::<u32>().ok()?;
    day.parse().ok()
}

/// Whether it is the file itself that an error is about, and not the disk or a right.
pub(in crate::store) fn is_damage(error: &StoreError) -> bool {
    match error {
        StoreError::Damaged { .. } | StoreError::Foreign { .. } => true,
        StoreError::Unusable { source, .. } | StoreError::Sqlite(source) => {
            matches!(
                source.sqlite_error_code(),
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown)
            )
        }
        _ => false,
    }
}

/// Of which runs the catalog tells.
struct Known {
    files: HashMap<i64, String>,
    /// Those of which what it tells is damaged. What is in a file is told anew.
    damaged: HashSet<i64>,
}

/// A run as the catalog has it.
pub(in crate::store) struct Entry {
    pub(in crate::store) id: i64,
    pub(in crate::store) file: String,
    /// None where they are damaged.
    pub(in crate::store) times: Option<Times>,
}

/// What the catalog tells of runs.
pub(in crate::store) fn entries(connection: &Connection) -> Result<Vec<Entry>, StoreError> {
    let select = "SELECT id, file, rows, first, last, until, seal FROM flow_run ORDER BY file, id";
    let mut statement = connection.prepare(select)?;
    let mut rows = statement.query([])?;
    let mut entries = Vec::new();
    while let Some(row) = rows.next()? {
        let (id, file, count) = (row.get(0)?, row.get::<_, String>(1)?, row.get(2)?);
        let numbers = [row.get(3)?, row.get(4)?, row.get(5)?];
        let is_whole = seal_of_run(id, &file, count, numbers).check("run", row.get(6)?).is_ok();
        let times = if is_whole { times(numbers).ok() } else { None };
        entries.push(Entry { id, file, times });
    }
    Ok(entries)
}

fn times([first, last, until]: [i64; 3]) -> Result<Times, StoreError> {
    Ok(Times {
        first: unsigned("time", first)?,
        last: unsigned("time", last)?,
        until: unsigned("time", until)?,
    })
}

fn known(connection: &Connection) -> Result<Known, StoreError> {
    let mut known = Known { files: HashMap::new(), damaged: HashSet::new() };
    for Entry { id, file, times } in entries(connection)? {
        match times {
            Some(_) => drop(known.files.insert(id, file)),
            None => drop(known.damaged.insert(id)),
        }
    }
    Ok(known)
}

fn seal_of_run(id: i64, file: &str, rows: i64, times: [i64; 3]) -> Checksum {
    let all = Checksum::default().number(id).bytes(file.as_bytes()).number(rows);
    times.into_iter().fold(all, Checksum::number)
}

/// Takes what is in a run out of what came.
pub(super) fn enter(transaction: &Transaction<'_>, run: &Run, chunks: &[i64]) -> Result<(), StoreError> {
    tell(transaction, run.id, &run.day.name(), run.rows as i64, run.times)?;
    let mut statement = transaction.prepare_cached("DELETE FROM arrived WHERE id = ?")?;
    chunks.iter().try_for_each(|id| statement.execute([id]).map(drop))?;
    Ok(())
}

fn tell(
    transaction: &Transaction<'_>,
    id: i64,
    file: &str,
    rows: i64,
    times: Times,
) -> Result<(), StoreError> {
    let times = [times.first as i64, times.last as i64, times.until.min(i64::MAX as u64) as i64];
    let seal = seal_of_run(id, file, rows, times).stored();
    let [first, last, until] = times;
    let mut statement = transaction.prepare_cached(
        "INSERT OR REPLACE INTO flow_run (id, file, rows, first, last, until, seal) VALUES (?, ?, ?, ?, ?, ?, ?)",
    )?;
    statement.execute(params![id, file, rows, first, last, until, seal])?;
    Ok(())
}

/// Runs of which the catalog tells, and that are not there.
fn missing(
    connection: &Connection,
    there: &[Arc<Run>],
    why: &HashMap<String, String>,
) -> Result<Vec<Lost>, StoreError> {
    let there: HashSet<i64> = there.iter().map(|run| run.id).collect();
    let mut lost = Vec::new();
    for Entry { id, file, times } in
        entries(connection)?.into_iter().filter(|entry| !there.contains(&entry.id))
    {
        let reason = match (why.get(&file), times) {
            (_, None) => format!("run {id}, of which nothing is known any more, is missing"),
            (Some(error), _) => format!("{file} cannot be opened: {error}"),
            (None, _) if file == IN_NO_FILE => format!("what had just come is damaged in {file}"),
            (None, _) => format!("{file} is missing, or cannot be read"),
        };
        lost.push(Lost { times: times.unwrap_or(Times::EVER), why: reason, file });
    }
    Ok(lost)
}

/// After a crash, what is in a run may be among what came still.
fn settle(catalog: &Database, runs: &[Arc<Run>], known: &Known) -> Result<(), StoreError> {
    for run in runs.iter().filter(|run| !known.files.contains_key(&run.id)) {
        let chunks = if known.damaged.contains(&run.id) { Vec::new() } else { run.day.chunks(run)? };
        catalog.write(|transaction| enter(transaction, run, &chunks))?;
    }
    Ok(())
}

/// What came and is in no run.
pub(super) struct Staged {
    pub(super) chunks: Vec<Arc<Chunk>>,
    /// What of it is damaged: its number, how many rows it had, and their times where they are known.
    pub(super) unread: Vec<(i64, i64, Option<Times>)>,
}

/// The checksum of what is packed, and that of all else of it.
pub(super) fn sums_of_arrived(columns: &[u8], records: &[u8], rows: i64, times: Times) -> [i64; 2] {
    let packed = Checksum::default().bytes(columns).bytes(records).stored();
    let Times { first, last, until } = times;
    let times =
        [first, last, until].into_iter().fold(Checksum::default(), |all, time| all.number(time as i64));
    [packed, times.number(rows).stored()]
}

pub(super) fn staged(connection: &Connection) -> Result<Staged, StoreError> {
    let select =
        "SELECT id, rows, columns, records, first, last, until, checksum, seal FROM arrived ORDER BY id";
    let mut statement = connection.prepare(select)?;
    let mut found = statement.query([])?;
    let mut staged = Staged { chunks: Vec::new(), unread: Vec::new() };
    while let Some(row) = found.next()? {
        let (id, rows): (i64, i64) = (row.get(0)?, row.get(1)?);
        let (columns, records) = (blob(row, 2)?, blob(row, 3)?);
        let sums: [Option<i64>; 2] = [row.get(7)?, row.get(8)?];
        let told = match sums[1] {
            Some(_) => times([row.get(4)?, row.get(5)?, row.get(6)?]).ok(),
            None => None,
        };
        let want = sums_of_arrived(columns, records, rows, told.unwrap_or(Times::EVER));
        let told = told.filter(|_| sums[1] == Some(want[1]));
        match chunk(id, columns, records).filter(|_| sums[0].is_none_or(|sum| sum == want[0])) {
            Some(chunk) => staged.chunks.push(Arc::new(chunk)),
            None => staged.unread.push((id, rows, told)),
        }
    }
    Ok(staged)
}

fn blob<'a>(row: &'a rusqlite::Row<'_>, at: usize) -> Result<&'a [u8], StoreError> {
    row.get_ref(at)?.as_blob().map_err(|error| damaged("block of flow records", error))
}

/// What came as one, if it can be read.
fn chunk(id: i64, columns: &[u8], records: &[u8]) -> Option<Chunk> {
    let columns = unpack(columns).ok()?;
    let times = columns.times()?;
    block::records(records, columns.rows()).ok()?;
    Some(Chunk { arrived: id, columns, records: records.to_vec(), times })
}

/// What came and is damaged becomes a run that is lost, so that it is told of as long as one would be.
fn bury(transaction: &Transaction<'_>, unread: &[(i64, i64, Option<Times>)]) -> Result<(), StoreError> {
    for (arrived, rows, times) in unread {
        let next = "SELECT coalesce(max(id), 0) + 1 FROM flow_run";
        let id: i64 = transaction.query_row(next, [], |row| row.get(0))?;
        let times = times.unwrap_or(Times::EVER);
        tracing::error!(arrived, rows, "flow records that had just come are damaged in the main database");
        tell(transaction, id, IN_NO_FILE, (*rows).max(0), times)?;
        transaction.execute("DELETE FROM arrived WHERE id = ?", [arrived])?;
    }
    Ok(())
}
