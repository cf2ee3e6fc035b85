//! Copies of what is stored, made beside a collector that goes on.
//!
//! The main database and the files of the days are two, and belong together: the copy of the database is made first, in one
//! transaction, and of each file of a day those runs are copied of which that copy tells, no more and no fewer. What became a
//! run meanwhile is among what came in the copy; what came meanwhile is in neither, and the agents, which are asked from where
//! the copy ends, tell it again. So each record is there once after it was brought back.
//!
//! Nothing is waited for but by whoever copies: readers keep nobody from writing. The write-ahead log is not cut while the main
//! database is copied, and grows by what comes meanwhile.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
    sync::Arc,
};

use rusqlite::{Connection, OpenFlags};

use super::{
    StoreError,
    checksum::Checksum,
    codec::damaged,
    database::Database,
    flows::{self, opening},
    sqlite::FORMAT,
};

/// A file of a day, in a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopiedDay {
    /// Its name.
    pub name: String,
    /// What tells the runs in it from any others; none where some are of an older version and have no checksums.
    pub runs: Option<String>,
    /// It was copied, and not taken from an older backup.
    pub is_new: bool,
    /// What could not be copied, and why.
    pub left_out: Vec<String>,
}

/// Whether a file is a database of SQLite.
///
/// # Errors
/// When it cannot be read.
pub fn is_database(path: &Path) -> io::Result<bool> {
    let mut beginning = Vec::new();
    File::open(path)?.take(16).read_to_end(&mut beginning)?;
    Ok(beginning == b"SQLite format 3\0")
}

/// Copies a database, as it is at one moment, into a file that is not there yet.
///
/// # Errors
/// When it cannot be read, is damaged in how it lies, or the copy cannot be written.
pub fn copy_database(from: &Path, to: &Path) -> Result<(), StoreError> {
    let named = |source| StoreError::Unusable { path: from.display().to_string(), source };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(from, flags).map_err(named)?;
    connection.busy_timeout(super::database::BUSY_TIMEOUT).map_err(named)?;
    let to = to.to_str().ok_or_else(|| damaged("path", "it is not UTF-8"))?;
    connection.execute("VACUUM INTO ?", [to]).map(drop).map_err(named)
}

/// Copies the flow records of which the copy `catalog` of a main database tells, from the files in one directory to another,
/// which is empty. A file of which `take_over` says that it has put it there, with just these runs, is not copied.
///
/// # Errors
/// When the catalog cannot be read, or a copy cannot be written. What cannot be read of flow records is left out and told.
pub fn copy_flows(
    catalog: &Path,
    from: &Path,
    to: &Path,
    mut take_over: impl FnMut(&str, &str) -> bool,
) -> Result<Vec<CopiedDay>, StoreError> {
    let catalog = Database::open_to_read(catalog, &FORMAT)?;
    let entries = catalog.read(opening::entries)?;
    let mut copied = Vec::new();
    for of_file in entries.chunk_by(|one, other| one.file == other.file) {
        let name = &of_file[0].file;
        // What is lost already is told so by the catalog, in the copy as well.
        if !opening::is_of_a_day(name) {
            continue;
        }
        let ids: Vec<i64> = of_file.iter().map(|entry| entry.id).collect();
        copied.push(copy_day(&from.join(name), &to.join(name), name, &ids, &mut take_over)?);
    }
    Ok(copied)
}

fn copy_day(
    from: &Path,
    to: &Path,
    name: &str,
    ids: &[i64],
    take_over: &mut impl FnMut(&str, &str) -> bool,
) -> Result<CopiedDay, StoreError> {
    let mut copied = CopiedDay { name: name.to_owned(), runs: None, is_new: false, left_out: Vec::new() };
    let opened = flows::Day::open_to_read(from).map(Arc::new).and_then(|day| Ok((day.runs()?, day)));
    let ((runs, _), day) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            copied.left_out.push(format!("{name}: {error}"));
            return Ok(copied);
        }
    };
    let wanted: Vec<_> = runs.iter().filter(|run| ids.contains(&run.id)).collect();
    for missing in ids.iter().filter(|id| !wanted.iter().any(|run| run.id == **id)) {
        copied.left_out.push(format!("{name}: run {missing} is missing, or cannot be read"));
    }
    let seals: Option<Vec<(i64, u32)>> = wanted.iter().map(|run| Some((run.id, run.seal()?))).collect();
    copied.runs = seals.filter(|_| copied.left_out.is_empty()).map(|seals| {
        let sum =
            seals.iter().fold(Checksum::default(), |sum, (id, seal)| sum.number(*id).number((*seal).into()));
        format!("{}:{:08x}", seals.len(), sum.stored())
    });
    if copied.runs.as_deref().is_some_and(|runs| take_over(name, runs)) {
        return Ok(copied);
    }
    copied.is_new = true;
    let other = flows::Day::create_copy(to)?;
    for run in wanted {
        match day.take(run) {
            Ok(taken) => other.put(taken)?,
            Err(error) => {
                copied.left_out.push(format!("{name}: run {}: {error}", run.id));
                copied.runs = None;
            }
        }
    }
    Ok(copied)
}

#[cfg(test)]
mod tests;
