//! The files of flow records, one for each day on which they came (UTC, by the collector's clock), and the runs in them.
//!
//! A run is what came in one stretch, sorted by remote and then by time, in blocks. Once written it never changes, so that a
//! file is only ever added to on its day; to forget what is old is to remove files, and damage to one is damage to that day.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use rusqlite::{
    Connection, OptionalExtension, Transaction, params, params_from_iter,
    types::{Value, ValueRef},
};

use super::{
    block::{BlockPacker, Columns, PackedRows, Remote, Row, records},
    lookup::{self, Lookup},
};
use crate::store::{
    StoreError,
    checksum::{Checksum, UNFIT},
    codec::{damaged, signed, unsigned},
    database::{self, Database, Format},
};

const FORMAT: Format = Format {
    // "AliF".
    application_id: 0x416c_6946,
    migrations: &[VERSION_1, VERSION_2, VERSION_3],
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

/// `run.checksums`: see [`Checksums`]. Runs of older versions have none.
const VERSION_2: &str = "ALTER TABLE run ADD COLUMN checksums BLOB;";

/// `run.lookup`: see [`lookup`]. Runs of older versions have none.
const VERSION_3: &str = "ALTER TABLE run ADD COLUMN lookup BLOB;";

/// The file of a day.
pub(in crate::store) struct Day {
    pub(super) path: PathBuf,
    database: Database,
}

/// Runs that cannot be read, and why.
type Unread = Vec<(i64, StoreError)>;

/// A run on its way from one file to another.
pub(in crate::store) struct Taken {
    run: Vec<Value>,
    /// The number, columns and records of each block.
    blocks: Vec<(i64, Vec<u8>, Vec<u8>)>,
}

/// The columns of a run, all of them.
const RUN: &str = "id, chunks, rows, first_block, directory, hosts, checksums, lookup";
const RUN_COLUMNS: usize = 8;

/// Whether a file was written by a newer version, as far as its header tells.
pub(super) fn is_newer(path: &Path) -> bool {
    database::is_newer(path, &FORMAT)
}

/// A run, and where it is.
pub(in crate::store) struct Run {
    pub(super) day: Arc<Day>,
    /// Its number: no two of a store have the same.
    pub(in crate::store) id: i64,
    pub(super) rows: u64,
    first_block: i64,
    pub(super) blocks: Vec<Block>,
    pub(super) times: Times,
    /// None of a run of an older version.
    checksums: Option<Checksums>,
}

/// What tells damage in a run from what was written: of each block those of its columns and of its records, then that of the
/// list of hosts, that of the lookup if there is one, and then the seal: that of all else of the run and of these. Each is a CRC32C in 4 bytes, little-endian.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Checksums {
    blocks: Vec<[u32; 2]>,
    hosts: u32,
    lookup: Option<u32>,
    seal: u32,
}

impl Checksums {
    fn write(&self) -> Vec<u8> {
        let each = self.blocks.iter().flatten().chain([&self.hosts]).chain(&self.lookup).chain([&self.seal]);
        each.flat_map(|sum| sum.to_le_bytes()).collect()
    }

    fn read(bytes: &[u8], blocks: usize) -> Option<Self> {
        let (numbers, rest) = bytes.as_chunks();
        let numbers: Vec<u32> = numbers.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        let (of_blocks, others) = numbers.split_at_checked(2 * blocks)?;
        let (hosts, lookup, seal) = match *others {
            [hosts, seal] => (hosts, None, seal),
            [hosts, lookup, seal] => (hosts, Some(lookup), seal),
            _ => return None,
        };
        rest.is_empty().then(|| Self { blocks: of_blocks.as_chunks().0.to_vec(), hosts, lookup, seal })
    }

    /// What the seal must be.
    fn seal(&self, id: i64, rows: i64, first_block: i64, chunks: &[u8], directory: &[u8]) -> u32 {
        let all =
            Checksum::default().number(id).number(rows).number(first_block).bytes(chunks).bytes(directory);
        let all = self.blocks.iter().flatten().fold(all, |all, sum| all.number((*sum).into()));
        let all = all.number(self.hosts.into());
        self.lookup.iter().fold(all, |all, sum| all.number((*sum).into())).stored() as u32
    }
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
    /// Nothing is known of them.
    pub(super) const EVER: Self = Self { first: 0, last: 0, until: u64::MAX };

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

    /// Opens the file, which another program may be writing, to read it only.
    pub(in crate::store) fn open_to_read(path: &Path) -> Result<Self, StoreError> {
        Ok(Self { path: path.to_owned(), database: Database::open_to_read(path, &FORMAT)? })
    }

    /// Makes a file that is worth nothing until all of it is there and synced by whoever makes it.
    pub(in crate::store) fn create_copy(path: &Path) -> Result<Self, StoreError> {
        let day = Self::open(path)?;
        day.database.writer().pragma_update(None, "synchronous", "OFF")?;
        Ok(day)
    }

    /// All of a run as it is stored, which must be as it was written.
    pub(in crate::store) fn take(&self, run: &Run) -> Result<Taken, StoreError> {
        self.read(|reading| {
            let mut blocks = Vec::with_capacity(run.blocks.len());
            for block in 0..run.blocks.len() {
                let columns = reading.columns(run, block, |columns| Ok(columns.to_vec()))?;
                let records = reading.records(run, block, |records| Ok(records.to_vec()))?;
                blocks.push((run.place(block, 0).0, columns, records));
            }
            // Its list of hosts and its lookup, too.
            reading.blocks_of(run, 0)?;
            reading.lookup(run)?;
            let mut select = reading.0.prepare_cached(&format!("SELECT {RUN} FROM run WHERE id = ?"))?;
            let mut found = select.query([run.id])?;
            let row = found.next()?.ok_or_else(|| damaged("run", "it is missing"))?;
            let values = (0..RUN_COLUMNS).map(|at| row.get(at)).collect::<Result<_, _>>()?;
            Ok(Taken { run: values, blocks })
        })
    }

    /// Puts a run here that was taken from another file.
    pub(in crate::store) fn put(&self, taken: Taken) -> Result<(), StoreError> {
        let Taken { run, blocks } = taken;
        self.database.write(|transaction| {
            let insert = "INSERT INTO block (id, columns, records) VALUES (?, ?, ?)";
            let mut insert = transaction.prepare_cached(insert)?;
            blocks.into_iter().try_for_each(|(id, columns, records)| {
                insert.execute(params![id, columns, records]).map(drop)
            })?;
            let insert = format!("INSERT INTO run ({RUN}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)");
            transaction.execute(&insert, params_from_iter(run))?;
            Ok(())
        })
    }

    /// The name of the file.
    pub(super) fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The runs in it; and those that cannot be read, with the reason.
    pub(in crate::store) fn runs(self: &Arc<Self>) -> Result<(Vec<Run>, Unread), StoreError> {
        self.database.read(|connection| {
            let select = "SELECT id, rows, first_block, directory, chunks, checksums FROM run ORDER BY id";
            let mut statement = connection.prepare(select)?;
            let mut found = statement.query([])?;
            let (mut runs, mut unread) = (Vec::new(), Vec::new());
            while let Some(row) = found.next()? {
                match self.run(row) {
                    Ok(run) => runs.push(run),
                    Err(error) => unread.push((row.get(0)?, error)),
                }
            }
            Ok((runs, unread))
        })
    }

    fn run(self: &Arc<Self>, row: &rusqlite::Row<'_>) -> Result<Run, StoreError> {
        let blob = |at| row.get_ref(at)?.as_blob().map_err(|error| damaged("run", error));
        let (id, rows, first_block) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let (directory, chunks) = (blob(3)?, blob(4)?);
        let blocks = read_directory(directory)?;
        let checksums = match row.get_ref(5)? {
            ValueRef::Null => None,
            _ => Some(Checksums::read(blob(5)?, blocks.len()).ok_or_else(|| damaged("run", UNFIT))?),
        };
        let is_unfit = |sums: &Checksums| sums.seal(id, rows, first_block, chunks, directory) != sums.seal;
        if checksums.as_ref().is_some_and(is_unfit) {
            return Err(damaged("run", UNFIT));
        }
        let times = blocks.iter().map(|block| block.times).reduce(Times::and);
        Ok(Run {
            day: Arc::clone(self),
            id,
            rows: unsigned("number of rows", rows)?,
            first_block,
            times: times.ok_or_else(|| damaged("run", "it is empty"))?,
            blocks,
            checksums,
        })
    }

    /// Reads all of a block, which must be as it was written. How many bytes that is.
    pub(super) fn check(&self, run: &Run, block: usize) -> Result<u64, StoreError> {
        self.read(|reading| {
            let rows = run.blocks[block].rows as usize;
            let columns = reading.columns(run, block, |columns| {
                let unpacked =
                    Columns::unpack(columns).map_err(|error| damaged("block of flow records", error))?;
                let is_as_told = unpacked.rows() == rows && unpacked.times() == Some(run.blocks[block].times);
                let unlike = || damaged("block of flow records", "it is not what its run tells of it");
                is_as_told.then_some(columns.len()).ok_or_else(unlike)
            })?;
            let records = reading.records(run, block, |packed| {
                records(packed, rows).map_err(|error| damaged("block of flow records", error))?;
                Ok(packed.len())
            })?;
            Ok((columns + records) as u64)
        })
    }

    /// Reads what else a run has, which must be as it was written.
    pub(super) fn check_run(&self, run: &Run) -> Result<(), StoreError> {
        self.read(|reading| {
            reading.blocks_of(run, 0)?;
            reading.lookup(run).map(drop)
        })
    }

    /// Of what came, that which is in a run.
    pub(super) fn chunks(&self, run: &Run) -> Result<Vec<i64>, StoreError> {
        self.read(|reading| {
            reading.blob("SELECT chunks FROM run WHERE id = ?", run.id, None, |chunks| {
                let (chunks, rest) = chunks.as_chunks();
                let is_whole =
                    rest.is_empty().then(|| chunks.iter().map(|id| i64::from_le_bytes(*id)).collect());
                is_whole.ok_or_else(|| damaged("run", "its list of what came is cut short"))
            })
        })
    }

    /// Adds a run of these rows, which are sorted as they are to lie, and came as these chunks. One with this number that the
    /// catalog was never told of makes room.
    pub(super) fn add(self: &Arc<Self>, id: i64, rows: &[&Row], chunks: &[i64]) -> Result<Run, StoreError> {
        let added = self.database.write(|transaction| {
            withdraw(transaction, id)?;
            add(transaction, id, rows, chunks)
        })?;
        let Added { blocks, first_block, checksums } = added;
        let times = blocks.iter().map(|block| block.times).reduce(Times::and);
        Ok(Run {
            day: Arc::clone(self),
            id,
            rows: rows.len() as u64,
            first_block,
            times: times.ok_or_else(|| damaged("run", "it is empty"))?,
            blocks,
            checksums: Some(checksums),
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

struct Added {
    blocks: Vec<Block>,
    first_block: i64,
    checksums: Checksums,
}

/// Takes a run out again, if there is one with this number.
fn withdraw(transaction: &Transaction<'_>, id: i64) -> Result<(), StoreError> {
    let select = "SELECT first_block, length(directory) FROM run WHERE id = ?";
    let found = transaction.query_row(select, [id], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)));
    let Some((first, bytes)) = found.optional()? else { return Ok(()) };
    let blocks = bytes / ENTRY_BYTES as i64;
    transaction.execute("DELETE FROM block WHERE id BETWEEN ?1 AND ?1 + ?2 - 1", [first, blocks])?;
    transaction.execute("DELETE FROM run WHERE id = ?", [id])?;
    Ok(())
}

fn add(transaction: &Transaction<'_>, id: i64, rows: &[&Row], chunks: &[i64]) -> Result<Added, StoreError> {
    let last: Option<i64> =
        transaction.query_row("SELECT max(id) FROM block", [], |row| row.get(0)).optional()?.flatten();
    let first_block = last.unwrap_or(0) + 1;
    let mut statement =
        transaction.prepare_cached("INSERT INTO block (id, columns, records) VALUES (?, ?, ?)")?;
    let (mut blocks, mut hosts, mut checksums) = (Vec::new(), Vec::new(), Checksums::default());
    let mut packer = BlockPacker::default();
    let mut of_blocks = Vec::new();
    for PackedRows { packed, rows, .. } in packer.pack(rows) {
        of_blocks.push(rows);
        let number = blocks.len() as u32;
        checksums.blocks.push([&packed.columns, &packed.records].map(|bytes| Checksum::of(bytes)));
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
    let (directory, hosts) = (write_directory(&blocks), write_hosts(&hosts));
    let chunks: Vec<u8> = chunks.iter().flat_map(|id| id.to_le_bytes()).collect();
    let count = signed("number of rows", rows.len() as u64)?;
    let lookup = lookup::pack(&of_blocks);
    checksums.hosts = Checksum::of(&hosts);
    checksums.lookup = Some(Checksum::of(&lookup));
    checksums.seal = checksums.seal(id, count, first_block, &chunks, &directory);
    transaction.execute(
        &format!("INSERT INTO run ({RUN}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"),
        params![id, chunks, count, first_block, directory, hosts, checksums.write(), lookup],
    )?;
    Ok(Added { blocks, first_block, checksums })
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
        let (id, checksum) = run.place(block, 0);
        self.blob("SELECT columns FROM block WHERE id = ?", id, checksum, read)
    }

    /// The records of a block.
    pub(super) fn records<T>(
        &self,
        run: &Run,
        block: usize,
        read: impl FnOnce(&[u8]) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let (id, checksum) = run.place(block, 1);
        self.blob("SELECT records FROM block WHERE id = ?", id, checksum, read)
    }

    /// The blocks with rows of a host.
    pub(super) fn blocks_of(&self, run: &Run, host: u32) -> Result<Vec<usize>, StoreError> {
        let checksum = run.checksums.as_ref().map(|sums| sums.hosts);
        self.blob("SELECT hosts FROM run WHERE id = ?", run.id, checksum, |hosts| read_hosts(hosts, host))
    }

    /// What questions by name ask of all of a run; none of one of an older version.
    pub(super) fn lookup(&self, run: &Run) -> Result<Option<Lookup>, StoreError> {
        let Some(checksum) = run.checksums.as_ref().and_then(|sums| sums.lookup) else { return Ok(None) };
        self.blob("SELECT lookup FROM run WHERE id = ?", run.id, Some(checksum), |packed| {
            Lookup::unpack(packed).map(Some).map_err(|error| damaged("lookup of flow records", error))
        })
    }

    fn blob<T>(
        &self,
        select: &str,
        id: i64,
        checksum: Option<u32>,
        read: impl FnOnce(&[u8]) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut statement = self.0.prepare_cached(select)?;
        let mut rows = statement.query([id])?;
        let row = rows.next()?.ok_or_else(|| damaged("block of flow records", format!("{id} is missing")))?;
        let bytes = row.get_ref(0)?.as_blob().map_err(|error| damaged("block of flow records", error))?;
        if checksum.is_some_and(|checksum| checksum != Checksum::of(bytes)) {
            return Err(damaged("block of flow records", UNFIT));
        }
        read(bytes)
    }
}

impl Run {
    /// What tells it from any other; none of a run of an older version.
    pub(in crate::store) fn seal(&self) -> Option<u32> {
        self.checksums.as_ref().map(|sums| sums.seal)
    }

    /// The number of a block in its file, and the checksum of one of its parts.
    fn place(&self, block: usize, part: usize) -> (i64, Option<u32>) {
        let checksum = self.checksums.as_ref().and_then(|sums| Some(sums.blocks.get(block)?[part]));
        (self.first_block + block as i64, checksum)
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
        assert!(day.runs().unwrap().0.is_empty());
        let first = day.add(7, &rows[..1_000], &[1, 3]).unwrap();
        let second = day.add(9, &rows[1_000..], &[2, 5, 1 << 40]).unwrap();
        assert_eq!((first.blocks.len(), second.blocks.len()), (1, 2));
        let again = Arc::new(Day::open(&path).unwrap());
        let found = again.runs().unwrap().0;
        let summary = |run: &Run| {
            (run.id, run.rows, run.first_block, run.blocks.clone(), run.times, run.checksums.clone())
        };
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
