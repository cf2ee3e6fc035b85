//! What is known of executables across runs: the hash of each file, and which contents have ever been seen.
//!
//! One file in the agent's data directory, which records are appended to. All numbers are little endian.
//!
//! | bytes   | what |
//! | ------- | ---- |
//! | 8       | `alibiexe` |
//! | 4       | format, 1 |
//! | 4       | flags; bit 0: something of what was seen has been forgotten |
//! | 8       | key of the filter, random |
//! | 4       | CRC-32C of the filter |
//! | 4       | CRC-32C of the 28 bytes before |
//! | 262,144 | filter: which contents have been seen |
//! | 76 each | records: device, inode, modified, size, changed (8 each), SHA-256 (32), CRC-32C of the 72 before (4) |
//!
//! The records say what each file contains and are bounded: the file is written anew with the last of them when there
//! are twice as many as are kept. The filter (Bloom's) never forgets and never grows: it may take a new content for one
//! that has been seen, ever more often the more there are (1 in 10,000 at 80,000, 1 in 100 at 220,000), but never the
//! other way round. That is why `first_on_host` is never claimed of something that had been seen. The key keeps those who
//! make files from choosing a content that looks seen.
//!
//! A reader refuses a higher format. A torn end is what a crash leaves, and is cut: what is in it was told nobody, since
//! a claim waits until it is on the disk. Anything else that is wrong with the file is damage: it is put aside, and from
//! then on nothing is claimed to be new.

use std::{
    fs::{self, File},
    hash::{BuildHasher as _, RandomState},
    io::{self, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use alibi_proto::{
    data_directory::write_whole,
    executable::{FileIdentity, Sha256},
    time::Timestamp,
};
use sha2::Digest as _;

use super::{file::FileState, generations::Generations};

const MAGIC: &[u8; 8] = b"alibiexe";
const FORMAT: u32 = 1;
const INCOMPLETE: u32 = 1;
const HEADER_BYTES: usize = 32;
const FILTER_BYTES: usize = 1 << 18;
const PROBES: usize = 8;
const RECORD_BYTES: usize = 76;
/// Records that wait for a disk that takes none. What goes beyond is only remembered in this run.
const UNSAVED_MAX: usize = 4_096;

/// What is known, and its file.
pub(super) struct Known {
    path: PathBuf,
    /// To append to. None where the file has to be written anew first.
    file: Option<File>,
    /// How much of the file is whole records.
    bytes: u64,
    entries_max: usize,
    files: Generations<FileIdentity, Content>,
    filter: Filter,
    /// Something that was seen may be neither in the filter nor in the file.
    is_incomplete: bool,
    unsaved: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Content {
    changed_ns: u64,
    sha256: Sha256,
}

impl Known {
    /// Reads the file at `path`, or makes it. Remembers the content of `entries_max` files.
    ///
    /// # Errors
    /// When it cannot be read or written, or is of a newer format.
    pub(super) fn open(path: &Path, entries_max: usize) -> Result<Self, KnownError> {
        let error = |source| KnownError::Io { path: path.to_owned(), source };
        let bytes = match fs::read(path) {
            Ok(bytes) => Some(bytes),
            Err(source) if source.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(error(source)),
        };
        let parsed = match bytes.as_deref().map(parse) {
            None => None,
            Some(Ok(contents)) => Some(contents),
            Some(Err(Unusable::Newer(written))) => {
                return Err(KnownError::Newer { path: path.to_owned(), written });
            }
            Some(Err(Unusable::Damaged(problem))) => {
                put_aside(path, problem).map_err(error)?;
                None
            }
        };
        let is_there = parsed.is_some();
        let is_incomplete = bytes.is_some() && parsed.as_ref().is_none_or(|contents| contents.is_incomplete);
        let contents = parsed.unwrap_or_default();
        if contents.filter.is_half_full() {
            tracing::warn!("so many executables were seen on this host that new ones may not be called new");
        }
        let bytes = HEADER_BYTES + FILTER_BYTES + contents.records.len() * RECORD_BYTES;
        let mut files = Generations::new(entries_max);
        for (identity, content) in contents.records {
            files.insert(identity, content);
        }
        let mut known = Self {
            file: if is_there { Some(open_to_append(path).map_err(error)?) } else { None },
            path: path.to_owned(),
            bytes: bytes as u64,
            entries_max,
            files,
            filter: contents.filter,
            is_incomplete,
            unsaved: Vec::new(),
        };
        if !is_there {
            known.write_anew().map_err(error)?;
        }
        Ok(known)
    }

    /// What the file contains, if it is as it was when it was hashed.
    pub(super) fn sha256(&mut self, state: &FileState) -> Option<Sha256> {
        let content = self.files.get_mut(&state.identity)?;
        (content.changed_ns == state.changed_ns).then_some(content.sha256)
    }

    /// The file contains this. True if this content has not been seen before: to be claimed only once saved.
    pub(super) fn learn(&mut self, state: &FileState, sha256: Sha256) -> bool {
        let is_new = self.filter.insert(&sha256) && !self.is_incomplete;
        let content = Content { changed_ns: state.changed_ns, sha256 };
        self.files.insert(state.identity, content);
        if self.unsaved.len() < UNSAVED_MAX * RECORD_BYTES {
            self.unsaved.extend(record(&state.identity, &content));
        } else {
            self.is_incomplete = true;
        }
        is_new
    }

    /// Brings to the disk what was learnt.
    ///
    /// # Errors
    /// When it cannot be written. It is tried again the next time.
    pub(super) fn save(&mut self) -> Result<(), KnownError> {
        if self.unsaved.is_empty() {
            return Ok(());
        }
        self.append().map_err(|source| KnownError::Io { path: self.path.clone(), source })
    }

    fn append(&mut self) -> io::Result<()> {
        let records_max = 2 * self.entries_max as u64 * RECORD_BYTES as u64;
        let is_full =
            self.bytes + self.unsaved.len() as u64 > (HEADER_BYTES + FILTER_BYTES) as u64 + records_max;
        let Some(file) = self.file.as_mut().filter(|_| !is_full) else { return self.write_anew() };
        // Also cuts what a write that failed has left.
        file.set_len(self.bytes)?;
        file.seek(io::SeekFrom::Start(self.bytes))?;
        file.write_all(&self.unsaved)?;
        file.sync_data()?;
        self.bytes += self.unsaved.len() as u64;
        self.unsaved.clear();
        Ok(())
    }

    fn write_anew(&mut self) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + FILTER_BYTES + self.files.len() * RECORD_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(FORMAT.to_le_bytes());
        bytes.extend(if self.is_incomplete { INCOMPLETE } else { 0 }.to_le_bytes());
        bytes.extend(self.filter.key.to_le_bytes());
        bytes.extend(crc32c::crc32c(&self.filter.bits).to_le_bytes());
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes.extend(&self.filter.bits);
        for (identity, content) in self.files.iter() {
            bytes.extend(record(identity, content));
        }
        // Closed first: Windows replaces no file that is open.
        self.file = None;
        write_whole(&self.path, &bytes)?;
        self.file = Some(open_to_append(&self.path)?);
        self.bytes = bytes.len() as u64;
        self.unsaved.clear();
        Ok(())
    }
}

fn open_to_append(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).open(path)
}

fn put_aside(path: &Path, problem: &str) -> io::Result<()> {
    let aside = path.with_extension("damaged");
    fs::rename(path, &aside)?;
    tracing::warn!(
        "{} is damaged ({problem}) and was put aside as {}: from now on no executable is called new on this host; to \
         begin anew, remove both while the agent is stopped",
        path.display(),
        aside.display()
    );
    Ok(())
}

fn record(identity: &FileIdentity, content: &Content) -> [u8; RECORD_BYTES] {
    let numbers =
        [identity.device, identity.inode, identity.modified.as_nanos(), identity.size, content.changed_ns];
    let mut record = [0; RECORD_BYTES];
    for (place, number) in record.chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    record[40..72].copy_from_slice(content.sha256.as_bytes());
    let sum = crc32c::crc32c(&record[..72]);
    record[72..].copy_from_slice(&sum.to_le_bytes());
    record
}

#[derive(Default)]
struct Contents {
    is_incomplete: bool,
    filter: Filter,
    records: Vec<(FileIdentity, Content)>,
}

enum Unusable {
    Newer(u32),
    Damaged(&'static str),
}

fn parse(bytes: &[u8]) -> Result<Contents, Unusable> {
    let mut rest = bytes;
    let (Some(magic), Some(format)) = (take::<8>(&mut rest), take(&mut rest).map(u32::from_le_bytes)) else {
        return Err(Unusable::Damaged("too short"));
    };
    if &magic != MAGIC {
        return Err(Unusable::Damaged("not such a file"));
    }
    if format > FORMAT {
        return Err(Unusable::Newer(format));
    }
    let (Some(flags), Some(key), Some(filter_sum), Some(sum)) =
        (take(&mut rest), take(&mut rest), take(&mut rest), take(&mut rest))
    else {
        return Err(Unusable::Damaged("too short"));
    };
    if u32::from_le_bytes(sum) != crc32c::crc32c(&bytes[..HEADER_BYTES - 4]) {
        return Err(Unusable::Damaged("its header is not what was written"));
    }
    let Some((bits, records)) = rest.split_at_checked(FILTER_BYTES) else {
        return Err(Unusable::Damaged("too short"));
    };
    if u32::from_le_bytes(filter_sum) != crc32c::crc32c(bits) {
        return Err(Unusable::Damaged("its filter is not what was written"));
    }
    let mut contents = Contents {
        is_incomplete: u32::from_le_bytes(flags) & INCOMPLETE != 0,
        filter: Filter { key: u64::from_le_bytes(key), bits: bits.to_vec() },
        ..Contents::default()
    };
    let mut is_torn = false;
    for bytes in records.chunks(RECORD_BYTES) {
        match read_record(bytes) {
            Some(_) if is_torn => return Err(Unusable::Damaged("a record is not what was written")),
            Some((identity, content)) => {
                contents.filter.insert(&content.sha256);
                contents.records.push((identity, content));
            }
            None => is_torn = true,
        }
    }
    Ok(contents)
}

fn read_record(bytes: &[u8]) -> Option<(FileIdentity, Content)> {
    let record: &[u8; RECORD_BYTES] = bytes.try_into().ok()?;
    let (mut rest, sum) = record.split_at(RECORD_BYTES - 4);
    if crc32c::crc32c(rest).to_le_bytes() != sum {
        return None;
    }
    let mut number = || take(&mut rest).map(u64::from_le_bytes);
    let identity = FileIdentity {
        device: number()?,
        inode: number()?,
        modified: Timestamp::from_nanos(number()?),
        size: number()?,
    };
    let changed_ns = number()?;
    Some((identity, Content { changed_ns, sha256: Sha256::from_bytes(take(&mut rest)?) }))
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*taken)
}

/// Bloom's filter.
struct Filter {
    key: u64,
    bits: Vec<u8>,
}

impl Default for Filter {
    fn default() -> Self {
        // The one source of chance from the system that the standard library has.
        Self { key: RandomState::new().hash_one(0), bits: vec![0; FILTER_BYTES] }
    }
}

impl Filter {
    /// True if it was not in yet.
    fn insert(&mut self, sha256: &Sha256) -> bool {
        let keyed = sha2::Sha256::new().chain_update(self.key.to_le_bytes()).chain_update(sha256.as_bytes());
        let mut is_new = false;
        for place in keyed.finalize().chunks_exact(4).take(PROBES) {
            let place = place.iter().fold(0, |place, byte| place << 8 | usize::from(*byte));
            let (byte, bit) = (place / 8 % FILTER_BYTES, 1 << (place % 8));
            is_new |= self.bits[byte] & bit == 0;
            self.bits[byte] |= bit;
        }
        is_new
    }

    fn is_half_full(&self) -> bool {
        self.bits.iter().map(|byte| byte.count_ones() as usize).sum::<usize>() > FILTER_BYTES * 8 / 2
    }
}

/// What is known of executables cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum KnownError {
    /// The file was written by a newer version.
    #[error(
        "{} was written by a newer version (format {written}, this one knows up to {FORMAT}): upgrade, or remove it",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        written: u32,
    },
    /// The system says no.
    #[error("cannot keep what is known of executables in {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// There is no thread to hash on, or no way to be told of it.
    #[error("cannot begin to hash executables: {0}")]
    Worker(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(inode: u64) -> FileState {
        let identity = FileIdentity { device: 1, inode, modified: Timestamp::from_secs(2), size: 3 };
        FileState { identity, changed_ns: 4 }
    }

    fn content(number: u64) -> Sha256 {
        Sha256::from_bytes(sha2::Sha256::digest(number.to_le_bytes()).into())
    }

    /// A file with what `numbers` say learnt and saved, one by one.
    fn learnt(path: &Path, entries_max: usize, numbers: std::ops::Range<u64>) -> Known {
        let mut known = Known::open(path, entries_max).unwrap();
        for number in numbers {
            assert!(known.learn(&state(number), content(number)), "{number}");
            known.save().unwrap();
        }
        known
    }

    #[test]
    fn what_was_saved_is_known_in_the_next_run() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("executables");
        drop(learnt(&path, 100, 0..10));
        let mut known = learnt(&path, 100, 10..20);
        for number in 0..20 {
            assert_eq!(known.sha256(&state(number)), Some(content(number)));
            assert!(!known.learn(&state(number), content(number)));
        }
        let touched = FileState { changed_ns: 5, ..state(3) };
        assert_eq!(known.sha256(&touched), None, "something of it was changed");
    }

    #[test]
    fn the_file_is_bounded_and_no_content_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("executables");
        drop(learnt(&path, 4, 0..1_000));
        let bytes = fs::metadata(&path).unwrap().len() as usize;
        assert!(bytes <= HEADER_BYTES + FILTER_BYTES + 8 * RECORD_BYTES, "{bytes}");
        let mut known = Known::open(&path, 4).unwrap();
        assert_eq!(known.sha256(&state(0)), None);
        assert_eq!(known.sha256(&state(999)), Some(content(999)));
        assert!((0..1_000).all(|number| !known.learn(&state(number), content(number))));
    }

    #[test]
    fn a_torn_end_is_cut_and_nothing_else_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("executables");
        drop(learnt(&path, 100, 0..3));
        let whole = fs::read(&path).unwrap();
        for cut in 1..=2 * RECORD_BYTES {
            fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let kept = (2 * RECORD_BYTES - cut) as u64 / RECORD_BYTES as u64 + 1;
            let mut known = Known::open(&path, 100).unwrap();
            assert!(!known.is_incomplete);
            assert_eq!(known.sha256(&state(kept - 1)), Some(content(kept - 1)), "{cut}");
            assert!(known.learn(&state(kept), content(kept)), "{cut}");
            known.save().unwrap();
            drop(known);
            let mut known = Known::open(&path, 100).unwrap();
            assert_eq!(known.sha256(&state(kept)), Some(content(kept)), "{cut}");
        }
    }

    #[test]
    fn after_damage_nothing_is_called_new() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("executables");
        drop(learnt(&path, 100, 0..3));
        let whole = fs::read(&path).unwrap();
        for at in [0, 8 + 4, 20, 31, 1_000, HEADER_BYTES + FILTER_BYTES + 1] {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            fs::write(&path, &damaged).unwrap();
            for _ in 0..2 {
                let mut known = Known::open(&path, 100).unwrap();
                assert!(!known.learn(&state(9), content(at as u64)), "{at}");
                known.save().unwrap();
            }
            assert_eq!(fs::read(path.with_extension("damaged")).unwrap(), damaged);
        }
        for length in [0, 11, 31, HEADER_BYTES + 5] {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(Known::open(&path, 100).unwrap().is_incomplete, "{length}");
        }
    }

    #[test]
    fn what_a_disk_did_not_take_is_saved_later() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("executables");
        let mut known = learnt(&path, 100, 0..1);
        let file = known.file.replace(File::open(&path).unwrap());
        known.learn(&state(1), content(1));
        let problem = known.save().unwrap_err().to_string();
        assert!(
            problem.starts_with(&format!("cannot keep what is known of executables in {}", path.display()))
        );
        known.learn(&state(2), content(2));
        known.file = file;
        known.save().unwrap();
        drop(known);
        let mut known = Known::open(&path, 100).unwrap();
        assert!((0..3).all(|number| known.sha256(&state(number)) == Some(content(number))));
    }

    #[test]
    fn a_newer_format_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("executables");
        drop(learnt(&path, 100, 0..1));
        let mut newer = fs::read(&path).unwrap();
        newer[8] = 2;
        fs::write(&path, &newer).unwrap();
        assert!(matches!(Known::open(&path, 100), Err(KnownError::Newer { written: 2, .. })));
        assert_eq!(fs::read(&path).unwrap(), newer);
    }

    #[test]
    fn few_new_contents_are_taken_for_old_ones() {
        let mut filter = Filter::default();
        let taken = (0..80_000).filter(|number| !filter.insert(&content(*number))).count();
        assert!(taken < 40, "{taken}");
        assert!(!filter.is_half_full());
    }
}
