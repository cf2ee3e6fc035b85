//! The files of flow records, one for each day on which they came (UTC, by the collector's clock), and the runs in them.
//!
//! A run is what came in one stretch, sorted by remote and then by time, in blocks. Once written it never changes, so that a
//! file is only ever added to on its day; to forget what is old is to remove files, and damage to one is damage to that day.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::block::{BlockPacker, Remote, Row};
use crate::store::{
    StoreError,
    codec::{damaged, signed, unsigned},
    database::{Database, Format},
};

const FORMAT: Format = Format {
    // "AliF".
    application_id: 0x416c_6946,
    migrations: &[VERSION_1],
    writer_cache_kib: 4 * 1024,
    reader_cache_kib: 4 * 1024,
};

/// Times are nanoseconds since 1970, by the hosts' own clocks.
///
/// - `run`: `chunks` are the numbers of what came that is in it, 8 bytes each. `first_block` and the next ones are its blocks.
///   `directory` tells of each what it takes to pass over it, `hosts` which of them have rows of which host.
/// - `block`: see the columns and records of a block.
const VERSION_1: &str = "
    CREATE TABLE run (
        id INTEGER PRIMARY KEY,
        chunks BLOB NOT NULL,
        rows INTEGER NOT NULL,
        first_block INTEGER NOT NULL,
        directory BLOB NOT NULL,
        hosts BLOB NOT NULL
    ) STRICT;

    CREATE TABLE block (
        id INTEGER PRIMARY KEY,
        columns BLOB NOT NULL,
        records BLOB NOT NULL
    ) STRICT;
";

/// The file of a day.
pub(super) struct Day {
    pub(super) path: PathBuf,
    database: Database,
}

/// A run, and where it is.
pub(super) struct Run {
    pub(super) day: Arc<Day>,
    /// Its number: no two of a store have the same.
    pub(super) id: i64,
    pub(super) rows: u64,
    first_block: i64,
    pub(super) blocks: Vec<Block>,
    pub(super) times: Times,
}

/// What it takes to pass over a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// The remote of its first row; none of its rows has a lower one.
    pub(super) lowest: Remote,
    /// And none a higher one.
    pub(super) highest: Remote,
    pub(super) times: Times,
    pub(super) rows: u32,
}

/// Within which the times of some rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Times {
    /// The least `first`.
    pub(in crate::store) first: u64,
    /// The least `last`.
    pub(in crate::store) last: u64,
    /// The greatest `last`.
    pub(in crate::store) until: u64,
}

impl Times {
    pub(super) fn of<'a>(rows: impl Iterator<Item = &'a Row>) -> Option<Self> {
        let each = rows.map(|row| Self { first: row.first, last: row.last, until: row.last });
        each.reduce(Self::and)
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self {
            first: self.first.min(other.first),
            last: self.last.min(other.last),
            until: self.until.max(other.until),
        }
    }
}

impl Day {
    /// Opens the file, or makes it.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self { path: path.to_owned(), database: Database::open(path, &FORMAT)? })
    }

    /// The name of the file.
    pub(super) fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// What is in it.
    pub(super) fn runs(self: &Arc<Self>) -> Result<Vec<Run>, StoreError> {
        self.database.read(|connection| {
            let select = "SELECT id, rows, first_block, directory FROM run ORDER BY id";
            let mut statement = connection.prepare(select)?;
            let mut found = statement.query([])?;
            let mut runs = Vec::new();
            while let Some(row) = found.next()? {
                let blocks =
                    read_directory(row.get_ref(3)?.as_blob().map_err(|error| damaged("run", error))?)?;
                let times = blocks.iter().map(|block| block.times).reduce(Times::and);
                runs.push(Run {
                    day: Arc::clone(self),
                    id: row.get(0)?,
                    rows: unsigned("number of rows", row.get(1)?)?,
                    first_block: row.get(2)?,
                    times: times.ok_or_else(|| damaged("run", "it is empty"))?,
                    blocks,
                });
            }
            Ok(runs)
        })
    }

    /// Of what came, that which is in a run.
    pub(super) fn chunks(&self, run: &Run) -> Result<Vec<i64>, StoreError> {
        self.read(|reading| {
            reading.blob("SELECT chunks FROM run WHERE id = ?", run.id, |chunks| {
                let (chunks, rest) = chunks.as_chunks();
                let is_whole =
                    rest.is_empty().then(|| chunks.iter().map(|id| i64::from_le_bytes(*id)).collect());
                is_whole.ok_or_else(|| damaged("run", "its list of what came is cut short"))
            })
        })
    }

    /// Adds a run of these rows, which are sorted as they are to lie, and came as these chunks.
    pub(super) fn add(self: &Arc<Self>, id: i64, rows: &[&Row], chunks: &[i64]) -> Result<Run, StoreError> {
        let (blocks, first_block) = self.database.write(|transaction| add(transaction, id, rows, chunks))?;
        let times = blocks.iter().map(|block| block.times).reduce(Times::and);
        Ok(Run {
            day: Arc::clone(self),
            id,
            rows: rows.len() as u64,
            first_block,
            times: times.ok_or_else(|| damaged("run", "it is empty"))?,
            blocks,
        })
    }

    /// Reads from it.
    pub(super) fn read<T>(
        &self,
        read: impl FnOnce(&Reading<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.database.read(|connection| read(&Reading(connection)))
    }
}

fn add(
    transaction: &Transaction<'_>,
    id: i64,
    rows: &[&Row],
    chunks: &[i64],
) -> Result<(Vec<Block>, i64), StoreError> {
    let last: Option<i64> =
        transaction.query_row("SELECT max(id) FROM block", [], |row| row.get(0)).optional()?.flatten();
    let first_block = last.unwrap_or(0) + 1;
    let mut statement =
        transaction.prepare_cached("INSERT INTO block (id, columns, records) VALUES (?, ?, ?)")?;
    let (mut blocks, mut hosts) = (Vec::new(), Vec::new());
    let mut packer = BlockPacker::default();
    for (packed, rows) in packer.pack(rows) {
        let number = blocks.len() as u32;
        statement.execute(params![first_block + i64::from(number), packed.columns, packed.records])?;
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { continue };
        blocks.push(Block {
            lowest: first.remote,
            highest: last.remote,
            times: Times::of(rows.iter().copied()).expect("there is a row"),
            rows: rows.len() as u32,
        });
        let mut there: Vec<u32> = rows.iter().map(|row| row.host).collect();
        there.sort_unstable();
        there.dedup();
        hosts.extend(there.into_iter().map(|host| (host, number)));
    }
    hosts.sort_unstable();
    transaction.execute(
        "INSERT INTO run (id, chunks, rows, first_block, directory, hosts) VALUES (?, ?, ?, ?, ?, ?)",
        params![
            id,
            chunks.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>(),
            signed("number of rows", rows.len() as u64)?,
            first_block,
            write_directory(&blocks),
            write_hosts(&hosts)
        ],
    )?;
    Ok((blocks, first_block))
}

/// One state of a file.
pub(super) struct Reading<'a>(&'a Connection);

impl Reading<'_> {
    /// The columns of a block.
    pub(super) fn columns<T>(
        &self,
        run: &Run,
        block: usize,
        read: impl FnOnce(&[u8]) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.blob("SELECT columns FROM block WHERE id = ?", run.first_block + block as i64, read)
    }

    /// The records of a block.
    pub(super) fn records<T>(
        &self,
        run: &Run,
        block: usize,
        read: impl FnOnce(&[u8]) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.blob("SELECT records FROM block WHERE id = ?", run.first_block + block as i64, read)
    }

    /// The blocks with rows of a host.
    pub(super) fn blocks_of(&self, run: &Run, host: u32) -> Result<Vec<usize>, StoreError> {
        self.blob("SELECT hosts FROM run WHERE id = ?", run.id, |hosts| read_hosts(hosts, host))
    }

    fn blob<T>(
        &self,
        select: &str,
        id: i64,
        read: impl FnOnce(&[u8]) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut statement = self.0.prepare_cached(select)?;
        let mut rows = statement.query([id])?;
        let row = rows.next()?.ok_or_else(|| damaged("block of flow records", format!("{id} is missing")))?;
        read(row.get_ref(0)?.as_blob().map_err(|error| damaged("block of flow records", error))?)
    }
}

/// Bytes of a block in a directory: lowest and highest remote (4 or 6, and 16 bytes each, big-endian), the three times and how
/// many rows (little-endian).
const ENTRY_BYTES: usize = 2 * 17 + 3 * 8 + 4;

fn write_directory(blocks: &[Block]) -> Vec<u8> {
    let mut out = Vec::with_capacity(blocks.len() * ENTRY_BYTES);
    for Block { lowest, highest, times, rows } in blocks {
        out.extend(lowest.to_bytes());
        out.extend(highest.to_bytes());
        for time in [times.first, times.last, times.until] {
            out.extend(time.to_le_bytes());
        }
        out.extend(rows.to_le_bytes());
    }
    out
}

fn read_directory(bytes: &[u8]) -> Result<Vec<Block>, StoreError> {
    let cut = || damaged("directory of flow records", "it is no directory");
    if !bytes.len().is_multiple_of(ENTRY_BYTES) {
        return Err(cut());
    }
    let entry = |entry: &[u8]| {
        let remote = |range: Range<usize>| Remote::from_bytes(entry[range].try_into().ok()?);
        let number = |at: usize| entry[at..at + 8].try_into().ok().map(u64::from_le_bytes);
        let rows = entry[58..62].try_into().ok().map(u32::from_le_bytes)?;
        let times = Times { first: number(34)?, last: number(42)?, until: number(50)? };
        Some(Block { lowest: remote(0..17)?, highest: remote(17..34)?, times, rows })
    };
    bytes.chunks(ENTRY_BYTES).map(|bytes| entry(bytes).ok_or_else(cut)).collect()
}

/// Sorted: each host (4 bytes) and how many blocks have rows of it (4), and then, of each in order, those (4 each), behind how
/// many hosts there are (4); all little-endian.
fn write_hosts(hosts: &[(u32, u32)]) -> Vec<u8> {
    let each = || hosts.chunk_by(|one, other| one.0 == other.0);
    let mut out = Vec::with_capacity(4 + hosts.len() * 8);
    out.extend((each().count() as u32).to_le_bytes());
    for blocks in each() {
        out.extend(blocks[0].0.to_le_bytes());
        out.extend((blocks.len() as u32).to_le_bytes());
    }
    hosts.iter().for_each(|(_, block)| out.extend(block.to_le_bytes()));
    out
}

fn read_hosts(bytes: &[u8], host: u32) -> Result<Vec<usize>, StoreError> {
    let cut = || damaged("directory of hosts", "it is cut short");
    let number = |at: usize| {
        let bytes = bytes.get(at * 4..at * 4 + 4).ok_or_else(cut)?;
        Ok::<_, StoreError>(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    let hosts = number(0)? as usize;
    let mut from = 1 + 2 * hosts;
    for at in 0..hosts {
        let blocks = number(2 + 2 * at)? as usize;
        if number(1 + 2 * at)? == host {
            return (from..from + blocks).map(|at| number(at).map(|block| block as usize)).collect();
        }
        from += blocks;
    }
    Ok(Vec::new())
}

#[cfg(test)]
mod tests {
    use super::{super::block::tests::row, *};

    #[test]
    fn a_run_is_found_again_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("day.db");
        let mut random = fastrand::Rng::with_seed(1);
        let mut rows: Vec<Row> = (0..3_000).map(|_| row(&mut random)).collect();
        rows.sort_by_key(|row| (row.remote, row.first));
        let rows: Vec<&Row> = rows.iter().collect();
        let day = Arc::new(Day::open(&path).unwrap());
        assert!(day.runs().unwrap().is_empty());
        let first = day.add(7, &rows[..1_000], &[1, 3]).unwrap();
        let second = day.add(9, &rows[1_000..], &[2, 5, 1 << 40]).unwrap();
        assert_eq!((first.blocks.len(), second.blocks.len()), (1, 2));
        let again = Arc::new(Day::open(&path).unwrap());
        let found = again.runs().unwrap();
        let summary = |run: &Run| (run.id, run.rows, run.first_block, run.blocks.clone(), run.times);
        assert_eq!(found.iter().map(summary).collect::<Vec<_>>(), [summary(&first), summary(&second)]);

        assert_eq!(again.chunks(&found[1]).unwrap(), [2, 5, 1 << 40]);

        for host in 0..7 {
            let has_rows = |rows: &[&Row]| rows.iter().any(|row| row.host == host);
            let blocks = again.read(|reading| reading.blocks_of(&found[1], host)).unwrap();
            let want: Vec<usize> =
                (0..2).filter(|at| has_rows(&rows[1_000..][at * 1_024..][..976])).collect();
            assert_eq!(blocks, want, "host {host}");
        }
        let missing = again.read(|reading| reading.columns(&found[1], 2, |_| Ok(())));
        assert!(matches!(missing, Err(StoreError::Damaged { .. })));
    }
}
