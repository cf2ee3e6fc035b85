//! The checkpoint: what the ring remembers besides its records.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    time::Duration,
};

use alibi_proto::{
    chain::Head,
    id::{Epoch, Seq},
    time::{Moment, Timestamp},
};

use super::{
    RingError, SEQ_MAX, Span, files,
    frame::{head_at, u32_at, u64_at},
    segment::check_magic,
};

/// The name of its file.
pub(super) const NAME: &str = "checkpoint";

const MAGIC: [u8; 8] = *b"ALIBICHK";
const FORMAT: u16 = 1;
/// Each slot has pages of its own, so that a write that fails in one leaves the other.
const SLOT_BYTES: usize = 4096;
/// Bytes of a slot that mean something.
const CONTENT_BYTES: usize = 144;

const CLOSED_CLEANLY: u16 = 1;
const HAS_RECORDED_UNTIL: u16 = 2;
const HAS_BOOT: u16 = 4;
const HAS_RECORDED_AT: u16 = 8;

/// Clocks that came apart by less were not set. What is not waited for may be known as it was so much before.
const STEADY_NS: u128 = 10_000_000;

/// So far beyond the safe checkpoint may another one say that everything is recorded, without being safe itself. After a
/// power cut, this is the most that was said and is not known any more.
pub(super) const UNSAFE_MAX: Duration = Duration::from_secs(10);

/// What is kept in a slot. The file has two slots of 4096 bytes. The one that is written, in place, is always that which
/// does not hold the newest safe checkpoint, so that that one is whole whatever happens. The valid slot of the higher
/// generation counts. Integers are little-endian, times in nanoseconds since the Unix epoch.
///
/// A generation is safe once it is synced. Until then its slot may be written again and again, each time with a later
/// `recorded_until` and no other difference: after a kill the last of these counts, and after a power cut any of them, or
/// none, if it is torn.
///
/// ```text
///  0   8  magic "ALIBICHK"
///  8   2  format version, 1
/// 10   2  flags: 1 closed cleanly, 2 `recorded_until` is known, 4 the boot is known, 8 `recorded_at` is known
/// 12   4  CRC32C of bytes 0..12 and 16..144
/// 16   8  generation, from 1
/// 24   8  epoch
/// 32   8  next seq: all before it were safe on disk
/// 40   8  acknowledged seq, 0 if none is
/// 48   8  recorded until
/// 56   8  first seq evicted without acknowledgement, 0 if none was
/// 64   8  last of them
/// 72   8  the earliest instant that they spoke of
/// 80   8  the latest
/// 88   8  the boot in which it was written, as the writer names it
/// 96   8  an instant up to which was recorded, as the wall clock showed it
/// 104  8  the same, in nanoseconds since that boot
/// 112 32  head of the chain before the next seq
/// 144     zeros
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Checkpoint {
    pub(super) epoch: Epoch,
    pub(super) next_seq: Seq,
    pub(super) acknowledged: Seq,
    pub(super) recorded_until: Option<Timestamp>,
    /// Both clocks at one instant up to which was recorded, in the boot that is named.
    pub(super) recorded_at: Option<Moment>,
    pub(super) closed_cleanly: bool,
    pub(super) evicted: Option<Span>,
    pub(super) boot: Option<u64>,
    /// The head of the chain before `next_seq`.
    pub(super) head: Head,
}

impl Checkpoint {
    fn encode(&self, generation: u64) -> [u8; SLOT_BYTES] {
        let flags = if self.closed_cleanly { CLOSED_CLEANLY } else { 0 }
            | if self.recorded_until.is_some() { HAS_RECORDED_UNTIL } else { 0 }
            | if self.boot.is_some() { HAS_BOOT } else { 0 }
            | if self.recorded_at.is_some() { HAS_RECORDED_AT } else { 0 };
        let none = Span { first: Seq(0), last: Seq(0), from: Timestamp::ZERO, to: Timestamp::ZERO };
        let evicted = self.evicted.unwrap_or(none);
        let recorded_at = self.recorded_at.unwrap_or_default();
        let words = [
            generation,
            self.epoch.0,
            self.next_seq.0,
            self.acknowledged.0,
            self.recorded_until.unwrap_or_default().as_nanos(),
            evicted.first.0,
            evicted.last.0,
            evicted.from.as_nanos(),
            evicted.to.as_nanos(),
            self.boot.unwrap_or_default(),
            recorded_at.wall.as_nanos(),
            recorded_at.boot_ns,
        ];
        let mut bytes = [0; SLOT_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[10..12].copy_from_slice(&flags.to_le_bytes());
        for (place, word) in bytes[16..112].chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes[112..CONTENT_BYTES].copy_from_slice(self.head.as_bytes());
        let crc = checksum(&bytes[..CONTENT_BYTES]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Whether all that this says beyond `safe` is that a little more time is recorded.
    fn goes_on_from(&self, safe: &Self) -> bool {
        let is_later = match (safe.recorded_until, self.recorded_until) {
            (Some(before), Some(until)) => before <= until && until.since(before) < UNSAFE_MAX,
            (before, until) => before == until,
        };
        let &Self { recorded_until, recorded_at, .. } = self;
        // How the clocks stand to each other is the same as long as none of them was set.
        let stand = |at: Option<Moment>| at.map(|at| i128::from(at.wall.as_nanos()) - i128::from(at.boot_ns));
        let steady = match (stand(recorded_at), stand(safe.recorded_at)) {
            (Some(now), Some(before)) => now.abs_diff(before) < STEADY_NS,
            (now, before) => now == before,
        };
        is_later && steady && *self == Self { recorded_until, recorded_at, ..*safe }
    }

    /// Its generation and content, if the slot holds one.
    fn decode(slot: &[u8]) -> Option<(u64, Self)> {
        let content = slot.get(..CONTENT_BYTES)?;
        if content[..8] != MAGIC
            || content[8..10] != FORMAT.to_le_bytes()
            || u32_at(content, 12) != checksum(content)
        {
            return None;
        }
        let flags = u16::from_le_bytes([slot[10], slot[11]]);
        let word = |at| u64_at(slot, at);
        let time = |at| Timestamp::from_nanos(word(at));
        let evicted = Span { first: Seq(word(56)), last: Seq(word(64)), from: time(72), to: time(80) };
        let checkpoint = Self {
            epoch: Epoch(word(24)),
            next_seq: Seq(word(32)),
            acknowledged: Seq(word(40)),
            recorded_until: (flags & HAS_RECORDED_UNTIL != 0).then(|| time(48)),
            closed_cleanly: flags & CLOSED_CLEANLY != 0,
            evicted: (evicted.first > Seq(0)).then_some(evicted),
            boot: (flags & HAS_BOOT != 0).then(|| word(88)),
            recorded_at: (flags & HAS_RECORDED_AT != 0)
                .then(|| Moment { wall: time(96), boot_ns: word(104) }),
            head: head_at(slot, 112),
        };
        let counts = word(16) < SEQ_MAX.0
            && (Seq::FIRST..=SEQ_MAX).contains(&checkpoint.next_seq)
            && checkpoint.acknowledged < SEQ_MAX
            && evicted.first <= evicted.last
            && evicted.last < SEQ_MAX;
        counts.then_some((word(16), checkpoint))
    }
}

fn checksum(content: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&content[..12]), &content[16..])
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
    /// Of the newest safe checkpoint.
    generation: u64,
    /// That checkpoint. None if it is not known, or a write has failed since: then the next one must be made safe.
    safe: Option<Checkpoint>,
    /// What the file says after a kill.
    written: Option<Checkpoint>,
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
        let known = Some(*checkpoint);
        Ok(Self { file, path: path.to_owned(), generation, safe: known, written: known })
    }

    /// Opens the file, whose newest checkpoint is of this generation, and makes that safe: what a killed program wrote
    /// may not be, and the slot to be written next is that of the one before it.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) fn open(path: &Path, generation: u64) -> Result<Self, RingError> {
        let file = files::open_to_write(path)
            .and_then(|file| files::sync(&file).map(|()| file))
            .map_err(|source| RingError::Io { path: path.to_owned(), source })?;
        Ok(Self { file, path: path.to_owned(), generation, safe: None, written: None })
    }

    /// Writes a checkpoint over the older of the two, and waits until it is safe.
    ///
    /// # Errors
    /// When it cannot be written; the one before it counts then.
    pub(super) fn write(&mut self, checkpoint: &Checkpoint) -> Result<(), RingError> {
        self.safe = None;
        self.write_unsafe(checkpoint)?;
        files::sync(&self.file).map_err(|source| RingError::Io { path: self.path.clone(), source })?;
        self.generation += 1;
        self.safe = Some(*checkpoint);
        Ok(())
    }

    /// Writes a checkpoint where a kill does not undo it. Waits until it is safe from a power cut as well, unless all that
    /// it says beyond the one that is safe is that less than [`UNSAFE_MAX`] more is recorded.
    ///
    /// # Errors
    /// When it cannot be written; the one before it counts then, or the one that is safe.
    pub(super) fn note(&mut self, checkpoint: &Checkpoint) -> Result<(), RingError> {
        if !self.safe.as_ref().is_some_and(|safe| checkpoint.goes_on_from(safe)) {
            return self.write(checkpoint);
        }
        if self.written.as_ref() == Some(checkpoint) {
            return Ok(());
        }
        self.write_unsafe(checkpoint)
    }

    /// Writes the next generation, in the slot that does not hold the safe one.
    fn write_unsafe(&mut self, checkpoint: &Checkpoint) -> Result<(), RingError> {
        self.written = None;
        let generation = self.generation + 1;
        let slot = checkpoint.encode(generation);
        files::write_at(&mut self.file, slot_range(generation).start as u64, &slot)
            .map_err(|source| RingError::Io { path: self.path.clone(), source })?;
        self.written = Some(*checkpoint);
        Ok(())
    }
}

fn slot_range(generation: u64) -> std::ops::Range<usize> {
    let start = if generation.is_multiple_of(2) { 0 } else { SLOT_BYTES };
    start..start + SLOT_BYTES
}

#[cfg(test)]
mod tests {
    use files::fault;
    use proptest::prelude::*;

    use super::*;

    fn checkpoint(next_seq: u64) -> Checkpoint {
        let (from, to) = (Timestamp::from_secs(1), Timestamp::from_secs(2));
        Checkpoint {
            epoch: Epoch(3),
            next_seq: Seq(next_seq),
            acknowledged: Seq(4),
            recorded_until: Some(Timestamp::from_secs(5)),
            closed_cleanly: true,
            evicted: Some(Span { first: Seq(6), last: Seq(7), from, to }),
            boot: Some(8),
            recorded_at: Some(Moment { wall: Timestamp::from_secs(5), boot_ns: 9 }),
            head: Head::from_bytes([10; 32]),
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
        let bare = Checkpoint {
            recorded_until: None,
            recorded_at: None,
            evicted: None,
            boot: None,
            ..checkpoint(1)
        };
        CheckpointFile::open(&path, 10).unwrap().write(&bare).unwrap();
        assert_eq!(read(&path).unwrap(), Some((11, bare)));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 8192);
    }

    #[test]
    fn one_that_counts_beyond_what_any_ring_does_is_damage() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join(NAME);
        let good = checkpoint(10);
        let mut file = CheckpointFile::create(&path, &good).unwrap();
        let evicted = Span { first: Seq(7), last: Seq(6), ..good.evicted.unwrap() };
        for bad in [
            checkpoint(0),
            checkpoint(u64::MAX),
            Checkpoint { acknowledged: Seq(u64::MAX), ..good },
            Checkpoint { evicted: Some(evicted), ..good },
            Checkpoint { evicted: Some(Span { last: Seq(u64::MAX), ..evicted }), ..good },
        ] {
            file.generation = 1;
            file.write(&bad).unwrap();
            let (generation, read) = read(&path).unwrap().unwrap();
            assert_eq!((generation, read), (1, Checkpoint { closed_cleanly: false, ..good }), "{bad:?}");
        }
        file.generation = u64::MAX - 1;
        file.write_unsafe(&checkpoint(11)).unwrap();
        assert_eq!(read(&path).unwrap(), None, "it was written over the only good one");
    }

    #[test]
    fn a_write_that_fails_anywhere_leaves_the_one_before_it() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join(NAME);
        let mut file = CheckpointFile::create(&path, &checkpoint(10)).unwrap();
        file.write(&checkpoint(11)).unwrap();
        for room in 0..CONTENT_BYTES - 1 {
            fault::set_room(Some(room));
            assert!(file.write(&checkpoint(12)).is_err());
            fault::set_room(None);
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

    fn until(seconds: u64) -> Checkpoint {
        Checkpoint {
            recorded_until: Some(Timestamp::from_secs(seconds)),
            recorded_at: Some(Moment {
                wall: Timestamp::from_secs(seconds),
                boot_ns: (seconds + 7) * 1_000_000_000,
            }),
            closed_cleanly: false,
            ..checkpoint(10)
        }
    }

    /// How many writes and syncs `checkpoint` took.
    fn cost(file: &mut CheckpointFile, checkpoint: &Checkpoint) -> (usize, usize) {
        fault::remember();
        file.note(checkpoint).unwrap();
        let done = fault::remembered();
        let syncs = done.iter().filter(|done| **done == fault::Done::Sync).count();
        (done.len() - syncs, syncs)
    }

    #[test]
    fn only_a_little_more_time_is_not_waited_for() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join(NAME);
        let mut file = CheckpointFile::create(&path, &until(100)).unwrap();
        for (checkpoint, wanted) in [
            (until(100), (0, 0)),
            (until(101), (1, 0)),
            (until(101), (0, 0)),
            (until(109), (1, 0)),
            (until(110), (1, 1)),
            (until(119), (1, 0)),
            (Checkpoint { acknowledged: Seq(5), ..until(119) }, (1, 1)),
            (Checkpoint { acknowledged: Seq(5), ..until(120) }, (1, 0)),
            (Checkpoint { closed_cleanly: true, ..until(120) }, (1, 1)),
            // What takes back that it was closed, as well.
            (until(120), (1, 1)),
            (Checkpoint { next_seq: Seq(11), ..until(120) }, (1, 1)),
            (Checkpoint { boot: None, ..until(120) }, (1, 1)),
            (Checkpoint { evicted: None, ..until(120) }, (1, 1)),
            (Checkpoint { head: Head::from_bytes([11; 32]), ..until(120) }, (1, 1)),
            (Checkpoint { recorded_at: None, ..until(120) }, (1, 1)),
            (Checkpoint { recorded_at: checkpoint(1).recorded_at, ..until(120) }, (1, 1)),
            (Checkpoint { recorded_until: None, ..until(120) }, (1, 1)),
            (until(1), (1, 1)),
            (until(0), (1, 1)),
        ] {
            assert_eq!(cost(&mut file, &checkpoint), wanted, "{checkpoint:?}");
            assert_eq!(read(&path).unwrap().unwrap().1, checkpoint, "after a kill");
        }
        // After a failure nothing is known to be safe; one that failed beside it leaves what is.
        fault::set_room(Some(0));
        assert!(file.note(&until(2)).is_err());
        fault::set_room(None);
        assert_eq!(cost(&mut file, &until(2)), (1, 0));
        fault::set_room(Some(0));
        assert!(file.write(&until(3)).is_err());
        fault::set_room(None);
        assert_eq!(cost(&mut file, &until(3)), (1, 1));
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// So many seconds later, and if so, with one more acknowledged.
        Note { later: u64, acknowledge: bool, room: Option<usize> },
        /// What evictions and openings do.
        Write { later: u64 },
        /// The program is killed, and started again.
        Kill,
    }

    fn step() -> impl Strategy<Value = Step> {
        let room = prop_oneof![9 => Just(None), 1 => (0..CONTENT_BYTES).prop_map(Some)];
        prop_oneof![
            8 => (0_u64..7, prop::bool::weighted(0.2), room)
                .prop_map(|(later, acknowledge, room)| Step::Note { later, acknowledge, room }),
            1 => (0_u64..7).prop_map(|later| Step::Write { later }),
            1 => Just(Step::Kill),
        ]
    }

    /// The two slots on a disk that may have any of what was written since it was last synced.
    struct Disk {
        /// For each slot, what is safe, and then what was written.
        slots: [Vec<Vec<u8>>; 2],
    }

    impl Disk {
        fn take(&mut self, done: fault::Done) {
            match done {
                fault::Done::Sync => self.slots.iter_mut().for_each(|slot| {
                    slot.drain(..slot.len() - 1);
                }),
                fault::Done::Write(offset, bytes) => {
                    let slot = &mut self.slots[usize::from(offset > 0)];
                    let mut all = slot.last().unwrap().clone();
                    all[..bytes.len()].copy_from_slice(&bytes);
                    slot.push(all);
                }
            }
        }

        /// What a power cut leaves: of each slot any of its contents, or the start of a later one over that.
        fn images(&self, torn_at: usize) -> Vec<Vec<u8>> {
            let contents = |slot: &[Vec<u8>]| -> Vec<Vec<u8>> {
                let torn = (0..slot.len()).flat_map(|old| (old + 1..slot.len()).map(move |new| (old, new)));
                let torn = torn.map(|(old, new)| [&slot[new][..torn_at], &slot[old][torn_at..]].concat());
                slot.iter().cloned().chain(torn).collect()
            };
            let [first, second] = [0, 1].map(|slot| contents(&self.slots[slot]));
            first.iter().flat_map(|first| second.iter().map(|second| [&**first, second].concat())).collect()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn a_power_cut_anywhere_leaves_what_was_safe_or_something_later(
            steps in prop::collection::vec(step(), 1..20), torn_at in 0..CONTENT_BYTES,
        ) {
            let temporary = tempfile::tempdir().unwrap();
            let (path, image_path) = (temporary.path().join(NAME), temporary.path().join("image"));
            let mut now = until(100);
            let mut file = CheckpointFile::create(&path, &now).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            let mut disk = Disk { slots: [vec![bytes[..SLOT_BYTES].to_vec()], vec![bytes[SLOT_BYTES..].to_vec()]] };
            // What has been asked for since the newest that is safe, which is the first; and what is promised of it.
            let mut since_safe = vec![now];
            for step in steps {
                let (later, acknowledge, room) = match step {
                    Step::Note { later, acknowledge, room } => (later, acknowledge, room),
                    Step::Write { later } => (later, false, None),
                    Step::Kill => (0, false, None),
                };
                now.recorded_until = now.recorded_until.map(|until| until.saturating_add(Duration::from_secs(later)));
                now.acknowledged.0 += u64::from(acknowledge);
                since_safe.push(now);
                let found = read(&path).unwrap().unwrap();
                fault::remember();
                let done = match step {
                    Step::Note { .. } => {
                        fault::set_room(room);
                        let done = file.note(&now);
                        fault::set_room(None);
                        done
                    }
                    Step::Write { .. } => file.write(&now),
                    Step::Kill => {
                        // It goes on from what it finds.
                        let (generation, checkpoint) = found;
                        now = checkpoint;
                        since_safe.push(now);
                        file = CheckpointFile::open(&path, generation).unwrap();
                        file.write(&now)
                    }
                };
                for one in fault::remembered() {
                    disk.take(one);
                    for image in disk.images(torn_at) {
                        std::fs::write(&image_path, &image).unwrap();
                        let left = read(&image_path).unwrap().map(|(_, checkpoint)| checkpoint);
                        prop_assert!(left.is_some_and(|left| since_safe.contains(&left)), "{left:?}, not of {since_safe:?}");
                    }
                }
                let is_safe = disk.slots.iter().all(|slot| slot.len() == 1);
                if done.is_ok() {
                    prop_assert_eq!(read(&path).unwrap().unwrap().1, now, "after a kill");
                    if is_safe {
                        since_safe = vec![now];
                    }
                    let behind = now.recorded_until.unwrap().since(since_safe[0].recorded_until.unwrap());
                    prop_assert!(behind < UNSAFE_MAX && (is_safe || now.acknowledged == since_safe[0].acknowledged));
                }
            }
        }
    }
}
