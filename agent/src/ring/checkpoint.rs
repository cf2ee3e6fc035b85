//! The checkpoint: what the ring remembers besides its records.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use alibi_proto::{
    id::{Epoch, Seq},
    time::Timestamp,
};

use super::{
    RingError, Span, Times, files,
    frame::{u32_at, u64_at},
    segment::check_magic,
};

/// The name of its file.
pub(super) const NAME: &str = "checkpoint";

const MAGIC: [u8; 8] = *b"ALBCHECK";
const FORMAT: u16 = 1;
/// Each slot has pages of its own, so that a write that fails in one leaves the other.
const SLOT_BYTES: usize = 4096;
/// Bytes of a slot that mean something.
const CONTENT_BYTES: usize = 88;

const CLOSED_CLEANLY: u16 = 1;
const HAS_RECORDED_UNTIL: u16 = 2;

/// What is kept in a slot. The file has two slots of 4096 bytes; slot `generation % 2` is written next, in place, so that
/// the other is whole whatever happens. The valid slot of the higher generation counts. Integers are little-endian,
/// times in nanoseconds since the Unix epoch.
///
/// ```text
///  0   8  magic "ALBCHECK"
///  8   2  format version, 1
/// 10   2  flags: 1 closed cleanly, 2 `recorded_until` is known
/// 12   4  CRC32C of bytes 0..12 and 16..88
/// 16   8  generation, from 1
/// 24   8  epoch
/// 32   8  next seq: all before it were safe on disk
/// 40   8  acknowledged seq, 0 if none is
/// 48   8  recorded until
/// 56   8  first seq evicted without acknowledgement, 0 if none was
/// 64   8  last of them
/// 72   8  the earliest instant that they spoke of
/// 80   8  the latest
/// 88      zeros
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Checkpoint {
    pub(super) epoch: Epoch,
    pub(super) next_seq: Seq,
    pub(super) acknowledged: Seq,
    pub(super) recorded_until: Option<Timestamp>,
    pub(super) closed_cleanly: bool,
    pub(super) evicted: Option<Span>,
}

impl Checkpoint {
    fn encode(&self, generation: u64) -> [u8; SLOT_BYTES] {
        let flags = if self.closed_cleanly { CLOSED_CLEANLY } else { 0 }
            | if self.recorded_until.is_some() { HAS_RECORDED_UNTIL } else { 0 };
        let none =
            Span { first: Seq(0), last: Seq(0), times: Times { from: Timestamp::ZERO, to: Timestamp::ZERO } };
        let evicted = self.evicted.unwrap_or(none);
        let words = [
            generation,
            self.epoch.0,
            self.next_seq.0,
            self.acknowledged.0,
            self.recorded_until.unwrap_or_default().as_nanos(),
            evicted.first.0,
            evicted.last.0,
            evicted.times.from.as_nanos(),
            evicted.times.to.as_nanos(),
        ];
        let mut bytes = [0; SLOT_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[10..12].copy_from_slice(&flags.to_le_bytes());
        for (place, word) in bytes[16..CONTENT_BYTES].chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let crc = checksum(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Its generation and content, if the slot holds one.
    fn decode(slot: &[u8]) -> Option<(u64, Self)> {
        let sound = slot.len() >= CONTENT_BYTES && slot[..8] == MAGIC && slot[8..10] == FORMAT.to_le_bytes();
        if !sound || u32_at(slot, 12) != checksum(slot) {
            return None;
        }
        let flags = u16::from_le_bytes([slot[10], slot[11]]);
        let word = |at| u64_at(slot, at);
        let time = |at| Timestamp::from_nanos(word(at));
        let evicted =
            Span { first: Seq(word(56)), last: Seq(word(64)), times: Times { from: time(72), to: time(80) } };
        let checkpoint = Self {
            epoch: Epoch(word(24)),
            next_seq: Seq(word(32)),
            acknowledged: Seq(word(40)),
            recorded_until: (flags & HAS_RECORDED_UNTIL != 0).then(|| time(48)),
            closed_cleanly: flags & CLOSED_CLEANLY != 0,
            evicted: (evicted.first > Seq(0)).then_some(evicted),
        };
        Some((word(16), checkpoint))
    }
}

fn checksum(slot: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&slot[..12]), &slot[16..CONTENT_BYTES])
}

/// The newest checkpoint of the file and its generation; none if there is no file, or none of it holds. If the other
/// slot is damaged, a newer one may have been in it: this one then does not count as closed cleanly.
///
/// # Errors
/// When the file cannot be read, is not a checkpoint, or was written by a newer version.
pub(super) fn read(path: &Path) -> Result<Option<(u64, Checkpoint)>, RingError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(2 * SLOT_BYTES as u64).read_to_end(&mut bytes));
    match read {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(RingError::Io { path: path.to_owned(), source }),
        Ok(_) => {}
    }
    let slots = || bytes.chunks(SLOT_BYTES);
    let checked: Vec<_> = slots().map(|slot| check_magic(path, slot, MAGIC, FORMAT)).collect();
    let newest = slots().filter_map(Checkpoint::decode).max_by_key(|(generation, _)| *generation);
    if let Some(newer) = checked.iter().position(|checked| matches!(checked, Err(RingError::Newer { .. }))) {
        return Err(checked
            .into_iter()
            .nth(newer)
            .and_then(Result::err)
            .expect("it is an error, by its position"));
    }
    let Some((generation, mut checkpoint)) = newest else {
        return checked.into_iter().find(Result::is_err).unwrap_or(Ok(())).map(|()| None);
    };
    let whole = bytes.len() == 2 * SLOT_BYTES;
    let sound = slots().all(|slot| Checkpoint::decode(slot).is_some() || slot.iter().all(|&byte| byte == 0));
    checkpoint.closed_cleanly &= whole && sound;
    Ok(Some((generation, checkpoint)))
}

/// The file, open to write checkpoints.
#[derive(Debug)]
pub(super) struct CheckpointFile {
    file: File,
    path: PathBuf,
    generation: u64,
}

impl CheckpointFile {
    /// Makes the file anew.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn create(path: &Path, checkpoint: &Checkpoint) -> Result<Self, RingError> {
        let generation = 1;
        let mut bytes = [0; 2 * SLOT_BYTES];
        bytes[slot_range(generation)].copy_from_slice(&checkpoint.encode(generation));
        let error = |source| RingError::Io { path: path.to_owned(), source };
        let file = files::create_whole(path, &bytes).map_err(error)?;
        files::sync(&file).map_err(error)?;
        Ok(Self { file, path: path.to_owned(), generation })
    }

    /// Opens the file, whose newest checkpoint is of this generation.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) fn open(path: &Path, generation: u64) -> Result<Self, RingError> {
        let file =
            files::open_to_write(path).map_err(|source| RingError::Io { path: path.to_owned(), source })?;
        Ok(Self { file, path: path.to_owned(), generation })
    }

    /// Writes a checkpoint over the older of the two, and waits until it is safe.
    ///
    /// # Errors
    /// When it cannot be written; the one before it counts then.
    pub(super) fn write(&mut self, checkpoint: &Checkpoint) -> Result<(), RingError> {
        let generation = self.generation + 1;
        let slot = checkpoint.encode(generation);
        files::write_at(&mut self.file, slot_range(generation).start as u64, &slot)
            .and_then(|()| files::sync(&self.file))
            .map_err(|source| RingError::Io { path: self.path.clone(), source })?;
        self.generation = generation;
        Ok(())
    }
}

fn slot_range(generation: u64) -> std::ops::Range<usize> {
    let start = if generation.is_multiple_of(2) { 0 } else { SLOT_BYTES };
    start..start + SLOT_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(next_seq: u64) -> Checkpoint {
        let times = Times { from: Timestamp::from_secs(1), to: Timestamp::from_secs(2) };
        Checkpoint {
            epoch: Epoch(3),
            next_seq: Seq(next_seq),
            acknowledged: Seq(4),
            recorded_until: Some(Timestamp::from_secs(5)),
            closed_cleanly: true,
            evicted: Some(Span { first: Seq(6), last: Seq(7), times }),
        }
    }

    #[test]
    fn the_newest_counts_and_the_file_does_not_grow() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join(NAME);
        assert_eq!(read(&path).unwrap(), None);
        let mut file = CheckpointFile::create(&path, &checkpoint(10)).unwrap();
        assert_eq!(read(&path).unwrap(), Some((1, checkpoint(10))));
        for next_seq in 11..20 {
            file.write(&checkpoint(next_seq)).unwrap();
            assert_eq!(read(&path).unwrap(), Some((next_seq - 9, checkpoint(next_seq))));
        }
        let bare = Checkpoint { recorded_until: None, evicted: None, ..checkpoint(1) };
        CheckpointFile::open(&path, 10).unwrap().write(&bare).unwrap();
        assert_eq!(read(&path).unwrap(), Some((11, bare)));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 8192);
    }

    #[test]
    fn a_write_that_fails_anywhere_leaves_the_one_before_it() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join(NAME);
        let mut file = CheckpointFile::create(&path, &checkpoint(10)).unwrap();
        file.write(&checkpoint(11)).unwrap();
        for room in 0..CONTENT_BYTES - 1 {
            files::fault::set_room(Some(room));
            assert!(file.write(&checkpoint(12)).is_err());
            files::fault::set_room(None);
            let (_, mut read) = read(&path).unwrap().unwrap();
            // It does not count as closed cleanly, as a newer one may have been there.
            read.closed_cleanly = true;
            // Once all that differs is written, the new one may count.
            assert!(
                read == checkpoint(11) || room > 32 && read == checkpoint(12),
                "after {room} bytes: {read:?}"
            );
        }
        file.write(&checkpoint(12)).unwrap();
        assert_eq!(read(&path).unwrap(), Some((3, checkpoint(12))));
    }
}
